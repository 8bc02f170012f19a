//! Exchanges over streams: one request frame, one answer frame, within one timeout.
//!
//! Not here: what the frames mean (`swim`), how they are sealed (`keyring`), how many streams are open at a time (`driver`).

use crate::errors::StreamError;
use crate::keyring::Guard;
use quorate_rt::Rt;
use quorate_wire::gossip::StreamMessage;
use quorate_wire::seal::Direction;
use std::net::SocketAddr;
use std::time::Duration;

/// Opens a stream, sends `message` and reads the answer. What is about keys is sealed even where `verify_outgoing` is off.
pub(crate) async fn exchange<R: Rt>(
    rt: &R,
    guard: &Guard<R>,
    address: SocketAddr,
    timeout: Duration,
    message: StreamMessage,
) -> Result<StreamMessage, StreamError> {
    let is_about_keys = matches!(message, StreamMessage::Keyring(_));
    let work = async {
        let mut stream = rt
            .tcp_connect(address)
            .await
            .map_err(|err| StreamError::Dial { address, err })?;
        let session = guard.greet(&mut stream, is_about_keys).await?;
        guard.write(&mut stream, session, Direction::Request, &message).await?;
        guard.read(&mut stream, session, Direction::Answer).await
    };
    match rt.timeout(timeout, work).await {
        Ok(answer) => answer,
        Err(quorate_rt::Elapsed) => Err(StreamError::Timeout { address }),
    }
}

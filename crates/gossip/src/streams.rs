//! Exchanges over streams: one request frame, one answer frame, within one timeout.
//!
//! Not here: what the frames mean (`swim`), how many streams are open at a time (`driver`).

use crate::errors::StreamError;
use quorate_rt::Rt;
use quorate_wire::gossip::{
    FRAME_HEADER_LEN_BYTES, StreamMessage, decode_frame_body, decode_frame_header, encode_frame,
};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(crate) async fn read_frame<S: AsyncRead + Unpin>(stream: &mut S) -> Result<StreamMessage, StreamError> {
    let mut header = [0; FRAME_HEADER_LEN_BYTES];
    stream.read_exact(&mut header).await.map_err(StreamError::Io)?;
    let header = decode_frame_header(&header)?;
    // Grows with what arrives, not with what the header claims.
    let mut body = Vec::new();
    let mut rest = stream.take(header.body_len_bytes as u64);
    rest.read_to_end(&mut body).await.map_err(StreamError::Io)?;
    Ok(decode_frame_body(header, &body)?)
}

pub(crate) async fn write_frame<S: AsyncWrite + Unpin>(
    stream: &mut S,
    message: &StreamMessage,
) -> Result<(), StreamError> {
    let frame = encode_frame(message)?;
    stream.write_all(&frame).await.map_err(StreamError::Io)?;
    stream.flush().await.map_err(StreamError::Io)
}

/// Opens a stream, sends `message` and reads the answer.
pub(crate) async fn exchange<R: Rt>(
    rt: &R,
    address: SocketAddr,
    timeout: Duration,
    message: StreamMessage,
) -> Result<StreamMessage, StreamError> {
    let work = async {
        let mut stream = rt
            .tcp_connect(address)
            .await
            .map_err(|err| StreamError::Dial { address, err })?;
        write_frame(&mut stream, &message).await?;
        read_frame(&mut stream).await
    };
    match rt.timeout(timeout, work).await {
        Ok(answer) => answer,
        Err(quorate_rt::Elapsed) => Err(StreamError::Timeout { address }),
    }
}

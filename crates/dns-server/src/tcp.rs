//! Questions on streams, each behind its length (RFC 1035 section 4.2.2), answered one after another (RFC 7766 allows it).

use crate::{Catalog, Counted, Draws};
use futures::stream::{FuturesUnordered, StreamExt as _};
use quorate_dns_answer::Transport;
use quorate_rt::{Listener, Rt};
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Out of descriptors, most likely: give connections time to end.
const ERROR_DELAY: Duration = Duration::from_millis(50);

enum Turn<S> {
    Ended,
    Accepted(io::Result<(S, SocketAddr)>),
}

pub(crate) async fn serve<R: Rt, C: Catalog>(draws: Draws<R, C>, listener: R::Listener) {
    let shared = draws.shared.clone();
    let mut connections = FuturesUnordered::new();
    let mut accepting = pin!(listener.accept());
    loop {
        let turn = poll_fn(|cx| {
            if let Poll::Ready(Some(())) = connections.poll_next_unpin(cx) {
                return Poll::Ready(Turn::Ended);
            }
            accepting.as_mut().poll(cx).map(Turn::Accepted)
        });
        let Turn::Accepted(accepted) = turn.await else {
            continue;
        };
        match accepted {
            Ok((stream, client)) => {
                let count_max = shared.settings.load().limits.connection_count_max;
                match Counted::try_new(&shared, |shared| &shared.connection_count, count_max) {
                    Some(counted) => {
                        let draws = draws.clone();
                        connections.push(Box::pin(async move {
                            if let Err(err) = converse(&draws, stream).await {
                                tracing::debug!(%err, %client, "serve DNS over TCP");
                            }
                            drop(counted);
                        }));
                    }
                    None => {
                        shared.refused_connections.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Err(err) => {
                tracing::debug!(%err, "accept a DNS connection");
                shared.rt.sleep(ERROR_DELAY).await;
            }
        }
        accepting.set(listener.accept());
    }
}

/// Until the client closes, falls silent, or sends what is no question.
async fn converse<R: Rt, C: Catalog>(draws: &Draws<R, C>, mut stream: R::Stream) -> io::Result<()> {
    let rt = &draws.shared.rt;
    loop {
        let idle_timeout = draws.shared.settings.load().limits.tcp_idle_timeout;
        let Ok(message) = rt.timeout(idle_timeout, read_message(&mut stream)).await else {
            return Ok(());
        };
        let Some(message) = message? else { return Ok(()) };
        let Some(reply) = draws.reply_to(&message, Transport::Tcp).await else {
            return Ok(());
        };
        let written = rt.timeout(idle_timeout, write_message(&mut stream, &reply)).await;
        match written {
            Ok(written) => written?,
            Err(_) => return Ok(()),
        }
    }
}

/// `None`: the stream ended between two messages.
pub(crate) async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(err) => return Err(err),
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Length and message in one write, so that they travel in one segment (RFC 7766 section 8).
pub(crate) async fn write_message(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> io::Result<()> {
    let len_bytes = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = Vec::with_capacity(2 + message.len());
    framed.extend_from_slice(&len_bytes.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}

//! Calls between agents over one port: many at once on a connection, each with a deadline.
//!
//! Promises: no call outlives its deadline; a failed one says whether it can have reached the other side; a peer that
//! stalls in the middle of a frame, or after connecting, is cut off; frames are bounded before they are read; connections
//! nobody uses are closed; one that cannot be made is not tried again at once.
//!
//! `client` keeps the connections we make, `server` serves those made to us.
//! Not here: what is said (`quorate_wire`), who may be a peer (`identity`).

pub mod client;
pub mod server;

use bytes::{Bytes, BytesMut};
use quorate_types::limits::RPC_FRAME_LEN_BYTES_MAX;
use quorate_wire::codec::Malformed;
use quorate_wire::frame::{FRAME_HEADER_LEN_BYTES, FrameHeader, What};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;

/// A connection is made, and shakes hands, within this.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A frame that began goes on within this.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections nobody used for this long are closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// Frames that wait to be written to one connection; givers wait beyond it.
const OUTGOING_COUNT_MAX: usize = 64;
/// A body is read in pieces of this, so that memory follows what arrived and not what was claimed.
const READ_LEN_BYTES: usize = 64 * 1024;
/// Small frames that arrived together are taken from the system together.
const BUFFER_LEN_BYTES: usize = 16 * 1024;
/// Small frames that wait together are written together, up to this.
const WRITE_LEN_BYTES: usize = 64 * 1024;

/// A frame.
#[derive(Debug)]
struct Frame {
    id: u64,
    what: What,
    body: Bytes,
}

/// What the watchdog of a connection looks at.
#[derive(Debug, Default)]
struct Activity {
    /// Bytes and frames seen in either direction, in no exact measure.
    count: AtomicU64,
    is_in_frame: AtomicBool,
    is_writing: AtomicBool,
}

impl Activity {
    fn note(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

fn malformed(err: Malformed) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, err)
}

/// Reads one frame; `None` when the peer closed between two.
async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    body_len_bytes_max: usize,
    activity: &Activity,
) -> io::Result<Option<Frame>> {
    let mut header = [0; FRAME_HEADER_LEN_BYTES];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    activity.is_in_frame.store(true, Ordering::Relaxed);
    activity.note();
    stream.read_exact(&mut header[1..]).await?;
    let header = FrameHeader::decode(&header, body_len_bytes_max).map_err(malformed)?;
    let mut body = BytesMut::with_capacity(header.body_len_bytes.min(READ_LEN_BYTES));
    while body.len() < header.body_len_bytes {
        let missing = header.body_len_bytes - body.len();
        body.reserve(missing.min(READ_LEN_BYTES));
        let mut piece = (&mut *stream).take(missing.min(READ_LEN_BYTES) as u64);
        if piece.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        activity.note();
    }
    activity.is_in_frame.store(false, Ordering::Relaxed);
    Ok(Some(Frame {
        id: header.id,
        what: header.what,
        body: body.freeze(),
    }))
}

async fn write_frame<S: AsyncWrite + Unpin>(stream: &mut S, frame: &Frame) -> io::Result<()> {
    let header = FrameHeader {
        body_len_bytes: frame.body.len(),
        id: frame.id,
        what: frame.what,
    };
    if frame.body.len() <= WRITE_LEN_BYTES {
        let mut bytes = Vec::with_capacity(FRAME_HEADER_LEN_BYTES + frame.body.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&frame.body);
        stream.write_all(&bytes).await?;
    } else {
        stream.write_all(&header.encode()).await?;
        stream.write_all(&frame.body).await?;
    }
    stream.flush().await
}

/// Writes what comes until nobody is left to send, or the stream fails.
async fn write_frames<S: AsyncWrite + Unpin>(
    stream: &mut S,
    outgoing: &mut mpsc::Receiver<Frame>,
    activity: &Activity,
) -> io::Result<()> {
    while let Some(first) = outgoing.recv().await {
        activity.is_writing.store(true, Ordering::Relaxed);
        let mut next = Some(first);
        let mut together = Vec::new();
        while let Some(frame) = next {
            if frame.body.len() > WRITE_LEN_BYTES {
                stream.write_all(&together).await?;
                together.clear();
                write_frame(stream, &frame).await?;
                activity.note();
            } else {
                let header = FrameHeader {
                    body_len_bytes: frame.body.len(),
                    id: frame.id,
                    what: frame.what,
                };
                together.extend_from_slice(&header.encode());
                together.extend_from_slice(&frame.body);
                if together.len() >= WRITE_LEN_BYTES {
                    stream.write_all(&together).await?;
                    together.clear();
                    activity.note();
                }
            }
            next = outgoing.try_recv().ok();
        }
        stream.write_all(&together).await?;
        stream.flush().await?;
        activity.note();
        activity.is_writing.store(false, Ordering::Relaxed);
    }
    stream.shutdown().await
}

/// Ends when the connection is stuck in the middle of a frame, or idle for too long.
async fn watch_over<R: quorate_rt::Rt>(rt: &R, activity: &Activity, is_in_use: impl Fn() -> bool) -> &'static str {
    let mut seen = activity.count.load(Ordering::Relaxed);
    let mut quiet = Duration::ZERO;
    loop {
        rt.sleep(STALL_TIMEOUT).await;
        let now = activity.count.load(Ordering::Relaxed);
        if now != seen {
            seen = now;
            quiet = Duration::ZERO;
            continue;
        }
        quiet += STALL_TIMEOUT;
        if activity.is_in_frame.load(Ordering::Relaxed) || activity.is_writing.load(Ordering::Relaxed) {
            return "it stalled";
        }
        if quiet >= IDLE_TIMEOUT && !is_in_use() {
            return "nobody used it";
        }
    }
}

/// How large a body may be once the handshake is over.
const BODY_LEN_BYTES_MAX: usize = RPC_FRAME_LEN_BYTES_MAX;

#[cfg(test)]
mod tests;

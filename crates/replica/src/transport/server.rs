//! The connections made to us.

use super::*;
use futures::future::{BoxFuture, Either, select};
use quorate_rt::task::AbortOnDrop;
use quorate_rt::{Listener as _, Rt};
use quorate_wire::frame::{ConnectionKind, HELLO_LEN_BYTES_MAX, Hello, HelloReply, decode_preamble};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex};

/// Calls of one connection that are carried out at the same time. Blocking queries wait here, so it is large; beyond it
/// the connection is not read.
const CALL_COUNT_MAX: usize = 10_000;
/// A failed accept (no more files, say) is tried again after this.
const ACCEPT_DELAY: Duration = Duration::from_millis(100);

/// Who answers.
pub trait Service: Send + Sync + 'static {
    /// Whether to talk to this peer. An error is told to it.
    fn greet(&self, kind: ConnectionKind, hello: &Hello) -> HelloReply;
    /// Answers one call. `None` closes the connection: the call made no sense.
    fn answer(self: Arc<Self>, peer: Arc<Peer>, what: What, body: Bytes) -> BoxFuture<'static, Option<Bytes>>;
}

/// Who is at the other end, and what is known of it while the connection lasts.
pub struct Peer {
    pub kind: ConnectionKind,
    pub hello: Hello,
    /// What a service keeps between the calls of one connection.
    pub memory: tokio::sync::Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

/// Counts the connections of each address.
#[derive(Default)]
struct Guests {
    counts: Mutex<BTreeMap<IpAddr, usize>>,
}

struct Guest {
    address: IpAddr,
    guests: Arc<Guests>,
}

impl Guests {
    fn admit(self: &Arc<Self>, address: IpAddr, count_max: usize) -> Option<Guest> {
        let mut counts = self.counts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= count_max {
            return None;
        }
        *count += 1;
        Some(Guest {
            address,
            guests: Arc::clone(self),
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self
            .guests
            .counts
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// Accepts until it is dropped; connections and calls under way end with it.
pub async fn serve<R: Rt>(rt: R, listener: R::Listener, service: Arc<impl Service>, per_client_count_max: usize) {
    let guests = Arc::new(Guests::default());
    let mut connections: BTreeMap<u64, AbortOnDrop> = BTreeMap::new();
    let (ended, mut ends) = mpsc::unbounded_channel();
    let mut next_id = 0;
    loop {
        let accepted = match select(pin!(ends.recv()), pin!(listener.accept())).await {
            Either::Left((end, _)) => {
                if let Some(id) = end {
                    connections.remove(&id);
                }
                continue;
            }
            Either::Right((accepted, _)) => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                tracing::warn!(%err, "accept a server connection");
                rt.sleep(ACCEPT_DELAY).await;
                continue;
            }
        };
        let Some(guest) = guests.admit(address.ip(), per_client_count_max) else {
            tracing::warn!(%address, "refused a server connection: too many from this address");
            continue;
        };
        let id = next_id;
        next_id += 1;
        let (rt_of_it, service, ended) = (rt.clone(), Arc::clone(&service), ended.clone());
        let serve = async move {
            match serve_one(rt_of_it, stream, address, service).await {
                Ok(()) => {}
                Err(err) => tracing::debug!(%address, %err, "server connection"),
            }
            drop(guest);
            // The acceptor may be gone.
            let _ = ended.send(id);
        };
        connections.insert(id, rt.spawn("rpc-serve", serve).abort_on_drop());
    }
}

async fn serve_one<R: Rt>(
    rt: R,
    mut stream: R::Stream,
    address: SocketAddr,
    service: Arc<impl Service>,
) -> io::Result<()> {
    let shake = async {
        let mut bytes = [0; 2];
        stream.read_exact(&mut bytes).await?;
        let kind = decode_preamble(bytes).map_err(malformed)?;
        let frame = read_frame(&mut stream, HELLO_LEN_BYTES_MAX, &Activity::default())
            .await?
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        if frame.what != What::Hello {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not say hello"));
        }
        let hello = Hello::decode(&frame.body).map_err(malformed)?;
        let reply = service.greet(kind, &hello);
        let frame = Frame {
            id: 0,
            what: What::HelloReply,
            body: Bytes::from(reply.encode()),
        };
        write_frame(&mut stream, &frame).await?;
        Ok((kind, hello, reply))
    };
    let (kind, hello, reply) = match rt.timeout(CONNECT_TIMEOUT, shake).await {
        Ok(shaken) => shaken?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    if let HelloReply::Refused { reason } = reply {
        tracing::warn!(%address, from = %hello.from, ?kind, %reason, "refused a server connection");
        return stream.shutdown().await;
    }
    let peer = Arc::new(Peer {
        kind,
        hello,
        memory: tokio::sync::Mutex::new(None),
    });
    let activity = Activity::default();
    let (read_half, mut write_half) = tokio::io::split(stream);
    let mut read_half = BufReader::with_capacity(BUFFER_LEN_BYTES, read_half);
    let (outgoing, mut frames) = mpsc::channel(OUTGOING_COUNT_MAX);
    // Told apart from a reply: `None` says that the call made no sense.
    let (ended, mut ends) = mpsc::unbounded_channel::<(u64, bool)>();
    let calls: Mutex<BTreeMap<u64, AbortOnDrop>> = Mutex::new(BTreeMap::new());
    let locked = || calls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let room = tokio::sync::Notify::new();

    let reads = async {
        while let Some(frame) = read_frame(&mut read_half, BODY_LEN_BYTES_MAX, &activity).await? {
            match frame.what {
                What::Call | What::Control => {}
                What::Cancel => {
                    locked().remove(&frame.id);
                    continue;
                }
                What::Hello | What::HelloReply | What::Reply => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "it sends what only a server sends",
                    ));
                }
            }
            while locked().len() >= CALL_COUNT_MAX {
                room.notified().await;
            }
            let answer = Arc::clone(&service).answer(Arc::clone(&peer), frame.what, frame.body);
            let (outgoing, ended, id) = (outgoing.clone(), ended.clone(), frame.id);
            let work = async move {
                let answer = answer.await;
                let made_sense = answer.is_some();
                if let Some(body) = answer {
                    let frame = Frame {
                        id,
                        what: What::Reply,
                        body,
                    };
                    // The connection may be gone.
                    let _ = outgoing.send(frame).await;
                }
                let _ = ended.send((id, made_sense));
            };
            // Held over the start: the end is taken out under the same lock, after this put it in.
            let mut calls = locked();
            calls.insert(id, rt.spawn("rpc-call", work).abort_on_drop());
        }
        Ok(())
    };
    let removals = async {
        while let Some((id, made_sense)) = ends.recv().await {
            locked().remove(&id);
            room.notify_one();
            if !made_sense {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a call made no sense"));
            }
        }
        Ok(())
    };
    let writes = write_frames(&mut write_half, &mut frames, &activity);
    let watch = watch_over(&rt, &activity, || !locked().is_empty());
    let (reads, writes, removals) = (pin!(reads), pin!(writes), pin!(removals));
    let work = select(reads, select(writes, removals));
    match select(work, pin!(watch)).await {
        Either::Left((Either::Left((read, _)), _)) => read,
        Either::Left((Either::Right((Either::Left((result, _)) | Either::Right((result, _)), _)), _)) => result,
        Either::Right((why, _)) => Err(io::Error::other(why)),
    }
}

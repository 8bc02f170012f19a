//! Whether and how a pool's traffic is sealed, and the keys.
//!
//! In: packets and streams of peers, [`KeyringRequest`]s of operators. Out: messages that may be believed, packets and frames
//! as peers want them, and counts of what was refused.
//! Promises: with `verify_incoming` no plaintext reaches the state machine; what is refused is counted by its cause and told
//! in at most one log line a cause and `REFUSED_LOG_INTERVAL`; a change of the ring is on disk before it is in effect, and
//! changes go one after another.
//! Decided here: a stream is answered as it was opened, sealed or plain, so that members are switched on one by one
//! (`verify_incoming` off and then `verify_outgoing` on everywhere, then `verify_incoming` on). Keys never travel in
//! plaintext once there is a ring, whatever the switches say.
//! Not here: how bytes are sealed (`wire::seal`), the ring's rules (`wire::keyring`), where the file is (`agent`).

use crate::driver::Past;
use crate::errors::StreamError;
use futures::future::BoxFuture;
use quorate_rt::{Rng, Rt};
use quorate_swim::Message;
use quorate_types::{Instant, Member};
use quorate_wire::codec::Malformed;
use quorate_wire::gossip::{
    FRAME_HEADER_LEN_BYTES, KIND_GREETING, KIND_PLAIN, KIND_SEALED, KeyBytes, KeyringReply, KeyringRequest,
    StreamMessage, Unreadable, decode_frame_body, decode_frame_header, decode_packet, encode_frame, encode_packet,
    kind,
};
use quorate_wire::keyring::{Keyring, RingKey};
use quorate_wire::seal::{
    Binding, Direction, GREETING_LEN_BYTES, Greeting, SEALED_FRAME_HEADER_LEN_BYTES, Seal, SealError, StartId,
};
use rand_core::Rng as _;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::{debug, info, warn};
use zeroize::Zeroizing;

/// Between two log lines about one cause.
const REFUSED_LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Keeps a ring for the next start.
pub trait KeyringKeeper: Send + Sync + 'static {
    /// Returns once the ring is durable.
    fn keep(&self, ring: &Keyring) -> BoxFuture<'_, io::Result<()>>;
}

/// A ring that lasts as long as its member.
#[derive(Clone, Copy, Debug)]
pub struct NotKept;

impl KeyringKeeper for NotKept {
    fn keep(&self, _ring: &Keyring) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// How a pool is encrypted.
#[derive(Clone)]
pub struct Encryption {
    pub keyring: Keyring,
    /// Refuse plaintext.
    pub verify_incoming: bool,
    /// Send sealed packets and open sealed streams.
    pub verify_outgoing: bool,
    pub keeper: Arc<dyn KeyringKeeper>,
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption")
            .field("keyring", &self.keyring)
            .field("verify_incoming", &self.verify_incoming)
            .field("verify_outgoing", &self.verify_outgoing)
            .finish_non_exhaustive()
    }
}

/// What one member said to a keyring request: its keys, the primary one first (for `List`), or why not.
#[derive(Clone, Debug)]
pub struct KeyringAnswer {
    pub member: Member,
    pub result: Result<Vec<RingKey>, String>,
}

/// Why something of a peer was not read. The words are those of metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RefusedCause {
    /// Plaintext, while encryption is on.
    Plaintext,
    /// Sealed, while encryption is off.
    NoKeyring,
    UnknownKey,
    Forged,
    Stale,
    Duplicate,
    Reflected,
    Unsynced,
    Malformed,
    /// Members that claim the name or id of another.
    NameConflict,
    WrongDatacenter,
    /// Members at, or news from, addresses outside of the allowed blocks.
    NotAllowed,
    /// Members for whom there is no room.
    Full,
    /// A wrong word about this member, or in its name: it was refuted.
    Refuted,
    /// Coordinates and round trips that cannot be.
    Implausible,
    /// More news of members, or more user events and queries, than can be passed on: the oldest were dropped.
    Flooded,
    /// User events and queries that are too long, nameless, or at a time that cannot be.
    MalformedEvent,
}

impl RefusedCause {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::NoKeyring => "no_keyring",
            Self::UnknownKey => "unknown_key",
            Self::Forged => "forged",
            Self::Stale => "stale",
            Self::Duplicate => "duplicate",
            Self::Reflected => "reflected",
            Self::Unsynced => "unsynced",
            Self::Malformed => "malformed",
            Self::NameConflict => "name_conflict",
            Self::WrongDatacenter => "wrong_datacenter",
            Self::NotAllowed => "not_allowed",
            Self::Full => "full",
            Self::Refuted => "refuted",
            Self::Implausible => "implausible",
            Self::Flooded => "flooded",
            Self::MalformedEvent => "malformed_event",
        }
    }
    /// Networks duplicate packets and misdeliver some, and a starting member knows no time yet: no operator need act.
    const fn is_ordinary(self) -> bool {
        matches!(self, Self::Duplicate | Self::Reflected | Self::Unsynced)
    }
    pub(crate) const fn of(err: &SealError) -> Self {
        match err {
            SealError::Malformed(_) => Self::Malformed,
            SealError::UnknownKey => Self::UnknownKey,
            SealError::Forged => Self::Forged,
            SealError::Stale { .. } => Self::Stale,
            SealError::Duplicate => Self::Duplicate,
            SealError::Reflected => Self::Reflected,
            SealError::Unsynced => Self::Unsynced,
        }
    }
}

#[derive(Default)]
struct Refused {
    count: u64,
    count_told: u64,
    told_at: Option<Instant>,
}

impl Refused {
    /// Counts so many more. How many the log is to tell of; `None`: it told of this cause not long ago.
    fn count(&mut self, now: Instant, count: u64) -> Option<u64> {
        self.count += count;
        let is_recent = self.told_at.is_some_and(|told_at| now < told_at + REFUSED_LOG_INTERVAL);
        if is_recent {
            return None;
        }
        let untold = self.count - self.count_told;
        (self.told_at, self.count_told) = (Some(now), self.count);
        Some(untold)
    }
}

/// What a stream's frames hold for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Session {
    Plain,
    Sealed { client: Greeting, server: Greeting },
}

/// Stands between the sockets and the state machine of one pool.
pub(crate) struct Guard<R: Rt> {
    rt: R,
    pool: &'static str,
    sealing: Option<Sealing>,
    refused: Mutex<BTreeMap<RefusedCause, Refused>>,
}

struct Sealing {
    seal: Mutex<Seal>,
    greetings: Mutex<Rng>,
    verify_incoming: bool,
    verify_outgoing: bool,
    keeper: Arc<dyn KeyringKeeper>,
    /// One change of the ring at a time.
    change: tokio::sync::Mutex<()>,
}

impl Sealing {
    fn seal(&self) -> MutexGuard<'_, Seal> {
        self.seal.lock().expect("no holder panics")
    }
    fn greeting(&self) -> Greeting {
        let mut nonce = [0; 16];
        let mut rng = self.greetings.lock().expect("no holder panics");
        rng.fill_bytes(&mut nonce);
        Greeting(nonce)
    }
}

impl<R: Rt> Guard<R> {
    pub(crate) fn new(
        rt: R,
        pool: &'static str,
        encryption: Option<Encryption>,
        past: Past,
        member_count_max: usize,
    ) -> Self {
        let sealing = encryption.map(|encryption| {
            let mut start_id = [0; 16];
            rt.rng(&format!("gossip.{pool}.start-id")).fill_bytes(&mut start_id);
            let (wall_ms, now) = (rt.wall_now().as_millis().max(past.time_ms), rt.now());
            let seal = Seal::new(encryption.keyring, StartId(start_id), wall_ms, now, member_count_max);
            Sealing {
                seal: Mutex::new(seal),
                greetings: Mutex::new(rt.rng(&format!("gossip.{pool}.greeting"))),
                verify_incoming: encryption.verify_incoming,
                verify_outgoing: encryption.verify_outgoing,
                keeper: encryption.keeper,
                change: tokio::sync::Mutex::default(),
            }
        });
        Self {
            rt,
            pool,
            sealing,
            refused: Mutex::default(),
        }
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.sealing.is_some()
    }
    /// 0 without encryption.
    pub(crate) fn pool_time(&self) -> u64 {
        let sealing = self.sealing.as_ref();
        sealing.map_or(0, |sealing| sealing.seal().pool_time(self.rt.now()))
    }
    fn refuses_plaintext(&self) -> bool {
        self.sealing.as_ref().is_some_and(|sealing| sealing.verify_incoming)
    }

    // What was refused.

    pub(crate) fn refuse(&self, cause: RefusedCause, from: SocketAddr, err: &dyn fmt::Display) {
        self.refuse_many(cause, 1, &format_args!("{err} (from {from})"));
    }
    /// What has no one sender, or came so often.
    pub(crate) fn refuse_many(&self, cause: RefusedCause, count: u64, what: &dyn fmt::Display) {
        let now = self.rt.now();
        let mut refused = self.refused.lock().expect("no holder panics");
        let Some(count) = refused.entry(cause).or_default().count(now, count) else {
            return;
        };
        let (pool, word) = (self.pool, cause.as_str());
        if cause.is_ordinary() {
            debug!(pool, cause = word, count, %what, "refused what a peer sent");
        } else {
            warn!(pool, cause = word, count, %what, "refused what a peer sent");
        }
    }
    pub(crate) fn refused_counts(&self) -> BTreeMap<&'static str, u64> {
        let refused = self.refused.lock().expect("no holder panics");
        refused
            .iter()
            .map(|(cause, refused)| (cause.as_str(), refused.count))
            .collect()
    }

    // Packets.

    pub(crate) fn packet(&self, messages: &[Message]) -> Vec<u8> {
        match &self.sealing {
            Some(sealing) if sealing.verify_outgoing => sealing.seal().seal_packet(self.rt.now(), messages),
            _ => encode_packet(messages),
        }
    }
    /// What a packet says. `None`: it was refused, counted and told.
    pub(crate) fn open_packet(&self, from: SocketAddr, packet: &mut [u8]) -> Option<Vec<Message>> {
        let opened = match (&self.sealing, packet.first_chunk().copied().map(kind)) {
            (Some(sealing), Some(Ok(KIND_SEALED))) => sealing.seal().open_packet(self.rt.now(), packet),
            (Some(sealing), Some(Ok(KIND_PLAIN))) if sealing.verify_incoming => {
                self.refuse(RefusedCause::Plaintext, from, &"plaintext, and encryption is on");
                return None;
            }
            (None, Some(Ok(KIND_SEALED))) => {
                self.refuse(
                    RefusedCause::NoKeyring,
                    from,
                    &"sealed, and encryption is not configured",
                );
                return None;
            }
            _ => decode_packet(packet).map_err(SealError::Malformed),
        };
        match opened {
            Ok(messages) => Some(messages),
            Err(err) => {
                self.refuse(RefusedCause::of(&err), from, &err);
                None
            }
        }
    }

    // Streams.

    /// Opens a stream as this member opens streams.
    pub(crate) async fn greet<S>(&self, stream: &mut S, is_sealed_anyway: bool) -> Result<Session, StreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(sealing) = &self.sealing else {
            return Ok(Session::Plain);
        };
        if !sealing.verify_outgoing && !is_sealed_anyway {
            return Ok(Session::Plain);
        }
        let client = sealing.greeting();
        stream.write_all(&client.encode()).await.map_err(StreamError::Io)?;
        stream.flush().await.map_err(StreamError::Io)?;
        let mut bytes = [0; GREETING_LEN_BYTES];
        stream.read_exact(&mut bytes[..2]).await.map_err(StreamError::Io)?;
        let first = [bytes[0], bytes[1]];
        if kind(first)? == KIND_PLAIN {
            return Err(unreadable(read_plain(stream, first).await?));
        }
        stream.read_exact(&mut bytes[2..]).await.map_err(StreamError::Io)?;
        let server = Greeting::decode(&bytes)?;
        Ok(Session::Sealed { client, server })
    }
    /// Reads the first frame of a stream that a peer opened. A peer that is not understood is told so.
    pub(crate) async fn accept<S>(&self, stream: &mut S) -> Result<(Session, StreamMessage), StreamError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut first = [0; 2];
        stream.read_exact(&mut first).await.map_err(StreamError::Io)?;
        let kind = kind(first)?;
        let read = match (kind, &self.sealing) {
            (KIND_PLAIN, _) if self.refuses_plaintext() => Err(StreamError::Unreadable(Unreadable::Plaintext)),
            (KIND_PLAIN, _) => return Ok((Session::Plain, read_plain(stream, first).await?)),
            (KIND_GREETING, None) => Err(StreamError::Unreadable(Unreadable::NoKeyring)),
            (KIND_GREETING, Some(sealing)) => {
                let mut bytes = [0; GREETING_LEN_BYTES];
                bytes[..2].copy_from_slice(&first);
                stream.read_exact(&mut bytes[2..]).await.map_err(StreamError::Io)?;
                let client = Greeting::decode(&bytes)?;
                let server = sealing.greeting();
                stream.write_all(&server.encode()).await.map_err(StreamError::Io)?;
                stream.flush().await.map_err(StreamError::Io)?;
                let session = Session::Sealed { client, server };
                let read = self.read(stream, session, Direction::Request).await;
                read.map(|message| (session, message))
            }
            (kind, _) => return Err(Malformed::Kind { kind }.into()),
        };
        let answer = match &read {
            Err(StreamError::Unreadable(why)) => Some(*why),
            Err(StreamError::Seal(SealError::UnknownKey)) => Some(Unreadable::UnknownKey),
            Err(StreamError::Seal(SealError::Forged)) => Some(Unreadable::Forged),
            _ => None,
        };
        if let Some(answer) = answer {
            let frame = encode_frame(&StreamMessage::Unreadable(answer))?;
            // Whoever sent nonsense may be gone already.
            let _ = stream.write_all(&frame).await;
            let _ = stream.shutdown().await;
        }
        read
    }
    pub(crate) async fn write<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        session: Session,
        direction: Direction,
        message: &StreamMessage,
    ) -> Result<(), StreamError> {
        let frame = match (session, &self.sealing) {
            (Session::Sealed { client, server }, Some(sealing)) => {
                let sealer = sealing.seal().frame_sealer(self.rt.now());
                let binding = Binding {
                    client,
                    server,
                    direction,
                };
                sealer.seal(&binding, message)?
            }
            _ => encode_frame(message)?,
        };
        stream.write_all(&frame).await.map_err(StreamError::Io)?;
        stream.flush().await.map_err(StreamError::Io)
    }
    pub(crate) async fn read<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        session: Session,
        direction: Direction,
    ) -> Result<StreamMessage, StreamError> {
        let mut header = [0; SEALED_FRAME_HEADER_LEN_BYTES];
        stream.read_exact(&mut header[..2]).await.map_err(StreamError::Io)?;
        let first = [header[0], header[1]];
        let (Session::Sealed { client, server }, Some(sealing)) = (session, &self.sealing) else {
            return match (kind(first)?, read_plain(stream, first).await?) {
                (_, message @ StreamMessage::Unreadable(_)) => Err(unreadable(message)),
                // The one who answers is not who it should be, or is configured otherwise than we are.
                _ if self.refuses_plaintext() => Err(StreamError::Plaintext),
                (_, message) => Ok(message),
            };
        };
        if kind(first)? == KIND_PLAIN {
            return Err(unreadable(read_plain(stream, first).await?));
        }
        stream.read_exact(&mut header[2..]).await.map_err(StreamError::Io)?;
        let opener = sealing.seal().frame_opener(&header)?;
        let body = read_body(stream, opener.body_len_bytes()).await?;
        let binding = Binding {
            client,
            server,
            direction,
        };
        let opened = opener.open(&binding, Zeroizing::new(body))?;
        sealing.seal().hear_frame(self.rt.now(), &opened);
        Ok(opened.message)
    }

    // The ring.

    /// Does what an operator asks of this member. `session`: how the request came, `None` from this very process.
    pub(crate) async fn answer_keyring(&self, session: Option<Session>, request: &KeyringRequest) -> KeyringReply {
        match self.change_keyring(session, request).await {
            Ok(keys) => KeyringReply { failure: None, keys },
            Err(failure) => KeyringReply {
                failure: Some(failure),
                keys: Vec::new(),
            },
        }
    }
    async fn change_keyring(
        &self,
        session: Option<Session>,
        request: &KeyringRequest,
    ) -> Result<Vec<KeyBytes>, String> {
        let Some(sealing) = &self.sealing else {
            // Serf's words.
            return Err(match request {
                KeyringRequest::List => "Keyring is empty (encryption not enabled)".to_owned(),
                _ => "No keyring to modify (encryption not enabled)".to_owned(),
            });
        };
        if session == Some(Session::Plain) {
            return Err("Keyring requests are answered over encrypted streams only".to_owned());
        }
        let _one_at_a_time = sealing.change.lock().await;
        let mut ring = sealing.seal().ring().clone();
        let key = |bytes: &KeyBytes| RingKey::from_bytes(&bytes.0).map_err(|err| err.to_string());
        let (what, changed) = match request {
            KeyringRequest::List => {
                let keys = ring.keys().iter();
                return Ok(keys
                    .map(|key| KeyBytes(Zeroizing::new(key.as_bytes().to_vec())))
                    .collect());
            }
            KeyringRequest::Install(bytes) => ("a key was installed", ring.install(key(bytes)?)),
            KeyringRequest::Use(bytes) => ("another key is used", ring.use_key(&key(bytes)?)),
            KeyringRequest::Remove(bytes) => ("a key was removed", ring.remove(&key(bytes)?)),
        };
        changed.map_err(|err| err.to_string())?;
        let count = ring.keys().len();
        let kept = sealing.keeper.keep(&ring).await;
        kept.map_err(|err| format!("Failed to write keyring: {err}"))?;
        sealing.seal().set_ring(ring);
        info!(pool = self.pool, keys = count, "the gossip keyring was changed: {what}");
        Ok(Vec::new())
    }
}

/// A member's keys from its reply.
pub(crate) fn keys_of(reply: KeyringReply) -> Result<Vec<RingKey>, String> {
    match reply.failure {
        Some(failure) => Err(failure),
        None => reply
            .keys
            .iter()
            .map(|bytes| RingKey::from_bytes(&bytes.0).map_err(|err| format!("it holds a key that is none: {err}")))
            .collect(),
    }
}

fn unreadable(message: StreamMessage) -> StreamError {
    match message {
        StreamMessage::Unreadable(why) => StreamError::Unreadable(why),
        // Anybody on the way could have made it.
        _ => StreamError::Plaintext,
    }
}

async fn read_plain<S: AsyncRead + Unpin>(stream: &mut S, first: [u8; 2]) -> Result<StreamMessage, StreamError> {
    let mut header = [0; FRAME_HEADER_LEN_BYTES];
    header[..2].copy_from_slice(&first);
    stream.read_exact(&mut header[2..]).await.map_err(StreamError::Io)?;
    let header = decode_frame_header(&header)?;
    let body = read_body(stream, header.body_len_bytes).await?;
    Ok(decode_frame_body(header, &body)?)
}

/// Grows with what arrives, not with what the header claims.
async fn read_body<S: AsyncRead + Unpin>(stream: &mut S, len_bytes: usize) -> Result<Vec<u8>, StreamError> {
    let mut body = Vec::new();
    let mut rest = stream.take(len_bytes as u64);
    rest.read_to_end(&mut body).await.map_err(StreamError::Io)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_tells_of_a_cause_once_in_a_while_and_how_often_it_was() {
        let mut refused = Refused::default();
        let at = Instant::from_millis;
        assert_eq!(refused.count(at(5), 1), Some(1));
        for millis in 6..1000 {
            assert_eq!(refused.count(at(millis), 1), None);
        }
        assert_eq!(refused.count(at(30_004), 1), None);
        assert_eq!(refused.count(at(30_005), 4), Some(999));
        assert_eq!(refused.count, 1000);
    }
}

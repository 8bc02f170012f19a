//! Gossip under a ring's key: what strangers can neither read, nor make, nor send again later.
//!
//! ```text
//! packet    version 1 | KIND_SEALED 1 | key id 4 | start id 16 | counter 8 | pool time 8 | sealed list of messages | tag 16
//! frame     the same up to the pool time | length of what follows 4 | sealed stream message | tag 16
//! greeting  version 1 | KIND_GREETING 1 | nonce 16                                                  (numbers little-endian)
//! ```
//!
//! AES-GCM under a key derived (HKDF-SHA-256) from the ring's key, salted with the sender's start id: 128 random bits drawn
//! when the sender starts. The nonce is the sender's counter, so no key sees a nonce twice; random nonces under the ring's
//! own key would pass their safe number within hours in a large pool. The header is authenticated with the body.
//!
//! Against what was recorded and is sent again:
//! - A stream begins with a greeting of each end, and its frames hold for these two greetings and one direction only.
//! - A packet carries the pool's time: the furthest of the members' wall clocks at their start, carried on by monotonic
//!   clocks and by hearing a later one. It does not depend on anybody's wall clock being right, nor do clock jumps move it. A
//!   packet older than `PACKET_AGE_MAX` is refused; a later time than one's own is always believed, so the sides of a healed
//!   partition understand one another. Before its first sealed stream a member does not know the pool's time and takes no
//!   packet: a newcomer's wall clock may be hours behind.
//! - Within `PACKET_AGE_MAX` a receiver remembers the counters that it saw last of each sender.
//!
//! A pool whose members all restart with clocks behind does not believe what was recorded before, as each begins with the time
//! that it kept of its last life (`gossip::Past`); one without a disk begins with its wall clock.
//!
//! Promises: a decoder never panics; what is remembered is bounded (`sender_count_max` senders, the one least recently heard
//! of goes first: its next packet costs a derivation, and is not known as a duplicate); what was not authenticated changes
//! nothing.
//! Not here: which keys there are (`keyring`), when plaintext is let through (`gossip`).

use crate::codec::{Malformed, decode, encode};
use crate::gossip::{
    FRAME_BODY_LEN_BYTES_MAX, KIND_GREETING, KIND_SEALED, StreamMessage, VERSION, check_version, decode_messages,
};
use crate::keyring::{KeyId, Keyring, RingKey};
use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm, Nonce, Tag};
use hkdf::Hkdf;
use quorate_swim::Message;
use quorate_types::Instant;
use quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX;
use sha2::Sha256;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use zeroize::Zeroizing;

/// Version, kind, key id, start id, counter, pool time.
pub const SEALED_HEADER_LEN_BYTES: usize = 1 + 1 + 4 + 16 + 8 + 8;
pub const SEALED_FRAME_HEADER_LEN_BYTES: usize = SEALED_HEADER_LEN_BYTES + 4;
pub const TAG_LEN_BYTES: usize = 16;
pub const GREETING_LEN_BYTES: usize = 2 + NONCE_LEN_BYTES;
const NONCE_LEN_BYTES: usize = 16;
/// Longer than a packet is under way and than monotonic clocks of members who hear of one another part; short beside the
/// hours after which members are forgotten and what was said of them would be news again.
pub const PACKET_AGE_MAX: Duration = Duration::from_secs(60);
/// Milliseconds; nobody honest comes near this (the year 146 million).
const POOL_TIME_MAX: u64 = 1 << 62;
/// A packet that so many later ones of its sender overtook on the way to one receiver is refused with the duplicates.
const SEEN_COUNT_MAX: usize = 32;

/// Why a packet or frame was not opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("sealed with a key that is not in the keyring")]
    UnknownKey,
    #[error("not authentic: changed on the way, or forged")]
    Forged,
    #[error("{age:?} old: delayed, or recorded and sent again")]
    Stale { age: Duration },
    #[error("seen before: duplicated, or recorded and sent again")]
    Duplicate,
    #[error("this member's own")]
    Reflected,
    #[error("before the first sealed stream, the pool's time is not known")]
    Unsynced,
}

/// 128 random bits, drawn by a sender at its start and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StartId(pub [u8; 16]);

/// What one end of a stream says first: random bits that make its peer's frames good for this stream only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting(pub [u8; NONCE_LEN_BYTES]);

impl Greeting {
    pub fn encode(self) -> [u8; GREETING_LEN_BYTES] {
        let mut bytes = [0; GREETING_LEN_BYTES];
        bytes[0] = VERSION;
        bytes[1] = KIND_GREETING;
        bytes[2..].copy_from_slice(&self.0);
        bytes
    }
    pub fn decode(bytes: &[u8; GREETING_LEN_BYTES]) -> Result<Self, Malformed> {
        let [version, kind, nonce @ ..] = bytes;
        check_version(*version)?;
        match *kind {
            KIND_GREETING => Ok(Self(*nonce)),
            kind => Err(Malformed::Kind { kind }),
        }
    }
}

/// Which way a frame goes: to the one who opened the stream, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    Request = 0,
    Answer = 1,
}

/// What a frame holds for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Of the one who opened the stream.
    pub client: Greeting,
    pub server: Greeting,
    pub direction: Direction,
}

/// AES-GCM for one sender under one key of the ring.
enum Cipher {
    Aes128(Aes128Gcm),
    Aes192(AesGcm<aes_gcm::aes::Aes192, aes_gcm::aead::consts::U12>),
    Aes256(Aes256Gcm),
}

impl Cipher {
    fn derive(key: &RingKey, sender: StartId) -> Self {
        let mut derived = Zeroizing::new([0_u8; 32]);
        let derived = &mut derived[..key.as_bytes().len()];
        Hkdf::<Sha256>::new(Some(&sender.0), key.as_bytes())
            .expand(b"quorate gossip 1", derived)
            .expect("32 bytes are few enough");
        const FITS: &str = "as long as the ring's key, which has one of three lengths";
        match derived.len() {
            16 => Self::Aes128(Aes128Gcm::new_from_slice(derived).expect(FITS)),
            24 => Self::Aes192(AesGcm::new_from_slice(derived).expect(FITS)),
            _ => Self::Aes256(Aes256Gcm::new_from_slice(derived).expect(FITS)),
        }
    }
    /// Encrypts in place and appends the tag.
    fn seal(&self, counter: u64, associated: &[u8], buffer: &mut Vec<u8>, from: usize) {
        let nonce = nonce(counter);
        let body = &mut buffer[from..];
        let tag = match self {
            Self::Aes128(cipher) => cipher.encrypt_inout_detached(&nonce, associated, body.into()),
            Self::Aes192(cipher) => cipher.encrypt_inout_detached(&nonce, associated, body.into()),
            Self::Aes256(cipher) => cipher.encrypt_inout_detached(&nonce, associated, body.into()),
        };
        let tag: Tag = tag.expect("far below the 64 GiB that a nonce is good for");
        buffer.extend_from_slice(&tag);
    }
    /// Checks the tag at the end and decrypts in place what is before it.
    fn open<'a>(&self, counter: u64, associated: &[u8], sealed: &'a mut [u8]) -> Result<&'a [u8], SealError> {
        let len_bytes = sealed.len();
        let Some((body, tag)) = sealed.split_last_chunk_mut::<TAG_LEN_BYTES>() else {
            return Err(Malformed::TooShort { len_bytes }.into());
        };
        let (nonce, tag) = (nonce(counter), Tag::from(*tag));
        let opened = match self {
            Self::Aes128(cipher) => cipher.decrypt_inout_detached(&nonce, associated, (&mut *body).into(), &tag),
            Self::Aes192(cipher) => cipher.decrypt_inout_detached(&nonce, associated, (&mut *body).into(), &tag),
            Self::Aes256(cipher) => cipher.decrypt_inout_detached(&nonce, associated, (&mut *body).into(), &tag),
        };
        opened.map_err(|_| SealError::Forged)?;
        Ok(body)
    }
}

fn nonce(counter: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce.into()
}

/// What every sealed thing begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    key: KeyId,
    sender: StartId,
    counter: u64,
    pool_time: u64,
}

impl Header {
    fn encode(&self) -> [u8; SEALED_HEADER_LEN_BYTES] {
        let mut bytes = [0; SEALED_HEADER_LEN_BYTES];
        bytes[0] = VERSION;
        bytes[1] = KIND_SEALED;
        bytes[2..6].copy_from_slice(&self.key.0);
        bytes[6..22].copy_from_slice(&self.sender.0);
        bytes[22..30].copy_from_slice(&self.counter.to_le_bytes());
        bytes[30..38].copy_from_slice(&self.pool_time.to_le_bytes());
        bytes
    }
    fn decode(bytes: &[u8; SEALED_HEADER_LEN_BYTES]) -> Result<Self, Malformed> {
        check_version(bytes[0])?;
        if bytes[1] != KIND_SEALED {
            return Err(Malformed::Kind { kind: bytes[1] });
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let header = Self {
            key: KeyId(bytes[2..6].try_into().expect("four bytes")),
            sender: StartId(bytes[6..22].try_into().expect("sixteen bytes")),
            counter: number(22),
            pool_time: number(30),
        };
        if header.pool_time > POOL_TIME_MAX {
            return Err(Malformed::Body {
                reason: format!("pool time {} is out of range", header.pool_time),
            });
        }
        Ok(header)
    }
}

/// The highest counters seen of one sender, ascending.
#[derive(Debug, Default)]
struct Seen(Vec<u64>);

impl Seen {
    /// Whether it was seen, or is too old to tell.
    fn contains(&self, counter: u64) -> bool {
        match self.0.binary_search(&counter) {
            Ok(_) => true,
            Err(place) => place == 0 && self.0.len() >= SEEN_COUNT_MAX,
        }
    }
    fn insert(&mut self, counter: u64) {
        if let Err(place) = self.0.binary_search(&counter) {
            self.0.insert(place, counter);
        }
        if self.0.len() > SEEN_COUNT_MAX {
            self.0.remove(0);
        }
    }
}

struct Sender {
    key: KeyId,
    cipher: Arc<Cipher>,
    seen: Seen,
    used: u64,
}

/// The senders heard of last.
struct Senders {
    by_start: BTreeMap<StartId, Sender>,
    by_use: BTreeMap<u64, StartId>,
    use_next: u64,
    count_max: usize,
}

impl Senders {
    /// The cipher of a sender that was heard of under this key.
    fn cipher(&self, header: &Header) -> Option<Arc<Cipher>> {
        let sender = self.by_start.get(&header.sender)?;
        (sender.key == header.key).then(|| Arc::clone(&sender.cipher))
    }
    fn has_seen(&self, header: &Header) -> bool {
        let sender = self.by_start.get(&header.sender);
        sender.is_some_and(|sender| sender.seen.contains(header.counter))
    }
    /// Remembers an authentic packet.
    fn heard(&mut self, header: &Header, cipher: Arc<Cipher>) {
        let used = self.use_next;
        self.use_next += 1;
        let sender = self.by_start.entry(header.sender).or_insert_with(|| Sender {
            key: header.key,
            cipher: Arc::clone(&cipher),
            seen: Seen::default(),
            used,
        });
        // Its sender has changed to another key.
        if sender.key != header.key {
            (sender.key, sender.cipher) = (header.key, cipher);
        }
        sender.seen.insert(header.counter);
        self.by_use.remove(&sender.used);
        sender.used = used;
        self.by_use.insert(used, header.sender);
        while self.by_start.len() > self.count_max
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.by_start.remove(&oldest);
        }
        debug_assert_eq!(self.by_start.len(), self.by_use.len());
    }
    fn retain(&mut self, ring: &Keyring) {
        let by_use = &mut self.by_use;
        self.by_start.retain(|_, sender| {
            let is_kept = ring.find(sender.key).is_some();
            if !is_kept {
                by_use.remove(&sender.used);
            }
            is_kept
        });
    }
}

/// The pool's time in milliseconds.
struct PoolClock {
    /// At this member's instant zero.
    zero: u64,
    is_synced: bool,
}

impl PoolClock {
    fn now(&self, now: Instant) -> u64 {
        self.zero.saturating_add(now.as_millis()).min(POOL_TIME_MAX)
    }
    /// Somebody authentic said this time.
    fn hear(&mut self, now: Instant, pool_time: u64) {
        assert!(pool_time <= POOL_TIME_MAX, "checked when the header was read");
        if pool_time > self.now(now) {
            self.zero = pool_time.saturating_sub(now.as_millis());
        }
    }
}

/// One member's side of all sealing.
pub struct Seal {
    ring: Keyring,
    start_id: StartId,
    counter_next: u64,
    /// Under the primary key.
    cipher: Arc<Cipher>,
    senders: Senders,
    clock: PoolClock,
}

impl Seal {
    /// `start_id` is drawn for this start and used for no other. `wall_ms` is the wall clock at instant `now`, or
    /// what earlier lives used if that is later.
    pub fn new(ring: Keyring, start_id: StartId, wall_ms: u64, now: Instant, sender_count_max: usize) -> Self {
        assert!(sender_count_max > 0, "a receiver remembers at least one sender");
        let cipher = Arc::new(Cipher::derive(ring.primary(), start_id));
        Self {
            ring,
            start_id,
            counter_next: 0,
            cipher,
            senders: Senders {
                by_start: BTreeMap::new(),
                by_use: BTreeMap::new(),
                use_next: 0,
                count_max: sender_count_max,
            },
            clock: PoolClock {
                zero: wall_ms.min(POOL_TIME_MAX).saturating_sub(now.as_millis()),
                is_synced: false,
            },
        }
    }
    pub fn ring(&self) -> &Keyring {
        &self.ring
    }
    /// Seals under the new ring's primary key from now on, and opens what any of its keys sealed.
    pub fn set_ring(&mut self, ring: Keyring) {
        if ring.primary() != self.ring.primary() {
            // The counter goes on: should this key come back, its nonces are still new.
            self.cipher = Arc::new(Cipher::derive(ring.primary(), self.start_id));
        }
        self.senders.retain(&ring);
        self.ring = ring;
    }
    /// In milliseconds: above what any packet of the pool that was opened or sealed here carries.
    pub fn pool_time(&self, now: Instant) -> u64 {
        self.clock.now(now)
    }
    /// Senders remembered.
    pub fn sender_count(&self) -> usize {
        self.senders.by_start.len()
    }

    fn next_header(&mut self, now: Instant) -> Header {
        let counter = self.counter_next;
        self.counter_next = counter.checked_add(1).expect("2^64 packets take longer than a run");
        Header {
            key: self.ring.primary().id(),
            sender: self.start_id,
            counter,
            pool_time: self.clock.now(now),
        }
    }

    /// One datagram. `swim` sees to it that the messages fit.
    pub fn seal_packet(&mut self, now: Instant, messages: &[Message]) -> Vec<u8> {
        let header = self.next_header(now);
        let (bytes, body) = (header.encode(), encode(&messages));
        let mut packet = Vec::with_capacity(bytes.len() + body.len() + TAG_LEN_BYTES);
        packet.extend_from_slice(&bytes);
        packet.extend_from_slice(&body);
        self.cipher.seal(header.counter, &bytes, &mut packet, bytes.len());
        packet
    }

    /// Opens a datagram in place.
    pub fn open_packet(&mut self, now: Instant, packet: &mut [u8]) -> Result<Vec<Message>, SealError> {
        let len_bytes = packet.len();
        if len_bytes > GOSSIP_PACKET_LEN_BYTES_MAX {
            return Err(Malformed::TooLong {
                len_bytes,
                len_bytes_max: GOSSIP_PACKET_LEN_BYTES_MAX,
            }
            .into());
        }
        let Some((bytes, sealed)) = packet.split_first_chunk_mut::<SEALED_HEADER_LEN_BYTES>() else {
            return Err(Malformed::TooShort { len_bytes }.into());
        };
        let header = Header::decode(bytes)?;
        let cipher = self.cipher_of(&header)?;
        // Cheap ones first. The header is not authentic yet, but a refusal changes nothing.
        if !self.clock.is_synced {
            return Err(SealError::Unsynced);
        }
        let age = Duration::from_millis(self.clock.now(now).saturating_sub(header.pool_time));
        if age > PACKET_AGE_MAX {
            return Err(SealError::Stale { age });
        }
        if self.senders.has_seen(&header) {
            return Err(SealError::Duplicate);
        }
        let body = cipher.open(header.counter, bytes, sealed)?;
        self.senders.heard(&header, cipher);
        self.clock.hear(now, header.pool_time);
        Ok(decode_messages(body)?)
    }

    fn cipher_of(&self, header: &Header) -> Result<Arc<Cipher>, SealError> {
        let key = self.ring.find(header.key).ok_or(SealError::UnknownKey)?;
        if header.sender == self.start_id {
            return Err(SealError::Reflected);
        }
        let known = self.senders.cipher(header);
        Ok(known.unwrap_or_else(|| Arc::new(Cipher::derive(key, header.sender))))
    }

    /// What seals one frame. Apart from `self`, so that a long frame holds nobody up.
    pub fn frame_sealer(&mut self, now: Instant) -> FrameSealer {
        FrameSealer {
            header: self.next_header(now),
            cipher: Arc::clone(&self.cipher),
        }
    }

    /// What opens the frame that begins so.
    pub fn frame_opener(&self, header: &[u8; SEALED_FRAME_HEADER_LEN_BYTES]) -> Result<FrameOpener, SealError> {
        let (bytes, len) = header.split_first_chunk().expect("the header's length is longer");
        let decoded = Header::decode(bytes)?;
        let body_len = u32::from_le_bytes(len.try_into().expect("four bytes"));
        let body_len_bytes = usize::try_from(body_len).unwrap_or(usize::MAX);
        let len_bytes_max = FRAME_BODY_LEN_BYTES_MAX + TAG_LEN_BYTES;
        if body_len_bytes > len_bytes_max {
            return Err(Malformed::TooLong {
                len_bytes: body_len_bytes,
                len_bytes_max,
            }
            .into());
        }
        Ok(FrameOpener {
            cipher: self.cipher_of(&decoded)?,
            counter: decoded.counter,
            pool_time: decoded.pool_time,
            bytes: *header,
            body_len_bytes,
        })
    }

    /// Takes the pool's time from a frame that was opened: its greetings prove that it is from now.
    pub fn hear_frame(&mut self, now: Instant, frame: &OpenedFrame) {
        self.clock.hear(now, frame.pool_time);
        self.clock.is_synced = true;
    }
}

fn associated(header: &[u8; SEALED_FRAME_HEADER_LEN_BYTES], binding: &Binding) -> Vec<u8> {
    let direction = [binding.direction as u8];
    [&header[..], &binding.client.0, &binding.server.0, &direction].concat()
}

pub struct FrameSealer {
    header: Header,
    cipher: Arc<Cipher>,
}

impl FrameSealer {
    /// One frame, or `TooLong` when the message does not fit one.
    pub fn seal(self, binding: &Binding, message: &StreamMessage) -> Result<Vec<u8>, Malformed> {
        let body = Zeroizing::new(encode(message));
        let too_long = Malformed::TooLong {
            len_bytes: body.len(),
            len_bytes_max: FRAME_BODY_LEN_BYTES_MAX,
        };
        if body.len() > FRAME_BODY_LEN_BYTES_MAX {
            return Err(too_long);
        }
        let len = u32::try_from(body.len() + TAG_LEN_BYTES).map_err(|_| too_long)?;
        let mut bytes = [0; SEALED_FRAME_HEADER_LEN_BYTES];
        bytes[..SEALED_HEADER_LEN_BYTES].copy_from_slice(&self.header.encode());
        bytes[SEALED_HEADER_LEN_BYTES..].copy_from_slice(&len.to_le_bytes());
        let mut frame = Vec::with_capacity(bytes.len() + body.len() + TAG_LEN_BYTES);
        frame.extend_from_slice(&bytes);
        frame.extend_from_slice(&body);
        self.cipher.seal(
            self.header.counter,
            &associated(&bytes, binding),
            &mut frame,
            bytes.len(),
        );
        Ok(frame)
    }
}

pub struct FrameOpener {
    cipher: Arc<Cipher>,
    counter: u64,
    pool_time: u64,
    bytes: [u8; SEALED_FRAME_HEADER_LEN_BYTES],
    body_len_bytes: usize,
}

/// A frame that is authentic, and made for the stream it came by.
#[derive(Debug, PartialEq, Eq)]
pub struct OpenedFrame {
    pub message: StreamMessage,
    pool_time: u64,
}

impl FrameOpener {
    /// What follows the header, the tag included.
    pub fn body_len_bytes(&self) -> usize {
        self.body_len_bytes
    }
    pub fn open(self, binding: &Binding, mut body: Zeroizing<Vec<u8>>) -> Result<OpenedFrame, SealError> {
        if body.len() != self.body_len_bytes {
            return Err(Malformed::TooShort { len_bytes: body.len() }.into());
        }
        let opened = self
            .cipher
            .open(self.counter, &associated(&self.bytes, binding), &mut body)?;
        Ok(OpenedFrame {
            message: decode(opened, FRAME_BODY_LEN_BYTES_MAX)?,
            pool_time: self.pool_time,
        })
    }
}

#[cfg(test)]
mod tests;

//! The Raft log's bytes: records, and the batches they are written in.
//!
//! A segment is a row of batches from its first byte on, each padded to 8 bytes; what follows the last one is zeros, or the
//! remains of an older use of the segment. A batch is written and synced as one: it is there as a whole or not at all.
//!
//! ```text
//! batch:  crc32c u32 | body length u32 | generation u64 | sequence u64 | body     (little-endian; 24 bytes before the body)
//! body:   records, one after the other
//! record: kind u8 | body length u32 | crc32c u32 | body
//! ```
//!
//! Every checksum begins with the key, the random id of the disk: bytes that a client stored as a value can so never pass
//! for a batch. A batch's checksum covers its header but for itself. `generation` numbers the uses of segments,
//! `sequence` the batches of the whole log: old bytes never pass for new ones.
//! A segment's first batch begins with [`Record::Begin`], which also carries the format's version.
//!
//! Not here: files, recovery (`replica`).

use crate::codec::{self, Malformed};
use bytes::Bytes;
use quorate_types::{NodeId, Uuid};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The newest format this code reads and writes.
pub const FORMAT_VERSION: u8 = 1;
/// Before a batch's body.
pub const BATCH_HEADER_LEN_BYTES: usize = 24;
/// Before a record's body.
pub const RECORD_HEADER_LEN_BYTES: usize = 9;
/// Batches begin at multiples of this.
pub const BATCH_ALIGNMENT: usize = 8;

/// Where an entry is: its term and its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub term: u64,
    pub index: u64,
}

/// A vote: for whom in which term, and whether a quorum granted it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    pub term: u64,
    pub node: NodeId,
    pub committed: bool,
}

/// What the membership says of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// For people only: names change.
    pub name: String,
    /// Made with the server's log. Another one under the same node id means that the log was lost.
    pub disk_id: Uuid,
}

/// Who votes (two sets while a change is under way) and who takes part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    pub configs: Vec<BTreeSet<NodeId>>,
    pub servers: BTreeMap<NodeId, Server>,
}

/// What an entry carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    Blank,
    /// An encoded command of the store.
    Command(Bytes),
    Membership(Membership),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub position: Position,
    pub payload: Payload,
}

/// The log's state before the batch it begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// The oldest generation a replay needs. What is older may be overwritten.
    pub first_generation: u64,
    pub vote: Option<Vote>,
    pub committed: Option<Position>,
    pub purged: Option<Position>,
    pub last: Option<Position>,
}

/// One record. Later records override earlier ones: replayed in order they give the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Begin(Begin),
    Vote(Vote),
    Entry(Entry),
    /// Entries beyond this are gone; `None`: all.
    Truncate(Option<Position>),
    /// Entries up to this are gone: a snapshot has them.
    Purge(Position),
    Commit(Option<Position>),
}

const KIND_BEGIN: u8 = 1;
const KIND_VOTE: u8 = 2;
const KIND_ENTRY: u8 = 3;
const KIND_TRUNCATE: u8 = 4;
const KIND_PURGE: u8 = 5;
const KIND_COMMIT: u8 = 6;

const PAYLOAD_BLANK: u8 = 0;
const PAYLOAD_COMMAND: u8 = 1;
const PAYLOAD_MEMBERSHIP: u8 = 2;
const ENTRY_HEADER_LEN_BYTES: usize = 17;

/// Small records are a few hundred bytes; memberships name servers.
const SMALL_BODY_LEN_BYTES_MAX: usize = 1024 * 1024;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn keyed_crc(key: &Uuid, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), bytes)
}

/// An entry as bytes: term, index, kind of payload, payload. The same in the log and between servers.
pub fn encode_entry(entry: &Entry, into: &mut Vec<u8>) {
    into.extend_from_slice(&entry.position.term.to_le_bytes());
    into.extend_from_slice(&entry.position.index.to_le_bytes());
    match &entry.payload {
        Payload::Blank => into.push(PAYLOAD_BLANK),
        Payload::Command(bytes) => {
            into.push(PAYLOAD_COMMAND);
            into.extend_from_slice(bytes);
        }
        Payload::Membership(membership) => {
            into.push(PAYLOAD_MEMBERSHIP);
            into.extend_from_slice(&codec::encode(membership));
        }
    }
}

/// The entry that exactly these bytes are. A command shares them.
pub fn decode_entry(bytes: Bytes) -> Result<Entry, Malformed> {
    if bytes.len() < ENTRY_HEADER_LEN_BYTES {
        return Err(Malformed::TooShort { len_bytes: bytes.len() });
    }
    let position = Position {
        term: u64_at(&bytes, 0),
        index: u64_at(&bytes, 8),
    };
    let payload = match bytes[16] {
        PAYLOAD_BLANK if bytes.len() == ENTRY_HEADER_LEN_BYTES => Payload::Blank,
        PAYLOAD_BLANK => {
            return Err(Malformed::Trailing {
                len_bytes: bytes.len() - ENTRY_HEADER_LEN_BYTES,
            });
        }
        PAYLOAD_COMMAND => Payload::Command(bytes.slice(ENTRY_HEADER_LEN_BYTES..)),
        PAYLOAD_MEMBERSHIP => Payload::Membership(codec::decode(
            &bytes[ENTRY_HEADER_LEN_BYTES..],
            SMALL_BODY_LEN_BYTES_MAX,
        )?),
        kind => return Err(Malformed::Kind { kind }),
    };
    Ok(Entry { position, payload })
}

/// Appends a record; returns the length it took.
pub fn encode_record(key: &Uuid, record: &Record, into: &mut Vec<u8>) -> usize {
    let start = into.len();
    let kind = match record {
        Record::Begin(_) => KIND_BEGIN,
        Record::Vote(_) => KIND_VOTE,
        Record::Entry(_) => KIND_ENTRY,
        Record::Truncate(_) => KIND_TRUNCATE,
        Record::Purge(_) => KIND_PURGE,
        Record::Commit(_) => KIND_COMMIT,
    };
    into.push(kind);
    into.extend_from_slice(&[0; 8]);
    let body = into.len();
    match record {
        Record::Begin(begin) => {
            into.push(FORMAT_VERSION);
            into.extend_from_slice(&codec::encode(begin));
        }
        Record::Vote(vote) => into.extend_from_slice(&codec::encode(vote)),
        Record::Entry(entry) => encode_entry(entry, into),
        Record::Truncate(after) => into.extend_from_slice(&codec::encode(after)),
        Record::Purge(up_to) => into.extend_from_slice(&codec::encode(up_to)),
        Record::Commit(committed) => into.extend_from_slice(&codec::encode(committed)),
    }
    let len_bytes = u32::try_from(into.len() - body).expect("a command fits a frame, which is far below 4 GiB");
    let crc = crc32c::crc32c_append(keyed_crc(key, &[kind]), &into[body..]);
    into[start + 1..start + 5].copy_from_slice(&len_bytes.to_le_bytes());
    into[start + 5..start + 9].copy_from_slice(&crc.to_le_bytes());
    into.len() - start
}

/// The record at the beginning of `bytes`, and its length.
pub fn decode_record(key: &Uuid, bytes: &Bytes) -> Result<(Record, usize), Malformed> {
    if bytes.len() < RECORD_HEADER_LEN_BYTES {
        return Err(Malformed::TooShort { len_bytes: bytes.len() });
    }
    let kind = bytes[0];
    let body_len = u32_at(bytes, 1) as usize;
    let end = RECORD_HEADER_LEN_BYTES.saturating_add(body_len);
    if end > bytes.len() {
        return Err(Malformed::TooShort { len_bytes: bytes.len() });
    }
    let body = bytes.slice(RECORD_HEADER_LEN_BYTES..end);
    if crc32c::crc32c_append(keyed_crc(key, &[kind]), &body) != u32_at(bytes, 5) {
        return Err(Malformed::Checksum);
    }
    let record = match kind {
        KIND_BEGIN => {
            let Some((&version, body)) = body.split_first() else {
                return Err(Malformed::TooShort { len_bytes: 0 });
            };
            if version > FORMAT_VERSION {
                return Err(Malformed::Version {
                    version,
                    version_max: FORMAT_VERSION,
                });
            }
            Record::Begin(codec::decode(body, SMALL_BODY_LEN_BYTES_MAX)?)
        }
        KIND_VOTE => Record::Vote(codec::decode(&body, SMALL_BODY_LEN_BYTES_MAX)?),
        KIND_ENTRY => Record::Entry(decode_entry(body)?),
        KIND_TRUNCATE => Record::Truncate(codec::decode(&body, SMALL_BODY_LEN_BYTES_MAX)?),
        KIND_PURGE => Record::Purge(codec::decode(&body, SMALL_BODY_LEN_BYTES_MAX)?),
        KIND_COMMIT => Record::Commit(codec::decode(&body, SMALL_BODY_LEN_BYTES_MAX)?),
        kind => return Err(Malformed::Kind { kind }),
    };
    Ok((record, end))
}

/// Records on their way to become a batch.
#[derive(Debug)]
pub struct BatchWriter {
    bytes: Vec<u8>,
}

impl Default for BatchWriter {
    fn default() -> Self {
        Self {
            bytes: vec![0; BATCH_HEADER_LEN_BYTES],
        }
    }
}

impl BatchWriter {
    /// Appends a record; returns where it is in the batch, and its length.
    pub fn push(&mut self, key: &Uuid, record: &Record) -> (usize, usize) {
        let offset = self.bytes.len();
        (offset, encode_record(key, record, &mut self.bytes))
    }
    /// Appends records that were encoded before; returns where they are in the batch.
    pub fn push_encoded(&mut self, records: &[u8]) -> usize {
        let offset = self.bytes.len();
        self.bytes.extend_from_slice(records);
        offset
    }
    /// The batch, padded.
    pub fn finish(mut self, key: &Uuid, generation: u64, sequence: u64) -> Bytes {
        let body_len =
            u32::try_from(self.bytes.len() - BATCH_HEADER_LEN_BYTES).expect("what waits to be written is bounded");
        assert!(body_len > 0, "a batch has records");
        self.bytes[4..8].copy_from_slice(&body_len.to_le_bytes());
        self.bytes[8..16].copy_from_slice(&generation.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&sequence.to_le_bytes());
        let crc = keyed_crc(key, &self.bytes[4..]);
        self.bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(BATCH_ALIGNMENT), 0);
        Bytes::from(self.bytes)
    }
    /// Its length once finished.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len().next_multiple_of(BATCH_ALIGNMENT)
    }
}

/// A batch found in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub generation: u64,
    pub sequence: u64,
    pub body: Bytes,
    /// Of the whole batch, padding included.
    pub len_bytes: usize,
}

/// The batch that begins at `offset` of a segment's bytes; `None` when there is no whole and sound one.
pub fn batch_at(key: &Uuid, segment: &Bytes, offset: usize) -> Option<Batch> {
    let header = segment.get(offset..offset.checked_add(BATCH_HEADER_LEN_BYTES)?)?;
    let body_len = u32_at(header, 4) as usize;
    let end = offset.checked_add(BATCH_HEADER_LEN_BYTES)?.checked_add(body_len)?;
    if body_len == 0 || end > segment.len() || keyed_crc(key, &segment[offset + 4..end]) != u32_at(header, 0) {
        return None;
    }
    Some(Batch {
        generation: u64_at(header, 8),
        sequence: u64_at(header, 16),
        body: segment.slice(offset + BATCH_HEADER_LEN_BYTES..end),
        len_bytes: (end - offset).next_multiple_of(BATCH_ALIGNMENT),
    })
}

/// Looks for a sound batch at or after `offset` that is newer than all known: its generation is at least
/// `generation_min`, its sequence above `sequence`. Returns where it is.
pub fn find_newer_batch(
    key: &Uuid,
    segment: &Bytes,
    offset: usize,
    generation_min: u64,
    sequence: u64,
) -> Option<usize> {
    let mut at = offset.next_multiple_of(BATCH_ALIGNMENT);
    while at + BATCH_HEADER_LEN_BYTES <= segment.len() {
        // The cheap look first: nearly everything is no header.
        if u32_at(segment, at + 4) != 0
            && u64_at(segment, at + 8) >= generation_min
            && u64_at(segment, at + 8) < generation_min.saturating_add(1 << 32)
            && u64_at(segment, at + 16) > sequence
            && batch_at(key, segment, at).is_some()
        {
            return Some(at);
        }
        at += BATCH_ALIGNMENT;
    }
    None
}

/// What the header at `offset` of a segment's bytes says of itself, sound or not: generation and sequence. `None` past the
/// segment's end.
pub fn header_at(segment: &[u8], offset: usize) -> Option<(u64, u64)> {
    let header = segment.get(offset..offset.checked_add(BATCH_HEADER_LEN_BYTES)?)?;
    Some((u64_at(header, 8), u64_at(header, 16)))
}

/// Why no whole and sound batch begins at `offset`; `None` when one does.
pub fn batch_fault(key: &Uuid, segment: &Bytes, offset: usize) -> Option<Malformed> {
    if batch_at(key, segment, offset).is_some() {
        return None;
    }
    let left = segment.len().saturating_sub(offset);
    if left < BATCH_HEADER_LEN_BYTES {
        return Some(Malformed::TooShort { len_bytes: left });
    }
    let len_bytes = u32_at(segment, offset + 4) as usize;
    let len_bytes_max = left - BATCH_HEADER_LEN_BYTES;
    Some(match len_bytes {
        0 => Malformed::Body {
            reason: "there is nothing in it".to_owned(),
        },
        _ if len_bytes > len_bytes_max => Malformed::TooLong {
            len_bytes,
            len_bytes_max,
        },
        _ => Malformed::Checksum,
    })
}

/// The records of a batch in order, each with where it begins in the body and its length; at the end perhaps where the
/// first unsound one begins.
pub fn records(
    key: &Uuid,
    body: &Bytes,
) -> impl Iterator<Item = Result<(usize, usize, Record), (usize, Malformed)>> + use<> {
    let (key, body) = (*key, body.clone());
    let mut at = 0;
    std::iter::from_fn(move || {
        if at >= body.len() {
            return None;
        }
        match decode_record(&key, &body.slice(at..)) {
            Ok((record, len)) => {
                let offset = at;
                at += len;
                Some(Ok((offset, len, record)))
            }
            Err(malformed) => {
                let offset = at;
                at = body.len();
                Some(Err((offset, malformed)))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Uuid = Uuid::from_bytes([7; 16]);

    fn position() -> impl Strategy<Value = Position> {
        (any::<u64>(), any::<u64>()).prop_map(|(term, index)| Position { term, index })
    }

    fn node() -> impl Strategy<Value = NodeId> {
        any::<[u8; 16]>().prop_map(|bytes| NodeId(Uuid::from_bytes(bytes)))
    }

    fn vote() -> impl Strategy<Value = Vote> {
        (any::<u64>(), node(), any::<bool>()).prop_map(|(term, node, committed)| Vote { term, node, committed })
    }

    fn membership() -> impl Strategy<Value = Membership> {
        (
            prop::collection::vec(prop::collection::btree_set(node(), 0..4), 0..3),
            prop::collection::btree_map(
                node(),
                ("[a-z]{0,9}", any::<[u8; 16]>()).prop_map(|(name, disk)| Server {
                    name,
                    disk_id: Uuid::from_bytes(disk),
                }),
                0..4,
            ),
        )
            .prop_map(|(configs, servers)| Membership { configs, servers })
    }

    fn record() -> impl Strategy<Value = Record> {
        let payload = prop_oneof![
            Just(Payload::Blank),
            prop::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| Payload::Command(bytes.into())),
            membership().prop_map(Payload::Membership),
        ];
        let begin = (
            any::<u64>(),
            prop::option::of(vote()),
            prop::option::of(position()),
            prop::option::of(position()),
            prop::option::of(position()),
        );
        prop_oneof![
            begin.prop_map(
                |(first_generation, vote, committed, purged, last)| Record::Begin(Begin {
                    first_generation,
                    vote,
                    committed,
                    purged,
                    last
                })
            ),
            vote().prop_map(Record::Vote),
            (position(), payload).prop_map(|(position, payload)| Record::Entry(Entry { position, payload })),
            prop::option::of(position()).prop_map(Record::Truncate),
            position().prop_map(Record::Purge),
            prop::option::of(position()).prop_map(Record::Commit),
        ]
    }

    fn batch_of(records: &[Record], generation: u64, sequence: u64) -> Bytes {
        let mut writer = BatchWriter::default();
        for record in records {
            writer.push(&KEY, record);
        }
        writer.finish(&KEY, generation, sequence)
    }

    proptest! {
        #[test]
        fn records_survive_their_bytes(list in prop::collection::vec(record(), 1..8), generation: u64, sequence: u64) {
            let bytes = batch_of(&list, generation, sequence);
            let batch = batch_at(&KEY, &bytes, 0).expect("just written");
            prop_assert_eq!(batch.generation, generation);
            prop_assert_eq!(batch.sequence, sequence);
            prop_assert_eq!(batch.len_bytes, bytes.len());
            let read: Vec<Record> = records(&KEY, &batch.body).map(|found| found.expect("just written").2).collect();
            prop_assert_eq!(read, list);
        }

        #[test]
        fn a_flipped_bit_is_noticed(list in prop::collection::vec(record(), 1..4), at: prop::sample::Index, bit in 0..8_u8) {
            let bytes = batch_of(&list, 1, 1);
            let unpadded = BATCH_HEADER_LEN_BYTES + u32_at(&bytes, 4) as usize;
            let mut bytes = bytes.to_vec();
            let at = at.index(unpadded);
            bytes[at] ^= 1 << bit;
            let bytes = Bytes::from(bytes);
            prop_assert_eq!(batch_at(&KEY, &bytes, 0), None);
            prop_assert!(batch_fault(&KEY, &bytes, 0).is_some());
        }

        #[test]
        fn nonsense_is_no_record_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_record(&KEY, &bytes);
            let _ = decode_entry(bytes.clone());
            let _ = find_newer_batch(&KEY, &bytes, 0, 0, 0);
            let _ = header_at(&bytes, bytes.len() / 2);
            prop_assert!(batch_fault(&KEY, &bytes, bytes.len() / 2).is_some());
            prop_assert_eq!(batch_at(&KEY, &bytes, 0), None);
        }
    }

    #[test]
    fn a_newer_batch_behind_garbage_is_found_and_an_older_one_is_not() {
        let mut bytes = vec![0xee; 40];
        bytes.extend_from_slice(&batch_of(&[Record::Commit(None)], 3, 9));
        let bytes = Bytes::from(bytes);
        assert_eq!(find_newer_batch(&KEY, &bytes, 0, 3, 8), Some(40));
        assert_eq!(find_newer_batch(&KEY, &bytes, 0, 3, 9), None);
        assert_eq!(find_newer_batch(&KEY, &bytes, 0, 4, 8), None);
    }

    #[test]
    fn another_disks_batch_is_none_of_ours() {
        let bytes = batch_of(&[Record::Commit(None)], 1, 1);
        assert_eq!(batch_at(&Uuid::from_bytes([8; 16]), &bytes, 0), None);
    }

    #[test]
    fn what_keeps_a_batch_from_being_read_is_named() {
        let bytes = batch_of(&[Record::Commit(None), Record::Truncate(None)], 3, 9);
        assert_eq!(batch_fault(&KEY, &bytes, 0), None);
        assert_eq!(header_at(&bytes, 0), Some((3, 9)));
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.to_vec();
            bytes[at] = value;
            Bytes::from(bytes)
        };
        assert_eq!(batch_fault(&KEY, &with(30, 77), 0), Some(Malformed::Checksum));
        assert!(matches!(
            batch_fault(&KEY, &with(6, 1), 0),
            Some(Malformed::TooLong { .. })
        ));
        assert!(matches!(
            batch_fault(&KEY, &with(4, 0), 0),
            Some(Malformed::Body { .. })
        ));
        let cut = bytes.slice(..20);
        assert_eq!(batch_fault(&KEY, &cut, 0), Some(Malformed::TooShort { len_bytes: 20 }));
        assert_eq!(header_at(&cut, 0), None);
    }

    #[test]
    fn an_unsound_record_is_placed_within_its_batch() {
        let mut writer = BatchWriter::default();
        let (_, len_bytes) = writer.push(&KEY, &Record::Commit(None));
        let mut unsound = Vec::new();
        encode_record(&KEY, &Record::Truncate(None), &mut unsound);
        unsound[0] = 99;
        writer.push_encoded(&unsound);
        let batch = batch_at(&KEY, &writer.finish(&KEY, 1, 1), 0).expect("the batch itself is sound");
        let found: Vec<_> = records(&KEY, &batch.body).collect();
        assert_eq!(
            found,
            [
                Ok((0, len_bytes, Record::Commit(None))),
                Err((len_bytes, Malformed::Checksum))
            ]
        );
    }

    #[test]
    fn a_newer_format_is_refused_by_its_number() {
        let mut bytes = Vec::new();
        encode_record(&KEY, &Record::Begin(Begin::default()), &mut bytes);
        bytes[RECORD_HEADER_LEN_BYTES] = FORMAT_VERSION + 1;
        let crc = crc32c::crc32c_append(keyed_crc(&KEY, &[KIND_BEGIN]), &bytes[RECORD_HEADER_LEN_BYTES..]);
        bytes[5..9].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            decode_record(&KEY, &Bytes::from(bytes)),
            Err(Malformed::Version {
                version: FORMAT_VERSION + 1,
                version_max: FORMAT_VERSION
            })
        );
    }
}

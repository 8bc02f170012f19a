//! Commands of the log and records of snapshots, as bytes.
//!
//! In: a command, or the records of a store; or bytes of the log, of a snapshot file or of a peer. Out: bytes, or the
//! values, or where and how the bytes are wrong.
//! Promises: whatever the bytes, decoding ends, does not panic, and holds little more than it was given; a snapshot that is
//! cut short, lengthened, or changed in any bit is refused, with the offset of the piece that shows it.
//! Not here: files, their names and syncs, the log's own records (`log`).
//!
//! A snapshot is magic and a version, then frames. A frame is its kind, the length of its payload, a CRC32C over these two,
//! the frame's number and the payload, and the payload; all integers are little-endian. Frames of kind 1 hold records,
//! each behind its length. The last frame is of kind 2 and holds the number of records, so that no whole frame is missed.

use crate::codec::{self, Malformed};
use quorate_store::{Command, Record};
use quorate_types::limits::RPC_FRAME_LEN_BYTES_MAX;
use thiserror::Error;

/// Raised when old servers cannot read what new ones write.
pub const COMMAND_VERSION: u8 = 1;
pub const SNAPSHOT_VERSION: u8 = 1;

const MAGIC: &[u8; 8] = b"QUORSNAP";
const PREAMBLE_LEN_BYTES: usize = MAGIC.len() + 1;
const KIND_RECORDS: u8 = 1;
const KIND_END: u8 = 2;
/// Kind, length, checksum.
const FRAME_HEADER_LEN_BYTES: usize = 1 + 4 + 4;
/// A frame is closed when it has grown to this: small enough to be sent between heartbeats, large enough that its header
/// and checksum cost nothing.
const FRAME_LEN_BYTES_TARGET: usize = 256 * 1024;
/// A check repeats the tags of its service, which came in another command: a record may be as large as two.
const RECORD_LEN_BYTES_MAX: usize = 2 * RPC_FRAME_LEN_BYTES_MAX;
const FRAME_LEN_BYTES_MAX: usize = FRAME_LEN_BYTES_TARGET + RECORD_LEN_BYTES_MAX + 4;

/// A command behind its version.
pub fn encode_command(command: &Command) -> Vec<u8> {
    let mut bytes = vec![COMMAND_VERSION];
    bytes.extend_from_slice(&codec::encode(command));
    bytes
}

/// The command that exactly these bytes are.
pub fn decode_command(bytes: &[u8]) -> Result<Command, Malformed> {
    let (version, body) = bytes.split_first().ok_or(Malformed::TooShort { len_bytes: 0 })?;
    if *version != COMMAND_VERSION {
        return Err(Malformed::Version {
            version: *version,
            version_max: COMMAND_VERSION,
        });
    }
    codec::decode(body, RPC_FRAME_LEN_BYTES_MAX)
}

/// What is wrong with a snapshot, and where.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("read the snapshot at byte {offset}")]
pub struct SnapshotError {
    pub offset: u64,
    #[source]
    pub err: Malformed,
}

/// The bytes of a snapshot, piece by piece: one frame at a time is in memory.
///
/// # Panics
///
/// When a record is larger than any two commands, which no sequence of commands makes.
pub fn encode_snapshot(records: impl Iterator<Item = Record>) -> impl Iterator<Item = Vec<u8>> {
    SnapshotEncoder {
        records: Some(records),
        frame_number: 0,
        record_count: 0,
        is_begun: false,
    }
}

struct SnapshotEncoder<I> {
    /// `None` once the end is written.
    records: Option<I>,
    frame_number: u64,
    record_count: u64,
    is_begun: bool,
}

fn checksum(kind: u8, len: u32, frame_number: u64, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&[kind]);
    let crc = crc32c::crc32c_append(crc, &len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, &frame_number.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

impl<I> SnapshotEncoder<I> {
    fn frame(&mut self, kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PREAMBLE_LEN_BYTES + FRAME_HEADER_LEN_BYTES + payload.len());
        if !self.is_begun {
            self.is_begun = true;
            bytes.extend_from_slice(MAGIC);
            bytes.push(SNAPSHOT_VERSION);
        }
        let len = u32::try_from(payload.len()).expect("a frame is far below 4 GiB");
        bytes.push(kind);
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&checksum(kind, len, self.frame_number, payload).to_le_bytes());
        bytes.extend_from_slice(payload);
        self.frame_number += 1;
        bytes
    }
}

impl<I: Iterator<Item = Record>> Iterator for SnapshotEncoder<I> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let records = self.records.as_mut()?;
        let mut payload = Vec::new();
        while payload.len() < FRAME_LEN_BYTES_TARGET {
            let Some(record) = records.next() else { break };
            let bytes = codec::encode(&record);
            assert!(
                bytes.len() <= RECORD_LEN_BYTES_MAX,
                "a record is no larger than two commands"
            );
            let len = u32::try_from(bytes.len()).expect("a record is far below 4 GiB");
            payload.extend_from_slice(&len.to_le_bytes());
            payload.extend_from_slice(&bytes);
            self.record_count += 1;
        }
        if payload.is_empty() {
            self.records = None;
            let record_count = self.record_count.to_le_bytes();
            return Some(self.frame(KIND_END, &record_count));
        }
        Some(self.frame(KIND_RECORDS, &payload))
    }
}

/// Reads a snapshot whose bytes arrive in pieces of any size.
///
/// Records are handed out as soon as their frame is whole and sound; they are a whole snapshot only once
/// [`finish`](Self::finish) says so. After an error it answers every piece with the same error.
#[derive(Debug, Default)]
pub struct SnapshotDecoder {
    /// Bytes of a piece that is not whole yet.
    pending: Vec<u8>,
    /// Of the first pending byte.
    offset: u64,
    is_begun: bool,
    is_ended: bool,
    frame_number: u64,
    record_count: u64,
    failed: Option<SnapshotError>,
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("a slice is as long as it was cut")
}

impl SnapshotDecoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// The records that these bytes complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Record>, SnapshotError> {
        let located = self.push_located(bytes)?;
        Ok(located.into_iter().map(|(_, record)| record).collect())
    }

    /// As [`push`](Self::push), each record with where it begins in the snapshot.
    pub fn push_located(&mut self, bytes: &[u8]) -> Result<Vec<(u64, Record)>, SnapshotError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.pending.extend_from_slice(bytes);
        let mut records = Vec::new();
        let mut position = 0;
        let result = loop {
            match self.take_piece(position, &mut records) {
                Ok(0) => break Ok(records),
                Ok(len) => position += len,
                Err((within, err)) => {
                    let offset = self.offset + (position + within) as u64;
                    break Err(SnapshotError { offset, err });
                }
            }
        };
        self.pending.drain(..position);
        self.offset += position as u64;
        self.failed = result.as_ref().err().cloned();
        result
    }

    /// Reads the preamble or a frame at a position of the pending bytes: how long it is, 0 when it is not whole yet, or what
    /// is wrong how far into it.
    fn take_piece(&mut self, position: usize, records: &mut Vec<(u64, Record)>) -> Result<usize, (usize, Malformed)> {
        let bytes = &self.pending[position..];
        if self.is_ended && !bytes.is_empty() {
            return Err((0, Malformed::Trailing { len_bytes: bytes.len() }));
        }
        if !self.is_begun {
            let len = bytes.len().min(MAGIC.len());
            if bytes[..len] != MAGIC[..len] {
                let reason = "not a snapshot of this program".to_owned();
                return Err((0, Malformed::Body { reason }));
            }
            if bytes.len() < PREAMBLE_LEN_BYTES {
                return Ok(0);
            }
            let version = bytes[MAGIC.len()];
            if version != SNAPSHOT_VERSION {
                let version_max = SNAPSHOT_VERSION;
                return Err((MAGIC.len(), Malformed::Version { version, version_max }));
            }
            self.is_begun = true;
            return Ok(PREAMBLE_LEN_BYTES);
        }
        if bytes.len() < FRAME_HEADER_LEN_BYTES {
            return Ok(0);
        }
        let kind = bytes[0];
        if kind != KIND_RECORDS && kind != KIND_END {
            return Err((0, Malformed::Kind { kind }));
        }
        let len = u32::from_le_bytes(array(&bytes[1..5]));
        let len_bytes = len as usize;
        let len_bytes_max = if kind == KIND_END { 8 } else { FRAME_LEN_BYTES_MAX };
        if len_bytes > len_bytes_max {
            return Err((
                1,
                Malformed::TooLong {
                    len_bytes,
                    len_bytes_max,
                },
            ));
        }
        let end = FRAME_HEADER_LEN_BYTES + len_bytes;
        let Some(payload) = bytes.get(FRAME_HEADER_LEN_BYTES..end) else {
            return Ok(0);
        };
        let claimed = u32::from_le_bytes(array(&bytes[5..9]));
        if claimed != checksum(kind, len, self.frame_number, payload) {
            return Err((0, Malformed::Checksum));
        }
        self.frame_number += 1;
        if kind == KIND_END {
            if len_bytes != 8 || u64::from_le_bytes(array(payload)) != self.record_count {
                let reason = "the records are not as many as the snapshot ends with".to_owned();
                return Err((FRAME_HEADER_LEN_BYTES, Malformed::Body { reason }));
            }
            self.is_ended = true;
            return Ok(end);
        }
        let mut rest = payload;
        while !rest.is_empty() {
            let within = end - rest.len();
            let Some((len, body)) = rest.split_first_chunk::<4>() else {
                return Err((within, Malformed::TooShort { len_bytes: rest.len() }));
            };
            let len_bytes = u32::from_le_bytes(*len) as usize;
            let Some((record, after)) = body.split_at_checked(len_bytes) else {
                return Err((within, Malformed::TooShort { len_bytes: body.len() }));
            };
            let record = codec::decode::<Record>(record, RECORD_LEN_BYTES_MAX).map_err(|err| (within + 4, err))?;
            records.push((self.offset + (position + within) as u64, record));
            self.record_count += 1;
            rest = after;
        }
        Ok(end)
    }

    /// How many records the snapshot had, if it came to its end.
    pub fn finish(self) -> Result<u64, SnapshotError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if !self.is_ended {
            let len_bytes = self.pending.len();
            return Err(SnapshotError {
                offset: self.offset,
                err: Malformed::TooShort { len_bytes },
            });
        }
        Ok(self.record_count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quorate_store::{
        KvCommand, KvOperation, KvVerb, NodeOperation, Operation, Outcome, SessionCommand, StateHash, Store,
        TransactionReply,
    };
    use quorate_types::{
        Check, CheckStatus, Coordinate, Deregistration, KvPair, LogIndex, ModifyIndex, NodeCoordinate, NodeId,
        Registration, Service, Session, Uuid, WallTime,
    };

    fn put(key: &str, value: Vec<u8>) -> Command {
        let pair = KvPair {
            key: key.to_owned(),
            value,
            ..KvPair::default()
        };
        Command::Kv(KvCommand::Set(pair))
    }

    /// The commands that the first release knew. What they make is in `tests/fixtures/snapshot-v1.bin`: add none.
    fn first_singles() -> Vec<Command> {
        let registration = Registration {
            node_id: NodeId(Uuid::from_random_bytes([3; 16])),
            node: "n1".into(),
            address: "10.0.0.1".into(),
            service: Some(Service {
                name: "web".into(),
                tags: vec!["a".into()],
                ..Service::default()
            }),
            checks: vec![Check {
                check_id: "c".into(),
                service_id: "web".into(),
                ..Check::default()
            }],
            ..Registration::default()
        };
        vec![
            Command::Barrier,
            Command::Register(Box::new(registration)),
            Command::Deregister(Deregistration {
                node: "n2".into(),
                ..Deregistration::default()
            }),
            put("a/b", vec![0, 1, 255]),
            Command::Kv(KvCommand::Cas {
                pair: KvPair::default(),
                expected: ModifyIndex(9),
            }),
            put("a/c", b"x".to_vec()),
            Command::Kv(KvCommand::Delete { key: "a/b".into() }),
            Command::Kv(KvCommand::DeleteCas {
                key: "k".into(),
                expected: ModifyIndex(1),
            }),
            put("t/1", vec![]),
            Command::Kv(KvCommand::DeleteTree { prefix: "t/".into() }),
            Command::CollectTombstones { up_to: ModifyIndex(2) },
            Command::NameCluster {
                id: Uuid::from_random_bytes([9; 16]),
                at: WallTime::from_nanos(5),
            },
        ]
    }

    /// Every kind of command; what they make has every kind of record.
    fn singles() -> Vec<Command> {
        let session = |byte: u8| Session {
            id: Uuid::from_random_bytes([byte; 16]),
            name: "s".into(),
            node: "n1".into(),
            lock_delay: std::time::Duration::from_secs(15),
            ttl_text: "10s".into(),
            node_checks: vec!["up".into()],
            ..Session::default()
        };
        let create = |byte: u8| Command::Session(SessionCommand::Create(session(byte)));
        let acquire = |key: &str, byte: u8| {
            let pair = KvPair {
                key: key.into(),
                ..KvPair::default()
            };
            let session = session(byte).id;
            Command::Kv(KvCommand::Acquire { pair, session })
        };
        let up = Registration {
            node: "n1".into(),
            skip_node_update: true,
            checks: vec![Check {
                check_id: "up".into(),
                status: CheckStatus::Passing,
                ..Check::default()
            }],
            ..Registration::default()
        };
        let operations = vec![
            Operation::Kv(KvOperation {
                verb: KvVerb::Unknown("bogus".into()),
                key: "k".into(),
                ..KvOperation::default()
            }),
            Operation::Node(NodeOperation::default()),
        ];
        let mut singles = first_singles();
        singles.extend([
            Command::Register(Box::new(up)),
            create(1),
            create(2),
            acquire("l/1", 1),
            acquire("l/2", 2),
            Command::Kv(KvCommand::Release {
                pair: KvPair::default(),
                session: session(1).id,
            }),
            Command::Session(SessionCommand::Destroy { id: session(2).id }),
            Command::Session(SessionCommand::EndLockDelays {
                delays: vec![("l/3".into(), ModifyIndex(1))],
            }),
            Command::Transaction(operations),
            Command::Coordinates(vec![NodeCoordinate {
                node: "n1".into(),
                coordinate: Coordinate::default(),
            }]),
            Command::StateHash(StateHash {
                server: NodeId(Uuid::from_bytes([5; 16])),
                at: LogIndex(1024),
                rules: 1,
                hash: u64::MAX,
            }),
        ]);
        singles
    }

    fn store_of(commands: Vec<Command>) -> Store {
        let mut store = Store::new();
        for (index, command) in (1..).zip(commands) {
            store.apply(LogIndex(index), &command);
        }
        store
    }

    fn store() -> Store {
        store_of(singles())
    }

    fn snapshot(store: &Store) -> Vec<u8> {
        encode_snapshot(store.records()).flatten().collect()
    }

    fn read(bytes: &[u8], piece_len: usize) -> Result<(Vec<Record>, u64), SnapshotError> {
        let mut decoder = SnapshotDecoder::new();
        let mut records = Vec::new();
        for piece in bytes.chunks(piece_len) {
            records.extend(decoder.push(piece)?);
        }
        Ok((records, decoder.finish()?))
    }

    #[test]
    fn every_command_survives_its_bytes_alone_and_in_a_batch() {
        for command in singles()
            .into_iter()
            .chain([Command::Batch(singles()), Command::Batch(vec![])])
        {
            assert_eq!(decode_command(&encode_command(&command)), Ok(command));
        }
    }

    #[test]
    fn what_the_first_release_wrote_opens_for_ever() {
        let store = store_of(first_singles());
        let bytes = include_bytes!("../tests/fixtures/snapshot-v1.bin");
        let (records, _) = read(bytes, 64).expect("a snapshot of the first release opens");
        assert_eq!(Store::from_records(records).unwrap().hash(), store.hash());
        // A variant is kept by its position, so each stays where it was.
        let positions: Vec<u8> = singles().iter().map(|command| encode_command(command)[1]).collect();
        let expected = [0, 1, 2, 3, 3, 3, 3, 3, 3, 3, 4, 6, 1, 7, 7, 3, 3, 3, 7, 7, 8, 9, 10];
        assert_eq!(positions, expected);
    }

    #[test]
    fn the_records_of_this_test_are_of_every_kind() {
        let mut kinds: Vec<u8> = store().records().map(|record| codec::encode(&record)[0]).collect();
        kinds.dedup();
        assert_eq!(kinds, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]);
    }

    #[test]
    fn a_batch_in_a_batch_is_refused_however_deep() {
        let nested = Command::Batch(vec![Command::Batch(vec![])]);
        assert!(matches!(
            decode_command(&encode_command(&nested)),
            Err(Malformed::Body { .. })
        ));
        // Variant 5 holding one command, over and over: enough levels to overflow a stack that follows them.
        let mut bytes = vec![COMMAND_VERSION];
        bytes.extend([5, 1].repeat(1_000_000));
        assert!(decode_command(&bytes).is_err());
        let outcome = [3, 1].repeat(1_000_000);
        assert!(codec::decode::<Outcome>(&outcome, outcome.len()).is_err());
    }

    #[test]
    fn outcomes_survive_their_bytes_in_a_batch() {
        let refused = Outcome::Refused(quorate_store::CommandError::KeyMissing);
        let reply = Outcome::Transaction(TransactionReply::default());
        let batch = Outcome::Batch(vec![Outcome::Done, Outcome::Decided(true), refused, reply]);
        let bytes = codec::encode(&batch);
        assert_eq!(codec::decode::<Outcome>(&bytes, bytes.len()), Ok(batch));
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = encode_command(&Command::Barrier);
        bytes[0] = 2;
        let newer = Malformed::Version {
            version: 2,
            version_max: 1,
        };
        assert_eq!(decode_command(&bytes), Err(newer.clone()));
        let mut bytes = snapshot(&store());
        bytes[8] = 2;
        assert_eq!(read(&bytes, 64), Err(SnapshotError { offset: 8, err: newer }));
    }

    #[test]
    fn a_store_survives_its_snapshot_in_pieces_of_any_size() {
        let store = store();
        let bytes = snapshot(&store);
        for piece_len in [1, 2, 7, 64, bytes.len()] {
            let (records, count) = read(&bytes, piece_len).unwrap();
            assert_eq!(count, records.len() as u64);
            let restored = Store::from_records(records).unwrap();
            assert_eq!(restored.hash(), store.hash());
        }
    }

    #[test]
    fn each_record_is_told_with_its_place() {
        let bytes = snapshot(&store());
        let mut decoder = SnapshotDecoder::new();
        for piece in bytes.chunks(100) {
            for (at, record) in decoder.push_located(piece).unwrap() {
                let at = usize::try_from(at).unwrap();
                let len = u32::from_le_bytes(array(&bytes[at..at + 4])) as usize;
                assert_eq!(codec::encode(&record), bytes[at + 4..at + 4 + len]);
            }
        }
        assert!(decoder.finish().unwrap() > 3);
    }

    #[test]
    fn a_large_store_takes_many_frames_none_of_them_large() {
        let mut store = Store::new();
        for index in 1..=40 {
            store.apply(LogIndex(index), &put(&format!("k{index}"), vec![7; 100_000]));
        }
        let frames: Vec<Vec<u8>> = encode_snapshot(store.records()).collect();
        assert!(frames.len() > 10, "{} frames", frames.len());
        assert!(frames.iter().all(|frame| frame.len() < 2 * FRAME_LEN_BYTES_TARGET));
        let (records, _) = read(&frames.concat(), 10_000).unwrap();
        assert_eq!(Store::from_records(records).unwrap().hash(), store.hash());

        // Frames that are sound each by itself, but out of place.
        let mut swapped = frames.clone();
        swapped.swap(1, 2);
        let at = frames[0].len() as u64;
        let misplaced = SnapshotError {
            offset: at,
            err: Malformed::Checksum,
        };
        assert_eq!(read(&swapped.concat(), 10_000), Err(misplaced.clone()));
        let mut missing = frames.clone();
        missing.remove(1);
        assert_eq!(read(&missing.concat(), 10_000), Err(misplaced));
    }

    #[test]
    fn a_cut_or_lengthened_snapshot_is_refused_where_it_ends() {
        let bytes = snapshot(&store());
        for len in 0..bytes.len() {
            let error = read(&bytes[..len], 16).expect_err("a cut snapshot is not whole");
            assert!(
                matches!(error.err, Malformed::TooShort { .. }),
                "cut to {len}: {error:?}"
            );
            assert!(error.offset <= len as u64);
        }
        let mut longer = bytes.clone();
        longer.push(1);
        let error = read(&longer, longer.len()).unwrap_err();
        assert_eq!(error.offset, bytes.len() as u64);
        assert_eq!(error.err, Malformed::Trailing { len_bytes: 1 });
    }

    #[test]
    fn any_flipped_bit_is_found() {
        let bytes = snapshot(&store());
        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                let error = read(&flipped, 1 << 16).expect_err("a flipped bit is found");
                assert!(error.offset <= position as u64, "{position}: {error:?}");
            }
        }
    }

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_waited_for() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([SNAPSHOT_VERSION, KIND_RECORDS, 255, 255, 255, 255, 0, 0, 0, 0]);
        let mut decoder = SnapshotDecoder::new();
        let error = decoder.push(&bytes).unwrap_err();
        assert_eq!(error.offset, 10);
        assert!(matches!(error.err, Malformed::TooLong { .. }));
        assert_eq!(decoder.push(&[1]), Err(error.clone()), "it stays refused");
        assert_eq!(decoder.finish(), Err(error));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400), piece in 1_usize..50) {
            let mut versioned = vec![COMMAND_VERSION];
            versioned.extend_from_slice(&bytes);
            if let Ok(command) = decode_command(&versioned) {
                prop_assert_eq!(decode_command(&encode_command(&command)), Ok(command));
            }
            let mut framed = MAGIC.to_vec();
            framed.push(SNAPSHOT_VERSION);
            framed.extend_from_slice(&bytes);
            prop_assert!(read(&framed, piece).is_err());
            prop_assert!(read(&bytes, piece).is_err());
        }

        #[test]
        fn any_payload_under_a_right_checksum_is_decoded_or_refused(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut encoder = SnapshotEncoder {
                records: None::<std::iter::Empty<Record>>,
                frame_number: 0,
                record_count: 0,
                is_begun: false,
            };
            let mut bytes = encoder.frame(KIND_RECORDS, &payload);
            bytes.extend(encoder.frame(KIND_END, &0_u64.to_le_bytes()));
            if let Ok((records, _)) = read(&bytes, 64) {
                prop_assert!(records.is_empty());
            }
            let mut record = 1_u32.to_le_bytes().to_vec();
            record[0] = payload.len() as u8;
            record.extend_from_slice(&payload);
            let frame = encoder.frame(KIND_RECORDS, &record);
            let mut decoder = SnapshotDecoder { is_begun: true, frame_number: 2, ..SnapshotDecoder::new() };
            if let Ok(records) = decoder.push(&frame) {
                // Whatever they are, a store is made of them or refused.
                let _ = Store::from_records(records);
            }
        }
    }
}

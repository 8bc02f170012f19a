//! A log's files in any state: opened or refused, never a panic; one that was opened can be read, goes on, and is the same
//! after the next opening.
//!
//! Input: a byte of settings, then the segments, 512 bytes each, the last one perhaps cut. By the settings the checksums
//! are made right as far as lengths allow, as mutation does not find them: what is tried then is what a wrong row of
//! records, batches and segments does.
#![no_main]

use bytes::Bytes;
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;
use quorate_replica::log::{Log, LogError, Options};
use quorate_rt::{Disk as _, File as _, MemoryDisk, OpenMode};
use quorate_types::Uuid;
use quorate_wire::log::{BATCH_ALIGNMENT, BATCH_HEADER_LEN_BYTES, Entry, Payload, Position, RECORD_HEADER_LEN_BYTES};
use std::path::Path;

const KEY: Uuid = Uuid::from_bytes([9; 16]);
const DIRECTORY: &str = "/raft";
const SEGMENT_LEN_BYTES: usize = 512;
const SEGMENT_COUNT_MAX: usize = 6;
const OPTIONS: Options = Options {
    first_segment_len_bytes: SEGMENT_LEN_BYTES as u64,
    segment_len_bytes: SEGMENT_LEN_BYTES as u64,
    cache_len_bytes_max: 256,
    pending_len_bytes_max: 1024 * 1024,
};

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

/// Gives batches and records in a row from the beginning on right checksums.
fn repair(segment: &mut [u8]) {
    let mut at = 0;
    while let Some(body_len) = u32_at(segment, at + 4)
        && body_len > 0
        && at + BATCH_HEADER_LEN_BYTES + body_len <= segment.len()
    {
        let end = at + BATCH_HEADER_LEN_BYTES + body_len;
        let mut record = at + BATCH_HEADER_LEN_BYTES;
        while record + RECORD_HEADER_LEN_BYTES <= end
            && let Some(len) = u32_at(segment, record + 1)
            && record + RECORD_HEADER_LEN_BYTES + len <= end
        {
            let body = record + RECORD_HEADER_LEN_BYTES..record + RECORD_HEADER_LEN_BYTES + len;
            let crc = crc32c::crc32c_append(crc32c::crc32c(KEY.as_bytes()), &segment[record..=record]);
            let crc = crc32c::crc32c_append(crc, &segment[body.clone()]);
            segment[record + 5..record + 9].copy_from_slice(&crc.to_le_bytes());
            record = body.end;
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(KEY.as_bytes()), &segment[at + 4..end]);
        segment[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        at = end.next_multiple_of(BATCH_ALIGNMENT);
    }
}

async fn entries(log: &Log<MemoryDisk>) -> Vec<Entry> {
    log.read(0, u64::MAX, usize::MAX).await.expect("memory can be read")
}

async fn check(segments: Vec<Vec<u8>>) {
    let disk = MemoryDisk::default();
    let directory = Path::new(DIRECTORY);
    disk.create_dir_all(directory).await.expect("memory takes it");
    for (number, content) in (1..).zip(segments) {
        let path = directory.join(format!("log-{number:08}"));
        let file = disk.open(&path, OpenMode::CreateNew).await.expect("memory takes it");
        file.write_at(0, Bytes::from(content)).await.expect("memory takes it");
    }
    let mut opened = match Log::open(disk.clone(), directory, KEY, OPTIONS).await {
        Ok(opened) => opened,
        Err(LogError::Corrupt { path, offset, .. } | LogError::Format { path, offset, .. }) => {
            let file = disk.open(&path, OpenMode::Read).await.expect("it names a file");
            let len_bytes = file.len_bytes().await.expect("memory can be read");
            assert!(offset <= len_bytes, "{} at {offset} of {len_bytes}", path.display());
            return;
        }
        Err(LogError::Incomplete { .. }) => return,
        Err(err) => panic!("{err}"),
    };
    let mut before = entries(&opened.log).await;
    let position = match opened.log.last() {
        Some(last) => Position {
            term: last.term,
            index: last.index + 1,
        },
        None => Position { term: 1, index: 0 },
    };
    let entry = Entry {
        position,
        payload: Payload::Command(Bytes::from_static(&[7; 100])),
    };
    before.push(entry.clone());
    opened.log.append(vec![entry], Box::new(|_| {})).await;
    opened.writer.flush().await.expect("memory takes it");
    let again = match Log::open(disk, directory, KEY, OPTIONS).await {
        Ok(again) => again,
        Err(err) => panic!("what was written is refused: {err}"),
    };
    assert_eq!(entries(&again.log).await, before);
    assert_eq!(again.log.vote(), opened.log.vote());
    assert_eq!(again.log.purged(), opened.log.purged());
}

fuzz_target!(|input: &[u8]| {
    let Some((flags, rest)) = input.split_first() else {
        return;
    };
    let mut segments: Vec<Vec<u8>> = rest
        .chunks(SEGMENT_LEN_BYTES)
        .take(SEGMENT_COUNT_MAX)
        .map(<[u8]>::to_vec)
        .collect();
    if flags & 1 != 0 {
        segments.iter_mut().for_each(|segment| repair(segment));
    }
    if flags & 2 != 0
        && let Some(last) = segments.last_mut()
    {
        last.resize(SEGMENT_LEN_BYTES, 0);
    }
    block_on(check(segments));
});

//! A snapshot's bytes as a damaged disk or a peer gives them: decoded or refused, never a panic, the same in pieces of any
//! size; a state that was made of them survives its own snapshot.
//!
//! Input: a byte of settings, then a snapshot; or the bodies of its frames, each behind two bytes of length, which get
//! right headers, as a checksum is more than mutation finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_store::{Record, Store};
use quorate_wire::state::{SnapshotDecoder, SnapshotError, encode_snapshot};

const PREAMBLE: &[u8; 9] = b"QUORSNAP\x01";

fn read(bytes: &[u8], piece_len: usize) -> Result<Vec<(u64, Record)>, SnapshotError> {
    let mut decoder = SnapshotDecoder::new();
    let mut records = Vec::new();
    for piece in bytes.chunks(piece_len) {
        records.extend(decoder.push_located(piece)?);
    }
    decoder.finish()?;
    Ok(records)
}

fn frame(kind: u8, number: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("inputs are short").to_le_bytes();
    let crc = crc32c::crc32c(&[kind]);
    let crc = crc32c::crc32c_append(crc, &len);
    let crc = crc32c::crc32c_append(crc, &number.to_le_bytes());
    let crc = crc32c::crc32c_append(crc, payload);
    [&[kind][..], &len, &crc.to_le_bytes(), payload].concat()
}

/// The last body's end is the number of records, as far as lengths tell.
fn framed(mut bodies: &[u8]) -> Vec<u8> {
    let mut bytes = PREAMBLE.to_vec();
    let (mut number, mut record_count) = (0, 0_u64);
    while let Some((len, rest)) = bodies.split_first_chunk::<2>() {
        let (body, after) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
        bytes.extend(frame(1, number, body));
        number += 1;
        let mut records = body;
        while let Some((len, rest)) = records.split_first_chunk::<4>() {
            record_count += 1;
            records = rest.get(u32::from_le_bytes(*len) as usize..).unwrap_or_default();
        }
        bodies = after;
    }
    bytes.extend(frame(2, number, &record_count.to_le_bytes()));
    bytes
}

fuzz_target!(|input: &[u8]| {
    let Some((flags, rest)) = input.split_first() else {
        return;
    };
    let bytes = match flags & 1 {
        0 => rest.to_vec(),
        _ => framed(rest),
    };
    let piece_len = 1 + usize::from(flags >> 1);
    let whole = read(&bytes, bytes.len().max(1));
    let pieces = read(&bytes, piece_len);
    let records = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            assert_eq!(whole, pieces);
            whole
        }
        (Err(whole), Err(pieces)) => {
            assert_eq!(whole.offset, pieces.offset, "{whole:?} and in pieces {pieces:?}");
            assert!(whole.offset <= bytes.len() as u64);
            return;
        }
        (whole, pieces) => panic!("{whole:?} and in pieces {pieces:?}"),
    };
    let Ok(store) = Store::from_records(records.into_iter().map(|(_, record)| record)) else {
        return;
    };
    store.check();
    let again: Vec<u8> = encode_snapshot(store.records()).flatten().collect();
    let records = read(&again, again.len()).expect("our own encoding is read");
    let again =
        Store::from_records(records.into_iter().map(|(_, record)| record)).expect("our own records are a state");
    assert_eq!(again.hash(), store.hash());
});

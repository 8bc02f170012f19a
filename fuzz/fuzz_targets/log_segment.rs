//! A segment's bytes as a damaged disk gives them: decoded or refused, never a panic; what was decoded encodes to the same.
//!
//! Input: a byte that says what the rest is: a segment; or the kind and body of a record, which gets a right header, as a
//! checksum is more than mutation finds; or an entry, as servers send it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_types::Uuid;
use quorate_wire::log::{
    batch_at, batch_fault, decode_entry, decode_record, encode_entry, encode_record, find_newer_batch, header_at,
    records,
};

const KEY: Uuid = Uuid::from_bytes([9; 16]);

fn check_segment(segment: &Bytes) {
    let mut at = 0;
    while let Some(batch) = batch_at(&KEY, segment, at) {
        assert_eq!(batch_fault(&KEY, segment, at), None);
        assert_eq!(header_at(segment, at), Some((batch.generation, batch.sequence)));
        let mut end = 0;
        for record in records(&KEY, &batch.body) {
            match record {
                Ok((offset, len_bytes, _)) => {
                    assert_eq!(offset, end, "records are in a row");
                    end = offset + len_bytes;
                }
                Err((offset, _)) => assert_eq!(offset, end, "an unsound one is where it begins"),
            }
        }
        assert!(end <= batch.body.len());
        at += batch.len_bytes;
    }
    assert!(batch_fault(&KEY, segment, at).is_some());
    if let Some(found) = find_newer_batch(&KEY, segment, at, 1, 1) {
        let batch = batch_at(&KEY, segment, found).expect("it was found");
        assert!(found >= at && batch.generation >= 1 && batch.sequence > 1);
    }
}

fn check_record(kind: u8, body: &[u8]) {
    let crc = crc32c::crc32c_append(crc32c::crc32c(KEY.as_bytes()), &[kind]);
    let crc = crc32c::crc32c_append(crc, body);
    let len_bytes = u32::try_from(body.len()).expect("inputs are short");
    let bytes = [&[kind][..], &len_bytes.to_le_bytes(), &crc.to_le_bytes(), body].concat();
    let Ok((record, len_bytes)) = decode_record(&KEY, &Bytes::from(bytes)) else {
        return;
    };
    assert_eq!(len_bytes, 9 + body.len());
    let mut again = Vec::new();
    encode_record(&KEY, &record, &mut again);
    let (read, len_bytes) = decode_record(&KEY, &Bytes::from(again.clone())).expect("our own encoding is read");
    assert_eq!((read, len_bytes), (record, again.len()));
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    match kind % 3 {
        0 => check_segment(&Bytes::copy_from_slice(rest)),
        1 => {
            if let Some((kind, body)) = rest.split_first() {
                check_record(*kind, body);
            }
        }
        _ => {
            if let Ok(entry) = decode_entry(Bytes::copy_from_slice(rest)) {
                let mut again = Vec::new();
                encode_entry(&entry, &mut again);
                assert_eq!(decode_entry(Bytes::from(again)).as_ref(), Ok(&entry));
            }
        }
    }
});

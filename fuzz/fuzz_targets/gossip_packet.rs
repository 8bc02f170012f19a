//! Gossip's datagrams and frames of a stranger: decoded or refused, never a panic; what was decoded encodes to the same.
//!
//! Input: a byte that says what the rest is: a whole packet, or the body of a packet or frame, which gets a right header,
//! as a checksum is more than mutation finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_wire::gossip::{
    FRAME_HEADER_LEN_BYTES, KIND_PLAIN, VERSION, decode_frame_body, decode_frame_header, decode_packet, encode_frame,
    encode_packet,
};

fn check_packet(packet: &[u8]) {
    if let Ok(messages) = decode_packet(packet) {
        let again = decode_packet(&encode_packet(&messages)).expect("our own encoding is read");
        assert_eq!(again, messages);
    }
}

fn check_frame(frame: &[u8]) {
    let Some((header, body)) = frame.split_first_chunk::<FRAME_HEADER_LEN_BYTES>() else {
        return;
    };
    let Ok(header) = decode_frame_header(header) else {
        return;
    };
    if let Ok(message) = decode_frame_body(header, body) {
        let again = encode_frame(&message).expect("what was read is no longer than a frame");
        let (header, body) = again.split_first_chunk().expect("a header");
        let header = decode_frame_header(header).expect("our own header is read");
        assert_eq!(decode_frame_body(header, body).as_ref(), Ok(&message));
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let header = [&[VERSION, KIND_PLAIN][..], &crc32c::crc32c(rest).to_le_bytes()].concat();
    match kind % 4 {
        0 => check_packet(rest),
        1 => check_packet(&[&header, rest].concat()),
        2 => check_frame(rest),
        _ => {
            let len_bytes = u32::try_from(rest.len()).expect("inputs are short").to_le_bytes();
            check_frame(&[&header, &len_bytes[..], rest].concat());
        }
    }
});

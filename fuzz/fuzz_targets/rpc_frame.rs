//! What a stranger sends to the server port: decoded or refused, never a panic; what was decoded encodes to the same.
//!
//! Input: a byte that says what the rest is: the beginning of a connection with its frames, or one message's body.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate_types::limits::RPC_FRAME_LEN_BYTES_MAX;
use quorate_wire::codec;
use quorate_wire::frame::{
    ConnectionKind, FRAME_HEADER_LEN_BYTES, FrameHeader, HELLO_LEN_BYTES_MAX, Hello, HelloReply, What, decode_preamble,
    preamble,
};
use quorate_wire::raft::{
    BulkReply, BulkRequest, Control, ControlReply, Identity, RaftReply, RaftRequest, SnapshotMeta,
};
use quorate_wire::rpc::{Request, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

macro_rules! check_message {
    ($message:ty, $body:expr) => {
        if let Ok(message) = <$message>::decode(&$body) {
            assert_eq!(<$message>::decode(&message.encode()).as_ref(), Ok(&message));
        }
    };
}

fn check_value<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
    if let Ok(value) = codec::decode::<T>(body, RPC_FRAME_LEN_BYTES_MAX) {
        let again = codec::encode(&value);
        assert_eq!(codec::decode::<T>(&again, RPC_FRAME_LEN_BYTES_MAX).as_ref(), Ok(&value));
    }
}

fn check_body(kind: ConnectionKind, what: What, body: &Bytes) {
    match (kind, what) {
        (_, What::Hello) => check_message!(Hello, body),
        (_, What::HelloReply) => check_message!(HelloReply, body),
        (ConnectionKind::Raft, What::Call) => check_message!(RaftRequest, body),
        (ConnectionKind::Raft, What::Reply) => check_message!(RaftReply, body),
        (ConnectionKind::Bulk, What::Call) => check_message!(BulkRequest, body),
        (ConnectionKind::Bulk, What::Reply) => check_message!(BulkReply, body),
        (ConnectionKind::Request, What::Call) => check_value::<Request>(body),
        (ConnectionKind::Request, What::Control) => check_message!(Control, body),
        (ConnectionKind::Request, What::Reply) => {
            check_value::<Response>(body);
            check_message!(ControlReply, body);
        }
        (_, What::Control | What::Cancel) => {}
    }
}

fn check_connection(bytes: &Bytes) {
    let Some(head) = bytes.first_chunk::<2>() else {
        return;
    };
    let Ok(kind) = decode_preamble(*head) else {
        return;
    };
    assert_eq!(preamble(kind), *head);
    let (mut at, mut len_bytes_max) = (2, HELLO_LEN_BYTES_MAX);
    while let Some(header) = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<FRAME_HEADER_LEN_BYTES>())
    {
        let Ok(frame) = FrameHeader::decode(header, len_bytes_max) else {
            return;
        };
        assert_eq!(frame.encode(), *header);
        assert!(frame.body_len_bytes <= len_bytes_max);
        let body = at + FRAME_HEADER_LEN_BYTES;
        if body + frame.body_len_bytes > bytes.len() {
            return;
        }
        check_body(kind, frame.what, &bytes.slice(body..body + frame.body_len_bytes));
        at = body + frame.body_len_bytes;
        len_bytes_max = RPC_FRAME_LEN_BYTES_MAX;
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else {
        return;
    };
    let rest = Bytes::copy_from_slice(rest);
    match kind % 12 {
        0 => check_connection(&rest),
        1 => check_body(ConnectionKind::Raft, What::Hello, &rest),
        2 => check_body(ConnectionKind::Raft, What::HelloReply, &rest),
        3 => check_body(ConnectionKind::Raft, What::Call, &rest),
        4 => check_body(ConnectionKind::Raft, What::Reply, &rest),
        5 => check_body(ConnectionKind::Bulk, What::Call, &rest),
        6 => check_body(ConnectionKind::Bulk, What::Reply, &rest),
        7 => check_body(ConnectionKind::Request, What::Call, &rest),
        8 => check_body(ConnectionKind::Request, What::Control, &rest),
        9 => check_body(ConnectionKind::Request, What::Reply, &rest),
        10 => check_message!(SnapshotMeta, rest),
        // Not sent, but read by the same code from a file.
        _ => {
            let body = [&[1][..], &crc32c::crc32c(&rest).to_le_bytes(), &rest].concat();
            if let Ok(identity) = Identity::from_file(&body) {
                assert_eq!(Identity::from_file(&identity.to_file()).as_ref(), Ok(&identity));
            }
        }
    }
});

//! Commands as a stranger's request or a log brings them: decoded or refused, never a panic; applied in any order they
//! leave a sound state, the same one on each server and after a snapshot.
//!
//! Input: commands, each behind two bytes of length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_store::Store;
use quorate_types::LogIndex;
use quorate_wire::state::{decode_command, encode_command};

fuzz_target!(|input: &[u8]| {
    let (mut one, mut other) = (Store::new(), Store::new());
    let mut rest = input;
    let mut index = 0;
    while let Some((len, after)) = rest.split_first_chunk::<2>() {
        let (bytes, after) = after.split_at(usize::from(u16::from_le_bytes(*len)).min(after.len()));
        rest = after;
        let Ok(command) = decode_command(bytes) else {
            continue;
        };
        assert_eq!(decode_command(&encode_command(&command)).as_ref(), Ok(&command));
        index += 1;
        let applied = one.apply(LogIndex(index), &command);
        one.check();
        // The other one comes from a snapshot each time.
        other = Store::from_records(other.records()).expect("our own records are a state");
        assert_eq!(other.apply(LogIndex(index), &command).outcome, applied.outcome);
        assert_eq!(other.hash(), one.hash());
    }
});

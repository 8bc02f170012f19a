//! A keyring file that anybody may have edited: read or refused, never a panic; what was read is written and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_wire::keyring::{KEY_COUNT_MAX, Keyring};

fuzz_target!(|content: &[u8]| {
    if let Ok(ring) = Keyring::decode_file(content) {
        assert!((1..=KEY_COUNT_MAX).contains(&ring.keys().len()));
        assert!(ring.contains(ring.primary()));
        let again = Keyring::decode_file(&ring.encode_file()).expect("our own file is read");
        assert_eq!(again, ring);
    }
});

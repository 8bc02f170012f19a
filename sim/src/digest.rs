//! A running hash of all that happened, so that two runs of one seed can be compared by one number.
//!
//! Own code on purpose: its value is fixed for ever, whatever the machine or a hashing crate's version.

/// Folds bytes eight at a time by multiplication (the 64-bit finalizer constants of SplitMix64).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Digest {
    pub fn add(&mut self, word: u64) {
        let mut z = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = z ^ (z >> 31);
    }
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
        // The length tells trailing zeros from none.
        self.add(bytes.len() as u64);
    }
    pub fn value(self) -> u64 {
        self.0
    }
}

/// A 32-byte seed made of a root seed and the path that names one stream.
pub fn seed_of(root: u64, path: &[&[u8]]) -> [u8; 32] {
    let mut digest = Digest::default();
    digest.add(root);
    for part in path {
        digest.add_bytes(part);
    }
    let mut seed = [0; 32];
    for (position, chunk) in seed.chunks_mut(8).enumerate() {
        digest.add(position as u64);
        chunk.copy_from_slice(&digest.value().to_le_bytes());
    }
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_tells_order_length_and_content() {
        let of = |parts: &[&[u8]]| {
            let mut digest = Digest::default();
            parts.iter().for_each(|part| digest.add_bytes(part));
            digest.value()
        };
        let all = [
            of(&[b"ab", b"c"]),
            of(&[b"a", b"bc"]),
            of(&[b"c", b"ab"]),
            of(&[b"ab\0", b"c"]),
            of(&[]),
        ];
        for (position, value) in all.iter().enumerate() {
            assert!(!all[..position].contains(value));
        }
    }

    #[test]
    fn seeds_of_different_paths_differ() {
        assert_ne!(seed_of(1, &[b"net"]), seed_of(1, &[b"disk"]));
        assert_ne!(seed_of(1, &[b"net"]), seed_of(2, &[b"net"]));
    }
}

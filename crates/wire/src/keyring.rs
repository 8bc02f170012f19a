//! The keys of a pool, and the file that keeps them.
//!
//! In: keys as bytes or base64, a keyring file's content. Out: a [`Keyring`], its file, or why not, in the words of Serf and
//! memberlist, which operators and scripts know.
//! Promises: a ring is never empty, holds no key twice and at most `KEY_COUNT_MAX`; its first key is the primary one, under
//! which everything is sealed; keys are wiped when dropped and never printed by `Debug`.
//! Not here: sealing (`seal`), where the file is (`agent`), who may change a ring (`gossip`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use sha2::Sha256;
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

/// A rotation needs two. More are leftovers, and every member keeps and lists them.
pub const KEY_COUNT_MAX: usize = 32;
/// A file of `KEY_COUNT_MAX` keys is below 2 KiB, however it is laid out.
pub const KEYRING_FILE_LEN_BYTES_MAX: usize = 64 * 1024;

/// Why text or bytes are no key. memberlist's and Go's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    #[error("illegal base64 data at input byte {at}")]
    Base64 { at: usize },
    #[error("key size must be 16, 24 or 32 bytes")]
    Length,
}

/// Why a ring was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyringError {
    #[error("Requested key is not in the keyring")]
    Absent,
    #[error("Removing the primary key is not allowed")]
    Primary,
    #[error("The keyring is full: remove a key before installing another")]
    Full,
    /// Two keys with one short id: one in four thousand million.
    #[error("The key cannot be told from another one of the keyring: generate a new one")]
    SameId,
}

/// Why a keyring file is not read.
#[derive(Debug, Error)]
pub enum KeyringFileError {
    #[error("{len_bytes} bytes, more than {KEYRING_FILE_LEN_BYTES_MAX}")]
    TooLong { len_bytes: usize },
    #[error("not a JSON list of keys: {0}")]
    Json(serde_json::Error),
    #[error("it contains no keys")]
    Empty,
    #[error("key {position}: {err}")]
    Key { position: usize, err: KeyError },
    #[error(transparent)]
    Ring(#[from] KeyringError),
}

/// Names a key in a packet's header, so that its receiver need not try all it has. Tells nothing of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 4]);

/// The bytes of a key in base64, of whatever length.
pub fn decode_base64(text: &str) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    // Go's decoder skips line ends.
    let text: Zeroizing<String> =
        Zeroizing::new(text.chars().filter(|letter| !matches!(letter, '\r' | '\n')).collect());
    let decoded = STANDARD.decode(text.as_bytes());
    decoded.map(Zeroizing::new).map_err(|err| {
        let at = match err {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            // Go names the start of the group that is not complete.
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
        };
        KeyError::Base64 { at }
    })
}

/// A key for AES-128, AES-192 or AES-256, by its length.
#[derive(Clone)]
pub struct RingKey {
    bytes: Zeroizing<Vec<u8>>,
    id: KeyId,
}

impl PartialEq for RingKey {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}
impl Eq for RingKey {}

impl fmt::Debug for RingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RingKey({:02x?})", self.id.0)
    }
}

impl RingKey {
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if !matches!(bytes.len(), 16 | 24 | 32) {
            return Err(KeyError::Length);
        }
        let mut id = [0; 4];
        Hkdf::<Sha256>::new(None, bytes)
            .expand(b"quorate gossip key id", &mut id)
            .expect("four bytes are few enough");
        Ok(Self {
            bytes: Zeroizing::new(bytes.to_vec()),
            id: KeyId(id),
        })
    }
    /// A key as `keygen` prints it.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(&decode_base64(text)?)
    }
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.bytes.as_slice())
    }
    pub fn id(&self) -> KeyId {
        self.id
    }
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The keys of a pool. The first is the primary one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<RingKey>,
}

impl Keyring {
    pub fn new(primary: RingKey) -> Self {
        Self { keys: vec![primary] }
    }
    pub fn primary(&self) -> &RingKey {
        &self.keys[0]
    }
    /// All keys, the primary one first.
    pub fn keys(&self) -> &[RingKey] {
        &self.keys
    }
    pub fn contains(&self, key: &RingKey) -> bool {
        self.keys.contains(key)
    }
    pub fn find(&self, id: KeyId) -> Option<&RingKey> {
        self.keys.iter().find(|key| key.id == id)
    }
    /// Adds a key that peers may seal with. One that is there stays as it is.
    pub fn install(&mut self, key: RingKey) -> Result<(), KeyringError> {
        if self.contains(&key) {
            return Ok(());
        }
        if self.find(key.id).is_some() {
            return Err(KeyringError::SameId);
        }
        if self.keys.len() >= KEY_COUNT_MAX {
            return Err(KeyringError::Full);
        }
        self.keys.push(key);
        Ok(())
    }
    /// Makes a key the primary one.
    pub fn use_key(&mut self, key: &RingKey) -> Result<(), KeyringError> {
        let position = self.keys.iter().position(|known| known == key);
        let position = position.ok_or(KeyringError::Absent)?;
        self.keys[..=position].rotate_right(1);
        Ok(())
    }
    /// Takes a key away. One that is not there is gone already.
    pub fn remove(&mut self, key: &RingKey) -> Result<(), KeyringError> {
        if self.primary() == key {
            return Err(KeyringError::Primary);
        }
        self.keys.retain(|known| known != key);
        Ok(())
    }
    /// Serf's file: a JSON list of keys in base64, the primary one first.
    pub fn encode_file(&self) -> Vec<u8> {
        let keys: Vec<String> = self.keys.iter().map(RingKey::to_base64).collect();
        let mut content = serde_json::to_vec_pretty(&keys).expect("a list of texts is JSON");
        content.push(b'\n');
        content
    }
    pub fn decode_file(content: &[u8]) -> Result<Self, KeyringFileError> {
        if content.len() > KEYRING_FILE_LEN_BYTES_MAX {
            return Err(KeyringFileError::TooLong {
                len_bytes: content.len(),
            });
        }
        let texts: Vec<String> = serde_json::from_slice(content).map_err(KeyringFileError::Json)?;
        let mut ring: Option<Self> = None;
        for (position, text) in texts.iter().enumerate() {
            let key = RingKey::from_base64(text).map_err(|err| KeyringFileError::Key { position, err })?;
            match &mut ring {
                None => ring = Some(Self::new(key)),
                Some(ring) => ring.install(key)?,
            }
        }
        ring.ok_or(KeyringFileError::Empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn key(first: u8) -> RingKey {
        RingKey::from_bytes(&[first; 32]).expect("32 bytes")
    }
    fn numbers(ring: &Keyring) -> Vec<u8> {
        ring.keys().iter().map(|key| key.as_bytes()[0]).collect()
    }

    #[test]
    fn keys_that_are_none_are_refused_in_gos_words() {
        let refused = |text: &str| RingKey::from_base64(text).expect_err("no key").to_string();
        assert_eq!(refused("bad"), "illegal base64 data at input byte 0");
        assert_eq!(refused("MTIz"), "key size must be 16, 24 or 32 bytes");
        assert_eq!(refused(""), "key size must be 16, 24 or 32 bytes");
        for len in [16, 24, 32] {
            let key = RingKey::from_bytes(&vec![7; len]).expect("a key");
            assert_eq!(RingKey::from_base64(&key.to_base64()), Ok(key));
        }
    }

    #[test]
    fn a_key_is_installed_then_used_then_the_old_one_removed() {
        let mut ring = Keyring::new(key(1));
        ring.install(key(2)).expect("room");
        ring.install(key(2)).expect("there already");
        ring.install(key(3)).expect("room");
        assert_eq!(numbers(&ring), [1, 2, 3]);
        ring.use_key(&key(3)).expect("installed");
        assert_eq!(numbers(&ring), [3, 1, 2]);
        assert_eq!(ring.remove(&key(3)), Err(KeyringError::Primary));
        ring.remove(&key(1)).expect("not the primary one");
        ring.remove(&key(9)).expect("not there, as memberlist has it");
        assert_eq!(numbers(&ring), [3, 2]);
        assert_eq!(ring.use_key(&key(1)), Err(KeyringError::Absent));
    }

    #[test]
    fn a_ring_has_a_bound() {
        let mut ring = Keyring::new(key(0));
        for first in 1..32 {
            ring.install(key(first)).expect("room");
        }
        assert_eq!(ring.install(key(32)), Err(KeyringError::Full));
    }

    #[test]
    fn a_file_of_consul_is_read() {
        let content = r#"["pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s=", "Yj1Tl6n7r5uLyTtOmS8Bng=="]"#;
        let ring = Keyring::decode_file(content.as_bytes()).expect("two keys");
        assert_eq!(
            ring.primary().to_base64(),
            "pUqJrVyVRj5jsiYEkM/tFQYfWyJIv4s3XkvDwy7Cu5s="
        );
        assert_eq!(ring.keys().len(), 2);
    }

    #[test]
    fn a_key_is_not_printed() {
        let text = format!("{:?}", Keyring::new(key(0xab)));
        assert!(
            !text.contains("ab, ab") && !text.contains(&key(0xab).to_base64()),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn a_ring_survives_its_file(firsts in vec(any::<u8>(), 1..40), len in prop_oneof![Just(16), Just(24), Just(32)]) {
            let key = |first: &u8| RingKey::from_bytes(&vec![*first; len]).expect("a key");
            let mut ring = Keyring::new(key(&firsts[0]));
            for first in &firsts[1..] {
                let _ = ring.install(key(first));
            }
            prop_assert_eq!(Keyring::decode_file(&ring.encode_file()).expect("our own file"), ring);
        }
        #[test]
        fn garbage_is_no_ring_and_no_panic(content in vec(any::<u8>(), 0..200)) {
            let _ = Keyring::decode_file(&content);
        }
    }
}

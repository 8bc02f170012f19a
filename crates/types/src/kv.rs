//! Key/value records.

use crate::ids::{ModifyIndex, Uuid};
use serde::{Deserialize, Serialize};

/// One key and its value. Keys order byte-wise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvPair {
    pub key: String,
    pub value: Vec<u8>,
    /// Opaque to the store; clients mark the kind of value with it.
    pub flags: u64,
    /// The session that holds the key's lock.
    pub session: Option<Uuid>,
    /// How often the lock was acquired anew.
    pub lock_index: u64,
    pub create_index: ModifyIndex,
    pub modify_index: ModifyIndex,
}

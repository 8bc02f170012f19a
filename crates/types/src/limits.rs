//! Limits that more than one crate must agree on, each with its reason.

use std::time::Duration;

/// Largest value of one key: Consul's `limits.kv_max_value_size`.
pub const KV_VALUE_LEN_BYTES_MAX: usize = 512 * 1024;
/// Check output kept, tail first: Consul's `check_output_max_size`.
pub const CHECK_OUTPUT_LEN_BYTES_MAX: usize = 4096;
/// Pairs in a node's or a service's metadata.
pub const META_PAIR_COUNT_MAX: usize = 64;
pub const META_KEY_CHARS_MAX: usize = 128;
pub const META_VALUE_CHARS_MAX: usize = 512;
/// One gossip datagram: below every common path MTU once headers are added.
pub const GOSSIP_PACKET_LEN_BYTES_MAX: usize = 1400;
/// One RPC frame: room for a node's whole registration and for a snapshot chunk.
pub const RPC_FRAME_LEN_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Wait of a blocking query that names none, and the longest one granted.
pub const BLOCKING_WAIT_DEFAULT: Duration = Duration::from_secs(300);
pub const BLOCKING_WAIT_MAX: Duration = Duration::from_secs(600);
/// How long a request without a known leader is held before it fails: `performance.rpc_hold_timeout`.
pub const RPC_HOLD_TIMEOUT: Duration = Duration::from_secs(7);
/// Time to live of a session, when it has one: Consul's `session_ttl_min` by default, and its fixed maximum.
pub const SESSION_TTL_MIN: Duration = Duration::from_secs(10);
pub const SESSION_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// A session that is not renewed lasts so many times its time to live: a renewal on its way is not too late.
pub const SESSION_TTL_MULTIPLIER: u32 = 2;
/// Lock-delay of a session that names none, and the longest one granted.
pub const LOCK_DELAY_DEFAULT: Duration = Duration::from_secs(15);
pub const LOCK_DELAY_MAX: Duration = Duration::from_secs(60);
/// Operations of one transaction.
pub const TRANSACTION_OPERATION_COUNT_MAX: usize = 128;

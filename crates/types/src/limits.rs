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

//! Bytes and messages: the only home of byte layouts. Gossip packets, RPC frames, log records, snapshots.

pub mod codec;
pub mod events;
pub mod frame;
pub mod gossip;
pub mod keyring;
pub mod local;
pub mod log;
pub mod raft;
pub mod reachability;
pub mod rpc;
pub mod seal;
pub mod state;

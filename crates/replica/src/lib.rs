//! Raft: log store, network, snapshots, leader forwarding.

pub mod log;
mod machine;
mod snapshot;
mod storage;
mod transport;
mod types;
mod watches;

pub use types::RaftRt;
pub use watches::{TooManyWatches, Wake, Watch, Watches};

#[cfg(test)]
mod fault_disk;

//! Raft: log store, network, snapshots, leader forwarding.

pub mod log;

#[cfg(test)]
mod fault_disk;

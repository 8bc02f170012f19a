//! Raft: log store, network, snapshots, leader forwarding.

//! The deterministic simulator: the agent's own code in a world of virtual time, a modelled network and modelled disks.
//!
//! `world` is the whole of it for a scenario; `rt` is the door its programs go through; `net`, `disk` and `clock` are the
//! models; `timeline` orders all that happens; `digest` tells two runs apart; `client` asks agents as users do.
//! Nothing of it is compiled without `--cfg madsim`, which `cargo xtask sim` sets.

#![cfg(madsim)]

pub mod client;
pub mod clock;
pub mod digest;
pub mod disk;
pub mod net;
pub mod raft_runtime;
pub mod rt;
pub mod self_check;
mod timeline;
pub mod world;

pub use disk::DiskFaults;
pub use net::Link;
pub use raft_runtime::RaftRuntime;
pub use rt::SimRt;
pub use world::{ProcessAnswer, World};

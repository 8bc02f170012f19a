//! The deterministic simulator: the agent's own code in a world of virtual time, a modelled network and modelled disks.
//!
//! `world` is the whole of it for a scenario; `rt` is the door its programs go through; `net`, `disk` and `clock` are the
//! models; `timeline` orders all that happens; `digest` tells two runs apart; `client` asks agents as users do.
//! `runner` runs a scenario file: `scenario` is the language, `story` what a run knows of itself, `faults` what is done to the
//! world, `workload` and `require` who asks the agents (through `wire`), `invariant` what all of it is held to.
//! Nothing of it is compiled without `--cfg madsim`, which `cargo xtask sim` sets.

#![cfg(madsim)]

mod agent_file;
pub mod client;
pub mod clock;
pub mod digest;
pub mod disk;
mod faults;
pub mod invariant;
pub mod net;
pub mod raft_runtime;
mod require;
pub mod rt;
pub mod runner;
pub mod scenario;
pub mod self_check;
mod story;
mod timeline;
mod wire;
mod workload;
pub mod world;

pub use disk::DiskFaults;
pub use net::Link;
pub use raft_runtime::RaftRuntime;
pub use rt::SimRt;
pub use world::{ProcessAnswer, World};

//! What every run is held to. Each judge is pure: it is fed what was observed, and says what is wrong.
//!
//! Not here: how it is observed (`workload`, `runner`).

pub mod cells;
pub mod critical;
pub mod holders;
pub mod index;
pub mod keyring;
pub mod leaders;
pub mod logs;
pub mod register;

/// The names a scenario may list under `expect.invariants`.
pub const NAMES: &[&str] = &[
    "linearizable",
    "one_leader_per_term",
    "equal_logs",
    "dns_never_critical",
    "index_never_back",
    "one_holder",
    "one_keyring",
];

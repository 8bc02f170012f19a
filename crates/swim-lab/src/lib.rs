//! The lab: many `swim` cores in one process and virtual time, without sockets, tasks or clocks.
//!
//! - `paper`: Lifeguard's experiments and how they count.
//! - `sweep`: hundreds of runs on several threads, put together to a row of a table.
//! - `stress`: lossy members, pools of thousands, mass joins.
//! - `report`: tables, charts and goals; `text` and `page` put them on paper.
//!
//! Promises: a run is decided by its setting and seed alone; nothing here reads a clock (who measures speed does so in
//! `main`), a file or the environment.
//! Not here: any rule of the protocol (`swim`); the agent in a simulated world (`sim`).

pub mod page;
pub mod paper;
mod queue;
pub mod report;
mod size;
pub mod stress;
pub mod sweep;
pub mod text;
pub mod world;

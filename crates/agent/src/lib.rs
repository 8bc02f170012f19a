//! One node: configuration, start, wiring, orderly stop.

pub mod config;

//! Child processes: check scripts and handlers.

use std::time::Duration;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in `PATH`. Never empty.
    pub argv: Vec<String>,
    /// Added to the agent's own environment.
    pub environment: Vec<(String, String)>,
    pub timeout: Duration,
    /// Of standard output and standard error together, only this many last bytes are kept.
    pub output_len_bytes_max: usize,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    Exited(i32),
    Signaled(i32),
    TimedOut,
    /// It never ran; the text is the system's reason (`no such file or directory`).
    NotStarted(String),
}

/// The end of a process and the last bytes it wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessOutput {
    pub end: ProcessEnd,
    /// Standard output and standard error in the order they were read, the tail only.
    pub output: Vec<u8>,
    /// Bytes written in all, kept or not.
    pub output_len_bytes: u64,
}

//! Child processes: check scripts and handlers, and the child that a command runs in its own place.

use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

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

/// A child that writes where its parent writes, and runs until it ends or is told to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildSpec {
    /// Program and arguments; the program is looked up in `PATH`. Never empty.
    pub argv: Vec<String>,
    /// Added to the parent's own environment.
    pub environment: Vec<(String, String)>,
    /// The parent's standard input becomes the child's; otherwise it reads nothing.
    pub pass_stdin: bool,
}

/// What a child can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildSignal {
    Interrupt,
    Terminate,
    Hangup,
    /// Ends it whatever it does.
    Kill,
}

/// Signals on their way to a child. They are passed on at once: more wait only when nobody runs.
const SIGNAL_COUNT_MAX: usize = 16;

/// A running child. When it is dropped before the child ended, the child is killed with all it started.
#[derive(Debug)]
pub struct ChildProcess {
    id: u32,
    signals: mpsc::Sender<ChildSignal>,
    end: oneshot::Receiver<ProcessEnd>,
}

/// The implementer's side of a [`ChildProcess`]. Its duties: pass each signal on, in order; when `signals` is closed kill
/// the child; tell `end` once the child was waited for.
#[derive(Debug)]
pub struct ChildDriver {
    pub signals: mpsc::Receiver<ChildSignal>,
    pub end: oneshot::Sender<ProcessEnd>,
}

impl ChildProcess {
    /// Both sides of a child that was just started.
    pub fn new(id: u32) -> (Self, ChildDriver) {
        let (signals_tx, signals) = mpsc::channel(SIGNAL_COUNT_MAX);
        let (end_tx, end) = oneshot::channel();
        let child = Self {
            id,
            signals: signals_tx,
            end,
        };
        (child, ChildDriver { signals, end: end_tx })
    }
    /// The system's number for it.
    pub const fn id(&self) -> u32 {
        self.id
    }
    /// Tells the child and all it started. Nothing happens when it has ended.
    pub fn signal(&self, signal: ChildSignal) {
        // Full: it is being told already. Closed: it has ended.
        let _ = self.signals.try_send(signal);
    }
    /// Waits for its end. Cancelling it loses nothing; after the end was told it must not be called again.
    pub async fn wait(&mut self) -> ProcessEnd {
        let end = (&mut self.end).await;
        end.unwrap_or_else(|_| ProcessEnd::NotStarted("its driver is gone".to_owned()))
    }
}

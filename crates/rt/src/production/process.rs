//! Child processes in process groups of their own.

use crate::{ChildDriver, ChildProcess, ChildSignal, ChildSpec, ProcessEnd, ProcessOutput, ProcessSpec, ProcessUsage};
use futures::FutureExt as _;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IsTerminal as _, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

const READ_LEN_BYTES: usize = 16 * 1024;

/// Read at most this much after the child's end. What it wrote itself is at most a full pipe (1 MiB is the most an
/// unprivileged process can set on Linux); a descendant that writes for ever must not hold the check.
const DRAIN_LEN_BYTES_MAX: u64 = 1024 * 1024;

/// What `/proc/self/status` says (proc_pid_status(5)); a kibibyte is its unit of memory.
pub(super) fn parse_status(status: &str) -> ProcessUsage {
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let word = line.and_then(|rest| rest.strip_prefix(':')?.split_whitespace().next());
        word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    };
    ProcessUsage {
        resident_bytes: number("VmRSS") * 1024,
        virtual_bytes: number("VmSize") * 1024,
        task_count: 0,
        thread_count: number("Threads"),
    }
}

/// The last bytes written.
struct Tail {
    kept: VecDeque<u8>,
    len_bytes_max: usize,
    len_bytes: u64,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.len_bytes += bytes.len() as u64;
        let bytes = &bytes[bytes.len().saturating_sub(self.len_bytes_max)..];
        let excess = (self.kept.len() + bytes.len()).saturating_sub(self.len_bytes_max);
        self.kept.drain(..excess);
        self.kept.extend(bytes);
    }
}

/// Kills the whole group when dropped before the child was waited for: at the timeout, and when the caller goes away.
struct Group(Child);

impl Group {
    fn kill(&self) {
        // The id is known only until the child is waited for: until then no other process can have it.
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            // The group may be gone already; nothing is left to kill then.
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The system's reason alone, as it is worded inside a sentence.
fn reason(err: &io::Error) -> String {
    let text = match err.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_owned(),
        // A NUL byte in an argument: the kernel was never asked.
        None if err.kind() == io::ErrorKind::InvalidInput => "invalid argument".to_owned(),
        None => err.to_string(),
    };
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text,
    }
}

fn start(spec: &ProcessSpec) -> io::Result<(Group, Receiver)> {
    let (program, arguments) = spec
        .argv
        .split_first()
        .expect("a process specification names a program");
    // One pipe for both, so that the order of what was written is kept.
    let (reader, writer) = io::pipe()?;
    let reader = Receiver::from_owned_fd(OwnedFd::from(reader))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(spec.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    // Dropping the command closes our ends of the pipe: the reader sees the end when the last writer is gone.
    Ok((Group(command.spawn()?), reader))
}

fn end_of(status: ExitStatus) -> ProcessEnd {
    match (status.code(), status.signal()) {
        (Some(code), _) => ProcessEnd::Exited(code),
        (None, Some(signal)) => ProcessEnd::Signaled(signal),
        (None, None) => unreachable!("a process that was waited for has exited or was ended by a signal"),
    }
}

enum Step {
    Read(io::Result<usize>),
    Ended(io::Result<ExitStatus>),
    TimedOut,
}

pub(super) async fn run(spec: ProcessSpec) -> ProcessOutput {
    let mut tail = Tail {
        kept: VecDeque::new(),
        len_bytes_max: spec.output_len_bytes_max,
        len_bytes: 0,
    };
    let end = match start(&spec) {
        Ok((group, reader)) => follow(group, reader, spec.timeout, &mut tail).await,
        Err(err) => ProcessEnd::NotStarted(reason(&err)),
    };
    ProcessOutput {
        end,
        output: tail.kept.into(),
        output_len_bytes: tail.len_bytes,
    }
}

async fn follow(mut group: Group, mut reader: Receiver, timeout: std::time::Duration, tail: &mut Tail) -> ProcessEnd {
    let mut timed_out = std::pin::pin!(tokio::time::sleep(timeout).fuse());
    let mut buffer = vec![0; READ_LEN_BYTES];
    let mut open = true;
    let end = loop {
        let step = {
            let ended = group.0.wait().map(Step::Ended).fuse();
            let read = async {
                match open {
                    true => reader.read(&mut buffer).await,
                    false => futures::future::pending().await,
                }
            };
            let read = read.map(Step::Read).fuse();
            futures::pin_mut!(ended, read);
            futures::select_biased! {
                step = ended => step,
                () = timed_out => Step::TimedOut,
                step = read => step,
            }
        };
        match step {
            Step::Read(Ok(0) | Err(_)) => open = false,
            Step::Read(Ok(count)) => tail.push(&buffer[..count]),
            Step::Ended(Ok(status)) => break end_of(status),
            Step::Ended(Err(err)) => break ProcessEnd::NotStarted(reason(&err)),
            Step::TimedOut => {
                group.kill();
                // Nothing survives SIGKILL, so this ends; its status says only that we sent it.
                let _ = group.0.wait().await;
                break ProcessEnd::TimedOut;
            }
        }
    };
    if open {
        drain(reader, tail);
    }
    end
}

/// Reads what is in the pipe and does not wait for more: a descendant may keep its end open for as long as it lives.
fn drain(reader: Receiver, tail: &mut Tail) {
    let Ok(fd) = reader.into_nonblocking_fd() else { return };
    let mut pipe = std::fs::File::from(fd);
    let mut buffer = vec![0; READ_LEN_BYTES];
    let mut drained = 0;
    while drained < DRAIN_LEN_BYTES_MAX {
        match pipe.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => {
                tail.push(&buffer[..count]);
                drained += count as u64;
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// A child on our own streams, with whom to tell when it is to end.
struct OnOurStreams {
    child: Child,
    has_own_group: bool,
}

impl OnOurStreams {
    fn tell(&self, signal: Signal) {
        // As for a group: the id is known until the child is waited for, and what is gone needs no signal.
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let id = Pid::from_raw(id);
            let _ = match self.has_own_group {
                true => killpg(id, signal),
                false => kill(id, signal),
            };
        }
    }
}

impl Drop for OnOurStreams {
    fn drop(&mut self) {
        self.tell(Signal::SIGKILL);
    }
}

/// Starts the child. The future that comes with it passes on signals and waits for the end; it must run.
pub(super) fn start_child(spec: &ChildSpec) -> io::Result<(ChildProcess, impl Future<Output = ()> + Send + 'static)> {
    let (program, arguments) = spec
        .argv
        .split_first()
        .expect("a process specification names a program");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(spec.environment.iter().map(|(name, value)| (name, value)));
    if !spec.pass_stdin {
        command.stdin(Stdio::null());
    }
    // A group of its own lets all that it starts be told at once. But a terminal stops groups that read from it and are not
    // in its foreground: a child that is given the terminal stays with us, where an interrupt typed there reaches it too.
    let has_own_group = !(spec.pass_stdin && io::stdin().is_terminal());
    if has_own_group {
        command.process_group(0);
    }
    let child = command.spawn()?;
    let (handle, driver) = ChildProcess::new(child.id().unwrap_or_default());
    let running = OnOurStreams { child, has_own_group };
    Ok((handle, drive(running, driver)))
}

async fn drive(mut running: OnOurStreams, driver: ChildDriver) {
    let ChildDriver { mut signals, end } = driver;
    let ended = loop {
        let told = {
            let ended = running.child.wait().fuse();
            let told = signals.recv().fuse();
            futures::pin_mut!(ended, told);
            futures::select_biased! {
                ended = ended => break ended,
                told = told => told,
            }
        };
        match told {
            Some(signal) => running.tell(match signal {
                ChildSignal::Interrupt => Signal::SIGINT,
                ChildSignal::Terminate => Signal::SIGTERM,
                ChildSignal::Hangup => Signal::SIGHUP,
                ChildSignal::Kill => Signal::SIGKILL,
            }),
            // Nobody waits for it any more: dropping it kills it.
            None => return,
        }
    };
    let ended = match ended {
        Ok(status) => end_of(status),
        Err(err) => ProcessEnd::NotStarted(reason(&err)),
    };
    // Whoever asked may be gone.
    let _ = end.send(ended);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_for_memory_and_threads_are_read() {
        let usage = parse_status("Name:\tx\nVmSize:\t  200 kB\nVmRSS:\t 12 kB\nThreads:\t3\n");
        let numbers = (usage.resident_bytes, usage.virtual_bytes, usage.thread_count);
        assert_eq!(numbers, (12 * 1024, 200 * 1024, 3));
        assert_eq!(parse_status("VmRSS:\tmany"), ProcessUsage::default());
    }

    #[test]
    fn the_tail_keeps_the_last_bytes_and_counts_all() {
        let mut tail = Tail {
            kept: VecDeque::new(),
            len_bytes_max: 4,
            len_bytes: 0,
        };
        tail.push(b"ab");
        tail.push(b"cde");
        assert_eq!(tail.kept, *b"bcde");
        tail.push(b"0123456789");
        assert_eq!((tail.kept, tail.len_bytes), (VecDeque::from(*b"6789"), 15));
    }
}

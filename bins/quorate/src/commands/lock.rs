//! `lock`: runs a command while a lock, or a slot of a semaphore, is held.

use super::Context;
use crate::report::Report;
use futures::future::{Either, select};
use quorate_agent::config::duration;
use quorate_api_client::{CleanUp, Client, Lock, LockOptions};
use quorate_rt::production::TokioRt;
use quorate_rt::{ChildProcess, ChildSignal, ChildSpec, Elapsed, ProcessEnd, Rt as _, Signal};
use std::io::Write as _;
use std::pin::pin;
use std::time::Duration;

/// Between asking the child to end and making it end: it may have things to put in order, and must be gone before the
/// lock's next holder begins, which the lock-delay (15 s) holds back for longer.
const KILL_GRACE: Duration = Duration::from_secs(5);
const MONITOR_RETRY_COUNT_DEFAULT: u32 = 3;
/// Exit code with `-child-exit-code` when the child failed.
const CHILD_FAILED: u8 = 2;

struct Settings {
    prefix: String,
    child: ChildSpec,
    options: LockOptions,
    is_verbose: bool,
    passes_child_code: bool,
}

/// A number that Go would read as an `int`; what is wrong with it otherwise.
fn count(context: &Context, name: &str, default: u32, complaint: &str) -> Result<u32, Report> {
    let text = context.flags.text(name);
    if !context.flags.is_given(name) {
        return Ok(default);
    }
    match text.parse::<i64>() {
        Ok(number) if number < 0 => Err(Report::failure(complaint)),
        Ok(number) => u32::try_from(number).map_err(|_| misread(name, text)),
        Err(_) => Err(misread(name, text)),
    }
}

fn misread(name: &str, text: &str) -> Report {
    Report::failure(format!("invalid value {text:?} for flag -{name}: parse error"))
}

fn settings(context: &Context) -> Result<Settings, Report> {
    let flags = &context.flags;
    let too_few = "Lock holder limit must be positive";
    let limit = count(context, "n", 1, too_few)?;
    if limit == 0 {
        return Err(Report::failure(too_few));
    }
    let [prefix, command @ ..] = context.arguments() else {
        return Err(Report::failure("Key prefix and child command must be specified"));
    };
    if command.is_empty() {
        return Err(Report::failure("Key prefix and child command must be specified"));
    }
    let prefix = prefix.strip_prefix('/').unwrap_or(prefix).to_owned();
    // The older flag's name; Consul keeps both in one variable.
    let name = if flags.is_given("try") { "try" } else { "timeout" };
    let text = if flags.is_given(name) { flags.text(name) } else { "0" };
    if text.starts_with('-') {
        return Err(Report::failure("Timeout must be positive"));
    }
    let wait = duration::parse(text).map_err(|_| misread(name, text))?;
    let retry = "Number for 'monitor-retry' must be >= 0";
    let monitor_retry_count = count(context, "monitor-retry", MONITOR_RETRY_COUNT_DEFAULT, retry)?;
    let line = command.join(" ");
    let session_name = match flags.text("name") {
        "" => format!("Consul lock for '{line}' at '{prefix}'"),
        name => name.to_owned(),
    };
    let is_shell = !flags.is_given("shell") || flags.boolean("shell");
    let argv = if is_shell {
        let shell = context.rt.environment("SHELL").filter(|shell| !shell.is_empty());
        vec![shell.unwrap_or_else(|| "/bin/sh".to_owned()), "-c".to_owned(), line]
    } else {
        command.to_vec()
    };
    Ok(Settings {
        prefix,
        child: ChildSpec {
            argv,
            environment: vec![("CONSUL_LOCK_HELD".to_owned(), "true".to_owned())],
            pass_stdin: flags.boolean("pass-stdin"),
        },
        options: LockOptions {
            session_name,
            limit,
            wait: (!wait.is_zero()).then_some(wait),
            monitor_retry_count,
        },
        is_verbose: flags.boolean("verbose"),
        passes_child_code: flags.boolean("child-exit-code"),
    })
}

/// What is told while the child runs goes out at once: the child writes to the same streams.
fn tell(line: &str) {
    // Whoever closed our output does not want it.
    let _ = writeln!(std::io::stdout(), "{line}");
}
fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

struct Holder<'a> {
    rt: &'a TokioRt,
    settings: &'a Settings,
    lock: Lock<TokioRt>,
}

pub async fn run(context: &Context) -> Result<Report, Report> {
    let settings = settings(context)?;
    let client: Client<TokioRt> = context.client().await?;
    let known = client.agent_self().await;
    known.map_err(|error| format!("Error querying agent: {error}"))?;
    let rt = &context.rt;
    let lock = Lock::new(rt.clone(), client, &settings.prefix, settings.options.clone());
    let mut holder = Holder {
        rt,
        settings: &settings,
        lock,
    };
    holder.run().await
}

impl Holder<'_> {
    fn say(&self, line: &str) {
        if self.settings.is_verbose {
            tell(line);
        }
    }

    async fn run(&mut self) -> Result<Report, Report> {
        let limit = self.settings.options.limit;
        if limit > 1 {
            let prefix = &self.settings.prefix;
            self.say(&format!("Setting up semaphore (limit {limit}) at prefix: {prefix}"));
        } else {
            self.say(&format!("Setting up lock at path: {}", self.lock.key()));
        }
        self.say("Attempting lock acquisition");
        let rt = self.rt;
        let stop = async {
            rt.next_signal().await;
        };
        let acquired = self.lock.acquire(stop).await;
        if !acquired.map_err(|error| format!("Lock acquisition failed: {error}"))? {
            return Err(Report::failure("Shutdown triggered or timeout during lock acquisition"));
        }
        let has_failed = self.run_child().await;
        let released = self.lock.release().await;
        released.map_err(|error| format!("Lock release failed: {error}"))?;
        match self.lock.clean_up().await {
            Ok(CleanUp::Removed) => self.say("Cleanup succeeded"),
            Ok(CleanUp::InUse) => self.say("Cleanup aborted, lock in use"),
            Err(error) => return Err(Report::failure(format!("Lock cleanup failed: {error}"))),
        }
        let code = match has_failed && self.settings.passes_child_code {
            true => CHILD_FAILED,
            false => 0,
        };
        Ok(Report {
            code,
            ..Report::default()
        })
    }

    /// Whether the child failed by itself. When this ends, the child has ended.
    async fn run_child(&self) -> bool {
        self.say("Starting handler");
        if self.settings.child.pass_stdin {
            self.say("Stdin passed to handler process");
        }
        let mut child = match self.rt.start_child(self.settings.child.clone()).await {
            Ok(child) => child,
            Err(error) => {
                complain(&format!(
                    "Error starting handler: {}",
                    start_text(&self.settings.child.argv[0], &error)
                ));
                self.say("Child terminated, releasing lock");
                return true;
            }
        };
        let why = {
            let ended = pin!(child.wait());
            let signal = pin!(self.rt.next_signal());
            let lost = pin!(self.lock.lost());
            match select(ended, select(signal, lost)).await {
                Either::Left((end, _)) => Why::Ended(end),
                Either::Right((Either::Left((signal, _)), _)) => Why::Stopped(signal),
                Either::Right((Either::Right(((), _)), _)) => Why::Lost,
            }
        };
        match why {
            Why::Ended(end) => {
                let failure = end_text(&end);
                if let Some(failure) = &failure {
                    complain(&format!("Error running handler: {failure}"));
                }
                self.say("Child terminated, releasing lock");
                return failure.is_some();
            }
            Why::Stopped(signal) => {
                self.say("Shutdown triggered, killing child");
                // It hears what we heard: it may know better what to do then.
                child.signal(match signal {
                    Signal::Interrupt => ChildSignal::Interrupt,
                    Signal::Terminate => ChildSignal::Terminate,
                    Signal::Hangup => ChildSignal::Hangup,
                });
            }
            Why::Lost => self.say("Lock lost, killing child"),
        }
        self.end_child(&mut child).await;
        false
    }

    /// Asks the child to end, then makes it: the lock is not released, and not ours, before it is gone.
    async fn end_child(&self, child: &mut ChildProcess) {
        self.say(&format!("Terminating child pid {}", child.id()));
        child.signal(ChildSignal::Terminate);
        if let Err(Elapsed) = self.rt.timeout(KILL_GRACE, child.wait()).await {
            let grace = KILL_GRACE.as_secs();
            self.say(&format!("Child did not exit after grace period of {grace}s"));
            self.say(&format!("Killing child pid {}", child.id()));
            child.signal(ChildSignal::Kill);
            child.wait().await;
        } else {
            self.say("Child terminated");
        }
    }
}

enum Why {
    Ended(ProcessEnd),
    Stopped(Signal),
    Lost,
}

/// Go's words for how a process failed; `None`: it did not.
fn end_text(end: &ProcessEnd) -> Option<String> {
    Some(match end {
        ProcessEnd::Exited(0) => return None,
        ProcessEnd::Exited(code) => format!("exit status {code}"),
        ProcessEnd::Signaled(signal) => format!("signal: {}", signal_name(*signal)),
        ProcessEnd::NotStarted(reason) => reason.clone(),
        ProcessEnd::TimedOut => "timed out".to_owned(),
    })
}

/// The signals that end processes, as Go names them.
fn signal_name(number: i32) -> String {
    let name = match number {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        6 => "aborted",
        9 => "killed",
        11 => "segmentation fault",
        13 => "broken pipe",
        15 => "terminated",
        number => return format!("signal {number}"),
    };
    name.to_owned()
}

/// Go's words for a program that did not start.
fn start_text(program: &str, error: &std::io::Error) -> String {
    let reason = match error.kind() {
        std::io::ErrorKind::NotFound if !program.contains('/') => {
            return format!("exec: \"{program}\": executable file not found in $PATH");
        }
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    };
    format!("fork/exec {program}: {reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_and_failed_starts_are_told_in_gos_words() {
        assert_eq!(end_text(&ProcessEnd::Exited(0)), None);
        assert_eq!(end_text(&ProcessEnd::Exited(3)).as_deref(), Some("exit status 3"));
        assert_eq!(end_text(&ProcessEnd::Signaled(9)).as_deref(), Some("signal: killed"));
        assert_eq!(
            end_text(&ProcessEnd::Signaled(40)).as_deref(),
            Some("signal: signal 40")
        );
        let absent = std::io::Error::from(std::io::ErrorKind::NotFound);
        assert_eq!(
            start_text("nope", &absent),
            "exec: \"nope\": executable file not found in $PATH"
        );
        assert_eq!(
            start_text("/no/such", &absent),
            "fork/exec /no/such: no such file or directory"
        );
    }
}

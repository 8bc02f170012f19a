//! The README's two commands: there verbatim, and the first starts an agent that answers.
//!
//! It is started as a reader starts it, but on free ports: a developer's own agent must neither disturb nor be disturbed.

use crate::command::{self, root};
use anyhow::{Context as _, Result, bail, ensure};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a reader pastes: start an agent, and prove the whole project.
pub const COMMANDS: &[&str] = &["cargo run --release -- agent -dev", "cargo xtask ci"];

/// From an empty target directory the first command builds the whole agent.
const START_TIMEOUT: Duration = Duration::from_secs(900);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

pub fn check() -> Result<()> {
    let readme = root().join("README.md");
    let text = std::fs::read_to_string(&readme).context("read README.md")?;
    let missing = missing_commands(&text);
    ensure!(missing.is_empty(), "README.md has no line `{}`", missing.join("`, `"));
    let [http, dns, server, serf_lan, serf_wan] = free_ports()?;
    let mut words = COMMANDS[0].split(' ');
    ensure!(words.next() == Some("cargo"), "the first command starts with cargo");
    let mut command = command::cargo();
    command.args(words).args([
        format!("-http-port={http}"),
        format!("-dns-port={dns}"),
        format!("-server-port={server}"),
        format!("-serf-lan-port={serf_lan}"),
        format!("-serf-wan-port={serf_wan}"),
    ]);
    println!("+ {}", command::line(&command));
    // A group of its own: a signal must reach cargo and the agent it runs.
    let child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("start cargo")?;
    let mut group = Group { child };
    group.wait_for_leader(SocketAddr::from(([127, 0, 0, 1], http)))?;
    println!("readme: the agent answers and has a leader");
    group.stop()
}

/// Commands that no line of the text consists of, a prompt before and a comment after it aside.
fn missing_commands(text: &str) -> Vec<&'static str> {
    let lines = || {
        text.lines()
            .map(|line| line.split(" #").next().unwrap_or_default().trim())
    };
    let has = |command: &str| lines().any(|line| line.trim_start_matches("$ ") == command);
    COMMANDS.iter().copied().filter(|command| !has(command)).collect()
}

/// Ports that were free a moment ago; all are held until all are known, so they differ.
fn free_ports() -> Result<[u16; 5]> {
    let mut listeners = Vec::new();
    let mut ports = [0; 5];
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?;
        *port = listener.local_addr().context("find a free port")?.port();
        listeners.push(listener);
    }
    Ok(ports)
}

/// The processes of one command. Whatever happens, none outlives this value.
struct Group {
    child: Child,
}

impl Group {
    fn signal(&self, signal: &str) {
        // A shell has `kill` built in where no such program is installed. A group that is gone is what was wanted.
        let line = format!("kill -{signal} -{}", self.child.id());
        let _ = Command::new("sh").args(["-c", &line]).stderr(Stdio::null()).status();
    }
    fn wait_for_leader(&mut self, at: SocketAddr) -> Result<()> {
        let started_at = Instant::now();
        while started_at.elapsed() < START_TIMEOUT {
            if let Some(status) = self.child.try_wait().context("ask after the agent")? {
                bail!("the agent ended before it answered: {status}");
            }
            if leader(at).is_some() {
                return Ok(());
            }
            std::thread::park_timeout(LOOK_INTERVAL);
        }
        bail!(
            "no leader at http://{at}/v1/status/leader within {} s",
            START_TIMEOUT.as_secs()
        )
    }
    fn stop(&mut self) -> Result<()> {
        self.signal("INT");
        let stopping_at = Instant::now();
        while stopping_at.elapsed() < STOP_TIMEOUT {
            if self.child.try_wait().context("ask after the agent")?.is_some() {
                return Ok(());
            }
            std::thread::park_timeout(LOOK_INTERVAL);
        }
        bail!("the agent still runs {} s after an interrupt", STOP_TIMEOUT.as_secs())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal("KILL");
        // Reaps it; killed processes end.
        let _ = self.child.wait();
    }
}

/// The leader's address as the agent tells it; `None` while it does not answer or has none.
fn leader(at: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&at, REQUEST_TIMEOUT).ok()?;
    stream.set_read_timeout(Some(REQUEST_TIMEOUT)).ok()?;
    stream
        .write_all(b"GET /v1/status/leader HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    leader_of(&answer)
}

fn leader_of(answer: &str) -> Option<String> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let address = body.split('"').nth(1)?;
    (head.starts_with("HTTP/1.1 200") && !address.is_empty()).then(|| address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_counts_only_as_a_whole_line() {
        let all = COMMANDS.join("\n");
        assert_eq!(missing_commands(&all), Vec::<&str>::new());
        let commented = format!("{}    # one agent\n{}  # all tests\n", COMMANDS[0], COMMANDS[1]);
        assert_eq!(missing_commands(&commented), Vec::<&str>::new());
        assert_eq!(
            missing_commands(&format!("```sh\n$ {}\n```\n", COMMANDS[0])),
            [COMMANDS[1]]
        );
        assert_eq!(missing_commands(&format!("run {} -x", COMMANDS[0])).len(), 2);
    }

    #[test]
    fn an_agent_without_a_leader_has_not_started() {
        assert_eq!(
            leader_of("HTTP/1.1 200 OK\r\na: b\r\n\r\n\"127.0.0.1:8300\""),
            Some("127.0.0.1:8300".to_owned())
        );
        assert_eq!(leader_of("HTTP/1.1 200 OK\r\na: b\r\n\r\n\"\""), None);
        assert_eq!(leader_of("HTTP/1.1 500 Oops\r\na: b\r\n\r\n\"127.0.0.1:8300\""), None);
        assert_eq!(leader_of(""), None);
    }
}

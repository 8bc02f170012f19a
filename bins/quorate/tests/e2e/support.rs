//! Agents as processes, and waiting for what they come to.

use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
/// Far beyond what anything here takes on a busy machine: reaching it is a failure, not slowness.
pub const WAIT_MAX: Duration = Duration::from_secs(90);
pub const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Below the range the kernel hands out by itself, so that no outgoing connection takes a port between choice and use.
pub const PORTS: std::ops::Range<u32> = 20_000..32_000;
/// Of an agent's output, shown when its test fails.
pub const OUTPUT_LINES_SHOWN: usize = 40;

pub fn binary() -> PathBuf {
    std::env::var_os("QUORATE_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_quorate")), PathBuf::from)
}

/// Looks until there is something to return.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started_at = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            started_at.elapsed() < WAIT_MAX,
            "waited {} s in vain: {what}",
            WAIT_MAX.as_secs()
        );
        std::thread::park_timeout(LOOK_INTERVAL);
    }
}

#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    wait_for(what, || is_so().then_some(()));
}

/// A port free for TCP and UDP that no other test of this process got.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let span = PORTS.end - PORTS.start;
    for _ in 0..span {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        // Another run of these tests at the same time begins elsewhere.
        let port = PORTS.start + (std::process::id().wrapping_mul(97).wrapping_add(step)) % span;
        let port = u16::try_from(port).expect("the range ends below 65,536");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port in {PORTS:?}");
}

/// A folder that goes with its test.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("quorate-e2e-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("the temporary folder can be written");
        fs::write(&path, text).expect("the temporary folder can be written");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is the temporary folder's to keep.
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub struct Ports {
    pub http: u16,
    pub dns: u16,
    pub server: u16,
    pub serf_lan: u16,
    pub serf_wan: u16,
}

impl Ports {
    pub fn free() -> Self {
        Self {
            http: free_port(),
            dns: free_port(),
            server: free_port(),
            serf_lan: free_port(),
            serf_wan: free_port(),
        }
    }
    pub fn flags(&self) -> Vec<String> {
        vec![
            format!("-http-port={}", self.http),
            format!("-dns-port={}", self.dns),
            format!("-server-port={}", self.server),
            format!("-serf-lan-port={}", self.serf_lan),
            format!("-serf-wan-port={}", self.serf_wan),
        ]
    }
}

pub struct Agent {
    pub name: String,
    pub ports: Ports,
    pub folder: Folder,
    pub arguments: Vec<String>,
    pub child: Option<Child>,
}

impl Agent {
    /// An agent that is not started yet. `arguments` come after those for its name and ports.
    pub fn new(name: &str, arguments: &[&str]) -> Self {
        let ports = Ports::free();
        let mut all = vec!["agent".to_owned(), format!("-node={name}")];
        all.extend(ports.flags());
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        Self {
            name: name.to_owned(),
            ports,
            folder: Folder::new(),
            arguments: all,
            child: None,
        }
    }
    /// `agent -dev`, ready to serve.
    pub fn dev(name: &str, arguments: &[&str]) -> Self {
        let mut agent = Self::new(name, &[&["-dev"], arguments].concat());
        agent.start();
        agent.wait_for_leader();
        agent
    }
    pub fn with_config(mut self, file: &str, text: &str) -> Self {
        let path = self.folder.write(&format!("config/{file}"), text);
        let folder = format!("-config-dir={}", path.parent().expect("below the folder").display());
        if !self.arguments.contains(&folder) {
            self.arguments.push(folder);
        }
        self
    }
    pub fn output_path(&self) -> PathBuf {
        self.folder.0.join("output.log")
    }
    pub fn output(&self) -> String {
        fs::read_to_string(self.output_path()).unwrap_or_default()
    }
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.output_path());
        let output = output.expect("the temporary folder can be written");
        let errors = output.try_clone().expect("a handle can be copied");
        let mut command = Command::new(binary());
        command
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        self.child = Some(command.spawn().expect("the binary is there"));
    }
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An agent that ended by itself is as gone as a killed one.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
    /// Its exit code, once it has ended by itself.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> i32 {
        let name = self.name.clone();
        let child = self.child.as_mut().expect("it was started");
        let status = wait_for(&format!("{name} ends"), || child.try_wait().expect("it is our child"));
        self.child = None;
        status.code().expect("it was not killed")
    }
    pub fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("it runs").id();
        // A shell has `kill` built in where no such program is installed.
        let line = format!("kill -{signal} {id}");
        let sent = Command::new("sh")
            .args(["-c", &line])
            .status()
            .expect("a shell is there");
        assert!(sent.success(), "{line} ({})", self.name);
    }
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| child.try_wait().expect("it is our child").is_none())
    }
    pub fn http(&self, method: &str, path: &str, body: &str) -> Option<Reply> {
        let url = format!("http://127.0.0.1:{}{path}", self.ports.http);
        let mut curl = Command::new("curl");
        curl.args([
            "-s",
            "-S",
            "-g",
            "--max-time",
            "20",
            "-X",
            method,
            "-w",
            "\n%{http_code}",
        ]);
        if method == "PUT" {
            curl.args(["--data-binary", body]);
        }
        let output = curl.arg(&url).output().expect("curl is installed");
        if !output.status.success() {
            return None;
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').expect("curl was told to write the status last");
        Some(Reply {
            status: status.parse().expect("a status is a number"),
            body: body.to_owned(),
        })
    }
    /// The JSON of a 200; `None` while there is none.
    pub fn get(&self, path: &str) -> Option<Value> {
        let reply = self.http("GET", path, "").filter(|reply| reply.status == 200)?;
        serde_json::from_str(&reply.body).ok()
    }
    #[track_caller]
    pub fn put(&self, path: &str, body: &Value) -> Reply {
        self.http("PUT", path, &body.to_string())
            .unwrap_or_else(|| panic!("{} does not answer PUT {path}", self.name))
    }
    /// The leader's RPC address as this agent knows it.
    pub fn leader(&self) -> Option<String> {
        let leader = self.get("/v1/status/leader")?;
        leader.as_str().filter(|leader| !leader.is_empty()).map(str::to_owned)
    }
    #[track_caller]
    pub fn wait_for_leader(&mut self) -> String {
        let what = format!("{} knows a leader", self.name);
        wait_for(&what, || {
            assert!(self.is_running(), "{} ended early", self.name);
            self.leader()
        })
    }
    pub fn dig(&self, arguments: &[&str]) -> String {
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.1", "-p", &self.ports.dns.to_string(), "+time=2", "+tries=1"])
            .args(arguments);
        let output = dig.output().expect("dig is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
    pub fn dig_short(&self, name: &str, qtype: &str) -> BTreeSet<String> {
        self.dig(&["+short", name, qtype])
            .lines()
            .filter(|line| !line.starts_with(';'))
            .map(str::to_owned)
            .collect()
    }
    /// Runs the command line against this agent.
    pub fn cli(&self, arguments: &[&str]) -> CliEnd {
        cli(&format!("127.0.0.1:{}", self.ports.http), arguments)
    }
    /// Statuses of the checks of one service's instances, as this agent is told.
    pub fn statuses(&self, service: &str) -> Option<Vec<String>> {
        let checks = self.get(&format!("/v1/health/checks/{service}"))?;
        let statuses = checks
            .as_array()?
            .iter()
            .map(|check| check["Status"].as_str().unwrap_or_default().to_owned());
        Some(statuses.collect())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let shown = lines[lines.len().saturating_sub(OUTPUT_LINES_SHOWN)..].join("\n");
            eprintln!("---- {} {}\n{shown}\n----", self.name, self.arguments.join(" "));
        }
    }
}

#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

#[derive(Debug)]
pub struct CliEnd {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl CliEnd {
    #[track_caller]
    pub fn check(&self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!(
            (self.code, self.stdout.as_str(), self.stderr.as_str()),
            (code, stdout, stderr)
        );
    }
}

pub fn cli(address: &str, arguments: &[&str]) -> CliEnd {
    let mut command = Command::new(binary());
    for name in ["HTTP_ADDR", "HTTP_TOKEN", "HTTP_TOKEN_FILE", "HTTP_SSL", "HTTP_AUTH"] {
        command
            .env_remove(format!("CONSUL_{name}"))
            .env_remove(format!("QUORATE_{name}"));
    }
    command
        .env("CONSUL_HTTP_ADDR", address)
        .args(arguments)
        .stdin(Stdio::null());
    let output = command.output().expect("the binary is there");
    CliEnd {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Something that answers HTTP on a port, and can be stopped and started.
pub struct Listener {
    pub port: u16,
    pub is_stopping: Arc<AtomicBool>,
    pub thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub fn start(port: u16) -> Self {
        let listener = wait_for("the port is free again", || TcpListener::bind(("127.0.0.1", port)).ok());
        let is_stopping = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_stopping);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                // A peer that is gone needs no answer.
                let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            }
        });
        Self {
            port,
            is_stopping,
            thread: Some(thread),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.is_stopping.store(true, Ordering::SeqCst);
        // Wakes the thread, which then sees that it is to stop.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Three servers and two clients that know each other.
pub struct Cluster {
    pub servers: Vec<Agent>,
    pub clients: Vec<Agent>,
}

impl Cluster {
    pub fn start() -> Self {
        Self::start_with(1)
    }
    pub fn start_with(raft_multiplier: u32) -> Self {
        let mut servers: Vec<Agent> = ["s1", "s2", "s3"]
            .map(|name| Agent::new(name, &["-bind=127.0.0.1"]))
            .into();
        let mut clients: Vec<Agent> = ["c1", "c2"].map(|name| Agent::new(name, &["-bind=127.0.0.1"])).into();
        let join: Vec<String> = servers
            .iter()
            .map(|server| format!("127.0.0.1:{}", server.ports.serf_lan))
            .collect();
        for agent in servers.iter_mut().chain(&mut clients) {
            let is_server = agent.name.starts_with('s');
            let mut config = json!({
                "data_dir": agent.folder.0.join("data"),
                "server": is_server,
                "retry_join": join,
                "retry_interval": "1s",
                "performance": {"raft_multiplier": raft_multiplier},
            });
            if is_server {
                config["bootstrap_expect"] = json!(3);
            }
            let path = agent.folder.write("config/agent.json", &config.to_string());
            agent.arguments.push(format!("-config-file={}", path.display()));
            agent.start();
        }
        let mut cluster = Self { servers, clients };
        for agent in cluster.servers.iter_mut().chain(&mut cluster.clients) {
            agent.wait_for_leader();
        }
        cluster
    }
    pub fn running(&self) -> impl Iterator<Item = &Agent> {
        self.servers
            .iter()
            .chain(&self.clients)
            .filter(|agent| agent.child.is_some())
    }
    /// Position of the server that the others follow.
    #[track_caller]
    pub fn leader(&self) -> usize {
        let first = self
            .servers
            .iter()
            .find(|server| server.child.is_some())
            .expect("a server runs");
        wait_for("a running server leads", || {
            let address = first.leader()?;
            let is_it =
                |server: &Agent| server.child.is_some() && address.ends_with(&format!(":{}", server.ports.server));
            self.servers.iter().position(is_it)
        })
    }
    /// Writes a key through any running agent; an answer is waited for, since an election may be under way.
    #[track_caller]
    pub fn write(&self, key: &str, value: &str) {
        wait_until(&format!("the write of {key} is acknowledged"), || {
            let agent = self.running().next().expect("an agent runs");
            let reply = agent.http("PUT", &format!("/v1/kv/{key}"), value);
            reply.is_some_and(|reply| reply.status == 200 && reply.body.trim() == "true")
        });
    }
    #[track_caller]
    pub fn check_read_everywhere(&self, key: &str, value: &str) {
        for agent in self.running() {
            wait_until(&format!("{} reads {key}", agent.name), || {
                let reply = agent.http("GET", &format!("/v1/kv/{key}?raw"), "");
                reply.is_some_and(|reply| reply.status == 200 && reply.body == value)
            });
        }
    }
}

pub fn is_passing_everywhere(cluster: &Cluster, service: &str) -> bool {
    cluster.running().all(|agent| {
        let instances = agent.get(&format!("/v1/health/service/{service}?passing"));
        instances.is_some_and(|instances| instances.as_array().is_some_and(|instances| instances.len() == 1))
    })
}

#[track_caller]
pub fn check_contains(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is not in:\n{text}");
}

//! `cargo xtask bench`: Quorate and its peers under the same load, side by side, in one run.
//!
//! Start-up time, DNS replies, key/value requests on three servers, and memory after 10,000 service instances. Each figure
//! is the median of interleaved rounds (A B A B ...): machines drift, and a ratio within one run outranks an absolute
//! number. An absent peer is skipped. Everything stays on loopback, is bounded in time, and is stopped at the end.

use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const HELP: &str = "\
cargo xtask bench [--peers DIR] [--rounds N] [--seconds N] [--only PART] [--json FILE]

Builds the release binary and measures it beside Consul, when DIR holds one (`consul`):
  start-up   from process start until /v1/health/service/consul?passing lists the agent (agent -dev)
  dns        A and SRV replies per second, and per second of the server's CPU time (needs dnsperf)
  kv         put (64 connections) and get (default, stale; 32) per second on three servers
  watch      a change of one service of 10 until 1,000 blocking reads on three servers have it; memory of a server for each
             of 20,000 more reads that wait
  memory     resident set after 10,000 service instances are registered
  --peers DIR    folder with the peers' binaries
  --rounds N     interleaved rounds (5)
  --seconds N    of each load (5)
  --only PART    start-up, catalog (dns and memory), kv or watch
  --json FILE    write the medians to FILE as well
";

const CONNECTIONS: usize = 32;
/// Writers: as many as let a server put several writes into one sync.
const WRITERS: usize = 64;
const WATCHERS: usize = 1_000;
/// Changes that are timed in each round.
const CHANGES: u16 = 10;
/// Reads that wait, at all three servers together.
const PARKED: usize = 20_000;
const VALUE_LEN_BYTES: usize = 256;
const SERVICES: usize = 1_000;
const INSTANCES: usize = 10;
const NODES: usize = 200;

/// A binary that is measured.
#[derive(Clone)]
struct Subject {
    name: &'static str,
    binary: PathBuf,
    /// `-dev` of Quorate; Consul's needs its service mesh ports turned off to be alike.
    extra: &'static [&'static str],
}

pub fn run(args: &[&str]) -> Result<()> {
    let mut peers: Option<PathBuf> = None;
    // A process of its own for each server's waiting reads: one may not have enough files open for all.
    if let ["--hold", port, count] = args {
        return hold(port.parse()?, count.parse()?);
    }
    let (mut rounds, mut seconds, mut only, mut json) = (5_usize, 5_u64, None, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match *arg {
            "--peers" => peers = Some(PathBuf::from(value()?)),
            "--rounds" => rounds = value()?.parse().context("--rounds takes a number")?,
            "--seconds" => seconds = value()?.parse().context("--seconds takes a number")?,
            "--only" => only = Some(value()?),
            "--json" => json = Some(PathBuf::from(value()?)),
            other => bail!("unknown argument {other}\n\n{HELP}"),
        }
    }
    ensure!(rounds > 0 && seconds > 0, "--rounds and --seconds must be above zero");
    ensure!(
        only.is_none_or(|part| ["start-up", "catalog", "kv", "watch"].contains(part)),
        "--only takes start-up, catalog, kv or watch"
    );
    let takes = |part: &str| only.is_none_or(|only| *only == part);
    let status = Command::new("cargo")
        .args(["build", "--release", "--package", "quorate"])
        .status()?;
    ensure!(status.success(), "the release build failed");
    let mut subjects = vec![Subject {
        name: "quorate",
        binary: PathBuf::from("target/release/quorate"),
        extra: &[],
    }];
    if let Some(binary) = peers.map(|dir| dir.join("consul")) {
        if binary.exists() {
            subjects.push(Subject {
                name: "consul",
                binary,
                extra: &["-grpc-port=-1"],
            });
        } else {
            println!("{} is absent: skipped", binary.display());
        }
    }
    let mut figures = Figures::default();
    for round in 0..rounds {
        println!("round {} of {rounds}", round + 1);
        for subject in subjects.iter().filter(|_| takes("start-up")) {
            start_up(subject, &mut figures)?;
        }
        for subject in subjects.iter().filter(|_| takes("catalog")) {
            catalog_and_dns(subject, seconds, &mut figures)?;
        }
        for subject in subjects.iter().filter(|_| takes("kv")) {
            key_values(subject, seconds, &mut figures)?;
        }
        for subject in subjects.iter().filter(|_| takes("watch")) {
            watch(subject, &mut figures)?;
        }
    }
    let report = figures.report(&subjects);
    print!("{report}");
    if let Some(path) = json {
        fs::write(&path, serde_json::to_string_pretty(&figures.medians())?)?;
    }
    Ok(())
}

/// figure -> subject -> one value a round.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, BTreeMap<&'static str, Vec<f64>>>);

impl Figures {
    fn add(&mut self, figure: &'static str, subject: &Subject, value: f64) {
        self.0
            .entry(figure)
            .or_default()
            .entry(subject.name)
            .or_default()
            .push(value);
    }
    fn medians(&self) -> BTreeMap<&'static str, BTreeMap<&'static str, f64>> {
        let of =
            |values: &BTreeMap<&'static str, Vec<f64>>| values.iter().map(|(name, v)| (*name, spread(v).1)).collect();
        self.0.iter().map(|(figure, values)| (*figure, of(values))).collect()
    }
    fn report(&self, subjects: &[Subject]) -> String {
        let mut text = format!("\n{:<34}", "median [min .. max]");
        for subject in subjects {
            let _ = write!(text, "{:<36}", subject.name);
        }
        text.push_str("ratio of medians\n");
        for (figure, values) in &self.0 {
            let _ = write!(text, "{figure:<34}");
            for subject in subjects {
                let cell = values.get(subject.name).map(|values| {
                    let (min, median, max) = spread(values);
                    format!("{median:.1} [{min:.1} .. {max:.1}]")
                });
                let _ = write!(text, "{:<36}", cell.unwrap_or_else(|| "-".to_owned()));
            }
            if let (Some(ours), Some(theirs)) = (values.get("quorate"), values.get("consul")) {
                let _ = write!(text, "{:.2}", spread(ours).1 / spread(theirs).1);
            }
            text.push('\n');
        }
        text
    }
}

/// Minimum, median, maximum.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let median = if sorted.len().is_multiple_of(2) {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    } else {
        sorted[middle]
    };
    (sorted[0], median, sorted[sorted.len() - 1])
}

/// A running agent; killed when dropped.
struct Agent {
    child: Child,
    http: u16,
    dns: u16,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Agent {
    /// Seconds of CPU time and bytes of resident memory, from `/proc`.
    fn usage(&self) -> Result<(f64, f64)> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .context("stat of a process")?
            .1
            .split_whitespace()
            .collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        let pages: f64 = fields[21].parse()?;
        // Linux reports both in units fixed since 2.6: 100 ticks a second, pages of 4 KiB on the machines we measure on.
        Ok((ticks / 100.0, pages * 4096.0))
    }
}

/// Ports nobody uses now. Bound together, so that they differ.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners: Vec<TcpListener> = (0..N)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn dev_agent(subject: &Subject) -> Result<Agent> {
    let [http, dns, server, lan, wan] = free_ports()?;
    let child = Command::new(&subject.binary)
        .args(["agent", "-dev", "-log-level=warn"])
        .args(subject.extra)
        .args([
            format!("-http-port={http}"),
            format!("-dns-port={dns}"),
            format!("-server-port={server}"),
            format!("-serf-lan-port={lan}"),
            format!("-serf-wan-port={wan}"),
        ])
        .arg("-hcl=limits { http_max_conns_per_client = 15000 }")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {}", subject.binary.display()))?;
    Ok(Agent { child, http, dns })
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !done() {
        ensure!(started.elapsed() < Duration::from_secs(60), "waited a minute: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until a figure has moved by no more than `slack` for `period`.
fn wait_until_still(what: &str, period: Duration, slack: f64, figure: impl Fn() -> Result<f64>) -> Result<()> {
    let mut still = (Instant::now(), figure()?);
    let mut failure = None;
    wait_until(what, || match figure() {
        Ok(now) if (now - still.1).abs() > slack => {
            still = (Instant::now(), now);
            false
        }
        Ok(_) => still.0.elapsed() >= period,
        Err(err) => {
            failure = Some(err);
            true
        }
    })?;
    failure.map_or(Ok(()), Err)
}

fn lists_itself(http: u16) -> bool {
    let answer = Connection::open(http).and_then(|mut connection| connection.get("/v1/health/service/consul?passing"));
    answer.is_ok_and(|body| body.windows(6).any(|window| window == b"\"Node\""))
}

fn start_up(subject: &Subject, figures: &mut Figures) -> Result<()> {
    let started = Instant::now();
    let agent = dev_agent(subject)?;
    wait_until("the agent lists itself", || lists_itself(agent.http))?;
    figures.add("start-up, ms", subject, started.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

fn catalog_and_dns(subject: &Subject, seconds: u64, figures: &mut Figures) -> Result<()> {
    let agent = dev_agent(subject)?;
    wait_until("the agent lists itself", || lists_itself(agent.http))?;
    let started = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    load(&[agent.http], CONNECTIONS, None, |connection, _| {
        let n = next.fetch_add(1, Ordering::Relaxed) as usize;
        if n >= SERVICES * INSTANCES {
            return Ok(false);
        }
        let (service, instance) = (n / INSTANCES, n % INSTANCES);
        let node = n % NODES;
        let body = format!(
            r#"{{"Node":"node-{node}","Address":"10.0.{}.{}","Service":{{"Service":"svc-{service}","ID":"svc-{service}-{instance}","Port":{},"Tags":["v1"]}},"Check":{{"CheckID":"svc-{service}-{instance}","Name":"check","Status":"passing","ServiceID":"svc-{service}-{instance}"}}}}"#,
            node / 250,
            node % 250 + 1,
            8000 + instance,
        );
        connection.put("/v1/catalog/register", body.as_bytes())?;
        Ok(true)
    })?;
    figures.add(
        "catalog register, 1/s",
        subject,
        (SERVICES * INSTANCES) as f64 / started.elapsed().as_secs_f64(),
    );
    figures.add("rss with 10,000 instances, MB", subject, agent.usage()?.1 / 1e6);
    let path = |n: u64| format!("/v1/health/service/svc-{}?passing", n % SERVICES as u64);
    let rate = load(&[agent.http], CONNECTIONS, Some(seconds), |connection, n| {
        connection.get(&path(n)).map(|_| true)
    })?;
    figures.add("health/service of 10, 1/s", subject, rate);
    if Command::new("dnsperf")
        .arg("-h")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        println!("dnsperf is absent (Debian package dnsperf): DNS skipped");
        return Ok(());
    }
    for (qtype, per_second, per_cpu) in [
        ("A", "dns A, replies/s", "dns A, replies/cpu-s"),
        ("SRV", "dns SRV, replies/s", "dns SRV, replies/cpu-s"),
    ] {
        let questions = temporary_file(&format!("questions-{}", agent.dns));
        let lines: String = (0..SERVICES)
            .map(|n| format!("svc-{n}.service.consul {qtype}\n"))
            .collect();
        fs::write(&questions, lines)?;
        let before = agent.usage()?.0;
        let output = Command::new("dnsperf")
            .args(["-s", "127.0.0.1", "-c", "32", "-q", "500", "-T", "1", "-p"])
            .arg(agent.dns.to_string())
            .arg("-d")
            .arg(&questions)
            .args(["-l", &seconds.to_string()])
            .output()?;
        let cpu = agent.usage()?.0 - before;
        fs::remove_file(&questions)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let field = |name: &str| -> Option<f64> {
            text.lines()
                .find_map(|line| line.trim().strip_prefix(name))?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        };
        let rate = field("Queries per second:").with_context(|| format!("dnsperf printed no rate:\n{text}"))?;
        let completed = field("Queries completed:").context("dnsperf printed no count")?;
        figures.add(per_second, subject, rate);
        if cpu > 0.0 {
            figures.add(per_cpu, subject, completed / cpu);
        }
    }
    Ok(())
}

fn temporary_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("quorate-bench-{}-{name}", std::process::id()))
}

/// A folder that goes with its value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn three_servers(subject: &Subject, folder: &Path) -> Result<Vec<Agent>> {
    let ports: [u16; 15] = free_ports()?;
    let mut agents = Vec::new();
    for (n, own) in ports.chunks_exact(5).enumerate() {
        let data_dir = folder.join(format!("data-{n}"));
        fs::create_dir_all(&data_dir)?;
        let config = folder.join(format!("{n}.json"));
        let text = serde_json::json!({
            "server": true, "bootstrap_expect": 3, "node_name": format!("s{n}"), "data_dir": data_dir,
            "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "log_level": "warn", "disable_update_check": true,
            "performance": {"raft_multiplier": 1}, "limits": {"http_max_conns_per_client": 15000},
            "retry_join": [format!("127.0.0.1:{}", ports[3])], "retry_interval": "1s",
            "ports": {"http": own[0], "dns": own[1], "server": own[2], "serf_lan": own[3], "serf_wan": own[4], "grpc": -1}
        });
        fs::write(&config, text.to_string())?;
        let child = Command::new(&subject.binary)
            .arg("agent")
            .arg("-config-file")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", subject.binary.display()))?;
        agents.push(Agent {
            child,
            http: own[0],
            dns: own[1],
        });
    }
    wait_until("three servers elect a leader", || {
        agents.iter().all(|agent| {
            let open = || -> Result<bool> {
                let mut connection = Connection::open(agent.http)?;
                let peers = connection.get("/v1/status/peers")?;
                let wrote = connection.put("/v1/kv/ready", b"1")? == b"true";
                Ok(wrote && peers.iter().filter(|byte| **byte == b':').count() == 3)
            };
            open().unwrap_or(false)
        })
    })?;
    Ok(agents)
}

fn key_values(subject: &Subject, seconds: u64, figures: &mut Figures) -> Result<()> {
    let folder = Folder(temporary_file(&format!("{}-cluster", subject.name)));
    fs::create_dir_all(&folder.0)?;
    let agents = three_servers(subject, &folder.0)?;
    let ports: Vec<u16> = agents.iter().map(|agent| agent.http).collect();
    let value = vec![b'x'; VALUE_LEN_BYTES];
    let rate = load(&ports, WRITERS, Some(seconds), |connection, n| {
        // The number goes into the value too: an unchanged value is no write.
        let mut value = value.clone();
        value[..8].copy_from_slice(&n.to_le_bytes());
        connection
            .put(&format!("/v1/kv/bench/{}", n % 10_000), &value)
            .map(|_| true)
    })?;
    figures.add("kv put, 1/s", subject, rate);
    for (figure, suffix) in [("kv get default, 1/s", ""), ("kv get stale, 1/s", "?stale")] {
        let rate = load(&ports, CONNECTIONS, Some(seconds), |connection, n| {
            connection
                .get(&format!("/v1/kv/bench/{}{suffix}", n % 1_000))
                .map(|_| true)
        })?;
        figures.add(figure, subject, rate);
    }
    drop(agents);
    Ok(())
}

/// Registers the ten instances that are watched; the port tells one change from the next.
fn register_watched(connection: &mut Connection, instances: std::ops::Range<usize>, port: u16) -> Result<()> {
    for n in instances {
        let body = serde_json::json!({
            "Node": format!("node-{n}"), "Address": format!("10.0.0.{}", n + 1),
            "Service": {"Service": "watched", "ID": format!("watched-{n}"), "Port": port, "Tags": ["v1"]},
            "Check": {"CheckID": "c", "Name": "check", "Status": "passing", "ServiceID": format!("watched-{n}")},
        });
        connection.put("/v1/catalog/register", body.to_string().as_bytes())?;
    }
    Ok(())
}

const WATCHED: &str = "/v1/health/service/watched?passing";

/// Servers that use no more than this much of a processor for this long have nothing left to take.
const SERVERS_REST: Duration = Duration::from_millis(200);
const BUSY_CPU_SECONDS: f64 = 0.02;
/// Memory that moves by no more than this for this long is what the waiting reads cost.
const MEMORY_RESTS: Duration = Duration::from_secs(1);
const MEMORY_SLACK_BYTES: f64 = 1e6;

/// A change until all watchers have it, and what a waiting read costs.
fn watch(subject: &Subject, figures: &mut Figures) -> Result<()> {
    let folder = Folder(temporary_file(&format!("{}-watch", subject.name)));
    fs::create_dir_all(&folder.0)?;
    let agents = three_servers(subject, &folder.0)?;
    let mut writer = Connection::open(agents[0].http)?;
    register_watched(&mut writer, 0..INSTANCES, 1)?;
    let cpu = || -> Result<f64> { agents.iter().map(|agent| Ok(agent.usage()?.0)).sum() };
    let mut watchers = Vec::new();
    for n in 0..WATCHERS {
        watchers.push(Connection::open(agents[n % agents.len()].http)?);
    }
    for change in 0..CHANGES {
        for watcher in &mut watchers {
            watcher.get(WATCHED)?;
            let index = watcher.index;
            watcher.ask("GET", &format!("{WATCHED}&index={index}&wait=10m"), b"")?;
        }
        // They are on their way: a change is timed once the servers have taken all of them and rest.
        wait_until_still("the servers rest", SERVERS_REST, BUSY_CPU_SECONDS, cpu)?;
        let changed_at = Instant::now();
        register_watched(&mut writer, 0..1, 1000 + change)?;
        for watcher in &mut watchers {
            let body = watcher.answer()?;
            let wanted = format!("\"Port\":{}", 1000 + change);
            ensure!(
                String::from_utf8_lossy(&body).contains(&wanted),
                "a watcher was woken without the change"
            );
        }
        figures.add(
            "change seen by 1,000, ms",
            subject,
            changed_at.elapsed().as_secs_f64() * 1e3,
        );
    }
    drop(watchers);

    let memory = || -> Result<f64> { agents.iter().map(|agent| Ok(agent.usage()?.1)).sum() };
    let before = memory()?;
    let mut holders = Vec::new();
    for agent in &agents {
        let mut holder = Command::new(std::env::current_exe()?)
            .args(["bench", "--hold", &agent.http.to_string(), &(PARKED / 3).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = holder.stdout.take().context("its output is piped")?;
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line == "held\n", "the reads that wait were not taken");
        holders.push(holder);
    }
    wait_until_still("the memory stays as it is", MEMORY_RESTS, MEMORY_SLACK_BYTES, memory)?;
    let each = (memory()? - before) / (PARKED / 3 * 3) as f64;
    figures.add("rss per waiting read, kB", subject, each / 1e3);
    for mut holder in holders {
        // Its input ends: it goes.
        drop(holder.stdin.take());
        holder.wait()?;
    }
    Ok(())
}

/// Lets `count` reads wait at a server until standard input ends.
fn hold(port: u16, count: usize) -> Result<()> {
    let mut first = Connection::open(port)?;
    first.get(WATCHED)?;
    let path = format!("{WATCHED}&index={}&wait=10m", first.index);
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::with_buffer(port, 64)?;
        connection.ask("GET", &path, b"")?;
        held.push(connection);
    }
    println!("held");
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Keeps `connections` busy for `seconds` (or until `request` says there is nothing left) and returns requests a second.
fn load(
    ports: &[u16],
    connections: usize,
    seconds: Option<u64>,
    request: impl Fn(&mut Connection, u64) -> Result<bool> + Sync,
) -> Result<f64> {
    let (stop, done, number) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let failure: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..connections {
            let port = ports[n % ports.len()];
            let (stop, done, number, failure, request) = (&stop, &done, &number, &failure, &request);
            scope.spawn(move || {
                let work = || -> Result<()> {
                    let mut connection = Connection::open(port)?;
                    while !stop.load(Ordering::Relaxed) {
                        if !request(&mut connection, number.fetch_add(1, Ordering::Relaxed))? {
                            break;
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                };
                if let Err(err) = work() {
                    stop.store(true, Ordering::Relaxed);
                    failure.lock().expect("no panic under the lock").get_or_insert(err);
                }
            });
        }
        if let Some(seconds) = seconds {
            let until = started + Duration::from_secs(seconds);
            while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(10));
            }
            stop.store(true, Ordering::Relaxed);
        }
    });
    let elapsed = started.elapsed().as_secs_f64();
    match failure.into_inner().expect("no panic under the lock") {
        Some(err) => Err(err.context("a request of the load failed")),
        None => Ok(done.into_inner() as f64 / elapsed),
    }
}

/// One HTTP/1.1 keep-alive connection.
struct Connection {
    reader: BufReader<TcpStream>,
    port: u16,
    /// `X-Consul-Index` of the last answer.
    index: u64,
}

impl Connection {
    fn open(port: u16) -> Result<Self> {
        Self::with_buffer(port, 8 * 1024)
    }
    fn with_buffer(port: u16, buffer_len_bytes: usize) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self {
            reader: BufReader::with_capacity(buffer_len_bytes, stream),
            port,
            index: 0,
        })
    }
    fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        self.exchange("GET", path, b"")
    }
    fn put(&mut self, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.exchange("PUT", path, body)
    }
    fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        self.ask(method, path, body)?;
        self.answer().with_context(|| format!("{method} {path}"))
    }
    fn ask(&mut self, method: &str, path: &str, body: &[u8]) -> Result<()> {
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.reader.get_mut().write_all(&request)?;
        Ok(())
    }
    fn answer(&mut self) -> Result<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let status: u16 = line.split_whitespace().nth(1).context("no status line")?.parse()?;
        let (mut length, mut chunked) = (0_usize, false);
        loop {
            line.clear();
            ensure!(
                self.reader.read_line(&mut line)? > 0,
                "the connection closed within the headers"
            );
            let header = line.trim_end().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if let Some(value) = header.strip_prefix("x-consul-index:") {
                self.index = value.trim().parse()?;
            }
            chunked |= header.starts_with("transfer-encoding:") && header.contains("chunked");
        }
        let mut answer = vec![0; length];
        if chunked {
            loop {
                line.clear();
                self.reader.read_line(&mut line)?;
                let chunk = usize::from_str_radix(line.trim(), 16)?;
                let start = answer.len();
                answer.resize(start + chunk, 0);
                self.reader.read_exact(&mut answer[start..])?;
                line.clear();
                self.reader.read_line(&mut line)?;
                if chunk == 0 {
                    break;
                }
            }
        } else {
            self.reader.read_exact(&mut answer)?;
        }
        ensure!(status == 200, "status {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one_or_the_mean_of_the_two() {
        assert_eq!(spread(&[3.0, 1.0, 2.0]), (1.0, 2.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), (1.0, 2.5, 4.0));
    }
}

//! `agent`: runs a node until it is told to stop.

use crate::logging::{self, Logs};
use quorate_agent::config::{Config, FlagError, parse_agent_flags};
use quorate_agent::{API_VERSION, Agent, Hooks, StartError};
use quorate_rt::production::{self, TokioRt};
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "\
Usage: quorate agent [options]

  Starts an agent and runs until an interrupt is received. Flags are Consul's; the most used:

  -dev                      one server in memory on 127.0.0.1, for trying things out
  -config-file, -config-dir where definitions and settings are (JSON or HCL; may be repeated)
  -data-dir                 where the agent keeps its state
  -server, -bootstrap-expect=<n>
                            run as one of n servers
  -retry-join=<address>     a member to join, tried until it answers (may be repeated)
  -bind, -client, -node, -datacenter, -log-level, -http-port, -dns-port, -server-port, -serf-lan-port
";

/// Threads of the agent's runtime: one a processor.
const AGENT_THREADS: usize = 0;

pub fn run(arguments: &[String]) -> ExitCode {
    let flags = match parse_agent_flags(arguments) {
        Ok(flags) => flags,
        Err(FlagError::Help) => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(err @ FlagError::ExtraArguments(_)) => {
            eprintln!("==> {err}");
            return ExitCode::FAILURE;
        }
        Err(err) => {
            eprintln!("{err}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let logs = logging::install();
    let ended = production::block_on(AGENT_THREADS, async |rt| run_agent(rt, flags, logs).await);
    ended.unwrap_or_else(|err| {
        eprintln!("==> the runtime did not start: {err}");
        ExitCode::FAILURE
    })
}

async fn run_agent(rt: TokioRt, flags: quorate_agent::config::Flags, logs: Logs) -> ExitCode {
    let hooks = Hooks {
        set_log_level: Arc::new({
            let logs = logs.clone();
            move |level| logs.set_level(level)
        }),
    };
    logs.set_json(flags_ask_for_json(&flags));
    println!("==> Starting Quorate agent...");
    let agent = match Agent::start(rt, flags, hooks).await {
        Ok(agent) => agent,
        // Consul says what is wrong with the configuration before its log begins, and what is wrong later within it.
        Err(StartError::Config(err)) => {
            eprintln!("==> {err}");
            return ExitCode::FAILURE;
        }
        Err(err) => {
            tracing::error!(target: "quorate_agent", error = %err, "Error starting agent");
            eprintln!("==> Error starting agent: {err}");
            return ExitCode::FAILURE;
        }
    };
    let config = agent.config();
    logs.set_json(config.logging.json);
    print!("{}", banner(&agent, &config));
    // A closed output is no reason to stop serving.
    let _ = std::io::stdout().flush();
    ExitCode::from(agent.run().await.exit_code())
}

fn flags_ask_for_json(flags: &quorate_agent::config::Flags) -> bool {
    flags.overrides.get("log_json").is_some()
}

/// The start banner, in Consul's layout: tools wait for its last line.
fn banner(agent: &Agent<TokioRt>, config: &Config) -> String {
    let port = |address: Option<u16>| address.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let member = agent.local_member();
    let http = agent.http_addresses().first().map(std::net::SocketAddr::port);
    let dns = agent.dns_addresses().first().map(std::net::SocketAddr::port);
    let clients: Vec<String> = config.client_addrs.iter().map(ToString::to_string).collect();
    let segment = if config.server { "<all>" } else { "" };
    let server = member
        .tags
        .get("port")
        .map_or_else(String::new, |port| format!(", RPC: {port}"));
    format!(
        "           Version: '{}' (Consul API {API_VERSION})
           Node ID: '{}'
         Node name: '{}'
        Datacenter: '{}' (Segment: '{segment}')
            Server: {} (Bootstrap: {})
       Client Addr: [{}] (HTTP: {}, HTTPS: -1, gRPC: -1, DNS: {})
      Cluster Addr: {} (LAN: {}, WAN: -1{server})
           Encrypt: Gossip: false, TLS-Outgoing: false, TLS-Incoming: false

==> Log data will now stream in as it occurs:

==> Consul agent running!
",
        env!("CARGO_PKG_VERSION"),
        agent.node_id(),
        config.node_name,
        config.datacenter,
        config.server,
        config.bootstrap,
        clients.join(" "),
        port(http),
        port(dns),
        member.address.ip(),
        member.address.port(),
    )
}

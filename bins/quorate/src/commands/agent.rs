//! `agent`: runs a node until it is told to stop.

use crate::logging::{self, Logs};
use quorate_agent::config::{Config, FlagError, parse_agent_flags};
use quorate_agent::{API_VERSION, Agent, Hooks, StartError};
use quorate_rt::production::{self, TokioRt};
use quorate_types::NodeId;
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
        starting: Arc::new({
            let logs = logs.clone();
            move |config, node_id, is_encrypted| {
                logs.set_json(config.logging.json);
                print_whole(&banner(config, node_id, is_encrypted));
            }
        }),
    };
    // What is logged before the files are read.
    logs.set_json(flags.log_json());
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
    print_whole("==> Consul agent running!\n");
    ExitCode::from(agent.run().await.exit_code())
}

/// In one write under the lock of the output, which the log writes its lines under too: no line gets inside.
fn print_whole(text: &str) {
    let mut output = std::io::stdout().lock();
    // A closed output is no reason to stop serving.
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

/// The start banner, in Consul's layout.
fn banner(config: &Config, node_id: NodeId, is_encrypted: bool) -> String {
    let port = |port: Option<u16>| port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let clients: Vec<String> = config.client_addrs.iter().map(ToString::to_string).collect();
    // Servers alone are in the WAN pool.
    let (segment, server, wan) = if config.server {
        (
            "<all>",
            format!(", RPC: {}", config.ports.server),
            config.ports.serf_wan,
        )
    } else {
        ("", String::new(), None)
    };
    format!(
        "==> Starting Quorate agent...
           Version: '{}' (Consul API {API_VERSION})
           Node ID: '{node_id}'
         Node name: '{}'
        Datacenter: '{}' (Segment: '{segment}')
            Server: {} (Bootstrap: {})
       Client Addr: [{}] (HTTP: {}, HTTPS: -1, gRPC: -1, DNS: {})
      Cluster Addr: {} (LAN: {}, WAN: {}{server})
           Encrypt: Gossip: {is_encrypted}, TLS-Outgoing: false, TLS-Incoming: false

==> Log data will now stream in as it occurs:

",
        env!("CARGO_PKG_VERSION"),
        config.node_name,
        config.datacenter,
        config.server,
        config.bootstrap,
        clients.join(" "),
        port(config.ports.http),
        port(config.ports.dns),
        config.advertise_addr,
        config.ports.serf_lan,
        port(wan),
    )
}

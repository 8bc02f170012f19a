use super::*;
use std::net::IpAddr;
use std::time::Duration;

fn facts() -> HostFacts {
    HostFacts {
        host_name: "host-1".to_owned(),
        interfaces: vec![
            InterfaceAddress {
                interface: "lo".to_owned(),
                address: IpAddr::from([127, 0, 0, 1]),
            },
            InterfaceAddress {
                interface: "eth0".to_owned(),
                address: IpAddr::from([10, 0, 0, 7]),
            },
        ],
    }
}

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile {
        path: path.to_owned(),
        text: text.to_owned(),
        format: Format::of(path).expect("a known extension"),
    }
}

fn flags(line: &str) -> Flags {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    parse_agent_flags(&args).expect("good flags")
}

fn build_json(text: &str) -> Result<Config, ConfigError> {
    from_sources(&[file("f.json", text)], &Flags::default(), &facts())
}

/// The transcript of `validate` runs of Consul 1.8.7: `--- name: text`, its output, `[exit n]`.
const TRANSCRIPT: &str = include_str!("../../tests/fixtures/config-validate.txt");

#[test]
fn consuls_own_validate_runs_give_the_same_words() {
    // Where this agent differs on purpose, with the reason.
    let differs = [
        ("a3.json", "the script string is accepted"),
        ("a9.json", "an id defined twice warns"),
        ("c5.json", "the other flat ACL keys warn too"),
        ("c6.json", "a bad policy is refused early"),
        ("c7.json", "a bad policy is refused early"),
        ("c8.json", "watches have no effect, which is told"),
        ("c9.json", "watches have no effect, which is told"),
        ("d3.hcl", "several service blocks are accepted"),
        ("d4.hcl", "a missing value is an error"),
        ("d6.txt", "a file of unknown format is skipped by the loader"),
        ("d8.json", "a bad level is refused early"),
        ("e4.json", "ui_config came after 1.8"),
        ("e8.json", "the HTTP API's names are accepted in definitions"),
        ("e9.json", "the HTTP API's names are accepted in definitions"),
        ("f1.json", "the transcript cuts the file off"),
        ("f2.json", "tls came after 1.8"),
        ("f3.json", "a bad recursor warns"),
        ("f5.json", "the transcript cuts the file off"),
    ];
    let mut compared = 0;
    for case in TRANSCRIPT.split("--- ").skip(1) {
        let (head, output) = case.split_once('\n').expect("a head and an output");
        let (name, text) = head.split_once(": ").unwrap_or((head.trim_end_matches(':'), ""));
        if differs.iter().any(|(other, _)| *other == name) {
            continue;
        }
        let (output, exit) = output.rsplit_once("[exit ").expect("an exit code");
        let built = from_sources(&[file(name, text)], &Flags::default(), &facts());
        let got = match &built {
            // Consul does not say in which file a key is.
            Err(error) => format!("Config validation failed: {error}").replace(&format!(" (from {name})"), ""),
            Ok(config) => {
                let mut lines = config.warnings.clone();
                lines.push("Configuration is valid!".to_owned());
                lines.join("\n")
            }
        };
        let squeeze = |text: &str| {
            let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            // The order in which Consul prints the warnings of one run has no meaning.
            let mut lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(squeeze(&got), squeeze(output), "{name}: {text}");
        assert_eq!(built.is_ok(), exit.starts_with('0'), "{name}");
        compared += 1;
    }
    assert!(compared >= 35, "only {compared} cases were compared");
}

#[test]
fn an_empty_configuration_with_a_data_directory_has_consuls_defaults() {
    let config = build_json(r#"{"data_dir":"/d"}"#).unwrap();
    assert_eq!(config.node_name, "host-1");
    assert_eq!(config.datacenter, "dc1");
    assert_eq!(config.data_dir.as_deref(), Some(std::path::Path::new("/d")));
    assert!(!config.server && !config.bootstrap);
    assert!(config.leave_on_terminate && !config.skip_leave_on_interrupt);
    assert_eq!(config.advertise_addr, IpAddr::from([10, 0, 0, 7]));
    assert_eq!(config.serf_lan_bind, "0.0.0.0:8301".parse().unwrap());
    assert_eq!(
        config.http_addrs,
        [ListenAddress::Tcp("127.0.0.1:8500".parse().unwrap())]
    );
    assert_eq!(config.dns_addrs, ["127.0.0.1:8600".parse().unwrap()]);
    assert_eq!(config.https_addrs, []);
    assert_eq!(config.gossip_lan.probe_interval, Duration::from_secs(1));
    assert_eq!(config.performance.raft_multiplier, 5);
    assert_eq!(config.dns.domain, "consul.");
    assert_eq!(config.check_update_interval, Duration::from_secs(300));
    assert_eq!(config.acl.default_policy, AclPolicy::Allow);
    assert_eq!(config.tagged_addresses["lan_ipv4"], "10.0.0.7");
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn dev_mode_is_one_server_in_memory_on_the_loopback() {
    let config = from_sources(&[], &flags("-dev -bind= -client="), &facts()).unwrap();
    assert!(config.dev_mode && config.server && config.bootstrap && config.http.pretty && config.ui.enabled);
    assert_eq!(config.data_dir, None);
    assert_eq!(config.bind_addr, IpAddr::from([127, 0, 0, 1]));
    assert_eq!(config.advertise_addr, IpAddr::from([127, 0, 0, 1]));
    assert_eq!(config.logging.level, LogLevel::Debug);
    assert_eq!(config.gossip_lan.probe_interval, Duration::from_millis(100));
    assert_eq!(config.performance.raft_multiplier, 1);
    assert!(config.scripts.from_files && !config.scripts.from_remote);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn later_sources_win_and_flags_win_over_all() {
    let sources = [
        file(
            "a.json",
            r#"{"data_dir":"/a","node_name":"a","retry_join":["j1"],"node_meta":{"x":"1","y":"1"},"service":{"name":"s1"},"ports":{"http":1,"dns":2}}"#,
        ),
        file(
            "b.hcl",
            "node_name = \"b\"\nretry_join = [\"j2:1\"]\nnode_meta { y = \"2\" }\nservice { name = \"s2\" }\nports { http = 3 }",
        ),
    ];
    let mut flags = flags("-node c -retry-join j3 -http-port=4");
    flags.fragments = vec!["server = true".to_owned(), r#"{"log_level":"warn"}"#.to_owned()];
    let config = from_sources(&sources, &flags, &facts()).unwrap();
    assert_eq!(config.node_name, "c");
    let join: Vec<String> = config.join.retry_join.iter().map(ToString::to_string).collect();
    assert_eq!(join, ["j1:8301", "j2:1", "j3:8301"]);
    assert_eq!(config.node_meta["x"], "1");
    assert_eq!(config.node_meta["y"], "2");
    assert_eq!((config.ports.http, config.ports.dns), (Some(4), Some(2)));
    let names: Vec<&str> = config.services.iter().map(|s| s.service.name.as_str()).collect();
    assert_eq!(names, ["s1", "s2"]);
    assert!(config.server);
    assert_eq!(config.logging.level, LogLevel::Warn);
}

#[test]
fn what_other_projects_test_servers_write_loads() {
    let config = build_json(
        r#"{"data_dir":"/d","node_id":"b1860f4a-837b-c44e-07af-081fdf153009","performance":{"raft_multiplier":1},"segments":null,
            "ports":{"https":8501,"grpc":-1,"serf_wan":-1},"addresses":{"http":"127.0.0.1 unix:///tmp/x.sock"},"acl":{"tokens":{"master":"m"}},
            "connect":{"enabled":true,"ca_config":{"a":{}}},"cert_file":"a/b.pem"}"#,
    )
    .unwrap();
    assert!(config.node_id.is_some());
    assert_eq!(config.serf_wan_bind, None);
    assert_eq!(config.http_addrs.len(), 2);
    assert_eq!(config.acl.tokens.initial_management, "m");
    assert_eq!(
        config
            .warnings
            .iter()
            .filter(|warning| warning.contains("'connect'"))
            .count(),
        1
    );
}

#[test]
fn rules_between_keys_are_kept() {
    for (text, want) in [
        (
            r#"{"data_dir":"d","ports":{"http":8600}}"#,
            "HTTP address 127.0.0.1:8600 already configured for DNS",
        ),
        (
            r#"{"data_dir":"d","ports":{"serf_lan":-1}}"#,
            "ports.serf_lan must be a valid port from 1 to 65535 (from f.json)",
        ),
        (
            r#"{"data_dir":"d","bootstrap":true}"#,
            "'bootstrap = true' requires 'server = true' (from f.json)",
        ),
        (
            r#"{"data_dir":"d","reconnect_timeout":"1h"}"#,
            "reconnect_timeout must be >= 8h0m0s (from f.json)",
        ),
        (
            r#"{"data_dir":"d","encrypt":"MTIz"}"#,
            "encrypt has invalid key: key size must be 16, 24 or 32 bytes (from f.json)",
        ),
        (
            r#"{"data_dir":"d","log_level":"loud"}"#,
            "Invalid log level: loud. Valid log levels are: [TRACE DEBUG INFO WARN ERR]",
        ),
        (
            r#"{"data_dir":"d","check":{"name":"c","ttl":"10"}}"#,
            "1 error occurred:\n\t* check[c].ttl: invalid duration: \"10\": time: missing unit in duration \"10\" (from f.json)\n\n",
        ),
        (
            r#"{"data_dir":"d","http_config":{"allow_write_http_from":["1.2.3.4/40"]}}"#,
            "1 error occurred:\n\t* http_config.allow_write_http_from: invalid cidr: 1.2.3.4/40 (from f.json)\n\n",
        ),
        (
            r#"{"data_dir":"d","node_id":"abc"}"#,
            "1 error occurred:\n\t* node_id: uuid string is wrong length: \"abc\" (from f.json)\n\n",
        ),
    ] {
        assert_eq!(build_json(text).unwrap_err().to_string(), want, "{text}");
    }
    let config = build_json(r#"{"data_dir":"d","server":true,"bootstrap_expect":4}"#).unwrap();
    assert!(config.warnings[0].starts_with("bootstrap_expect is even number"));
}

#[test]
fn every_key_of_gossip_and_addresses_reaches_its_field() {
    let config = build_json(
        r#"{"data_dir":"d","bind_addr":"10.0.0.7","serf_lan":"10.0.0.8","serf_wan":"10.0.0.9",
            "ports":{"serf_lan":9301,"serf_wan":9302},
            "advertise_addr":"10.1.0.1","advertise_addr_ipv4":"10.1.0.2","advertise_addr_ipv6":"2001:db8::2",
            "advertise_addr_wan":"10.2.0.1","advertise_addr_wan_ipv4":"10.2.0.2","advertise_addr_wan_ipv6":"2001:db8::3",
            "serf_lan_allowed_cidrs":["10.0.0.0/8"],"serf_wan_allowed_cidrs":["2001:db8::/32"],
            "reconnect_timeout":"9h","reconnect_timeout_wan":"10h",
            "encrypt":"AAAAAAAAAAAAAAAAAAAAAA==","encrypt_verify_incoming":false,"encrypt_verify_outgoing":false,
            "disable_keyring_file":true,
            "gossip_lan":{"gossip_nodes":5,"gossip_interval":"1ms","probe_interval":"2ms","probe_timeout":"3ms",
                          "retransmit_mult":6,"suspicion_mult":7},
            "gossip_wan":{"gossip_nodes":8,"gossip_interval":"4ms","probe_interval":"5ms","probe_timeout":"6ms",
                          "retransmit_mult":9,"suspicion_mult":10}}"#,
    )
    .unwrap();
    let ms = Duration::from_millis;
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let lan = Gossip {
        gossip_nodes: 5,
        gossip_interval: ms(1),
        probe_interval: ms(2),
        probe_timeout: ms(3),
        retransmit_mult: 6,
        suspicion_mult: 7,
        reconnect_timeout: hours(9),
        allowed_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
    };
    let wan = Gossip {
        gossip_nodes: 8,
        gossip_interval: ms(4),
        probe_interval: ms(5),
        probe_timeout: ms(6),
        retransmit_mult: 9,
        suspicion_mult: 10,
        reconnect_timeout: hours(10),
        allowed_cidrs: vec!["2001:db8::/32".parse().unwrap()],
    };
    assert_eq!((config.gossip_lan, config.gossip_wan), (lan, wan));
    assert_eq!(config.serf_lan_bind, "10.0.0.8:9301".parse().unwrap());
    assert_eq!(config.serf_wan_bind, Some("10.0.0.9:9302".parse().unwrap()));
    assert_eq!(config.advertise_addr, IpAddr::from([10, 1, 0, 1]));
    assert_eq!(config.advertise_addr_wan, IpAddr::from([10, 2, 0, 1]));
    let tagged = [
        ("lan", "10.1.0.1"),
        ("lan_ipv4", "10.1.0.2"),
        ("lan_ipv6", "2001:db8::2"),
        ("wan", "10.2.0.1"),
        ("wan_ipv4", "10.2.0.2"),
        ("wan_ipv6", "2001:db8::3"),
    ];
    for (tag, address) in tagged {
        assert_eq!(config.tagged_addresses[tag], address, "{tag}");
    }
    assert!(config.encrypt.is_some());
    assert!(!config.encrypt_verify_incoming && !config.encrypt_verify_outgoing && config.disable_keyring_file);
    assert_eq!(config.warnings, Vec::<String>::new());
}

#[test]
fn a_definition_that_cannot_be_registered_is_kept_aside() {
    let config =
        build_json(r#"{"data_dir":"d","services":[{"name":"ok"},{"name":"w","check":{"interval":"10s"}}]}"#).unwrap();
    assert_eq!(config.services.len(), 1);
    assert!(config.refused_definitions[0].starts_with("Failed to register service \"w\": f.json: "));
}

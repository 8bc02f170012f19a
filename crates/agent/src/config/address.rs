//! Addresses: go-sockaddr templates, listen addresses, and which address to advertise.
//!
//! Pure: the machine's interface addresses come in as an argument.
//! Not here: sockets, host name resolution.

use quorate_rt::InterfaceAddress;
use regex::Regex;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    /// `unix:///path`.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// A host, name or IP, and a port: what to join or to ask.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

impl HostPort {
    /// Reads `host`, `host:port`, `1::2` or `[1::2]:port`.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        let bad = || format!("invalid address {text:?}: it is neither a host nor host:port");
        if text.is_empty() || text.chars().any(char::is_whitespace) {
            return Err(bad());
        }
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Ok(Self {
                host: text.to_owned(),
                port: default_port,
            });
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(bad)?;
                let port = match port {
                    "" => None,
                    port => Some(port.strip_prefix(':').ok_or_else(bad)?),
                };
                (host, port)
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let port = match port {
            None => default_port,
            Some(port) => port.parse().map_err(|_| bad())?,
        };
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Replaces every `{{ ... }}` of an address by what it stands for on this machine.
pub fn expand(text: &str, interfaces: &[InterfaceAddress]) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (template, after) = after
            .split_once("}}")
            .ok_or_else(|| format!("unable to parse address template {text:?}: '}}}}' is missing"))?;
        out.push_str(before);
        out.push_str(
            &evaluate(template, interfaces)
                .map_err(|why| format!("unable to parse address template {:?}: {why}", template.trim()))?,
        );
        rest = after;
    }
    out.push_str(rest);
    Ok(out.trim().to_owned())
}

fn evaluate(template: &str, interfaces: &[InterfaceAddress]) -> Result<String, String> {
    let mut steps = Vec::new();
    for step in split_outside_quotes(template, '|') {
        let words: Vec<String> = split_outside_quotes(step.trim(), ' ')
            .iter()
            .filter(|word| !word.is_empty())
            .map(|word| word.trim_matches('"').to_owned())
            .collect();
        steps.push(words);
    }
    let words = |step: &Vec<String>| step.iter().map(String::as_str).map(str::to_owned).collect::<Vec<_>>();
    let first = words(&steps[0]);
    let first: Vec<&str> = first.iter().map(String::as_str).collect();
    let one = |found: Option<IpAddr>| Ok(found.map(|ip| ip.to_string()).unwrap_or_default());
    match (first.as_slice(), steps.len()) {
        (["GetPrivateIP"], 1) => one(ips(interfaces).find(|ip| is_private(*ip))),
        (["GetPublicIP"], 1) => one(ips(interfaces).find(|ip| is_public(*ip))),
        (["GetInterfaceIP", name], 1) => {
            let mut found: Vec<IpAddr> = interfaces
                .iter()
                .filter(|entry| entry.interface == *name)
                .map(|entry| entry.address)
                .collect();
            // The IPv4 address first, as go-sockaddr sorts them.
            found.sort_by_key(IpAddr::is_ipv6);
            one(found.first().copied())
        }
        (["GetAllInterfaces"], _) => pipeline(&steps[1..], interfaces),
        _ => Err("only GetPrivateIP, GetPublicIP, GetInterfaceIP and GetAllInterfaces are known".to_owned()),
    }
}

fn pipeline(steps: &[Vec<String>], interfaces: &[InterfaceAddress]) -> Result<String, String> {
    let mut left: Vec<&InterfaceAddress> = interfaces.iter().collect();
    for (position, step) in steps.iter().enumerate() {
        let step: Vec<&str> = step.iter().map(String::as_str).collect();
        match step.as_slice() {
            [verb @ ("include" | "exclude"), selector, argument] => {
                let keep = *verb == "include";
                match *selector {
                    "name" => {
                        let pattern = Regex::new(argument).map_err(|err| err.to_string())?;
                        left.retain(|entry| pattern.is_match(&entry.interface) == keep);
                    }
                    "type" => {
                        let matches = |ip: IpAddr| match argument.to_ascii_lowercase().as_str() {
                            "ip" => Ok(true),
                            "ipv4" => Ok(ip.is_ipv4()),
                            "ipv6" => Ok(ip.is_ipv6()),
                            other => Err(format!("unknown address type {other:?}")),
                        };
                        let mut kept = Vec::new();
                        for entry in left {
                            if matches(entry.address)? == keep {
                                kept.push(entry);
                            }
                        }
                        left = kept;
                    }
                    other => {
                        return Err(format!(
                            "unknown selector {other:?}: only \"name\" and \"type\" are known"
                        ));
                    }
                }
            }
            ["limit", count] => {
                let count: usize = count.parse().map_err(|_| format!("bad limit {count:?}"))?;
                left.truncate(count);
            }
            ["attr", "address"] if position + 1 == steps.len() => {
                return Ok(left.first().map(|entry| entry.address.to_string()).unwrap_or_default());
            }
            ["join", "address", separator] if position + 1 == steps.len() => {
                let all: Vec<String> = left.iter().map(|entry| entry.address.to_string()).collect();
                return Ok(all.join(separator));
            }
            other => return Err(format!("unknown step {:?}", other.join(" "))),
        }
    }
    Err("it must end with attr \"address\" or join \"address\"".to_owned())
}

/// Splits at `separator`, but not within double quotes.
fn split_outside_quotes(text: &str, separator: char) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in text.chars() {
        if c == '"' {
            quoted = !quoted;
        }
        if c == separator && !quoted {
            parts.push(String::new());
        } else {
            parts.last_mut().expect("never empty").push(c);
        }
    }
    parts
}

fn ips(interfaces: &[InterfaceAddress]) -> impl Iterator<Item = IpAddr> + '_ {
    interfaces.iter().map(|entry| entry.address)
}

/// Private use: RFC 1918, the shared space of RFC 6598, and RFC 4193 for IPv6; the networks of RFC 5737 too, which are
/// nobody's, and which Consul 1.8.7 advertises. Loopback and link-local are neither private nor public.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_private() || ip.is_documentation() || (ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64)
        }
        IpAddr::V6(ip) => ip.segments()[0] & 0xfe00 == 0xfc00,
    }
}

fn is_public(ip: IpAddr) -> bool {
    let local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    !is_private(ip) && !local && !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast()
}

/// The one IP address of a key, after templates. `None` when the text is empty.
pub fn one_ip(key: &str, text: &str, interfaces: &[InterfaceAddress]) -> Result<Option<IpAddr>, String> {
    let mut all = ip_list(key, text, interfaces)?;
    match all.len() {
        0 => Ok(None),
        1 => Ok(all.pop()),
        _ => Err(format!(
            "{key}: multiple addresses found: {text}. Please configure one address"
        )),
    }
}

/// The IP addresses of a key, separated by blanks, after templates.
pub fn ip_list(key: &str, text: &str, interfaces: &[InterfaceAddress]) -> Result<Vec<IpAddr>, String> {
    let expanded = expand(text, interfaces).map_err(|why| format!("{key}: {why}"))?;
    if expanded.is_empty() && !text.trim().is_empty() {
        return Err(format!("{key}: no addresses found for {:?}", text.trim()));
    }
    expanded.split_whitespace().map(|word| parse_ip(key, word)).collect()
}

fn parse_ip(key: &str, word: &str) -> Result<IpAddr, String> {
    let bare = word
        .strip_prefix('[')
        .and_then(|word| word.strip_suffix(']'))
        .unwrap_or(word);
    match bare {
        "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
        bare => bare.parse().map_err(|_| format!("{key}: invalid ip address: {word}")),
    }
}

/// The addresses to listen at under `port`; sockets of the file system where `allow_unix`.
pub fn listen_list(
    key: &str,
    text: &str,
    port: u16,
    allow_unix: bool,
    interfaces: &[InterfaceAddress],
) -> Result<Vec<ListenAddress>, String> {
    let expanded = expand(text, interfaces).map_err(|why| format!("{key}: {why}"))?;
    let mut out = Vec::new();
    for word in expanded.split_whitespace() {
        let address = match word.strip_prefix("unix://") {
            Some(path) if allow_unix && !path.is_empty() => ListenAddress::Unix(PathBuf::from(path)),
            Some(_) => return Err(format!("{key} cannot be a unix socket")),
            None => ListenAddress::Tcp(SocketAddr::new(parse_ip(key, word)?, port)),
        };
        if !out.contains(&address) {
            out.push(address);
        }
    }
    if out.is_empty() {
        return Err(format!("{key}: no addresses found for {:?}", text.trim()));
    }
    Ok(out)
}

/// The address to advertise when none is configured: the bind address, or what stands for "any".
pub fn detect_advertise(bind: IpAddr, interfaces: &[InterfaceAddress]) -> Result<IpAddr, String> {
    if !bind.is_unspecified() {
        return Ok(bind);
    }
    let (kind, mut candidates): (&str, Vec<IpAddr>) = if bind.is_ipv4() {
        // A machine that knows only itself can still be a cluster of one.
        let is_alone = ips(interfaces).all(|ip| ip.is_loopback());
        let private = |ip: &IpAddr| ip.is_ipv4() && (is_private(*ip) || is_alone);
        ("private IPv4", ips(interfaces).filter(private).collect())
    } else {
        let public = |ip: &IpAddr| ip.is_ipv6() && is_public(*ip);
        ("public IPv6", ips(interfaces).filter(public).collect())
    };
    candidates.sort();
    candidates.dedup();
    match candidates.as_slice() {
        [] => Err(format!("No {kind} address found")),
        [one] => Ok(*one),
        _ => Err(format!(
            "Multiple {kind} addresses found. Please configure one with 'bind' and/or 'advertise'."
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Vec<InterfaceAddress> {
        [
            ("lo", "127.0.0.1"),
            ("eth0", "10.1.2.3"),
            ("eth0", "2001:db8::1"),
            ("eth1", "8.8.4.4"),
        ]
        .into_iter()
        .map(|(interface, address)| InterfaceAddress {
            interface: interface.to_owned(),
            address: address.parse().unwrap(),
        })
        .collect()
    }

    #[test]
    fn templates_stand_for_this_machines_addresses() {
        for (template, want) in [
            ("{{ GetPrivateIP }}", "10.1.2.3"),
            ("{{GetPublicIP}}", "2001:db8::1"),
            ("{{ GetInterfaceIP \"eth1\" }}", "8.8.4.4"),
            ("{{ GetInterfaceIP \"eth0\" }}", "10.1.2.3"),
            (
                "{{ GetAllInterfaces | include \"name\" \"^eth\" | attr \"address\" }}",
                "10.1.2.3",
            ),
            (
                "{{ GetAllInterfaces | exclude \"name\" \"lo|eth0\" | attr \"address\" }}",
                "8.8.4.4",
            ),
            (
                "{{ GetAllInterfaces | include \"type\" \"IPv4\" | join \"address\" \" \" }}",
                "127.0.0.1 10.1.2.3 8.8.4.4",
            ),
            ("127.0.0.1 {{ GetPrivateIP }}", "127.0.0.1 10.1.2.3"),
        ] {
            assert_eq!(expand(template, &interfaces()).as_deref(), Ok(want), "{template}");
        }
        assert!(
            expand("{{ GetSecret }}", &[])
                .unwrap_err()
                .contains("only GetPrivateIP")
        );
        assert!(expand("{{ GetPrivateIP", &[]).unwrap_err().contains("is missing"));
        assert!(
            expand("{{ GetAllInterfaces }}", &[])
                .unwrap_err()
                .contains("must end with")
        );
    }

    #[test]
    fn a_bind_address_is_one_ip() {
        assert_eq!(one_ip("bind_addr", "", &[]), Ok(None));
        assert_eq!(one_ip("bind_addr", "[::1]", &[]), Ok(Some("::1".parse().unwrap())));
        assert_eq!(
            one_ip("bind_addr", "1.1.1.1 2.2.2.2", &[]).unwrap_err(),
            "bind_addr: multiple addresses found: 1.1.1.1 2.2.2.2. Please configure one address"
        );
        assert_eq!(
            one_ip("bind_addr", "nohost", &[]).unwrap_err(),
            "bind_addr: invalid ip address: nohost"
        );
        assert!(
            one_ip("bind_addr", "{{ GetPrivateIP }}", &[])
                .unwrap_err()
                .contains("no addresses found")
        );
    }

    #[test]
    fn any_address_advertises_the_only_private_one() {
        let any: IpAddr = "0.0.0.0".parse().unwrap();
        assert_eq!(detect_advertise(any, &interfaces()), Ok("10.1.2.3".parse().unwrap()));
        assert_eq!(
            detect_advertise("::".parse().unwrap(), &interfaces()),
            Ok("2001:db8::1".parse().unwrap())
        );
        assert_eq!(detect_advertise(any, &[]).unwrap_err(), "No private IPv4 address found");
        let mut two = interfaces();
        two.push(InterfaceAddress {
            interface: "eth2".to_owned(),
            address: "192.168.0.1".parse().unwrap(),
        });
        assert!(
            detect_advertise(any, &two)
                .unwrap_err()
                .starts_with("Multiple private IPv4 addresses found")
        );
        let fixed = "127.0.0.9".parse().unwrap();
        assert_eq!(detect_advertise(fixed, &two), Ok(fixed));
        // As Consul 1.8.7: the documentation networks are private, and a machine without a network has itself.
        for (addresses, want) in [
            (&["127.0.0.1", "192.0.2.2"][..], "192.0.2.2"),
            (&["127.0.0.1", "::1"][..], "127.0.0.1"),
        ] {
            let interfaces: Vec<_> = addresses
                .iter()
                .map(|address| InterfaceAddress {
                    interface: "any".to_owned(),
                    address: address.parse().unwrap(),
                })
                .collect();
            assert_eq!(detect_advertise(any, &interfaces), Ok(want.parse().unwrap()));
        }
    }

    #[test]
    fn hosts_and_ports_are_told_apart() {
        for (text, host, port) in [
            ("a", "a", 1),
            ("a:2", "a", 2),
            ("::1", "::1", 1),
            ("[::1]:2", "::1", 2),
            ("[::1]", "::1", 1),
        ] {
            let want = HostPort {
                host: host.to_owned(),
                port,
            };
            assert_eq!(HostPort::parse(text, 1), Ok(want), "{text}");
        }
        for bad in ["", "a b", "a:b", ":1", "[::1", "a:1:2"] {
            assert!(HostPort::parse(bad, 1).is_err(), "{bad}");
        }
    }
}

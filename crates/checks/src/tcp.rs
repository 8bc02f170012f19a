//! TCP checks, and how every check opens a connection.

use quorate_rt::Rt;
use quorate_rt::net::reason;
use quorate_types::CheckStatus;
use std::time::Duration;

pub async fn run<R: Rt>(rt: &R, address: &str, timeout: Duration) -> (CheckStatus, String) {
    let Some((host, port)) = split(address) else {
        return (
            CheckStatus::Critical,
            format!("dial tcp: address {address}: missing port in address"),
        );
    };
    match rt.timeout(timeout, connect(rt, host, port)).await {
        Ok(Ok(_)) => (CheckStatus::Passing, format!("TCP connect {address}: Success")),
        Ok(Err(error)) => (CheckStatus::Critical, error),
        Err(_) => (CheckStatus::Critical, format!("dial tcp {address}: i/o timeout")),
    }
}

/// Connects to the first address of a host that answers; the error is that of the first one tried.
pub async fn connect<R: Rt>(rt: &R, host: &str, port: u16) -> Result<R::Stream, String> {
    let addresses = rt
        .resolve(host, port)
        .await
        .map_err(|err| format!("dial tcp: lookup {host}: {}", lookup_error(&err)))?;
    let mut first_error = None;
    for address in addresses {
        match rt.tcp_connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(err) => {
                first_error.get_or_insert_with(|| format!("dial tcp {address}: connect: {}", reason(&err)));
            }
        }
    }
    Err(first_error.unwrap_or_else(|| format!("dial tcp: lookup {host}: no such host")))
}

fn lookup_error(err: &std::io::Error) -> String {
    match err.kind() {
        std::io::ErrorKind::NotFound => "no such host".to_owned(),
        _ => reason(err),
    }
}

/// Host and port of `host:port` or `[::1]:port`.
fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']')?,
        None if host.contains(':') => return None,
        None => host,
    };
    // Go takes an empty host for this machine.
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    Some((host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (address, want) in [
            ("a:1", Some(("a", 1))),
            ("[::1]:2", Some(("::1", 2))),
            (":3", Some(("127.0.0.1", 3))),
            ("a", None),
            ("a:b", None),
            ("::1", None),
            ("[::1:2", None),
            ("a:70000", None),
        ] {
            assert_eq!(split(address), want, "{address}");
        }
    }
}

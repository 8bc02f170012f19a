//! Where the agent is: every form `CONSUL_HTTP_ADDR` and `-http-addr` take.

use std::str::FromStr;
use thiserror::Error;

/// Consul's HTTP port.
pub const PORT_DEFAULT: u16 = 8500;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP literal, without brackets.
    pub host: String,
    pub port: u16,
    /// What precedes `/v1/`, when the agent stands behind a proxy; without a final slash.
    pub base_path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    #[error("unix sockets are not supported by this client yet: {0}")]
    UnixSocket(String),
    #[error("https is not supported by this client yet: {0}")]
    Https(String),
    #[error("unknown protocol scheme: {0}")]
    Scheme(String),
    #[error("invalid address {0:?}")]
    Invalid(String),
}

impl Address {
    /// `host:port` as it stands in a URL.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let invalid = || AddressError::Invalid(text.to_owned());
        let (rest, port_default) = match text.split_once("://") {
            None if text.is_empty() => ("127.0.0.1:8500", PORT_DEFAULT),
            None => (text, PORT_DEFAULT),
            // A URL without a port means the scheme's.
            Some(("http", rest)) => (rest, 80),
            Some(("https", _)) => return Err(AddressError::Https(text.to_owned())),
            Some(("unix", _)) => return Err(AddressError::UnixSocket(text.to_owned())),
            Some((scheme, _)) => return Err(AddressError::Scheme(scheme.to_owned())),
        };
        let (authority, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (host, after) = bracketed.split_once(']').ok_or_else(invalid)?;
                match after.strip_prefix(':') {
                    Some(port) => (host, Some(port)),
                    None if after.is_empty() => (host, None),
                    None => return Err(invalid()),
                }
            }
            None => match authority.split_once(':') {
                // More than one colon without brackets: an IPv6 literal.
                Some((_, port)) if port.contains(':') => (authority, None),
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            None => port_default,
            Some(port) => port.parse().map_err(|_| invalid())?,
        };
        // Go dials the local host when a port stands alone.
        let host = if host.is_empty() && port_default == PORT_DEFAULT {
            "127.0.0.1"
        } else {
            host
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(invalid());
        }
        let base_path = path.trim_end_matches('/').to_owned();
        Ok(Self {
            host: host.to_owned(),
            port,
            base_path,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, host: &str, port: u16, base_path: &str) {
        let wanted = Address {
            host: host.to_owned(),
            port,
            base_path: base_path.to_owned(),
        };
        assert_eq!(text.parse(), Ok(wanted), "{text}");
    }

    #[test]
    fn every_form_of_an_address_is_understood() {
        check("", "127.0.0.1", 8500, "");
        check("10.0.0.1:9500", "10.0.0.1", 9500, "");
        check("consul.example", "consul.example", 8500, "");
        check(":9500", "127.0.0.1", 9500, "");
        check("http://10.0.0.1:9500", "10.0.0.1", 9500, "");
        check("http://consul.example/", "consul.example", 80, "");
        check("http://proxy:80/consul/", "proxy", 80, "/consul");
        check("[::1]:9500", "::1", 9500, "");
        check("http://[::1]", "::1", 80, "");
        assert_eq!("[::1]:9500".parse::<Address>().unwrap().authority(), "[::1]:9500");
    }

    #[test]
    fn what_cannot_be_reached_is_refused_with_a_reason() {
        let error = |text: &str| text.parse::<Address>().unwrap_err().to_string();
        assert_eq!(
            error("unix:///run/q.sock"),
            "unix sockets are not supported by this client yet: unix:///run/q.sock"
        );
        assert_eq!(
            error("https://a"),
            "https is not supported by this client yet: https://a"
        );
        assert_eq!(error("ftp://a"), "unknown protocol scheme: ftp");
        assert_eq!(error("a:b"), "invalid address \"a:b\"");
        assert_eq!(error("http://"), "invalid address \"http://\"");
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in "\\PC{0,30}") {
            if let Ok(address) = text.parse::<Address>() {
                proptest::prop_assert!(!address.host.is_empty());
            }
        }
    }
}

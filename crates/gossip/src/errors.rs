//! Why gossip cannot start, join or force somebody out, in the words that Consul's clients and operators know.

use quorate_rt::net::reason;
use quorate_swim::{InvalidMember, Refusal};
use quorate_wire::codec::Malformed;
use quorate_wire::gossip::Unreadable;
use quorate_wire::seal::SealError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use thiserror::Error;

pub use quorate_swim::UnknownName as ForceLeaveError;

/// Why a pool was not started.
#[derive(Debug, Error)]
pub enum StartError {
    #[error(
        "Failed to start {pool} Serf: Failed to create memberlist: Could not set up network transport: Failed to start \
         {listener} listener on \"{ip}\" port {port}: listen {network} {address}: bind: {reason}",
        pool = .pool.to_uppercase(), listener = .network.to_uppercase(), ip = .address.ip(), port = .address.port(),
        reason = reason(.err)
    )]
    Bind {
        pool: &'static str,
        /// `tcp` or `udp`.
        network: &'static str,
        address: SocketAddr,
        err: io::Error,
    },
    #[error("Failed to start {pool} Serf: {err}", pool = .pool.to_uppercase())]
    Member { pool: &'static str, err: InvalidMember },
}

/// Nobody could be joined.
#[derive(Debug)]
pub struct JoinError {
    /// Each address with its reason; never empty.
    pub failures: Vec<(SocketAddr, StreamError)>,
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The layout of Go's multierror, which `/v1/agent/join` passes on (Consul 1.8.7).
        let plural = if self.failures.len() == 1 { "error" } else { "errors" };
        write!(f, "{} {plural} occurred:", self.failures.len())?;
        for (address, err) in &self.failures {
            write!(f, "\n\t* Failed to join {}: {err}", address.ip())?;
        }
        f.write_str("\n\n")
    }
}

impl std::error::Error for JoinError {}

/// Why a peer could not be talked to over a stream.
#[derive(Debug, Error)]
pub enum StreamError {
    #[error("dial tcp {address}: connect: {reason}", reason = reason(.err))]
    Dial { address: SocketAddr, err: io::Error },
    #[error("dial tcp {address}: i/o timeout")]
    Timeout { address: SocketAddr },
    #[error("{reason}", reason = reason(.0))]
    Io(io::Error),
    #[error("malformed frame: {0}")]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The peer could not read what was sent, or we could not read the peer: told to it in the same words.
    #[error("{0}")]
    Unreadable(Unreadable),
    /// An answer in plaintext where it had to be sealed.
    #[error("encryption is configured but remote state is not encrypted")]
    Plaintext,
    #[error("{0}")]
    Refused(Refusal),
    #[error("unexpected answer")]
    Unexpected,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_consuls() {
        let address = SocketAddr::from(([127, 0, 0, 250], 8301));
        let err = io::Error::from(io::ErrorKind::ConnectionRefused);
        let join = JoinError {
            failures: vec![(address, StreamError::Dial { address, err })],
        };
        assert_eq!(
            join.to_string(),
            "1 error occurred:\n\t* Failed to join 127.0.0.250: dial tcp 127.0.0.250:8301: connect: connection refused\n\n"
        );
        let start = StartError::Bind {
            pool: "lan",
            network: "tcp",
            address,
            err: io::Error::from(io::ErrorKind::AddrInUse),
        };
        assert_eq!(
            start.to_string(),
            "Failed to start LAN Serf: Failed to create memberlist: Could not set up network transport: Failed to start \
             TCP listener on \"127.0.0.250\" port 8301: listen tcp 127.0.0.250:8301: bind: address already in use"
        );
    }
}

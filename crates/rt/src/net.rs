//! Sockets.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

/// A bound datagram socket.
pub trait Udp: Send + Sync + 'static {
    /// Sends one datagram. Success says nothing of its arrival.
    fn send_to(&self, datagram: &[u8], to: SocketAddr) -> impl Future<Output = io::Result<()>> + Send;
    /// Receives one datagram; what does not fit `buffer` is cut off.
    fn recv_from(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<(usize, SocketAddr)>> + Send;
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A listening stream socket.
pub trait Listener: Send + Sync + 'static {
    type Stream;
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// The system's reason of a failed call, as Go words it inside a sentence: operators and their tools know these words.
pub fn reason(err: &io::Error) -> String {
    match err.kind() {
        io::ErrorKind::AddrInUse => "address already in use",
        io::ErrorKind::AddrNotAvailable => "cannot assign requested address",
        io::ErrorKind::PermissionDenied => "permission denied",
        io::ErrorKind::ConnectionRefused => "connection refused",
        io::ErrorKind::ConnectionReset => "connection reset by peer",
        io::ErrorKind::HostUnreachable => "no route to host",
        io::ErrorKind::NetworkUnreachable => "network is unreachable",
        // The kernel's timeout; a deadline of our own is Go's "i/o timeout".
        io::ErrorKind::TimedOut => "connection timed out",
        io::ErrorKind::UnexpectedEof => "EOF",
        io::ErrorKind::BrokenPipe => "broken pipe",
        _ => {
            let text = err.to_string();
            let mut chars = text.split(" (os error").next().unwrap_or_default().chars();
            let first = chars.next().into_iter().flat_map(char::to_lowercase);
            return first.chain(chars).collect();
        }
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_gos() {
        let known = io::Error::from(io::ErrorKind::AddrInUse);
        assert_eq!(reason(&known), "address already in use");
        // EISDIR has no word of its own here.
        assert_eq!(reason(&io::Error::from_raw_os_error(21)), "is a directory");
        assert_eq!(reason(&io::Error::other("Odd")), "odd");
    }
}

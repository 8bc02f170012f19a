//! Questions to other servers, over the transport the client used.
//!
//! Each try has a fresh id and, over UDP, a fresh port, and a reply counts only if it comes from the recursor asked and
//! answers what was asked: the defences of RFC 5452 against forged replies.

use crate::settings::{Active, RecursorStrategy};
use crate::tcp::{read_message, write_message};
use crate::{Catalog, Draws};
use quorate_dns_answer::{HEADER_LEN_BYTES, Rcode, Transport, UDP_REPLY_LEN_BYTES_MAX, rcode_of_reply};
use quorate_rt::{Rt, Udp as _};
use rand_core::Rng as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

impl<R: Rt, C: Catalog> Draws<R, C> {
    /// The first reply that says yes or no, with an id of ours. `None`: nobody gave one.
    pub(crate) async fn ask_recursors(
        &self,
        active: &Active,
        mut question: Vec<u8>,
        transport: Transport,
    ) -> Option<Vec<u8>> {
        assert!(question.len() >= HEADER_LEN_BYTES, "only read questions are asked on");
        let mut recursors = active.recursors.clone();
        if active.recursor_strategy == RecursorStrategy::Random {
            self.with_rng(|rng| {
                for count in (2..=recursors.len()).rev() {
                    recursors.swap(count - 1, rng.next_u32() as usize % count);
                }
            });
        }
        for recursor in recursors {
            let id = self.with_rng(|rng| rng.next_u32() as u16);
            question[..2].copy_from_slice(&id.to_be_bytes());
            let reply = async {
                match transport {
                    Transport::Udp => self.ask_over_udp(recursor, &question).await,
                    Transport::Tcp => self.ask_over_tcp(recursor, &question).await,
                }
            };
            match self.shared.rt.timeout(active.recursor_timeout, reply).await {
                Ok(Ok(reply)) => match rcode_of_reply(&reply, &question) {
                    Some(code) if code == Rcode::NoError as u8 || code == Rcode::NxDomain as u8 => return Some(reply),
                    code => tracing::debug!(%recursor, ?code, "DNS recursor has no answer"),
                },
                Ok(Err(err)) => tracing::debug!(%recursor, %err, "ask a DNS recursor"),
                Err(elapsed) => tracing::debug!(%recursor, %elapsed, "ask a DNS recursor"),
            }
        }
        None
    }

    async fn ask_over_udp(&self, recursor: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let any = match recursor {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
        };
        let udp = self.shared.rt.udp_bind(SocketAddr::new(any, 0)).await?;
        udp.send_to(question, recursor).await?;
        let mut buffer = vec![0; UDP_REPLY_LEN_BYTES_MAX];
        loop {
            let (len_bytes, from) = udp.recv_from(&mut buffer).await?;
            let reply = &buffer[..len_bytes];
            if from == recursor && rcode_of_reply(reply, question).is_some() {
                return Ok(reply.to_vec());
            }
        }
    }

    async fn ask_over_tcp(&self, recursor: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.shared.rt.tcp_connect(recursor).await?;
        write_message(&mut stream, question).await?;
        let reply = read_message(&mut stream).await?;
        reply.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

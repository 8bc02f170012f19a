//! Questions in datagrams.
//!
//! A receiver polls each question once where it stands: what is answered from a snapshot at hand is done then. What has to
//! wait goes to the receiver's own set, so that stopping the receiver stops everything, and nothing is spawned per packet.

use crate::{Catalog, Counted, Draws};
use futures::stream::{FuturesUnordered, StreamExt as _};
use quorate_dns_answer::Transport;
use quorate_rt::{Rt, Udp};
use std::future::{Future as _, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

/// Longer questions than any resolver sends; what is cut off makes a malformed one.
const QUESTION_LEN_BYTES_MAX: usize = 4096;
/// A socket that fails at once each time must not keep a processor busy.
const ERROR_DELAY: Duration = Duration::from_millis(20);

enum Turn {
    Answered,
    Received(Vec<u8>, io::Result<(usize, SocketAddr)>),
}

/// Receives with a buffer of its own, so that the wait can go on across turns.
async fn receive<U: Udp>(udp: &U, mut buffer: Vec<u8>) -> (Vec<u8>, io::Result<(usize, SocketAddr)>) {
    let received = udp.recv_from(&mut buffer).await;
    (buffer, received)
}

pub(crate) async fn serve<R: Rt, C: Catalog>(draws: Draws<R, C>, udp: Arc<R::Udp>) {
    let shared = draws.shared.clone();
    let mut waiting = FuturesUnordered::new();
    let mut receiving = pin!(receive(&*udp, vec![0; QUESTION_LEN_BYTES_MAX]));
    loop {
        let turn = poll_fn(|cx| {
            if let Poll::Ready(Some(())) = waiting.poll_next_unpin(cx) {
                return Poll::Ready(Turn::Answered);
            }
            let received = receiving.as_mut().poll(cx);
            received.map(|(buffer, received)| Turn::Received(buffer, received))
        });
        let Turn::Received(buffer, received) = turn.await else {
            continue;
        };
        match received {
            Ok((len_bytes, from)) => {
                let count_max = shared.settings.load().limits.waiting_count_max;
                match Counted::try_new(&shared, |shared| &shared.waiting_count, count_max) {
                    Some(counted) => {
                        let message = buffer[..len_bytes].to_vec();
                        let (draws, udp) = (draws.clone(), udp.clone());
                        let mut work = Box::pin(async move {
                            answer(&draws, &*udp, &message, from).await;
                            drop(counted);
                        });
                        if futures::poll!(work.as_mut()).is_pending() {
                            waiting.push(work);
                        }
                    }
                    None => {
                        shared.dropped_datagrams.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            Err(err) => {
                tracing::debug!(%err, "receive a DNS datagram");
                shared.rt.sleep(ERROR_DELAY).await;
            }
        }
        receiving.set(receive(&*udp, buffer));
    }
}

async fn answer<R: Rt, C: Catalog>(draws: &Draws<R, C>, udp: &R::Udp, message: &[u8], from: SocketAddr) {
    let Some(reply) = draws.reply_to(message, Transport::Udp).await else {
        return;
    };
    if let Err(err) = udp.send_to(&reply, from).await {
        tracing::debug!(%err, client = %from, "send a DNS reply");
    }
}

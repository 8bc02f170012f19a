//! What a pool's driver counts, beside its state machines.

use std::sync::atomic::{AtomicU64, Ordering};

/// Things counted since the start of the member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub packets_sent: u64,
    pub packet_bytes_sent: u64,
    pub packets_received: u64,
    pub packet_bytes_received: u64,
    /// Packets that were not sent, as too many waited.
    pub packets_dropped: u64,
    /// Streams that peers opened, and that this member opened.
    pub streams_accepted: u64,
    pub streams_opened: u64,
    /// Members that came or came back, changed, failed, left, and were forgotten.
    pub joined: u64,
    pub updated: u64,
    pub failed: u64,
    pub left: u64,
    pub reaped: u64,
    pub swim: quorate_swim::Counters,
    pub events: quorate_user_events::Counters,
}

/// Counted by several tasks.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) packets_sent: AtomicU64,
    pub(crate) packet_bytes_sent: AtomicU64,
    pub(crate) packets_received: AtomicU64,
    pub(crate) packet_bytes_received: AtomicU64,
    pub(crate) streams_accepted: AtomicU64,
    pub(crate) streams_opened: AtomicU64,
}

impl Traffic {
    pub(crate) fn count_sent(&self, len_bytes: usize) {
        self.packets_sent.fetch_add(1, Ordering::Relaxed);
        self.packet_bytes_sent.fetch_add(len_bytes as u64, Ordering::Relaxed);
    }
    pub(crate) fn count_received(&self, len_bytes: usize) {
        self.packets_received.fetch_add(1, Ordering::Relaxed);
        self.packet_bytes_received
            .fetch_add(len_bytes as u64, Ordering::Relaxed);
    }
    /// Added to what the state machines counted.
    pub(crate) fn add_to(&self, counts: Counts) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counts {
            packets_sent: read(&self.packets_sent),
            packet_bytes_sent: read(&self.packet_bytes_sent),
            packets_received: read(&self.packets_received),
            packet_bytes_received: read(&self.packet_bytes_received),
            streams_accepted: read(&self.streams_accepted),
            streams_opened: read(&self.streams_opened),
            ..counts
        }
    }
}

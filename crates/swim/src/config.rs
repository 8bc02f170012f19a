//! The numbers of the protocol, in memberlist's and Serf's profiles.
//!
//! Not here: who the member is (`message::MemberState`), limits of the format (`message`).

use ipnet::IpNet;
use std::net::IpAddr;
use std::time::Duration;

/// Timings, fan-outs and multipliers. The profiles are memberlist's `DefaultLANConfig`, `DefaultWANConfig` and
/// `DefaultLocalConfig`, with Serf's for reaping and reconnecting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Between the starts of two probes; an unhealthy member's own awareness stretches it.
    pub probe_interval: Duration,
    /// How long a direct ping may take before others are asked to ping.
    pub probe_timeout: Duration,
    /// Members asked to ping when a direct ping had no answer.
    pub indirect_check_count: usize,
    /// A last, direct attempt over a stream, for networks that lose datagrams only.
    pub stream_probe: bool,
    /// The shortest suspicion is this times `log10(members)` times the probe interval.
    pub suspicion_mult: u32,
    /// The longest suspicion is this times the shortest.
    pub suspicion_max_timeout_mult: u32,
    /// Independent confirmations that shorten a suspicion from the longest to the shortest; `None`: two less than
    /// `suspicion_mult`, as in memberlist.
    pub suspicion_confirmation_count: Option<u32>,
    /// The awareness score stays below this.
    pub awareness_max: u32,
    pub gossip_interval: Duration,
    /// Members told in each round of gossip.
    pub gossip_node_count: usize,
    /// How long a failed member is still told the news, so that it can refute.
    pub gossip_to_the_dead_time: Duration,
    /// An update is sent this times `ceil(log10(members + 1))` times.
    pub retransmit_mult: u32,
    /// Between two exchanges of the full state; stretched in pools above 32 members.
    pub push_pull_interval: Duration,
    /// Of one stream, from the connection to its last byte.
    pub stream_timeout: Duration,
    /// Between two looks for members to forget.
    pub reap_interval: Duration,
    /// Between two attempts to reach a failed member again.
    pub reconnect_interval: Duration,
    /// A failed member is forgotten after this.
    pub reconnect_timeout: Duration,
    /// A member that left is forgotten after this.
    pub tombstone_timeout: Duration,
    /// How long a leaving member waits until its leave was sent often enough.
    pub leave_timeout: Duration,
    /// Bytes of one packet, the header included.
    pub packet_len_bytes_max: usize,
    /// Members known at once; more are refused and counted.
    pub member_count_max: usize,
    /// Refuse members of other datacenters.
    pub same_datacenter_only: bool,
    /// Blocks of addresses that members may have and news may come from; empty: all.
    pub allowed_cidrs: Vec<IpNet>,
    /// Tell this member's network coordinate with its acks, and find it from those of others. Off in the profiles.
    pub coordinates: bool,
    /// Lifeguard's LHA-Probe: awareness stretches the probe, and relays nack. Off: every probe takes its interval, nobody
    /// nacks, and the awareness score stays 0.
    pub lha_probe: bool,
    /// Lifeguard's LHA-Suspicion: from the longest to the shortest timeout as others confirm. Off: always the shortest,
    /// and an accusation of one who is suspect already is not told on.
    pub lha_suspicion: bool,
    /// Lifeguard's buddy system: a ping tells a suspect that it is one. Off: it learns that from gossip alone.
    pub buddy: bool,
    /// Beyond memberlist: an accuser's word weighs by its health and its record. Off: `dead` is believed at once,
    /// whoever says it, and a confirmation may end a suspicion at once.
    pub weighs_accusers: bool,
    /// Beyond memberlist: a member that fails again and again, or is suspected without end, stays failed for a while
    /// (pools of 32 and more). Off: it is back with each word of its own.
    pub holds_flapping: bool,
    /// Beyond memberlist: time in which this member did not run, though something was due, counts against nobody. Off: it
    /// counts against all whom it suspects.
    pub excuses_pauses: bool,
    /// Beyond memberlist: the dead are pinged now and then, whoever pings is told what is thought of it, accusers are
    /// answered, strangers asked. Off: only gossip and exchanges of the full state heal a pool.
    pub heals_at_contact: bool,
    /// Beyond memberlist: a suspect is pinged once more, twice in the last `probe_timeout` of its suspicion, by everybody
    /// who is about to hold it for dead. In the smallest pools the shortest suspicion is that much longer. Off: nobody
    /// asks, and who missed a refutation fails a live member.
    pub asks_suspects: bool,
}

/// Accusers remembered of one suspect, whatever is configured.
const CONFIRMATION_COUNT_MAX: u32 = 64;

impl Config {
    /// For one datacenter.
    pub fn lan() -> Self {
        Self {
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(500),
            indirect_check_count: 3,
            stream_probe: true,
            suspicion_mult: 4,
            suspicion_max_timeout_mult: 6,
            suspicion_confirmation_count: None,
            awareness_max: 8,
            gossip_interval: Duration::from_millis(200),
            gossip_node_count: 3,
            gossip_to_the_dead_time: Duration::from_secs(30),
            retransmit_mult: 4,
            push_pull_interval: Duration::from_secs(30),
            stream_timeout: Duration::from_secs(10),
            reap_interval: Duration::from_secs(15),
            reconnect_interval: Duration::from_secs(30),
            reconnect_timeout: Duration::from_secs(72 * 3600),
            tombstone_timeout: Duration::from_secs(24 * 3600),
            leave_timeout: Duration::from_secs(5),
            packet_len_bytes_max: quorate_types::limits::GOSSIP_PACKET_LEN_BYTES_MAX,
            // A push/pull of this many of the longest members fits its frame (16 MiB).
            member_count_max: 16_384,
            same_datacenter_only: true,
            allowed_cidrs: Vec::new(),
            coordinates: false,
            lha_probe: true,
            lha_suspicion: true,
            buddy: true,
            weighs_accusers: true,
            holds_flapping: true,
            excuses_pauses: true,
            heals_at_contact: true,
            asks_suspects: true,
        }
    }
    /// memberlist as of Lifeguard's paper with all of Lifeguard, and nothing of ours.
    pub fn lifeguard(self) -> Self {
        Self {
            lha_probe: true,
            lha_suspicion: true,
            buddy: true,
            ..self.swim()
        }
    }
    /// The baseline of Lifeguard's paper: memberlist with neither Lifeguard's parts nor ours. The paper's other
    /// configurations are this with one of `lha_probe`, `lha_suspicion`, `buddy` on.
    pub fn swim(self) -> Self {
        Self {
            lha_probe: false,
            lha_suspicion: false,
            buddy: false,
            weighs_accusers: false,
            holds_flapping: false,
            excuses_pauses: false,
            heals_at_contact: false,
            asks_suspects: false,
            ..self
        }
    }
    /// Between datacenters.
    pub fn wan() -> Self {
        Self {
            probe_interval: Duration::from_secs(5),
            probe_timeout: Duration::from_secs(3),
            suspicion_mult: 6,
            gossip_interval: Duration::from_millis(500),
            gossip_node_count: 4,
            gossip_to_the_dead_time: Duration::from_secs(60),
            push_pull_interval: Duration::from_secs(60),
            stream_timeout: Duration::from_secs(30),
            same_datacenter_only: false,
            ..Self::lan()
        }
    }
    /// On one machine.
    pub fn local() -> Self {
        Self {
            probe_timeout: Duration::from_millis(200),
            indirect_check_count: 1,
            suspicion_mult: 3,
            gossip_interval: Duration::from_millis(100),
            gossip_to_the_dead_time: Duration::from_secs(15),
            retransmit_mult: 2,
            push_pull_interval: Duration::from_secs(15),
            stream_timeout: Duration::from_secs(1),
            ..Self::lan()
        }
    }

    /// An IPv4 address mapped into IPv6 counts as IPv4.
    pub(crate) fn is_allowed(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allowed_cidrs.is_empty() || self.allowed_cidrs.iter().any(|block| block.contains(&address))
    }
    pub(crate) fn confirmation_count(&self) -> u32 {
        // Two probe intervals short of what the multiplier expects, as members' probes have no common phase.
        let count = self.suspicion_confirmation_count;
        count
            .unwrap_or(self.suspicion_mult.saturating_sub(2))
            .min(CONFIRMATION_COUNT_MAX)
    }
    /// The last part of a suspicion, in which the accused is asked.
    pub(crate) fn ask_lead(&self) -> Duration {
        if self.asks_suspects {
            self.probe_timeout
        } else {
            Duration::ZERO
        }
    }
    /// The shortest suspicion in a pool of `member_count` (memberlist's `suspicionTimeout`).
    pub(crate) fn suspicion_timeout_min(&self, member_count: usize) -> Duration {
        let scale = libm::fmax(1.0, libm::log10(libm::fmax(1.0, member_count as f64)));
        // Three digits of the scale, as memberlist keeps them.
        let scale_permille = (scale * 1000.0) as u32;
        let shortest = self.probe_interval.saturating_mul(self.suspicion_mult);
        let scaled = shortest.saturating_mul(scale_permille) / 1000;
        // Who stood still for as long as memberlist's shortest suspicion still has the time to answer.
        scaled.max(shortest.saturating_add(self.ask_lead()))
    }
    /// How often an update is sent in a pool of `member_count` (memberlist's `retransmitLimit`).
    pub(crate) fn retransmit_limit(&self, member_count: usize) -> u32 {
        let scale = libm::ceil(libm::log10((member_count + 1) as f64)) as u32;
        self.retransmit_mult.saturating_mul(scale).max(1)
    }
    /// The push/pull interval in a pool of `member_count` (memberlist's `pushPullScale`).
    pub(crate) fn push_pull_interval_scaled(&self, member_count: usize) -> Duration {
        const THRESHOLD: f64 = 32.0;
        let count = member_count as f64;
        if count <= THRESHOLD {
            return self.push_pull_interval;
        }
        let mult = libm::ceil(libm::log2(count) - libm::log2(THRESHOLD)) as u32 + 1;
        self.push_pull_interval.saturating_mul(mult)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_allowed_when_a_block_has_them_or_there_is_none() {
        let mut config = Config::lan();
        let allows = |config: &Config, ip: &str| config.is_allowed(ip.parse().expect("an address"));
        assert!(allows(&config, "192.0.2.1"));
        config.allowed_cidrs = ["10.0.0.0/8", "2001:db8::/32"]
            .map(|block| block.parse().expect("a block"))
            .into();
        for ip in ["10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1"] {
            assert!(allows(&config, ip), "{ip}");
        }
        for ip in ["11.0.0.1", "::1"] {
            assert!(!allows(&config, ip), "{ip}");
        }
    }

    #[test]
    fn timeouts_grow_with_the_logarithm_of_the_pool() {
        let memberlist = Config::lan().lifeguard();
        let shortest = |count| memberlist.suspicion_timeout_min(count).as_millis();
        assert_eq!([shortest(0), shortest(10), shortest(100)], [4000, 4000, 8000]);
        let config = Config::lan();
        let secs = |count| config.suspicion_timeout_min(count).as_millis();
        assert_eq!(
            [secs(0), secs(1), secs(10), secs(100), secs(500)],
            [4500, 4500, 4500, 8000, 10_792]
        );
        let limit = |count| config.retransmit_limit(count);
        assert_eq!([limit(1), limit(9), limit(10), limit(99), limit(100)], [4, 4, 8, 8, 12]);
        let push_pull = |count| config.push_pull_interval_scaled(count).as_secs();
        assert_eq!(
            [
                push_pull(32),
                push_pull(33),
                push_pull(64),
                push_pull(65),
                push_pull(128)
            ],
            [30, 60, 60, 90, 90]
        );
    }
}

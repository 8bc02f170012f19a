//! What is measured: the names of the agent's metrics, and the collecting of those that its parts count themselves.
//!
//! Names are Consul's (1.8) where it has one; the others are ours and documented in `docs/metrics.md`. Of both pools the
//! same is told, set apart by the label `network`.
//! Not here: intervals and aggregation (`telemetry`), how it is shown (`http-api`).

use crate::node::Agent;
use crate::router::Router;
use crate::telemetry::{INTERVAL, Telemetry, Timer, metric};
use quorate_gossip::{Gossip, LinkFault};
use quorate_replica::RaftRt;
use quorate_rt::Rt;
use quorate_store::{Command, SessionCommand};
use quorate_types::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

const LINK: &str = "memberlist.link.loss_ratio";

/// The sample that tells how long the leader needed for a command, as Consul names it.
pub(crate) fn apply_metric(command: &Command) -> Option<&'static str> {
    Some(match command {
        Command::Register(_) => "catalog.register",
        Command::Deregister(_) => "catalog.deregister",
        Command::Kv(_) => "kvs.apply",
        Command::Session(SessionCommand::EndLockDelays { .. }) => return None,
        Command::Session(_) => "session.apply",
        Command::Transaction(_) => "txn.apply",
        Command::Barrier
        | Command::CollectTombstones { .. }
        | Command::Batch(_)
        | Command::NameCluster { .. }
        | Command::StateHash(_)
        | Command::Coordinates(_) => return None,
    })
}

/// `http.GET.v1.kv._`: a name or key at the end is an underscore.
pub(crate) fn http_metric(method: &str, endpoint: &str) -> String {
    let parts = endpoint.trim_start_matches('/').split('/');
    let parts: Vec<&str> = parts.map(|part| if part.is_empty() { "_" } else { part }).collect();
    format!("http.{method}.{}", parts.join("."))
}

/// What is told at once, and often.
#[derive(Clone, Debug)]
pub(crate) struct DnsTimers {
    pub(crate) domain: Timer,
    pub(crate) reverse: Timer,
}

impl DnsTimers {
    pub(crate) fn new(telemetry: &Telemetry, node: &str) -> Self {
        let timer = |kind: &str| telemetry.timer(metric(&format!("dns.{kind}.{node}"), &[]));
        Self {
            domain: timer("domain_query"),
            reverse: timer("ptr_query"),
        }
    }
}

fn collect_pool<R: Rt>(telemetry: &Telemetry, pool: &Gossip<R>, network: &str) {
    let labels = [("network", network)];
    let counts = pool.counts();
    let (swim, events) = (counts.swim, counts.events);
    for (name, total) in [
        // memberlist counts bytes under these two names.
        ("memberlist.udp.sent", counts.packet_bytes_sent),
        ("memberlist.udp.received", counts.packet_bytes_received),
        ("memberlist.packets.sent", counts.packets_sent),
        ("memberlist.packets.received", counts.packets_received),
        ("memberlist.packets.dropped", counts.packets_dropped),
        ("memberlist.tcp.accept", counts.streams_accepted),
        ("memberlist.tcp.connect", counts.streams_opened),
        ("memberlist.msg.suspect", swim.suspicions),
        ("memberlist.probe", swim.probes),
        ("memberlist.probe.failed", swim.probes_failed),
        ("memberlist.refute", swim.refutations),
        ("memberlist.accusation.withheld", swim.accusations_withheld),
        ("memberlist.pause", swim.pauses),
        ("memberlist.broadcast.dropped", swim.broadcasts_dropped),
        ("serf.member.join", counts.joined),
        ("serf.member.update", counts.updated),
        ("serf.member.failed", counts.failed),
        ("serf.member.left", counts.left),
        ("serf.member.reap", counts.reaped),
        ("serf.member.flap", swim.held),
        ("serf.events", events.events_taken),
        ("serf.queries", events.queries_taken),
    ] {
        telemetry.count_to(metric(name, &labels), total);
    }
    for (cause, total) in pool.refused_counts() {
        let id = metric("memberlist.refused", &[("cause", cause), ("network", network)]);
        telemetry.count_to(id, total);
        if cause == "implausible" {
            telemetry.count_to(metric("serf.coordinate.rejected", &labels), total);
        }
    }
    let (intents, events, queries) = pool.queued_counts();
    for (name, count) in [
        ("serf.queue.Intent", intents),
        ("serf.queue.Event", events),
        ("serf.queue.Query", queries),
    ] {
        telemetry.sample(metric(name, &labels), count as f64);
    }
    let score = pool.health_score();
    telemetry.set(metric("memberlist.health.score", &labels), f64::from(score));
    if let Some(coordinate) = pool.coordinate() {
        let adjustment_ms = coordinate.adjustment * 1000.0;
        telemetry.sample(metric("serf.coordinate.adjustment-ms", &labels), adjustment_ms);
    }
    let names: BTreeMap<NodeId, String> = (pool.members().iter())
        .map(|member| (member.id, member.name.clone()))
        .collect();
    for link in pool.reachability().links {
        let (fault, ratio) = match link.fault {
            LinkFault::Cut => ("cut", 1.0),
            LinkFault::OneWay => ("one-way", 1.0),
            LinkFault::Lossy { lost_count, sent_count } => {
                ("lossy", f64::from(lost_count) / f64::from(sent_count.max(1)))
            }
        };
        let id = link.member.to_string();
        let member = names.get(&link.member).unwrap_or(&id);
        let labels = [("fault", fault), ("member", member.as_str()), ("network", network)];
        telemetry.set(metric(LINK, &labels), ratio);
    }
}

fn collect_replica<R: RaftRt>(telemetry: &Telemetry, router: &Router<R>) {
    let Some(replica) = router.replica() else {
        return;
    };
    let status = replica.status();
    for (name, value) in [
        ("raft.applied_index", status.last_applied.0),
        ("raft.last_index", status.last_log_index.0),
        ("raft.commit_index", status.commit_index.0),
        ("raft.term", status.term),
        ("raft.peers", status.voters.len() as u64),
        ("server.isLeader", u64::from(status.is_leader)),
    ] {
        telemetry.set(metric(name, &[]), value as f64);
    }
    if let Some(last_contact) = status.last_contact {
        let millis = last_contact.as_secs_f64() * 1000.0;
        telemetry.sample(metric("raft.leader.lastContact", &[]), millis);
    }
    let active = router.session_timers().count();
    telemetry.set(metric("session_ttl.active", &[]), active as f64);
}

impl<R: RaftRt> Agent<R> {
    /// Collects what the parts of the agent count, and ends each interval.
    pub(crate) async fn measure(self) {
        let inner = &self.inner;
        let (rt, telemetry) = (&inner.rt, inner.router.telemetry());
        let mut next_at = rt.now() + INTERVAL;
        self.collect();
        loop {
            rt.sleep_until(next_at).await;
            self.collect();
            telemetry.end_interval(rt.wall_now());
            // Intervals of a suspended machine are not made up for.
            next_at = (next_at + INTERVAL).max(rt.now() + Duration::from_secs(1));
        }
    }
    fn collect(&self) {
        let inner = &self.inner;
        let telemetry = inner.router.telemetry();
        telemetry.set(metric("runtime.metrics_dropped", &[]), telemetry.dropped_count() as f64);
        // Links that are sound again are told of no more.
        telemetry.clear(LINK);
        collect_pool(telemetry, &inner.gossip, "lan");
        if let Some(wan) = &inner.wan {
            collect_pool(telemetry, wan, "wan");
        }
        collect_replica(telemetry, &inner.router);
        if let Some(counts) = self.dns_counts() {
            for (name, total) in [
                ("dns.replies", counts.replies),
                ("dns.dropped", counts.dropped_datagrams),
                ("dns.refused", counts.refused_connections),
                ("dns.timeouts", counts.timeouts),
            ] {
                telemetry.count_to(metric(name, &[]), total);
            }
        }
        let usage = inner.rt.process_usage();
        for (name, value) in [
            ("runtime.alloc_bytes", usage.resident_bytes),
            ("runtime.sys_bytes", usage.virtual_bytes),
            // Go's word for its tasks, which dashboards know.
            ("runtime.num_goroutines", usage.task_count),
            ("runtime.num_threads", usage.thread_count),
        ] {
            telemetry.set(metric(name, &[]), value as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_named_without_names_and_keys() {
        assert_eq!(http_metric("GET", "/v1/agent/self"), "http.GET.v1.agent.self");
        assert_eq!(http_metric("PUT", "/v1/kv/"), "http.PUT.v1.kv._");
    }
}

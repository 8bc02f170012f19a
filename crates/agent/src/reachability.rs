//! Who cannot reach whom: every member is asked for the links that lose its datagrams.
//!
//! In: the `_reachability` query, to which each agent answers with what its own probes found. Out: [`Reachability`].
//! A member that gives no answer in time is named: the query and its answer are datagrams too.

use crate::node::Agent;
use quorate_gossip::{Gossip, QueryReply};
use quorate_http_api::{FaultyLink, LinkFault, Reachability};
use quorate_replica::RaftRt;
use quorate_rt::Rt;
use quorate_types::{MemberStatus, NodeId};
use quorate_wire::reachability::LinkReport;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Names that begin with an underscore are the agents' own (Serf's convention).
const QUERY: &str = "_reachability";

/// Asks every live member of the pool and waits for the answers.
pub(crate) async fn ask<R: Rt>(gossip: &Gossip<R>, timeout: Duration) -> Result<Reachability, String> {
    let live: BTreeMap<NodeId, String> = gossip
        .members()
        .iter()
        .filter(|member| matches!(member.status, MemberStatus::Alive | MemberStatus::Leaving))
        .map(|member| (member.id, member.name.clone()))
        .collect();
    let mut replies = gossip
        .query(QUERY, Vec::new(), timeout, false)
        .map_err(|err| err.to_string())?;
    let mut answered = BTreeSet::new();
    let mut links = Vec::new();
    let mut is_cut_off = false;
    while let Some(reply) = replies.next().await {
        let QueryReply::Response { from, payload } = reply else {
            continue;
        };
        let (Some(name), Ok(report)) = (live.get(&from), LinkReport::decode(&payload)) else {
            // Of a member that came just now, or of a later release that says more.
            continue;
        };
        answered.insert(from);
        is_cut_off |= report.is_cut_off;
        links.extend(report.links().map(|(to, fault)| FaultyLink {
            from: name.clone(),
            to: live.get(&to).cloned().unwrap_or_else(|| to.to_string()),
            fault: match fault {
                quorate_gossip::LinkFault::Cut => LinkFault::Cut,
                quorate_gossip::LinkFault::OneWay => LinkFault::OneWay,
                quorate_gossip::LinkFault::Lossy { lost_count, sent_count } => {
                    LinkFault::Lossy { lost_count, sent_count }
                }
            },
        }));
        if answered.len() == live.len() {
            break;
        }
    }
    links.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    let silent = live.iter().filter(|(id, _)| !answered.contains(id));
    let mut silent: Vec<String> = silent.map(|(_, name)| name.clone()).collect();
    silent.sort();
    Ok(Reachability {
        member_count: live.len(),
        silent,
        links,
        is_cut_off,
    })
}

impl<R: RaftRt> Agent<R> {
    /// Answers the others' questions for as long as the agent runs.
    pub(crate) async fn answer_reachability(self) {
        let gossip = &self.inner.gossip;
        let mut queries = gossip.queries(QUERY);
        loop {
            let query = queries.next().await;
            let report = LinkReport::new(&gossip.reachability().links);
            if let Err(err) = gossip.respond(&query, report.encode()) {
                tracing::debug!(%err, "answer a question about reachability");
            }
        }
    }
}

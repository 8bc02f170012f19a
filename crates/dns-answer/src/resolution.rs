//! One question from its plan to its reply: which lookups it needs, one after another, host names in answers included.
//!
//! States: the catalog is asked for the question itself; then for each host name in the reply that is ours, or a recursor
//! for each that is not; then done. A name that is not ours at all is forwarded as it came.
//!
//! ```text
//! new --> Lookup --handle_answer, handle_failure--> (Lookup | Recurse)* --> Done
//!     \-> Forward --handle_forward_failed--> Done (or the recursor's reply is passed on, and this is dropped)
//!     \-> Done
//! ```
//! Duties of the driver: do what `step` says, tell the result by the `handle_*` of that step, until `Done`.
//! Invariants: at most `FOLLOW_UP_COUNT_MAX` lookups follow the first; a chain of CNAMEs is followed
//! `CNAME_DEPTH_MAX` times, so that a name that names itself ends.
//! Not here: sockets, deadlines, the order of recursors.

use crate::config::DnsConfig;
use crate::message::{Answered, Question, Rdata, Record, Reply, Transport, encode, qtype};
use crate::name::Name;
use crate::plan::{Lookup, Plan, plan};
use crate::records::{Asked, Attach, FollowUp};
use crate::recursed;
use quorate_store::{Answer, Query};
use rand_core::Rng;
use std::collections::VecDeque;
use std::sync::Arc;

/// Consul's `maxRecursionLevelDefault`.
const CNAME_DEPTH_MAX: u8 = 3;
/// Consul follows every SRV target. A service of a thousand host names would make one small question a thousand large
/// ones, so only the first targets of the shuffled answer are followed: more than fit a usual UDP reply.
const FOLLOW_UP_COUNT_MAX: usize = 32;

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Ask the catalog (of another datacenter, if named).
    Lookup {
        datacenter: Option<String>,
        query: Query,
    },
    /// Ask the recursors for a host name's addresses.
    Recurse {
        name: Name,
        qtype: u16,
    },
    /// Pass the client's question on to the recursors, and the reply back.
    Forward,
    Done,
}

/// Why a lookup has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupFailure {
    /// The datacenter is unknown: its names do not exist.
    NoDatacenter,
    /// Nothing is known.
    Failed,
}

enum State {
    Asking(Plan),
    /// A host name of ours.
    Following(Plan, Followed),
    Recursing(Followed),
    Forwarding,
    Done,
}

struct Followed {
    follow_up: FollowUp,
    depth_left: u8,
}

/// See the module's page.
pub struct Resolution {
    config: Arc<DnsConfig>,
    question: Question,
    now_unix_secs: u32,
    state: State,
    reply: Reply,
    waiting: VecDeque<Followed>,
    follow_up_count: usize,
}

impl Resolution {
    pub fn new(config: Arc<DnsConfig>, question: Question, now_unix_secs: u32) -> Self {
        let plan = plan(&config, &question.name, question.qtype);
        let asked = Asked {
            config: &config,
            name: &question.name,
            qtype: question.qtype,
            now_unix_secs,
        };
        let reply = asked.answer_without_catalog(&plan);
        let state = if plan.query().is_some() {
            State::Asking(plan)
        } else if config.recursion_available && matches!(plan.lookup, Lookup::Outside | Lookup::Reverse(None)) {
            State::Forwarding
        } else {
            State::Done
        };
        Self {
            config,
            question,
            now_unix_secs,
            state,
            reply,
            waiting: VecDeque::new(),
            follow_up_count: 0,
        }
    }

    pub fn step(&self) -> Step {
        match &self.state {
            State::Asking(plan) | State::Following(plan, _) => Step::Lookup {
                datacenter: plan.datacenter.clone(),
                query: plan.query().expect("a plan without a query is never asked"),
            },
            State::Recursing(followed) => Step::Recurse {
                name: followed.follow_up.target.clone(),
                // An A record does not help who asked for IPv6.
                qtype: match self.question.qtype {
                    qtype::AAAA => qtype::AAAA,
                    _ => qtype::A,
                },
            },
            State::Forwarding => Step::Forward,
            State::Done => Step::Done,
        }
    }

    /// The catalog answered the step's query.
    pub fn handle_answer(&mut self, answer: &Answer, rng: &mut impl Rng) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Asking(plan) => {
                let (reply, follow_ups) = self.asked().answer(&plan, answer, rng);
                let is_unknown_address = matches!(plan.lookup, Lookup::Reverse(_)) && reply.answers.is_empty();
                self.reply = reply;
                if is_unknown_address && self.config.recursion_available {
                    self.state = State::Forwarding;
                    return;
                }
                self.wait_for(follow_ups, CNAME_DEPTH_MAX);
                self.advance();
            }
            State::Following(plan, followed) => {
                let asked = Asked {
                    config: &self.config,
                    name: &followed.follow_up.target,
                    qtype: qtype::ANY,
                    now_unix_secs: self.now_unix_secs,
                };
                let (reply, follow_ups) = asked.answer(&plan, answer, rng);
                self.take_followed(followed, reply, follow_ups);
            }
            state => self.state = state,
        }
    }

    /// The catalog could not answer the step's query.
    pub fn handle_failure(&mut self, failure: LookupFailure) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Asking(plan) => {
                let asked = self.asked();
                let reply = match (&plan.lookup, failure) {
                    (Lookup::Reverse(_), _) => asked.unresolvable(),
                    // The zone begins here even while nobody can say who serves it.
                    (Lookup::Soa, _) => asked.answer(&plan, &Answer::Instances(Vec::new()), &mut NoDraws).0,
                    (_, LookupFailure::NoDatacenter) => asked.missing(),
                    (_, LookupFailure::Failed) => asked.failed(),
                };
                let is_reverse = matches!(plan.lookup, Lookup::Reverse(_));
                self.reply = reply;
                if is_reverse && self.config.recursion_available {
                    self.state = State::Forwarding;
                }
            }
            State::Following(..) => self.advance(),
            state => self.state = state,
        }
    }

    /// A recursor answered the step's question; `None`: none did.
    pub fn handle_recursed(&mut self, reply: Option<&[u8]>) {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Recursing(followed) => {
                let records = reply.map_or(Vec::new(), |reply| {
                    recursed::addresses(reply, followed.follow_up.ttl_secs)
                });
                self.attach(followed.follow_up.attach, records);
                self.advance();
            }
            state => self.state = state,
        }
    }

    /// No recursor answered the forwarded question.
    pub fn handle_forward_failed(&mut self) {
        if matches!(self.state, State::Forwarding) {
            self.reply = self.asked().unresolvable();
            self.state = State::Done;
        }
    }

    /// The deadline passed. A reply that only lacks the addresses of its host names is sent as it is, as without recursors.
    pub fn give_up(&mut self) {
        if matches!(self.state, State::Asking(_) | State::Forwarding) {
            self.reply = self.asked().failed();
        }
        self.state = State::Done;
    }

    pub fn question(&self) -> &Question {
        &self.question
    }

    /// The reply, final once the step is `Done`.
    pub fn reply(&self) -> &Reply {
        &self.reply
    }

    pub fn encode(&self, transport: Transport) -> Vec<u8> {
        encode(&self.reply, &self.question, &self.config, transport)
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            config: &self.config,
            name: &self.question.name,
            qtype: self.question.qtype,
            now_unix_secs: self.now_unix_secs,
        }
    }

    fn wait_for(&mut self, follow_ups: Vec<FollowUp>, depth_left: u8) {
        let room = FOLLOW_UP_COUNT_MAX - self.follow_up_count;
        let taken = follow_ups.into_iter().take(room);
        let before = self.waiting.len();
        self.waiting
            .extend(taken.map(|follow_up| Followed { follow_up, depth_left }));
        self.follow_up_count += self.waiting.len() - before;
    }

    /// Goes on to the next host name that anyone can be asked for.
    fn advance(&mut self) {
        self.state = State::Done;
        while let Some(followed) = self.waiting.pop_front() {
            let target = &followed.follow_up.target;
            let plan = plan(&self.config, target, qtype::ANY);
            match plan.lookup {
                Lookup::Outside | Lookup::Reverse(_) => {
                    if self.config.recursion_available {
                        self.state = State::Recursing(followed);
                        return;
                    }
                }
                _ if followed.depth_left == 0 => {}
                _ if plan.query().is_some() => {
                    self.state = State::Following(plan, followed);
                    return;
                }
                _ => {
                    let asked = Asked {
                        config: &self.config,
                        name: target,
                        qtype: qtype::ANY,
                        now_unix_secs: self.now_unix_secs,
                    };
                    let reply = asked.answer_without_catalog(&plan);
                    self.take_records(&followed, reply);
                }
            }
        }
    }

    fn take_followed(&mut self, followed: Followed, reply: Reply, follow_ups: Vec<FollowUp>) {
        self.take_records(&followed, reply);
        let attach = followed.follow_up.attach;
        let with_txt = followed.follow_up.with_txt;
        // A target's own targets go where it went.
        let deeper = follow_ups
            .into_iter()
            .map(|follow_up| FollowUp {
                attach,
                with_txt,
                ..follow_up
            })
            .collect();
        self.wait_for(deeper, followed.depth_left - 1);
        self.advance();
    }

    fn take_records(&mut self, followed: &Followed, reply: Reply) {
        let asked_type = self.question.qtype;
        let records = reply
            .answers
            .into_iter()
            .map(|answered| answered.record)
            .filter(|record| match record.rdata {
                Rdata::A(_) => asked_type != qtype::AAAA,
                Rdata::Aaaa(_) => asked_type != qtype::A,
                Rdata::Cname(_) => true,
                Rdata::Txt(_) => followed.follow_up.with_txt,
                _ => false,
            })
            .collect();
        self.attach(followed.follow_up.attach, records);
    }

    fn attach(&mut self, attach: Attach, records: Vec<Record>) {
        match attach {
            Attach::Answer => self.reply.answers.extend(records.into_iter().map(|record| Answered {
                record,
                extras: Vec::new(),
            })),
            Attach::Extras(position) => {
                // Follow-ups are made with the answers, which are only added to.
                self.reply.answers[position].extras.extend(records);
            }
        }
    }
}

/// For answers in which nothing is shuffled.
struct NoDraws;

impl rand_core::TryRng for NoDraws {
    type Error = std::convert::Infallible;
    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(0)
    }
    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(0)
    }
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        bytes.fill(0);
        Ok(())
    }
}

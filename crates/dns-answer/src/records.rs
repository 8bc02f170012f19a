//! The catalog's answer made records (contract: node, service, zone and reverse lookups of Consul).
//!
//! In: a plan, the catalog's answer to its query, a generator to shuffle with. Out: a [`Reply`], and the host names in it
//! that want addresses ([`FollowUp`]).
//! Invariants: no instance with a critical check is in a reply; an address occurs once among A and AAAA answers.
//! Not here: following host names (`resolution`), cutting to size (`message`).

use crate::config::DnsConfig;
use crate::message::{Answered, Rcode, Rdata, Record, Reply, qtype};
use crate::name::Name;
use crate::plan::{Lookup, Plan};
use quorate_store::{AddressOwner, Answer, Instance};
use quorate_types::{CheckStatus, Node, Service};
use rand_core::Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Name servers of the zone in one reply.
const NAME_SERVER_COUNT_MAX: usize = 3;
const SRV_PRIORITY: u16 = 1;

/// A host name in a reply that wants its addresses beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowUp {
    pub target: Name,
    pub attach: Attach,
    /// Of the record that named the target.
    pub ttl_secs: u32,
    /// TXT records of a node come along when a node led to it (Consul 1.8.7).
    pub with_txt: bool,
}

/// Where the addresses of a target go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// Behind a CNAME in ANSWER.
    Answer,
    /// In ADDITIONAL, with the SRV record at this position.
    Extras(usize),
}

/// What was asked, and what the answer depends on besides the catalog.
pub struct Asked<'a> {
    pub config: &'a DnsConfig,
    pub name: &'a Name,
    pub qtype: u16,
    /// The zone's serial.
    pub now_unix_secs: u32,
}

/// Which addresses a question takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
    Any,
}

impl Family {
    fn of_type(asked: u16) -> Self {
        match asked {
            qtype::A => Self::V4,
            qtype::AAAA => Self::V6,
            _ => Self::Any,
        }
    }
    fn takes(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Any => true,
        }
    }
}

impl Asked<'_> {
    /// The reply of a plan that needs no catalog.
    pub fn answer_without_catalog(&self, plan: &Plan) -> Reply {
        match &plan.lookup {
            Lookup::Addr(address) => {
                let mut reply = Reply::empty(Rcode::NoError, self.config);
                let owner = self.name.to_lowercase();
                reply
                    .answers
                    .push(alone(address_record(&owner, self.config.node_ttl_secs(), *address)));
                reply
            }
            Lookup::AddrWithoutData => Reply::empty(Rcode::NoError, self.config),
            Lookup::Outside | Lookup::Transfer => {
                let mut reply = Reply::empty(Rcode::Refused, self.config);
                reply.authoritative = false;
                reply.echoes_edns = false;
                reply
            }
            Lookup::Reverse(_) => self.unresolvable(),
            _ => self.missing(),
        }
    }

    /// The reply to a plan's query, answered by the catalog.
    pub fn answer(&self, plan: &Plan, answer: &Answer, rng: &mut impl Rng) -> (Reply, Vec<FollowUp>) {
        match (&plan.lookup, answer) {
            (Lookup::Node { name }, Answer::Node(Some(view))) if view.node.name.eq_ignore_ascii_case(name) => {
                self.node(&view.node)
            }
            (Lookup::Service { name, .. }, Answer::Instances(instances)) => self.service(name, instances, rng),
            (Lookup::Soa, Answer::Instances(servers)) => {
                let mut reply = Reply::empty(Rcode::NoError, self.config);
                let (servers, glue) = self.name_servers(servers, rng);
                reply.answers.extend(self.soa().map(alone));
                reply.authority = servers;
                reply.additional = glue;
                (reply, Vec::new())
            }
            (Lookup::Ns, Answer::Instances(servers)) => {
                let mut reply = Reply::empty(Rcode::NoError, self.config);
                let (servers, glue) = self.name_servers(servers, rng);
                reply.answers = servers.into_iter().map(alone).collect();
                reply.additional = glue;
                (reply, Vec::new())
            }
            (Lookup::Reverse(_), Answer::Address(Some(owner))) => (self.reverse(owner), Vec::new()),
            (Lookup::Reverse(_), _) => (self.unresolvable(), Vec::new()),
            // Also a node found by its id: only its name is in DNS.
            _ => (self.missing(), Vec::new()),
        }
    }

    /// NXDOMAIN with the zone's SOA (RFC 2308 section 2.1).
    pub fn missing(&self) -> Reply {
        let mut reply = Reply::empty(Rcode::NxDomain, self.config);
        reply.authority.extend(self.soa());
        reply
    }

    /// The lookup failed: no word on whether the name exists.
    pub fn failed(&self) -> Reply {
        Reply::empty(Rcode::ServFail, self.config)
    }

    /// SERVFAIL as a resolver that found no one to ask gives it (Consul 1.8.7: RA set even without recursors).
    pub fn unresolvable(&self) -> Reply {
        let mut reply = Reply::empty(Rcode::ServFail, self.config);
        reply.authoritative = false;
        reply.recursion_available = true;
        reply
    }

    /// `None` when the domain leaves no room for its `hostmaster.`.
    pub fn soa(&self) -> Option<Record> {
        let domain = &self.config.domain;
        let numbers = self.config.soa;
        Some(Record {
            name: domain.clone(),
            ttl_secs: numbers.min_ttl.min(u32::MAX >> 1),
            rdata: Rdata::Soa {
                mname: domain.child(&["ns"]).ok()?,
                rname: domain.child(&["hostmaster"]).ok()?,
                serial: self.now_unix_secs,
                refresh: numbers.refresh,
                retry: numbers.retry,
                expire: numbers.expire,
                minimum: numbers.min_ttl,
            },
        })
    }

    fn node(&self, node: &Node) -> (Reply, Vec<FollowUp>) {
        let ttl_secs = self.config.node_ttl_secs();
        let mut reply = Reply::empty(Rcode::NoError, self.config);
        let mut follow_ups = Vec::new();
        if self.qtype != qtype::TXT {
            let family = Family::of_type(self.qtype);
            match self.node_address(node, family).parse::<IpAddr>() {
                Ok(address) => {
                    let is_asked = matches!(self.qtype, qtype::A | qtype::AAAA | qtype::ANY);
                    if is_asked && family.takes(address) {
                        reply.answers.push(alone(address_record(self.name, ttl_secs, address)));
                    }
                }
                Err(_) => {
                    if let Ok(target) = Name::from_text(self.node_address(node, family)) {
                        self.push_cname(&mut reply, &mut follow_ups, target, ttl_secs, true);
                    }
                }
            }
        }
        match self.qtype {
            qtype::TXT | qtype::ANY => reply.answers.extend(text_records(self.name, ttl_secs, node).map(alone)),
            qtype::A | qtype::AAAA if self.config.enable_additional_node_meta_txt => {
                reply.additional.extend(text_records(self.name, ttl_secs, node));
            }
            _ => {}
        }
        (reply, follow_ups)
    }

    fn service(&self, service: &str, instances: &[Instance], rng: &mut impl Rng) -> (Reply, Vec<FollowUp>) {
        let mut healthy: Vec<(&Instance, CheckStatus)> = instances
            .iter()
            .map(|instance| (instance, instance.status()))
            .filter(|(_, status)| match status {
                CheckStatus::Passing => true,
                CheckStatus::Warning => !self.config.only_passing,
                CheckStatus::Critical => false,
            })
            .collect();
        if healthy.is_empty() {
            return (self.missing(), Vec::new());
        }
        shuffle(&mut healthy, rng);
        let ttl_secs = self.config.service_ttl_secs(service);
        let mut reply = Reply::empty(Rcode::NoError, self.config);
        reply.udp_answer_limit = self.config.udp_answer_limit;
        let mut follow_ups = Vec::new();
        if self.qtype == qtype::SRV {
            self.srv(&healthy, ttl_secs, &mut reply, &mut follow_ups);
        } else {
            self.addresses(&healthy, ttl_secs, &mut reply, &mut follow_ups);
        }
        if reply.answers.is_empty() {
            reply.authority.extend(self.soa());
        }
        (reply, follow_ups)
    }

    fn addresses(
        &self,
        instances: &[(&Instance, CheckStatus)],
        ttl_secs: u32,
        reply: &mut Reply,
        follow_ups: &mut Vec<FollowUp>,
    ) {
        let family = Family::of_type(self.qtype);
        let mut seen = BTreeSet::new();
        let mut alias = None;
        let count_max = match self.config.a_record_limit {
            0 => usize::MAX,
            limit => limit,
        };
        for (instance, _) in instances {
            if reply.answers.len() >= count_max {
                break;
            }
            let mut text = self.service_address(instance, family);
            if text.is_empty() {
                text = self.node_address(&instance.node, family);
            }
            match text.parse::<IpAddr>() {
                Ok(address) if family.takes(address) && seen.insert(address) => {
                    reply.answers.push(alone(address_record(self.name, ttl_secs, address)));
                }
                Ok(_) => {}
                Err(_) => {
                    if alias.is_none() {
                        alias = Name::from_text(text).ok();
                    }
                }
            }
        }
        // A name with a CNAME has nothing else, and one CNAME only (RFC 1034 section 3.6.2).
        if reply.answers.is_empty()
            && let Some(target) = alias
        {
            self.push_cname(reply, follow_ups, target, ttl_secs, false);
        }
    }

    fn srv(
        &self,
        instances: &[(&Instance, CheckStatus)],
        ttl_secs: u32,
        reply: &mut Reply,
        follow_ups: &mut Vec<FollowUp>,
    ) {
        // Each target's own records once: behind the first answer that names it, as answers are dropped from the end.
        let mut targets = BTreeSet::new();
        // Node names repeat, and with them the names made of them.
        let mut node_names: BTreeMap<&str, Option<Name>> = BTreeMap::new();
        for (instance, status) in instances {
            let node = &*instance.node;
            let Ok(port) = u16::try_from(self.service_port(instance)) else {
                continue;
            };
            let own = self.service_address(instance, Family::Any);
            let nodes = self.node_address(node, Family::Any);
            let text = if own.is_empty() { nodes } else { own };
            let address = text.parse::<IpAddr>().ok();
            let is_node = own.is_empty() && nodes == node.address;
            let target = match address {
                Some(_) if is_node => node_names
                    .entry(&node.name)
                    .or_insert_with(|| self.node_name(node))
                    .clone(),
                Some(address) => self.address_name(node, address),
                None => Name::from_text(text).ok(),
            };
            let Some(target) = target else { continue };
            let mut extras = Vec::new();
            if targets.insert(target.clone()) {
                match address {
                    Some(address) => {
                        extras.push(address_record(&target, ttl_secs, address));
                        if is_node && self.config.enable_additional_node_meta_txt {
                            extras.extend(text_records(&target, ttl_secs, node));
                        }
                    }
                    None => follow_ups.push(FollowUp {
                        target: target.clone(),
                        attach: Attach::Extras(reply.answers.len()),
                        ttl_secs,
                        with_txt: false,
                    }),
                }
            }
            let weights = instance.service.weights;
            let weight = match status {
                CheckStatus::Warning => weights.warning,
                CheckStatus::Passing | CheckStatus::Critical => weights.passing,
            };
            let rdata = Rdata::Srv {
                priority: SRV_PRIORITY,
                weight,
                port,
                target,
            };
            let record = Record {
                name: self.name.clone(),
                ttl_secs,
                rdata,
            };
            reply.answers.push(Answered { record, extras });
        }
    }

    /// NS records of the zone and their addresses: up to three healthy servers, drawn at random.
    fn name_servers(&self, servers: &[Instance], rng: &mut impl Rng) -> (Vec<Record>, Vec<Record>) {
        let ttl_secs = self.config.node_ttl_secs();
        let mut servers: Vec<&Instance> = servers
            .iter()
            .filter(|server| server.status() != CheckStatus::Critical)
            // What resolvers take no name server's name to be is left out, as Consul does.
            .filter(|server| {
                let name = &server.node.name;
                name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            })
            .collect();
        shuffle(&mut servers, rng);
        let (mut records, mut glue) = (Vec::new(), Vec::new());
        for server in servers {
            if records.len() == NAME_SERVER_COUNT_MAX {
                break;
            }
            let Some(target) = self.node_name(&server.node) else {
                continue;
            };
            if let Ok(address) = self.node_address(&server.node, Family::Any).parse() {
                glue.push(address_record(&target, ttl_secs, address));
            }
            records.push(Record {
                name: self.config.domain.clone(),
                ttl_secs,
                rdata: Rdata::Ns(target),
            });
        }
        (records, glue)
    }

    fn reverse(&self, owner: &AddressOwner) -> Reply {
        let target = match owner {
            AddressOwner::Node(node) => self.node_name(node),
            AddressOwner::Service(service) => self
                .config
                .domain
                .child(&[&service.name, "service", &self.config.datacenter])
                .ok(),
        };
        let Some(target) = target else {
            return self.unresolvable();
        };
        let mut reply = Reply::empty(Rcode::NoError, self.config);
        let record = Record {
            name: self.name.clone(),
            ttl_secs: 0,
            rdata: Rdata::Ptr(target),
        };
        reply.answers.push(alone(record));
        reply
    }

    fn push_cname(
        &self,
        reply: &mut Reply,
        follow_ups: &mut Vec<FollowUp>,
        target: Name,
        ttl_secs: u32,
        with_txt: bool,
    ) {
        reply.answers.push(alone(Record {
            name: self.name.clone(),
            ttl_secs,
            rdata: Rdata::Cname(target.clone()),
        }));
        follow_ups.push(FollowUp {
            target,
            attach: Attach::Answer,
            ttl_secs,
            with_txt,
        });
    }

    fn datacenter_of<'a>(&'a self, node: &'a Node) -> &'a str {
        match node.datacenter.as_str() {
            "" => &self.config.datacenter,
            datacenter => datacenter,
        }
    }

    fn is_translated(&self, node: &Node) -> bool {
        self.config.translate_wan_addrs && !self.datacenter_of(node).eq_ignore_ascii_case(&self.config.datacenter)
    }

    fn node_address<'a>(&self, node: &'a Node, family: Family) -> &'a str {
        let tagged = |kind: &str| node.tagged_addresses.as_ref()?.get(kind).map(String::as_str);
        choose_address(&node.address, tagged, self.is_translated(node), family)
    }

    /// Empty: the instance has the node's address.
    fn service_address<'a>(&self, instance: &'a Instance, family: Family) -> &'a str {
        let service: &'a Service = &instance.service;
        let tagged = |kind: &str| service.tagged_addresses.get(kind).map(|tagged| tagged.address.as_str());
        choose_address(&service.address, tagged, self.is_translated(&instance.node), family)
    }

    fn service_port(&self, instance: &Instance) -> i64 {
        let wan = instance.service.tagged_addresses.get("wan");
        match wan {
            Some(wan) if wan.port != 0 && self.is_translated(&instance.node) => wan.port,
            _ => instance.service.port,
        }
    }

    /// `<node>.node.<dc>.<domain>`; `None` when the node's name does not fit a domain name.
    fn node_name(&self, node: &Node) -> Option<Name> {
        let datacenter = self.datacenter_of(node);
        self.config.domain.child(&[&node.name, "node", datacenter]).ok()
    }

    /// `<hex>.addr.<dc>.<domain>`.
    fn address_name(&self, node: &Node, address: IpAddr) -> Option<Name> {
        let digits = match address {
            IpAddr::V4(address) => format!("{:08x}", u32::from(address)),
            IpAddr::V6(address) => format!("{:032x}", u128::from(address)),
        };
        let datacenter = self.datacenter_of(node);
        self.config.domain.child(&[&digits, "addr", datacenter]).ok()
    }
}

/// The address of the asked family if one is tagged, else the general one; from afar, the `wan` ones first.
fn choose_address<'a>(
    plain: &'a str,
    tagged: impl Fn(&str) -> Option<&'a str>,
    is_translated: bool,
    family: Family,
) -> &'a str {
    let tagged = |kind: &str| tagged(kind).filter(|address| !address.is_empty());
    let wan = |kind: &str| tagged(kind).filter(|_| is_translated);
    let plain = wan("wan").unwrap_or(plain);
    let v4 = wan("wan_ipv4").or_else(|| tagged("lan_ipv4"));
    let v6 = wan("wan_ipv6").or_else(|| tagged("lan_ipv6"));
    let chosen = match family {
        Family::V4 => v4,
        Family::V6 => v6,
        Family::Any if plain.parse::<std::net::Ipv6Addr>().is_ok() => v6.or(v4),
        Family::Any => v4.or(v6),
    };
    chosen.unwrap_or(plain)
}

fn alone(record: Record) -> Answered {
    Answered {
        record,
        extras: Vec::new(),
    }
}

fn address_record(name: &Name, ttl_secs: u32, address: IpAddr) -> Record {
    let rdata = match address {
        IpAddr::V4(address) => Rdata::A(address),
        IpAddr::V6(address) => Rdata::Aaaa(address),
    };
    Record {
        name: name.clone(),
        ttl_secs,
        rdata,
    }
}

/// Node metadata as RFC 1464 attributes; a key that begins with `rfc1035-` gives its bare value.
fn text_records<'a>(name: &'a Name, ttl_secs: u32, node: &'a Node) -> impl Iterator<Item = Record> + 'a {
    node.meta.iter().flatten().map(move |(key, value)| {
        let text = if key.starts_with("rfc1035-") {
            value.clone()
        } else {
            let key = key.replace('`', "``").replace('=', "`=");
            format!("{key}={}", value.replace('`', "``"))
        };
        Record {
            name: name.clone(),
            ttl_secs,
            rdata: Rdata::Txt(text.into_bytes()),
        }
    })
}

/// Fisher and Yates, from the end.
fn shuffle<T>(items: &mut [T], rng: &mut impl Rng) {
    for count in (2..=items.len()).rev() {
        // The bias of a multiplication instead of a rejection is below count / 2^64.
        let drawn = (u128::from(rng.next_u64()) * count as u128) >> 64;
        items.swap(count - 1, usize::try_from(drawn).expect("below a length"));
    }
}

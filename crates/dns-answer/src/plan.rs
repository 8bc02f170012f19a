//! What a question asks for, read from its name and type alone (contract: name forms of Consul).
//!
//! In: a name and a qtype. Out: a [`Plan`], and the query to the catalog it needs, if any.
//! Not here: what the catalog's answer becomes (`records`).

use crate::config::DnsConfig;
use crate::message::qtype;
use crate::name::Name;
use quorate_store::Query;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The service every server registers; its instances are the zone's name servers.
pub(crate) const SERVER_SERVICE: &str = "consul";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    Node {
        name: String,
    },
    Service {
        name: String,
        tag: Option<String>,
    },
    /// `<hex>.addr`: the answer is in the name.
    Addr(IpAddr),
    /// `<hex>.addr` with a wrong number of digits: exists, without data (Consul 1.8.7).
    AddrWithoutData,
    Soa,
    Ns,
    /// Under `arpa.`; `None`: no whole address.
    Reverse(Option<IpAddr>),
    /// In our domain, but nothing can have this name.
    Missing,
    /// A zone transfer of our domain.
    Transfer,
    /// Not in our domains.
    Outside,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub lookup: Lookup,
    /// In lower case; `None`: the agent's own.
    pub datacenter: Option<String>,
}

impl Plan {
    fn local(lookup: Lookup) -> Self {
        Self {
            lookup,
            datacenter: None,
        }
    }

    /// What to ask the catalog of `datacenter`. `None`: the answer needs no catalog.
    pub fn query(&self) -> Option<Query> {
        let instances = |service: &str, tag: &Option<String>| Query::Instances {
            service: service.to_owned(),
            tags: tag.iter().cloned().collect(),
            node_meta: Vec::new(),
        };
        match &self.lookup {
            Lookup::Node { name } => Some(Query::Node { node: name.clone() }),
            Lookup::Service { name, tag } => Some(instances(name, tag)),
            Lookup::Soa | Lookup::Ns => Some(instances(SERVER_SERVICE, &None)),
            Lookup::Reverse(Some(address)) => Some(Query::Address { address: *address }),
            Lookup::Addr(_)
            | Lookup::AddrWithoutData
            | Lookup::Reverse(None)
            | Lookup::Missing
            | Lookup::Transfer
            | Lookup::Outside => None,
        }
    }
}

/// What `name` asks for.
pub fn plan(config: &DnsConfig, name: &Name, asked_type: u16) -> Plan {
    let Some(labels) = config.labels_in_our_domains(name) else {
        return Plan::local(reverse(name).map_or(Lookup::Outside, Lookup::Reverse));
    };
    match asked_type {
        qtype::SOA => Plan::local(Lookup::Soa),
        qtype::NS => Plan::local(Lookup::Ns),
        qtype::AXFR | qtype::IXFR => Plan::local(Lookup::Transfer),
        _ => by_labels(config, &labels).unwrap_or(Plan::local(Lookup::Missing)),
    }
}

/// `None`: no known form.
fn by_labels(config: &DnsConfig, labels: &[&[u8]]) -> Option<Plan> {
    // A dot inside a label would pass for a border between two once joined.
    let labels: Vec<&str> = labels
        .iter()
        .map(|label| std::str::from_utf8(label).ok().filter(|label| !label.contains('.')))
        .collect::<Option<_>>()?;
    // The rightmost word decides, as in Consul: `node.service.consul` is a service called `node`.
    let (at, word) = labels.iter().enumerate().rev().find_map(|(at, label)| {
        let word = ["node", "service", "addr", "query", "connect", "ingress", "virtual"]
            .into_iter()
            .find(|word| label.eq_ignore_ascii_case(word));
        // `_db._tcp.consul`: RFC 2782 names may leave `service` out.
        word.or(label.starts_with('_').then_some("_")).map(|word| (at, word))
    })?;
    let datacenter = datacenter(config, &labels[at + 1..])?;
    let lookup = match word {
        "node" if at > 0 => Lookup::Node {
            name: labels[..at].join("."),
        },
        "service" => service(&labels[..at])?,
        "_" => service(&labels[..=at])?,
        "addr" if at == 1 => addr(labels[0])?,
        _ => return None,
    };
    Some(Plan { lookup, datacenter })
}

fn service(labels: &[&str]) -> Option<Lookup> {
    let (name, before) = labels.split_last()?;
    if let [service] = before
        && let (Some(service), Some(tag)) = (service.strip_prefix('_'), name.strip_prefix('_'))
    {
        // RFC 2782 puts the protocol second; the catalog knows none, so anything but TCP is read as a tag.
        let tag = (!tag.eq_ignore_ascii_case("tcp")).then(|| tag.to_owned());
        return (!service.is_empty()).then(|| Lookup::Service {
            name: service.to_owned(),
            tag,
        });
    }
    Some(Lookup::Service {
        name: (*name).to_owned(),
        tag: (!before.is_empty()).then(|| before.join(".")),
    })
}

fn addr(digits: &str) -> Option<Lookup> {
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    match digits.len() {
        8 if is_hex => u32::from_str_radix(digits, 16)
            .ok()
            .map(|bits| Lookup::Addr(Ipv4Addr::from(bits).into())),
        32 if is_hex => u128::from_str_radix(digits, 16)
            .ok()
            .map(|bits| Lookup::Addr(Ipv6Addr::from(bits).into())),
        8 | 32 => None,
        _ => Some(Lookup::AddrWithoutData),
    }
}

/// The labels between the word and the domain: nothing, a datacenter, or pairs of value and kind (Consul 1.11 and later).
#[expect(clippy::option_option, reason = "no form, our own datacenter, a named one")]
fn datacenter(config: &DnsConfig, suffixes: &[&str]) -> Option<Option<String>> {
    let mut named = None;
    if let [only] = suffixes {
        named = Some(*only);
    } else {
        let (pairs, rest) = suffixes.as_chunks::<2>();
        if !rest.is_empty() {
            return None;
        }
        for [value, kind] in pairs {
            let is_default = value.eq_ignore_ascii_case("default");
            if kind.eq_ignore_ascii_case("dc") && named.is_none() {
                named = Some(value);
            } else if !(is_default && (kind.eq_ignore_ascii_case("ns") || kind.eq_ignore_ascii_case("ap"))) {
                return None;
            }
        }
    }
    let other = named.filter(|named| !named.eq_ignore_ascii_case(&config.datacenter));
    Some(other.map(str::to_ascii_lowercase))
}

/// The address in a name under `arpa.` (RFC 1035 section 3.5, RFC 3596 section 2.5). `None`: another name.
#[expect(clippy::option_option, reason = "another name, no whole address, an address")]
fn reverse(name: &Name) -> Option<Option<IpAddr>> {
    let arpa = |zone: &str| Name::from_text(zone).expect("a valid name");
    if let Some(labels) = name.labels_below(&arpa("in-addr.arpa.")) {
        return Some(reverse_v4(&labels).map(IpAddr::V4));
    }
    let labels = name.labels_below(&arpa("ip6.arpa."))?;
    Some(reverse_v6(&labels).map(IpAddr::V6))
}

fn reverse_v4(labels: &[&[u8]]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    if labels.len() != octets.len() {
        return None;
    }
    for (octet, label) in octets.iter_mut().zip(labels.iter().rev()) {
        // `parse` alone would take a sign.
        let digits = std::str::from_utf8(label).ok()?;
        *octet = digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())??;
    }
    Some(octets.into())
}

fn reverse_v6(labels: &[&[u8]]) -> Option<Ipv6Addr> {
    if labels.len() != 32 {
        return None;
    }
    let mut bits: u128 = 0;
    for label in labels.iter().rev() {
        let [digit] = label else { return None };
        bits = (bits << 4) | u128::from(char::from(*digit).to_digit(16)?);
    }
    Some(bits.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str) -> Plan {
        let mut config = DnsConfig::new("consul.", "dc1").unwrap();
        config.alt_domain = Some(Name::from_text("alt.test").unwrap());
        plan(&config, &Name::from_text(name).unwrap(), qtype::A)
    }

    #[track_caller]
    fn check(name: &str, lookup: Lookup, datacenter: Option<&str>) {
        let datacenter = datacenter.map(str::to_owned);
        assert_eq!(planned(name), Plan { lookup, datacenter }, "{name}");
    }

    fn node(name: &str) -> Lookup {
        Lookup::Node { name: name.to_owned() }
    }

    fn service(name: &str, tag: Option<&str>) -> Lookup {
        Lookup::Service {
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
        }
    }

    #[test]
    fn nodes_may_have_dots_and_datacenters() {
        check("n1.node.consul", node("n1"), None);
        check("N1.NODE.CONSUL", node("N1"), None);
        check("n1.node.alt.test", node("n1"), None);
        check("n1.node.dc1.consul", node("n1"), None);
        check("n1.node.DC9.consul", node("n1"), Some("dc9"));
        check("n1.node.dc9.dc.consul", node("n1"), Some("dc9"));
        check("n1.node.default.ns.dc9.dc.consul", node("n1"), Some("dc9"));
        check("node.dot.node.consul", node("node.dot"), None);
        check("a.service.node.consul", node("a.service"), None);
    }

    #[test]
    fn services_have_one_tag_from_all_labels_on_the_left() {
        check("db.service.consul", service("db", None), None);
        check("v1.2.web.service.consul", service("web", Some("v1.2")), None);
        check("db.service.dc2.consul", service("db", None), Some("dc2"));
        check("node.service.consul", service("node", None), None);
        check("under_score.service.consul", service("under_score", None), None);
        check("_db.service.consul", service("_db", None), None);
    }

    #[test]
    fn rfc_2782_names_take_tcp_as_no_tag() {
        for name in [
            "_db._tcp.service.consul",
            "_db._tcp.consul",
            "_db._TCP.service.dc1.consul",
        ] {
            check(name, service("db", None), None);
        }
        check("_db._udp.service.consul", service("db", Some("udp")), None);
        check("_db._v_1.consul", service("db", Some("v_1")), None);
        check("_db._primary.dc2.consul", service("db", Some("primary")), Some("dc2"));
        check("_._tcp.consul", Lookup::Missing, None);
    }

    #[test]
    fn addr_names_hold_the_address() {
        check(
            "c0a80102.addr.dc1.consul",
            Lookup::Addr("192.168.1.2".parse().unwrap()),
            None,
        );
        check(
            "20010db8000000000000000000000055.addr.consul",
            Lookup::Addr("2001:db8::55".parse().unwrap()),
            None,
        );
        check("c0a801.addr.dc1.consul", Lookup::AddrWithoutData, None);
        check("zzzzzzzz.addr.dc1.consul", Lookup::Missing, None);
        check("+0a80102.addr.dc1.consul", Lookup::Missing, None);
        check("x.c0a80102.addr.consul", Lookup::Missing, None);
    }

    #[test]
    fn other_names_in_our_domain_are_missing() {
        for name in [
            "consul",
            "service.consul",
            "node.consul",
            "addr.consul",
            "query.consul",
            "dbq.query.consul",
            "dc1.consul",
            "foo.consul",
            "x.y.z.foo.consul",
            "ns.consul",
            "db.connect.consul",
            "db.ingress.consul",
            "db.virtual.consul",
            "n1.node.a.b.consul",
            "n1.node.a.b.c.consul",
            "n1.node.team.ns.consul",
            "n1.node.east.peer.consul",
            "n1.node.a.dc.b.dc.consul",
        ] {
            check(name, Lookup::Missing, None);
        }
    }

    #[test]
    fn a_label_that_is_no_text_or_has_a_dot_is_missing() {
        let config = DnsConfig::new("consul.", "dc1").unwrap();
        for label in [&b"dot.svc"[..], &[0xff, 0xfe]] {
            let name = Name::from_labels([label, b"service", b"consul"]).unwrap();
            assert_eq!(plan(&config, &name, qtype::A).lookup, Lookup::Missing);
        }
    }

    #[test]
    fn reverse_names_need_a_whole_address() {
        let reverse = |address: &str| Lookup::Reverse(Some(address.parse().unwrap()));
        check("10.0.0.10.in-addr.arpa", reverse("10.0.0.10"), None);
        check("2.1.168.192.IN-ADDR.ARPA", reverse("192.168.1.2"), None);
        check(
            "4.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
            reverse("2001:db8::4"),
            None,
        );
        for name in [
            "10.in-addr.arpa",
            "foo.in-addr.arpa",
            "256.0.0.10.in-addr.arpa",
            "1.ip6.arpa",
        ] {
            check(name, Lookup::Reverse(None), None);
        }
    }

    #[test]
    fn the_type_decides_for_the_zone_and_only_inside_it() {
        let config = DnsConfig::new("consul.", "dc1").unwrap();
        let planned = |name: &str, asked_type| plan(&config, &Name::from_text(name).unwrap(), asked_type).lookup;
        assert_eq!(planned("n1.node.consul", qtype::SOA), Lookup::Soa);
        assert_eq!(planned("dc1.consul", qtype::NS), Lookup::Ns);
        assert_eq!(planned("consul", qtype::AXFR), Lookup::Transfer);
        assert_eq!(planned("example.com", qtype::SOA), Lookup::Outside);
        assert_eq!(planned(".", qtype::NS), Lookup::Outside);
    }
}

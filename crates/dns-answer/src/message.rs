//! DNS messages as bytes: reads a question, writes a reply within its budget (RFC 1035 section 4, RFC 6891).
//!
//! In: a datagram or a framed message. Out: what to do with it (`receive`), and the bytes of a `Reply` (`encode`).
//! Promises: nothing a stranger sends panics or allocates beyond its own size; a reply never exceeds its budget.
//!
//! Own code rather than hickory's for two reasons. A reply is cut where the packed size says so, and hickory's writer
//! never points at an SRV target and gives up compressing after a few dozen names, so replies with SRV records would be
//! cut earlier than Consul cuts them. And the question is read on every packet. Property tests hold both to hickory's view.
//! Not here: what the records are (`records`), replies of other servers (`recursed`).

use crate::config::DnsConfig;
use crate::name::Name;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Record types that are treated apart (RFC 1035 section 3.2.2, RFC 3596, RFC 2782).
pub mod qtype {
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

pub const HEADER_LEN_BYTES: usize = 12;
/// RFC 1035 section 4.2.1: what a client without EDNS takes.
pub const UDP_REPLY_LEN_BYTES_MIN: usize = 512;
/// The largest datagram IPv4 carries, whatever size a client says it takes.
pub const UDP_REPLY_LEN_BYTES_MAX: usize = 65_507;
/// RFC 1035 section 4.2.2: the length prefix has 16 bits.
pub const TCP_MESSAGE_LEN_BYTES_MAX: usize = 65_535;

const CLASS_IN: u16 = 1;
const OPCODE_QUERY: u8 = 0;
const OPCODE_NOTIFY: u8 = 4;
const OPTION_CLIENT_SUBNET: u16 = 8;
/// The only version there is (RFC 6891).
const EDNS_VERSION: u8 = 0;
/// BADVERS is 16 (RFC 6891 section 9).
const BADVERS_UPPER_BITS: u8 = 1;
/// A pointer has 14 bits (RFC 1035 section 4.1.4).
const POINTER_OFFSET_MAX: usize = 0x3fff;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
}

/// What a client said of itself in an OPT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edns {
    pub udp_len_bytes: u16,
    /// The client-subnet option's data, echoed with scope 0.
    pub client_subnet: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    pub opcode: u8,
    pub recursion_desired: bool,
    pub name: Name,
    pub qtype: u16,
    pub qclass: u16,
    pub edns: Option<Edns>,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Say nothing: it is no question, and two servers answering each other's answers would never end.
    Ignored,
    /// Send these bytes: FORMERR, NOTIMP or BADVERS.
    Rejected(Vec<u8>),
    Asked(Question),
}

/// Reads what a client sent.
pub fn receive(message: &[u8]) -> Received {
    let Some(header) = message.first_chunk::<HEADER_LEN_BYTES>() else {
        return Received::Ignored;
    };
    if header[2] & 0x80 != 0 {
        return Received::Ignored;
    }
    let opcode = (header[2] >> 3) & 0x0f;
    if !matches!(opcode, OPCODE_QUERY | OPCODE_NOTIFY) {
        return Received::Rejected(rejection(header, Rcode::NotImp));
    }
    match read_question(message, header, opcode) {
        None => Received::Rejected(rejection(header, Rcode::FormErr)),
        Some((question, version)) if version > EDNS_VERSION => Received::Rejected(bad_version(&question)),
        Some((question, _)) => Received::Asked(question),
    }
}

/// The header alone, with the question's id, opcode and RD.
fn rejection(header: &[u8; HEADER_LEN_BYTES], rcode: Rcode) -> Vec<u8> {
    let mut reply = vec![0; HEADER_LEN_BYTES];
    reply[..2].copy_from_slice(&header[..2]);
    reply[2] = 0x80 | (header[2] & 0x79);
    reply[3] = rcode as u8;
    reply
}

/// BADVERS, with the version we speak in its OPT record (RFC 6891 section 6.1.3): nobody knows what a later version asks.
fn bad_version(question: &Question) -> Vec<u8> {
    let mut opt = opt_record(&Edns {
        udp_len_bytes: question.edns.as_ref().map_or(0, |edns| edns.udp_len_bytes),
        client_subnet: None,
    });
    // The TTL's first byte holds the upper eight of the code's twelve bits; those in the header stay 0.
    opt[5] = BADVERS_UPPER_BITS;
    let mut reply = vec![0; HEADER_LEN_BYTES];
    reply[..2].copy_from_slice(&question.id.to_be_bytes());
    reply[2] = 0x80 | (question.opcode << 3) | u8::from(question.recursion_desired);
    reply[5] = 1;
    reply[11] = 1;
    reply.extend_from_slice(question.name.as_wire());
    reply.extend_from_slice(&question.qtype.to_be_bytes());
    reply.extend_from_slice(&question.qclass.to_be_bytes());
    reply.extend_from_slice(&opt);
    reply
}

/// The question, and the version of its OPT record.
fn read_question(message: &[u8], header: &[u8; HEADER_LEN_BYTES], opcode: u8) -> Option<(Question, u8)> {
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    if count(4) != 1 {
        return None;
    }
    let name = Name::from_wire_prefix(&message[HEADER_LEN_BYTES..])?;
    let mut reader = Reader {
        message,
        at: HEADER_LEN_BYTES + name.as_wire().len(),
    };
    let (qtype, qclass) = (reader.u16()?, reader.u16()?);
    // NOTIFY brings an SOA record (RFC 1996 section 3.7); nobody reads it, but OPT may follow.
    for _ in 0..u32::from(count(6)) + u32::from(count(8)) {
        reader.record()?;
    }
    let mut edns = None;
    let mut version = EDNS_VERSION;
    for _ in 0..count(10) {
        let record = reader.record()?;
        if record.rtype != qtype::OPT {
            continue;
        }
        // RFC 6891 section 6.1.1: more than one OPT is an error, and it belongs to the root.
        if edns.is_some() || !record.is_of_root {
            return None;
        }
        version = record.ttl[1];
        edns = Some(Edns {
            udp_len_bytes: record.class,
            client_subnet: client_subnet(record.rdata),
        });
    }
    let question = Question {
        id: u16::from_be_bytes([header[0], header[1]]),
        opcode,
        recursion_desired: header[2] & 1 != 0,
        name,
        qtype,
        qclass,
        edns,
    };
    Some((question, version))
}

/// The first client-subnet option, if it is well formed: an odd one is not echoed, which says that it was not understood.
fn client_subnet(options: &[u8]) -> Option<Vec<u8>> {
    let mut reader = Reader {
        message: options,
        at: 0,
    };
    loop {
        let (code, len_bytes) = (reader.u16()?, reader.u16()?);
        let data = reader.bytes(usize::from(len_bytes))?;
        if code == OPTION_CLIENT_SUBNET {
            return is_client_subnet(data).then(|| {
                let mut data = data.to_vec();
                data[3] = 0;
                data
            });
        }
    }
}

/// RFC 7871 section 6: family, source prefix, scope prefix, and as many bytes of the address as the source prefix needs.
fn is_client_subnet(data: &[u8]) -> bool {
    let Some(([family_high, family_low, source_prefix, _], address)) = data.split_first_chunk::<4>() else {
        return false;
    };
    let prefix_max = match [*family_high, *family_low] {
        [0, 1] => 32,
        [0, 2] => 128,
        _ => return false,
    };
    *source_prefix <= prefix_max && address.len() == usize::from(source_prefix.div_ceil(8))
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

struct RawRecord<'a> {
    is_of_root: bool,
    rtype: u16,
    class: u16,
    ttl: [u8; 4],
    rdata: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len_bytes: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len_bytes)?;
        let bytes = self.message.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }
    fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }
    fn u16(&mut self) -> Option<u16> {
        self.bytes(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
    /// Steps over a name without following pointers, which end it.
    fn skip_name(&mut self) -> Option<()> {
        loop {
            match self.u8()? {
                0 => return Some(()),
                length @ 1..=63 => self.bytes(usize::from(length)).map(drop)?,
                192..=255 => return self.u8().map(drop),
                _ => return None,
            }
        }
    }
    fn record(&mut self) -> Option<RawRecord<'a>> {
        let name_at = self.at;
        self.skip_name()?;
        let is_of_root = self.at == name_at + 1;
        let (rtype, class) = (self.u16()?, self.u16()?);
        let ttl = *self.bytes(4)?.first_chunk()?;
        let rdata_len_bytes = self.u16()?;
        Some(RawRecord {
            is_of_root,
            rtype,
            class,
            ttl,
            rdata: self.bytes(usize::from(rdata_len_bytes))?,
        })
    }
}

/// A record's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rdata {
    A(Ipv4Addr),
    Aaaa(Ipv6Addr),
    Cname(Name),
    Ns(Name),
    Ptr(Name),
    Srv {
        priority: u16,
        weight: u16,
        port: u16,
        target: Name,
    },
    Soa {
        mname: Name,
        rname: Name,
        serial: u32,
        refresh: u32,
        retry: u32,
        expire: u32,
        minimum: u32,
    },
    /// Split into strings of 255 bytes when written.
    Txt(Vec<u8>),
}

impl Rdata {
    pub fn rtype(&self) -> u16 {
        match self {
            Self::A(_) => qtype::A,
            Self::Aaaa(_) => qtype::AAAA,
            Self::Cname(_) => qtype::CNAME,
            Self::Ns(_) => qtype::NS,
            Self::Ptr(_) => qtype::PTR,
            Self::Srv { .. } => qtype::SRV,
            Self::Soa { .. } => qtype::SOA,
            Self::Txt(_) => qtype::TXT,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub name: Name,
    pub ttl_secs: u32,
    pub rdata: Rdata,
}

/// A record of ANSWER, and those of ADDITIONAL that only make sense with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    pub record: Record,
    pub extras: Vec<Record>,
}

/// A reply as a value: everything but the question's id and the cut to size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub rcode: Rcode,
    pub authoritative: bool,
    pub recursion_available: bool,
    /// Answer a question's OPT with one. REFUSED goes without (Consul 1.8.7).
    pub echoes_edns: bool,
    /// Answers a small UDP reply may have; 0: as many as fit.
    pub udp_answer_limit: usize,
    pub answers: Vec<Answered>,
    pub authority: Vec<Record>,
    /// Dropped one by one from the end when room is short; never a reason for TC (RFC 2181 section 9).
    pub additional: Vec<Record>,
}

impl Reply {
    /// An authoritative reply without records.
    pub fn empty(rcode: Rcode, config: &DnsConfig) -> Self {
        Self {
            rcode,
            authoritative: true,
            recursion_available: config.recursion_available,
            echoes_edns: true,
            udp_answer_limit: 0,
            answers: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        }
    }
}

/// The bytes of `reply`, cut to what the transport and the client take.
pub fn encode(reply: &Reply, question: &Question, config: &DnsConfig, transport: Transport) -> Vec<u8> {
    let budget = budget_len_bytes(question, transport);
    let mut answers = &reply.answers[..];
    if transport == Transport::Udp && budget == UDP_REPLY_LEN_BYTES_MIN && reply.udp_answer_limit > 0 {
        answers = &answers[..answers.len().min(reply.udp_answer_limit)];
    }
    let mut writer = Writer::new(reply, question, config, budget);
    if !writer.write(answers, true) {
        // Short of room: what stands behind the answers goes first, then answers from the end. The size grows with
        // their number, so the greatest number that fits is found by halving: log(n) writes, each within the budget.
        let (mut fitting, mut beyond) = (0, answers.len() + 1);
        while beyond - fitting > 1 {
            let middle = fitting + (beyond - fitting) / 2;
            if writer.write(&answers[..middle], false) {
                fitting = middle;
            } else {
                beyond = middle;
            }
        }
        answers = &answers[..fitting];
        let fits = writer.write(answers, false);
        assert!(fits, "the question and OPT alone fit every budget");
    }
    let is_truncated = config.enable_truncate && answers.len() < reply.answers.len();
    writer.finish(is_truncated)
}

fn budget_len_bytes(question: &Question, transport: Transport) -> usize {
    match transport {
        Transport::Tcp => TCP_MESSAGE_LEN_BYTES_MAX,
        Transport::Udp => {
            let asked = question.edns.as_ref().map_or(0, |edns| usize::from(edns.udp_len_bytes));
            asked.clamp(UDP_REPLY_LEN_BYTES_MIN, UDP_REPLY_LEN_BYTES_MAX)
        }
    }
}

/// No more room within the budget.
struct Full;

struct Writer<'a> {
    reply: &'a Reply,
    question: &'a Question,
    compresses: bool,
    opt: Vec<u8>,
    /// The budget less the OPT record, which is written last.
    len_bytes_max: usize,
    message: Vec<u8>,
    /// Where a name, or the end of one, was written: by its exact bytes, as the case of what is pointed at is kept.
    names: BTreeMap<&'a [u8], u16>,
    counts: [u16; 3],
}

impl<'a> Writer<'a> {
    fn new(reply: &'a Reply, question: &'a Question, config: &DnsConfig, budget: usize) -> Self {
        let opt = match &question.edns {
            Some(edns) if reply.echoes_edns => opt_record(edns),
            _ => Vec::new(),
        };
        Self {
            reply,
            question,
            compresses: !config.disable_compression,
            len_bytes_max: budget - opt.len(),
            opt,
            message: Vec::with_capacity(UDP_REPLY_LEN_BYTES_MIN),
            names: BTreeMap::new(),
            counts: [0; 3],
        }
    }

    /// Writes everything up to OPT, whose place is kept free. False: it does not fit.
    fn write(&mut self, answers: &'a [Answered], with_the_rest: bool) -> bool {
        self.message.clear();
        self.message.resize(HEADER_LEN_BYTES, 0);
        self.names.clear();
        self.counts = [0; 3];
        let written = self.try_write(answers, with_the_rest);
        if written.is_err() {
            return false;
        }
        if with_the_rest {
            for record in &self.reply.additional {
                let end = self.message.len();
                if self.record(record).is_err() {
                    // Names remembered beyond the cut do no harm: nothing is written after it.
                    self.message.truncate(end);
                    break;
                }
                self.counts[2] += 1;
            }
        }
        true
    }

    fn try_write(&mut self, answers: &'a [Answered], with_the_rest: bool) -> Result<(), Full> {
        self.name(&self.question.name, true)?;
        self.bytes(&self.question.qtype.to_be_bytes())?;
        self.bytes(&self.question.qclass.to_be_bytes())?;
        for answer in answers {
            self.record(&answer.record)?;
            self.counts[0] += 1;
        }
        if with_the_rest {
            for record in &self.reply.authority {
                self.record(record)?;
                self.counts[1] += 1;
            }
        }
        for record in answers.iter().flat_map(|answer| &answer.extras) {
            self.record(record)?;
            self.counts[2] += 1;
        }
        Ok(())
    }

    fn finish(mut self, is_truncated: bool) -> Vec<u8> {
        let [answer, authority, additional] = self.counts;
        let additional = additional + u16::from(!self.opt.is_empty());
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        let header = &mut self.message[..HEADER_LEN_BYTES];
        header[..2].copy_from_slice(&self.question.id.to_be_bytes());
        header[2] = 0x80
            | (self.question.opcode << 3)
            | flag(self.reply.authoritative, 4)
            | flag(is_truncated, 2)
            | flag(self.question.recursion_desired, 1);
        header[3] = flag(self.reply.recursion_available, 0x80) | self.reply.rcode as u8;
        for (at, count) in [(4, 1), (6, answer), (8, authority), (10, additional)] {
            header[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
        self.message.extend_from_slice(&self.opt);
        self.message
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if self.message.len() + bytes.len() > self.len_bytes_max {
            return Err(Full);
        }
        self.message.extend_from_slice(bytes);
        Ok(())
    }

    /// A name may be pointed at even where pointing is not allowed (`SRV` targets, RFC 2782).
    fn name(&mut self, name: &'a Name, may_point: bool) -> Result<(), Full> {
        let points = may_point && self.compresses;
        if points && self.message.len() > HEADER_LEN_BYTES && name.is_same(&self.question.name) {
            return self.pointer(HEADER_LEN_BYTES);
        }
        let mut rest = name.as_wire();
        while rest[0] != 0 {
            if let Some(at) = self.names.get(rest) {
                if points {
                    return self.pointer(usize::from(*at));
                }
            } else if self.compresses && self.message.len() <= POINTER_OFFSET_MAX {
                let at = u16::try_from(self.message.len()).expect("checked against 14 bits");
                self.names.insert(rest, at);
            }
            let (label, tail) = rest.split_at(1 + usize::from(rest[0]));
            self.bytes(label)?;
            rest = tail;
        }
        self.bytes(&[0])
    }

    fn pointer(&mut self, at: usize) -> Result<(), Full> {
        let at = u16::try_from(at).expect("only offsets of 14 bits are remembered");
        self.bytes(&(0xc000 | at).to_be_bytes())
    }

    fn record(&mut self, record: &'a Record) -> Result<(), Full> {
        self.name(&record.name, true)?;
        self.bytes(&record.rdata.rtype().to_be_bytes())?;
        self.bytes(&CLASS_IN.to_be_bytes())?;
        self.bytes(&record.ttl_secs.to_be_bytes())?;
        let len_at = self.message.len();
        self.bytes(&[0, 0])?;
        self.rdata(&record.rdata)?;
        // The budget is at most 65,535 bytes, so the length of a part of the message fits 16 bits.
        let rdata_len_bytes = u16::try_from(self.message.len() - len_at - 2).expect("within the budget");
        self.message[len_at..len_at + 2].copy_from_slice(&rdata_len_bytes.to_be_bytes());
        Ok(())
    }

    fn rdata(&mut self, rdata: &'a Rdata) -> Result<(), Full> {
        match rdata {
            Rdata::A(address) => self.bytes(&address.octets()),
            Rdata::Aaaa(address) => self.bytes(&address.octets()),
            Rdata::Cname(name) | Rdata::Ns(name) | Rdata::Ptr(name) => self.name(name, true),
            Rdata::Srv {
                priority,
                weight,
                port,
                target,
            } => {
                for number in [priority, weight, port] {
                    self.bytes(&number.to_be_bytes())?;
                }
                self.name(target, false)
            }
            Rdata::Soa {
                mname,
                rname,
                serial,
                refresh,
                retry,
                expire,
                minimum,
            } => {
                self.name(mname, true)?;
                self.name(rname, true)?;
                for number in [serial, refresh, retry, expire, minimum] {
                    self.bytes(&number.to_be_bytes())?;
                }
                Ok(())
            }
            Rdata::Txt(text) => {
                if text.is_empty() {
                    return self.bytes(&[0]);
                }
                for string in text.chunks(255) {
                    self.bytes(&[u8::try_from(string.len()).expect("chunks of 255")])?;
                    self.bytes(string)?;
                }
                Ok(())
            }
        }
    }
}

fn opt_record(edns: &Edns) -> Vec<u8> {
    let mut record = Vec::with_capacity(11);
    record.push(0);
    record.extend_from_slice(&qtype::OPT.to_be_bytes());
    record.extend_from_slice(&edns.udp_len_bytes.to_be_bytes());
    record.extend_from_slice(&[0; 4]);
    let subnet = edns.client_subnet.as_deref().unwrap_or_default();
    let len_bytes = u16::try_from(subnet.len()).expect("bounded when read");
    if subnet.is_empty() {
        record.extend_from_slice(&[0; 2]);
    } else {
        record.extend_from_slice(&(len_bytes + 4).to_be_bytes());
        record.extend_from_slice(&OPTION_CLIENT_SUBNET.to_be_bytes());
        record.extend_from_slice(&len_bytes.to_be_bytes());
        record.extend_from_slice(subnet);
    }
    record
}

/// A question of our own to a recursor, with RD set.
pub fn encode_question(id: u16, name: &Name, qtype: u16) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER_LEN_BYTES + name.as_wire().len() + 4);
    message.extend_from_slice(&id.to_be_bytes());
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend_from_slice(name.as_wire());
    message.extend_from_slice(&qtype.to_be_bytes());
    message.extend_from_slice(&CLASS_IN.to_be_bytes());
    message
}

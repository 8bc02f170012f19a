//! Replies of other servers: whether they answer what was asked, and the addresses in them.
//!
//! Not here: whom to ask, and when to give up (the driver's).

use crate::message::{HEADER_LEN_BYTES, Rcode, Rdata, Record};
use crate::name::Name;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;

/// Records taken from one reply: more than a sane one has, few enough to bound what a hostile recursor makes us hold.
const RECORD_COUNT_MAX: usize = 64;

/// The code of `reply` when it answers `question`: same id, same question (RFC 5452 section 9.1).
pub fn rcode_of_reply(reply: &[u8], question: &[u8]) -> Option<u8> {
    let (header, asked) = (
        reply.first_chunk::<HEADER_LEN_BYTES>()?,
        question.get(..HEADER_LEN_BYTES)?,
    );
    let is_reply = header[2] & 0x80 != 0;
    if !is_reply || header[..2] != asked[..2] {
        return None;
    }
    let question_of = |message: &[u8]| {
        let name = Name::from_wire_prefix(message.get(HEADER_LEN_BYTES..)?)?;
        let at = HEADER_LEN_BYTES + name.as_wire().len();
        let kind: [u8; 4] = message.get(at..at + 4)?.try_into().ok()?;
        Some((name, kind))
    };
    // Some servers leave the question out of a refusal.
    if header[4..6] != [0, 0] || header[3] & 0x0f == Rcode::NoError as u8 {
        let (theirs, ours) = (question_of(reply)?, question_of(question)?);
        if !theirs.0.eq_ignore_case(&ours.0) || theirs.1 != ours.1 {
            return None;
        }
    }
    Some(header[3] & 0x0f)
}

/// A, AAAA and CNAME records of a reply's ANSWER, under our TTL. Empty when it is malformed.
pub(crate) fn addresses(reply: &[u8], ttl_secs: u32) -> Vec<Record> {
    let Ok(message) = Message::from_vec(reply) else {
        return Vec::new();
    };
    let records = message.answers.iter().filter_map(|record| {
        let rdata = match &record.data {
            RData::A(address) => Rdata::A(address.0),
            RData::AAAA(address) => Rdata::Aaaa(address.0),
            RData::CNAME(target) => Rdata::Cname(Name::from_labels(target.0.iter()).ok()?),
            _ => return None,
        };
        Some(Record {
            name: Name::from_labels(record.name.iter()).ok()?,
            ttl_secs,
            rdata,
        })
    });
    records.take(RECORD_COUNT_MAX).collect()
}

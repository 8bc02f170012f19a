//! A DNS question and the catalog's answer make records.
//!
//! The way of a question: [`receive`] reads it; a [`Resolution`] says which lookups it needs and takes their answers, so
//! that it works alike over a server's own snapshot and over RPC; [`Resolution::encode`] writes the reply, cut to size.
//! Between the two the reply is a value ([`Reply`]) that a driver can keep.
//!
//! Promises: no instance with a critical check is answered; no input panics; a reply fits what the client takes.
//! Randomness is a generator given by the caller, time a number given by the caller: one seed gives one reply.
//!
//! Not here: sockets, deadlines and recursors' order (`dns-server`); where the catalog's answer comes from; ACLs;
//! prepared queries, whose names do not exist yet.

mod config;
mod message;
mod name;
mod plan;
mod records;
mod recursed;
mod resolution;

pub use config::{DnsConfig, SoaNumbers};
pub use message::{
    Answered, Edns, HEADER_LEN_BYTES, Question, Rcode, Rdata, Received, Record, Reply, TCP_MESSAGE_LEN_BYTES_MAX,
    Transport, UDP_REPLY_LEN_BYTES_MAX, UDP_REPLY_LEN_BYTES_MIN, encode, encode_question, qtype, receive,
};
pub use name::{Name, NameError};
pub use plan::{Lookup, Plan, plan};
pub use records::{Asked, Attach, FollowUp};
pub use recursed::rcode_of_reply;
pub use resolution::{LookupFailure, Resolution, Step};

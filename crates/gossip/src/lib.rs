//! Drives `swim` and `user-events` over sockets: one datagram socket and one listener on the same port.
//!
//! In: [`GossipConfig`], commands, peers' packets and streams. Out: [`MemberEvent`]s and snapshots of the members.
//! Tasks: `receive` and `send` datagrams, `accept` streams, `timer`, and one for each stream that is open.
//! Promises: what peers send is bounded (packets by size, streams by number, size and time, the packets that wait to be
//! sent by number: beyond it the oldest is dropped, which gossip makes good); a lock is never held across an await; all
//! tasks end with `stop`, or when the last [`Gossip`] is dropped.
//! Not here: any rule of the protocol (`swim`, `user-events`), bytes (`wire::gossip`), what the agent makes of members.

mod counts;
mod driver;
mod errors;
mod events;
mod keyring;
mod streams;
mod user_events;

pub use counts::Counts;
pub use driver::{Gossip, GossipConfig, Past};
pub use errors::{ForceLeaveError, JoinError, StartError, StreamError};
pub use events::{MemberEvent, MemberEvents};
pub use keyring::{Encryption, KeyringAnswer, KeyringKeeper, NotKept, RefusedCause};
pub use quorate_swim::{Config as Timing, InvalidMember, Link, LinkFault, Reachability};
pub use quorate_wire::gossip::{KeyBytes, KeyringRequest};
pub use quorate_wire::keyring::{KeyError, Keyring, KeyringFileError, RingKey};
pub use user_events::{IncomingQueries, IncomingQuery, QueryReplies, QueryReply, UserEvents};

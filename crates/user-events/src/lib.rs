//! User events and queries: what is told to every member of a pool, ordered by Lamport time (Serf's layer).
//!
//! An event is fired by one member and delivered once by each other one. It spreads with the packets of gossip, each
//! member sending it on a limited number of times, and with every exchange of full state for those who missed it. A
//! query spreads alike; each member may answer it, with packets straight to its origin, until its time is over.
//!
//! In: commands, peers' messages and halves of exchanges, time. Out: packets, deliveries, answers ([`Output`]).
//! A driver's duties, in order:
//! 1. After every call, carry out every `poll_output`, and call `handle_timeout` when `next_timeout` is reached.
//! 2. While `has_news`, have gossip send packets, and fill each up with `take_news`.
//! 3. With every exchange of full state, exchange `state` too, and give the peer's half to `handle_state`.
//!
//! Invariants (`UserEvents::check`): an event or query is delivered at most once; nothing older than this member's first
//! exchange is delivered; nothing grows without a bound, whatever peers send.
//! Not here: who the members are (`swim`), bytes (`wire::gossip`), what an agent makes of an event but for its
//! [`EventFilter`]s and its [`History`].

mod broadcast;
mod clock;
mod event;
mod filter;
mod history;
mod machine;
mod message;
mod ring;

pub use clock::LamportTime;
pub use event::{EVENT_LEN_BYTES_MAX, FireError, UserEvent};
pub use filter::{EventFilter, FilterError};
pub use history::{HISTORY_COUNT_MAX, History, index_of};
pub use machine::{Counters, Output, UserEvents};
pub use message::{EventState, Message, QUERY_LEN_BYTES_MAX, Query, QueryError, QueryId, RESPONSE_LEN_BYTES_MAX};

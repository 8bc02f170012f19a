//! Membership: SWIM (Das, Gupta and Motivala 2002) with Lifeguard (Dadgar, Phillips and Currey 2017), as a pure state
//! machine with memberlist's and Serf's rules.
//!
//! ```text
//!                      suspect, unless refuted        timeout, or another's dead
//!   (unknown) ─alive─> Alive ────────────> Suspect ──────────────────> Dead ─reconnect_timeout─> (reaped)
//!                        ^  \                │  │                       │  │
//!                        │   └─left by itself│──┼──────────────────> Left <┘ force-leave; Left ─tombstone_timeout─> (reaped)
//!                        └───────────────────┘  │                       │
//!                        └── alive with a newer incarnation ────────────┘
//! ```
//!
//! In: packets and streams that the driver decoded, time, commands. Out: packets, streams to open, [`Event`]s.
//! A driver's duties, in order:
//! 1. Call `handle_timeout` when `next_timeout` is reached; time never goes back.
//! 2. After every call, carry out every `poll_output`.
//! 3. For `Output::PushPull`, open a stream, send `push_pull_request`, and give the reply to `handle_push_pull_reply`.
//!    For `Output::StreamProbe`, say through `handle_stream_probe` whether the target answered.
//! 4. Answer peers' streams with `handle_push_pull` and `handle_stream_ping`.
//!
//! Invariants (`Swim::check`): a name has one holder; a member's incarnation never goes back while it is known;
//! a suspicion belongs to a suspect; nothing grows without a bound, whatever peers send.
//! Where memberlist differs: members are known by [`NodeId`](quorate_types::NodeId), not by name; a `dead` about a
//! member held alive is taken as a suspicion, so that one cut-off member cannot have healthy ones declared dead.
//! Not here: bytes (`wire::gossip`), sockets and tasks (`gossip`), user events.

mod awareness;
mod broadcast;
mod config;
mod coordinate;
mod machine;
mod message;
mod suspicion;

pub use config::Config;
pub use coordinate::{Coordinates, Implausible};
pub use machine::{Accusation, Counters, Event, Link, LinkFault, Output, Reachability, Swim, UnknownName};
pub use message::{
    DATACENTER_LEN_BYTES_MAX, INCARNATION_MAX, Intent, InvalidMember, LAMPORT_TIME_MAX, LamportTime, MemberState,
    Message, NAME_LEN_BYTES_MAX, PACKET_OVERHEAD_LEN_BYTES, PushPull, Refusal, RemoteMember, Seen, Status,
    TAGS_LEN_BYTES_MAX, Update, validate_tags,
};

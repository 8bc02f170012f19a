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
//! a suspicion belongs to a suspect; nothing grows without a bound, whatever peers send. What a member costs does not
//! grow with the pool, but for about 100 bytes of memory for each other one.
//!
//! Where memberlist and Serf differ (each has a switch in [`Config`], or a reason why not):
//! - Members are known by [`NodeId`](quorate_types::NodeId), not by name; names are unique among the live (`rules`).
//! - Lifeguard's parts are on: `lha_probe`, `lha_suspicion`, `buddy`.
//! - `weighs_accusers`: who is answered by nobody accuses nobody and ends no suspicion; a `dead` is believed of two
//!   accusers, and never before the accused could answer; accusers whose victims refute at once lose their weight
//!   (`doubt`).
//! - `excuses_pauses`: time in which this member did not run counts against nobody.
//! - `heals_at_contact`: the dead are knocked at, whoever pings hears what is thought of it, accusers are answered,
//!   strangers are asked (`heal`).
//! - `asks_suspects`: a suspect is asked itself before it is held for dead (`suspicion`, `heal`).
//! - `holds_flapping`: who fails again and again, or is suspected without end, is kept out for a while (`flap`).
//! - Exchanges of state begin with a digest, tell what the other side does not know, and follow one another while they
//!   bring news (`exchange`): the result is the same, for fewer bytes and a pool that forms in seconds.
//! - A forgotten member is remembered for its incarnation, and hearsay of a member that nobody here ever met is forgotten
//!   soon after its death, so that old packets do no lasting harm (`rules`).
//! - Links that lose datagrams are looked at and named (`link`); they make nobody suspect.
//! - Queued updates are bounded; memberlist's queue is not, Serf's drops the oldest.
//!
//! Not here: bytes (`wire::gossip`), sockets and tasks (`gossip`), user events.
//! Tests: `tests/transcripts/*.txt` for the rules, `tests/pair.rs` for clusters, `tests/join.rs` for pools that form,
//! `tests/nonsense.rs` for any input.

mod awareness;
mod broadcast;
mod config;
mod coordinate;
mod machine;
mod message;
mod suspicion;

pub use config::Config;
pub use coordinate::{Coordinates, Implausible};
pub use machine::{
    Accusation, Counters, Event, LOOK_AHEAD_TURNS, Link, LinkFault, Output, Reachability, Swim, UnknownName,
};
pub use message::{
    DATACENTER_LEN_BYTES_MAX, INCARNATION_MAX, Intent, InvalidMember, LAMPORT_TIME_MAX, LamportTime, MemberState,
    Message, NAME_LEN_BYTES_MAX, PACKET_OVERHEAD_LEN_BYTES, PushPull, Refusal, RemoteMember, Seen, Status,
    TAGS_LEN_BYTES_MAX, Update, validate_tags,
};

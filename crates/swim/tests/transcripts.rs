//! Transcripts of one member, n1, and what it makes of what it hears: `transcripts/*.txt`.
//!
//! Prose, commands, `----`, what happened. `UPDATE=1` rewrites what happened. Commands, one a line:
//! `pool N [swim|lifeguard]` n1 knows n2..nN; `answering nA nB..` who answers pings and relays (the others are silent);
//! `advance MS [quietly]` (then only events are told); `hear nF: MESSAGE, ..`; `exchange nF: DESCRIPTION, ..` a push/pull from nF; `force-leave NAME [prune]`;
//! `relayed-ack nT by nR` nR passes on the ack of nT, for which it was asked; `leave`; `who` all members and what is thought of them; `reach`.
// The runner reads and, when asked, writes its files.
#![allow(clippy::disallowed_methods)]

use quorate_swim::{Config, Event, MemberState, Message, Output, PushPull, RemoteMember, Seen, Status, Swim, Update};
use quorate_types::{Incarnation, Instant, MemberStatus, NodeId, Uuid};
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng as _;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

struct World {
    swim: Swim,
    now: Instant,
    answering: BTreeSet<u8>,
    is_quiet: bool,
    /// What a relay was asked last.
    asked: Option<(u64, NodeId)>,
    told: String,
}

fn id(n: u8) -> NodeId {
    NodeId(Uuid::from_bytes([n; 16]))
}
fn name_of(id: NodeId) -> String {
    format!("n{}", id.0.as_bytes()[0])
}
fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 8301))
}
fn at(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => format!("n{}", v4.ip().octets()[3]),
        SocketAddr::V6(v6) => v6.to_string(),
    }
}
fn describe(n: u8) -> MemberState {
    MemberState {
        id: id(n),
        name: format!("n{n}"),
        address: address(n),
        datacenter: "dc1".to_owned(),
        tags: BTreeMap::new(),
    }
}
fn number(word: &str) -> u64 {
    let digits = word.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().unwrap_or_else(|_| panic!("a number in {word:?}"))
}
fn member(word: &str) -> u8 {
    u8::try_from(number(word)).expect("members are n1..n255")
}

/// `alive n2 i5 [as NAME] [at n9] [rc_tm=1h]`.
fn parse_alive(words: &[&str]) -> (Arc<MemberState>, Incarnation) {
    let mut state = describe(member(words[1]));
    let mut rest = words[3..].iter();
    while let Some(word) = rest.next() {
        match *word {
            "as" => state.name = (*rest.next().expect("a name")).to_owned(),
            "at" => state.address = address(member(rest.next().expect("a member"))),
            tag => {
                let (key, value) = tag.split_once('=').expect("a tag");
                state.tags.insert(key.to_owned(), value.to_owned());
            }
        }
    }
    (Arc::new(state), Incarnation(number(words[2])))
}

fn parse_message(text: &str) -> Message {
    let words: Vec<&str> = text.split_whitespace().collect();
    let incarnation = || Incarnation(number(words[2]));
    let from = || id(member(words[4]));
    Message::Update(match words[0] {
        "alive" => {
            let (member, incarnation) = parse_alive(&words);
            Update::Alive { member, incarnation }
        }
        "suspect" => Update::Suspect {
            member: id(member(words[1])),
            incarnation: incarnation(),
            from: from(),
        },
        "dead" => Update::Dead {
            member: id(member(words[1])),
            incarnation: incarnation(),
            from: from(),
        },
        "left" => Update::Left {
            member: id(member(words[1])),
            incarnation: incarnation(),
            from: id(member(words[1])),
            prune: false,
        },
        "leave-intent" => Update::LeaveIntent {
            member: id(member(words[1])),
            time: number(words[2]),
            from: from(),
            prune: words.contains(&"prune"),
        },
        "join-intent" => Update::JoinIntent {
            member: id(member(words[1])),
            time: number(words[2]),
        },
        "ping" => {
            return Message::Ping {
                sequence: number(words[2]),
                target: id(member(words[1])),
            };
        }
        other => panic!("no message {other:?}"),
    })
}

fn show(message: &Message) -> String {
    match message {
        Message::Ping { target, .. } => format!("ping {}", name_of(*target)),
        Message::PingReq { target, .. } => format!("ping_req {}", name_of(*target)),
        Message::Ack { target, .. } => format!("ack {}", name_of(*target)),
        Message::Nack { .. } => "nack".to_owned(),
        Message::Update(update) => {
            let subject = name_of(update.subject());
            match update {
                Update::Alive { incarnation, .. } => format!("alive {subject} i{incarnation}"),
                Update::Suspect { incarnation, from, .. } => {
                    format!("suspect {subject} i{incarnation} by {}", name_of(*from))
                }
                Update::Dead { incarnation, from, .. } => {
                    format!("dead {subject} i{incarnation} by {}", name_of(*from))
                }
                Update::Left { incarnation, .. } => format!("left {subject} i{incarnation}"),
                Update::LeaveIntent { time, from, .. } => {
                    format!("leave-intent {subject} t{time} by {}", name_of(*from))
                }
                Update::JoinIntent { time, .. } => format!("join-intent {subject} t{time}"),
            }
        }
        Message::Coordinate(_) | Message::Payload(_) => "other".to_owned(),
    }
}
fn show_event(event: &Event) -> String {
    let seen = |member: &Seen| format!("{} ({})", member.name, name_of(member.id));
    match event {
        Event::Joined(member) => format!("joined {}", seen(member)),
        Event::Updated(member) => format!("updated {}", seen(member)),
        Event::Failed(member) => format!("failed {}", seen(member)),
        Event::Left(member) => format!("left {}", seen(member)),
        Event::Reaped(member) => format!("reaped {}", seen(member)),
        Event::Leaving(member) => format!("leaving {}", seen(member)),
        Event::Moved { member, address_before } => {
            format!(
                "moved {} from {} to {}",
                seen(member),
                at(*address_before),
                at(member.address)
            )
        }
        Event::NameTaken {
            name,
            holder_before,
            holder,
        } => format!(
            "name {name} taken by {} from {}",
            name_of(*holder),
            name_of(*holder_before)
        ),
        Event::Suspected { member, from, .. } => format!("suspected {} by {}", name_of(*member), name_of(*from)),
        Event::Cleared { member, incarnation } => format!("cleared {} i{incarnation}", name_of(*member)),
        Event::Refuted { incarnation } => format!("refuted i{incarnation}"),
        Event::Conflict {
            name, holder, claimant, ..
        } => format!(
            "conflict over {name}: held by {}, claimed by {}",
            name_of(*holder),
            name_of(*claimant)
        ),
        Event::LinkFaulty { member, fault } => format!("link to {}: {fault:?}", name_of(*member)),
        Event::LinkMended { member } => format!("link to {} mended", name_of(*member)),
        Event::StreamOnly { member } => format!("only streams reach {}", name_of(*member)),
        Event::LeaveSent => "leave sent".to_owned(),
        other => format!("{other:?}"),
    }
}

impl World {
    fn new(count: u8, config: Config) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(7);
        let mut swim = Swim::new(config, describe(1), Incarnation(1), rng, Instant::ZERO).expect("valid");
        let others: Vec<RemoteMember> = (2..=count)
            .map(|n| RemoteMember {
                member: Arc::new(describe(n)),
                incarnation: Incarnation(1),
                status: Status::Alive,
                from: id(n),
            })
            .collect();
        swim.learn(Instant::ZERO, &others);
        Self {
            swim,
            now: Instant::ZERO,
            answering: (2..=count).collect(),
            is_quiet: false,
            asked: None,
            told: String::new(),
        }
    }
    fn tell(&mut self, what: &str) {
        let ms = self.now.as_millis();
        writeln!(self.told, "{:>4}.{:03} {what}", ms / 1000, ms % 1000).expect("a string takes all");
    }
    /// What the member wants done. Routine that is answered is not told.
    fn carry_out(&mut self) {
        let mut answers = Vec::new();
        self.swim.check();
        while let Some(output) = self.swim.poll_output() {
            match output {
                Output::Event(event) => self.tell(&format!("event: {}", show_event(&event))),
                Output::PushPull { to } if !self.is_quiet => self.tell(&format!("push_pull with {}", at(to))),
                Output::PushPull { .. } => {}
                Output::StreamProbe { to, .. } if !self.is_quiet => {
                    self.tell(&format!("ping over a stream: {}", at(to)))
                }
                Output::StreamProbe { .. } | Output::Payload { .. } => {}
                Output::Packet { to, messages } => {
                    let peer = member(&at(to));
                    let is_answering = self.answering.contains(&peer);
                    for message in &messages {
                        match message {
                            Message::Ping { sequence, target } if is_answering => answers.push((
                                peer,
                                Message::Ack {
                                    sequence: *sequence,
                                    target: *target,
                                },
                            )),
                            Message::PingReq { sequence, target, .. } if is_answering => {
                                self.asked = Some((*sequence, *target));
                                answers.push((peer, Message::Nack { sequence: *sequence }));
                            }
                            _ => {}
                        }
                    }
                    let is_routine = is_answering && matches!(messages.as_slice(), [Message::Ping { .. }]);
                    if !is_routine && !self.is_quiet {
                        let shown: Vec<String> = messages.iter().map(show).collect();
                        self.tell(&format!("to {}: {}", at(to), shown.join(", ")));
                    }
                }
            }
        }
        for (peer, answer) in answers {
            self.swim.handle_packet(self.now, address(peer), vec![answer]);
            self.carry_out();
        }
    }
    fn advance(&mut self, duration: Duration) {
        let until = self.now + duration;
        while self.swim.next_timeout() <= until {
            self.now = self.now.max(self.swim.next_timeout());
            self.swim.handle_timeout(self.now);
            self.carry_out();
        }
        self.now = until;
    }
    fn who(&mut self) {
        let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for member in self.swim.members() {
            let (status, incarnation) = self.swim.belief(member.id).expect("listed");
            let status = match member.status {
                MemberStatus::Leaving => format!("{status:?}, leaving"),
                _ => format!("{status:?}"),
            };
            let id = name_of(member.id);
            let name = if member.name == id {
                id
            } else {
                format!("{} ({id})", member.name)
            };
            seen.entry(status).or_default().push(format!("{name} i{incarnation}"));
        }
        for (status, members) in seen {
            writeln!(self.told, "         {status}: {}", members.join(" ")).expect("a string takes all");
        }
    }
    fn run(&mut self, command: &str) {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        let now = self.now;
        match verb {
            "answering" => self.answering = rest.split_whitespace().map(member).collect(),
            "advance" => {
                let (ms, quietly) = rest.split_once(' ').unwrap_or((rest, ""));
                self.is_quiet = quietly == "quietly";
                self.advance(Duration::from_millis(number(ms)));
                self.is_quiet = false;
            }
            "hear" => {
                let (from, messages) = rest.split_once(':').expect("who: what");
                let messages = messages.split(',').map(|message| parse_message(message.trim()));
                self.swim.handle_packet(now, address(member(from)), messages.collect());
            }
            "exchange" => {
                let (from, members) = rest.split_once(':').expect("who: what");
                let members: Vec<RemoteMember> = members
                    .split(',')
                    .map(|text| {
                        let words: Vec<&str> = text.split_whitespace().collect();
                        let (member, incarnation) = parse_alive(&words);
                        RemoteMember {
                            from: member.id,
                            member,
                            incarnation,
                            status: match words[0] {
                                "alive" => Status::Alive,
                                "suspect" => Status::Suspect,
                                "dead" => Status::Dead,
                                _ => Status::Left,
                            },
                        }
                    })
                    .collect();
                let theirs = PushPull {
                    from: id(member(from)),
                    is_whole: members.len() > 1,
                    members,
                    payload: Vec::new(),
                    digest: 0,
                    time: 0,
                    intents: Vec::new(),
                };
                let answer = match self.swim.handle_push_pull(now, address(member(from)), theirs) {
                    Ok(ours) => {
                        let told = ours.members.iter().map(|remote| {
                            let (id, incarnation) = (name_of(remote.member.id), remote.incarnation);
                            format!("{:?} {id} i{incarnation}", remote.status)
                        });
                        let told: Vec<String> = told.collect();
                        format!("answer: {}", told.join(", "))
                    }
                    Err(refusal) => format!("refused: {refusal}"),
                };
                self.tell(&answer);
            }
            "relayed-ack" => {
                let words: Vec<&str> = rest.split_whitespace().collect();
                let (sequence, target) = self.asked.expect("somebody was asked");
                assert_eq!(target, id(member(words[0])), "about the member that was asked for");
                let ack = Message::Ack { sequence, target };
                self.swim.handle_packet(now, address(member(words[2])), vec![ack]);
            }
            "force-leave" => {
                let (name, prune) = rest.split_once(' ').unwrap_or((rest, ""));
                if let Err(err) = self.swim.force_leave(now, name, prune == "prune") {
                    self.tell(&err.to_string());
                }
            }
            "leave" => self.swim.leave(now),
            "who" => self.who(),
            "reach" => {
                let reachability = self.swim.reachability();
                for link in reachability.links {
                    self.tell(&format!("link to {}: {:?}", name_of(link.member), link.fault));
                }
                for accusation in reachability.accusations {
                    self.tell(&format!(
                        "accused by {}, {} times",
                        name_of(accusation.from),
                        accusation.count
                    ));
                }
            }
            other => panic!("no command {other:?}"),
        }
        self.carry_out();
    }
}

fn run_transcript(text: &str) -> String {
    let mut world = World::new(1, Config::lan());
    let mut out = String::new();
    for block in text.split("\n\n") {
        let (commands, has_output) = match block.split_once("\n----") {
            Some((commands, _)) => (commands, true),
            None => (block, false),
        };
        let commands = commands.trim_matches('\n');
        if commands.is_empty() {
            continue;
        }
        writeln!(out, "{commands}").expect("a string takes all");
        for command in commands.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            if let Some(rest) = command.strip_prefix("pool ") {
                let config = match rest.split_once(' ').map(|(_, config)| config) {
                    Some("swim") => Config::lan().swim(),
                    Some("lifeguard") => Config::lan().lifeguard(),
                    _ => Config::lan(),
                };
                let count = rest.split(' ').next().expect("a count");
                world = World::new(member(count), config);
            } else {
                world.run(command);
            }
        }
        if has_output || !world.told.is_empty() {
            writeln!(out, "----\n{}", world.told.trim_end()).expect("a string takes all");
            world.told.clear();
        }
        out.push('\n');
    }
    format!("{}\n", out.trim_end())
}

#[test]
fn every_transcript_tells_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "there are transcripts");
    let is_update = std::env::var_os("UPDATE").is_some();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("it can be read");
        let happened = run_transcript(&text);
        if is_update {
            std::fs::write(&file, &happened).expect("it can be written");
        }
        assert!(is_update || happened == text, "{}:\n{happened}", file.display());
    }
}

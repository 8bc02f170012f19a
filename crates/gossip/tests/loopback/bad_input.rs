//! What peers send that is wrong, too much, or in another's name: each kind is counted by its cause, and membership stays
//! right. What cannot be read at all is in `encryption`; what the log tells, and how seldom, in `keyring`'s own tests.

use crate::{alive, id, on_production, refused, start_with, until, until_all_alive};
use quorate_gossip::{Gossip, GossipConfig, Timing};
use quorate_rt::production::TokioRt;
use quorate_rt::{Rt, Udp as _};
use quorate_swim::{MemberState, Message, Update};
use quorate_types::{Coordinate, Incarnation, NodeId, Uuid};
use quorate_user_events::{LamportTime, Message as EventMessage, UserEvent};
use quorate_wire::events::encode_payload;
use quorate_wire::gossip::{decode_packet, encode_packet};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

fn ip(test: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 5, test)
}
fn config(test: u8, n: u8) -> GossipConfig {
    crate::config(ip(test), n)
}
/// Above all that a member of these tests uses.
fn far(rt: &TokioRt) -> Incarnation {
    Incarnation(rt.wall_now().as_millis() + 1_000_000)
}

/// Somebody on the network who is no member and says what it likes.
struct Stranger {
    udp: <TokioRt as Rt>::Udp,
    to: SocketAddr,
}

impl Stranger {
    async fn of(rt: &TokioRt, test: u8, to: &Gossip<TokioRt>) -> Self {
        let udp = rt.udp_bind(SocketAddr::from((ip(test), 0))).await.expect("bind");
        let to = to.address();
        Self { udp, to }
    }
    async fn say(&self, messages: &[Message]) {
        self.udp.send_to(&encode_packet(messages), self.to).await.expect("send");
    }
    async fn say_alive(&self, member: MemberState, incarnation: Incarnation) {
        let member = Arc::new(member);
        self.say(&[Message::Update(Update::Alive { member, incarnation })])
            .await;
    }
}

fn state(n: u8, name: &str, address: SocketAddr) -> MemberState {
    MemberState {
        id: id(n),
        name: name.to_owned(),
        address,
        datacenter: "dc1".to_owned(),
        tags: BTreeMap::new(),
    }
}

#[test]
fn members_that_may_not_be_are_counted_by_the_cause_and_not_taken() {
    on_production(|rt| async move {
        let mut config = config(1, 1);
        config.timing.member_count_max = 2;
        config.timing.allowed_cidrs = vec!["127.0.5.0/24".parse().expect("a block")];
        let one = start_with(&rt, config).await;
        let stranger = Stranger::of(&rt, 1, &one).await;
        let here = SocketAddr::from((ip(1), 9));
        let outside = SocketAddr::from((Ipv4Addr::new(127, 0, 6, 1), 9));
        let foreign = MemberState {
            datacenter: "dc2".to_owned(),
            ..state(8, "n8", here)
        };
        for (member, cause) in [
            (state(9, "n1", here), "name_conflict"),
            (foreign, "wrong_datacenter"),
            (state(9, &"n".repeat(129), here), "malformed"),
            (state(9, "n9", SocketAddr::from((ip(1), 0))), "malformed"),
            (state(9, "n9", outside), "not_allowed"),
        ] {
            stranger.say_alive(member, Incarnation(5)).await;
            until(&rt, cause, || refused(&one, cause) > 0).await;
            assert_eq!(one.members().len(), 1, "{cause}");
        }
        // From outside, about one that is not.
        let elsewhere = rt.udp_bind(SocketAddr::from((Ipv4Addr::new(127, 0, 6, 1), 0))).await;
        let elsewhere = Stranger {
            udp: elsewhere.expect("bind"),
            to: one.address(),
        };
        elsewhere.say_alive(state(9, "n9", here), Incarnation(5)).await;
        until(&rt, "not allowed again", || refused(&one, "not_allowed") == 2).await;

        stranger.say_alive(state(2, "n2", here), Incarnation(5)).await;
        stranger.say_alive(state(3, "n3", here), Incarnation(5)).await;
        until(&rt, "full", || refused(&one, "full") > 0).await;
        assert_eq!(one.members().len(), 2);
        one.check();
    });
}

#[test]
fn who_joins_from_outside_of_the_allowed_blocks_is_told_so() {
    on_production(|rt| async move {
        let mut config_one = config(2, 1);
        config_one.timing.allowed_cidrs = vec!["127.0.5.2/32".parse().expect("a block")];
        let one = start_with(&rt, config_one).await;
        let inside = start_with(&rt, config(2, 2)).await;
        inside.join(&[one.address()]).await.expect("join");
        let outside = start_with(&rt, config(3, 3)).await;
        let err = outside.join(&[one.address()]).await.expect_err("refused").to_string();
        assert!(
            err.contains("Rejected node n3 (127.0.5.3): 127.0.5.3 is not allowed"),
            "{err}"
        );
        until_all_alive(&rt, &[&one, &inside], &["n1", "n2"]).await;
        assert!(refused(&one, "not_allowed") > 0);
    });
}

#[test]
fn what_is_said_in_a_members_name_is_refuted_by_it() {
    on_production(|rt| async move {
        let (one, two) = (start_with(&rt, config(4, 1)).await, start_with(&rt, config(4, 2)).await);
        two.join(&[one.address()]).await.expect("join");
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
        let stranger = Stranger::of(&rt, 4, &one).await;
        let is_right = || {
            let members = one.members();
            let seen = members.iter().find(|member| member.name == "n2");
            alive(&one) == ["n1", "n2"] && seen.is_some_and(|member| member.address == two.address())
        };
        let nowhere = SocketAddr::from((ip(4), 9));
        stranger.say_alive(state(2, "n2", nowhere), far(&rt)).await;
        until(&rt, "n2 hears of it", || refused(&two, "refuted") > 0).await;
        until(&rt, "n2 is where it is", is_right).await;

        // About the one that is told.
        let (member, from) = (id(1), id(2));
        for accused in [
            Update::Suspect {
                member,
                incarnation: far(&rt),
                from,
            },
            Update::Dead {
                member,
                incarnation: Incarnation(far(&rt).0 * 2),
                from,
            },
        ] {
            let before = refused(&one, "refuted");
            stranger.say(&[Message::Update(accused)]).await;
            until(&rt, "refuted", || refused(&one, "refuted") > before).await;
        }
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
        for member in [&one, &two] {
            member.check();
        }
    });
}

#[test]
fn a_coordinate_that_cannot_be_is_refused() {
    on_production(|rt| async move {
        let mut config = config(5, 1);
        config.timing = Timing {
            coordinates: true,
            probe_interval: Duration::from_millis(50),
            ..config.timing
        };
        let one = start_with(&rt, config).await;
        let stranger = Stranger::of(&rt, 5, &one).await;
        let address = stranger.udp.local_addr().expect("bound");
        stranger.say_alive(state(9, "n9", address), Incarnation(5)).await;
        let mut coordinate = Coordinate::default();
        coordinate.vector[0] = f64::NAN;
        let mut buffer = [0; 1500];
        while refused(&one, "implausible") == 0 {
            let (len, _) = stranger.udp.recv_from(&mut buffer).await.expect("receive");
            for message in decode_packet(&buffer[..len]).expect("a packet of a member") {
                if let Message::Ping { sequence, target } = message {
                    let ack = Message::Ack { sequence, target };
                    stranger.say(&[ack, Message::Coordinate(coordinate)]).await;
                }
            }
        }
        let own = one.coordinate().expect("it cares to know");
        assert!(own.vector.iter().all(|value| value.is_finite()));
        assert_eq!(one.coordinate_of(id(9)), None);
    });
}

#[test]
fn floods_cost_bounded_memory_and_nobody_its_place() {
    on_production(|rt| async move {
        let (one, two) = (start_with(&rt, config(6, 1)).await, start_with(&rt, config(6, 2)).await);
        two.join(&[one.address()]).await.expect("join");
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
        let stranger = Stranger::of(&rt, 6, &one).await;
        // Events: more than are kept to be passed on.
        let mut n = 0_u128;
        while refused(&one, "flooded") == 0 {
            let events = (0..10).map(|_| {
                n += 1;
                let event = UserEvent {
                    ltime: LamportTime(1000),
                    id: Uuid::from_bytes(n.to_be_bytes()),
                    name: "deploy".to_owned(),
                    version: 1,
                    ..UserEvent::default()
                };
                EventMessage::Event(Arc::new(event))
            });
            let payload = encode_payload(&events.collect::<Vec<_>>());
            stranger.say(&[Message::Payload(payload)]).await;
            assert!(n < 100_000, "never refused");
            one.check();
        }
        // One that is longer than any that can be fired, and one without a name.
        for name in ["n".repeat(600), String::new()] {
            let before = refused(&one, "malformed_event");
            let event = UserEvent {
                ltime: LamportTime(2),
                name,
                version: 1,
                ..UserEvent::default()
            };
            let payload = encode_payload(&[EventMessage::Event(Arc::new(event))]);
            stranger.say(&[Message::Payload(payload)]).await;
            until(&rt, "malformed event", || refused(&one, "malformed_event") > before).await;
        }
        // Intents about members that are and that are not: they change nothing of who is alive.
        for time in 0..2000_u64 {
            let unknown = NodeId(Uuid::from_bytes((u128::from(time) + 99).to_be_bytes()));
            let intents = [id(2), unknown].map(|member| {
                let from = id(9);
                Message::Update(Update::LeaveIntent {
                    member,
                    time,
                    from,
                    prune: true,
                })
            });
            stranger.say(&intents).await;
        }
        one.check();
        until_all_alive(&rt, &[&one, &two], &["n1", "n2"]).await;
    });
}

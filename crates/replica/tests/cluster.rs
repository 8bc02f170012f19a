//! Replicas on real sockets and, where it matters, a real disk.

use quorate_replica::{
    Bootstrapped, MembershipError, Replica, ReplicaConfig, RequestHandler, RpcClient, StartError, Wake, WriteError,
};
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::{AnyDisk, Disk as _, File as _, MemoryDisk, OpenMode, Rt as _};
use quorate_store::{Answer, Command, Consistency, KvCommand, Outcome, Query, Topic};
use quorate_types::{KvPair, NodeId, Uuid};
use quorate_wire::rpc::{Request, Response, StatusReply};
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// Says which server it is.
struct Handler(NodeId);

impl RequestHandler for Handler {
    async fn handle(&self, request: Request) -> Response {
        assert_eq!(request, Request::Status);
        Response::Status(StatusReply {
            leader: Some(SocketAddr::from(([127, 0, 0, 1], u16::from(self.0.0.as_bytes()[0])))),
            peers: Vec::new(),
        })
    }
}

fn node(number: u8) -> NodeId {
    NodeId(Uuid::from_bytes([number; 16]))
}

fn put(key: &str, value: &str) -> Command {
    Command::Kv(KvCommand::Set(KvPair {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        ..KvPair::default()
    }))
}

fn value(replica: &Replica<TokioRt>, key: &str) -> Option<String> {
    let answer = replica
        .snapshot()
        .evaluate(&Query::KvGet { key: key.to_owned() })
        .answer;
    match answer {
        Answer::Kv(pair) => pair.map(|pair| String::from_utf8(pair.value.clone()).unwrap()),
        answer => panic!("a get is answered by {answer:?}"),
    }
}

async fn in_time<T>(rt: &TokioRt, what: &str, work: impl Future<Output = T> + Send) -> T
where
    T: Send,
{
    match rt.timeout(DEADLINE, work).await {
        Ok(done) => done,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Waits for a condition that changes with what is applied or who leads.
async fn until(rt: &TokioRt, replicas: &[&Replica<TokioRt>], what: &str, holds: impl Fn() -> bool + Send + Sync) {
    in_time(rt, what, async {
        let mut seen = vec![0; replicas.len()];
        while !holds() {
            let changes = replicas.iter().zip(&mut seen).map(|(replica, seen)| {
                Box::pin(async move {
                    let watch = replica.watches().register(vec![Topic::Everything]).unwrap();
                    let moved = replica.leadership_changed(*seen);
                    match futures::future::select(Box::pin(moved), Box::pin(watch.wait())).await {
                        futures::future::Either::Left((now, _)) => *seen = now,
                        futures::future::Either::Right(_) => {}
                    }
                })
            });
            // A condition may also depend on the clock (contacts), and be true before the watch: look again now and then.
            let any = futures::future::select_all(changes);
            let _ = rt.timeout(Duration::from_millis(20), any).await;
        }
    })
    .await;
}

struct Place {
    number: u8,
    disk: AnyDisk<<TokioRt as quorate_rt::Rt>::Disk>,
    data_dir: PathBuf,
    /// Removed with the place.
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    fn memory(number: u8) -> Self {
        Self {
            number,
            disk: AnyDisk::Memory(MemoryDisk::default()),
            data_dir: PathBuf::from("data"),
            _folder: None,
        }
    }
    fn real(rt: &TokioRt, number: u8) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            number,
            disk: AnyDisk::Real(rt.disk()),
            data_dir: folder.path().join("data"),
            _folder: Some(folder),
        }
    }
    async fn start(&self, rt: &TokioRt) -> Replica<TokioRt> {
        self.try_start(rt).await.unwrap()
    }
    async fn try_start(&self, rt: &TokioRt) -> Result<Replica<TokioRt>, StartError> {
        let id = node(self.number);
        let mut config = ReplicaConfig::new(
            id,
            format!("n{}", self.number),
            self.data_dir.clone(),
            self.disk.clone(),
            SocketAddr::from(([127, 0, 0, 1], 0)),
        );
        config.raft_multiplier = 1;
        // Small, so that the tests write snapshots.
        config.snapshot_threshold = 50;
        config.trailing_logs = 10;
        Replica::start(rt.clone(), config, Handler(id)).await
    }
}

fn introduce(replicas: &[&Replica<TokioRt>]) {
    for a in replicas {
        for b in replicas {
            a.set_address(b.node_id(), b.local_addr());
        }
    }
}

fn candidates(replicas: &[&Replica<TokioRt>]) -> Vec<(NodeId, SocketAddr)> {
    replicas
        .iter()
        .map(|replica| (replica.node_id(), replica.local_addr()))
        .collect()
}

async fn leader_of<'a>(rt: &TokioRt, replicas: &[&'a Replica<TokioRt>]) -> &'a Replica<TokioRt> {
    until(rt, replicas, "a leader", || {
        replicas.iter().any(|replica| replica.status().is_leader)
    })
    .await;
    let leader = replicas.iter().find(|replica| replica.status().is_leader);
    leader.expect("just seen")
}

/// Writes through whoever leads, as an agent does.
async fn write(rt: &TokioRt, replicas: &[&Replica<TokioRt>], key: &str, value: &str) {
    in_time(rt, &format!("write {key}"), async {
        loop {
            let leader = leader_of(rt, replicas).await;
            match leader.write(&put(key, value)).await {
                Ok((_, outcome)) => {
                    assert_eq!(outcome, Outcome::Done);
                    return;
                }
                Err(WriteError::NotLeader { .. } | WriteError::NoLeader | WriteError::Unknown(_)) => {}
                Err(err) => panic!("write {key}: {err}"),
            }
        }
    })
    .await;
}

async fn three(rt: &TokioRt) -> (Vec<Place>, Vec<Replica<TokioRt>>) {
    let places: Vec<Place> = (1..=3).map(Place::memory).collect();
    let mut replicas = Vec::new();
    for place in &places {
        replicas.push(place.start(rt).await);
    }
    let all: Vec<&Replica<TokioRt>> = replicas.iter().collect();
    introduce(&all);
    for replica in all.iter().rev() {
        let came = replica.bootstrap_expect(candidates(&all), 3).await.unwrap();
        let is_lowest = replica.node_id() == node(1);
        assert_eq!(came == Bootstrapped::Done, is_lowest, "{came:?}");
    }
    (places, replicas)
}

#[test]
fn a_single_server_elects_itself_and_keeps_its_data_over_a_restart() {
    block_on(2, |rt| async move {
        let place = Place::real(&rt, 1);
        {
            let replica = place.start(&rt).await;
            assert!(!replica.is_initialized());
            assert_eq!(replica.bootstrap_single().await.unwrap(), Bootstrapped::Done);
            assert_eq!(replica.bootstrap_single().await.unwrap(), Bootstrapped::Already);
            write(&rt, &[&replica], "a", "1").await;
            replica.read_barrier(Consistency::Default).await.unwrap();
            replica.read_barrier(Consistency::Consistent).await.unwrap();
            assert_eq!(value(&replica, "a").as_deref(), Some("1"));
            until(&rt, &[&replica], "the cluster has a name", || {
                replica.snapshot().cluster_id().is_some()
            })
            .await;
            assert_eq!(replica.snapshot().cluster_id(), replica.cluster_id());
            replica.stop().await;
        }
        for round in 0..3 {
            let replica = place.start(&rt).await;
            assert!(replica.is_initialized());
            // More than a snapshot's worth.
            for at in 0..40 {
                write(&rt, &[&replica], &format!("k{at}"), &format!("{round}")).await;
            }
            assert_eq!(value(&replica, "a").as_deref(), Some("1"));
            replica.stop().await;
        }
        let replica = place.start(&rt).await;
        leader_of(&rt, &[&replica]).await;
        in_time(&rt, "read", replica.read_barrier(Consistency::Consistent))
            .await
            .unwrap();
        assert_eq!(value(&replica, "k39").as_deref(), Some("2"));
        assert!(replica.status().last_snapshot_index.0 > 0, "{:?}", replica.status());
        replica.stop().await;
    })
    .unwrap();
}

#[test]
fn three_servers_outlive_their_leader_and_a_restart_of_all() {
    block_on(2, |rt| async move {
        let (places, replicas) = three(&rt).await;
        let all: Vec<&Replica<TokioRt>> = replicas.iter().collect();
        for at in 0..20 {
            write(&rt, &all, &format!("before{at}"), "x").await;
        }
        until(&rt, &all, "all have it", || {
            all.iter().all(|replica| value(replica, "before19").is_some())
        })
        .await;
        let first = leader_of(&rt, &all).await.node_id();
        let rest: Vec<&Replica<TokioRt>> = all
            .iter()
            .copied()
            .filter(|replica| replica.node_id() != first)
            .collect();
        let follower = rest[0];
        assert_eq!(
            follower.write(&put("no", "no")).await,
            Err(WriteError::NotLeader { leader: Some(first) })
        );
        replicas[usize::from(first.0.as_bytes()[0]) - 1].stop().await;
        let second = leader_of(&rt, &rest).await;
        assert_ne!(second.node_id(), first);
        write(&rt, &rest, "after", "y").await;
        assert_eq!(value(second, "before7").as_deref(), Some("x"));
        for replica in &rest {
            replica.stop().await;
        }
        drop(replicas);

        let mut replicas = Vec::new();
        for place in &places {
            replicas.push(place.start(&rt).await);
        }
        let all: Vec<&Replica<TokioRt>> = replicas.iter().collect();
        introduce(&all);
        write(&rt, &all, "again", "z").await;
        until(&rt, &all, "all caught up", || {
            all.iter().all(|replica| value(replica, "again").is_some())
        })
        .await;
        for replica in &all {
            assert_eq!(value(replica, "before0").as_deref(), Some("x"));
            assert_eq!(value(replica, "after").as_deref(), Some("y"));
            assert_eq!(replica.snapshot().hash(), all[0].snapshot().hash());
        }
        for replica in &all {
            replica.stop().await;
        }
    })
    .unwrap();
}

#[test]
fn a_joining_server_gets_a_snapshot_votes_and_can_be_removed() {
    block_on(2, |rt| async move {
        let (_places, replicas) = three(&rt).await;
        let all: Vec<&Replica<TokioRt>> = replicas.iter().collect();
        for at in 0..150 {
            write(&rt, &all, &format!("k{at}"), "x").await;
        }
        let leader = leader_of(&rt, &all).await;
        until(&rt, &all, "a snapshot", || leader.status().last_snapshot_index.0 > 50).await;

        let place = Place::memory(4);
        let fourth = place.start(&rt).await;
        let four: Vec<&Replica<TokioRt>> = all.iter().copied().chain([&fourth]).collect();
        introduce(&four);
        in_time(&rt, "add", leader.add_server(node(4))).await.unwrap();
        assert!(leader.status().voters.contains(&node(4)));
        until(&rt, &four, "the new one has all", || value(&fourth, "k149").is_some()).await;
        assert_eq!(value(&fourth, "k0").as_deref(), Some("x"));
        assert_eq!(fourth.cluster_id(), leader.cluster_id());

        in_time(&rt, "transfer", leader.transfer_leadership(Some(node(4))))
            .await
            .unwrap();
        until(&rt, &four, "the new one leads", || fourth.status().is_leader).await;
        let was = leader.node_id();
        in_time(&rt, "remove", fourth.remove_server(was)).await.unwrap();
        assert!(!fourth.status().voters.contains(&was));
        write(&rt, &[&fourth], "end", "x").await;

        // Of the three left, one more may go only while the others live.
        let others: Vec<NodeId> = fourth
            .status()
            .voters
            .into_iter()
            .filter(|voter| *voter != node(4))
            .collect();
        replicas[usize::from(others[0].0.as_bytes()[0]) - 1].stop().await;
        let refused = in_time(&rt, "a refusal", fourth.remove_server(others[1])).await;
        let expected = MembershipError::QuorumLost {
            node: others[1],
            live_count: 1,
            voter_count: 2,
        };
        assert_eq!(refused, Err(expected));
        write(&rt, &[&fourth], "still", "x").await;
        for replica in &four {
            replica.stop().await;
        }
    })
    .unwrap();
}

#[test]
fn a_server_that_lost_its_disk_is_no_voter_until_it_is_added_again() {
    block_on(2, |rt| async move {
        let (places, mut replicas) = three(&rt).await;
        {
            let all: Vec<&Replica<TokioRt>> = replicas.iter().collect();
            write(&rt, &all, "a", "1").await;
        }
        // Not the leader, to keep the story short.
        let follower = replicas.iter().position(|replica| !replica.status().is_leader).unwrap();
        replicas[follower].stop().await;
        let blank = Place::memory(places[follower].number);
        replicas[follower] = blank.start(&rt).await;
        let all: Vec<&Replica<TokioRt>> = replicas.iter().collect();
        introduce(&all);
        write(&rt, &all, "b", "2").await;
        assert!(!all[follower].is_initialized(), "nobody talked to the blank disk");
        let leader = leader_of(&rt, &all).await;
        in_time(&rt, "add again", leader.add_server(all[follower].node_id()))
            .await
            .unwrap();
        until(&rt, &all, "it has all", || value(all[follower], "b").is_some()).await;
        assert_eq!(value(all[follower], "a").as_deref(), Some("1"));
        for replica in &all {
            replica.stop().await;
        }
    })
    .unwrap();
}

#[test]
fn two_views_of_the_pool_make_one_cluster_and_who_is_left_over_joins_it() {
    block_on(2, |rt| async move {
        let places: Vec<Place> = (1..=4).map(Place::memory).collect();
        let mut replicas = Vec::new();
        for place in &places {
            replicas.push(place.start(&rt).await);
        }
        let all: Vec<&Replica<TokioRt>> = replicas.iter().collect();
        introduce(&all);
        // The second one does not see the first, and the fourth is not up: the third is pledged in vain.
        let nowhere = (node(4), SocketAddr::from(([127, 0, 0, 1], 1)));
        let view = vec![candidates(&[all[2]])[0], nowhere];
        let came = all[1].bootstrap_expect(view, 3).await.unwrap();
        assert!(matches!(came, Bootstrapped::NotYet(_)), "{came:?}");
        assert_eq!(all[2].cluster_id(), all[1].cluster_id());
        // The first one sees the two: the second yields, and frees the third.
        let came = all[0].bootstrap_expect(candidates(&all[..3]), 3).await.unwrap();
        assert_eq!(came, Bootstrapped::Done);
        // Another view, too late.
        let came = all[1].bootstrap_expect(candidates(&all[1..]), 3).await.unwrap();
        assert_ne!(came, Bootstrapped::Done);
        write(&rt, &all[..3], "a", "1").await;
        assert!(
            all[..3]
                .iter()
                .all(|replica| replica.cluster_id() == all[0].cluster_id())
        );
        introduce(&all);
        let leader = leader_of(&rt, &all[..3]).await;
        in_time(&rt, "add", leader.add_server(node(4))).await.unwrap();
        until(&rt, &all, "the fourth has it", || value(all[3], "a").is_some()).await;
        for replica in &all {
            replica.stop().await;
        }
    })
    .unwrap();
}

#[test]
fn a_damaged_snapshot_refuses_the_start_by_its_name() {
    block_on(2, |rt| async move {
        let place = Place::memory(1);
        let replica = place.start(&rt).await;
        replica.bootstrap_single().await.unwrap();
        for at in 0..60 {
            write(&rt, &[&replica], &format!("k{at}"), "x").await;
        }
        until(&rt, &[&replica], "a snapshot", || {
            replica.status().last_snapshot_index.0 > 0
        })
        .await;
        replica.stop().await;
        drop(replica);
        let directory = place.data_dir.join("raft");
        let entries = place.disk.list(&directory).await.unwrap();
        let name = &entries
            .iter()
            .find(|entry| entry.name.starts_with("snapshot-"))
            .unwrap()
            .name;
        let file = place.disk.open(&directory.join(name), OpenMode::Write).await.unwrap();
        let middle = file.len_bytes().await.unwrap() / 2;
        let byte = file.read_at(middle, 1).await.unwrap()[0];
        file.write_at(middle, vec![byte ^ 1].into()).await.unwrap();
        let Err(StartError::Snapshot(err)) = place.try_start(&rt).await else {
            panic!("it started from a damaged snapshot");
        };
        assert!(err.to_string().contains(name.as_str()), "{err}");
    })
    .unwrap();
}

#[test]
fn calls_share_a_connection_and_tell_what_was_not_sent() {
    block_on(2, |rt| async move {
        let place = Place::memory(7);
        let replica = place.start(&rt).await;
        let client = RpcClient::new(rt.clone(), node(99));
        let deadline = rt.now() + DEADLINE;
        let calls = (0..200).map(|_| client.call(replica.local_addr(), &Request::Status, deadline));
        for answer in futures::future::join_all(calls).await {
            let Ok(Response::Status(status)) = answer else {
                panic!("no status but {answer:?}");
            };
            assert_eq!(status.leader.unwrap().port(), 7);
        }
        let address = replica.local_addr();
        replica.stop().await;
        drop(replica);
        let failure = client.call(address, &Request::Status, deadline).await.unwrap_err();
        let again = client.call(address, &Request::Status, deadline).await.unwrap_err();
        for failure in [failure, again] {
            assert!(
                matches!(
                    failure,
                    quorate_replica::CallFailure::NotSent(_) | quorate_replica::CallFailure::Unknown(_)
                ),
                "{failure}"
            );
        }
    })
    .unwrap();
}

#[test]
fn watchers_wake_for_what_they_watch_and_for_a_stop() {
    block_on(2, |rt| async move {
        let place = Place::memory(1);
        let replica = place.start(&rt).await;
        replica.bootstrap_single().await.unwrap();
        let watch = replica.watches().register(vec![Topic::Key("a".to_owned())]).unwrap();
        write(&rt, &[&replica], "a", "1").await;
        assert_eq!(in_time(&rt, "a wake", watch.wait()).await, Wake::Touched);
        let watch = replica.watches().register(vec![Topic::Key("a".to_owned())]).unwrap();
        replica.stop().await;
        assert_eq!(in_time(&rt, "a wake", watch.wait()).await, Wake::Stopped);
    })
    .unwrap();
}

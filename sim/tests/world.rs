//! What the models of network, disk and machines promise.

#![cfg(madsim)]

use bytes::Bytes;
use futures::FutureExt as _;
use quorate_rt::{Disk, File, Listener, OpenMode, ProcessEnd, ProcessSpec, Rt, Signal, Udp};
use quorate_sim::net::WINDOW_LEN;
use quorate_sim::rt::{SimRt, SimStream};
use quorate_sim::{DiskFaults, Link, ProcessAnswer, World};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PORT: u16 = 7000;
const PATIENCE: Duration = Duration::from_secs(30);

/// A world with the nodes a, b and c.
fn in_world<Fut: Future<Output = ()>>(seed: u64, main: impl FnOnce(World) -> Fut) {
    World::run(seed, |world| {
        for (position, name) in ["a", "b", "c"].into_iter().enumerate() {
            world.add_node(name, IpAddr::from([10, 0, 0, 1 + position as u8]));
        }
        main(world)
    });
}

fn at(world: &World, node: &str) -> SocketAddr {
    SocketAddr::new(world.ip(node), PORT)
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], port))
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A connection from `from` to `to`: both ends.
async fn connected(world: &World, from: &str, to: &str) -> (SimStream, SimStream) {
    let listener = world.rt(to).tcp_listen(any(PORT)).await.unwrap();
    let rt = world.rt(from);
    let to = at(world, to);
    let (client, server) = futures::join!(rt.tcp_connect(to), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

async fn expect_within<T: Send>(rt: &SimRt, claim: &str, work: impl Future<Output = T> + Send) -> T {
    rt.timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{claim}"))
}

// Datagrams

#[test]
fn datagrams_are_lost_doubled_and_overtake_at_the_rates_of_the_link() {
    in_world(1, |world| async move {
        world.set_link(Link {
            latency: millis(1)..millis(30),
            loss_ratio: 0.2,
            duplicate_ratio: 0.1,
            ..Link::default()
        });
        let (a, b) = (world.rt("a"), world.rt("b"));
        let receiver = b.udp_bind(any(PORT)).await.unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        b.spawn("reader", async move {
            let mut buffer = [0; 8];
            while let Ok((len, _)) = receiver.recv_from(&mut buffer).await {
                assert_eq!(len, 8);
                log.lock().unwrap().push(u64::from_le_bytes(buffer));
            }
        });
        let sender = a.udp_bind(any(0)).await.unwrap();
        for number in 0..1000u64 {
            sender.send_to(&number.to_le_bytes(), at(&world, "b")).await.unwrap();
            world.advance(millis(1)).await;
        }
        world.advance(millis(100)).await;
        let heard = heard.lock().unwrap().clone();
        let distinct: std::collections::BTreeSet<_> = heard.iter().collect();
        assert!(
            (700..900).contains(&distinct.len()),
            "{} of 1000 arrived",
            distinct.len()
        );
        let doubled = heard.len() - distinct.len();
        assert!((40..130).contains(&doubled), "{doubled} arrived twice");
        assert!(!heard.is_sorted());
    });
}

#[test]
fn a_one_way_cut_loses_datagrams_one_way() {
    in_world(1, |world| async move {
        let (a, b) = (world.rt("a"), world.rt("b"));
        let (at_a, at_b) = (
            a.udp_bind(any(PORT)).await.unwrap(),
            b.udp_bind(any(PORT)).await.unwrap(),
        );
        let cut = world.cut_one_way("a", "b");
        at_a.send_to(b"lost", at(&world, "b")).await.unwrap();
        at_b.send_to(b"heard", at(&world, "a")).await.unwrap();
        let mut buffer = [0; 16];
        let (len, from) = expect_within(&a, "b reaches a", at_a.recv_from(&mut buffer))
            .await
            .unwrap();
        assert_eq!((&buffer[..len], from), (&b"heard"[..], at(&world, "b")));
        assert!(b.timeout(millis(100), at_b.recv_from(&mut buffer)).await.is_err());
        world.mend(cut);
        at_a.send_to(b"now", at(&world, "b")).await.unwrap();
        let (len, _) = expect_within(&b, "a reaches b", at_b.recv_from(&mut buffer))
            .await
            .unwrap();
        assert_eq!(&buffer[..len], b"now");
    });
}

#[test]
fn a_full_datagram_queue_drops_what_comes_later() {
    in_world(1, |world| async move {
        let receiver = world.rt("b").udp_bind(any(PORT)).await.unwrap();
        let sender = world.rt("a").udp_bind(any(0)).await.unwrap();
        let datagram = vec![7; 60_000];
        for _ in 0..10 {
            sender.send_to(&datagram, at(&world, "b")).await.unwrap();
        }
        assert!(sender.send_to(&vec![0; 70_000], at(&world, "b")).await.is_err());
        world.advance(millis(100)).await;
        let mut buffer = vec![0; 65_535];
        let mut count = 0;
        while receiver.recv_from(&mut buffer).now_or_never().is_some() {
            count += 1;
        }
        assert_eq!(count, 3);
    });
}

#[test]
fn a_bounded_link_takes_its_time_and_drops_what_it_cannot_hold() {
    in_world(1, |world| async move {
        world.set_link(Link {
            bytes_per_second: Some(100_000),
            ..Link::default()
        });
        let (mut client, mut server) = connected(&world, "a", "b").await;
        let from = world.elapsed();
        let content = vec![5; 200_000];
        let mut received = vec![0; content.len()];
        let (sent, read) = futures::join!(client.write_all(&content), server.read_exact(&mut received));
        sent.unwrap();
        read.unwrap();
        let took = world.elapsed() - from;
        assert!((millis(2_000)..millis(2_050)).contains(&took), "{took:?}");

        let receiver = world.rt("b").udp_bind(any(PORT)).await.unwrap();
        let sender = world.rt("a").udp_bind(any(0)).await.unwrap();
        for _ in 0..100 {
            sender.send_to(&[0; 1_000], at(&world, "b")).await.unwrap();
        }
        world.advance(Duration::from_secs(2)).await;
        let mut count = 0;
        while receiver.recv_from(&mut [0; 1_000]).now_or_never().is_some() {
            count += 1;
        }
        assert_eq!(count, 50);
    });
}

#[test]
fn partitions_hold_between_their_sides_only() {
    in_world(1, |world| async move {
        world.partition(&[&["a"], &["b"]]);
        assert!(world.is_cut("a", "b") && world.is_cut("b", "a"));
        assert!(!world.is_cut("a", "c") && !world.is_cut("c", "b"));
        world.isolate("c");
        assert!(world.is_cut("a", "c") && world.is_cut("c", "b"));
        world.heal();
        assert!(!world.is_cut("a", "b") && !world.is_cut("a", "c"));
    });
}

#[test]
fn a_port_is_bound_once_and_free_again_after_its_socket() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        let first = rt.udp_bind(any(PORT)).await.unwrap();
        let kind = |result: io::Result<()>| result.unwrap_err().kind();
        assert_eq!(
            kind(rt.udp_bind(at(&world, "a")).await.map(drop)),
            io::ErrorKind::AddrInUse
        );
        assert_eq!(
            kind(rt.udp_bind(at(&world, "b")).await.map(drop)),
            io::ErrorKind::AddrNotAvailable
        );
        drop(first);
        rt.udp_bind(at(&world, "a")).await.unwrap();
        let _listener = rt.tcp_listen(any(PORT)).await.unwrap();
        assert_eq!(kind(rt.tcp_listen(any(PORT)).await.map(drop)), io::ErrorKind::AddrInUse);
    });
}

// Streams

#[test]
fn stream_bytes_stay_in_order_through_loss_a_cut_and_a_heal() {
    in_world(3, |world| async move {
        world.set_link(Link {
            latency: millis(1)..millis(40),
            loss_ratio: 0.1,
            ..Link::default()
        });
        let (mut client, mut server) = connected(&world, "a", "b").await;
        let content: Vec<u8> = (0..40_000u32).flat_map(u32::to_le_bytes).collect();
        let sent = content.clone();
        world.rt("a").spawn("writer", async move {
            for chunk in sent.chunks(1_000) {
                client.write_all(chunk).await.unwrap();
            }
            client.shutdown().await.unwrap();
            // Kept until the peer has ended too.
            client.read_to_end(&mut Vec::new()).await.unwrap();
        });
        let mut first = vec![0; 10_000];
        server.read_exact(&mut first).await.unwrap();
        let cut = world.isolate("a");
        world.advance(Duration::from_secs(60)).await;
        world.mend(cut);
        let healed_at = world.elapsed();
        let mut rest = Vec::new();
        let rt = world.rt("b");
        expect_within(&rt, "the rest arrives after the heal", server.read_to_end(&mut rest))
            .await
            .unwrap();
        assert!(world.elapsed() - healed_at < Duration::from_secs(25));
        assert!([first, rest].concat() == content);
    });
}

#[test]
fn data_sent_in_a_cut_arrives_soon_after_the_heal() {
    in_world(3, |world| async move {
        let (mut client, mut server) = connected(&world, "a", "b").await;
        world.partition(&[&["a"], &["b"]]);
        client.write_all(b"hello").await.unwrap();
        let mut buffer = [0; 5];
        let rt = world.rt("b");
        assert!(
            rt.timeout(Duration::from_secs(30), server.read_exact(&mut buffer))
                .await
                .is_err()
        );
        world.heal();
        let healed_at = world.elapsed();
        server.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"hello");
        assert!(world.elapsed() - healed_at <= millis(3_100));
    });
}

#[test]
fn a_writer_waits_when_nobody_reads() {
    in_world(1, |world| async move {
        let (mut client, mut server) = connected(&world, "a", "b").await;
        let content = vec![1; 3 * WINDOW_LEN as usize];
        let rt = world.rt("a");
        let all = rt.timeout(PATIENCE, client.write_all(&content)).await;
        assert!(all.is_err(), "the window is smaller");
        let mut buffer = vec![0; WINDOW_LEN as usize];
        server.read_exact(&mut buffer).await.unwrap();
        expect_within(&rt, "room again", client.write_all(&[2])).await.unwrap();
    });
}

#[test]
fn one_half_closes_while_the_other_still_sends() {
    in_world(1, |world| async move {
        let (mut client, mut server) = connected(&world, "a", "b").await;
        client.shutdown().await.unwrap();
        assert_eq!(
            client.write_all(b"x").await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        server.write_all(b"still here").await.unwrap();
        drop(server);
        let mut content = Vec::new();
        client.read_to_end(&mut content).await.unwrap();
        assert_eq!(content, b"still here");
    });
}

#[test]
fn an_end_dropped_with_unread_bytes_resets_its_peer() {
    in_world(1, |world| async move {
        let (mut client, server) = connected(&world, "a", "b").await;
        client.write_all(b"unread").await.unwrap();
        world.advance(millis(10)).await;
        drop(server);
        let err = client.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn connecting_is_refused_after_a_round_trip_and_hangs_into_a_cut() {
    in_world(1, |world| async move {
        world.set_link(Link {
            latency: millis(10)..millis(11),
            ..Link::default()
        });
        let rt = world.rt("a");
        let to = at(&world, "b");
        let from = world.elapsed();
        let refused = rt.tcp_connect(to).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(world.elapsed() - from >= millis(20));

        let _listener = world.rt("b").tcp_listen(any(PORT)).await.unwrap();
        let cut = world.partition(&[&["a"], &["b"]]);
        assert!(rt.timeout(Duration::from_secs(60), rt.tcp_connect(to)).await.is_err());
        let (connecting, ()) = futures::join!(rt.tcp_connect(to), async {
            world.advance(Duration::from_secs(5)).await;
            world.mend(cut);
        });
        connecting.unwrap();

        let nobody = SocketAddr::from(([10, 9, 9, 9], PORT));
        let err = rt.tcp_connect(nobody).await.map(drop).unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn peers_of_a_machine_that_lost_power_hear_nothing_until_it_is_back() {
    in_world(1, |world| async move {
        let (mut client, server) = connected(&world, "a", "b").await;
        // Its program holds the stream until it is killed.
        world.rt("b").spawn("holder", async move {
            let _held = server;
            std::future::pending::<()>().await;
        });
        world.advance(millis(10)).await;
        world.kill("b", true);
        let rt = world.rt("a");
        assert!(
            rt.timeout(Duration::from_secs(60), client.read(&mut [0; 1]))
                .await
                .is_err()
        );
        client.write_all(b"anyone?").await.unwrap();
        assert!(
            rt.timeout(Duration::from_secs(60), client.read(&mut [0; 1]))
                .await
                .is_err()
        );
        world.restart("b");
        let read = expect_within(&rt, "the new boot resets it", client.read(&mut [0; 1])).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_kernel_ends_the_connections_of_a_killed_process() {
    in_world(1, |world| async move {
        let (mut client, server) = connected(&world, "a", "b").await;
        world.rt("b").spawn("holder", async move {
            let _held = server;
            std::future::pending::<()>().await;
        });
        world.kill("b", false);
        let rt = world.rt("a");
        assert_eq!(
            expect_within(&rt, "the end is heard", client.read(&mut [0; 1]))
                .await
                .unwrap(),
            0
        );
        let refused = rt.tcp_connect(at(&world, "b")).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

// Disks

async fn write(rt: &SimRt, path: &str, content: &'static [u8]) -> <quorate_sim::disk::SimDisk as Disk>::File {
    let file = rt.disk().open(Path::new(path), OpenMode::Create).await.unwrap();
    file.write_at(0, Bytes::from_static(content)).await.unwrap();
    file
}

#[test]
fn power_loss_takes_unsynced_bytes_and_leaves_synced_ones() {
    let mut lost = 0;
    for seed in 0..40 {
        let taken = Arc::new(Mutex::new(false));
        let told = Arc::clone(&taken);
        in_world(seed, |world| async move {
            let rt = world.rt("a");
            let file = write(&rt, "/f", &[1; 4096]).await;
            file.sync_data().await.unwrap();
            rt.disk().sync_dir(Path::new("/")).await.unwrap();
            file.write_at(2048, Bytes::from_static(&[2; 4096])).await.unwrap();
            drop(file);
            world.kill("a", true);
            let left = world.read_file("a", Path::new("/f")).expect("its name was synced");
            assert!(
                left.len() == 4096 || left.len() == 6144,
                "a length that was never written: {}",
                left.len()
            );
            assert_eq!(left[..2048], [1; 2048]);
            for sector in left[2048..].chunks(512) {
                let whole = [0, 1, 2].iter().any(|&byte| sector.iter().all(|&it| it == byte));
                assert!(whole, "a sector is written whole or not at all");
            }
            *told.lock().unwrap() = left.len() == 4096 || left[2048..] != [2; 4096];
        });
        lost += i32::from(*taken.lock().unwrap());
    }
    assert!((5..40).contains(&lost), "unsynced bytes were lost {lost} times of 40");
}

#[test]
fn power_loss_takes_unsynced_names_whole() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let kept = Arc::new(Mutex::new(None));
        let told = Arc::clone(&kept);
        in_world(seed, |world| async move {
            let rt = world.rt("a");
            let disk = rt.disk();
            world.write_file("a", Path::new("/d/old"), b"old");
            let file = write(&rt, "/d/new", b"new").await;
            file.sync_all().await.unwrap();
            disk.rename(Path::new("/d/new"), Path::new("/d/old")).await.unwrap();
            drop(file);
            world.kill("a", true);
            let old = world
                .read_file("a", Path::new("/d/old"))
                .expect("a rename replaces, it never removes");
            let new = world.read_file("a", Path::new("/d/new"));
            assert!(old == b"old" || (old == b"new" && new.is_none()));
            *told.lock().unwrap() = Some(old);
        });
        let old = kept.lock().unwrap().clone();
        seen.insert(old);
    }
    assert_eq!(seen.len(), 2, "the rename is sometimes kept and sometimes lost");
}

#[test]
fn a_replaced_file_survives_power_loss() {
    for seed in 0..20 {
        in_world(seed, |world| async move {
            world.make_dir("a", Path::new("/data"));
            let path = Path::new("/data/id");
            let disk = world.rt("a").disk();
            disk.replace(path, Bytes::from_static(b"one")).await.unwrap();
            disk.replace(path, Bytes::from_static(b"two")).await.unwrap();
            world.kill("a", true);
            world.restart("a");
            assert_eq!(world.rt("a").disk().read(path, 10).await.unwrap(), b"two");
        });
    }
}

#[test]
fn a_killed_process_leaves_the_cache_and_frees_its_locks() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        let file = write(&rt, "/f", b"unsynced").await;
        let lock = rt.disk().lock(Path::new("/lock")).await.unwrap();
        assert_eq!(
            rt.disk().lock(Path::new("/lock")).await.unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        world.kill("a", false);
        world.restart("a");
        let again = world.rt("a").disk();
        assert_eq!(again.read(Path::new("/f"), 100).await.unwrap(), b"unsynced");
        let held = again.lock(Path::new("/lock")).await.unwrap();
        // What the dead boot still holds does nothing.
        drop((file, lock));
        assert_eq!(
            again.lock(Path::new("/lock")).await.unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        assert!(rt.disk().list(Path::new("/")).await.is_err());
        drop(held);
        again.lock(Path::new("/lock")).await.unwrap();
    });
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        let file = write(&rt, "/f", b"first").await;
        rt.disk().sync_dir(Path::new("/")).await.unwrap();
        world.set_disk_faults(
            "a",
            DiskFaults {
                sync_error_ratio: 1.1,
                ..DiskFaults::default()
            },
        );
        assert_eq!(file.sync_data().await.unwrap_err().raw_os_error(), Some(5));
        world.set_disk_faults("a", DiskFaults::default());
        file.sync_data().await.unwrap();
        assert_eq!(file.read_at(0, 10).await.unwrap(), b"first");
        world.kill("a", true);
        assert_eq!(world.read_file("a", Path::new("/f")).unwrap(), [0; 5]);
    });
}

#[test]
fn a_full_disk_refuses_to_grow_and_still_overwrites() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        let file = write(&rt, "/f", b"12345").await;
        world.set_disk_faults(
            "a",
            DiskFaults {
                full: true,
                ..DiskFaults::default()
            },
        );
        file.write_at(0, Bytes::from_static(b"abcde")).await.unwrap();
        let grown = file.write_at(4, Bytes::from_static(b"xy")).await.unwrap_err();
        assert_eq!(grown.kind(), io::ErrorKind::StorageFull);
        let made = rt
            .disk()
            .open(Path::new("/g"), OpenMode::Create)
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(made.kind(), io::ErrorKind::StorageFull);
    });
}

#[test]
fn a_shortened_file_reads_zeros_where_it_grows_again() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        let file = write(&rt, "/f", &[9; 10_000]).await;
        file.set_len_bytes(1_000).await.unwrap();
        file.set_len_bytes(10_000).await.unwrap();
        let content = file.read_at(0, 20_000).await.unwrap();
        assert!(content.len() == 10_000 && content[..1_000] == [9; 1_000] && content[1_000..] == [0; 9_000]);
    });
}

// Machines

#[test]
fn an_installed_program_ends_at_a_kill_and_starts_with_the_machine() {
    in_world(1, |world| async move {
        let beats = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&beats);
        world.install("a", move |rt| {
            let log = Arc::clone(&log);
            async move {
                loop {
                    log.lock().unwrap().push(rt.process_id());
                    rt.sleep(millis(100)).await;
                }
            }
        });
        world.advance(millis(950)).await;
        world.kill("a", true);
        let killed = beats.lock().unwrap().len();
        assert_eq!(killed, 10);
        world.advance(Duration::from_secs(5)).await;
        assert_eq!(beats.lock().unwrap().len(), killed);
        world.restart("a");
        world
            .run_until("the new boot beats", PATIENCE, async || {
                beats.lock().unwrap().len() > killed
            })
            .await
            .unwrap();
        let beats = beats.lock().unwrap();
        assert_ne!(beats.first(), beats.last());
    });
}

#[test]
fn a_paused_machine_does_nothing_until_it_is_resumed_or_killed() {
    in_world(1, |world| async move {
        let beats = Arc::new(Mutex::new(0));
        let log = Arc::clone(&beats);
        world.install("a", move |rt| {
            let log = Arc::clone(&log);
            async move {
                loop {
                    *log.lock().unwrap() += 1;
                    rt.sleep(millis(100)).await;
                }
            }
        });
        let count = || *beats.lock().unwrap();
        world.advance(millis(250)).await;
        world.pause("a");
        let paused = count();
        world.advance(Duration::from_secs(5)).await;
        assert_eq!(count(), paused);
        world.resume("a");
        world.advance(millis(250)).await;
        assert!(count() > paused);
        world.pause("a");
        world.advance(millis(250)).await;
        world.restart("a");
        let restarted = count();
        world.advance(millis(250)).await;
        assert!(count() > restarted);
    });
}

#[test]
fn events_of_a_program_are_part_of_the_digest() {
    let digest = |payload: &'static [u8]| {
        let digest = Arc::new(Mutex::new(0));
        let told = Arc::clone(&digest);
        in_world(1, |world| async move {
            world.rt("a").event(quorate_rt::Event { kind: "apply", payload });
            *told.lock().unwrap() = world.digest();
        });
        *digest.lock().unwrap()
    };
    assert_eq!(digest(b"one"), digest(b"one"));
    assert_ne!(digest(b"one"), digest(b"two"));
}

#[test]
fn clocks_drift_apart_and_sleeps_follow_their_own_clock() {
    in_world(1, |world| async move {
        world.set_drift_ppm("a", 50_000);
        world.set_wall_offset_nanos("b", -1_000_000_000);
        let (a, b) = (world.rt("a"), world.rt("b"));
        let (from, a_from, b_from) = (world.elapsed(), a.now(), b.now());
        a.sleep(Duration::from_secs(105)).await;
        let passed = world.elapsed() - from;
        assert!(
            passed >= Duration::from_secs(100) && passed < millis(100_010),
            "{passed:?}"
        );
        assert!(a.now() - a_from >= Duration::from_secs(105));
        assert!(b.now() - b_from < millis(100_010));
        let wall_apart = a.wall_now().as_nanos() - b.wall_now().as_nanos();
        assert!(wall_apart >= 6_000_000_000);
    });
}

#[test]
fn random_streams_depend_on_seed_machine_boot_and_name() {
    use rand_core::Rng as _;
    let draws = Arc::new(Mutex::new(Vec::new()));
    for seed in [1, 1, 2] {
        let draws = Arc::clone(&draws);
        in_world(seed, |world| async move {
            let (a, b) = (world.rt("a"), world.rt("b"));
            let drawn = [a.rng("x"), a.rng("x"), a.rng("y"), b.rng("x")].map(|mut rng| rng.next_u64());
            world.restart("a");
            draws.lock().unwrap().push((drawn, world.rt("a").rng("x").next_u64()));
        });
    }
    let draws = draws.lock().unwrap();
    assert_eq!(draws[0], draws[1]);
    assert_ne!(draws[0], draws[2]);
    let (drawn, rebooted) = draws[0];
    let distinct: std::collections::BTreeSet<u64> = drawn.into_iter().chain([rebooted]).collect();
    assert_eq!(distinct.len(), 5);
}

#[test]
fn child_processes_answer_from_the_table() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        let spec = |argument: &str| ProcessSpec {
            argv: vec!["check".to_owned(), argument.to_owned()],
            environment: Vec::new(),
            timeout: Duration::from_secs(5),
            output_len_bytes_max: 4,
        };
        let absent = rt.run_process(spec("mem")).await;
        assert_eq!(
            absent.end,
            ProcessEnd::NotStarted("no such file or directory".to_owned())
        );
        let answer = |end, delay| ProcessAnswer {
            end,
            output: b"output".to_vec(),
            delay,
        };
        world.set_process("a", "mem", answer(ProcessEnd::Exited(1), millis(10)));
        let exited = rt.run_process(spec("mem")).await;
        assert_eq!(
            (exited.end, &exited.output[..], exited.output_len_bytes),
            (ProcessEnd::Exited(1), &b"tput"[..], 6)
        );
        world.set_process("a", "mem", answer(ProcessEnd::Exited(0), Duration::from_secs(60)));
        let from = world.elapsed();
        assert_eq!(rt.run_process(spec("mem")).await.end, ProcessEnd::TimedOut);
        assert!(world.elapsed() - from < millis(5_010));
        assert_eq!(world.process_runs("a").len(), 3);
    });
}

#[test]
fn signals_are_kept_until_someone_waits() {
    in_world(1, |world| async move {
        world.signal("a", Signal::Hangup);
        world.signal("a", Signal::Terminate);
        let rt = world.rt("a");
        assert_eq!(rt.next_signal().await, Signal::Hangup);
        assert_eq!(rt.next_signal().await, Signal::Terminate);
        let (signal, ()) = futures::join!(rt.next_signal(), async {
            world.advance(millis(10)).await;
            world.signal("a", Signal::Interrupt);
        });
        assert_eq!(signal, Signal::Interrupt);
    });
}

#[test]
fn names_of_nodes_resolve_and_others_do_not() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        assert_eq!(rt.resolve("b", 80).await.unwrap(), [SocketAddr::new(world.ip("b"), 80)]);
        assert_eq!(rt.resolve("::1", 80).await.unwrap(), ["[::1]:80".parse().unwrap()]);
        assert_eq!(
            rt.resolve("nobody", 80).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(rt.host_name(), "a");
    });
}

#[test]
fn sleeps_that_are_dropped_leave_time_alone() {
    in_world(1, |world| async move {
        let rt = world.rt("a");
        for _ in 0..10_000 {
            let ready = rt
                .timeout(Duration::from_secs(3600), rt.sleep(Duration::from_micros(10)))
                .await;
            assert!(ready.is_ok());
        }
        assert!(world.elapsed() < Duration::from_secs(1));
    });
}

// Clients

#[test]
fn a_client_asks_over_http_and_dns() {
    use hickory_proto::op::Message;
    use hickory_proto::rr::RecordType;
    use http_body_util::{BodyExt as _, Full};
    use hyper::{Method, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use quorate_sim::client::Client;
    in_world(1, |world| async move {
        let server = world.rt("b");
        let listener = server.tcp_listen(any(8500)).await.unwrap();
        let rt = server.clone();
        server.spawn("http", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(|request: Request<Incoming>| async move {
                    let said = format!("{} {}", request.method(), request.uri());
                    let body = request.into_body().collect().await?.to_bytes();
                    let answer = Response::builder().header("x-index", "7");
                    Ok::<_, hyper::Error>(
                        answer
                            .body(Full::new(Bytes::from([said.as_bytes(), &body].concat())))
                            .unwrap(),
                    )
                });
                rt.spawn("connection", async move {
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await
                        .unwrap();
                });
            }
        });
        let dns = server.udp_bind(any(8600)).await.unwrap();
        server.spawn("dns", async move {
            let mut buffer = [0; 512];
            while let Ok((len, from)) = dns.recv_from(&mut buffer).await {
                let question = Message::from_vec(&buffer[..len]).unwrap();
                dns.send_to(&question.to_vec().unwrap(), from).await.unwrap();
            }
        });
        let client = Client::new(world.rt("c"), PATIENCE);
        let answer = client
            .http(Method::PUT, "http://b:8500/v1/kv/a?x=1", "value")
            .await
            .unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("x-index")), (200, Some("7")));
        assert_eq!(answer.text(), "PUT /v1/kv/a?x=1value");
        let echoed = client
            .dns(
                SocketAddr::new(world.ip("b"), 8600),
                "web.service.consul.",
                RecordType::A,
            )
            .await
            .unwrap();
        assert_eq!(echoed.queries[0].query_type(), RecordType::A);
        world.isolate("b");
        let err = client.http(Method::GET, "http://b:8500/", "").await.unwrap_err();
        assert!(format!("{err:#}").contains("no answer within 30s"), "{err:#}");
    });
}

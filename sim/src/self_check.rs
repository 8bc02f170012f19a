//! A small program over datagrams, streams and disks, with kills and cuts: two processes must give it one digest a seed.

use crate::{Link, World};
use bytes::Bytes;
use quorate_rt::{Disk as _, File as _, Listener as _, OpenMode, Rt, Udp as _};
use rand_core::Rng as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PORT: u16 = 7000;
const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// Echoes by both ways, asks the others in turn, and keeps a journal of what it heard.
async fn node<R: Rt>(rt: R, peers: Vec<SocketAddr>) -> std::io::Result<()> {
    let any = SocketAddr::from(([0, 0, 0, 0], PORT));
    let listener = rt.tcp_listen(any).await?;
    let echo = rt.clone();
    rt.spawn("streams", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            echo.spawn("stream", async move {
                let mut buffer = [0; 64];
                while let Ok(len @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..len]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let disk = rt.disk();
    disk.create_dir_all(Path::new("/data")).await?;
    disk.sync_dir(Path::new("/")).await?;
    let journal = disk.open(Path::new("/data/journal"), OpenMode::Create).await?;
    disk.sync_dir(Path::new("/data")).await?;
    let socket = rt.udp_bind(any).await?;
    let mut rng = rt.rng("peers");
    let mut end = journal.len_bytes().await?;
    let mut buffer = [0; 1500];
    loop {
        let peer = peers[rng.next_u32() as usize % peers.len()];
        socket.send_to(rt.uuid().as_bytes(), peer).await?;
        if let Ok(Ok((len, from))) = rt
            .timeout(Duration::from_millis(20), socket.recv_from(&mut buffer))
            .await
        {
            journal.write_at(end, Bytes::copy_from_slice(&buffer[..len])).await?;
            end += len as u64;
            if rng.next_u32().is_multiple_of(2) {
                journal.sync_data().await?;
            }
            let told = rt.timeout(Duration::from_millis(500), async {
                let mut stream = rt.tcp_connect(from).await?;
                stream.write_all(&buffer[..len]).await?;
                stream.read_exact(&mut buffer[..len]).await
            });
            // A cut or a dead peer is what this is about.
            let _ = told.await;
        }
        rt.sleep(Duration::from_millis(10)).await;
    }
}

/// Runs it for some virtual seconds and gives the digest.
pub fn run(seed: u64, traced: &[String]) -> anyhow::Result<u64> {
    World::run(seed, |world| async move {
        let mut addresses = Vec::new();
        for (position, name) in NODES.iter().enumerate() {
            let ip = IpAddr::from([10, 0, 0, 1 + position as u8]);
            world.add_node(name, ip);
            addresses.push(SocketAddr::new(ip, PORT));
        }
        for name in traced {
            world.trace(name)?;
        }
        let latency = Duration::from_millis(1)..Duration::from_millis(20);
        world.set_link(Link {
            latency,
            loss_ratio: 0.05,
            duplicate_ratio: 0.02,
            bytes_per_second: Some(1_000_000),
        });
        for name in NODES {
            let own = SocketAddr::new(world.ip(name), PORT);
            let peers: Vec<SocketAddr> = addresses.iter().copied().filter(|&address| address != own).collect();
            world.install(name, move |rt| {
                let peers = peers.clone();
                async move {
                    // An error of its own disk or sockets ends it, as it would an agent.
                    if let Err(err) = node(rt, peers).await {
                        tracing::warn!(%err, "the node stopped");
                    }
                }
            });
        }
        let mut rng = world.scenario_rng("faults");
        for _ in 0..10 {
            world
                .advance(Duration::from_millis(u64::from(300 + rng.next_u32() % 400)))
                .await;
            let victim = NODES[rng.next_u32() as usize % NODES.len()];
            match rng.next_u32() % 4 {
                0 => drop(world.isolate(victim)),
                1 => world.kill(victim, rng.next_u32().is_multiple_of(2)),
                2 => world.set_drift_ppm(victim, (rng.next_u32() % 100_000) as i32 - 50_000),
                _ => {
                    world.heal();
                    for name in NODES {
                        if !world.is_running(name) {
                            world.restart(name);
                        }
                    }
                }
            }
        }
        Ok(world.digest())
    })
}

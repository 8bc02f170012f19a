//! The production door on the real kernel. Nothing here waits by sleeping: each step waits for what it needs.

// Tests of the real thing may name what the door hides.
#![allow(clippy::disallowed_methods)]

use bytes::Bytes;
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::{
    ChildSignal, ChildSpec, Disk, File, Listener, OpenMode, ProcessEnd, ProcessOutput, ProcessSpec, Rt, Signal, Udp,
};
use rand_core::Rng as _;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Long enough for any of these on a loaded machine; a test that needs it fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn on_production<F: Future<Output = ()> + Send>(main: impl FnOnce(TokioRt) -> F) {
    block_on(2, |rt| async move {
        let done = rt.timeout(PATIENCE, main(rt.clone())).await;
        done.expect("the test ends in time");
    })
    .expect("start a runtime");
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

fn shell(script: &str) -> ProcessSpec {
    ProcessSpec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        environment: Vec::new(),
        timeout: PATIENCE,
        output_len_bytes_max: 4096,
    }
}

async fn run(rt: &TokioRt, script: &str) -> ProcessOutput {
    rt.run_process(shell(script)).await
}

#[test]
fn a_stream_carries_bytes_both_ways_and_ends_by_half_close() {
    on_production(|rt| async move {
        let listener = rt.tcp_listen(loopback()).await.unwrap();
        let to = listener.local_addr().unwrap();
        let server = rt.spawn("echo", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut content = Vec::new();
            stream.read_to_end(&mut content).await.unwrap();
            stream.write_all(&content).await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let mut stream = rt.tcp_connect(to).await.unwrap();
        assert!(stream.nodelay().unwrap());
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"hello");
        server.join().await.unwrap();
        let refused = rt.tcp_connect(to).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_datagram_is_cut_to_the_readers_buffer() {
    on_production(|rt| async move {
        let a = rt.udp_bind(loopback()).await.unwrap();
        let b = rt.udp_bind(loopback()).await.unwrap();
        a.send_to(b"0123456789", b.local_addr().unwrap()).await.unwrap();
        let mut buffer = [0; 4];
        let (len, from) = b.recv_from(&mut buffer).await.unwrap();
        assert_eq!((len, from), (4, a.local_addr().unwrap()));
        assert_eq!(&buffer, b"0123");
    });
}

#[test]
fn a_bound_port_is_not_given_twice() {
    on_production(|rt| async move {
        let first = rt.tcp_listen(loopback()).await.unwrap();
        let second = rt.tcp_listen(first.local_addr().unwrap()).await;
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    });
}

#[test]
fn the_disk_opens_writes_replaces_lists_and_removes() {
    on_production(|rt| async move {
        let dir = tempfile::tempdir().unwrap();
        let disk = rt.disk();
        let sub = dir.path().join("raft/log");
        disk.create_dir_all(&sub).await.unwrap();
        let path = sub.join("1.seg");
        let missing = disk.open(&path, OpenMode::Write).await.unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let file = disk.open(&path, OpenMode::CreateNew).await.unwrap();
        let twice = disk.open(&path, OpenMode::CreateNew).await.unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
        file.write_at_synced(3, Bytes::from_static(b"abc")).await.unwrap();
        assert_eq!(file.read_at(0, 100).await.unwrap(), b"\0\0\0abc");
        assert_eq!(file.read_at(4, 1).await.unwrap(), b"b");
        assert_eq!(file.read_at(99, 1).await.unwrap(), b"");
        file.set_len_bytes(2).await.unwrap();
        assert_eq!(file.len_bytes().await.unwrap(), 2);
        let reader = disk.open(&path, OpenMode::Read).await.unwrap();
        assert!(reader.write_at(0, Bytes::from_static(b"x")).await.is_err());

        let kept = sub.join("kept");
        disk.replace(&kept, Bytes::from_static(b"long content")).await.unwrap();
        disk.replace(&kept, Bytes::from_static(b"short")).await.unwrap();
        assert_eq!(disk.read(&kept, 100).await.unwrap(), b"short");
        let too_long = disk.read(&kept, 4).await.unwrap_err();
        assert_eq!(too_long.kind(), io::ErrorKind::InvalidData);
        let names =
            |entries: Vec<quorate_rt::DirEntry>| entries.into_iter().map(|e| (e.name, e.is_dir)).collect::<Vec<_>>();
        assert_eq!(
            names(disk.list(&sub).await.unwrap()),
            [("1.seg".to_owned(), false), ("kept".to_owned(), false)]
        );
        assert_eq!(names(disk.list(dir.path()).await.unwrap()), [("raft".to_owned(), true)]);
        disk.rename(&path, &kept).await.unwrap();
        assert_eq!(disk.read(&kept, 100).await.unwrap(), b"\0\0");
        disk.remove_file(&kept).await.unwrap();
        disk.sync_dir(&sub).await.unwrap();
        assert!(disk.list(&sub).await.unwrap().is_empty());
    });
}

#[test]
fn a_lock_is_exclusive_until_it_is_dropped() {
    on_production(|rt| async move {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = rt.disk().lock(&path).await.unwrap();
        let busy = rt.disk().lock(&path).await.unwrap_err();
        assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
        drop(held);
        rt.disk().lock(&path).await.unwrap();
    });
}

#[test]
fn a_process_tells_its_end_and_both_its_outputs_in_order() {
    on_production(|rt| async move {
        let output = run(&rt, "echo one; echo two >&2; echo three; exit 3").await;
        assert_eq!(output.end, ProcessEnd::Exited(3));
        assert_eq!(output.output, b"one\ntwo\nthree\n");
        assert_eq!(run(&rt, "kill -9 $$").await.end, ProcessEnd::Signaled(9));
        let mut spec = shell("echo $GREETING");
        spec.environment.push(("GREETING".to_owned(), "hello".to_owned()));
        assert_eq!(rt.run_process(spec).await.output, b"hello\n");
    });
}

#[test]
fn a_program_that_is_absent_is_told_in_the_systems_words() {
    on_production(|rt| async move {
        let mut spec = shell("");
        spec.argv = vec!["/no/such/bin".to_owned()];
        let output = rt.run_process(spec.clone()).await;
        assert_eq!(
            output.end,
            ProcessEnd::NotStarted("no such file or directory".to_owned())
        );
        spec.argv = vec!["/".to_owned()];
        let output = rt.run_process(spec.clone()).await;
        assert_eq!(output.end, ProcessEnd::NotStarted("permission denied".to_owned()));
        spec.argv = vec!["a\0b".to_owned()];
        let output = rt.run_process(spec).await;
        assert_eq!(output.end, ProcessEnd::NotStarted("invalid argument".to_owned()));
    });
}

#[test]
fn only_the_tail_of_the_output_is_kept() {
    on_production(|rt| async move {
        let mut spec = shell("i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; printf end");
        spec.output_len_bytes_max = 8;
        let output = rt.run_process(spec).await;
        assert_eq!(output.end, ProcessEnd::Exited(0));
        assert_eq!(output.output, b"6789\nend");
        assert_eq!(output.output_len_bytes, 20_000 * 11 + 3);
    });
}

#[test]
fn a_timeout_kills_the_grandchildren_too() {
    on_production(|rt| async move {
        // The grandchild holds the write end of a pipe of ours; its end closes when the grandchild is dead.
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("alive");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!(
            "(exec 9>'{}'; echo up >&9; while :; do sleep 1000; done) & echo started; wait",
            fifo.display()
        );
        let mut spec = shell(&script);
        spec.timeout = Duration::from_secs(1);
        let reader = rt.run_blocking(move || std::fs::read_to_string(fifo));
        let (output, said) = futures::join!(rt.run_process(spec), reader);
        assert_eq!(output.end, ProcessEnd::TimedOut);
        assert_eq!(output.output, b"started\n");
        assert_eq!(said.unwrap(), "up\n");
    });
}

#[test]
fn a_descendant_that_keeps_the_pipe_open_holds_nobody_up() {
    on_production(|rt| async move {
        let output = run(&rt, "sleep 1000 & echo $!").await;
        assert_eq!(output.end, ProcessEnd::Exited(0));
        let left: i32 = String::from_utf8(output.output).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(left), nix::sys::signal::SIGKILL)
            .expect("the descendant lives on");
    });
}

#[test]
fn each_random_stream_differs() {
    on_production(|rt| async move {
        let draws =
            [rt.rng("a"), rt.rng("a"), rt.rng("b"), TokioRt::new().unwrap().rng("a")].map(|mut rng| rng.next_u64());
        for (position, draw) in draws.iter().enumerate() {
            assert!(!draws[..position].contains(draw));
        }
        assert_ne!(rt.uuid(), rt.uuid());
    });
}

#[test]
fn time_goes_on_and_a_timeout_ends_what_never_ends() {
    on_production(|rt| async move {
        let before = rt.now();
        let never = rt
            .timeout(Duration::from_millis(20), std::future::pending::<()>())
            .await;
        assert_eq!(never, Err(quorate_rt::Elapsed));
        assert!(rt.now() - before >= Duration::from_millis(20));
        // 2020-01-01: a wall clock before it was never set.
        assert!(rt.wall_now().as_secs() > 1_577_836_800);
    });
}

#[test]
fn host_facts_are_answered() {
    on_production(|rt| async move {
        assert!(!rt.host_name().is_empty());
        assert!(rt.interface_addresses().iter().any(|entry| entry.address.is_loopback()));
        assert_eq!(rt.environment("QUORATE_NO_SUCH_VARIABLE"), None);
        assert!(rt.environment("PATH").is_some());
        assert_eq!(rt.process_id(), std::process::id());
        assert_eq!(rt.resolve("::1", 80).await.unwrap(), ["[::1]:80".parse().unwrap()]);
        assert!(
            rt.resolve("localhost", 80)
                .await
                .unwrap()
                .iter()
                .all(|address| address.ip().is_loopback())
        );
        assert!(!Path::new(&rt.host_name()).is_absolute());
    });
}

#[test]
fn blocking_work_gives_its_value() {
    on_production(|rt| async move {
        assert_eq!(rt.run_blocking(|| 6 * 7).await, 42);
    });
}

#[test]
fn signals_sent_before_anyone_waits_are_kept() {
    on_production(|rt| async move {
        // The first poll begins to listen; dropping it then loses nothing.
        assert!(futures::poll!(Box::pin(rt.next_signal())).is_pending());
        nix::sys::signal::raise(nix::sys::signal::SIGHUP).unwrap();
        assert_eq!(rt.next_signal().await, Signal::Hangup);
        nix::sys::signal::raise(nix::sys::signal::SIGTERM).unwrap();
        assert_eq!(rt.next_signal().await, Signal::Terminate);
    });
}

/// The child half of the next test: run by it alone, in a process of its own.
const PANICS_IN_A_TASK: &str = "QUORATE_TEST_PANICS_IN_A_TASK";

#[test]
fn a_panic_in_a_task_ends_the_process() {
    on_production(|rt| async move {
        if rt.environment(PANICS_IN_A_TASK).is_some() {
            rt.spawn("broken", async { panic!("an invariant does not hold") })
                .join()
                .await
                .unwrap();
            return;
        }
        let this = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        let output = rt
            .run_process(ProcessSpec {
                argv: vec![
                    "sh".into(),
                    "-c".into(),
                    format!("ulimit -c 0; exec '{this}' --exact a_panic_in_a_task_ends_the_process"),
                ],
                environment: vec![(PANICS_IN_A_TASK.to_owned(), "1".to_owned())],
                timeout: PATIENCE,
                output_len_bytes_max: 4096,
            })
            .await;
        assert_eq!(output.end, ProcessEnd::Signaled(nix::sys::signal::SIGABRT as i32));
    });
}

fn child(script: &str) -> ChildSpec {
    ChildSpec {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        environment: vec![("GREETING".to_owned(), "hello".to_owned())],
        pass_stdin: false,
    }
}

#[test]
fn a_child_on_our_streams_ends_by_itself_or_when_told() {
    on_production(|rt| async move {
        // Nothing comes from a standard input that was not passed, and the environment was.
        let script = "test -z \"$(cat)\" && test \"$GREETING\" = hello && exit 3";
        let mut ended = rt.start_child(child(script)).await.unwrap();
        assert_eq!(ended.wait().await, ProcessEnd::Exited(3));
        // An end that was told is no child to signal.
        ended.signal(ChildSignal::Kill);

        let mut told = rt.start_child(child("sleep 1000 & wait")).await.unwrap();
        assert!(told.id() > 0);
        told.signal(ChildSignal::Terminate);
        assert_eq!(told.wait().await, ProcessEnd::Signaled(15));

        let absent = ChildSpec {
            argv: vec!["/no/such/program".to_owned()],
            ..child("")
        };
        assert_eq!(
            rt.start_child(absent).await.unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    });
}

#[test]
fn a_child_goes_with_all_it_started() {
    on_production(|rt| async move {
        // The grandchild holds the pipe's write end for as long as it lives: its end is seen as the pipe's.
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for is_told in [true, false] {
            let script = format!(
                "trap '' TERM; sh -c 'sleep 1000' > {} & wait; sleep 1000",
                pipe.display()
            );
            let held = rt.start_child(child(&script)).await.unwrap();
            let path = pipe.clone();
            let reader = rt.run_blocking(move || std::fs::File::open(path).unwrap()).await;
            if is_told {
                held.signal(ChildSignal::Kill);
            } else {
                drop(held);
            }
            let rest = rt.run_blocking(move || io::read_to_string(reader).unwrap()).await;
            assert_eq!(rest, "");
        }
    });
}

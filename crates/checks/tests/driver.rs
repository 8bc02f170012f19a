//! Checks on the real kernel: programs, sockets and timers. Every step waits for a result on the channel, none sleeps.

use quorate_checks::{CheckUpdate, CheckUpdates, Checks, TtlError};
use quorate_rt::production::{TokioRt, block_on};
use quorate_rt::{Listener as _, Rt};
use quorate_types::CheckStatus::{Critical, Passing, Warning};
use quorate_types::{CheckDefinition, CheckKind, CheckStatus};
use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Long enough for any of these on a loaded machine; a test that needs it fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn on_production<F: Future<Output = ()> + Send>(main: impl FnOnce(TokioRt) -> F) {
    block_on(2, |rt| async move {
        rt.timeout(PATIENCE, main(rt.clone()))
            .await
            .expect("the test ends in time");
    })
    .expect("start a runtime");
}

fn check(id: &str, kind: CheckKind) -> CheckDefinition {
    CheckDefinition {
        id: id.to_owned(),
        name: id.to_owned(),
        notes: String::new(),
        service_id: String::new(),
        status: Critical,
        kind,
        interval: Duration::from_millis(5),
        timeout: None,
        success_before_passing: 0,
        failures_before_warning: 0,
        failures_before_critical: 0,
        deregister_critical_service_after: None,
        output_len_bytes_max: 64,
        token: String::new(),
    }
}

fn script(text: &str) -> CheckKind {
    CheckKind::Script {
        args: ["/bin/sh", "-c", text].map(str::to_owned).to_vec(),
    }
}

fn http(url: String) -> CheckKind {
    CheckKind::Http {
        url,
        method: String::new(),
        header: BTreeMap::from([("X-Test".to_owned(), vec!["a".to_owned(), "b".to_owned()])]),
        body: String::new(),
        disable_redirects: false,
        tls_skip_verify: false,
        tls_server_name: String::new(),
    }
}

fn ttl(millis: u64) -> CheckKind {
    CheckKind::Ttl {
        ttl: Duration::from_millis(millis),
    }
}

fn add(checks: &Checks<TokioRt>, definition: CheckDefinition) {
    checks.add(definition, Critical, String::new(), None);
}

/// The first result of one definition alone.
async fn first_of(rt: &TokioRt, definition: CheckDefinition) -> (CheckStatus, String) {
    let (checks, mut updates) = Checks::start(rt.clone());
    add(&checks, definition);
    let update = next(&mut updates).await;
    (update.status, update.output)
}

async fn next(updates: &mut CheckUpdates) -> CheckUpdate {
    updates.recv().await.expect("a result").into_update()
}

/// Answers each connection with the next of these texts (the last one again and again), and gives back what was asked.
async fn serve(rt: &TokioRt, answers: Vec<&'static str>) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = rt.tcp_listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (asked, questions) = tokio::sync::mpsc::unbounded_channel();
    rt.spawn("server", async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut question = Vec::new();
            while !question.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => question.push(byte),
                    Err(_) => break,
                }
            }
            let _ = asked.send(String::from_utf8(question).unwrap());
            let answer = answers[number.min(answers.len() - 1)];
            if answer.is_empty() {
                // Never answers: the connection stays open until the client goes.
                let _ = stream.read_u8().await;
                continue;
            }
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, questions)
}

#[test]
fn a_script_is_judged_by_its_exit_code_and_shows_the_end_of_what_it_wrote() {
    on_production(|rt| async move {
        for (text, status, output) in [
            ("echo out; echo err >&2", Passing, "out\nerr\n"),
            ("printf hm; exit 1", Warning, "hm"),
            ("exit 3", Critical, ""),
        ] {
            let mut definition = check("s", script(text));
            definition.interval = PATIENCE;
            let (checks, mut updates) = Checks::start(rt.clone());
            // Shown until then: something else, or an equal result would not be reported.
            checks.add(definition, Warning, "nothing yet".to_owned(), None);
            let update = next(&mut updates).await;
            assert_eq!((update.status, update.output.as_str()), (status, output), "{text}");
            assert_eq!(checks.critical_since("s").is_some(), status == Critical);
        }
        let long = first_of(
            &rt,
            check("s", script("for i in 1 2 3 4 5 6 7 8 9; do printf 0123456789; done")),
        )
        .await;
        assert!(long.1.starts_with("Captured 64 of 90 bytes\n...\n6789"), "{}", long.1);
        let mut slow = check("s", script("printf begun; cat /dev/zero > /dev/null"));
        slow.timeout = Some(Duration::from_millis(200));
        let (status, output) = first_of(&rt, slow).await;
        assert_eq!(status, Critical);
        assert!(output.starts_with("Timed out (200ms) running check\n\n"), "{output}");
        let missing = check(
            "s",
            CheckKind::Script {
                args: vec!["/no/such/bin".to_owned()],
            },
        );
        let want = "fork/exec /no/such/bin: no such file or directory";
        assert_eq!(first_of(&rt, missing).await, (Critical, want.to_owned()));
    });
}

#[test]
fn an_http_check_is_judged_by_its_code_and_shows_the_body() {
    on_production(|rt| async move {
        for (answer, status, shown) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                Passing,
                "200 OK Output: hello",
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", Passing, "204 No Content Output: "),
            (
                "HTTP/1.1 429 Slow Down\r\nContent-Length: 0\r\n\r\n",
                Warning,
                "429 Slow Down Output: ",
            ),
            ("HTTP/1.0 500 Oh\r\n\r\nsorry", Critical, "500 Oh Output: sorry"),
        ] {
            let (port, mut questions) = serve(&rt, vec![answer]).await;
            let url = format!("http://127.0.0.1:{port}/health?x=1");
            let (got, output) = first_of(&rt, check("h", http(url.clone()))).await;
            assert_eq!((got, output), (status, format!("HTTP GET {url}: {shown}")));
            let question = questions.recv().await.unwrap().to_lowercase();
            assert!(question.starts_with("get /health?x=1 http/1.1\r\n"), "{question}");
            for line in [
                format!("host: 127.0.0.1:{port}"),
                "user-agent: consul health check".to_owned(),
                "accept: text/plain, text/*, */*".to_owned(),
                "x-test: a\r\nx-test: b".to_owned(),
            ] {
                assert!(question.contains(&line), "{line} in {question}");
            }
        }
    });
}

#[test]
fn redirects_are_followed_ten_times_unless_disabled() {
    on_production(|rt| async move {
        let away = "HTTP/1.1 302 Found\r\nLocation: /next\r\nContent-Length: 0\r\n\r\n";
        let (port, mut questions) = serve(&rt, vec![away, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
        let url = format!("http://127.0.0.1:{port}/");
        let want = (Passing, format!("HTTP GET {url}: 200 OK Output: ok"));
        assert_eq!(first_of(&rt, check("h", http(url))).await, want);
        questions.recv().await.unwrap();
        assert!(questions.recv().await.unwrap().starts_with("GET /next "));

        let (port, _questions) = serve(&rt, vec![away]).await;
        let url = format!("http://127.0.0.1:{port}/");
        let want = format!("Get \"http://127.0.0.1:{port}/next\": stopped after 10 redirects");
        assert_eq!(first_of(&rt, check("h", http(url.clone()))).await, (Critical, want));

        let mut stays = http(url);
        if let CheckKind::Http { disable_redirects, .. } = &mut stays {
            *disable_redirects = true;
        }
        assert!(first_of(&rt, check("h", stays)).await.1.contains("302 Found"));
    });
}

#[test]
fn what_cannot_be_reached_is_critical_in_gos_words() {
    on_production(|rt| async move {
        // Bound and closed again: nobody listens there.
        let closed = rt
            .tcp_listen("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let refused = format!("dial tcp {closed}: connect: connection refused");
        let url = format!("http://{closed}/");
        let (status, output) = first_of(&rt, check("h", http(url.clone()))).await;
        assert_eq!((status, output), (Critical, format!("Get \"{url}\": {refused}")));
        let tcp = CheckKind::Tcp {
            address: closed.to_string(),
        };
        assert_eq!(first_of(&rt, check("t", tcp)).await, (Critical, refused));

        let (port, _questions) = serve(&rt, vec![""]).await;
        let url = format!("http://127.0.0.1:{port}/");
        let mut mute = check("h", http(url.clone()));
        mute.timeout = Some(Duration::from_millis(100));
        let want = format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
        assert_eq!(first_of(&rt, mute).await, (Critical, want));
        let (port, _questions) = serve(&rt, vec!["nonsense\r\n\r\n"]).await;
        let (status, output) = first_of(&rt, check("h", http(format!("http://127.0.0.1:{port}/")))).await;
        assert_eq!(status, Critical);
        assert!(output.contains("transport connection broken"), "{output}");
    });
}

#[test]
fn a_body_longer_than_what_is_shown_is_not_read_to_its_end() {
    on_production(|rt| async move {
        // The server promises more than it ever sends: waiting for it would run into the timeout.
        let long = "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n0123456789012345678901234567890123456789012345678901234567890123456789";
        let (port, _questions) = serve(&rt, vec![long]).await;
        let (status, output) = first_of(&rt, check("h", http(format!("http://127.0.0.1:{port}/")))).await;
        assert_eq!(status, Passing);
        assert!(
            output.ends_with("Output: 0123456789012345678901234567890123456789012345678901234567890123"),
            "{output}"
        );
    });
}

#[test]
fn a_tcp_check_passes_when_the_connection_opens() {
    on_production(|rt| async move {
        let listener = rt.tcp_listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let want = (Passing, format!("TCP connect {address}: Success"));
        assert_eq!(first_of(&rt, check("t", CheckKind::Tcp { address })).await, want);
    });
}

#[test]
fn only_changes_are_reported_and_thresholds_hold_back() {
    on_production(|rt| async move {
        // Passes twice, then fails for ever.
        let bad = "HTTP/1.1 500 Bad\r\nContent-Length: 0\r\n\r\n";
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (port, mut questions) = serve(&rt, vec![good, good, bad]).await;
        let mut definition = check("h", http(format!("http://127.0.0.1:{port}/")));
        definition.failures_before_critical = 3;
        let (checks, mut updates) = Checks::start(rt.clone());
        add(&checks, definition);
        assert_eq!(next(&mut updates).await.status, Passing);
        assert_eq!(next(&mut updates).await.status, Critical);
        // The second success was not reported, and the two failures before the third neither.
        for _ in 0..5 {
            questions.recv().await.expect("five runs came before the report");
        }
        assert!(checks.critical_since("h").is_some());
    });
}

#[test]
fn a_ttl_check_expires_with_what_was_told_last_and_lives_again_when_told() {
    on_production(|rt| async move {
        let (checks, mut updates) = Checks::start(rt.clone());
        add(&checks, check("fresh", ttl(5)));
        let update = next(&mut updates).await;
        assert_eq!((update.status, update.output.as_str()), (Critical, "TTL expired"));
        checks.remove("fresh");

        add(&checks, check("t", ttl(20)));
        checks.update_ttl("t", Passing, "fine").await.unwrap();
        let update = next(&mut updates).await;
        assert_eq!((update.status, update.output.as_str()), (Passing, "fine"));
        let update = next(&mut updates).await;
        let want = "TTL expired (last output before timeout follows): fine";
        assert_eq!((update.status, update.output.as_str()), (Critical, want));
        assert!(checks.critical_since("t").is_some());

        // Told without a report; its expiry is reported again.
        checks.told("t", Passing, "again");
        assert!(next(&mut updates).await.output.ends_with("follows): again"));

        let long = "x".repeat(100);
        checks.update_ttl("t", Warning, &long).await.unwrap();
        let want = format!("{} ... (captured 64 of 100 bytes)", "x".repeat(64));
        assert_eq!(next(&mut updates).await.output, want);
        add(&checks, check("s", script("true")));
        assert_eq!(
            checks.update_ttl("s", Passing, "").await,
            Err(TtlError::NotTtl("s".to_owned()))
        );
        assert_eq!(
            checks.update_ttl("nope", Passing, "").await,
            Err(TtlError::Unknown("nope".to_owned()))
        );
    });
}

#[test]
fn a_restored_ttl_lasts_as_long_as_was_left_of_it() {
    on_production(|rt| async move {
        let (checks, mut updates) = Checks::start(rt.clone());
        add(&checks, check("long", ttl(3_600_000)));
        assert!(checks.critical_since("long").is_some());
        checks.told("long", Passing, "");
        assert_eq!(checks.critical_since("long"), None);
        let left = Some(Duration::from_millis(5));
        checks.add(check("t", ttl(3_600_000)), Passing, "kept".to_owned(), left);
        let update = next(&mut updates).await;
        assert_eq!(update.output, "TTL expired (last output before timeout follows): kept");
    });
}

#[test]
fn a_result_that_was_given_out_knows_when_it_is_overtaken() {
    on_production(|rt| async move {
        let (checks, mut updates) = Checks::start(rt.clone());
        for id in ["told", "replaced", "removed", "kept"] {
            add(&checks, check(id, ttl(3_600_000)));
            checks.update_ttl(id, Passing, "old").await.unwrap();
        }
        let mut reported = Vec::new();
        for _ in 0..4 {
            reported.push(updates.recv().await.expect("a result"));
        }
        assert!(reported.iter().all(quorate_checks::Reported::is_current));
        checks.told("told", Critical, "newer");
        add(&checks, check("replaced", ttl(3_600_000)));
        assert!(checks.remove("removed"));
        let current: Vec<&str> = reported
            .iter()
            .filter(|reported| reported.is_current())
            .map(|reported| reported.update().id.as_str())
            .collect();
        assert_eq!(current, ["kept"]);
    });
}

#[test]
fn a_result_overtaken_in_the_channel_is_not_given_out() {
    on_production(|rt| async move {
        let (checks, mut updates) = Checks::start(rt.clone());
        // Reported, and not taken; then told anew, replaced and removed.
        add(&checks, check("a", ttl(3_600_000)));
        add(&checks, check("b", ttl(3_600_000)));
        add(&checks, check("c", ttl(3_600_000)));
        for id in ["a", "b", "c"] {
            checks.update_ttl(id, Passing, "old").await.unwrap();
        }
        checks.told("a", Warning, "newer");
        add(&checks, check("b", ttl(3_600_000)));
        assert!(checks.remove("c"));
        assert!(!checks.remove("c"));
        checks.update_ttl("b", Passing, "new").await.unwrap();
        let update = next(&mut updates).await;
        assert_eq!((update.id.as_str(), update.output.as_str()), ("b", "new"));
        checks.stop();
        assert!(updates.recv().await.is_none());
        // Nothing starts any more.
        add(&checks, check("d", ttl(1)));
        assert_eq!(
            checks.update_ttl("d", Passing, "").await,
            Err(TtlError::Unknown("d".to_owned()))
        );
    });
}

#[test]
fn the_runs_of_one_check_never_overlap() {
    on_production(|rt| async move {
        // A second run during the first would find the directory. The ends differ, so each run is reported.
        let mark = std::env::temp_dir().join(format!("quorate-checks-{}", rt.uuid()));
        let mark = mark.to_str().unwrap();
        let text = format!("mkdir {mark} || exit 9; echo $$; rmdir {mark}");
        let mut definition = check("s", script(&text));
        definition.interval = Duration::from_millis(1);
        let (checks, mut updates) = Checks::start(rt.clone());
        add(&checks, definition);
        for _ in 0..20 {
            assert_eq!(next(&mut updates).await.status, Passing);
        }
    });
}

#[test]
fn a_removed_script_is_killed() {
    on_production(|rt| async move {
        // The script holds a connection open for as long as it lives.
        let listener = rt.tcp_listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -r line <&3");
        let args = ["bash", "-c", &text].map(str::to_owned).to_vec();
        let (checks, _updates) = Checks::start(rt.clone());
        add(&checks, check("s", CheckKind::Script { args }));
        let (mut stream, _) = listener.accept().await.unwrap();
        checks.remove("s");
        // The end of the stream, or a reset: either way the process is gone.
        assert!(stream.read_u8().await.is_err());
    });
}

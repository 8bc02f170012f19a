//! `lock`: who holds, how it looks to other clients, and what becomes of the child.

use crate::support::*;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const LOCK_FLAGS: u64 = 3_304_740_253_564_472_344;
const SEMAPHORE_FLAGS: u64 = 16_210_313_421_097_356_768;

/// A `lock` command under way. Killed with its test; its child ends when the gate it waits at goes.
struct Running {
    child: Child,
    output: PathBuf,
}

impl Running {
    fn start(agent: &Agent, name: &str, arguments: &[&str]) -> Self {
        let output = agent.folder.0.join(format!("{name}.out"));
        let file = fs::File::create(&output).expect("the temporary folder can be written");
        let errors = file.try_clone().expect("a handle can be copied");
        let child = Command::new(binary())
            .arg("lock")
            .arg(format!("-http-addr=127.0.0.1:{}", agent.ports.http))
            .args(arguments)
            .env_remove("SHELL")
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn();
        Self {
            child: child.expect("the binary is there"),
            output,
        }
    }
    fn output(&self) -> String {
        fs::read_to_string(&self.output).unwrap_or_default()
    }
    fn signal(&self, signal: &str) {
        let line = format!("kill -{signal} {}", self.child.id());
        let sent = Command::new("sh").args(["-c", &line]).status();
        assert!(sent.expect("a shell is there").success(), "{line}");
    }
    #[track_caller]
    fn wait_for_end(&mut self) -> i32 {
        let status = wait_for("the lock command ends", || {
            self.child.try_wait().expect("it is our child")
        });
        status.code().expect("it was not killed")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A pipe that children read from until the test opens it, and a file they write to.
struct Stage {
    folder: Folder,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { folder: Folder::new() };
        stage.write_log("");
        stage
    }
    fn log_path(&self) -> String {
        self.folder.0.join("log").display().to_string()
    }
    fn write_log(&self, text: &str) {
        self.folder.write("log", text);
    }
    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }
    fn gate(&self, name: &str) -> String {
        let path = self.folder.0.join(name);
        let path = path.display().to_string();
        let made = Command::new("mkfifo").arg(&path).status().expect("mkfifo is there");
        assert!(made.success());
        path
    }
    /// Lets whoever waits at the gate go on.
    fn open(gate: &str) {
        let opened = fs::OpenOptions::new().write(true).open(gate);
        opened.expect("somebody waits").write_all(b"x").expect("it reads");
    }
    /// A child that says that it is in, waits at the gate, and says that it is out.
    fn script(&self, name: &str, gate: &str) -> String {
        let log = self.log_path();
        format!("echo {name} in >> {log}; cat {gate} > /dev/null; echo {name} out >> {log}")
    }
    #[track_caller]
    fn wait_for(&self, line: &str) {
        let line = format!("{line}\n");
        wait_until(&format!("a child wrote {line:?}"), || self.log().contains(&line));
    }
}

fn sessions(agent: &Agent) -> Vec<Value> {
    let list = agent.get("/v1/session/list").expect("an answer");
    list.as_array().cloned().unwrap_or_default()
}

#[test]
fn two_lock_commands_exclude_each_other() {
    let agent = Agent::dev("n1", &[]);
    let stage = Stage::new();
    let (first_gate, second_gate) = (stage.gate("first"), stage.gate("second"));
    let mut first = Running::start(&agent, "first", &["/app//db/", &stage.script("first", &first_gate)]);
    stage.wait_for("first in");

    let entry = agent.get("/v1/kv/app/db/.lock").expect("it is held")[0].clone();
    let session = sessions(&agent)[0].clone();
    assert_eq!(
        (&entry["Flags"], &entry["Value"], &entry["Session"], &entry["LockIndex"]),
        (&json!(LOCK_FLAGS), &Value::Null, &session["ID"], &json!(1))
    );
    let name = format!("Consul lock for '{}' at 'app//db/'", stage.script("first", &first_gate));
    assert_eq!(
        (
            &session["Name"],
            &session["TTL"],
            &session["Behavior"],
            &session["LockDelay"]
        ),
        (
            &json!(name),
            &json!("15s"),
            &json!("release"),
            &json!(15_000_000_000_u64)
        )
    );

    agent.cli(&["lock", "-try=200ms", "app/db", "true"]).check(
        1,
        "",
        "Shutdown triggered or timeout during lock acquisition\n",
    );
    agent.cli(&["lock", "-n=2", "app/db", "true"]).check(
        1,
        "",
        "Lock acquisition failed: Existing key does not match semaphore use\n",
    );

    let mut second = Running::start(&agent, "second", &["app/db", &stage.script("second", &second_gate)]);
    wait_until("the second waits for it", || sessions(&agent).len() == 2);
    Stage::open(&first_gate);
    stage.wait_for("second in");
    Stage::open(&second_gate);
    assert_eq!((first.wait_for_end(), second.wait_for_end()), (0, 0));
    assert_eq!(stage.log(), "first in\nfirst out\nsecond in\nsecond out\n");
    assert!(sessions(&agent).is_empty());
    assert_eq!(agent.get("/v1/kv/?keys"), Some(json!([])));
}

#[test]
fn a_semaphore_has_as_many_holders_as_it_says() {
    let agent = Agent::dev("n1", &[]);
    let stage = Stage::new();
    let gates = ["a", "b", "c"].map(|name| stage.gate(name));
    let start = |position: usize| {
        let name = ["a", "b", "c"][position];
        let script = stage.script(name, &gates[position]);
        Running::start(&agent, name, &["-n=2", "-verbose", "pool", &script])
    };
    let mut first = start(0);
    stage.wait_for("a in");
    let mut second = start(1);
    stage.wait_for("b in");

    let entry = agent.get("/v1/kv/pool/.lock?raw").expect("it is held");
    let all = sessions(&agent);
    let ids: Vec<&str> = all.iter().filter_map(|session| session["ID"].as_str()).collect();
    assert_eq!(entry, json!({"Limit": 2, "Holders": {ids[0]: true, ids[1]: true}}));
    for session in &all {
        assert_eq!(
            (&session["Behavior"], &session["TTL"]),
            (&json!("delete"), &json!("15s"))
        );
        let id = session["ID"].as_str().expect("an id");
        let contender = agent.get(&format!("/v1/kv/pool/{id}")).expect("it contends")[0].clone();
        assert_eq!(
            (&contender["Flags"], &contender["Session"]),
            (&json!(SEMAPHORE_FLAGS), &session["ID"])
        );
    }

    let mut third = start(2);
    wait_until("the third waits", || sessions(&agent).len() == 3);
    agent.cli(&["lock", "-n=3", "pool", "true"]).check(
        1,
        "",
        "Lock acquisition failed: semaphore limit conflict (lock: 2, local: 3)\n",
    );
    agent.cli(&["lock", "pool", "true"]).check(
        1,
        "",
        "Lock acquisition failed: Existing key does not match lock use\n",
    );
    assert!(!stage.log().contains("c in"));
    Stage::open(&gates[0]);
    stage.wait_for("c in");
    assert!(stage.log().contains("a out\nc in"), "{}", stage.log());
    assert_eq!(first.wait_for_end(), 0);
    assert_eq!(
        first.output(),
        "Setting up semaphore (limit 2) at prefix: pool\nAttempting lock acquisition\nStarting handler\n\
         Child terminated, releasing lock\nCleanup aborted, lock in use\n"
    );
    Stage::open(&gates[1]);
    Stage::open(&gates[2]);
    assert_eq!((second.wait_for_end(), third.wait_for_end()), (0, 0));
    assert_eq!(agent.get("/v1/kv/?keys"), Some(json!([])));
}

#[test]
fn a_lock_whose_holder_was_killed_is_had_after_its_session_and_its_delay() {
    let agent = Agent::dev("n1", &[]);
    let stage = Stage::new();
    let (first_gate, second_gate) = (stage.gate("first"), stage.gate("second"));
    let first = Running::start(&agent, "first", &["p", &stage.script("first", &first_gate)]);
    stage.wait_for("first in");
    let mut second = Running::start(&agent, "second", &["p", &stage.script("second", &second_gate)]);
    wait_until("the second waits for it", || sessions(&agent).len() == 2);
    first.signal("KILL");
    wait_until("the session of the killed one expires", || sessions(&agent).len() == 1);
    // Nobody gets it at once: what its holder began may still be under way.
    let session = sessions(&agent)[0]["ID"].as_str().expect("an id").to_owned();
    let path = format!("/v1/kv/p/.lock?flags={LOCK_FLAGS}&acquire={session}");
    assert_eq!(agent.http("PUT", &path, "").expect("an answer").body.trim(), "false");
    assert!(!stage.log().contains("second in"));
    stage.wait_for("second in");
    for gate in [&first_gate, &second_gate] {
        Stage::open(gate);
    }
    assert_eq!(second.wait_for_end(), 0);
}

#[test]
fn who_loses_the_lock_ends_its_child() {
    let agent = Agent::dev("n1", &[]);
    let stage = Stage::new();
    let (polite_gate, stubborn_gate) = (stage.gate("polite"), stage.gate("stubborn"));
    let log = stage.log_path();
    let polite = format!("trap 'echo asked >> {log}; exit 0' TERM; echo polite in >> {log}; cat {polite_gate} & wait");
    // Its own shell's child hears the signal too, and the shell goes on.
    let stubborn = format!("trap '' TERM; echo stubborn in >> {log}; cat {stubborn_gate}; cat {stubborn_gate}");
    let mut polite = Running::start(&agent, "polite", &["-verbose", "polite", &polite]);
    let mut stubborn = Running::start(&agent, "stubborn", &["-verbose", "stubborn", &stubborn]);
    stage.wait_for("polite in");
    stage.wait_for("stubborn in");
    for session in sessions(&agent) {
        let path = format!("/v1/session/destroy/{}", session["ID"].as_str().expect("an id"));
        assert_eq!(agent.http("PUT", &path, "").expect("an answer").status, 200);
    }
    assert_eq!((polite.wait_for_end(), stubborn.wait_for_end()), (0, 0));
    assert!(stage.log().contains("asked\n"), "{}", stage.log());
    let told = polite.output();
    check_contains(
        &told,
        "Starting handler\nLock lost, killing child\nTerminating child pid ",
    );
    check_contains(&told, "\nChild terminated\nCleanup succeeded\n");
    let told = stubborn.output();
    check_contains(
        &told,
        "\nChild did not exit after grace period of 5s\nKilling child pid ",
    );
    check_contains(&told, "\nCleanup succeeded\n");
}

#[test]
fn an_interrupt_ends_the_child_and_gives_the_lock_back() {
    let agent = Agent::dev("n1", &[]);
    let stage = Stage::new();
    let gate = stage.gate("gate");
    let mut held = Running::start(&agent, "held", &["-verbose", "p", &stage.script("held", &gate)]);
    stage.wait_for("held in");
    let mut waiting = Running::start(&agent, "waiting", &["p", "true"]);
    wait_until("the second waits for it", || sessions(&agent).len() == 2);
    waiting.signal("INT");
    assert_eq!(waiting.wait_for_end(), 1);
    assert_eq!(
        waiting.output(),
        "Shutdown triggered or timeout during lock acquisition\n"
    );
    assert_eq!(sessions(&agent).len(), 1);
    held.signal("INT");
    assert_eq!(held.wait_for_end(), 0);
    check_contains(
        &held.output(),
        "Shutdown triggered, killing child\nTerminating child pid ",
    );
    assert!(sessions(&agent).is_empty());
    assert_eq!(agent.get("/v1/kv/?keys"), Some(json!([])));
    // No lock-delay after a release: the next one has it at once.
    agent.cli(&["lock", "-timeout=2s", "p", "true"]).check(0, "", "");
}

#[test]
fn the_childs_end_and_streams_are_passed_on() {
    let agent = Agent::dev("n1", &[]);
    agent
        .cli(&["lock", "p", "exit", "3"])
        .check(0, "", "Error running handler: exit status 3\n");
    agent
        .cli(&["lock", "-child-exit-code", "p", "exit 3"])
        .check(2, "", "Error running handler: exit status 3\n");
    agent.cli(&["lock", "-child-exit-code", "p", "true"]).check(0, "", "");
    agent
        .cli(&["lock", "-verbose", "p", "echo $CONSUL_LOCK_HELD; cat"])
        .check(
            0,
            "Setting up lock at path: p/.lock\nAttempting lock acquisition\nStarting handler\ntrue\n\
             Child terminated, releasing lock\nCleanup succeeded\n",
            "",
        );
    agent
        .cli(&["lock", "-shell=false", "p", "echo", "a  b", "$HOME"])
        .check(0, "a  b $HOME\n", "");
    agent
        .cli(&["lock", "-shell=false", "-child-exit-code", "p", "no-such-program"])
        .check(
            2,
            "",
            "Error starting handler: exec: \"no-such-program\": executable file not found in $PATH\n",
        );
    let line = format!(
        "echo fed | {} lock -http-addr=127.0.0.1:{} -pass-stdin p cat",
        binary().display(),
        agent.ports.http
    );
    let fed = Command::new("sh")
        .args(["-c", &line])
        .output()
        .expect("a shell is there");
    assert_eq!(String::from_utf8_lossy(&fed.stdout), "fed\n");
    agent.http("PUT", "/v1/kv/taken/.lock", "for something else");
    agent.cli(&["lock", "taken", "true"]).check(
        1,
        "",
        "Lock acquisition failed: Existing key does not match lock use\n",
    );
}

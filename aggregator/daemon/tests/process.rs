//! Whole processes: exit statuses, signals, logs.

// The whole program is a test, its helpers too: lints that spare tests shall see it as one.
#![cfg(test)]

use std::future::pending;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tapio_daemon::config::{Invocation, Key, Settings, Tier};
use tapio_daemon::shutdown::{Drained, drain};
use tapio_daemon::tier::LOG_KEY;
use tapio_daemon::{ConfigError, Failure, Problems, run_main, run_tier, telemetry};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const ROLE: &str = "TAPIO_DAEMON_TEST_ROLE";

static TIER: Tier = Tier {
    program: "tapio-test",
    about: "Tests.",
    keys: &[Key::text("node.name", "Its name."), Key::secret("store.password", "What it says."), LOG_KEY],
};

fn check(settings: Settings) -> Result<(), Problems> {
    let name = settings.text("node.name");
    settings.finish(name.map(drop))
}

/// A tier called with the words of a variable, that says what it logs until it is told to end.
fn tier(words: &str) -> ExitCode {
    let invocation = Invocation::from_words(&TIER, words.split(' ')).expect("understood");
    run_tier(
        invocation,
        check,
        |()| Vec::new(),
        |(), shutdown| async move {
            eprintln!("ready");
            while !shutdown.is_cancelled() {
                tracing::debug!("a detail");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        },
    )
}

async fn work(role: String, shutdown: CancellationToken) -> Result<(), Failure> {
    telemetry::init("info")?;
    match role.as_str() {
        "well" => Ok(()),
        "broken" => Err(std::io::Error::other("the disk is gone"))?,
        "misconfigured" => {
            let mut problems = Problems::default();
            problems.add("spool.quota_bytes", "must be at least 2 MiB");
            Err(ConfigError::from(problems))?
        }
        "orderly" => {
            eprintln!("ready");
            shutdown.cancelled().await;
            tracing::info!(flushed = 3, "drained");
            Ok(())
        }
        "stubborn" => {
            eprintln!("ready");
            shutdown.cancelled().await;
            eprintln!("cancelled");
            pending().await
        }
        other => Err(Failure::other(format!("no role {other}"))),
    }
}

/// What a child process does; in the test run itself, nothing.
#[test]
fn child() {
    if let Ok(role) = std::env::var(ROLE) {
        let code = match role.strip_prefix("tier ") {
            Some(words) => tier(words),
            None => run_main("tapio-test", |shutdown| work(role, shutdown)),
        };
        let code = [0u8, 1, 2, 130, 143].into_iter().find(|&known| ExitCode::from(known) == code);
        std::process::exit(code.map_or(99, i32::from));
    }
}

fn start(role: &str) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started")
}

/// Starts a role, sends each signal once the line before it was seen, and returns how it ended.
fn run(role: &str, signals: &[(&str, Signal)]) -> (ExitStatus, String) {
    let mut child = start(role);
    let pid = Pid::from_child(&child);
    let mut errors = BufReader::new(child.stderr.take().expect("its errors"));
    let mut said = String::new();
    for (line, signal) in signals {
        while !said.lines().any(|found| found == *line) {
            assert_ne!(errors.read_line(&mut said).expect("a line"), 0, "it ended early: {said}");
        }
        kill_process(pid, *signal).expect("signalled");
    }
    errors.read_to_string(&mut said).expect("the rest");
    (child.wait().expect("ended"), said)
}

/// Scenario: processes that end well, badly, and with a refused configuration.
/// Guarantees: the exit status tells which, and the message is one that a person can use.
#[test]
fn exit_statuses_tell_why() {
    assert_eq!(run("well", &[]).0.code(), Some(0));
    let (status, said) = run("broken", &[]);
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("tapio-test: the disk is gone"), "{said}");
    let (status, said) = run("misconfigured", &[]);
    assert_eq!(status.code(), Some(2));
    assert!(said.contains("spool.quota_bytes: must be at least 2 MiB"), "{said}");
}

/// Scenario: SIGTERM and SIGINT to a process that drains.
/// Guarantees: it ends in order, having said on standard error what it did.
#[test]
fn the_first_signal_asks_for_an_orderly_end() {
    for signal in [Signal::TERM, Signal::INT] {
        let (status, said) = run("orderly", &[("ready", signal)]);
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(
            said.contains("shutting down") && said.contains("drained") && said.contains("flushed=3"),
            "{said}"
        );
    }
}

/// Scenario: a second signal to a process that does not end.
/// Guarantees: it ends at once, with the status that a shell gives that signal.
#[test]
fn the_second_signal_ends_at_once() {
    let (status, said) = run("stubborn", &[("ready", Signal::TERM), ("cancelled", Signal::INT)]);
    assert_eq!(status.code(), Some(130), "{said}");
}

/// Scenario: a running tier whose file changes: a value that can be applied and one that cannot, then a fault.
/// Guarantees: SIGHUP applies the one and says so of the other; a fault is told with its line, and what was in force
/// stays so; the process goes on.
#[test]
fn sighup_reads_the_configuration_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("test.toml");
    let write = |text: &str| std::fs::write(&path, text).expect("written");
    write("[node]\nname = \"a\"\n");
    let mut child = start(&format!("tier tapio-test --config {}", path.display()));
    let pid = Pid::from_child(&child);
    let mut errors = BufReader::new(child.stderr.take().expect("its errors"));
    let mut said = String::new();
    let mut until = |part: &str| {
        let from = said.len();
        while !said.get(from..).is_some_and(|text| text.contains(part)) {
            assert_ne!(errors.read_line(&mut said).expect("a line"), 0, "it ended early: {said}");
        }
        said.get(from..).unwrap_or_default().to_owned()
    };
    assert!(!until("ready").contains("a detail"));
    write("[node]\nname = \"b\"\n[telemetry]\nlog = \"debug\"\n");
    kill_process(pid, Signal::HUP).expect("signalled");
    let lines = until("was read again");
    assert!(lines.contains("not in force until the next start") && lines.contains("node.name"), "{lines}");
    assert!(lines.contains("is in force") && lines.contains("telemetry.log"), "{lines}");
    until("a detail");
    write("[node]\nname = \"b\"\n[telemetry]\nlog = 5\n");
    kill_process(pid, Signal::HUP).expect("signalled");
    let lines = until("stays in force") + &until("a detail");
    assert!(lines.contains("line 4, telemetry.log"), "{lines}");
    write("[node]\nname = \"b\"\n[telemetry]\nlog = \"inof\"\n");
    kill_process(pid, Signal::HUP).expect("signalled");
    let lines = until("stays in force") + &until("a detail");
    assert!(lines.contains("inof") && lines.contains("is no level"), "{lines}");
    kill_process(pid, Signal::TERM).expect("signalled");
    until("shutting down");
    drop(errors);
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

/// Scenario: a tier that is only to check or to show its configuration.
/// Guarantees: it does and ends with 0, or with 2 and all faults; a secret is not shown.
#[test]
fn configurations_are_checked_and_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("test.toml");
    std::fs::write(&path, "[node]\nname = \"a\"\n[store]\npassword = \"sesame\"\n").expect("written");
    let output = |words: String| {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "child", "--nocapture", "--test-threads=1"]).env(ROLE, words);
        let output = child.output().expect("it runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"), output.stderr)
    };
    let (code, shown, _) = output(format!("tier tapio-test --print-config --config {}", path.display()));
    assert_eq!(code, Some(0));
    assert!(shown.contains("name = \"a\" # line 2") && !shown.contains("sesame"), "{shown}");
    assert_eq!(output(format!("tier tapio-test --check-config --config {}", path.display())).0, Some(0));
    let (code, _, errors) = output("tier tapio-test --check-config".to_owned());
    let errors = String::from_utf8(errors).expect("text");
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("node.name: is missing"), "{errors}");
}

/// Scenario: tasks that end, panic, and never end.
/// Guarantees: each is counted as what it was, and the deadline holds.
#[tokio::test(start_paused = true)]
async fn draining_counts_what_became_of_every_task() {
    let mut tasks = JoinSet::new();
    tasks.spawn(async {});
    tasks.spawn(tokio::time::sleep(Duration::from_secs(4)));
    tasks.spawn(tokio::time::sleep(Duration::from_secs(6)));
    tasks.spawn(pending());
    tasks.spawn(async { panic!("on purpose") });
    let started = tokio::time::Instant::now();
    let drained = drain(&mut tasks, Duration::from_secs(5)).await;
    assert_eq!(drained, Drained { finished: 2, panicked: 1, aborted: 2 });
    assert!(!drained.is_clean());
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    assert!(tasks.is_empty());
}

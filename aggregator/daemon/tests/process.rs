//! Whole processes: exit statuses, signals, logs.

// The whole program is a test, its helpers too: lints that spare tests shall see it as one.
#![cfg(test)]

use std::future::pending;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tapio_daemon::shutdown::{Drained, drain};
use tapio_daemon::{ConfigError, Failure, Problems, run_main, telemetry};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const ROLE: &str = "TAPIO_DAEMON_TEST_ROLE";

async fn work(role: String, shutdown: CancellationToken) -> Result<(), Failure> {
    telemetry::init("info", telemetry::Format::Compact)?;
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
        let code = run_main("tapio-test", |shutdown| work(role, shutdown));
        let code = [0u8, 1, 2, 130, 143].into_iter().find(|&known| ExitCode::from(known) == code);
        std::process::exit(code.map_or(99, i32::from));
    }
}

fn start(role: &str) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env_remove(telemetry::LEVEL_VARIABLE)
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

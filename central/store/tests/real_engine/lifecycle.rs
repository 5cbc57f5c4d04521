//! Starting, stopping, dying, coming back.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tapio_store::client::DeduplicationToken;
use tapio_store::engine::{EmbeddedEngine, EngineConfig, EngineError, EngineState};

use crate::{Store, engine_config, process_exists};

fn pid_of(engine: &EmbeddedEngine) -> u32 {
    match engine.status().state {
        EngineState::Ready { pid } => pid,
        other => panic!("the engine should be ready and is {other:?}"),
    }
}

/// Scenario: an engine is started, stopped, and started again on the same directory.
/// Guarantees: it runs unprivileged when this process is root, leaves no process, and passwords and rows are kept.
#[tokio::test(flavor = "multi_thread")]
async fn starts_stops_and_starts_again() {
    let Some(store) = Store::start().await else { return };
    let pid = pid_of(&store.engine);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap().to_owned();
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        assert_eq!(uid, "Uid:\t65534\t65534\t65534\t65534");
        assert!(status.contains("NoNewPrivs:\t1"));
    }
    let password = store.engine.writer().password.clone();
    store.blocks.insert("frames", &crate::blocks::frames(1, 3), &token("a")).await.unwrap();

    let Store { engine, directory, .. } = store;
    let begun = Instant::now();
    engine.stop().await.unwrap();
    assert!(!process_exists(pid));
    println!("stopped in {:?}", begun.elapsed());

    let engine = EmbeddedEngine::start(engine_config(directory.path()).unwrap()).await.unwrap();
    let store = Store::of(engine, directory);
    assert_eq!(store.engine.writer().password, password);
    assert_eq!(store.number("SELECT count() AS n FROM tapio.frames").await, 3);
    store.stop().await;
}

/// Scenario: a second engine on a state directory in use; then the first is dropped instead of stopped.
/// Guarantees: the second is refused by name, and dropping leaves no process.
#[tokio::test(flavor = "multi_thread")]
async fn one_engine_per_directory_and_dropping_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let Some(config) = engine_config(directory.path()) else { return };
    let engine = EmbeddedEngine::start(config.clone()).await.unwrap();
    let refused = EmbeddedEngine::start(config).await.unwrap_err();
    assert!(matches!(refused, EngineError::Busy { .. }), "{refused}");
    let pid = pid_of(&engine);
    drop(engine);
    assert!(!process_exists(pid));
}

/// Scenario: blocks are inserted one by one; in between the engine is killed with SIGKILL, twice.
/// Guarantees: the supervisor starts it again on the same addresses, and every acknowledged block is there exactly
/// once, although those without an answer are sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_comes_back_with_everything_acknowledged() {
    let Some(store) = Store::start().await else { return };
    let mut status = store.engine.watch();
    let addresses = store.engine.addresses();
    for round in 0..2_u64 {
        let pid = pid_of(&store.engine);
        for sequence in 0..20 {
            let sequence = round * 20 + sequence;
            if sequence % 20 == 10 {
                kill(pid);
            }
            insert_until_acknowledged(&store, sequence).await;
        }
        let back = |seen: &tapio_store::engine::EngineStatus| {
            seen.restarts > round && matches!(seen.state, EngineState::Ready { .. })
        };
        tokio::time::timeout(Duration::from_secs(60), status.wait_for(back)).await.unwrap().unwrap();
    }
    assert_eq!(store.engine.addresses(), addresses);
    assert_eq!(store.number("SELECT count() AS n FROM tapio.frames").await, 40);
    assert_eq!(store.number("SELECT uniqExact(sequence) AS n FROM tapio.frames").await, 40);
    store.stop().await;
}

async fn insert_until_acknowledged(store: &Store, sequence: u64) {
    let block = crate::blocks::frames(sequence, 1);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match store.blocks.insert("frames", &block, &token(&format!("s{sequence}"))).await {
            Ok(_stored) => return,
            Err(error) => {
                assert_eq!(error.advice(), tapio_store::client::Advice::Retry, "{error}");
                assert!(Instant::now() < deadline, "{error}");
                // The caller's backoff; the loop ends on the acknowledgement alone.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

const HOLDER: &str = "TAPIO_TEST_HOLD_AN_ENGINE";

/// Scenario: a process that holds an engine is killed with SIGKILL (the process is this test program, started again
/// with a variable that turns this test into the holder).
/// Guarantees: the engine does not outlive it.
#[tokio::test(flavor = "multi_thread")]
async fn the_engine_dies_with_its_supervisor() {
    if let Some(directory) = std::env::var_os(HOLDER) {
        let config = engine_config(directory.as_ref()).unwrap();
        let engine = EmbeddedEngine::start(config).await.unwrap();
        println!("holding {}", pid_of(&engine));
        std::future::pending::<()>().await;
    }
    let directory = tempfile::tempdir().unwrap();
    if engine_config(directory.path()).is_none() {
        return;
    }
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::the_engine_dies_with_its_supervisor", "--nocapture"])
        .env(HOLDER, directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let pid: u32 = lines
        .map(Result::unwrap)
        .find_map(|line| line.split_once("holding ").map(|(_before, pid)| pid.trim().parse().unwrap()))
        .expect("the holder ended without an engine");
    assert!(process_exists(pid));
    let pidfd = rustix::process::pidfd_open(
        rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(
        rustix::event::poll(&mut ended, Some(&limit)).unwrap(),
        1,
        "the engine outlived its supervisor"
    );
}

/// Scenario: the library is missing, is a text file, is a library but not the engine.
/// Guarantees: each error names the file and what to do or what the loader said; nothing keeps running.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_library_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let start = |library: std::path::PathBuf| {
        let config = EngineConfig::with_library(directory.path().join("state"), library);
        async { EmbeddedEngine::start(config).await.unwrap_err().to_string() }
    };
    let missing = start(directory.path().join("missing.so")).await;
    assert!(missing.contains("missing.so") && missing.contains("scripts/lib/fetch-clickhouse"), "{missing}");

    let text = directory.path().join("text.so");
    std::fs::write(&text, "not a library").unwrap();
    let unloadable = start(text).await;
    assert!(unloadable.contains("could not be loaded") && unloadable.contains("text.so"), "{unloadable}");

    let this_libc = std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().last().map(str::to_owned))
        .find(|path| path.ends_with("/libc.so.6"))
        .unwrap();
    let other = start(this_libc.into()).await;
    assert!(other.contains("not the engine that is expected"), "{other}");
}

fn token(name: &str) -> DeduplicationToken {
    DeduplicationToken::new(name).unwrap()
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

//! What the probes say about processes: real ones, on the running kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    reason = "a test that cannot go on fails"
)]

#[path = "probes/support.rs"]
mod support;

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use support::{Seen, Watch, everything, own_cgroup_id, spawn, watch};
use tapio_edge_agent::probes::{CapabilityState, ProbesConfig};
use tapio_kernel_abi::*;

/// What the children of this file's tests do; does nothing in a test run.
#[test]
fn child() {
    match std::env::var("TAPIO_TEST_CHILD").as_deref() {
        Ok("exit") => std::process::exit(3),
        Ok("threads") => {
            let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(|| std::hint::black_box(1))).collect();
            for thread in threads {
                thread.join().unwrap();
            }
            std::process::exit(4);
        }
        Ok("wait") => {
            let mut line = String::new();
            let _read = std::io::stdin().read_line(&mut line);
        }
        Ok("open") => {
            for _ in 0..1000 {
                assert!(std::fs::File::open(NO_FOLDER).is_err());
            }
            std::process::exit(0);
        }
        Ok("open-two") => {
            for _ in 0..500 {
                assert!(std::fs::File::open(NO_FOLDER).is_err());
                assert!(std::fs::File::open("/dev/null/other").is_err());
            }
            std::process::exit(0);
        }
        Ok("connect") => {
            let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            for _ in 0..100 {
                assert!(std::net::TcpStream::connect(nobody).is_err());
            }
            std::process::exit(0);
        }
        Ok("bind") => {
            let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            for _ in 0..3 {
                assert!(std::net::TcpListener::bind(holder.local_addr().unwrap()).is_err());
            }
            std::process::exit(0);
        }
        Ok("bind-udp") => {
            let holder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            assert!(std::net::UdpSocket::bind(holder.local_addr().unwrap()).is_err());
            std::process::exit(0);
        }
        _ => {}
    }
}

/// What a program of a pod does: it joins a cgroup, opens the files of the second list for reading, and ends with an
/// error where one of them is not there; files of the first list it looks for, and makes where they are not there.
#[test]
fn program() {
    let Ok(cgroup) = std::env::var("TAPIO_TEST_CGROUP") else { return };
    std::fs::write(Path::new(&cgroup).join("cgroup.procs"), std::process::id().to_string()).unwrap();
    let files = |name: &str| std::env::var(name).unwrap().split(':').map(str::to_owned).collect::<Vec<_>>();
    let made: Vec<_> = files("TAPIO_TEST_MADE");
    let is_missing = |path: &String| std::fs::File::open(path).is_err();
    for path in made.iter().filter(|path| is_missing(path)) {
        std::fs::write(path, "made").unwrap();
    }
    let missing = files("TAPIO_TEST_NEEDED").iter().filter(|path| is_missing(path)).count();
    std::process::exit(i32::from(missing > 0));
}

/// A pod's cgroup, which is removed with the test.
struct PodCgroup(PathBuf);

impl PodCgroup {
    fn new(name: &str) -> Self {
        let path = support::memory_mount().1.join(format!("tapio-probes-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).expect("root may make cgroups");
        Self(path)
    }

    /// Runs this file's `program` as the next container of the pod; gives its pid.
    fn run(&self, container: &str, made: &[&Path], needed: &[&Path]) -> u32 {
        self.run_as("--nocapture", container, made, needed)
    }

    /// The same, with another argument.
    fn run_as(&self, argument: &str, container: &str, made: &[&Path], needed: &[&Path]) -> u32 {
        let cgroup = self.0.join(container);
        std::fs::create_dir(&cgroup).unwrap();
        let list =
            |paths: &[&Path]| paths.iter().map(|path| path.to_str().unwrap()).collect::<Vec<_>>().join(":");
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([argument, "--exact", "program"])
            .envs([("TAPIO_TEST_MADE", list(made)), ("TAPIO_TEST_NEEDED", list(needed))])
            .env("TAPIO_TEST_CGROUP", &cgroup)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        process.wait().unwrap();
        std::fs::remove_dir(&cgroup).unwrap();
        process.id()
    }
}

impl Drop for PodCgroup {
    fn drop(&mut self) {
        let _removed = std::fs::remove_dir(&self.0);
    }
}

/// The paths that a process looked for in vain in `folder`, in order, as records told them; and whether they are gone.
fn missed_in(watch: &Watch, pid: u32, folder: &Path) -> Vec<(String, bool)> {
    let told = watch.seen.iter().filter_map(|seen| match seen {
        Seen::FailedSyscall(failure)
            if failure.header.tgid == pid && i32::from(failure.errno) == libc::ENOENT =>
        {
            let path = std::str::from_utf8(failure.path()).unwrap();
            let name = Path::new(path).strip_prefix(folder).ok()?.to_str()?.to_owned();
            Some((name, failure.flags & FLAG_VANISHED != 0))
        }
        _ => None,
    });
    told.collect()
}

/// Scenario: a pod's program looks for an optional file that is never there, makes one that is not there, and needs six
/// others; its next container finds the first of these only, and none that it made. Then another pod's does the same
/// for the first time, and so does one of a third pod, in which a program with other arguments had found all of them.
/// Guarantees: of the files that it needs, those that are gone are told as gone, in order, each by itself up to the bound
/// and counted beyond; what it did without before is not; what one pod had says nothing of another's.
#[test]
fn a_file_that_was_there_before_is_told_as_gone() {
    let Some(mut watch) = watch(&everything()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let needed: Vec<PathBuf> = (0..7).map(|number| path(&format!("needed{number}"))).collect();
    for file in &needed {
        std::fs::write(file, "here").unwrap();
    }
    let (optional, made) = (path("optional"), path("made"));
    let wanted: Vec<&Path> = needed.iter().map(PathBuf::as_path).collect();
    let looked = [&[optional.as_path()], wanted.as_slice()].concat();
    let pods = [PodCgroup::new("one"), PodCgroup::new("two"), PodCgroup::new("three")];
    let before = pods[2].run_as("--quiet", "init", &[&made], &looked);
    std::fs::remove_file(&made).unwrap();
    let first = pods[0].run("c1", &[&made], &looked);
    std::fs::remove_file(&made).unwrap();
    needed.iter().skip(1).for_each(|file| std::fs::remove_file(file).unwrap());
    let second = pods[0].run("c2", &[&made], &looked);
    std::fs::remove_file(&made).unwrap();
    let stranger = pods[1].run("c1", &[&made], &looked);
    std::fs::remove_file(&made).unwrap();
    let sibling = pods[2].run("main", &[&made], &looked);
    for pid in [before, first, second, stranger, sibling] {
        exit_of(&mut watch, pid);
    }
    let mut drained = Vec::new();
    watch.probes.drain_folded(0, |failure| drained.push(*failure)).unwrap();
    watch.settle();
    let gone = |pid: u32| -> Vec<String> {
        let told = missed_in(&watch, pid, folder.path()).into_iter();
        told.filter(|(_name, is_gone)| *is_gone).map(|(name, _)| name).collect()
    };
    assert_eq!(gone(second), ["needed1", "needed2", "needed3", "needed4"]);
    let others = [before, first, stranger, sibling].map(|pid| gone(pid).len());
    assert_eq!(others, [0; 4], "of what others found nothing is gone");
    let beyond =
        |failure: &&FailedSyscall| failure.flags & FLAG_VANISHED != 0 && failure.header.tgid == second;
    let [beyond] = drained.iter().filter(beyond).collect::<Vec<_>>()[..] else { panic!("{drained:?}") };
    assert_eq!((beyond.count, beyond.flags & FLAG_MIXED), (2, FLAG_MIXED));
}

/// Scenario: programs end in a pid namespace of their own, as its first process and as another; and in the machine's.
/// Guarantees: each exit says which it was.
#[test]
fn an_exit_tells_its_place_in_its_namespace() {
    let Some(mut watch) = watch(&everything()) else { return };
    let mut unshared = Command::new("unshare")
        .args(["-p", "-f", "sh", "-c", "sh -c 'exit 7'; exit 8"])
        .stdout(Stdio::null())
        .spawn()
        .expect("unshare, which Debian and busybox have, starts");
    let _status = unshared.wait().unwrap();
    exit_of(&mut watch, unshared.id());
    watch.settle();
    let places: Vec<_> = watch
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Exit(exit) if [7, 8].contains(&exit.exit_code) => Some((exit.exit_code, exit.namespace)),
            _ => None,
        })
        .collect();
    // `unshare` ends as its child did.
    assert_eq!(places, [(7, NAMESPACE_OTHER), (8, NAMESPACE_FIRST), (8, NAMESPACE_ROOT)]);
}

fn exit_of(watch: &mut Watch, pid: u32) -> Exit {
    watch.until("the exit", |seen| exits(seen, pid).next().is_some());
    *exits(&watch.seen, pid).next().unwrap()
}

fn exits(seen: &[Seen], pid: u32) -> impl Iterator<Item = &Exit> {
    seen.iter().filter_map(move |seen| match seen {
        Seen::Exit(exit) if exit.header.tgid == pid => Some(exit),
        _ => None,
    })
}

/// Scenario: a child is made, starts a program, makes and joins eight threads, and exits with 4.
/// Guarantees: one fork, one exec, one exit, tied together by thread group and start time, in this process's cgroup,
/// in order of time; threads are counted as filtered and never sent.
#[test]
fn a_process_is_followed_from_fork_to_exit() {
    let Some(mut watch) = watch(&everything()) else { return };
    let mut process = spawn("threads");
    let pid = process.id();
    assert_eq!(process.wait().unwrap().code(), Some(4));
    let exit = exit_of(&mut watch, pid);
    watch.settle();
    let forks: Vec<_> = watch
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Fork(fork) if fork.child_tgid == pid => Some(*fork),
            _ => None,
        })
        .collect();
    let execs: Vec<_> = watch
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::Exec(exec) if exec.header.tgid == pid => Some(*exec),
            _ => None,
        })
        .collect();
    assert_eq!((forks.len(), execs.len(), exits(&watch.seen, pid).count()), (1, 1, 1));
    let (fork, exec) = (forks[0], execs[0]);
    assert_eq!((exit.exit_code, exit.signal, exit.wait_status), (4, 0, 4 << 8));
    assert_eq!(fork.header.tgid, std::process::id());
    assert_eq!(exec.parent_tgid, std::process::id());
    assert_eq!(fork.child_tid, pid);
    assert_ne!(fork.child_start_nanos, 0);
    assert_eq!(fork.child_start_nanos, exec.header.start_nanos);
    assert_eq!(fork.child_start_nanos, exit.header.start_nanos);
    let cgroup = own_cgroup_id();
    assert_eq!([fork.child_cgroup_id, exec.header.cgroup_id, exit.header.cgroup_id], [cgroup; 3]);
    assert!(
        fork.header.time_nanos <= exec.header.time_nanos && exec.header.time_nanos < exit.header.time_nanos
    );
    let path = std::env::current_exe().unwrap();
    let path = path.to_str().unwrap().as_bytes();
    assert_eq!(exec.path(), &path[..path.len().min(PATH_BYTES - 1)]);
    assert_eq!(exec.flags & FLAG_PATH_CUT != 0, path.len() >= PATH_BYTES - 1);
    let filtered = watch.probes.stats().unwrap()[ProbeId::Fork as usize].stats.filtered;
    assert!(filtered >= 8, "eight threads were made, {filtered} forks filtered");
}

/// Scenario: one process follows a null pointer, another is killed by this one.
/// Guarantees: the signal's sender, target, code and kind of fault are recorded, and both exits carry the signal.
#[test]
fn a_fatal_signal_is_seen_with_its_sender() {
    let Some(mut watch) = watch(&everything()) else { return };
    let mut crashed = Command::new("perl")
        .args(["-e", "print unpack('p', pack('Q', 16))"])
        .stdout(Stdio::null())
        .spawn()
        .expect("perl, which Debian and busybox have, starts");
    assert_eq!(crashed.wait().unwrap().signal(), Some(libc::SIGSEGV));
    let mut killed = Command::new("sleep").arg("1000").spawn().unwrap();
    killed.kill().unwrap();
    assert_eq!(killed.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(exit_of(&mut watch, crashed.id()).signal, 11);
    assert_eq!(exit_of(&mut watch, killed.id()).signal, 9);
    watch.settle();
    let signal_to = |pid: u32, number: u8| {
        let found: Vec<_> = watch
            .seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::FatalSignal(signal) if signal.target_tgid == pid && signal.signal == number => {
                    Some(*signal)
                }
                _ => None,
            })
            .collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0]
    };
    let fault = signal_to(crashed.id(), 11);
    assert_eq!((fault.header.tgid, fault.code, fault.fault), (crashed.id(), 1, FAULT_NULL));
    assert_eq!(&fault.target_comm[..5], b"perl\0");
    assert_eq!(fault.target_cgroup_id, own_cgroup_id());
    let kill = signal_to(killed.id(), 9);
    assert_eq!((kill.header.tgid, kill.code, kill.fault), (std::process::id(), 0, FAULT_NONE));
    assert_ne!(kill.target_start_nanos, 0);
}

/// `ENOTDIR`: an error that no loader and no runtime makes when a process starts.
const NO_FOLDER: &str = "/dev/null/tapio-probe";

/// The failures of one call and errno that a child of this file's makes: those that were sent, those that were drained.
fn failures_of(task: &str, number: i64, errno: i32) -> Option<(Vec<FailedSyscall>, Vec<FailedSyscall>)> {
    let mut watch = watch(&everything())?;
    let mut process = spawn(task);
    let pid = process.id();
    assert!(process.wait().unwrap().success());
    exit_of(&mut watch, pid);
    let matches = |failure: &FailedSyscall| {
        failure.header.tgid == pid && failure.errno == errno as u16 && i64::from(failure.number) == number
    };
    let mut drained = Vec::new();
    watch.probes.drain_folded(0, |failure| drained.push(*failure)).unwrap();
    watch.settle();
    for _ in 0..2 {
        watch.probes.drain_folded(0, |failure| assert!(!matches(failure), "drained twice")).unwrap();
    }
    let sent = watch.seen.iter().filter_map(|seen| match seen {
        Seen::FailedSyscall(failure) if matches(failure) => Some(*failure),
        _ => None,
    });
    let sent: Vec<_> = sent.collect();
    drained.retain(matches);
    assert_eq!(sent[0].count, 1);
    Some((sent, drained))
}

fn total(sent: &[FailedSyscall], drained: &[FailedSyscall]) -> u64 {
    sent.iter().chain(drained).map(|failure| failure.count).sum()
}

/// Scenario: a process fails 1000 times to open a file below one that is no folder.
/// Guarantees: the first failure is sent at once; the counts of all records and of the drain add up to exactly 1000,
/// all with the path, which the kernel vouches for; a drained map is empty.
#[test]
fn repeated_failures_are_folded_exactly() {
    let Some((sent, drained)) = failures_of("open", libc::SYS_openat, libc::ENOTDIR) else { return };
    assert_eq!(total(&sent, &drained), 1000);
    assert!(sent.len() < 50, "{} records for 1000 failures", sent.len());
    assert!(sent.iter().chain(&drained).all(|failure| failure.path() == NO_FOLDER.as_bytes()));
    assert!(sent.iter().chain(&drained).all(|failure| failure.flags & FLAG_MIXED == 0));
}

/// Scenario: a process fails 500 times on each of two paths, in turns.
/// Guarantees: they are one key, exactly counted, no record claims one path for several of them, and what was drained
/// names the last.
#[test]
fn different_failures_are_not_told_as_one() {
    let Some((sent, drained)) = failures_of("open-two", libc::SYS_openat, libc::ENOTDIR) else { return };
    assert_eq!(total(&sent, &drained), 1000);
    let several: Vec<_> = sent.iter().filter(|failure| failure.count > 1).chain(&drained).collect();
    assert!(several.iter().map(|failure| failure.count).sum::<u64>() > 900);
    assert!(several.iter().all(|failure| failure.flags & FLAG_MIXED != 0));
    assert!(drained.iter().all(|failure| failure.path() == b"/dev/null/other"));
}

/// Scenario: a process is refused a hundred times by one address.
/// Guarantees: all of the refusals are told with that address.
#[test]
fn equal_failures_keep_their_address() {
    let Some((sent, drained)) = failures_of("connect", libc::SYS_connect, libc::ECONNREFUSED) else { return };
    assert_eq!(total(&sent, &drained), 100);
    let port = sent[0].port;
    assert_ne!(port, 0);
    let is_told = |failure: &FailedSyscall| {
        failure.port == port && failure.flags & FLAG_ADDRESS != 0 && failure.flags & FLAG_MIXED == 0
    };
    assert!(sent.iter().chain(&drained).all(is_told));
}

/// Scenario: processes cannot bind an address that is in use, on TCP and on UDP.
/// Guarantees: address and port are told, and of TCP the network namespace, as procfs names it.
#[test]
fn a_failed_bind_names_its_network() {
    let Some((sent, drained)) = failures_of("bind", libc::SYS_bind, libc::EADDRINUSE) else { return };
    assert_eq!(total(&sent, &drained), 3);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let own = own.to_str().unwrap().trim_start_matches("net:[").trim_end_matches(']').to_owned();
    for failure in sent.iter().chain(&drained) {
        assert_eq!((failure.flags, failure.network.to_string()), (FLAG_ADDRESS | FLAG_TCP, own.clone()));
        assert!(failure.port != 0 && failure.address.ends_with(&[127, 0, 0, 1]));
    }
    let Some((sent, _)) = failures_of("bind-udp", libc::SYS_bind, libc::EADDRINUSE) else { return };
    assert_eq!((sent[0].flags, sent[0].network), (FLAG_ADDRESS, 0));
}

/// Scenario: the exec probe is pointed at a tracepoint that does not exist, and the signal probe is turned off.
/// Guarantees: both are named with their state and reason, every other probe works and records.
#[test]
fn a_probe_fails_alone() {
    let config = ProbesConfig {
        tracepoints: vec![(ProbeId::Exec, "no_such_tracepoint".to_owned())],
        disabled: vec![ProbeId::FatalSignal],
        ..everything()
    };
    let Some(mut watch) = watch(&config) else { return };
    for capability in &watch.capabilities {
        match (&capability.state, capability.probe) {
            (CapabilityState::Failed { reason }, ProbeId::Exec) => {
                assert!(reason.contains("no_such_tracepoint"), "{reason}");
            }
            (CapabilityState::Disabled, ProbeId::FatalSignal) => {}
            (state, probe) => assert_eq!(*state, CapabilityState::Working, "{probe:?}"),
        }
    }
    let mut process = spawn("exit");
    assert_eq!(process.wait().unwrap().code(), Some(3));
    assert_eq!(exit_of(&mut watch, process.id()).exit_code, 3);
    watch.settle();
    assert!(!watch.seen.iter().any(|seen| matches!(seen, Seen::Exec(_) | Seen::FatalSignal(_))));
}

/// Scenario: a ring of one page, and two hundred processes before anybody reads it.
/// Guarantees: what did not fit is counted as lost to the full ring, what did is read, and nothing else is missing.
#[test]
fn a_full_ring_is_counted() {
    let config = ProbesConfig { ring_bytes: 4096, ..everything() };
    let Some(mut watch) = watch(&config) else { return };
    for _ in 0..200 {
        assert!(Command::new("true").status().unwrap().success());
    }
    watch.settle();
    let lost: u64 = watch.probes.stats().unwrap().iter().map(|counters| counters.stats.ring_full).sum();
    assert!(lost >= 500, "two hundred forks, execs and exits do not fit a page, yet only {lost} were lost");
}

/// Scenario: the agent's own thread group is to be ignored, and it forks.
/// Guarantees: nothing of it is recorded.
#[test]
fn the_agent_does_not_watch_itself() {
    let Some(mut watch) = watch(&ProbesConfig::default()) else { return };
    assert!(Command::new("true").status().unwrap().success());
    let mut process = spawn("exit");
    process.wait().unwrap();
    exit_of(&mut watch, process.id());
    watch.settle();
    let own = std::process::id();
    assert!(!watch.seen.iter().any(|seen| matches!(seen, Seen::Fork(fork) if fork.header.tgid == own)));
}

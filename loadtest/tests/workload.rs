//! The workload on the real kernel: real processes, real memory cgroups, a real OOM kill.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "this whole file is tests: a helper that fails is a test that fails, and what it prints says with which seed"
)]

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use tapio_loadtest::cgroup::{ContainerCgroup, Hierarchy};
use tapio_loadtest::random::Draw;
use tapio_loadtest::run_record::{ProcessKey, RunRecord};
use tapio_loadtest::scenario::{Kind, Manner, Mercy, Pace, Runtime, Scenario};
use tapio_loadtest::truth_log::{Role, TruthLine};
use tapio_loadtest::workload::{Account, Surroundings, Workload};

/// A seed of this test alone: cgroups are named from it, and tests run side by side.
fn seed(label: &str) -> u64 {
    let printed = std::env::var("TAPIO_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let seed = Draw::labelled(printed, label).next_u64();
    println!("{label}: TAPIO_SEED={printed}, scenario seed {seed}");
    seed
}

/// True where the machine cannot hold the test and the caller said that it may not.
fn not_proven(what: &str) -> bool {
    let reason = match Hierarchy::find() {
        Err(error) => format!("{error:#}"),
        Ok(_) if !rustix::process::geteuid().is_root() => "the tests are not run as root".to_owned(),
        Ok(_) => return false,
    };
    let allowed = std::env::var("TAPIO_NOT_PROVEN").unwrap_or_default();
    assert!(allowed.split(',').any(|name| name == "cgroup"), "cannot prove {what}: {reason}");
    println!("not proven: cgroup: {what}: {reason}");
    true
}

struct Bench {
    folder: tempfile::TempDir,
    record: Option<RunRecord>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let record = RunRecord::create(&folder.path().join("state")).unwrap();
        Self { folder, record: Some(record) }
    }

    fn start(&self, scenario: &Scenario) -> Workload {
        let surroundings = Surroundings {
            program: Path::new(env!("CARGO_BIN_EXE_tapio-workload")),
            folder: self.folder.path(),
            record: self.record.as_ref().unwrap(),
        };
        Workload::start(scenario, surroundings).unwrap()
    }
}

fn assert_nothing_left(scenario: &Scenario, pids: &[u32]) {
    let hierarchy = Hierarchy::find().unwrap();
    for pod in scenario.all_pods() {
        let path = ContainerCgroup::path_of(&hierarchy, &pod.pod_uid, &pod.container_id);
        assert!(!path.exists() && !path.parent().unwrap().exists(), "{} is left", path.display());
    }
    for pid in pids {
        assert_eq!(ProcessKey::of(*pid), None, "process {pid} is left");
    }
}

/// The sent and the received line of one hop.
type Hop<'a> = (Option<&'a TruthLine>, Option<&'a TruthLine>);

/// Sent and received lines of each hop, by trace and sender's span.
fn hops(account: &Account) -> BTreeMap<(String, String), Hop<'_>> {
    let mut hops: BTreeMap<_, Hop<'_>> = BTreeMap::new();
    for line in &account.lines {
        let key = (line.trace_id.clone().unwrap(), line.span_id.clone().unwrap());
        let hop = hops.entry(key).or_default();
        let side = match line.role {
            Role::Sent => &mut hop.0,
            Role::Received => &mut hop.1,
        };
        assert!(side.replace(line).is_none(), "two lines of one side of one hop: {line:?}");
    }
    hops
}

fn leak_is_killed(runtime: Runtime, position: usize, label: &str) {
    if not_proven("a leaking service is OOM-killed and its callers answer HTTP 500") {
        return;
    }
    // The first scenario from the seed on whose leak is where the test wants it.
    let seed = seed(label);
    let scenario = (0..1000)
        .map(|offset| Scenario::draw(Kind::Leak, seed.wrapping_add(offset), Pace::Test))
        .find(|scenario| scenario.leak.position == position)
        .map(|scenario| Scenario { runtime, ..scenario })
        .unwrap();
    let bench = Bench::new();
    let mut workload = bench.start(&scenario);
    let pids: Vec<u32> = workload.services().iter().map(|service| service.pid()).collect();
    let exit =
        workload.wait_for_exit(position, Duration::from_secs(20)).unwrap().expect("the leak must be killed");
    assert_eq!(exit.signal(), Some(9));
    let failure = workload.wait_for_first_failure(Duration::from_secs(5)).expect("the load must see it");
    for (other, service) in workload.services().iter().enumerate() {
        let kills = service.cgroup().unwrap().oom_kills().unwrap();
        assert_eq!(kills, u64::from(other == position), "{} has {kills} OOM kills", service.name());
    }
    // Enough requests after the kill for each kind of failure.
    std::thread::sleep(Duration::from_millis(500));
    let account = workload.stop().unwrap();
    assert_nothing_left(&scenario, &pids);
    let summary = account.summary.unwrap();
    println!("{label}: {summary:?}, first failure {failure:?}");
    let culprit = &scenario.chain[position].service;
    let entry = &scenario.chain[0].service;
    if position == 0 {
        assert!(summary.failed > 5 && summary.server_errors == 0, "{summary:?}");
    } else {
        assert!(summary.server_errors > 5 && failure.status == Some(500), "{summary:?}");
        let answered: Vec<u16> = account
            .lines
            .iter()
            .filter(|line| line.role == Role::Received && &line.service == entry)
            .filter_map(|line| line.status)
            .collect();
        assert!(answered.contains(&500));
    }
    // Only the caller of the culprit saw its sockets fail; a failed call has no response.
    let caller = scenario.pods().nth(position).unwrap();
    for line in account.lines.iter().filter(|line| line.error.is_some()) {
        assert_eq!((line.role, &line.service), (Role::Sent, &caller.service), "{line:?}");
    }
    let errors: BTreeMap<_, usize> =
        account.lines.iter().filter_map(|line| line.error).fold(BTreeMap::new(), |mut errors, error| {
            *errors.entry(error).or_default() += 1;
            errors
        });
    println!("{label}: {culprit} killed, errors {errors:?}, torn {}", account.torn_lines);
    assert!(errors.len() > 1, "broken connections and refusals: {errors:?}");
}

/// Scenario: the service in the middle of a blocking chain leaks.
/// Guarantees: the kernel kills exactly it, at its limit; its caller sees broken connections, then refusals, and the
/// entry answers HTTP 500; no process and no cgroup is left.
#[test]
fn a_leak_in_the_middle_is_killed() {
    leak_is_killed(Runtime::Threads, 1, "leak-middle-threads");
}

/// Scenario: the last service of an async chain leaks.
/// Guarantees: as above, two hops from the load.
#[test]
fn a_leak_at_the_end_is_killed() {
    leak_is_killed(Runtime::Async, 2, "leak-last-async");
}

/// Scenario: the first service leaks.
/// Guarantees: the load itself sees the failures; nobody is left to answer HTTP 500.
#[test]
fn a_leak_at_the_entry_is_killed() {
    leak_is_killed(Runtime::Threads, 0, "leak-first-threads");
}

/// Scenario: the healthy twin runs a while on each runtime.
/// Guarantees: no request fails, stray requests get 404, every service ends by itself when asked; the log of every
/// hop has both sides and they agree; nothing is left.
#[test]
fn a_healthy_chain_has_no_failures() {
    if not_proven("a healthy workload has no failures") {
        return;
    }
    for runtime in [Runtime::Threads, Runtime::Async] {
        let label = format!("healthy-{}", runtime.name());
        let scenario = Scenario { runtime, ..Scenario::draw(Kind::Healthy, seed(&label), Pace::Test) };
        let bench = Bench::new();
        let workload = bench.start(&scenario);
        let pids: Vec<u32> = workload.services().iter().map(|service| service.pid()).collect();
        assert_eq!(workload.wait_for_first_failure(Duration::from_secs(2)), None);
        for service in workload.services() {
            println!(
                "{label}: {} is charged {} KiB",
                service.name(),
                service.cgroup().unwrap().usage_bytes().unwrap() / 1024
            );
        }
        let account = workload.stop().unwrap();
        assert_nothing_left(&scenario, &pids);
        let summary = account.summary.unwrap();
        println!("{label}: {summary:?}");
        assert!(summary.answered > 30 && summary.answered == summary.sent, "{summary:?}");
        assert_eq!(summary.shed, 0);
        assert!(account.exits.iter().all(|exit| exit.success()), "{:?}", account.exits);
        assert_eq!(account.torn_lines, 0);
        let mut reused = 0;
        for (key, (sent, received)) in hops(&account) {
            let (sent, received) =
                (sent.unwrap(), received.unwrap_or_else(|| panic!("{key:?} was not received")));
            assert_eq!(
                (&sent.method, &sent.path, sent.status),
                (&received.method, &received.path, received.status)
            );
            assert_eq!(
                (sent.local_port.unwrap(), sent.peer_port),
                (received.peer_port, received.local_port.unwrap())
            );
            assert_eq!(sent.reused_connection, received.reused_connection);
            reused += usize::from(sent.reused_connection);
        }
        assert!(reused > 0, "connections must be kept");
    }
}

/// Runs a restart to its end: supervised until `is_over` of the attempts so far, at most for some seconds.
fn restarted(
    kind: Kind,
    label: &str,
    is_over: impl Fn(&[String], u32) -> bool,
) -> (Scenario, Account, Vec<u32>) {
    restarted_in(Scenario::draw(kind, seed(label), Pace::Test), is_over)
}

/// As [`restarted`], of a scenario.
fn restarted_in(
    scenario: Scenario,
    is_over: impl Fn(&[String], u32) -> bool,
) -> (Scenario, Account, Vec<u32>) {
    let bench = Bench::new();
    let record = bench.record.as_ref().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_tapio-workload"));
    let surroundings = Surroundings { program, folder: bench.folder.path(), record };
    let mut workload = Workload::start(&scenario, surroundings).unwrap();
    let position = scenario.active_restart().unwrap().position;
    let mut pids = Vec::new();
    let mut groups: Vec<String> = Vec::new();
    let end = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        assert!(std::time::Instant::now() < end, "the restart must come to its end: {groups:?}");
        workload.supervise(surroundings).unwrap();
        let service = &workload.services()[position];
        if let Some(group) = service.cgroup() {
            let group = group.path().to_string_lossy().into_owned();
            if !groups.contains(&group) {
                groups.push(group);
                pids.push(service.pid());
            }
        }
        if is_over(&groups, service.pid()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // The kernel names the process as it was drawn.
    if let Some(holder) = workload.truth().culprit.and_then(|culprit| culprit.holder) {
        let pid = holder.pid.unwrap();
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(comm.trim_end(), holder.command);
        pids.push(pid);
    }
    let account = workload.stop().unwrap();
    assert_nothing_left(&scenario, &pids);
    let pod = Path::new(&groups[0]).parent().unwrap();
    for group in &groups {
        assert_eq!(Path::new(group).parent().unwrap(), pod, "a restart is another container of the same pod");
        assert!(!Path::new(group).exists());
    }
    (scenario, account, pids)
}

/// Scenario: a service is restarted and its configuration is gone, or says nonsense.
/// Guarantees: each restart is a process of its own in a container of its own, below the same pod; each ends with exit
/// code 1; requests fail until the end; nothing is left.
#[test]
fn a_configuration_that_is_no_use_ends_every_restart() {
    if not_proven("a service without its configuration ends again and again") {
        return;
    }
    for kind in [Kind::MissingConfig, Kind::WrongConfig] {
        let (scenario, account, pids) = restarted(kind, kind.name(), |groups, _| groups.len() >= 4);
        let position = scenario.active_restart().unwrap().position;
        assert_eq!(account.exits[position].code(), Some(1));
        assert_eq!(pids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
        let summary = account.summary.unwrap();
        println!("{}: {summary:?}", kind.name());
        assert!(summary.answered > 20 && summary.server_errors + summary.failed > 5, "{summary:?}");
    }
}

/// Scenario: the twin: the same restart, and the configuration is in its place.
/// Guarantees: the service comes back in a second container, at its old address, and requests are answered again.
#[test]
fn a_restart_comes_back() {
    if not_proven("a restarted service comes back") {
        return;
    }
    let back = std::cell::Cell::new(None);
    let (scenario, account, pids) = restarted(Kind::Restart, "restart", |groups, _| {
        if groups.len() == 2 && back.get().is_none() {
            back.set(Some(std::time::Instant::now()));
        }
        back.get().is_some_and(|since| since.elapsed() > Duration::from_secs(2))
    });
    assert_eq!(pids.len(), 2);
    assert!(account.exits.iter().all(|exit| exit.success()), "{:?}", account.exits);
    let service = &scenario.chain[scenario.active_restart().unwrap().position].service;
    let again: Vec<_> = account.lines.iter().filter(|line| line.pid == pids[1]).collect();
    assert!(again.iter().filter(|line| &line.service == service && line.status == Some(200)).count() > 10);
}

/// Scenario: a service is restarted and another process has taken its port; callers meet each kind of it, in a pod of its
/// own and outside of all.
/// Guarantees: each restart ends with exit code 1; the process has the drawn name; requests fail until the end; nothing
/// is left.
#[test]
fn a_taken_port_ends_every_restart() {
    if not_proven("a service whose port is taken ends again and again") {
        return;
    }
    let manners = [Manner::Greets("220 ready".to_owned()), Manner::Silent, Manner::NotFound];
    for (place, manner) in manners.into_iter().enumerate() {
        let seed = seed(&format!("port-in-use-{place}"));
        // The first scenario from the seed on whose process runs where the test wants it.
        let mut scenario = (0..100)
            .map(|offset| Scenario::draw(Kind::PortInUse, seed.wrapping_add(offset), Pace::Test))
            .find(|scenario| scenario.foreign.pod.is_some() == (place % 2 == 0))
            .unwrap();
        scenario.foreign.manner = manner;
        let (scenario, account, pids) = restarted_in(scenario, |groups, _| groups.len() >= 3);
        let position = scenario.active_restart().unwrap().position;
        assert_eq!(account.exits[position].code(), Some(1));
        assert_eq!(pids.len(), 4, "three containers, and the process that has the port");
        // A sender whose calls are never answered may have no time for its summary.
        let sent = account.lines.iter().filter(|line| line.service == scenario.gateway.service);
        let (failed, answered): (Vec<_>, Vec<_>) =
            sent.partition(|line| line.status.is_none_or(|status| status >= 500));
        println!("port-in-use, {:?}: {} failed", scenario.foreign, failed.len());
        assert!(answered.len() > 20 && failed.len() > 2, "{} {}", answered.len(), failed.len());
    }
}

/// Scenario: the twin: the process takes another port; it leaves after the first failed start.
/// Guarantees: the service comes back at its old address, at once or in the next container, and answers again.
#[test]
fn a_port_that_is_free_in_time_is_taken_again() {
    if not_proven("a restarted service comes back to its port") {
        return;
    }
    for (mercy, containers) in [(Mercy::OtherPort, 2), (Mercy::Leaves, 3)] {
        let mut scenario = Scenario::draw(Kind::PortFree, seed("port-free"), Pace::Test);
        scenario.foreign.mercy = mercy;
        let back = std::cell::Cell::new(None);
        let (scenario, account, pids) = restarted_in(scenario, |groups, _| {
            if groups.len() == containers && back.get().is_none() {
                back.set(Some(std::time::Instant::now()));
            }
            back.get().is_some_and(|since| since.elapsed() > Duration::from_secs(2))
        });
        assert_eq!(pids.len(), containers);
        assert!(account.exits.iter().all(|exit| exit.success()), "{:?}", account.exits);
        let service = &scenario.chain[scenario.active_restart().unwrap().position].service;
        let again = account.lines.iter().filter(|line| Some(&line.pid) == pids.last());
        let answered = again.filter(|line| &line.service == service && line.status == Some(200));
        assert!(answered.count() > 10);
    }
}

/// Scenario: a workload is dropped while it runs, as on a panic.
/// Guarantees: no process and no cgroup is left.
#[test]
fn a_dropped_workload_leaves_nothing() {
    if not_proven("a dropped workload leaves nothing") {
        return;
    }
    let scenario = Scenario::draw(Kind::Healthy, seed("dropped"), Pace::Test);
    let bench = Bench::new();
    let workload = bench.start(&scenario);
    let pids: Vec<u32> = workload.services().iter().map(|service| service.pid()).collect();
    drop(workload);
    assert_nothing_left(&scenario, &pids);
}

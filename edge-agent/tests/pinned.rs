//! Probes that outlive their agent, on this kernel: agents that are killed, replaced and refused, and what is in the spool
//! afterwards, compared with what was really done. Each connection that is refused has an address of its own, so that what
//! is told twice, or not at all, is seen one by one.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    reason = "what fails here fails the test, and says where"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use support::{
    Agent, Container, Process, ROLE, Sums, any_probe_failed, configure_capture, not_proven, read_spool,
    wait_for,
};
use tapio_edge_agent::probes::{Pins, Probes, ProbesConfig};
use tapio_kernel_abi::{ProbeId, TCP_STATE_AGAIN};
use tapio_schemas::{
    event::UnifiedEvent,
    intent,
    ledger::{Fate, Stage},
};

#[path = "agent/support.rs"]
mod support;

/// Nobody listens on it: the discard service of old.
const NOBODY: u16 = 9;
/// Connections that one second of load tries.
const RATE: u64 = 1_000;
const KILLS: u64 = 10;
/// Requests without an answer.
const UNANSWERED: u64 = 25;
/// Looking for it is `ENOTDIR`: an error that no loader and no runtime makes when a process starts.
const NO_FOLDER: &str = "/dev/null/tapio-pinned";
const PROGRAM: &str = env!("CARGO_BIN_EXE_tapio-edge-agent");

/// A folder in bpffs; what is pinned there is removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        Self(PathBuf::from(format!("/sys/fs/bpf/tapio-test-{name}-{}", std::process::id())))
    }

    /// Lines of an agent's configuration.
    fn capture(&self, more: &str) -> String {
        format!("pins = {:?}\n{more}", self.0)
    }

    fn uninstall(&self) -> (bool, String) {
        let output = Command::new(PROGRAM).arg("uninstall").arg(&self.0).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), text)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let (is_removed, text) = self.uninstall();
        if !is_removed {
            println!("{} is not removed: {text}", self.0.display());
        }
    }
}

/// The address of the `number`th connection.
fn address(number: u64) -> Ipv4Addr {
    let [.., high, middle, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 1 + high, middle, low)
}

/// Is refused `count` connections from the `first` on, at [`RATE`] or as fast as it can, and fails to open a file as often.
fn refuse(argument: &str) {
    let numbers: Vec<u64> = argument.split(' ').map(|word| word.parse().unwrap()).collect();
    let (first, count, is_paced) = (numbers[0], numbers[1], numbers[2] != 0);
    let began = Instant::now();
    for number in 0..count {
        let at = began + Duration::from_micros(number * 1_000_000 / RATE);
        if is_paced {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
        TcpStream::connect(SocketAddr::from((address(first + number), NOBODY))).unwrap_err();
        fs::File::open(NO_FOLDER).unwrap_err();
    }
}

/// Asks a service so often, each time over a connection of its own, and never gets an answer. Leaves a file when it has
/// asked.
fn ask(asked: &str) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let both: Vec<_> = (0..UNANSWERED)
        .map(|number| {
            let mut client = TcpStream::connect(address).unwrap();
            client.write_all(format!("GET /{number} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
            let mut server = listener.accept().unwrap().0;
            assert!(server.read(&mut [0; 256]).unwrap() > 16);
            (client, server)
        })
        .collect();
    fs::write(asked, "").unwrap();
    std::thread::sleep(Duration::from_secs(60));
    drop(both);
}

/// Scenario: none; what the other tests' processes run.
/// Guarantees: nothing by itself.
#[test]
fn role() {
    let argument = std::env::var("TAPIO_TEST_ARGUMENT").unwrap_or_default();
    match std::env::var(ROLE).as_deref() {
        Ok("refuse") => refuse(&argument),
        Ok("ask") => ask(&argument),
        _ => {}
    }
}

fn start(folder: &Path, capture: &str) -> Agent {
    let agent = Agent::start_configured(folder, &[], &configure_capture(folder, capture));
    wait_for("the agent's start", || agent.log().contains("agent is running").then_some(()));
    agent
}

/// How often each refused connection of a container is told, by address.
fn told(events: &[UnifiedEvent], container: &Container) -> BTreeMap<String, u64> {
    let mut told = BTreeMap::new();
    let is_refused = |event: &&UnifiedEvent| {
        event.core.intent == intent::CONNECTION_REFUSED
            && event.entity.as_ref().is_some_and(|entity| entity.container_id == container.id)
    };
    for event in events.iter().filter(is_refused) {
        let remote = event.network.as_ref().unwrap().remote_address.to_string();
        *told.entry(remote).or_insert(0) += u64::from(event.core.count);
    }
    told
}

/// How many failures to open a file are told of a container: the kernel folds them.
fn failures(events: &[UnifiedEvent], container: &Container) -> u64 {
    let is_of = |event: &&UnifiedEvent| {
        event.entity.as_ref().is_some_and(|entity| entity.container_id == container.id)
            && event.kernel.as_ref().is_some_and(|kernel| kernel.path == NO_FOLDER)
    };
    events.iter().filter(is_of).map(|event| u64::from(event.core.count)).sum()
}

fn sum(ledger: &Sums, stage: Stage, fates: &[Fate], probe: ProbeId, is_reason: impl Fn(&str) -> bool) -> u64 {
    let lines = ledger.iter().filter(|((at, fate, subject, reason), _)| {
        *at == stage && fates.contains(fate) && subject == probe.name() && is_reason(reason)
    });
    lines.map(|(_, count)| count).sum()
}

/// Every record that the kernel sent ends in a ledger, whatever became of the agents that took it.
fn assert_accounted(ledger: &Sums) {
    for probe in ProbeId::ALL {
        let emitted = sum(ledger, Stage::Kernel, &[Fate::Carried], probe, |_| true);
        let fates = [Fate::Carried, Fate::Folded, Fate::Filtered, Fate::Lost];
        let accounted = sum(ledger, Stage::Capture, &fates, probe, |reason| reason != "reading-dropped");
        assert_eq!(accounted, emitted, "{}: {ledger:#?}", probe.name());
    }
}

fn lost(ledger: &Sums, probe: ProbeId, reason: &str) -> u64 {
    [Stage::Kernel, Stage::Capture]
        .into_iter()
        .map(|stage| sum(ledger, stage, &[Fate::Lost], probe, |of| of == reason))
        .sum()
}

/// A number that the seed and `step` decide.
fn drawn(seed: u64, step: u64, below: u64) -> u64 {
    let mixed = (seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 31) % below
}

/// Scenario: a container is refused a thousand connections a second, each to another address, while its agent is killed
/// again and again at moments that the seed draws, asked to end in between, and started again each time.
/// Guarantees: each agent takes over every probe; no connection is told twice; each that is not told is counted as lost
/// with a reason, and so is each failure to open a file, of which the kernel folds most; every record that the kernel sent
/// is in a ledger, to the last one; nothing is lost because nobody read. At the end nothing is left in bpffs.
#[test]
fn agents_that_are_killed_tell_everything_once() {
    let seed = std::env::var("TAPIO_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    let folder = tempfile::tempdir().unwrap();
    let pins = Folder::new("kills");
    let container = Container::new(61);
    let capture = pins.capture("on_exit = \"keep\"");
    let mut agent = start(folder.path(), &capture);
    let count = RATE * 8;
    let mut load = Process::role("refuse", &format!("0 {count} 1"), &container);
    for kill in 0..KILLS {
        std::thread::sleep(Duration::from_millis(100 + drawn(seed, kill, 500)));
        if kill % 5 == 4 {
            assert!(agent.end().success());
        }
        drop(agent);
        agent = start(folder.path(), &capture);
        let adopted = format!("adopted={}", ProbeId::ALL.len());
        if not_proven(!agent.log().contains(&adopted)) {
            return;
        }
    }
    assert!(load.0.wait().unwrap().success());
    drop(agent);
    let mut agent = start(folder.path(), &pins.capture("on_exit = \"remove\""));
    assert!(agent.end().success());
    assert!(!pins.0.join("node-1").exists());

    let (events, ledger) = read_spool(folder.path());
    if not_proven(any_probe_failed(&events)) {
        return;
    }
    let told = told(&events, &container);
    let twice: Vec<_> = told.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "seed {seed}: told twice: {twice:?}");
    let missing =
        (0..count).filter(|number| !told.contains_key(&address(*number).to_string())).count() as u64;
    let killed = lost(&ledger, ProbeId::TcpState, "agent-killed");
    println!("seed {seed}: {count} refused, {missing} not told, {killed} counted as lost with an agent");
    let (failures, unsent) =
        (failures(&events, &container), lost(&ledger, ProbeId::FailedSyscall, "agent-killed"));
    println!("seed {seed}: {failures} failures told, {unsent} records of failures lost with an agent");
    assert!(
        failures <= count && (unsent > 0 || failures == count),
        "seed {seed}: {failures}, {unsent}: {ledger:#?}"
    );
    assert!(missing <= killed, "seed {seed}: {missing} are missing, {killed} are counted: {ledger:#?}");
    assert!(told.len() as u64 > count * 9 / 10, "seed {seed}: {} of {count} are told", told.len());
    assert_accounted(&ledger);
    for probe in ProbeId::ALL {
        assert_eq!(
            lost(&ledger, probe, "no-agent") + lost(&ledger, probe, "ring-full"),
            0,
            "{}",
            probe.name()
        );
    }
    let starts = events.iter().filter(|event| event.core.intent == intent::AGENT_STARTED).count() as u64;
    assert!(starts > KILLS / 2, "{starts} agents told their start");
}

/// Scenario: requests wait for their answers, and an agent has told everything else of before, when it is killed; then
/// another is.
/// Guarantees: what the first knew of the requests, which only it had, is counted as lost, once: both ends of each.
#[test]
fn what_only_the_agent_held_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let pins = Folder::new("held");
    let container = Container::new(65);
    let agent = start(folder.path(), &pins.capture(""));
    let asked = folder.path().join("asked");
    let asking = Process::role("ask", asked.to_str().unwrap(), &container);
    wait_for("the requests", || asked.exists().then_some(()));
    std::thread::sleep(Duration::from_millis(2_500));
    drop(agent);
    drop(start(folder.path(), &pins.capture("")));
    let mut agent = start(folder.path(), &pins.capture("on_exit = \"remove\""));
    assert!(agent.end().success());
    drop(asking);
    let (events, ledger) = read_spool(folder.path());
    if not_proven(any_probe_failed(&events)) {
        return;
    }
    assert_accounted(&ledger);
    let held = lost(&ledger, ProbeId::Payload, "agent-killed");
    assert!((2 * UNANSWERED..3 * UNANSWERED).contains(&held), "{held}: {ledger:#?}");
}

/// Scenario: while no agent runs, more connections are refused than the ring has room for.
/// Guarantees: what the ring held is told, the rest is counted as lost because there was no agent, to the last one.
#[test]
fn what_the_ring_cannot_hold_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let pins = Folder::new("overflow");
    let container = Container::new(62);
    let agent = start(folder.path(), &pins.capture("ring_bytes = 262144"));
    let mut before = Process::role("refuse", "0 100 1", &container);
    assert!(before.0.wait().unwrap().success());
    drop(agent);
    let mut during = Process::role("refuse", "100 5000 0", &container);
    assert!(during.0.wait().unwrap().success());
    let mut agent = start(folder.path(), &pins.capture("ring_bytes = 262144\non_exit = \"remove\""));
    assert!(agent.end().success());

    let (events, ledger) = read_spool(folder.path());
    if not_proven(any_probe_failed(&events)) {
        return;
    }
    let told = told(&events, &container);
    assert!(told.values().all(|times| *times == 1), "{told:?}");
    let missing = 5_100 - told.len() as u64;
    let unread = lost(&ledger, ProbeId::TcpState, "no-agent");
    assert!(missing > 0 && told.len() > 200, "{} are told", told.len());
    assert!(missing <= unread + lost(&ledger, ProbeId::TcpState, "agent-killed"), "{missing}: {ledger:#?}");
    assert!(unread <= missing + 50, "{missing} are missing, {unread} are counted");
    assert_accounted(&ledger);
}

/// Scenario: an agent that makes its maps otherwise, as another version would, starts where one was killed; connections
/// were refused in between.
/// Guarantees: it replaces what it finds, and tells first what that has recorded; everything is told once.
#[test]
fn another_version_replaces_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let pins = Folder::new("replaced");
    let container = Container::new(63);
    let agent = start(folder.path(), &pins.capture("ring_bytes = 4194304"));
    drop(agent);
    let versions = || fs::read_dir(pins.0.join("node-1")).unwrap().count();
    assert_eq!(versions(), 1);
    let mut between = Process::role("refuse", "0 300 0", &container);
    assert!(between.0.wait().unwrap().success());
    let mut agent = start(folder.path(), &pins.capture("ring_bytes = 1048576\non_exit = \"remove\""));
    wait_for("the other version's end", || (versions() == 1).then_some(()));
    let mut after = Process::role("refuse", "300 200 0", &container);
    assert!(after.0.wait().unwrap().success());
    assert!(agent.end().success());

    let (events, ledger) = read_spool(folder.path());
    if not_proven(any_probe_failed(&events)) {
        return;
    }
    let told = told(&events, &container);
    let expected: BTreeMap<_, _> = (0..500).map(|number| (address(number).to_string(), 1)).collect();
    assert_eq!(told, expected);
    assert_eq!(failures(&events, &container), 500);
    assert_eq!(lost(&ledger, ProbeId::TcpState, "agent-killed"), 0);
    assert_accounted(&ledger);
}

/// Scenario: a second agent of the same folder in bpffs starts beside the first, with a state directory of its own.
/// Guarantees: it refuses, and says why and what to do; the first goes on, and so do its probes.
#[test]
fn a_second_agent_is_refused() {
    let (first_folder, second_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pins = Folder::new("second");
    let container = Container::new(64);
    let capture = pins.capture("on_exit = \"remove\"");
    let mut first = start(first_folder.path(), &capture);
    let config = configure_capture(second_folder.path(), &capture);
    let mut second = Agent::start_configured(second_folder.path(), &[], &config);
    assert!(!second.ended().success());
    let log = second.log();
    assert!(log.contains("another agent holds the probes") && log.contains("capture.pins"), "{log}");
    let (is_removed, text) = pins.uninstall();
    assert!(!is_removed && text.contains("another agent holds"), "{text}");
    let mut load = Process::role("refuse", "0 50 0", &container);
    assert!(load.0.wait().unwrap().success());
    assert!(first.end().success());
    let (events, _) = read_spool(first_folder.path());
    if not_proven(any_probe_failed(&events)) {
        return;
    }
    assert_eq!(told(&events, &container).len(), 50);
}

/// Our programs that the kernel has loaded, whoever's they are, by number.
fn loaded() -> BTreeSet<u32> {
    let names: Vec<&str> = ProbeId::ALL
        .into_iter()
        .map(ProbeId::program)
        .chain([TCP_STATE_AGAIN])
        .map(|name| &name[..name.len().min(15)])
        .collect();
    let programs = aya::programs::loaded_programs().map(Result::unwrap);
    let ours = programs.filter(|program| program.name_as_str().is_some_and(|name| names.contains(&name)));
    ours.map(|program| program.id()).collect()
}

/// Scenario: an agent is killed, and what it left is uninstalled, twice.
/// Guarantees: before, its programs are there; after, nothing is left in bpffs and no program in the kernel, and it is said
/// what was removed; the second time there is nothing.
#[test]
fn uninstalling_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let pins = Folder::new("uninstall");
    let others = loaded();
    drop(start(folder.path(), &pins.capture("")));
    let pinned = &loaded() - &others;
    let left = pinned.len();
    let (is_removed, text) = pins.uninstall();
    assert!(is_removed && text.contains(&format!("{left} links, {left} programs")), "{text}");
    assert!(!pins.0.exists());
    wait_for("the programs' end", || loaded().is_disjoint(&pinned).then_some(()));
    assert!(pins.uninstall().1.starts_with("nothing is pinned"));
    let (events, _) = read_spool(folder.path());
    if !not_proven(any_probe_failed(&events)) {
        assert_eq!(left, ProbeId::ALL.len() + 1);
    }
}

/// Scenario: agents were killed while they pinned and while they removed: links, programs and maps are missing in various
/// places; a probe that an agent had is disabled in the next, and wanted again later.
/// Guarantees: whatever is missing is made again, what is there is taken over, what is disabled comes off.
#[test]
fn what_is_half_made_is_repaired() {
    let folder = Folder::new("half");
    let config = ProbesConfig { ring_bytes: 64 << 10, ..ProbesConfig::default() };
    let load = |config: &ProbesConfig| {
        let pins = Pins::hold(&folder.0, "a.node").unwrap();
        let (mut probes, capabilities) = Probes::load_pinned(config, &pins, None);
        let failed = capabilities
            .iter()
            .any(|capability| !capability.is_working() && !config.disabled.contains(&capability.probe));
        (failed, probes.take_found().map(|found| found.adopted.clone()).unwrap_or_default())
    };
    let (failed, adopted) = load(&config);
    if not_proven(failed) {
        return;
    }
    assert_eq!(adopted, []);
    let node = folder.0.join("a_node");
    let version = fs::read_dir(&node).unwrap().next().unwrap().unwrap().path();
    let remove = |names: &[&str]| names.iter().for_each(|name| fs::remove_file(version.join(name)).unwrap());
    assert_eq!(load(&config), (false, ProbeId::ALL.to_vec()));
    let without = |gone: &[ProbeId]| -> Vec<ProbeId> {
        ProbeId::ALL.into_iter().filter(|probe| !gone.contains(probe)).collect()
    };
    remove(&["link_on_exec", "link_on_exit", "program_on_exit", "program_on_payload"]);
    let gone = [ProbeId::Exec, ProbeId::Exit, ProbeId::Payload];
    assert_eq!(load(&config), (false, without(&gone)));
    let fewer = ProbesConfig { disabled: vec![ProbeId::Exec, ProbeId::TcpState], ..config.clone() };
    assert_eq!(load(&fewer), (false, without(&fewer.disabled)));
    assert!(
        !version.join("link_on_exec").exists() && !version.join(format!("link_{TCP_STATE_AGAIN}")).exists()
    );
    assert_eq!(load(&config), (false, without(&fewer.disabled)));
    for entry in fs::read_dir(&version).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("link_")
            || name.starts_with("program_")
            || name == "map_TAKEN"
            || name == "map_PROGRESS"
        {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    assert_eq!(load(&config), (false, Vec::new()));
}

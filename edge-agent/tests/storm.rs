//! A storm of failing system calls on the real kernel: what it costs the node, what of it is told, and what else is seen.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "what fails here fails the test, and says where"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use support::{Agent, Container, Process, ROLE, any_probe_failed, not_proven, read_spool, wait_for};
use tapio_kernel_abi::ProbeId;
use tapio_schemas::{
    event::UnifiedEvent,
    intent,
    ledger::{Fate, Stage},
};

#[path = "agent/support.rs"]
mod support;

/// How long the storm lasts, and how long it is tried before without an agent.
const STORM: Duration = Duration::from_secs(8);
const CALM: Duration = Duration::from_secs(2);
/// What a storm is: failing calls per second.
const STORM_RATE: u64 = 200_000;
/// Threads that fail, per processor: one that waits for its turn leaves no processor idle.
const THREADS_PER_PROCESSOR: usize = 2;
/// Where the storm is not reached: a failing call may cost so many times the processor time that it costs without the
/// agent, what the agent itself uses counted in. By processor time, which a busy machine does not stretch.
const COST_FACTOR_MAX: f64 = 6.0;
/// What the agent's control group may be charged, page cache not counted.
const AGENT_BYTES_MAX: u64 = 64 << 20;
/// `ENOTDIR`: an error that no loader and no runtime makes when a process starts.
const NO_FOLDER: &str = "/dev/null/tapio-storm";
/// What the other container misses.
const MISSING: &str = "/tapio-test-missing/settings.toml";

/// What a storm was.
#[derive(Debug)]
struct Stormed {
    calls: u64,
    lasted: Duration,
    /// Processor time of the process that failed.
    cpu: Duration,
}

impl Stormed {
    fn rate(&self) -> u64 {
        (self.calls as f64 / self.lasted.as_secs_f64()) as u64
    }

    /// The processor time of a call, with what others used for it.
    fn nanos_per_call(&self, others: Duration) -> f64 {
        (self.cpu + others).as_nanos() as f64 / self.calls as f64
    }

    /// Waits for what a process of role `storm` left.
    fn read(result: &Path) -> Self {
        let text = wait_for("the storm's end", || fs::read_to_string(result).ok());
        let numbers: Vec<u64> = text.split(' ').map(|word| word.parse().unwrap()).collect();
        Self {
            calls: numbers[0],
            lasted: Duration::from_nanos(numbers[1]),
            cpu: Duration::from_nanos(numbers[2]),
        }
    }
}

/// Fails as fast as it can, and leaves how often, for how long, and what it cost.
fn storm(result: &Path, lasting: Duration) {
    let threads = std::thread::available_parallelism().unwrap().get() * THREADS_PER_PROCESSOR;
    let cpu = || {
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap())
    };
    let (began, used) = (Instant::now(), cpu());
    let calls = std::thread::scope(|scope| {
        let fail = || {
            let mut failed = 0_u64;
            while began.elapsed() < lasting {
                for _ in 0..1_000 {
                    failed += u64::from(fs::File::open(NO_FOLDER).is_err());
                }
            }
            failed
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(fail)).collect();
        running.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
    });
    let text = format!("{calls} {} {}", began.elapsed().as_nanos(), (cpu() - used).as_nanos());
    fs::write(result.with_extension("new"), text).unwrap();
    fs::rename(result.with_extension("new"), result).unwrap();
}

/// Scenario: none; what the other test's processes run.
/// Guarantees: nothing by itself.
#[test]
fn role() {
    let argument = std::env::var("TAPIO_TEST_ARGUMENT").unwrap_or_default();
    match std::env::var(ROLE).as_deref() {
        Ok("storm") => storm(Path::new(&argument), STORM),
        Ok("calm") => storm(Path::new(&argument), CALM),
        Ok("starve") => {
            assert!(fs::File::open(&argument).is_err());
            std::process::exit(3);
        }
        _ => {}
    }
}

/// A control group that is charged with what the agent uses.
struct Charged {
    path: PathBuf,
    usage: &'static str,
    cache: &'static str,
}

impl Charged {
    fn new() -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (mount, usage, cache) = if v1.join("cgroup.procs").exists() {
            (v1, "memory.usage_in_bytes", "total_cache ")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.current", "file ")
        };
        let path = mount.join(format!("tapio-test-storm-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self { path, usage, cache }
    }

    /// Bytes that are charged now, page cache not counted.
    fn bytes(&self) -> u64 {
        let used: u64 = fs::read_to_string(self.path.join(self.usage)).unwrap().trim().parse().unwrap();
        let stat = fs::read_to_string(self.path.join("memory.stat")).unwrap();
        let cache = stat.lines().find_map(|line| line.strip_prefix(self.cache)?.trim().parse().ok());
        used.saturating_sub(cache.unwrap_or(0))
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Scenario: a container fails a system call as fast as the machine can, for some seconds, without an agent and then with
/// one; in the middle of it a process of another container misses a file and exits with 3.
/// Guarantees: the agent is never charged more than its budget, gets on, and ends in order; of the storm every
/// failure is told in an event or counted as lost with a reason, to the last one; the other container's fault is there.
/// Where fewer calls fail per second than a storm has, it is not the agent that keeps them from it, and it is said.
#[test]
fn a_storm_costs_its_budget_and_hides_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    // Both outlive the agent, which is in the one and watches the others.
    let charged = Charged::new();
    let (loud, quiet) = (Container::new(41), Container::new(42));
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", charged.path.display());
    let result = folder.path().join("calm");
    let failing = Process::role("calm", result.to_str().unwrap(), &loud);
    let calm = Stormed::read(&result);
    drop(failing);
    let mut agent = Agent::start(folder.path(), &["sh", "-c", &script, "sh"]);

    let result = folder.path().join("storm");
    let used = agent.cpu();
    let ended = AtomicBool::new(false);
    let (peak, exit, stormed) = std::thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let mut peak = 0;
            while !ended.load(Ordering::Relaxed) {
                peak = charged.bytes().max(peak);
                std::thread::sleep(Duration::from_millis(50));
            }
            peak
        });
        let storming = Process::role("storm", result.to_str().unwrap(), &loud);
        std::thread::sleep(STORM / 2);
        let mut starved = Process::role("starve", MISSING, &quiet);
        let exit = starved.0.wait().unwrap();
        let stormed = Stormed::read(&result);
        drop(storming);
        ended.store(true, Ordering::Relaxed);
        (measured.join().unwrap(), exit, stormed)
    });
    let used = agent.cpu() - used;
    assert_eq!(exit.code(), Some(3));
    let (_, health) = agent.get("/healthz");
    let (_, metrics) = agent.get("/metrics");
    assert!(agent.end().success());
    let (events, ledger) = read_spool(folder.path());
    if not_proven(any_probe_failed(&events)) {
        return;
    }

    let (calls, rate) = (stormed.calls, stormed.rate());
    let (alone, watched) = (calm.nanos_per_call(Duration::ZERO), stormed.nanos_per_call(used));
    println!(
        "{calls} failing calls, {rate}/s of {}/s without the agent; {watched:.0} ns of processor time each, the agent's \
         counted in, of {alone:.0} without; the agent was charged {peak} bytes at most",
        calm.rate()
    );
    if rate < STORM_RATE {
        assert!(
            watched <= alone * COST_FACTOR_MAX,
            "{rate} failing calls per second, because each costs {watched:.0} ns with the agent and {alone:.0} without"
        );
        println!(
            "not proven: rate: a storm of {STORM_RATE} failing calls/s, here {rate}/s; without the agent {}/s",
            calm.rate()
        );
    }
    assert!(peak <= AGENT_BYTES_MAX, "the agent was charged {peak} bytes");
    // There is no aggregator, which it says.
    assert!(!health.contains("no progress"), "{health}");

    let of = |group: &Container, path: &str| -> Vec<&UnifiedEvent> {
        let is_of = |event: &&UnifiedEvent| {
            event.entity.as_ref().is_some_and(|entity| entity.container_id == group.id)
                && event.kernel.as_ref().is_some_and(|kernel| kernel.path == path)
        };
        events.iter().filter(is_of).collect()
    };
    let probe = ProbeId::FailedSyscall.name();
    let told: u64 = of(&loud, NO_FOLDER).iter().map(|event| u64::from(event.core.count)).sum();
    let lost: u64 = ledger
        .iter()
        .filter(|((_, fate, subject, _), _)| *fate == Fate::Lost && subject == probe)
        .map(|((_, _, _, reason), count)| {
            assert!(!reason.is_empty(), "a loss without a reason");
            count
        })
        .sum();
    assert!(
        told <= calls && told + lost >= calls,
        "{calls} failed, {told} are told, {lost} lost: {ledger:#?}"
    );
    let sum = |stage: Stage, fates: &[Fate]| -> u64 {
        let lines = ledger
            .iter()
            .filter(|((at, fate, subject, _), _)| *at == stage && fates.contains(fate) && subject == probe);
        lines.map(|(_, count)| count).sum()
    };
    let hits = sum(Stage::Kernel, &[Fate::Carried, Fate::Folded, Fate::Filtered, Fate::Lost]);
    assert!(hits >= calls, "the kernel counted {hits} hits of {calls} failures");
    let line = format!(
        "tapio_ledger_items_total{{stage=\"kernel\",fate=\"folded\",subject=\"{probe}\",reason=\"\"}}"
    );
    assert!(metrics.contains(&line), "{line}: {metrics}");

    let missed = of(&quiet, MISSING);
    assert!(missed.iter().any(|event| event.core.intent == intent::FILE_ACCESS_FAILED), "{missed:?}");
    let failed = events.iter().any(|event| {
        event.core.intent == intent::CONTAINER_FAILED
            && event.entity.as_ref().is_some_and(|entity| entity.container_id == quiet.id)
    });
    assert!(failed, "the other container's exit is missing");
}

//! What the agent costs a node: memory, CPU, kernel time, bytes on the wire, its binary; and what the demo and the gate
//! cost who waits for them.
//!
//! Runs the agent's real process in a memory cgroup of its own, so that BPF maps and rings are charged, beside an
//! aggregator that stores what it ships, under a load of real pods whose pace is steered by the agent's own count of
//! records. Never invents: what cannot be measured has a reason instead of a value. Called by `tapio-loadtest
//! footprint`. [`measure`] owns bars and aims, [`load`] and [`pod`] the load, [`wire`] the weight of frames, [`binary`]
//! the agent's file, [`waiting`] the times that the gate and the demo noted.

mod binary;
mod load;
pub mod measure;
pub mod pod;
mod scrape;
mod waiting;
mod wire;

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tapio_edge_agent::probes::Probes;

use crate::cgroup::{Charged, ContainerCgroup, Hierarchy};
use crate::demo::tiers::settings::Settings;
use crate::footprint::load::Load;
use crate::footprint::measure::{Measure, Report};
use crate::footprint::scrape::Scrape;
use crate::footprint::wire::Weight;
use crate::interrupt::Interrupt;
use crate::run_record::{RunRecord, sweep};
use crate::scenario::IdentityFile;
use crate::tier::{Tier, free_ports};

const NODE: &str = "footprint";
/// How long the engine, and the agent's session with the aggregator, may take.
const ROAD_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long the pace is steered before anything is measured, at most.
const STEADY_WAIT_MAX: Duration = Duration::from_secs(60);
/// The pace is steady after so many readings in a row that were near the target.
const STEADY_READINGS: u32 = 5;
/// How near, as a part of it.
const STEADY_WITHIN: f64 = 0.08;
/// A run that carried less than this part of the rate that was asked for says nothing about that rate.
const CARRIED_MIN: f64 = 0.9;
const PACE_INTERVAL: Duration = Duration::from_secs(1);
/// Turns between two lines of progress.
const SAY_EVERY: u32 = 10;
const MEMORY_INTERVAL: Duration = Duration::from_millis(250);
/// How long the kernel's own clock of programs runs: it costs time itself, so not while CPU is measured.
const KERNEL_SECONDS: u64 = 15;
/// Records of one round, about; the first guess of the pace.
const ROUND_RECORDS: u64 = 30;
/// The pace is never more than so many times the first guess: a machine that cannot carry it is not flooded.
const PACE_TIMES_MAX: u64 = 3;
/// Far more than the agent is to use: the measured node must not end it.
const AGENT_LIMIT_BYTES: u64 = 1 << 30;
const MEBIBYTE: f64 = 1_048_576.0;
/// `sysconf(_SC_CLK_TCK)` of Linux on every architecture (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long, without the steering before it.
    pub seconds: u64,
    /// Pods on the node.
    pub pods: usize,
    /// Records that shall cross the ring each second.
    pub records_per_second: u64,
    /// The agent's program.
    pub agent: PathBuf,
    /// Where the other programs are.
    pub programs: PathBuf,
    /// Under which the run's own folder is made.
    pub state_root: PathBuf,
    /// Where the gate and the demo noted their times.
    pub timings: PathBuf,
}

/// Measures.
///
/// # Errors
/// A part cannot be started, ended by itself, or cannot be cleaned up; or the user wants to stop.
pub fn run(options: &Options, interrupt: &Interrupt, say: impl Fn(&str)) -> anyhow::Result<Report> {
    let swept = sweep(&options.state_root)?;
    for fault in &swept.faults {
        say(&format!("could not clean up: {fault}"));
    }
    let record = RunRecord::create(&options.state_root)?;
    let folder = options.state_root.join(format!("footprint-{}", std::process::id()));
    record.note_folder(&folder)?;
    // Others may pass through to the store, whose engine gives root's rights up; keys are in here.
    fs::DirBuilder::new()
        .mode(0o711)
        .create(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let run = Run { options, folder: &folder, record: &record, interrupt, say: &say };
    let result = run.measure();
    for left in record.close()? {
        say(&format!("unclean: {left} is left; the next run cleans it up"));
    }
    match &result {
        Ok(_) => {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            // Other runs keep it.
            drop(fs::remove_dir(&options.state_root));
        }
        Err(_) => say(&format!("logs are kept in {}", folder.display())),
    }
    result
}

struct Run<'a> {
    options: &'a Options,
    folder: &'a Path,
    record: &'a RunRecord,
    interrupt: &'a Interrupt,
    say: &'a dyn Fn(&str),
}

/// The measured agent and its cgroup; the process ends before its cgroup goes.
struct Agent {
    tier: Tier,
    cgroup: ContainerCgroup,
    metrics: SocketAddr,
}

/// What was seen of the agent.
#[derive(Default)]
struct Seen {
    most: Charged,
    records_per_second: f64,
    cpu_percent: f64,
    threads: String,
    sent_bytes_per_second: f64,
    /// Per probe: nanoseconds and hits while the kernel's clock ran.
    kernel: Vec<(String, f64, f64)>,
}

impl Run<'_> {
    fn measure(&self) -> anyhow::Result<Report> {
        let identities = self.folder.join("identities.json");
        let pods = load::identities(self.options.pods, NODE);
        fs::write(&identities, serde_json::to_vec(&IdentityFile::of(pods))?)
            .with_context(|| format!("cannot write {}", identities.display()))?;
        let settings = Settings::write(self.folder, NODE, &identities, None)?;
        let aggregator_program = self.options.programs.join("tapio-aggregator");
        let mut aggregator =
            Tier::start("aggregator", &aggregator_program, &settings.aggregator, self.folder, self.record)?;
        let store = settings.store_account.clone();
        self.wait(&mut aggregator, || store.is_file())?;
        let mut agent = self.start_agent(&settings.agent)?;
        let metrics = agent.metrics;
        self.wait(&mut agent.tier, || {
            Scrape::read(metrics).is_ok_and(|scrape| scrape.sum("tapio_uplink_sessions_total") > 0.0)
        })?;
        (self.say)(&format!("starting {} pods", self.options.pods));
        let workload = self.options.programs.join("tapio-workload");
        let mut load = Load::start(self.options.pods, &workload, self.record)?;
        let seen = self.watch(&mut agent, &mut aggregator, &mut load)?;
        load.stop()?;
        let Agent { tier, cgroup, .. } = agent;
        tier.stop()?;
        cgroup.remove()?;
        aggregator.stop()?;
        (self.say)("weighing the frames");
        let weight = wire::weigh(&self.folder.join("aggregator").join("spool"));
        Ok(self.report(&seen, &weight))
    }

    fn wait(&self, tier: &mut Tier, mut ready: impl FnMut() -> bool) -> anyhow::Result<()> {
        tier.wait_until(ROAD_WAIT_MAX, || self.interrupt.is_raised() || ready())?;
        ensure!(!self.interrupt.is_raised(), "stopped while {} was starting", tier.name());
        Ok(())
    }

    fn start_agent(&self, config: &Path) -> anyhow::Result<Agent> {
        let hierarchy = Hierarchy::find()?;
        let pod_uid = format!("a6e0a6e0-0000-4000-8000-0000{:08x}", std::process::id());
        let container_id = format!("{:064x}", u64::from(std::process::id()) << 32);
        self.record.note_cgroup(&ContainerCgroup::path_of(&hierarchy, &pod_uid, &container_id))?;
        let cgroup = ContainerCgroup::create(&hierarchy, &pod_uid, &container_id, AGENT_LIMIT_BYTES)?;
        let [port] = free_ports(1)?.try_into().ok().context("one port was asked for")?;
        let metrics: SocketAddr = ([127, 0, 0, 1], port).into();
        let through: [OsString; 7] = [
            "env".into(),
            format!("TAPIO_EDGE_AGENT_TELEMETRY_LISTEN={metrics}").into(),
            self.options.programs.join("tapio-workload").into(),
            "enter".into(),
            "--procs".into(),
            cgroup.procs_file().into(),
            "--".into(),
        ];
        let program = &self.options.agent;
        let tier = Tier::start_within("edge-agent", program, config, &through, self.folder, self.record)?;
        Ok(Agent { tier, cgroup, metrics })
    }

    /// Steers the pace, and measures once it is steady.
    fn watch(&self, agent: &mut Agent, aggregator: &mut Tier, load: &mut Load) -> anyhow::Result<Seen> {
        let pid = agent.tier.pid();
        let mut seen = Seen::default();
        let mut pace = Pace::new(self.options.records_per_second);
        let mut turns = 0_u32;
        let mut turn = |seen: &mut Seen, pace: &mut Pace| -> anyhow::Result<Scrape> {
            let until = Instant::now() + PACE_INTERVAL;
            while let Some(left) = until.checked_duration_since(Instant::now()) {
                let now = agent.cgroup.memory()?;
                if now.without_page_cache() > seen.most.without_page_cache() {
                    seen.most = now;
                }
                std::thread::sleep(left.min(MEMORY_INTERVAL));
            }
            agent.tier.check()?;
            aggregator.check()?;
            load.check()?;
            if self.interrupt.is_raised() {
                bail!("stopped");
            }
            let scrape = Scrape::read(agent.metrics)?;
            load.pace(pace.steer(scrape.sum("tapio_agent_records_total")));
            turns += 1;
            if turns.is_multiple_of(SAY_EVERY) {
                let Pace { rounds_per_second, records_per_second, .. } = pace;
                (self.say)(&format!(
                    "  {records_per_second:.0} records/s of {rounds_per_second:.0} rounds/s"
                ));
            }
            Ok(scrape)
        };
        (self.say)("steering the pace");
        let steady = Instant::now() + STEADY_WAIT_MAX;
        while !pace.is_steady() && Instant::now() < steady {
            turn(&mut seen, &mut pace)?;
        }
        (self.say)(&format!("measuring for {} s", self.options.seconds));
        let first = turn(&mut seen, &mut pace)?;
        let (began, used) = (Instant::now(), Used::of(pid)?);
        let mut last = first.clone();
        while began.elapsed().as_secs() < self.options.seconds {
            last = turn(&mut seen, &mut pace)?;
        }
        let (took, spent) = (began.elapsed().as_secs_f64(), Used::of(pid)?);
        let per_second = |name: &str| (last.sum(name) - first.sum(name)) / took;
        seen.records_per_second = per_second("tapio_agent_records_total");
        seen.sent_bytes_per_second = per_second("tapio_uplink_sent_bytes_total");
        seen.cpu_percent = (spent.total - used.total) / TICKS_PER_SECOND / took * 100.0;
        seen.threads = spent.threads_since(&used, took);
        (self.say)(&format!("the kernel measures its programs for {KERNEL_SECONDS} s"));
        let measuring = Probes::measure_kernel_time()?;
        // The agent reads the kernel's counters twice a second.
        turn(&mut seen, &mut pace)?;
        let first = turn(&mut seen, &mut pace)?;
        let began = Instant::now();
        while began.elapsed().as_secs() < KERNEL_SECONDS {
            last = turn(&mut seen, &mut pace)?;
        }
        drop(measuring);
        seen.kernel = kernel_times(&first, &last);
        Ok(seen)
    }

    fn report(&self, seen: &Seen, weight: &anyhow::Result<Weight>) -> Report {
        let Options { seconds, pods, records_per_second, .. } = self.options;
        #[expect(clippy::cast_precision_loss, reason = "a rate of records is small")]
        let asked = *records_per_second as f64;
        let rate = format!("at {:.0} records/s from {pods} pods", seen.records_per_second);
        let carried = |value: f64| {
            if seen.records_per_second >= asked * CARRIED_MIN {
                Ok(value)
            } else {
                Err(format!(
                    "this machine carried {:.0} records/s, not {asked:.0}; {value:.2} was seen at that rate",
                    seen.records_per_second
                ))
            }
        };
        let mebibytes = |bytes: u64| {
            #[expect(clippy::cast_precision_loss, reason = "an agent has not that much memory")]
            let bytes = bytes as f64;
            bytes / MEBIBYTE
        };
        let memory_note = format!(
            "{rate}; {:.1} MiB are the process's own, the rest is the kernel's for it: BPF maps, the ring, files; {:.1} \
             MiB of page cache beside it are not counted",
            mebibytes(seen.most.anonymous_bytes),
            mebibytes(seen.most.page_cache_bytes)
        );
        let mut measures = vec![
            Measure::new("agent_memory", carried(mebibytes(seen.most.without_page_cache())), memory_note),
            Measure::new(
                "agent_cpu",
                carried(seen.cpu_percent),
                format!("{rate}; by thread: {}", seen.threads),
            ),
            seen.kernel_measure(),
            binary::measure(&self.options.agent),
        ];
        measures.extend(wire_measures(weight, seen));
        measures.extend(waiting::measures(&self.options.timings));
        Report { method: method(*seconds, *pods, weight), measures }
    }
}

impl Seen {
    fn kernel_measure(&self) -> Measure {
        let (nanos, hits) =
            self.kernel.iter().fold((0.0, 0.0), |(nanos, hits), (_, of, runs)| (nanos + of, hits + runs));
        let mean = if hits > 0.0 { Ok(nanos / hits) } else { Err("the kernel counted no hits".to_owned()) };
        let each: Vec<String> = self
            .kernel
            .iter()
            .filter(|(_, _, runs)| *runs > 0.0)
            .map(|(probe, nanos, runs)| format!("{probe} {:.0} ns × {runs:.0}", nanos / runs))
            .collect();
        Measure::new("kernel_time_per_hit", mean, format!("in {KERNEL_SECONDS} s: {}", each.join(", ")))
    }
}

/// How fast the pods work, steered by what reaches the agent.
struct Pace {
    target: f64,
    rounds_per_second: f64,
    /// What the last turn saw.
    records_per_second: f64,
    most: f64,
    last: Option<(Instant, f64)>,
    near: u32,
}

impl Pace {
    fn new(records_per_second: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate of records is small")]
        let (target, first) = (records_per_second as f64, (records_per_second / ROUND_RECORDS) as f64);
        #[expect(clippy::cast_precision_loss, reason = "a small constant")]
        let most = first * PACE_TIMES_MAX as f64;
        Self { target, rounds_per_second: first, records_per_second: 0.0, most, last: None, near: 0 }
    }

    /// The rounds per second from now on, after the agent has counted `records`.
    fn steer(&mut self, records: f64) -> u64 {
        let now = Instant::now();
        if let Some((then, before)) = self.last.replace((now, records)) {
            let rate = ((records - before) / (now - then).as_secs_f64()).max(1.0);
            self.records_per_second = rate;
            let off = rate / self.target - 1.0;
            self.near = if off.abs() <= STEADY_WITHIN { self.near + 1 } else { 0 };
            // Half of what is missing, so that a stall of a second is not answered with a burst.
            let factor = (1.0 + (self.target / rate - 1.0) / 2.0).clamp(0.7, 1.4);
            self.rounds_per_second = (self.rounds_per_second * factor).clamp(1.0, self.most);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is clamped above zero"
        )]
        let rounds = self.rounds_per_second.round() as u64;
        rounds
    }

    const fn is_steady(&self) -> bool {
        self.near >= STEADY_READINGS
    }
}

/// CPU time in clock ticks, of the whole process and by the name of its threads.
struct Used {
    total: f64,
    threads: Vec<(String, f64)>,
}

impl Used {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let (_, total) = ticks(Path::new(&format!("/proc/{pid}/stat")))?;
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("cannot list the agent's threads")?;
        let mut threads: Vec<(String, f64)> = Vec::new();
        // A thread may end meanwhile.
        for (name, used) in tasks.flatten().filter_map(|task| ticks(&task.path().join("stat")).ok()) {
            match threads.iter_mut().find(|(other, _)| *other == name) {
                Some((_, sum)) => *sum += used,
                None => threads.push((name, used)),
            }
        }
        threads.sort_by(|left, right| left.0.cmp(&right.0));
        Ok(Self { total, threads })
    }

    fn threads_since(&self, before: &Self, seconds: f64) -> String {
        let of = |(name, used): &(String, f64)| {
            let base = before.threads.iter().find(|(other, _)| other == name).map_or(0.0, |(_, used)| *used);
            format!("{name} {:.1} %", (used - base) / TICKS_PER_SECOND / seconds * 100.0)
        };
        self.threads.iter().map(of).collect::<Vec<_>>().join(", ")
    }
}

/// Name and CPU time of a process or thread, from its `stat` (proc(5)).
fn ticks(stat: &Path) -> anyhow::Result<(String, f64)> {
    let text = fs::read_to_string(stat).with_context(|| format!("cannot read {}", stat.display()))?;
    // The name may hold blanks and parentheses; the fields after the last one are plain.
    let (front, fields) = text.rsplit_once(") ").context("a stat file has a name")?;
    let name = front.split_once(" (").map_or("", |(_, name)| name);
    let mut fields = fields.split(' ').skip(11).map(str::parse::<f64>);
    match (fields.next(), fields.next()) {
        (Some(Ok(user)), Some(Ok(system))) => Ok((name.to_owned(), user + system)),
        _ => bail!("{} has no times", stat.display()),
    }
}

fn kernel_times(first: &Scrape, last: &Scrape) -> Vec<(String, f64, f64)> {
    let of = |name| {
        let before = first.by_label(name);
        last.by_label(name)
            .into_iter()
            .map(move |(probe, now)| (probe.clone(), now - before.get(&probe).unwrap_or(&0.0)))
    };
    let runs: Vec<(String, f64)> = of("tapio_probe_kernel_runs_total").collect();
    let seconds: Vec<(String, f64)> = of("tapio_probe_kernel_seconds_total").collect();
    let nanos = |probe: &str| {
        seconds.iter().find(|(other, _)| other == probe).map_or(0.0, |(_, seconds)| seconds * 1e9)
    };
    runs.into_iter().map(|(probe, runs)| (probe.clone(), nanos(&probe), runs)).collect()
}

fn wire_measures(weight: &anyhow::Result<Weight>, seen: &Seen) -> Vec<Measure> {
    let names =
        ["bytes_per_record", "bytes_per_event", "bytes_per_record_as_shipped", "bytes_per_event_as_shipped"];
    let weight = match weight {
        Ok(weight) => weight,
        Err(error) => return names.map(|name| Measure::new(name, Err(format!("{error:#}")), "")).to_vec(),
    };
    #[expect(clippy::cast_precision_loss, reason = "counts of one run")]
    let float = |count: u64| count as f64;
    let ratio =
        |bytes: f64, of: f64| if of > 0.0 { Ok(bytes / of) } else { Err("nothing was shipped".to_owned()) };
    let packed = ratio(float(weight.packed_bytes), float(weight.packed_events));
    let events_per_record = float(weight.events) / float(weight.records.max(1));
    let traced = 100.0 * float(weight.traced) / float(weight.events.max(1));
    let sample = format!(
        "frames without the session around them; {} events of {} records, {traced:.1} % of them traced",
        weight.events, weight.records
    );
    let shipped = format!(
        "{} frames of {:.0} events on average; with QUIC and TLS the agent sent {:.1} kB/s",
        weight.frames,
        float(weight.events) / float(weight.frames.max(1)),
        seen.sent_bytes_per_second / 1_000.0
    );
    vec![
        Measure::new(names[0], packed.clone().map(|bytes| bytes * events_per_record), sample.clone()),
        Measure::new(names[1], packed, sample),
        Measure::new(names[2], ratio(float(weight.bytes), float(weight.records)), shipped.clone()),
        Measure::new(names[3], ratio(float(weight.bytes), float(weight.events)), shipped),
    ]
}

fn method(seconds: u64, pods: usize, weight: &anyhow::Result<Weight>) -> Vec<String> {
    use crate::footprint::pod::{ABSENT_FILES, FAILED_EVERY, PROGRAM_EVERY, REQUESTS, TRACED_EVERY};
    vec![
        format!(
            "The agent's own process, with all default probes and the rules that the aggregator pushed, in a memory \
             cgroup of its own; {pods} pods, each a process in a memory cgroup of its own, named in the identity file."
        ),
        format!(
            "A round of a pod: a connection to another pod with {REQUESTS} requests (one in {TRACED_EVERY} traced, one \
             in {FAILED_EVERY} answered with 500), {ABSENT_FILES} opens of absent files, each {PROGRAM_EVERY}th round a \
             program. The pace is steered by the agent's own count of records, so that other work on the machine is part \
             of the rate."
        ),
        format!(
            "Measured for {seconds} s after the pace was steady. Memory: the most that was charged without page cache, \
             read four times a second from the agent's start on. CPU: user and system time of the process."
        ),
        "Kernel time: the kernel's own clock of BPF programs (BPF_ENABLE_STATS), in a time of its own behind the rest, \
         the mean over all hits; every system call of the machine is a hit of two probes."
            .to_owned(),
        "Bytes: the frames that the aggregator received, and the same events packed in batches of 1,000.".to_owned(),
        lost_words(weight),
    ]
}

/// What the frames' ledgers say was lost: a figure that was reached by dropping is none.
fn lost_words(weight: &anyhow::Result<Weight>) -> String {
    let lost = weight.as_ref().map(|weight| &weight.lost);
    match lost {
        Err(_) => "What was lost is not known: the frames cannot be read.".to_owned(),
        Ok(lost) if lost.is_empty() => "Nothing was lost on the node.".to_owned(),
        Ok(lost) => {
            let lines: Vec<String> = lost
                .iter()
                .map(|((stage, of, reason), count)| format!("{count} {of} {reason} ({stage})"))
                .collect();
            format!("Lost on the node, by the frames' own ledgers: {}.", lines.join(", "))
        }
    }
}

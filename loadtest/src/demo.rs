//! The demo: starts the system, lets a real workload fail, and shows what the running system says about it.
//!
//! Owns the order of things, the time that is given to each, and the cleaning up. The system is a [`System`]: started
//! by the caller's function, told the identity file and nothing else, asked over its public API. Must never look at
//! the truth before the system has spoken. Called by `tapio-loadtest demo`. [`folder`] owns the state directory,
//! [`report`] what is printed, [`tiers`] the real system.

pub mod folder;
pub mod report;
pub mod tiers;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::compare::{Judgement, expected, is_about, judge};
use crate::demo::folder::Folder;
use crate::demo::report::{Printer, Report};
use crate::interrupt::Interrupt;
use crate::run_record::{RunRecord, sweep};
use crate::scenario::{Kind, Pace, Runtime, Scenario, Truth};
use crate::truth_log::unix_nanos;
use crate::workload::{FirstFailure, Surroundings, Workload};

/// The system must have found the cause this long after the first symptom.
const FINDING_WAIT_MAX: Duration = Duration::from_secs(30);
/// The first symptom must come this long after the drawn time of the fault: the load and the machine are not exact.
const SYMPTOM_WAIT_EXTRA: Duration = Duration::from_secs(45);
/// A healthy run is watched this much longer than its twin would take to fail; and this long after a restart of it.
const HEALTHY_WAIT_EXTRA: Duration = Duration::from_secs(10);
/// After a finding, how long its revisions are awaited: what callers saw goes on arriving.
const SETTLE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(200);
/// A machine under load may leave a question to the API unanswered; so many in a row are a fault.
const UNANSWERED_MAX: u32 = 20;

/// What the demo is asked to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether something goes wrong.
    pub kind: Kind,
    /// Everything is drawn from it.
    pub seed: u64,
    /// Overrides the drawn runtime.
    pub runtime: Option<Runtime>,
    /// Leave everything running until Ctrl-C.
    pub keep: bool,
    /// One JSON object on standard output, everything else on standard error.
    pub json: bool,
    /// Under which the run's own folder is made.
    pub state_root: PathBuf,
    /// Where `tapio-workload` and the tiers are.
    pub programs: PathBuf,
}

/// What a system is started with.
#[derive(Debug, Clone, Copy)]
pub struct Stage<'a> {
    /// An existing folder of this run alone: configuration, state and logs of the tiers.
    pub folder: &'a Path,
    /// Where `tapio-edge-agent`, `tapio-aggregator` and `tapio-central` are.
    pub programs: &'a Path,
    /// Name of the node.
    pub node: &'a str,
    /// The identity file: the one thing that the system may be told.
    pub identities: &'a Path,
    /// Every process must be noted here.
    pub record: &'a RunRecord,
    /// Whether the user wants to stop.
    pub interrupt: &'a Interrupt,
}

/// What the demo needs of the running system. Dropping it ends everything that it started.
pub trait System {
    /// What a user may open, and how: label and address.
    fn addresses(&self) -> Vec<(String, String)>;

    /// All findings of the run, as REST gives them.
    ///
    /// # Errors
    /// The API does not answer.
    fn findings(&self) -> anyhow::Result<Vec<Value>>;

    /// The loss ledger of the run, as REST gives it.
    ///
    /// # Errors
    /// The API does not answer.
    fn ledger(&self) -> anyhow::Result<Value>;

    /// A finding as `tapio explain` shows it.
    ///
    /// # Errors
    /// The finding has not the shape that this version reads.
    fn explain(&self, finding: &Value) -> anyhow::Result<String>;

    /// Fails where a tier has ended by itself.
    ///
    /// # Errors
    /// Which tier, and the end of its log.
    fn check(&mut self) -> anyhow::Result<()>;

    /// Ends all tiers in order; returns those that did not end as they should.
    fn stop(self) -> Vec<anyhow::Error>;

    /// Replays what a system that has ended recorded on this stage, and holds it against what was live: what the system
    /// itself noted, and these findings, as REST gave them. Returns how many revisions there were.
    ///
    /// # Errors
    /// The replay gives anything else.
    fn replay(stage: Stage<'_>, findings: &[Value]) -> anyhow::Result<usize>;

    /// What a system that has ended weighed and did not announce, and why not, for a person.
    ///
    /// # Errors
    /// Its recording cannot be replayed.
    fn hypotheses(stage: Stage<'_>) -> anyhow::Result<String>;
}

/// How a demo ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// It was judged.
    Judged(Box<Report>),
    /// The user stopped it before.
    Interrupted,
}

/// Runs the demo from an empty state to an empty state.
///
/// # Errors
/// A part cannot be started, ended by itself, or cannot be cleaned up. The state directory is then kept for its logs.
pub fn run<S: System>(
    options: &Options,
    interrupt: &Interrupt,
    printer: &Printer,
    start: impl FnOnce(Stage<'_>) -> anyhow::Result<S>,
) -> anyhow::Result<Ending> {
    let swept = sweep(&options.state_root)?;
    if swept.runs > 0 {
        printer.line(&format!("cleaned up after {} earlier run(s) that had been killed", swept.runs));
    }
    for fault in &swept.faults {
        printer.line(&format!("  could not clean up: {fault}"));
    }
    let scenario = draw(options);
    let record = RunRecord::create(&options.state_root)?;
    let folder = match Folder::create(&options.state_root, options.seed) {
        Ok(folder) => folder,
        Err(error) => {
            record.close()?;
            return Err(error);
        }
    };
    if folder.was_left() {
        printer.line("removed the logs that an earlier run with this seed had kept");
    }
    record.note_folder(folder.path())?;
    let ending = stage(options, &scenario, &folder, &record, interrupt, printer, start);
    for left in record.close()? {
        printer.unclean(&format!("{left} is left; the next demo cleans it up"));
    }
    match &ending {
        Ok(Ending::Judged(report)) if !report.right => {
            printer.line(&format!("logs are kept in {}", folder.path().display()));
        }
        Ok(_) => folder.remove()?,
        Err(_) => printer.line(&format!("logs are kept in {}", folder.path().display())),
    }
    ending
}

fn draw(options: &Options) -> Scenario {
    let drawn = Scenario::draw(options.kind, options.seed, Pace::Demo);
    Scenario { runtime: options.runtime.unwrap_or(drawn.runtime), ..drawn }
}

/// Starts system and workload, waits for the answer, stops both.
fn stage<S: System>(
    options: &Options,
    scenario: &Scenario,
    folder: &Folder,
    record: &RunRecord,
    interrupt: &Interrupt,
    printer: &Printer,
    start: impl FnOnce(Stage<'_>) -> anyhow::Result<S>,
) -> anyhow::Result<Ending> {
    let identities = folder.path().join("identities.json");
    std::fs::write(&identities, serde_json::to_vec_pretty(&scenario.identity())?)
        .with_context(|| format!("cannot write {}", identities.display()))?;
    printer.opening(scenario);
    let programs = options.programs.as_path();
    let stage = Stage {
        folder: folder.path(),
        programs,
        node: &scenario.node,
        identities: &identities,
        record,
        interrupt,
    };
    let mut system = match start(stage) {
        Err(_) if interrupt.is_raised() => return Ok(Ending::Interrupted),
        started => started?,
    };
    printer.addresses(&system.addresses());
    let workload_folder = folder.path().join("workload");
    std::fs::create_dir_all(&workload_folder).context("cannot create the workload's folder")?;
    let surroundings =
        Surroundings { program: &programs.join("tapio-workload"), folder: &workload_folder, record };
    let mut workload = Workload::start(scenario, surroundings)?;
    printer.started(scenario);
    let running = Running { workload: &mut workload, surroundings, system: &mut system };
    let mut findings = None;
    let ending = match watch(scenario, running, interrupt, printer)? {
        None => Ending::Interrupted,
        Some(answer) => {
            findings = Some(answer.findings.clone());
            let report = conclude(scenario, &workload.truth(), &system, answer)?;
            printer.verdict(&report, &system);
            if options.keep {
                keep(&mut workload, surroundings, &mut system, interrupt, printer)?;
            }
            Ending::Judged(Box::new(report))
        }
    };
    printer.line("stopping, and removing everything");
    // What goes wrong from here on changes nothing about what the system said.
    if let Err(error) = workload.stop() {
        printer.unclean(&format!("{error:#}"));
    }
    for fault in system.stop() {
        printer.unclean(&format!("{fault:#}"));
    }
    if let Ending::Judged(report) = &ending
        && !report.right
    {
        match S::hypotheses(stage) {
            Ok(text) => printer.line(text.trim_end()),
            Err(error) => printer.line(&format!("what was weighed cannot be told: {error:#}")),
        }
    }
    if let Some(findings) = findings {
        let revisions = S::replay(stage, &findings).context("what was recorded gives something else")?;
        printer.line(&format!("replayed from its recording: the same {revisions} revisions, byte for byte"));
    }
    Ok(ending)
}

/// What was seen while watching.
struct Answer {
    findings: Vec<Value>,
    symptom: Option<FirstFailure>,
    found_at_unix_nanos: Option<u64>,
}

/// What is looked after while watching.
struct Running<'a, S> {
    workload: &'a mut Workload,
    surroundings: Surroundings<'a>,
    system: &'a mut S,
}

/// Waits for a finding, or for the time in which there must be none; `None` where the user stopped it.
fn watch<S: System>(
    scenario: &Scenario,
    running: Running<'_, S>,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<Option<Answer>> {
    let Running { workload, surroundings, system } = running;
    let start = Instant::now();
    let mut symptom: Option<FirstFailure> = None;
    let mut deadline = start
        + scenario.fault_after()
        + if scenario.kind.is_twin() { HEALTHY_WAIT_EXTRA } else { SYMPTOM_WAIT_EXTRA };
    let members = scenario.members();
    let mut found_at_unix_nanos = None;
    let mut unanswered = 0;
    loop {
        if interrupt.wait(POLL) {
            return Ok(None);
        }
        system.check()?;
        workload.supervise(surroundings)?;
        if symptom.is_none() {
            symptom = workload.first_failure();
            if let Some(failure) = &symptom {
                printer.symptom(failure);
                deadline = Instant::now()
                    + if scenario.kind.is_twin() { HEALTHY_WAIT_EXTRA } else { FINDING_WAIT_MAX };
            }
        }
        let findings = match system.findings() {
            Err(error) if unanswered >= UNANSWERED_MAX || Instant::now() >= deadline => return Err(error),
            Err(_) => {
                unanswered += 1;
                continue;
            }
            Ok(findings) => findings,
        };
        unanswered = 0;
        if found_at_unix_nanos.is_none() && findings.iter().any(|finding| is_about(&members, finding)) {
            found_at_unix_nanos = Some(unix_nanos());
            deadline = Instant::now() + SETTLE;
        }
        if Instant::now() >= deadline {
            return Ok(Some(Answer { findings, symptom, found_at_unix_nanos }));
        }
    }
}

/// Only here, when the system has spoken, is the truth looked at.
fn conclude<S: System>(
    scenario: &Scenario,
    truth: &Truth,
    system: &S,
    answer: Answer,
) -> anyhow::Result<Report> {
    let Judgement { outcome, right, wrong_because, finding, others } =
        judge(truth, &scenario.members(), &answer.findings);
    let seconds_from_symptom = answer.found_at_unix_nanos.zip(answer.symptom).map(|(found, symptom)| {
        // Milliseconds are what the polling can tell.
        let millis = found.saturating_sub(symptom.unix_nanos) / 1_000_000;
        f64::from(u32::try_from(millis).unwrap_or(u32::MAX)) / 1_000.0
    });
    Ok(Report {
        scenario: scenario.kind.name(),
        seed: scenario.seed,
        expected: expected(scenario.kind),
        outcome,
        right,
        finding,
        seconds_from_symptom,
        ledger: system.ledger()?,
        wrong_because,
        others,
    })
}

/// Leaves everything running until the user has seen enough.
fn keep<S: System>(
    workload: &mut Workload,
    surroundings: Surroundings<'_>,
    system: &mut S,
    interrupt: &Interrupt,
    printer: &Printer,
) -> anyhow::Result<()> {
    printer.line("everything is left running; press Ctrl-C to stop it and clean up");
    while !interrupt.wait(POLL) {
        system.check()?;
        workload.supervise(surroundings)?;
    }
    Ok(())
}

/// The folder of the own program, where the others are built beside it.
///
/// # Errors
/// The own program cannot be found, or the workload is not beside it.
pub fn programs_beside_own() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the own program")?;
    let folder = own.parent().context("a program is in a folder")?.to_owned();
    if !folder.join("tapio-workload").is_file() {
        bail!(
            "tapio-workload is not beside {}: build it with `cargo build --release`, or run scripts/demo",
            own.display()
        );
    }
    Ok(folder)
}

//! The command line of `tapio-loadtest`.
//!
//! Owns the arguments and the exit status. Called by `main` alone.

use std::io::{Write, stderr, stdout};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::demo::report::Printer;
use crate::demo::tiers::Tiers;
use crate::demo::tiers::settings::ClickHouseServer;
use crate::demo::{Ending, Options, programs_beside_own, run as run_demo};
use crate::footprint::{self, measure::Report};
use crate::interrupt::Interrupt;
use crate::random::Draw;
use crate::run_record::RunRecord;
use crate::scenario::{Kind, Runtime};
use crate::simulation::{PLANS, run_many};
use crate::truth_log::unix_nanos;

/// As shells show a program that Ctrl-C ended: 128 and the signal's number.
const INTERRUPTED: u8 = 130;
/// Drawn seeds are short enough to be typed again.
const DRAWN_SEED_MAX: u64 = 999_999;

/// `tapio-loadtest`.
#[derive(Debug, Parser)]
#[command(name = "tapio-loadtest", about = "Real failures for Tapio to explain")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the whole system, let a real workload fail, show the verdict, stop everything
    Demo(DemoArguments),
    /// Measure what the agent costs a node, and what the demo and the gate cost who waits
    Footprint(FootprintArguments),
    /// Run the road from node to store on simulated disks, links, clocks and store that fail
    Simulate(SimulateArguments),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArgument {
    /// A service leaks until the kernel kills it
    Leak,
    /// The same, and nothing leaks
    Healthy,
    /// A service is restarted, and its configuration file is gone
    MissingConfig,
    /// The same restart, and the file is in its place
    Restart,
    /// As missing-config, and the file is there and says nonsense: nothing that the system could know
    WrongConfig,
    /// A service is restarted, and another process has taken its port
    PortInUse,
    /// The same restart, and the other process takes another port, or leaves in time
    PortFree,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RuntimeArgument {
    Threads,
    Async,
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// What happens to one of the services
    #[arg(value_enum, default_value = "leak")]
    scenario: KindArgument,
    /// Draw names, order, limits, timing and the culprit from this number [default: a new one, which is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// What the services are built on [default: drawn]
    #[arg(long, value_enum)]
    runtime: Option<RuntimeArgument>,
    /// Leave everything running until Ctrl-C
    #[arg(long)]
    keep: bool,
    /// Print one JSON object on standard output, and everything else on standard error
    #[arg(long)]
    json: bool,
    /// Where the run's own folder is made [default: /var/lib/tapio]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Use this ClickHouse server (HTTP address) instead of the embedded engine
    #[arg(long, value_name = "URL")]
    clickhouse_url: Option<String>,
    /// The account to use on that server [default: default]
    #[arg(long, value_name = "USER", requires = "clickhouse_url")]
    clickhouse_user: Option<String>,
    /// The file with that account's password [default: no password]
    #[arg(long, value_name = "FILE", requires = "clickhouse_url")]
    clickhouse_password_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct FootprintArguments {
    /// How long memory and CPU are measured once the load is steady
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    seconds: u64,
    /// Pods on the node
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(2..=2_000))]
    pods: u16,
    /// Records that cross the ring each second
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(100..=1_000_000))]
    records_per_second: u64,
    /// The agent that is measured [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where scripts/test and scripts/verify noted their times [default: timings/ in the build's folder]
    #[arg(long, value_name = "DIR")]
    timings: Option<PathBuf>,
    /// Where the run's own folder is made [default: /var/lib/tapio]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Measure nothing: print the table of a report that was printed with --json
    #[arg(long, value_name = "FILE", conflicts_with_all = ["json", "agent", "timings"])]
    table: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct SimulateArguments {
    /// What fails [default: each in turn]
    #[arg(long, value_parser = plan_names())]
    plan: Option<String>,
    /// The first seed of each plan [default: drawn, and printed]
    #[arg(long)]
    seed: Option<u64>,
    /// How many seeds of each plan are run
    #[arg(long, default_value_t = 1_000)]
    count: u64,
    /// Run each plan for so many minutes instead
    #[arg(long, conflicts_with = "count")]
    minutes: Option<u64>,
}

fn plan_names() -> PossibleValuesParser {
    PossibleValuesParser::new(PLANS.map(|plan| plan.name))
}

impl DemoArguments {
    fn server(&self) -> anyhow::Result<Option<ClickHouseServer>> {
        let Some(url) = self.clickhouse_url.clone() else { return Ok(None) };
        let password_file = self.clickhouse_password_file.as_ref().map(std::path::absolute).transpose()?;
        Ok(Some(ClickHouseServer { url, user: self.clickhouse_user.clone(), password_file }))
    }
}

/// Does what the command line asks for. The demo exits with 0 exactly when the system said what really happened.
///
/// # Errors
/// The demo could not be run to its end.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Demo(demo) => run_demo_command(demo),
        Command::Footprint(arguments) => run_footprint(arguments),
        Command::Simulate(arguments) => simulate(&arguments),
    }
}

fn simulate(arguments: &SimulateArguments) -> anyhow::Result<ExitCode> {
    let first = arguments.seed.unwrap_or_else(new_seed);
    let interrupt = Interrupt::install()?;
    for plan in PLANS.iter().filter(|plan| arguments.plan.as_ref().is_none_or(|name| name == plan.name)) {
        let (began, mut run) = (Instant::now(), 0);
        let sums = run_many(plan, first, |number| {
            run = number;
            let goes_on = match arguments.minutes {
                Some(minutes) => began.elapsed() < Duration::from_secs(60 * minutes),
                None => number < arguments.count,
            };
            goes_on && !interrupt.is_raised()
        })?;
        writeln!(stdout(), "{}: {run} seeds from {first}: {sums:?}", plan.name)?;
    }
    Ok(if interrupt.is_raised() { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn run_footprint(arguments: FootprintArguments) -> anyhow::Result<ExitCode> {
    let report = match &arguments.table {
        Some(file) => {
            let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{} is no report", file.display()))?
        }
        None => measure_footprint(&arguments)?,
    };
    let text = if arguments.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.table() };
    stdout().write_all(text.as_bytes()).context("the report cannot be written")?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the other programs of this tree where `cargo run` started this one, which built only this one: what is measured
/// is then what stands in the sources.
fn build_programs() -> anyhow::Result<()> {
    let Some(cargo) = std::env::var_os("CARGO") else { return Ok(()) };
    let build = ["build", "--release", "--locked", "--workspace", "--bins"];
    let built = process::Command::new(cargo).args(build).stdout(stderr()).status();
    let built = built.context("cannot run cargo to build the programs that are measured")?;
    anyhow::ensure!(built.success(), "the programs that are measured cannot be built");
    Ok(())
}

fn measure_footprint(arguments: &FootprintArguments) -> anyhow::Result<Report> {
    build_programs()?;
    let programs = programs_beside_own()?;
    let beside = || programs.parent().map(|build| build.join("timings")).unwrap_or_default();
    let options = footprint::Options {
        seconds: arguments.seconds,
        pods: arguments.pods.into(),
        records_per_second: arguments.records_per_second,
        agent: arguments.agent.clone().unwrap_or_else(|| programs.join("tapio-edge-agent")),
        timings: arguments.timings.clone().unwrap_or_else(beside),
        state_root: arguments
            .state_dir
            .as_ref()
            .map_or_else(|| Ok(RunRecord::default_root()), std::path::absolute)?,
        programs,
    };
    // Standard output is the report's alone.
    footprint::run(&options, &Interrupt::install()?, |line| drop(writeln!(stderr(), "{line}")))
}

fn run_demo_command(demo: DemoArguments) -> anyhow::Result<ExitCode> {
    let server = demo.server()?;
    let options = options(demo)?;
    let interrupt = Interrupt::install()?;
    let printer = Printer::new(options.json);
    match run_demo(&options, &interrupt, &printer, |stage| Tiers::start(stage, server.as_ref()))? {
        Ending::Judged(report) if report.right => Ok(ExitCode::SUCCESS),
        Ending::Judged(_) => Ok(ExitCode::FAILURE),
        Ending::Interrupted => Ok(ExitCode::from(INTERRUPTED)),
    }
}

fn options(demo: DemoArguments) -> anyhow::Result<Options> {
    let kind = match demo.scenario {
        KindArgument::Leak => Kind::Leak,
        KindArgument::Healthy => Kind::Healthy,
        KindArgument::MissingConfig => Kind::MissingConfig,
        KindArgument::Restart => Kind::Restart,
        KindArgument::WrongConfig => Kind::WrongConfig,
        KindArgument::PortInUse => Kind::PortInUse,
        KindArgument::PortFree => Kind::PortFree,
    };
    let runtime = demo.runtime.map(|runtime| match runtime {
        RuntimeArgument::Threads => Runtime::Threads,
        RuntimeArgument::Async => Runtime::Async,
    });
    Ok(Options {
        kind,
        seed: demo.seed.unwrap_or_else(new_seed),
        runtime,
        keep: demo.keep,
        json: demo.json,
        state_root: demo.state_dir.map_or_else(|| Ok(RunRecord::default_root()), std::path::absolute)?,
        programs: programs_beside_own()?,
    })
}

/// A seed needs to differ between runs, not to be secret: clock and process id are enough.
fn new_seed() -> u64 {
    Draw::labelled(unix_nanos() ^ u64::from(process::id()) << 32, "seed").between(1, DRAWN_SEED_MAX)
}

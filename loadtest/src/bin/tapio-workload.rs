//! The demo's workload as a process: `serve` is one service, `drive` is the load, `occupy` has a port that is another's,
//! `check` is a probe of a service, `beat` is a pod of the measured node, `enter` joins a cgroup and becomes another program.
//!
//! Each process ends when its standard input closes, so that none outlives the process that started it.

use std::fs::OpenOptions;
use std::io::{Read, Write, stdin, stdout};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use tapio_loadtest::drive::{Load, Notice, RATE_MAX, SECONDS_MAX, run, say};
use tapio_loadtest::footprint::pod;
use tapio_loadtest::service::configuration::Settings;
use tapio_loadtest::service::foreign::{self, Manner};
use tapio_loadtest::service::leak::Leak;
use tapio_loadtest::service::{Service, tasks, threads};
use tapio_loadtest::truth_log::TruthLog;

#[derive(Parser)]
#[command(name = "tapio-workload", about = "Small HTTP services and the load on them, for Tapio's demo")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one service until standard input closes
    Serve(Serve),
    /// Send load until standard input closes or a bound is reached
    Drive(Drive),
    /// Take a port, as a process that belongs to no service, until standard input closes
    Occupy(Occupy),
    /// Succeed where a file can be read, as a probe of a service
    Check {
        /// The file
        file: PathBuf,
    },
    /// Be one of many pods: do a round of work for each byte on standard input, until it closes
    Beat,
    /// Join cgroups, then become another program under the same process id
    Enter(Enter),
}

#[derive(Clone, Copy, ValueEnum)]
enum Runtime {
    Threads,
    Async,
}

#[derive(Args)]
struct Serve {
    /// Name of the service
    #[arg(long)]
    name: String,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The file that says whom it calls; without it the service ends
    #[arg(long)]
    config: PathBuf,
    /// A file that may override it and may be absent; may be repeated
    #[arg(long)]
    optional_config: Vec<PathBuf>,
    /// One blocking thread per connection, or an async runtime
    #[arg(long, value_enum, default_value = "threads")]
    runtime: Runtime,
    /// File for one JSON line per request
    #[arg(long)]
    log: PathBuf,
    /// Keep this many bytes more each second
    #[arg(long)]
    leak_bytes_per_second: Option<u64>,
    /// Milliseconds from the first request to the start of the leak
    #[arg(long, default_value_t = 0)]
    leak_after_millis: u64,
}

#[derive(Args)]
struct Drive {
    /// Name of the load's sender
    #[arg(long)]
    name: String,
    /// The first service
    #[arg(long)]
    target: SocketAddr,
    /// Requests per second
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=RATE_MAX))]
    rate: u64,
    /// Longest run
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Most requests
    #[arg(long, default_value_t = 1_000_000)]
    requests_max: u64,
    /// Of the drawn requests
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File for one JSON line per request
    #[arg(long)]
    log: PathBuf,
}

#[derive(Args)]
struct Occupy {
    /// Address to listen on; port 0 takes a free one
    #[arg(long)]
    listen: SocketAddr,
    /// Milliseconds before it listens
    #[arg(long, default_value_t = 0)]
    after_millis: u64,
    /// What callers meet
    #[arg(long, value_enum)]
    manner: MannerArgument,
    /// What it says first, where it greets
    #[arg(long, default_value = "ready")]
    greeting: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum MannerArgument {
    Greets,
    Silent,
    NotFound,
}

#[derive(Args)]
struct Enter {
    /// A `cgroup.procs` file to write the own process id to; may be repeated
    #[arg(long = "procs", required = true)]
    procs: Vec<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Serve(serve) => run_service(serve),
        Command::Drive(drive) => run_load(drive),
        Command::Occupy(occupy) => take_port(occupy),
        Command::Check { file } => {
            std::fs::read(&file).map(drop).with_context(|| format!("cannot read {}", file.display()))
        }
        Command::Beat => pod::run(),
        Command::Enter(enter) => become_program(&enter),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without a standard error there is nobody to tell.
            drop(writeln!(std::io::stderr(), "tapio-workload: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run_service(serve: Serve) -> anyhow::Result<()> {
    let settings = Settings::read(&serve.config, &serve.optional_config)?;
    let listener =
        TcpListener::bind(serve.listen).with_context(|| format!("cannot listen on {}", serve.listen))?;
    let port = listener.local_addr().context("the listener has no address")?.port();
    let log =
        TruthLog::create(&serve.log).with_context(|| format!("cannot create {}", serve.log.display()))?;
    let leak = serve
        .leak_bytes_per_second
        .map(|rate| Leak::new(rate, Duration::from_millis(serve.leak_after_millis)));
    let service = Service::new(serve.name, settings.upstream, log.clone(), leak);
    let server = std::thread::Builder::new().name("serve".to_owned()).spawn(move || match serve.runtime {
        Runtime::Threads => threads::serve(service, &listener),
        Runtime::Async => tasks::serve(service, listener),
    })?;
    say(&Mutex::new(stdout()), &Notice::Listening { port });
    wait_for_end_of_input();
    log.flush().context("cannot write the truth log")?;
    if server.is_finished() {
        bail!("the service ended by itself: {:?}", server.join());
    }
    Ok(())
}

fn run_load(drive: Drive) -> anyhow::Result<()> {
    let log =
        TruthLog::create(&drive.log).with_context(|| format!("cannot create {}", drive.log.display()))?;
    let load = Load {
        name: drive.name,
        target: drive.target,
        rate_per_second: drive.rate,
        seconds: drive.seconds,
        requests_max: drive.requests_max,
        seed: drive.seed,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let stopper = Arc::clone(&stop);
    std::thread::Builder::new().name("input".to_owned()).spawn(move || {
        wait_for_end_of_input();
        stopper.store(true, Ordering::Relaxed);
    })?;
    run(&load, &log, stdout(), &stop).context("cannot drive the load")?;
    log.flush().context("cannot write the truth log")?;
    Ok(())
}

fn take_port(occupy: Occupy) -> anyhow::Result<()> {
    std::thread::sleep(Duration::from_millis(occupy.after_millis));
    let listener =
        TcpListener::bind(occupy.listen).with_context(|| format!("cannot listen on {}", occupy.listen))?;
    let port = listener.local_addr().context("the listener has no address")?.port();
    let manner = match occupy.manner {
        MannerArgument::Greets => Manner::Greets(occupy.greeting),
        MannerArgument::Silent => Manner::Silent,
        MannerArgument::NotFound => Manner::NotFound,
    };
    std::thread::Builder::new()
        .name("occupy".to_owned())
        .spawn(move || foreign::occupy(&listener, &manner))?;
    say(&Mutex::new(stdout()), &Notice::Listening { port });
    wait_for_end_of_input();
    Ok(())
}

fn become_program(enter: &Enter) -> anyhow::Result<()> {
    let pid = std::process::id().to_string();
    for procs in &enter.procs {
        OpenOptions::new()
            .write(true)
            .open(procs)
            .and_then(|mut file| file.write_all(pid.as_bytes()))
            .with_context(|| format!("cannot join the cgroup of {} (are you root?)", procs.display()))?;
    }
    let (program, arguments) = enter.command.split_first().context("no program to become")?;
    let error = std::process::Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot become {program}"))
}

fn wait_for_end_of_input() {
    let mut chunk = [0_u8; 64];
    // An error is the end as well: there is nobody left who could ask to stop.
    while stdin().read(&mut chunk).is_ok_and(|length| length > 0) {}
}

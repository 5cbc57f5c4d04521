//! The demo's workload as a whole: real processes in real cgroups, load on the first of them.
//!
//! Owns the processes and cgroups of one scenario from start to removal, also on failure and panic. Knows nothing of
//! the tiers. Called by the demo and by tests. [`process`] is one of its processes, `restarts` says when a container is
//! made anew.

pub mod process;
mod restarts;

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cgroup::Hierarchy;
use crate::drive::{Notice, Summary};
use crate::run_record::RunRecord;
use crate::scenario::{ForeignPlan, Kind, LeakPlan, Manner, Mercy, Pod, Scenario, Truth};
use crate::service::configuration::Settings;
use crate::truth_log::{self, Failure, TruthLine};
use crate::workload::process::Process;
use crate::workload::restarts::{Restarts, Step};

/// How long one service may take to listen.
const START_WAIT_MAX: Duration = Duration::from_secs(10);
/// How often a service is probed, where it is.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);

/// Where a workload gets what it needs.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// The `tapio-workload` program.
    pub program: &'a Path,
    /// An existing folder for logs.
    pub folder: &'a Path,
    /// Where everything that must be cleaned up is noted.
    pub record: &'a RunRecord,
}

/// The first request that failed, as the sender of the load saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstFailure {
    /// Wall clock, nanoseconds since 1970.
    pub unix_nanos: u64,
    /// The status, if there was a response.
    pub status: Option<u16>,
    /// Why there was none.
    pub error: Option<Failure>,
    /// The request's trace.
    pub trace_id: Option<String>,
}

/// A running workload. Dropping it ends every process and removes every cgroup.
#[derive(Debug)]
pub struct Workload {
    scenario: Scenario,
    /// Ended first, so that stopping makes no failures.
    driver: Process,
    /// In call order.
    services: Vec<Process>,
    /// Where they listen, in call order.
    ports: Vec<u16>,
    restarts: Option<Restarts>,
    /// When the restarted service is probed next, where it is.
    probe_at: Option<Instant>,
    /// The process that belongs to no service, while it runs.
    foreign: Option<Process>,
    /// The truth logs of containers that others have replaced.
    earlier_logs: Vec<PathBuf>,
}

/// What a stopped workload left behind: its own account.
#[derive(Debug)]
pub struct Account {
    /// The driver's counts; absent where the driver was killed.
    pub summary: Option<Summary>,
    /// The services' exits in call order.
    pub exits: Vec<ExitStatus>,
    /// All truth lines of all processes.
    pub lines: Vec<TruthLine>,
    /// Half lines that killed processes left.
    pub torn_lines: usize,
}

impl Workload {
    /// Starts the services from the last to the first, each when the one that it calls listens, then the load.
    ///
    /// # Errors
    /// A cgroup or process cannot be started, or does not listen in time. Nothing is left behind.
    pub fn start(scenario: &Scenario, surroundings: Surroundings<'_>) -> anyhow::Result<Self> {
        let hierarchy = Hierarchy::find()?;
        let mut services: Vec<Process> = Vec::new();
        let mut ports: Vec<u16> = Vec::new();
        for (position, pod) in scenario.chain.iter().enumerate().rev() {
            let leak = scenario.active_leak().filter(|leak| leak.position == position);
            let upstream = ports.last().map(|port| ([127, 0, 0, 1], *port).into());
            Settings { upstream }.write(&settings_path(scenario, pod, surroundings))?;
            let arguments = serve_arguments(pod, scenario, surroundings, 0, leak);
            let service = Process::start(&hierarchy, pod, 0, &arguments, surroundings)?;
            let port = service
                .wait_for(START_WAIT_MAX, |notice| match notice {
                    Notice::Listening { port } => Some(*port),
                    _ => None,
                })
                .with_context(|| {
                    format!("{} did not listen in time: see {}", pod.service, surroundings.folder.display())
                })?;
            ports.push(port);
            services.push(service);
        }
        services.reverse();
        ports.reverse();
        let port = ports.first().copied().context("a scenario has services")?;
        let driver =
            Process::start(&hierarchy, &scenario.gateway, 0, &drive_arguments(scenario, port), surroundings)?;
        let restarts = scenario.active_restart().map(|plan| Restarts::new(plan.clone(), Instant::now()));
        let probe_at = (scenario.kind == Kind::Restart).then(Instant::now);
        let scenario = scenario.clone();
        let (foreign, earlier_logs) = (None, Vec::new());
        Ok(Self { scenario, driver, services, ports, restarts, probe_at, foreign, earlier_logs })
    }

    /// Does what a kubelet does when it is due. To be called often; a run without a restart needs nothing of it.
    ///
    /// # Errors
    /// A process or its cgroup cannot be ended or started.
    pub fn supervise(&mut self, surroundings: Surroundings<'_>) -> anyhow::Result<()> {
        let Some(mut restarts) = self.restarts.take() else { return Ok(()) };
        let done = self.restart(&mut restarts, surroundings);
        let probed = self.probe(restarts.plan.position, surroundings);
        self.restarts = Some(restarts);
        done.and(probed)
    }

    /// Probes of the service read a file that is there until the restart, and not afterwards.
    fn probe(&mut self, position: usize, surroundings: Surroundings<'_>) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.probe_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.probe_at = Some(now + PROBE_INTERVAL);
        let file = surroundings.folder.join("ready");
        if self.earlier_logs.is_empty() {
            std::fs::write(&file, "ready").with_context(|| format!("cannot write {}", file.display()))?;
        } else if file.exists() {
            std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
        let service = self.services.get(position).context("no such service")?;
        service.probe(&file, surroundings)
    }

    fn restart(&mut self, restarts: &mut Restarts, surroundings: Surroundings<'_>) -> anyhow::Result<()> {
        let position = restarts.plan.position;
        let pod = self.scenario.chain.get(position).context("no such service")?;
        let service = self.services.get_mut(position).context("no such service")?;
        match restarts.due(Instant::now()) {
            Step::Wait => {}
            Step::End => {
                let path = settings_path(&self.scenario, pod, surroundings);
                let changed = match self.scenario.kind {
                    Kind::MissingConfig => std::fs::remove_file(&path),
                    Kind::WrongConfig => std::fs::write(&path, "upstream: nowhere"),
                    _ => Ok(()),
                };
                changed.with_context(|| format!("cannot change {}", path.display()))?;
                service.retire()?;
                restarts.ended(Instant::now());
                if let Some(foreign) = self.scenario.active_foreign() {
                    let port = self.ports.get(position).copied().context("no such service")?;
                    let arguments = occupy_arguments(foreign, self.scenario.kind, port);
                    let hierarchy = Hierarchy::find()?;
                    self.foreign =
                        Some(Process::start_foreign(&hierarchy, foreign, &arguments, surroundings)?);
                }
            }
            Step::Start(count) => {
                self.await_foreign(surroundings)?;
                let service = self.services.get_mut(position).context("no such service")?;
                let pod = self.scenario.chain.get(position).context("no such service")?;
                let id = usize::try_from(count).ok().and_then(|at| restarts.plan.container_ids.get(at - 1));
                // Nobody watches for so long that the drawn ids would not do.
                let Some(id) = id else { return Ok(()) };
                let port = self.ports.get(position).copied().context("no such service")?;
                let arguments = serve_arguments(pod, &self.scenario, surroundings, port, None);
                let pod = Pod { container_id: id.clone(), ..pod.clone() };
                let next = Process::start(&Hierarchy::find()?, &pod, count, &arguments, surroundings)?;
                let earlier = std::mem::replace(service, next);
                self.earlier_logs.push(earlier.log().to_owned());
                restarts.started();
            }
            Step::Look => {
                if service.exit()?.is_some() {
                    service.retire()?;
                    restarts.ended(Instant::now());
                    if self.scenario.kind == Kind::PortFree
                        && let Some(foreign) = self.foreign.take()
                    {
                        foreign.stop()?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until the process that belongs to no service listens: a service that starts before would have its port.
    fn await_foreign(&self, surroundings: Surroundings<'_>) -> anyhow::Result<()> {
        let Some(foreign) = &self.foreign else { return Ok(()) };
        let listens = |notice: &Notice| matches!(notice, Notice::Listening { .. }).then_some(());
        foreign.wait_for(START_WAIT_MAX, listens).with_context(|| {
            format!("{} did not listen in time: see {}", foreign.name(), surroundings.folder.display())
        })
    }

    /// What really happens, with what only the running processes know.
    #[must_use]
    pub fn truth(&self) -> Truth {
        let mut truth = self.scenario.truth();
        if let Some(holder) = truth.culprit.as_mut().and_then(|culprit| culprit.holder.as_mut()) {
            holder.pid = self.foreign.as_ref().map(Process::pid);
            let position = self.restarts.as_ref().map(|restarts| restarts.plan.position);
            holder.port = position.and_then(|position| self.ports.get(position)).copied();
        }
        truth
    }

    /// The scenario that runs.
    #[must_use]
    pub const fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// The services in call order.
    #[must_use]
    pub fn services(&self) -> &[Process] {
        &self.services
    }

    /// The first failed request, if there was one.
    #[must_use]
    pub fn first_failure(&self) -> Option<FirstFailure> {
        self.wait_for_first_failure(Duration::ZERO)
    }

    /// Waits for the first failed request.
    #[must_use]
    pub fn wait_for_first_failure(&self, wait_max: Duration) -> Option<FirstFailure> {
        self.driver.wait_for(wait_max, |notice| match notice {
            Notice::FirstFailure { unix_nanos, status, error, trace_id } => Some(FirstFailure {
                unix_nanos: *unix_nanos,
                status: *status,
                error: *error,
                trace_id: trace_id.clone(),
            }),
            _ => None,
        })
    }

    /// Waits for the end of a service that nobody stopped; `None` where it goes on.
    ///
    /// # Errors
    /// There is no such service.
    pub fn wait_for_exit(
        &mut self,
        position: usize,
        wait_max: Duration,
    ) -> anyhow::Result<Option<ExitStatus>> {
        let service = self.services.get_mut(position).context("no such service")?;
        let end = Instant::now() + wait_max;
        loop {
            let exit = service.exit()?;
            if exit.is_some() || Instant::now() >= end {
                return Ok(exit);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops the load, then the services, removes the cgroups and reads the truth logs.
    ///
    /// # Errors
    /// A process cannot be ended, a cgroup not removed, or a log not read.
    pub fn stop(self) -> anyhow::Result<Account> {
        let Self { driver, services, foreign, earlier_logs: mut logs, .. } = self;
        logs.push(driver.log().to_owned());
        logs.extend(services.iter().map(|service| service.log().to_owned()));
        // Who ended before it could serve has none.
        logs.retain(|log| log.exists());
        let (driver_exit, notices) = driver.stop()?;
        let summary = notices.into_iter().find_map(|notice| match notice {
            Notice::Summary(summary) => Some(summary),
            _ => None,
        });
        if summary.is_none() && driver_exit.success() {
            bail!("the load driver ended without its summary");
        }
        let mut exits = Vec::new();
        for service in services {
            exits.push(service.stop()?.0);
        }
        if let Some(foreign) = foreign {
            foreign.stop()?;
        }
        let (mut lines, mut torn_lines) = (Vec::new(), 0);
        for log in logs {
            let (read, torn) =
                truth_log::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
            lines.extend(read);
            torn_lines += torn;
        }
        Ok(Account { summary, exits, lines, torn_lines })
    }
}

/// The configuration that a service cannot do without.
fn settings_path(scenario: &Scenario, pod: &Pod, surroundings: Surroundings<'_>) -> PathBuf {
    surroundings.folder.join(scenario.configuration.inside(&pod.service))
}

/// `port` is 0 for one that is free.
fn serve_arguments(
    pod: &Pod,
    scenario: &Scenario,
    surroundings: Surroundings<'_>,
    port: u16,
    leak: Option<LeakPlan>,
) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned(), "--name".to_owned(), pod.service.clone()];
    arguments.extend(["--runtime".to_owned(), scenario.runtime.name().to_owned()]);
    arguments.extend(["--listen".to_owned(), format!("127.0.0.1:{port}")]);
    let mut file = |option: &str, path: PathBuf| {
        arguments.extend([option.to_owned(), path.to_string_lossy().into_owned()]);
    };
    file("--config", settings_path(scenario, pod, surroundings));
    for path in scenario.configuration.optional(&pod.service) {
        file("--optional-config", surroundings.folder.join(path));
    }
    if let Some(leak) = leak {
        arguments.extend(["--leak-bytes-per-second".to_owned(), leak.bytes_per_second.to_string()]);
        arguments.extend(["--leak-after-millis".to_owned(), leak.after.as_millis().to_string()]);
    }
    arguments
}

/// `port` is the restarted service's.
fn occupy_arguments(foreign: &ForeignPlan, kind: Kind, port: u16) -> Vec<String> {
    let is_elsewhere = kind == Kind::PortFree && foreign.mercy == Mercy::OtherPort;
    let port = if is_elsewhere { 0 } else { port };
    let (manner, greeting) = match &foreign.manner {
        Manner::Greets(greeting) => ("greets", Some(greeting)),
        Manner::Silent => ("silent", None),
        Manner::NotFound => ("not-found", None),
    };
    let mut arguments: Vec<String> = [
        "occupy",
        "--listen",
        &format!("127.0.0.1:{port}"),
        "--after-millis",
        &foreign.after.as_millis().to_string(),
        "--manner",
        manner,
    ]
    .map(str::to_owned)
    .into();
    // In one word: a greeting may begin like an option.
    arguments.extend(greeting.map(|greeting| format!("--greeting={greeting}")));
    arguments
}

fn drive_arguments(scenario: &Scenario, port: u16) -> Vec<String> {
    let pairs = [
        ("--name", scenario.gateway.service.clone()),
        ("--target", format!("127.0.0.1:{port}")),
        ("--rate", scenario.requests_per_second.to_string()),
        ("--seed", scenario.load_seed.to_string()),
        // It is stopped from outside; nobody keeps a run for longer.
        ("--seconds", (24 * 3_600).to_string()),
    ];
    let pairs = pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
    std::iter::once("drive".to_owned()).chain(pairs).collect()
}

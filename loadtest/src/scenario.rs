//! A drawn scenario: names, order, limits, timing, who fails and how. Everything follows from the kind and the seed.
//!
//! Owns what the system may be told ([`Scenario::identity`]: names without edges) and what only the comparer may know
//! ([`Scenario::truth`]). Starts nothing. Called by the demo and by tests, which hand it to [`crate::workload`].

mod foreign;
pub mod names;
mod restart;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::random::Draw;
pub use foreign::{ForeignPlan, Manner, Mercy};
pub use restart::{Configuration, RestartPlan};

const MIB: u64 = 1024 * 1024;
/// What a service is charged before it leaks: its stacks, its heap and the binary's pages.
const BASE_BYTES: u64 = 2 * MIB;

/// What goes wrong, if anything does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One service leaks until the kernel kills it.
    Leak,
    /// The twin of [`Self::Leak`]: the same draw, and nothing leaks.
    Healthy,
    /// One service is restarted, and its configuration file is gone.
    MissingConfig,
    /// The twin of [`Self::MissingConfig`]: the same draw and the same restart, and the file is in its place. Probes of the
    /// service fail for want of another file.
    Restart,
    /// Another twin of [`Self::MissingConfig`]: the file is in its place and says nonsense, so that the service ends as well.
    /// No rule knows that; what it looks for in vain may always have been absent.
    WrongConfig,
    /// One service is restarted, and a process that belongs to none has taken its port.
    PortInUse,
    /// The twin of [`Self::PortInUse`]: the same draw and the same restart, and that process takes another port, or
    /// leaves in time.
    PortFree,
}

impl Kind {
    /// The word of the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Healthy => "healthy",
            Self::MissingConfig => "missing-config",
            Self::Restart => "restart",
            Self::WrongConfig => "wrong-config",
            Self::PortInUse => "port-in-use",
            Self::PortFree => "port-free",
        }
    }

    /// Whether nothing is wrong, or nothing that a rule knows, so that the system must say nothing.
    #[must_use]
    pub const fn is_twin(self) -> bool {
        matches!(self, Self::Healthy | Self::Restart | Self::WrongConfig | Self::PortFree)
    }
}

/// What the services are built on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// Blocking, one thread per connection.
    Threads,
    /// An async runtime, requests interleaved.
    Async,
}

impl Runtime {
    /// The word of the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Async => "async",
        }
    }
}

/// How long the scenario takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As the demo shows it: the kill comes 8 to 20 s after the leak's start, the restart 6 to 14 s after the load's.
    Demo,
    /// For tests of the workload itself: the same in 2 to 3 s.
    Test,
}

/// One pod with its one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Name of the service; also the process' name for itself.
    pub service: String,
    /// Namespace.
    pub namespace: String,
    /// Name of the owner.
    pub workload: String,
    /// `Deployment` or `StatefulSet`.
    pub workload_kind: &'static str,
    /// Name of the pod.
    pub pod: String,
    /// A UUID.
    pub pod_uid: String,
    /// 64 hexadecimal digits.
    pub container_id: String,
    /// Limit of the container's memory.
    pub memory_limit_bytes: u64,
}

/// The leak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeakPlan {
    /// Position in [`Scenario::chain`].
    pub position: usize,
    /// Growth.
    pub bytes_per_second: u64,
    /// From the service's first request to the start of the leak.
    pub after: Duration,
    /// From the start of the leak to the limit, about.
    pub until_kill: Duration,
}

/// Everything that a run needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Whether something goes wrong.
    pub kind: Kind,
    /// What everything was drawn from.
    pub seed: u64,
    /// Name of the node.
    pub node: String,
    /// Where the load comes from.
    pub gateway: Pod,
    /// The services in call order; the load goes to the first.
    pub chain: Vec<Pod>,
    /// What they are built on.
    pub runtime: Runtime,
    /// Who leaks, when and how fast, if anybody does: see [`Scenario::active_leak`].
    pub leak: LeakPlan,
    /// Who is restarted, and when, if anybody is: see [`Scenario::active_restart`].
    pub restart: RestartPlan,
    /// Who takes its port meanwhile, if anybody does: see [`Scenario::active_foreign`].
    pub foreign: ForeignPlan,
    /// What the services read when they start.
    pub configuration: Configuration,
    /// Of the load.
    pub requests_per_second: u64,
    /// Of the drawn requests.
    pub load_seed: u64,
}

/// The ids of a run's pods and containers: known to whoever started them, and no part of the truth about what failed.
pub type Members = BTreeSet<String>;

/// The truth, for the comparer alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// Whether something went wrong.
    pub kind: Kind,
    /// Whose pod failed; absent in a healthy run.
    pub culprit: Option<Culprit>,
    /// The container in which the failure shows to whoever uses the services: the first of the chain, or, where that
    /// one died, the sender of the load. Absent in a healthy run.
    pub symptom_container_id: Option<String>,
}

/// Who failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Culprit {
    /// Name of the service.
    pub service: String,
    /// UUID of the pod.
    pub pod_uid: String,
    /// 64 hexadecimal digits: its first container, the one that served.
    pub container_id: String,
    /// That one, and those that came after it in the same pod.
    pub container_ids: BTreeSet<String>,
    /// Its limit.
    pub memory_limit_bytes: u64,
    /// The end of the path of the file that is gone, if one is.
    pub missing_file: Option<String>,
    /// Who has its port, if somebody has.
    pub holder: Option<Holder>,
}

/// Who has another's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The command name.
    pub command: String,
    /// The container that it runs in; `None` for a process outside of all.
    pub container_id: Option<String>,
    /// Its process id, once it has one.
    pub pid: Option<u32>,
    /// The port, once it is known.
    pub port: Option<u16>,
}

/// What the system is told, in the shape that the Kubernetes watch will push: names, no edges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityFile {
    version: u32,
    pods: Vec<IdentityPod>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct IdentityPod {
    pub(crate) pod_uid: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) workload: String,
    pub(crate) workload_kind: String,
    pub(crate) service: String,
    pub(crate) node: String,
}

impl IdentityFile {
    pub(crate) fn of(mut pods: Vec<IdentityPod>) -> Self {
        pods.sort_by(|left, right| left.pod_uid.cmp(&right.pod_uid));
        Self { version: 1, pods }
    }
}

impl Scenario {
    /// Draws a scenario. A failure and its healthy twin of one seed differ in the failure alone.
    #[must_use]
    pub fn draw(kind: Kind, seed: u64, pace: Pace) -> Self {
        let mut draw = Draw::labelled(seed, "scenario");
        let mut services = names::SERVICES;
        draw.shuffle(&mut services);
        let namespace = pick(&mut draw, &names::NAMESPACES);
        let chain: Vec<Pod> =
            services.iter().take(3).map(|service| Pod::draw(&mut draw, service, &namespace)).collect();
        let entry_namespace = pick(&mut draw, &names::NAMESPACES);
        let gateway_name = pick(&mut draw, &names::GATEWAYS);
        let gateway = Pod::draw(&mut draw, &gateway_name, &entry_namespace);
        let node = format!("{}-{}", pick(&mut draw, &names::NODES), draw.name_suffix(4));
        let runtime = if draw.percent(50) { Runtime::Threads } else { Runtime::Async };
        let position = usize::try_from(draw.between(0, 2)).unwrap_or_default();
        let limit_bytes = chain.get(position).map_or(64 * MIB, |pod| pod.memory_limit_bytes);
        let leak = LeakPlan::draw(&mut draw, position, limit_bytes, pace);
        Self {
            kind,
            seed,
            node,
            gateway,
            chain,
            runtime,
            leak,
            restart: RestartPlan::draw(seed, pace),
            foreign: ForeignPlan::draw(seed),
            configuration: Configuration::draw(seed),
            requests_per_second: draw.between(30, 80),
            load_seed: draw.next_u64(),
        }
    }

    /// The leak of this run; a healthy run has none.
    #[must_use]
    pub fn active_leak(&self) -> Option<LeakPlan> {
        (self.kind == Kind::Leak).then_some(self.leak)
    }

    /// The restart of this run, if it has one.
    #[must_use]
    pub fn active_restart(&self) -> Option<&RestartPlan> {
        let is_leak = matches!(self.kind, Kind::Leak | Kind::Healthy);
        (!is_leak).then_some(&self.restart)
    }

    /// The process of this run that belongs to no service, if it has one.
    #[must_use]
    pub fn active_foreign(&self) -> Option<&ForeignPlan> {
        matches!(self.kind, Kind::PortInUse | Kind::PortFree).then_some(&self.foreign)
    }

    /// From the start of the load to the fault, about. A healthy run is watched for as long as its twin.
    #[must_use]
    pub const fn fault_after(&self) -> Duration {
        match self.kind {
            Kind::Leak | Kind::Healthy => self.leak.after.saturating_add(self.leak.until_kill),
            Kind::MissingConfig | Kind::Restart | Kind::WrongConfig | Kind::PortInUse | Kind::PortFree => {
                self.restart.after
            }
        }
    }

    /// Where the fault is in the chain, or would be in a healthy run.
    const fn position(&self) -> usize {
        match self.kind {
            Kind::Leak | Kind::Healthy => self.leak.position,
            Kind::MissingConfig | Kind::Restart | Kind::WrongConfig | Kind::PortInUse | Kind::PortFree => {
                self.restart.position
            }
        }
    }

    /// The gateway and the chain.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        std::iter::once(&self.gateway).chain(&self.chain)
    }

    /// All pods of the run, also one that is no part of the chain.
    pub fn all_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods().chain(self.active_foreign().and_then(|foreign| foreign.pod.as_ref()))
    }

    /// What the system may be told. The pods are in an order that says nothing: by uid.
    #[must_use]
    pub fn identity(&self) -> IdentityFile {
        let pods = self
            .all_pods()
            .map(|pod| IdentityPod {
                pod_uid: pod.pod_uid.clone(),
                namespace: pod.namespace.clone(),
                pod: pod.pod.clone(),
                workload: pod.workload.clone(),
                workload_kind: pod.workload_kind.to_owned(),
                service: pod.service.clone(),
                node: self.node.clone(),
            })
            .collect();
        IdentityFile::of(pods)
    }

    /// What really happens.
    #[must_use]
    pub fn truth(&self) -> Truth {
        let position = (!self.kind.is_twin()).then(|| self.position());
        let later = || self.active_restart().into_iter().flat_map(|restart| &restart.container_ids);
        let culprit = position.and_then(|position| self.chain.get(position)).map(|pod| Culprit {
            service: pod.service.clone(),
            pod_uid: pod.pod_uid.clone(),
            container_id: pod.container_id.clone(),
            container_ids: std::iter::once(&pod.container_id).chain(later()).cloned().collect(),
            memory_limit_bytes: pod.memory_limit_bytes,
            missing_file: (self.kind == Kind::MissingConfig)
                .then(|| format!("/{}", self.configuration.inside(&pod.service).display())),
            holder: self.active_foreign().map(|foreign| Holder {
                command: foreign.command.clone(),
                container_id: foreign.pod.as_ref().map(|pod| pod.container_id.clone()),
                pid: None,
                port: None,
            }),
        });
        // The dead cannot show anything: `pods` has the gateway first.
        let shows = position.and_then(|position| self.pods().nth(usize::from(position > 0)));
        let symptom_container_id = shows.map(|pod| pod.container_id.clone());
        Truth { kind: self.kind, culprit, symptom_container_id }
    }

    /// Whose findings are about this run. A machine may run other things, and other runs.
    #[must_use]
    pub fn members(&self) -> Members {
        let first = self.all_pods().flat_map(|pod| [&pod.pod_uid, &pod.container_id]);
        let later = self.active_restart().into_iter().flat_map(|restart| &restart.container_ids);
        first.chain(later).cloned().collect()
    }
}

impl Pod {
    fn draw(draw: &mut Draw, service: &str, namespace: &str) -> Self {
        let workload = format!("{service}{}", pick(draw, &names::WORKLOAD_SUFFIXES));
        let (workload_kind, pod) = if draw.percent(80) {
            ("Deployment", format!("{workload}-{}-{}", draw.name_suffix(10), draw.name_suffix(5)))
        } else {
            ("StatefulSet", format!("{workload}-{}", draw.between(0, 4)))
        };
        Self {
            service: service.to_owned(),
            namespace: namespace.to_owned(),
            workload,
            workload_kind,
            pod,
            pod_uid: draw.uuid(),
            container_id: draw.hex(64),
            memory_limit_bytes: draw.between(48, 128) * MIB,
        }
    }
}

impl LeakPlan {
    fn draw(draw: &mut Draw, position: usize, limit_bytes: u64, pace: Pace) -> Self {
        let (until_kill, after) = match pace {
            Pace::Demo => (draw.between(8_000, 20_000), draw.between(3_000, 6_000)),
            Pace::Test => (draw.between(2_000, 3_000), draw.between(400, 800)),
        };
        let bytes_per_second = limit_bytes.saturating_sub(BASE_BYTES) * 1000 / until_kill;
        Self {
            position,
            bytes_per_second,
            after: Duration::from_millis(after),
            until_kill: Duration::from_millis(until_kill),
        }
    }
}

fn pick(draw: &mut Draw, from: &[&str]) -> String {
    draw.pick(from).copied().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Kind, Pace, Scenario};

    /// Scenario: one seed drawn as each failure and as its healthy twin.
    /// Guarantees: twins differ in the failure alone, so that a finding for one cannot come from anything else.
    #[test]
    fn twins_differ_in_the_failure_alone() {
        for (failing, twin) in [
            (Kind::Leak, Kind::Healthy),
            (Kind::MissingConfig, Kind::Restart),
            (Kind::MissingConfig, Kind::WrongConfig),
            (Kind::PortInUse, Kind::PortFree),
        ] {
            let fails = Scenario::draw(failing, 42, Pace::Demo);
            let healthy = Scenario::draw(twin, 42, Pace::Demo);
            assert!(fails.truth().culprit.is_some() && twin.is_twin() && !failing.is_twin());
            assert_eq!(healthy.active_leak(), None);
            assert_eq!(healthy.active_restart(), fails.active_restart());
            assert_eq!(Scenario { kind: failing, ..healthy.clone() }, fails);
            assert_eq!((fails.identity(), fails.members()), (healthy.identity(), healthy.members()));
            assert_eq!(healthy.truth().culprit, None);
        }
    }

    /// Scenario: 300 seeds of restarts without a configuration.
    /// Guarantees: who, when, how fast and which file all vary, every value is in its range, every restart has a
    /// container of its own, and the truth names the file.
    #[test]
    fn restarts_are_drawn_within_their_range() {
        let (mut positions, mut files) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..300 {
            let scenario = Scenario::draw(Kind::MissingConfig, seed, Pace::Demo);
            let restart = scenario.active_restart().unwrap();
            positions.insert(restart.position);
            assert!((6_000..=14_000).contains(&restart.after.as_millis()));
            assert!((600..=1_500).contains(&restart.back_off(1).as_millis()));
            assert_eq!(restart.back_off(3), restart.back_off(1) * 4);
            let culprit = scenario.truth().culprit.unwrap();
            assert_eq!(culprit.service, scenario.chain[restart.position].service);
            assert_eq!(culprit.container_ids.len(), restart.container_ids.len() + 1);
            let file = culprit.missing_file.unwrap();
            assert!(file.starts_with(&format!("/{}/", culprit.service)), "{file}");
            files.insert(file);
        }
        assert_eq!(positions.len(), 3);
        assert!(files.len() > 150, "{} different files of 300", files.len());
    }

    /// Scenario: 300 seeds of restarts whose port another process has.
    /// Guarantees: who that is, where it runs, what callers meet and why the twin's service comes back all vary; names fit
    /// into the kernel's; the truth names it; a pod of its own is told and is one of the run's.
    #[test]
    fn foreign_processes_are_drawn_within_their_range() {
        let (mut commands, mut manners, mut places) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for seed in 0..300 {
            let scenario = Scenario::draw(Kind::PortInUse, seed, Pace::Demo);
            let foreign = scenario.active_foreign().unwrap();
            assert!(foreign.command.len() <= 15 && foreign.after * 2 <= scenario.restart.creating);
            let holder = scenario.truth().culprit.unwrap().holder.unwrap();
            assert_eq!(holder.command, foreign.command);
            let pod = foreign.pod.as_ref();
            assert_eq!(holder.container_id, pod.map(|pod| pod.container_id.clone()));
            let identity = serde_json::to_string(&scenario.identity()).unwrap();
            assert!(pod.is_none_or(|pod| {
                identity.contains(&pod.pod_uid) && scenario.members().contains(&pod.container_id)
            }));
            commands.insert(foreign.command.clone());
            manners.insert(
                std::mem::discriminant(&foreign.manner) == std::mem::discriminant(&super::Manner::Silent),
            );
            places.insert((pod.is_some(), foreign.mercy == super::Mercy::Leaves));
        }
        assert_eq!((commands.len(), manners.len(), places.len()), (16, 2, 4));
    }

    /// Scenario: 300 seeds.
    /// Guarantees: names, order, runtime, limits and who leaks all vary; every value is in its stated range; the
    /// truth names the pods before the culprit.
    #[test]
    fn everything_is_drawn_within_its_range() {
        let mut names = BTreeSet::new();
        let mut positions = BTreeSet::new();
        let mut runtimes = BTreeSet::new();
        for seed in 0..300 {
            let scenario = Scenario::draw(Kind::Leak, seed, Pace::Demo);
            let chain: Vec<&str> = scenario.chain.iter().map(|pod| pod.service.as_str()).collect();
            assert_eq!(chain.iter().collect::<BTreeSet<_>>().len(), 3);
            names.insert(chain.join(">"));
            let leak = scenario.leak;
            positions.insert(leak.position);
            runtimes.insert(scenario.runtime.name());
            let culprit = &scenario.chain[leak.position];
            let until_kill =
                (culprit.memory_limit_bytes - super::BASE_BYTES) as f64 / leak.bytes_per_second as f64;
            assert!((7.9..20.1).contains(&until_kill), "{until_kill}");
            assert!((30..=80).contains(&scenario.requests_per_second));
            let truth = scenario.truth();
            assert_eq!(truth.culprit.unwrap().pod_uid, culprit.pod_uid);
            let shows = truth.symptom_container_id.unwrap();
            assert_ne!(shows, culprit.container_id);
            let expected = if leak.position == 0 { &scenario.gateway } else { &scenario.chain[0] };
            assert_eq!(shows, expected.container_id);
            assert!(!serde_json::to_string(&scenario.identity()).unwrap().contains(&culprit.container_id));
        }
        assert!(names.len() > 290, "{} different chains of 300", names.len());
        assert_eq!((positions.len(), runtimes.len()), (3, 2));
    }
}

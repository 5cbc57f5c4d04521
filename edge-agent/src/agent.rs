//! Puts the agent together: threads for capture, sampling and the spool, tasks for the uplink and telemetry.
//!
//! Without capture or the spool there is no agent: when one of them ends before it is asked to, so does the agent, with
//! an error, and whoever supervises it starts it again.
//!
//! The order of the start: the incarnation is on the disk, the spool is open, the probes' folder in bpffs is held, the
//! probes are taken over or loaded, the host is looked at, and then records are read.
//!
//! The order of the end: the sampler detaches the probes, unless they go on, and hands over what is left, capture empties
//! the ring and ships it, the spool's thread writes it, the uplink sends it as far as its time allows; what is pinned is
//! removed last.

mod sight;
mod spooler;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tapio_daemon::{Failure, Health, Progress, Registry, config::paths, with_causes};
use tapio_identity::{Credentials, CredentialsError};
use tapio_schemas::{
    capability::{ProbeCapability, ProbeState},
    ids::Incarnation,
    intent::{self, EventKind, Severity},
    units::BootNanos,
};
use tapio_spool::{SpoolError, disk::RealDisk};
use tapio_wire::{frame::FrameFault, message::Host};
use thiserror::Error;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    attribute::{Hierarchy, HierarchyError},
    capture::{Capture, Shared},
    clock::{self, NodeClock},
    config::{Config, EnrolConfig, IdentityConfig, OnExit},
    connections,
    enrolment::{self, EnrolError, Renewal},
    event::Event,
    metrics::{Metrics, Probe, probe_gauges},
    outgoing::{FRAMES_WAITING_MAX, Outgoing},
    pipeline::{MEMORY_SOURCE, Pipeline},
    probes::{Capability, CapabilityState, Pins, PinsError},
    sampler::{Sampler, Watched},
    shelf::{Room, Shelf},
    uplink::{self, OwnCredentials, Uplink},
};

use self::{
    sight::{Sight, hold_pins, open_eyes},
    spooler::Spooler,
};

/// Readings that wait for the capture thread: a round of all containers, and more.
const READINGS_WAITING_MAX: usize = 16_384;
/// How long the threads have to end.
const THREADS_END_MAX: Duration = Duration::from_secs(10);
/// A component that is silent for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Why the agent cannot run.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The identity cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// There is no certificate, and none is got.
    #[error(transparent)]
    Enrolment(#[from] EnrolError),
    /// The certificate is another machine's.
    #[error(
        "the certificate names {certificate}, but node.tenant, node.cluster and node.name say {configured}: correct one of them"
    )]
    Name {
        /// What the certificate says.
        certificate: String,
        /// What the configuration says.
        configured: String,
    },
    /// No control groups.
    #[error(transparent)]
    Hierarchy(#[from] HierarchyError),
    /// The spool cannot be opened.
    #[error("the spool cannot be used")]
    Spool(#[from] SpoolError),
    /// Another agent holds the probes.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// No frame can be made.
    #[error("frames cannot be made")]
    Frame(#[from] FrameFault),
    /// A part that the agent cannot do without ended before it was asked to.
    #[error("{0} ended by itself, and the agent with it: what it logged last says why")]
    Ended(&'static str),
    /// The system refused something.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Runs the agent until `shutdown` is cancelled, and ends it in order.
///
/// # Errors
/// When it cannot start. A probe that does not load, or an aggregator that cannot be reached, is no error: both are
/// told, and worked around. And when it ends although nobody asked it to.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AgentError> {
    let mut agent = Agent::start(config, shutdown).await?;
    let ended = agent.until_end().await;
    agent.finish().await;
    ended
}

/// An agent that runs.
pub struct Agent {
    tasks: JoinSet<()>,
    threads: Vec<JoinHandle<()>>,
    finished: CancellationToken,
    shutdown: CancellationToken,
    telemetry: CancellationToken,
    telemetry_address: SocketAddr,
    capabilities: Vec<Capability>,
    shelf: Arc<Shelf>,
    /// What outlives the agent, held while it runs.
    pins: Option<Pins>,
    on_exit: OnExit,
    /// Says in health which probes do not work, as long as the agent runs.
    _seeing: Progress,
}

impl Agent {
    /// Starts the agent; it ends when `shutdown` is cancelled and [`Agent::finish`] is awaited.
    ///
    /// # Errors
    /// When it cannot start.
    pub async fn start(config: Config, shutdown: CancellationToken) -> Result<Self, AgentError> {
        let credentials = credentials_or_enrol(&config).await?;
        let source = credentials.name().source_id();
        let hierarchy = Hierarchy::find()?;
        let (listener, telemetry_address) = listen(config.telemetry_listen).await?;
        // Durable before the first frame: no number is ever used twice.
        let incarnation = Incarnation(tapio_spool::incarnation::next(&config.state_directory)?);
        let shared = Arc::new(Shared::default());
        let directory = config.state_directory.join("spool");
        let losses = Arc::clone(&shared.losses);
        let (disk, room) = (Arc::new(RealDisk), Room::of_quota(config.spool_quota_bytes));
        let shelf = Shelf::open(disk, &directory, room, source, losses, Instant::now())?;
        let shelf = Arc::new(shelf);
        // Behind the spool, whose lock nobody shares: whoever runs twice by mistake changes nothing.
        let (pins, unpinned) = hold_pins(&config)?;
        // A child, so that the agent can end its own threads without ending whoever started it.
        let shutdown = shutdown.child_token();

        let (registry, health) = (Registry::new(), Health::new());
        let clock = NodeClock::new();
        let now = clock::boot_nanos();
        let since = BootNanos(now).to_unix(clock.offset(&shared.cluster_clock, now));
        let mut pipeline = Pipeline::new(hierarchy.clone(), config.scope);

        // The probes first: what begins while the host is looked at is then seen by one of both.
        let Sight { mut probes, capabilities, continued, marks, taking, since } =
            open_eyes(&config, pins.as_ref(), &shelf, &mut pipeline, since);
        let (frames, outbound) = mpsc::sync_channel(FRAMES_WAITING_MAX);
        let outgoing = Outgoing::new(source, incarnation, frames, since)?;
        let running = hierarchy.processes();
        let existing = connections::listeners(&running);
        pipeline.begin(clock::boot_nanos(), &running, &existing);
        let seeing = tell_capabilities(&capabilities, unpinned, &registry, &health);

        let watched = Arc::new(Watched::default());
        let (readings, taken) = mpsc::sync_channel(READINGS_WAITING_MAX);
        let finished = CancellationToken::new();
        let capture = Capture {
            node: config.node.as_str().to_owned(),
            ring: probes.take_ring(),
            continued,
            pipeline,
            outgoing,
            clock,
            readings: taken,
            watched: Arc::clone(&watched),
            shared: Arc::clone(&shared),
            missing_probes: missing(&capabilities),
            metrics: Metrics::new(&registry),
            progress: health.component("capture", SILENCE_MAX),
            precorrelate: None,
            taking,
        };
        let sampler = Sampler {
            hierarchy,
            interval: config.memory_interval,
            probes,
            watched,
            readings,
            progress: health.component("sampler", SILENCE_MAX + config.memory_interval),
            shutdown: shutdown.clone(),
            told_drain: Arc::clone(&shared.told_drain),
            keeps: taking.keeps,
        };
        let spooler = Spooler {
            outbound,
            shelf: Arc::clone(&shelf),
            losses: Arc::clone(&shared.losses),
            metrics: spooler::Metrics::new(&registry),
            progress: health.component("spool", SILENCE_MAX),
            finished: finished.clone(),
            shared: Arc::clone(&shared),
            marks,
            ring: 0,
        };
        let first = own_events(&capabilities, clock::boot_nanos());
        let threads = vec![
            spawn("spool", move || spooler.run())?,
            spawn("capture", move || capture.run(first))?,
            spawn("sampler", move || sampler.run())?,
        ];

        let host = host(&config);
        let mut tasks = JoinSet::new();
        if let IdentityConfig::Enrol(enrol) = &config.identity {
            let renewal = renewal(enrol, &credentials, &registry, &health);
            tasks.spawn(renewal.run(finished.clone()));
        }
        let uplink = Uplink {
            aggregators: config.aggregators.clone(),
            credentials: OwnCredentials::new(
                config.identity.files(),
                credentials,
                health.component("identity", SILENCE_MAX),
            ),
            metrics: uplink::Metrics::new(&registry),
            incarnation,
            node: config.node.as_str().to_owned(),
            capabilities: describe(&capabilities),
            host,
            shelf: Arc::clone(&shelf),
            shared,
            progress: health.component("uplink", SILENCE_MAX),
            finished: finished.clone(),
        };
        tasks.spawn(uplink.run());
        let telemetry = CancellationToken::new();
        let serving = telemetry.clone();
        tasks.spawn(async move {
            if let Err(error) = tapio_daemon::http::serve(listener, registry, health, serving).await {
                tracing::error!(%error, "telemetry is not served");
            }
        });
        tracing::info!(node = %config.node, incarnation = incarnation.0, %telemetry_address, "agent is running");
        Ok(Self {
            tasks,
            threads,
            finished,
            shutdown,
            telemetry,
            telemetry_address,
            capabilities,
            shelf,
            pins,
            on_exit: config.on_exit,
            _seeing: seeing,
        })
    }

    /// Where metrics and health are served.
    #[must_use]
    pub const fn telemetry_address(&self) -> SocketAddr {
        self.telemetry_address
    }

    /// Which probes work.
    #[must_use]
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// Waits for the shutdown, or for the end of what the agent cannot do without.
    ///
    /// # Errors
    /// With what ended although no shutdown was asked for.
    pub async fn until_end(&mut self) -> Result<(), AgentError> {
        let ended = loop {
            // Cancel-safe: the tokens only wait, and a task that has ended stays in the set until it is taken.
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                () = self.finished.cancelled() => break "the thread of the capture or of the spool",
                Some(joined) = self.tasks.join_next() => if let Err(panicked) = joined {
                    tracing::error!(%panicked, "a task of the agent panicked");
                    break "a task";
                },
            }
        };
        // The threads that are left end as they do at a shutdown.
        self.shutdown.cancel();
        Err(AgentError::Ended(ended))
    }

    /// Waits as [`Agent::until_end`] does, then until everything has ended, for a bounded time.
    pub async fn finish(mut self) {
        if let Err(error) = self.until_end().await {
            tracing::error!(%error, "agent ends by itself");
        }
        tracing::info!("agent ends");
        let threads = std::mem::take(&mut self.threads);
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                if thread.join().is_err() {
                    tracing::error!("a thread of the agent panicked");
                }
            }
        });
        if tokio::time::timeout(THREADS_END_MAX, joined).await.is_err() {
            tracing::error!("the agent's threads do not end");
        }
        self.finished.cancel();
        self.telemetry.cancel();
        tapio_daemon::shutdown::drain(&mut self.tasks, THREADS_END_MAX).await;
        if let Err(error) = self.shelf.end(Instant::now()) {
            tracing::error!(%error, "the spool's end is not on the disk");
        }
        // Behind the spool's end: until then the next agent could still go on from them.
        match (self.pins.take(), self.on_exit) {
            (Some(pins), OnExit::Remove) => match pins.remove() {
                Ok(removed) => tracing::info!(?removed, "the probes are removed"),
                Err(error) => {
                    let error = with_causes(&error);
                    tracing::error!(error, "the probes cannot be removed: `tapio-edge-agent uninstall` does");
                }
            },
            (Some(pins), OnExit::Keep) => tracing::info!(
                directory = %pins.directory().display(),
                "the probes go on for the next agent; `tapio-edge-agent uninstall` removes them"
            ),
            (None, _) => {}
        }
    }
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, AgentError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|source| AgentError::System { doing: "start a thread", source })
}

/// All that is wrong with the files and folders that the configuration names, without starting anything.
#[must_use]
pub fn check(config: &Config) -> Vec<Failure> {
    let failures = [
        match config.identity {
            IdentityConfig::Files(_) => credentials(config).err().map(Failure::config),
            // What is stored may be missing or over: it is asked for at the start.
            IdentityConfig::Enrol(ref enrol) => enrolment::check(enrol).err().map(Failure::config),
        },
        paths::folder("state.directory", &config.state_directory).err().map(Failure::config),
    ];
    failures.into_iter().flatten().collect()
}

/// What the node shows to others, which must be its own.
fn credentials(config: &Config) -> Result<Credentials, AgentError> {
    own(config, config.identity.files().load()?)
}

/// The same, where it has to be asked for if there is none that can be used.
async fn credentials_or_enrol(config: &Config) -> Result<Credentials, AgentError> {
    match &config.identity {
        IdentityConfig::Files(_) => credentials(config),
        IdentityConfig::Enrol(enrol) => own(config, enrolment::first(enrol).await?),
    }
}

fn own(config: &Config, credentials: Credentials) -> Result<Credentials, AgentError> {
    let name = credentials.name();
    let is_own = name.node_id() == Some(&config.node)
        && name.cluster() == Some(&config.cluster)
        && name.tenant() == Some(&config.tenant);
    if is_own {
        return Ok(credentials);
    }
    Err(AgentError::Name {
        certificate: name.to_string(),
        configured: format!("{}, {} and {}", config.tenant, config.cluster, config.node),
    })
}

/// What the agent runs on, and what its configuration allows it there.
fn host(config: &Config) -> Host {
    let system = rustix::system::uname();
    Host {
        kernel_release: system.release().to_string_lossy().into_owned(),
        architecture: system.machine().to_string_lossy().into_owned(),
        limits: vec![
            ("ring_bytes".to_owned(), u64::from(config.ring_bytes)),
            ("spool_bytes".to_owned(), config.spool_quota_bytes),
        ],
    }
}

/// The capability of every probe and source, for the hello.
fn describe(capabilities: &[Capability]) -> Vec<String> {
    let memory = ProbeCapability { probe: MEMORY_SOURCE.to_owned(), state: ProbeState::Working };
    describe_probes(capabilities).chain([memory.to_string()]).collect()
}

/// The capability of every probe, in words.
pub(crate) fn describe_probes(capabilities: &[Capability]) -> impl Iterator<Item = String> {
    capabilities.iter().map(|capability| {
        let state = match &capability.state {
            CapabilityState::Working => ProbeState::Working,
            CapabilityState::Disabled => ProbeState::Disabled,
            CapabilityState::Failed { reason } => ProbeState::Failed { reason: reason.clone() },
        };
        ProbeCapability { probe: capability.name().to_owned(), state }.to_string()
    })
}

/// Says in log, metrics and health which probes do not work, and why.
fn tell_capabilities(
    capabilities: &[Capability],
    unpinned: Option<String>,
    registry: &Registry,
    health: &Health,
) -> Progress {
    let working = probe_gauges(registry);
    let mut failed: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for capability in capabilities {
        let probe = capability.name();
        working.get_or_create(&Probe { probe }).set(u64::from(capability.is_working()));
        match &capability.state {
            CapabilityState::Working => {}
            CapabilityState::Disabled => tracing::info!(probe, "a probe is disabled by the configuration"),
            CapabilityState::Failed { reason } => {
                tracing::warn!(probe, reason, "a probe does not work: what it would see is missing");
                failed.entry(reason).or_default().push(probe);
            }
        }
    }
    let seeing = health.component("probes", SILENCE_MAX);
    seeing.idle();
    let told: Vec<String> = failed
        .iter()
        .map(|(reason, probes)| match probes.len() == capabilities.len() {
            true => format!("no probe works, nothing of the kernel is seen: {reason}"),
            false => format!("{} not seen: {reason}", probes.join(", ")),
        })
        .chain(unpinned)
        .collect();
    if !told.is_empty() {
        seeing.fault(told.join("; "));
    }
    seeing
}

fn missing(capabilities: &[Capability]) -> Vec<String> {
    let missing = capabilities.iter().filter(|capability| !capability.is_working());
    missing.map(|capability| capability.name().to_owned()).collect()
}

/// Listens for whoever asks for metrics and health.
async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), AgentError> {
    let refused = |doing| move |source| AgentError::System { doing, source };
    let listener = TcpListener::bind(address).await.map_err(refused("listen for telemetry"))?;
    let address = listener.local_addr().map_err(refused("name the telemetry's address"))?;
    Ok((listener, address))
}

/// What renews the certificate of a node that asked for it.
fn renewal(enrol: &EnrolConfig, credentials: &Credentials, registry: &Registry, health: &Health) -> Renewal {
    Renewal {
        config: enrol.clone(),
        credentials: credentials.clone(),
        metrics: enrolment::Metrics::new(registry),
        progress: health.component("enrolment", SILENCE_MAX),
    }
}

/// What the agent says of itself when it begins.
fn own_events(capabilities: &[Capability], now_nanos: u64) -> Vec<Event> {
    // They stand for no record, whatever probe they speak of.
    let own = |intent, probe| Event { records: 0, ..Event::new(now_nanos, intent, EventKind::Agent, probe) };
    let mut events = vec![own(intent::AGENT_STARTED, "agent")];
    for capability in capabilities {
        let state = match &capability.state {
            CapabilityState::Working => "state=working".to_owned(),
            CapabilityState::Disabled => "state=disabled".to_owned(),
            CapabilityState::Failed { reason } => {
                format!("state=failed\nreason={}", reason.replace('\n', " "))
            }
        };
        events.push(Event {
            severity: if capability.is_working() { Severity::Info } else { Severity::Notice },
            attributes: Some(state.into_boxed_str()),
            ..own(intent::PROBE_CAPABILITY, capability.name())
        });
    }
    events
}

#[cfg(test)]
mod tests;

//! The whole tier: what is started in which order, and how it ends.
//!
//! Called by `main` and by tests that run tiers in one process. Owns every thread and task; nothing is detached. The
//! end is the road in reverse: no more connections, sessions drained, the spool synced, what waits stored as far as
//! the deadline allows, the embedded engine stopped.

mod replay;
mod threads;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tapio_daemon::{Failure, Health, Registry, http, shutdown};
use tapio_identity::{Credentials, CredentialsError, quic};
use tapio_schemas::{ids::RuleSetVersion, units::UnixMicros};
use tapio_spool::{Ordinal, QuotaPolicy, Spool, SpoolConfig, SpoolError, SyncPolicy};
use tapio_store::client::BlockWriter;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::threads::Threads;
use crate::{
    config::Config,
    context::{Context, entities::Seen},
    engine::{
        self, EngineThread,
        outbox::{self, Announced, Outbox, OutboxError},
    },
    intake::{self, Intake},
    losses::Losses,
    metrics::Metrics,
    pipeline::{
        cut::{Marks, Stored},
        encode::{Encoder, EncoderError, Own},
        positions::Positions,
        spooler::{self, Command, Shared, Spooler},
        store::{FeedError, Feeder},
    },
    recent::Recent,
    rules::{Rules, RulesError},
    state::{StateDirectory, StateError},
    store_link::{self, StoreLink, StoreLinkError},
    tasks,
};

/// A segment of the spool; what is trimmed goes by segments.
const SEGMENT_BYTES: u64 = 16 << 20;
/// How long an insert may take before it counts as failed.
const INSERT_TIME_MAX: Duration = Duration::from_secs(60);
/// How long sessions may take to end.
const SESSIONS_TIME_MAX: Duration = Duration::from_secs(3);
/// How long what waits may take to be stored at the end.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a thread may take to end once it was told to.
const THREAD_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a thread may be silent while it has work.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Why the aggregator does not start, or ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// A rule is wrong; all faults are listed.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    State(#[from] StateError),
    /// The machine's certificate or key cannot be used.
    #[error("the machine's identity cannot be used")]
    Credentials(#[from] CredentialsError),
    /// The certificate is another machine's.
    #[error("the certificate names {found}, and the configuration {expected}: use the certificate that was issued for this aggregator")]
    OtherName {
        /// Who the certificate is for.
        found: String,
        /// Who the configuration says this is.
        expected: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key})")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The QUIC endpoint cannot be set up.
    #[error("the intake cannot be set up")]
    Endpoint(#[from] quic::EndpointError),
    /// Metrics and health cannot be served.
    #[error("metrics and health cannot be served")]
    Http(#[from] http::HttpError),
    /// The spool failed.
    #[error("the spool failed")]
    Spool(#[from] SpoolError),
    /// The store cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreLinkError),
    /// The way into the store cannot go on.
    #[error("the way into the store ended")]
    Feed(#[from] FeedError),
    /// Findings cannot be kept.
    #[error("findings cannot be kept")]
    Outbox(#[from] OutboxError),
    /// The encoder cannot be made.
    #[error("the encoder cannot be made")]
    Encoder(#[from] EncoderError),
    /// The engine's thread cannot go on.
    #[error("the engine ended")]
    Engine(#[from] engine::EngineThreadError),
    /// The system refuses a thread, or randomness.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A thread panicked, which is a fault of this program.
    #[error("the thread {name} ended unexpectedly")]
    Panicked {
        /// Which.
        name: &'static str,
    },
}

impl RunError {
    /// The process's failure: refused rules and another machine's certificate are the configuration's.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Rules(_) | Self::OtherName { .. } => Failure::config(self),
            other => Failure::other(other),
        }
    }
}

/// A running aggregator.
#[derive(Debug)]
pub struct Running {
    /// Where nodes connect.
    pub intake_addr: SocketAddr,
    /// Where metrics and health are.
    pub http_addr: SocketAddr,
    /// ClickHouse's HTTP address.
    pub store_url: String,
    /// The file that tells central where to read.
    pub connection_file: std::path::PathBuf,
    /// The rule set in force.
    pub rule_set: RuleSetVersion,
    /// The findings that were announced lately.
    pub recent: Recent,
    /// The health of every part.
    pub health: Health,
    /// All metrics.
    pub registry: Registry,
    link: StoreLink,
    accept: CancellationToken,
    sessions: JoinSet<()>,
    tasks: JoinSet<Result<(), RunError>>,
    background: CancellationToken,
    threads: Threads,
    spooler: mpsc::Sender<Command>,
    shared: Arc<Shared>,
    engine: mpsc::Sender<engine::Batch>,
    drain: CancellationToken,
    stop: CancellationToken,
    /// Whether the schema is up: before, nothing can be stored.
    ready: watch::Receiver<bool>,
    losses: Arc<Losses>,
    own_name: String,
}

/// Runs the aggregator until `shutdown` is cancelled, or until a part of it fails.
///
/// # Errors
/// When it cannot start, or a part failed that it cannot go on without.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let mut running = start(config).await?;
    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        error = running.failed() => Some(error),
    };
    let stopped = running.stop().await;
    match failed {
        Some(error) => Err(error),
        None => stopped,
    }
}

/// Starts the aggregator and returns once it accepts nodes.
///
/// # Errors
/// When it cannot start; nothing keeps running then.
pub async fn start(config: Config) -> Result<Running, RunError> {
    let rules = Rules::compile(config.rules.as_deref())?;
    let state = StateDirectory::open(&config.state.directory)?;
    let identity = &config.identity;
    let credentials = Credentials::load(&identity.certificate, &identity.key, &identity.authority)?;
    if *credentials.name() != config.name {
        let (found, expected) = (credentials.name().to_string(), config.name.to_string());
        return Err(RunError::OtherName { found, expected });
    }
    let listen = |key, address, source| RunError::Listen { key, address, source };
    let address = config.intake.listen;
    let socket = UdpSocket::bind(address).map_err(|source| listen("intake.listen", address, source))?;
    let endpoint = quic::server_endpoint(socket, &credentials)?;
    let intake_addr =
        endpoint.local_addr().map_err(|source| listen("intake.listen", address, source))?;
    let address = config.telemetry.listen;
    let http_listener =
        TcpListener::bind(address).await.map_err(|source| listen("telemetry.listen", address, source))?;
    let http_addr =
        http_listener.local_addr().map_err(|source| listen("telemetry.listen", address, source))?;

    let (registry, health) = (Registry::new(), Health::new());
    let metrics = Metrics::register(&registry);
    let losses = Arc::new(Losses::new(now()));
    let context = Context::default();
    let seen = Arc::new(Seen::new(config.tenant.as_str(), config.cluster.as_str()));
    let recent = Recent::new(config.recent.findings_max);

    let (spool, _recovery) = Spool::open(&state.spool(), spool_config(&config))?;
    let marks = Marks::new(&state);
    let (stored, pending) = load_marks(&marks, &spool)?;
    let positions = Arc::new(Positions::default());
    for (source, position) in stored.positions() {
        positions.stored(source, position);
    }
    let announcements = replay::scan(&spool, &positions)?;
    let (announced, earlier) = Announced::open(&state)?;

    let link = StoreLink::open(&config.store, &state).await?;
    let writer = BlockWriter::new(link.writer().clone(), INSERT_TIME_MAX);

    let mut threads = Threads::new();
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let (background, accept) = (CancellationToken::new(), CancellationToken::new());
    let (ready_sender, ready) = watch::channel(false);
    let shared = Arc::new(Shared::default());
    shared.set_synced(spool.synced());
    let (commands, queue) = mpsc::channel(spooler::QUEUE_RECORDS_MAX);

    // The replay is the engine's first work, so nothing that comes later can overtake it.
    let replay_until = spool.next();
    let replay_reader = spool.read_from(spool.first());
    let (engine_sender, engine_queue) = mpsc::channel(engine::QUEUE_BATCHES_MAX);

    let mut encoder = Encoder::new(own(&config), context.clone())?;
    for announcement in &announcements {
        encoder.remember(announcement);
    }
    let feeder = Feeder {
        reader: spool.read_from(Ordinal(stored.until)),
        shared: Arc::clone(&shared),
        spooler: commands.clone(),
        marks,
        stored,
        pending,
        encoder,
        writer: writer.clone(),
        runtime: Handle::current(),
        positions: Arc::clone(&positions),
        losses: Arc::clone(&losses),
        metrics: metrics.store.clone(),
        progress: health.component("store", SILENCE_MAX),
        drain: drain.clone(),
        stop: stop.clone(),
        replay_window: config.state.replay_window.max(rules.horizon()),
        replay_bytes_max: config.state.spool_bytes_max / 2,
    };
    let wait = threads::until_ready(ready.clone(), stop.clone());
    let feeder_thread = threads.spawn("store", move || {
        if wait() { feeder.run().map_err(RunError::from) } else { Ok(()) }
    })?;
    let spooler = Spooler {
        spool,
        commands: queue,
        shared: Arc::clone(&shared),
        progress: health.component("spool", SILENCE_MAX),
        metrics: metrics.spool.clone(),
        reader: feeder_thread,
    };
    threads.spawn("spool", move || spooler.run().map_err(RunError::from))?;

    let (outbox, findings_stored) = Outbox::new(
        &state,
        &announced,
        outbox::Parts {
            writer: writer.clone(),
            runtime: Handle::current(),
            losses: Arc::clone(&losses),
            metrics: metrics.engine.clone(),
            progress: health.component("findings", SILENCE_MAX),
            drain: drain.clone(),
            stop: stop.clone(),
        },
    )?;
    let wait = threads::until_ready(ready.clone(), stop.clone());
    let outbox_thread = threads.spawn("findings", move || {
        if wait() { outbox.run().map_err(RunError::from) } else { Ok(()) }
    })?;
    let engine_thread = EngineThread::new(engine::Parts {
        rules: Arc::clone(rules.engine()),
        tenant: config.tenant.clone(),
        cluster: config.cluster.clone(),
        context: context.clone(),
        seen: Arc::clone(&seen),
        recent: recent.clone(),
        announced,
        earlier,
        findings_stored,
        outbox: outbox_thread,
        replay: replay_reader,
        replay_until,
        queue: engine_queue,
        runtime: Handle::current(),
        losses: Arc::clone(&losses),
        metrics: metrics.engine.clone(),
        progress: health.component("engine", SILENCE_MAX),
        replay_window: config.state.replay_window.max(rules.horizon()),
    });
    threads.spawn("engine", move || engine_thread.run().map_err(RunError::from))?;

    let mut tasks = JoinSet::new();
    let schema = link.bring_up(health.component("schema", SILENCE_MAX), stop.clone());
    if link.is_embedded() {
        // Our own child answers already, and who starts central next must find the schema.
        ready_sender.send_replace(schema.await?);
    } else {
        tasks.spawn(async move {
            ready_sender.send_replace(schema.await?);
            Ok(())
        });
    }
    let token = background.clone();
    let (http_registry, http_health) = (registry.clone(), health.clone());
    tasks.spawn(async move { Ok(http::serve(http_listener, http_registry, http_health, token).await?) });
    if let Some(path) = config.identities.clone() {
        let progress = health.component("names", SILENCE_MAX);
        tasks.spawn(tasks::watch_names(path, context.clone(), Arc::clone(&seen), progress, background.clone()));
    }
    tasks.spawn(tasks::store_entities(
        Arc::clone(&seen),
        context,
        writer,
        metrics.store.clone(),
        Arc::clone(&losses),
        background.clone(),
    ));
    let own_name = config.name.to_string();
    tasks.spawn(tasks::spool_losses(
        Arc::clone(&losses),
        commands.clone(),
        own_name.clone(),
        background.clone(),
    ));

    let mut sessions = JoinSet::new();
    let intake = Intake::new(intake::Parts {
        endpoint,
        own: config.name.clone(),
        connections_max: config.intake.connections_max,
        positions,
        spooler: commands.clone(),
        engine: engine_sender.clone(),
        rules: Arc::new(rules.clone()),
        losses: Arc::clone(&losses),
        metrics: metrics.intake,
        health: health.clone(),
        accept: accept.clone(),
    });
    sessions.spawn(intake.serve());
    tracing::info!(%intake_addr, %http_addr, store = link.writer().url(), rule_set = %rules.version(), "the aggregator accepts nodes");
    Ok(Running {
        intake_addr,
        http_addr,
        store_url: link.writer().url().to_owned(),
        connection_file: store_link::connection_file(&state),
        rule_set: rules.version(),
        recent,
        health,
        registry,
        link,
        accept,
        sessions,
        tasks,
        background,
        threads,
        spooler: commands,
        shared,
        engine: engine_sender,
        drain,
        stop,
        ready,
        losses,
        own_name,
    })
}

impl Running {
    /// Waits until a part fails that the aggregator cannot go on without. Cancel-safe.
    pub async fn failed(&mut self) -> RunError {
        loop {
            // Both branches are cancel-safe.
            tokio::select! {
                error = self.threads.failed() => return error,
                Some(joined) = self.tasks.join_next() => match joined {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error,
                    Err(_panicked) => return RunError::Panicked { name: "task" },
                },
            }
        }
    }

    /// The embedded engine's process, where there is one and it runs.
    #[must_use]
    pub fn store_pid(&self) -> Option<u32> {
        self.link.engine_pid()
    }

    /// Ends in order, within a deadline. What is not stored by then waits in the spool for the next start.
    ///
    /// # Errors
    /// When a part failed on the way; the other parts are ended all the same.
    pub async fn stop(mut self) -> Result<(), RunError> {
        self.accept.cancel();
        shutdown::drain(&mut self.sessions, SESSIONS_TIME_MAX).await;
        if let Some(append) = tasks::losses_record(&self.losses, &self.own_name) {
            // A full queue at the end loses only counts, which the log then has.
            if self.spooler.try_send(Command::Append(append)).is_err() {
                tracing::warn!("the last counts of losses were not written down");
            }
        }
        self.background.cancel();
        self.shared.close();
        let mut result = Ok(());
        if tokio::time::timeout(THREAD_TIME_MAX, self.spooler.send(Command::Close)).await.is_err() {
            tracing::error!("the spool takes no more commands");
        }
        drop(self.engine);
        result = result.and(self.threads.join("spool", THREAD_TIME_MAX).await);
        result = result.and(self.threads.join("engine", THREAD_TIME_MAX).await);
        self.drain.cancel();
        if !*self.ready.borrow() {
            // There was no store all the time, so there is nothing to wait for.
            self.stop.cancel();
        }
        let drained = async {
            let store = self.threads.join("store", DRAIN_TIME_MAX).await;
            store.and(self.threads.join("findings", DRAIN_TIME_MAX).await)
        };
        match tokio::time::timeout(DRAIN_TIME_MAX, drained).await {
            Ok(ended) => result = result.and(ended),
            Err(_elapsed) => tracing::warn!("not everything is stored, the rest waits in the spool"),
        }
        self.stop.cancel();
        for name in ["store", "findings"] {
            result = result.and(self.threads.join(name, THREAD_TIME_MAX).await);
        }
        shutdown::drain(&mut self.tasks, THREAD_TIME_MAX).await;
        if let Err(error) = self.link.close().await {
            tracing::warn!(%error, "the embedded engine did not end in order");
        }
        result
    }
}

fn spool_config(config: &Config) -> SpoolConfig {
    SpoolConfig {
        segment_bytes_max: SEGMENT_BYTES,
        quota_bytes: config.state.spool_bytes_max,
        quota_policy: QuotaPolicy::Refuse,
        sync: SyncPolicy::ByCaller,
    }
}

fn own(config: &Config) -> Own {
    let name = config.name.to_string();
    // A node's name differs from its aggregator's in the last two parts.
    let prefix = name.rsplitn(3, '/').nth(2).unwrap_or_default();
    Own {
        tenant: config.tenant.as_str().to_owned(),
        cluster: config.cluster.as_str().to_owned(),
        node_prefix: format!("{prefix}/node/"),
        source: config.name.source_id(),
    }
}

/// The marks of this spool. One that is shorter than its mark is another spool: it gets a number of its own, so that
/// its blocks are not taken for those of the one before.
fn load_marks(
    marks: &Marks,
    spool: &Spool,
) -> Result<(Stored, Option<crate::pipeline::cut::Cut>), RunError> {
    let (stored, cut) = marks.load()?;
    match stored {
        Some(stored) if stored.until <= spool.next().0 => {
            let cut = cut.filter(|cut| cut.from == stored.until && cut.until <= spool.next().0);
            Ok((stored, cut))
        }
        other => {
            if other.is_some() {
                tracing::error!("the spool is not the one that the stored mark speaks of: it starts anew");
            }
            let mut number = [0; 16];
            getrandom::fill(&mut number).map_err(|error| RunError::System {
                doing: "get a random number",
                source: std::io::Error::other(error.to_string()),
            })?;
            let stored = Stored {
                spool: format!("{:032x}", u128::from_be_bytes(number)),
                until: spool.first().0,
                sources: other.map(|other| other.sources).unwrap_or_default(),
            };
            marks.forget_cut()?;
            marks.write_stored(&stored)?;
            Ok((stored, None))
        }
    }
}

/// The aggregator's clock.
pub(crate) fn now() -> UnixMicros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMicros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Checks what can be checked without starting anything: the rules.
///
/// # Errors
/// When a rule is wrong; all faults are listed.
pub fn check(config: &Config) -> Result<(), RunError> {
    Rules::compile(config.rules.as_deref())?;
    Ok(())
}

//! The whole tier: what is started in which order, and how it ends.
//!
//! Called by `main` and by tests that run tiers in one process. Owns every thread and task; nothing is detached. The
//! end is the road in reverse: no more connections, sessions drained, the spool synced, what waits stored as far as
//! the deadline allows, the embedded engine stopped.

mod base;
mod error;
mod threads;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tapio_daemon::{Failure, Health, Registry, config::paths, shutdown};
use tapio_identity::RevocationList;
use tapio_schemas::ids::RuleSetVersion;
use tapio_spool::{Ordinal, QuotaPolicy, SpoolConfig, SyncPolicy, disk::RealDisk};
use tapio_store::client::{BlockWriter, SessionId};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

pub use self::error::RunError;
use self::{
    base::{Base, Fed, Listening},
    threads::Threads,
};
use crate::{
    clock::now,
    config::{Config, Password, StoreConfig},
    context::{Context, Watch},
    engine,
    enrolment::Enrolment,
    identity::Identity,
    intake::{self, Intake},
    live,
    losses::Losses,
    pipeline::{
        encode::{Encoder, Own},
        history::History,
        journal::{Journal, Shared},
        positions::Positions,
        spooler::{self, Command},
        start::{self, Opened, StartError},
        store::{Feeder, Road},
        writer::{self, Writer},
    },
    recent::Recent,
    rules::Rules,
    state::StateDirectory,
    store_link::{self, StoreLink, StoreLinkError},
    tasks,
};

/// A segment of the spool; what is trimmed goes by segments.
const SEGMENT_BYTES: u64 = 16 << 20;
/// What the spool of frames leaves free on its disk, for the store to go on with what waits.
const DISK_RESERVE_BYTES: u64 = 64 << 20;
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

/// A running aggregator.
#[derive(Debug)]
pub struct Running {
    /// Where nodes connect.
    pub intake_addr: SocketAddr,
    /// Where nodes get their certificates, if they get them here.
    pub enrolment_addr: Option<SocketAddr>,
    /// Where metrics and health are.
    pub http_addr: SocketAddr,
    /// Where programs ask for findings and events.
    pub grpc_addr: SocketAddr,
    /// Where people look at findings.
    pub dashboard_addr: SocketAddr,
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
    engine: engine::queue::Queue,
    drain: CancellationToken,
    streams: CancellationToken,
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
    // A start that is given up leaves nothing behind: its threads end when what they listen to is dropped.
    let mut running = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        running = start(config) => running?,
    };
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
    let Listening { identity, enrolment, endpoint, intake_addr, http_listener, http_addr, grpc, dashboard } =
        Listening::bind(&config).await?;
    let base = Base::new(&config, rules);
    // Cancelled when the start fails or is given up, so that no thread waits for a store that never comes.
    let given_up = base.stop.clone().drop_guard();
    let Opened { spool, marks, stored, pending, announcements } = read_state(&state, &config, &base).await?;
    let link = StoreLink::open(&config.store, &state).await?;
    let blocks = BlockWriter::new(link.writer().clone(), INSERT_TIME_MAX);

    let mut threads = Threads::new();
    let (ready_sender, ready) = watch::channel(false);
    let shared = Arc::new(Shared::default());
    let (spooler, queue) = mpsc::channel(spooler::QUEUE_RECORDS_MAX);
    let (engine, engine_queue) = engine::queue::queue();

    let mut encoder = Encoder::new(own(&config), base.context.clone())?;
    base.remember(&mut encoder, &announcements);
    let fed = Fed { announcements, queue: engine_queue, record: config.record.as_ref() };
    let tape = base.start_engine(&mut threads, &state, &spool, fed, &blocks, ready.clone())?;
    // Until the schema is up neither has anything to do.
    let storing = base.health.component("store", SILENCE_MAX);
    storing.idle();
    let parts = writer::Parts {
        reader: spool.read_from(Ordinal(stored.until)),
        marks,
        stored,
        pending,
        encoder,
        positions: Arc::clone(&base.positions),
        losses: Arc::clone(&base.losses),
        metrics: base.metrics.store.clone(),
        replay_window: base.replay_window,
    };
    let session = session()?;
    let road = Road {
        shared: Arc::clone(&shared),
        spooler: spooler.clone(),
        blocks: blocks.in_session(session.clone()),
        history: History::new(link.writer(), own(&config), session),
        runtime: Handle::current(),
        metrics: base.metrics.store.clone(),
        progress: storing,
        drain: base.drain.clone(),
        stop: base.stop.clone(),
        replay_bytes_max: config.state.spool_bytes_max / 2,
    };
    let feeder = Feeder { writer: Writer::new(parts, Instant::now()), road };
    let wait = threads::until_ready(ready.clone(), base.stop.clone());
    let reader =
        threads.spawn("store", move || if wait() { feeder.run().map_err(RunError::from) } else { Ok(()) })?;
    base.start_spooler(&mut threads, Journal::new(spool, Arc::clone(&shared)), queue, &shared, reader)?;

    let (live, tap, distributor) =
        live::live(config.cluster.as_str(), base.metrics.live.clone()).map_err(RunError::Live)?;
    base.start_live(&mut threads, distributor)?;
    let mut tasks = JoinSet::new();
    let schema = link.bring_up(base.health.component("schema", SILENCE_MAX), base.stop.clone());
    if link.is_embedded() {
        // Our own child answers already, and who starts central next must find the schema.
        ready_sender.send_replace(schema.await?);
    } else {
        tasks.spawn(async move {
            ready_sender.send_replace(schema.await?);
            Ok(())
        });
    }
    base.start_tasks(&mut tasks, &config, http_listener, blocks, &spooler);
    let (grpc_addr, dashboard_addr) = (grpc.address, dashboard.address);
    base.start_servers(&mut tasks, &config, (grpc, dashboard), live);
    let mut sessions = JoinSet::new();
    let revocations = base.start_identity(&mut tasks, identity, endpoint.clone());
    let enrolment_addr = base.start_enrolment(&mut tasks, enrolment);
    let intake = Intake::new(intake::Parts {
        endpoint,
        own: config.name.clone(),
        revocations,
        limits: config.intake.clone(),
        positions: base.positions,
        spooler: spooler.clone(),
        engine: engine.clone(),
        tap,
        tape,
        rules: Arc::new(base.rules.clone()),
        losses: Arc::clone(&base.losses),
        nodes: base.nodes,
        metrics: base.metrics.intake,
        health: base.health.clone(),
        announce_interval: base.replay_window / 2,
        accept: base.accept.clone(),
    });
    sessions.spawn(intake.serve());
    let (store_url, rule_set) = (link.writer().url().to_owned(), base.rules.version());
    tracing::info!(%intake_addr, %http_addr, store_url, %rule_set, "the aggregator accepts nodes");
    let _started = given_up.disarm();
    Ok(Running {
        intake_addr,
        enrolment_addr,
        http_addr,
        grpc_addr,
        dashboard_addr,
        store_url,
        connection_file: store_link::connection_file(&state),
        rule_set,
        recent: base.recent,
        health: base.health,
        registry: base.registry,
        link,
        accept: base.accept,
        sessions,
        tasks,
        background: base.background,
        threads,
        spooler,
        shared,
        engine,
        drain: base.drain,
        streams: base.streams,
        stop: base.stop,
        ready,
        losses: base.losses,
        own_name: config.name.to_string(),
    })
}

/// Opens what is on the disk, which takes as long as the disk needs to read a spool through.
async fn read_state(state: &StateDirectory, config: &Config, base: &Base) -> Result<Opened, RunError> {
    let (state, config, positions) = (state.clone(), spool_config(config), Arc::clone(&base.positions));
    let opened = tokio::task::spawn_blocking(move || open(&state, config, &positions)).await;
    Ok(opened.map_err(|_panicked| RunError::Panicked { name: "start" })??)
}

impl Running {
    /// Waits until a part fails that the aggregator cannot go on without. Cancel-safe.
    pub async fn failed(&mut self) -> RunError {
        loop {
            // All branches are cancel-safe.
            tokio::select! {
                error = self.threads.failed() => return error,
                Some(joined) = self.tasks.join_next() => match joined {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error,
                    Err(_panicked) => return RunError::Panicked { name: "task" },
                },
                // It ends only when it is told to, and nobody has told it yet.
                Some(_ended) = self.sessions.join_next() => return RunError::Panicked { name: "intake" },
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
        // The sessions held the other end of its queue.
        result = result.and(self.threads.join("live", THREAD_TIME_MAX).await);
        self.streams.cancel();
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
        for name in ["store", "findings", "recording"] {
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
        reserve_bytes: DISK_RESERVE_BYTES,
        sync: SyncPolicy::ByCaller,
    }
}

/// The name of the session that this process inserts in: no other ever has it.
fn session() -> Result<SessionId, RunError> {
    let number = random_number().map_err(StartError::Random)?;
    Ok(SessionId::new(format!("tapio-{number:032x}")).map_err(StoreLinkError::from)?)
}

/// 128 random bits.
fn random_number() -> Result<u128, String> {
    let mut number = [0; 16];
    getrandom::fill(&mut number).map_err(|error| error.to_string())?;
    Ok(u128::from_be_bytes(number))
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
        name,
    }
}

/// Opens the spool and sets how far each source's frames are received and stored.
fn open(state: &StateDirectory, config: SpoolConfig, positions: &Positions) -> Result<Opened, StartError> {
    let mut random = random_number;
    let place = start::Place {
        disk: Arc::new(RealDisk),
        root: state.root(),
        spool: &state.spool(),
        config,
        now: now(),
        random: &mut random,
    };
    start::open(place, positions)
}

/// All that is wrong with what the configuration names, without starting or changing anything: rules, certificates,
/// names of pods, passwords, the engine's library, folders.
pub fn check(config: &Config) -> Vec<Failure> {
    let mut failures: Vec<Failure> = [
        Rules::compile(config.rules.as_deref()).map(drop).map_err(RunError::from),
        Identity::load(config)
            .and_then(|identity| Ok(Enrolment::load(config, identity.credentials())?))
            .map(drop),
        base::grpc_tls(config, &RevocationList::default()).map(drop),
        base::dashboard_tls(config).map(drop),
    ]
    .into_iter()
    .filter_map(Result::err)
    .map(RunError::into_failure)
    .collect();
    if let Some(identities) = &config.identities {
        let look = Watch::new(identities.clone(), Context::default()).look();
        failures.extend(look.err().map(Failure::config));
    }
    if let StoreConfig::Server { password, reader, .. } = &config.store {
        let passwords = [Some(password), reader.as_ref().map(|(_user, password)| password)];
        let files = passwords.into_iter().flatten().filter_map(|password| match password {
            Password::File(path) => Some(path),
            Password::None | Password::Text(_) => None,
        });
        failures.extend(files.filter_map(|path| store_link::read_password(path).err()).map(Failure::config));
    }
    let mut paths = vec![paths::folder("state.directory", &config.state.directory)];
    if let Some(record) = &config.record {
        paths.push(paths::folder("record.directory", &record.directory));
    }
    if let StoreConfig::Embedded { library: Some(library) } = &config.store {
        paths.push(paths::file("store.library", library));
    }
    failures.extend(paths.into_iter().filter_map(Result::err).map(Failure::config));
    failures
}

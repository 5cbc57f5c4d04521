//! What nearly every part of the tier holds, the sockets, and how the engine and the small tasks are started.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use tapio_correlation::AnalysisLimits;
use tapio_daemon::{Health, Registry, http};
use tapio_identity::{Credentials, RevocationList, https, quic};
use tapio_schemas::ids::{ClusterId, TenantId};
use tapio_spool::Spool;
use tapio_store::client::BlockWriter;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    RunError, SILENCE_MAX,
    threads::{self, Threads},
};
use crate::{
    chains::Chains,
    clock::{self, now},
    config::{Config, GrpcConfig, RecordConfig},
    context::{Context, entities::Seen},
    dashboard,
    engine::{
        self, EngineThread, Watermark,
        outbox::{self, Announced, Outbox},
    },
    enrolment::Enrolment,
    grpc,
    identity::Identity,
    live::{Distributor, Live},
    losses::Losses,
    metrics::Metrics,
    nodes::Nodes,
    pipeline::{
        encode::Encoder,
        journal::{Journal, Shared},
        positions::Positions,
        spooler::{Command, Spooler},
    },
    recent::Recent,
    recording::{self, Recorder, Tape, Writer},
    rules::Rules,
    source::Announcement,
    state::StateDirectory,
    tasks::{self, OwnName},
};

/// The sockets.
pub(super) struct Listening {
    pub(super) identity: Identity,
    pub(super) enrolment: Option<EnrolmentListening>,
    pub(super) endpoint: quinn::Endpoint,
    pub(super) intake_addr: SocketAddr,
    pub(super) http_listener: TcpListener,
    pub(super) http_addr: SocketAddr,
    pub(super) grpc: GrpcListening,
    pub(super) dashboard: DashboardListening,
}

/// The socket of enrolment, and what answers there.
pub(super) struct EnrolmentListening {
    listener: TcpListener,
    address: SocketAddr,
    enrolment: Enrolment,
}

/// gRPC's socket and what is spoken on it.
pub(super) struct GrpcListening {
    listener: TcpListener,
    pub(super) address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
}

/// The dashboard's socket and what is spoken on it.
pub(super) struct DashboardListening {
    listener: TcpListener,
    pub(super) address: SocketAddr,
    /// None on loopback, where nothing was said of a certificate.
    tls: Option<Arc<rustls::ServerConfig>>,
}

impl Listening {
    pub(super) async fn bind(config: &Config) -> Result<Self, RunError> {
        let identity = Identity::load(config)?;
        let refuse = |key, address| move |source| RunError::Listen { key, address, source };
        let address = config.intake.listen;
        let refused = refuse("intake.listen", address);
        let socket = UdpSocket::bind(address).map_err(&refused)?;
        let endpoint = quic::server_endpoint(socket, identity.credentials())?;
        let intake_addr = endpoint.local_addr().map_err(&refused)?;
        let address = config.telemetry_listen;
        let refused = refuse("telemetry.listen", address);
        let http_listener = TcpListener::bind(address).await.map_err(&refused)?;
        let http_addr = http_listener.local_addr().map_err(&refused)?;
        let (tls, listen) = (grpc_tls(config, identity.revocations())?, &config.grpc.listen);
        let refused = refuse("grpc.listen", *listen);
        let listener = TcpListener::bind(listen).await.map_err(&refused)?;
        let address = listener.local_addr().map_err(&refused)?;
        let grpc = GrpcListening { listener, address, tls };
        let (tls, listen) = (dashboard_tls(config)?, &config.dashboard.listen);
        let refused = refuse("dashboard.listen", *listen);
        let listener = TcpListener::bind(listen).await.map_err(&refused)?;
        let address = listener.local_addr().map_err(&refused)?;
        let dashboard = DashboardListening { listener, address, tls };
        let enrolment = match Enrolment::load(config, identity.credentials())? {
            None => None,
            Some(enrolment) => {
                let listen = config.enrolment.as_ref().map_or(config.intake.listen, |config| config.listen);
                let refused = refuse("enrolment.listen", listen);
                let listener = TcpListener::bind(listen).await.map_err(&refused)?;
                let address = listener.local_addr().map_err(&refused)?;
                Some(EnrolmentListening { listener, address, enrolment })
            }
        };
        Ok(Self { identity, enrolment, endpoint, intake_addr, http_listener, http_addr, grpc, dashboard })
    }
}

/// What gRPC shows, and whose clients it takes.
pub(super) fn grpc_tls(
    config: &Config,
    revocations: &RevocationList,
) -> Result<Arc<rustls::ServerConfig>, RunError> {
    let GrpcConfig { certificate, key, client_authority, .. } = &config.grpc;
    https::grpc_server_config(certificate, key, client_authority.as_deref(), revocations)
        .map_err(RunError::GrpcTls)
}

/// What the dashboard shows, where it speaks HTTPS.
pub(super) fn dashboard_tls(config: &Config) -> Result<Option<Arc<rustls::ServerConfig>>, RunError> {
    let tls = config.dashboard.tls.as_ref();
    let tls = tls.map(|(certificate, key)| https::server_config(certificate, key));
    tls.transpose().map_err(RunError::DashboardTls)
}

/// What the engine is fed with beside the spool.
pub(super) struct Fed<'a> {
    /// What each node said last, with its name.
    pub(super) announcements: Vec<(String, Announcement)>,
    pub(super) queue: mpsc::Receiver<engine::queue::Batch>,
    /// Where that is recorded.
    pub(super) record: Option<&'a RecordConfig>,
}

/// What nearly every part holds.
pub(super) struct Base {
    pub(super) tenant: TenantId,
    pub(super) cluster: ClusterId,
    pub(super) rules: Rules,
    pub(super) registry: Registry,
    pub(super) health: Health,
    pub(super) metrics: Metrics,
    pub(super) losses: Arc<Losses>,
    pub(super) context: Context,
    pub(super) seen: Arc<Seen>,
    pub(super) recent: Recent,
    pub(super) chains: Chains,
    pub(super) nodes: Nodes,
    pub(super) watermark: Watermark,
    pub(super) positions: Arc<Positions>,
    pub(super) replay_window: Duration,
    pub(super) accept: CancellationToken,
    pub(super) background: CancellationToken,
    pub(super) drain: CancellationToken,
    /// Cancelled when the engine has ended: streams of findings and events end.
    pub(super) streams: CancellationToken,
    pub(super) stop: CancellationToken,
}

impl Base {
    pub(super) fn new(config: &Config, rules: Rules) -> Self {
        let registry = Registry::new();
        Self {
            tenant: config.tenant.clone(),
            cluster: config.cluster.clone(),
            metrics: Metrics::register(&registry),
            losses: Arc::new(Losses::new(now()).metered(&registry)),
            registry,
            health: Health::new(),
            context: Context::default(),
            seen: Arc::new(Seen::new(config.tenant.as_str(), config.cluster.as_str())),
            recent: Recent::new(config.recent.findings_max),
            chains: Chains::new(config.recent.findings_max),
            nodes: Nodes::default(),
            watermark: Watermark::default(),
            positions: Arc::default(),
            // The engine must see again all that a verdict may rest on.
            replay_window: config.state.replay_window.max(rules.horizon()),
            rules,
            accept: CancellationToken::new(),
            background: CancellationToken::new(),
            drain: CancellationToken::new(),
            streams: CancellationToken::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Starts the engine's thread, that of its findings' way into the store, and that of the recording. The replay is
    /// its first work, so nothing that comes later can overtake it.
    pub(super) fn start_engine(
        &self,
        threads: &mut Threads,
        state: &StateDirectory,
        spool: &Spool,
        fed: Fed<'_>,
        writer: &BlockWriter,
        ready: watch::Receiver<bool>,
    ) -> Result<Tape, RunError> {
        let limits = AnalysisLimits::default();
        let (tape, recorder) = self.start_recording(threads, fed.record, limits)?;
        let lacks = |(node, said): (String, Announcement)| (node, said.missing_probes().into());
        let (announced, earlier) = Announced::open(state)?;
        self.recent.of_log(state.findings_log()?);
        let storing = self.health.component("findings", SILENCE_MAX);
        storing.idle();
        let (outbox, findings_stored) = Outbox::new(
            state,
            &announced,
            outbox::Parts {
                writer: writer.clone(),
                runtime: Handle::current(),
                losses: Arc::clone(&self.losses),
                metrics: self.metrics.engine.clone(),
                progress: storing,
                drain: self.drain.clone(),
                stop: self.stop.clone(),
            },
        )?;
        let wait = threads::until_ready(ready, self.stop.clone());
        let outbox = threads
            .spawn("findings", move || if wait() { outbox.run().map_err(RunError::from) } else { Ok(()) })?;
        let thread = EngineThread::new(engine::Parts {
            rules: Arc::clone(self.rules.engine()),
            limits,
            tenant: self.tenant.clone(),
            cluster: self.cluster.clone(),
            context: self.context.clone(),
            seen: Arc::clone(&self.seen),
            recent: self.recent.clone(),
            chains: self.chains.clone(),
            watermark: self.watermark.clone(),
            announced,
            earlier,
            findings_stored,
            outbox,
            replay: spool.read_from(spool.first()),
            replay_until: spool.next(),
            missing: fed.announcements.into_iter().map(lacks).collect(),
            recorder,
            queue: fed.queue,
            runtime: Handle::current(),
            losses: Arc::clone(&self.losses),
            metrics: self.metrics.engine.clone(),
            progress: self.health.component("engine", SILENCE_MAX),
            replay_window: self.replay_window,
        });
        threads.spawn("engine", move || thread.run().map_err(RunError::from))?;
        Ok(tape)
    }

    /// Starts the thread that records what the engine takes, where that is asked for.
    fn start_recording(
        &self,
        threads: &mut Threads,
        config: Option<&RecordConfig>,
        limits: AnalysisLimits,
    ) -> Result<(Tape, Recorder), RunError> {
        let Some(config) = config else { return Ok(recording::nothing()) };
        let (tape, recorder, source) = recording::recording();
        let writer = Writer::open(
            config,
            recording::Parts {
                rules: Arc::clone(self.rules.engine()),
                tenant: self.tenant.clone(),
                cluster: self.cluster.clone(),
                limits,
                reserve_bytes: super::DISK_RESERVE_BYTES,
                began: now(),
                source,
                runtime: Handle::current(),
                metrics: self.metrics.recording.clone(),
                progress: self.health.component("recording", SILENCE_MAX),
                stop: self.stop.clone(),
            },
        )?;
        threads.spawn("recording", move || {
            writer.run();
            Ok(())
        })?;
        Ok((tape, recorder))
    }

    /// Starts the thread that commits what is received.
    pub(super) fn start_spooler(
        &self,
        threads: &mut Threads,
        journal: Journal,
        commands: mpsc::Receiver<Command>,
        shared: &Arc<Shared>,
        reader: std::thread::Thread,
    ) -> Result<(), RunError> {
        let progress = self.health.component("spool", SILENCE_MAX);
        let (metrics, shared) = (self.metrics.spool.clone(), Arc::clone(shared));
        let spooler = Spooler { journal, commands, shared, progress, metrics, reader };
        threads.spawn("spool", move || spooler.run().map_err(RunError::from)).map(drop)
    }

    /// Starts the thread that brings events to subscribers.
    pub(super) fn start_live(&self, threads: &mut Threads, distributor: Distributor) -> Result<(), RunError> {
        let progress = self.health.component("live", SILENCE_MAX);
        threads.spawn("live", move || {
            distributor.run(progress);
            Ok(())
        })?;
        Ok(())
    }

    /// Takes over what nodes said of themselves before this start.
    pub(super) fn remember(&self, encoder: &mut Encoder, announcements: &[(String, Announcement)]) {
        for (node, announcement) in announcements {
            encoder.remember(announcement);
            self.nodes.remember(node, announcement);
        }
    }

    /// Starts what programs and people ask: gRPC and the dashboard.
    pub(super) fn start_servers(
        &self,
        tasks: &mut JoinSet<Result<(), RunError>>,
        config: &Config,
        (grpc, dashboard): (GrpcListening, DashboardListening),
        live: Live,
    ) {
        self.start_grpc(tasks, config, grpc, live);
        self.start_dashboard(tasks, config, dashboard);
    }

    /// Starts what follows the files of the own identity and of revoked certificates, and returns the list of these.
    pub(super) fn start_identity(
        &self,
        tasks: &mut JoinSet<Result<(), RunError>>,
        identity: Identity,
        endpoint: quinn::Endpoint,
    ) -> RevocationList {
        let revocations = identity.revocations().clone();
        let progress = self.health.component("identity", SILENCE_MAX);
        let (metrics, stop) = (self.metrics.identity.clone(), self.background.clone());
        let apply = move |credentials: &Credentials| {
            endpoint.set_server_config(Some(quic::server_config(credentials)?));
            Ok(())
        };
        tasks.spawn(identity.follow(apply, metrics, progress, stop));
        revocations
    }

    /// Starts the service where nodes get their certificates, if there is one, and returns its address.
    pub(super) fn start_enrolment(
        &self,
        tasks: &mut JoinSet<Result<(), RunError>>,
        listening: Option<EnrolmentListening>,
    ) -> Option<SocketAddr> {
        let EnrolmentListening { listener, enrolment, address } = listening?;
        let progress = self.health.component("enrolment", SILENCE_MAX);
        let (metrics, stop) = (self.metrics.enrolment.clone(), self.accept.clone());
        tasks.spawn(async move {
            enrolment.serve(listener, metrics, progress, stop).await;
            Ok(())
        });
        Some(address)
    }

    fn start_grpc(
        &self,
        tasks: &mut JoinSet<Result<(), RunError>>,
        config: &Config,
        listening: GrpcListening,
        live: Live,
    ) {
        let GrpcListening { listener, address, tls } = listening;
        let parts = grpc::Parts {
            listener,
            address,
            tls,
            machines_may_read: config.grpc.machines_may_read,
            streams_max: config.grpc.streams_max,
            cluster: self.cluster.clone(),
            recent: self.recent.clone(),
            live,
            health: self.health.clone(),
            progress: self.health.component("grpc", SILENCE_MAX),
            metrics: self.metrics.grpc.clone(),
            ending: self.accept.clone(),
            stop: self.streams.clone(),
        };
        tasks.spawn(async move { Ok(grpc::serve(parts).await?) });
    }

    fn start_dashboard(
        &self,
        tasks: &mut JoinSet<Result<(), RunError>>,
        config: &Config,
        listening: DashboardListening,
    ) {
        let DashboardListening { listener, address, tls } = listening;
        let parts = dashboard::Parts {
            listener,
            address,
            tls,
            streams_max: config.dashboard.streams_max,
            about: dashboard::About {
                aggregator: config.name.to_string(),
                cluster: self.cluster.clone(),
                tenant: self.tenant.clone(),
                rule_set: self.rules.version(),
                started_at: now(),
            },
            recent: self.recent.clone(),
            chains: self.chains.clone(),
            nodes: self.nodes.clone(),
            watermark: self.watermark.clone(),
            health: self.health.clone(),
            progress: self.health.component("dashboard", SILENCE_MAX),
            metrics: self.metrics.dashboard.clone(),
            stop: self.streams.clone(),
        };
        tasks.spawn(async move {
            dashboard::serve(parts).await;
            Ok(())
        });
    }

    pub(super) fn start_tasks(
        &self,
        tasks: &mut JoinSet<Result<(), RunError>>,
        config: &Config,
        listener: TcpListener,
        writer: BlockWriter,
        spooler: &mpsc::Sender<Command>,
    ) {
        let clock = self.health.component("clock", SILENCE_MAX);
        tasks.spawn(clock::watch(clock, self.metrics.clock_behind.clone(), self.background.clone()));
        let (registry, health, stop) = (self.registry.clone(), self.health.clone(), &self.background);
        let token = stop.clone();
        tasks.spawn(async move { Ok(http::serve(listener, registry, health, token).await?) });
        let (context, seen, losses) =
            (self.context.clone(), Arc::clone(&self.seen), Arc::clone(&self.losses));
        if let Some(path) = config.identities.clone() {
            let progress = self.health.component("names", SILENCE_MAX);
            let (context, seen) = (context.clone(), Arc::clone(&seen));
            tasks.spawn(tasks::watch_names(path, context, seen, progress, stop.clone()));
        }
        let metrics = self.metrics.store.clone();
        let own = OwnName {
            tenant: self.tenant.to_string(),
            cluster: self.cluster.to_string(),
            name: config.name.to_string(),
        };
        let (health, stop_health) = (self.health.clone(), stop.clone());
        tasks.spawn(tasks::store_health(own, health, writer.clone(), metrics.clone(), stop_health));
        tasks.spawn(tasks::store_entities(seen, context, writer, metrics, Arc::clone(&losses), stop.clone()));
        let name = config.name.to_string();
        tasks.spawn(tasks::spool_losses(losses, spooler.clone(), name, stop.clone()));
    }
}

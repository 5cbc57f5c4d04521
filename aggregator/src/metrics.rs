//! The aggregator's metrics: every name, in one place.
//!
//! Label sets are closed. Called at the start; the stages hold their part.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use tapio_daemon::{Registry, metrics::Drops};

/// What became of a frame at the intake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    /// `accepted`, `duplicate`, `refused` or `given-up`.
    pub(crate) outcome: &'static str,
}

/// Which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Waiting {
    /// Its name, which says what is counted.
    pub(crate) queue: &'static str,
}

/// Which table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Table {
    /// Its name.
    pub(crate) table: &'static str,
}

/// A call and how it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Call {
    /// The method's name.
    pub(crate) method: &'static str,
    /// The status code's name.
    pub(crate) code: &'static str,
}

/// A request of the dashboard and how it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Answered {
    /// `page`, `incidents`, `nodes`, `status`, `updates` or `other`.
    pub(crate) resource: &'static str,
    /// The HTTP status.
    pub(crate) status: u16,
}

/// Of the intake.
#[derive(Clone, Debug)]
pub(crate) struct IntakeMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Drops,
    pub(crate) frames: Family<Outcome, Counter>,
    pub(crate) refusals: Drops,
    pub(crate) sessions_refused: Drops,
    pub(crate) sessions_panicked: Counter,
    pub(crate) messages_skipped: Counter,
    pub(crate) relations_left_out: Counter,
    pub(crate) events: Counter,
    pub(crate) bytes: Counter,
    pub(crate) sequences_skipped: Counter,
    pub(crate) contested: Gauge,
    pub(crate) slowed: Counter,
    pub(crate) queue_depth: Family<Waiting, Gauge>,
    pub(crate) queue_limit: Family<Waiting, Gauge>,
}

/// Of the spool.
#[derive(Clone, Debug)]
pub(crate) struct SpoolMetrics {
    pub(crate) records: Counter,
    pub(crate) full: Counter,
    pub(crate) used_bytes: Gauge,
    pub(crate) sync_seconds: Histogram,
}

/// Of the way into the store.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    pub(crate) blocks: Counter,
    pub(crate) rows: Family<Table, Counter>,
    pub(crate) retries: Counter,
    pub(crate) waiting_records: Gauge,
    pub(crate) insert_seconds: Histogram,
    pub(crate) sources_let_go: Counter,
    pub(crate) drops: Drops,
}

/// Of the engine.
#[derive(Clone, Debug)]
pub(crate) struct EngineMetrics {
    pub(crate) inputs: Counter,
    pub(crate) findings: Counter,
    pub(crate) findings_waiting: Gauge,
    pub(crate) verdicts: Gauge,
    pub(crate) drops: Drops,
}

/// Of the recording of what the engine takes.
#[derive(Clone, Debug)]
pub(crate) struct RecordingMetrics {
    pub(crate) entries: Counter,
    pub(crate) bytes: Counter,
    pub(crate) used_bytes: Gauge,
    pub(crate) removed: Counter,
    pub(crate) ended: Drops,
}

/// Of events on their way to subscribers.
#[derive(Clone, Debug)]
pub(crate) struct LiveMetrics {
    pub(crate) missed: Drops,
}

/// Of gRPC.
#[derive(Clone, Debug)]
pub(crate) struct GrpcMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Drops,
    pub(crate) streams: Gauge,
    pub(crate) calls_refused: Drops,
    pub(crate) requests: Family<Call, Counter>,
}

/// Of the dashboard.
#[derive(Clone, Debug)]
pub(crate) struct DashboardMetrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Drops,
    pub(crate) streams: Gauge,
    pub(crate) requests: Family<Answered, Counter>,
    pub(crate) missed: Drops,
}

/// What proved who asked for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Proved {
    /// `service-account`, `token` or `certificate`.
    pub(crate) proof: &'static str,
}

/// Of enrolment.
#[derive(Clone, Debug)]
pub(crate) struct EnrolmentMetrics {
    pub(crate) issued: Family<Proved, Counter>,
    pub(crate) refused: Drops,
    pub(crate) connections_refused: Drops,
}

/// Of the own certificate and those that are taken back.
#[derive(Clone, Debug)]
pub(crate) struct IdentityMetrics {
    pub(crate) certificate_end: Gauge,
    pub(crate) rotations: Counter,
    pub(crate) revoked: Gauge,
}

/// All of them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    pub(crate) identity: IdentityMetrics,
    pub(crate) enrolment: EnrolmentMetrics,
    pub(crate) intake: IntakeMetrics,
    pub(crate) spool: SpoolMetrics,
    pub(crate) store: StoreMetrics,
    pub(crate) engine: EngineMetrics,
    pub(crate) recording: RecordingMetrics,
    pub(crate) live: LiveMetrics,
    pub(crate) grpc: GrpcMetrics,
    /// By how many seconds the machine's clock stands behind.
    pub(crate) clock_behind: Gauge,
    pub(crate) dashboard: DashboardMetrics,
}

impl EnrolmentMetrics {
    fn register(enrolment: &Registry) -> Self {
        Self {
            issued: enrolment.register(
                "issued",
                "Certificates that were issued, by proof",
                Family::default(),
            ),
            refused: enrolment.drops("refused", "Requests for certificates that were refused, by reason"),
            connections_refused: enrolment
                .drops("connections_refused", "Connections that were closed at once, by reason"),
        }
    }
}

impl IdentityMetrics {
    fn register(identity: &Registry) -> Self {
        Self {
            certificate_end: identity.gauge(
                "certificate_end_seconds",
                "When the certificate that nodes are shown ends, in seconds since 1970",
            ),
            rotations: identity.counter("rotations", "Certificates that took the place of another"),
            revoked: identity
                .gauge("revoked_entries", "Serial numbers and names in the list of revoked certificates"),
        }
    }
}

/// Upper bounds of durations, seconds: from a quick sync to a struggling disk.
const SECONDS: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Self {
        let intake = registry.subsystem("intake");
        let spool = registry.subsystem("spool");
        let store = registry.subsystem("store");
        let engine = registry.subsystem("engine");
        let recording = registry.subsystem("recording");
        let live = registry.subsystem("live");
        let grpc = registry.subsystem("grpc");
        let dashboard = registry.subsystem("dashboard");
        Self {
            identity: IdentityMetrics::register(&registry.subsystem("identity")),
            enrolment: EnrolmentMetrics::register(&registry.subsystem("enrolment")),
            intake: IntakeMetrics {
                connections: intake.gauge("connections", "Connections of nodes that are open"),
                connections_refused: intake
                    .drops("connections_refused", "Connections that were closed at once, by reason"),
                frames: intake.register("frames", "Frames that arrived, by outcome", Family::default()),
                refusals: intake.drops("frames_refused", "Frames that were refused, by fault"),
                sessions_refused: intake.drops(
                    "sessions_refused",
                    "Sessions that were ended for what their peer is or sent, by reason",
                ),
                sessions_panicked: intake
                    .counter("sessions_panicked", "Sessions that ended by a fault of this program"),
                relations_left_out: intake.counter(
                    "relations_left_out",
                    "Mentions of relations beyond those that one batch may tell",
                ),
                messages_skipped: intake
                    .counter("messages_skipped", "Messages of kinds that this release does not know"),
                events: intake.counter("events", "Events that were accepted"),
                bytes: intake.counter("bytes", "Bytes of accepted frames, as they arrived"),
                sequences_skipped: intake
                    .counter("sequences_skipped", "Frames that their sources gave up before sending"),
                contested: intake
                    .gauge("contested_identities", "Nodes whose identity two agents use at once"),
                slowed: intake.counter(
                    "slowed_reads",
                    "Times that a source was not read for a moment, because it sent more than it may",
                ),
                queue_depth: intake.register(
                    "queue_depth",
                    "What waits in the queues behind the intake, by queue",
                    Family::default(),
                ),
                queue_limit: intake.register(
                    "queue_limit",
                    "What may wait in the queues behind the intake before sessions wait, by queue",
                    Family::default(),
                ),
            },
            spool: SpoolMetrics {
                records: spool.counter("records", "Records that were written and synced"),
                full: spool.counter("full", "Times that the spool or its disk was full and was waited for"),
                used_bytes: spool.gauge("used_bytes", "Bytes that the spool uses"),
                sync_seconds: spool.histogram("sync_seconds", "Time to write and sync a group", SECONDS),
            },
            store: StoreMetrics {
                blocks: store.counter("blocks", "Blocks that are stored in every table"),
                rows: store.register("rows", "Rows that are stored, by table", Family::default()),
                retries: store.counter("retries", "Inserts that failed and were tried again"),
                waiting_records: store
                    .gauge("waiting_records", "Records in the spool that are not stored yet"),
                insert_seconds: store.histogram("insert_seconds", "Time to store a block", SECONDS),
                sources_let_go: store
                    .counter("sources_let_go", "Sources that were forgotten after they were silent for long"),
                drops: store.drops("dropped", "Records of the spool that could not be stored, by reason"),
            },
            engine: EngineMetrics {
                inputs: engine.counter("inputs", "Inputs that the engine took"),
                findings: engine.counter("findings", "Revisions of findings that were announced"),
                findings_waiting: engine
                    .gauge("findings_waiting", "Revisions of findings that are not stored yet"),
                verdicts: engine.gauge("verdicts", "Verdicts at the last tick"),
                drops: engine.drops("dropped", "What the engine gave up, by reason"),
            },
            recording: RecordingMetrics {
                entries: recording.counter("entries", "Frames, names and ticks that were recorded"),
                bytes: recording.counter("bytes", "Bytes that were written to recordings"),
                used_bytes: recording.gauge("used_bytes", "Bytes that recordings use"),
                removed: recording.counter("files_removed", "Files of recordings that made room for others"),
                ended: recording
                    .drops("ended_early", "Recordings that ended before the engine did, by reason"),
            },
            live: LiveMetrics {
                missed: live.drops("missed_events", "Events that subscribers were not sent, by reason"),
            },
            grpc: GrpcMetrics {
                connections: grpc.gauge("connections", "Connections that are open"),
                connections_refused: grpc
                    .drops("connections_refused", "Connections that were closed at once, by reason"),
                streams: grpc.gauge("streams", "Streams of findings and events that are open"),
                calls_refused: grpc
                    .drops("calls_refused", "Calls that were refused for want of room, by reason"),
                requests: grpc.register(
                    "requests",
                    "Calls that were answered, by method and status code",
                    Family::default(),
                ),
            },
            clock_behind: registry.subsystem("clock").gauge(
                "behind_seconds",
                "By how much the machine's clock was set back behind the time that is told",
            ),
            dashboard: DashboardMetrics {
                connections: dashboard.gauge("connections", "Connections that are open"),
                connections_refused: dashboard
                    .drops("connections_refused", "Connections that were closed at once, by reason"),
                streams: dashboard.gauge("streams", "Pages that get updates"),
                requests: dashboard.register(
                    "requests",
                    "Requests that were answered, by resource and status",
                    Family::default(),
                ),
                missed: dashboard
                    .drops("missed_revisions", "Revisions of findings that pages were not sent, by reason"),
            },
        }
    }
}

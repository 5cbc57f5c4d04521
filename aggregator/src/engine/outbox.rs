//! Announced findings on their way into the table `findings`: durable at once, stored promptly, never twice.
//!
//! The engine's thread appends each revision to a small spool of its own and forces it to the disk; the outbox's
//! thread inserts one row per revision with a token made from the finding's id and revision. Findings stay in the
//! spool for the replay window, so that a restarted engine knows what it had announced. When the store is away for
//! long the oldest go, counted.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tapio_daemon::Progress;
use tapio_schemas::{finding::Finding, ledger::Stage};
use tapio_spool::{
    Item, Ordinal, QuotaPolicy, Reader, Spool, SpoolConfig, SpoolError, SyncPolicy, disk::RealDisk,
};
use tapio_store::{
    client::{Advice, BlockWriter, ClientError, DeduplicationToken},
    native::{BlockBuilder, BlockError, EncodedBlock},
};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::{
    losses::Losses,
    metrics::EngineMetrics,
    patience::Patience,
    pipeline::writer::lost_records,
    state::{self, StateDirectory, StateError},
};

/// What the spool of findings may use.
const SPOOL_BYTES_MAX: u64 = 64 << 20;
/// A segment of it.
const SEGMENT_BYTES: u64 = 4 << 20;
/// How often an idle outbox looks by itself.
const IDLE_PAUSE: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);
const TABLE: &str = "findings";
const STORED: &str = "findings-stored.json";
const ADVICE: &str = "remove it; findings that were already stored are then offered again, and recognised";

const COLUMNS: [(&str, &str); 19] = [
    ("tenant", "LowCardinality(String)"),
    ("cluster", "LowCardinality(String)"),
    ("id", "String"),
    ("revision", "UInt32"),
    ("incident_id", "String"),
    ("state", "LowCardinality(String)"),
    ("outcome", "LowCardinality(String)"),
    ("severity", "LowCardinality(String)"),
    ("rule", "LowCardinality(String)"),
    ("rule_set_version", "UInt64"),
    ("signature", "String"),
    ("announced_at", "DateTime64(6, 'UTC')"),
    ("revised_at", "DateTime64(6, 'UTC')"),
    ("first_symptom_at", "DateTime64(6, 'UTC')"),
    ("found_after_micros", "UInt64"),
    ("title", "String"),
    ("entities", "Array(LowCardinality(String))"),
    ("names", "Map(LowCardinality(String), String)"),
    ("document", "String"),
];

/// The engine's side: what was announced, on the disk.
#[derive(Debug)]
pub(crate) struct Announced {
    spool: Spool,
    inserter: Option<thread::Thread>,
}

/// How far the outbox came, beyond the process's life.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    until: u64,
}

/// How far the outbox came, for others to see.
#[derive(Clone, Debug, Default)]
pub(crate) struct StoredUntil(Arc<AtomicU64>);

impl StoredUntil {
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Announced {
    /// Opens the spool and returns what was announced within the replay window, the oldest revision first, each with
    /// its place.
    pub(crate) fn open(state: &StateDirectory) -> Result<(Self, Vec<(u64, Finding)>), SpoolError> {
        let config = SpoolConfig {
            segment_bytes_max: SEGMENT_BYTES,
            quota_bytes: SPOOL_BYTES_MAX,
            quota_policy: QuotaPolicy::EvictOldest,
            reserve_bytes: 0,
            sync: SyncPolicy::EachAppend,
        };
        let (spool, _recovery) = Spool::open(&state.findings_spool(), config)?;
        let mut reader = spool.read_from(spool.first());
        let mut findings = Vec::new();
        while let Some(item) = reader.next_item()? {
            if let Item::Record { ordinal, payload } = item {
                match serde_json::from_slice(payload) {
                    Ok(finding) => findings.push((ordinal.0, finding)),
                    Err(error) => tracing::error!(%ordinal, %error, "an announced finding cannot be read"),
                }
            }
        }
        Ok((Self { spool, inserter: None }, findings))
    }

    /// A reader for the outbox. It begins where the outbox ended, also where the quota has forced findings out since:
    /// then it finds a gap, and they are counted.
    pub(crate) fn reader(&self, from: u64) -> Reader {
        self.spool.read_from(Ordinal(from).max(self.spool.low()))
    }

    /// Says whom to wake.
    pub(crate) fn wake(&mut self, inserter: thread::Thread) {
        self.inserter = Some(inserter);
    }

    /// Puts a revision's bytes on the disk; returns how many others the quota forced out.
    pub(crate) fn append(&mut self, revision: &[u8]) -> Result<u64, SpoolError> {
        let appended = self.spool.append(&[revision])?;
        if let Some(inserter) = &self.inserter {
            inserter.unpark();
        }
        Ok(appended.evicted.records)
    }

    /// The place of the oldest revision that is there.
    pub(crate) fn first(&self) -> u64 {
        self.spool.first().0
    }

    /// The place of the next revision.
    pub(crate) fn next(&self) -> u64 {
        self.spool.next().0
    }

    /// Lets go of revisions below.
    pub(crate) fn trim(&mut self, until: u64) -> Result<(), SpoolError> {
        self.spool.trim_until(Ordinal(until))
    }

    pub(crate) fn close(self) -> Result<(), SpoolError> {
        self.spool.close()
    }
}

/// Why the outbox cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// Its spool cannot be read.
    #[error("announced findings cannot be read")]
    Spool(#[from] SpoolError),
    /// Its mark cannot be written.
    #[error("the mark of stored findings cannot be written")]
    State(#[from] StateError),
    /// The table's columns are not known to the block writer: a fault of this program.
    #[error("findings cannot be encoded")]
    Encode(#[from] BlockError),
    /// A token was refused: a fault of this program.
    #[error("findings cannot be inserted")]
    Token(#[source] ClientError),
}

/// The outbox; [`Outbox::run`] is its thread.
#[derive(Debug)]
pub(crate) struct Outbox {
    reader: Reader,
    block: BlockBuilder,
    mark: PathBuf,
    stored: StoredUntil,
    pub(crate) writer: BlockWriter,
    pub(crate) runtime: Handle,
    pub(crate) losses: Arc<Losses>,
    pub(crate) metrics: EngineMetrics,
    pub(crate) progress: Progress,
    /// Cancelled when no more findings come.
    pub(crate) drain: CancellationToken,
    /// Cancelled when the time to drain is over.
    pub(crate) stop: CancellationToken,
}

/// What an outbox needs from outside.
pub(crate) struct Parts {
    pub(crate) writer: BlockWriter,
    pub(crate) runtime: Handle,
    pub(crate) losses: Arc<Losses>,
    pub(crate) metrics: EngineMetrics,
    pub(crate) progress: Progress,
    pub(crate) drain: CancellationToken,
    pub(crate) stop: CancellationToken,
}

impl Outbox {
    /// The outbox of what was announced, from the first revision that is not stored.
    pub(crate) fn new(
        state: &StateDirectory,
        announced: &Announced,
        parts: Parts,
    ) -> Result<(Self, StoredUntil), OutboxError> {
        let mark = state.root().join(STORED);
        let from = state::read_json::<Stored>(&RealDisk, &mark, ADVICE)?.unwrap_or_default().until;
        let stored = StoredUntil(Arc::new(AtomicU64::new(from)));
        let Parts { writer, runtime, losses, metrics, progress, drain, stop } = parts;
        let outbox = Self {
            reader: announced.reader(from),
            block: BlockBuilder::new(COLUMNS)?,
            mark,
            stored: stored.clone(),
            writer,
            runtime,
            losses,
            metrics,
            progress,
            drain,
            stop,
        };
        Ok((outbox, stored))
    }

    /// Works until stopped.
    ///
    /// # Errors
    /// When the disk under the state directory fails.
    pub(crate) fn run(mut self) -> Result<(), OutboxError> {
        loop {
            if self.stop.is_cancelled() {
                break;
            }
            let next = match self.reader.next_item()? {
                None => None,
                Some(Item::Gap(gap)) => {
                    let lost = lost_records(&gap);
                    if lost > 0 {
                        tracing::error!(
                            lost,
                            reason = gap.reason.label(),
                            "announced findings are not stored"
                        );
                        self.metrics.drops.add("finding-not-stored", lost);
                        self.losses.lost(Stage::Engine, "findings", "finding-not-stored", lost);
                    }
                    // Nothing waits there: what is behind it is next.
                    if !self.advance(gap.until.0)? {
                        break;
                    }
                    continue;
                }
                Some(Item::Record { ordinal, payload }) => Some((
                    ordinal,
                    serde_json::from_slice::<Finding>(payload),
                    String::from_utf8_lossy(payload).into_owned(),
                )),
            };
            let Some((ordinal, finding, document)) = next else {
                if self.drain.is_cancelled() {
                    break;
                }
                self.progress.idle();
                thread::park_timeout(IDLE_PAUSE);
                continue;
            };
            self.progress.busy();
            if let Ok(finding) = finding {
                let block = self.encode(&finding, &document)?;
                let token = format!("{}-{}-{}", finding.id, finding.revision, finding.revised_at.0);
                let token = DeduplicationToken::new(token).map_err(OutboxError::Token)?;
                if !self.insert(&block, &token) {
                    break;
                }
            } else {
                self.metrics.drops.add("finding-unreadable", 1);
                self.losses.lost(Stage::Engine, "findings", "finding-unreadable", 1);
            }
            if !self.advance(ordinal.next().0)? {
                break;
            }
            self.progress.tick();
        }
        self.progress.finish();
        Ok(())
    }

    /// Notes, durably, that nothing below `until` is to be stored any more; false when stopped before.
    fn advance(&self, until: u64) -> Result<bool, StateError> {
        let is_written =
            self.patience().write(|| state::replace_json(&RealDisk, &self.mark, &Stored { until }))?;
        if is_written {
            self.stored.0.store(until, Ordering::Release);
        }
        Ok(is_written)
    }

    const fn patience(&self) -> Patience<'_> {
        Patience { runtime: &self.runtime, progress: &self.progress, stop: &self.stop }
    }

    /// Inserts until it succeeds; false when the outbox was stopped before.
    fn insert(&self, block: &EncodedBlock, token: &DeduplicationToken) -> bool {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            // What an insert that is dropped here did does not matter: the token makes the next one the same.
            let insert = self.writer.insert(TABLE, block, token);
            match self.patience().answer("an insert into findings", insert) {
                None => return false,
                Some(Ok(_)) => {
                    self.progress.clear();
                    return true;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a finding could not be stored and is tried again");
                    self.progress.fault(format!("findings cannot be stored: {error}"));
                    if error.advice() != Advice::Retry {
                        pause = RETRY_PAUSE_MAX;
                    }
                    self.runtime.block_on(async {
                        tokio::select! {
                            () = self.stop.cancelled() => {}
                            () = tokio::time::sleep(pause) => {}
                        }
                    });
                    pause = (pause * 2).min(RETRY_PAUSE_MAX);
                    self.progress.tick();
                }
            }
        }
    }

    fn encode(&mut self, finding: &Finding, document: &str) -> Result<EncodedBlock, BlockError> {
        self.block.clear();
        let verdict = &finding.verdict;
        let entities: Vec<String> = finding.names.iter().map(|named| named.entity.to_string()).collect();
        for (name, column) in self.block.columns() {
            match name {
                "tenant" => column.push_bytes(finding.tenant.as_str().as_bytes()),
                "cluster" => column.push_bytes(finding.cluster.as_str().as_bytes()),
                "id" => column.push_bytes(finding.id.as_bytes()),
                "revision" => column.push_unsigned(u64::from(finding.revision)),
                "incident_id" => column.push_bytes(finding.incident_id.as_bytes()),
                "state" => column.push_bytes(finding.state.as_str().as_bytes()),
                "outcome" => column.push_bytes(verdict.outcome.as_str().as_bytes()),
                "severity" => column.push_bytes(verdict.severity.as_str().as_bytes()),
                "rule" => column.push_bytes(verdict.rule.as_bytes()),
                "rule_set_version" => column.push_unsigned(verdict.rule_set.0),
                "signature" => column.push_bytes(verdict.signature.as_bytes()),
                "announced_at" => column.push_unsigned(finding.announced_at.0),
                "revised_at" => column.push_unsigned(finding.revised_at.0),
                "first_symptom_at" => column.push_unsigned(finding.first_symptom_at.0),
                "found_after_micros" => column.push_unsigned(finding.found_after.0),
                "title" => column.push_bytes(finding.title.as_bytes()),
                "entities" => column.push_array(entities.iter().map(String::as_str)),
                "names" => column.push_map(
                    entities
                        .iter()
                        .map(String::as_str)
                        .zip(finding.names.iter().map(|named| named.name.as_str())),
                ),
                _ => column.push_bytes(document.as_bytes()),
            }
        }
        self.block.encode()
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Write as _};

    use tapio_daemon::{Health, Registry};
    use tapio_schemas::units::UnixMicros;
    use tapio_store::client::{Credentials, Endpoint};

    use super::*;
    use crate::metrics::Metrics;

    /// Runs an outbox over what is there until nothing is left; returns how far it came and its metrics.
    fn drained(state: &StateDirectory, runtime: &tokio::runtime::Runtime) -> (u64, EngineMetrics) {
        let (announced, _earlier) = Announced::open(state).unwrap();
        let account = Credentials { user: "nobody".to_owned(), password: String::new() };
        let endpoint = Endpoint::new("http://127.0.0.1:9", account).unwrap();
        let metrics = Metrics::register(&Registry::new()).engine;
        let drain = CancellationToken::new();
        drain.cancel();
        let parts = Parts {
            writer: BlockWriter::new(endpoint, Duration::from_secs(1)),
            runtime: runtime.handle().clone(),
            losses: Arc::new(Losses::new(UnixMicros(0))),
            metrics: metrics.clone(),
            progress: Health::new().component("findings", Duration::from_secs(1)),
            drain,
            stop: CancellationToken::new(),
        };
        let (outbox, stored) = Outbox::new(state, &announced, parts).unwrap();
        outbox.run().unwrap();
        assert_eq!(stored.get(), announced.next());
        (stored.get(), metrics)
    }

    /// Scenario: a power cut tears the spool of findings, so that ordinals are left out at the next start.
    /// Guarantees: they are no lost findings, and nothing waits.
    #[test]
    fn ordinals_that_a_power_cut_leaves_out_are_no_findings() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (mut announced, _earlier) = Announced::open(&state).unwrap();
        announced.spool.append(&[b"no finding"]).unwrap();
        drop(announced);
        let mut segments: Vec<_> = std::fs::read_dir(state.findings_spool())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
            .collect();
        segments.sort();
        File::options().append(true).open(segments.pop().unwrap()).unwrap().write_all(b"torn").unwrap();

        let (until, metrics) = drained(&state, &runtime);
        assert!(until > 1_000_000, "{until}");
        assert_eq!(metrics.drops.get("finding-not-stored"), 0);
        assert_eq!(metrics.drops.get("finding-unreadable"), 1);
    }

    /// Scenario: the store is away for so long that the quota forces findings out.
    /// Guarantees: exactly those are counted as not stored.
    #[test]
    fn findings_that_are_forced_out_are_counted() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (mut announced, _earlier) = Announced::open(&state).unwrap();
        let large = vec![b' '; 3 << 20];
        let evicted: u64 = (0..24).map(|_| announced.spool.append(&[&large]).unwrap().evicted.records).sum();
        assert!(evicted > 0);
        announced.close().unwrap();

        let (until, metrics) = drained(&state, &runtime);
        assert_eq!(until, 24);
        assert_eq!(metrics.drops.get("finding-not-stored"), evicted);
        assert_eq!(metrics.drops.get("finding-unreadable"), 24 - evicted);
    }
}

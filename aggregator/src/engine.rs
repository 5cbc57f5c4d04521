//! The engine's thread: inputs in, verdicts out, findings announced. It waits for no disk but its own findings'.
//!
//! At the start it takes in again what the spool still holds of the longest rule window, so that a restart forgets no
//! open incident; nothing is announced until that is done. Then it takes batches of inputs as the intake hands them
//! over, and ticks. Must never decide anything itself: what a verdict is stands in [`tapio_correlation`].

pub(crate) mod outbox;
pub(crate) mod queue;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tapio_correlation::{
    Announcer, Engine, EngineStats, Limits, Names, RuleSet, SourceContext,
    announce::{AnnounceLimits, Owner},
    observe_batch,
};
use tapio_daemon::Progress;
use tapio_schemas::{
    entity::{EntityKey, EntityKind, PodIdentity},
    finding::Finding,
    ids::{ClusterId, TenantId},
    ledger::Stage,
    observation::Input,
    units::{Micros, UnixMicros},
};
use tapio_spool::{Item, Ordinal, Reader, SpoolError};
use tapio_wire::frame::{FrameDecoder, FrameFault, FrameLimits};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::mpsc,
    time::{Instant, timeout_at},
};

use self::{
    outbox::{Announced, StoredUntil},
    queue::Batch,
};
use crate::{
    chains::{Chain, Chains},
    clock::now,
    context::{Context, Pods, entities::Seen},
    losses::Losses,
    metrics::EngineMetrics,
    pipeline::{
        record::{Kind, Record},
        store::lost_records,
    },
    recent::Recent,
    source::Announcement,
};

/// How often the engine is told the time.
const TICK: Duration = Duration::from_millis(50);
/// How often old findings are let go.
const TRIM_INTERVAL: Duration = Duration::from_secs(10);

/// How often the engine is told the time while it sees again what the spool holds, in records.
const REPLAY_TICK_RECORDS: u64 = 1_000;
/// Marks of when findings were announced, for letting them go.
const KEPT_MAX: usize = 65_536;
/// Findings that wait for room on the disk; beyond, the oldest go, counted.
const UNWRITTEN_MAX: usize = 4_096;

/// Why the engine's thread cannot go on.
#[derive(Debug, Error)]
pub enum EngineThreadError {
    /// A spool failed.
    #[error("findings cannot be kept, or frames not be seen again")]
    Spool(#[from] SpoolError),
    /// There is no memory for a decompressor.
    #[error("frames cannot be opened")]
    Frame(#[from] FrameFault),
}

/// What the thread is made of.
pub(crate) struct Parts {
    pub(crate) rules: Arc<RuleSet>,
    pub(crate) tenant: TenantId,
    pub(crate) cluster: ClusterId,
    pub(crate) context: Context,
    pub(crate) seen: Arc<Seen>,
    pub(crate) recent: Recent,
    pub(crate) chains: Chains,
    pub(crate) watermark: Watermark,
    pub(crate) announced: Announced,
    /// What was announced within the replay window, each revision with its place.
    pub(crate) earlier: Vec<(u64, Finding)>,
    pub(crate) findings_stored: StoredUntil,
    /// Woken when there is a finding to store.
    pub(crate) outbox: thread::Thread,
    pub(crate) replay: Reader,
    pub(crate) replay_until: Ordinal,
    /// The probes that each node lacks, by its name, as it said last.
    pub(crate) missing: HashMap<String, Vec<String>>,
    pub(crate) queue: mpsc::Receiver<Batch>,
    pub(crate) runtime: Handle,
    pub(crate) losses: Arc<Losses>,
    pub(crate) metrics: EngineMetrics,
    pub(crate) progress: Progress,
    pub(crate) replay_window: Duration,
}

/// The event time up to which the engine has heard every live source, for whoever shows it. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watermark(Arc<AtomicU64>);

impl Watermark {
    /// The watermark of the last tick; zero before the first.
    pub(crate) fn get(&self) -> UnixMicros {
        UnixMicros(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, watermark: UnixMicros) {
        self.0.store(watermark.0, Ordering::Relaxed);
    }
}

/// The thread.
pub(crate) struct EngineThread {
    engine: Engine,
    announcer: Announcer,
    parts: Parts,
    told: EngineStats,
    /// Announced, but not on the disk, because that is full.
    unwritten: VecDeque<Finding>,
    /// Findings that the announcer had forgotten when it was asked last.
    told_forgotten: u64,
}

/// Names, joined from what the identities say and what events told.
struct JoinedNames<'a> {
    engine: &'a Engine,
    pods: &'a Pods,
}

impl Names for JoinedNames<'_> {
    fn pod(&self, entity: &EntityKey, at: UnixMicros) -> Option<PodIdentity> {
        let pod = self.engine.pod_of(entity, at)?;
        self.pods.get(&pod.id).cloned()
    }
}

impl EngineThread {
    pub(crate) fn new(mut parts: Parts) -> Self {
        let engine = Engine::new(Arc::clone(&parts.rules), Limits::default());
        let mut announcer = Announcer::new(AnnounceLimits::default());
        let mut latest: BTreeMap<String, Finding> = BTreeMap::new();
        parts.recent.begin(parts.announced.first(), parts.announced.next());
        for (place, finding) in std::mem::take(&mut parts.earlier) {
            parts.recent.put(place, Arc::new(finding.clone()));
            latest.insert(finding.id.clone(), finding);
        }
        announcer.adopt(latest.into_values());
        parts.announced.wake(parts.outbox.clone());
        Self {
            engine,
            announcer,
            parts,
            told: EngineStats::default(),
            unwritten: VecDeque::new(),
            told_forgotten: 0,
        }
    }

    /// Works until nobody can hand anything over any more.
    ///
    /// # Errors
    /// When the disk under the state directory fails.
    pub(crate) fn run(mut self) -> Result<(), EngineThreadError> {
        self.replay()?;
        let runtime = self.parts.runtime.clone();
        let mut next_tick = Instant::now();
        let mut kept: VecDeque<(Instant, u64)> = VecDeque::new();
        let mut next_trim = Instant::now() + TRIM_INTERVAL;
        if self.parts.announced.next() > 0 {
            kept.push_back((Instant::now(), self.parts.announced.next()));
        }
        loop {
            // Cancel-safe: a batch that is not taken now is taken at the next turn.
            // Made inside the future: a timer needs the runtime that it will wait on.
            let queue = &mut self.parts.queue;
            match runtime.block_on(async { timeout_at(next_tick, queue.recv()).await }) {
                Ok(Some(batch)) => {
                    self.parts.progress.busy();
                    self.take(batch);
                    while let Ok(batch) = self.parts.queue.try_recv() {
                        self.take(batch);
                        if Instant::now() >= next_tick {
                            break;
                        }
                    }
                }
                Ok(None) => break,
                Err(_elapsed) => {}
            }
            if Instant::now() >= next_tick {
                let announced = self.tick()?;
                if announced {
                    kept.push_back((Instant::now(), self.parts.announced.next()));
                }
                next_tick = Instant::now() + TICK;
                self.parts.progress.tick();
            }
            if Instant::now() >= next_trim {
                self.trim(&mut kept)?;
                next_trim = Instant::now() + TRIM_INTERVAL;
            }
        }
        self.tick()?;
        self.parts.announced.close()?;
        self.parts.progress.finish();
        Ok(())
    }

    fn take(&mut self, batch: Batch) {
        self.parts.metrics.inputs.inc_by(batch.inputs.len() as u64);
        for input in batch.inputs {
            self.note(&input);
            self.engine.insert(input);
        }
    }

    /// Notes entities and relations for the store.
    fn note(&self, input: &Input) {
        match input {
            Input::Relation(relation) => self.parts.seen.relation(relation),
            Input::Observation(observation) => {
                self.parts.seen.entity(&observation.subject, observation.time.middle());
            }
            Input::Progress(progress) => {
                let node = EntityKey::new(EntityKind::Node, progress.node.as_str());
                self.parts.seen.entity(&node, progress.ledger.until);
            }
        }
    }

    /// Tells the engine the time and announces what follows; returns whether there was anything.
    fn tick(&mut self) -> Result<bool, EngineThreadError> {
        let now = now();
        self.engine.tick(now);
        self.parts.watermark.set(self.engine.watermark());
        let verdicts = self.engine.verdicts();
        self.parts.metrics.verdicts.set(i64::try_from(verdicts.len()).unwrap_or(i64::MAX));
        let pods = self.parts.context.pods();
        let names = JoinedNames { engine: &self.engine, pods: &pods };
        let owner = Owner { tenant: &self.parts.tenant, cluster: &self.parts.cluster };
        self.announcer.follow(&self.engine);
        let findings = self.announcer.fold(&verdicts, &names, now, owner, &self.parts.rules);
        for finding in findings {
            tracing::info!(
                id = finding.id,
                revision = finding.revision,
                state = finding.state.as_str(),
                title = finding.title,
                "a finding"
            );
            self.parts.metrics.findings.inc();
            let calls = self.engine.calls_around(&finding.verdict);
            self.parts.chains.put(&finding.id, Chain::new(calls, finding.first_symptom_at, &names));
            self.unwritten.push_back(finding);
        }
        let is_any_written = self.write_findings()?;
        self.count_losses();
        let waiting = self.parts.announced.next().saturating_sub(self.parts.findings_stored.get());
        self.parts.metrics.findings_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        Ok(is_any_written)
    }

    /// Puts what was announced on the disk, and shows it to others; what a full disk does not take waits for the next
    /// tick. Returns whether anything was written.
    fn write_findings(&mut self) -> Result<bool, EngineThreadError> {
        let mut is_any_written = false;
        while let Some(finding) = self.unwritten.front() {
            let place = self.parts.announced.next();
            let evicted = match self.parts.announced.append(finding) {
                Ok(evicted) => evicted,
                Err(error @ SpoolError::DiskFull { .. }) => {
                    self.wait_for_room(&error);
                    return Ok(is_any_written);
                }
                Err(error) => return Err(error.into()),
            };
            if evicted > 0 {
                // Whether those were stored is not known here; the outbox counts those that were not.
                tracing::warn!(evicted, "findings were let go before the replay window was over");
            }
            is_any_written = true;
            if let Some(finding) = self.unwritten.pop_front() {
                self.parts.recent.put(place, Arc::new(finding));
            }
        }
        if is_any_written {
            self.parts.progress.clear();
        }
        Ok(is_any_written)
    }

    fn wait_for_room(&mut self, error: &SpoolError) {
        let beyond = self.unwritten.len().saturating_sub(UNWRITTEN_MAX);
        if beyond > 0 {
            self.unwritten.drain(..beyond);
            let lost = beyond as u64;
            self.parts.metrics.drops.add("findings-disk-full", lost);
            self.parts.losses.lost(Stage::Engine, "findings", "findings-disk-full", lost);
        }
        let waiting = self.unwritten.len();
        self.parts.progress.fault(format!("{waiting} findings cannot be announced: {error}"));
    }

    /// Counts what the engine gave up since the last time.
    fn count_losses(&mut self) {
        let stats = self.engine.stats();
        let (was, is) = (self.told, stats);
        let forgotten = self.announcer.forgotten();
        // Of faults it is known how many are over budget now: those that were before are counted already.
        let faults = is.faults_skipped.saturating_sub(was.faults_skipped) as u64;
        for (subject, reason, lost) in [
            ("observations", "observations-full", is.evicted_observations - was.evicted_observations),
            ("relations", "relations-full", is.evicted_relations - was.evicted_relations),
            ("frames", "frames-full", is.evicted_frames - was.evicted_frames),
            ("faults", "faults-full", faults),
            ("findings", "findings-full", forgotten - self.told_forgotten),
        ] {
            if lost > 0 {
                self.parts.metrics.drops.add(reason, lost);
                self.parts.losses.lost(Stage::Engine, subject, reason, lost);
            }
        }
        self.told = stats;
        self.told_forgotten = forgotten;
    }

    /// Lets go of findings that are stored and older than the replay window.
    fn trim(&mut self, kept: &mut VecDeque<(Instant, u64)>) -> Result<(), EngineThreadError> {
        let stored = self.parts.findings_stored.get();
        let mut until = None;
        while let Some((at, next)) = kept.front() {
            if at.elapsed() < self.parts.replay_window || *next > stored {
                break;
            }
            until = Some(*next);
            kept.pop_front();
        }
        // Their number is bounded by the spool's: beyond it, the newest mark stands for those before.
        while kept.len() > KEPT_MAX {
            kept.pop_front();
        }
        if let Some(until) = until {
            self.parts.announced.trim(until)?;
        }
        Ok(())
    }

    /// Takes in again what the spool still holds, up to where it was at the start.
    fn replay(&mut self) -> Result<(), EngineThreadError> {
        let mut decoder = FrameDecoder::new(FrameLimits::default())?;
        let mut missing = std::mem::take(&mut self.parts.missing);
        let (mut frames, mut records, mut inputs) = (0_u64, 0_u64, Vec::new());
        let until = self.parts.replay_until;
        while self.parts.replay.position() < until {
            let payload = match self.parts.replay.next_item()? {
                None => break,
                Some(Item::Gap(gap)) => {
                    let lost = lost_records(&gap);
                    if lost > 0 {
                        self.parts.metrics.drops.add(gap.reason.label(), lost);
                        self.parts.losses.lost(Stage::Engine, "frames", gap.reason.label(), lost);
                    }
                    continue;
                }
                Some(Item::Record { payload, .. }) => payload,
            };
            let Ok(record) = Record::read(payload) else { continue };
            records += 1;
            let arrival = record.arrival;
            match record.kind {
                Kind::Frame => {
                    // What cannot be opened the feeder counts.
                    let Ok((header, view)) = decoder.decode(record.body, None) else { continue };
                    let context = SourceContext {
                        node: record.name,
                        clock_error: Micros(header.meta.clock.error_micros),
                        missing_probes: missing.get(record.name).map_or(&[], Vec::as_slice),
                    };
                    let rules = Arc::clone(&self.parts.rules);
                    observe_batch(&view, header.meta.id, &context, &rules, &mut |input| inputs.push(input));
                    frames += 1;
                }
                Kind::Source => {
                    if let Ok(announcement) = serde_json::from_slice::<Announcement>(record.body) {
                        missing.insert(record.name.to_owned(), announcement.missing_probes());
                    }
                }
                Kind::OwnLedger | Kind::GivenUp => {}
            }
            for input in inputs.drain(..) {
                self.note(&input);
                self.engine.insert(input);
            }
            if records.is_multiple_of(REPLAY_TICK_RECORDS) {
                // What is old is let go as it was then; nothing is announced before all is seen again.
                // A machine whose clock was set back since then must not put the engine's ahead of it.
                self.engine.tick(arrival.min(now()));
                self.count_losses();
            }
            self.parts.progress.tick();
        }
        if frames > 0 {
            tracing::info!(frames, "the engine has seen again what the spool holds");
        }
        Ok(())
    }
}

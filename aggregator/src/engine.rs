//! The engine's thread: inputs in, verdicts out, findings announced. It waits for no disk but its own findings'.
//!
//! At the start it takes in again what the spool still holds of the longest rule window, so that a restart forgets no
//! open incident; nothing is announced until that is done. Then it takes batches of inputs as the intake hands them
//! over, and ticks. Must never decide anything itself: what a verdict is stands in [`tapio_correlation`].

pub(crate) mod outbox;
pub(crate) mod queue;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    thread,
    time::Duration,
};

use tapio_correlation::{
    Analysis, AnalysisLimits, RuleSet, SourceContext, analysis::AnalysisStats, observe_batch,
};
use tapio_daemon::Progress;
use tapio_recording::revision_bytes;
use tapio_schemas::{
    entity::{EntityKey, EntityKind},
    finding::Finding,
    ids::{ClusterId, TenantId},
    ledger::Stage,
    observation::Input,
    units::Micros,
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
    context::{Context, entities::Seen},
    losses::Losses,
    metrics::EngineMetrics,
    pipeline::{
        record::{Kind, Record},
        store::lost_records,
    },
    recent::Recent,
    recording::Recorder,
    run::now,
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
    pub(crate) limits: AnalysisLimits,
    pub(crate) tenant: TenantId,
    pub(crate) cluster: ClusterId,
    pub(crate) context: Context,
    pub(crate) seen: Arc<Seen>,
    pub(crate) recent: Recent,
    pub(crate) announced: Announced,
    /// What was announced within the replay window, each revision with its place.
    pub(crate) earlier: Vec<(u64, Finding)>,
    pub(crate) findings_stored: StoredUntil,
    /// Woken when there is a finding to store.
    pub(crate) outbox: thread::Thread,
    pub(crate) replay: Reader,
    pub(crate) replay_until: Ordinal,
    /// The probes that each node lacks, by its name, as it said last.
    pub(crate) missing: HashMap<String, Arc<[String]>>,
    pub(crate) recorder: Recorder,
    pub(crate) queue: mpsc::Receiver<Batch>,
    pub(crate) runtime: Handle,
    pub(crate) losses: Arc<Losses>,
    pub(crate) metrics: EngineMetrics,
    pub(crate) progress: Progress,
    pub(crate) replay_window: Duration,
}

/// The thread.
pub(crate) struct EngineThread {
    analysis: Analysis,
    parts: Parts,
    told: AnalysisStats,
}

impl EngineThread {
    pub(crate) fn new(mut parts: Parts) -> Self {
        let (tenant, cluster) = (parts.tenant.clone(), parts.cluster.clone());
        let analysis = Analysis::new(Arc::clone(&parts.rules), tenant, cluster, parts.limits);
        parts.recent.begin(parts.announced.first(), parts.announced.next());
        for (place, finding) in &parts.earlier {
            parts.recent.put(*place, Arc::new(finding.clone()));
        }
        parts.announced.wake(parts.outbox.clone());
        Self { analysis, parts, told: AnalysisStats::default() }
    }

    /// Works until nobody can hand anything over any more.
    ///
    /// # Errors
    /// When the disk under the state directory fails.
    pub(crate) fn run(mut self) -> Result<(), EngineThreadError> {
        self.adopt();
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
        self.parts.recorder.finish();
        self.parts.announced.close()?;
        self.parts.progress.finish();
        Ok(())
    }

    /// Takes over what was announced before this process started.
    fn adopt(&mut self) {
        let earlier = std::mem::take(&mut self.parts.earlier);
        let earlier = earlier.into_iter().map(|(_place, finding)| finding);
        let recorder = &mut self.parts.recorder;
        self.analysis.adopt(earlier.inspect(|finding| recorder.earlier(finding)));
    }

    fn take(&mut self, batch: Batch) {
        self.parts.metrics.inputs.inc_by(batch.inputs.len() as u64);
        self.parts.recorder.frame(batch.kept);
        for input in batch.inputs {
            self.note(&input);
            self.analysis.insert(input);
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
        let pods = self.parts.context.pods();
        self.parts.recorder.names(&pods);
        self.analysis.rename(pods);
        let findings = self.analysis.tick(now);
        let revisions: Vec<_> = findings.iter().map(revision_bytes).collect();
        for (finding, bytes) in findings.iter().zip(&revisions) {
            tracing::info!(
                id = finding.id,
                revision = finding.revision,
                state = finding.state.as_str(),
                title = finding.title,
                "a finding"
            );
            let place = self.parts.announced.next();
            let evicted = self.parts.announced.append(bytes)?;
            if evicted > 0 {
                // Whether those were stored is not known here; the outbox counts those that were not.
                tracing::warn!(evicted, "findings were let go before the replay window was over");
            }
            self.parts.metrics.findings.inc();
            self.parts.recent.put(place, Arc::new(finding.clone()));
        }
        self.parts.recorder.tick(now, revisions);
        self.count_losses();
        let waiting = self.parts.announced.next().saturating_sub(self.parts.findings_stored.get());
        self.parts.metrics.findings_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        Ok(!findings.is_empty())
    }

    /// Counts what the engine gave up since the last time.
    fn count_losses(&mut self) {
        let stats = self.analysis.stats();
        let (was, is) = (self.told.engine, stats.engine);
        self.parts.metrics.verdicts.set(i64::try_from(is.drafts).unwrap_or(i64::MAX));
        // Of faults it is known how many are over budget now: those that were before are counted already.
        let faults = is.faults_skipped.saturating_sub(was.faults_skipped) as u64;
        for (subject, reason, lost) in [
            ("observations", "observations-full", is.evicted_observations - was.evicted_observations),
            ("relations", "relations-full", is.evicted_relations - was.evicted_relations),
            ("frames", "frames-full", is.evicted_frames - was.evicted_frames),
            ("faults", "faults-full", faults),
            ("findings", "findings-full", stats.findings_forgotten - self.told.findings_forgotten),
        ] {
            if lost > 0 {
                self.parts.metrics.drops.add(reason, lost);
                self.parts.losses.lost(Stage::Engine, subject, reason, lost);
            }
        }
        self.told = stats;
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
                    let missing = missing.get(record.name).map_or_else(Arc::default, Arc::clone);
                    self.parts.recorder.frame_again(record.name, &missing, arrival, record.body);
                    let context = SourceContext {
                        node: record.name,
                        clock_error: Micros(header.meta.clock.error_micros),
                        missing_probes: &missing,
                    };
                    let rules = Arc::clone(&self.parts.rules);
                    observe_batch(&view, header.meta.id, &context, &rules, &mut |input| inputs.push(input));
                    frames += 1;
                }
                Kind::Source => {
                    if let Ok(announcement) = serde_json::from_slice::<Announcement>(record.body) {
                        missing.insert(record.name.to_owned(), announcement.missing_probes().into());
                    }
                }
                Kind::OwnLedger | Kind::GivenUp => {}
            }
            for input in inputs.drain(..) {
                self.note(&input);
                self.analysis.insert(input);
            }
            if records.is_multiple_of(REPLAY_TICK_RECORDS) {
                // What is old is let go as it was then; nothing is announced before all is seen again.
                self.parts.recorder.catch_up(arrival);
                self.analysis.catch_up(arrival);
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

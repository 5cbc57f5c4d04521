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

use tapio_correlation::{Analysis, AnalysisLimits, RuleSet, SourceContext, analysis::GivenUp, observe_batch};
use tapio_daemon::Progress;
use tapio_recording::revision_bytes;
use tapio_schemas::{
    entity::{EntityKey, EntityKind},
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
    context::{Context, entities::Seen},
    losses::Losses,
    metrics::EngineMetrics,
    pipeline::{
        record::{Kind, Record},
        writer::lost_records,
    },
    recent::Recent,
    recording::Recorder,
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
    pub(crate) limits: AnalysisLimits,
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
    pub(crate) missing: HashMap<String, Arc<[String]>>,
    pub(crate) recorder: Recorder,
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
    analysis: Analysis,
    parts: Parts,
    /// What was given up in all, by reason and subject, as it was told last.
    told: BTreeMap<(&'static str, String), u64>,
    /// Announced, but not on the disk, because that is full: each with its bytes.
    unwritten: VecDeque<(Finding, Vec<u8>)>,
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
        Self { analysis, parts, told: BTreeMap::new(), unwritten: VecDeque::new() }
    }

    /// Works until nobody can hand anything over any more.
    ///
    /// # Errors
    /// When the disk under the state directory fails.
    pub(crate) fn run(mut self) -> Result<(), EngineThreadError> {
        self.adopt();
        self.replay()?;
        self.parts.recorder.goes_live();
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
        self.parts.watermark.set(self.analysis.watermark());
        let revisions: Vec<_> = findings.iter().map(revision_bytes).collect();
        // What was announced is recorded whether or not a disk takes it now.
        self.parts.recorder.tick(now, &revisions);
        for (finding, bytes) in findings.into_iter().zip(revisions) {
            log(&finding, self.parts.recent.finding(&finding.id).as_deref());
            self.parts.metrics.findings.inc();
            let calls = self.analysis.calls_around(&finding.verdict);
            let chain = Chain::new(calls, finding.first_symptom_at, &self.analysis.names());
            self.parts.chains.put(&finding.id, chain);
            self.unwritten.push_back((finding, bytes));
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
        while let Some((_finding, bytes)) = self.unwritten.front() {
            let place = self.parts.announced.next();
            let evicted = match self.parts.announced.append(bytes) {
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
            if let Some((finding, _bytes)) = self.unwritten.pop_front() {
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
        let drafts = self.analysis.stats().engine.drafts;
        self.parts.metrics.verdicts.set(i64::try_from(drafts).unwrap_or(i64::MAX));
        // Several kinds of observations are told under one name.
        let mut sums: BTreeMap<(&'static str, String), u64> = BTreeMap::new();
        for GivenUp { subject, reason, count } in self.analysis.given_up() {
            *sums.entry((reason, subject.to_owned())).or_default() += count;
        }
        for ((reason, subject), count) in &sums {
            // Of faults it is known how many are over budget now: those that were before are counted already.
            let before = self.told.get(&(reason, subject.clone())).copied().unwrap_or_default();
            let lost = count.saturating_sub(before);
            if lost > 0 {
                self.parts.metrics.drops.add(reason, lost);
                self.parts.losses.lost_of(Stage::Engine, subject.clone(), reason, lost);
            }
        }
        self.told = sums;
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
                // A machine whose clock was set back since then must not put the engine's ahead of it.
                let then = arrival.min(now());
                self.parts.recorder.catch_up(then);
                self.analysis.catch_up(then);
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

/// A finding is news when it is new, its state or verdict is another, or nobody sees its symptom any more, or again; its
/// other revisions are details.
fn log(finding: &Finding, before: Option<&Finding>) {
    let (id, revision, title) = (&finding.id, finding.revision, &finding.title);
    let state = finding.state.as_str();
    if is_news(finding, before) {
        tracing::info!(id, revision, state, title, "a finding");
    } else {
        tracing::debug!(id, revision, state, title, "a finding goes on");
    }
}

fn is_news(finding: &Finding, before: Option<&Finding>) -> bool {
    before.is_none_or(|before| {
        before.state != finding.state
            || before.title != finding.title
            || before.unobserved.is_empty() != finding.unobserved.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use tapio_schemas::{finding::FindingState, intent::Severity};

    use super::*;
    use crate::recent::tests::finding;

    /// Scenario: a finding that is new, that has more evidence, another verdict, another state.
    /// Guarantees: all but more evidence is news.
    #[test]
    fn only_news_is_logged_as_such() {
        let of = |revision, state| finding(1, revision, state, Severity::Error);
        let first = of(1, FindingState::Open);
        let mut other = (*of(2, FindingState::Open)).clone();
        assert!(is_news(&first, None));
        assert!(!is_news(&other, Some(&first)));
        assert!(is_news(&of(3, FindingState::Resolved), Some(&first)));
        other.title.push_str(", or of another cause");
        assert!(is_news(&other, Some(&first)));
    }
}

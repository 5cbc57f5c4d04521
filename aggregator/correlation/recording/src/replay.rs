//! Tells an analysis again what a recording says, and holds what follows against what was announced live.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use tapio_correlation::{Analysis, Pods, RuleSet, SourceContext, observe_batch};
use tapio_schemas::{
    entity::PodIdentity,
    finding::Finding,
    units::{Micros, UnixMicros},
    verdict::Verdict,
};
use tapio_wire::frame::{FrameDecoder, FrameFault, FrameLimits};
use thiserror::Error;

use crate::{Entry, Head, revision_bytes};

/// Why a replay cannot go on.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// A frame that was accepted live is refused.
    #[error(
        "a frame of {node} that arrived at {arrival} (microseconds since 1970) cannot be opened: {fault}; replay it with the release of tapio that recorded it"
    )]
    Frame {
        /// The node that it is from.
        node: String,
        /// When it arrived.
        arrival: u64,
        /// What is wrong with it.
        #[source]
        fault: FrameFault,
    },
    /// A finding of an earlier process cannot be read.
    #[error(
        "a finding that was announced earlier cannot be read ({0}); replay it with the release of tapio that recorded it"
    )]
    Earlier(#[source] serde_json::Error),
    /// There is no memory for a decompressor.
    #[error("frames cannot be opened: {0}")]
    Decoder(#[source] FrameFault),
}

/// Which rules a replay uses.
#[derive(Clone, Debug)]
pub enum Rules {
    /// Those of the recording: everything is as it was live, and is compared.
    Recorded(Arc<RuleSet>),
    /// Others: nothing is compared, and what was announced before the recording is forgotten.
    Other(Arc<RuleSet>),
}

/// Where a replay first differed from what was live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The time that the engine was told.
    pub now: UnixMicros,
    /// The revision that was announced live; `None` where the replay has one more, or the recording lacks it.
    pub live: Option<Vec<u8>>,
    /// The revision of the replay; `None` where it lacks the live one.
    pub replayed: Option<Vec<u8>>,
}

/// What was replayed, and how it compares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Frames that were taken.
    pub frames: u64,
    /// Events in them.
    pub events: u64,
    /// Times that were told, catching up left out.
    pub ticks: u64,
    /// Revisions that were announced live.
    pub live: u64,
    /// Revisions of the replay.
    pub replayed: u64,
    /// The first and the last time that was told.
    pub span: Option<(UnixMicros, UnixMicros)>,
    /// Where both first differ.
    pub difference: Option<Difference>,
}

/// The revisions of one tick, until those that were live are read.
#[derive(Debug)]
struct Awaited {
    now: UnixMicros,
    live_left: u32,
    replayed: VecDeque<Vec<u8>>,
}

/// A replay.
pub struct Replay {
    rules: Arc<RuleSet>,
    analysis: Analysis,
    is_compared: bool,
    decoder: FrameDecoder,
    missing: HashMap<String, Vec<String>>,
    pods: HashMap<String, PodIdentity>,
    is_renamed: bool,
    earlier: Vec<Finding>,
    awaited: Option<Awaited>,
    comparison: Comparison,
}

impl Replay {
    /// A replay of the recording with this head, from its first part on.
    ///
    /// # Errors
    /// When there is no memory for a decompressor.
    pub fn new(head: &Head, rules: Rules) -> Result<Self, ReplayError> {
        let (rules, is_compared) = match rules {
            Rules::Recorded(rules) => (rules, true),
            Rules::Other(rules) => (rules, false),
        };
        let (tenant, cluster) = (head.tenant.clone(), head.cluster.clone());
        Ok(Self {
            analysis: Analysis::new(Arc::clone(&rules), tenant, cluster, head.limits),
            rules,
            is_compared,
            decoder: FrameDecoder::new(FrameLimits::default()).map_err(ReplayError::Decoder)?,
            missing: HashMap::new(),
            pods: HashMap::new(),
            is_renamed: false,
            earlier: Vec::new(),
            awaited: None,
            comparison: Comparison::default(),
        })
    }

    /// Takes the next entry; gives the revisions that follow from it.
    ///
    /// # Errors
    /// When this release cannot read what was recorded.
    pub fn take(&mut self, entry: Entry<'_>) -> Result<Vec<Finding>, ReplayError> {
        match entry {
            Entry::Earlier(bytes) => {
                self.earlier.push(serde_json::from_slice(bytes).map_err(ReplayError::Earlier)?);
            }
            Entry::Source(fact) => drop(self.missing.insert(fact.node, fact.missing_probes)),
            Entry::Names(change) => {
                change.gone.iter().for_each(|uid| drop(self.pods.remove(uid)));
                self.pods.extend(change.named.into_iter().map(|pod| (pod.pod_uid.clone(), pod)));
                self.is_renamed = true;
            }
            Entry::Frame { arrival, node, bytes } => self.observe(arrival, node, bytes)?,
            Entry::CatchUp(now) => {
                self.adopt();
                self.analysis.catch_up(now);
            }
            Entry::Tick { now, revisions } => return Ok(self.tick(now, revisions)),
            Entry::Revision(bytes) => self.compare(bytes),
            Entry::End(_) => self.give_up_waiting(),
        }
        Ok(Vec::new())
    }

    /// What was weighed at the last tick and is no finding, each with the reason. To be asked behind
    /// [`Entry::Tick`]; it costs as much again.
    pub fn hypotheses(&mut self) -> Vec<Verdict> {
        self.analysis.hypotheses()
    }

    /// What was replayed so far, and how it compares with what was live. What a recording that was cut does not say of
    /// its last tick any more is not compared.
    #[must_use]
    pub const fn comparison(&self) -> &Comparison {
        &self.comparison
    }

    /// What was announced earlier stands before everything else.
    fn adopt(&mut self) {
        if !self.earlier.is_empty() {
            let earlier = std::mem::take(&mut self.earlier);
            if self.is_compared {
                self.analysis.adopt(earlier);
            }
        }
    }

    fn observe(&mut self, arrival: UnixMicros, node: &str, bytes: &[u8]) -> Result<(), ReplayError> {
        self.adopt();
        let (header, view) = self.decoder.decode(bytes, None).map_err(|fault| ReplayError::Frame {
            node: node.to_owned(),
            arrival: arrival.0,
            fault,
        })?;
        let context = SourceContext {
            node,
            clock_error: Micros(header.meta.clock.error_micros),
            missing_probes: self.missing.get(node).map_or(&[], Vec::as_slice),
        };
        let analysis = &mut self.analysis;
        observe_batch(&view, header.meta.id, &context, &self.rules, &mut |input| analysis.insert(input));
        self.comparison.frames += 1;
        self.comparison.events += u64::from(view.rows());
        Ok(())
    }

    fn tick(&mut self, now: UnixMicros, live: u32) -> Vec<Finding> {
        self.adopt();
        if std::mem::take(&mut self.is_renamed) {
            let generation = self.analysis.pods().generation() + 1;
            self.analysis.rename(Arc::new(Pods::new(self.pods.clone(), generation)));
        }
        let findings = self.analysis.tick(now);
        let comparison = &mut self.comparison;
        comparison.ticks += 1;
        comparison.replayed += findings.len() as u64;
        comparison.span = Some((comparison.span.map_or(now, |(first, _last)| first), now));
        if self.is_compared {
            self.give_up_waiting();
            let replayed = findings.iter().map(revision_bytes).collect();
            self.awaited = Some(Awaited { now, live_left: live, replayed });
            self.settle();
        }
        findings
    }

    /// Holds a live revision against the replay's.
    fn compare(&mut self, live: &[u8]) {
        self.comparison.live += 1;
        if !self.is_compared {
            return;
        }
        let Some(awaited) = &mut self.awaited else {
            // A revision that belongs to no tick.
            let now = self.comparison.span.map(|(_first, last)| last).unwrap_or_default();
            let differs = || Difference { now, live: Some(live.to_owned()), replayed: None };
            self.comparison.difference.get_or_insert_with(differs);
            return;
        };
        let replayed = awaited.replayed.pop_front();
        awaited.live_left = awaited.live_left.saturating_sub(1);
        if replayed.as_deref() != Some(live) {
            let now = awaited.now;
            let differs = || Difference { now, live: Some(live.to_owned()), replayed };
            self.comparison.difference.get_or_insert_with(differs);
        }
        self.settle();
    }

    /// The recording goes on, or ends in order: a revision that is still awaited from it is not there.
    fn give_up_waiting(&mut self) {
        if let Some(mut awaited) = self.awaited.take() {
            let difference =
                Difference { now: awaited.now, live: None, replayed: awaited.replayed.pop_front() };
            self.comparison.difference.get_or_insert(difference);
        }
    }

    /// Once all live revisions of a tick are read, the replay must have no more.
    fn settle(&mut self) {
        let Some(mut awaited) = self.awaited.take_if(|awaited| awaited.live_left == 0) else { return };
        if let Some(more) = awaited.replayed.pop_front() {
            let difference = Difference { now: awaited.now, live: None, replayed: Some(more) };
            self.comparison.difference.get_or_insert(difference);
        }
    }
}

//! The engine: a set of inputs, indexes over it, and verdicts as a pure function of set, watermark and rule set.
//!
//! Inserting is idempotent and order never matters: every index is a join of what was inserted. Verdict drafts are
//! cached by their fault; an insert makes only those drafts stale whose window it falls into, and a draft evaluated
//! again is the same as one evaluated from scratch. The aggregator runs one engine per cluster, the edge one per node.

mod anchor;
mod bind;
mod calls;
mod caps;
mod conclude;
mod evidence;
mod faults;
mod following;
mod fresh;
mod rivals;
mod set;
mod sources;
mod symptom;
mod topology;

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use tapio_schemas::{
    entity::{EntityKey, EntityKind, Relation},
    observation::Input,
    units::{Micros, UnixMicros},
    verdict::Verdict,
};

pub(crate) use self::evidence::begin_of;
pub(crate) use self::following::telling;
use self::{
    anchor::{AnchorGroup, GroupKey},
    bind::{Draft, View},
    faults::{Faults, Ground},
    fresh::Fresh,
    set::{Changed, ObservationSet},
    sources::Sources,
    topology::Topology,
};
pub use self::{
    calls::{Call, Calls},
    sources::Heard,
};
use crate::rule::RuleSet;

/// The bounds of an engine. Each is a policy: what goes beyond is evicted oldest first, or waits no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// The most observations kept; the oldest are evicted, and verdicts that overlap them are capped.
    pub observations_max: usize,
    /// The most relations kept; those not confirmed for longest are evicted, and verdicts that overlap them are capped.
    pub relations_max: usize,
    /// The most rows of frames kept, a row being a frame or sixteen that follow each other; the oldest are evicted, and
    /// verdicts that overlap them are capped.
    pub frames_max: usize,
    /// The most faults that are evaluated per rule, the latest; verdicts that overlap others are capped, unless those lack
    /// what their rule requires.
    pub faults_max: usize,
    /// A source that is silent for longer than this no longer holds the watermark, nor one that is further ahead.
    pub silence_max: Micros,
    /// How long after the first symptom expected evidence is waited for.
    pub settle_max: Micros,
    /// How long after a fault its verdict is still derived.
    pub verdict_life: Micros,
    /// The time before a fault in which changes are looked for.
    pub change_window: Micros,
    /// What is seen this soon after an agent began to observe is not a change.
    pub warm_up: Micros,
    /// How long an entity must have been watched before a fault, so that it counts as not failing then.
    pub watched_min: Micros,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            observations_max: 200_000,
            relations_max: 50_000,
            frames_max: 400_000,
            faults_max: 256,
            silence_max: Micros::from_secs(3),
            settle_max: Micros::from_millis(1_500),
            verdict_life: Micros::from_secs(600),
            change_window: Micros::from_secs(900),
            warm_up: Micros::from_secs(2),
            watched_min: Micros::from_secs(2),
        }
    }
}

/// What the engine holds and what it had to give up, for metrics and the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Observations held.
    pub observations: usize,
    /// Relations held.
    pub relations: usize,
    /// Rows of frames whose time and losses are held: a row is a frame, or sixteen that follow each other.
    pub frames: usize,
    /// Drafts held.
    pub drafts: usize,
    /// Drafts that were evaluated, since the start.
    pub evaluated: u64,
    /// Observations evicted over budget, since the start.
    pub evicted_observations: u64,
    /// Observations that no step of a rule looks for, since the start.
    pub not_needed: u64,
    /// How often the faults of one entity were grouped anew, since the start.
    pub regrouped: u64,
    /// Relations evicted over budget, since the start.
    pub evicted_relations: u64,
    /// Rows of frames evicted over budget, since the start.
    pub evicted_frames: u64,
    /// Faults of the last evaluation that were over budget.
    pub faults_skipped: usize,
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Engine {
    rules: Arc<RuleSet>,
    limits: Limits,
    set: ObservationSet,
    topology: Topology,
    sources: Sources,
    now: UnixMicros,
    watermark: UnixMicros,
    faults: Faults,
    drafts: BTreeMap<GroupKey, (Arc<AnchorGroup>, Draft)>,
    /// What was inserted since drafts were last brought up to date.
    fresh: Fresh,
    all_stale: bool,
    evaluated: u64,
    /// By rule.
    faults_skipped: Vec<usize>,
    not_needed: u64,
}

impl Engine {
    /// An empty engine for these rules.
    #[must_use]
    pub fn new(rules: Arc<RuleSet>, limits: Limits) -> Self {
        Self {
            set: ObservationSet::watching(faults::kinds(&rules)),
            rules,
            limits,
            topology: Topology::default(),
            sources: Sources::default(),
            now: UnixMicros(0),
            watermark: UnixMicros(0),
            faults: Faults::default(),
            drafts: BTreeMap::new(),
            fresh: Fresh::default(),
            all_stale: false,
            evaluated: 0,
            faults_skipped: Vec::new(),
            not_needed: 0,
        }
    }

    /// The rules in force.
    #[must_use]
    pub const fn rules(&self) -> &Arc<RuleSet> {
        &self.rules
    }

    /// Takes one input in. The same input again changes nothing. Observations that no step of a rule looks for are
    /// not kept.
    pub fn insert(&mut self, input: Input) {
        match input {
            Input::Observation(observation) => {
                let kinds: Vec<usize> = self.rules.kinds().accepting(&observation).collect();
                self.not_needed += u64::from(kinds.is_empty());
                let at = observation.time.earliest;
                let subject = observation.subject.clone();
                let most = self.limits.observations_max;
                for kind in self.set.insert(observation, kinds.into_iter(), most) {
                    self.fresh.note(kind, at, &subject);
                }
                // A draft that rests on what was evicted is as stale as one for which something came.
                for Changed { kind, item } in self.set.take_let_go() {
                    self.fresh.note(kind, item.time.earliest, &item.subject);
                }
            }
            Input::Relation(relation) => {
                self.topology.insert(&relation, self.limits.relations_max);
            }
            Input::Progress(progress) => self.sources.insert(&progress, self.limits.frames_max),
        }
    }

    /// Takes over everything that `other` holds: the union of both sets, and the later watermark.
    pub fn merge(&mut self, other: &Self) {
        self.set.merge(&other.set, self.limits.observations_max);
        self.topology.merge(&other.topology, self.limits.relations_max);
        self.sources.merge(&other.sources, self.limits.frames_max);
        self.now = self.now.max(other.now);
        self.watermark = self.watermark.max(other.watermark);
        self.set.take_let_go();
        self.all_stale = true;
    }

    /// Tells the engine the time: moves the watermark, and forgets what no verdict can need any more.
    pub fn tick(&mut self, now: UnixMicros) {
        self.now = self.now.max(now);
        let heard = self.sources.watermark(self.now, self.limits.silence_max);
        self.watermark = self.watermark.max(heard);
        let horizon = self.watermark.min(self.now).minus(self.horizon());
        self.set.forget_before(horizon);
        self.topology.forget_before(horizon);
        self.sources.forget_before(horizon);
        self.fresh.forget_before(horizon);
    }

    /// The same while nobody asks for verdicts: what came in between is not kept apart, all is bound anew when one does.
    pub fn catch_up(&mut self, now: UnixMicros) {
        self.tick(now);
        self.fresh = Fresh::default();
        self.all_stale = true;
    }

    /// The event time up to which every live source was heard.
    #[must_use]
    pub const fn watermark(&self) -> UnixMicros {
        self.watermark
    }

    /// How far back observations are kept: the life of a verdict, and the longest look back of a rule.
    #[must_use]
    pub fn horizon(&self) -> Micros {
        let reach = |rule: &crate::rule::Rule| rule.reach_before().0.saturating_add(rule.reach_after().0);
        let longest = self.rules.rules().iter().map(reach).max().unwrap_or(0);
        let back = longest.max(self.limits.change_window.0);
        Micros(back.saturating_add(self.limits.verdict_life.0).saturating_add(60_000_000))
    }

    /// The verdicts at the present watermark, ordered by rule, then by the fault's time.
    pub fn verdicts(&mut self) -> Vec<Verdict> {
        self.refresh();
        self.conclude_all()
    }

    /// The same verdicts, with nothing taken from the cache. Costs the whole set; for tests and audits.
    #[must_use]
    pub fn verdicts_from_scratch(&self) -> Vec<Verdict> {
        let mut copy = self.clone();
        copy.drafts.clear();
        copy.all_stale = true;
        copy.faults = Faults::default();
        copy.verdicts()
    }

    /// The pod in which a container or process ran at `at`, as far as events told.
    #[must_use]
    pub fn pod_of(&self, entity: &EntityKey, at: UnixMicros) -> Option<EntityKey> {
        if entity.kind == EntityKind::Pod {
            return Some(entity.clone());
        }
        self.topology.runs_in(entity, at).filter(|home| home.kind == EntityKind::Pod).cloned()
    }

    /// The relations that the engine knows, ordered; for showing the topology.
    #[must_use]
    pub fn relations(&self) -> Vec<Relation> {
        self.topology.relations()
    }

    /// How many observations were evicted over budget since the start, by what happened.
    pub fn evictions(&self) -> impl Iterator<Item = (&str, u64)> {
        self.set.evictions().map(|(kind, count)| (self.rules.kinds().intent(kind), count))
    }

    /// How many faults of the last evaluation were over budget, by rule.
    pub fn skipped_faults(&self) -> impl Iterator<Item = (&str, u64)> {
        let rules = self.rules.rules().iter().map(|rule| rule.id.as_str());
        rules.zip(self.faults_skipped.iter().map(|count| *count as u64))
    }

    /// What the engine holds and what it gave up.
    #[must_use]
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            observations: self.set.len(),
            relations: self.topology.len(),
            frames: self.sources.rows(),
            drafts: self.drafts.len(),
            evaluated: self.evaluated,
            evicted_observations: self.set.evictions().map(|(_kind, count)| count).sum(),
            not_needed: self.not_needed,
            regrouped: self.faults.regrouped(),
            evicted_relations: self.topology.evicted(),
            evicted_frames: self.sources.evicted(),
            faults_skipped: self.faults_skipped.iter().sum(),
        }
    }

    /// Brings the drafts up to date: faults that came or went, and drafts in whose window something was inserted.
    fn refresh(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        let moves = self.topology.take_moves();
        let (changed, is_overfull) = self.set.take_changed();
        let all_stale = std::mem::take(&mut self.all_stale);
        let oldest = self.watermark.minus(self.limits.verdict_life);
        let rules = Arc::clone(&self.rules);
        let ground = Ground { rules: &rules, set: &self.set, topology: &self.topology };
        match moves.containers().filter(|_moved| !all_stale && !is_overfull) {
            Some(moved) => self.faults.apply(&ground, changed, moved),
            None => self.faults = Faults::from_scratch(&ground),
        }
        let mut kept: BTreeMap<GroupKey, (Arc<AnchorGroup>, Draft)> = BTreeMap::new();
        self.faults_skipped.clear();
        for (index, rule) in rules.rules().iter().enumerate() {
            let view = View { rules: &rules, rule: index, set: &self.set, topology: &self.topology };
            let (groups, skipped) = self.faults.alive(index, oldest, self.limits.faults_max);
            self.faults_skipped.push(skipped);
            for (key, group) in groups {
                let cached = self.drafts.remove(&key);
                let still = cached.filter(|(old, draft)| {
                    !all_stale
                        && old.same_as(&group)
                        && !draft.is_touched_by(&view, rule, &fresh)
                        && !draft.is_moved_by(rule, &self.topology, &moves)
                });
                let entry = if let Some(entry) = still {
                    entry
                } else {
                    self.evaluated += 1;
                    let draft = bind::evaluate(&view, rule, &group, self.limits.change_window);
                    (group, draft)
                };
                kept.insert(key, entry);
            }
        }
        self.drafts = kept;
    }

    fn conclude_all(&self) -> Vec<Verdict> {
        let context = conclude::Context {
            rules: &self.rules,
            limits: &self.limits,
            set: &self.set,
            topology: &self.topology,
            sources: &self.sources,
            watermark: self.watermark,
            faults: &self.faults,
        };
        let mut concluded: Vec<conclude::Concluded<'_>> = self
            .drafts
            .iter()
            .filter_map(|(key, (_group, draft))| {
                let rule = self.rules.rules().get(key.rule)?;
                Some(conclude::conclude(&context, rule, draft))
            })
            .collect();
        rivals::decide(&context, &mut concluded);
        concluded.into_iter().map(|one| one.verdict).collect()
    }
}

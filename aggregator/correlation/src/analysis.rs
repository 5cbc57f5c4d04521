//! The analysis of a cluster over time: told inputs, names and the time, it answers with revisions of findings.
//!
//! An engine, the fold over its verdicts, and the names in force, as one thing: whoever tells it the same in the same
//! order gets the same revisions, byte for byte. So the aggregator's thread and the replay of what that thread took
//! cannot drift apart. It reads no clock and does no I/O.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use tapio_schemas::{
    entity::{EntityKey, PodIdentity},
    finding::Finding,
    ids::{ClusterId, TenantId},
    observation::Input,
    units::UnixMicros,
    verdict::{Outcome, Verdict},
};

use crate::{
    announce::{AnnounceLimits, Announcer, Names, Owner, Pods},
    engine::{Calls, Engine, EngineStats, Limits},
    rule::{Announce, RuleSet},
};

/// The bounds of both parts: they decide about verdicts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnalysisLimits {
    /// Of the engine.
    pub engine: Limits,
    /// Of the fold.
    pub announce: AnnounceLimits,
}

/// The analysis.
#[derive(Clone, Debug)]
pub struct Analysis {
    tenant: TenantId,
    cluster: ClusterId,
    engine: Engine,
    announcer: Announcer,
    pods: Arc<Pods>,
}

/// What the analysis holds and what it had to give up, for metrics and the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnalysisStats {
    /// Of the engine.
    pub engine: EngineStats,
    /// Findings forgotten over budget, since the start.
    pub findings_forgotten: u64,
}

/// Something that the analysis gave up for want of room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp<'a> {
    /// What: of observations what happened, of faults the rule, else the kind of thing.
    pub subject: &'a str,
    /// Which bound was reached.
    pub reason: &'static str,
    /// How many, since the start; of faults, those over budget now.
    pub count: u64,
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

impl Analysis {
    /// An empty analysis for these rules; its findings belong to `tenant` and `cluster`.
    #[must_use]
    pub fn new(rules: Arc<RuleSet>, tenant: TenantId, cluster: ClusterId, limits: AnalysisLimits) -> Self {
        Self {
            tenant,
            cluster,
            engine: Engine::new(rules, limits.engine),
            announcer: Announcer::new(limits.announce),
            pods: Arc::default(),
        }
    }

    /// Takes over what was announced before a restart, so that ids and revisions go on; of each finding the revision
    /// that comes last.
    pub fn adopt(&mut self, revisions: impl IntoIterator<Item = Finding>) {
        let latest: BTreeMap<String, Finding> =
            revisions.into_iter().map(|finding| (finding.id.clone(), finding)).collect();
        self.announcer.adopt(latest.into_values());
    }

    /// Takes one input in. The same input again changes nothing.
    pub fn insert(&mut self, input: Input) {
        self.engine.insert(input);
    }

    /// Puts other names in force.
    pub fn rename(&mut self, pods: Arc<Pods>) {
        self.pods = pods;
    }

    /// The names in force.
    #[must_use]
    pub const fn pods(&self) -> &Arc<Pods> {
        &self.pods
    }

    /// Tells the time while old inputs are taken in again: what is old is let go of as it was then, and nothing is
    /// announced.
    pub fn catch_up(&mut self, now: UnixMicros) {
        self.engine.catch_up(now);
    }

    /// Tells the time; gives the revisions of findings that follow from it.
    pub fn tick(&mut self, now: UnixMicros) -> Vec<Finding> {
        self.engine.tick(now);
        let verdicts = self.engine.verdicts();
        self.announcer.follow(&self.engine);
        let names = JoinedNames { engine: &self.engine, pods: &self.pods };
        let owner = Owner { tenant: &self.tenant, cluster: &self.cluster };
        self.announcer.fold(&verdicts, &names, now, owner, self.engine.rules())
    }

    /// What was weighed at the last tick and is no finding, each with the reason. Rules that never announce anything by
    /// themselves are left out.
    #[must_use]
    pub fn hypotheses(&mut self) -> Vec<Verdict> {
        let mut verdicts = self.engine.verdicts();
        let rules = self.engine.rules();
        let announces = |id: &str| rules.rule(id).is_some_and(|rule| rule.announce == Announce::Finding);
        verdicts.retain(|verdict| verdict.outcome != Outcome::Finding && announces(&verdict.rule));
        verdicts
    }

    /// The event time up to which every live source was heard, as of the last tick.
    #[must_use]
    pub fn watermark(&self) -> UnixMicros {
        self.engine.watermark()
    }

    /// Who calls whom around what a verdict names.
    #[must_use]
    pub fn calls_around(&self, verdict: &Verdict) -> Calls {
        self.engine.calls_around(verdict)
    }

    /// The names in force, joined with what events told.
    #[must_use]
    pub fn names(&self) -> impl Names {
        JoinedNames { engine: &self.engine, pods: &self.pods }
    }

    /// What it gave up, each by its name.
    pub fn given_up(&self) -> impl Iterator<Item = GivenUp<'_>> {
        let stats = self.engine.stats();
        let of = |reason| move |(subject, count)| GivenUp { subject, reason, count };
        let counts = [
            ("relations", "relations-full", stats.evicted_relations),
            ("frames", "frames-full", stats.evicted_frames),
            ("findings", "findings-full", self.announcer.forgotten()),
        ];
        let observations = self.engine.evictions().map(of("observations-full"));
        let faults = self.engine.skipped_faults().map(of("faults-full"));
        let others = counts.into_iter().map(|(subject, reason, count)| GivenUp { subject, reason, count });
        observations.chain(faults).chain(others)
    }

    /// What it holds and what it gave up.
    #[must_use]
    pub fn stats(&self) -> AnalysisStats {
        AnalysisStats { engine: self.engine.stats(), findings_forgotten: self.announcer.forgotten() }
    }
}

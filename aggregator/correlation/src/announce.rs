//! Findings: verdicts that were announced, with their history.
//!
//! A fold over the verdicts of successive watermarks: it mints ids at the first announcement, keeps them over
//! revisions, revises only on material change and not too often, resolves when symptoms stop and supersedes when the
//! cause changes. It never decides what a verdict is. The aggregator's analysis stage owns one per cluster.

mod known;
mod names;
mod narrative;

use std::collections::{BTreeMap, BTreeSet};

pub use names::{Names, Pods};
use serde::{Deserialize, Serialize};
use tapio_schemas::{
    entity::EntityKey,
    finding::{Finding, FindingState, mint_id, mint_incident_id},
    ids::{ClusterId, TenantId},
    units::{Micros, UnixMicros},
    verdict::{Outcome, Role, Stance, Verdict},
};

use self::known::{Change, Known};
use crate::{
    engine::Engine,
    rule::{Rule, RuleSet},
};

/// The bounds of the fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnnounceLimits {
    /// The most findings remembered; the resolved and oldest are forgotten first.
    pub findings_max: usize,
    /// Growing counts revise a finding at most this often.
    pub revise_every: Micros,
    /// A finding is resolved when its symptoms have stopped for this long.
    pub resolve_after: Micros,
}

impl Default for AnnounceLimits {
    fn default() -> Self {
        Self { findings_max: 4_096, revise_every: Micros::from_secs(2), resolve_after: Micros::from_secs(30) }
    }
}

/// Whose findings these are.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The cluster.
    pub cluster: &'a ClusterId,
}

/// The fold.
#[derive(Clone, Debug, Default)]
pub struct Announcer {
    limits: AnnounceLimits,
    known: BTreeMap<String, Known>,
    /// Rule and cause, to the findings of them.
    by_cause: BTreeMap<(String, EntityKey), BTreeSet<String>>,
    forgotten: u64,
}

impl Announcer {
    /// An empty fold.
    #[must_use]
    pub fn new(limits: AnnounceLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes findings over that were announced before a restart, so that their ids and revisions go on.
    pub fn adopt(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            self.keep(finding);
        }
        self.forget();
    }

    /// The findings remembered, by id.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.known.values().map(|known| &known.finding)
    }

    /// How many findings were forgotten over budget.
    #[must_use]
    pub const fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn keep(&mut self, finding: Finding) {
        let cause = (finding.verdict.rule.clone(), finding.verdict.cause.clone());
        self.by_cause.entry(cause).or_default().insert(finding.id.clone());
        self.known.insert(finding.id.clone(), Known::new(finding));
    }

    /// Sees how long the symptoms of open findings go on, those too whose fault is so long ago that the engine derives
    /// no verdict on it any more: they stay open for as long. To be called before [`Announcer::fold`].
    pub fn follow(&mut self, engine: &Engine) {
        for known in self.known.values_mut().filter(|known| known.finding.state == FindingState::Open) {
            known.see_symptom(engine.symptom_seen_until(&known.finding.verdict));
        }
    }

    /// Folds the verdicts of one watermark in; gives the findings that are new or changed, as of now.
    pub fn fold(
        &mut self,
        verdicts: &[Verdict],
        names: &dyn Names,
        now: UnixMicros,
        owner: Owner<'_>,
        rules: &RuleSet,
    ) -> Vec<Finding> {
        let mut changed: Vec<Finding> = Vec::new();
        for verdict in verdicts {
            let Some(rule) = rules.rule(&verdict.rule) else { continue };
            let same_cause = self.by_cause.get(&(verdict.rule.clone(), verdict.cause.clone()));
            let is_of = |id: &&String| self.known.get(*id).is_some_and(|known| known.is_of(verdict));
            if let Some(id) = same_cause.and_then(|ids| ids.iter().find(is_of)).cloned() {
                let told = self.known.get_mut(&id).and_then(|known| {
                    known.see_symptom(verdict.symptom_seen_until);
                    let change = known.change_by(verdict, now, self.limits.revise_every);
                    (change != Change::None).then(|| revise(known, verdict, rule, names, now))
                });
                changed.extend(told);
            } else if verdict.outcome == Outcome::Finding {
                let finding = announce(verdict, rule, names, now, owner);
                changed.extend(self.supersede(&finding, verdict, now));
                self.keep(finding.clone());
                changed.push(finding);
            }
        }
        let watermark = verdicts.iter().map(|verdict| verdict.watermark).max().unwrap_or(now);
        changed.extend(self.resolve(watermark, now));
        self.forget();
        changed
    }

    /// Open findings whose symptom the new one explains, with another cause that no verdict supports any more.
    fn supersede(&mut self, by: &Finding, verdict: &Verdict, now: UnixMicros) -> Vec<Finding> {
        let mut changed = Vec::new();
        for known in self.known.values_mut() {
            let finding = &mut known.finding;
            if finding.state == FindingState::Open
                && finding.verdict.outcome != Outcome::Finding
                && finding.verdict.cause != by.verdict.cause
                && shares_symptom(&finding.verdict, verdict)
            {
                finding.state = FindingState::Superseded;
                finding.revision = finding.revision.saturating_add(1);
                finding.revised_at = now;
                changed.push(finding.clone());
            }
        }
        changed
    }

    fn resolve(&mut self, watermark: UnixMicros, now: UnixMicros) -> Vec<Finding> {
        let mut changed = Vec::new();
        for known in self.known.values_mut() {
            let last = last_symptom(&known.finding.verdict).max(known.symptom_seen_until());
            let finding = &mut known.finding;
            if finding.state == FindingState::Open && last.plus(self.limits.resolve_after) < watermark {
                finding.state = FindingState::Resolved;
                finding.revision = finding.revision.saturating_add(1);
                finding.revised_at = now;
                changed.push(finding.clone());
            }
        }
        changed
    }

    fn forget(&mut self) {
        while self.known.len() > self.limits.findings_max {
            let oldest = self
                .known
                .iter()
                .min_by_key(|(id, known)| {
                    (known.finding.state == FindingState::Open, known.finding.revised_at, (*id).clone())
                })
                .map(|(id, _known)| id.clone());
            let Some(oldest) = oldest else { return };
            if let Some(gone) = self.known.remove(&oldest) {
                let cause = (gone.finding.verdict.rule, gone.finding.verdict.cause);
                if let Some(ids) = self.by_cause.get_mut(&cause) {
                    ids.remove(&oldest);
                    if ids.is_empty() {
                        self.by_cause.remove(&cause);
                    }
                }
            }
            self.forgotten += 1;
        }
    }
}

fn last_symptom(verdict: &Verdict) -> UnixMicros {
    let symptoms = verdict.evidence.iter().filter(|line| {
        line.stance == Stance::Supporting && matches!(line.role, Role::Symptom | Role::Effect)
    });
    symptoms.map(|line| line.last.latest).max().unwrap_or_else(|| last_of(verdict))
}

fn last_of(verdict: &Verdict) -> UnixMicros {
    verdict.evidence.iter().map(|line| line.last.latest).max().unwrap_or_default()
}

fn shares_symptom(a: &Verdict, b: &Verdict) -> bool {
    let symptom =
        |verdict: &Verdict| -> Option<EntityKey> { Some(verdict.first(Role::Symptom)?.subject.clone()) };
    let first =
        |verdict: &Verdict| verdict.evidence.iter().map(|line| line.first.earliest).min().unwrap_or_default();
    symptom(a).is_some() && symptom(a) == symptom(b) && first(a) <= last_of(b) && first(b) <= last_of(a)
}

fn announce(verdict: &Verdict, rule: &Rule, names: &dyn Names, now: UnixMicros, owner: Owner<'_>) -> Finding {
    let fault = verdict.first(Role::Fault).or_else(|| verdict.evidence.first());
    let first_event = fault.and_then(|line| line.events.first()).copied().unwrap_or_default();
    let symptom = verdict.first(Role::Symptom).or(fault);
    let first_symptom_at = symptom.map(|line| line.first.middle()).unwrap_or_default();
    let told = narrative::tell(verdict, rule, names);
    Finding {
        id: mint_id(owner.tenant, owner.cluster, &verdict.rule, &verdict.cause, first_event),
        incident_id: fault
            .map(|fault| mint_incident_id(owner.tenant, owner.cluster, fault))
            .unwrap_or_default(),
        tenant: owner.tenant.clone(),
        cluster: owner.cluster.clone(),
        revision: 1,
        state: FindingState::Open,
        announced_at: now,
        revised_at: now,
        first_symptom_at,
        found_after: now.since(first_symptom_at),
        title: told.title.unwrap_or_else(|| rule.id.clone()),
        lines: told.lines,
        recommended_action: told.recommended_action.unwrap_or_default(),
        names: told.names,
        verdict: verdict.clone(),
    }
}

fn revise(known: &mut Known, verdict: &Verdict, rule: &Rule, names: &dyn Names, now: UnixMicros) -> Finding {
    let told = narrative::tell(verdict, rule, names);
    let finding = &mut known.finding;
    finding.revision = finding.revision.saturating_add(1);
    finding.revised_at = now;
    finding.state = FindingState::Open;
    // What is no longer supported keeps its title: the lines and the outcome say what became of it.
    finding.title = told.title.unwrap_or_else(|| finding.title.clone());
    finding.lines = told.lines;
    finding.recommended_action =
        told.recommended_action.unwrap_or_else(|| finding.recommended_action.clone());
    finding.names = told.names;
    finding.verdict = verdict.clone();
    finding.clone()
}

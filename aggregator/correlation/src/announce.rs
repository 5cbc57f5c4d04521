//! Findings: verdicts that were announced, with their history.
//!
//! A fold over the verdicts of successive watermarks: it mints ids at the first announcement, keeps them over
//! revisions, revises only on material change and not too often, resolves when symptoms stop and supersedes when the
//! cause changes. It never decides what a verdict is. The aggregator's analysis stage owns one per cluster.

mod known;
mod names;
mod narrative;

use std::collections::BTreeMap;

pub use names::{Names, PodNames};
use tapio_schemas::{
    entity::EntityKey,
    finding::{Finding, FindingState, mint_id, mint_incident_id},
    ids::{ClusterId, TenantId},
    units::{Micros, UnixMicros},
    verdict::{Outcome, Role, Stance, Verdict},
};

use self::known::{Change, Known};
use crate::rule::{Rule, RuleSet};

/// The bounds of the fold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    forgotten: u64,
}

impl Announcer {
    /// An empty fold.
    #[must_use]
    pub fn new(limits: AnnounceLimits) -> Self {
        Self { limits, known: BTreeMap::new(), forgotten: 0 }
    }

    /// Takes findings over that were announced before a restart, so that their ids and revisions go on.
    pub fn adopt(&mut self, findings: impl IntoIterator<Item = Finding>) {
        for finding in findings {
            self.known.insert(finding.id.clone(), Known::new(finding));
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
        let mut seen: Vec<String> = Vec::new();
        for verdict in verdicts {
            let Some(rule) = rules.rule(&verdict.rule) else { continue };
            let known =
                self.known.iter().find(|(_id, known)| known.is_of(verdict)).map(|(id, _known)| id.clone());
            if let Some(id) = known {
                seen.push(id.clone());
                let told = self.known.get_mut(&id).and_then(|known| {
                    let change = known.change_by(verdict, now, self.limits.revise_every);
                    (change != Change::None).then(|| revise(known, verdict, rule, names, now))
                });
                changed.extend(told);
            } else if verdict.outcome == Outcome::Finding {
                let finding = announce(verdict, rule, names, now, owner);
                seen.push(finding.id.clone());
                changed.extend(self.supersede(&finding, verdict, now));
                self.known.insert(finding.id.clone(), Known::new(finding.clone()));
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
            let finding = &mut known.finding;
            let last = last_symptom(&finding.verdict);
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
            self.known.remove(&oldest);
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

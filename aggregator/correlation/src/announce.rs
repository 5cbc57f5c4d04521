//! Findings: verdicts that were announced, with their history.
//!
//! A fold over the verdicts of successive watermarks: it mints ids at the first announcement, keeps them over
//! revisions, revises only on material change and not too often, resolves when symptoms stop and supersedes when the
//! cause changes. It never decides what a verdict is. The aggregator's analysis stage owns one per cluster.

mod known;
mod names;
mod narrative;

use std::collections::{BTreeMap, BTreeSet};

pub use names::{Names, Pods, named_entity};
use serde::{Deserialize, Serialize};
use tapio_schemas::{
    entity::EntityKey,
    finding::{Continuation, Finding, FindingState, Resolution, mint_id, mint_incident_id},
    ids::{ClusterId, TenantId},
    units::{Micros, UnixMicros},
    verdict::{Outcome, Role, Verdict},
};

use self::known::{Change, Known};
use crate::{
    engine::{Engine, begin_of},
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
    /// A finding is resolved when its symptoms have stopped for this long, and who had seen them was heard so long. A
    /// node that is not heard for this long is told.
    pub resolve_after: Micros,
    /// A finding is closed when for this long nobody could tell whether its symptoms go on: nodes go for ever.
    pub unobserved_max: Micros,
    /// An open finding is told anew after this long: whoever takes findings over after a restart, from the last twenty
    /// minutes, takes it over too.
    pub remind_every: Micros,
}

impl Default for AnnounceLimits {
    fn default() -> Self {
        Self {
            findings_max: 4_096,
            revise_every: Micros::from_secs(2),
            resolve_after: Micros::from_secs(30),
            unobserved_max: Micros::from_secs(86_400),
            remind_every: Micros::from_secs(600),
        }
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
    /// Since when findings are followed: what is silent before that may still be on its way here.
    following_since: Option<UnixMicros>,
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

    /// Sees how the symptoms of open findings go on, those too whose fault is so long ago that the engine derives no
    /// verdict on it any more, and who would see it. To be called before [`Announcer::fold`]: what was not followed is
    /// not resolved.
    pub fn follow(&mut self, engine: &Engine) {
        let since = *self.following_since.get_or_insert(engine.watermark());
        for known in self.known.values_mut() {
            known.follow(engine, since, &self.limits);
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
        let telling = self.telling(verdicts, rules);
        for verdict in verdicts {
            let Some(rule) = rules.rule(&verdict.rule) else { continue };
            if let Some((id, is_told)) = self.part_of(verdict, rule) {
                if !is_told || telling.get(&id).is_some_and(|best| *best > worth(verdict)) {
                    continue;
                }
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
        let limits = &self.limits;
        let settled = self.known.values_mut().filter_map(|known| known.settle(now, limits));
        changed.extend(settled);
        self.forget();
        changed
    }

    /// The finding whose fault a verdict is about, or a part of; and whether the verdict is not of a part that is over.
    fn part_of(&self, verdict: &Verdict, rule: &Rule) -> Option<(String, bool)> {
        let ids = self.by_cause.get(&(verdict.rule.clone(), verdict.cause.clone()))?;
        let within = rule.merged_within();
        ids.iter().find_map(|id| {
            let known = self.known.get(id)?;
            let is_told = known.is_of(verdict) || known.goes_on_with(verdict, within);
            (is_told || known.went_on_from(verdict, within)).then(|| (id.clone(), is_told))
        })
    }

    /// Of several verdicts about parts of one fault the worth of that which its finding tells: the latest that commits
    /// itself furthest.
    fn telling(&self, verdicts: &[Verdict], rules: &RuleSet) -> BTreeMap<String, Worth> {
        let mut telling: BTreeMap<String, Worth> = BTreeMap::new();
        for verdict in verdicts {
            let part = rules.rule(&verdict.rule).and_then(|rule| self.part_of(verdict, rule));
            if let Some((id, true)) = part {
                let best = telling.entry(id).or_insert_with(|| worth(verdict));
                *best = worth(verdict).max(*best);
            }
        }
        telling
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

type Worth = (Outcome, UnixMicros);

fn worth(verdict: &Verdict) -> Worth {
    (verdict.outcome, verdict.first(Role::Fault).map(|line| line.first.earliest).unwrap_or_default())
}

fn last_of(verdict: &Verdict) -> UnixMicros {
    verdict.evidence.iter().map(|line| line.last.latest).max().unwrap_or_default()
}

fn shares_symptom(a: &Verdict, b: &Verdict) -> bool {
    let symptom =
        |verdict: &Verdict| -> Option<EntityKey> { Some(verdict.first(Role::Symptom)?.subject.clone()) };
    let first = |verdict: &Verdict| {
        let fault = verdict.first(Role::Fault).map(|fault| fault.first);
        fault.and_then(|fault| begin_of(&verdict.evidence, &fault)).unwrap_or_default()
    };
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
        resolution: Resolution::Unspecified,
        unobserved: Vec::new(),
        continuation: Continuation::default(),
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
    known.open();
    known.tell(verdict);
    let finding = &mut known.finding;
    finding.revision = finding.revision.saturating_add(1);
    finding.revised_at = now;
    // What is no longer supported keeps its title: the lines and the outcome say what became of it.
    finding.title = told.title.unwrap_or_else(|| finding.title.clone());
    finding.lines = told.lines;
    finding.recommended_action =
        told.recommended_action.unwrap_or_else(|| finding.recommended_action.clone());
    finding.names = told.names;
    finding.clone()
}

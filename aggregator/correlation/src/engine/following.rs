//! What becomes of a symptom that a verdict shows, however long ago its fault was: how it goes on, and who would see it.
//!
//! Asked for findings that are open, when the engine derives no verdict on them any more, or one that counts no further.

use std::collections::BTreeSet;

use tapio_schemas::{
    entity::EntityKey,
    ids::{EventId, SourceId},
    ledger::LedgerEntry,
    observation::Observation,
    units::{Micros, UnixMicros},
    verdict::{Evidence, Role, Stance, Verdict},
};

use super::{
    Engine,
    caps::{concerns, probe_name},
    sources::{Heard, Hiding},
};
use crate::rule::{LinkTo, Rule, Step};

/// Evidence that shows how a failure goes on, and what satisfies its step.
struct Shown<'a> {
    line: &'a Evidence,
    kinds: &'a [usize],
    /// Whether it is the symptom step's own evidence, and not calls to those that the line's went to.
    is_own: bool,
}

/// The lines that say whether a failure goes on: of the symptom, else of the effects, else all.
pub(crate) fn telling(verdict: &Verdict) -> impl Iterator<Item = &Evidence> {
    let supporting = |role| move |line: &&Evidence| line.stance == Stance::Supporting && line.role == role;
    let role = [Role::Symptom, Role::Effect]
        .into_iter()
        .find(|role| verdict.evidence.iter().any(|line| supporting(*role)(&line)));
    verdict.evidence.iter().filter(move |line| role.is_none_or(|role| supporting(role)(line)))
}

/// How often the failure would be seen within `least` if it went on as it was, at least once: where as much was lost, it
/// may go on unseen.
fn expected_within(verdict: &Verdict, least: Micros) -> u64 {
    let count = telling(verdict).map(|line| line.count).fold(0, u64::saturating_add);
    let first = telling(verdict).map(|line| line.first.earliest).min().unwrap_or_default();
    let last = telling(verdict).map(|line| line.last.latest).max().unwrap_or_default();
    let lasted = last.since(first).max(least).0.max(1);
    let within = u128::from(count) * u128::from(least.0) / u128::from(lasted);
    u64::try_from(within).unwrap_or(u64::MAX).max(1)
}

impl Engine {
    /// Until when the symptom that a verdict shows goes on, as far as was heard; however long ago the fault was. Zero
    /// where it was not seen any more.
    #[must_use]
    pub fn symptom_seen_until(&self, verdict: &Verdict) -> UnixMicros {
        let last = self.shown(verdict).into_iter().filter_map(|shown| {
            let fits = |item: &Observation| self.fits(&shown, item);
            self.set.last_end(shown.kinds, &shown.line.subject, self.watermark, fits)
        });
        last.max().unwrap_or_default()
    }

    /// How often the symptom that a verdict shows came after `after`, up to `until`, and when it came last.
    #[must_use]
    pub fn symptom_count(
        &self,
        verdict: &Verdict,
        after: UnixMicros,
        until: UnixMicros,
    ) -> (u64, Option<UnixMicros>) {
        // One call may be told by several of them.
        let mut told: BTreeSet<EventId> = BTreeSet::new();
        let counted = self.shown(verdict).into_iter().map(|shown| {
            // What the verdict tells of it is counted there.
            let after = after.max(shown.line.last.latest);
            let fits = |item: &Observation| self.fits(&shown, item) && told.insert(item.id);
            self.set.count_ends(shown.kinds, &shown.line.subject, (after, until), fits)
        });
        counted.fold((0, None), |(sum, latest), (count, last)| (sum.saturating_add(count), latest.max(last)))
    }

    /// Whether records that may be more of the symptom were lost around this time, of those who show it.
    #[must_use]
    pub(crate) fn may_have_missed(&self, verdict: &Verdict, after: UnixMicros, until: UnixMicros) -> bool {
        let steps = self.telling_steps(verdict);
        let is_of = |entry: &LedgerEntry| steps.iter().any(|(rule, step)| concerns(rule, step, entry));
        let sources: BTreeSet<SourceId> =
            telling(verdict).flat_map(|line| line.events.iter().map(|event| event.frame.source)).collect();
        sources.into_iter().any(|source| {
            let losses = self.sources.losses(source, after, until);
            losses.unknown || losses.lost.iter().any(is_of)
        })
    }

    /// Until when a verdict itself counts its symptom: as far behind the fault as its rule looks. `None` where its rule
    /// is not in force, so that nobody looks for the symptom any more.
    #[must_use]
    pub fn counts_until(&self, verdict: &Verdict) -> Option<UnixMicros> {
        let rule = self.rules.rule(&verdict.rule)?;
        let fault = verdict.first(Role::Fault).map(|fault| fault.last.latest).unwrap_or_default();
        Some(fault.plus(rule.reach_after()))
    }

    /// What was heard after `from` of the sources that would tell whether the failure goes on, each without gap, and
    /// without losses that could hide it; those of which less than `least` was heard are not searched for either. A
    /// source whose probes do not see it any more is as good as silent.
    #[must_use]
    pub fn heard(&self, verdict: &Verdict, from: UnixMicros, least: Micros) -> Vec<Heard> {
        let mut sources: BTreeSet<SourceId> = BTreeSet::new();
        let mut blind: BTreeSet<SourceId> = BTreeSet::new();
        for line in telling(verdict) {
            for source in line.events.iter().map(|event| event.frame.source) {
                let missing = self.sources.get(source).map(|source| source.missing_probes.as_slice());
                let does_see = |probe: &String| {
                    missing.unwrap_or_default().iter().all(|missing| probe_name(missing) != probe)
                };
                if !line.probes.is_empty() && !line.probes.iter().any(does_see) {
                    blind.insert(source);
                }
                sources.insert(source);
            }
        }
        let steps = self.telling_steps(verdict);
        let is_of = |entry: &LedgerEntry| steps.iter().any(|(rule, step)| concerns(rule, step, entry));
        let hiding = Hiding { is_of: &is_of, enough: expected_within(verdict, least) };
        let heard = |source: SourceId| {
            let heard = self.sources.heard(source, from, least, &hiding);
            let until = if blind.contains(&source) { heard.until.min(from) } else { heard.until };
            Heard { until, ..heard }
        };
        sources.into_iter().map(heard).collect()
    }

    /// The steps whose evidence says whether the failure goes on.
    fn telling_steps(&self, verdict: &Verdict) -> Vec<(&Rule, &Step)> {
        let Some(rule) = self.rules.rule(&verdict.rule) else { return Vec::new() };
        let named = telling(verdict).filter_map(|line| rule.steps.iter().find(|step| step.id == line.step));
        let both = named.flat_map(|step| [Some(step), step.otherwise.and_then(|place| rule.step(place))]);
        both.flatten().map(|step| (rule, step)).collect()
    }

    /// The symptom; where calls of somebody who serves nothing stand in for it, all that the rule counts among the calls
    /// that fail since, whomever they reach by now.
    fn shown<'a>(&'a self, verdict: &'a Verdict) -> Vec<Shown<'a>> {
        let Some(index) = self.rules.place(&verdict.rule) else { return Vec::new() };
        let Some(rule) = self.rules.rules().get(index) else { return Vec::new() };
        let supporting = || verdict.evidence.iter().filter(|line| line.stance == Stance::Supporting);
        let symptom = supporting().find(|line| line.role == Role::Symptom);
        let step_of = |line: &Evidence| (0u32..).zip(&rule.steps).find(|(_place, step)| step.id == line.step);
        let Some((line, (place, step))) = symptom.and_then(|line| Some((line, step_of(line)?))) else {
            return Vec::new();
        };
        let kinds =
            |place: u32| self.rules.kinds().of_step(index, usize::try_from(place).unwrap_or(usize::MAX));
        let is_own = line.intents.keys().any(|intent| step.observe.contains(intent));
        if is_own {
            return vec![Shown { line, kinds: kinds(place), is_own }];
        }
        let Some(other) = step.otherwise else { return Vec::new() };
        let failing =
            supporting().filter(|effect| effect.role == Role::Effect && effect.subject == line.subject);
        let calls =
            failing.filter_map(|effect| Some((effect, step_of(effect)?))).filter(|(_effect, (at, step))| {
                let is_by_calls = step.links.iter().any(|link| link.to == LinkTo::CallerOf);
                // What is tied by a trace is among the others already.
                *at != other && is_by_calls && !step.links.iter().any(|link| link.to == LinkTo::SameTrace)
            });
        let calls = calls.map(|(effect, (at, _step))| Shown { line: effect, kinds: kinds(at), is_own });
        std::iter::once(Shown { line, kinds: kinds(other), is_own }).chain(calls).collect()
    }

    fn fits(&self, shown: &Shown<'_>, item: &Observation) -> bool {
        // By all names that it had: who owned an endpoint is forgotten while calls to it may still fail.
        let Evidence { peer, other_peers, .. } = shown.line;
        let is_wanted = |owner: &EntityKey| Some(owner) == peer.as_ref() || other_peers.contains(owner);
        shown.is_own || self.topology.is_toward(item, is_wanted)
    }
}

//! Evidence, as verdicts carry it: many observations of one step about one entity become one line with a count.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use tapio_schemas::{
    entity::EntityKey,
    intent::{self, LinkKind},
    observation::{Observation, Value},
    units::{Micros, TimeInterval, UnixMicros},
    verdict::{Change, Evidence, Role, Stance},
};

use super::{
    bind::{Bound, Group},
    set::{ObservationSet, end_of},
    topology::Topology,
};
use crate::rule::{Presence, Rule, RuleSet, Step, Tell};

/// The most event ids that one line of evidence names.
const EVENTS_MAX: usize = 16;

/// The most traces that one line of evidence names.
const TRACES_MAX: usize = 8;

/// The most other sides that one line of evidence names.
const PEERS_MAX: usize = 16;

/// The most lines of evidence that one step contributes.
const LINES_PER_STEP_MAX: usize = 8;

/// The most changes that are kept of one fault, the latest.
const CHANGES_KEPT_MAX: usize = 64;

/// What counts as a change.
pub(super) const CHANGES: [&str; 2] = [intent::PROCESS_EXECUTED, intent::CONTAINER_SEEN];

/// The line of evidence of a group; `None` of an empty one.
pub(super) fn of_group(step: &Step, group: &Group, stance: Stance) -> Option<Evidence> {
    let first_item = group.items.first()?;
    let ended = |item: &_| if step.is_dated_by_end() { end_of(item) } else { item.time };
    // A cause is there from its beginning on, however late its effect shows.
    let began = |item: &Observation| if step.role() == Role::Cause { item.time } else { ended(item) };
    let first: TimeInterval = group.items.iter().map(|item| began(item)).min()?;
    let last: TimeInterval = group.items.iter().map(|item| ended(item)).max()?;
    // How often, and when first: one clock stamped what one node saw, so the middles tell their order.
    let mut intents: BTreeMap<&str, (u64, UnixMicros)> = BTreeMap::new();
    let mut probes: Vec<&str> = Vec::new();
    let mut traces = Vec::new();
    let mut other_peers: Vec<&EntityKey> = Vec::new();
    let mut count: u64 = 0;
    for item in &group.items {
        if let Some(peer) = item.peer.as_ref().filter(|peer| first_item.peer.as_ref() != Some(peer))
            && other_peers.len() + 1 < PEERS_MAX
            && !other_peers.contains(&peer)
        {
            other_peers.push(peer);
        }
        let at = began(item).middle();
        let (told, since) = intents.entry(&item.intent).or_insert((0, at));
        *told = told.saturating_add(item.count);
        *since = at.min(*since);
        count = count.saturating_add(item.count);
        if !probes.contains(&item.probe.as_str()) {
            probes.push(&item.probe);
        }
        if let Some(trace) = item.trace
            && traces.len() < TRACES_MAX
            && !traces.contains(&trace)
        {
            traces.push(trace);
        }
    }
    probes.sort();
    let mut order: Vec<&str> = intents.keys().copied().collect();
    order.sort_by_key(|intent| intents.get(intent).map(|(_count, since)| *since));
    Some(Evidence {
        step: step.id.clone(),
        role: step.role(),
        stance,
        link: if stance == Stance::Contradicting { LinkKind::Observed } else { group.link },
        order: order.into_iter().map(str::to_owned).collect(),
        intents: intents.into_iter().map(|(intent, (count, _since))| (intent.to_owned(), count)).collect(),
        subject: group.subject.clone(),
        peer: first_item.peer.clone(),
        other_peers: other_peers.into_iter().cloned().collect(),
        first,
        last,
        count,
        probes: probes.into_iter().map(str::to_owned).collect(),
        traces,
        events: group.items.iter().take(EVENTS_MAX).map(|item| item.id).collect(),
        event_count: u64::try_from(group.items.len()).unwrap_or(u64::MAX),
        attributes: telling_item(step, group).unwrap_or(first_item).attributes.clone(),
    })
}

/// The item whose attributes a line shows, where that is not the first by the earliest time that it may have happened at.
fn telling_item<'a>(step: &Step, group: &'a Group) -> Option<&'a Observation> {
    let items = group.items.iter().map(AsRef::as_ref);
    // One clock stamped them all: how wrong it may have been when a frame left changes nothing about their order.
    match (step.tell, step.role()) {
        (Tell::Latest, _) => items.max_by_key(|item: &&Observation| (end_of(item).middle(), item.id)),
        (Tell::First, Role::Cause) => items.min_by_key(|item: &&Observation| (item.time.middle(), item.id)),
        (Tell::First, Role::Fault | Role::Effect | Role::Symptom) => None,
    }
}

/// All lines of a bound rule, ordered by role, then time.
pub(super) fn lines_of(rule: &Rule, bound: &[Bound]) -> Vec<Evidence> {
    let mut lines: Vec<(usize, Evidence)> = Vec::new();
    for (place, (step, bound)) in rule.steps.iter().zip(bound).enumerate() {
        let stance = match step.presence {
            Presence::Contradicts => Stance::Contradicting,
            Presence::Required | Presence::Expected => Stance::Supporting,
        };
        let supporting = bound.groups.iter().filter_map(|group| of_group(step, group, stance));
        let contradicting =
            bound.began_before.iter().filter_map(|group| of_group(step, group, Stance::Contradicting));
        let mut of_step: Vec<Evidence> = supporting.chain(contradicting).collect();
        of_step.sort_by(|a, b| (a.stance, b.count, &a.subject).cmp(&(b.stance, a.count, &b.subject)));
        of_step.truncate(LINES_PER_STEP_MAX);
        lines.extend(of_step.into_iter().map(|line| (place, line)));
    }
    lines.sort_by(|(a_place, a), (b_place, b)| {
        (a.role, a.first, a_place, &a.subject).cmp(&(b.role, b.first, b_place, &b.subject))
    });
    lines.into_iter().map(|(_place, line)| line).collect()
}

/// When the first evidence around a fault happened. A cause that goes on behind the fault may have been there for ever: when
/// it began is told, and dates nothing else.
pub(crate) fn begin_of(lines: &[Evidence], fault: &TimeInterval) -> Option<UnixMicros> {
    let goes_on = |line: &Evidence| line.role == Role::Cause && line.last.earliest > fault.latest;
    lines.iter().filter(|line| !goes_on(line)).map(|line| line.first.earliest).min()
}

/// What is read to tell changes.
pub(super) struct Changes<'a> {
    pub(super) rules: &'a RuleSet,
    pub(super) set: &'a ObservationSet,
    pub(super) topology: &'a Topology,
}

/// Whose changes may be told: those of the evidence's entities; of a pod, those of its containers.
pub(super) fn changing(topology: &Topology, lines: &[Evidence]) -> BTreeSet<EntityKey> {
    let members = lines.iter().flat_map(|line| topology.members_of(&line.subject));
    members.chain(lines.iter().map(|line| line.subject.clone())).collect()
}

impl Changes<'_> {
    /// New programs and containers on the evidence's entities before the fault, ordered by time; of a pod, in its
    /// containers.
    ///
    /// The same again is no second change: health checks run the same program over and over.
    pub(super) fn of(&self, first: TimeInterval, lines: &[Evidence], window: Micros) -> Vec<Change> {
        let subjects: BTreeSet<&EntityKey> = lines.iter().map(|line| &line.subject).collect();
        let own = changing(self.topology, lines);
        let mut changes: BTreeMap<(&EntityKey, String), Change> = BTreeMap::new();
        for name in CHANGES {
            let Some(kind) = self.rules.kinds().own(name) else { continue };
            let within = (first.earliest.minus(window), first.earliest);
            for item in own.iter().flat_map(|subject| self.set.of_subject(kind, subject, within)) {
                let is_of = |subject: &EntityKey| subjects.contains(subject);
                let is_told =
                    is_of(&item.subject) || is_of(self.topology.home_of(&item.subject, item.time.latest));
                if !is_told || !item.time.certainly_before(&first) {
                    continue;
                }
                let command = match item.attributes.get("kernel.command") {
                    Some(Value::Text(command)) if !command.is_empty() => command.as_str(),
                    _ => "a program",
                };
                let what = if name == intent::CONTAINER_SEEN {
                    "the container started".to_owned()
                } else {
                    format!("{command} was started")
                };
                changes.entry((&item.subject, what.clone())).or_insert_with(|| Change {
                    at: item.time.middle(),
                    intent: name.to_owned(),
                    subject: item.subject.clone(),
                    event: item.id,
                    what,
                });
            }
        }
        let mut changes: Vec<Change> = changes.into_values().collect();
        changes.sort_by_key(|change| (change.at, change.event));
        let surplus = changes.len().saturating_sub(CHANGES_KEPT_MAX);
        changes.split_off(surplus)
    }
}

/// The canonical causal graph, hashed: the rule, and per line of evidence its step, role, stance, what happened, and
/// which entity of which kind, numbered in the order of appearance. No name, time or count is in it.
pub(super) fn signature(rule: &Rule, evidence: &[Evidence]) -> String {
    let mut hash = Sha256::new();
    let mut text = |part: &str| {
        hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hash.update(part.as_bytes());
    };
    let mut seen: Vec<&EntityKey> = Vec::new();
    text(&rule.id);
    for line in evidence {
        let number = seen.iter().position(|entity| **entity == line.subject).unwrap_or_else(|| {
            seen.push(&line.subject);
            seen.len() - 1
        });
        text(&line.step);
        text(line.role.as_str());
        text(line.stance.as_str());
        text(line.subject.kind.as_str());
        text(&number.to_string());
        for intent in line.intents.keys() {
            text(intent);
        }
    }
    let digest: [u8; 32] = hash.finalize().into();
    let number = u128::from_be_bytes(*digest.first_chunk::<16>().unwrap_or(&[0; 16]));
    format!("{number:032x}")
}

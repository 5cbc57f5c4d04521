//! Evidence, as verdicts carry it: many observations of one step about one entity become one line with a count.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use tapio_schemas::{
    entity::EntityKey,
    intent::LinkKind,
    units::TimeInterval,
    verdict::{Evidence, Stance},
};

use super::{bind::Group, set::end_of};
use crate::rule::{Rule, Step};

/// The most event ids that one line of evidence names.
const EVENTS_MAX: usize = 16;

/// The most traces that one line of evidence names.
const TRACES_MAX: usize = 8;

/// The line of evidence of a group; `None` of an empty one.
pub(super) fn of_group(step: &Step, group: &Group, stance: Stance) -> Option<Evidence> {
    let first_item = group.items.first()?;
    let time = |item: &_| if step.is_dated_by_end() { end_of(item) } else { item.time };
    let moments = || group.items.iter().map(|item| time(item));
    let first: TimeInterval = moments().min()?;
    let last: TimeInterval = moments().max()?;
    let mut intents: BTreeMap<String, u64> = BTreeMap::new();
    let mut probes: Vec<String> = Vec::new();
    let mut traces = Vec::new();
    let mut count: u64 = 0;
    for item in &group.items {
        let told = intents.entry(item.intent.clone()).or_default();
        *told = told.saturating_add(item.count);
        count = count.saturating_add(item.count);
        if !probes.contains(&item.probe) {
            probes.push(item.probe.clone());
        }
        if let Some(trace) = item.trace
            && traces.len() < TRACES_MAX
            && !traces.contains(&trace)
        {
            traces.push(trace);
        }
    }
    probes.sort();
    Some(Evidence {
        step: step.id.clone(),
        role: step.role(),
        stance,
        link: if stance == Stance::Contradicting { LinkKind::Observed } else { group.link },
        intents,
        subject: group.subject.clone(),
        peer: first_item.peer.clone(),
        first,
        last,
        count,
        probes,
        traces,
        events: group.items.iter().take(EVENTS_MAX).map(|item| item.id).collect(),
        event_count: u64::try_from(group.items.len()).unwrap_or(u64::MAX),
        attributes: first_item.attributes.clone(),
    })
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

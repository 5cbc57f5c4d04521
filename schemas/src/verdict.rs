//! The engine's answer at one watermark: a pure function of observations, watermark and rule set.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    entity::EntityKey,
    ids::{EventId, RuleSetVersion, TraceId},
    intent::{LinkKind, Severity, coded},
    ledger::LossSummary,
    observation::Value,
    units::{Micros, TimeInterval, UnixMicros},
};

coded! {
    /// What an observation is in a chain, from the root to what people notice.
    Role {
        /// What led to the fault.
        #[default]
        0 Cause "cause",
        /// What broke.
        1 Fault "fault",
        /// What the break did to others.
        2 Effect "effect",
        /// What people notice.
        3 Symptom "symptom",
    }
}

coded! {
    /// Which way evidence points.
    Stance {
        /// It speaks for the verdict.
        #[default]
        0 Supporting "supporting",
        /// It speaks against it.
        1 Contradicting "contradicting",
    }
}

coded! {
    /// How much the engine commits itself.
    Outcome {
        /// Derived, but not good enough to announce.
        #[default]
        0 Hypothesis "hypothesis",
        /// Something is wrong, and the evidence does not decide between the candidates.
        1 Undetermined "undetermined",
        /// Announced: all required evidence is there, nothing contradicts.
        2 Finding "finding",
    }
}

/// One step of a chain, with what supports it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Evidence {
    /// The rule's step.
    pub step: String,
    /// Its place in the chain.
    pub role: Role,
    /// Which way it points.
    pub stance: Stance,
    /// Whether the link to the rest of the chain was observed or inferred.
    pub link: LinkKind,
    /// What happened, as rules name it. Of a step that several intents satisfy, each with its count.
    pub intents: BTreeMap<String, u64>,
    /// The same names in the order in which the first of each happened.
    #[serde(default)]
    pub order: Vec<String>,
    /// Who it is about.
    pub subject: EntityKey,
    /// The other side.
    pub peer: Option<EntityKey>,
    /// The other sides of occurrences that had others, and other names of it: a bounded sample, the earliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_peers: Vec<EntityKey>,
    /// When the first occurrence happened.
    pub first: TimeInterval,
    /// When the last occurrence happened.
    pub last: TimeInterval,
    /// How many occurrences.
    pub count: u64,
    /// The probes that saw it.
    pub probes: Vec<String>,
    /// Traces it belongs to: a bounded sample, the earliest first.
    pub traces: Vec<TraceId>,
    /// The events that it rests on: a bounded sample, the earliest first.
    pub events: Vec<EventId>,
    /// How many events it rests on.
    pub event_count: u64,
    /// The attributes of the first occurrence that the narrative may name.
    pub attributes: BTreeMap<String, Value>,
}

/// A step that the rule expected and the engine did not find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct MissingEvidence {
    /// The rule's step.
    pub step: String,
    /// Its place in the chain.
    pub role: Role,
    /// Why it may be missing: no probe could see it, records were lost, or it simply was not there.
    pub why: String,
}

/// One possible cause, where several remain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Candidate {
    /// The cause.
    pub cause: EntityKey,
    /// The rule that proposes it.
    pub rule: String,
    /// Evidence present, of the expected.
    pub evidence_present: u32,
    /// Evidence expected.
    pub evidence_expected: u32,
    /// Why it ranks where it does.
    pub reason: String,
}

/// The engine's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Verdict {
    /// The rule (pattern) that it follows from.
    pub rule: String,
    /// The rule set in force.
    pub rule_set: RuleSetVersion,
    /// The event time up to which everything was heard.
    pub watermark: UnixMicros,
    /// How much the engine commits itself.
    pub outcome: Outcome,
    /// Why it is not a finding, where it is none.
    pub reason: String,
    /// How bad it is.
    pub severity: Severity,
    /// The root of the chain.
    pub cause: EntityKey,
    /// The chain, ordered by role, then time.
    pub evidence: Vec<Evidence>,
    /// Steps that are present, of the expected (required ones included).
    pub evidence_present: u32,
    /// Steps expected.
    pub evidence_expected: u32,
    /// Steps that are not present.
    pub missing: Vec<MissingEvidence>,
    /// Possible causes, ranked; the first is the cause of a finding.
    pub candidates: Vec<Candidate>,
    /// Changes seen before the fault on implicated entities (new programs, new containers).
    pub changes: Vec<Change>,
    /// Since when the implicated nodes were observed: no change before that can have been seen.
    pub observed_since: UnixMicros,
    /// Until when the symptom was seen to go on, even where that is longer than the rule looks; zero without one.
    #[serde(default)]
    pub symptom_seen_until: UnixMicros,
    /// What was lost in the window.
    pub losses: LossSummary,
    /// The largest clock error among the sources of the evidence.
    pub clock_error: Micros,
    /// Probes that could have seen more and do not work on implicated nodes.
    pub missing_probes: Vec<String>,
    /// The canonical, name-free causal graph, hashed; 32 hexadecimal digits.
    pub signature: String,
}

/// Something that was changed before a fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Change {
    /// When.
    pub at: UnixMicros,
    /// What happened, as rules name it.
    pub intent: String,
    /// On what.
    pub subject: EntityKey,
    /// The event.
    pub event: EventId,
    /// What changed, for a person.
    pub what: String,
}

impl Verdict {
    /// The first supporting evidence with this role, in the chain's order.
    #[must_use]
    pub fn first(&self, role: Role) -> Option<&Evidence> {
        self.evidence.iter().find(|line| line.role == role && line.stance == Stance::Supporting)
    }
}

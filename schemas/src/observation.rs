//! What the engine takes in. Its state is a set of these, keyed by event id; merging sets is their union.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    entity::{EntityKey, Relation},
    ids::{EventId, SourceId, TraceId},
    intent::{LinkKind, Severity},
    ledger::Ledger,
    units::{Micros, TimeInterval},
};

/// A signal: an event that a rule of the set may need, in the engine's terms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The event. Equal ids are the same observation.
    pub id: EventId,
    /// What happened, as rules name it.
    pub intent: String,
    /// When, with its error.
    pub time: TimeInterval,
    /// How long it lasted; zero for an instant.
    pub duration: Micros,
    /// The node that saw it, by its source.
    pub source: SourceId,
    /// The probe that saw it.
    pub probe: String,
    /// How bad it is in itself.
    pub severity: Severity,
    /// How many equal occurrences it stands for.
    pub count: u64,
    /// Who it is about: the container where one is known, else the process or node.
    pub subject: EntityKey,
    /// The process that it is about, where one is known.
    pub process: Option<EntityKey>,
    /// The other side, as far as the event itself tells: an endpoint or a container.
    pub peer: Option<EntityKey>,
    /// The endpoint at this side, where the event is about one: who listens on it, or could not have it.
    #[serde(default)]
    pub local: Option<EntityKey>,
    /// The trace that it belongs to.
    pub trace: Option<TraceId>,
    /// How that is known.
    pub trace_link: LinkKind,
    /// The fields that conditions may read, by the names of the field table (`kernel.signal`, `network.status`).
    pub attributes: BTreeMap<String, Value>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Value {
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// Another number.
    Float(f64),
    /// A text.
    Text(String),
}

/// One thing that arrives at the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Input {
    /// A signal.
    Observation(Observation),
    /// An entity's relation, learned from an event.
    Relation(Relation),
    /// What a source's frame says of its time and losses; it also says that the source lived until then.
    Progress(SourceProgress),
}

/// What a frame says of its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceProgress {
    /// The frame, as its first row's id: the key of this input.
    pub id: EventId,
    /// The source.
    pub source: SourceId,
    /// The node's name.
    pub node: String,
    /// The time up to which the source has shipped everything it had, and its losses since the frame before.
    pub ledger: Ledger,
    /// How wrong the node's clock may be.
    pub clock_error: Micros,
    /// The probes that do *not* work there.
    pub missing_probes: Vec<String>,
}

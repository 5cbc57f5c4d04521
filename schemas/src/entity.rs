//! What a failure can be about: entities with stable ids and lifetimes, and the timed relations between them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    ids::EventId,
    intent::{LinkKind, coded},
    units::UnixMicros,
};

coded! {
    /// What kind of thing an entity is.
    EntityKind {
        /// Of a kind that this version does not know.
        #[default]
        0 Unknown "unknown",
        /// A process: `<node>/<pid>/<start, boot nanoseconds>`.
        1 Process "process",
        /// A container: the runtime's id, 64 hexadecimal digits.
        2 Container "container",
        /// A pod: its uid.
        3 Pod "pod",
        /// What owns pods: `<namespace>/<kind>/<name>`.
        4 Workload "workload",
        /// A service: `<namespace>/<name>`.
        5 Service "service",
        /// A node: its name.
        6 Node "node",
        /// An address that something listens on: `<address>:<port>`, loopback addresses with `<node>|` before them.
        7 Endpoint "endpoint",
    }
}

coded! {
    /// How two entities are related.
    RelationKind {
        /// Of a kind that this version does not know.
        #[default]
        0 Unknown "unknown",
        /// A process or container runs in a container, pod or node.
        1 RunsIn "runs-in",
        /// A workload owns a pod.
        2 Owns "owns",
        /// A container calls an endpoint.
        3 Calls "calls",
        /// A container listens on an endpoint.
        4 Listens "listens",
    }
}

/// Which entity. Equal keys are the same thing; an id that a kernel or a cluster reuses carries what makes it unique.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EntityKey {
    /// What kind of thing.
    pub kind: EntityKind,
    /// Its id, of the shape that [`EntityKind`] names.
    pub id: String,
}

impl EntityKey {
    /// The entity of this kind and id.
    pub fn new(kind: EntityKind, id: impl Into<String>) -> Self {
        Self { kind, id: id.into() }
    }
}

impl fmt::Display for EntityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.as_str(), self.id)
    }
}

/// A timed edge between two entities, and the event that it was learned from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Relation {
    /// How they are related.
    pub kind: RelationKind,
    /// The subject: who runs in, owns, calls, listens.
    pub from: EntityKey,
    /// The object.
    pub to: EntityKey,
    /// From when it is known to hold.
    pub since: UnixMicros,
    /// Until when it is known to hold.
    pub until: UnixMicros,
    /// Whether it was seen or derived.
    pub link: LinkKind,
    /// The event that it was learned from.
    pub learned_from: EventId,
}

/// The names of a pod, as the Kubernetes watch (or a file of that shape) gives them. Names only, no edges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct PodIdentity {
    /// The pod's uid, canonical form.
    pub pod_uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// The name of what owns it.
    #[serde(default)]
    pub workload: String,
    /// The kind of what owns it, for example `Deployment`.
    #[serde(default)]
    pub workload_kind: String,
    /// The service that it stands behind, if one selects it.
    #[serde(default)]
    pub service: String,
    /// The node that it is scheduled on.
    #[serde(default)]
    pub node: String,
}

impl PodIdentity {
    /// The name that a person knows it by: its service, else its workload, else its own.
    #[must_use]
    pub fn display_name(&self) -> &str {
        [&self.service, &self.workload, &self.pod]
            .into_iter()
            .find(|name| !name.is_empty())
            .map_or(self.pod_uid.as_str(), String::as_str)
    }
}

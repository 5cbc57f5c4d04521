//! A verdict that was announced, with its history: a fold over verdict revisions and people's actions.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    entity::{EntityKey, PodIdentity},
    ids::{ClusterId, EventId, TenantId},
    intent::coded,
    units::{Micros, UnixMicros},
    verdict::{Evidence, Role, Stance, Verdict},
};

coded! {
    /// Where a finding stands.
    FindingState {
        /// Announced, its symptoms go on or stopped only just now.
        #[default]
        0 Open "open",
        /// It is over, for the reason that its resolution says.
        1 Resolved "resolved",
        /// Another finding, with another cause, took its place.
        2 Superseded "superseded",
    }
}

coded! {
    /// Why a resolved finding is over.
    Resolution {
        /// None is told: it is not resolved, or was before reasons were told.
        #[default]
        0 Unspecified "unspecified",
        /// Its symptoms stopped: who had seen them went on observing, and saw no more.
        1 SymptomsStopped "symptoms-stopped",
        /// Nobody who had seen its symptoms was heard for long: whether they stopped is not known.
        2 Unobserved "unobserved",
    }
}

/// A node that showed the symptom, and whose word on it is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Unobserved {
    /// The node's name, or its source's id where the name is not known.
    pub node: String,
    /// Since when it does not observe: it is not heard, its probes do not work, or it loses so much that the symptom may
    /// be among it.
    pub since: UnixMicros,
}

/// How the symptom went on behind the time that the verdict counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Continuation {
    /// Occurrences since those that the verdict counts.
    pub count: u64,
    /// When the last of them was; zero without any.
    pub last: UnixMicros,
    /// Until when they were counted; zero as long as the verdict itself counts.
    pub counted_until: UnixMicros,
    /// Whether records were lost meanwhile that may be more of them.
    #[serde(default)]
    pub at_least: bool,
}

/// An announced verdict, as APIs give it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Finding {
    /// Its id, minted at the first announcement and kept over revisions: `f-` and 16 hexadecimal digits.
    pub id: String,
    /// The incident: findings that share a cause.
    pub incident_id: String,
    /// The tenant.
    pub tenant: TenantId,
    /// The cluster.
    pub cluster: ClusterId,
    /// 1 at the announcement; each change of the verdict adds 1.
    pub revision: u32,
    /// Where it stands.
    pub state: FindingState,
    /// Why it is over, where it is resolved.
    #[serde(default)]
    pub resolution: Resolution,
    /// The nodes that showed the symptom and are not observed now: while there is one, nobody knows whether it stopped.
    #[serde(default)]
    pub unobserved: Vec<Unobserved>,
    /// How the symptom went on after what the verdict counts.
    #[serde(default)]
    pub continuation: Continuation,
    /// The aggregator's time of the first announcement.
    pub announced_at: UnixMicros,
    /// The aggregator's time of this revision.
    pub revised_at: UnixMicros,
    /// The event time of the first symptom, and how long after it the finding was announced.
    pub first_symptom_at: UnixMicros,
    /// From the first symptom to the announcement.
    pub found_after: Micros,
    /// One sentence for a tired person.
    pub title: String,
    /// The chain as sentences, in the order of the verdict's evidence.
    pub lines: Vec<EvidenceLine>,
    /// What to do.
    pub recommended_action: String,
    /// The names of the entities that the verdict speaks of.
    pub names: Vec<NamedEntity>,
    /// The verdict itself.
    pub verdict: Verdict,
}

/// One line of a finding's narrative.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct EvidenceLine {
    /// The rule's step.
    pub step: String,
    /// Its place in the chain.
    #[serde(default)]
    pub role: Role,
    /// Which way it points.
    #[serde(default)]
    pub stance: Stance,
    /// When.
    pub at: UnixMicros,
    /// What happened, as a sentence.
    pub text: String,
    /// How it is known: the link and the probes.
    pub basis: String,
}

/// An entity with the names that were known for it when the finding was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NamedEntity {
    /// The entity.
    pub entity: EntityKey,
    /// The name that a person knows it by.
    pub name: String,
    /// The pod that it runs in, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodIdentity>,
}

impl Finding {
    /// The length of every finding's id.
    pub const ID_CHARS: usize = "f-".len() + 16;
}

/// The id of a finding: a hash of what makes it this one, so that every replica mints the same.
#[must_use]
pub fn mint_id(
    tenant: &TenantId,
    cluster: &ClusterId,
    rule: &str,
    cause: &EntityKey,
    first_evidence: EventId,
) -> String {
    hashed_id(
        "f-",
        &[tenant.as_str(), cluster.as_str(), rule, &cause.to_string(), &first_evidence.to_string()],
    )
}

/// The id of an incident: findings with the same cause entity and fault share it.
#[must_use]
pub fn mint_incident_id(tenant: &TenantId, cluster: &ClusterId, fault: &Evidence) -> String {
    let first = fault.events.first().map(ToString::to_string).unwrap_or_default();
    hashed_id("i-", &[tenant.as_str(), cluster.as_str(), &fault.subject.to_string(), &first])
}

fn hashed_id(prefix: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let number = u64::from_be_bytes(*digest.first_chunk::<8>().unwrap_or(&[0; 8]));
    format!("{prefix}{number:016x}")
}

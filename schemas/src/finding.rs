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
        /// Its symptoms stopped.
        1 Resolved "resolved",
        /// Another finding, with another cause, took its place.
        2 Superseded "superseded",
    }
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

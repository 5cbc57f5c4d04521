//! The bytes of a rule set: a 16-byte header (magic, format, length) and the rkyv archive of its rules.

use rkyv::{rancor, util::AlignedVec};
use sha2::{Digest, Sha256};
use tapio_schemas::{ids::RuleSetVersion, intent};
use thiserror::Error;

use super::{ArchivedRule, Rule};
use crate::condition::ConditionError;

/// The format of the archive that this version writes and reads.
pub const RULE_FORMAT: u32 = 4;

/// The most bytes that a rule set may have.
pub(super) const RULE_SET_BYTES_MAX: usize = 4 << 20;

const MAGIC: [u8; 8] = *b"tapiorls";
const HEADER_BYTES: usize = 16;

/// Why bytes are no rule set.
#[derive(Debug, Error)]
pub enum RuleSetError {
    /// The bytes are something else.
    #[error("these bytes are no compiled rule set")]
    NoRuleSet,
    /// The format is of another version.
    #[error("the rule set has format {found}, this version reads {RULE_FORMAT}")]
    Format {
        /// The format found.
        found: u32,
    },
    /// More bytes than a rule set may have.
    #[error("the rule set has {bytes} bytes, more than {RULE_SET_BYTES_MAX}")]
    TooLarge {
        /// How many it has.
        bytes: usize,
    },
    /// The archive is damaged.
    #[error("the rule set's archive is damaged")]
    Archive(#[source] rancor::Error),
    /// A condition is no program.
    #[error("rule {rule}, step {step}: {source}")]
    Condition {
        /// The rule.
        rule: String,
        /// The step.
        step: String,
        /// What is wrong.
        source: ConditionError,
    },
    /// A rule refers to a step that it does not have, or observes an unknown intent.
    #[error("rule {rule}: {what}")]
    Reference {
        /// The rule.
        rule: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Two rules have the same id.
    #[error("two rules have the id {rule}")]
    Duplicate {
        /// The id.
        rule: String,
    },
}

/// The bytes of these rules; equal rules give equal bytes.
pub(super) fn to_bytes(rules: &Vec<Rule>) -> Result<Vec<u8>, RuleSetError> {
    let archive = rkyv::to_bytes::<rancor::Error>(rules).map_err(RuleSetError::Archive)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + archive.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&RULE_FORMAT.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(archive.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&archive);
    if bytes.len() > RULE_SET_BYTES_MAX {
        return Err(RuleSetError::TooLarge { bytes: bytes.len() });
    }
    Ok(bytes)
}

/// The rules of these bytes: checked access, then the semantic check.
pub(super) fn from_bytes(bytes: &[u8]) -> Result<Vec<Rule>, RuleSetError> {
    if bytes.len() > RULE_SET_BYTES_MAX {
        return Err(RuleSetError::TooLarge { bytes: bytes.len() });
    }
    let (header, body) = bytes.split_first_chunk::<HEADER_BYTES>().ok_or(RuleSetError::NoRuleSet)?;
    let [magic @ .., f0, f1, f2, f3, l0, l1, l2, l3] = *header;
    if magic != MAGIC {
        return Err(RuleSetError::NoRuleSet);
    }
    let found = u32::from_le_bytes([f0, f1, f2, f3]);
    if found != RULE_FORMAT {
        return Err(RuleSetError::Format { found });
    }
    if usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).ok() != Some(body.len()) {
        return Err(RuleSetError::NoRuleSet);
    }
    let mut aligned: AlignedVec<16> = AlignedVec::with_capacity(body.len());
    aligned.extend_from_slice(body);
    let archived = rkyv::access::<rkyv::vec::ArchivedVec<ArchivedRule>, rancor::Error>(&aligned)
        .map_err(RuleSetError::Archive)?;
    let rules: Vec<Rule> =
        rkyv::deserialize::<Vec<Rule>, rancor::Error>(archived).map_err(RuleSetError::Archive)?;
    check(&rules)?;
    Ok(rules)
}

/// The first 8 bytes of the SHA-256 of a rule set's bytes.
pub(super) fn version_of(bytes: &[u8]) -> RuleSetVersion {
    let digest: [u8; 32] = Sha256::digest(bytes).into();
    RuleSetVersion(u64::from_be_bytes(*digest.first_chunk::<8>().unwrap_or(&[0; 8])))
}

/// What the archive's structure does not show: references, intents, conditions.
pub(super) fn check(rules: &[Rule]) -> Result<(), RuleSetError> {
    for (index, rule) in rules.iter().enumerate() {
        if rules.iter().take(index).any(|other| other.id == rule.id) {
            return Err(RuleSetError::Duplicate { rule: rule.id.clone() });
        }
        let refuse = |what| Err(RuleSetError::Reference { rule: rule.id.clone(), what });
        let has = |place: u32| rule.step(place).is_some();
        let mut known = vec![rule.anchor];
        for place in &rule.order {
            let Some(step) = rule.step(*place) else { return refuse("an ordered step does not exist") };
            let needs = step
                .bounds
                .iter()
                .map(|bound| bound.step)
                .chain(step.links.iter().map(|link| link.step))
                .chain(step.otherwise);
            if needs.into_iter().any(|need| !known.contains(&need)) {
                return refuse("a step refers to one that is evaluated later");
            }
            known.push(*place);
        }
        known.sort_unstable();
        let all: Vec<u32> = (0..u32::try_from(rule.steps.len()).unwrap_or(u32::MAX)).collect();
        if known != all {
            return refuse("its steps are not each evaluated once");
        }
        for step in &rule.steps {
            if step.words.len() != step.observe.len() || step.told_with.is_some_and(|place| !has(place)) {
                return refuse("a step's words or references do not fit");
            }
            if step.observe.iter().any(|name| !intent::ALL.contains(&name.as_str())) {
                return refuse("a step observes an unknown intent");
            }
            if let Some(condition) = &step.condition {
                condition.check().map_err(|source| RuleSetError::Condition {
                    rule: rule.id.clone(),
                    step: step.id.clone(),
                    source,
                })?;
            }
        }
    }
    Ok(())
}

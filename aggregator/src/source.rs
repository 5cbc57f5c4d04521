//! What goes through the spool about a source beside its frames.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tapio_schemas::{
    ids::{Incarnation, SourceId},
    units::Micros,
};

/// An event that is older at its arrival is of a clock that is wrong: even a cut of days is spooled through faster. So
/// nothing that a source still has is taken once it is silent for longer.
pub(crate) const EVENT_AGE_MAX: Micros = Micros::from_secs(14 * 86_400);

/// What a source says of itself, as it goes through the spool into the table `sources`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Announcement {
    /// Who.
    pub(crate) source: SourceId,
    /// In which of its lives.
    pub(crate) incarnation: Incarnation,
    /// What works there, `probe=state`.
    pub(crate) capability: Vec<String>,
    /// Its software's version.
    #[serde(default)]
    pub(crate) agent_version: String,
    /// Its kernel's release; empty until it says so.
    #[serde(default)]
    pub(crate) kernel_release: String,
    /// Its machine's architecture; empty until it says so.
    #[serde(default)]
    pub(crate) architecture: String,
    /// What its configuration allows it, by name.
    #[serde(default)]
    pub(crate) limits: BTreeMap<String, u64>,
}

impl Announcement {
    /// The probes that do not work there, each with why.
    pub(crate) fn missing_probes(&self) -> Vec<String> {
        missing_probes(&self.capability)
    }
}

/// The probes of a capability that do not work: `probe=working` is one that does, anything else one that does not.
pub(crate) fn missing_probes(capability: &[String]) -> Vec<String> {
    capability
        .iter()
        .filter_map(|line| {
            let (probe, state) = line.split_once('=').unwrap_or((line, "unknown"));
            (state != "working").then(|| format!("{probe}: {state}"))
        })
        .collect()
}

/// A frame that was refused for what is in it, came again, and was given up: its source has nothing better to send, and
/// everything behind it would wait for ever.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GivenUp {
    /// Whose.
    pub(crate) source: SourceId,
    /// Of which life.
    pub(crate) incarnation: u64,
    /// Its place in it.
    pub(crate) sequence: u64,
    /// How many events its header names.
    pub(crate) events: u32,
    /// What is wrong with it.
    pub(crate) fault: String,
}

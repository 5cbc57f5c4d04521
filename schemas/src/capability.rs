//! What a node can see: the probes and sources that work there, and why others do not.

use serde::{Deserialize, Serialize};

/// One probe's state, as the node publishes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProbeCapability {
    /// The probe, as events name it.
    pub probe: String,
    /// Whether it works.
    pub state: ProbeState,
}

/// Whether a probe works.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum ProbeState {
    /// It is attached and its events arrive.
    Working,
    /// It was turned off, by configuration or budget.
    Disabled,
    /// The host refused it.
    Failed {
        /// What the host said, and at which step.
        reason: String,
    },
}

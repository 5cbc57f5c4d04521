//! What a node can see: the probes and sources that work there, and why others do not.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// One probe's state, as the node publishes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ProbeCapability {
    /// The probe, as events name it.
    pub probe: String,
    /// Whether it works.
    #[serde(flatten)]
    pub state: ProbeState,
}

/// Whether a probe works.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

impl ProbeCapability {
    /// A probe as its agent announced it. A state that this version does not know counts as failed, in its own words: a
    /// newer agent makes nothing unreadable, and what is not known is never taken for working.
    #[must_use]
    pub fn announced(line: &str) -> Self {
        line.parse().unwrap_or_else(|error: UnknownState| Self {
            probe: line.split('=').next().unwrap_or(line).to_owned(),
            state: ProbeState::Failed { reason: error.to_string() },
        })
    }

    /// Whether it failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.state, ProbeState::Failed { .. })
    }
}

/// `probe=working`, `probe=disabled` or `probe=failed:reason`: how a session's hello and the store carry it.
impl fmt::Display for ProbeCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { probe, state } = self;
        match state {
            ProbeState::Working => write!(f, "{probe}=working"),
            ProbeState::Disabled => write!(f, "{probe}=disabled"),
            ProbeState::Failed { reason } => write!(f, "{probe}=failed:{reason}"),
        }
    }
}

impl FromStr for ProbeCapability {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, UnknownState> {
        let (probe, state) = text.split_once('=').ok_or_else(|| UnknownState(text.to_owned()))?;
        let state = match (state, state.strip_prefix("failed:")) {
            ("working", _) => ProbeState::Working,
            ("disabled", _) => ProbeState::Disabled,
            (_, Some(reason)) => ProbeState::Failed { reason: reason.to_owned() },
            _ => return Err(UnknownState(text.to_owned())),
        };
        Ok(Self { probe: probe.to_owned(), state })
    }
}

/// A text that is no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no capability: expected probe=working, probe=disabled or probe=failed:reason")]
pub struct UnknownState(String);

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: capabilities as text and back.
    /// Guarantees: nothing is lost, whatever stands in the reason, and other texts are refused.
    #[test]
    fn capabilities_round_trip() {
        for state in [
            ProbeState::Working,
            ProbeState::Disabled,
            ProbeState::Failed { reason: "attach: EPERM = not permitted: ask root".to_owned() },
        ] {
            let capability = ProbeCapability { probe: "tcp_state".to_owned(), state };
            assert_eq!(capability.to_string().parse(), Ok(capability));
        }
        assert!("tcp_state=half".parse::<ProbeCapability>().is_err());
        assert!("tcp_state".parse::<ProbeCapability>().is_err());
    }

    /// Scenario: a state of this version, one of a newer version, and a line without a state.
    /// Guarantees: none is left out, and what is not known has failed, in its own words.
    #[test]
    fn unknown_states_are_failures() {
        assert_eq!(ProbeCapability::announced("exec=working").state, ProbeState::Working);
        assert!(!ProbeCapability::announced("exec=disabled").has_failed());
        for line in ["exec=resting", "exec"] {
            let capability = ProbeCapability::announced(line);
            assert_eq!(capability.probe, "exec");
            let ProbeState::Failed { reason } = capability.state else { panic!("{line} did not fail") };
            assert!(reason.contains(line), "{reason}");
        }
    }
}

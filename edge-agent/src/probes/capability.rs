//! What a node can see: one entry per probe, published with the node and named by verdicts that lacked it.

use tapio_kernel_abi::ProbeId;

/// One probe's state on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Which probe.
    pub probe: ProbeId,
    /// Whether it works.
    pub state: CapabilityState,
}

/// Whether a probe works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CapabilityState {
    /// It is attached.
    Working,
    /// It was refused.
    Failed {
        /// The kernel's or the loader's words.
        reason: String,
    },
    /// The configuration turned it off.
    Disabled,
}

impl Capability {
    pub(super) const fn working(probe: ProbeId) -> Self {
        Self { probe, state: CapabilityState::Working }
    }

    pub(super) const fn disabled(probe: ProbeId) -> Self {
        Self { probe, state: CapabilityState::Disabled }
    }

    pub(super) const fn failed(probe: ProbeId, reason: String) -> Self {
        Self { probe, state: CapabilityState::Failed { reason } }
    }

    /// The probe's name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.probe.name()
    }

    /// Whether it works.
    #[must_use]
    pub const fn is_working(&self) -> bool {
        matches!(self.state, CapabilityState::Working)
    }
}

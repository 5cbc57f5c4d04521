//! A drawn process that belongs to no service and takes a restarted service's port: who it is, where it runs, and what
//! callers meet there.
//!
//! Has a draw of its own, so that what was drawn before for a seed stays what it was. Called by
//! [`super::Scenario::draw`].

use std::time::Duration;

use crate::random::Draw;
use crate::scenario::{Pod, names};
pub use crate::service::foreign::Manner;

/// Why the service of the healthy twin comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mercy {
    /// The process takes another port.
    OtherPort,
    /// It leaves after the service's first start has failed: the next one works.
    Leaves,
}

/// The process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignPlan {
    /// Its command name, at most 15 bytes, as the kernel keeps them.
    pub command: String,
    /// The pod that it runs in, which shares the host's network; `None` for a process outside of all containers.
    pub pod: Option<Pod>,
    /// What callers meet.
    pub manner: Manner,
    /// From the end of the service's first container to its `listen`.
    pub after: Duration,
    /// Of the healthy twin.
    pub mercy: Mercy,
}

impl ForeignPlan {
    pub(super) fn draw(seed: u64) -> Self {
        let mut draw = Draw::labelled(seed, "foreign");
        let command = super::pick(&mut draw, &names::COMMANDS);
        let namespace = super::pick(&mut draw, &names::NAMESPACES);
        let service = super::pick(&mut draw, &names::HOST_AGENTS);
        let pod = Pod::draw(&mut draw, &service, &namespace);
        let pod = draw.percent(50).then_some(pod);
        let manner = match draw.between(0, 2) {
            0 => Manner::Greets(super::pick(&mut draw, &names::GREETINGS)),
            1 => Manner::Silent,
            _ => Manner::NotFound,
        };
        // Well before the service's next container, which takes twice as long at least.
        let after = Duration::from_millis(draw.between(20, 100));
        let mercy = if draw.percent(50) { Mercy::OtherPort } else { Mercy::Leaves };
        Self { command, pod, manner, after, mercy }
    }
}

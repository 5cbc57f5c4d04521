//! The kubelet's part: it ends a service's container, another one is made in the same pod, and one that ends by
//! itself is tried again after a back-off that doubles.
//!
//! Owns when the next step is due. Never decides what a service does when it starts. Called by [`super::Workload`].

use std::time::{Duration, Instant};

use crate::scenario::RestartPlan;

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing yet.
    Wait,
    /// The container must end.
    End,
    /// The next container must be made; the how-many-th restart it is, from 1.
    Start(u32),
    /// Somebody must look whether the container has ended by itself.
    Look,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Serving { until: Instant },
    Down { until: Instant },
    Restarted,
}

/// A restart in progress.
#[derive(Debug)]
pub(super) struct Restarts {
    pub(super) plan: RestartPlan,
    count: u32,
    state: State,
}

impl Restarts {
    /// The load began `now`.
    pub(super) fn new(plan: RestartPlan, now: Instant) -> Self {
        let until = now + plan.after;
        Self { plan, count: 0, state: State::Serving { until } }
    }

    pub(super) fn due(&self, now: Instant) -> Step {
        match self.state {
            State::Serving { until } if now >= until => Step::End,
            State::Down { until } if now >= until => Step::Start(self.count.saturating_add(1)),
            State::Serving { .. } | State::Down { .. } => Step::Wait,
            State::Restarted => Step::Look,
        }
    }

    /// The container has ended: by the kubelet, or by itself.
    pub(super) fn ended(&mut self, now: Instant) {
        let pause: Duration =
            if self.count == 0 { self.plan.creating } else { self.plan.back_off(self.count) };
        self.state = State::Down { until: now + pause };
    }

    /// The next container has started.
    pub(super) fn started(&mut self) {
        self.count = self.count.saturating_add(1);
        self.state = State::Restarted;
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Restarts, Step};
    use crate::scenario::{Kind, Pace, Scenario};

    /// Scenario: a container is ended by the kubelet, and each that follows ends at once.
    /// Guarantees: the first restart comes after the time that a container takes to be made, the later ones after pauses
    /// that double.
    #[test]
    fn the_back_off_doubles() {
        let plan = Scenario::draw(Kind::MissingConfig, 5, Pace::Demo).restart;
        let mut now = Instant::now();
        let mut restarts = Restarts::new(plan.clone(), now);
        assert_eq!(restarts.due(now), Step::Wait);
        now += plan.after;
        assert_eq!(restarts.due(now), Step::End);
        let mut pause = plan.creating;
        for count in 1..6 {
            restarts.ended(now);
            assert_eq!(restarts.due(now + pause - Duration::from_millis(1)), Step::Wait);
            now += pause;
            assert_eq!(restarts.due(now), Step::Start(count));
            restarts.started();
            assert_eq!(restarts.due(now), Step::Look);
            pause = plan.back_off(count);
            assert_eq!(pause, plan.back_off(1) * 2_u32.pow(count - 1));
        }
    }
}

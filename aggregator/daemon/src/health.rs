//! Health is progress: a component is healthy while it moves, not while it exists.
//!
//! Each component holds a [`Progress`]. It ticks when it got something done, says when it waits for
//! work, and is found out when it does neither for longer than it promised, or is gone.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// No process has more components; those beyond are not watched, and the status says so.
pub const COMPONENTS_MAX: usize = 256;

const ACTIVE: u8 = 0;
const IDLE: u8 = 1;
const FINISHED: u8 = 2;
const GONE: u8 = 3;

/// The health of a process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    components: Mutex<Vec<Arc<Component>>>,
    unwatched: AtomicU64,
}

#[derive(Debug)]
struct Component {
    name: String,
    silence_max: Duration,
    started: Instant,
    state: AtomicU8,
    /// Nanoseconds from `started` to the last sign of life.
    last_nanos: AtomicU64,
    ticks: AtomicU64,
    fault: Mutex<Option<String>>,
}

/// A component's side of its health. Dropping it without [`Progress::finish`] says that the component
/// died.
#[derive(Debug)]
pub struct Progress {
    component: Arc<Component>,
}

/// The health of a process at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Healthy or degraded.
    pub status: Verdict,
    /// Why it is degraded, one line per reason.
    pub reasons: Vec<String>,
    /// Every component.
    pub components: Vec<ComponentStatus>,
}

/// Healthy or degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything moves or waits.
    Healthy,
    /// Something does not, or says itself that it is not well.
    Degraded,
}

/// A component at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentStatus {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: State,
    /// How often it got something done.
    pub ticks: u64,
    /// Milliseconds since its last sign of life.
    pub silent_millis: u64,
    /// What it says is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// What a component is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has work and gets it done.
    Active,
    /// It waits for work.
    Idle,
    /// It has work and has not moved for longer than it promised.
    Stuck,
    /// It ended in order.
    Finished,
    /// It ended without saying so.
    Gone,
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
        }
    }
}

impl Health {
    /// A process without components, which is healthy.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches a component that promises a sign of life at least every `silence_max` while it has work.
    #[must_use]
    pub fn component(&self, name: &str, silence_max: Duration) -> Progress {
        let component = Arc::new(Component {
            name: name.to_owned(),
            silence_max,
            started: Instant::now(),
            state: AtomicU8::new(ACTIVE),
            last_nanos: AtomicU64::new(0),
            ticks: AtomicU64::new(0),
            fault: Mutex::new(None),
        });
        let mut components = self.components();
        // One that is started again replaces what it was before.
        components.retain(|other| other.name != name);
        if components.len() < COMPONENTS_MAX {
            components.push(Arc::clone(&component));
        } else {
            self.inner.unwatched.fetch_add(1, Ordering::Relaxed);
        }
        Progress { component }
    }

    /// The health now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status_at(Instant::now())
    }

    /// The health as it is at `now`.
    #[must_use]
    pub fn status_at(&self, now: Instant) -> Status {
        let mut reasons = Vec::new();
        let components =
            self.components().iter().map(|component| component.status_at(now, &mut reasons)).collect();
        let unwatched = self.inner.unwatched.load(Ordering::Relaxed);
        if unwatched > 0 {
            reasons.push(format!("{unwatched} components are not watched: more than {COMPONENTS_MAX}"));
        }
        let status = if reasons.is_empty() { Verdict::Healthy } else { Verdict::Degraded };
        Status { status, reasons, components }
    }

    fn components(&self) -> MutexGuard<'_, Vec<Arc<Component>>> {
        self.inner.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    /// Something was done.
    pub fn tick(&self) {
        self.component.ticks.fetch_add(1, Ordering::Relaxed);
        self.sign(ACTIVE);
    }

    /// There is work now, whatever becomes of it: the silence is counted from here. Calling it again
    /// while there is work does not put the end of the silence off.
    pub fn busy(&self) {
        if self.component.state.load(Ordering::Acquire) != ACTIVE {
            self.sign(ACTIVE);
        }
    }

    /// There is nothing to do: silence means nothing until the next [`Progress::busy`] or
    /// [`Progress::tick`].
    pub fn idle(&self) {
        self.sign(IDLE);
    }

    /// Says what is wrong although the component moves, such as a peer that cannot be reached.
    pub fn fault(&self, reason: impl Into<String>) {
        *self.component.fault() = Some(reason.into());
    }

    /// Takes back what [`Progress::fault`] said.
    pub fn clear(&self) {
        *self.component.fault() = None;
    }

    /// The component has ended in order.
    pub fn finish(self) {
        self.sign(FINISHED);
    }

    fn sign(&self, state: u8) {
        let nanos = u64::try_from(self.component.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.component.last_nanos.store(nanos, Ordering::Relaxed);
        self.component.state.store(state, Ordering::Release);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.component.state.load(Ordering::Acquire) != FINISHED {
            self.sign(GONE);
        }
    }
}

impl Component {
    fn fault(&self) -> MutexGuard<'_, Option<String>> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status_at(&self, now: Instant, reasons: &mut Vec<String>) -> ComponentStatus {
        let state = self.state.load(Ordering::Acquire);
        let last = Duration::from_nanos(self.last_nanos.load(Ordering::Relaxed));
        let silent = now.saturating_duration_since(self.started).saturating_sub(last);
        let fault = self.fault().clone();
        let name = &self.name;
        let state = match state {
            FINISHED => State::Finished,
            GONE => {
                reasons.push(format!("{name}: ended without saying so"));
                State::Gone
            }
            IDLE => State::Idle,
            _ if silent > self.silence_max => {
                reasons.push(format!(
                    "{name}: no progress for {:.1} s, promised every {:.1} s",
                    silent.as_secs_f64(),
                    self.silence_max.as_secs_f64()
                ));
                State::Stuck
            }
            _ => State::Active,
        };
        if let (Some(fault), false) = (&fault, state == State::Finished) {
            reasons.push(format!("{name}: {fault}"));
        }
        ComponentStatus {
            name: name.clone(),
            state,
            ticks: self.ticks.load(Ordering::Relaxed),
            silent_millis: u64::try_from(silent.as_millis()).unwrap_or(u64::MAX),
            fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn reasons(health: &Health, later: Duration) -> Vec<String> {
        health.status_at(Instant::now() + later).reasons
    }

    /// Scenario: a component that works, waits, has work again and does not move.
    /// Guarantees: only silence in the face of work is a reason, and waiting is none however long.
    #[test]
    fn silence_counts_only_while_there_is_work() {
        let health = Health::new();
        let progress = health.component("intake", 5 * SECOND);
        assert!(reasons(&health, SECOND).is_empty());
        assert_eq!(reasons(&health, 9 * SECOND).len(), 1, "it never started to move");
        progress.tick();
        assert!(reasons(&health, 4 * SECOND).is_empty());
        progress.idle();
        assert!(reasons(&health, 1000 * SECOND).is_empty());
        progress.busy();
        assert!(reasons(&health, 4 * SECOND).is_empty());
        let reasons = reasons(&health, 9 * SECOND);
        assert!(reasons[0].starts_with("intake: no progress for 9.0 s, promised every 5.0 s"), "{reasons:?}");
        assert_eq!(health.status_at(Instant::now() + 9 * SECOND).components[0].state, State::Stuck);
    }

    /// Scenario: `busy` again and again without a tick.
    /// Guarantees: it does not put the end of the silence off.
    #[test]
    fn being_busy_is_no_progress() {
        let health = Health::new();
        let progress = health.component("pipeline", Duration::ZERO);
        progress.busy();
        progress.busy();
        assert_eq!(reasons(&health, SECOND).len(), 1);
    }

    /// Scenario: components that end: in order, by being dropped, and started again.
    /// Guarantees: only the one that did not say so is a reason, until it is started again.
    #[test]
    fn a_component_that_vanishes_is_found_out() {
        let health = Health::new();
        health.component("migration", SECOND).finish();
        drop(health.component("uplink", SECOND));
        assert_eq!(reasons(&health, 9 * SECOND), ["uplink: ended without saying so"]);
        let progress = health.component("uplink", SECOND);
        progress.idle();
        assert!(reasons(&health, 9 * SECOND).is_empty());
        assert_eq!(health.status().components.len(), 2);
    }

    /// Scenario: a component that moves and says that something is wrong.
    /// Guarantees: it is a reason until it is taken back.
    #[test]
    fn a_fault_is_a_reason_until_cleared() {
        let health = Health::new();
        let progress = health.component("store", SECOND);
        progress.fault("the server refuses inserts");
        progress.idle();
        assert_eq!(reasons(&health, SECOND), ["store: the server refuses inserts"]);
        progress.clear();
        assert_eq!(health.status().status, Verdict::Healthy);
    }

    /// Scenario: more components than are watched.
    /// Guarantees: the list stays bounded, and the status says that some are missing.
    #[test]
    fn too_many_components_are_admitted_to() {
        let health = Health::new();
        let held: Vec<_> =
            (0..COMPONENTS_MAX + 2).map(|at| health.component(&format!("c{at}"), SECOND)).collect();
        held.iter().for_each(Progress::idle);
        let status = health.status();
        assert_eq!(status.components.len(), COMPONENTS_MAX);
        assert_eq!(status.reasons, ["2 components are not watched: more than 256"]);
    }
}

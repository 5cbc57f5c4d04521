//! `grpc.health.v1.Health`: each service by the progress of the parts that feed it.
//!
//! The server as a whole is judged by its services alone: who restarts an aggregator for its health shall not do so
//! because ClickHouse is away.

use std::time::Duration;

use tapio_daemon::{
    Health,
    health::{State, Status},
};
use tapio_proto::v1::{correlation_service_server, event_service_server};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

/// How often progress is looked at.
const INTERVAL: Duration = Duration::from_millis(500);

/// The services and the parts without which each tells nothing new.
const SERVICES: [(&str, &[&str]); 3] = [
    (correlation_service_server::SERVICE_NAME, &["engine"]),
    (event_service_server::SERVICE_NAME, &["intake", "live"]),
    ("", &["engine", "intake", "live"]),
];

/// Reports until the aggregator begins to end; then nothing is served any more.
pub(super) async fn report(reporter: HealthReporter, health: Health, ending: CancellationToken) {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = [None; SERVICES.len()];
    loop {
        // Cancel-safe: a tick that is dropped comes again.
        let is_ending = tokio::select! {
            () = ending.cancelled() => true,
            _ = ticks.tick() => false,
        };
        let status = health.status();
        for ((service, parts), told) in SERVICES.into_iter().zip(&mut told) {
            let serves = !is_ending && parts.iter().all(|part| moves(&status, part));
            let serving = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            // Who watches is told of changes alone.
            if *told != Some(serves) {
                *told = Some(serves);
                reporter.set_service_status(service, serving).await;
            }
        }
        if is_ending {
            return;
        }
    }
}

/// Whether a part is there and works or waits for work.
fn moves(status: &Status, part: &str) -> bool {
    let found = status.components.iter().find(|component| component.name == part);
    found.is_some_and(|component| matches!(component.state, State::Active | State::Idle))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the engine waits, then has work and does not move, then is gone.
    /// Guarantees: only the first serves.
    #[test]
    fn only_what_moves_serves() {
        let health = Health::new();
        assert!(!moves(&health.status(), "engine"));
        let progress = health.component("engine", Duration::ZERO);
        progress.idle();
        assert!(moves(&health.status(), "engine"));
        progress.busy();
        std::thread::sleep(Duration::from_millis(1));
        assert!(!moves(&health.status(), "engine"));
        drop(progress);
        assert!(!moves(&health.status(), "engine"));
    }
}

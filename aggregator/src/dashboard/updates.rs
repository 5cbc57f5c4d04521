//! `GET /api/v1/updates`: what changes, as server-sent events.
//!
//! `finding` carries a revision and, as the event's id, the cursor behind it: a browser that comes back sends it as
//! `Last-Event-ID` and goes on where it was. `status` tells every [`STATUS_INTERVAL`] whether the system can be
//! trusted, and that the stream lives. `missed` tells how many revisions could not be told: read the snapshot again.
//! `end` comes last when the aggregator ends.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::{RawQuery, State},
    http::{HeaderMap, StatusCode},
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
};
use futures_util::stream;
use serde::Serialize;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Interval, MissedTickBehavior, interval},
};

use super::{
    Shared,
    problem::problem,
    snapshot::{Shown, Status},
};
use crate::recent::{Cursor, Followed, Follower, Following};

/// How often the status is told.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// How long a browser waits before it comes back.
const RETRY: Duration = Duration::from_secs(1);

/// Revisions that could not be told.
#[derive(Debug, Serialize)]
struct Missed {
    /// At most so many.
    count: u64,
    /// `no-longer-kept`, `slow-subscriber` or `unknown-cursor`.
    reason: &'static str,
}

/// An open stream.
struct Updates {
    shared: Arc<Shared>,
    _place: Place,
    follower: Follower,
    missed: Option<Missed>,
    ticks: Interval,
    is_over: bool,
}

/// A stream's place, given back when dropped.
struct Place {
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.metrics.streams.dec();
    }
}

pub(super) async fn updates(
    State(shared): State<Arc<Shared>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Ok(permit) = Arc::clone(&shared.streams).try_acquire_owned() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "urn:tapio:problem:too-many-streams",
            "too many pages get updates",
            format!(
                "{} pages get updates, as many as dashboard.streams_max allows: close one, or raise it",
                shared.streams_max
            ),
        );
    };
    shared.metrics.streams.inc();
    let place = Place { shared: Arc::clone(&shared), _permit: permit };
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let after = query.as_deref().and_then(|query| query.strip_prefix("after="));
    let Some((follower, missed)) = begin(&shared, last.or(after)) else {
        return problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "urn:tapio:problem:no-beginning",
            "findings cannot be followed",
            "this is a fault of this program".to_owned(),
        );
    };
    let mut ticks = interval(STATUS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let updates = Updates { shared, _place: place, follower, missed, ticks, is_over: false };
    Sse::new(stream::unfold(updates, Updates::step)).into_response()
}

/// Follows behind the cursor that the browser had. One that is not of these findings means that this is another
/// aggregator than the page spoke to before: it is told so and starts anew. Following from now on is never refused.
fn begin(shared: &Shared, text: Option<&str>) -> Option<(Follower, Option<Missed>)> {
    let told = text.filter(|text| !text.is_empty());
    let resumed =
        told.map(|text| text.parse::<Cursor>().and_then(|cursor| shared.recent.follow(Some(cursor))));
    let (reason, following) = match resumed {
        Some(Ok(following)) => ("no-longer-kept", following),
        other => {
            let is_foreign = u64::from(other.is_some());
            ("unknown-cursor", Following { missed: is_foreign, ..shared.recent.follow(None).ok()? })
        }
    };
    let Following { missed: count, follower, .. } = following;
    let missed = (count > 0).then_some(Missed { count, reason });
    if missed.is_some() {
        shared.metrics.missed.add(reason, count);
    }
    Some((follower, missed))
}

impl Updates {
    /// The next event and what is left; nothing where the stream is over.
    async fn step(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.is_over {
            return None;
        }
        let event = match self.missed.take() {
            Some(missed) => self.missed_event(&missed),
            None => self.next().await,
        };
        Some((Ok(event), self))
    }

    async fn next(&mut self) -> Event {
        let shared = Arc::clone(&self.shared);
        // All branches are cancel-safe. What is there already is told before the end, and before the status.
        tokio::select! {
            biased;
            followed = self.follower.next() => match followed {
                Followed::Revision(finding) => {
                    let shown = Shown::new(&shared, finding);
                    self.event("finding", &shown).id(self.follower.cursor().to_string())
                }
                Followed::Missed(count) => {
                    let reason = "slow-subscriber";
                    shared.metrics.missed.add(reason, count);
                    self.missed_event(&Missed { count, reason })
                }
            },
            () = shared.stop.cancelled() => {
                self.is_over = true;
                self.event("end", &"the aggregator ends")
            }
            _tick = self.ticks.tick() => {
                // The place of the stream is told along, so that a page without findings can come back too.
                self.event("status", &Status::now(&shared)).id(self.follower.cursor().to_string())
            }
        }
    }

    fn missed_event(&self, missed: &Missed) -> Event {
        self.event("missed", missed)
    }

    fn event(&self, name: &str, data: &impl Serialize) -> Event {
        let event = Event::default().event(name).retry(RETRY);
        event.json_data(data).unwrap_or_else(|error| {
            tracing::error!(%error, name, "an update cannot be written");
            Event::default().comment("an update could not be written")
        })
    }
}

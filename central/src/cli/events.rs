//! `tapio events`: what happened, the newest last, and what happens from now on.

use std::{
    collections::{HashSet, VecDeque},
    io::{self, Write},
    time::Duration,
};

use clap::Args;
use tapio_schemas::{
    ids::EventId,
    units::{Micros, UnixMicros},
};

use super::{
    client::{ApiClient, ClientError},
    now, printable, render,
};
use crate::{api::rest::page::List, history::events::StoredEvent};

/// How often the API is asked while following.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// Events arrive up to this much later than they happened; while following, each question reaches back so far.
const FOLLOW_OVERLAP: Micros = Micros::from_secs(30);
/// Rows of one question while following.
const FOLLOW_PAGE: u32 = 1_000;
/// Events that are remembered as shown. More within the overlap are shown again, not lost.
const SHOWN_MAX: usize = 100_000;

/// Which events.
#[derive(Debug, Args)]
pub(super) struct EventArguments {
    /// Only of this cluster.
    #[arg(long)]
    cluster: Option<String>,
    /// Only of this node.
    #[arg(long)]
    node: Option<String>,
    /// Only with this intent, such as oom-kill or connection-refused.
    #[arg(long)]
    intent: Option<String>,
    /// Only of this kind, such as process, memory, syscall, network, request.
    #[arg(long)]
    kind: Option<String>,
    /// At least this severe: notice, warning, error, critical.
    #[arg(long, value_name = "SEVERITY")]
    severity_min: Option<String>,
    /// Only about this container.
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Only about this pod.
    #[arg(long, value_name = "UID")]
    pod: Option<String>,
    /// Only of this trace.
    #[arg(long, value_name = "ID")]
    trace: Option<String>,
    /// Since: a time (RFC 3339) or a length before now (15m, 2h, 7d).
    #[arg(long, default_value = "15m")]
    since: String,
    /// Before: a time or a length before now.
    #[arg(long, conflicts_with = "follow")]
    until: Option<String>,
    /// At most this many, the newest.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Go on with what is stored from now on, until interrupted. With --json, one object a line.
    #[arg(long, short)]
    follow: bool,
}

impl EventArguments {
    /// The parameters that choose events, without time and page.
    fn filter(&self) -> Vec<(&str, &str)> {
        let all = [
            ("cluster", &self.cluster),
            ("node", &self.node),
            ("intent", &self.intent),
            ("kind", &self.kind),
            ("severity_min", &self.severity_min),
            ("container_id", &self.container),
            ("pod_uid", &self.pod),
            ("trace_id", &self.trace),
            ("until", &self.until),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }
}

/// Shows the events that `arguments` want.
pub(super) fn run(
    arguments: &EventArguments,
    json: bool,
    client: &ApiClient,
    out: &mut dyn Write,
) -> Result<(), ClientError> {
    let limit = arguments.limit.to_string();
    let mut query = arguments.filter();
    query.extend([("since", arguments.since.as_str()), ("limit", &limit)]);
    let list: List<StoredEvent> = client.get("/events", &query)?;
    if !arguments.follow {
        return super::show(json, out, &list, render::events::list);
    }
    let mut shown = Shown::default();
    let started = now();
    // What the limit cut off stays cut off.
    let floor = list.next_cursor.as_ref().and(list.items.last()).map(time).unwrap_or_default();
    show_new(&list.items, &mut shown, json, out).map_err(ClientError::Write)?;
    loop {
        std::thread::sleep(FOLLOW_INTERVAL);
        // An event of a clock that is ahead must not hide those that follow.
        let since = shown.newest.min(now()).max(started).minus(FOLLOW_OVERLAP).max(floor);
        let new = newer(arguments, client, since, &shown)?;
        show_new(&new, &mut shown, json, out).map_err(ClientError::Write)?;
    }
}

/// All events since `since` that are not shown yet, the newest first.
fn newer(
    arguments: &EventArguments,
    client: &ApiClient,
    since: UnixMicros,
    shown: &Shown,
) -> Result<Vec<StoredEvent>, ClientError> {
    let (since, limit) = (render::rfc3339(since), FOLLOW_PAGE.to_string());
    let (mut new, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut query = arguments.filter();
        query.extend([("since", since.as_str()), ("limit", &limit)]);
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let list: List<StoredEvent> = client.get("/events", &query)?;
        new.extend(list.items.into_iter().filter(|stored| !shown.ids.contains(&stored.event.id)));
        cursor = list.next_cursor;
        if cursor.is_none() || new.len() >= SHOWN_MAX {
            return Ok(new);
        }
    }
}

/// What was shown lately.
#[derive(Debug, Default)]
struct Shown {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
    newest: UnixMicros,
}

impl Shown {
    fn add(&mut self, stored: &StoredEvent) {
        self.newest = self.newest.max(time(stored));
        if self.ids.insert(stored.event.id) {
            self.order.push_back(stored.event.id);
        }
        while self.order.len() > SHOWN_MAX {
            self.order.pop_front().map(|oldest| self.ids.remove(&oldest));
        }
    }
}

fn time(stored: &StoredEvent) -> UnixMicros {
    UnixMicros(stored.event.core.time_micros)
}

/// Shows `events`, which come newest first, the oldest first.
fn show_new(events: &[StoredEvent], shown: &mut Shown, json: bool, out: &mut dyn Write) -> io::Result<()> {
    for stored in events.iter().rev() {
        if json {
            serde_json::to_writer(&mut *out, stored)?;
            writeln!(out)?;
        } else {
            let mut line = Vec::new();
            render::events::line(stored, &mut line)?;
            out.write_all(printable(&line).as_bytes())?;
        }
        shown.add(stored);
    }
    out.flush()
}

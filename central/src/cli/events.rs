//! `tapio events`: what happened, the newest last, and what happens from now on.

use std::{
    collections::{HashSet, VecDeque},
    io::{self, Write},
    time::{Duration, Instant},
};

use clap::Args;
use tapio_schemas::ids::EventId;

use super::{
    client::{ApiClient, ClientError},
    render,
    terminal::{self, plain, printable},
    unknown::Asked,
};
use crate::{api::rest::page::List, history::events::StoredEvent};

/// How often the API is asked while following.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(1);
/// Most events are stored within this after they happened: each question reaches back so far behind the one before.
const FOLLOW_OVERLAP: Duration = Duration::from_secs(30);
/// Those of nodes that were cut off come later: questions now and then reach back so far. Later ones are not shown.
const LATE_MAX: Duration = Duration::from_secs(600);
/// How often the late ones are looked for.
const LATE_INTERVAL: Duration = Duration::from_secs(15);
/// Rows of one question while following.
const FOLLOW_PAGE: u32 = 1_000;
/// Events that are remembered as known, and that one look takes at most: older ones are then not shown, and that is said.
const KNOWN_MAX: usize = 100_000;
/// How long is waited after the first failure; each further one doubles it.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// How long is waited at most.
const RETRY_MAX: Duration = Duration::from_secs(30);

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
    /// At least this severe: info, notice, warning, error, critical.
    #[arg(long, value_name = "SEVERITY")]
    severity_min: Option<String>,
    /// Only about this container: its id, or enough of its beginning.
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Only about this pod: its name, namespace/name, or the beginning of its uid.
    #[arg(long)]
    pod: Option<String>,
    /// Only of this trace: its id, or its first digits.
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
    /// Go on with what is stored from now on, until interrupted: also what happened up to 10 minutes before. With --json,
    /// one object a line.
    #[arg(long, short)]
    follow: bool,
}

impl EventArguments {
    fn asked(&self) -> Asked<'_> {
        Asked {
            cluster: self.cluster.as_deref(),
            node: self.node.as_deref(),
            intent: self.intent.as_deref(),
            between: self.until.as_deref().map(|until| (self.since.as_str(), until)),
        }
    }

    /// The parameters that choose events, without time and page.
    fn filter(&self) -> Vec<(&str, &str)> {
        let all = [
            ("cluster", &self.cluster),
            ("node", &self.node),
            ("intent", &self.intent),
            ("kind", &self.kind),
            ("severity_min", &self.severity_min),
            ("container_id", &self.container),
            ("pod", &self.pod),
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
    if !arguments.follow {
        let list: List<StoredEvent> = client.get("/events", &query)?;
        arguments.asked().explain_empty(list.items.is_empty(), client);
        return super::show(json, out, &list, render::events::list);
    }
    // What is stored already and not asked for stays unshown, also when late events are looked for among it. It is asked
    // for first: what is stored in between is not in it, and is shown.
    let (mut stored_before, mut known) = (Vec::new(), Known::default());
    all(arguments, client, LATE_MAX, |stored| stored_before.push(stored.event.id))?;
    stored_before.into_iter().rev().for_each(|id| known.add(id));
    let list: List<StoredEvent> = client.get("/events", &query)?;
    arguments.asked().explain_empty(list.items.is_empty(), client);
    show_all(&list.items, &mut known, json, out).map_err(ClientError::Write)?;
    let (mut asked, mut asked_late, mut wait) = (Instant::now(), Instant::now(), RETRY_FIRST);
    loop {
        std::thread::sleep(FOLLOW_INTERVAL);
        let now = Instant::now();
        // Lengths before the server's now: what this machine's clock says does not matter.
        let is_late = now.duration_since(asked_late) >= LATE_INTERVAL;
        let reach = if is_late { LATE_MAX } else { FOLLOW_OVERLAP } + now.duration_since(asked);
        let mut new = Vec::new();
        match all(arguments, client, reach, |stored| new.extend(known.lacks(&stored).then_some(stored))) {
            Ok(is_all) => {
                if !is_all && !is_late {
                    let since = reach.as_secs();
                    tell(&format!(
                        "more than {KNOWN_MAX} events in the last {since} s: older ones of them are not shown; ask for \
                         fewer (--cluster, --node, --intent, --severity-min)"
                    ));
                }
                show_all(&new, &mut known, json, out).map_err(ClientError::Write)?;
                (asked, wait) = (now, RETRY_FIRST);
                asked_late = if is_late { now } else { asked_late };
            }
            Err(error) if error.is_transient() => {
                let (text, seconds) = (printable(&error.to_string()), wait.as_secs());
                tell(&format!("{text}; trying again in {seconds} s"));
                std::thread::sleep(wait);
                wait = (wait * 2).min(RETRY_MAX);
            }
            Err(error) => return Err(error),
        }
    }
}

fn tell(text: &str) {
    // There is nobody left to tell when even this fails.
    drop(writeln!(io::stderr().lock(), "tapio: {text}"));
}

/// Hands over all events of the last `reach`, the newest first, up to as many as are remembered; whether those were all.
fn all(
    arguments: &EventArguments,
    client: &ApiClient,
    reach: Duration,
    mut take: impl FnMut(StoredEvent),
) -> Result<bool, ClientError> {
    let (since, limit) = (format!("{}s", reach.as_secs() + 1), FOLLOW_PAGE.to_string());
    let (mut taken, mut cursor) = (0, None::<String>);
    loop {
        let mut query = arguments.filter();
        query.extend([("since", since.as_str()), ("limit", &limit)]);
        query.extend(cursor.as_deref().map(|cursor| ("cursor", cursor)));
        let list: List<StoredEvent> = client.get("/events", &query)?;
        taken += list.items.len();
        list.items.into_iter().for_each(&mut take);
        cursor = list.next_cursor;
        if cursor.is_none() || taken >= KNOWN_MAX {
            return Ok(cursor.is_none());
        }
    }
}

/// The events that were shown or left out lately.
#[derive(Debug, Default)]
struct Known {
    ids: HashSet<EventId>,
    order: VecDeque<EventId>,
}

impl Known {
    fn lacks(&self, stored: &StoredEvent) -> bool {
        !self.ids.contains(&stored.event.id)
    }

    fn add(&mut self, id: EventId) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        while self.order.len() > KNOWN_MAX {
            self.order.pop_front().map(|oldest| self.ids.remove(&oldest));
        }
    }
}

/// Shows `events`, which come newest first, the oldest first.
fn show_all(events: &[StoredEvent], known: &mut Known, json: bool, out: &mut dyn Write) -> io::Result<()> {
    for stored in events.iter().rev() {
        let text = if json {
            terminal::json(&serde_json::to_string(stored)?) + "\n"
        } else {
            let mut line = Vec::new();
            render::events::line(&plain(stored), &mut line)?;
            printable(&String::from_utf8_lossy(&line))
        };
        out.write_all(text.as_bytes())?;
        known.add(stored.event.id);
    }
    out.flush()
}

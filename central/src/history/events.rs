//! Stored events, read back as the owned [`UnifiedEvent`].

use std::{collections::BTreeSet, sync::LazyLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tapio_schemas::{
    address::Address,
    event::UnifiedEvent,
    field::{Cell, CellType, FIELDS, FieldSpec, FieldValue},
    ids::{EventId, FrameId, Incarnation, Sequence, SourceId, TraceId},
    units::{Micros, UnixMicros},
};

use super::{History, HistoryError, Row, entities, number, text};
use crate::api::rest::page::Page;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this tenant's cluster.
    pub cluster: Option<String>,
    /// Seen on this node.
    pub node: Option<String>,
    /// With this intent.
    pub intent: Option<String>,
    /// Of this kind, by code.
    pub kind: Option<u8>,
    /// At least this severe, by code.
    pub severity_min: Option<u8>,
    /// About containers whose id begins so.
    pub container_id: Option<String>,
    /// About pods that are called so (`name` or `namespace/name`), or whose uid begins so.
    pub pod: Option<String>,
    /// About pods whose uid begins so.
    pub pod_uid: Option<String>,
    /// Of traces whose id begins so: up to 32 lower-case hexadecimal digits.
    pub trace_id: Option<String>,
    /// Not before.
    pub since: UnixMicros,
    /// Before.
    pub until: Option<UnixMicros>,
}

/// An event with where it was stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StoredEvent {
    /// The cluster.
    pub cluster: String,
    /// The node that shipped it.
    pub node: String,
    /// The pod that it is about, as `namespace/name`; absent where no name is known for the uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The event.
    #[serde(flatten)]
    pub event: UnifiedEvent,
}

/// The columns of an event, each in the form in which JSON carries it exactly.
static COLUMNS: LazyLock<String> = LazyLock::new(|| {
    let mut columns = vec![
        "cluster".to_owned(),
        "node".to_owned(),
        "lower(hex(source_id)) AS source_hex".to_owned(),
        "incarnation".to_owned(),
        "sequence".to_owned(),
        "row".to_owned(),
    ];
    columns.extend(FIELDS.iter().map(|spec| {
        let column = spec.column;
        match (spec.cell, spec.clickhouse) {
            (CellType::Sixteen, "IPv6") => format!("toString({column}) AS f{}", spec.id),
            (CellType::Sixteen, _) => format!("lower(hex({column})) AS f{}", spec.id),
            (CellType::Unsigned, kind) if kind.starts_with("DateTime64") => {
                format!("toUnixTimestamp64Micro({column}) AS f{}", spec.id)
            }
            _ => format!("{column} AS f{}", spec.id),
        }
    }));
    columns.join(", ")
});

impl History {
    /// The page of events that `filter` wants, newest first, and one row more if another page follows.
    ///
    /// # Errors
    /// When the store does not answer or holds a row that cannot be read.
    pub async fn events(&self, filter: &EventFilter, page: &Page) -> Result<Vec<StoredEvent>, HistoryError> {
        let newest = page.cursor.as_ref().map(|cursor| cursor.at).or(filter.until).unwrap_or(page.asked_at);
        let wanted = page.limit as usize + 1;
        let mut found = Vec::new();
        for (since, until) in windows(filter.since, newest, filter.until) {
            let window = EventFilter { since, until, ..filter.clone() };
            found.extend(self.events_between(&window, page, wanted - found.len()).await?);
            if found.len() >= wanted {
                break;
            }
        }
        self.name_pods(&mut found).await?;
        Ok(found)
    }

    /// Fills in what the pods of `events` are called.
    async fn name_pods(&self, events: &mut [StoredEvent]) -> Result<(), HistoryError> {
        let pods: BTreeSet<(&str, &str)> = events.iter().filter_map(pod_of).collect();
        if pods.is_empty() {
            return Ok(());
        }
        let names = self.pod_names(&pods).await?;
        for event in events {
            let pod = pod_of(event).map(|(cluster, uid)| (cluster.to_owned(), uid.to_owned()));
            event.pod = pod.and_then(|pod| names.get(&pod).cloned());
        }
        Ok(())
    }

    async fn events_between(
        &self,
        filter: &EventFilter,
        page: &Page,
        limit: usize,
    ) -> Result<Vec<StoredEvent>, HistoryError> {
        let mut select = self.select(&COLUMNS, "tapio.events");
        select
            .and("time_micros >= fromUnixTimestamp64Micro(?)", "Int64", filter.since.0)
            .and_some("time_micros < fromUnixTimestamp64Micro(?)", "Int64", filter.until.map(|until| until.0))
            .and_some("cluster = ?", "String", filter.cluster.as_ref())
            .and_some("node = ?", "String", filter.node.as_ref())
            .and_some("intent = ?", "String", filter.intent.as_ref())
            .and_some("kind = ?", "UInt8", filter.kind)
            .and_some("severity >= ?", "UInt8", filter.severity_min)
            .and_some("startsWith(entity_container_id, ?)", "String", filter.container_id.as_ref())
            .and_some("startsWith(entity_pod_uid, ?)", "String", filter.pod_uid.as_ref());
        if let Some(pod) = &filter.pod {
            let tenant = select.bind("String", &self.tenant);
            let pod = select.bind("String", pod);
            let named = entities::pods_called(&tenant, &pod);
            select.and_plain(format!(
                "(startsWith(entity_pod_uid, {pod}) OR (cluster, entity_pod_uid) IN ({named}))"
            ));
        }
        let trace = filter.trace_id.as_ref();
        // A whole id is looked up as it is stored.
        let (whole, begins) = (trace.filter(|id| id.len() == 32), trace.filter(|id| id.len() < 32));
        if trace.is_some() {
            // Events without a trace hold zeros, which are no trace's id.
            select.and_plain("trace_trace_id != toFixedString('', 16)".to_owned());
        }
        select.and_some("trace_trace_id = unhex(?)", "String", whole).and_some(
            "startsWith(lower(hex(trace_trace_id)), ?)",
            "String",
            begins,
        );
        if let Some((at, id)) =
            page.cursor.as_ref().and_then(|cursor| Some((cursor.at, cursor.id.parse().ok()?)))
        {
            let id: EventId = id;
            let at = select.bind("Int64", at.0);
            let source = select.bind("String", id.frame.source);
            let incarnation = select.bind("UInt64", id.frame.incarnation.0);
            let sequence = select.bind("UInt64", id.frame.sequence.0);
            let row = select.bind("UInt32", id.row);
            // The comparison of times alone lets the store skip the days after the cursor's.
            select.and_plain(format!(
                "time_micros <= fromUnixTimestamp64Micro({at}) AND \
                 (time_micros, source_id, incarnation, sequence, row) < \
                 (fromUnixTimestamp64Micro({at}), toFixedString(unhex({source}), 16), {incarnation}, {sequence}, {row})"
            ));
        }
        let rest = format!(
            "ORDER BY time_micros DESC, source_id DESC, incarnation DESC, sequence DESC, row DESC LIMIT {limit}"
        );
        self.rows(select.build(&rest)).await?.iter().map(read).collect()
    }

    /// The event with this id, if it is stored by `now`.
    ///
    /// # Errors
    /// As [`History::events`].
    pub async fn event(&self, id: EventId, now: UnixMicros) -> Result<Option<StoredEvent>, HistoryError> {
        // No key of the events holds their ids. The frame's row says in which cluster and around when to look; what is
        // under way has none yet.
        let mut frame =
            self.select("cluster, toUnixTimestamp64Micro(max(received_at)) AS received", "tapio.frames");
        frame
            .and("source_id = toFixedString(unhex(?), 16)", "String", id.frame.source)
            .and("incarnation = ?", "UInt64", id.frame.incarnation.0)
            .and("sequence = ?", "UInt64", id.frame.sequence.0);
        let rows = self.rows(frame.build("GROUP BY cluster LIMIT 1")).await?;
        let frame = rows.first().map(|row| (text(row, "cluster"), UnixMicros(number(row, "received"))));
        let newest = frame.map_or(now, |(_, received)| received);
        for (since, until) in windows(UnixMicros(0), newest, None) {
            let found = self.event_between(id, frame.map(|(cluster, _)| cluster), since, until).await?;
            if let Some(mut found) = found {
                self.name_pods(std::slice::from_mut(&mut found)).await?;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn event_between(
        &self,
        id: EventId,
        cluster: Option<&str>,
        since: UnixMicros,
        until: Option<UnixMicros>,
    ) -> Result<Option<StoredEvent>, HistoryError> {
        let mut select = self.select(&COLUMNS, "tapio.events");
        select
            .and_some("cluster = ?", "String", cluster)
            .and("time_micros >= fromUnixTimestamp64Micro(?)", "Int64", since.0)
            .and_some("time_micros < fromUnixTimestamp64Micro(?)", "Int64", until.map(|until| until.0))
            .and("source_id = toFixedString(unhex(?), 16)", "String", id.frame.source)
            .and("incarnation = ?", "UInt64", id.frame.incarnation.0)
            .and("sequence = ?", "UInt64", id.frame.sequence.0)
            .and("row = ?", "UInt32", id.row);
        self.rows(select.build("LIMIT 1")).await?.first().map(read).transpose()
    }
}

/// The cluster and uid of the pod that an event is about.
fn pod_of(stored: &StoredEvent) -> Option<(&str, &str)> {
    let uid = stored.event.entity.as_ref().map(|entity| entity.pod_uid.as_str());
    uid.filter(|uid| !uid.is_empty()).map(|uid| (stored.cluster.as_str(), uid))
}

/// The first window in which events are looked for, and how much longer each is than the one before: whoever asks for
/// a page of the last month mostly finds it in the last minute.
const WINDOW_FIRST: Micros = Micros::from_secs(60);
const WINDOW_GROWTH: u64 = 16;

/// Splits the time from `since` to `until` into windows, the newest first: its end is open if `until` is none, because
/// a node's clock may be ahead, and the second begins before `newest`. None overlaps another.
fn windows(
    since: UnixMicros,
    newest: UnixMicros,
    until: Option<UnixMicros>,
) -> impl Iterator<Item = (UnixMicros, Option<UnixMicros>)> {
    let (mut length, mut end, mut open) = (WINDOW_FIRST, until, true);
    let mut from = newest;
    std::iter::from_fn(move || {
        if !open {
            return None;
        }
        from = from.minus(length).max(since);
        length = Micros(length.0.saturating_mul(WINDOW_GROWTH));
        open = from > since;
        let window = (from, end);
        end = Some(from);
        Some(window)
    })
}

/// What orders events.
#[must_use]
pub fn key(event: &StoredEvent) -> (UnixMicros, String) {
    (UnixMicros(event.event.core.time_micros), event.event.id.to_string())
}

fn read(row: &Row) -> Result<StoredEvent, HistoryError> {
    let source: SourceId =
        text(row, "source_hex").parse().map_err(|error| unreadable("source_id", &error))?;
    let frame = FrameId {
        source,
        incarnation: Incarnation(number(row, "incarnation")),
        sequence: Sequence(number(row, "sequence")),
    };
    let id = frame.row(u32::try_from(number(row, "row")).unwrap_or(u32::MAX));
    let mut event = UnifiedEvent { id, ..UnifiedEvent::default() };
    for spec in FIELDS {
        let Some(value) = row.get(&format!("f{}", spec.id)) else { continue };
        set(&mut event, spec, value)?;
    }
    Ok(StoredEvent {
        cluster: text(row, "cluster").to_owned(),
        node: text(row, "node").to_owned(),
        pod: None,
        event,
    })
}

/// Sets the field unless the column holds its default, which means "absent" and must not make a layer appear.
fn set(event: &mut UnifiedEvent, spec: &FieldSpec, value: &Value) -> Result<(), HistoryError> {
    let cell = match spec.cell {
        CellType::Unsigned => {
            let number = value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default();
            (number != 0).then_some(Cell::Unsigned(number))
        }
        CellType::Signed => {
            let number = value.as_i64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default();
            (number != 0).then_some(Cell::Signed(number))
        }
        CellType::Float => value.as_f64().filter(|number| *number != 0.0).map(Cell::Float),
        CellType::Symbol => value.as_str().filter(|text| !text.is_empty()).map(Cell::Symbol),
        CellType::Sixteen => {
            let text = value.as_str().unwrap_or_default();
            let bytes = if spec.clickhouse == "IPv6" {
                text.parse::<Address>().map_err(|error| unreadable(spec.column, &error))?.0
            } else {
                text.parse::<TraceId>().map_err(|error| unreadable(spec.column, &error))?.0
            };
            (bytes != [0; 16]).then_some(Cell::Sixteen(bytes))
        }
    };
    if let Some(cell) = cell {
        event.set(spec.layer, spec.id, cell);
    }
    Ok(())
}

fn unreadable(column: &str, error: &dyn std::fmt::Display) -> HistoryError {
    HistoryError::Row { what: "event", reason: format!("{column}: {error}") }
}

/// Keeps the conversion honest at compile time: both sixteen-byte types share one representation.
const _: () = assert!(matches!(<Address as FieldValue>::CELL, CellType::Sixteen));

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: an hour, a month with and without an end, and nothing.
    /// Guarantees: the windows cover all of it once, the newest first, and are few.
    #[test]
    fn windows_cover_the_time_once() {
        let now = UnixMicros(1_700_000_000_000_000);
        for (since, until) in [
            (now.minus(Micros::from_secs(3_600)), None),
            (now.minus(Micros::from_secs(30 * 86_400)), Some(now)),
            (UnixMicros(0), None),
            (now, Some(now)),
            (UnixMicros(now.0 + 5), Some(now)),
        ] {
            let found: Vec<_> = windows(since, until.unwrap_or(now), until).collect();
            assert_eq!(found.first().unwrap().1, until);
            assert_eq!(found.last().unwrap().0, since);
            assert!(found.windows(2).all(|pair| pair[1].1 == Some(pair[0].0)), "{found:?}");
            assert!(found.len() <= 8, "{found:?}");
        }
    }

    /// Scenario: a row as the store gives it, most columns at their defaults.
    /// Guarantees: filled columns become fields, default ones leave their layer absent, a damaged one is an error.
    #[test]
    fn rows_become_events() {
        let mut row = serde_json::json!({
            "cluster": "c1", "node": "n1", "source_hex": "00000000000000000000000000000007",
            "incarnation": 2, "sequence": "3", "row": 4,
        });
        let object = row.as_object_mut().unwrap();
        for spec in FIELDS {
            let value = match (spec.cell, spec.clickhouse) {
                (CellType::Symbol, _) => Value::from(""),
                (CellType::Sixteen, "IPv6") => Value::from("::"),
                (CellType::Sixteen, _) => Value::from("0".repeat(32)),
                _ => Value::from(0),
            };
            object.insert(format!("f{}", spec.id), value);
        }
        object.insert("f1".into(), Value::from(1_700_000_000_000_000_u64));
        object.insert("f80".into(), Value::from("::ffff:10.0.0.1"));
        object.insert("f88".into(), Value::from(500));
        let stored = read(object).unwrap();
        assert_eq!(stored.event.id.to_string(), "00000000000000000000000000000007-2-3-4");
        let network = stored.event.network.as_ref().unwrap();
        assert_eq!((network.local_address.to_string().as_str(), network.status), ("10.0.0.1", 500));
        assert!(stored.event.trace.is_none() && stored.event.kernel.is_none());
        object.insert("f20".into(), Value::from("zz"));
        assert!(read(object).unwrap_err().to_string().contains("trace_trace_id"));
    }
}

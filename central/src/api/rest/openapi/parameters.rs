//! The parameters of each resource, as JSON Schemas of exactly what is taken.

use serde_json::{Value, json};
use tapio_schemas::{
    entity::EntityKind,
    finding::FindingState,
    intent::{EventKind, Severity},
};

use crate::{
    api::rest::{
        clusters, entities, events, findings, nodes,
        page::{CURSOR_CHARS_MAX, ESCAPED_ID, LIMIT_DEFAULT, LIMIT_MAX, cursor_pattern},
        params::{LENGTH_DIGITS_MAX, VALUE_CHARS_MAX},
    },
    history::nodes::NodeState,
};

/// An event's id. Numbers of one digit more may be too large.
const EVENT_ID: &str = "[0-9a-fA-F]{32}-[0-9]{1,19}-[0-9]{1,19}-[0-9]{1,9}";
/// A DNS label, as tenants and clusters are called.
const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";

/// One parameter of the query or the path.
pub(super) struct Parameter {
    name: &'static str,
    place: &'static str,
    about: &'static str,
    schema: Value,
}

impl Parameter {
    /// The parameter as OpenAPI has it.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "in": self.place,
            "required": self.place == "path",
            "description": self.about,
            "schema": self.schema,
        })
    }
}

const fn query(name: &'static str, about: &'static str, schema: Value) -> Parameter {
    Parameter { name, place: "query", about, schema }
}

fn path(name: &'static str, about: &'static str, pattern: &str, example: &str) -> Parameter {
    let schema = json!({ "type": "string", "pattern": format!("^{pattern}$"), "examples": [example] });
    Parameter { name, place: "path", about, schema }
}

fn text(name: &'static str, about: &'static str) -> Parameter {
    query(name, about, json!({ "type": "string", "minLength": 1, "maxLength": VALUE_CHARS_MAX }))
}

fn one_of<'a>(
    name: &'static str,
    about: &'static str,
    names: impl IntoIterator<Item = &'a str>,
) -> Parameter {
    query(name, about, json!({ "type": "string", "enum": names.into_iter().collect::<Vec<_>>() }))
}

fn time(name: &'static str, about: &'static str) -> Parameter {
    let schema = json!({
        "anyOf": [
            { "type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00Z"] },
            {
                "type": "string",
                "description": "A length before now: seconds, minutes, hours or days.",
                "pattern": format!("^[0-9]{{1,{LENGTH_DIGITS_MAX}}}[smhd]$"),
                "examples": ["90s", "15m", "2h", "7d"],
            },
        ],
    });
    query(name, about, schema)
}

fn cluster_filter() -> Parameter {
    text("cluster", "Only of this cluster.")
}

/// The parameters of every list that is called `list` and has ids of the form `id`.
fn page(list: &str, id: &str) -> [Parameter; 2] {
    [
        query(
            "limit",
            "So many rows at most.",
            json!({ "type": "integer", "minimum": 1, "maximum": LIMIT_MAX, "default": LIMIT_DEFAULT }),
        ),
        query(
            "cursor",
            "The next_cursor of the page before, unchanged.",
            json!({ "type": "string", "maxLength": CURSOR_CHARS_MAX, "pattern": cursor_pattern(list, id) }),
        ),
    ]
}

pub(super) fn findings() -> Vec<Parameter> {
    let mut parameters = Vec::from(page(findings::LIST, ESCAPED_ID));
    parameters.extend([
        cluster_filter(),
        one_of("state", "Only in this state now.", FindingState::ALL.iter().map(|state| state.as_str())),
        text("rule", "Only of this rule."),
        one_of("severity", "Only of this severity now.", Severity::ALL.iter().map(|one| one.as_str())),
        text("incident_id", "Only of this incident."),
        time("since", "Announced not before; without it, in the last day."),
        time("until", "Announced before."),
    ]);
    parameters
}

pub(super) fn finding() -> Vec<Parameter> {
    vec![path("id", "Its id, or enough of its beginning.", "f-[A-Za-z0-9-]{2,16}", "f-71aa000000000001")]
}

pub(super) fn events() -> Vec<Parameter> {
    let mut parameters = Vec::from(page(events::LIST, EVENT_ID));
    parameters.extend([
        cluster_filter(),
        text("node", "Only of this node."),
        text("intent", "Only with this intent, such as oom-kill."),
        one_of("kind", "Only of this kind.", EventKind::ALL.iter().map(|kind| kind.as_str())),
        one_of("severity_min", "At least this severe.", Severity::ALL.iter().map(|one| one.as_str())),
        text("container_id", "Only about this container: its id, or enough of its beginning."),
        text("pod", "Only about this pod: its name, namespace/name, or the beginning of its uid."),
        text("pod_uid", "Only about this pod: its uid, or enough of its beginning."),
        query(
            "trace_id",
            "Only of this trace: its id, or its first digits.",
            json!({ "type": "string", "pattern": "^(?!0{32}$)[0-9a-fA-F]{4,32}$" }),
        ),
        time("since", "Not before; without it, in the last hour."),
        time("until", "Before."),
    ]);
    parameters
}

pub(super) fn event() -> Vec<Parameter> {
    vec![path("id", "The event's id.", EVENT_ID, "4bf92f3577b34da6a3ce929d0e0e4736-1-1-0")]
}

pub(super) fn entities() -> Vec<Parameter> {
    let mut parameters = Vec::from(page(entities::LIST, ESCAPED_ID));
    parameters.extend([
        cluster_filter(),
        one_of("kind", "Only of this kind.", EntityKind::ALL.iter().map(|kind| kind.as_str())),
        text("id", "Only with this id."),
        time("since", "Last known not before; without it, in the last day."),
    ]);
    parameters
}

pub(super) fn clusters() -> Vec<Parameter> {
    let mut parameters = Vec::from(page(clusters::LIST, ESCAPED_ID));
    parameters.push(time("since", "A node of it was heard not before; without it, in the last day."));
    parameters
}

pub(super) fn cluster() -> Vec<Parameter> {
    vec![
        path("cluster", "The cluster's name.", LABEL, "eu-1"),
        time("since", "Nodes that were not heard since then are not counted; without it, since a day ago."),
    ]
}

pub(super) fn nodes() -> Vec<Parameter> {
    let mut parameters = Vec::from(page(nodes::LIST, ESCAPED_ID));
    parameters.extend([
        cluster_filter(),
        text("node", "Only with this name."),
        one_of("state", "Only in this state now.", NodeState::ALL.iter().map(|state| state.as_str())),
        time("since", "Heard, and losses counted, not before; without it, in the last day."),
    ]);
    parameters
}

pub(super) fn node() -> Vec<Parameter> {
    let node = path("node", "The node's name.", &format!("{LABEL}(\\.{LABEL})*"), "node-1");
    let mut schema = node.schema;
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("maxLength".to_owned(), json!(253));
    }
    vec![
        path("cluster", "The node's cluster.", LABEL, "eu-1"),
        Parameter { schema, ..node },
        time("since", "Losses are counted from then; without it, of the last day."),
    ]
}

pub(super) fn ledger() -> Vec<Parameter> {
    vec![
        cluster_filter(),
        text("node", "Only of this node."),
        time("since", "Not before; without it, in the last day."),
        time("until", "Before."),
    ]
}

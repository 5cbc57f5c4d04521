//! From the rows of a batch to the engine's inputs, read in place.
//!
//! Only rows whose intent the rule set needs become observations; rows that are none cost a few reads and no
//! allocation. Relations (who listens, who calls, what runs in which pod) are told once per batch and pair, with the
//! interval over which the batch saw them. The batch's ledger becomes the source's progress. Called by the
//! aggregator's intake for every frame, and by the edge for its own batches.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use tapio_schemas::{
    address::Address,
    batch::{BatchView, RowView},
    entity::{EntityKey, EntityKind, Relation, RelationKind},
    field::{Layer, column},
    ids::{FrameId, TraceId},
    intent::{self, LinkKind, Severity},
    observation::{Input, Observation, SourceProgress, Value},
    units::{Micros, TimeInterval, UnixMicros},
};

use crate::{
    condition::FieldType,
    rule::{FieldColumn, RuleSet},
};

/// The most different relations that one batch may tell; beyond, the batch's later ones are left out and counted.
pub const RELATIONS_PER_BATCH_MAX: usize = 4_096;

/// What is known of a frame's source besides the frame.
#[derive(Clone, Copy, Debug)]
pub struct SourceContext<'a> {
    /// The node's name.
    pub node: &'a str,
    /// How wrong its clock may be.
    pub clock_error: Micros,
    /// The probes that do not work there; a reason may follow a colon.
    pub missing_probes: &'a [String],
}

/// What a row says of relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    Nothing,
    /// Its container listens on the local address.
    Listens,
    /// Its container calls the remote address.
    Calls,
    /// As [`Says::Calls`], if the row says that the connection went out.
    CallsIfOut,
}

#[derive(Clone, Copy, Debug)]
struct Sort {
    is_needed: bool,
    says: Says,
}

/// Who, in a form that costs nothing to compare within one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Who {
    container: u32,
    pid: u64,
    start: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Listens(Who, [u8; 16], u16),
    Calls(Who, [u8; 16], u16),
    RunsIn(u32, u32),
}

#[derive(Clone, Copy, Debug)]
struct Span {
    since: UnixMicros,
    until: UnixMicros,
    row: u32,
}

/// Gives `sink` every input that a batch holds. Returns how many mentions of relations were left out: those of pairs
/// beyond [`RELATIONS_PER_BATCH_MAX`].
pub fn observe_batch(
    view: &BatchView<'_>,
    frame: FrameId,
    source: &SourceContext<'_>,
    rules: &RuleSet,
    sink: &mut impl FnMut(Input),
) -> u64 {
    let mut sorts: Vec<Option<Sort>> = Vec::new();
    sorts.resize(usize::try_from(view.symbol_count()).unwrap_or(0) + 1, None);
    let mut told: BTreeMap<Told, Span> = BTreeMap::new();
    let mut left_out = 0_u64;
    for row in view.iter() {
        let code = row.symbol_code(column::core::intent);
        let slot = usize::try_from(code).ok().and_then(|code| sorts.get_mut(code));
        let Some(slot) = slot else { continue };
        let sort = *slot.get_or_insert_with(|| sort_of(view.symbol(code), rules));
        if sort.says != Says::Nothing || sort.is_needed {
            left_out = left_out.saturating_add(tell(&row, sort.says, &mut told));
        }
        if sort.is_needed {
            sink(Input::Observation(observation(&row, frame, source, rules)));
        }
    }
    for (what, span) in told {
        if let Some(relation) = relation(view, &what, span, frame, source) {
            sink(Input::Relation(relation));
        }
    }
    sink(Input::Progress(SourceProgress {
        id: frame.row(0),
        source: frame.source,
        node: source.node.to_owned(),
        ledger: view.ledger(),
        clock_error: source.clock_error,
        missing_probes: source.missing_probes.to_vec(),
    }));
    left_out
}

fn sort_of(name: &str, rules: &RuleSet) -> Sort {
    let says = match name {
        intent::LISTENING
        | intent::LISTENING_ENDED
        | intent::ADDRESS_HELD
        | intent::REQUEST_SERVED
        | intent::REQUEST_SERVED_ERROR => Says::Listens,
        intent::CONNECTION_OPENED
        | intent::CONNECTION_REFUSED
        | intent::CONNECTION_TIMED_OUT
        | intent::CONNECTION_FAILED
        | intent::REQUEST_CALLED
        | intent::REQUEST_CALLED_ERROR
        | intent::REQUEST_UNANSWERED => Says::Calls,
        // Of a served one nothing is said: its listener may have ended with it.
        intent::CONNECTION_RESET | intent::CONNECTION_CLOSED | intent::REQUEST_UNFINISHED => Says::CallsIfOut,
        _ => Says::Nothing,
    };
    Sort { is_needed: rules.needs(name), says }
}

/// The port in a column; a port is 16 bits wide, a wider cell reads as none.
fn port(row: &RowView<'_, '_>, id: u16) -> u16 {
    u16::try_from(row.unsigned(id)).unwrap_or(0)
}

/// Notes what a row says of relations; returns how many of them had no room.
fn tell(row: &RowView<'_, '_>, says: Says, told: &mut BTreeMap<Told, Span>) -> u64 {
    let start = UnixMicros(row.unsigned(column::core::time_micros));
    // A folded row carries the sum of its durations.
    let length = row.unsigned(column::core::duration_micros) / row.unsigned(column::core::count).max(1);
    let until = start.plus(Micros(length));
    let span = Span { since: start, until, row: row.row() };
    let who = Who {
        container: row.symbol_code(column::entity::container_id),
        pid: row.unsigned(column::kernel::pid),
        start: row.unsigned(column::kernel::start_boot_nanos),
    };
    // Processes of one container share its relations.
    let who = if who.container == 0 { who } else { Who { pid: 0, start: 0, ..who } };
    let mut left_out = 0;
    let mut note = |what: Told| {
        if let Some(known) = told.get_mut(&what) {
            known.since = known.since.min(span.since);
            known.until = known.until.max(span.until);
        } else if told.len() < RELATIONS_PER_BATCH_MAX {
            told.insert(what, span);
        } else {
            left_out += 1;
        }
    };
    let pod = row.symbol_code(column::entity::pod_uid);
    if who.container != 0 && pod != 0 {
        note(Told::RunsIn(who.container, pod));
    }
    if (who.container == 0 && who.pid == 0) || !row.has(Layer::Network) {
        return left_out;
    }
    let is_out = || row.text(column::network::direction) == "out";
    match says {
        Says::Listens => {
            let local = port(row, column::network::local_port);
            if local != 0 {
                note(Told::Listens(who, row.sixteen(column::network::local_address), local));
            }
        }
        Says::Calls | Says::CallsIfOut => {
            let remote = port(row, column::network::remote_port);
            if remote != 0 && (says == Says::Calls || is_out()) {
                note(Told::Calls(who, row.sixteen(column::network::remote_address), remote));
            }
        }
        Says::Nothing => {}
    }
    left_out
}

fn relation(
    view: &BatchView<'_>,
    what: &Told,
    span: Span,
    frame: FrameId,
    source: &SourceContext<'_>,
) -> Option<Relation> {
    let entity = |who: Who| {
        if who.container == 0 {
            process(source.node, who.pid, who.start)
        } else {
            EntityKey::new(EntityKind::Container, view.symbol(who.container))
        }
    };
    let (kind, from, to) = match *what {
        Told::Listens(who, address, port) => {
            (RelationKind::Listens, entity(who), endpoint(source.node, address, port))
        }
        Told::Calls(who, address, port) => {
            (RelationKind::Calls, entity(who), endpoint(source.node, address, port))
        }
        Told::RunsIn(container, pod) => (
            RelationKind::RunsIn,
            EntityKey::new(EntityKind::Container, view.symbol(container)),
            EntityKey::new(EntityKind::Pod, view.symbol(pod)),
        ),
    };
    (!from.id.is_empty() && !to.id.is_empty()).then(|| Relation {
        kind,
        from,
        to,
        since: span.since,
        until: span.until,
        link: LinkKind::Observed,
        learned_from: frame.row(span.row),
    })
}

/// The entity of a process.
#[must_use]
pub fn process(node: &str, pid: u64, start_boot_nanos: u64) -> EntityKey {
    EntityKey::new(EntityKind::Process, format!("{node}/{pid}/{start_boot_nanos}"))
}

/// The entity of an address that something listens on. Addresses that mean another thing on every node carry it.
#[must_use]
pub fn endpoint(node: &str, address: [u8; 16], port: u16) -> EntityKey {
    let address: IpAddr = Ipv6Addr::from(address).to_canonical();
    // In a batch the IPv4 wildcard may be all zeros instead of mapped: both mean "any address of the node".
    let id = SocketAddr::new(address, port);
    if address.is_loopback() || address.is_unspecified() {
        EntityKey::new(EntityKind::Endpoint, format!("{node}|{id}"))
    } else {
        EntityKey::new(EntityKind::Endpoint, id.to_string())
    }
}

fn observation(
    row: &RowView<'_, '_>,
    frame: FrameId,
    source: &SourceContext<'_>,
    rules: &RuleSet,
) -> Observation {
    let at = UnixMicros(row.unsigned(column::core::time_micros));
    let error = row.unsigned(column::core::time_error_micros).saturating_add(source.clock_error.0);
    let pid = row.unsigned(column::kernel::pid);
    let process =
        (pid != 0).then(|| process(source.node, pid, row.unsigned(column::kernel::start_boot_nanos)));
    let container = row.text(column::entity::container_id);
    let subject = match &process {
        _ if !container.is_empty() => EntityKey::new(EntityKind::Container, container),
        Some(process) => process.clone(),
        None => EntityKey::new(EntityKind::Node, source.node),
    };
    let trace = TraceId(row.sixteen(column::trace::trace_id));
    let trace = (!trace.is_none()).then_some(trace);
    let code = |id| u8::try_from(row.unsigned(id)).unwrap_or(0);
    Observation {
        id: frame.row(row.row()),
        intent: row.text(column::core::intent).to_owned(),
        time: TimeInterval::around(at, Micros(error)),
        duration: Micros(row.unsigned(column::core::duration_micros)),
        source: frame.source,
        probe: row.text(column::core::probe).to_owned(),
        severity: Severity::from_code(code(column::core::severity)),
        count: row.unsigned(column::core::count).max(1),
        subject,
        process,
        peer: peer(row, source.node),
        local: local(row, source.node),
        trace,
        trace_link: if trace.is_some() {
            LinkKind::from_code(code(column::trace::link))
        } else {
            LinkKind::None
        },
        attributes: rules.columns().iter().filter_map(|field| attribute(row, field)).collect(),
    }
}

/// The endpoint that a row is about, if it is about one of this side's.
fn local(row: &RowView<'_, '_>, node: &str) -> Option<EntityKey> {
    const ABOUT_IT: [&str; 4] =
        [intent::LISTENING, intent::LISTENING_ENDED, intent::ADDRESS_IN_USE, intent::ADDRESS_HELD];
    let is_about_it = row.has(Layer::Network) && ABOUT_IT.contains(&row.text(column::core::intent));
    let port = if is_about_it { port(row, column::network::local_port) } else { 0 };
    (port != 0).then(|| endpoint(node, row.sixteen(column::network::local_address), port))
}

fn peer(row: &RowView<'_, '_>, node: &str) -> Option<EntityKey> {
    let container = row.text(column::entity::peer_container_id);
    if !container.is_empty() {
        return Some(EntityKey::new(EntityKind::Container, container));
    }
    let remote = port(row, column::network::remote_port);
    (remote != 0).then(|| endpoint(node, row.sixteen(column::network::remote_address), remote))
}

/// The value of a field, if the row has one; a default cell is an absent value.
fn attribute(row: &RowView<'_, '_>, field: &FieldColumn) -> Option<(String, Value)> {
    if !row.has(field.layer) {
        return None;
    }
    let value = match field.of {
        FieldType::Integer if field.is_signed => Value::Integer(row.signed(field.id)),
        FieldType::Integer => Value::Integer(i64::try_from(row.unsigned(field.id)).unwrap_or(i64::MAX)),
        FieldType::Float => Value::Float(row.float(field.id)),
        FieldType::Text if field.is_address => match Address(row.sixteen(field.id)) {
            none if none == Address::default() => Value::Text(String::new()),
            address => Value::Text(address.to_string()),
        },
        FieldType::Text => Value::Text(row.text(field.id).to_owned()),
        FieldType::Bool => Value::Bool(row.unsigned(field.id) == 1),
    };
    let is_absent = match &value {
        Value::Integer(number) => *number == 0,
        Value::Float(number) => *number == 0.0,
        Value::Text(text) => text.is_empty(),
        Value::Bool(yes) => !yes,
    };
    (!is_absent).then(|| (field.name.clone(), value))
}

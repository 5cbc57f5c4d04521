//! The one table of an event's fields: id, name, layer, type, and the column of ClickHouse that holds it.
//!
//! [`event_fields!`] is that table. The owned struct ([`crate::event`]), the columnar form ([`crate::batch`]) and the
//! DDL's test are all made from it. An id is never reused and never changes its type: a reader skips ids that it
//! does not know, so adding a field never breaks the wire.

use serde::{Deserialize, Serialize};

use crate::{
    address::Address,
    ids::{SpanId, TraceId},
    intent::{EventKind, LinkKind, Severity},
};

/// How a column's cells are represented on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum CellType {
    /// An unsigned integer of at most 64 bits; the directory names the width in use.
    Unsigned = 1,
    /// A signed integer of at most 64 bits, zigzag-coded.
    Signed = 2,
    /// An IEEE 754 double.
    Float = 3,
    /// Sixteen bytes (a trace id, a UUID, an IPv6 or mapped IPv4 address) as a code into the batch's table of such
    /// values; code 0 is all zeros.
    Sixteen = 4,
    /// A code into the batch's symbol table; code 0 is the empty text.
    Symbol = 5,
}

/// Which side table holds a field. [`Layer::Core`] has a cell for every row; the others only for the rows they list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Layer {
    /// Every event has these.
    Core = 0,
    /// The W3C trace context.
    Trace = 1,
    /// Which entity an event is about, and who it was attributed to.
    Entity = 2,
    /// What the kernel said.
    Kernel = 3,
    /// Addresses, protocols and requests.
    Network = 4,
    /// Log records and errors of applications.
    Application = 5,
    /// Kubernetes objects.
    Kubernetes = 6,
    /// A measured value.
    Metric = 7,
    /// What a failure means to the business.
    Impact = 8,
    /// What the engine said about an event.
    Correlation = 9,
    /// The original bytes.
    Raw = 10,
}

impl Layer {
    /// All layers, by code.
    pub const ALL: [Self; 11] = [
        Self::Core,
        Self::Trace,
        Self::Entity,
        Self::Kernel,
        Self::Network,
        Self::Application,
        Self::Kubernetes,
        Self::Metric,
        Self::Impact,
        Self::Correlation,
        Self::Raw,
    ];
}

/// What is known of a column at compile time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldSpec {
    /// The column's id on the wire; never reused.
    pub id: u16,
    /// Its name: the struct's field is `layer.name`, ClickHouse's column is [`FieldSpec::column`].
    pub name: &'static str,
    /// The column's name in ClickHouse: the name, with the layer before it where the layer is not core.
    pub column: &'static str,
    /// The side table it belongs to.
    pub layer: Layer,
    /// How its cells are represented.
    pub cell: CellType,
    /// The column's type in ClickHouse.
    pub clickhouse: &'static str,
}

/// One cell, whatever its type. `Sixteen` is the big-endian number of its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'a> {
    /// An unsigned integer.
    Unsigned(u64),
    /// A signed integer.
    Signed(i64),
    /// A double.
    Float(f64),
    /// Sixteen bytes.
    Sixteen([u8; 16]),
    /// A text out of the symbol table.
    Symbol(&'a str),
}

/// A type that a field of [`crate::event::UnifiedEvent`] can have: how it becomes a cell and comes back.
///
/// The default value means "absent", and an absent cell reads as the default.
pub trait FieldValue: Default + PartialEq {
    /// The representation of its cells.
    const CELL: CellType;

    /// This value as a cell.
    fn to_cell(&self) -> Cell<'_>;

    /// The value of a cell. A cell of another type, or out of range, reads as absent.
    fn from_cell(cell: Cell<'_>) -> Self;
}

macro_rules! unsigned_value {
    ($($type:ty),*) => {$(
        impl FieldValue for $type {
            const CELL: CellType = CellType::Unsigned;
            fn to_cell(&self) -> Cell<'_> {
                Cell::Unsigned(u64::from(*self))
            }
            fn from_cell(cell: Cell<'_>) -> Self {
                match cell {
                    Cell::Unsigned(value) => Self::try_from(value).unwrap_or_default(),
                    _ => Self::default(),
                }
            }
        }
    )*};
}
unsigned_value!(u8, u16, u32, u64);

impl FieldValue for bool {
    const CELL: CellType = CellType::Unsigned;
    fn to_cell(&self) -> Cell<'_> {
        Cell::Unsigned(u64::from(*self))
    }
    fn from_cell(cell: Cell<'_>) -> Self {
        matches!(cell, Cell::Unsigned(1))
    }
}

impl FieldValue for i64 {
    const CELL: CellType = CellType::Signed;
    fn to_cell(&self) -> Cell<'_> {
        Cell::Signed(*self)
    }
    fn from_cell(cell: Cell<'_>) -> Self {
        if let Cell::Signed(value) = cell { value } else { 0 }
    }
}

impl FieldValue for f64 {
    const CELL: CellType = CellType::Float;
    fn to_cell(&self) -> Cell<'_> {
        Cell::Float(*self)
    }
    fn from_cell(cell: Cell<'_>) -> Self {
        if let Cell::Float(value) = cell { value } else { 0.0 }
    }
}

impl FieldValue for String {
    const CELL: CellType = CellType::Symbol;
    fn to_cell(&self) -> Cell<'_> {
        Cell::Symbol(self)
    }
    fn from_cell(cell: Cell<'_>) -> Self {
        if let Cell::Symbol(text) = cell { text.to_owned() } else { Self::new() }
    }
}

macro_rules! sixteen_value {
    ($($type:ty),*) => {$(
        impl FieldValue for $type {
            const CELL: CellType = CellType::Sixteen;
            fn to_cell(&self) -> Cell<'_> {
                Cell::Sixteen(self.0)
            }
            fn from_cell(cell: Cell<'_>) -> Self {
                if let Cell::Sixteen(bytes) = cell { Self(bytes) } else { Self::default() }
            }
        }
    )*};
}
sixteen_value!(TraceId, Address);

impl FieldValue for SpanId {
    const CELL: CellType = CellType::Unsigned;
    fn to_cell(&self) -> Cell<'_> {
        Cell::Unsigned(self.0)
    }
    fn from_cell(cell: Cell<'_>) -> Self {
        Self(u64::from_cell(cell))
    }
}

macro_rules! coded_value {
    ($($type:ty),*) => {$(
        impl FieldValue for $type {
            const CELL: CellType = CellType::Unsigned;
            fn to_cell(&self) -> Cell<'_> {
                Cell::Unsigned(u64::from(self.code()))
            }
            fn from_cell(cell: Cell<'_>) -> Self {
                u8::try_from(u64::from_cell(cell)).map_or_else(|_err| Self::default(), Self::from_code)
            }
        }
    )*};
}
coded_value!(EventKind, Severity, LinkKind);

/// Calls `$apply!` with the table of all fields: `Layer module Struct { id name: Type => "ClickHouse type", }`.
///
/// Units stand in the names. Texts of few distinct values are `LowCardinality`.
macro_rules! event_fields {
    ($apply:ident) => {
        $apply! {
            /// Fields that every event has.
            Core core Core {
                /// When it happened (its start, where it lasted), microseconds since the Unix epoch.
                1 time_micros: u64 => "DateTime64(6, 'UTC')",
                /// How wrong that time may be.
                2 time_error_micros: u32 => "UInt32",
                /// The coarse kind.
                3 kind: EventKind => "UInt8",
                /// Which probe or source saw it, for example `tcp-state`.
                4 probe: String => "LowCardinality(String)",
                /// How bad it is in itself.
                5 severity: Severity => "UInt8",
                /// How many equal occurrences this event stands for; at least 1.
                6 count: u32 => "UInt32",
                /// How long it lasted; of folded ones, the sum.
                7 duration_micros: u64 => "UInt64",
                /// What happened, as rules name it, for example `connection-refused`.
                8 intent: String => "LowCardinality(String)",
            }
            /// The W3C trace context.
            Trace trace Trace {
                /// The trace.
                20 trace_id: TraceId => "FixedString(16)",
                /// The span of this event.
                21 span_id: SpanId => "UInt64",
                /// The span that caused it.
                22 parent_span_id: SpanId => "UInt64",
                /// The W3C flags.
                23 flags: u8 => "UInt8",
                /// Whether the link to the trace was observed or inferred.
                24 link: LinkKind => "UInt8",
            }
            /// Who the event is about.
            Entity entity Entity {
                /// The container, as its runtime names it (64 hexadecimal digits), or empty.
                40 container_id: String => "LowCardinality(String)",
                /// The pod's uid in its canonical form, or empty.
                41 pod_uid: String => "LowCardinality(String)",
                /// The other side's container, where the node knows it.
                42 peer_container_id: String => "LowCardinality(String)",
                /// The other side's pod, where the node knows it.
                43 peer_pod_uid: String => "LowCardinality(String)",
                /// Tags and attributes that no field has, `key=value`, joined by newlines.
                44 attributes: String => "String",
            }
            /// What the kernel said.
            Kernel kernel Kernel {
                /// The process (thread group).
                60 pid: u32 => "UInt32",
                /// The thread.
                61 tid: u32 => "UInt32",
                /// The parent process.
                62 parent_pid: u32 => "UInt32",
                /// When the process started, nanoseconds of the boot clock: with the pid, the process's identity.
                63 start_boot_nanos: u64 => "UInt64",
                /// The control group of the memory controller, or of the unified hierarchy.
                64 cgroup_id: u64 => "UInt64",
                /// The command name (`comm`).
                65 command: String => "LowCardinality(String)",
                /// The system call, by name.
                66 syscall: String => "LowCardinality(String)",
                /// The error number, positive; 0 is none.
                67 errno: u16 => "UInt16",
                /// The signal; 0 is none.
                68 signal: u8 => "UInt8",
                /// The exit code.
                69 exit_code: u8 => "UInt8",
                /// Who sent the signal.
                70 sender_pid: u32 => "UInt32",
                /// The file, as the process named it.
                71 path: String => "String",
                /// The size that the event speaks of: a victim's resident anonymous and shared memory, a container's usage.
                72 size_bytes: u64 => "UInt64",
                /// The limit that the size is held against.
                73 limit_bytes: u64 => "UInt64",
                /// The user id.
                74 uid: u32 => "UInt32",
            }
            /// Addresses, protocols and requests.
            Network network Network {
                /// The local address, IPv4 mapped into IPv6.
                80 local_address: Address => "IPv6",
                /// The remote address, IPv4 mapped into IPv6.
                81 remote_address: Address => "IPv6",
                /// The local port.
                82 local_port: u16 => "UInt16",
                /// The remote port.
                83 remote_port: u16 => "UInt16",
                /// `tcp`, `udp`, `http`.
                84 protocol: String => "LowCardinality(String)",
                /// `in` (accepted, served) or `out` (connected, called).
                85 direction: String => "LowCardinality(String)",
                /// The request's method.
                86 method: String => "LowCardinality(String)",
                /// The request's path with its ids replaced.
                87 route: String => "LowCardinality(String)",
                /// The response's status; 0 when none came.
                88 status: u16 => "UInt16",
                /// Bytes received.
                89 received_bytes: u64 => "UInt64",
                /// Bytes sent.
                90 sent_bytes: u64 => "UInt64",
                /// The request's path as it was sent, where detail is wanted.
                91 target: String => "String",
                /// The kernel's state of the connection before the event.
                92 old_state: String => "LowCardinality(String)",
                /// The kernel's state of the connection after the event.
                93 new_state: String => "LowCardinality(String)",
            }
            /// Log records and errors of applications.
            Application application Application {
                /// The logger.
                100 logger: String => "LowCardinality(String)",
                /// The message with its parameters replaced.
                101 message_template: String => "String",
                /// The parameters, joined by newlines.
                102 parameters: String => "String",
                /// The error's type.
                103 error_type: String => "LowCardinality(String)",
                /// The stack trace.
                104 stack_trace: String => "String",
            }
            /// Kubernetes objects.
            Kubernetes kubernetes Kubernetes {
                /// The object's kind.
                120 object_kind: String => "LowCardinality(String)",
                /// Its namespace.
                121 namespace: String => "LowCardinality(String)",
                /// Its name.
                122 name: String => "String",
                /// Its uid.
                123 uid: String => "String",
                /// The reason, for example `BackOff`.
                124 reason: String => "LowCardinality(String)",
                /// The message.
                125 message: String => "String",
                /// Restarts of the container.
                126 restarts: u32 => "UInt32",
            }
            /// A measured value.
            Metric metric Metric {
                /// What was measured, for example `memory.usage`.
                140 name: String => "LowCardinality(String)",
                /// Its unit, as UCUM writes it (`By`, `By/s`, `s`).
                141 unit: String => "LowCardinality(String)",
                /// The value.
                142 value: f64 => "Float64",
            }
            /// What a failure means to the business.
            Impact impact Impact {
                /// From 0 to 1.
                160 business: f64 => "Float64",
                /// Whether customers see it.
                161 customer_facing: bool => "UInt8",
                /// Whether it costs revenue.
                162 revenue_impacting: bool => "UInt8",
                /// Whether it consumes an error budget.
                163 slo_impacting: bool => "UInt8",
                /// What a trend says will happen.
                164 predicted_outcome: String => "LowCardinality(String)",
            }
            /// What the engine said about an event.
            Correlation correlation Correlation {
                /// The incident.
                180 incident_id: String => "LowCardinality(String)",
                /// The rule.
                181 pattern: String => "LowCardinality(String)",
                /// The root cause's event.
                182 root_cause: String => "String",
                /// What to do.
                183 recommended_action: String => "String",
            }
            /// The original bytes, where a user may need them.
            Raw raw Raw {
                /// What the bytes are.
                200 format: String => "LowCardinality(String)",
                /// The bytes, as text.
                201 body: String => "String",
            }
        }
    };
}

pub(crate) use event_fields;

macro_rules! define_specs {
    ($($(#[$ldoc:meta])* $layer:ident $module:ident $struct:ident {
        $($(#[$doc:meta])* $id:literal $name:ident: $type:ty => $clickhouse:literal,)*
    })*) => {
        /// Every field, in the order of the ids.
        pub const FIELDS: &[FieldSpec] = &[$($(
            FieldSpec {
                id: $id,
                name: stringify!($name),
                column: column_name(Layer::$layer, stringify!($name), concat!(stringify!($module), "_", stringify!($name))),
                layer: Layer::$layer,
                cell: <$type as FieldValue>::CELL,
                clickhouse: $clickhouse,
            },
        )*)*];

        /// The ids of all columns, by layer and name.
        pub mod column {$(
            $(#[$ldoc])*
            pub mod $module {$(
                $(#[$doc])*
                #[allow(non_upper_case_globals, reason = "a column's constant is spelled as the field that it names")]
                pub const $name: u16 = $id;
            )*}
        )*}
    };
}

const fn column_name(layer: Layer, plain: &'static str, prefixed: &'static str) -> &'static str {
    if matches!(layer, Layer::Core) { plain } else { prefixed }
}

event_fields!(define_specs);

/// The field of a column id, if this version knows it.
#[must_use]
pub fn field(id: u16) -> Option<&'static FieldSpec> {
    FIELDS.binary_search_by_key(&id, |spec| spec.id).ok().and_then(|index| FIELDS.get(index))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Scenario: somebody adds a field.
    /// Guarantees: ids ascend and never repeat, names are unique as columns, and the lookup finds each.
    #[test]
    fn the_table_is_well_formed() {
        assert!(FIELDS.windows(2).all(|pair| pair[0].id < pair[1].id));
        let columns: HashSet<_> = FIELDS.iter().map(|spec| spec.column).collect();
        assert_eq!(columns.len(), FIELDS.len());
        for spec in FIELDS {
            assert_eq!(field(spec.id), Some(spec));
        }
        assert_eq!(field(column::network::status).map(|spec| spec.column), Some("network_status"));
        assert_eq!(field(9_999), None);
    }
}

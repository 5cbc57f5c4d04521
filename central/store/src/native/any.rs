//! A column whose type is known only at run time, from the name of its ClickHouse type.
//!
//! The events' columns are made from the field table this way. It must never accept a type whose layout it does not
//! write, and a cell that does not fit its column becomes that column's default rather than a shifted block.

use super::columns::{
    ArrayColumn, FixedColumn, LowCardinalityColumn, MapColumn, NativeColumn, NullableColumn, StringColumn,
};

/// How the bytes of a fixed-width cell are made from a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FixedKind {
    /// Little-endian integers; also times (ticks) and `Bool`.
    Integer,
    Float64,
    /// Sixteen bytes in printed order, kept as two little-endian halves.
    Uuid,
    /// Bytes as they are: `FixedString(N)`, `IPv6`.
    Raw,
}

/// A fixed-width column and how to fill it.
#[derive(Debug)]
pub struct Fixed {
    column: FixedColumn,
    kind: FixedKind,
}

/// A column of any supported type.
#[derive(Debug)]
pub enum AnyColumn {
    /// Integers, floats, times, UUIDs, addresses, fixed strings.
    Fixed(Fixed),
    /// `Nullable` of those.
    NullableFixed(NullableColumn<FixedColumn>, Fixed),
    /// `String`.
    String(StringColumn),
    /// `Nullable(String)`.
    NullableString(NullableColumn<StringColumn>),
    /// `LowCardinality(String)`.
    LowCardinality(LowCardinalityColumn),
    /// `Array(String)`.
    StringArray(ArrayColumn<StringColumn>),
    /// `Array(LowCardinality(String))`.
    LowCardinalityArray(ArrayColumn<LowCardinalityColumn>),
    /// `Map(LowCardinality(String), String)`.
    Map(MapColumn),
}

impl AnyColumn {
    /// An empty column of `clickhouse_type`, or `None` where that is not a supported type.
    ///
    /// Supported: `Bool`, `(U)Int8..64`, `Float64`, `DateTime`, `DateTime64(P)`, `UUID`, `IPv4`, `IPv6`,
    /// `FixedString(N)`, `String`, `Nullable` of these, `LowCardinality(String)`, `Array(String)`,
    /// `Array(LowCardinality(String))`, `Map(LowCardinality(String), String)`.
    #[must_use]
    pub fn of_type(clickhouse_type: &str) -> Option<Self> {
        match clickhouse_type {
            "String" => return Some(Self::String(StringColumn::default())),
            "Nullable(String)" => {
                return Some(Self::NullableString(NullableColumn::new(StringColumn::default())));
            }
            "LowCardinality(String)" => return Some(Self::LowCardinality(LowCardinalityColumn::default())),
            "Array(String)" => return Some(Self::StringArray(ArrayColumn::new(StringColumn::default()))),
            "Array(LowCardinality(String))" => {
                let elements = LowCardinalityColumn::default();
                return Some(Self::LowCardinalityArray(ArrayColumn::new(elements)));
            }
            "Map(LowCardinality(String), String)" | "Map(LowCardinality(String),String)" => {
                return Some(Self::Map(MapColumn::default()));
            }
            _ => {}
        }
        if let Some(inner) = inside(clickhouse_type, "Nullable(") {
            let values = Fixed::of_type(inner)?;
            let under_null = Fixed::of_type(inner)?;
            return Some(Self::NullableFixed(NullableColumn::new(values.column), under_null));
        }
        Fixed::of_type(clickhouse_type).map(Self::Fixed)
    }

    /// Appends an unsigned integer, a time's ticks or a boolean.
    pub fn push_unsigned(&mut self, value: u64) {
        self.push_fixed(&value.to_le_bytes(), FixedKind::Integer);
    }

    /// Appends a signed integer or a time's ticks.
    pub fn push_signed(&mut self, value: i64) {
        self.push_fixed(&value.to_le_bytes(), FixedKind::Integer);
    }

    /// Appends a float.
    pub fn push_float(&mut self, value: f64) {
        self.push_fixed(&value.to_le_bytes(), FixedKind::Float64);
    }

    /// Appends sixteen bytes in printed order, into a `UUID`, an `IPv6` or a `FixedString(16)`.
    pub fn push_sixteen(&mut self, value: [u8; 16]) {
        match self {
            Self::Fixed(Fixed { column, kind: FixedKind::Uuid }) => column.push_uuid(value),
            Self::NullableFixed(column, Fixed { kind: FixedKind::Uuid, .. }) => {
                column.push_with(|inner| inner.push_uuid(value));
            }
            _ => self.push_fixed(&value, FixedKind::Raw),
        }
    }

    /// Appends text or bytes.
    pub fn push_bytes(&mut self, value: &[u8]) {
        match self {
            Self::String(column) => column.push(value),
            Self::NullableString(column) => column.push_with(|inner| inner.push(value)),
            Self::LowCardinality(column) => column.push(value),
            _ => self.push_fixed(value, FixedKind::Raw),
        }
    }

    /// Appends an array of texts.
    pub fn push_array<'a>(&mut self, values: impl IntoIterator<Item = &'a str>) {
        match self {
            Self::StringArray(column) => {
                for value in values {
                    column.elements().push(value.as_bytes());
                }
                column.finish_row();
            }
            Self::LowCardinalityArray(column) => {
                for value in values {
                    column.elements().push(value.as_bytes());
                }
                column.finish_row();
            }
            _ => self.push_default(),
        }
    }

    /// Appends a map.
    pub fn push_map<'a>(&mut self, entries: impl IntoIterator<Item = (&'a str, &'a str)>) {
        if let Self::Map(column) = self {
            for (key, value) in entries {
                column.push_entry(key.as_bytes(), value.as_bytes());
            }
            column.finish_row();
        } else {
            self.push_default();
        }
    }

    /// Appends the type's default: null, zero, or empty.
    pub fn push_default(&mut self) {
        match self {
            Self::Fixed(Fixed { column, .. }) => column.push(&[]),
            Self::NullableFixed(column, _) => column.push_null_with(|inner| inner.push(&[])),
            Self::String(column) => column.push(&[]),
            Self::NullableString(column) => column.push_null_with(|inner| inner.push(&[])),
            Self::LowCardinality(column) => column.push(&[]),
            Self::StringArray(column) => column.finish_row(),
            Self::LowCardinalityArray(column) => column.finish_row(),
            Self::Map(column) => column.finish_row(),
        }
    }

    /// The low-cardinality column itself, for callers with a symbol table of their own.
    pub fn low_cardinality(&mut self) -> Option<&mut LowCardinalityColumn> {
        match self {
            Self::LowCardinality(column) => Some(column),
            _ => None,
        }
    }

    /// The fixed-width column itself, for callers that append many cells at once.
    pub fn fixed(&mut self) -> Option<&mut FixedColumn> {
        match self {
            Self::Fixed(Fixed { column, .. }) => Some(column),
            _ => None,
        }
    }

    fn push_fixed(&mut self, cell: &[u8], kind: FixedKind) {
        // An integer too large for its column would wrap into a wrong value; the default is at least visible.
        let width = match self {
            Self::Fixed(Fixed { column, .. }) | Self::NullableFixed(_, Fixed { column, .. }) => {
                column.width()
            }
            _ => cell.len(),
        };
        let surplus = cell.get(width..).unwrap_or_default();
        if surplus.iter().any(|byte| *byte != 0) && surplus.iter().any(|byte| *byte != 0xff) {
            return self.push_default();
        }
        match self {
            Self::Fixed(fixed) if fixed.kind == kind => fixed.column.push(cell),
            Self::NullableFixed(column, like) if like.kind == kind => {
                column.push_with(|inner| inner.push(cell))
            }
            _ => self.push_default(),
        }
    }

    fn inner(&self) -> &dyn NativeColumn {
        match self {
            Self::Fixed(Fixed { column, .. }) => column,
            Self::NullableFixed(column, _) => column,
            Self::String(column) => column,
            Self::NullableString(column) => column,
            Self::LowCardinality(column) => column,
            Self::StringArray(column) => column,
            Self::LowCardinalityArray(column) => column,
            Self::Map(column) => column,
        }
    }
}

impl NativeColumn for AnyColumn {
    fn clickhouse_type(&self) -> &str {
        self.inner().clickhouse_type()
    }
    fn rows(&self) -> usize {
        self.inner().rows()
    }
    fn encoded_len(&self) -> usize {
        self.inner().encoded_len()
    }
    fn encode(&self, out: &mut Vec<u8>) {
        self.inner().encode(out);
    }
    fn clear(&mut self) {
        match self {
            Self::Fixed(Fixed { column, .. }) => column.clear(),
            Self::NullableFixed(column, _) => column.clear(),
            Self::String(column) => column.clear(),
            Self::NullableString(column) => column.clear(),
            Self::LowCardinality(column) => column.clear(),
            Self::StringArray(column) => column.clear(),
            Self::LowCardinalityArray(column) => column.clear(),
            Self::Map(column) => column.clear(),
        }
    }
}

/// The longest `FixedString` that is taken; ids and digests are far shorter.
const FIXED_STRING_BYTES_MAX: usize = 4096;

impl Fixed {
    fn of_type(clickhouse_type: &str) -> Option<Self> {
        let (width, kind) = match clickhouse_type {
            "Bool" | "UInt8" | "Int8" => (1, FixedKind::Integer),
            "UInt16" | "Int16" => (2, FixedKind::Integer),
            "UInt32" | "Int32" | "DateTime" => (4, FixedKind::Integer),
            "UInt64" | "Int64" => (8, FixedKind::Integer),
            "Float64" => (8, FixedKind::Float64),
            "UUID" => (16, FixedKind::Uuid),
            "IPv4" => (4, FixedKind::Integer),
            "IPv6" => (16, FixedKind::Raw),
            other => {
                if let Some(arguments) = inside(other, "DateTime64(") {
                    let precision = arguments.split(',').next().unwrap_or_default().trim();
                    let known = precision.parse::<u8>().is_ok_and(|digits| digits <= 9);
                    known.then_some((8, FixedKind::Integer))?
                } else {
                    let width = inside(other, "FixedString(")?.parse::<usize>().ok()?;
                    let known = (1..=FIXED_STRING_BYTES_MAX).contains(&width);
                    known.then_some((width, FixedKind::Raw))?
                }
            }
        };
        Some(Self { column: FixedColumn::new(clickhouse_type, width), kind })
    }
}

fn inside<'a>(clickhouse_type: &'a str, opening: &str) -> Option<&'a str> {
    clickhouse_type.strip_prefix(opening)?.strip_suffix(')')
}

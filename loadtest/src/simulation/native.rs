//! Reads blocks of ClickHouse's `Native` format, of the types that our tables' blocks have: what a store is sent is judged
//! by what it says, not by what the sender meant.

use anyhow::{Context as _, bail, ensure};

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// A cell of a fixed width, little-endian.
    Fixed(Vec<u8>),
    /// A text.
    Text(String),
}

impl Cell {
    /// As a number; a text is none.
    pub(super) fn number(&self) -> u64 {
        match self {
            Self::Fixed(bytes) => {
                bytes.iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
            }
            Self::Text(_) => 0,
        }
    }

    /// As sixteen bytes.
    pub(super) fn sixteen(&self) -> [u8; 16] {
        match self {
            Self::Fixed(bytes) => bytes.as_slice().try_into().unwrap_or_default(),
            Self::Text(_) => [0; 16],
        }
    }

    /// As a text.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Fixed(_) => "",
            Self::Text(text) => text,
        }
    }
}

/// The columns that were asked for, in that order, each with all of its cells.
pub(super) fn columns(mut bytes: &[u8], wanted: &[&str]) -> anyhow::Result<Vec<Vec<Cell>>> {
    let from = &mut bytes;
    let (count, rows) = (varuint(from)?, varuint(from)?);
    let mut found: Vec<Vec<Cell>> = vec![Vec::new(); wanted.len()];
    for _column in 0..count {
        let (name, kind) = (text(from)?, text(from)?);
        let place = wanted.iter().position(|column| *column == name);
        let cells = cells(from, &kind, rows, place.is_some()).with_context(|| name.clone())?;
        if let Some(place) = place.and_then(|place| found.get_mut(place)) {
            *place = cells;
        }
    }
    ensure!(from.is_empty(), "{} bytes are left over", from.len());
    for (name, cells) in wanted.iter().zip(&found) {
        ensure!(cells.len() == rows, "column {name} is missing");
    }
    Ok(found)
}

fn cells(from: &mut &[u8], kind: &str, rows: usize, wanted: bool) -> anyhow::Result<Vec<Cell>> {
    if kind == "String" {
        return (0..rows).map(|_row| text(from).map(Cell::Text)).collect();
    }
    if kind == "LowCardinality(String)" {
        ensure!(number(from, 8)? == 1, "the version of the keys");
        let width = 1 << (number(from, 8)? & 0xff);
        let keys = number(from, 8)?;
        let keys = (0..keys).map(|_key| text(from)).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(number(from, 8)? == rows as u64, "the number of indices");
        return (0..rows)
            .map(|_row| {
                let index = usize::try_from(number(from, width)?)?;
                let key = keys.get(index).context("an index beyond the keys")?;
                Ok(if wanted { Cell::Text(key.clone()) } else { Cell::Fixed(Vec::new()) })
            })
            .collect();
    }
    let width = match kind {
        "UInt8" | "Int8" | "Bool" => 1,
        "UInt16" | "Int16" => 2,
        "UInt32" | "Int32" | "Float32" | "DateTime('UTC')" => 4,
        "UInt64" | "Int64" | "Float64" => 8,
        "FixedString(16)" | "UUID" | "IPv6" => 16,
        other if other.starts_with("DateTime64(") => 8,
        other => bail!("the type {other} is not known"),
    };
    let all = take(from, rows * width)?;
    Ok(if wanted { all.chunks(width).map(|cell| Cell::Fixed(cell.to_vec())).collect() } else { Vec::new() })
}

fn take<'a>(from: &mut &'a [u8], bytes: usize) -> anyhow::Result<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(bytes).context("the block is cut short")?;
    *from = rest;
    Ok(taken)
}

fn number(from: &mut &[u8], width: usize) -> anyhow::Result<u64> {
    Ok(take(from, width)?.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// LEB128.
fn varuint(from: &mut &[u8]) -> anyhow::Result<usize> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = number(from, 1)?;
        value |= (byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Ok(usize::try_from(value)?);
        }
        ensure!(shift < 63, "a length is too long");
    }
}

fn text(from: &mut &[u8]) -> anyhow::Result<String> {
    let length = varuint(from)?;
    Ok(String::from_utf8_lossy(take(from, length)?).into_owned())
}

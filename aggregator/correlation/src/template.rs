//! Sentences with places for what the evidence says. The compiler parses them, the narrative renders them.

use rkyv::{Archive, Deserialize, Serialize};

/// A parsed sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Template {
    /// Its parts, in order.
    pub parts: Vec<Part>,
}

/// A part of a sentence.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Part {
    /// Text as it stands.
    Text(String),
    /// What the evidence of a step says.
    Place(Place),
    /// Here begins a part that is left out unless all of its places have a value.
    Open,
    /// Here such a part ends.
    Close,
}

/// What of which step's evidence.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Place {
    /// The step's place in the rule.
    pub step: u32,
    /// What of it.
    pub what: What,
    /// How it is written.
    pub unit: Unit,
}

/// What a place shows.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum What {
    /// The name of who the evidence is about.
    Name,
    /// The name of the other side.
    Peer,
    /// How many occurrences; no value for a single one.
    Count,
    /// The first trace, shortened; no value where none is known.
    Trace,
    /// What happened, in the step's words, each with its count.
    Words,
    /// A field of the first occurrence; no value where it is absent.
    Field(String),
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Unit {
    /// As it is.
    Plain,
    /// A size: `64 MiB`.
    Bytes,
    /// A size per second: `3.1 MiB/s`.
    BytesPerSecond,
}

impl Template {
    /// The fields that it names.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Place(Place { what: What::Field(name), .. }) => Some(name.as_str()),
            _ => None,
        })
    }
}

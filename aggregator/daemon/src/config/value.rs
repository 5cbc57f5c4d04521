//! What was written for a key, and where.

use std::fmt;

use super::key::Shape;

/// A value of the shape that its key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Integer(u64),
    List(Vec<String>),
}

/// Where a value comes from; what comes later wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Default,
    Line(usize),
    Variable(String),
    Flag(String),
}

impl Origin {
    /// What is later wins.
    pub(super) const fn layer(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::Line(_) => 1,
            Self::Variable(_) => 2,
            Self::Flag(_) => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::Line(line) => write!(formatter, "line {line}"),
            Self::Variable(name) => write!(formatter, "variable {name}"),
            Self::Flag(name) => write!(formatter, "option --{name}"),
        }
    }
}

impl Value {
    /// Reads a value from a variable or option: a list's entries stand between commas.
    pub(super) fn from_words(shape: Shape, text: &str) -> Result<Self, String> {
        match shape {
            Shape::Integer { least, most } => match text.trim().parse::<u64>() {
                Ok(number) => Self::Integer(number).fits(shape),
                Err(_no_number) => Err(format!("must be a whole number from {least} to {most}")),
            },
            Shape::List { .. } => {
                let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
                Self::List(entries.map(str::to_owned).collect()).fits(shape)
            }
            Shape::Text | Shape::Path | Shape::Choice(_) => Self::Text(text.to_owned()).fits(shape),
        }
    }

    /// The value, if its key can have it.
    pub(super) fn fits(self, shape: Shape) -> Result<Self, String> {
        match (shape, &self) {
            (Shape::Text | Shape::Path, Self::Text(text)) if text.is_empty() => {
                Err("must not be empty".to_owned())
            }
            (Shape::Text | Shape::Path, Self::Text(_)) => Ok(self),
            (Shape::Integer { least, most }, Self::Integer(number)) => {
                match (least..=most).contains(number) {
                    true => Ok(self),
                    false => Err(format!("must be {least} to {most}, is {number}")),
                }
            }
            (Shape::Choice(words), Self::Text(text)) => match words.contains(&text.as_str()) {
                true => Ok(self),
                false => Err(format!("{text:?} must be one of {}", words.join(", "))),
            },
            (Shape::List { entries_min, entries_max }, Self::List(entries)) => {
                match (entries_min..=entries_max).contains(&entries.len()) {
                    true => Ok(self),
                    false => Err(format!(
                        "must have {entries_min} to {entries_max} entries, has {}",
                        entries.len()
                    )),
                }
            }
            (shape, _) => Err(format!("must be {}", shape.noun())),
        }
    }

    /// As TOML.
    pub(super) fn to_toml(&self) -> String {
        match self {
            Self::Text(text) => toml::Value::from(text.as_str()).to_string(),
            Self::Integer(number) => number.to_string(),
            Self::List(entries) => {
                let entries: Vec<String> =
                    entries.iter().map(|entry| toml::Value::from(entry.as_str()).to_string()).collect();
                format!("[{}]", entries.join(", "))
            }
        }
    }
}

impl Shape {
    /// What it is called in a message.
    pub(super) const fn noun(self) -> &'static str {
        match self {
            Self::Text | Self::Choice(_) => "a string",
            Self::Path => "a path in quotes",
            Self::Integer { .. } => "a whole number",
            Self::List { .. } => "a list of strings",
        }
    }
}

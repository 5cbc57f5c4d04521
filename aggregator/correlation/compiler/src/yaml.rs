//! A YAML document as a tree in which every node knows its place, so that all faults can be told with it.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

use crate::fault::Fault;

/// The deepest nesting that a rule file may have.
const DEPTH_MAX: u32 = 16;

/// A node with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: u64,
    pub(crate) column: u64,
    pub(crate) value: Yaml,
}

/// What a node is.
#[derive(Clone, Debug)]
pub(crate) enum Yaml {
    Null,
    Integer(i64),
    /// Every other scalar, as it was written.
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
}

/// Reads one document.
pub(crate) fn parse(file: &str, text: &str) -> Result<Node, Fault> {
    let root: Node = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location();
        let message = error.to_string();
        Fault {
            file: file.to_owned(),
            line: place.map_or(0, |place| place.line()),
            column: place.map_or(0, |place| place.column()),
            message: format!("no YAML: {}", message.lines().next().unwrap_or_default()),
        }
    })?;
    check_depth(file, &root, DEPTH_MAX)?;
    Ok(root)
}

fn check_depth(file: &str, node: &Node, left: u32) -> Result<(), Fault> {
    let Some(left) = left.checked_sub(1) else {
        let message = format!("is nested deeper than {DEPTH_MAX}");
        return Err(Fault { file: file.to_owned(), line: node.line, column: node.column, message });
    };
    match &node.value {
        Yaml::List(nodes) => nodes.iter().try_for_each(|node| check_depth(file, node, left)),
        Yaml::Map(entries) => entries.iter().try_for_each(|(_key, node)| check_depth(file, node, left)),
        _ => Ok(()),
    }
}

impl Node {
    /// What it is, for a person.
    pub(crate) fn sort(&self) -> &'static str {
        match self.value {
            Yaml::Null => "nothing",
            Yaml::Integer(_) => "a number",
            Yaml::Text(_) => "a text",
            Yaml::List(_) => "a list",
            Yaml::Map(_) => "a map",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned: Spanned<Yaml> = Spanned::deserialize(deserializer)?;
        let place = spanned.referenced;
        Ok(Self { line: place.line(), column: place.column(), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Yaml;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any YAML value")
            }
            fn visit_unit<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Null)
            }
            fn visit_none<E>(self) -> Result<Yaml, E> {
                Ok(Yaml::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
                Yaml::deserialize(deserializer)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
                Ok(Yaml::Text(value.to_string()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
                Ok(Yaml::Integer(value))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
                Ok(i64::try_from(value).map_or_else(|_error| Yaml::Text(value.to_string()), Yaml::Integer))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
                Ok(Yaml::Text(value.to_string()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Yaml, E> {
                Ok(Yaml::Text(text.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Yaml, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = list.next_element::<Node>()? {
                    nodes.push(node);
                }
                Ok(Yaml::List(nodes))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<Node, Node>()? {
                    entries.push(entry);
                }
                Ok(Yaml::Map(entries))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

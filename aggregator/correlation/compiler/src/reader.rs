//! Reading a tree without stopping at the first fault: each getter notes what is wrong and gives what it can.

use crate::{
    fault::{Fault, suggestion},
    yaml::{Node, Yaml},
};

/// A file being read, and its faults so far.
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a str,
    text: &'a str,
    pub(crate) faults: Vec<Fault>,
}

/// A map whose keys are known.
pub(crate) struct Fields<'n> {
    at: &'n Node,
    entries: Vec<(&'n str, &'n Node)>,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(file: &'a str, text: &'a str) -> Self {
        Self { file, text, faults: Vec::new() }
    }

    /// The place of a character within a scalar: a quoted one begins after its quote.
    pub(crate) fn place_within(&self, node: &Node, offset: u64) -> Fault {
        let line =
            usize::try_from(node.line).ok().and_then(|line| self.text.lines().nth(line.checked_sub(1)?));
        let column = usize::try_from(node.column).ok().and_then(|column| column.checked_sub(1));
        let first = line.zip(column).and_then(|(line, column)| line.chars().nth(column));
        let quote = u64::from(matches!(first, Some('"' | '\'')));
        let mut place = self.place(node);
        place.column = place.column.saturating_add(quote).saturating_add(offset);
        place
    }

    pub(crate) fn place(&self, node: &Node) -> Fault {
        Fault { file: self.file.to_owned(), line: node.line, column: node.column, message: String::new() }
    }

    pub(crate) fn refuse(&mut self, node: &Node, message: impl Into<String>) {
        let fault = self.place(node).saying(message.into());
        self.faults.push(fault);
    }

    /// The entries of a map; keys that are not in `known`, or appear twice, are refused.
    pub(crate) fn fields<'n>(&mut self, node: &'n Node, what: &str, known: &[&str]) -> Fields<'n> {
        let mut fields = Fields { at: node, entries: Vec::new() };
        let Yaml::Map(entries) = &node.value else {
            self.refuse(node, format!("{what} must be a map, this is {}", node.sort()));
            return fields;
        };
        for (key, value) in entries {
            let Yaml::Text(name) = &key.value else {
                self.refuse(key, format!("a key of {what} must be a text"));
                continue;
            };
            if !known.contains(&name.as_str()) {
                let hint = suggestion(name, known.iter().copied());
                self.refuse(key, format!("{what} has no key `{name}`{hint}; it has: {}", known.join(", ")));
            } else if fields.entries.iter().any(|(other, _value)| other == name) {
                self.refuse(key, format!("the key `{name}` appears twice"));
            } else {
                fields.entries.push((name, value));
            }
        }
        fields
    }

    pub(crate) fn require<'n>(&mut self, fields: &Fields<'n>, key: &str, what: &str) -> Option<&'n Node> {
        let found = fields.get(key);
        if found.is_none() {
            self.refuse(fields.at, format!("{what} lacks the key `{key}`"));
        }
        found
    }

    pub(crate) fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Yaml::Text(text) if !text.trim().is_empty() => Some(text.trim()),
            Yaml::Text(_) => {
                self.refuse(node, format!("{what} must not be empty"));
                None
            }
            _ => {
                self.refuse(node, format!("{what} must be a text, this is {}", node.sort()));
                None
            }
        }
    }

    /// One text or a list of texts.
    pub(crate) fn texts<'n>(&mut self, node: &'n Node, what: &str) -> Vec<(&'n Node, &'n str)> {
        match &node.value {
            Yaml::List(nodes) => {
                let texts = nodes.iter().map(|node| self.text(node, what).map(|text| (node, text)));
                texts.collect::<Vec<_>>().into_iter().flatten().collect()
            }
            _ => self.text(node, what).map(|text| (node, text)).into_iter().collect(),
        }
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&mut self, node: &Node, what: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(node, what)?;
        let found = choices.iter().find(|(name, _value)| *name == text).map(|(_name, value)| *value);
        if found.is_none() {
            let names: Vec<&str> = choices.iter().map(|(name, _value)| *name).collect();
            self.refuse(node, format!("{what} `{text}` is none of: {}", names.join(", ")));
        }
        found
    }
}

impl<'n> Fields<'n> {
    pub(crate) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entries.iter().find(|(name, _node)| *name == key).map(|(_name, node)| *node)
    }
}

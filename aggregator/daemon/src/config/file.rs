//! A configuration file's text to the values of its keys, with the lines on which they stand.

use std::collections::BTreeSet;

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    key::{Key, Shape, Tier},
    problems::{Place, Problems},
    value::{Origin, Value},
};

/// Reads all keys that `text` gives; what is wrong goes to `problems`. `None` where it is no TOML at all.
pub(super) fn read(
    tier: &Tier,
    text: &str,
    problems: &mut Problems,
) -> Option<Vec<(&'static Key, Value, Origin)>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map(|span| line_of(text, span.start));
        problems.add_at(Place::Line(line.unwrap_or(1)), "", error.message().trim());
    }
    if !errors.is_empty() {
        return None;
    }
    let mut reader = Reader { tier, text, problems, given: Vec::new() };
    reader.table("", document.get_ref());
    Some(reader.given)
}

struct Reader<'a> {
    tier: &'a Tier,
    text: &'a str,
    problems: &'a mut Problems,
    given: Vec<(&'static Key, Value, Origin)>,
}

impl Reader<'_> {
    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let path = match prefix {
                "" => name.get_ref().to_string(),
                prefix => format!("{prefix}.{}", name.get_ref()),
            };
            let line = line_of(self.text, name.span().start);
            match (self.tier.key(&path), value.get_ref()) {
                (Some(key), _) => self.value(key, line, value),
                (None, DeValue::Table(table)) if self.has_table(&path) => self.table(&path, table),
                (None, _) => {
                    let reason = self.unknown(prefix, &path);
                    self.problems.add_at(Place::Line(line), &path, reason);
                }
            }
        }
    }

    fn value(&mut self, key: &'static Key, line: usize, value: &Spanned<DeValue<'_>>) {
        let read = match (key.shape, value.get_ref()) {
            (Shape::Integer { least, most }, DeValue::Integer(number)) => {
                u64::from_str_radix(number.as_str(), number.radix())
                    .map_err(|_out_of_range| format!("must be {least} to {most}, is {number}"))
                    .map(Value::Integer)
            }
            (Shape::List { .. }, DeValue::Array(entries)) => {
                let mut texts = Vec::new();
                for (index, entry) in entries.iter().enumerate() {
                    match entry.get_ref().as_str() {
                        Some(text) => texts.push(text.to_owned()),
                        None => {
                            let place = Place::Line(line_of(self.text, entry.span().start));
                            let reason = format!("must be a string, is {}", article(entry.get_ref()));
                            self.problems.add_at(place, format!("{}[{index}]", key.path), reason);
                        }
                    }
                }
                Ok(Value::List(texts))
            }
            (Shape::Text | Shape::Path | Shape::Choice(_), DeValue::String(text)) => {
                Ok(Value::Text(text.to_string()))
            }
            (shape, other) => Err(format!("must be {}, is {}", shape.noun(), article(other))),
        };
        match read.and_then(|value| value.fits(key.shape)) {
            Ok(value) => self.given.push((key, value, Origin::Line(line))),
            Err(reason) => self.problems.add_at(Place::Line(line), key.path, reason),
        }
    }

    fn has_table(&self, path: &str) -> bool {
        self.tier.keys.iter().any(|key| key.table_and_name().0 == path)
    }

    fn unknown(&self, prefix: &str, path: &str) -> String {
        let tables: BTreeSet<&str> = self.tier.keys.iter().map(|key| key.table_and_name().0).collect();
        let names: Vec<&str> = self
            .tier
            .keys
            .iter()
            .map(Key::table_and_name)
            .filter_map(|(table, name)| (table == prefix).then_some(name))
            .collect();
        if prefix.is_empty() {
            let tables: Vec<&str> = tables.into_iter().collect();
            format!("there is no such table; there are {}", tables.join(", "))
        } else if self.tier.key(prefix).is_some() {
            format!("{prefix} is no table")
        } else {
            let name = path.rsplit('.').next().unwrap_or(path);
            format!("there is no key {name}; [{prefix}] has {}", names.join(", "))
        }
    }
}

fn article(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The line, from 1, of a place in the text.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|&byte| byte == b'\n').count() + 1
}

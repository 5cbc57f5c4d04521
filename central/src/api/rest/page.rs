//! Paging by keyset: a cursor names the last row that was seen, so a page stays right while rows are inserted.
//!
//! It also carries the time of the first page's request: a length before now (`since=15m`, or the default) means the
//! same on every page, so that nothing leaves the window between two of them.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tapio_schemas::units::UnixMicros;

/// Rows of a page when nothing is asked for.
pub const LIMIT_DEFAULT: u32 = 100;
/// Rows of a page at most.
pub const LIMIT_MAX: u32 = 1_000;
/// A longer text is no cursor. The longest id is an entity's: a cluster, a kind and up to three names, escaped.
pub const CURSOR_CHARS_MAX: usize = 4_096;

/// Which rows a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many, at most.
    pub limit: u32,
    /// After which row.
    pub cursor: Option<Cursor>,
    /// When the first page was asked for.
    pub asked_at: UnixMicros,
}

impl Page {
    /// The first `limit` rows, asked for at `now`.
    #[must_use]
    pub const fn first(limit: u32, now: UnixMicros) -> Self {
        Self { limit, cursor: None, asked_at: now }
    }
}

/// The last row of a page: its time and its id, which together order every list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The list that the row stands in: another list's cursor means nothing.
    pub list: &'static str,
    /// When the first page was asked for.
    pub asked_at: UnixMicros,
    /// The row's time.
    pub at: UnixMicros,
    /// The row's id.
    pub id: String,
}

/// A cursor's text names its version, so that a later form can be told apart.
const VERSION: &str = "1";

impl fmt::Display for Cursor {
    /// Only characters that stand for themselves in a URL, so that the text can be passed on as it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{VERSION}.{:x}.{:x}.", self.list, self.asked_at.0, self.at.0)?;
        for byte in self.id.bytes() {
            if is_plain(byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "~{byte:02x}")?;
            }
        }
        Ok(())
    }
}

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

impl Cursor {
    /// The cursor of `list` whose text this is, if it is one.
    #[must_use]
    pub fn parse(list: &'static str, text: &str) -> Option<Self> {
        if text.len() > CURSOR_CHARS_MAX {
            return None;
        }
        let mut parts = text.splitn(5, '.');
        let mut next = || parts.next();
        if next()? != list || next()? != VERSION {
            return None;
        }
        let (asked_at, at, id) = (micros(next()?)?, micros(next()?)?, unescape(next()?)?);
        (!id.is_empty()).then_some(Self { list, asked_at, at, id })
    }
}

/// A cursor of `list` whose ids have the form `id`, as a regular expression.
pub(crate) fn cursor_pattern(list: &str, id: &str) -> String {
    format!("^{list}\\.{VERSION}\\.[0-9a-f]{{1,15}}\\.[0-9a-f]{{1,15}}\\.{id}$")
}

/// Any id as a cursor carries it, as a regular expression: plain characters, and the bytes of UTF-8 that are escaped.
pub(crate) const ESCAPED_ID: &str = "([A-Za-z0-9._-]|~[0-7][0-9a-f]|~(c[2-9a-f]|d[0-9a-f])~[89ab][0-9a-f]\
    |~(e0~[ab]|e[1-9abcef]~[89ab]|ed~[89])[0-9a-f]~[89ab][0-9a-f]\
    |~(f0~[9ab]|f[1-3]~[89ab]|f4~8)[0-9a-f](~[89ab][0-9a-f]){2})+";

/// The engine counts microseconds in a signed number; fifteen digits are enough for any.
fn micros(text: &str) -> Option<UnixMicros> {
    let digits = (1..=15).contains(&text.len()) && text.bytes().all(is_hexadecimal);
    let number = u64::from_str_radix(text, 16).ok()?;
    digits.then_some(UnixMicros(number))
}

const fn is_hexadecimal(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'~' {
            let digits = [rest.next()?, rest.next()?];
            if !digits.into_iter().all(is_hexadecimal) {
                return None;
            }
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else if is_plain(byte) {
            bytes.push(byte);
        } else {
            return None;
        }
    }
    String::from_utf8(bytes).ok()
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "ListOf{T}")]
pub struct List<T> {
    /// The rows, in the list's order.
    pub items: Vec<T>,
    /// What to pass as `cursor` for the next page; null at the end.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// The page of `rows`, of which one more than `page.limit` was asked for, to know whether another page follows.
    /// `key_of` gives the time and the id that order the list.
    #[must_use]
    pub fn of(
        list: &'static str,
        mut rows: Vec<T>,
        page: &Page,
        key_of: impl Fn(&T) -> (UnixMicros, String),
    ) -> Self {
        let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let cursor_of = |row| {
            let (at, id) = key_of(row);
            Cursor { list, asked_at: page.asked_at, at, id }.to_string()
        };
        let next_cursor = rows.last().filter(|_| more).map(cursor_of);
        Self { items: rows, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a cursor comes back, unchanged; ids of every kind of character.
    /// Guarantees: it is read as it was given, by its own list only, and needs no escaping in a URL.
    #[test]
    fn cursors_round_trip() {
        for id in ["f-71aa", "a/pod/x y", "node/7/Deployment|[::1]:80", "ä🦀~'\\%+&", "~~2f"] {
            let cursor = Cursor {
                list: "findings",
                asked_at: UnixMicros(1_800_000_000_000_000),
                at: UnixMicros(1_700_000_000_000_000),
                id: id.to_owned(),
            };
            let text = cursor.to_string();
            assert!(text.bytes().all(|byte| is_plain(byte) || byte == b'~'), "{text}");
            assert_eq!(Cursor::parse("events", &text), None);
            assert_eq!(Cursor::parse("findings", &text), Some(cursor));
        }
    }

    /// Scenario: texts that are almost cursors.
    /// Guarantees: none is read, none panics.
    #[test]
    fn other_texts_are_no_cursors() {
        for rest in [
            "",
            "1",
            "1.",
            "1.1.1.",
            "1.1.zz.a",
            "2.1.1.a",
            "1.zz.1.a",
            "1.1.1.a'b",
            "1.1.ffffffffffffffff.a",
        ] {
            assert_eq!(Cursor::parse("l", &format!("l.{rest}")), None, "{rest:?}");
        }
        for times in ["+1.1", "1.A", "1.", ".1", "0000000000000001.1"] {
            assert_eq!(Cursor::parse("l", &format!("l.1.{times}.a")), None, "{times:?}");
        }
        for id in ["~+f", "~2F", "~", "~2", "~zz", "~ff", "~ä", "a b", "a/b", "🦀"] {
            assert_eq!(Cursor::parse("l", &format!("l.1.1.1.{id}")), None, "{id:?}");
        }
        assert_eq!(Cursor::parse("l", &format!("l.1.1.1.{}", "a".repeat(CURSOR_CHARS_MAX))), None);
    }

    /// Scenario: one row more than the page holds, and exactly as many.
    /// Guarantees: a next cursor appears only when there is a next row.
    #[test]
    fn the_last_page_has_no_cursor() {
        let page = Page { limit: 2, cursor: None, asked_at: UnixMicros(15) };
        let key_of = |row: &u64| (UnixMicros(*row), row.to_string());
        assert_eq!(List::of("l", vec![3, 2, 1], &page, key_of).next_cursor.as_deref(), Some("l.1.f.2.2"));
        assert_eq!(List::of("l", vec![3, 2], &page, key_of), List { items: vec![3, 2], next_cursor: None });
    }
}

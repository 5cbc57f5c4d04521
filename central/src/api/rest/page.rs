//! Paging by keyset: a cursor names the last row that was seen, so a page stays right while rows are inserted.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tapio_schemas::units::UnixMicros;

/// Rows of a page when nothing is asked for.
pub const LIMIT_DEFAULT: u32 = 100;
/// Rows of a page at most.
pub const LIMIT_MAX: u32 = 1_000;
/// A longer text is no cursor.
pub const CURSOR_CHARS_MAX: usize = 256;

/// Which rows a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many, at most.
    pub limit: u32,
    /// After which row.
    pub cursor: Option<Cursor>,
}

/// The last row of a page: its time and its id, which together order every list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The row's time.
    pub at: UnixMicros,
    /// The row's id.
    pub id: String,
}

/// A cursor's text names its version first, so that a later form can be told apart.
const VERSION: &str = "1.";

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}{:x}.{}", self.at.0, self.id)
    }
}

impl FromStr for Cursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, id) = text.strip_prefix(VERSION).and_then(|rest| rest.split_once('.')).ok_or(())?;
        let at = u64::from_str_radix(at, 16).map_err(|_err| ())?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_:/.|[]".contains(&byte);
        // The engine counts microseconds in a signed number.
        if id.is_empty() || !id.bytes().all(plain) || i64::try_from(at).is_err() {
            return Err(());
        }
        Ok(Self { at: UnixMicros(at), id: id.to_owned() })
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct List<T> {
    /// The rows, newest first.
    pub items: Vec<T>,
    /// What to pass as `cursor` for the next page; absent at the end.
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// The page of `rows`, of which one more than `page.limit` was asked for, to know whether another page follows.
    #[must_use]
    pub fn of(mut rows: Vec<T>, page: &Page, cursor_of: impl Fn(&T) -> Cursor) -> Self {
        let limit = usize::try_from(page.limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|row| cursor_of(row).to_string());
        Self { items: rows, next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a cursor comes back, changed or not.
    /// Guarantees: the exact text is read, anything else is refused.
    #[test]
    fn cursors_round_trip() {
        let cursor = Cursor { at: UnixMicros(1_700_000_000_000_000), id: "f-71aa".to_owned() };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in ["", "1.", "1.zz.a", "2.1.a", "1.1.", "1.1.a'b", "1.ffffffffffffffff.a"] {
            assert_eq!(text.parse::<Cursor>(), Err(()), "{text:?}");
        }
    }

    /// Scenario: one row more than the page holds, and exactly as many.
    /// Guarantees: a next cursor appears only when there is a next row.
    #[test]
    fn the_last_page_has_no_cursor() {
        let page = Page { limit: 2, cursor: None };
        let cursor_of = |row: &u64| Cursor { at: UnixMicros(*row), id: row.to_string() };
        assert_eq!(List::of(vec![3, 2, 1], &page, cursor_of).next_cursor.as_deref(), Some("1.2.2"));
        assert_eq!(List::of(vec![3, 2], &page, cursor_of), List { items: vec![3, 2], next_cursor: None });
    }
}

//! Query parameters: taken one by one, every fault reported, unknown names refused.

use std::{fmt::Display, str::FromStr};

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use tapio_schemas::units::{Micros, UnixMicros};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    page::{CURSOR_CHARS_MAX, Cursor, LIMIT_DEFAULT, LIMIT_MAX, Page},
    problem::{ParameterError, Problem},
};

/// No value is longer: nothing that is stored has a longer name, and a query must fit the store's URL.
pub(crate) const VALUE_CHARS_MAX: usize = 1_024;
/// A request with more parameters is refused whole: each unknown one would be told of.
const PARAMETERS_MAX: usize = 32;
/// Of a value that is refused, at most this much is repeated.
const REPEATED_CHARS_MAX: usize = 64;

/// A length before now has at most this many digits.
pub(crate) const LENGTH_DIGITS_MAX: usize = 19;

/// The parameters of one request, as they came.
pub struct Params {
    given: Vec<(String, String)>,
    known: Vec<&'static str>,
    errors: Vec<ParameterError>,
    now: UnixMicros,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Query(given) = Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|error| Problem::parameters(vec![ParameterError::new("query", error.body_text())]))?;
        if given.len() > PARAMETERS_MAX {
            let reason =
                format!("it has {} parameters; no resource takes more than {PARAMETERS_MAX}", given.len());
            return Err(Problem::parameters(vec![ParameterError::new("query", reason)]));
        }
        let undecoded = undecoded(&given, parts.uri.query().unwrap_or_default());
        if !undecoded.is_empty() {
            return Err(Problem::parameters(undecoded));
        }
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000;
        Ok(Self::new(given, UnixMicros(u64::try_from(now).unwrap_or_default())))
    }
}

/// The parameters whose escapes are no UTF-8: decoding replaced what nobody wrote.
fn undecoded(given: &[(String, String)], query: &str) -> Vec<ParameterError> {
    let is_written =
        query.contains(char::REPLACEMENT_CHARACTER) || query.to_ascii_uppercase().contains("%EF%BF%BD");
    let is_replaced = |text: &str| !is_written && text.contains(char::REPLACEMENT_CHARACTER);
    given
        .iter()
        .filter(|(name, value)| is_replaced(name) || is_replaced(value))
        .map(|(name, _value)| ParameterError::new(name.as_str(), "its escapes (%) are no UTF-8 text"))
        .collect()
}

impl Params {
    /// The parameters `given`, relative times counted back from `now`.
    #[must_use]
    pub const fn new(given: Vec<(String, String)>, now: UnixMicros) -> Self {
        Self { given, known: Vec::new(), errors: Vec::new(), now }
    }

    /// The text of the parameter `name`, if it was given.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.bounded(name, VALUE_CHARS_MAX)
    }

    fn bounded(&mut self, name: &'static str, chars_max: usize) -> Option<String> {
        self.known.push(name);
        let mut values = Vec::new();
        self.given.retain(|(key, value)| {
            let mine = key == name;
            if mine {
                values.push(value.clone());
            }
            !mine
        });
        if values.len() > 1 {
            self.refuse(name, format!("it is given {} times; give it once", values.len()));
            return None;
        }
        let value = values.pop()?;
        if value.is_empty() {
            self.refuse(name, "it is empty; leave it out or give a value");
            return None;
        }
        if value.chars().count() > chars_max {
            self.refuse(name, format!("it is longer than {chars_max} characters"));
            return None;
        }
        Some(value)
    }

    /// The parameter `name` as a `T`; `expected` says what would be accepted.
    pub fn parse<T: FromStr>(&mut self, name: &'static str, expected: &str) -> Option<T> {
        let text = self.text(name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.refuse(name, format!("{} is not {expected}", quoted(&text)));
        }
        value
    }

    /// The parameter `name` as one of `names`.
    pub fn one_of<T: Copy>(
        &mut self,
        name: &'static str,
        all: &[T],
        name_of: impl Fn(T) -> &'static str,
    ) -> Option<T> {
        let text = self.text(name)?;
        let found = all.iter().copied().find(|value| name_of(*value) == text);
        if found.is_none() {
            let names: Vec<_> = all.iter().map(|value| name_of(*value).to_owned()).collect();
            let reason = format!("{} is none of {}", quoted(&text), names.join(", "));
            self.errors.push(ParameterError { allowed: names, ..ParameterError::new(name, reason) });
        }
        found
    }

    /// A time: RFC 3339, or a length before now (`90s`, `15m`, `2h`, `7d`).
    pub fn time(&mut self, name: &'static str) -> Option<UnixMicros> {
        let text = self.text(name)?;
        let time = parse_time(&text, self.now);
        if time.is_none() {
            self.refuse(
                name,
                format!(
                    "{} is no time; write 2026-01-31T12:00:00Z, or a length before now such as 90s, 15m, 2h, 7d",
                    quoted(&text)
                ),
            );
        }
        time
    }

    /// The parameters `limit` and `cursor` of the list called `list`. To be read before any time: lengths before now
    /// count from the request for the first page.
    pub fn page(&mut self, list: &'static str) -> Page {
        let expected = format!("a whole number from 1 to {LIMIT_MAX}");
        let limit = self.text("limit").map_or(Some(LIMIT_DEFAULT), |text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            let limit = text.parse().ok().filter(|limit| digits && (1..=LIMIT_MAX).contains(limit));
            if limit.is_none() {
                self.refuse("limit", format!("{} is not {expected}", quoted(&text)));
            }
            limit
        });
        let limit = limit.unwrap_or(LIMIT_DEFAULT);
        let cursor = self.bounded("cursor", CURSOR_CHARS_MAX).and_then(|text| {
            let cursor = Cursor::parse(list, &text);
            if cursor.is_none() {
                self.refuse(
                    "cursor",
                    "it is no cursor of this list; use next_cursor of the page before, unchanged",
                );
            }
            cursor
        });
        if let Some(cursor) = &cursor {
            self.now = cursor.asked_at;
        }
        Page { limit, cursor, asked_at: self.now }
    }

    /// Notes that `name` cannot be used.
    pub fn refuse(&mut self, name: &str, reason: impl Display) {
        self.errors.push(ParameterError::new(name, reason.to_string()));
    }

    /// The time from which lengths before now are counted.
    #[must_use]
    pub const fn now(&self) -> UnixMicros {
        self.now
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When a parameter was refused, or one was given that nobody asked for.
    pub fn finish(mut self) -> Result<(), Problem> {
        let known = self.known.join(", ");
        for (name, _) in std::mem::take(&mut self.given) {
            let reason = if known.is_empty() {
                "this resource takes no parameters".to_owned()
            } else {
                format!("there is no such parameter; there are {known}")
            };
            let name: String = name.chars().take(REPEATED_CHARS_MAX).collect();
            let allowed = self.known.iter().map(|name| (*name).to_owned()).collect();
            self.errors.push(ParameterError { allowed, ..ParameterError::new(name, reason) });
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::parameters(self.errors)) }
    }
}

/// `text` in quotes, cut to what a person needs to recognise it.
fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(REPEATED_CHARS_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// A time before 1970 is the beginning of 1970: nothing that is stored is older.
pub(crate) fn parse_time(text: &str, now: UnixMicros) -> Option<UnixMicros> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Some(UnixMicros(u64::try_from(time.unix_timestamp_nanos() / 1_000).unwrap_or_default()));
    }
    let unit = text.chars().last()?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return None,
    };
    let digits = text.strip_suffix(unit)?;
    if !(1..=LENGTH_DIGITS_MAX).contains(&digits.len()) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(now.minus(Micros::from_secs(number.saturating_mul(seconds))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(given: &[(&str, &str)]) -> Params {
        let given = given.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Params::new(given, UnixMicros(1_000_000_000_000_000))
    }

    /// Scenario: a request with four different mistakes.
    /// Guarantees: all are reported at once, each with its parameter and what would be accepted.
    #[test]
    fn every_mistake_is_reported() {
        let mut params = params(&[
            ("limit", "0"),
            ("cursor", "x"),
            ("since", "yesterday"),
            ("colour", "red"),
            ("state", "open"),
        ]);
        assert_eq!(params.text("state").as_deref(), Some("open"));
        params.page("findings");
        params.time("since");
        let problem = params.finish().unwrap_err();
        let named: Vec<_> = problem.errors.iter().map(|error| error.parameter.as_str()).collect();
        assert_eq!(named, ["limit", "cursor", "since", "colour"]);
        assert_eq!(problem.status, 400);
    }

    /// Scenario: the second page of a list, asked for an hour after the first.
    /// Guarantees: lengths before now still count from the first request.
    #[test]
    fn later_pages_count_from_the_first() {
        let mut params = params(&[("since", "15m"), ("cursor", "l.1.35a4e900.2.x")]);
        assert_eq!(params.page("l").asked_at, UnixMicros(900_000_000));
        assert_eq!(params.time("since"), Some(UnixMicros(0)));
        assert!(params.finish().is_ok());
    }

    /// Scenario: a value of 1,024 letters that are two bytes each, and one with one letter more.
    /// Guarantees: letters are counted, not bytes; the longer is refused, and only its beginning is ever repeated.
    #[test]
    fn values_are_bounded() {
        let fits = "ä".repeat(VALUE_CHARS_MAX);
        let long = format!("{fits}x");
        let mut params = params(&[("node", &long), ("cluster", &fits), ("limit", &long[..500])]);
        assert_eq!(params.text("node"), None);
        assert_eq!(params.text("cluster"), Some(fits));
        params.page("l");
        let problem = params.finish().unwrap_err();
        assert_eq!(problem.errors.len(), 2);
        assert!(problem.errors.iter().all(|error| error.reason.len() < 200));
    }

    /// Scenario: times as people write them.
    /// Guarantees: absolute and relative forms are read, what is before 1970 is its beginning, nonsense is refused.
    #[test]
    fn times_are_absolute_or_relative() {
        let now = UnixMicros(1_000_000_000_000_000);
        assert_eq!(parse_time("15m", now), Some(UnixMicros(now.0 - 900_000_000)));
        assert_eq!(parse_time("1970-01-01T00:00:01Z", now), Some(UnixMicros(1_000_000)));
        for text in ["1969-12-31T00:00:00Z", "0001-01-01T00:00:00+14:00", "9999999999999999999d", "99999d"] {
            assert_eq!(parse_time(text, now), Some(UnixMicros(0)), "{text:?}");
        }
        for text in ["", "m", "-5m", "+5m", " 5m", "15", "99999999999999999999d", "1969-12-31", "5µ"] {
            assert_eq!(parse_time(text, now), None, "{text:?}");
        }
    }
}

//! Requests that cannot be answered: each field at fault, with what is allowed, all at once.

use std::fmt::Display;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

/// Each of `values` once, however often a request repeats it.
pub(super) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut kept = Vec::new();
    for value in values {
        if !kept.contains(&value) {
            kept.push(value);
        }
    }
    kept
}

/// Values that one list of a request may hold.
const VALUES_MAX: usize = 64;

/// What is wrong with a request.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<(&'static str, String)>);

impl Refusals {
    /// Notes that `field` is wrong. Of a field that holds many wrong values the first is told.
    pub(super) fn add(&mut self, field: &'static str, reason: impl Display) {
        if self.0.iter().all(|(known, _)| *known != field) {
            self.0.push((field, reason.to_string()));
        }
    }

    /// Takes a value out of its result, or notes why there is none.
    pub(super) fn check<T, E: Display>(&mut self, field: &'static str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(field, error)).ok()
    }

    /// The language's value of an enumeration's number `M`; numbers that stand for none are refused with all names.
    pub(super) fn enumerated<M: TryFrom<i32>, T>(
        &mut self,
        field: &'static str,
        number: i32,
        name: fn(&M) -> &'static str,
        value: fn(u8) -> Option<T>,
    ) -> Option<T> {
        let known = M::try_from(number).ok().and_then(|_| value(u8::try_from(number).ok()?));
        if known.is_some() {
            return known;
        }
        // The numbers of our enumerations have no gaps.
        let names: Vec<_> = (0..=u8::MAX)
            .map_while(|code| Some((code, M::try_from(code.into()).ok()?)))
            .filter(|(code, _)| value(*code).is_some())
            .map(|(_code, one)| name(&one))
            .collect();
        self.add(field, format_args!("{number} has no meaning; it is one of {}", names.join(", ")));
        None
    }

    /// The values of a list, each once; one that `check` refuses is noted, and so is a list that is too long.
    pub(super) fn all<T, U: PartialEq, E: Display>(
        &mut self,
        field: &'static str,
        values: Vec<T>,
        check: impl Fn(T) -> Result<U, E>,
    ) -> Vec<U> {
        if values.len() > VALUES_MAX {
            self.add(
                field,
                format_args!("{} values are too many: it holds at most {VALUES_MAX}", values.len()),
            );
            return Vec::new();
        }
        distinct(values.into_iter().filter_map(|value| self.check(field, check(value))))
    }

    /// Nothing, or the refusal: in words, and as `google.rpc.BadRequest`.
    pub(super) fn finish(self) -> Result<(), Status> {
        if self.0.is_empty() {
            return Ok(());
        }
        let words: Vec<_> = self.0.iter().map(|(field, reason)| format!("{field}: {reason}")).collect();
        let violations = self.0.into_iter().map(|(field, reason)| FieldViolation::new(field, reason));
        let details = ErrorDetails::with_bad_request(violations.collect::<Vec<_>>());
        Err(Status::with_error_details(Code::InvalidArgument, words.join("; "), details))
    }
}

//! Everything that is wrong with a configuration, each with its key, and where it was written.

use std::fmt;

/// Where a wrong value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// This line of the file, from 1.
    Line(usize),
    /// A variable, an option, or a default, as a person reads it.
    Outside(String),
    /// Nowhere: it is missing, or the key says it all.
    Nowhere,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    place: Place,
    key: String,
    reason: String,
}

/// Everything that is wrong with a configuration, each with its key.
///
/// ```
/// # use tapio_daemon::Problems;
/// let mut problems = Problems::default();
/// problems.add("spool.quota_bytes", "must be at least 1048576");
/// assert!(problems.into_result(()).is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems {
    subject: String,
    list: Vec<Problem>,
}

impl Problems {
    /// Of the configuration in a file; where there is none, of that of a program.
    pub(super) fn of(subject: impl fmt::Display) -> Self {
        Self { subject: subject.to_string(), list: Vec::new() }
    }

    /// Notes that `key` is wrong.
    pub fn add(&mut self, key: impl Into<String>, reason: impl fmt::Display) {
        self.add_at(Place::Nowhere, key, reason);
    }

    pub(super) fn add_at(&mut self, place: Place, key: impl Into<String>, reason: impl fmt::Display) {
        self.list.push(Problem { place, key: key.into(), reason: reason.to_string() });
    }

    /// The keys and what is wrong with each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.list.iter().map(|problem| (problem.key.as_str(), problem.reason.as_str()))
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The value, if nothing is wrong.
    ///
    /// # Errors
    /// With all problems, when there are any.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self.in_order()) }
    }

    /// Those of the file first, in its order.
    pub(super) fn in_order(mut self) -> Self {
        self.list.sort_by(|left, right| left.place.cmp(&right.place));
        self
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.list.len();
        // A file is not to blame for what stands in variables and options alone.
        let is_outside = self.list.iter().all(|problem| matches!(problem.place, Place::Outside(_)));
        let subject = if is_outside { "" } else { self.subject.as_str() };
        let space = if subject.is_empty() { "" } else { " " };
        write!(
            formatter,
            "the configuration{space}{subject} has {count} problem{}",
            if count == 1 { "" } else { "s" }
        )?;
        for Problem { place, key, reason } in &self.list {
            formatter.write_str("\n  ")?;
            match place {
                Place::Line(line) => write!(formatter, "line {line}, ")?,
                Place::Outside(place) => write!(formatter, "{place}, ")?,
                Place::Nowhere => {}
            }
            match key.as_str() {
                "" => write!(formatter, "{reason}")?,
                key => write!(formatter, "{key}: {reason}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

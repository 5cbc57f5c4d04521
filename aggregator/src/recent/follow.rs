//! Following the revisions of findings: each in turn, from now or from a place that was told before.
//!
//! Nobody is waited for: who follows too slowly is told how many revisions it missed.

use std::{fmt, str::FromStr, sync::Arc};

use tapio_schemas::{finding::Finding, units::UnixMicros};
use thiserror::Error;
use tokio::sync::watch;

use super::Recent;

/// A place among the revisions: everything before it has been told. Its text form is for those who come back.
///
/// Places go on over restarts, as the spool of findings keeps them. Which numbering they are of is told along, and when
/// the revision before it was made, so that a place of another state directory is not taken for one of this, nor one of
/// this as it was before it was set back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    pub(super) log: u64,
    pub(super) next: u64,
    /// Zero where there is none, or it is not known any more.
    pub(super) revised_at: UnixMicros,
}

/// A cursor that nothing can be resumed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CursorError {
    /// The text is none.
    #[error("it is no cursor; use the last one of an earlier stream, unchanged, or none")]
    Malformed,
    /// This aggregator has not given it out.
    #[error("it is of another aggregator, or of a state directory that is gone")]
    Foreign,
}

/// The form of a cursor's text, so that a later one can be told apart.
const FORM: &str = "r2";

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{FORM}.{:x}.{:x}.{:x}", self.log, self.next, self.revised_at.0)
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        let mut parts = text.split('.');
        let form = parts.next();
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        match (form, number(), number(), number(), parts.next()) {
            (Some(FORM), Some(log), Some(next), Some(revised_at), None) => {
                Ok(Self { log, next, revised_at: UnixMicros(revised_at) })
            }
            _ => Err(CursorError::Malformed),
        }
    }
}

/// What following begins with.
#[derive(Debug)]
pub struct Following {
    /// The findings as they are at the place, the first announced first.
    pub findings: Vec<Arc<Finding>>,
    /// Revisions behind the cursor that are not kept any more: at most so many.
    pub missed: u64,
    /// What comes.
    pub follower: Follower,
}

/// Takes the revisions in turn.
#[derive(Debug)]
pub struct Follower {
    recent: Recent,
    at: Cursor,
    changed: watch::Receiver<u64>,
}

/// What a follower meets.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// A revision.
    Revision(Arc<Finding>),
    /// So many revisions were let go before the follower came to them.
    Missed(u64),
}

impl Recent {
    /// Follows the revisions behind `cursor`, or from now on.
    ///
    /// # Errors
    /// When the cursor is not of these revisions.
    pub fn follow(&self, cursor: Option<Cursor>) -> Result<Following, CursorError> {
        let inner = self.lock();
        let place_of = |next: u64| {
            let before = next.checked_sub(1).and_then(|place| inner.revision_from(place));
            let exact = before.filter(|(place, _finding)| place + 1 == next);
            let revised_at = exact.map(|(_place, finding)| finding.revised_at).unwrap_or_default();
            Cursor { log: inner.log, next, revised_at }
        };
        let (at, missed) = match cursor {
            None => (place_of(inner.next), 0),
            Some(cursor) => {
                let known = place_of(cursor.next);
                let both = [known.revised_at, cursor.revised_at];
                let is_other = both[0] != both[1] && !both.contains(&UnixMicros(0));
                if cursor.log != inner.log || cursor.next > inner.next || is_other {
                    return Err(CursorError::Foreign);
                }
                let missed = inner.kept_from.saturating_sub(cursor.next);
                (if missed > 0 { place_of(inner.kept_from) } else { cursor }, missed)
            }
        };
        let findings = inner.findings();
        let follower = Follower { recent: self.clone(), at, changed: self.changed.subscribe() };
        Ok(Following { findings, missed, follower })
    }
}

impl Follower {
    /// The place up to which everything was told.
    #[must_use]
    pub const fn cursor(&self) -> Cursor {
        self.at
    }

    /// What comes next. Cancel-safe.
    pub async fn next(&mut self) -> Followed {
        loop {
            // Seen before it is looked at, so that what comes in between wakes.
            self.changed.mark_unchanged();
            if let Some(followed) = self.look() {
                return followed;
            }
            if self.changed.changed().await.is_err() {
                // The sender is held by `recent`, which we hold.
                return std::future::pending().await;
            }
        }
    }

    fn look(&mut self) -> Option<Followed> {
        let inner = self.recent.lock();
        let missed = inner.kept_from.saturating_sub(self.at.next);
        if missed > 0 {
            self.at = Cursor { log: inner.log, next: inner.kept_from, revised_at: UnixMicros(0) };
            return Some(Followed::Missed(missed));
        }
        let (place, finding) = inner.revision_from(self.at.next)?;
        self.at = Cursor { log: inner.log, next: place + 1, revised_at: finding.revised_at };
        Some(Followed::Revision(Arc::clone(finding)))
    }
}

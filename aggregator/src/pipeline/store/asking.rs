//! What the feeder asks the store before it writes: which frames it has.
//!
//! Only after the marks on this disk were lost, or a crash left a block half known. While the store is away it is asked
//! again and again, as inserts are.

use tapio_store::client::{Advice, ClientError};

use super::{FeedError, Feeder, RETRY_PAUSE_MIN};
use crate::{
    clock::now,
    pipeline::{cut::Cut, history::History},
};

impl Feeder {
    /// Asks the store which frames it has, where the marks were made anew; false when stopped before it answered.
    pub(super) fn learn(&mut self) -> Result<bool, FeedError> {
        if !self.stored.is_anew {
            return Ok(true);
        }
        let asked = self.ask(async |history| history.last_frames().await);
        let Some(answer) = asked else { return Ok(false) };
        let (frames, now) = (answer.unwrap_or_default(), now());
        if !frames.is_empty() {
            tracing::warn!(
                sources = frames.len(),
                "the marks are new: what the store has is not stored again"
            );
        }
        for (source, position) in frames {
            self.stored.note(source, position, now);
            self.positions.stored(source, position);
        }
        self.stored.is_anew = false;
        self.note_stored()
    }

    /// Whether the store has all frames of a cut, so that it needs no insert; `None` when stopped before it answered.
    /// A cut without frames is inserted again: its token keeps a second copy out.
    pub(super) fn is_complete(&self, cut: &Cut) -> Option<bool> {
        let frames = self.encoder.frames();
        if frames.is_empty() {
            return Some(false);
        }
        let answer = self.ask(async |history| history.frames_of_cut(cut.from).await)?;
        Some(answer.is_some_and(|stored| frames.iter().all(|frame| stored.contains(frame))))
    }

    /// Asks the store until it answers; `None` when stopped before, `Some(None)` when it will not answer.
    fn ask<T>(&self, question: impl AsyncFn(&History) -> Result<T, ClientError>) -> Option<Option<T>> {
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            // A question that is dropped does nothing.
            match self.patience().answer("which frames it has", question(&self.history)) {
                None => return None,
                Some(Ok(answer)) => {
                    self.progress.clear();
                    return Some(Some(answer));
                }
                Some(Err(error)) if error.advice() == Advice::Stop => {
                    tracing::error!(%error, "the store does not say which frames it has: some may be stored twice");
                    return Some(None);
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the store is asked again which frames it has");
                    self.progress.fault(format!("the store does not say which frames it has: {error}"));
                    self.pause(&mut pause);
                }
            }
        }
    }
}

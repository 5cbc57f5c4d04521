//! From the shelf into the session: frames in order, as far as the session has room for them.

use bytes::Bytes;
use tapio_spool::SpoolError;
use tapio_wire::{
    Position,
    session::{EdgeSession, OfferRefusal},
};

use super::{Frames, Loss, Shelf};

/// Where one connection's reading of the shelf stands.
#[derive(Default)]
pub struct Feed {
    frames: Option<Frames>,
    /// Read, but not yet taken by the session.
    waiting: Option<(Position, Bytes)>,
}

impl Feed {
    /// Begins anew behind what the session was told last: to be called whenever it was welcomed.
    pub fn begin(&mut self) {
        *self = Self::default();
    }

    /// Gives the session the frames that it has room for. One that no session can carry is given up, and counted.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn offer(&mut self, shelf: &Shelf, session: &mut EdgeSession) -> Result<(), SpoolError> {
        if self.frames.as_ref().is_some_and(|frames| !shelf.is_current(frames)) {
            self.begin();
        }
        while let Some(after) = session.offer_after() {
            let frames = self.frames.get_or_insert_with(|| shelf.read_after(after));
            let (position, frame) = match self.waiting.take() {
                Some(waiting) => waiting,
                None => match frames.next_frame()? {
                    Some(next) => next,
                    None => return Ok(()),
                },
            };
            match session.offer(position, frame.clone()) {
                // Out of order is what the aggregator has already.
                Ok(()) | Err(OfferRefusal::OutOfOrder { .. }) => {}
                Err(OfferRefusal::WindowFull | OfferRefusal::NotOpen) => {
                    self.waiting = Some((position, frame));
                    return Ok(());
                }
                Err(refusal @ OfferRefusal::TooLarge) => {
                    shelf.give_up(position, Loss::TooLarge);
                    tracing::error!(%position, %refusal, "a frame cannot be shipped");
                }
            }
        }
        Ok(())
    }
}

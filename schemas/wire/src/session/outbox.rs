//! What waits to be sent.

use std::collections::VecDeque;

use bytes::Bytes;

use super::SessionFault;
use crate::message::{Message, encode};

/// The most pieces that may wait. Frames wait elsewhere; so many control messages mean that the other side is stuck.
const PIECES_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    pieces: VecDeque<Bytes>,
}

impl Outbox {
    pub(super) fn push(&mut self, message: &Message) -> Result<(), SessionFault> {
        if self.pieces.len() + 2 > PIECES_MAX {
            return Err(SessionFault::OutputFull);
        }
        let (head, body) = encode(message)?;
        self.pieces.push_back(head);
        self.pieces.extend(body);
        Ok(())
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        self.pieces.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }
}

//! Memory of answers to single calls: one budget for all of them, charged until a client has taken its answer.
//!
//! Without it, clients that ask and do not read could make the server hold pages without end.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use prost::Message;
use tapio_daemon::metrics::Drops;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Response, Status};

/// Bytes of all answers that clients have not taken yet.
const BYTES_MAX: usize = 64 << 20;
/// The unit in which bytes are counted.
const UNIT_BYTES: usize = 1 << 10;
/// What a message takes, as a multiple of its bytes: those, and the texts and numbers that it is made of.
const MESSAGE_FACTOR: usize = 3;

/// The budget. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    room: Arc<Semaphore>,
    refused: Drops,
}

/// What an answer takes of the budget, given back when its last byte is sent or given up.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    permit: Arc<OwnedSemaphorePermit>,
}

/// Bytes that are charged as long as they are.
struct Held {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Charge {
    /// Tells whether it is still held.
    pub(super) fn watch(&self) -> Weak<OwnedSemaphorePermit> {
        Arc::downgrade(&self.permit)
    }

    /// The same bytes, charged until they are let go.
    pub(super) fn hold(&self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Held { bytes, _charge: self.clone() })
    }
}

impl Budget {
    pub(super) fn new(refused: Drops) -> Self {
        Self { room: Arc::new(Semaphore::new(BYTES_MAX / UNIT_BYTES)), refused }
    }

    /// Whether nothing is held.
    #[cfg(test)]
    pub(super) fn is_unused(&self) -> bool {
        self.room.available_permits() == BYTES_MAX / UNIT_BYTES
    }

    /// An answer with its charge, or the refusal where clients hold too much already.
    pub(super) fn charged<M: Message>(&self, message: M) -> Result<Response<M>, Status> {
        let bytes = (message.encoded_len() * MESSAGE_FACTOR).clamp(UNIT_BYTES, BYTES_MAX);
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&self.room).try_acquire_many_owned(units) else {
            self.refused.add("answers-not-taken", 1);
            return Err(Status::resource_exhausted(format!(
                "{} MiB of answers wait for clients to take them: ask again a little later, or for smaller pages",
                BYTES_MAX >> 20
            )));
        };
        let mut response = Response::new(message);
        response.extensions_mut().insert(Charge { permit: Arc::new(permit) });
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use tapio_daemon::metrics::Registry;
    use tapio_proto::v1::ListFindingsResponse;

    use super::*;
    use crate::metrics::Metrics;

    /// Scenario: pages of 2 MiB are asked for and not taken, until one is refused; then the bytes of one are let go.
    /// Guarantees: what is held is bounded, the one too many is refused with RESOURCE_EXHAUSTED and counted, and bytes are
    /// charged as long as they are there.
    #[test]
    fn answers_that_are_not_taken_are_bounded() {
        let refused = Metrics::register(&Registry::new()).grpc.calls_refused;
        let answers = Budget::new(refused.clone());
        let page = || ListFindingsResponse { next_page_token: "t".repeat(2 << 20), ..Default::default() };
        let mut held = Vec::new();
        let error = loop {
            match answers.charged(page()) {
                Ok(mut response) => {
                    let charge = response.extensions_mut().remove::<Charge>().unwrap();
                    held.push(charge.hold(response.get_ref().encode_to_vec().into()));
                }
                Err(error) => break error,
            }
        };
        assert_eq!((error.code(), refused.get("answers-not-taken")), (tonic::Code::ResourceExhausted, 1));
        assert_eq!(held.len(), BYTES_MAX / MESSAGE_FACTOR / (2 << 20));
        // The end of a message is a part of its bytes, and holds them too.
        let mut last = held.pop().unwrap();
        let end = last.split_off(1 << 20);
        drop(last);
        assert!(answers.charged(page()).is_err());
        drop(end);
        assert!(answers.charged(page()).is_ok());
    }
}

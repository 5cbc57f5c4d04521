//! Places for streams: how many there may be, and how each ends.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::metrics::{Call, GrpcMetrics};

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The places. Clones share them.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    places: Arc<Semaphore>,
    streams_max: usize,
    metrics: GrpcMetrics,
    /// Cancelled when streams are to end.
    stop: CancellationToken,
}

/// A stream's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    metrics: GrpcMetrics,
    stop: CancellationToken,
}

impl Streams {
    pub(super) fn new(streams_max: usize, metrics: GrpcMetrics, stop: CancellationToken) -> Self {
        Self { places: Arc::new(Semaphore::new(streams_max)), streams_max, metrics, stop }
    }

    /// A place for one more stream.
    pub(super) fn enter(&self) -> Result<Place, Status> {
        if self.stop.is_cancelled() {
            return Err(ended());
        }
        let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() else {
            self.metrics.calls_refused.add("streams", 1);
            return Err(Status::resource_exhausted(format!(
                "{} streams are open, as many as grpc.streams_max allows: end one, or raise it",
                self.streams_max
            )));
        };
        self.metrics.streams.inc();
        Ok(Place { _permit: permit, metrics: self.metrics.clone(), stop: self.stop.clone() })
    }

    /// Counts a call by how it was answered, and hands the answer on.
    pub(super) fn counted<T>(&self, method: &'static str, answer: Result<T, Status>) -> Result<T, Status> {
        let code = match answer.as_ref().err().map(Status::code) {
            None => "OK",
            Some(Code::InvalidArgument) => "INVALID_ARGUMENT",
            Some(Code::NotFound) => "NOT_FOUND",
            Some(Code::FailedPrecondition) => "FAILED_PRECONDITION",
            Some(Code::ResourceExhausted) => "RESOURCE_EXHAUSTED",
            Some(Code::Unavailable) => "UNAVAILABLE",
            Some(_) => "OTHER",
        };
        self.metrics.requests.get_or_create(&Call { method, code }).inc();
        answer
    }
}

impl Place {
    /// Waits until the stream is to end. Cancel-safe.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.metrics.streams.dec();
    }
}

/// What a stream ends with when the aggregator ends.
pub(super) fn ended() -> Status {
    Status::unavailable(
        "the aggregator ends: connect again when it is back, and resume where this stream was",
    )
}

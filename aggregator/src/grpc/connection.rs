//! What is spoken over a connection: HTTP/2 with its limits and deadlines, and for whom.

use std::{
    convert::Infallible,
    future::Future,
    io::Cursor,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::{Request, body::Incoming, rt::Executor, server::conn::http2, service::Service as _};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::metrics::gauge::Gauge;
use tapio_identity::{NameKind, peer};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit},
    time::{Instant, timeout},
};
use tokio_util::{either::Either, sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};

use super::answers::Charge;
use crate::connections::{Connections, HANDSHAKE_TIME_MAX, Stream};

/// What every client of HTTP/2 begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Calls that one connection may have open.
const CALLS_MAX: u32 = 64;
/// A connection without a call for so long gives its place to somebody else; clients connect again when they call.
const IDLE_TIME_MAX: Duration = Duration::from_secs(300);
/// A client that has not taken an answer by then loses its connection: others want the room.
const TAKING_TIME_MAX: Duration = Duration::from_secs(60);
/// A connection that is silent for this long is asked whether it is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the answer may take.
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(20);
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Bytes of answers that wait in a connection for each call, beside what its subscription holds.
const SEND_BYTES_MAX: usize = 64 << 10;

/// What every connection is served with.
#[derive(Clone)]
pub(super) struct Speaker {
    pub(super) connections: Connections,
    pub(super) routes: Routes,
    pub(super) open: Gauge,
    /// Whether those who show the certificate of a node or an aggregator are answered.
    pub(super) machines_may_read: bool,
    pub(super) calls: Tasks,
}

/// Where calls run: none outlives the server.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    abort: CancellationToken,
}

impl Tasks {
    /// Ends all that still run.
    pub(super) async fn end(&self) {
        self.abort.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, call: F) {
        let abort = self.abort.clone();
        // Dropping the handle detaches nothing: the tracker is waited for.
        drop(self.tracker.spawn(async move { abort.run_until_cancelled(call).await }));
    }
}

/// The calls of a connection that are open.
#[derive(Debug, Default)]
struct Calls {
    open: AtomicUsize,
    changed: Notify,
}

/// One of them.
#[derive(Debug)]
struct Call(Arc<Calls>);

impl Call {
    fn of(calls: &Arc<Calls>) -> Self {
        calls.open.fetch_add(1, Ordering::Relaxed);
        calls.changed.notify_one();
        Self(Arc::clone(calls))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

impl Calls {
    /// Waits until none was open for [`IDLE_TIME_MAX`].
    async fn idle(&self) {
        loop {
            // A change in between has left its notice.
            let is_open = self.open.load(Ordering::Relaxed) > 0;
            let changed = self.changed.notified();
            if is_open {
                changed.await;
            } else if timeout(IDLE_TIME_MAX, changed).await.is_err() {
                return;
            }
        }
    }
}

/// A connection that is counted as long as it is, however it ends.
struct Open<'a>(&'a Gauge);

impl<'a> Open<'a> {
    fn of(gauge: &'a Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The answers of a connection that its client has not taken yet, and since when.
#[derive(Debug, Default)]
struct Untaken(Mutex<Vec<(Instant, Weak<OwnedSemaphorePermit>)>>);

impl Untaken {
    fn add(&self, charge: &Charge) {
        let mut untaken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        untaken.retain(|(_since, permit)| permit.strong_count() > 0);
        untaken.push((Instant::now(), charge.watch()));
    }

    /// Waits until one was not taken for [`TAKING_TIME_MAX`].
    async fn overdue(&self) {
        loop {
            tokio::time::sleep(TAKING_TIME_MAX / 10).await;
            let untaken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let is_overdue = |(since, permit): &(Instant, Weak<OwnedSemaphorePermit>)| {
                permit.strong_count() > 0 && since.elapsed() >= TAKING_TIME_MAX
            };
            if untaken.iter().any(is_overdue) {
                return;
            }
        }
    }
}

impl Speaker {
    pub(super) async fn speak(self, stream: Stream) {
        let may_read = self.machines_may_read || !is_machine(&stream);
        let _open = Open::of(&self.open);
        self.speak_over(stream, may_read).await;
    }

    async fn speak_over(&self, stream: impl AsyncRead + AsyncWrite + Send + 'static, may_read: bool) {
        let (mut read, write) = tokio::io::split(stream);
        let mut preface = [0; PREFACE.len()];
        match timeout(HANDSHAKE_TIME_MAX, read.read_exact(&mut preface)).await {
            Ok(Ok(_)) if preface == *PREFACE => {}
            Ok(Ok(_)) => return self.connections.refuse("not-http2", &"it does not begin as HTTP/2 does"),
            Ok(Err(error)) => return self.connections.refuse("preface", &error),
            Err(elapsed) => return self.connections.refuse("preface-timeout", &elapsed),
        }
        let stream = tokio::io::join(Cursor::new(preface).chain(read), write);
        let calls = Arc::new(Calls::default());
        let open = Arc::clone(&calls);
        let untaken = Arc::new(Untaken::default());
        let answers = Arc::clone(&untaken);
        let routes = TowerToHyperService::new(self.routes.clone());
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let call = Call::of(&open);
            let answer = may_read.then(|| routes.call(request));
            let answers = Arc::clone(&answers);
            async move {
                let mut response = match answer {
                    Some(answer) => answer.await?,
                    None => denied().into_http::<Body>(),
                };
                let charge = response.extensions_mut().remove::<Charge>();
                if let Some(charge) = &charge {
                    answers.add(charge);
                }
                let response = response.map(|body| {
                    Body::new(body.map_frame(move |frame| {
                        // Open until its last byte was asked for.
                        let _open = &call;
                        frame.map_data(|data| match &charge {
                            Some(charge) => charge.hold(data),
                            None => data,
                        })
                    }))
                });
                Ok::<_, Infallible>(response)
            }
        });
        let mut builder = http2::Builder::new(self.calls.clone());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIME_MAX)
            .max_concurrent_streams(CALLS_MAX)
            .max_header_list_size(HEADER_BYTES_MAX)
            .max_send_buf_size(SEND_BYTES_MAX);
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let idle = async { calls.idle().await };
        // What is dropped with the connection gives its part of the budget back.
        tokio::select! {
            () = self.connections.drive(connection, |connection| connection.graceful_shutdown(), idle) => {}
            () = untaken.overdue() => {
                self.connections.refuse("answers-not-taken", &"its client does not take its answers");
            }
        }
    }
}

/// Whether the other end shows the certificate of a node or an aggregator: their authority vouches for many machines,
/// of which none has to read what all others tell.
fn is_machine(stream: &Stream) -> bool {
    let Either::Right(stream) = stream else { return false };
    let name = peer::name_in_chain(stream.get_ref().1.peer_certificates());
    name.is_ok_and(|name| matches!(name.kind(), NameKind::Node | NameKind::Aggregator))
}

fn denied() -> Status {
    Status::permission_denied(
        "the certificate is that of a node or an aggregator, which may not read findings and events: use a certificate \
         for people or programs, or allow it with grpc.machines_may_read = \"yes\"",
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Empty;
    use tapio_daemon::Registry;

    use prost::Message as _;
    use tapio_proto::v1::ListFindingsResponse;

    use super::{super::answers::Budget, *};
    use crate::metrics::Metrics;

    fn speaker() -> (Speaker, tapio_daemon::metrics::Drops) {
        let metrics = Metrics::register(&Registry::new()).grpc;
        let refused = metrics.connections_refused.clone();
        let connections = Connections::new("gRPC", None, refused.clone(), CancellationToken::new());
        let (routes, calls) = (Routes::default(), Tasks::default());
        (Speaker { connections, routes, open: metrics.connections, machines_may_read: false, calls }, refused)
    }

    /// Scenario: a client that says nothing after its handshake, and one that speaks HTTP/1.
    /// Guarantees: both are dropped, the first in time, and counted by reason.
    #[tokio::test(start_paused = true)]
    async fn a_client_without_a_preface_is_dropped() {
        let (speaker, refused) = speaker();
        let (_silent, stream) = tokio::io::duplex(1 << 10);
        let began = Instant::now();
        speaker.speak_over(stream, true).await;
        assert_eq!((began.elapsed(), refused.get("preface-timeout")), (HANDSHAKE_TIME_MAX, 1));
        let (mut other, stream) = tokio::io::duplex(1 << 10);
        tokio::io::AsyncWriteExt::write_all(&mut other, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        speaker.speak_over(stream, true).await;
        assert_eq!(refused.get("not-http2"), 1);
    }

    /// Scenario: a client calls, answers when it is asked whether it is there, and does not take its answer; another takes
    /// its own.
    /// Guarantees: the first loses its connection in time, which is counted, and its part of the budget is free again; the
    /// other keeps its connection until it was idle for long.
    #[tokio::test(start_paused = true)]
    async fn an_answer_is_taken_in_time() {
        for takes in [false, true] {
            let (mut speaker, refused) = speaker();
            let budget = Budget::new(refused.clone());
            let answering = budget.clone();
            let answer = move || {
                let budget = answering.clone();
                async move {
                    let page =
                        ListFindingsResponse { next_page_token: "t".repeat(2 << 20), ..Default::default() };
                    let mut response = budget.charged(page).unwrap();
                    let charge = response.extensions_mut().remove::<Charge>().unwrap();
                    let bytes = Bytes::from(response.get_ref().encode_to_vec());
                    let mut response = axum::response::Response::new(axum::body::Body::from(bytes));
                    response.extensions_mut().insert(charge);
                    response
                }
            };
            speaker.routes = Routes::from(axum::Router::new().route("/any", axum::routing::post(answer)));
            let (client, stream) = tokio::io::duplex(64 << 10);
            let server = tokio::spawn(async move { speaker.speak_over(stream, true).await });
            let mut builder = hyper::client::conn::http2::Builder::new(Tasks::default());
            let (mut sender, connection) =
                builder.timer(TokioTimer::new()).handshake(TokioIo::new(client)).await.unwrap();
            let connection = tokio::spawn(connection);
            let request = Request::post("http://localhost/any").body(Empty::<Bytes>::new()).unwrap();
            let response = sender.send_request(request).await.unwrap();
            let began = Instant::now();
            let held = if takes {
                assert!(response.into_body().collect().await.unwrap().to_bytes().len() > 2 << 20);
                None
            } else {
                Some(response)
            };
            server.await.unwrap();
            let least = if takes { IDLE_TIME_MAX } else { TAKING_TIME_MAX };
            assert!(began.elapsed() >= least && began.elapsed() < least * 2, "{:?}", began.elapsed());
            assert_eq!(refused.get("answers-not-taken"), u64::from(!takes));
            tokio::task::yield_now().await;
            assert!(budget.is_unused());
            drop(held);
            connection.abort();
        }
    }

    /// Scenario: a client calls once and then never again, though it answers when it is asked whether it is there.
    /// Guarantees: the call is answered, with PERMISSION_DENIED for a machine, and the connection ends when it was idle
    /// for long, not before.
    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends() {
        let (speaker, _refused) = speaker();
        let (client, stream) = tokio::io::duplex(64 << 10);
        let server = tokio::spawn(async move { speaker.speak_over(stream, false).await });
        let mut builder = hyper::client::conn::http2::Builder::new(Tasks::default());
        let (mut sender, connection) =
            builder.timer(TokioTimer::new()).handshake(TokioIo::new(client)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::post("http://localhost/any").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "7");
        drop(response);
        let began = Instant::now();
        server.await.unwrap();
        let lasted = began.elapsed();
        assert!(lasted >= IDLE_TIME_MAX && lasted < IDLE_TIME_MAX * 2, "{lasted:?}");
        drop(sender);
        connection.abort();
    }
}

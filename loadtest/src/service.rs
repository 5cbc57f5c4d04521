//! One demo service: what it answers, whom it calls, what it leaks. The same behaviour on two runtimes.
//!
//! Owns the routes, the small real work per request, the relay of an upstream's failure as HTTP 500, and the leak.
//! Knows nothing of Tapio: it speaks HTTP and writes its own truth log. Called by `tapio-workload serve`.
//! [`threads`] runs it with one blocking thread per connection, [`tasks`] on an async runtime.

pub mod configuration;
pub mod foreign;
pub mod leak;
pub mod tasks;
pub mod threads;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::http1::{Request, Response, request_bytes};
use crate::random::Draw;
use crate::service::leak::Leak;
use crate::truth_log::{Failure, Pending, Role, TruthLog, boot_nanos};

/// Connections that a service serves at once; further ones wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 256;
/// Idle connections to the upstream that are kept.
pub const POOL_MAX: usize = 16;
/// Requests after which a pooled connection is closed, so that new connects go on happening.
pub const USES_PER_CONNECTION_MAX: u32 = 40;
/// How long a service waits for its upstream.
pub const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// How long an idle client connection is kept.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The things that every service of the demo knows about. A call upstream asks for the next thing in the list.
pub const NOUNS: [&str; 6] = ["orders", "items", "users", "invoices", "shipments", "sessions"];

/// What a service is made of.
#[derive(Debug)]
pub struct Service {
    name: String,
    upstream: Option<SocketAddr>,
    log: TruthLog,
    leak: Option<Leak>,
    span_seed: u64,
    spans: AtomicU64,
}

/// What is to be done with a request.
#[derive(Debug)]
pub enum Plan {
    /// The answer needs nobody else.
    Answer(u16, Vec<u8>),
    /// The answer needs this call.
    Call(Box<Call>),
}

/// One call to the upstream.
#[derive(Debug)]
pub struct Call {
    /// The whole request.
    pub bytes: Vec<u8>,
    /// Its truth line in progress.
    pub pending: Pending,
    /// What this service itself found, part of the answer.
    digest: String,
}

impl Service {
    /// Puts a service together.
    #[must_use]
    pub fn new(name: String, upstream: Option<SocketAddr>, log: TruthLog, leak: Option<Leak>) -> Self {
        // Span ids must differ between processes of one run; the boot clock and the pid separate them.
        let span_seed = Draw::labelled(boot_nanos() ^ u64::from(std::process::id()), &name).next_u64();
        Self { name, upstream, log, leak, span_seed, spans: AtomicU64::new(0) }
    }

    /// Whom the service calls.
    #[must_use]
    pub const fn upstream(&self) -> Option<SocketAddr> {
        self.upstream
    }

    /// Starts the truth line of a received request.
    #[must_use]
    pub fn receive(&self, request: &Request) -> Pending {
        Pending::start(&self.name, Role::Received, &request.method, &request.path, request.trace)
    }

    /// Does the request's own work and says what is left to do.
    #[must_use]
    pub fn plan(&self, request: &Request) -> Plan {
        if request.path == "/healthz" {
            return Plan::Answer(200, b"{\"ok\":true}".to_vec());
        }
        let Some((noun, id)) = route(&request.method, &request.path) else {
            return Plan::Answer(404, b"{\"error\":\"no such thing\"}".to_vec());
        };
        if let Some(leak) = &self.leak {
            leak.grow();
        }
        let digest = digest(&request.path, &request.body);
        if self.upstream.is_none() {
            return Plan::Answer(success(request), answer(&self.name, &digest, None));
        }
        let path = match id {
            Some(id) => format!("/{}/{id}", next_noun(noun)),
            None => format!("/{}", next_noun(noun)),
        };
        let trace = request.trace.map(|trace| trace.child(self.next_span()));
        let pending =
            Pending::start(&self.name, Role::Sent, &request.method, &path, trace).child_of(request.trace);
        let user_agent = format!("{}/1", self.name);
        let headers = [("User-Agent", user_agent.as_str()), ("Accept", "application/json")];
        let bytes = request_bytes(&request.method, &path, trace, &headers, &request.body);
        Plan::Call(Box::new(Call { bytes, pending, digest }))
    }

    /// Ends a call: logs it and turns its outcome into the service's own answer.
    #[must_use]
    pub fn relay(&self, request: &Request, call: Call, outcome: Result<Response, Failure>) -> (u16, Vec<u8>) {
        let Call { pending, digest, .. } = call;
        self.log.append(&pending.finish(outcome.as_ref().map(|response| response.status).map_err(|&e| e)));
        match outcome {
            Ok(response) if response.status < 400 => {
                (success(request), answer(&self.name, &digest, Some(&response.body)))
            }
            Ok(response) => {
                let text = format!(
                    "{{\"service\":\"{}\",\"error\":\"upstream answered {}\"}}",
                    self.name, response.status
                );
                (500, text.into_bytes())
            }
            Err(failure) => {
                let text = format!("{{\"service\":\"{}\",\"error\":\"upstream {failure:?}\"}}", self.name);
                (500, text.into_bytes())
            }
        }
    }

    /// Logs a received request with the answer that it got. Health checks are not requests of the demo.
    pub fn answered(&self, pending: Pending, status: u16) {
        let line = pending.finish(Ok(status));
        if line.path != "/healthz" {
            self.log.append(&line);
        }
    }

    fn next_span(&self) -> u64 {
        let count = self.spans.fetch_add(1, Ordering::Relaxed);
        Draw::labelled(self.span_seed.wrapping_add(count), "span").next_u64().max(1)
    }
}

/// `GET /<noun>/<number>` and `POST /<noun>`.
fn route<'a>(method: &str, path: &'a str) -> Option<(&'a str, Option<u64>)> {
    let mut parts = path.strip_prefix('/')?.split('/');
    let noun = parts.next().filter(|noun| NOUNS.contains(noun))?;
    let id = parts.next();
    if parts.next().is_some() {
        return None;
    }
    match (method, id) {
        ("GET", Some(id)) => Some((noun, Some(id.parse().ok()?))),
        ("POST", None) => Some((noun, None)),
        _ => None,
    }
}

fn next_noun(noun: &str) -> &'static str {
    let position = NOUNS.iter().position(|known| *known == noun).unwrap_or_default();
    NOUNS.iter().cycle().nth(position + 1).copied().unwrap_or("orders")
}

fn success(request: &Request) -> u16 {
    if request.method == "POST" { 201 } else { 200 }
}

/// The work of a request: a few rounds of SHA-256 over what was asked.
fn digest(path: &str, body: &[u8]) -> String {
    let mut hash = Sha256::digest([path.as_bytes(), body].concat());
    for _ in 0..8 {
        hash = Sha256::digest(hash);
    }
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn answer(name: &str, digest: &str, upstream: Option<&[u8]>) -> Vec<u8> {
    let inner = upstream.map(String::from_utf8_lossy).unwrap_or(std::borrow::Cow::Borrowed("null"));
    format!("{{\"service\":\"{name}\",\"digest\":\"{digest}\",\"from\":{inner}}}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{next_noun, route};

    /// Scenario: the routes of the demo, and what a scanner asks for.
    /// Guarantees: only the demo's own shapes are routes; a call upstream always has a route there.
    #[test]
    fn routes_are_exact() {
        assert_eq!(route("GET", "/orders/12"), Some(("orders", Some(12))));
        assert_eq!(route("POST", "/users"), Some(("users", None)));
        for (method, path) in
            [("GET", "/orders"), ("GET", "/orders/x"), ("POST", "/orders/1"), ("GET", "/wp-login.php")]
        {
            assert_eq!(route(method, path), None, "{path}");
        }
        assert_eq!(next_noun("sessions"), "orders");
    }
}

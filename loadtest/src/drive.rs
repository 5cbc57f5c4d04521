//! The load: open-loop requests with drawn routes, ids, traces and headers.
//!
//! Owns the schedule and the client side of the truth. Sends on time whether or not answers come, within named
//! bounds, and says on its standard output when the first request failed. Called by `tapio-workload drive`.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::http1::request_bytes;
use crate::random::Draw;
use crate::service::NOUNS;
use crate::service::threads::{Connection, exchange};
use crate::trace_parent::TraceParent;
use crate::truth_log::{Failure, Pending, Role, TruthLine, TruthLog};

/// Requests in flight or waiting at most; one that finds no place is shed and counted.
const QUEUE_MAX: usize = 64;
const WORKERS: usize = 12;
/// Longest run, whatever is asked for.
pub const SECONDS_MAX: u64 = 24 * 3600;
/// Highest rate, whatever is asked for.
pub const RATE_MAX: u64 = 2_000;

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// Name in the truth log.
    pub name: String,
    /// Whom to ask.
    pub target: SocketAddr,
    /// Requests per second, at most [`RATE_MAX`].
    pub rate_per_second: u64,
    /// At most [`SECONDS_MAX`].
    pub seconds: u64,
    /// Requests at most.
    pub requests_max: u64,
    /// Of the drawn requests.
    pub seed: u64,
}

/// What the driver says on its standard output, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Notice {
    /// A service listens on this port.
    Listening {
        /// TCP port.
        port: u16,
    },
    /// The first request that got no response or a 5xx; said once.
    FirstFailure {
        /// Wall clock, nanoseconds since 1970.
        unix_nanos: u64,
        /// The status, if there was a response.
        status: Option<u16>,
        /// Why there was none.
        error: Option<Failure>,
        /// The request's trace.
        trace_id: Option<String>,
    },
    /// The end.
    Summary(Summary),
}

/// Counts of a whole run; `sent = answered + server_errors + failed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Requests that were tried.
    pub sent: u64,
    /// Responses below 500.
    pub answered: u64,
    /// Responses of 500 and above.
    pub server_errors: u64,
    /// No response.
    pub failed: u64,
    /// Requests that found no free place and were not sent.
    pub shed: u64,
}

#[derive(Default)]
struct Tally {
    sent: AtomicU64,
    answered: AtomicU64,
    server_errors: AtomicU64,
    failed: AtomicU64,
    told: AtomicBool,
}

struct Job {
    method: &'static str,
    path: String,
    trace: TraceParent,
    bytes: Vec<u8>,
}

/// Sends until a bound is reached or `stop` is set; notices go to `notices`.
///
/// # Errors
/// A thread cannot be started.
pub fn run<W: Write + Send + 'static>(
    load: &Load,
    log: &TruthLog,
    notices: W,
    stop: &AtomicBool,
) -> io::Result<Summary> {
    let tally = Arc::new(Tally::default());
    let notices = Arc::new(Mutex::new(notices));
    let (jobs, queue) = sync_channel::<Job>(QUEUE_MAX);
    let queue = Arc::new(Mutex::new(queue));
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let (load, log, tally) = (load.clone(), log.clone(), Arc::clone(&tally));
        let (queue, notices) = (Arc::clone(&queue), Arc::clone(&notices));
        let seed = load.seed.wrapping_add(workers.len() as u64);
        workers.push(std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
            work(&load, &log, &tally, &queue, &notices, Draw::labelled(seed, "reconnect"));
        })?);
    }
    let shed = schedule(load, &jobs, stop);
    drop(jobs);
    for worker in workers {
        worker.join().map_err(|_panic| io::Error::other("a load worker panicked"))?;
    }
    let summary = Summary {
        sent: tally.sent.load(Ordering::Relaxed),
        answered: tally.answered.load(Ordering::Relaxed),
        server_errors: tally.server_errors.load(Ordering::Relaxed),
        failed: tally.failed.load(Ordering::Relaxed),
        shed,
    };
    say(&notices, &Notice::Summary(summary));
    Ok(summary)
}

/// Hands out requests at their drawn times; returns how many were shed.
fn schedule(load: &Load, jobs: &SyncSender<Job>, stop: &AtomicBool) -> u64 {
    let mut draw = Draw::labelled(load.seed, "load");
    let period_micros = 1_000_000 / load.rate_per_second.clamp(1, RATE_MAX);
    let start = Instant::now();
    let end = Duration::from_secs(load.seconds.min(SECONDS_MAX));
    let (mut due, mut shed) = (Duration::ZERO, 0);
    for _ in 0..load.requests_max {
        // Half to one and a half periods apart: no rhythm that a sampler could fall in step with.
        due += Duration::from_micros(draw.between(period_micros / 2, period_micros * 3 / 2));
        if let Some(wait) = due.checked_sub(start.elapsed()) {
            std::thread::sleep(wait);
        }
        if stop.load(Ordering::Relaxed) || start.elapsed() >= end {
            break;
        }
        match jobs.try_send(draw_job(&mut draw)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => shed += 1,
            Err(TrySendError::Disconnected(_)) => break,
        }
    }
    shed
}

fn draw_job(draw: &mut Draw) -> Job {
    let noun = draw.pick(&NOUNS).copied().unwrap_or("orders");
    let id = draw.between(1, 99_999);
    let trace_id = (u128::from(draw.next_u64()) << 64 | u128::from(draw.next_u64())).max(1);
    let trace = TraceParent { trace_id, span_id: draw.next_u64().max(1), sampled: draw.percent(70) };
    let (method, path, body) = match draw.between(1, 100) {
        // What every public address gets: requests for things that are not there. A 4xx is the client's matter.
        1..=3 => {
            let stray = ["/favicon.ico", "/robots.txt", "/wp-login.php"];
            ("GET", draw.pick(&stray).copied().unwrap_or("/favicon.ico").to_owned(), String::new())
        }
        4..=15 => {
            let digits = usize::try_from(draw.between(32, 1024)).unwrap_or(32);
            ("POST", format!("/{noun}"), format!("{{\"id\":{id},\"note\":\"{}\"}}", draw.hex(digits)))
        }
        _ => ("GET", format!("/{noun}/{id}"), String::new()),
    };
    let agents = ["Mozilla/5.0 (X11; Linux x86_64)", "okhttp/4.12.0", "curl/8.5.0", "python-requests/2.32"];
    let request_id = draw.hex(16);
    let headers = [
        ("User-Agent", draw.pick(&agents).copied().unwrap_or("curl/8.5.0")),
        ("Accept", "application/json"),
        ("X-Request-Id", request_id.as_str()),
    ];
    let bytes = request_bytes(method, &path, Some(trace), &headers, body.as_bytes());
    Job { method, path, trace, bytes }
}

fn work<W: Write>(
    load: &Load,
    log: &TruthLog,
    tally: &Tally,
    queue: &Mutex<Receiver<Job>>,
    notices: &Mutex<W>,
    mut draw: Draw,
) {
    let mut kept: Option<Connection> = None;
    let mut uses_max = draw.between(5, 60);
    loop {
        let Ok(job) = queue.lock().unwrap_or_else(PoisonError::into_inner).recv() else { return };
        let mut pending = Pending::start(&load.name, Role::Sent, job.method, &job.path, Some(job.trace));
        tally.sent.fetch_add(1, Ordering::Relaxed);
        let outcome = exchange(kept.take(), load.target, &job.bytes, &mut pending);
        let line =
            pending.finish(outcome.as_ref().map(|(response, _)| response.status).map_err(|&failure| failure));
        log.append(&line);
        let count = match line.status {
            Some(status) if status < 500 => &tally.answered,
            Some(_) => &tally.server_errors,
            None => &tally.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if line.status.is_none_or(|status| status >= 500) && !tally.told.swap(true, Ordering::Relaxed) {
            say(notices, &first_failure(line));
        }
        kept = outcome.ok().and_then(|(_, connection)| connection);
        if kept.as_ref().is_some_and(|connection| u64::from(connection.uses()) >= uses_max) {
            kept = None;
            uses_max = draw.between(5, 60);
        }
    }
}

fn first_failure(line: TruthLine) -> Notice {
    Notice::FirstFailure {
        unix_nanos: line.unix_nanos,
        status: line.status,
        error: line.error,
        trace_id: line.trace_id,
    }
}

/// Says a notice; a reader that is gone does not end the load.
pub fn say<W: Write>(notices: &Mutex<W>, notice: &Notice) {
    let mut writer = notices.lock().unwrap_or_else(PoisonError::into_inner);
    if serde_json::to_writer(&mut *writer, notice).is_ok() {
        drop(writer.write_all(b"\n"));
        drop(writer.flush());
    }
}

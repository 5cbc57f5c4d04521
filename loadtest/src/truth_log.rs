//! What each workload process says about itself: one JSON line per request that it received or sent.
//!
//! Owns the line's shape, the clock readings and the file. Never read by the running system: only a comparer and
//! tests read it, to hold what is stored against what happened, key by key. Lines are flushed at least every
//! [`FLUSH_INTERVAL`]; a process that is killed loses its tail, which the logs of its callers cover.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::trace_parent::TraceParent;

/// The longest time that a line stays in memory.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Lines that one process writes at most; later ones are counted and not written.
const LINES_MAX: u64 = 2_000_000;

/// Which side of a request a line tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// The process served the request.
    Received,
    /// The process sent the request.
    Sent,
}

/// Why a request got no response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// `ECONNREFUSED`: nothing listens.
    Refused,
    /// `ECONNRESET`: the peer's kernel answered RST.
    Reset,
    /// `EPIPE`: the connection was already known to be dead.
    BrokenPipe,
    /// The peer closed before the response.
    Eof,
    /// No answer in time.
    Timeout,
    /// The answer was not HTTP.
    Malformed,
    /// Any other error of the socket.
    Other,
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Self::Reset,
            io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            io::ErrorKind::UnexpectedEof => Self::Eof,
            // A socket with a receive timeout reports `WouldBlock`.
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout,
            io::ErrorKind::InvalidData => Self::Malformed,
            _ => Self::Other,
        }
    }
}

/// One request, seen from one side. A sent and a received line of the same hop share `trace_id` and `span_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TruthLine {
    /// Wall clock at the end of the request, nanoseconds since 1970.
    pub unix_nanos: u64,
    /// `CLOCK_BOOTTIME` at the same moment.
    pub boot_nanos: u64,
    /// From the request's first byte (or the connect) to the response.
    pub duration_nanos: u64,
    /// Name of the process' service.
    pub service: String,
    /// Process id.
    pub pid: u32,
    /// The side.
    pub role: Role,
    /// 32 hexadecimal digits; `None` where the request had no valid `traceparent`.
    pub trace_id: Option<String>,
    /// 16 hexadecimal digits: the sender's span, as on the wire.
    pub span_id: Option<String>,
    /// Of a sent request: the span that the sender itself had received.
    pub parent_span_id: Option<String>,
    /// The sampled flag.
    pub sampled: bool,
    /// Upper case.
    pub method: String,
    /// As on the wire.
    pub path: String,
    /// The process' own TCP port; `None` where no connection came about.
    pub local_port: Option<u16>,
    /// The other side's TCP port.
    pub peer_port: u16,
    /// True where the connection had carried a request before.
    pub reused_connection: bool,
    /// The response's status.
    pub status: Option<u16>,
    /// Why there was none.
    pub error: Option<Failure>,
}

/// The file behind the lines of one process; clones share it.
#[derive(Debug, Clone)]
pub struct TruthLog {
    shared: Arc<Mutex<Sink>>,
}

#[derive(Debug)]
struct Sink {
    file: BufWriter<File>,
    lines: u64,
    lines_refused: u64,
}

impl TruthLog {
    /// Creates the file and the thread that flushes it.
    ///
    /// # Errors
    /// The file cannot be created, or the thread not started.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let shared = Arc::new(Mutex::new(Sink { file, lines: 0, lines_refused: 0 }));
        let weak = Arc::downgrade(&shared);
        std::thread::Builder::new().name("truth-flush".to_owned()).stack_size(128 * 1024).spawn(
            move || {
                while let Some(sink) = weak.upgrade() {
                    // A full disk shows in the comparison as missing lines; the workload goes on.
                    drop(sink.lock().unwrap_or_else(PoisonError::into_inner).file.flush());
                    drop(sink);
                    std::thread::sleep(FLUSH_INTERVAL);
                }
            },
        )?;
        Ok(Self { shared })
    }

    /// Appends one line.
    pub fn append(&self, line: &TruthLine) {
        let mut sink = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let written = sink.lines < LINES_MAX
            && serde_json::to_writer(&mut sink.file, line).is_ok()
            && sink.file.write_all(b"\n").is_ok();
        if written {
            sink.lines += 1;
        } else {
            sink.lines_refused += 1;
        }
    }

    /// Writes what is buffered; returns how many lines were written and how many refused.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn flush(&self) -> io::Result<(u64, u64)> {
        let mut sink = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        sink.file.flush()?;
        Ok((sink.lines, sink.lines_refused))
    }
}

/// A request in progress: everything that its line will need but the outcome.
#[derive(Debug, Clone)]
pub struct Pending {
    line: TruthLine,
}

impl Pending {
    /// Starts the clock of a request.
    #[must_use]
    pub fn start(service: &str, role: Role, method: &str, path: &str, trace: Option<TraceParent>) -> Self {
        Self {
            line: TruthLine {
                unix_nanos: 0,
                boot_nanos: 0,
                duration_nanos: boot_nanos(),
                service: service.to_owned(),
                pid: std::process::id(),
                role,
                trace_id: trace.map(|trace| format!("{:032x}", trace.trace_id)),
                span_id: trace.map(|trace| format!("{:016x}", trace.span_id)),
                parent_span_id: None,
                sampled: trace.is_some_and(|trace| trace.sampled),
                method: method.to_owned(),
                path: path.to_owned(),
                local_port: None,
                peer_port: 0,
                reused_connection: false,
                status: None,
                error: None,
            },
        }
    }

    /// Names the span that the sender had received.
    #[must_use]
    pub fn child_of(mut self, parent: Option<TraceParent>) -> Self {
        self.line.parent_span_id = parent.map(|parent| format!("{:016x}", parent.span_id));
        self
    }

    /// Names the connection.
    pub const fn connection(&mut self, local: Option<SocketAddr>, peer: SocketAddr, reused: bool) {
        self.line.local_port = match local {
            Some(local) => Some(local.port()),
            None => None,
        };
        self.line.peer_port = peer.port();
        self.line.reused_connection = reused;
    }

    /// The finished line.
    #[must_use]
    pub fn finish(mut self, outcome: Result<u16, Failure>) -> TruthLine {
        self.line.unix_nanos = unix_nanos();
        self.line.boot_nanos = boot_nanos();
        self.line.duration_nanos = self.line.boot_nanos.saturating_sub(self.line.duration_nanos);
        match outcome {
            Ok(status) => self.line.status = Some(status),
            Err(failure) => self.line.error = Some(failure),
        }
        self.line
    }
}

/// Wall clock, nanoseconds since 1970.
#[must_use]
pub fn unix_nanos() -> u64 {
    clock_nanos(rustix::time::ClockId::Realtime)
}

/// `CLOCK_BOOTTIME` in nanoseconds.
#[must_use]
pub fn boot_nanos() -> u64 {
    clock_nanos(rustix::time::ClockId::Boottime)
}

fn clock_nanos(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// Reads a log back. The second value counts torn last lines: at most one, from a process that was killed.
///
/// # Errors
/// The file cannot be read, or a line other than the last is not a [`TruthLine`].
pub fn read(path: &Path) -> io::Result<(Vec<TruthLine>, usize)> {
    let mut lines = Vec::new();
    let mut torn: Option<serde_json::Error> = None;
    for text in BufReader::new(File::open(path)?).lines() {
        if let Some(error) = torn {
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        match serde_json::from_str(&text?) {
            Ok(line) => lines.push(line),
            Err(error) => torn = Some(error),
        }
    }
    Ok((lines, usize::from(torn.is_some())))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::{Failure, Pending, Role, TruthLog, read};
    use crate::trace_parent::TraceParent;

    /// Scenario: two lines are logged, then the file gets the half line that a killed process leaves.
    /// Guarantees: what was logged reads back equal; a torn tail is counted and not taken for a line.
    #[test]
    fn lines_read_back_and_a_torn_tail_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("truth.jsonl");
        let log = TruthLog::create(&path).unwrap();
        let trace = TraceParent { trace_id: 1, span_id: 2, sampled: true };
        let mut pending = Pending::start("shop", Role::Sent, "GET", "/orders/1", Some(trace))
            .child_of(Some(trace.child(9)));
        pending.connection(None, "127.0.0.1:80".parse().unwrap(), false);
        let first = pending.clone().finish(Err(Failure::Refused));
        let second = pending.finish(Ok(200));
        log.append(&first);
        log.append(&second);
        assert_eq!(log.flush().unwrap(), (2, 0));
        assert_eq!(read(&path).unwrap(), (vec![first.clone(), second], 0));
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"unix").unwrap();
        assert_eq!(read(&path).unwrap().1, 1);
        assert_eq!(first.parent_span_id.as_deref(), Some("0000000000000009"));
    }
}

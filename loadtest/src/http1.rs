//! The workload's HTTP/1.1: complete requests and responses, parsed from and written to bytes.
//!
//! Owns the limits of a message. Never touches a socket: both runtimes read into a buffer and ask here whether a
//! message is complete. Called by the services and by the load driver.

use std::io;

use crate::trace_parent::TraceParent;

/// Largest head that is accepted, in bytes.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Largest body that is accepted, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 32;

/// A request that arrived whole.
#[derive(Debug, Clone)]
pub struct Request {
    /// As on the wire, upper case.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Absent where the header is missing or malformed.
    pub trace: Option<TraceParent>,
    /// False where the peer asked to close.
    pub keep_alive: bool,
    /// Exactly `content-length` bytes.
    pub body: Vec<u8>,
}

/// A response that arrived whole.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// False where the peer will close.
    pub keep_alive: bool,
    /// Exactly `content-length` bytes.
    pub body: Vec<u8>,
}

/// Takes one whole request from the front of the buffer; `None` until it is complete.
///
/// # Errors
/// Bytes that are no HTTP/1.1 request, or one that is over the limits.
pub fn take_request(buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head_length) = parsed.parse(buffer).map_err(invalid)? else {
        return incomplete(buffer);
    };
    let fields = Fields::read(parsed.headers)?;
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: parsed.path.unwrap_or_default().to_owned(),
        trace: fields.trace,
        keep_alive: fields.keep_alive,
        body: Vec::new(),
    };
    Ok(take_body(buffer, head_length, fields.content_length).map(|body| Request { body, ..request }))
}

/// Takes one whole response from the front of the buffer; `None` until it is complete.
///
/// # Errors
/// Bytes that are no HTTP/1.1 response, or one that is over the limits.
pub fn take_response(buffer: &mut Vec<u8>) -> io::Result<Option<Response>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_length) = parsed.parse(buffer).map_err(invalid)? else {
        return incomplete(buffer);
    };
    let fields = Fields::read(parsed.headers)?;
    let status = parsed.code.unwrap_or_default();
    Ok(take_body(buffer, head_length, fields.content_length).map(|body| Response {
        status,
        keep_alive: fields.keep_alive,
        body,
    }))
}

/// The bytes of a request, head and body in one piece so that one system call sends it.
#[must_use]
pub fn request_bytes(
    method: &str,
    path: &str,
    trace: Option<TraceParent>,
    extra_headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    if let Some(trace) = trace {
        head.push_str(&format!("traceparent: {trace}\r\n"));
    }
    for (name, value) in extra_headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// The bytes of a response, head and body in one piece.
#[must_use]
pub fn response_bytes(status: u16, keep_alive: bool, body: &[u8]) -> Vec<u8> {
    let connection = if keep_alive { "" } else { "Connection: close\r\n" };
    let mut bytes = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{connection}\r\n",
        reason(status),
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        404 => "Not Found",
        500 => "Internal Server Error",
        _ => "Unknown",
    }
}

/// What the workload reads of a head.
struct Fields {
    content_length: usize,
    keep_alive: bool,
    trace: Option<TraceParent>,
}

impl Fields {
    fn read(headers: &[httparse::Header<'_>]) -> io::Result<Self> {
        let mut fields = Self { content_length: 0, keep_alive: true, trace: None };
        for header in headers {
            let value = std::str::from_utf8(header.value).unwrap_or_default();
            if header.name.eq_ignore_ascii_case("content-length") {
                fields.content_length = value.trim().parse().map_err(invalid)?;
            } else if header.name.eq_ignore_ascii_case("connection") {
                fields.keep_alive = !value.trim().eq_ignore_ascii_case("close");
            } else if header.name.eq_ignore_ascii_case("traceparent") {
                fields.trace = TraceParent::parse(value);
            }
        }
        if fields.content_length > BODY_BYTES_MAX {
            return Err(invalid("body over the limit"));
        }
        Ok(fields)
    }
}

fn incomplete<T>(buffer: &[u8]) -> io::Result<Option<T>> {
    if buffer.len() > HEAD_BYTES_MAX { Err(invalid("head over the limit")) } else { Ok(None) }
}

fn take_body(buffer: &mut Vec<u8>, head_length: usize, content_length: usize) -> Option<Vec<u8>> {
    let end = head_length.checked_add(content_length)?;
    let body = buffer.get(head_length..end)?.to_vec();
    buffer.drain(..end);
    Some(body)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::{request_bytes, response_bytes, take_request, take_response};
    use crate::trace_parent::TraceParent;

    /// Scenario: two pipelined requests arrive byte by byte.
    /// Guarantees: each is taken once, whole, and leaves the next in the buffer.
    #[test]
    fn requests_are_taken_whole() {
        let trace = TraceParent { trace_id: 5, span_id: 6, sampled: false };
        let mut wire = request_bytes("POST", "/orders", Some(trace), &[("X-Request-Id", "1")], b"{}");
        wire.extend(request_bytes("GET", "/orders/7", None, &[], b""));
        let mut buffer = Vec::new();
        let mut taken = Vec::new();
        for byte in wire {
            buffer.push(byte);
            taken.extend(take_request(&mut buffer).unwrap());
        }
        assert!(buffer.is_empty());
        assert_eq!(taken.len(), 2);
        assert_eq!((taken[0].method.as_str(), taken[0].body.as_slice()), ("POST", b"{}".as_slice()));
        assert_eq!((taken[0].trace, taken[1].trace), (Some(trace), None));
        assert_eq!(taken[1].path, "/orders/7");
    }

    /// Scenario: a response that closes, one too large, one that is not HTTP.
    /// Guarantees: `Connection: close` is honoured, the limits and the grammar are enforced.
    #[test]
    fn responses_are_checked() {
        let mut buffer = response_bytes(500, false, b"no");
        let response = take_response(&mut buffer).unwrap().unwrap();
        assert_eq!(
            (response.status, response.keep_alive, response.body.as_slice()),
            (500, false, b"no".as_slice())
        );
        let mut large = b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n".to_vec();
        take_response(&mut large).unwrap_err();
        take_response(&mut b"SSH-2.0-x\r\n\r\n".to_vec()).unwrap_err();
    }
}

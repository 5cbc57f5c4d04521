//! The first bytes of an HTTP/1 message (RFC 9112): request or response, and the few headers that matter here.
//!
//! The bytes may end anywhere, because the kernel hands over the beginning of a buffer only: a complete start line
//! is required, headers are read as far as they are complete. Must never guess a field that is not there.

use crate::trace_context::TraceParent;

/// Headers beyond this are not looked at.
const HEADERS_MAX: usize = 64;
/// No method is longer (RFC 9110 and the IANA registry: `BASELINE-CONTROL` has 16).
const METHOD_BYTES_MAX: usize = 24;
/// Segments of a path beyond this become one `{rest}`.
const SEGMENTS_MAX: usize = 8;
/// A segment that is longer is taken for an id.
const SEGMENT_BYTES_MAX: usize = 32;

/// The beginning of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head<'a> {
    /// Of a request.
    Request(Request<'a>),
    /// Of a response.
    Response(Response),
}

/// The beginning of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The method, as it was sent.
    pub method: &'a str,
    /// The target, as it was sent, query included.
    pub target: &'a str,
    /// The trace that the sender says it belongs to.
    pub trace: Option<TraceParent>,
    /// Whether the blank line behind the headers was seen: if not, an absent header may only not have been reached.
    pub is_complete: bool,
}

/// The beginning of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status, 100 to 999.
    pub status: u16,
}

impl Response {
    /// Whether another response to the same request follows (RFC 9110, section 15.2; 101 ends HTTP instead).
    #[must_use]
    pub const fn is_interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }
}

/// Reads the beginning of a message. `None` when the bytes are no HTTP/1 message, or end within its first line.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Head<'_>> {
    if bytes.starts_with(b"HTTP/1.") { response(bytes) } else { request(bytes) }
}

fn request(bytes: &[u8]) -> Option<Head<'_>> {
    // The scan for the line's end is bounded by the method first, so that a long binary buffer costs little.
    let method_end = bytes.iter().take(METHOD_BYTES_MAX + 1).position(|byte| *byte == b' ')?;
    if !bytes.get(..method_end)?.iter().all(|byte| byte.is_ascii_uppercase() || *byte == b'-') {
        return None;
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let is_complete = finished(parsed.parse(bytes))?;
    // Set only when the whole first line was there.
    parsed.version?;
    let (method, target) = (parsed.method?, parsed.path?);
    if method.is_empty() || target.is_empty() {
        return None;
    }
    Some(Head::Request(Request { method, target, trace: trace(parsed.headers), is_complete }))
}

fn response(bytes: &[u8]) -> Option<Head<'_>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    finished(parsed.parse(bytes))?;
    let status = parsed.code?;
    // `HTTP/1.1 20` may be the beginning of 200 to 209: a status counts when its line went on.
    if !(100..1000).contains(&status) || !matches!(bytes.get(12), Some(b' ' | b'\r' | b'\n')) {
        return None;
    }
    Some(Head::Response(Response { status }))
}

/// Whether the head ended; `None` where it is broken. Too many headers are no fault of the message.
fn finished(result: httparse::Result<usize>) -> Option<bool> {
    match result {
        Ok(httparse::Status::Complete(_)) => Some(true),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => Some(false),
        Err(_broken) => None,
    }
}

/// The trace that the headers name. Several `traceparent` headers make it invalid (Trace Context, section 3.2).
fn trace(headers: &[httparse::Header<'_>]) -> Option<TraceParent> {
    // httparse leaves headers that were not reached empty.
    let mut named = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("traceparent"));
    let first = named.next()?;
    if named.next().is_some() { None } else { TraceParent::parse(first.value) }
}

/// The target's path with what looks like an id replaced by `{id}`, so that equal calls have equal names.
///
/// Numbers, UUIDs, hexadecimal texts of eight and more digits, and segments that are long or mix letters with many
/// digits are ids. The caller bounds how many different routes it keeps: a path may still be made of free text.
#[must_use]
pub fn route(target: &str) -> String {
    let path = path_of(target);
    let mut route = String::with_capacity(path.len());
    for (index, segment) in path.split('/').skip(1).enumerate() {
        route.push('/');
        if index >= SEGMENTS_MAX {
            route.push_str("{rest}");
            break;
        }
        route.push_str(if is_id(segment) { "{id}" } else { segment });
    }
    if route.is_empty() {
        // `*` of OPTIONS and the authority of CONNECT have no path.
        route.push_str(if path == "*" { "*" } else { "/" });
    }
    route
}

/// The path of a target in any of its forms (RFC 9112, section 3.2), without query and fragment.
fn path_of(target: &str) -> &str {
    let target = target.split(['?', '#']).next().unwrap_or_default();
    if target.starts_with('/') || target == "*" {
        return target;
    }
    // Absolute form, as proxies get it.
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|index| rest.get(index..)).unwrap_or("/"),
        None => "/",
    }
}

fn is_id(segment: &str) -> bool {
    let bytes = segment.as_bytes();
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
    let is_hex_like = bytes.iter().all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    let is_number = digits > 0 && digits == bytes.len();
    let is_hex = is_hex_like && digits > 0 && bytes.len() >= 8;
    let is_mixed =
        digits >= 4 && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    is_number || is_hex || is_mixed || bytes.len() > SEGMENT_BYTES_MAX
}

#[cfg(test)]
mod tests;

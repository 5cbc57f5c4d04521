//! Asks a starting engine whether it answers, as one of its users, without a runtime.
//!
//! Blocking and minimal on purpose: the supervisor's thread has no async runtime, and a whole client for `SELECT 1`
//! would only add ways to fail.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::client::Credentials;

/// The longest one attempt may take.
const ATTEMPT: Duration = Duration::from_millis(1_000);
/// Far more than the answer to `SELECT 1` with its headers.
const ANSWER_BYTES_MAX: u64 = 8 * 1024;

/// `Ok` when the engine at `address` answers `SELECT 1` for `user`; otherwise what it did instead.
pub(super) fn answers(address: SocketAddr, user: &Credentials) -> Result<(), String> {
    let describe = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, ATTEMPT).map_err(describe)?;
    stream.set_read_timeout(Some(ATTEMPT)).map_err(describe)?;
    stream.set_write_timeout(Some(ATTEMPT)).map_err(describe)?;
    // HTTP/1.0: the connection closes after the answer, so that reading to the end is enough.
    let request = format!(
        "GET /?query=SELECT%201 HTTP/1.0\r\nHost: {address}\r\nX-ClickHouse-User: {}\r\nX-ClickHouse-Key: {}\r\n\r\n",
        user.user, user.password
    );
    stream.write_all(request.as_bytes()).map_err(describe)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(describe)?;
    let answer = String::from_utf8_lossy(&answer);
    if answer.contains(" 200 ") && answer.ends_with("\r\n\r\n1\n") {
        return Ok(());
    }
    let body = answer.split_once("\r\n\r\n").map_or(&*answer, |(_head, body)| body);
    Err(format!("as {}: {}", user.user, body.trim().chars().take(300).collect::<String>()))
}

//! One pod of the measured node: a process that serves HTTP/1 on loopback and does a round of ordinary work whenever it
//! is told to.
//!
//! Owns what a round is. The pace is the parent's: each byte on standard input is one round, its end is the end. Called
//! by `tapio-workload beat`, started by [`super::load`].

use std::fs::File;
use std::io::{self, Read, Write, stdin, stdout};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::trace_parent::TraceParent;

/// Requests on the connection of a round.
pub const REQUESTS: u64 = 5;
/// One request in so many carries a trace.
pub const TRACED_EVERY: u64 = 20;
/// One request in so many is answered with HTTP 500; each carries a trace, so that about three percent of the events do.
pub const FAILED_EVERY: u64 = 40;
/// Files that are looked for and are not there, each round.
pub const ABSENT_FILES: u64 = 2;
/// One round in so many starts a program.
pub const PROGRAM_EVERY: u64 = 16;
/// A peer answers at once, or is gone.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);
const HEAD_BYTES_MAX: usize = 1_024;

/// Serves and works until standard input ends. Says its port first, a line; takes its peer's port first, two bytes.
///
/// # Errors
/// It cannot listen or start its thread.
pub fn run() -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on loopback")?;
    let port = listener.local_addr().context("a listener has an address")?.port();
    std::thread::Builder::new().name("serve".to_owned()).stack_size(128 << 10).spawn(move || {
        for stream in listener.incoming().flatten() {
            // A caller that is gone is its own business.
            drop(answer(stream));
        }
    })?;
    writeln!(stdout(), "{port}").context("cannot say the port")?;
    let mut input = stdin().lock();
    let mut peer = [0; 2];
    input.read_exact(&mut peer).context("no peer was named")?;
    let peer = u16::from_le_bytes(peer);
    let mut told = [0; 16];
    let mut rounds = 0_u64;
    loop {
        let length = match input.read(&mut told) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => length,
        };
        for _ in 0..length {
            // At the end of a run peers end in any order.
            drop(round(peer, rounds));
            rounds += 1;
        }
    }
}

fn round(peer: u16, number: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, peer))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
    for request in number * REQUESTS..(number + 1) * REQUESTS {
        stream.write_all(request_head(request).as_bytes())?;
        read_head(&mut stream)?;
    }
    drop(stream);
    for file in 0..ABSENT_FILES {
        // That it fails is the work.
        drop(File::open(format!("/etc/tapio-footprint/absent-{file}")));
    }
    if number.is_multiple_of(PROGRAM_EVERY) {
        Command::new("true").stdin(Stdio::null()).status()?;
    }
    Ok(())
}

fn request_head(number: u64) -> String {
    let path = if number.is_multiple_of(FAILED_EVERY) { "fail" } else { "items" };
    let trace = number.is_multiple_of(TRACED_EVERY).then(|| {
        let trace_id = u128::from(std::process::id()) << 64 | u128::from(number + 1);
        format!("traceparent: {}\r\n", TraceParent { trace_id, span_id: number + 1, sampled: true })
    });
    let trace = trace.unwrap_or_default();
    format!("GET /{path}/{number} HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n{trace}\r\n")
}

/// Answers the requests of one connection.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_WAIT_MAX))?;
    while let Some(head) = read_head(&mut stream)? {
        let status = if head.starts_with(b"GET /fail") { "500 Internal Server Error" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// A request's head, or an answer with its body of two bytes; `None` at the end of the stream.
fn read_head(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    let mut chunk = [0; 512];
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\r\n\r\nok") {
        let length = stream.read(&mut chunk)?;
        if length == 0 {
            return Ok(None);
        }
        head.extend_from_slice(chunk.get(..length).unwrap_or_default());
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(Some(head))
}

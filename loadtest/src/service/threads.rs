//! The blocking runtime: one thread per connection, plain sockets.
//!
//! Owns the accept loop, the connection threads and the pool of upstream connections. Called by
//! `tapio-workload serve --runtime threads`; [`exchange`] and [`Connection`] also carry the load driver.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::http1::{Response, response_bytes, take_request, take_response};
use crate::service::{
    CONNECTIONS_MAX, Call, IDLE_TIMEOUT, POOL_MAX, Plan, Service, UPSTREAM_TIMEOUT, USES_PER_CONNECTION_MAX,
};
use crate::truth_log::{Failure, Pending};

const STACK_BYTES: usize = 256 * 1024;
const READ_BYTES: usize = 4096;

/// Serves until the process ends.
///
/// # Errors
/// The listener fails in a way that will not pass.
pub fn serve(service: Service, listener: &TcpListener) -> io::Result<()> {
    let shared = Arc::new(Shared { service, pool: Mutex::new(Vec::new()) });
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        if open.load(Ordering::Relaxed) >= CONNECTIONS_MAX {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        // The peer was gone before it was accepted, or descriptors are short: neither ends the service.
        let Ok((stream, peer)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        open.fetch_add(1, Ordering::Relaxed);
        let (shared, done) = (Arc::clone(&shared), Arc::clone(&open));
        let spawned = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            // A connection that fails is its peer's matter: the peer logs it.
            drop(shared.converse(&stream, peer));
            done.fetch_sub(1, Ordering::Relaxed);
        });
        if spawned.is_err() {
            open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One connection to a server and how often it was used.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    uses: u32,
}

impl Connection {
    /// Connects, with the workload's timeouts.
    ///
    /// # Errors
    /// The connect fails.
    pub fn open(peer: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&peer, UPSTREAM_TIMEOUT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(UPSTREAM_TIMEOUT))?;
        Ok(Self { stream, buffer: Vec::new(), uses: 0 })
    }

    /// How many requests it carried.
    #[must_use]
    pub const fn uses(&self) -> u32 {
        self.uses
    }
}

/// Sends one request over a kept connection or a new one, and reads the response. Gives the connection back where it
/// can be used again. A kept connection that turns out dead is an error like any other: nothing is retried, because
/// a request that may have arrived must not be sent twice.
///
/// # Errors
/// Why there was no response.
pub fn exchange(
    kept: Option<Connection>,
    peer: SocketAddr,
    bytes: &[u8],
    pending: &mut Pending,
) -> Result<(Response, Option<Connection>), Failure> {
    pending.connection(None, peer, false);
    let mut connection = match kept {
        Some(connection) => connection,
        None => Connection::open(peer).map_err(|error| Failure::from(&error))?,
    };
    pending.connection(connection.stream.local_addr().ok(), peer, connection.uses > 0);
    connection.uses += 1;
    let response = round_trip(&mut connection, bytes).map_err(|error| Failure::from(&error))?;
    let kept = response.keep_alive.then_some(connection);
    Ok((response, kept))
}

fn round_trip(connection: &mut Connection, bytes: &[u8]) -> io::Result<Response> {
    connection.stream.write_all(bytes)?;
    loop {
        if let Some(response) = take_response(&mut connection.buffer)? {
            return Ok(response);
        }
        fill(&mut connection.stream, &mut connection.buffer)?;
    }
}

/// Reads once; the end of the stream is an error.
fn fill(stream: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0_u8; READ_BYTES];
    let length = stream.read(&mut chunk)?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.extend_from_slice(chunk.get(..length).unwrap_or_default());
    Ok(())
}

struct Shared {
    service: Service,
    pool: Mutex<Vec<Connection>>,
}

impl Shared {
    fn converse(&self, mut stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IDLE_TIMEOUT))?;
        let local = stream.local_addr()?;
        let (mut buffer, mut reused) = (Vec::new(), false);
        loop {
            let request = loop {
                if let Some(request) = take_request(&mut buffer)? {
                    break request;
                }
                fill(&mut stream, &mut buffer)?;
            };
            let mut pending = self.service.receive(&request);
            pending.connection(Some(local), peer, reused);
            let (status, body) = match self.service.plan(&request) {
                Plan::Answer(status, body) => (status, body),
                Plan::Call(mut call) => {
                    let outcome = self.call(&mut call);
                    self.service.relay(&request, *call, outcome)
                }
            };
            let written = stream.write_all(&response_bytes(status, request.keep_alive, &body));
            self.service.answered(pending, status);
            written?;
            if !request.keep_alive {
                return Ok(());
            }
            reused = true;
        }
    }

    fn call(&self, call: &mut Call) -> Result<Response, Failure> {
        let peer = self.service.upstream().ok_or(Failure::Other)?;
        let kept = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let (response, connection) = exchange(kept, peer, &call.bytes, &mut call.pending)?;
        if let Some(connection) = connection.filter(|connection| connection.uses < USES_PER_CONNECTION_MAX) {
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            if pool.len() < POOL_MAX {
                pool.push(connection);
            }
        }
        Ok(response)
    }
}

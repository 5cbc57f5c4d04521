//! The async runtime: the same service with many connections on few threads.
//!
//! Owns the accept loop, the connection tasks and the pool of upstream connections. Called by
//! `tapio-workload serve --runtime async`. Requests of several connections interleave on a thread: what a capture can
//! observe of a request's path is weaker here, and that is the point of the variant.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::http1::{Response, response_bytes, take_request, take_response};
use crate::service::{
    CONNECTIONS_MAX, Call, IDLE_TIMEOUT, POOL_MAX, Plan, Service, UPSTREAM_TIMEOUT, USES_PER_CONNECTION_MAX,
};
use crate::truth_log::Failure;

const WORKER_THREADS: usize = 2;
const READ_BYTES: usize = 4096;

/// Serves until the process ends.
///
/// # Errors
/// The runtime cannot be built, or the listener fails in a way that will not pass.
pub fn serve(service: Service, listener: std::net::TcpListener) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        let shared = Arc::new(Shared { service, pool: Mutex::new(Vec::new()) });
        accept(&shared, &listener).await
    })
}

async fn accept(shared: &Arc<Shared>, listener: &TcpListener) -> io::Result<()> {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await.map_err(io::Error::other)?;
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            continue;
        };
        let shared = Arc::clone(shared);
        connections.spawn(async move {
            // A connection that fails is its peer's matter: the peer logs it.
            drop(shared.converse(stream, peer).await);
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
    uses: u32,
}

struct Shared {
    service: Service,
    pool: Mutex<Vec<Connection>>,
}

impl Shared {
    async fn converse(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let (mut buffer, mut reused) = (Vec::new(), false);
        loop {
            let request = loop {
                if let Some(request) = take_request(&mut buffer)? {
                    break request;
                }
                timeout(IDLE_TIMEOUT, fill(&mut stream, &mut buffer)).await??;
            };
            let mut pending = self.service.receive(&request);
            pending.connection(Some(local), peer, reused);
            let (status, body) = match self.service.plan(&request) {
                Plan::Answer(status, body) => (status, body),
                Plan::Call(mut call) => {
                    let outcome = self.call(&mut call).await;
                    self.service.relay(&request, *call, outcome)
                }
            };
            let written = stream.write_all(&response_bytes(status, request.keep_alive, &body)).await;
            self.service.answered(pending, status);
            written?;
            if !request.keep_alive {
                return Ok(());
            }
            reused = true;
        }
    }

    async fn call(&self, call: &mut Call) -> Result<Response, Failure> {
        let peer = self.service.upstream().ok_or(Failure::Other)?;
        let kept = self.pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match timeout(UPSTREAM_TIMEOUT, self.exchange(kept, peer, call)).await {
            Ok(outcome) => outcome.map_err(|error| Failure::from(&error)),
            Err(_) => Err(Failure::Timeout),
        }
    }

    async fn exchange(
        &self,
        kept: Option<Connection>,
        peer: SocketAddr,
        call: &mut Call,
    ) -> io::Result<Response> {
        call.pending.connection(None, peer, false);
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(peer).await?;
                stream.set_nodelay(true)?;
                Connection { stream, buffer: Vec::new(), uses: 0 }
            }
        };
        call.pending.connection(connection.stream.local_addr().ok(), peer, connection.uses > 0);
        connection.uses += 1;
        connection.stream.write_all(&call.bytes).await?;
        let response = loop {
            if let Some(response) = take_response(&mut connection.buffer)? {
                break response;
            }
            fill(&mut connection.stream, &mut connection.buffer).await?;
        };
        if response.keep_alive && connection.uses < USES_PER_CONNECTION_MAX {
            let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
            if pool.len() < POOL_MAX {
                pool.push(connection);
            }
        }
        Ok(response)
    }
}

/// Reads once; the end of the stream is an error.
async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0_u8; READ_BYTES];
    let length = stream.read(&mut chunk).await?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    buffer.extend_from_slice(chunk.get(..length).unwrap_or_default());
    Ok(())
}

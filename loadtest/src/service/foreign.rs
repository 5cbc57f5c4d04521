//! A process that belongs to no service and has a service's port: whoever calls the service meets it.
//!
//! Owns the accept loop and what callers meet. Knows nothing of Tapio. Called by `tapio-workload occupy`.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::http1::{response_bytes, take_request};

/// Callers that are kept waiting; beyond, the first is let go.
const WAITING_MAX: usize = 256;
/// How long a caller may take to say what it wants.
const REQUEST_WAIT_MAX: Duration = Duration::from_millis(200);

/// What callers meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// This greeting, and the end of the stream.
    Greets(String),
    /// Nothing, ever.
    Silent,
    /// HTTP 404.
    NotFound,
}

/// Accepts until the process ends.
pub fn occupy(listener: &TcpListener, manner: &Manner) {
    let mut waiting: VecDeque<TcpStream> = VecDeque::new();
    loop {
        // The caller was gone before it was accepted.
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        match manner {
            // A caller that is gone needs no answer.
            Manner::Greets(greeting) => drop(stream.write_all(format!("{greeting}\r\n").as_bytes())),
            Manner::Silent => {
                waiting.push_back(stream);
                if waiting.len() > WAITING_MAX {
                    waiting.pop_front();
                }
            }
            Manner::NotFound => drop(not_found(&mut stream)),
        }
    }
}

fn not_found(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_WAIT_MAX))?;
    let (mut buffer, mut chunk) = (Vec::new(), [0_u8; 4_096]);
    while take_request(&mut buffer)?.is_none() {
        let length = stream.read(&mut chunk)?;
        let bytes = chunk.get(..length).filter(|bytes| !bytes.is_empty());
        buffer.extend_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
    }
    stream.write_all(&response_bytes(404, false, b"not found"))
}

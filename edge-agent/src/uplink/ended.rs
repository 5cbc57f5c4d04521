//! Why a connection ended, for logs, health and metrics.

use tapio_identity::{PeerError, quic};
use tapio_spool::SpoolError;
use tapio_wire::session::SessionFault;
use thiserror::Error;

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum Ended {
    #[error("the local socket cannot be used")]
    Socket(#[from] std::io::Error),
    #[error(transparent)]
    Endpoint(#[from] quic::EndpointError),
    #[error(transparent)]
    Connect(#[from] quic::ConnectError),
    #[error("no connection within {} s", super::CONNECT_TIME_MAX.as_secs())]
    ConnectTime,
    #[error("the connection ended")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the stream cannot be read")]
    Read(#[from] quinn::ReadError),
    #[error("the stream cannot be written")]
    Write(#[from] quinn::WriteError),
    #[error("the aggregator takes no bytes")]
    WriteTime,
    #[error("the aggregator closed the stream")]
    Closed,
    #[error("the session ended")]
    Session(#[from] SessionFault),
    #[error("the spool cannot be read")]
    Spool(#[from] SpoolError),
    #[error("the aggregator refused the session ({code}): {text}")]
    Refused { code: u16, text: String },
    #[error("the aggregator is going away: {0}")]
    Draining(String),
    #[error("the aggregator fell silent")]
    Silent,
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(
        "{whose} certificate has ended, and the connection with it: issue a new one, or check this machine's clock"
    )]
    Expired { whose: &'static str },
}

impl Ended {
    /// The reason as a metric's label.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Socket(_) | Self::Endpoint(_) => "socket",
            Self::Connect(_) => "connect",
            Self::ConnectTime => "connect-time",
            Self::Connection(_) | Self::Read(_) | Self::Write(_) => "connection",
            Self::WriteTime => "write-time",
            Self::Closed => "closed",
            Self::Session(_) => "session",
            Self::Spool(_) => "spool",
            Self::Refused { .. } => "refused",
            Self::Draining(_) => "draining",
            Self::Silent => "silent",
            Self::Peer(_) => "peer",
            Self::Expired { .. } => "expired",
        }
    }
}

//! QUIC endpoints for machines, on sockets that the caller has bound.
//!
//! Every limit is here. A connection has been checked by TLS; its server's name too. Its client's name
//! is read with [`crate::peer::peer_name`] before anything else is.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, ServerConfig,
    TokioRuntime, TransportConfig, VarInt,
};

use crate::credentials::Credentials;
use crate::name::Name;
use crate::peer::{Expected, PeerError, peer_name};
use crate::tls::{self, SERVER_NAME, ServerVerifier};

/// A quiet connection says this often that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection that has heard nothing for this long is over: three keep-alives and a half.
pub const IDLE_TIME_MAX: Duration = Duration::from_millis(IDLE_MILLIS_MAX as u64);
const IDLE_MILLIS_MAX: u32 = 18_000;
/// Streams in both directions that a peer may have open.
pub const STREAMS_BIDIRECTIONAL_MAX: u32 = 16;
/// Streams in one direction that a peer may have open.
pub const STREAMS_UNIDIRECTIONAL_MAX: u32 = 16;
/// Bytes that a peer may send ahead on one stream.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes that a peer may send ahead on all streams of a connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Bytes that are held for sending, acknowledged or not.
pub const SEND_WINDOW_BYTES: u64 = 8 << 20;
/// Handshakes that wait for the server at a time; further ones are refused.
pub const HANDSHAKES_MAX: usize = 256;

/// The application error code with which a peer is turned away because of its name.
pub const CLOSE_REFUSED_NAME: VarInt = VarInt::from_u32(0x10);

/// Why an endpoint cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// TLS cannot be configured.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// The provider lacks what QUIC's first packets need.
    #[error("the TLS provider cannot protect QUIC's first packets")]
    Provider(#[from] NoInitialCipherSuite),
    /// The socket cannot be used.
    #[error("cannot use the UDP socket")]
    Socket(#[source] io::Error),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// This side cannot be set up.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The connection cannot be tried, as with an address that no packet can go to.
    #[error("cannot connect to {address}")]
    Start {
        /// The server's address.
        address: SocketAddr,
        /// What is in the way.
        #[source]
        source: quinn::ConnectError,
    },
    /// The server is not who it should be.
    #[error("the server at {address} is refused: {source}")]
    Peer {
        /// The server's address.
        address: SocketAddr,
        /// Why.
        source: PeerError,
    },
    /// A certificate is the reason.
    #[error("cannot connect to {address}: {refusal}")]
    Refused {
        /// The server's address.
        address: SocketAddr,
        /// Whose certificate and why.
        refusal: Refusal,
    },
    /// Anything else: retry later.
    #[error("cannot connect to {address}: {source}")]
    Connection {
        /// The server's address.
        address: SocketAddr,
        /// What happened.
        source: ConnectionError,
    },
}

/// A connection that ended because of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Who refused whose.
    pub side: Side,
    /// Why.
    pub reason: RefusalReason,
}

/// Which side refused the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This side refused the peer's certificate.
    Own,
    /// The peer refused this side's certificate.
    Peer,
}

/// Why a certificate was refused, as far as TLS tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// No authority that the refusing side believes has issued it.
    UnknownAuthority,
    /// Its time is over.
    Expired,
    /// It was withdrawn.
    Revoked,
    /// There was none.
    Missing,
    /// Anything else that is wrong with it, its name included.
    Unacceptable,
}

impl RefusalReason {
    /// The reason as a metric's label.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownAuthority => "unknown_authority",
            Self::Expired => "certificate_expired",
            Self::Revoked => "certificate_revoked",
            Self::Missing => "no_certificate",
            Self::Unacceptable => "certificate",
        }
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whose, by) = match self.side {
            Side::Own => ("the peer's certificate", "this machine"),
            Side::Peer => ("this machine's certificate", "the peer"),
        };
        let reason = match self.reason {
            RefusalReason::UnknownAuthority => "no authority that it believes has issued it",
            RefusalReason::Expired => "it has expired (or a clock is wrong)",
            RefusalReason::Revoked => "it was revoked",
            RefusalReason::Missing => "there is none",
            RefusalReason::Unacceptable => "it is not acceptable",
        };
        write!(formatter, "{whose} is refused by {by}: {reason}")
    }
}

impl Refusal {
    /// The certificate's part in the end of a connection, if it had one.
    #[must_use]
    pub fn of(error: &ConnectionError) -> Option<Self> {
        let (side, code) = match error {
            ConnectionError::TransportError(error) => (Side::Own, u64::from(error.code)),
            ConnectionError::ConnectionClosed(close) => (Side::Peer, u64::from(close.error_code)),
            _ => return None,
        };
        // QUIC carries a TLS alert as 0x100 and the alert (RFC 9001, section 4.8); the alerts are those
        // of RFC 8446, section 6.2.
        let reason = match code.checked_sub(0x100)? {
            48 => RefusalReason::UnknownAuthority,
            45 => RefusalReason::Expired,
            44 => RefusalReason::Revoked,
            116 => RefusalReason::Missing,
            42 | 43 | 46 | 49 | 51 => RefusalReason::Unacceptable,
            _ => return None,
        };
        Some(Self { side, reason })
    }
}

/// A server on `socket`, for clients that an authority vouches for.
///
/// # Errors
/// When TLS or the socket cannot be used. Needs a tokio runtime.
pub fn server_endpoint(socket: UdpSocket, credentials: &Credentials) -> Result<Endpoint, EndpointError> {
    let config = server_config(credentials)?;
    Endpoint::new(EndpointConfig::default(), Some(config), socket, Arc::new(TokioRuntime))
        .map_err(EndpointError::Socket)
}

/// The configuration of [`server_endpoint`], for `Endpoint::set_server_config` when credentials change.
///
/// # Errors
/// When TLS cannot be configured.
pub fn server_config(credentials: &Credentials) -> Result<ServerConfig, EndpointError> {
    let tls = QuicServerConfig::try_from(tls::server_config(credentials)?)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    config.max_incoming(HANDSHAKES_MAX);
    Ok(config)
}

/// An endpoint for clients on `socket`. It accepts no connections.
///
/// # Errors
/// When the socket cannot be used. Needs a tokio runtime.
pub fn client_endpoint(socket: UdpSocket) -> Result<Endpoint, EndpointError> {
    Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))
        .map_err(EndpointError::Socket)
}

/// Connects to the server at `address`, which must be as `expected`, and returns its name too.
///
/// The server checks this side's certificate after this side thinks that it is connected (TLS 1.3 is like
/// that): a refusal then ends the connection, and [`Refusal::of`] reads why.
///
/// # Errors
/// When there is no connection, with whose fault that is where it can be told.
pub async fn connect(
    endpoint: &Endpoint,
    credentials: &Credentials,
    address: SocketAddr,
    expected: &Expected,
) -> Result<(Connection, Name), ConnectError> {
    let verifier = Arc::new(ServerVerifier::new(credentials, expected.clone()));
    let tls = tls::client_config_with(credentials, Arc::clone(&verifier)).map_err(EndpointError::from)?;
    let tls = QuicClientConfig::try_from(tls).map_err(EndpointError::from)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    let connecting = endpoint
        .connect_with(config, address, SERVER_NAME)
        .map_err(|source| ConnectError::Start { address, source })?;
    let refuse = |source| ConnectError::Peer { address, source };
    let connection = connecting.await.map_err(|source| match (verifier.refused(), Refusal::of(&source)) {
        (Some(refused), _) => refuse(refused.clone()),
        (None, Some(refusal)) => ConnectError::Refused { address, refusal },
        (None, None) => ConnectError::Connection { address, source },
    })?;
    let name = peer_name(&connection).map_err(refuse)?;
    Ok((connection, name))
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::from(VarInt::from_u32(IDLE_MILLIS_MAX));
    transport
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(idle))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_BIDIRECTIONAL_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_UNIDIRECTIONAL_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        // Nothing is sent that may be lost without being counted.
        .datagram_receive_buffer_size(None);
    transport
}

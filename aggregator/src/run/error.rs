//! Why the aggregator does not start, or ended.

use std::net::SocketAddr;

use tapio_daemon::{Failure, http};
use tapio_identity::{CredentialsError, https::HttpsError, quic, revocation::RevocationError};
use tapio_spool::SpoolError;
use tapio_wire::frame::FrameFault;
use thiserror::Error;

use crate::{
    engine::{EngineThreadError, outbox::OutboxError},
    enrolment::EnrolmentError,
    grpc::GrpcError,
    pipeline::{encode::EncoderError, start::StartError, writer::WriterError},
    recording::files::FilesError,
    rules::RulesError,
    state::StateError,
    store_link::StoreLinkError,
};

/// Why the aggregator does not start, or ended.
#[derive(Debug, Error)]
pub enum RunError {
    /// A rule is wrong; all faults are listed.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    State(#[from] StateError),
    /// The machine's certificate or key cannot be used.
    #[error("the machine's identity cannot be used")]
    Credentials(#[from] CredentialsError),
    /// Nodes cannot enrol.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// The list of revoked certificates cannot be used.
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    /// The certificate is another machine's.
    #[error(
        "the certificate names {found}, and the configuration {expected}: use the certificate that was issued for this aggregator"
    )]
    OtherName {
        /// Who the certificate is for.
        found: String,
        /// Who the configuration says this is.
        expected: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({key})")]
    Listen {
        /// The configuration's key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The QUIC endpoint cannot be set up.
    #[error("the intake cannot be set up")]
    Endpoint(#[from] quic::EndpointError),
    /// Metrics and health cannot be served.
    #[error("metrics and health cannot be served")]
    Http(#[from] http::HttpError),
    /// The certificate or key of gRPC cannot be used.
    #[error("gRPC cannot be served")]
    GrpcTls(#[source] HttpsError),
    /// The certificate or key of the dashboard cannot be used.
    #[error("the dashboard cannot be served")]
    DashboardTls(#[source] HttpsError),
    /// gRPC cannot be set up.
    #[error("gRPC cannot be served")]
    Grpc(#[from] GrpcError),
    /// Events cannot be given to subscribers.
    #[error("events cannot be given to subscribers")]
    Live(#[source] FrameFault),
    /// What is on the disk cannot be used.
    #[error("what is on the disk cannot be used")]
    Start(#[from] StartError),
    /// The spool failed.
    #[error("the spool failed")]
    Spool(#[from] SpoolError),
    /// The store cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreLinkError),
    /// The way into the store cannot go on.
    #[error("the way into the store ended")]
    Feed(#[from] WriterError),
    /// Findings cannot be kept.
    #[error("findings cannot be kept")]
    Outbox(#[from] OutboxError),
    /// The encoder cannot be made.
    #[error("the encoder cannot be made")]
    Encoder(#[from] EncoderError),
    /// The engine's thread cannot go on.
    #[error("the engine ended")]
    Engine(#[from] EngineThreadError),
    /// Nothing can be recorded.
    #[error("what the engine takes cannot be recorded")]
    Recording(#[from] FilesError),
    /// The system refuses a thread, or randomness.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A thread or task panicked, or ended before it was told to, which is a fault of this program.
    #[error("the part {name:?} ended unexpectedly")]
    Panicked {
        /// Which.
        name: &'static str,
    },
}

impl RunError {
    /// The process's failure: refused rules and another machine's certificate are the configuration's.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Rules(_) | Self::OtherName { .. } => Failure::config(self),
            other => Failure::other(other),
        }
    }
}

//! Why no certificate is issued: a closed set of names, for replies, logs and counters.

use tapio_identity::{PeerError, issuer::SigningRequestError, revocation::Revoked};
use thiserror::Error;

/// Why no certificate is issued.
#[derive(Debug, Error)]
pub(crate) enum Refusal {
    /// The address asked too often.
    #[error("this address asks too often: ask again later")]
    TooOften,
    /// All together ask too often.
    #[error("too many ask at once: ask again later")]
    Busy,
    /// The request did not come in time.
    #[error("the request did not come in time")]
    TooSlow,
    /// It is too long.
    #[error("a request of {bytes} bytes is not read")]
    TooLong {
        /// What it said of itself.
        bytes: u32,
    },
    /// It is none.
    #[error("the bytes are no request")]
    Malformed,
    /// Its signing request is not good.
    #[error("the signing request is refused: {0}")]
    SigningRequest(SigningRequestError),
    /// Such proofs are not taken here.
    #[error("proofs of the kind {proof} are not taken here: see [enrolment] of the aggregator")]
    ProofNotTaken {
        /// The kind.
        proof: &'static str,
    },
    /// Kubernetes does not vouch for the token.
    #[error("Kubernetes refuses the token: {said}")]
    TokenRefused {
        /// What it said.
        said: String,
    },
    /// The token is for another purpose.
    #[error("the token is not for the audience {expected:?}")]
    WrongAudience {
        /// What is expected.
        expected: String,
    },
    /// The token is of another service account.
    #[error("the token is of {found:?}, not of {expected:?}")]
    WrongServiceAccount {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// The token is bound to no pod.
    #[error("the token is bound to no pod: mount it by a projected volume")]
    NoPod,
    /// The token names no node.
    #[error("the token names no node: its pod is not scheduled, or the API server is older than 1.32")]
    NoNode,
    /// No line has the token.
    #[error("the token is not known")]
    UnknownToken,
    /// The token was used as often as it may be.
    #[error("the token was used before, for another key: make a new one")]
    TokenSpent,
    /// The token's time is over.
    #[error("the token's time is over: make a new one")]
    TokenExpired,
    /// No line of the file has the node any more.
    #[error("the node is not in the list of those that may renew a certificate")]
    NotListed,
    /// The name is none of a node here.
    #[error("the name cannot be certified: {0}")]
    Name(PeerError),
    /// The name was taken back.
    #[error("{0}")]
    Revoked(Revoked),
    /// This side cannot answer.
    #[error("no certificate can be issued now, ask again later: {0}")]
    Unavailable(String),
}

impl Refusal {
    /// The reason's name.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::TooOften => "too-often",
            Self::Busy => "busy",
            Self::TooSlow => "too-slow",
            Self::TooLong { .. } => "too-long",
            Self::Malformed => "malformed",
            Self::SigningRequest(_) => "signing-request",
            Self::ProofNotTaken { .. } => "proof-not-taken",
            Self::TokenRefused { .. } => "token-refused",
            Self::WrongAudience { .. } => "wrong-audience",
            Self::WrongServiceAccount { .. } => "wrong-service-account",
            Self::NoPod => "no-pod",
            Self::NoNode => "no-node",
            Self::UnknownToken => "unknown-token",
            Self::TokenSpent => "token-spent",
            Self::TokenExpired => "token-expired",
            Self::NotListed => "not-listed",
            Self::Name(_) => "name",
            Self::Revoked(_) => "revoked",
            Self::Unavailable(_) => "unavailable",
        }
    }

    /// What is wrong on this side, for health.
    pub(crate) fn own_fault(&self) -> Option<String> {
        match self {
            Self::Unavailable(reason) => Some(format!("no node can enrol: {reason}")),
            _ => None,
        }
    }
}

//! Whether the certificate that a peer's connection was made with still stands: a session may last for weeks, and the
//! handshake looked at it once.
//!
//! Called by the sessions, which end with it.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tapio_identity::{
    PeerError, RevocationList, peer,
    revocation::{Followed, Presented, Revoked},
};
use thiserror::Error;
use tokio::time::Instant;

/// A peer's certificate, as it stands.
pub(super) struct Standing {
    /// When it is over; nothing where that is too far away to be told.
    expires_at: Option<Instant>,
    revocations: Followed,
}

/// Why it stands no more.
#[derive(Debug, Error)]
pub(super) enum Fallen {
    /// Its time is over.
    #[error("the certificate that this connection was made with is no longer valid")]
    Expired,
    /// It was taken back.
    #[error("{0}: the list of revocations of this aggregator names it")]
    Revoked(Revoked),
}

impl Fallen {
    /// The reason, for counters and answers.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Expired => "certificate-expired",
            Self::Revoked(_) => "certificate-revoked",
        }
    }
}

impl Standing {
    /// That of the peer that presented `chain`.
    ///
    /// # Errors
    /// When a certificate cannot be read, or there is none.
    pub(super) fn of(chain: &[CertificateDer<'_>], revocations: &RevocationList) -> Result<Self, PeerError> {
        let left = peer::not_after_in_chain(Some(chain))?.duration_since(SystemTime::now());
        Ok(Self {
            expires_at: Instant::now().checked_add(left.unwrap_or_default()),
            revocations: revocations.follow(Presented::of(chain)),
        })
    }

    /// Waits until it stands no more. Cancel-safe.
    pub(super) async fn fallen(&mut self) -> Fallen {
        let expired = async {
            match self.expires_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        // Both branches are cancel-safe.
        tokio::select! {
            () = expired => Fallen::Expired,
            revoked = self.revocations.revoked() => Fallen::Revoked(revoked),
        }
    }
}

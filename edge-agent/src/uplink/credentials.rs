//! The node's credentials as connections are made with them, and when a connection is to make room for another because
//! of a certificate.
//!
//! A certificate that is replaced on the disk, or that the aggregator replaced, is used while the connection before
//! still carries the session: see [`OwnCredentials::due`]. Must never wait for the end of a certificate, and never hold
//! its lock across an await. Called by the uplink.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tapio_daemon::{Progress, with_causes};
use tapio_identity::{CredentialFiles, CredentialWatch, Credentials, rotation::LOOK_INTERVAL};

/// Between two connections that are made to see whether the aggregator has a new certificate.
const PROBE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The node's credentials, which follow their files.
pub(crate) struct OwnCredentials {
    watch: Mutex<CredentialWatch>,
    progress: Progress,
}

/// The certificates that a connection was made with.
#[derive(Clone, Debug)]
pub(super) struct MadeWith {
    /// The own one's serial number.
    pub(super) serial: String,
    /// When the own one ends.
    pub(super) own_end: SystemTime,
    /// When the first of those ends that the aggregator showed.
    pub(super) their_end: SystemTime,
}

impl MadeWith {
    /// When the first of both ends, and whose it is.
    pub(super) fn until(&self) -> (SystemTime, &'static str) {
        (self.their_end, "the aggregator's").min((self.own_end, "this node's"))
    }

    /// Whether a connection with these certificates can last longer than one with those of `other`, or shows what
    /// `other` does not.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.serial != other.serial || self.their_end > other.their_end
    }
}

impl OwnCredentials {
    /// Follows `files`, of which `current` was loaded; says in `progress` what is wrong with them.
    pub(crate) fn new(files: CredentialFiles, current: Credentials, progress: Progress) -> Self {
        progress.idle();
        Self { watch: Mutex::new(CredentialWatch::new(files, current)), progress }
    }

    /// What is in force after a look at the files.
    pub(super) fn current(&self) -> Credentials {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        match watch.look() {
            Ok(new) => {
                if let Some(new) = new {
                    tracing::info!(serial = new.serial(), "the node has a new certificate");
                }
                self.progress.clear();
            }
            Err(error) => {
                let text = with_causes(&error);
                tracing::debug!(error = text, "the node's certificate is kept as it was");
                self.progress.fault(format!("{text}; the certificate before stays in use"));
            }
        }
        if watch.current().remaining(SystemTime::now()).is_none() {
            self.progress
                .fault("the node's certificate has ended: issue a new one, or check this machine's clock");
        }
        watch.current().clone()
    }

    /// Waits until a connection that was made with these certificates should make room for one with newer ones: when
    /// this node has a new one, and from time to time when the aggregator's comes to its end. Cancel-safe.
    pub(super) async fn due(&self, made_with: &MadeWith) {
        let probe = tokio::time::Instant::now() + probe_after(made_with.their_end);
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if self.current().serial() != made_with.serial || tokio::time::Instant::now() >= probe {
                return;
            }
        }
    }
}

/// When it is worth a handshake to see whether the aggregator has a new certificate: after three quarters of what is left
/// of the old one, so that tries come closer to each other with its end.
fn probe_after(their_end: SystemTime) -> Duration {
    let left = their_end.duration_since(SystemTime::now()).unwrap_or_default();
    (left / 4 * 3).max(PROBE_INTERVAL_MIN)
}

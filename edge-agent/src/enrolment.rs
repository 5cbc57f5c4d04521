//! The node's certificate, where the node asks for it: once before it begins, and again after two thirds of its time.
//!
//! The key is made here and never leaves the node. What is got is put on the disk, where the uplink finds it as it finds
//! any new certificate; a renewal that fails is tried again until it works, and stands in health meanwhile. Must never
//! stop the agent once it runs. Called by the agent.

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use prometheus_client::metrics::counter::Counter;
use tapio_daemon::{Progress, Registry, metrics::Drops, with_causes};
use tapio_identity::{
    Credentials, CredentialsError,
    enrolment::{EnrolmentError, Proof, Request, StoredError, signing_request},
    issuer::CLOCK_SLACK,
};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{clock, config::EnrolConfig};

/// How long the first certificate is asked for before the agent gives up, and is started again.
const FIRST_TIME_MAX: Duration = Duration::from_secs(60);
/// The first wait before asking again; it doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// The longest wait before asking again.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A token has some kilobytes.
const TOKEN_BYTES_MAX: u64 = 12 << 10;
/// How often it is looked whether the time for a renewal has come: clocks are set.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Why the node has no certificate.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// The token cannot be read.
    #[error("cannot read the token {} (identity.enrol_token)", path.display())]
    Token {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Nobody gives one.
    #[error("the node gets no certificate")]
    Asked(#[from] EnrolmentError),
    /// It cannot be kept, or not be used.
    #[error("the node's certificate cannot be kept")]
    Stored(#[from] StoredError),
    /// What was kept cannot be read again.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl EnrolError {
    /// The reason as a metric's label.
    const fn name(&self) -> &'static str {
        match self {
            Self::Token { .. } => "token",
            Self::Asked(EnrolmentError::Refused { .. }) => "refused",
            Self::Asked(EnrolmentError::Connect { .. }) => "connect",
            Self::Asked(EnrolmentError::Silent { .. }) => "silent",
            Self::Asked(_) => "answer",
            Self::Stored(_) | Self::Credentials(_) => "stored",
        }
    }
}

/// What renewals count.
pub(crate) struct Metrics {
    renewed: Counter,
    failed: Drops,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Self {
        let registry = registry.subsystem("enrolment");
        Self {
            renewed: registry.counter("renewals", "Certificates that the node got while it ran"),
            failed: registry.drops("failed_renewals", "Requests for a certificate that brought none"),
        }
    }
}

/// Whether what a request needs is there.
pub(crate) fn check(config: &EnrolConfig) -> Result<(), EnrolError> {
    token(config).map(drop)
}

/// The credentials that were got before and are still good, or new ones.
///
/// # Errors
/// When there are none, and nobody gave any for a minute.
pub(crate) async fn first(config: &EnrolConfig) -> Result<Credentials, EnrolError> {
    if let Ok(credentials) = config.stored.files().load() {
        return Ok(credentials);
    }
    let (deadline, mut backoff) = (Instant::now() + FIRST_TIME_MAX, BACKOFF_MIN);
    loop {
        match enrol(config, None).await {
            Ok(credentials) => return Ok(credentials),
            Err(error) if Instant::now() + backoff >= deadline => return Err(error),
            Err(error) => tracing::warn!(error = with_causes(&error), "the node has no certificate yet"),
        }
        tokio::time::sleep(backoff).await;
        backoff *= 2;
    }
}

/// Keeps the node's certificate good.
pub(crate) struct Renewal {
    pub(crate) config: EnrolConfig,
    pub(crate) credentials: Credentials,
    pub(crate) metrics: Metrics,
    pub(crate) progress: Progress,
}

impl Renewal {
    /// Renews until the agent ends.
    pub(crate) async fn run(mut self, finished: CancellationToken) {
        self.progress.idle();
        let mut backoff = BACKOFF_MIN;
        let mut wait = Duration::ZERO;
        loop {
            // Cancel-safe: all only wait.
            tokio::select! {
                () = finished.cancelled() => break,
                () = async { tokio::time::sleep(wait).await; until_due(&self.credentials).await } => {}
            }
            let renewed = tokio::select! {
                () = finished.cancelled() => break,
                // A reply that is not awaited is asked for again, for the same key.
                renewed = enrol(&self.config, Some(&self.credentials)) => renewed,
            };
            match renewed {
                Ok(credentials) => {
                    tracing::info!(serial = credentials.serial(), "the node's certificate was renewed");
                    self.credentials = credentials;
                    self.metrics.renewed.inc();
                    self.progress.clear();
                    (wait, backoff) = (Duration::ZERO, BACKOFF_MIN);
                }
                Err(error) => {
                    self.metrics.failed.add(error.name(), 1);
                    let (error, left) = (with_causes(&error), left(&self.credentials));
                    tracing::warn!(error, "the node's certificate is not renewed yet");
                    self.progress.fault(format!(
                        "the node's certificate cannot be renewed, it is good for {} s more: {error}",
                        left.as_secs()
                    ));
                    // The less is left, the sooner it is tried again.
                    wait = backoff.min(left / 8).max(BACKOFF_MIN);
                    backoff = (backoff * 2).min(BACKOFF_MAX);
                }
            }
        }
        self.progress.finish();
    }
}

/// Waits until a third of a certificate's time is left; a little more on some nodes, so that those of a fleet that
/// started together do not ask together.
async fn until_due(credentials: &Credentials) {
    let whole = credentials.not_after().duration_since(credentials.not_before()).unwrap_or_default();
    let third = whole.saturating_sub(CLOCK_SLACK) / 3;
    let spread = third / 4 * u32::try_from(clock::boot_nanos() / 1_000 % 512).unwrap_or(0) / 512;
    while left(credentials) > third + spread {
        tokio::time::sleep(LOOK_INTERVAL.min(left(credentials))).await;
    }
}

fn left(credentials: &Credentials) -> Duration {
    credentials.remaining(SystemTime::now()).unwrap_or_default()
}

/// Asks once, and keeps what is got.
async fn enrol(config: &EnrolConfig, current: Option<&Credentials>) -> Result<Credentials, EnrolError> {
    // A token of a file was for the first certificate: the next ones the one before proves.
    let shown = current.filter(|shown| !config.is_service_account && left(shown) > Duration::ZERO);
    let proof = match shown {
        Some(_) => Proof::Certificate,
        None if config.is_service_account => Proof::ServiceAccount(token(config)?),
        None => Proof::Token(token(config)?),
    };
    let key = config.stored.asked_key()?;
    let request = Request { proof, signing_request: signing_request(&key).map_err(StoredError::from)? };
    let chain = config.server.ask(&request, shown).await?;
    config.stored.store(&key, &chain)?;
    Ok(config.stored.files().load()?)
}

fn token(config: &EnrolConfig) -> Result<String, EnrolError> {
    let refuse = |source| EnrolError::Token { path: config.token.clone(), source };
    if fs::metadata(&config.token).map_err(refuse)?.len() > TOKEN_BYTES_MAX {
        return Err(refuse(io::Error::other("it is larger than any token")));
    }
    Ok(fs::read_to_string(&config.token).map_err(refuse)?.trim().to_owned())
}

#[cfg(test)]
mod tests;

//! Who this aggregator is, and whose certificates are taken back, as the files say while it runs.
//!
//! New files are used from the next handshake on; what cannot be used changes nothing and stands in health. Loaded at
//! the start by [`crate::run`], then a task of its own.

use tapio_daemon::{Progress, with_causes};
use tapio_identity::{
    CredentialFiles, CredentialWatch, Credentials, RevocationList,
    quic::EndpointError,
    revocation::{RevocationError, RevocationFile},
    rotation::{LOOK_INTERVAL, RotationError},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, IdentityConfig},
    metrics::IdentityMetrics,
    run::RunError,
};

/// The own credentials and the list of revoked certificates, with their files.
#[derive(Debug)]
pub(crate) struct Identity {
    credentials: CredentialWatch,
    revocations: RevocationList,
    file: Option<RevocationFile>,
}

/// What one look at the files found.
struct Looked {
    credentials: Result<Option<Credentials>, RotationError>,
    revoked: Result<Option<usize>, RevocationError>,
}

impl Identity {
    /// Loads what the machine shows to others, which must be its own, and the list.
    pub(crate) fn load(config: &Config) -> Result<Self, RunError> {
        let IdentityConfig { certificate, key, authority, revocations } = config.identity.clone();
        let files = CredentialFiles { certificate, key, authority };
        let list = RevocationList::default();
        let credentials = files.load()?.checking(list.clone());
        if *credentials.name() != config.name {
            let (found, expected) = (credentials.name().to_string(), config.name.to_string());
            return Err(RunError::OtherName { found, expected });
        }
        let file = revocations.map(|path| RevocationFile::open(&path, list.clone())).transpose()?;
        Ok(Self { credentials: CredentialWatch::new(files, credentials), revocations: list, file })
    }

    /// What is in force now.
    pub(crate) const fn credentials(&self) -> &Credentials {
        self.credentials.current()
    }

    /// The list, which changes with its file.
    pub(crate) const fn revocations(&self) -> &RevocationList {
        &self.revocations
    }

    /// Follows the files until stopped; new credentials are given to `apply`.
    pub(crate) async fn follow(
        mut self,
        apply: impl Fn(&Credentials) -> Result<(), EndpointError> + Send,
        metrics: IdentityMetrics,
        progress: Progress,
        stop: CancellationToken,
    ) -> Result<(), RunError> {
        let mut ticks = interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = Vec::new();
        loop {
            metrics.certificate_end.set(seconds(self.credentials()));
            metrics.revoked.set(i64::try_from(self.revocations.len()).unwrap_or(i64::MAX));
            // Cancel-safe: a tick that is dropped comes again.
            tokio::select! {
                () = stop.cancelled() => break,
                _ = ticks.tick() => {}
            }
            // A long list takes longer than a task may hold its thread.
            let looked = tokio::task::spawn_blocking(move || (self.look(), self)).await;
            let Ok((looked, back)) = looked else { return Err(RunError::Panicked { name: "identity" }) };
            self = back;
            let faults = self.take(looked, &apply, &metrics);
            // What stays wrong is said once, and stands in the health until it is right.
            for fault in faults.iter().filter(|fault| !said.contains(*fault)) {
                tracing::error!(fault, "the identity is kept as it was");
            }
            if faults.is_empty() {
                progress.clear()
            } else {
                progress.fault(faults.join("; "))
            }
            said = faults;
            progress.tick();
            progress.idle();
        }
        progress.finish();
        Ok(())
    }

    fn look(&mut self) -> Looked {
        Looked {
            credentials: self.credentials.look(),
            revoked: self.file.as_mut().map_or(Ok(None), RevocationFile::look),
        }
    }

    /// Puts into force what was found, and returns what is wrong.
    fn take(
        &self,
        looked: Looked,
        apply: &impl Fn(&Credentials) -> Result<(), EndpointError>,
        metrics: &IdentityMetrics,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        match looked.credentials {
            Ok(None) => {}
            Ok(Some(new)) => match apply(&new) {
                Ok(()) => {
                    metrics.rotations.inc();
                    tracing::info!(serial = new.serial(), "nodes are shown a new certificate");
                }
                Err(error) => faults.push(with_causes(&error)),
            },
            Err(error) => faults.push(with_causes(&error)),
        }
        match looked.revoked {
            Ok(None) => {}
            Ok(Some(entries)) => tracing::info!(entries, "the list of revoked certificates was read"),
            Err(error) => faults.push(format!("{}; the list before stays in force", with_causes(&error))),
        }
        if self.credentials().remaining(std::time::SystemTime::now()).is_none() {
            faults.push("the own certificate has ended, no node can connect: issue a new one".to_owned());
        }
        faults
    }
}

fn seconds(credentials: &Credentials) -> i64 {
    let since = credentials.not_after().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

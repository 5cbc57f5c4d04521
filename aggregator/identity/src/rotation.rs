//! Credentials that follow their files, so that a certificate is replaced without a restart.
//!
//! Three files are replaced one after the other: what does not fit together is looked at once more before it is called
//! a fault, and what was loaded last stays in force. Must never take another machine's name. Called by the aggregator
//! and by the agent.

use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

use crate::{
    credentials::{Credentials, CredentialsError},
    files::Stamp,
    name::Name,
};

/// How often files of credentials are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Where a machine's credentials are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialFiles {
    /// The certificate chain, the leaf first.
    pub certificate: PathBuf,
    /// Its private key; it may be in the same file.
    pub key: PathBuf,
    /// The authorities that are believed.
    pub authority: PathBuf,
}

impl CredentialFiles {
    /// Loads what is there now.
    ///
    /// # Errors
    /// With the file and what to do about it.
    pub fn load(&self) -> Result<Credentials, CredentialsError> {
        Credentials::load(&self.certificate, &self.key, &self.authority)
    }

    fn stamp(&self) -> Stamp {
        Stamp::of(&[&self.certificate, &self.key, &self.authority])
    }
}

/// Why new credentials are not used.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// A file cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// They are another machine's.
    #[error(
        "the new certificate names {found}, and this machine is {expected}: put its own certificate there"
    )]
    OtherName {
        /// Who the certificate is for.
        found: Box<Name>,
        /// Who this machine is.
        expected: Box<Name>,
    },
}

/// Credentials and the files that they follow.
#[derive(Debug)]
pub struct CredentialWatch {
    files: CredentialFiles,
    current: Credentials,
    /// As of the last look that settled what is there; nothing as long as it must be looked at again.
    seen: Option<Stamp>,
    /// Whether the last look met a fault: the next one tells it.
    failed: bool,
}

impl CredentialWatch {
    /// Follows `files`, of which `current` was loaded.
    #[must_use]
    pub const fn new(files: CredentialFiles, current: Credentials) -> Self {
        Self { files, current, seen: None, failed: false }
    }

    /// What is in force.
    #[must_use]
    pub const fn current(&self) -> &Credentials {
        &self.current
    }

    /// Looks whether there are new credentials, and returns them once. They check the same list of revocations as those
    /// before. Reads files where they have changed.
    ///
    /// # Errors
    /// When what is there cannot be used, and could not at the look before; what was in force stays in force.
    pub fn look(&mut self) -> Result<Option<Credentials>, RotationError> {
        let stamp = self.files.stamp();
        if self.seen.as_ref() == Some(&stamp) {
            return Ok(None);
        }
        let is_settled = stamp.is_settled(SystemTime::now());
        match self.take() {
            Ok(new) => {
                self.failed = false;
                self.seen = is_settled.then_some(stamp);
                Ok(new)
            }
            // Perhaps one file is there and the others follow.
            Err(_first) if !self.failed => {
                self.failed = true;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn take(&mut self) -> Result<Option<Credentials>, RotationError> {
        let loaded = self.files.load()?;
        if loaded.name() != self.current.name() {
            return Err(RotationError::OtherName {
                found: Box::new(loaded.name().clone()),
                expected: Box::new(self.current.name().clone()),
            });
        }
        if loaded.is_same(&self.current) {
            return Ok(None);
        }
        self.current = loaded.checking(self.current.revocations().clone());
        Ok(Some(self.current.clone()))
    }
}

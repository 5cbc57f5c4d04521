//! A machine's own certificate and key, and the authorities that it believes.

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::name::Name;
use crate::peer::{self, PeerError};
use crate::pem;
use crate::revocation::RevocationList;
use crate::tls;

/// Which of the files an error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The machine's certificate, followed by those between it and the authority.
    Certificate,
    /// The certificate's private key.
    Key,
    /// The authorities' certificates.
    Authority,
}

impl fmt::Display for What {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::Authority => "authority's certificate",
        })
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    Read {
        /// What the file should hold.
        what: What,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("the {what} {} cannot be used: {reason}", path.display())]
    Malformed {
        /// What the file should hold.
        what: What,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is that of another certificate.
    #[error("the private key {} does not belong to the certificate {}: were they issued together?", key.display(), certificate.display())]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate {} expired {} ago: issue a new one, or check this machine's clock", path.display(), rough(*ago))]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// How long ago.
        ago: Duration,
    },
    /// The certificate does not name a machine.
    #[error("the certificate {} cannot be used: {source}", path.display())]
    Name {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with the name.
        source: PeerError,
    },
    /// The certificate was not issued by the authority.
    #[error("the certificate {} is not accepted by the authority {}: {reason}", path.display(), authority.display())]
    NotIssued {
        /// The certificate's file.
        path: PathBuf,
        /// The authority's file.
        authority: PathBuf,
        /// What the check said.
        reason: String,
    },
}

fn rough(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds @ 7200..=172_799 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A machine's certificate and key, and the authorities that it believes. Clones share them.
#[derive(Clone)]
pub struct Credentials {
    name: Name,
    certified: Arc<CertifiedKey>,
    roots: Arc<RootCertStore>,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    key_is_private: bool,
    revocations: RevocationList,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("name", &self.name)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads a machine's credentials: its certificate (chain), its key, and the authorities that vouch
    /// for its peers, all PEM. They are checked against each other as a peer would.
    ///
    /// # Errors
    /// With the file and what to do about it.
    pub fn load(certificate: &Path, key: &Path, authority: &Path) -> Result<Self, CredentialsError> {
        let roots = Arc::new(load_roots(authority)?);
        let (certified, leaf, key_is_private) = load_pair(certificate, key)?;
        let path = || certificate.to_owned();
        let name = peer::name_in(&leaf).map_err(|source| CredentialsError::Name { path: path(), source })?;
        let not_after = check_lifetime(certificate, &leaf)?;
        tls::client_verifier(&roots)
            .and_then(|verifier| {
                let between = certified.cert.get(1..).unwrap_or_default();
                verifier.verify_client_cert(&leaf, between, UnixTime::now())
            })
            .map_err(|error| CredentialsError::NotIssued {
                path: path(),
                authority: authority.to_owned(),
                reason: error.to_string(),
            })?;
        let malformed = |error| pem::malformed(What::Certificate, certificate, error);
        Ok(Self {
            name,
            serial: peer::serial_in(&leaf).map_err(malformed)?,
            not_before: peer::not_before_in(&leaf).map_err(malformed)?,
            certified: Arc::new(certified),
            roots,
            not_after,
            key_is_private,
            revocations: RevocationList::default(),
        })
    }

    /// The same, where peers whose certificates `revocations` names are refused.
    #[must_use]
    pub fn checking(self, revocations: RevocationList) -> Self {
        Self { revocations, ..self }
    }

    /// The machine's name.
    #[must_use]
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// The certificate's serial number, as lists of revocations name it.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When the certificate began.
    #[must_use]
    pub const fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the certificate ends.
    #[must_use]
    pub const fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// How long the certificate is still good at `now`; `None` when it is over.
    #[must_use]
    pub fn remaining(&self, now: SystemTime) -> Option<Duration> {
        self.not_after.duration_since(now).ok()
    }

    /// Whether only the key's owner could read its file when it was loaded.
    #[must_use]
    pub const fn key_is_private(&self) -> bool {
        self.key_is_private
    }

    /// The list of peers' certificates that are refused.
    #[must_use]
    pub const fn revocations(&self) -> &RevocationList {
        &self.revocations
    }

    /// Whether peers with certificates of the authority in a file are believed.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn believes_pem(&self, authority: &Path) -> Result<bool, CredentialsError> {
        let chain = pem::certificates(What::Authority, authority)?;
        let Some((leaf, between)) = chain.split_first() else { return Ok(false) };
        if load_roots(authority)?.roots.iter().any(|root| self.roots.roots.contains(root)) {
            return Ok(true);
        }
        // An authority below one that is believed: its chain ends at that one's name.
        let issuer = between.last().unwrap_or(leaf);
        let issuer =
            peer::issuer_in(issuer).map_err(|error| pem::malformed(What::Authority, authority, error))?;
        Ok(self.roots.subjects().iter().any(|subject| subject.as_ref() == issuer))
    }

    /// Whether both show the same certificates and believe the same authorities.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.certified.cert == other.certified.cert && self.roots.roots == other.roots.roots
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    pub(crate) const fn roots(&self) -> &Arc<RootCertStore> {
        &self.roots
    }
}

/// Reads the authorities in a file.
pub(crate) fn load_roots(path: &Path) -> Result<RootCertStore, CredentialsError> {
    let mut roots = RootCertStore::empty();
    for certificate in pem::certificates(What::Authority, path)? {
        roots.add(certificate).map_err(|error| pem::malformed(What::Authority, path, error))?;
    }
    Ok(roots)
}

/// Reads a certificate chain and its key: both, the chain's first, and whether the key is private.
pub(crate) fn load_pair(
    certificate: &Path,
    key: &Path,
) -> Result<(CertifiedKey, CertificateDer<'static>, bool), CredentialsError> {
    let chain = pem::certificates(What::Certificate, certificate)?;
    let key_der = pem::key(key)?;
    let key_is_private = is_private(key);
    if !key_is_private {
        tracing::warn!(key = %key.display(), "others than its owner can read a private key, set its mode to 0600");
    }
    let Some(leaf) = chain.first().cloned() else {
        return Err(pem::malformed(What::Certificate, certificate, "it holds no certificate"));
    };
    let certified =
        CertifiedKey::from_der(chain, key_der, &tls::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                CredentialsError::KeyMismatch { certificate: certificate.to_owned(), key: key.to_owned() }
            }
            error => pem::malformed(What::Key, key, error),
        })?;
    Ok((certified, leaf, key_is_private))
}

/// When the certificate ends, if it has not.
pub(crate) fn check_lifetime(path: &Path, leaf: &CertificateDer<'_>) -> Result<SystemTime, CredentialsError> {
    let not_after =
        peer::not_after_in(leaf).map_err(|error| pem::malformed(What::Certificate, path, error))?;
    match SystemTime::now().duration_since(not_after) {
        Ok(ago) => Err(CredentialsError::Expired { path: path.to_owned(), ago }),
        Err(_still_good) => Ok(not_after),
    }
}

fn is_private(key: &Path) -> bool {
    std::fs::metadata(key).is_ok_and(|metadata| metadata.permissions().mode() & 0o077 == 0)
}

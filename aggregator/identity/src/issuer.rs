//! An authority of one's own: for the demo, for tests, and for a machine without another.
//!
//! Its key lives in memory only. Certificates are short-lived; there is no revocation, the end of their
//! time is it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use crate::name::{Name, NameKind};

/// Certificates are good from this long before they are issued, because clocks differ.
pub const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// No certificate is good for longer; there is no way to take one back.
pub const LIFETIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The certificate cannot be made.
    #[error("cannot make a certificate for {subject}")]
    Make {
        /// Whose.
        subject: String,
        /// What is in the way.
        #[source]
        source: rcgen::Error,
    },
    /// The lifetime is longer than [`LIFETIME_MAX`].
    #[error("no certificate is issued for {0:?}: at most {LIFETIME_MAX:?}")]
    Lifetime(Duration),
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// An authority that issues certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// What a certificate for people's connections is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

/// A certificate and its key, both PEM.
pub struct Issued {
    certificate_pem: String,
    key_pem: String,
    authority_pem: String,
}

/// Where [`Issued::write`] put things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedFiles {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key, readable for its owner only.
    pub key: PathBuf,
    /// The authority's certificate.
    pub authority: PathBuf,
}

impl Authority {
    /// A new authority, good from `now` on for `lifetime`.
    ///
    /// # Errors
    /// When the system gives no randomness or the lifetime is too long.
    pub fn new(common_name: &str, now: SystemTime, lifetime: Duration) -> Result<Self, IssuerError> {
        let make = |source| IssuerError::Make { subject: common_name.to_owned(), source };
        let key = KeyPair::generate().map_err(make)?;
        // Two authorities of one name would be taken for each other, and the certificates of the one be
        // refused as forgeries of the other: the name carries the key's.
        let digest = Sha256::digest(key.public_key_raw());
        let suffix: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let mut params = params(&format!("{common_name} {suffix}"), now, lifetime)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).map_err(make)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// The authority's certificate, for those who shall believe it.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// Issues a machine's certificate. A node's is good as a client only.
    ///
    /// # Errors
    /// When the system gives no randomness or the lifetime is too long.
    pub fn issue(&self, name: &Name, now: SystemTime, lifetime: Duration) -> Result<Issued, IssuerError> {
        let uses = match name.kind() {
            NameKind::Node => vec![ExtendedKeyUsagePurpose::ClientAuth],
            NameKind::Aggregator | NameKind::Central => {
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
            }
        };
        let uri = name.to_string();
        let names = vec![SanType::URI(ia5(&uri, &uri)?)];
        self.issue_for(&uri, names, uses, now, lifetime)
    }

    /// Issues a certificate for a server that people connect to.
    ///
    /// # Errors
    /// When a host is no DNS name, the system gives no randomness or the lifetime is too long.
    pub fn issue_https(
        &self,
        hosts: &[Host],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, IssuerError> {
        let subject = "HTTPS";
        let names = hosts
            .iter()
            .map(|host| {
                Ok(match host {
                    Host::Dns(name) => SanType::DnsName(ia5(subject, name)?),
                    Host::Ip(address) => SanType::IpAddress(*address),
                })
            })
            .collect::<Result<_, IssuerError>>()?;
        self.issue_for(subject, names, vec![ExtendedKeyUsagePurpose::ServerAuth], now, lifetime)
    }

    /// Issues a certificate with any alternative names, for tests of those who must refuse it.
    ///
    /// # Errors
    /// When the system gives no randomness or the lifetime is too long.
    #[doc(hidden)]
    pub fn issue_uris(
        &self,
        uris: &[&str],
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, IssuerError> {
        let subject = "test";
        let names =
            uris.iter().map(|uri| ia5(subject, uri).map(SanType::URI)).collect::<Result<_, IssuerError>>()?;
        let uses = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        self.issue_for(subject, names, uses, now, lifetime)
    }

    fn issue_for(
        &self,
        subject: &str,
        names: Vec<SanType>,
        uses: Vec<ExtendedKeyUsagePurpose>,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Issued, IssuerError> {
        let make = |source| IssuerError::Make { subject: subject.to_owned(), source };
        // The subject says nothing: the alternative names are what is checked.
        let mut params = params("tapio", now, lifetime)?;
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = uses;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(make)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?;
        Ok(Issued {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            authority_pem: self.pem.clone(),
        })
    }
}

impl Issued {
    /// The certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its key.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Writes `<stem>.pem`, `<stem>.key` and `<stem>.ca.pem` into `dir`, each as a whole and for the owner
    /// only, the certificate last: whoever waits for it finds the others.
    ///
    /// # Errors
    /// With the file that cannot be written.
    pub fn write(&self, dir: &Path, stem: &str) -> Result<IssuedFiles, IssuerError> {
        let files = IssuedFiles {
            certificate: dir.join(format!("{stem}.pem")),
            key: dir.join(format!("{stem}.key")),
            authority: dir.join(format!("{stem}.ca.pem")),
        };
        write_file(&files.authority, &self.authority_pem)?;
        write_file(&files.key, &self.key_pem)?;
        write_file(&files.certificate, &self.certificate_pem)?;
        Ok(files)
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Issued").finish_non_exhaustive()
    }
}

fn params(common_name: &str, now: SystemTime, lifetime: Duration) -> Result<CertificateParams, IssuerError> {
    let mut params = CertificateParams::default();
    let (from, until) = (now.checked_sub(CLOCK_SLACK), now.checked_add(lifetime));
    let (Some(from), Some(until), true) = (from, until, lifetime <= LIFETIME_MAX) else {
        return Err(IssuerError::Lifetime(lifetime));
    };
    params.not_before = OffsetDateTime::from(from);
    params.not_after = OffsetDateTime::from(until);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

fn ia5(subject: &str, text: &str) -> Result<Ia5String, IssuerError> {
    text.try_into().map_err(|source| IssuerError::Make { subject: subject.to_owned(), source })
}

/// Replaces a file as a whole, never readable for others, also not for a moment.
fn write_file(path: &Path, text: &str) -> Result<(), IssuerError> {
    let beside = path.with_added_extension("new");
    let write = || {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| IssuerError::Write { path: path.to_owned(), source })
}

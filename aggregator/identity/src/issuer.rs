//! An authority: one of one's own for the demo, for tests, and for a machine without another, whose key lives in memory
//! only; or one whose key is in a file, which answers signing requests ([`SigningRequest`]).
//!
//! Certificates are short-lived. Of a signing request nothing but its key is taken: who a machine is, the caller knows.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::credentials::{CredentialsError, What};
use crate::name::{Name, NameKind};
use crate::revocation;
use crate::{files, pem, tls};

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
    /// The authority's own time is over, or too little of it is left.
    #[error("the authority's certificate ends too soon to issue another: replace it")]
    Ended,
    /// The authority's files cannot be used.
    #[error(transparent)]
    Files(#[from] CredentialsError),
    /// The file of the authority's key is that of another certificate.
    #[error("the key {} does not belong to the authority's certificate {}", key.display(), certificate.display())]
    OtherKey {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
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
    /// What stands between its certificates and the authority that is believed, PEM.
    between: String,
    not_after: SystemTime,
}

/// A request for a certificate whose sender was proven to hold the key (PKCS#10, RFC 2986).
#[derive(Clone, Debug)]
pub struct SigningRequest {
    key: SubjectPublicKeyInfo,
    digest: [u8; 32],
}

/// Why a signing request is not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SigningRequestError {
    /// It is none.
    #[error("it is no signing request (PKCS#10, DER)")]
    Malformed,
    /// Its signature is not of its key.
    #[error("its signature is not that of its key")]
    Signature,
    /// Its key is of a kind that is not certified here.
    #[error("its key is neither ECDSA over P-256 or P-384 nor Ed25519")]
    Key,
}

impl SigningRequest {
    /// Reads a request, and checks that who made it holds the key.
    ///
    /// # Errors
    /// With what is wrong with it.
    pub fn parse(der: &[u8]) -> Result<Self, SigningRequestError> {
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_malformed| SigningRequestError::Malformed)?;
        if !rest.is_empty() {
            return Err(SigningRequestError::Malformed);
        }
        let raw = request.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(raw).map_err(|_unknown| SigningRequestError::Key)?;
        let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
        if !kinds.contains(&key.algorithm()) {
            return Err(SigningRequestError::Key);
        }
        request.verify_signature().map_err(|_other| SigningRequestError::Signature)?;
        Ok(Self { key, digest: Sha256::digest(raw).into() })
    }

    /// The SHA-256 of the key.
    #[must_use]
    pub const fn key_digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// A certificate for a key that somebody else holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The certificate, followed by those between it and the authority that is believed, PEM.
    pub chain_pem: String,
    /// Its serial number, as lists of revocations name it.
    pub serial: String,
    /// When it ends.
    pub not_after: SystemTime,
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
        let not_after = params.not_after.into();
        Ok(Self { issuer: Issuer::new(params, key), pem, between: String::new(), not_after })
    }

    /// The authority whose certificate is the first in one PEM file, followed by those between it and the authority that
    /// is believed, and whose key is in another.
    ///
    /// # Errors
    /// With the file and what is wrong with it.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, IssuerError> {
        let unusable = |reason: String| pem::malformed(What::Authority, certificate, reason);
        let chain = pem::certificates(What::Authority, certificate)?;
        let Some(own) = chain.first() else {
            return Err(unusable("it holds no certificate".to_owned()).into());
        };
        let pair =
            KeyPair::try_from(&pem::key(key)?).map_err(|error| pem::malformed(What::Key, key, error))?;
        let (_rest, parsed) =
            x509_parser::parse_x509_certificate(own).map_err(|error| unusable(error.to_string()))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(IssuerError::OtherKey { certificate: certificate.to_owned(), key: key.to_owned() });
        }
        let signs = parsed.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
        if !parsed.is_ca() || !signs {
            return Err(unusable("it is not the certificate of an authority".to_owned()).into());
        }
        let not_after = crate::credentials::check_lifetime(certificate, own)?;
        let issuer = Issuer::from_ca_cert_der(own, pair).map_err(|error| unusable(error.to_string()))?;
        // Who believes an authority has its certificate: one that vouches for itself need not be sent along.
        let mut between = String::new();
        for der in &chain {
            let (_rest, one) =
                x509_parser::parse_x509_certificate(der).map_err(|error| unusable(error.to_string()))?;
            if one.subject() != one.issuer() {
                between += &certificate_pem(der);
            }
        }
        Ok(Self { issuer, pem: certificate_pem(own), between, not_after })
    }

    /// Issues a machine's certificate for the key of a signing request, good for `lifetime` at most, and never longer
    /// than the authority's own.
    ///
    /// # Errors
    /// When the system gives no randomness, the lifetime is too long or the authority's own time is over.
    pub fn certify(
        &self,
        request: &SigningRequest,
        name: &Name,
        now: SystemTime,
        lifetime: Duration,
    ) -> Result<Certified, IssuerError> {
        let uri = name.to_string();
        let make = |source| IssuerError::Make { subject: uri.clone(), source };
        let left = self.not_after.duration_since(now).map_err(|_over| IssuerError::Ended)?;
        let lifetime = lifetime.min(left);
        let mut params = leaf_params(vec![SanType::URI(ia5(&uri, &uri)?)], uses(name.kind()), now, lifetime)?;
        let mut serial = [0; 16];
        let random = tls::provider().secure_random.fill(&mut serial);
        random.map_err(|_none| make(rcgen::Error::RingUnspecified))?;
        // A positive number of the full length (RFC 5280, section 4.1.2.2).
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let not_after = params.not_after.into();
        let certificate = params.signed_by(&request.key, &self.issuer).map_err(make)?;
        Ok(Certified {
            chain_pem: certificate.pem() + &self.between,
            serial: revocation::serial_text(&serial),
            not_after,
        })
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
        let uri = name.to_string();
        let names = vec![SanType::URI(ia5(&uri, &uri)?)];
        self.issue_for(&uri, names, uses(name.kind()), now, lifetime)
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
        let params = leaf_params(names, uses, now, lifetime)?;
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

/// What a machine's certificate is good for.
fn uses(kind: NameKind) -> Vec<ExtendedKeyUsagePurpose> {
    match kind {
        NameKind::Node => vec![ExtendedKeyUsagePurpose::ClientAuth],
        NameKind::Aggregator | NameKind::Central => {
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth]
        }
    }
}

fn leaf_params(
    names: Vec<SanType>,
    uses: Vec<ExtendedKeyUsagePurpose>,
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, IssuerError> {
    // The subject says nothing: the alternative names are what is checked.
    let mut params = params("tapio", now, lifetime)?;
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = uses;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn certificate_pem(der: &CertificateDer<'_>) -> String {
    ::pem::encode(&::pem::Pem::new("CERTIFICATE", der.to_vec()))
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

fn write_file(path: &Path, text: &str) -> Result<(), IssuerError> {
    files::replace_private(path, text.as_bytes())
        .map_err(|source| IssuerError::Write { path: path.to_owned(), source })
}

//! A peer's name, read from the certificate that the handshake has checked, and what is expected of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::Connection;
use rustls_pki_types::CertificateDer;
use tapio_schemas::ids::{ClusterId, TenantId};
use x509_parser::extensions::GeneralName;

use crate::name::{Name, NameError, NameKind, TrustDomain};
use crate::revocation;

/// Why a peer is refused although an authority vouches for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It presented no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// Its certificate cannot be read.
    #[error("the peer's certificate cannot be read: {reason}")]
    Unreadable {
        /// What is wrong with it.
        reason: String,
    },
    /// Its certificate names no machine.
    #[error("the certificate has no SPIFFE URI: it does not say which machine it is for")]
    NoSpiffeUri,
    /// Its certificate names several machines.
    #[error("the certificate has {count} URIs where one is allowed: it does not say which machine it is for")]
    SeveralUris {
        /// How many.
        count: usize,
    },
    /// Its certificate's URI is no name.
    #[error("the certificate's URI is not a name: {0}")]
    Name(#[from] NameError),
    /// It is not of a kind that is expected here.
    #[error("{found} is not expected here: only {expected} is")]
    WrongKind {
        /// What is expected.
        expected: String,
        /// Who it is.
        found: Box<Name>,
    },
    /// It belongs elsewhere.
    #[error("{found} is of another {part}: {expected} is expected")]
    Elsewhere {
        /// The part of the name that differs.
        part: &'static str,
        /// What it should be.
        expected: String,
        /// Who it is.
        found: Box<Name>,
    },
}

impl PeerError {
    /// The error as a metric's label.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Unreadable { .. } => "unreadable",
            Self::NoSpiffeUri => "no_spiffe_uri",
            Self::SeveralUris { .. } => "several_uris",
            Self::Name(_) => "name",
            Self::WrongKind { .. } => "wrong_kind",
            Self::Elsewhere { part: "trust domain", .. } => "other_trust_domain",
            Self::Elsewhere { part: "tenant", .. } => "other_tenant",
            Self::Elsewhere { .. } => "other_cluster",
        }
    }
}

/// Who may be at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    kinds: Vec<NameKind>,
    trust_domain: TrustDomain,
    /// For kinds that have them; `None` where any will do.
    place: Option<(TenantId, ClusterId)>,
}

impl Expected {
    /// Peers of `kinds` in the trust domain, and the tenant and cluster where it has them, of `own`.
    #[must_use]
    pub fn beside(own: &Name, kinds: &[NameKind]) -> Self {
        let place = own.tenant().cloned().zip(own.cluster().cloned());
        Self { kinds: kinds.to_vec(), trust_domain: own.trust_domain().clone(), place }
    }

    /// The same, of any tenant and cluster.
    #[must_use]
    pub fn anywhere(mut self) -> Self {
        self.place = None;
        self
    }

    /// Checks a name. A central is above tenants and clusters: for it those are not looked at.
    ///
    /// # Errors
    /// With what differs.
    pub fn check(&self, name: &Name) -> Result<(), PeerError> {
        let elsewhere = |part, expected: &dyn std::fmt::Display| {
            Err(PeerError::Elsewhere { part, expected: expected.to_string(), found: Box::new(name.clone()) })
        };
        if *name.trust_domain() != self.trust_domain {
            return elsewhere("trust domain", &self.trust_domain);
        }
        if !self.kinds.contains(&name.kind()) {
            let expected: Vec<_> = self.kinds.iter().map(ToString::to_string).collect();
            return Err(PeerError::WrongKind {
                expected: expected.join(" or "),
                found: Box::new(name.clone()),
            });
        }
        match &self.place {
            Some((tenant, _)) if name.tenant().is_some_and(|found| found != tenant) => {
                elsewhere("tenant", tenant)
            }
            Some((_, cluster)) if name.cluster().is_some_and(|found| found != cluster) => {
                elsewhere("cluster", cluster)
            }
            _ => Ok(()),
        }
    }
}

/// The name of the machine at the other end of a QUIC connection.
///
/// # Errors
/// When its certificate does not name exactly one machine.
pub fn peer_name(connection: &Connection) -> Result<Name, PeerError> {
    name_in_chain(Some(chain_of(connection)?.as_slice()))
}

/// When the certificate of the machine at the other end of a QUIC connection ends.
///
/// The handshake checks a certificate's time once, and a session may last for weeks: whoever holds one must end it at
/// this instant. The earliest end counts among the peer's certificate and those that it presented along with it.
///
/// # Errors
/// When it presented none, or one that cannot be read.
pub fn peer_not_after(connection: &Connection) -> Result<SystemTime, PeerError> {
    not_after_in_chain(Some(chain_of(connection)?.as_slice()))
}

/// The certificates that the machine at the other end of a QUIC connection presented, its own first.
///
/// # Errors
/// When it presented none.
pub fn chain_of(connection: &Connection) -> Result<Vec<CertificateDer<'static>>, PeerError> {
    let identity = connection.peer_identity().ok_or(PeerError::NoCertificate)?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>();
    chain.map(|chain| *chain).map_err(|_other| PeerError::NoCertificate)
}

/// When a chain as a TLS connection's `peer_certificates` gives it ends: as [`peer_not_after`].
///
/// # Errors
/// When there is no certificate, or one cannot be read.
pub fn not_after_in_chain(chain: Option<&[CertificateDer<'_>]>) -> Result<SystemTime, PeerError> {
    let mut earliest: Option<SystemTime> = None;
    for certificate in chain.unwrap_or_default() {
        let end = not_after_in(certificate)?;
        earliest = Some(earliest.map_or(end, |earliest| earliest.min(end)));
    }
    earliest.ok_or(PeerError::NoCertificate)
}

/// When one certificate ends.
pub(crate) fn not_after_in(certificate: &CertificateDer<'_>) -> Result<SystemTime, PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PeerError::Unreadable { reason: error.to_string() })?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH))
}

/// Who issued one certificate: the name as it is encoded (DER).
pub(crate) fn issuer_in(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PeerError::Unreadable { reason: error.to_string() })?;
    Ok(parsed.issuer().as_raw().to_vec())
}

/// When one certificate begins.
pub(crate) fn not_before_in(certificate: &CertificateDer<'_>) -> Result<SystemTime, PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PeerError::Unreadable { reason: error.to_string() })?;
    let seconds = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
    Ok(UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH))
}

/// The serial number of one certificate, as lists of revocations and logs name it.
pub(crate) fn serial_in(certificate: &CertificateDer<'_>) -> Result<String, PeerError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PeerError::Unreadable { reason: error.to_string() })?;
    Ok(revocation::serial_text(parsed.raw_serial()))
}

/// The name in a chain as a TLS connection's `peer_certificates` gives it.
///
/// # Errors
/// When the first certificate does not name exactly one machine.
pub fn name_in_chain(chain: Option<&[CertificateDer<'_>]>) -> Result<Name, PeerError> {
    name_in(chain.and_then(<[_]>::first).ok_or(PeerError::NoCertificate)?)
}

/// The name in one certificate.
pub(crate) fn name_in(certificate: &CertificateDer<'_>) -> Result<Name, PeerError> {
    let unreadable = |reason: String| PeerError::Unreadable { reason };
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| unreadable(error.to_string()))?;
    let names = parsed.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    // A certificate for a SPIFFE name has one URI and no other (X509-SVID, section 2).
    match uris.as_slice() {
        [uri] if uri.starts_with("spiffe:") => Ok(uri.parse()?),
        [] | [_] => Err(PeerError::NoSpiffeUri),
        several => Err(PeerError::SeveralUris { count: several.len() }),
    }
}

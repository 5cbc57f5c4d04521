//! The TLS of machines: 1.3 only, both sides with certificates, one ALPN.
//!
//! There is no session resumption and no early data: a resumed session would go on although the
//! certificate has expired or been revoked since. So every handshake checks both. Sessions are few and long, a full handshake each costs
//! nothing that matters.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::credentials::{Credentials, CredentialsError, load_roots};
use crate::peer::{self, Expected, PeerError};
use crate::revocation::{Presented, RevocationList};

/// The protocol that machines speak, over QUIC and over TCP.
pub const ALPN: &[u8] = b"tapio/1";

/// What a client asks for: TLS wants a DNS name, and machines are known by their SPIFFE name alone.
/// (`.invalid` never resolves: RFC 2606.)
pub const SERVER_NAME: &str = "tapio.invalid";

/// A server's side of mutual TLS. Who the client is, [`peer::peer_name`] or [`peer::name_in_chain`] say.
///
/// # Errors
/// When the credentials and the provider do not go together.
pub fn server_config(credentials: &Credentials) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(checking_verifier(credentials.roots(), credentials.revocations())?)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// A client's side of mutual TLS with a server that must be as `expected`.
///
/// # Errors
/// When the credentials and the provider do not go together.
pub fn client_config(credentials: &Credentials, expected: Expected) -> Result<ClientConfig, Error> {
    client_config_with(credentials, Arc::new(ServerVerifier::new(credentials, expected)))
}

pub(crate) fn client_config_with(
    credentials: &Credentials,
    verifier: Arc<ServerVerifier>,
) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

/// The client's side of enrolment: it believes the authorities in a file, and shows a certificate only to have it renewed.
pub(crate) fn enrolment_client_config(
    authority: &Path,
    shown: Option<&Credentials>,
    alpn: &[u8],
) -> Result<ClientConfig, EnrolmentTlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(load_roots(authority)?);
    let mut config = match shown {
        None => builder.with_no_client_auth(),
        Some(credentials) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified())))
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Why enrolment's TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentTlsError {
    /// The authority's file cannot be used.
    #[error(transparent)]
    Authority(#[from] CredentialsError),
    /// TLS cannot be configured.
    #[error("cannot set up TLS")]
    Tls(#[from] Error),
}

/// Why this side refused the server's name, out of the error that the handshake over TCP ended with.
#[must_use]
pub fn refused(error: &io::Error) -> Option<&PeerError> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidCertificate(CertificateError::Other(OtherError(refused))) => refused.downcast_ref(),
        _ => None,
    }
}

/// The one TLS provider.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::ring::default_provider())))
}

/// Checks that an authority vouches for a client; not who it is.
pub(crate) fn client_verifier(roots: &Arc<RootCertStore>) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .build()
        .map_err(|error| Error::General(error.to_string()))
}

/// The same, and that the client's certificate was not taken back.
pub(crate) fn checking_verifier(
    roots: &Arc<RootCertStore>,
    revocations: &RevocationList,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    Ok(Arc::new(CheckingVerifier { issued: client_verifier(roots)?, revocations: revocations.clone() }))
}

/// The same of a client that shows a certificate; it may show none.
pub(crate) fn optional_verifier(
    roots: &Arc<RootCertStore>,
    revocations: &RevocationList,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    let issued = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Error::General(error.to_string()))?;
    Ok(Arc::new(CheckingVerifier { issued, revocations: revocations.clone() }))
}

/// Asks the list of revocations once the authority's signature is checked.
#[derive(Debug)]
struct CheckingVerifier {
    issued: Arc<dyn ClientCertVerifier>,
    revocations: RevocationList,
}

impl ClientCertVerifier for CheckingVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.issued.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.issued.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.issued.verify_client_cert(end_entity, intermediates, now)?;
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        match self.revocations.check(&Presented::of(&chain)) {
            Ok(()) => Ok(verified),
            Err(_revoked) => Err(Error::InvalidCertificate(CertificateError::Revoked)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

/// Checks that an authority vouches for a server, and that its SPIFFE name is the expected one. The DNS
/// name of the usual check plays no part.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: Expected,
    /// What TLS can only report as text.
    refused: OnceLock<PeerError>,
}

impl ServerVerifier {
    pub(crate) fn new(credentials: &Credentials, expected: Expected) -> Self {
        Self {
            roots: Arc::clone(credentials.roots()),
            provider: provider(),
            expected,
            refused: OnceLock::new(),
        }
    }

    /// Why the name was refused, if it was.
    pub(crate) fn refused(&self) -> Option<&PeerError> {
        self.refused.get()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        match peer::name_in(end_entity).and_then(|name| self.expected.check(&name)) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(refused) => {
                let error = CertificateError::Other(OtherError(Arc::new(refused.clone())));
                self.refused.get_or_init(|| refused);
                Err(Error::InvalidCertificate(error))
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

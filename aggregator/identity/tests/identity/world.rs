//! Names and certificates under one authority, and peers that do not keep to the rules.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Endpoint, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tapio_identity::issuer::{Authority, IssuedFiles};
use tapio_identity::{Credentials, CredentialsError, Name};
use tempfile::TempDir;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) dir: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let authority = Authority::new("tapio test", SystemTime::now(), HOUR).expect("an authority");
        Self { authority, dir: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn node_name(tenant: &str, cluster: &str, node: &str) -> Name {
        Name::node("tapio.test", tenant, cluster, node).expect("a name")
    }

    pub(crate) fn aggregator_name(tenant: &str, cluster: &str) -> Name {
        Name::aggregator("tapio.test", tenant, cluster, "a").expect("a name")
    }

    pub(crate) fn foreign_aggregator_name() -> Name {
        Name::aggregator("other.test", "default", "demo", "a").expect("a name")
    }

    pub(crate) fn name_of_central(&self) -> Name {
        Name::central("tapio.test", "c").expect("a name")
    }

    pub(crate) fn files(&self, name: &Name) -> IssuedFiles {
        let issued = self.authority.issue(name, SystemTime::now(), HOUR).expect("issued");
        issued.write(self.dir.path(), &name.source_id().to_string()).expect("written")
    }

    pub(crate) fn with_uris(&self, uris: &[&str]) -> IssuedFiles {
        let issued = self.authority.issue_uris(uris, SystemTime::now(), HOUR).expect("issued");
        issued.write(self.dir.path(), &format!("uris-{}", uris.len())).expect("written")
    }

    pub(crate) fn load(files: &IssuedFiles) -> Result<Credentials, CredentialsError> {
        Credentials::load(&files.certificate, &files.key, &files.authority)
    }

    pub(crate) fn node(&self, tenant: &str, cluster: &str, node: &str) -> Credentials {
        Self::load(&self.files(&Self::node_name(tenant, cluster, node))).expect("credentials")
    }

    pub(crate) fn aggregator(&self, tenant: &str, cluster: &str) -> Credentials {
        Self::load(&self.files(&Self::aggregator_name(tenant, cluster))).expect("credentials")
    }

    /// Files of a node that this world certified, kept in the other world and naming its authority.
    pub(crate) fn node_believing(
        &self,
        other: &Self,
        tenant: &str,
        cluster: &str,
        node: &str,
    ) -> IssuedFiles {
        let name = Self::node_name(tenant, cluster, node);
        let issued = self.authority.issue(&name, SystemTime::now(), HOUR).expect("issued");
        let files = issued.write(other.dir.path(), "stranger").expect("written");
        std::fs::write(&files.authority, other.authority.certificate_pem()).expect("written");
        files
    }
}

/// Files of a node whose certificate has expired. They cannot be loaded, only used raw.
pub(crate) fn late_node(world: &World, node: &str) -> IssuedFiles {
    let name = World::node_name("default", "demo", node);
    let past = SystemTime::now() - 3 * HOUR;
    let issued = world.authority.issue(&name, past, HOUR).expect("issued");
    issued.write(world.dir.path(), "late").expect("written")
}

fn pair(files: &IssuedFiles) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_file(&files.certificate).expect("a certificate");
    (vec![certificate], PrivateKeyDer::from_pem_file(&files.key).expect("a key"))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A server that presents any certificate, as one would that was written by somebody else.
pub(crate) fn raw_server(files: &IssuedFiles, socket: UdpSocket) -> Endpoint {
    let (chain, key) = pair(files);
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    tls.alpn_protocols = vec![b"tapio/1".to_vec()];
    let tls = QuicServerConfig::try_from(tls).expect("a configuration");
    let config = ServerConfig::with_crypto(Arc::new(tls));
    Endpoint::new(quinn::EndpointConfig::default(), Some(config), socket, Arc::new(quinn::TokioRuntime))
        .expect("an endpoint")
}

/// A client that believes every server and presents any certificate.
pub(crate) fn raw_client(files: &IssuedFiles, socket: UdpSocket) -> Endpoint {
    let (chain, key) = pair(files);
    let tls = believing_all().with_client_auth_cert(chain, key).expect("a pair");
    client(tls, socket, b"tapio/1")
}

/// A client that presents no certificate.
pub(crate) fn anonymous_client(socket: UdpSocket, alpn: &[u8]) -> Endpoint {
    client(believing_all().with_no_client_auth(), socket, alpn)
}

fn believing_all() -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(BelieveAll))
}

fn client(mut tls: rustls::ClientConfig, socket: UdpSocket, alpn: &[u8]) -> Endpoint {
    tls.alpn_protocols = vec![alpn.to_vec()];
    let mut endpoint = tapio_identity::quic::client_endpoint(socket).expect("an endpoint");
    let tls = QuicClientConfig::try_from(tls).expect("a configuration");
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(tls)));
    endpoint
}

#[derive(Debug)]
struct BelieveAll;

impl rustls::client::danger::ServerCertVerifier for BelieveAll {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &rustls_pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

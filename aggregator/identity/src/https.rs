//! HTTPS for people and programs: a server's certificate for DNS names and addresses, and no client certificate unless
//! an authority for clients is named.
//!
//! Who the person is, the API that is served decides.

use std::path::Path;
use std::sync::Arc;

use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};

use crate::credentials::{CredentialsError, check_lifetime, load_pair, load_roots};
use crate::tls;

/// The HTTP version that is offered to people.
pub const ALPN: &[u8] = b"http/1.1";

/// The HTTP version that is offered to programs over gRPC.
pub const ALPN_GRPC: &[u8] = b"h2";

/// Why HTTPS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// A file cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// TLS cannot be configured.
    #[error("cannot set up HTTPS")]
    Tls(#[from] rustls::Error),
}

/// A server with the certificate (chain) and key in two PEM files.
///
/// # Errors
/// With the file and what to do about it.
pub fn server_config(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, HttpsError> {
    server(certificate, key, None, ALPN)
}

/// A server of gRPC with the certificate (chain) and key in two PEM files. Where `client_authority` names a third,
/// clients need a certificate that one of its authorities vouches for.
///
/// # Errors
/// With the file and what to do about it.
pub fn grpc_server_config(
    certificate: &Path,
    key: &Path,
    client_authority: Option<&Path>,
) -> Result<Arc<ServerConfig>, HttpsError> {
    server(certificate, key, client_authority, ALPN_GRPC)
}

fn server(
    certificate: &Path,
    key: &Path,
    client_authority: Option<&Path>,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>, HttpsError> {
    let (certified, leaf, _) = load_pair(certificate, key)?;
    check_lifetime(certificate, &leaf)?;
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(tls::client_verifier(&Arc::new(load_roots(path)?))?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client that believes the authorities in a PEM file.
///
/// # Errors
/// With the file and what to do about it.
pub fn client_config(authority: &Path) -> Result<Arc<ClientConfig>, HttpsError> {
    let mut config = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(load_roots(authority)?)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

//! HTTPS for people and programs: a server's certificate for DNS names and addresses, and no client certificate unless
//! an authority for clients is named.
//!
//! Who the person is, the API that is served decides. A certificate that was replaced on the disk is shown from the next
//! handshake on.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig};

use crate::credentials::{Credentials, CredentialsError, check_lifetime, load_pair, load_roots};
use crate::enrolment;
use crate::files::Stamp;
use crate::revocation::RevocationList;
use crate::rotation::LOOK_INTERVAL;
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
/// clients need a certificate that one of its authorities vouches for and that is not among `revocations`.
///
/// # Errors
/// With the file and what to do about it.
pub fn grpc_server_config(
    certificate: &Path,
    key: &Path,
    client_authority: Option<&Path>,
    revocations: &RevocationList,
) -> Result<Arc<ServerConfig>, HttpsError> {
    server(certificate, key, client_authority.map(|path| (path, revocations)), ALPN_GRPC)
}

fn server(
    certificate: &Path,
    key: &Path,
    clients: Option<(&Path, &RevocationList)>,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>, HttpsError> {
    let verifier = match clients {
        None => None,
        Some((path, revocations)) => Some(tls::checking_verifier(&Arc::new(load_roots(path)?), revocations)?),
    };
    with_verifier(Following::open(certificate, key)?, verifier, alpn)
}

fn with_verifier(
    shown: Following,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    alpn: &[u8],
) -> Result<Arc<ServerConfig>, HttpsError> {
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(Arc::new(shown));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A server of enrolment ([`crate::enrolment`]) with the certificate (chain) and key in two PEM files. A client may show a
/// certificate that the authorities of `machines` vouch for, to have it renewed; one that is taken back ends the handshake.
///
/// # Errors
/// With the file and what to do about it.
pub fn enrolment_server_config(
    certificate: &Path,
    key: &Path,
    machines: &Credentials,
) -> Result<Arc<ServerConfig>, HttpsError> {
    let verifier = tls::optional_verifier(machines.roots(), machines.revocations())?;
    with_verifier(Following::open(certificate, key)?, Some(verifier), enrolment::ALPN)
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

/// A server's certificate as its files have it: looked at in handshakes, from time to time.
#[derive(Debug)]
struct Following {
    certificate: PathBuf,
    key: PathBuf,
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    certified: Arc<CertifiedKey>,
    /// As of the last look that settled what is there.
    seen: Option<Stamp>,
    looked_at: Instant,
    /// What was said of files that cannot be used, so that it is said once.
    said: Option<String>,
}

impl Following {
    fn open(certificate: &Path, key: &Path) -> Result<Self, CredentialsError> {
        let certified = load(certificate, key)?;
        let shown = Shown { certified, seen: None, looked_at: Instant::now(), said: None };
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), shown: Mutex::new(shown) })
    }

    /// What to show now; files that cannot be used leave what was shown before.
    fn now(&self) -> Arc<CertifiedKey> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.looked_at.elapsed() >= LOOK_INTERVAL {
            shown.looked_at = Instant::now();
            let stamp = Stamp::of(&[&self.certificate, &self.key]);
            if shown.seen.as_ref() != Some(&stamp) {
                match load(&self.certificate, &self.key) {
                    Ok(certified) => {
                        shown.certified = certified;
                        shown.seen = stamp.is_settled(SystemTime::now()).then_some(stamp);
                        shown.said = None;
                    }
                    Err(error) => {
                        let text = error.to_string();
                        if shown.said.as_ref() != Some(&text) {
                            tracing::error!(error = text, "the certificate of a server is kept as it was");
                            shown.said = Some(text);
                        }
                    }
                }
            }
        }
        Arc::clone(&shown.certified)
    }
}

impl ResolvesServerCert for Following {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

fn load(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, CredentialsError> {
    let (certified, leaf, _key_is_private) = load_pair(certificate, key)?;
    check_lifetime(certificate, &leaf)?;
    Ok(Arc::new(certified))
}

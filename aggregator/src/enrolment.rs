//! Enrolment: a node's proof of who it is against a short-lived certificate for a key that the node made.
//!
//! Which name a certificate has is decided by what vouches for the node, and never by what it says: the node claim of a
//! service account's token that Kubernetes reviews ([`token_review`]), or the line of a file that its token is bound to
//! ([`tokens`]). Every step has a bound in bytes and time, every refusal a name and a count. Tokens are never logged.
//! A listener of its own; started by [`crate::run`] where it is configured.

mod refusal;
mod throttle;
mod token_review;
mod tokens;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rustls::pki_types::CertificateDer;
use tapio_daemon::{Progress, with_causes};
use tapio_identity::{
    Credentials, Expected, Name, NameKind, RevocationList,
    enrolment::{Proof, ReadError, Reply, Request, read_request, write_reply},
    https::{self, HttpsError},
    issuer::{Authority, Certified, IssuerError, SigningRequest},
    peer,
    revocation::Presented,
};
use thiserror::Error;
use tokio::{io::AsyncReadExt as _, net::TcpListener, time::timeout};
use tokio_util::{either::Either, sync::CancellationToken};

pub(crate) use self::refusal::Refusal;
use self::{throttle::Throttle, token_review::TokenReviews, tokens::Tokens};
use crate::{
    config::{Config, EnrolmentConfig},
    connections::{Connections, Stream},
    metrics::{EnrolmentMetrics, Proved},
    state::StateError,
};

/// How long a client may take to send its request.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a client may take to read the reply.
const REPLY_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a client may take to go, once it has its reply, and what is read of it until then.
const REST_TIME_MAX: Duration = Duration::from_secs(1);
/// See [`REST_TIME_MAX`].
const REST_BYTES_MAX: u64 = 64 << 10;

/// Why there is no enrolment.
#[derive(Debug, Error)]
pub enum EnrolmentError {
    /// The server's certificate cannot be used.
    #[error("enrolment cannot be served")]
    Tls(#[from] HttpsError),
    /// The issuing authority cannot be used.
    #[error("the authority of [enrolment] cannot be used")]
    Authority(#[from] IssuerError),
    /// The issuing authority is not one that this aggregator believes.
    #[error(
        "the authority of [enrolment] issues certificates that this aggregator would refuse: add its certificate to \
         identity.authority"
    )]
    NotBelieved,
    /// The file of tokens cannot be used.
    #[error(transparent)]
    Tokens(#[from] tokens::TokensError),
    /// The API server's authorities cannot be used.
    #[error("TokenReview cannot be asked for")]
    TokenReview(#[from] token_review::TokenReviewError),
    /// What was spent cannot be read.
    #[error("the state directory cannot be used")]
    State(#[from] StateError),
}

/// Serves enrolment.
pub(crate) struct Enrolment {
    authority: Authority,
    lifetime: Duration,
    own: Name,
    expected: Expected,
    revocations: RevocationList,
    reviews: Option<TokenReviews>,
    tokens: Option<Tokens>,
    throttle: Throttle,
    tls: Arc<rustls::ServerConfig>,
}

/// Who asks, as what vouches for it says.
struct Vouched {
    name: Name,
    /// What of it is worth a line in the log.
    by: String,
}

impl Enrolment {
    /// Loads what it needs; none where it is not configured.
    pub(crate) fn load(config: &Config, machines: &Credentials) -> Result<Option<Self>, EnrolmentError> {
        let Some(enrolment) = &config.enrolment else { return Ok(None) };
        let EnrolmentConfig { certificate, key, authority_certificate, authority_key, .. } = enrolment;
        let authority = Authority::load(authority_certificate, authority_key)?;
        if !machines.believes_pem(authority_certificate).map_err(IssuerError::from)? {
            return Err(EnrolmentError::NotBelieved);
        }
        let spent = config.state.directory.join("enrolled.json");
        let tokens = enrolment.tokens.as_ref().map(|path| Tokens::open(path, spent)).transpose()?;
        Ok(Some(Self {
            authority,
            lifetime: enrolment.lifetime,
            own: config.name.clone(),
            expected: Expected::beside(&config.name, &[NameKind::Node]),
            revocations: machines.revocations().clone(),
            reviews: enrolment.kubernetes.as_ref().map(TokenReviews::new).transpose()?,
            tokens,
            throttle: Throttle::default(),
            tls: https::enrolment_server_config(certificate, key, machines)?,
        }))
    }

    /// Serves until stopped.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        metrics: EnrolmentMetrics,
        progress: Progress,
        stop: CancellationToken,
    ) {
        progress.idle();
        let tls = Some(Arc::clone(&self.tls));
        let connections = Connections::new("enrolment", tls, metrics.connections_refused.clone(), stop);
        let (this, said) = (Arc::new((self, metrics)), Arc::new(progress));
        let serving = Arc::clone(&said);
        let serve = move |stream| {
            let (this, said) = (Arc::clone(&this), Arc::clone(&said));
            async move { this.0.exchange(stream, &this.1, &said).await }
        };
        connections.serve(listener, &serving, serve).await;
        if let Some(progress) = Arc::into_inner(serving) {
            progress.finish();
        }
    }

    /// One request and its reply.
    async fn exchange(&self, mut stream: Stream, metrics: &EnrolmentMetrics, progress: &Progress) {
        let Some((from, shown)) = who(&stream) else { return };
        let answered = match self.throttle.take(from.ip(), Instant::now()) {
            Err(refusal) => Err(refusal),
            Ok(()) => match timeout(REQUEST_TIME_MAX, read_request(&mut stream)).await {
                Err(_elapsed) => Err(Refusal::TooSlow),
                Ok(Err(ReadError::Io(error))) => {
                    metrics.refused.add("connection", 1);
                    tracing::debug!(%from, %error, "a request for a certificate did not come");
                    return;
                }
                Ok(Err(ReadError::TooLong(bytes))) => Err(Refusal::TooLong { bytes }),
                Ok(Err(ReadError::Malformed(_))) => Err(Refusal::Malformed),
                Ok(Ok(request)) => self.answer(request, &shown, from, metrics).await,
            },
        };
        let reply = match answered {
            Ok(certified) => {
                progress.clear();
                Reply::Issued { chain_pem: certified.chain_pem }
            }
            Err(refusal) => {
                metrics.refused.add(refusal.name(), 1);
                tracing::warn!(%from, reason = refusal.name(), %refusal, "a certificate is refused");
                if let Some(fault) = refusal.own_fault() {
                    progress.fault(fault);
                }
                Reply::Refused { reason: refusal.name().to_owned(), text: refusal.to_string() }
            }
        };
        if let Ok(Err(error)) = timeout(REPLY_TIME_MAX, write_reply(&mut stream, &reply)).await {
            tracing::debug!(%from, %error, "a reply was not read");
        }
        // A close with bytes that nobody read would take the reply back on its way.
        let mut rest = stream.take(REST_BYTES_MAX);
        let _elapsed = timeout(REST_TIME_MAX, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }

    async fn answer(
        &self,
        request: Request,
        shown: &[CertificateDer<'static>],
        from: SocketAddr,
        metrics: &EnrolmentMetrics,
    ) -> Result<Certified, Refusal> {
        let signing_request =
            SigningRequest::parse(&request.signing_request).map_err(Refusal::SigningRequest)?;
        let proof = request.proof.kind();
        let vouched = self.vouch(request.proof, &signing_request, shown).await?;
        self.expected.check(&vouched.name).map_err(Refusal::Name)?;
        let presented = Presented::named(vouched.name.clone());
        self.revocations.check(&presented).map_err(Refusal::Revoked)?;
        let certified = self
            .authority
            .certify(&signing_request, &vouched.name, SystemTime::now(), self.lifetime)
            .map_err(|error| Refusal::Unavailable(with_causes(&error)))?;
        metrics.issued.get_or_create(&Proved { proof }).inc();
        tracing::info!(
            name = %vouched.name,
            serial = certified.serial,
            %from,
            proof,
            by = vouched.by,
            "a certificate is issued"
        );
        Ok(certified)
    }

    /// Who asks.
    async fn vouch(
        &self,
        proof: Proof,
        request: &SigningRequest,
        shown: &[CertificateDer<'static>],
    ) -> Result<Vouched, Refusal> {
        match (proof, &self.reviews, &self.tokens) {
            (Proof::ServiceAccount(token), Some(reviews), _) => {
                let claims = reviews.review(&token).await?;
                let by = format!(
                    "pod {} ({}) on {} ({})",
                    claims.pod, claims.pod_uid, claims.node, claims.node_uid
                );
                Ok(Vouched { name: self.name_of(&claims.node)?, by })
            }
            (Proof::Token(token), _, Some(tokens)) => {
                let node = tokens.spend(token, request.key_digest()).await?;
                Ok(Vouched { name: self.name_of(&node)?, by: "a token".to_owned() })
            }
            (Proof::Certificate, _, Some(tokens)) => {
                // The handshake checked it, its time and the list of revocations.
                let name = peer::name_in_chain(Some(shown)).map_err(Refusal::Name)?;
                self.expected.check(&name).map_err(Refusal::Name)?;
                let node = name.node_id().map(|node| node.as_str().to_owned()).unwrap_or_default();
                tokens.lists(node).await?;
                Ok(Vouched { name, by: "its certificate".to_owned() })
            }
            (proof, ..) => Err(Refusal::ProofNotTaken { proof: proof.kind() }),
        }
    }

    /// The name of a node of this aggregator's cluster.
    fn name_of(&self, node: &str) -> Result<Name, Refusal> {
        let own = &self.own;
        let (tenant, cluster) = (own.tenant().map(|id| id.as_str()), own.cluster().map(|id| id.as_str()));
        Name::node(own.trust_domain().as_str(), tenant.unwrap_or_default(), cluster.unwrap_or_default(), node)
            .map_err(|error| Refusal::Name(error.into()))
    }
}

/// Where a connection comes from, and the certificates that it shows.
fn who(stream: &Stream) -> Option<(SocketAddr, Vec<CertificateDer<'static>>)> {
    let Either::Right(stream) = stream else { return None };
    let (tcp, tls) = stream.get_ref();
    let shown = tls.peer_certificates().unwrap_or_default();
    Some((tcp.peer_addr().ok()?, shown.iter().map(|certificate| certificate.clone().into_owned()).collect()))
}

//! TokenReview against what a real API server (Kubernetes 1.36) answered: `tests/recorded/token-reviews.jsonl`.

use std::{net::Ipv4Addr, sync::Arc, time::SystemTime};

use hyper::{
    Response, body::Incoming, header::CONTENT_LENGTH, server::conn::http1 as server, service::service_fn,
};
use serde_json::Value;
use tapio_identity::issuer::{Authority, Host};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const RECORDED: &str = include_str!("../../../tests/recorded/token-reviews.jsonl");
const AUDIENCE: &str = "enrol.observability.svc";
const USERNAME: &str = "system:serviceaccount:observability:kube-agent";
const OWN_TOKEN: &str = "own-token";

/// What becomes of each exchange that our question can bring about.
const EXPECTED: &[(&str, &str)] = &[
    ("03-tokenreview-valid", "node-a"),
    ("03-tokenreview-valid-again-cached", "node-a"),
    ("03-tokenreview-valid-token-with-two-audiences", "node-b"),
    ("04-tokenreview-api-token-for-enrol", "token-refused"),
    ("05-tokenreview-expired-30s-ago-still-accepted", "node-a"),
    ("05-tokenreview-node-bound-token-no-pod", "no-pod"),
    ("05-tokenreview-pod-without-node", "no-node"),
    ("05-tokenreview-unbound-token-no-node-claims", "no-pod"),
    ("06-tokenreview-broken-signature", "token-refused"),
    ("06-tokenreview-empty-token", "unavailable"),
    ("06-tokenreview-expired", "token-refused"),
    ("06-tokenreview-garbage", "token-refused"),
    ("06-tokenreview-garbage-three-parts", "token-refused"),
    ("06-tokenreview-not-yet-valid", "token-refused"),
    ("06-tokenreview-other-issuer", "token-refused"),
    ("06-tokenreview-other-key-same-issuer", "token-refused"),
    ("07-tokenreview-401-caller-token-invalid", "unavailable"),
    ("07-tokenreview-403-agent", "unavailable"),
    ("07-tokenreview-403-anonymous", "unavailable"),
    ("08-tokenreview-before-pod-delete", "node-a"),
    ("08-tokenreview-just-after-pod-delete", "node-a"),
    ("08-tokenreview-pod-deleted", "token-refused"),
    ("08-tokenreview-pod-deleted-never-reviewed-before", "token-refused"),
    ("08-tokenreview-pod-recreated-same-name", "token-refused"),
    ("09-tokenreview-before-serviceaccount-delete", "wrong-service-account"),
    ("09-tokenreview-just-after-serviceaccount-delete", "wrong-service-account"),
    ("09-tokenreview-serviceaccount-deleted", "token-refused"),
    ("09-tokenreview-serviceaccount-recreated", "token-refused"),
    ("10-tokenreview-pod-terminating", "node-a"),
    ("10-tokenreview-pod-terminating-past-deadline", "token-refused"),
    ("11-tokenreview-bound-node-deleted", "token-refused"),
    ("11-tokenreview-node-of-pod-deleted", "node-b"),
];

#[derive(Clone, Debug, Deserialize)]
struct Recorded {
    name: String,
    request: String,
    request_body: Value,
    status: u16,
    chunked: bool,
    body: Value,
}

fn recorded() -> Vec<Recorded> {
    RECORDED.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Answers one connection with what was recorded, and gives back what was asked.
async fn replay(
    acceptor: TlsAcceptor,
    listener: &TcpListener,
    exchange: Recorded,
) -> (String, Value, Vec<String>) {
    let (stream, _peer) = listener.accept().await.unwrap();
    let stream = acceptor.accept(stream).await.unwrap();
    let asked = Arc::new(std::sync::Mutex::new(None));
    let seen = Arc::clone(&asked);
    let service = service_fn(move |request: Request<Incoming>| {
        let (seen, exchange) = (Arc::clone(&seen), exchange.clone());
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let header = |name| {
                request.headers().get(name).map(|value: &HeaderValue| value.to_str().unwrap().to_owned())
            };
            let headers = [AUTHORIZATION, ACCEPT, CONTENT_TYPE].map(|name| header(name).unwrap()).to_vec();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            *seen.lock().unwrap() = Some((line, serde_json::from_slice(&body).unwrap(), headers));
            let bytes = Bytes::from(serde_json::to_vec(&exchange.body).unwrap());
            let mut answer = Response::builder().status(exchange.status);
            if !exchange.chunked {
                answer = answer.header(CONTENT_LENGTH, bytes.len());
            }
            answer.body(Full::new(bytes))
        }
    });
    let _ended = server::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    let asked = asked.lock().unwrap().take();
    asked.expect("nothing was asked")
}

struct World {
    _folder: tempfile::TempDir,
    acceptor: TlsAcceptor,
    listener: TcpListener,
    reviews: TokenReviews,
}

impl World {
    async fn new(change: impl FnOnce(&mut KubernetesEnrolment)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hour = Duration::from_secs(3_600);
        let authority = Authority::new("kubernetes", SystemTime::now(), hour).unwrap();
        let hosts = [Host::Dns("kubernetes.test".to_owned())];
        let files = authority.issue_https(&hosts, SystemTime::now(), hour).unwrap();
        let files = files.write(folder.path(), "api").unwrap();
        let acceptor = TlsAcceptor::from(https::server_config(&files.certificate, &files.key).unwrap());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let token = folder.path().join("token");
        fs::write(&token, format!("{OWN_TOKEN}\n")).unwrap();
        let mut config = KubernetesEnrolment {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            server_name: ServerName::try_from("kubernetes.test").unwrap(),
            authority: files.authority,
            token,
            audience: AUDIENCE.to_owned(),
            username: USERNAME.to_owned(),
        };
        change(&mut config);
        let reviews = TokenReviews::new(&config).unwrap();
        Self { _folder: folder, acceptor, listener, reviews }
    }

    /// What becomes of an exchange, and what was asked.
    async fn review(&self, exchange: &Recorded) -> (Result<Claims, Refusal>, String, Value, Vec<String>) {
        let token = exchange.request_body["spec"]["token"].as_str().unwrap().to_owned();
        let replayed = replay(self.acceptor.clone(), &self.listener, exchange.clone());
        let (reviewed, (line, body, headers)) = tokio::join!(self.reviews.review(&token), replayed);
        (reviewed, line, body, headers)
    }
}

fn outcome(reviewed: &Result<Claims, Refusal>) -> &str {
    match reviewed {
        Ok(claims) => &claims.node,
        Err(refusal) => refusal.name(),
    }
}

/// Scenario: every recorded exchange that our question can bring about, with good, refused, expired and stale tokens, and
/// callers without the right, over TLS.
/// Guarantees: our question is the recorded one, byte for byte as JSON; only tokens of a pod of the agents on a node pass,
/// with the node that Kubernetes names; each other is refused by its name, and nothing that is told repeats a token.
#[tokio::test]
async fn recorded_exchanges_are_judged_one_by_one() {
    let world = World::new(|_config| {}).await;
    let exchanges = recorded();
    for (name, expected) in EXPECTED {
        let exchange = exchanges.iter().find(|exchange| exchange.name == *name).expect(name);
        let (reviewed, line, body, headers) = world.review(exchange).await;
        assert_eq!((&line, &body), (&exchange.request, &exchange.request_body), "{name}");
        assert_eq!(
            headers,
            [&format!("Bearer {OWN_TOKEN}"), "application/json", "application/json"],
            "{name}"
        );
        assert_eq!(outcome(&reviewed), *expected, "{name}: {reviewed:?}");
        match &reviewed {
            Ok(claims) => {
                assert!(!claims.pod.is_empty() && claims.pod_uid.len() == 36 && claims.node_uid.len() == 36)
            }
            Err(refusal) => {
                let text = refusal.to_string();
                assert!(!text.contains("<token") && !text.contains(OWN_TOKEN), "{name}: {text}");
            }
        }
    }
}

/// Scenario: an API server that answers our question as one would that looked at its own audience; a good token of an
/// account that is not the agents'.
/// Guarantees: the ordinary API token of a pod passes for nothing, and neither does another account's.
#[tokio::test]
async fn other_audiences_and_accounts_buy_nothing() {
    let exchanges = recorded();
    let find = |name: &str| exchanges.iter().find(|exchange| exchange.name == name).unwrap();
    let world = World::new(|_config| {}).await;
    let (reviewed, ..) = world.review(find("05-tokenreview-api-token-no-audiences-in-spec")).await;
    assert_eq!(outcome(&reviewed), "wrong-audience");
    let world =
        World::new(|config| config.username = "system:serviceaccount:observability:other".to_owned()).await;
    let (reviewed, ..) = world.review(find("03-tokenreview-valid")).await;
    assert_eq!(outcome(&reviewed), "wrong-service-account");
}

/// Scenario: an API server that shows a certificate for another name, one whose answer has no end, and one that is not
/// there.
/// Guarantees: none of them is believed or waited for: the refusal says that it is ours, and why.
#[tokio::test]
async fn an_api_server_that_cannot_be_believed_vouches_for_nobody() {
    let exchanges = recorded();
    let valid = exchanges.iter().find(|exchange| exchange.name == "03-tokenreview-valid").unwrap();
    let world = World::new(|config| config.server_name = ServerName::try_from("other.test").unwrap()).await;
    let accepted = async {
        let (stream, _peer) = world.listener.accept().await.unwrap();
        let _refused = world.acceptor.accept(stream).await;
    };
    let (reviewed, ()) = tokio::join!(world.reviews.review("token"), accepted);
    assert_eq!(outcome(&reviewed), "unavailable");

    let world = World::new(|_config| {}).await;
    let long = Recorded { body: Value::String("x".repeat(2 * ANSWER_BYTES_MAX)), ..valid.clone() };
    let (reviewed, ..) = world.review(&long).await;
    assert_eq!(outcome(&reviewed), "unavailable");

    let world = World::new(|config| config.port = 9).await;
    let reviewed = world.reviews.review("token").await;
    assert_eq!(outcome(&reviewed), "unavailable");
    assert!(reviewed.unwrap_err().to_string().contains("cannot be reached"));
}

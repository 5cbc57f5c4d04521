//! Nodes that get their certificate from a running aggregator, and others that try to.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
use sha2::{Digest as _, Sha256};
use tapio_aggregator::{
    Running,
    config::{EnrolmentConfig, KubernetesEnrolment},
};
use tapio_identity::{
    Credentials, Name,
    enrolment::{Enrolment, EnrolmentError, Proof, Request, ServerName, Stored, signing_request},
    https,
    issuer::{Authority, Host},
};
use tapio_wire::Position;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

use super::support::{DOMAIN, World, frame};

const LIFE: Duration = Duration::from_secs(3_600);

/// An aggregator that issues certificates of an authority in files, for tokens in a file.
struct Issuing {
    world: World,
    running: Running,
    server: Enrolment,
    tokens: PathBuf,
    authority: PathBuf,
}

impl Issuing {
    async fn new(lifetime: Duration) -> Self {
        Self::asking(World::named(), lifetime, None).await
    }

    /// One that takes service accounts' tokens too.
    async fn asking(world: World, lifetime: Duration, kubernetes: Option<KubernetesEnrolment>) -> Self {
        let file = |name: &str| world.path().join(name);
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_after = (SystemTime::now() + LIFE).into();
        let key = KeyPair::generate().unwrap();
        let issuing = params.self_signed(&key).unwrap().pem();
        fs::write(file("issuing.pem"), &issuing).unwrap();
        fs::write(file("issuing.key"), key.serialize_pem()).unwrap();
        // Aggregators are vouched for by one authority, nodes by the other.
        let both = format!("{issuing}{}", world.authority.certificate_pem());
        fs::write(file("both.pem"), both).unwrap();
        fs::write(file("tokens"), "").unwrap();
        fs::write(file("revoked"), "").unwrap();
        let hosts = [Host::Dns("enrol.test".to_owned())];
        let shown = world.authority.issue_https(&hosts, SystemTime::now(), LIFE).unwrap();
        let shown = shown.write(world.path(), "enrol").unwrap();
        let running = world
            .without_store_by(|config| {
                config.identity.authority = file("both.pem");
                config.identity.revocations = Some(file("revoked"));
                config.enrolment = Some(EnrolmentConfig {
                    listen: SocketAddr::from(([127, 0, 0, 1], 0)),
                    certificate: shown.certificate,
                    key: shown.key,
                    authority_certificate: file("issuing.pem"),
                    authority_key: file("issuing.key"),
                    lifetime,
                    kubernetes,
                    tokens: Some(file("tokens")),
                });
            })
            .await;
        let server = Enrolment {
            address: running.enrolment_addr.unwrap().to_string(),
            server_name: ServerName::try_from("enrol.test").unwrap(),
            authority: shown.authority,
        };
        let (tokens, authority) = (file("tokens"), file("both.pem"));
        Self { world, running, server, tokens, authority }
    }

    fn allow(&self, token: &str, node: &str) {
        let digest: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
        let before = fs::read_to_string(&self.tokens).unwrap();
        fs::write(&self.tokens, format!("{before}{digest} {node}\n")).unwrap();
    }

    fn stored(&self, stem: &str) -> Stored {
        Stored::new(self.world.path().join(format!("{stem}.pem")), self.authority.clone())
    }

    /// Asks with a key of `stored`, and keeps what is got.
    async fn enrol(
        &self,
        stored: &Stored,
        proof: Proof,
        shown: Option<&Credentials>,
    ) -> Result<Credentials, EnrolmentError> {
        let key = stored.asked_key().unwrap();
        let request = Request { proof, signing_request: signing_request(&key).unwrap() };
        let chain = self.server.ask(&request, shown).await?;
        stored.store(&key, &chain).unwrap();
        Ok(stored.files().load().unwrap())
    }

    async fn refusal(&self, request: &Request) -> String {
        reason(self.server.ask(request, None).await)
    }

    fn count(&self, line: &str) -> u64 {
        let metrics = self.running.registry.encode().unwrap();
        let value = metrics.lines().find_map(|found| found.strip_prefix(line));
        value.map_or(0, |value| value.trim().parse().unwrap())
    }
}

fn reason<T: std::fmt::Debug>(asked: Result<T, EnrolmentError>) -> String {
    match asked {
        Err(EnrolmentError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn token(token: &str) -> Proof {
    Proof::Token(token.to_owned())
}

/// Scenario: a node with a token gets a certificate, ships a frame with it, asks again after a lost reply, and renews it
/// with the certificate itself; then its line is removed, and its name revoked.
/// Guarantees: the certificate has the name of the token's line, whatever the signing request says; the same key is
/// answered again, another is not; a renewal has another key and needs the line; a revoked name gets nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_enrols_and_renews() {
    let issuing = Issuing::new(LIFE / 2).await;
    issuing.allow("first-token", "n1");
    let stored = issuing.stored("n1");
    let key = stored.asked_key().unwrap();
    let mut params = CertificateParams::new(vec!["admin.test".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let forged = params.serialize_request(&KeyPair::from_pem(&key).unwrap()).unwrap().der().to_vec();
    let request = Request { proof: token("first-token"), signing_request: forged };
    let lost = issuing.server.ask(&request, None).await.unwrap();
    assert!(lost.starts_with("-----BEGIN CERTIFICATE-----"));

    let credentials = issuing.enrol(&stored, token("first-token"), None).await.unwrap();
    assert_eq!(*credentials.name(), Name::node(DOMAIN, "default", "demo", "n1").unwrap());
    assert!(credentials.key_is_private());
    let left = credentials.remaining(SystemTime::now()).unwrap();
    assert!(left <= LIFE / 2 && left > LIFE / 3, "{left:?}");
    let mut node = issuing.world.node_with(&issuing.running, &credentials, "n1").await;
    node.offer(&frame(node.source, Position::new(1, 1), &[])).await;
    node.until_received(1).await;

    let thief = issuing.stored("thief");
    assert_eq!(reason(issuing.enrol(&thief, token("first-token"), None).await), "token-spent");
    let renewed = issuing.enrol(&stored, Proof::Certificate, Some(&credentials)).await.unwrap();
    assert_ne!(renewed.serial(), credentials.serial());
    assert_eq!(renewed.name(), credentials.name());
    assert_eq!(issuing.count("tapio_enrolment_issued_total{proof=\"token\"}"), 2);
    assert_eq!(issuing.count("tapio_enrolment_issued_total{proof=\"certificate\"}"), 1);

    fs::write(&issuing.tokens, "").unwrap();
    assert_eq!(reason(issuing.enrol(&stored, Proof::Certificate, Some(&renewed)).await), "not-listed");
    issuing.allow("second-token", "n1");
    fs::write(issuing.world.path().join("revoked"), format!("{}\n", renewed.name())).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while issuing.count("tapio_identity_revoked_entries ") == 0 {
        assert!(tokio::time::Instant::now() < deadline, "the list is not read");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(reason(issuing.enrol(&thief, token("second-token"), None).await), "revoked");
    // The handshake itself refuses a certificate that is taken back.
    let refused = issuing.enrol(&stored, Proof::Certificate, Some(&renewed)).await;
    assert!(!matches!(refused, Ok(_) | Err(EnrolmentError::Refused { .. })), "{refused:?}");
    issuing.running.stop().await.unwrap();
}

/// Scenario: requests that are no signing request, signed by another key, of unknown tokens and of kinds that are not
/// taken, one that shows no certificate, one that is too long and one that never comes, and then one after the other
/// without end.
/// Guarantees: each is refused by its name and counted, in a bounded time; who asks without end is refused for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_get_nothing() {
    let issuing = Issuing::new(LIFE / 2).await;
    issuing.allow("a-token", "n1");
    let good = signing_request(&KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let mut altered = good.clone();
    *altered.last_mut().unwrap() ^= 1;
    let request =
        |proof, signing_request: &[u8]| Request { proof, signing_request: signing_request.to_vec() };
    for (request, expected) in [
        (request(token("a-token"), b"no request"), "signing-request"),
        (request(token("a-token"), &altered), "signing-request"),
        (request(token("b-token"), &good), "unknown-token"),
        (request(Proof::ServiceAccount("a.b.c".to_owned()), &good), "proof-not-taken"),
        (request(Proof::Certificate, &good), "name"),
        (request(token(&"x".repeat(20_000)), &good), "too-long"),
    ] {
        assert_eq!(issuing.refusal(&request).await, expected, "{request:?}");
        let counted = issuing.count(&format!("tapio_enrolment_refused_total{{reason=\"{expected}\"}}"));
        assert!(counted >= 1, "{expected}");
    }
    // One that begins and never goes on.
    let mut roots = rustls::RootCertStore::empty();
    let pem = issuing.world.authority.certificate_pem().as_bytes().to_vec();
    for root in rustls::pki_types::pem::PemObject::pem_slice_iter(&pem) {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider);
    let config = config.with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"tapio-enrol/1".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let stream = tokio::net::TcpStream::connect(&issuing.server.address).await.unwrap();
    let mut stream = connector.connect(ServerName::try_from("enrol.test").unwrap(), stream).await.unwrap();
    stream.write_all(&[9, 0]).await.unwrap();
    let began = std::time::Instant::now();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10) && !said.is_empty());
    assert_eq!(issuing.count("tapio_enrolment_refused_total{reason=\"too-slow\"}"), 1);

    let again = request(token("b-token"), &good);
    let mut asked = 0;
    while issuing.refusal(&again).await != "too-often" {
        asked += 1;
        assert!(asked < 100, "nobody stops it");
    }
    issuing.running.stop().await.unwrap();
}

/// Scenario: a server with a certificate of another authority, and one for another name.
/// Guarantees: the node tells neither its token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_its_token_to_nobody_else() {
    let issuing = Issuing::new(LIFE / 2).await;
    let stranger = Authority::new("stranger", SystemTime::now(), LIFE).unwrap();
    let authority = issuing.world.path().join("stranger.pem");
    fs::write(&authority, stranger.certificate_pem()).unwrap();
    let other_name = ServerName::try_from("other.test").unwrap();
    let request = Request { proof: token("a-token"), signing_request: Vec::new() };
    for server in [
        Enrolment { authority, ..issuing.server.clone() },
        Enrolment { server_name: other_name, ..issuing.server.clone() },
    ] {
        let asked = server.ask(&request, None).await;
        assert!(matches!(asked, Err(EnrolmentError::Connect { .. })), "{asked:?}");
    }
    issuing.running.stop().await.unwrap();
}

/// An API server that answers every connection with one recorded exchange, over TLS.
async fn api_server(listener: TcpListener, acceptor: TlsAcceptor, recorded: serde_json::Value) {
    loop {
        let (stream, _from) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut asked = Vec::new();
        let body = loop {
            assert!(stream.read_buf(&mut asked).await.unwrap() > 0, "the question ends early");
            let text = String::from_utf8(asked.clone()).unwrap();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap() {
                assert!(head.starts_with(recorded["request"].as_str().unwrap()), "{head}");
                break serde_json::from_str::<serde_json::Value>(body).unwrap();
            }
        };
        assert_eq!(body, recorded["request_body"]);
        let answer = recorded["body"].to_string();
        let head = format!("HTTP/1.1 {} OK\r\nContent-Length: {}\r\n\r\n", recorded["status"], answer.len());
        stream.write_all(format!("{head}{answer}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}

/// Scenario: an agent's pod asks with its service account's token; Kubernetes answers as a real API server did, for a token
/// of a pod on a node and for one that it refuses.
/// Guarantees: the certificate names the node of the token's claim, which opens a session as that node and no other; a
/// refused token buys nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_gets_the_certificate_of_its_node() {
    let recorded: Vec<serde_json::Value> = include_str!("../recorded/token-reviews.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (name, node) in [("03-tokenreview-valid", Some("node-a")), ("06-tokenreview-garbage", None)] {
        let exchange = recorded.iter().find(|exchange| exchange["name"] == name).unwrap().clone();
        let proof = exchange["request_body"]["spec"]["token"].as_str().unwrap().to_owned();
        let world = World::named();
        let hosts = [Host::Dns("kubernetes.test".to_owned())];
        let files = world.authority.issue_https(&hosts, SystemTime::now(), LIFE).unwrap();
        let files = files.write(world.path(), "api").unwrap();
        let acceptor = TlsAcceptor::from(https::server_config(&files.certificate, &files.key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own_token = world.path().join("own-token");
        fs::write(&own_token, "own-token").unwrap();
        let kubernetes = KubernetesEnrolment {
            host: "127.0.0.1".to_owned(),
            port: listener.local_addr().unwrap().port(),
            server_name: ServerName::try_from("kubernetes.test").unwrap(),
            authority: files.authority,
            token: own_token,
            audience: "enrol.observability.svc".to_owned(),
            username: "system:serviceaccount:observability:kube-agent".to_owned(),
        };
        let server = tokio::spawn(api_server(listener, acceptor, exchange));
        let issuing = Issuing::asking(world, LIFE / 2, Some(kubernetes)).await;
        let enrolled = issuing.enrol(&issuing.stored("pod"), Proof::ServiceAccount(proof), None).await;
        if let Some(node) = node {
            let credentials = enrolled.unwrap();
            assert_eq!(*credentials.name(), Name::node(DOMAIN, "default", "demo", node).unwrap());
            issuing.world.node_with(&issuing.running, &credentials, node).await;
            assert_eq!(issuing.count("tapio_enrolment_issued_total{proof=\"service-account\"}"), 1);
        } else {
            assert_eq!(reason(enrolled), "token-refused");
        }
        issuing.running.stop().await.unwrap();
        server.abort();
    }
}

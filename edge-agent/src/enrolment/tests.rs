use std::{
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use tapio_daemon::Health;
use tapio_identity::{
    CredentialFiles, Name,
    enrolment::{Enrolment, Reply, ServerName, Stored, read_request, write_reply},
    https,
    issuer::{Authority, Host, SigningRequest},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const HOUR: Duration = Duration::from_secs(3_600);
const LIFETIME: Duration = Duration::from_secs(9);

/// What the server of this test was asked, and how many requests it refuses next.
#[derive(Default)]
struct Seen {
    proofs: Vec<(&'static str, bool)>,
    keys: Vec<[u8; 32]>,
    refuse: usize,
}

struct World {
    folder: tempfile::TempDir,
    authority: Arc<Authority>,
    config: EnrolConfig,
    seen: Arc<Mutex<Seen>>,
}

impl World {
    /// A server that issues what it is asked for, and a node with a token for it.
    async fn new(is_service_account: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::new("test", SystemTime::now(), HOUR).unwrap());
        let hosts = [Host::Dns("enrol.test".to_owned())];
        let shown = authority.issue_https(&hosts, SystemTime::now(), HOUR).unwrap();
        let shown = shown.write(folder.path(), "server").unwrap();
        let aggregator = Name::aggregator("test.example", "default", "test", "a").unwrap();
        let own = authority.issue(&aggregator, SystemTime::now(), HOUR).unwrap();
        let own = own.write(folder.path(), "aggregator").unwrap();
        let (certificate, key) = (own.certificate, own.key);
        let machines = CredentialFiles { certificate, key, authority: own.authority.clone() }.load().unwrap();
        let tls = https::enrolment_server_config(&shown.certificate, &shown.key, &machines).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let token = folder.path().join("token");
        fs::write(&token, "a-token\n").unwrap();
        let server = Enrolment {
            address: listener.local_addr().unwrap().to_string(),
            server_name: ServerName::try_from("enrol.test").unwrap(),
            authority: shown.authority,
        };
        let stored = Stored::new(folder.path().join("identity.pem"), own.authority);
        let config = EnrolConfig { server, token, is_service_account, stored };
        let seen = Arc::new(Mutex::new(Seen::default()));
        let world = Self { folder, authority, config, seen };
        tokio::spawn(serve(
            listener,
            TlsAcceptor::from(tls),
            Arc::clone(&world.authority),
            Arc::clone(&world.seen),
        ));
        world
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    authority: Arc<Authority>,
    seen: Arc<Mutex<Seen>>,
) {
    let node = Name::node("test.example", "default", "test", "node-1").unwrap();
    loop {
        let (stream, _from) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let request = read_request(&mut stream).await.unwrap();
        let signing_request = SigningRequest::parse(&request.signing_request).unwrap();
        let certified = authority.certify(&signing_request, &node, SystemTime::now(), LIFETIME).unwrap();
        let reply = {
            let mut seen = seen.lock().unwrap();
            let shows = stream.get_ref().1.peer_certificates().is_some();
            seen.proofs.push((request.proof.kind(), shows));
            seen.keys.push(signing_request.key_digest());
            match seen.refuse.checked_sub(1) {
                None => Reply::Issued { chain_pem: certified.chain_pem },
                Some(left) => {
                    seen.refuse = left;
                    Reply::Refused { reason: "busy".to_owned(), text: "later".to_owned() }
                }
            }
        };
        write_reply(&mut stream, &reply).await.unwrap();
    }
}

/// Scenario: a node without a certificate starts with a token, and starts again; its certificate is renewed while it
/// runs, at the second try.
/// Guarantees: it asks once and keeps what it gets, for itself alone; the renewal comes after two thirds of the time, shows
/// the certificate instead of the token, has another key (the same at both tries), stands in health while it fails, and is
/// good before the old one ends.
#[tokio::test]
async fn a_certificate_is_got_once_and_renewed_in_time() {
    let world = World::new(false).await;
    let credentials = first(&world.config).await.unwrap();
    let again = first(&world.config).await.unwrap();
    assert_eq!(
        (again.serial(), world.seen().proofs.as_slice()),
        (credentials.serial(), &[("token", false)][..])
    );
    let kept = world.config.stored.files().certificate;
    let mode = fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let left_over: Vec<_> = fs::read_dir(world.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("identity.pem."))
        .collect();
    assert_eq!(left_over, Vec::<String>::new());

    world.seen().refuse = 1;
    let (health, registry) = (Health::new(), Registry::new());
    let metrics = Metrics::new(&registry);
    let (renewed, failed) = (metrics.renewed.clone(), metrics.failed.clone());
    let progress = health.component("enrolment", Duration::from_secs(10));
    let finished = CancellationToken::new();
    let renewal =
        Renewal { config: world.config.clone(), credentials: credentials.clone(), metrics, progress };
    let renewal = tokio::spawn(renewal.run(finished.clone()));
    while failed.get("refused") == 0 {
        assert!(left(&credentials) > Duration::ZERO, "it did not ask");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(left(&credentials) <= LIFETIME / 2, "{:?} left", left(&credentials));
    let reasons = health.status().reasons;
    assert!(
        reasons.iter().any(|reason| reason.contains("cannot be renewed") && reason.contains("busy")),
        "{reasons:?}"
    );
    while renewed.get() == 0 {
        assert!(left(&credentials) > Duration::ZERO, "it is not renewed in time");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let new = world.config.stored.files().load().unwrap();
    assert_ne!(new.serial(), credentials.serial());
    assert_eq!(new.name(), credentials.name());
    while !health.status().reasons.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    finished.cancel();
    renewal.await.unwrap();
    let seen = world.seen();
    assert_eq!(seen.proofs[1..], [("certificate", true), ("certificate", true)]);
    assert!(seen.keys[0] != seen.keys[1] && seen.keys[1] == seen.keys[2]);
}

/// Scenario: a node of Kubernetes asks with its service account's token; then its file is gone, is too large, and nobody
/// is there to be asked.
/// Guarantees: the token of each moment is shown, and no certificate with it; what is missing is named.
#[tokio::test]
async fn a_service_account_shows_its_token_each_time() {
    let world = World::new(true).await;
    let credentials = enrol(&world.config, None).await.unwrap();
    enrol(&world.config, Some(&credentials)).await.unwrap();
    assert_eq!(world.seen().proofs, [("service-account", false), ("service-account", false)]);
    assert!(check(&world.config).is_ok());
    fs::write(&world.config.token, vec![b'x'; 20 << 10]).unwrap();
    assert_eq!(enrol(&world.config, None).await.unwrap_err().name(), "token");
    fs::remove_file(&world.config.token).unwrap();
    let error = with_causes(&check(&world.config).unwrap_err());
    assert!(error.contains("identity.enrol_token"), "{error}");
    fs::write(&world.config.token, "t").unwrap();
    let nobody = Enrolment { address: "127.0.0.1:9".to_owned(), ..world.config.server.clone() };
    let config = EnrolConfig { server: nobody, ..world.config.clone() };
    assert_eq!(enrol(&config, None).await.unwrap_err().name(), "connect");
}

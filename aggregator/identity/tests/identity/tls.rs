//! TLS over TCP: the same rules as over QUIC; and HTTPS for people.

use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::ServerName;
use tapio_identity::issuer::{Authority, Host};
use tapio_identity::{Expected, NameKind, https, peer, tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::world::{HOUR, World};

fn server_name(name: &'static str) -> ServerName<'static> {
    ServerName::try_from(name).expect("a server's name")
}

/// Scenario: a node and an aggregator over TCP, of the same cluster and of different ones.
/// Guarantees: the first two know each other's names; the node refuses the other by name.
#[tokio::test]
async fn machines_meet_over_tcp_by_the_same_rules() {
    let world = World::new();
    let node = world.node("default", "demo", "n1");
    let expected = Expected::beside(node.name(), &[NameKind::Aggregator]);
    for cluster in ["demo", "other"] {
        let aggregator = world.aggregator("default", cluster);
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&aggregator).expect("a configuration")));
        let config = tls::client_config(&node, expected.clone()).expect("a configuration");
        let connector = TlsConnector::from(Arc::new(config));
        let (near, far) = tokio::io::duplex(4096);
        let (accepted, connected) =
            tokio::join!(acceptor.accept(far), connector.connect(server_name(tls::SERVER_NAME), near));
        if cluster == "demo" {
            let (accepted, connected) = (accepted.expect("accepted"), connected.expect("connected"));
            let client = peer::name_in_chain(accepted.get_ref().1.peer_certificates()).expect("a name");
            let server = peer::name_in_chain(connected.get_ref().1.peer_certificates()).expect("a name");
            assert_eq!((&client, &server), (node.name(), aggregator.name()));
            assert_eq!(accepted.get_ref().1.alpn_protocol(), Some(tls::ALPN));
        } else {
            assert!(accepted.is_err());
            let error = connected.expect_err("refused");
            let refused = tls::refused(&error).expect("refused for its name");
            assert_eq!(refused.label(), "other_cluster", "{refused}");
        }
    }
}

/// Scenario: a person's client that asks an HTTPS server by name and by address, and by a name that the
/// certificate does not have.
/// Guarantees: bytes go through for the first two, the last is refused.
#[tokio::test]
async fn people_get_https() {
    let dir = tempfile::tempdir().expect("a directory");
    let authority = Authority::new("tapio test", SystemTime::now(), HOUR).expect("an authority");
    let hosts = [Host::Dns("localhost".to_owned()), Host::Ip([127, 0, 0, 1].into())];
    let issued = authority.issue_https(&hosts, SystemTime::now(), HOUR).expect("issued");
    let files = issued.write(dir.path(), "rest").expect("written");
    let acceptor = TlsAcceptor::from(https::server_config(&files.certificate, &files.key).expect("a server"));
    let connector = TlsConnector::from(https::client_config(&files.authority).expect("a client"));
    for (host, good) in [("localhost", true), ("127.0.0.1", true), ("elsewhere.test", false)] {
        let (near, far) = tokio::io::duplex(4096);
        let (accepted, connected) =
            tokio::join!(acceptor.accept(far), connector.connect(server_name(host), near));
        if !good {
            assert!(connected.is_err() && accepted.is_err());
            continue;
        }
        let (mut accepted, mut connected) = (accepted.expect("accepted"), connected.expect("connected"));
        connected.write_all(b"GET").await.expect("sent");
        connected.flush().await.expect("sent");
        let mut got = [0; 3];
        accepted.read_exact(&mut got).await.expect("received");
        assert_eq!(&got, b"GET");
        assert_eq!(accepted.get_ref().1.alpn_protocol(), Some(https::ALPN));
    }
}

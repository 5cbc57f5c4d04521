//! Real QUIC endpoints on loopback: who is let in, and by which name the others are refused.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint};
use tapio_identity::quic::{
    ConnectError, Refusal, RefusalReason, Side, client_endpoint, connect, server_endpoint,
};
use tapio_identity::{Credentials, Expected, NameKind, PeerError, peer};

use crate::world::{self, World, late_node};

fn socket() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("bound")
}

struct Server {
    endpoint: Endpoint,
    address: SocketAddr,
}

impl Server {
    fn start(credentials: &Credentials) -> Self {
        let endpoint = server_endpoint(socket(), credentials).expect("an endpoint");
        let address = endpoint.local_addr().expect("an address");
        Self { endpoint, address }
    }

    async fn accept(&self) -> Result<Connection, ConnectionError> {
        self.endpoint.accept().await.expect("an open endpoint").await
    }
}

/// Connects, and waits until both sides know what became of it. The client's connection is kept alive.
async fn meet(
    server: &Server,
    client: &Credentials,
    expected: &Expected,
) -> (Result<Connection, ConnectionError>, Result<(Connection, tapio_identity::Name), ConnectError>) {
    let endpoint = client_endpoint(socket()).expect("an endpoint");
    let met = tokio::join!(server.accept(), connect(&endpoint, client, server.address, expected));
    tokio::time::timeout(Duration::from_secs(10), async { met }).await.expect("decided")
}

/// Scenario: a node and the aggregator of its cluster, certified by the same authority.
/// Guarantees: they are connected, each knows the other's name and when its certificate ends, and bytes go through a
/// stream.
#[tokio::test]
async fn a_node_and_its_aggregator_meet() {
    let world = World::new();
    let (node, aggregator) = (world.node("default", "demo", "n1"), world.aggregator("default", "demo"));
    let server = Server::start(&aggregator);
    let expected = Expected::beside(node.name(), &[NameKind::Aggregator]);
    let (accepted, connected) = meet(&server, &node, &expected).await;
    let accepted = accepted.expect("accepted");
    let (connection, name) = connected.expect("connected");
    assert_eq!(&name, aggregator.name());
    let client_name = peer::peer_name(&accepted).expect("a name");
    assert_eq!(&client_name, node.name());
    Expected::beside(aggregator.name(), &[NameKind::Node]).check(&client_name).expect("of this cluster");
    assert_eq!(client_name.source_id(), node.name().source_id());
    assert_eq!(peer::peer_not_after(&accepted), Ok(node.not_after()));
    assert_eq!(peer::peer_not_after(&connection), Ok(aggregator.not_after()));
    assert_eq!(peer::not_after_in_chain(None), Err(PeerError::NoCertificate));

    let (mut send, _receive) = connection.open_bi().await.expect("a stream");
    send.write_all(b"hello").await.expect("sent");
    send.finish().expect("finished");
    let (_send, mut receive) = accepted.accept_bi().await.expect("a stream");
    assert_eq!(receive.read_to_end(64).await.expect("received"), b"hello");
}

/// Scenario: servers that are certified, but are not the aggregator of the node's cluster.
/// Guarantees: the node refuses each by its named error, and the server learns of it.
#[tokio::test]
async fn a_node_refuses_servers_that_are_not_its_aggregator() {
    let world = World::new();
    let node = world.node("default", "demo", "n1");
    let expected = Expected::beside(node.name(), &[NameKind::Aggregator]);
    let none = world.with_uris(&[]);
    let several = world.with_uris(&[
        "spiffe://tapio.test/tenant/default/cluster/demo/aggregator/a",
        "spiffe://tapio.test/tenant/default/cluster/demo/aggregator/b",
    ]);
    let wrong = world.with_uris(&["spiffe://tapio.test/tenant/default/cluster/demo/node/"]);
    for (files, label) in [
        (world.files(&world.name_of_central()), "wrong_kind"),
        (world.files(&World::aggregator_name("other", "demo")), "other_tenant"),
        (world.files(&World::aggregator_name("default", "other")), "other_cluster"),
        (world.files(&World::foreign_aggregator_name()), "other_trust_domain"),
        (none, "no_spiffe_uri"),
        (several, "several_uris"),
        (wrong, "name"),
    ] {
        let server = Server { endpoint: world::raw_server(&files, socket()), address: ([0; 4], 0).into() };
        let address = server.endpoint.local_addr().expect("an address");
        let server = Server { address, ..server };
        let (accepted, connected) = meet(&server, &node, &expected).await;
        match connected {
            Err(ConnectError::Peer { source, .. }) => assert_eq!(source.label(), label, "{source}"),
            other => panic!("{label}: {other:?}"),
        }
        let refusal = accepted.as_ref().err().and_then(Refusal::of);
        assert_eq!(refusal.map(|refusal| refusal.side), Some(Side::Peer), "{label}: {accepted:?}");
    }
}

/// Scenario: an aggregator with a certificate of another authority.
/// Guarantees: the node says that it does not know the authority.
#[tokio::test]
async fn a_node_refuses_another_authority() {
    let (world, other) = (World::new(), World::new());
    let node = world.node("default", "demo", "n1");
    let server = Server::start(&other.aggregator("default", "demo"));
    let expected = Expected::beside(node.name(), &[NameKind::Aggregator]);
    let (_, connected) = meet(&server, &node, &expected).await;
    let unknown = Refusal { side: Side::Own, reason: RefusalReason::UnknownAuthority };
    match connected {
        Err(ConnectError::Refused { refusal, .. }) => assert_eq!(refusal, unknown),
        other => panic!("{other:?}"),
    }
}

/// Scenario: clients with certificates of another authority, and with an expired one.
/// Guarantees: the aggregator refuses them, and both sides can tell why.
#[tokio::test]
async fn an_aggregator_refuses_other_authorities_and_expired_clients() {
    let world = World::new();
    let server = Server::start(&world.aggregator("default", "demo"));
    let stranger = World::new().node_believing(&world, "default", "demo", "n1");
    let late = late_node(&world, "n1");
    for (client, reason) in [(stranger, RefusalReason::UnknownAuthority), (late, RefusalReason::Expired)] {
        let endpoint = world::raw_client(&client, socket());
        let connecting = endpoint.connect(server.address, "tapio.invalid").expect("tried");
        let (accepted, connected) = tokio::join!(server.accept(), connecting);
        let accepted = accepted.expect_err("refused");
        assert_eq!(Refusal::of(&accepted), Some(Refusal { side: Side::Own, reason }), "{accepted}");
        // In TLS 1.3 the client is done before the server has looked at its certificate.
        let ended = match connected {
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        };
        assert_eq!(Refusal::of(&ended), Some(Refusal { side: Side::Peer, reason }), "{ended}");
    }
}

/// Scenario: clients that the authority vouches for, with names that do not belong at this aggregator.
/// Guarantees: the handshake succeeds, the name is refused by its named error.
#[tokio::test]
async fn an_aggregator_refuses_names_from_elsewhere() {
    let world = World::new();
    let aggregator = world.aggregator("default", "demo");
    let server = Server::start(&aggregator);
    let expected = Expected::beside(aggregator.name(), &[NameKind::Node, NameKind::Central]);
    let central = world.files(&world.name_of_central());
    for (files, label) in [
        (world.files(&World::node_name("other", "demo", "n1")), Some("other_tenant")),
        (world.files(&World::node_name("default", "other", "n1")), Some("other_cluster")),
        (world.files(&World::aggregator_name("default", "demo")), Some("wrong_kind")),
        (world.with_uris(&[]), Some("no_spiffe_uri")),
        (central, None),
    ] {
        let endpoint = world::raw_client(&files, socket());
        let connecting = endpoint.connect(server.address, "tapio.invalid").expect("tried");
        let (accepted, connected) = tokio::join!(server.accept(), connecting);
        let (accepted, _connected) = (accepted.expect("accepted"), connected.expect("connected"));
        let checked = peer::peer_name(&accepted).and_then(|name| expected.check(&name));
        assert_eq!(checked.as_ref().err().map(PeerError::label), label, "{checked:?}");
    }
}

/// Scenario: a client without a certificate, and one that speaks another protocol.
/// Guarantees: neither gets a connection.
#[tokio::test]
async fn without_certificate_or_protocol_there_is_no_connection() {
    let world = World::new();
    let server = Server::start(&world.aggregator("default", "demo"));
    for (client, missing) in [
        (world::anonymous_client(socket(), b"tapio/1"), true),
        (world::anonymous_client(socket(), b"h3"), false),
    ] {
        let connecting = client.connect(server.address, "tapio.invalid").expect("tried");
        let (accepted, _connected) = tokio::join!(server.accept(), connecting);
        let accepted = accepted.expect_err("refused");
        let refusal = Refusal { side: Side::Own, reason: RefusalReason::Missing };
        assert_eq!(Refusal::of(&accepted), missing.then_some(refusal), "{accepted}");
    }
}

/// Scenario: a node connects twice with the same endpoint.
/// Guarantees: the second handshake is a full one: the server sees the certificate again, and a server
/// whose credentials have changed in between is checked again.
#[tokio::test]
async fn nothing_is_resumed() {
    let world = World::new();
    let node = world.node("default", "demo", "n1");
    let server = Server::start(&world.aggregator("default", "demo"));
    let expected = Expected::beside(node.name(), &[NameKind::Aggregator]);
    let endpoint = client_endpoint(socket()).expect("an endpoint");
    let (first, connected) =
        tokio::join!(server.accept(), connect(&endpoint, &node, server.address, &expected));
    drop((first.expect("accepted"), connected.expect("connected")));
    let other = World::new().aggregator("default", "demo");
    let config = tapio_identity::quic::server_config(&other).expect("a configuration");
    server.endpoint.set_server_config(Some(config));
    let (_, connected) = tokio::join!(server.accept(), connect(&endpoint, &node, server.address, &expected));
    assert!(matches!(connected, Err(ConnectError::Refused { .. })), "{connected:?}");
}

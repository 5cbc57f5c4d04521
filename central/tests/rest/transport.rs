//! The API is HTTPS only.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, SystemTime},
};

use tapio_central::{
    api::rest::health::HealthAnswer,
    cli::client::{ApiClient, ClientError},
};
use tapio_identity::issuer::Authority;

use crate::world::World;

/// Scenario: a plaintext request to the port, a client that believes another authority, one that believes only public
/// ones, and an URL without TLS.
/// Guarantees: none gets an answer, and central still answers others.
#[test]
fn only_trusted_https_is_answered() {
    let Some(world) = World::start() else { return };
    let address = world.base.strip_prefix("https://").unwrap();
    let mut plain = TcpStream::connect(address).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    plain.write_all(b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");

    let other = world.folder().join("other.pem");
    let authority = Authority::new("other", SystemTime::now(), Duration::from_secs(3_600)).unwrap();
    std::fs::write(&other, authority.certificate_pem()).unwrap();
    for client in
        [ApiClient::new(&world.base, Some(&other)).unwrap(), ApiClient::new(&world.base, None).unwrap()]
    {
        match client.get::<HealthAnswer>("/health", &[]) {
            Err(ClientError::Untrusted { remedy, .. }) if remedy.contains("--ca") => {}
            other => panic!("an untrusted connection gave {other:?}"),
        }
    }
    let refused = ApiClient::new(&format!("http://{address}"), Some(&world.authority));
    assert!(matches!(refused, Err(ClientError::Address { .. })));
    world.api.get::<HealthAnswer>("/health", &[]).unwrap();
}

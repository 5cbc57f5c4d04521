//! Credentials and servers' certificates that follow their files.

use std::{fs, time::SystemTime};

use rustls_pki_types::ServerName;
use tapio_identity::{
    CredentialFiles, CredentialWatch, https,
    issuer::{Host, IssuedFiles},
    rotation::{LOOK_INTERVAL, RotationError},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::world::{HOUR, World};

fn watch(files: &IssuedFiles) -> CredentialWatch {
    let IssuedFiles { certificate, key, authority } = files.clone();
    let current = World::load(files).expect("credentials");
    CredentialWatch::new(CredentialFiles { certificate, key, authority }, current)
}

/// Scenario: nothing changes; then a new certificate comes without its key, then with it; then that of another machine.
/// Guarantees: the new one is told once, and only when it is whole; half of it is a fault only when it stays; the other
/// machine's is refused by name, and the one in force stays.
#[test]
fn new_credentials_are_taken_when_they_are_whole() {
    let world = World::new();
    let name = World::node_name("default", "demo", "n1");
    let files = world.files(&name);
    let mut watch = watch(&files);
    let first = watch.current().serial().to_owned();
    assert!(watch.look().expect("unchanged").is_none() && watch.look().expect("unchanged").is_none());

    let issued = world.authority.issue(&name, SystemTime::now(), HOUR).expect("issued");
    fs::write(&files.certificate, issued.certificate_pem()).expect("written");
    assert!(watch.look().expect("it may follow").is_none());
    assert!(matches!(watch.look(), Err(RotationError::Credentials(_))));
    assert_eq!(watch.current().serial(), first);
    fs::write(&files.key, issued.key_pem()).expect("written");
    let new = watch.look().expect("whole").expect("new");
    assert_ne!(new.serial(), first);
    assert!(watch.look().expect("known").is_none());

    let other = world.files(&World::node_name("default", "demo", "n2"));
    fs::copy(&other.key, &files.key).expect("copied");
    fs::copy(&other.certificate, &files.certificate).expect("copied");
    assert!(watch.look().expect("once more").is_none());
    let error = watch.look().expect_err("another machine's").to_string();
    assert!(error.contains("/node/n2") && error.contains("/node/n1"), "{error}");
    assert_eq!(watch.current().serial(), new.serial());
}

/// Scenario: the certificate of an HTTPS server is replaced on the disk, then by something that is none.
/// Guarantees: people are shown the new one from then on, and go on being shown it.
#[tokio::test]
async fn a_server_for_people_follows_its_files() {
    let world = World::new();
    let issue = || {
        let hosts = [Host::Dns("localhost".to_owned())];
        let issued = world.authority.issue_https(&hosts, SystemTime::now(), HOUR).expect("issued");
        issued.write(world.dir.path(), "rest").expect("written")
    };
    let files = issue();
    let acceptor = TlsAcceptor::from(https::server_config(&files.certificate, &files.key).expect("a server"));
    let connector = TlsConnector::from(https::client_config(&files.authority).expect("a client"));
    let shown = async || {
        // Longer than it takes until the files are looked at again.
        tokio::time::sleep(LOOK_INTERVAL * 2).await;
        let (near, far) = tokio::io::duplex(4096);
        let name = ServerName::try_from("localhost").expect("a name");
        let (_accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
        let connected = connected.expect("connected");
        connected.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned()
    };
    let first = shown().await;
    issue();
    let second = shown().await;
    assert_ne!(first, second);
    fs::write(&files.certificate, "no certificate").expect("written");
    assert_eq!(shown().await, second);
}

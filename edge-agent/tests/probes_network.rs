//! What the probes say about connections: real sockets on the loopback, on the running kernel.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    reason = "a test that cannot go on fails"
)]

#[path = "probes/support.rs"]
mod support;

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use support::{Seen, everything, kernel_release, own_cgroup_id, watch};
use tapio_kernel_abi::*;

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const CLOSE: u8 = 7;
const LISTEN: u8 = 10;

fn mapped(address: SocketAddr) -> [u8; 16] {
    match address {
        SocketAddr::V4(address) => address.ip().to_ipv6_mapped().octets(),
        SocketAddr::V6(address) => address.ip().octets(),
    }
}

/// A port at which nobody listens: one that was just given back.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn states(seen: &[Seen], remote_port: u16) -> Vec<TcpState> {
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::TcpState(state) if state.tuple.remote_port == remote_port => Some(*state),
            _ => None,
        })
        .collect()
}

fn resets(seen: &[Seen], port: u16, direction: u8) -> Vec<TcpReset> {
    seen.iter()
        .filter_map(|seen| match seen {
            Seen::TcpReset(reset)
                if reset.direction == direction
                    && (reset.tuple.remote_port == port || reset.tuple.local_port == port) =>
            {
                Some(*reset)
            }
            _ => None,
        })
        .collect()
}

fn assert_owned_by_this_process(owner: Owner) {
    assert_eq!(owner.tgid, std::process::id());
    assert_eq!(owner.cgroup_id, own_cgroup_id());
    assert_ne!((owner.tid, owner.start_nanos), (0, 0));
}

/// Scenario: a blocking connect to a port where nobody listens.
/// Guarantees: the system call's failure with the address, the reset both ways (where the kernel tells of both), and the
/// socket's end with its error and its owner are recorded, once each.
#[test]
fn a_refused_connect_is_seen_from_every_side() {
    let Some(mut watch) = watch(&everything()) else { return };
    let address = free_port();
    assert_eq!(TcpStream::connect(address).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED));
    watch.until("the close", |seen| !states(seen, address.port()).is_empty());
    watch.settle();
    let failures: Vec<_> = watch
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::FailedSyscall(failure) if failure.port == address.port() => Some(*failure),
            _ => None,
        })
        .collect();
    let closes = states(&watch.seen, address.port());
    assert_eq!((failures.len(), closes.len()), (1, 1), "{failures:?} {closes:?}");
    assert_eq!(i64::from(failures[0].number), libc::SYS_connect);
    assert_eq!((failures[0].errno, failures[0].count), (libc::ECONNREFUSED as u16, 1));
    assert_eq!((failures[0].address, failures[0].flags), (mapped(address), FLAG_ADDRESS | FLAG_TCP));
    assert_eq!(failures[0].header.tgid, std::process::id());
    assert_eq!((closes[0].old_state, closes[0].new_state), (SYN_SENT, CLOSE));
    assert_eq!(closes[0].sock_errno, libc::ECONNREFUSED as u16);
    assert_eq!(closes[0].tuple.remote_address, mapped(address));
    assert_owned_by_this_process(closes[0].owner);
    let (sent, received) = (
        resets(&watch.seen, address.port(), RESET_SENT),
        resets(&watch.seen, address.port(), RESET_RECEIVED),
    );
    // Before 6.10 the tracepoint is silent about a reset that no socket sends.
    let has_socketless_resets = kernel_release() >= (6, 10);
    assert_eq!((sent.len(), received.len()), (usize::from(has_socketless_resets), 1));
    if let Some(sent) = sent.first() {
        assert_eq!((sent.sock_key, sent.tuple.local_port), (0, address.port()));
        assert_eq!(sent.tuple.remote_port, closes[0].tuple.local_port);
    }
    assert_eq!(received[0].sock_key, closes[0].sock_key);
    assert_eq!(received[0].tuple, closes[0].tuple);
    assert_owned_by_this_process(received[0].owner);
}

/// Scenario: the same with a socket that does not block.
/// Guarantees: "in progress" is no failure, the refusal is still seen, with its owner.
#[test]
fn a_refused_connect_that_does_not_block_is_seen() {
    let Some(mut watch) = watch(&everything()) else { return };
    let address = free_port();
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None)
            .unwrap();
    assert_eq!(rustix::net::connect(&socket, &address), Err(rustix::io::Errno::INPROGRESS));
    watch.until("the close", |seen| !states(seen, address.port()).is_empty());
    watch.settle();
    let close = states(&watch.seen, address.port())[0];
    assert_eq!((close.old_state, close.new_state), (SYN_SENT, CLOSE));
    assert_eq!(close.sock_errno, libc::ECONNREFUSED as u16);
    assert_owned_by_this_process(close.owner);
    assert!(
        !watch
            .seen
            .iter()
            .any(|seen| matches!(seen, Seen::FailedSyscall(failure) if failure.port == address.port()))
    );
}

/// Scenario: a server closes a connection whose request it has not read.
/// Guarantees: the reset is seen sent and received, the client's failing read is seen, listeners come and go.
#[test]
fn a_reset_connection_is_seen() {
    let Some(mut watch) = watch(&everything()) else { return };
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    client.write_all(b"unread").unwrap();
    // Wait for the bytes to be there: a close with unread data is a reset (RFC 2525, 2.17).
    server.peek(&mut [0; 6]).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0; 8]).unwrap_err().raw_os_error(), Some(libc::ECONNRESET));
    drop((client, listener));
    watch.until("the reset", |seen| !resets(seen, address.port(), RESET_RECEIVED).is_empty());
    watch.settle();
    let sent = resets(&watch.seen, address.port(), RESET_SENT);
    let received = resets(&watch.seen, address.port(), RESET_RECEIVED);
    assert_eq!((sent.len(), received.len()), (1, 1), "{sent:?} {received:?}");
    assert_eq!((sent[0].tuple.local_port, received[0].tuple.remote_port), (address.port(), address.port()));
    assert_eq!(sent[0].tuple.local_address, mapped(address));
    assert_owned_by_this_process(received[0].owner);
    assert!(watch.seen.iter().any(|seen| matches!(seen, Seen::FailedSyscall(failure)
        if failure.errno == libc::ECONNRESET as u16 && failure.header.tgid == std::process::id())));
    let ends: Vec<_> =
        states(&watch.seen, address.port()).iter().map(|of| (of.old_state, of.new_state)).collect();
    assert_eq!(ends, [(SYN_SENT, ESTABLISHED), (ESTABLISHED, CLOSE)]);
    let listens: Vec<_> = watch
        .seen
        .iter()
        .filter_map(|seen| match seen {
            Seen::TcpState(state)
                if state.tuple.local_port == address.port() && state.tuple.remote_port == 0 =>
            {
                Some((state.old_state, state.new_state))
            }
            _ => None,
        })
        .collect();
    assert_eq!(listens, [(CLOSE, LISTEN), (LISTEN, CLOSE)]);
}

/// Connections of the storm, by each of its threads.
const STORM_CONNECTIONS: usize = 5_000;
const STORM_THREADS: usize = 4;

/// Scenario: 20,000 connections over loopback in four threads, so that state changes of tasks are interrupted by those of
/// softirqs on the same processor.
/// Guarantees: the kernel delivered each of them to one of the two programs, and every connection has one record of
/// being made and one of its end. (Where nothing was interrupted, it says that this was not shown.)
#[test]
fn a_state_change_that_interrupts_another_is_not_lost() {
    let Some(mut watch) = watch(&everything()) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        for stream in listener.incoming().take(STORM_CONNECTIONS * STORM_THREADS) {
            drop(stream.unwrap());
        }
    });
    let connect = move || {
        for _ in 0..STORM_CONNECTIONS {
            let mut stream = TcpStream::connect(address).unwrap();
            // The server closes first: its end waits, and this end's port can be used again at once.
            assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        }
    };
    let clients: Vec<_> = (0..STORM_THREADS).map(|_| std::thread::spawn(connect)).collect();
    while clients.iter().any(|client| !client.is_finished()) {
        watch.take();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    server.join().unwrap();
    let ended =
        |seen: &[Seen]| states(seen, address.port()).iter().filter(|of| of.new_state == CLOSE).count();
    watch.until("the last end", |seen| ended(seen) >= STORM_CONNECTIONS * STORM_THREADS);
    watch.settle();
    let counters = watch.probes.stats().unwrap();
    let tcp = counters.iter().find(|of| of.probe == ProbeId::TcpState).unwrap();
    let run = tcp.run.unwrap();
    assert_eq!((tcp.stats.ring_full, run.recursion_misses), (0, 0), "{tcp:?}");
    let made = states(&watch.seen, address.port()).iter().filter(|of| of.new_state == ESTABLISHED).count();
    assert_eq!(made, STORM_CONNECTIONS * STORM_THREADS);
    assert_eq!(ended(&watch.seen), STORM_CONNECTIONS * STORM_THREADS);
    match run.taken_by_second {
        0 => println!("not shown: of {} hits none came while another was under way", tcp.stats.hits),
        taken => println!("{taken} of {} hits came while another was under way", tcp.stats.hits),
    }
}

const REQUEST: &[u8] =
    b"GET /pay?order=7 HTTP/1.1\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";

/// Scenario: three requests and responses over one connection, the last response longer than a record, written in
/// one piece and as a vector.
/// Guarantees: each message is recorded where it was written and where it was read, with its bytes up to the limit,
/// its thread, both ends of the connection, and a key that ties it to the connection's end and its owner.
#[test]
fn http_messages_are_seen_at_both_ends() {
    let Some(mut watch) = watch(&everything()) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut long = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 4000\r\n\r\n".to_vec();
    long.resize(4000, b'x');
    let responses =
        [b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec(), b"HTTP/1.0 404 No\r\n\r\n".to_vec(), long];
    let (tid, server_tid) = mpsc::channel();
    let server = {
        let responses = responses.clone();
        std::thread::spawn(move || {
            tid.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 1024];
            for (index, response) in responses.iter().enumerate() {
                assert_eq!(stream.read(&mut buffer).unwrap(), REQUEST.len());
                let sent = match index {
                    0 => stream.write(response).unwrap(),
                    1 => {
                        let parts = [std::io::IoSlice::new(response), std::io::IoSlice::new(b"")];
                        stream.write_vectored(&parts).unwrap()
                    }
                    _ => rustix::net::send(&stream, response, rustix::net::SendFlags::empty()).unwrap(),
                };
                assert_eq!(sent, response.len());
            }
        })
    };
    let mut client = TcpStream::connect(address).unwrap();
    let local = client.local_addr().unwrap();
    for response in &responses {
        assert_eq!(client.write(REQUEST).unwrap(), REQUEST.len());
        let mut buffer = vec![0; response.len()];
        let first = client.read(&mut buffer).unwrap();
        client.read_exact(&mut buffer[first..]).unwrap();
        assert_eq!(&buffer, response);
    }
    server.join().unwrap();
    drop(client);
    watch.until("both closes", |seen| {
        let ends = |port| states(seen, port).iter().filter(|state| state.new_state == CLOSE).count();
        ends(address.port()) >= 1 && ends(local.port()) >= 1
    });
    watch.settle();
    let payloads = |own: u16, direction: u8| -> Vec<(PayloadHead, Vec<u8>)> {
        watch
            .seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Payload(head, data) if head.tuple.local_port == own && head.direction == direction => {
                    Some((*head, data.clone()))
                }
                _ => None,
            })
            .collect()
    };
    let (client_port, server_port) = (local.port(), address.port());
    for (port, direction) in [(client_port, DIRECTION_WRITE), (server_port, DIRECTION_READ)] {
        let requests = payloads(port, direction);
        assert_eq!(requests.len(), 3);
        for (head, data) in &requests {
            assert_eq!(data, REQUEST);
            assert_eq!(head.total_bytes as usize, REQUEST.len());
        }
    }
    let written = payloads(server_port, DIRECTION_WRITE);
    assert_eq!(written.len(), 3);
    for ((head, data), response) in written.iter().zip(&responses) {
        assert_eq!(data, &response[..response.len().min(PAYLOAD_BYTES_MAX)]);
        assert_eq!(head.total_bytes as usize, response.len());
    }
    assert_eq!(
        written.iter().map(|(head, _)| i64::from(head.number)).collect::<Vec<_>>(),
        [libc::SYS_sendto, libc::SYS_writev, libc::SYS_sendto]
    );
    assert_eq!(payloads(client_port, DIRECTION_READ).len(), 3);
    let server_tid = server_tid.recv().unwrap();
    assert!(written.iter().all(|(head, _)| head.header.tid == server_tid));
    let keys =
        |port, direction| payloads(port, direction).iter().map(|(head, _)| head.sock_key).collect::<Vec<_>>();
    let (client_key, server_key) =
        (keys(client_port, DIRECTION_WRITE)[0], keys(server_port, DIRECTION_READ)[0]);
    assert_ne!(client_key, server_key);
    assert_eq!(keys(client_port, DIRECTION_READ), [client_key; 3]);
    assert_eq!(keys(server_port, DIRECTION_WRITE), [server_key; 3]);
    let head = payloads(client_port, DIRECTION_WRITE)[0].0;
    assert_eq!((head.tuple.local_address, head.tuple.remote_address), (mapped(local), mapped(address)));
    for (remote, key) in [(server_port, client_key), (client_port, server_key)] {
        let closes: Vec<_> =
            states(&watch.seen, remote).into_iter().filter(|state| state.new_state == CLOSE).collect();
        assert_eq!(closes.len(), 1);
        assert_eq!(closes[0].sock_key, key);
        assert_owned_by_this_process(closes[0].owner);
    }
}

/// Scenario: bytes that look like HTTP go through a pipe, and bytes that do not go through a socket.
/// Guarantees: neither is recorded.
#[test]
fn only_http_on_tcp_is_recorded() {
    let Some(mut watch) = watch(&everything()) else { return };
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(REQUEST).unwrap();
    let mut buffer = vec![0; REQUEST.len()];
    reader.read_exact(&mut buffer).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client.write_all(b"GETTING nowhere with this protocol").unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server.read_exact(&mut [0; 34]).unwrap();
    drop((client, server));
    watch
        .until("the close", |seen| states(seen, address.port()).iter().any(|state| state.new_state == CLOSE));
    watch.settle();
    assert!(!watch.seen.iter().any(|seen| matches!(seen, Seen::Payload(head, _)
        if head.tuple.remote_port == address.port() || head.tuple.local_port == address.port())));
    let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
    assert!(!watch.seen.iter().any(|seen| matches!(seen, Seen::Payload(head, _) if head.header.tid == tid)));
}

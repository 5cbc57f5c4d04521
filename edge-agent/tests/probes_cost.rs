//! What the probes cost the kernel, under a load that hits all kinds of them. Times inform, they do not gate:
//! machines differ and are noisy. What gates is that the kernel delivered every hit.

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
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::Command,
};

use support::{everything, watch};
use tapio_edge_agent::probes::Probes;

const ROUNDS: usize = 400;

fn serve(listener: &TcpListener) {
    for stream in listener.incoming().take(ROUNDS) {
        let mut stream = stream.unwrap();
        let mut buffer = [0; 512];
        for _ in 0..5 {
            let read = stream.read(&mut buffer).unwrap();
            assert!(read > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
        }
    }
}

fn request(stream: &mut TcpStream) {
    stream.write_all(b"GET /cost HTTP/1.1\r\nhost: localhost\r\naccept: */*\r\n\r\n").unwrap();
    let mut buffer = [0; 40];
    stream.read_exact(&mut buffer).unwrap();
}

/// Scenario: 400 rounds of a connection with five requests, 50 small file reads, 10 failing opens, and every tenth
/// round a process.
/// Guarantees: hits, records and the kernel's own run counts agree; prints the mean time per hit and per probe.
#[test]
fn the_kernel_time_per_hit_is_measured() {
    let Some(mut watch) = watch(&everything()) else { return };
    let measuring = Probes::measure_kernel_time().expect("the kernel measures");
    let before = watch.probes.stats().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || serve(&listener));
    for round in 0..ROUNDS {
        let mut stream = TcpStream::connect(address).unwrap();
        for _ in 0..5 {
            request(&mut stream);
        }
        let mut zero = File::open("/dev/zero").unwrap();
        for _ in 0..50 {
            zero.read_exact(&mut [0; 64]).unwrap();
        }
        for _ in 0..10 {
            assert!(File::open("/nonexistent/cost").is_err());
        }
        if round % 10 == 0 {
            assert!(Command::new("true").status().unwrap().success());
        }
        watch.take();
    }
    server.join().unwrap();
    let after = watch.probes.stats().unwrap();
    drop(measuring);
    let (mut runs, mut nanos) = (0, 0);
    for (after, before) in after.iter().zip(&before) {
        let (run, base) = (after.run.unwrap(), before.run.unwrap());
        assert_eq!(run.recursion_misses, 0, "{}", after.probe.name());
        let (of, took) = (run.runs - base.runs, run.run_nanos - base.run_nanos);
        println!("{:16} {of:8} hits {:6} ns/hit {:?}", after.probe.name(), took / of.max(1), after.stats);
        runs += of;
        nanos += took;
    }
    println!("all probes       {runs:8} hits {:6} ns/hit", nanos / runs.max(1));
    assert!(runs > ROUNDS as u64 * 60 && nanos > 0);
    watch.settle();
}

//! What an event costs on the wire, measured on a mix that looks like a node's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking, and prints what it measured"
)]

use std::time::Instant;

use tapio_schemas::{
    batch::{AlignedVec, BatchBuilder},
    field::column::{core, entity, kernel, network, trace},
    ids::FrameId,
    units::coarse,
};
use tapio_wire::frame::{FrameDecoder, FrameEncoder, FrameLimits, FrameMeta};

/// A small generator (xorshift64*, Vigna 2014): the same mix every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
    /// Around a thousand, over eight octaves, as durations and sizes are: about a millisecond, about a kilobyte.
    fn skewed(&mut self) -> u64 {
        let bits = 6 + self.below(5) + self.below(5);
        self.next() & ((1 << bits) - 1)
    }
}

/// A node with 30 containers: requests (3 % of all events traced), connections, failing calls, exits. Events come in
/// bursts of one process, three on average. Durations and sizes are exact, or in 32 steps per octave.
fn write(builder: &mut BatchBuilder, random: &mut Random, rows: u32, exact: bool) {
    const INTENTS: [&str; 4] =
        ["request-served", "connection-closed", "file-access-failed", "process-exited"];
    const ROUTES: [&str; 6] = ["/orders", "/orders/{id}", "/pay", "/ledger/{id}", "/health", "/metrics"];
    const COMMANDS: [&str; 5] = ["shop", "payment", "ledger", "nginx", "kubelet"];
    let containers: Vec<String> =
        (0..30_u64).map(|n| format!("{:064x}", u128::from(n + 1) * 0x9E37_79B9_7F4A_7C15_F39C)).collect();
    let pods: Vec<String> =
        (0..30).map(|n| format!("5c3e8f{n:02}-1d2e-4f5a-8b6c-0123456789{n:02}")).collect();
    let mut time = 1_760_000_000_000_000;
    let mut who = 0;
    let mut ports = vec![40_000; 30 * 8];
    for _row in 0..rows {
        time += random.skewed();
        if random.below(3) == 0 {
            who = random.below(30);
        }
        let index = usize::try_from(who).unwrap();
        let sort = match random.below(100) {
            0..40 => 0,
            40..65 => 1,
            65..90 => 2,
            _ => 3,
        };
        let mut row = builder.begin_row().unwrap();
        row.unsigned(core::time_micros, time)
            .unsigned(core::time_error_micros, 2)
            .unsigned(core::count, if random.below(3) == 0 { 1 + random.below(40) } else { 1 })
            .text(core::intent, INTENTS[sort])
            .text(entity::container_id, &containers[index])
            .text(entity::pod_uid, &pods[index])
            .unsigned(kernel::pid, 4_000 + who * 13)
            .unsigned(kernel::tid, 4_000 + who * 13 + random.below(8))
            .unsigned(kernel::start_boot_nanos, 8_000_000_000 + who * 1_234_567_891)
            .unsigned(kernel::cgroup_id, 20_000 + who * 3)
            .text(kernel::command, COMMANDS[index % 5]);
        match sort {
            0 | 1 => {
                // Each pair of a container and a peer keeps its connection open for three events on average.
                let peer = random.below(3) + who % 4;
                let port = &mut ports[index * 8 + usize::try_from(peer).unwrap()];
                if random.below(3) == 0 {
                    *port = 32_768 + random.below(28_000);
                }
                let route = random.below(6);
                let (local, remote) = if who % 2 == 0 { (8_080, *port) } else { (*port, 8_080) };
                // Requests of a route are about as long as each other; what a connection carried in all is anything.
                let (received, sent) = if sort == 0 {
                    (180 + route * 37 + random.below(16), 300 + route * 500 + random.below(64))
                } else {
                    (random.skewed(), random.skewed())
                };
                let measured = |value| if exact { value } else { coarse(value) };
                row.unsigned(core::kind, 5 - sort as u64)
                    .text(core::probe, if sort == 0 { "http" } else { "tcp-state" })
                    .unsigned(core::duration_micros, measured(random.skewed()))
                    .sixteen(network::local_address, (0xFFFF_0A00_0000_u128 + u128::from(who)).to_be_bytes())
                    .sixteen(
                        network::remote_address,
                        (0xFFFF_0A01_0000_u128 + u128::from(peer)).to_be_bytes(),
                    )
                    .unsigned(network::local_port, local)
                    .unsigned(network::remote_port, remote)
                    .text(network::direction, if who % 2 == 0 { "in" } else { "out" })
                    .unsigned(network::received_bytes, measured(received))
                    .unsigned(network::sent_bytes, measured(sent));
                if sort == 0 {
                    row.text(network::protocol, "http")
                        .text(network::method, if random.below(4) == 0 { "POST" } else { "GET" })
                        .text(network::route, ROUTES[usize::try_from(route).unwrap()])
                        .unsigned(network::status, if random.below(20) == 0 { 500 } else { 200 });
                    if random.below(100) < 8 {
                        let id = u128::from(random.next()) << 64 | u128::from(random.next());
                        row.sixteen(trace::trace_id, id.to_be_bytes())
                            .unsigned(trace::span_id, random.next())
                            .unsigned(trace::link, 1);
                    }
                }
            }
            2 => {
                row.unsigned(core::kind, 3)
                    .text(core::probe, "syscall-failed")
                    .text(kernel::syscall, "openat")
                    .unsigned(kernel::errno, 2)
                    .text(
                        kernel::path,
                        if random.below(2) == 0 { "/etc/app/config.toml" } else { "/etc/ssl/cert.pem" },
                    );
            }
            _ => {
                row.unsigned(core::kind, 1)
                    .text(core::probe, "exit")
                    .unsigned(kernel::exit_code, random.below(2))
                    .unsigned(kernel::parent_pid, 4_000 + who);
            }
        }
        row.commit().unwrap();
    }
}

/// Scenario: batches of a node's mix are encoded, compressed, decompressed and checked.
/// Guarantees: a shipped event of this mix costs at most 14 bytes in frames of 1,000, header and directory included, where
/// durations and sizes are in steps; the mix is a model, and what real events cost is measured on real events.
#[test]
fn an_event_costs_at_most_14_bytes() {
    let mut random = Random(42);
    let mut builder = BatchBuilder::default();
    let mut encoder = FrameEncoder::new(FrameLimits::default()).unwrap();
    let mut decoder = FrameDecoder::new(FrameLimits::default()).unwrap();
    let (mut batch, mut frame) = (AlignedVec::new(), Vec::new());
    for (rows, exact) in [(10, false), (100, false), (1_000, false), (10_000, false), (1_000, true)] {
        let (mut raw, mut wire, mut events) = (0, 0, 0_u32);
        let (mut writing, mut packing, mut opening) = (0, 0, 0);
        for _frame in 0..(50_000 / rows) {
            let start = Instant::now();
            write(&mut builder, &mut random, rows, exact);
            builder.finish(&mut batch).unwrap();
            writing += start.elapsed().as_nanos();
            let start = Instant::now();
            frame.clear();
            encoder.encode(FrameMeta::new(FrameId::default(), rows), &batch, &mut frame).unwrap();
            packing += start.elapsed().as_nanos();
            let start = Instant::now();
            let (_header, view) = decoder.decode(&frame, None).unwrap();
            opening += start.elapsed().as_nanos();
            events += view.rows();
            raw += batch.len();
            wire += frame.len();
        }
        let per_event = |total: usize| total as f64 / f64::from(events);
        println!(
            "{rows:>6} rows, exact {exact:5}: {:6.1} B raw, {:5.2} B wire; write {} ns, zstd {} ns, open and check {} ns per event",
            per_event(raw),
            per_event(wire),
            writing / u128::from(events),
            packing / u128::from(events),
            opening / u128::from(events),
        );
        assert!(rows < 1_000 || exact || per_event(wire) <= 14.0, "{:.2} bytes per event", per_event(wire));
    }
}

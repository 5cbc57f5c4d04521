use std::cell::Cell;

use tapio_kernel_abi::*;
use tapio_schemas::intent::LinkKind;

use super::*;
use crate::{
    attribute::{Group, Running},
    event::Direction,
    pipeline::exits::HELD_NANOS_MAX,
    probes::KernelRun,
};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;
const SHOP: u64 = 11;
const PAYMENT: u64 = 12;
const HOST: u64 = 1;
const MIB: u64 = 1 << 20;

struct Fake;

thread_local! {
    /// How often it is found that payment's container has processes yet.
    static ENDING: Cell<u32> = const { Cell::new(0) };
}

impl Host for Fake {
    fn group_of(&self, _pid: u32) -> Option<Group> {
        None
    }
    fn groups(&self) -> Vec<Group> {
        let container = |id: u64| Group {
            id,
            path: format!("/kubepods/burstable/pod0d1f6b0e-8a54-4f6e-9f0b-1c2d3e4f5a{id:02x}/{id:064x}"),
        };
        vec![Group { id: HOST, path: "/".into() }, container(SHOP), container(PAYMENT)]
    }
    /// Of payment's container nobody is left, but for what [`ENDING`] says.
    fn is_over(&self, path: &str) -> bool {
        let is_ending = ENDING.replace(ENDING.get().saturating_sub(1)) > 0;
        path.ends_with(&format!("{PAYMENT:064x}")) && !is_ending
    }
}

#[expect(clippy::cast_possible_truncation, reason = "groups are small numbers here")]
const fn header(time_nanos: u64, group: u64) -> Header {
    Header {
        kind: 0,
        record_bytes: 0,
        cpu: 0,
        time_nanos,
        tgid: group as u32 * 100,
        tid: group as u32 * 100,
        cgroup_id: group,
        start_nanos: group,
        comm: [b'a'; COMM_BYTES],
    }
}

#[expect(clippy::cast_possible_truncation, reason = "groups are small numbers here")]
const fn owner(group: u64) -> Owner {
    Owner { tgid: group as u32 * 100, tid: group as u32 * 100, cgroup_id: group, start_nanos: group }
}

const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

const fn tuple(local_port: u16, remote_port: u16) -> SockTuple {
    SockTuple { network: 1, local_port, remote_port, local_address: LOOPBACK, remote_address: LOOPBACK }
}

fn state(time: u64, group: u64, key: u64, ends: SockTuple, states: (u8, u8), errno: u16) -> TcpState {
    TcpState {
        header: header(time, HOST),
        owner: owner(group),
        sock_key: key,
        tuple: ends,
        old_state: states.0,
        new_state: states.1,
        sock_errno: errno,
        reserved: 0,
    }
}

fn payload(
    pipeline: &mut Pipeline<Fake>,
    time: u64,
    group: u64,
    key: u64,
    ends: SockTuple,
    direction: u8,
    text: &str,
) {
    let head = PayloadHead {
        header: header(time, group),
        sock_key: key,
        tuple: ends,
        total_bytes: 100,
        fd: 3,
        captured_bytes: 0,
        number: 0,
        direction,
        reserved: [0; 3],
    };
    pipeline.record(&RecordRef::Payload(&head, text.as_bytes()));
}

fn request(trace: u8) -> String {
    format!("GET /pay/7 HTTP/1.1\r\ntraceparent: 00-{trace:032x}-{:016x}-01\r\n\r\n", 5)
}

fn pipeline(scope: Scope) -> Pipeline<Fake> {
    let mut pipeline = Pipeline::new(Fake, scope);
    pipeline.begin(0, &[Running { pid: 1, parent_pid: 0, cgroup_id: HOST }], &[]);
    pipeline
}

fn events(pipeline: &mut Pipeline<Fake>, intent: &str) -> Vec<Event> {
    pipeline.fold.close(1 << 60, &mut pipeline.tally);
    pipeline.fold.ready().iter().filter(|event| event.intent == intent).cloned().collect()
}

fn id(event: &Event) -> Option<u64> {
    event.container.as_ref().map(|container| u64::from_str_radix(&container.id, 16).unwrap())
}

fn trace(event: &Event) -> Option<u8> {
    event.trace.map(|link| link.trace_id[15])
}

/// Scenario: payment leaks and is killed while shop's call waits; the call after it is refused; shop answers 500.
/// Guarantees: growth, kill, unanswered call, refusal and answers are there, of the right containers, in the right
/// traces, the link observed; every record is in the tally.
#[test]
fn the_whole_chain_is_told() {
    let mut pipeline = pipeline(Scope::Containers);
    let payment = pipeline.container(&format!("{PAYMENT:064x}")).unwrap();
    pipeline.record(&RecordRef::TcpState(&state(1, PAYMENT, 1, tuple(80, 0), (7, 10), 0)));
    for step in 1..=20 {
        let sample =
            Sample { time_nanos: step * SECOND / 2, used_bytes: (4 + 3 * step) * MIB, limit_bytes: 64 * MIB };
        pipeline.reading(Reading::Memory(Arc::clone(&payment), sample), step * SECOND / 2);
    }
    let now = 10 * SECOND;
    payload(&mut pipeline, now, SHOP, 2, tuple(8080, 50_000), DIRECTION_READ, &request(1));
    pipeline.record(&RecordRef::TcpState(&state(now + 1, SHOP, 3, tuple(40_000, 80), (2, 1), 0)));
    payload(&mut pipeline, now + 2, SHOP, 3, tuple(40_000, 80), DIRECTION_WRITE, &request(1));
    let victim = OomVictim {
        header: header(now + 3, PAYMENT),
        victim_tgid: 1_200,
        uid: 0,
        victim_cgroup_id: PAYMENT,
        victim_start_nanos: PAYMENT,
        total_vm_bytes: 0,
        anon_rss_bytes: 63 * MIB,
        file_rss_bytes: 0,
        shmem_rss_bytes: 0,
        oom_score_adj: 0,
        layout: OOM_LAYOUT_TASK,
        page_bytes: 4_096,
        victim_comm: [b'p'; COMM_BYTES],
    };
    pipeline.record(&RecordRef::OomVictim(&victim));
    pipeline.record(&RecordRef::Exit(&exit(now + 4, PAYMENT, 9)));
    pipeline.record(&RecordRef::TcpState(&state(now + 5, PAYMENT, 1, tuple(80, 0), (10, 7), 0)));
    let reset = TcpReset {
        header: header(now + 6, HOST),
        owner: owner(SHOP),
        sock_key: 3,
        tuple: tuple(40_000, 80),
        direction: RESET_RECEIVED,
        state: 1,
        reserved: 0,
        reason: 0,
    };
    pipeline.record(&RecordRef::TcpReset(&reset));
    pipeline.record(&RecordRef::TcpState(&state(now + 7, SHOP, 3, tuple(0, 80), (1, 7), 104)));
    payload(
        &mut pipeline,
        now + 8,
        SHOP,
        2,
        tuple(8080, 50_000),
        DIRECTION_WRITE,
        "HTTP/1.1 500 Oops\r\n\r\n",
    );
    payload(&mut pipeline, now + 9, SHOP, 2, tuple(8080, 50_000), DIRECTION_READ, &request(2));
    pipeline.record(&RecordRef::TcpState(&state(now + 10, SHOP, 4, tuple(0, 80), (2, 7), 111)));
    payload(
        &mut pipeline,
        now + 11,
        SHOP,
        2,
        tuple(8080, 50_000),
        DIRECTION_WRITE,
        "HTTP/1.1 500 Oops\r\n\r\n",
    );
    pipeline.tick(now + SECOND);

    let kill = &events(&mut pipeline, intent::OOM_KILL)[0];
    let process = kill.process.as_ref().unwrap();
    assert_eq!((id(kill), process.size_bytes, process.limit_bytes), (Some(PAYMENT), 63 * MIB, 64 * MIB));
    let growth = events(&mut pipeline, intent::MEMORY_GROWTH).pop().unwrap();
    assert_eq!((id(&growth), growth.time.0 <= SECOND), (Some(PAYMENT), true));
    let killed = &events(&mut pipeline, intent::PROCESS_KILLED)[0];
    assert_eq!(killed.process.as_ref().unwrap().signal, 9);

    for (intent, expected) in
        [(intent::CONNECTION_RESET, 1), (intent::REQUEST_UNANSWERED, 1), (intent::CONNECTION_REFUSED, 2)]
    {
        let [event] = &events(&mut pipeline, intent)[..] else { panic!("{intent}") };
        assert_eq!((id(event), trace(event)), (Some(SHOP), Some(expected)), "{intent}");
        assert_eq!(event.trace.unwrap().link, LinkKind::Observed, "{intent}");
        assert_eq!(event.peer.as_ref().map(|peer| Arc::ptr_eq(peer, &payment)), Some(true), "{intent}");
    }
    let failed = events(&mut pipeline, intent::REQUEST_SERVED_ERROR);
    assert_eq!(failed.iter().filter_map(trace).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(failed[0].network.as_ref().unwrap().target.as_deref(), Some("/pay/7"));
    let of_the_ring = pipeline.tally.total()
        - pipeline.fold.ready().iter().filter(|event| ["memory", "container"].contains(&event.probe)).count()
            as u64;
    assert_eq!(of_the_ring, pipeline.records());
}

fn failed(group: u64, number: i64, errno: u16, count: u64, flags: u16) -> FailedSyscall {
    let mut path = [0; PATH_BYTES];
    path[..4].copy_from_slice(b"/etc");
    let has_path = flags & FLAG_PATH != 0;
    FailedSyscall {
        header: header(5, group),
        count,
        number: u16::try_from(number).unwrap(),
        errno,
        fd: 3,
        flags,
        path_bytes: if has_path { 4 } else { 0 },
        family: if flags & FLAG_ADDRESS != 0 { 2 } else { 0 },
        port: 80,
        address: LOOPBACK,
        network: u32::from(flags & FLAG_TCP != 0),
        reserved: 0,
        path: if has_path { path } else { [0; PATH_BYTES] },
    }
}

fn exit(time_nanos: u64, group: u64, signal: u8) -> Exit {
    Exit {
        header: header(time_nanos, group),
        wait_status: signal.into(),
        exit_code: 0,
        signal,
        core_dumped: 0,
        namespace: NAMESPACE_ROOT,
    }
}

/// Scenario: a host's process calls a container and another host's process, fails to open a file, starts a child and a
/// program, is signalled and ends.
/// Guarantees: by default only its connection to the container ships, the rest is counted as filtered; in scope `all`
/// everything ships.
#[test]
fn the_host_is_out_of_scope() {
    for scope in [Scope::Containers, Scope::All] {
        let mut pipeline = pipeline(scope);
        pipeline.record(&RecordRef::TcpState(&state(1, PAYMENT, 1, tuple(80, 0), (7, 10), 0)));
        for (key, port) in [(2, 80), (3, 81)] {
            pipeline.record(&RecordRef::TcpState(&state(2, HOST, key, tuple(40_000, port), (2, 7), 111)));
        }
        payload(&mut pipeline, 3, HOST, 4, tuple(40_001, 80), DIRECTION_WRITE, &request(1));
        payload(&mut pipeline, 4, HOST, 4, tuple(40_001, 80), DIRECTION_READ, "HTTP/1.1 200 OK\r\n\r\n");
        pipeline.record(&RecordRef::FailedSyscall(&failed(HOST, libc::SYS_openat, 2, 1, FLAG_PATH)));
        let fork = Fork {
            header: header(5, HOST),
            child_tgid: 5,
            child_tid: 5,
            child_start_nanos: 5,
            child_cgroup_id: HOST,
        };
        pipeline.record(&RecordRef::Fork(&fork));
        let exec = Exec {
            header: header(5, HOST),
            uid: 0,
            parent_tgid: 1,
            path_bytes: 1,
            flags: FLAG_PATH,
            reserved: 0,
            path: [b'a'; PATH_BYTES],
        };
        pipeline.record(&RecordRef::Exec(&exec));
        let signal = FatalSignal {
            header: header(5, HOST),
            target_tgid: 100,
            target_tid: 100,
            target_cgroup_id: HOST,
            target_start_nanos: HOST,
            code: 0,
            signal: 9,
            fault: FAULT_NONE,
            group: 1,
            reserved: 0,
            target_comm: [b'a'; COMM_BYTES],
        };
        pipeline.record(&RecordRef::FatalSignal(&signal));
        pipeline.record(&RecordRef::Exit(&exit(6, HOST, 9)));
        pipeline.tick(5 * MILLI);
        let is_all = scope == Scope::All;
        assert_eq!(events(&mut pipeline, intent::CONNECTION_REFUSED).len(), if is_all { 2 } else { 1 });
        for intent in [
            intent::REQUEST_CALLED,
            intent::FILE_ACCESS_FAILED,
            intent::PROCESS_STARTED,
            intent::PROCESS_EXECUTED,
            intent::PROCESS_KILLED,
            intent::FATAL_SIGNAL,
        ] {
            assert_eq!(events(&mut pipeline, intent).len(), usize::from(is_all), "{intent}");
        }
        let seen = pipeline.fold.ready().iter().filter(|event| event.probe == "container").count() as u64;
        assert_eq!(pipeline.tally.total() - seen, pipeline.records());
    }
}

/// The reset that ends the connection of a group's socket.
fn broken(time_nanos: u64, group: u64, key: u64, ends: SockTuple) -> TcpReset {
    TcpReset {
        header: header(time_nanos, HOST),
        owner: owner(group),
        sock_key: key,
        tuple: ends,
        direction: RESET_RECEIVED,
        state: 1,
        reserved: 0,
        reason: 0,
    }
}

fn lost(pipeline: &mut Pipeline<Fake>) -> Vec<(String, String, u64)> {
    let mut ledger = tapio_schemas::ledger::Ledger::default();
    pipeline.tally.drain_into(&mut ledger);
    let lost = ledger.entries.into_iter().filter(|entry| entry.fate == Fate::Lost);
    lost.map(|entry| (entry.subject, entry.reason, entry.count)).collect()
}

/// Scenario: payment is killed while it serves a request and waits for shop's answer to a call; then the kernel closes
/// its sockets.
/// Guarantees: its kill is told first, then both requests, as ended with the process; shop is not blamed for the call
/// that it could not answer, and nothing counts as lost.
#[test]
fn a_killed_process_is_its_own_fault() {
    let mut pipeline = pipeline(Scope::Containers);
    pipeline.record(&RecordRef::TcpState(&state(1, SHOP, 1, tuple(90, 0), (7, 10), 0)));
    payload(&mut pipeline, 10, PAYMENT, 2, tuple(80, 50_000), DIRECTION_READ, &request(1));
    payload(&mut pipeline, 11, PAYMENT, 3, tuple(40_000, 90), DIRECTION_WRITE, &request(1));
    pipeline.record(&RecordRef::Exit(&exit(20, PAYMENT, 9)));
    for (key, ends) in [(2, tuple(80, 50_000)), (3, tuple(40_000, 90))] {
        pipeline.record(&RecordRef::TcpState(&state(21, PAYMENT, key, ends, (8, 7), 0)));
    }
    pipeline.tick(SECOND);
    assert_eq!(events(&mut pipeline, intent::REQUEST_UNANSWERED).len(), 0);
    let told: Vec<_> = pipeline.fold.ready().iter().map(|event| event.intent).collect();
    let killed = told.iter().position(|intent| *intent == intent::PROCESS_KILLED).unwrap();
    let first = told.iter().position(|intent| *intent == intent::REQUEST_UNFINISHED).unwrap();
    assert!(killed < first, "{told:?}");
    let unfinished = events(&mut pipeline, intent::REQUEST_UNFINISHED);
    let said: Vec<_> = unfinished
        .iter()
        .map(|event| (id(event), trace(event), event.severity, event.attributes.as_deref()))
        .collect();
    let expected = (Some(PAYMENT), Some(1), Severity::Error, Some("ended=process"));
    assert_eq!(said, [expected, expected]);
    assert_eq!(lost(&mut pipeline), []);
}

/// Scenario: a call was on its way over an open connection when the agent began; its answer comes, then a second call
/// and its answer; on a connection that began under the agent's eyes an answer comes without a request.
/// Guarantees: the first answer is no loss, the second call is told, the third answer is lost.
#[test]
fn a_request_of_before_the_agent_is_no_loss() {
    let mut pipeline = pipeline(Scope::Containers);
    let (old, new) = (tuple(40_000, 80), tuple(40_001, 80));
    payload(&mut pipeline, 1, SHOP, 2, old, DIRECTION_READ, "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(lost(&mut pipeline), []);
    payload(&mut pipeline, 2, SHOP, 2, old, DIRECTION_WRITE, &request(1));
    payload(&mut pipeline, 3, SHOP, 2, old, DIRECTION_READ, "HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(events(&mut pipeline, intent::REQUEST_CALLED).len(), 1);
    pipeline.record(&RecordRef::TcpState(&state(4, SHOP, 3, new, (2, 1), 0)));
    payload(&mut pipeline, 5, SHOP, 3, new, DIRECTION_READ, "HTTP/1.1 200 OK\r\n\r\n");
    pipeline.tick(SECOND);
    assert_eq!(lost(&mut pipeline), [("payload".to_owned(), "answer-without-request".to_owned(), 1)]);
}

/// Scenario: a process of the host calls a container: one call is answered, one with 500, one meets a reset; it also
/// serves a call of its own, which fails.
/// Guarantees: of its traffic the two calls that the container failed are told, with the container as the peer.
#[test]
fn the_host_tells_what_containers_fail() {
    let mut pipeline = pipeline(Scope::Containers);
    let payment = pipeline.container(&format!("{PAYMENT:064x}")).unwrap();
    pipeline.record(&RecordRef::TcpState(&state(1, PAYMENT, 1, tuple(80, 0), (7, 10), 0)));
    let ends = tuple(40_000, 80);
    for (trace, answer) in [(1, "HTTP/1.1 200 OK\r\n\r\n"), (2, "HTTP/1.1 500 Oops\r\n\r\n")] {
        payload(&mut pipeline, 2, HOST, 2, ends, DIRECTION_WRITE, &request(trace));
        payload(&mut pipeline, 3, HOST, 2, ends, DIRECTION_READ, answer);
    }
    payload(&mut pipeline, 4, HOST, 2, ends, DIRECTION_WRITE, &request(3));
    pipeline.record(&RecordRef::TcpReset(&broken(5, HOST, 2, ends)));
    payload(&mut pipeline, 6, HOST, 3, tuple(9_000, 40_001), DIRECTION_READ, &request(4));
    payload(&mut pipeline, 7, HOST, 3, tuple(9_000, 40_001), DIRECTION_WRITE, "HTTP/1.1 500 Oops\r\n\r\n");
    pipeline.tick(SECOND);
    for (intent, expected) in [(intent::REQUEST_CALLED_ERROR, 2), (intent::REQUEST_UNANSWERED, 3)] {
        let [event] = &events(&mut pipeline, intent)[..] else { panic!("{intent}") };
        assert_eq!((id(event), trace(event)), (None, Some(expected)), "{intent}");
        assert!(event.peer.as_ref().is_some_and(|peer| Arc::ptr_eq(peer, &payment)), "{intent}");
    }
    for intent in [intent::REQUEST_CALLED, intent::REQUEST_SERVED_ERROR] {
        assert_eq!(events(&mut pipeline, intent).len(), 0, "{intent}");
    }
    let seen = pipeline.fold.ready().iter().filter(|event| event.probe == "container").count() as u64;
    assert_eq!(pipeline.tally.total() - seen, pipeline.records());
    assert_eq!(lost(&mut pipeline), []);
}

/// Scenario: a record of ten failures that were all alike; one of ten that were not; a drained count of such; an address
/// that is in use, at this end and at the other.
/// Guarantees: a path or address is told of those failures that had it and of no other: of several that differed, of the
/// last; `address-in-use` is said of this end only; occurrences and records are kept.
#[test]
fn a_path_is_told_of_its_own_failures() {
    let told = |failed: &FailedSyscall, is_drained: bool| {
        let mut pipeline = pipeline(Scope::Containers);
        if is_drained {
            pipeline.reading(Reading::Folded(Box::new(*failed)), 5);
        } else {
            pipeline.record(&RecordRef::FailedSyscall(failed));
        }
        pipeline.fold.close(1 << 60, &mut pipeline.tally);
        let events = pipeline.fold.ready().iter().filter(|event| event.kind == EventKind::Syscall);
        let mut told: Vec<_> = events
            .map(|event| {
                let process = event.process.as_ref().unwrap();
                let path = process.path.as_deref().unwrap_or_default().to_owned();
                (event.intent, event.count, event.records, path, process.tid)
            })
            .collect();
        told.sort_unstable();
        told
    };
    let path = |text: &str| text.to_owned();
    let open = |count, flags| failed(SHOP, libc::SYS_openat, 2, count, flags);
    let intent = intent::FILE_ACCESS_FAILED;
    assert_eq!(told(&open(1, FLAG_PATH), false), [(intent, 1, 1, path("/etc"), 1_100)]);
    assert_eq!(told(&open(10, FLAG_PATH), false), [(intent, 10, 1, path("/etc"), 0)]);
    assert_eq!(
        told(&open(10, FLAG_PATH | FLAG_MIXED), false),
        [(intent, 1, 1, path("/etc"), 1_100), (intent, 9, 0, path(""), 0)]
    );
    assert_eq!(
        told(&open(10, FLAG_PATH | FLAG_MIXED), true),
        [(intent, 1, 0, path("/etc"), 0), (intent, 9, 0, path(""), 0)]
    );
    assert_eq!(told(&open(1, FLAG_PATH | FLAG_MIXED), true), [(intent, 1, 0, path("/etc"), 0)]);
    let gone = FLAG_PATH | FLAG_VANISHED;
    assert_eq!(told(&open(1, gone), false), [(intent::FILE_VANISHED, 1, 1, path("/etc"), 1_100)]);
    assert_eq!(
        told(&open(3, gone | FLAG_MIXED), true),
        [(intent::FILE_VANISHED, 1, 0, path("/etc"), 0), (intent::FILE_VANISHED, 2, 0, path(""), 0)]
    );
    // The others' may have been a path of this host or an address of another: not known.
    let connect = failed(SHOP, libc::SYS_connect, 2, 3, FLAG_PATH | FLAG_MIXED);
    assert_eq!(
        told(&connect, true),
        [(intent, 1, 0, path("/etc"), 0), (intent::SYSCALL_FAILED, 2, 0, path(""), 0)]
    );

    let mut pipeline = pipeline(Scope::Containers);
    for number in [libc::SYS_bind, libc::SYS_connect] {
        pipeline.record(&RecordRef::FailedSyscall(&failed(SHOP, number, 98, 1, FLAG_ADDRESS)));
    }
    for (intent, direction, ports) in
        [(intent::ADDRESS_IN_USE, Direction::In, (80, 0)), (intent::SYSCALL_FAILED, Direction::Out, (0, 80))]
    {
        let [event] = &events(&mut pipeline, intent)[..] else { panic!("{intent}") };
        let network = event.network.as_ref().unwrap();
        assert_eq!((network.direction, network.protocol), (direction, ""));
        assert_eq!((network.tuple.local_port, network.tuple.remote_port), ports);
    }
}

/// Who is told to hold port 80 when a container's process cannot have `local` in namespace 1.
fn holders(pipeline: &mut Pipeline<Fake>, local: [u8; 16]) -> Vec<Event> {
    let flags = FLAG_ADDRESS | FLAG_TCP;
    let bind = FailedSyscall { address: local, ..failed(SHOP, libc::SYS_bind, 98, 1, flags) };
    pipeline.record(&RecordRef::FailedSyscall(&FailedSyscall { header: header(9 * SECOND, SHOP), ..bind }));
    let held = events(pipeline, intent::ADDRESS_HELD);
    pipeline.fold.ready().clear();
    held
}

/// Scenario: a container's process cannot listen, while a process of the host listens on all addresses of its namespace,
/// others on the same port of another namespace and on another address; then that one's socket closes.
/// Guarantees: exactly who has the address is told, with its command, process and the time since which it listens, though
/// it is no container's; whom it keeps out is its peer; who has left, or may have left unseen, is not told.
#[test]
fn who_has_the_address_is_told() {
    let mut pipeline = pipeline(Scope::Containers);
    let far = [0xfd; 16];
    let at = |network: u32, local_address: [u8; 16]| SockTuple { network, local_address, ..tuple(80, 0) };
    let listens = |pipeline: &mut Pipeline<Fake>, group, key, tuple, states| {
        pipeline.record(&RecordRef::TcpState(&state(2 * SECOND, group, key, tuple, states, 0)));
    };
    listens(&mut pipeline, HOST, 1, at(1, [0; 16]), (7, 10));
    listens(&mut pipeline, PAYMENT, 2, at(2, LOOPBACK), (7, 10));
    listens(&mut pipeline, PAYMENT, 3, at(1, far), (7, 10));
    let [held] = &holders(&mut pipeline, LOOPBACK)[..] else { panic!("one has it") };
    let process = held.process.as_ref().unwrap();
    assert_eq!((held.container.is_none(), process.pid, process.comm), (true, 100, [b'a'; COMM_BYTES]));
    assert_eq!((held.time.0, held.duration_nanos, held.records), (2 * SECOND, 7 * SECOND, 0));
    let (shop, tuple) = (format!("{SHOP:064x}"), held.network.as_ref().unwrap().tuple);
    assert_eq!(held.peer.as_ref().map(|peer| &peer.id), Some(&shop));
    assert_eq!((tuple.local_address, tuple.local_port), ([0; 16], 80));
    // The wildcard is kept from both that have an address in its namespace.
    assert_eq!(holders(&mut pipeline, [0; 16]).len(), 2);
    listens(&mut pipeline, HOST, 1, at(1, [0; 16]), (10, 7));
    assert_eq!(holders(&mut pipeline, LOOPBACK).len(), 0);
    let [held] = &holders(&mut pipeline, far)[..] else { panic!("one has it") };
    assert_eq!(id(held), Some(PAYMENT));
    let stats = ProbeStats { ring_full: 1, ..ProbeStats::default() };
    let counters = ProbeCounters { probe: ProbeId::TcpState, stats, run: None };
    pipeline.reading(Reading::Counters(vec![counters]), 3 * SECOND);
    assert_eq!(holders(&mut pipeline, far).len(), 0);
}

/// Scenario: a process listened before the agent began; another container's cannot have its address; then it ends.
/// Guarantees: it is told until then, by its place, though no record said that it listens; a process is not told to keep
/// itself out.
#[test]
fn who_listened_before_the_agent_is_told() {
    let mut pipeline = Pipeline::new(Fake, Scope::Containers);
    let existing = |group: u64, address| Existing {
        network: 1,
        address,
        port: 80,
        owner: Owner { tid: 0, start_nanos: 0, ..owner(group) },
        comm: [b'e'; COMM_BYTES],
    };
    pipeline.begin(SECOND, &[], &[existing(PAYMENT, LOOPBACK), existing(SHOP, [0; 16])]);
    let [held] = &holders(&mut pipeline, LOOPBACK)[..] else { panic!("one has it") };
    assert_eq!((id(held), held.process.as_ref().unwrap().pid), (Some(PAYMENT), 1_200));
    let end = TcpState { owner: Owner::default(), ..state(2 * SECOND, HOST, 77, tuple(80, 0), (10, 7), 0) };
    pipeline.record(&RecordRef::TcpState(&end));
    assert_eq!(holders(&mut pipeline, LOOPBACK).len(), 0);
}

/// Scenario: a process fails to open files and ends with an error; its exit is heard of before the kernel's counts are
/// read, then no counts come at all.
/// Guarantees: the exit is told behind the failures, nothing is told beyond it while it is held, and it is not held for
/// ever.
#[test]
fn an_exit_is_told_behind_what_failed_before() {
    let mut pipeline = pipeline(Scope::Containers);
    let failing = |time_nanos| Exit {
        exit_code: 1,
        wait_status: 1 << 8,
        namespace: NAMESPACE_OTHER,
        ..exit(time_nanos, SHOP, 0)
    };
    pipeline.heard(1_000);
    pipeline.record(&RecordRef::Exit(&failing(100)));
    assert!(pipeline.fold.ready().iter().all(|event| event.intent != intent::PROCESS_FAILED));
    assert_eq!(pipeline.told_until(), 100);
    pipeline.reading(Reading::Drained { began_nanos: 90, number: 1 }, 200);
    let folded = failed(SHOP, libc::SYS_openat, 2, 3, FLAG_PATH | FLAG_MIXED);
    pipeline.reading(Reading::Folded(Box::new(folded)), 200);
    pipeline.reading(Reading::Drained { began_nanos: 150, number: 2 }, 200);
    pipeline.fold.close(1 << 60, &mut pipeline.tally);
    let told: Vec<_> = pipeline.fold.ready().drain(..).map(|event| event.intent).collect();
    let place = told.iter().position(|intent| *intent == intent::PROCESS_FAILED).unwrap();
    assert_eq!(place, told.len() - 1);
    assert_eq!(told.iter().filter(|intent| **intent == intent::FILE_ACCESS_FAILED).count(), 2);
    assert_eq!(pipeline.told_until(), 1_000);
    pipeline.record(&RecordRef::Exit(&failing(300)));
    pipeline.tick(400 + HELD_NANOS_MAX);
    pipeline.fold.close(1 << 60, &mut pipeline.tally);
    assert_eq!(events(&mut pipeline, intent::PROCESS_FAILED).len(), 1);
}

/// Who is told to have ended payment's or shop's container, by pid, and who only to have failed, after these exits: of
/// which container, pid, parent, place in the pid namespace, signal.
fn ended_by(exits: &[(u64, u32, u32, u8, u8)]) -> (Vec<u32>, Vec<u32>) {
    let mut pipeline = pipeline(Scope::Containers);
    for (at, (group, pid, parent, namespace, signal)) in (10..).step_by(10).zip(exits) {
        let child = Fork {
            header: Header { tgid: *parent, ..header(at, *group) },
            child_tgid: *pid,
            child_tid: *pid,
            child_start_nanos: 7,
            child_cgroup_id: *group,
        };
        pipeline.record(&RecordRef::Fork(&child));
        let end = exit(at, *group, *signal);
        let header = Header { tgid: *pid, start_nanos: 7, ..end.header };
        let exit_code = u8::from(*signal == 0);
        pipeline.record(&RecordRef::Exit(&Exit { header, namespace: *namespace, exit_code, ..end }));
    }
    for second in 1..=4 {
        pipeline.reading(Reading::Drained { began_nanos: second * SECOND, number: second }, second * SECOND);
    }
    let mut pids = |intent| -> Vec<u32> {
        events(&mut pipeline, intent).iter().map(|event| event.process.as_ref().unwrap().pid).collect()
    };
    (pids(intent::CONTAINER_FAILED), pids(intent::PROCESS_FAILED))
}

/// Scenario: processes of containers end with errors: a probe of one that goes on; a first process; a supervisor as its
/// child did; a probe just before the first process is ended by a signal, or by itself.
/// Guarantees: only who ended its container is told to have done so; of a supervisor it is the child.
#[test]
fn a_failed_probe_is_no_failed_container() {
    let (root, first, other) = (NAMESPACE_ROOT, NAMESPACE_FIRST, NAMESPACE_OTHER);
    assert_eq!(ended_by(&[(SHOP, 31, 9, root, 0), (SHOP, 32, 9, first, 0)]), (vec![], vec![31, 32]));
    for place in [root, first] {
        assert_eq!(ended_by(&[(PAYMENT, 31, 9, place, 0)]), (vec![31], vec![]));
    }
    // What the kernel kills because the first process has ended says nothing of that one.
    assert_eq!(ended_by(&[(PAYMENT, 31, 9, first, 0), (PAYMENT, 32, 31, other, 9)]), (vec![31], vec![]));
    assert_eq!(ended_by(&[(PAYMENT, 32, 31, other, 0), (PAYMENT, 31, 9, first, 0)]), (vec![32], vec![31]));
    assert_eq!(ended_by(&[(PAYMENT, 32, 31, root, 0), (PAYMENT, 31, 9, root, 0)]), (vec![32], vec![31]));
    // A probe's parent is no process of the container.
    assert_eq!(ended_by(&[(PAYMENT, 33, 9, other, 0), (PAYMENT, 31, 9, first, 15)]), (vec![], vec![33]));
    assert_eq!(ended_by(&[(PAYMENT, 33, 9, root, 0), (PAYMENT, 31, 9, root, 15)]), (vec![], vec![33]));
    assert_eq!(ended_by(&[(PAYMENT, 33, 9, other, 0), (PAYMENT, 31, 9, first, 0)]), (vec![31], vec![33]));
    // Those behind a first process end with it, whatever they make of it.
    assert_eq!(ended_by(&[(PAYMENT, 31, 9, first, 0), (PAYMENT, 32, 31, other, 15)]), (vec![31], vec![]));
}

/// Scenario: a container takes some seconds to end after its supervisor has, as its child had; one takes too long.
/// Guarantees: it is asked about again, and the child is told to have ended it; who takes too long is told as failed.
#[test]
fn a_container_that_takes_time_to_end_has_failed() {
    let story = [(PAYMENT, 32, 31, NAMESPACE_OTHER, 0), (PAYMENT, 31, 9, NAMESPACE_FIRST, 0)];
    ENDING.set(2);
    assert_eq!(ended_by(&story), (vec![32], vec![31]));
    ENDING.set(9);
    assert_eq!(ended_by(&story), (vec![], vec![32, 31]));
    ENDING.set(0);
}

/// Scenario: the second program of a probe has taken a hit between the readings of what the first missed and of what the
/// second took; then both are read again.
/// Guarantees: what was lost once is counted once.
#[test]
fn what_is_lost_is_counted_once() {
    let mut pipeline = pipeline(Scope::Containers);
    for recursion_misses in [1, 0, 1, 2] {
        let run = Some(KernelRun { recursion_misses, ..KernelRun::default() });
        let counters = ProbeCounters { probe: ProbeId::TcpState, stats: ProbeStats::default(), run };
        pipeline.reading(Reading::Counters(vec![counters]), SECOND);
    }
    assert_eq!(lost(&mut pipeline), [("tcp_state".to_owned(), "recursion".to_owned(), 2)]);
}

/// Scenario: a connection of nobody's ends, before and after the kernel has had no room for an owner.
/// Guarantees: the first is filtered, the second is lost, and the shortfall can be read.
#[test]
fn a_full_map_of_owners_is_a_loss() {
    let mut pipeline = pipeline(Scope::Containers);
    let close = TcpState { owner: Owner::default(), ..state(1, HOST, 9, tuple(80, 50_000), (8, 7), 0) };
    pipeline.record(&RecordRef::TcpState(&close));
    assert_eq!(lost(&mut pipeline), []);
    let stats = ProbeStats { map_full: 3, ..ProbeStats::default() };
    let counters = ProbeCounters { probe: ProbeId::Payload, stats, run: None };
    pipeline.reading(Reading::Counters(vec![counters]), 1);
    pipeline.record(&RecordRef::TcpState(&close));
    assert_eq!(lost(&mut pipeline), [("tcp_state".to_owned(), "owner-map-full".to_owned(), 1)]);
    assert!(pipeline.shortfalls().contains(&("map-full", 3)));
}

/// Scenario: a call's connection has ended, and its answer may still be read; then the agent ends.
/// Guarantees: nothing claims to be told beyond that end until the call is; at the agent's end it is told, and a request
/// that is still open is counted.
#[test]
fn what_waits_is_not_claimed_as_told() {
    let mut pipeline = pipeline(Scope::Containers);
    pipeline.fold.close(1 << 60, &mut pipeline.tally);
    payload(&mut pipeline, 10, SHOP, 2, tuple(40_000, 80), DIRECTION_WRITE, &request(1));
    payload(&mut pipeline, 11, SHOP, 3, tuple(40_001, 80), DIRECTION_WRITE, &request(2));
    pipeline.heard(15);
    assert_eq!(pipeline.told_until(), 15);
    pipeline.record(&RecordRef::TcpReset(&broken(20, SHOP, 2, tuple(40_000, 80))));
    pipeline.heard(MILLI);
    assert_eq!(pipeline.told_until(), 20);
    pipeline.finish(2 * MILLI);
    assert_eq!(pipeline.told_until(), MILLI);
    assert_eq!(events(&mut pipeline, intent::REQUEST_UNANSWERED).len(), 1);
    assert_eq!(lost(&mut pipeline), [("payload".to_owned(), "agent-ended".to_owned(), 1)]);
}

/// Scenario: connections with an open call end in each of the ways that the kernel has.
/// Guarantees: the peer is blamed where it, or the network, ended the connection while this end still listened; where
/// this end was done first, the call is told as unfinished, of no great weight.
#[test]
fn who_ended_first_decides() {
    for (old_state, errno, is_peers) in [
        (1, 104, true),
        (1, 110, true),
        (8, 0, true),
        (8, 32, true),
        (9, 0, true),
        (1, 0, false),
        (4, 0, false),
        (5, 0, false),
        (5, 104, false),
        (11, 0, false),
    ] {
        let mut pipeline = pipeline(Scope::Containers);
        payload(&mut pipeline, 10, SHOP, 2, tuple(40_000, 80), DIRECTION_WRITE, &request(1));
        pipeline.record(&RecordRef::TcpState(&state(20, SHOP, 2, tuple(40_000, 80), (old_state, 7), errno)));
        pipeline.tick(SECOND);
        let unanswered = events(&mut pipeline, intent::REQUEST_UNANSWERED).len();
        let unfinished = events(&mut pipeline, intent::REQUEST_UNFINISHED);
        let expected = (usize::from(is_peers), usize::from(!is_peers));
        assert_eq!((unanswered, unfinished.len()), expected, "{old_state} {errno}");
        for event in unfinished {
            let said = (event.severity, event.attributes.as_deref());
            assert_eq!(said, (Severity::Notice, Some("ended=connection")));
        }
    }
}

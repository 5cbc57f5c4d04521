use tapio_kernel_abi::*;
use tapio_schemas::intent::LinkKind;

use super::*;
use crate::attribute::{Group, Running};

const SECOND: u64 = 1_000_000_000;
const MILLI: u64 = 1_000_000;
const SHOP: u64 = 11;
const PAYMENT: u64 = 12;
const HOST: u64 = 1;
const MIB: u64 = 1 << 20;

struct Fake;

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
    SockTuple {
        network: 1,
        local_port,
        remote_port,
        local_address: LOOPBACK,
        remote_address: LOOPBACK,
    }
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
    pipeline.begin(0, &[Running { pid: 1, parent_pid: 0, cgroup_id: HOST }]);
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
    let exit = Exit {
        header: header(now + 4, PAYMENT),
        wait_status: 9,
        exit_code: 0,
        signal: 9,
        core_dumped: 0,
        reserved: 0,
    };
    pipeline.record(&RecordRef::Exit(&exit));
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

/// Scenario: a host's process calls a container and another host's process, and fails to open a file.
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
        pipeline.tick(5 * MILLI);
        let is_all = scope == Scope::All;
        assert_eq!(events(&mut pipeline, intent::CONNECTION_REFUSED).len(), if is_all { 2 } else { 1 });
        assert_eq!(events(&mut pipeline, intent::REQUEST_CALLED).len(), usize::from(is_all));
        let seen = pipeline.fold.ready().iter().filter(|event| event.probe == "container").count() as u64;
        assert_eq!(pipeline.tally.total() - seen, pipeline.records());
    }
}

//! The layout is a contract with an object file that another compiler built: every size and every offset is here.

extern crate std;

use core::mem::{align_of, offset_of, size_of};
use std::vec::Vec;

use crate::*;

/// Checks the offset of every field and that sizes add up without a gap, then the total.
macro_rules! layout {
    ($name:ident: $total:literal { $($field:ident @ $offset:literal : $bytes:literal),+ $(,)? }) => {{
        let mut next = 0usize;
        $(
            assert_eq!(offset_of!($name, $field), $offset, concat!(stringify!($name), ".", stringify!($field)));
            assert_eq!($offset, next, concat!("gap before ", stringify!($name), ".", stringify!($field)));
            next += $bytes;
        )+
        assert_eq!(next, $total, concat!("gap at the end of ", stringify!($name)));
        assert_eq!(size_of::<$name>(), $total, stringify!($name));
        assert_eq!(size_of::<$name>() % 8, 0, stringify!($name));
        assert_eq!(align_of::<$name>(), 8, stringify!($name));
    }};
}

/// Scenario: the structs as this compiler lays them out.
/// Guarantees: every offset and size is the documented one and no byte is padding.
#[test]
fn every_field_has_its_place() {
    layout!(Header: 56 { kind@0:2, record_bytes@2:2, cpu@4:4, time_nanos@8:8, tgid@16:4, tid@20:4,
        cgroup_id@24:8, start_nanos@32:8, comm@40:16 });
    layout!(Owner: 24 { tgid@0:4, tid@4:4, cgroup_id@8:8, start_nanos@16:8 });
    layout!(Fork: 80 { header@0:56, child_tgid@56:4, child_tid@60:4, child_start_nanos@64:8,
        child_cgroup_id@72:8 });
    layout!(Exec: 200 { header@0:56, uid@56:4, parent_tgid@60:4, path_bytes@64:2, flags@66:2, reserved@68:4,
        path@72:128 });
    layout!(Exit: 64 { header@0:56, wait_status@56:4, exit_code@60:1, signal@61:1, core_dumped@62:1,
        namespace@63:1 });
    layout!(OomVictim: 136 { header@0:56, victim_tgid@56:4, uid@60:4, victim_cgroup_id@64:8,
        victim_start_nanos@72:8, total_vm_bytes@80:8, anon_rss_bytes@88:8, file_rss_bytes@96:8,
        shmem_rss_bytes@104:8, oom_score_adj@112:2, layout@114:2, page_bytes@116:4, victim_comm@120:16 });
    layout!(TcpState: 136 { header@0:56, owner@56:24, sock_key@80:8, tuple@88:40, old_state@128:1,
        new_state@129:1, sock_errno@130:2, reserved@132:4 });
    layout!(TcpReset: 136 { header@0:56, owner@56:24, sock_key@80:8, tuple@88:40, direction@128:1, state@129:1,
        reserved@130:2, reason@132:4 });
    layout!(TcpRetransmit: 136 { header@0:56, owner@56:24, sock_key@80:8, tuple@88:40, state@128:1,
        reserved@129:7 });
    layout!(FailedSyscall: 232 { header@0:56, count@56:8, number@64:2, errno@66:2, fd@68:4, flags@72:2,
        path_bytes@74:2, family@76:2, port@78:2, address@80:16, network@96:4, reserved@100:4,
        path@104:128 });
    layout!(FatalSignal: 104 { header@0:56, target_tgid@56:4, target_tid@60:4, target_cgroup_id@64:8,
        target_start_nanos@72:8, code@80:4, signal@84:1, fault@85:1, group@86:1, reserved@87:1,
        target_comm@88:16 });
    layout!(PayloadHead: 120 { header@0:56, sock_key@56:8, tuple@64:40, total_bytes@104:4, fd@108:4,
        captured_bytes@112:2, number@114:2, direction@116:1, reserved@117:3 });
    layout!(ProbeStats: 64 { hits@0:8, emitted@8:8, folded@16:8, filtered@24:8, ring_full@32:8, unreadable@40:8,
        map_full@48:8, reserved@56:8 });
    layout!(SyscallRule: 24 { errnos_low@0:8, errnos_high@8:8, shape@16:2, direction@18:1, form@19:1,
        opens@20:1, reserved@21:3 });
    layout!(FileKey: 16 { pod@0:8, file@8:8 });
    layout!(FoldValue: 312 { pending@0:8, emitted_at_nanos@8:8, last_at_nanos@16:8, detail@24:8, mixed@32:8,
        writing@40:8, told@48:32, sample@80:232 });
}

/// Scenario: the two structs that are not aligned to eight bytes.
/// Guarantees: they have no padding either.
#[test]
fn keys_have_no_padding() {
    assert_eq!(size_of::<FoldKey>(), 8);
    assert_eq!(
        [offset_of!(FoldKey, tgid), offset_of!(FoldKey, number), offset_of!(FoldKey, errno)],
        [0, 4, 6]
    );
    assert_eq!(size_of::<SockTuple>(), 40);
    assert_eq!(
        [
            offset_of!(SockTuple, network),
            offset_of!(SockTuple, local_port),
            offset_of!(SockTuple, remote_port),
            offset_of!(SockTuple, local_address),
            offset_of!(SockTuple, remote_address)
        ],
        [0, 4, 6, 8, 24]
    );
}

/// Scenario: the table of probes.
/// Guarantees: a probe's number is its place in `ALL`, and names are unique.
#[test]
fn probes_are_numbered_in_order() {
    for (index, probe) in ProbeId::ALL.iter().enumerate() {
        assert_eq!(*probe as usize, index);
        assert!(ProbeId::ALL.iter().filter(|other| other.name() == probe.name()).count() == 1);
        assert!(probe.program().len() < 16, "the kernel cuts program names at 15 bytes");
    }
}

fn aligned(bytes: &[u8]) -> Vec<u64> {
    let mut words = std::vec![0u64; bytes.len().div_ceil(8)];
    for (index, byte) in bytes.iter().enumerate() {
        words[index / 8] |= u64::from(*byte) << (index % 8 * 8);
    }
    words
}

fn header(kind: u16, record_bytes: usize) -> Header {
    Header {
        kind,
        record_bytes: u16::try_from(record_bytes).unwrap(),
        cpu: 1,
        time_nanos: 2,
        tgid: 3,
        tid: 4,
        cgroup_id: 5,
        start_nanos: 6,
        comm: *b"payment\0\0\0\0\0\0\0\0\0",
    }
}

fn view<R>(bytes: &[u8], check: impl FnOnce(Result<RecordRef<'_>, BadRecord>) -> R) -> R {
    let words = aligned(bytes);
    // SAFETY: the words hold at least as many initialised bytes.
    let view = unsafe { core::slice::from_raw_parts(words.as_ptr().cast::<u8>(), bytes.len()) };
    check(RecordRef::parse(view))
}

/// Scenario: an exit record, then the same with every possible wrong length, kind and alignment.
/// Guarantees: good bytes are viewed in place, bad ones are refused by name and never read beyond their end.
#[test]
fn only_whole_records_are_viewed() {
    let exit = Exit {
        header: header(KIND_EXIT, size_of::<Exit>()),
        wait_status: 9,
        exit_code: 0,
        signal: 9,
        core_dumped: 0,
        namespace: NAMESPACE_ROOT,
    };
    view(exit.as_bytes(), |parsed| {
        assert_eq!(parsed, Ok(RecordRef::Exit(&exit)));
        assert_eq!(parsed.unwrap().header().command(), b"payment");
    });
    for length in 0..size_of::<Exit>() {
        let expected = if length < size_of::<Header>() { BadRecord::Short } else { BadRecord::Length };
        view(&exit.as_bytes()[..length], |parsed| assert_eq!(parsed, Err(expected)));
    }
    for kind in 0..=u16::MAX {
        let mut other = exit;
        other.header.kind = kind;
        view(other.as_bytes(), |parsed| match kind {
            KIND_EXIT => assert!(parsed.is_ok()),
            KIND_FORK..=KIND_PAYLOAD => assert_eq!(parsed, Err(BadRecord::Length)),
            _ => assert_eq!(parsed, Err(BadRecord::Kind)),
        });
    }
    let mut shifted = std::vec![0u8; 1];
    shifted.extend_from_slice(exit.as_bytes());
    let words = aligned(&shifted);
    // SAFETY: the words hold at least as many initialised bytes.
    let bytes = unsafe { core::slice::from_raw_parts(words.as_ptr().cast::<u8>(), shifted.len()) };
    assert_eq!(RecordRef::parse(&bytes[1..]), Err(BadRecord::Misaligned));
}

/// Scenario: payload records whose captured length fits, ends at the edge, and lies.
/// Guarantees: data never reaches beyond the record.
#[test]
fn payload_data_ends_with_its_record() {
    for captured in 0..=24u16 {
        let mut head = PayloadHead {
            header: header(KIND_PAYLOAD, size_of::<PayloadHead>() + 16),
            sock_key: 0,
            tuple: SockTuple::default(),
            total_bytes: 16,
            fd: 3,
            captured_bytes: captured,
            number: 0,
            direction: DIRECTION_READ,
            reserved: [0; 3],
        };
        head.tuple.network = 2;
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(b"GET / HTTP/1.1\r\n");
        view(&bytes, |parsed| match parsed {
            Ok(RecordRef::Payload(_, data)) => {
                assert_eq!(data, &b"GET / HTTP/1.1\r\n"[..usize::from(captured)])
            }
            other => assert_eq!((other, captured > 16), (Err(BadRecord::Length), true)),
        });
    }
}

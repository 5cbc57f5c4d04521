//! What a TCP socket is: its key, its two ends, its owner.

use aya_ebpf::{macros::map, maps::HashMap};
use tapio_kernel_abi::{Owner, ProbeStats, SockTuple};

use crate::{
    offsets::*,
    outcome::count_map_full,
    read::{at, field, pointer},
    task,
};

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// Who uses which socket. Entries are made in `connect` and at reads and writes, and removed when the socket closes.
/// Not an LRU map: a full map is counted.
#[map]
static OWNERS: HashMap<u64, Owner> = HashMap::with_max_entries(32768, 1);

/// The name of a socket outside the kernel.
#[inline(always)]
pub fn key(sock: u64) -> u64 {
    sock ^ SOCK_KEY_MASK.load()
}

/// Whoever is known to use the socket.
#[inline(always)]
pub fn owner(key: u64) -> Owner {
    // SAFETY: the value is copied at once; a torn copy needs the socket to close and another to open meanwhile.
    unsafe { OWNERS.get(key) }.copied().unwrap_or_default()
}

/// Remembers who uses a socket.
#[inline(always)]
pub fn set_owner(stats: *mut ProbeStats, key: u64, owner: &Owner) {
    // Most often the same thread goes on using the socket, and a lookup is much cheaper than an insertion.
    // SAFETY: the value is compared at once; a stale one only costs the insertion.
    if let Some(known) = unsafe { OWNERS.get(key) }
        && known.tid == owner.tid
        && known.start_nanos == owner.start_nanos
        && known.cgroup_id == owner.cgroup_id
    {
        return;
    }
    if OWNERS.insert(key, owner, 0).is_err() {
        count_map_full(stats);
    }
}

/// The socket is gone, or is new and still nobody's.
#[inline(always)]
pub fn forget_owner(key: u64) {
    let _absent = OWNERS.remove(key);
}

#[inline(always)]
pub fn is_tcp(sock: u64) -> bool {
    field::<u16>(sock, &SK_PROTOCOL) == Some(IPPROTO_TCP)
}

/// The TCP socket behind a descriptor of the running task; nothing where this kernel does not show how to find it.
#[inline(always)]
pub fn of_descriptor(fd: u64) -> Option<u64> {
    if TASK_FILES.load() == 0 || FILE_PRIVATE_DATA.load() == 0 || SOCKET_SK.load() == 0 {
        return None;
    }
    let files = pointer(task::current(), &TASK_FILES)?;
    let table = pointer(files, &FILES_FDT)?;
    if fd >= u64::from(field::<u32>(table, &FDT_MAX_FDS)?) {
        return None;
    }
    let file = at::<u64>(pointer(table, &FDT_FD)? + fd * 8)?;
    let inode = pointer(file, &FILE_INODE)?;
    if field::<u16>(inode, &INODE_MODE)? & S_IFMT != S_IFSOCK {
        return None;
    }
    let sock = pointer(pointer(file, &FILE_PRIVATE_DATA)?, &SOCKET_SK)?;
    is_tcp(sock).then_some(sock)
}

#[inline(always)]
pub fn state(sock: u64) -> u8 {
    field(sock, &SKC_STATE).unwrap_or(0)
}

/// An IPv4 address in its IPv6-mapped form.
#[inline(always)]
pub fn mapped(address: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Both ends of a socket; works on full, request and time-wait sockets, which share `sock_common`.
#[inline(always)]
pub fn tuple(sock: u64) -> Option<SockTuple> {
    let family = field::<u16>(sock, &SKC_FAMILY)?;
    let local_port = match field::<u16>(sock, &SKC_NUM)? {
        // A close gives the port back before anybody is told, but only full sockets close: they still remember it.
        0 => u16::from_be(field(sock, &INET_SPORT)?),
        port => port,
    };
    let remote_port = u16::from_be(field::<u16>(sock, &SKC_DPORT)?);
    let (local_address, remote_address) = match family {
        AF_INET => (mapped(field(sock, &SKC_RCV_SADDR)?), mapped(field(sock, &SKC_DADDR)?)),
        AF_INET6 => (field(sock, &SKC_V6_RCV_SADDR)?, field(sock, &SKC_V6_DADDR)?),
        _ => return None,
    };
    Some(SockTuple { network: network(sock), local_port, remote_port, local_address, remote_address })
}

/// Inode number of the socket's network namespace, 0 when it is not known.
#[inline(always)]
pub fn network(sock: u64) -> u32 {
    if SKC_NET.load() == 0 {
        return 0;
    }
    pointer(sock, &SKC_NET).and_then(|network| field(network, &NET_INUM)).unwrap_or(0)
}

/// Both ends of a received segment, as this machine sees them, in a network that it does not name.
#[inline(always)]
pub fn tuple_of_received(skb: u64) -> Option<SockTuple> {
    let head = field::<u64>(skb, &SKB_HEAD)?;
    let network = head + u64::from(field::<u16>(skb, &SKB_NETWORK_HEADER)?);
    let transport = head + u64::from(field::<u16>(skb, &SKB_TRANSPORT_HEADER)?);
    // Offsets of the protocols' own headers: RFC 791, RFC 8200, RFC 9293.
    let (remote_address, local_address) = match at::<u8>(network)? >> 4 {
        4 => (mapped(at(network + 12)?), mapped(at(network + 16)?)),
        6 => (at(network + 8)?, at(network + 24)?),
        _ => return None,
    };
    let remote_port = u16::from_be(at(transport)?);
    let local_port = u16::from_be(at(transport + 2)?);
    Some(SockTuple { network: 0, local_port, remote_port, local_address, remote_address })
}

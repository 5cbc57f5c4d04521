//! Who listens already when the agent starts: no record will ever tell of it.
//!
//! Reads procfs once: the sockets of each network namespace, and in the descriptors of its processes whose they are.
//! A socket whose user cannot be found is left out: it is better unknown than somebody else's. Called by
//! [`crate::agent`] at the start.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
};

use tapio_kernel_abi::{COMM_BYTES, Owner};
use tapio_schemas::address::Address;

use crate::attribute::Running;

/// Listening sockets that are looked for, over all namespaces.
const SOCKETS_MAX: usize = 16_384;
/// Lines that are read of one namespace's table: every connection has one.
const LINES_MAX: usize = 1 << 20;
/// `TCP_LISTEN`, as `/proc/net/tcp` writes it.
const LISTEN: &str = "0A";

/// A process that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Existing {
    pub(crate) network: u32,
    pub(crate) address: [u8; 16],
    pub(crate) port: u16,
    /// Without thread and start: procfs knows the start to a hundredth of a second only.
    pub(crate) owner: Owner,
    pub(crate) comm: [u8; COMM_BYTES],
}

/// Everybody of these processes who listens on TCP.
pub(crate) fn listeners(running: &[Running]) -> Vec<Existing> {
    let mut networks: HashMap<u32, Vec<&Running>> = HashMap::new();
    for process in running {
        if let Some(network) = network_of(process.pid) {
            networks.entry(network).or_default().push(process);
        }
    }
    let mut found = Vec::new();
    for (network, mut processes) in networks {
        processes.sort_by_key(|process| process.pid);
        let mut sockets = sockets_of(&processes, SOCKETS_MAX.saturating_sub(found.len()));
        for process in processes {
            if sockets.is_empty() {
                break;
            }
            for inode in descriptors_of(process.pid) {
                let Some((address, port)) = sockets.remove(&inode) else { continue };
                let owner = Owner { tgid: process.pid, tid: 0, cgroup_id: process.cgroup_id, start_nanos: 0 };
                found.push(Existing { network, address, port, owner, comm: comm_of(process.pid) });
            }
        }
    }
    found
}

/// `net:[4026531840]`: the inode number that the kernel's records name the namespace by.
fn network_of(pid: u32) -> Option<u32> {
    let link = fs::read_link(format!("/proc/{pid}/ns/net")).ok()?;
    number_in(link.to_str()?, "net:[")?.try_into().ok()
}

/// Inode number to address and port, of the namespace that these processes share. Any of them may end meanwhile.
fn sockets_of(processes: &[&Running], most: usize) -> HashMap<u64, ([u8; 16], u16)> {
    let tables = |pid: u32| ["tcp", "tcp6"].map(|name| fs::File::open(format!("/proc/{pid}/net/{name}")));
    let mut sockets = HashMap::new();
    for table in
        processes.iter().map(|process| tables(process.pid)).find(|it| it[0].is_ok()).into_iter().flatten()
    {
        let Ok(table) = table else { continue };
        let lines = BufReader::new(table).lines().map_while(Result::ok).take(LINES_MAX);
        sockets.extend(lines.filter_map(|line| listening_socket(&line)));
    }
    if sockets.len() > most {
        tracing::warn!(found = sockets.len(), most, "not all that listen already are remembered");
        let surplus: HashSet<u64> = sockets.keys().skip(most).copied().collect();
        sockets.retain(|inode, _| !surplus.contains(inode));
    }
    sockets
}

/// A line of `/proc/net/tcp` or `tcp6` (proc(5)): slot, local address, remote address, state, ..., inode.
fn listening_socket(line: &str) -> Option<(u64, ([u8; 16], u16))> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    // Words of 32 bits, each in the host's order.
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let address: Address = match *bytes.as_slice() {
        [a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
        ref six => std::net::IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(six).ok()?)).into(),
    };
    Some((inode, (address.0, u16::from_str_radix(port, 16).ok()?)))
}

/// The sockets that a process has open.
fn descriptors_of(pid: u32) -> Vec<u64> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter_map(|link| number_in(link.to_str()?, "socket:[")).collect()
}

fn comm_of(pid: u32) -> [u8; COMM_BYTES] {
    let mut comm = [0; COMM_BYTES];
    let text = fs::read(Path::new(&format!("/proc/{pid}/comm"))).unwrap_or_default();
    let name = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    for (to, from) in comm.iter_mut().zip(name) {
        *to = *from;
    }
    comm
}

fn number_in(text: &str, before: &str) -> Option<u64> {
    text.strip_prefix(before)?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Scenario: this process listens on both families.
    /// Guarantees: it is found with address, port, namespace and name; who only is connected is not.
    #[test]
    fn who_listens_already_is_found() {
        let listeners = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("[::]:0").unwrap()];
        let client = std::net::TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
        let pid = std::process::id();
        let found = super::listeners(&[Running { pid, parent_pid: 1, cgroup_id: 7 }]);
        for listener in &listeners {
            let address = listener.local_addr().unwrap();
            let one = found.iter().find(|one| one.port == address.port()).unwrap();
            assert_eq!(one.address, Address::from(address.ip()).0);
            assert_eq!((one.owner.tgid, one.owner.cgroup_id), (pid, 7));
            assert_eq!((Some(one.network), one.comm[0] != 0), (network_of(pid), true));
        }
        assert!(!found.iter().any(|one| one.port == client.local_addr().unwrap().port()));
    }

    /// Scenario: lines of the kernel's tables.
    /// Guarantees: words are read in the host's order; what does not listen, or is no line, is nothing.
    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let line = "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        let local = Address::from(std::net::IpAddr::from(Ipv4Addr::from(
            u32::from_ne_bytes(0x0100_007f_u32.to_ne_bytes()).to_ne_bytes(),
        )));
        assert_eq!(listening_socket(line), Some((4711, (local.0, 8_080))));
        assert_eq!(listening_socket(&line.replace(" 0A ", " 01 ")), None);
        assert_eq!(listening_socket("  sl  local_address rem_address   st"), None);
    }
}

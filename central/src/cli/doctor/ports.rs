//! Who listens where the tiers listen by default.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt as _};

use super::{Check, agent::is_tier};

/// What listens there by default: protocol, port, who.
const PORTS: [(&str, u16, &str); 5] = [
    ("udp", 7401, "the aggregator's intake"),
    ("tcp", 7402, "the aggregator's metrics"),
    ("tcp", 7403, "the aggregator's gRPC"),
    ("tcp", 7404, "the aggregator's dashboard"),
    ("tcp", 7443, "central's API"),
];
/// `TCP_LISTEN` of the kernel (`net/tcp_states.h`), as procfs writes it.
const LISTENING: &str = "0A";

pub(super) fn checks() -> Vec<Check> {
    PORTS.into_iter().map(|(protocol, port, who)| check(protocol, port, who)).collect()
}

fn check(protocol: &str, port: u16, who: &str) -> Check {
    let what = format!("port {port}/{protocol}");
    let table =
        |suffix: &str| fs::read_to_string(format!("/proc/net/{protocol}{suffix}")).unwrap_or_default();
    let Some(inode) = [table(""), table("6")].iter().find_map(|table| socket(table, protocol, port)) else {
        return Check::ok(what, format!("free, for {who}"));
    };
    match owner(&inode) {
        Some((pid, command)) if is_tier(&command) => {
            Check::ok(what, format!("{who}: {}[{pid}] listens", command.display()))
        }
        Some((pid, command)) => Check::note(
            what,
            format!("{}[{pid}] listens where {who} would", command.display()),
            "end it, or give the tier another address",
        ),
        None => Check::note(
            what,
            format!("somebody listens where {who} would; who, only root can see"),
            "run this as root, or give the tier another address",
        ),
    }
}

/// The inode of the socket that is bound to `port`, and listens if it can, in a table of procfs (proc(5)).
fn socket(table: &str, protocol: &str, port: u16) -> Option<String> {
    let wanted = format!("{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
        let is_it = local.rsplit_once(':')?.1 == wanted && (protocol == "udp" || *state == LISTENING);
        is_it.then(|| (*inode).to_owned())
    })
}

/// The process that holds the socket.
fn owner(inode: &str) -> Option<(u32, OsString)> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for pid in pids {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let holds = descriptors
            .flatten()
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|target| target.as_os_str() == wanted.as_str());
        if holds {
            let mut command = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
            command.truncate(command.trim_ascii_end().len());
            return Some((pid, OsString::from_vec(command)));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Scenario: a port that this process listens on, its other end's, and one that nobody has.
    /// Guarantees: who listens is named; a connection is no listener; a free port is free.
    #[test]
    fn who_listens_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let inode = socket(&table, "tcp", port).unwrap();
        assert_eq!(owner(&inode).unwrap().0, std::process::id());
        assert_eq!(socket(&table, "tcp", stream.local_addr().unwrap().port()), None);
        assert!(
            check("tcp", port, "a test").found.contains(&format!("[{}] listens where", std::process::id()))
        );
        drop((listener, stream));
        assert!(check("tcp", port, "a test").found.starts_with("free"));
    }
}

//! Which container is at an address: listeners, and the near ends of connections whose far ends are on this node.
//!
//! Addresses are the host's: containers with network namespaces of their own may use one address twice, and then the
//! answer is "not known". A listener that ended is remembered for a while, so that a refusal can name who is missing.

use std::{collections::HashMap, sync::Arc};

use tapio_kernel_abi::SockTuple;
use tapio_schemas::address::Address;

use crate::attribute::Container;

/// Ports with a listener.
const PORTS_MAX: usize = 8_192;
/// Listeners on one port.
const LISTENERS_PER_PORT_MAX: usize = 64;
/// Connections whose near end is known.
const NEAR_ENDS_MAX: usize = 32_768;
/// How long a listener that ended is remembered.
const ENDED_KEPT_NANOS: u64 = 60_000_000_000;

/// One end of a connection.
type End = ([u8; 16], u16);

#[derive(Clone, Debug)]
struct Listener {
    sock_key: u64,
    address: [u8; 16],
    /// `None`: a process of the host.
    container: Option<Arc<Container>>,
    ended_nanos: Option<u64>,
}

/// Who is where.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    listeners: HashMap<u16, Vec<Listener>>,
    near: HashMap<(End, End), Option<Arc<Container>>>,
    by_key: HashMap<u64, (End, End)>,
    refused: u64,
}

impl Endpoints {
    /// A process of `container`, or of the host, listens.
    pub(crate) fn listening(&mut self, sock_key: u64, tuple: &SockTuple, container: Option<Arc<Container>>) {
        if self.listeners.len() >= PORTS_MAX && !self.listeners.contains_key(&tuple.local_port) {
            self.refused += 1;
            return;
        }
        let listeners = self.listeners.entry(tuple.local_port).or_default();
        // The address has a new user: who had it before is no longer missed there.
        listeners.retain(|other| {
            other.sock_key != sock_key
                && (other.ended_nanos.is_none() || other.address != tuple.local_address)
        });
        if listeners.len() >= LISTENERS_PER_PORT_MAX {
            self.refused += 1;
            return;
        }
        let address = tuple.local_address;
        listeners.push(Listener { sock_key, address, container, ended_nanos: None });
    }

    /// A listener is gone.
    pub(crate) fn listening_ended(&mut self, sock_key: u64, tuple: &SockTuple, now_nanos: u64) {
        // A closed socket may have given its port back before it told so.
        if tuple.local_port != 0 {
            let listeners =
                self.listeners.get_mut(&tuple.local_port).map(Vec::as_mut_slice).unwrap_or_default();
            end(listeners, sock_key, now_nanos);
        } else {
            self.listeners.values_mut().for_each(|listeners| end(listeners, sock_key, now_nanos));
        }
    }

    /// A process of `container`, or of the host, uses this end of a connection.
    pub(crate) fn connected(&mut self, sock_key: u64, tuple: &SockTuple, container: Option<Arc<Container>>) {
        if tuple.local_port == 0 {
            return;
        }
        let ends = near_end(tuple);
        if self.by_key.get(&sock_key) == Some(&ends) {
            return;
        }
        self.disconnected(sock_key);
        if self.near.len() >= NEAR_ENDS_MAX {
            self.refused += 1;
            return;
        }
        self.near.insert(ends, container);
        self.by_key.insert(sock_key, ends);
    }

    /// A connection is over.
    pub(crate) fn disconnected(&mut self, sock_key: u64) {
        if let Some(ends) = self.by_key.remove(&sock_key) {
            self.near.remove(&ends);
        }
    }

    /// Whose listener the near end is: of accepted connections whose owner is not known.
    pub(crate) fn local(&self, tuple: &SockTuple, now_nanos: u64) -> Option<Arc<Container>> {
        self.listener(tuple.local_address, tuple.local_port, now_nanos)
    }

    /// Who is at the far end, if it is one container of this node.
    pub(crate) fn peer(&self, tuple: &SockTuple, now_nanos: u64) -> Option<Arc<Container>> {
        let (local, remote) = near_end(tuple);
        match self.near.get(&(remote, local)) {
            Some(known) => known.clone(),
            None => self.listener(tuple.remote_address, tuple.remote_port, now_nanos),
        }
    }

    fn listener(&self, address: [u8; 16], port: u16, now_nanos: u64) -> Option<Arc<Container>> {
        let is_loopback = Address(address).is_loopback();
        let here = |listener: &&Listener| {
            // A wildcard stands for the addresses of its own network namespace, of which only loopback is known here.
            listener.address == address || is_loopback && Address(listener.address).is_unspecified()
        };
        let remembered = |listener: &&Listener| {
            listener.ended_nanos.is_some_and(|at| now_nanos.saturating_sub(at) < ENDED_KEPT_NANOS)
        };
        let listeners = self.listeners.get(&port)?;
        let live = only(listeners.iter().filter(here).filter(|listener| listener.ended_nanos.is_none()));
        match live {
            Only::Nobody => match only(listeners.iter().filter(here).filter(remembered)) {
                Only::One(container) => container,
                Only::Nobody | Only::Several => None,
            },
            Only::One(container) => container,
            Only::Several => None,
        }
    }

    /// Forgets listeners that ended long ago.
    pub(crate) fn sweep(&mut self, now_nanos: u64) {
        for listeners in self.listeners.values_mut() {
            listeners.retain(|listener| {
                listener.ended_nanos.is_none_or(|at| now_nanos.saturating_sub(at) < ENDED_KEPT_NANOS)
            });
        }
        self.listeners.retain(|_, listeners| !listeners.is_empty());
    }

    /// Ends that were not kept for want of room.
    pub(crate) const fn refused(&self) -> u64 {
        self.refused
    }
}

fn end(listeners: &mut [Listener], sock_key: u64, now_nanos: u64) {
    for listener in listeners {
        if listener.sock_key == sock_key && listener.ended_nanos.is_none() {
            listener.ended_nanos = Some(now_nanos);
        }
    }
}

const fn near_end(tuple: &SockTuple) -> (End, End) {
    ((tuple.local_address, tuple.local_port), (tuple.remote_address, tuple.remote_port))
}

enum Only {
    Nobody,
    One(Option<Arc<Container>>),
    Several,
}

fn only<'a>(mut listeners: impl Iterator<Item = &'a Listener>) -> Only {
    let Some(first) = listeners.next() else { return Only::Nobody };
    if listeners.all(|other| other.container == first.container) {
        Only::One(first.container.clone())
    } else {
        Only::Several
    }
}

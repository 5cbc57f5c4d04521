//! Which container is at an address: listeners, and the near ends of connections whose far ends are on this node.
//!
//! Loopback addresses mean something within one network namespace only, and only where the kernel says which one that
//! is. Other addresses are taken for the node's: where two containers listen on one, the answer is "not known". A
//! listener that ended is remembered for a while, so that a refusal can name who is missing.

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
/// The near end of a connection whose end was not seen is forgotten when nothing was heard of it for this long.
const QUIET_NANOS_MAX: u64 = 600_000_000_000;

/// One end of a connection: network namespace (zero, where the address needs none), address, port.
type End = (u32, [u8; 16], u16);
/// Both ends, the near one first.
type Ends = (End, End);

#[derive(Clone, Debug)]
struct Listener {
    sock_key: u64,
    network: u32,
    address: [u8; 16],
    /// `None`: a process of the host.
    container: Option<Arc<Container>>,
    ended_nanos: Option<u64>,
}

#[derive(Debug)]
struct Near {
    /// `None`: a process of the host.
    container: Option<Arc<Container>>,
    last_nanos: u64,
}

/// Who is where.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    listeners: HashMap<u16, Vec<Listener>>,
    near: HashMap<Ends, Near>,
    by_key: HashMap<u64, Ends>,
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
            let is_here = (other.network, other.address) == (tuple.network, tuple.local_address);
            other.sock_key != sock_key && (other.ended_nanos.is_none() || !is_here)
        });
        if listeners.len() >= LISTENERS_PER_PORT_MAX {
            self.refused += 1;
            return;
        }
        let (network, address) = (tuple.network, tuple.local_address);
        listeners.push(Listener { sock_key, network, address, container, ended_nanos: None });
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
    pub(crate) fn connected(
        &mut self,
        sock_key: u64,
        tuple: &SockTuple,
        container: Option<Arc<Container>>,
        now_nanos: u64,
    ) {
        if tuple.local_port == 0 {
            return;
        }
        let Some(ends) = ends(tuple) else { return };
        if self.by_key.get(&sock_key) == Some(&ends)
            && let Some(near) = self.near.get_mut(&ends)
        {
            near.last_nanos = now_nanos;
            return;
        }
        self.disconnected(sock_key);
        if self.near.len() >= NEAR_ENDS_MAX {
            self.refused += 1;
            return;
        }
        self.near.insert(ends, Near { container, last_nanos: now_nanos });
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
        self.listener(ends(tuple)?.0, now_nanos)
    }

    /// Who is at the far end, if it is one container of this node.
    pub(crate) fn peer(&self, tuple: &SockTuple, now_nanos: u64) -> Option<Arc<Container>> {
        let (local, remote) = ends(tuple)?;
        match self.near.get(&(remote, local)) {
            Some(near) => near.container.clone(),
            None => self.listener(remote, now_nanos),
        }
    }

    fn listener(&self, (network, address, port): End, now_nanos: u64) -> Option<Arc<Container>> {
        let is_loopback = network != 0;
        let here = |listener: &&Listener| {
            // A wildcard stands for the addresses of its own network namespace, of which only loopback is known here.
            let is_named = listener.address == address;
            let is_covered = is_loopback && Address(listener.address).is_unspecified();
            (is_named || is_covered) && (!is_loopback || listener.network == network)
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

    /// Forgets listeners that ended long ago, and connections that nothing was heard of for long.
    pub(crate) fn sweep(&mut self, now_nanos: u64) {
        for listeners in self.listeners.values_mut() {
            listeners.retain(|listener| {
                listener.ended_nanos.is_none_or(|at| now_nanos.saturating_sub(at) < ENDED_KEPT_NANOS)
            });
        }
        self.listeners.retain(|_, listeners| !listeners.is_empty());
        let Self { near, by_key, .. } = self;
        by_key.retain(|_, ends| {
            let is_quiet = |near: &Near| now_nanos.saturating_sub(near.last_nanos) >= QUIET_NANOS_MAX;
            let is_over = near.get(ends).is_none_or(is_quiet);
            if is_over {
                near.remove(ends);
            }
            !is_over
        });
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

/// The ends of a connection; `None` where they mean something in one namespace only, and which one is not known.
fn ends(tuple: &SockTuple) -> Option<Ends> {
    let is_loopback = [tuple.local_address, tuple.remote_address].map(|end| Address(end).is_loopback());
    let network = if is_loopback.contains(&true) { tuple.network } else { 0 };
    if network == 0 && is_loopback.contains(&true) {
        return None;
    }
    let local = (network, tuple.local_address, tuple.local_port);
    Some((local, (network, tuple.remote_address, tuple.remote_port)))
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

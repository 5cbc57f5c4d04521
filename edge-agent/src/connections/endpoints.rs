//! Which container is at an address: listeners, and the near ends of connections whose far ends are on this node.
//!
//! Loopback addresses mean something within one network namespace only, and only where the kernel says which one that
//! is. Other addresses are taken for the node's: where two containers listen on one, the answer is "not known". A
//! listener that ended is remembered for a while, so that a refusal can name who is missing. Whose listener keeps another
//! from an address is told only within one network namespace that the kernel names.

use std::{collections::HashMap, sync::Arc};

use tapio_kernel_abi::{COMM_BYTES, Owner, SockTuple};
use tapio_schemas::address::Address;

use super::existing::Existing;
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

/// Of one that listened before the agent did, whose key is not known.
const NO_KEY: u64 = 0;

#[derive(Clone, Debug)]
struct Listener {
    /// [`NO_KEY`] where it is not known.
    sock_key: u64,
    network: u32,
    address: [u8; 16],
    user: Listening,
    ended_nanos: Option<u64>,
}

/// Who listens.
#[derive(Clone, Debug)]
pub(crate) struct Listening {
    /// `None`: a process of the host.
    pub(crate) container: Option<Arc<Container>>,
    pub(crate) owner: Owner,
    pub(crate) comm: [u8; COMM_BYTES],
    /// Since when; of one that listened already, since when it is known.
    pub(crate) since_nanos: u64,
}

/// Who listens where another wanted to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder<'a> {
    pub(crate) address: [u8; 16],
    pub(crate) user: &'a Listening,
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
    /// A process listens.
    pub(crate) fn listening(&mut self, sock_key: u64, tuple: &SockTuple, user: Listening) {
        if self.listeners.len() >= PORTS_MAX && !self.listeners.contains_key(&tuple.local_port) {
            self.refused += 1;
            return;
        }
        let listeners = self.listeners.entry(tuple.local_port).or_default();
        // The address has a new user: who had it before is no longer missed there.
        listeners.retain(|other| {
            let is_same = other.sock_key == sock_key && sock_key != NO_KEY;
            !is_same && (other.ended_nanos.is_none() || !other.is_at(tuple))
        });
        if listeners.len() >= LISTENERS_PER_PORT_MAX {
            self.refused += 1;
            return;
        }
        let (network, address) = (tuple.network, tuple.local_address);
        listeners.push(Listener { sock_key, network, address, user, ended_nanos: None });
    }

    /// A process has listened since before the agent did. What records said meanwhile wins.
    pub(crate) fn adopt(&mut self, existing: &Existing, user: Listening) {
        let Existing { network, address, port, .. } = *existing;
        let tuple = SockTuple { network, local_address: address, local_port: port, ..SockTuple::default() };
        let known = self.listeners.get(&port);
        if !known.is_some_and(|known| known.iter().any(|listener| listener.is_at(&tuple))) {
            self.listening(NO_KEY, &tuple, user);
        }
    }

    /// Those who listen where `tuple`'s near end was wanted, so that it could not be had: in the same network namespace
    /// at the same port, by the same address or by one of which either stands for all.
    pub(crate) fn holders(&self, tuple: &SockTuple) -> impl Iterator<Item = Holder<'_>> {
        let (network, address) = (tuple.network, tuple.local_address);
        let is_wildcard = |address: [u8; 16]| Address(address).is_unspecified();
        let listeners = self.listeners.get(&tuple.local_port).filter(|_| network != 0).into_iter().flatten();
        let here = listeners.filter(move |it| it.ended_nanos.is_none() && it.network == network);
        here.filter(move |it| it.address == address || is_wildcard(it.address) || is_wildcard(address))
            .map(|it| Holder { address: it.address, user: &it.user })
    }

    /// A listener is gone.
    pub(crate) fn listening_ended(&mut self, sock_key: u64, tuple: &SockTuple, now_nanos: u64) {
        // A closed socket may have given its port back before it told so.
        if tuple.local_port != 0 {
            let listeners =
                self.listeners.get_mut(&tuple.local_port).map(Vec::as_mut_slice).unwrap_or_default();
            end(listeners, sock_key, tuple, now_nanos);
        } else {
            self.listeners.values_mut().for_each(|listeners| end(listeners, sock_key, tuple, now_nanos));
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

impl Listener {
    fn is_at(&self, tuple: &SockTuple) -> bool {
        (self.network, self.address) == (tuple.network, tuple.local_address)
    }
}

fn end(listeners: &mut [Listener], sock_key: u64, tuple: &SockTuple, now_nanos: u64) {
    // Whose key is not known is known by its place, unless somebody with this key is.
    let is_known = listeners.iter().any(|listener| listener.sock_key == sock_key);
    for listener in listeners {
        let is_meant = listener.sock_key == sock_key
            || !is_known && listener.sock_key == NO_KEY && tuple.local_port != 0 && listener.is_at(tuple);
        if is_meant && listener.ended_nanos.is_none() {
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
    if listeners.all(|other| other.user.container == first.user.container) {
        Only::One(first.user.container.clone())
    } else {
        Only::Several
    }
}

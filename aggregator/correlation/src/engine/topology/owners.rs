//! Who owns an endpoint at a moment: who listened on it last before, if nobody else took it since.

use std::collections::BTreeMap;

use tapio_schemas::{
    entity::{EntityKey, EntityKind},
    intent::LinkKind,
    observation::Observation,
    units::{TimeInterval, UnixMicros},
};

use super::{Span, Topology, is_wildcard, parts};

/// Who may own an endpoint at a moment: one who was seen there, or several between whom nothing decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Owners {
    pub(in crate::engine) owners: Vec<EntityKey>,
    pub(in crate::engine) link: LinkKind,
}

impl Owners {
    /// How the link to `entity` is known, if it is one of the owners.
    pub(in crate::engine) fn link_to(&self, entity: &EntityKey) -> Option<LinkKind> {
        self.owners.contains(entity).then_some(self.link)
    }
}

/// Owners, and the moments for which the answer is the same: from the first up to before the second.
#[derive(Clone, Debug)]
struct Tenure {
    owners: Owners,
    from: UnixMicros,
    to: Option<UnixMicros>,
}

/// What is asked about: endpoints without listeners of their own have the same owners, wherever on their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Asked<'a> {
    Endpoint(&'a EntityKey),
    Place(u16, Option<&'a str>),
}

/// Answers that were given already, for asking about many moments of few endpoints.
#[derive(Debug)]
pub(in crate::engine) struct OwnersMemo<'a> {
    topology: &'a Topology,
    known: BTreeMap<Asked<'a>, Tenure>,
}

impl<'a> OwnersMemo<'a> {
    pub(in crate::engine) const fn new(topology: &'a Topology) -> Self {
        Self { topology, known: BTreeMap::new() }
    }

    /// How the link to `entity` is known, if it owned `peer` at `at`.
    pub(in crate::engine) fn link_to(
        &mut self,
        entity: &EntityKey,
        peer: &'a EntityKey,
        at: &TimeInterval,
    ) -> Option<LinkKind> {
        if peer.kind != EntityKind::Endpoint {
            return (peer == entity).then_some(LinkKind::Observed);
        }
        if !self.topology.may_own(entity, peer) {
            return None;
        }
        let asked = self.topology.asked(peer)?;
        let known = self
            .known
            .get(&asked)
            .filter(|tenure| tenure.from <= at.latest && tenure.to.is_none_or(|to| at.latest < to));
        if let Some(tenure) = known {
            return tenure.owners.link_to(entity);
        }
        let tenure = self.topology.tenure(asked, at.latest);
        let link = tenure.owners.link_to(entity);
        self.known.insert(asked, tenure);
        link
    }
}

impl Topology {
    /// Who owns `peer` at `at`: the last listener that began before, if nobody else took the endpoint since.
    pub(in crate::engine) fn owners(&self, peer: &EntityKey, at: &TimeInterval) -> Owners {
        if peer.kind != EntityKind::Endpoint {
            return Owners { owners: vec![peer.clone()], link: LinkKind::Observed };
        }
        self.asked(peer).map(|asked| self.tenure(asked, at.latest).owners).unwrap_or_default()
    }

    /// Whether an observation's other side is one that `is_wanted`, by name or as the owner of the endpoint: agents
    /// forget a listener that is gone sooner than its callers stop calling.
    pub(in crate::engine) fn is_toward(
        &self,
        item: &Observation,
        is_wanted: impl Fn(&EntityKey) -> bool,
    ) -> bool {
        let Some(peer) = &item.peer else { return false };
        is_wanted(peer) || self.owners(peer, &item.time).owners.iter().any(is_wanted)
    }

    /// Who owns the endpoints at a port (of a node) that nobody listens on by their own address.
    pub(super) fn owners_at(&self, port: u16, node: Option<&str>, at: &TimeInterval) -> Owners {
        self.tenure(Asked::Place(port, node), at.latest).owners
    }

    /// Whether `entity` listens on something that `peer` may stand for. A few look-ups, before anything dear.
    fn may_own(&self, entity: &EntityKey, peer: &EntityKey) -> bool {
        let Some(own) = self.listening.get(entity) else { return false };
        if self.listeners.contains_key(peer) {
            return own.contains(peer);
        }
        let Some((node, _address, port)) = parts(peer) else { return false };
        own.iter().filter_map(parts).any(|(its_node, address, its_port)| {
            its_port == port && is_wildcard(address) && (node.is_none() || its_node == node)
        })
    }

    fn asked<'a>(&self, peer: &'a EntityKey) -> Option<Asked<'a>> {
        if self.listeners.contains_key(peer) {
            return Some(Asked::Endpoint(peer));
        }
        parts(peer).map(|(node, _address, port)| Asked::Place(port, node))
    }

    fn tenure(&self, asked: Asked<'_>, at: UnixMicros) -> Tenure {
        let (port, node) = match asked {
            Asked::Endpoint(peer) => return tenure_of(self.listeners.get(peer).into_iter().flatten(), at),
            Asked::Place(port, node) => (port, node),
        };
        if let Some(node) = node {
            let here = self.wildcards.get(&(port, Some(node.to_owned()))).into_iter().flatten();
            return tenure_of(here.filter_map(|endpoint| self.listeners.get(endpoint)).flatten(), at);
        }
        let everywhere =
            self.wildcards.range((port, None)..).take_while(|((its_port, _node), _line)| *its_port == port);
        let lines = everywhere.flat_map(|(_place, endpoints)| endpoints);
        let mut tenure = tenure_of(lines.filter_map(|endpoint| self.listeners.get(endpoint)).flatten(), at);
        // Which node has the address is not known: the port alone may name one listener, and proves nothing.
        tenure.owners.link = LinkKind::Inferred;
        if tenure.owners.owners.len() > 1 {
            tenure.owners = Owners::default();
        }
        tenure
    }
}

/// Of those who listened on an endpoint, who owns it at `at`.
fn tenure_of<'a>(line: impl Iterator<Item = (&'a EntityKey, &'a Span)>, at: UnixMicros) -> Tenure {
    let mut begun: Vec<(&EntityKey, &Span)> = Vec::new();
    let mut next: Option<(UnixMicros, &EntityKey)> = None;
    for (owner, span) in line {
        if span.since <= at {
            begun.push((owner, span));
        } else if next.is_none_or(|next| (span.since, owner) < next) {
            next = Some((span.since, owner));
        }
    }
    let to = next.map(|(since, _owner)| since);
    let Some((last, span)) = begun.iter().copied().max_by_key(|(owner, span)| (span.since, *owner)) else {
        // Nobody was seen before: the first one seen later may have listened already, unseen.
        let owners = next.map(|(_since, owner)| owner.clone()).into_iter().collect();
        return Tenure { owners: Owners { owners, link: LinkKind::Inferred }, from: UnixMicros(0), to };
    };
    let others = begun.iter().filter(|(owner, other)| *owner != last && other.until >= span.since);
    let mut owners: Vec<EntityKey> = others.map(|(owner, _span)| (*owner).clone()).collect();
    owners.push(last.clone());
    owners.sort();
    owners.dedup();
    let link = if owners.len() == 1 { span.link } else { LinkKind::Inferred };
    Tenure { owners: Owners { owners, link }, from: span.since, to }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests stop at the first surprise")]

    use tapio_schemas::{
        entity::{Relation, RelationKind},
        ids::EventId,
        units::Micros,
    };

    use super::*;

    fn endpoint(id: &str) -> EntityKey {
        EntityKey::new(EntityKind::Endpoint, id)
    }

    fn pod(id: &str) -> EntityKey {
        EntityKey::new(EntityKind::Container, id)
    }

    fn at(micros: u64) -> TimeInterval {
        TimeInterval::around(UnixMicros(micros), Micros(0))
    }

    fn topology(relations: &[(RelationKind, &str, &str, u64, u64)]) -> Topology {
        let mut topology = Topology::default();
        for (kind, from, to, since, until) in relations {
            let relation = Relation {
                kind: *kind,
                from: pod(from),
                to: endpoint(to),
                since: UnixMicros(*since),
                until: UnixMicros(*until),
                link: LinkKind::Observed,
                learned_from: EventId::default(),
            };
            topology.insert(&relation, 1_000);
        }
        topology
    }

    fn callers(topology: &Topology, of: &str) -> Vec<(String, LinkKind)> {
        let callers = topology.callers_of(&pod(of), &at(50), UnixMicros(0), UnixMicros(100));
        callers.into_iter().map(|(caller, link)| (caller.id, link)).collect()
    }

    /// Scenario: two nodes, each with one that listens on all addresses at port 80; calls to loopback and to an address
    /// that no node is known to have; a third listens on an address of its own.
    /// Guarantees: a loopback address is the node's own listener, seen; an address of nobody is nobody's while two may
    /// have it; with one it is its, inferred; who listens by address owns it alone.
    #[test]
    fn who_listens_everywhere_owns_what_is_called_on_its_node() {
        use RelationKind::{Calls, Listens};
        let two = [
            (Listens, "a", "node-a|0.0.0.0:80", 10, 60),
            (Listens, "b", "node-b|0.0.0.0:80", 10, 60),
            (Listens, "own", "10.0.0.7:80", 10, 60),
            (Calls, "x", "node-a|127.0.0.1:80", 20, 60),
            (Calls, "y", "10.0.0.9:80", 20, 60),
            (Calls, "z", "10.0.0.7:80", 20, 60),
        ];
        let both = topology(&two);
        assert_eq!(callers(&both, "a"), [("x".to_owned(), LinkKind::Observed)]);
        assert_eq!(callers(&both, "b"), []);
        assert_eq!(callers(&both, "own"), [("z".to_owned(), LinkKind::Observed)]);
        let mut one = two.to_vec();
        one.remove(1);
        let seen = [("x".to_owned(), LinkKind::Observed), ("y".to_owned(), LinkKind::Inferred)];
        assert_eq!(callers(&topology(&one), "a"), seen);
    }

    /// Scenario: several take one endpoint after each other, and overlap; every moment is asked for, twice.
    /// Guarantees: what is remembered is what would be answered anew.
    #[test]
    fn what_is_remembered_is_what_holds() {
        use RelationKind::Listens;
        let topology = topology(&[
            (Listens, "a", "10.0.0.1:80", 10, 30),
            (Listens, "b", "10.0.0.1:80", 25, 40),
            (Listens, "c", "10.0.0.1:80", 60, 90),
            (Listens, "a", "node-a|0.0.0.0:81", 10, 30),
            (Listens, "b", "node-a|[::]:81", 35, 40),
        ]);
        let peers = ["10.0.0.1:80", "node-a|127.0.0.1:81", "10.0.0.5:81", "10.0.0.5:82"].map(endpoint);
        let mut memo = OwnersMemo::new(&topology);
        for moment in (0..100).chain((0..100).rev()) {
            for (peer, name) in peers.iter().flat_map(|peer| ["a", "b", "c"].map(|name| (peer, name))) {
                let anew = topology.owners(peer, &at(moment)).link_to(&pod(name));
                assert_eq!(memo.link_to(&pod(name), peer, &at(moment)), anew, "{peer} {name} at {moment}");
            }
        }
        assert_eq!(topology.owners(&peers[0], &at(26)).owners.len(), 2);
        assert_eq!(topology.owners(&peers[0], &at(70)).owners, [pod("c")]);
    }
}

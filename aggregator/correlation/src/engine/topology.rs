//! Who listens where, who calls whom, what runs in what: relations joined per pair into one interval.
//!
//! A relation seen again widens its interval, so that the topology is a join of everything inserted and the order of
//! arrival cannot matter. An endpoint belongs to who listened on it last before the moment that is asked for.

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{
    entity::{EntityKey, EntityKind, Relation, RelationKind},
    ids::{EventId, SourceId},
    intent::LinkKind,
    units::{TimeInterval, UnixMicros},
};

/// A joined relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    since: UnixMicros,
    until: UnixMicros,
    link: LinkKind,
    learned_from: EventId,
}

type Edges = BTreeMap<EntityKey, BTreeMap<EntityKey, Span>>;

/// All relations.
#[derive(Clone, Debug, Default)]
pub(super) struct Topology {
    /// Endpoint to those who listen on it.
    listeners: Edges,
    /// Who listens, to the endpoints.
    listening: BTreeMap<EntityKey, BTreeSet<EntityKey>>,
    /// Port of an endpoint that stands for all addresses of a node, to these endpoints.
    wildcards: BTreeMap<u16, BTreeSet<EntityKey>>,
    /// Endpoint to those who call it.
    callers: Edges,
    /// Port to the endpoints called at it.
    called_ports: BTreeMap<u16, BTreeSet<EntityKey>>,
    /// Entity to where it runs.
    homes: Edges,
    edges: usize,
    evicted: u64,
    /// What was last confirmed before this is not kept.
    horizon: UnixMicros,
}

/// How coarsely old relations are forgotten: going through all of them at every tick would be too dear.
const FORGET_STEP_MICROS: u64 = 60_000_000;

/// Who may own an endpoint at a moment: one who was seen there, or several between whom nothing decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Owners {
    pub(super) owners: Vec<EntityKey>,
    pub(super) link: LinkKind,
}

impl Owners {
    fn of(owners: Vec<EntityKey>, link: LinkKind) -> Self {
        Self { owners, link }
    }

    /// How the link to `entity` is known, if it is one of the owners.
    pub(super) fn link_to(&self, entity: &EntityKey) -> Option<LinkKind> {
        self.owners.contains(entity).then_some(self.link)
    }
}

/// The node before `|`, the address and the port of an endpoint's id.
fn parts(endpoint: &EntityKey) -> Option<(Option<&str>, &str, u16)> {
    if endpoint.kind != EntityKind::Endpoint {
        return None;
    }
    let (address, port) = endpoint.id.rsplit_once(':')?;
    let port = port.parse().ok()?;
    let (node, address) = match address.split_once('|') {
        Some((node, address)) => (Some(node), address),
        None => (None, address),
    };
    Some((node, address, port))
}

fn is_wildcard(address: &str) -> bool {
    matches!(address, "0.0.0.0" | "[::]")
}

/// Widens or adds an edge; whether it is new, and whether its beginning moved.
fn join(edges: &mut Edges, from: &EntityKey, to: &EntityKey, span: Span) -> (bool, bool) {
    let line = edges.entry(from.clone()).or_default();
    let Some(known) = line.get_mut(to) else {
        line.insert(to.clone(), span);
        return (true, true);
    };
    let before = *known;
    known.since = known.since.min(span.since);
    known.until = known.until.max(span.until);
    known.learned_from = known.learned_from.min(span.learned_from);
    if span.link == LinkKind::Observed {
        known.link = LinkKind::Observed;
    }
    let contested = line.len() > 1;
    let after = line.get(to).copied().unwrap_or(before);
    (
        false,
        after.since != before.since
            || after.link != before.link
            || (contested && after.until != before.until),
    )
}

impl Topology {
    /// Takes a relation in; whether an answer may change by it.
    pub(super) fn insert(&mut self, relation: &Relation, most: usize) -> bool {
        let Relation { kind, from, to, since, until, link, learned_from } = relation;
        if *until < self.horizon {
            return false;
        }
        let span = Span { since: *since, until: *until, link: *link, learned_from: *learned_from };
        let (new, changed) = match kind {
            RelationKind::Listens => {
                self.listening.entry(from.clone()).or_default().insert(to.clone());
                if let Some((_node, address, port)) = parts(to)
                    && is_wildcard(address)
                {
                    self.wildcards.entry(port).or_default().insert(to.clone());
                }
                join(&mut self.listeners, to, from, span)
            }
            RelationKind::Calls => {
                if let Some((_node, _address, port)) = parts(to) {
                    self.called_ports.entry(port).or_default().insert(to.clone());
                }
                let (new, _moved) = join(&mut self.callers, to, from, span);
                (new, new)
            }
            RelationKind::RunsIn => {
                let (new, _moved) = join(&mut self.homes, from, to, span);
                (new, false)
            }
            RelationKind::Owns | RelationKind::Unknown => (false, false),
        };
        self.edges += usize::from(new);
        if self.edges > most {
            self.evict_to(most.saturating_sub(most / 16));
        }
        changed
    }

    pub(super) fn merge(&mut self, other: &Self, most: usize) {
        for relation in other.relations() {
            self.insert(&relation, most);
        }
    }

    /// Who owns `peer` at `at`: the last listener that began before, if nobody else took the endpoint since.
    pub(super) fn owners(&self, peer: &EntityKey, at: &TimeInterval) -> Owners {
        if peer.kind != EntityKind::Endpoint {
            return Owners::of(vec![peer.clone()], LinkKind::Observed);
        }
        if let Some(line) = self.listeners.get(peer) {
            return owner_at(line.iter(), at);
        }
        let Some((node, _address, port)) = parts(peer) else { return Owners::default() };
        let everywhere = self.wildcards.get(&port).into_iter().flatten();
        let here = everywhere.filter(|endpoint| {
            node.is_none() || parts(endpoint).is_some_and(|(its_node, ..)| its_node == node)
        });
        let lines = here.filter_map(|endpoint| self.listeners.get(endpoint));
        let mut owners = owner_at(lines.flatten(), at);
        if node.is_none() {
            // Which node has the address is not known: the port alone may name one listener, and proves nothing.
            owners.link = LinkKind::Inferred;
            if owners.owners.len() > 1 {
                return Owners::default();
            }
        }
        owners
    }

    /// Those who called an endpoint that `entity` owned at `at`, until `until`.
    pub(super) fn callers_of(
        &self,
        entity: &EntityKey,
        at: &TimeInterval,
        until: UnixMicros,
    ) -> BTreeMap<EntityKey, LinkKind> {
        let mut callers = BTreeMap::new();
        let Some(own) = self.listening.get(entity) else { return callers };
        let mut endpoints: BTreeSet<&EntityKey> = own.iter().collect();
        for endpoint in own {
            if let Some((_node, address, port)) = parts(endpoint)
                && is_wildcard(address)
            {
                endpoints.extend(self.called_ports.get(&port).into_iter().flatten());
            }
        }
        for endpoint in endpoints {
            let Some(link) = self.owners(endpoint, at).link_to(entity) else { continue };
            for (caller, span) in self.callers.get(endpoint).into_iter().flatten() {
                if caller != entity && span.since <= until {
                    let known = callers.entry(caller.clone()).or_insert(LinkKind::Inferred);
                    if link == LinkKind::Observed && span.link == LinkKind::Observed {
                        *known = LinkKind::Observed;
                    }
                }
            }
        }
        callers
    }

    /// The sources that told of `entity`'s endpoints and of those who call them.
    pub(super) fn told_by(&self, entity: &EntityKey) -> BTreeSet<SourceId> {
        let own = self.listening.get(entity).into_iter().flatten();
        let lines = own.flat_map(|endpoint| {
            let listeners = self.listeners.get(endpoint).and_then(|line| line.get(entity)).into_iter();
            listeners.chain(self.callers.get(endpoint).into_iter().flat_map(BTreeMap::values))
        });
        lines.map(|span| span.learned_from.frame.source).collect()
    }

    /// Whether anything is known to be served by `entity`.
    pub(super) fn serves(&self, entity: &EntityKey) -> bool {
        self.listening.get(entity).is_some_and(|endpoints| !endpoints.is_empty())
    }

    /// Where `entity` ran at `at`: of several, the one that was seen latest before.
    pub(super) fn runs_in(&self, entity: &EntityKey, at: UnixMicros) -> Option<&EntityKey> {
        let line = self.homes.get(entity)?;
        let earlier =
            line.iter().filter(|(_home, span)| span.since <= at).max_by_key(|(_home, span)| span.since);
        earlier.or_else(|| line.iter().min_by_key(|(_home, span)| span.since)).map(|(home, _span)| home)
    }

    /// All relations, ordered.
    pub(super) fn relations(&self) -> Vec<Relation> {
        let relation = |kind, from: &EntityKey, to: &EntityKey, span: &Span| Relation {
            kind,
            from: from.clone(),
            to: to.clone(),
            since: span.since,
            until: span.until,
            link: span.link,
            learned_from: span.learned_from,
        };
        let each = |edges: &Edges,
                    make: &dyn Fn(&EntityKey, &EntityKey, &Span) -> Relation|
         -> Vec<Relation> {
            edges.iter().flat_map(|(a, line)| line.iter().map(move |(b, span)| make(a, b, span))).collect()
        };
        let mut all =
            each(&self.listeners, &|to, from, span| relation(RelationKind::Listens, from, to, span));
        all.extend(each(&self.callers, &|to, from, span| relation(RelationKind::Calls, from, to, span)));
        all.extend(each(&self.homes, &|from, to, span| relation(RelationKind::RunsIn, from, to, span)));
        all.sort();
        all
    }

    /// Forgets relations that were last confirmed before `horizon`.
    pub(super) fn forget_before(&mut self, horizon: UnixMicros) {
        let horizon = UnixMicros(horizon.0 - horizon.0 % FORGET_STEP_MICROS);
        if horizon <= self.horizon {
            return;
        }
        self.horizon = horizon;
        let old: Vec<Relation> = self.relations().into_iter().filter(|it| it.until < horizon).collect();
        for relation in &old {
            self.remove(relation);
        }
    }

    /// Evicts those that were not confirmed for longest, several at once: finding them goes through all.
    fn evict_to(&mut self, count: usize) {
        let mut all = self.relations();
        all.sort_by_key(|relation| relation.until);
        for relation in all.iter().take(self.edges.saturating_sub(count)) {
            self.remove(relation);
            self.evicted += 1;
        }
    }

    fn remove(&mut self, relation: &Relation) {
        let Relation { kind, from, to, .. } = relation;
        let drop_edge = |edges: &mut Edges, a: &EntityKey, b: &EntityKey| {
            let Some(line) = edges.get_mut(a) else { return false };
            line.remove(b);
            let empty = line.is_empty();
            if empty {
                edges.remove(a);
            }
            empty
        };
        match kind {
            RelationKind::Listens => {
                if drop_edge(&mut self.listeners, to, from)
                    && let Some((_node, _address, port)) = parts(to)
                    && let Some(line) = self.wildcards.get_mut(&port)
                {
                    line.remove(to);
                }
                if let Some(own) = self.listening.get_mut(from) {
                    own.remove(to);
                    if own.is_empty() {
                        self.listening.remove(from);
                    }
                }
            }
            RelationKind::Calls => {
                if drop_edge(&mut self.callers, to, from)
                    && let Some((_node, _address, port)) = parts(to)
                    && let Some(line) = self.called_ports.get_mut(&port)
                {
                    line.remove(to);
                }
            }
            RelationKind::RunsIn => {
                drop_edge(&mut self.homes, from, to);
            }
            RelationKind::Owns | RelationKind::Unknown => return,
        }
        self.edges = self.edges.saturating_sub(1);
    }

    pub(super) const fn len(&self) -> usize {
        self.edges
    }

    pub(super) const fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// Of those who listened on an endpoint, who owns it at `at`.
fn owner_at<'a>(line: impl Iterator<Item = (&'a EntityKey, &'a Span)>, at: &TimeInterval) -> Owners {
    let mut line: Vec<(&EntityKey, &Span)> = line.collect();
    line.sort_by_key(|(owner, span)| (span.since, *owner));
    let begun = line.partition_point(|(_owner, span)| span.since <= at.latest);
    let Some((last, span)) = begun.checked_sub(1).and_then(|place| line.get(place)) else {
        // Nobody was seen before: the first one seen later may have listened already, unseen.
        let first = line.first().map(|(owner, _span)| (*owner).clone());
        return Owners::of(first.into_iter().collect(), LinkKind::Inferred);
    };
    let mut owners: Vec<EntityKey> = line
        .iter()
        .take(begun)
        .filter(|(owner, other)| owner != last && other.until >= span.since)
        .map(|(owner, _span)| (*owner).clone())
        .collect();
    owners.retain(|owner| owner != *last);
    owners.push((*last).clone());
    owners.sort();
    owners.dedup();
    let link = if owners.len() == 1 { span.link } else { LinkKind::Inferred };
    Owners::of(owners, link)
}

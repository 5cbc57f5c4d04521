//! Who listens where, who calls whom, what runs in what: relations joined per pair into one interval.
//!
//! A relation seen again widens its interval, so that the topology is a join of everything inserted and the order of
//! arrival cannot matter. An endpoint belongs to who listened on it last before the moment that is asked for.

mod moves;
mod owners;

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{
    entity::{EntityKey, EntityKind, Relation, RelationKind},
    ids::{EventId, SourceId},
    intent::LinkKind,
    units::{TimeInterval, UnixMicros},
};

pub(super) use self::{moves::Moves, owners::OwnersMemo};

/// A joined relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    since: UnixMicros,
    until: UnixMicros,
    link: LinkKind,
    learned_from: EventId,
}

type Edges = BTreeMap<EntityKey, BTreeMap<EntityKey, Span>>;

/// A port, and the node of an address that means another thing on every node.
type Place = (u16, Option<String>);

/// All relations.
#[derive(Clone, Debug, Default)]
pub(super) struct Topology {
    /// Endpoint to those who listen on it.
    listeners: Edges,
    /// Who listens, to the endpoints.
    listening: BTreeMap<EntityKey, BTreeSet<EntityKey>>,
    /// Place of an endpoint that stands for all addresses of a node, to these endpoints.
    wildcards: BTreeMap<Place, BTreeSet<EntityKey>>,
    /// Endpoint to those who call it.
    callers: Edges,
    /// Who calls, to the endpoints.
    calling: BTreeMap<EntityKey, BTreeSet<EntityKey>>,
    /// Place to the endpoints called at it.
    called: BTreeMap<Place, BTreeSet<EntityKey>>,
    /// Entity to where it runs.
    homes: Edges,
    /// Where something runs, to what was seen there.
    tenants: BTreeMap<EntityKey, BTreeSet<EntityKey>>,
    edges: usize,
    evicted: u64,
    /// The latest confirmation of a relation that was evicted over budget.
    evicted_until: Option<UnixMicros>,
    moves: Moves,
    /// What was last confirmed before this is not kept.
    horizon: UnixMicros,
}

/// How coarsely old relations are forgotten: going through all of them at every tick would be too dear.
const FORGET_STEP_MICROS: u64 = 60_000_000;

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

/// The port that changes at an endpoint are noted under.
fn port_of(endpoint: &EntityKey) -> u16 {
    parts(endpoint).map_or(0, |(_node, _address, port)| port)
}

fn place_of(endpoint: &EntityKey) -> Option<Place> {
    parts(endpoint).map(|(node, _address, port)| (port, node.map(str::to_owned)))
}

fn is_wildcard(address: &str) -> bool {
    matches!(address, "0.0.0.0" | "[::]")
}

/// Whether two endpoints of one node cannot both be listened on: the same port, and the same address or the wildcard of
/// either. Of which family a wildcard is does not matter: that of IPv6 most often stands for both.
pub(super) fn is_same_endpoint(a: &EntityKey, b: &EntityKey) -> bool {
    let (Some((_, a, a_port)), Some((_, b, b_port))) = (parts(a), parts(b)) else { return false };
    a_port == b_port && (a == b || is_wildcard(a) || is_wildcard(b))
}

/// Widens or adds an edge; gives what was known before, and what is now.
fn join(edges: &mut Edges, from: &EntityKey, to: &EntityKey, span: Span) -> (Option<Span>, Span) {
    let line = edges.entry(from.clone()).or_default();
    let Some(known) = line.get_mut(to) else {
        line.insert(to.clone(), span);
        return (None, span);
    };
    let before = *known;
    known.since = known.since.min(span.since);
    known.until = known.until.max(span.until);
    known.learned_from = known.learned_from.min(span.learned_from);
    if span.link == LinkKind::Observed {
        known.link = LinkKind::Observed;
    }
    (Some(before), *known)
}

impl Topology {
    /// Takes a relation in, and notes which answers may change by it.
    pub(super) fn insert(&mut self, relation: &Relation, most: usize) {
        let Relation { kind, from, to, since, until, link, learned_from } = relation;
        if *until < self.horizon {
            return;
        }
        let span = Span { since: *since, until: *until, link: *link, learned_from: *learned_from };
        let new = match kind {
            RelationKind::Listens => self.listens(from, to, span),
            RelationKind::Calls => self.calls(from, to, span),
            RelationKind::RunsIn => self.runs(from, to, span),
            RelationKind::Owns | RelationKind::Unknown => false,
        };
        self.edges += usize::from(new);
        if self.edges > most {
            self.evict_to(most.saturating_sub(most / 16));
        }
    }

    fn listens(&mut self, from: &EntityKey, to: &EntityKey, span: Span) -> bool {
        let (before, now) = join(&mut self.listeners, to, from, span);
        // A later end decides nothing, unless it reaches to where another began.
        let is_told = before.is_some_and(|before| {
            let reached = |other: &Span| before.until < other.since && other.since <= now.until;
            let meets = || self.listeners.get(to).is_some_and(|line| line.values().any(reached));
            before.since == now.since && before.link == now.link && (before.until == now.until || !meets())
        });
        if !is_told {
            self.moves.owners(port_of(to));
        }
        if before.is_none() {
            self.listening.entry(from.clone()).or_default().insert(to.clone());
            if let Some((_node, address, _port)) = parts(to)
                && is_wildcard(address)
                && let Some(place) = place_of(to)
            {
                self.wildcards.entry(place).or_default().insert(to.clone());
            }
        }
        before.is_none()
    }

    fn calls(&mut self, from: &EntityKey, to: &EntityKey, span: Span) -> bool {
        let (before, now) = join(&mut self.callers, to, from, span);
        let port = port_of(to);
        let Some(before) = before else {
            self.calling.entry(from.clone()).or_default().insert(to.clone());
            if let Some(place) = place_of(to) {
                self.called.entry(place).or_default().insert(to.clone());
            }
            self.moves.call_added(port, span.since, span.until);
            return true;
        };
        if now.link != before.link {
            self.moves.owners(port);
        }
        if now.since != before.since {
            self.moves.call_begins(port, now.since, before.since);
        }
        if now.until != before.until {
            self.moves.call_ends(port, before.until, now.until);
        }
        false
    }

    fn runs(&mut self, from: &EntityKey, to: &EntityKey, span: Span) -> bool {
        let (before, now) = join(&mut self.homes, from, to, span);
        // Between several homes their beginnings decide.
        if before.is_none_or(|before| before.since != now.since) {
            self.moves.home(from, to);
        }
        if before.is_none() {
            self.tenants.entry(to.clone()).or_default().insert(from.clone());
        }
        before.is_none()
    }

    /// What changed since this was last asked.
    pub(super) fn take_moves(&mut self) -> Moves {
        std::mem::take(&mut self.moves)
    }

    /// Whether who calls one of `entities` within `[from, until]`, or what it serves, may be among the changes.
    pub(super) fn concerns(
        &self,
        moves: &Moves,
        entities: &BTreeSet<EntityKey>,
        from: UnixMicros,
        until: UnixMicros,
    ) -> bool {
        if moves.is_everything() || moves.is_empty() {
            return moves.is_everything();
        }
        let own = entities.iter().filter_map(|entity| self.listening.get(entity)).flatten();
        own.map(port_of).any(|port| moves.concern(port, from, until))
    }

    pub(super) fn merge(&mut self, other: &Self, most: usize) {
        for relation in other.relations() {
            self.insert(&relation, most);
        }
        self.evicted_until = self.evicted_until.max(other.evicted_until);
    }

    /// Those who called an endpoint that `entity` owned at `at`, seen to do so within `[from, until]`.
    pub(super) fn callers_of(
        &self,
        entity: &EntityKey,
        at: &TimeInterval,
        from: UnixMicros,
        until: UnixMicros,
    ) -> BTreeMap<EntityKey, LinkKind> {
        let mut callers = BTreeMap::new();
        let mut add = |endpoint: &EntityKey, link: LinkKind| {
            for (caller, span) in self.callers.get(endpoint).into_iter().flatten() {
                if caller != entity && span.since <= until && span.until >= from {
                    let known = callers.entry(caller.clone()).or_insert(LinkKind::Inferred);
                    if link == LinkKind::Observed && span.link == LinkKind::Observed {
                        *known = LinkKind::Observed;
                    }
                }
            }
        };
        let mut places: BTreeSet<(u16, Option<&str>)> = BTreeSet::new();
        for endpoint in self.listening.get(entity).into_iter().flatten() {
            if let Some(link) = self.owners(endpoint, at).link_to(entity) {
                add(endpoint, link);
            }
            if let Some((node, address, port)) = parts(endpoint)
                && is_wildcard(address)
            {
                places.extend([(port, None), (port, node)]);
            }
        }
        // What nobody listens on by its own address belongs, all of a place, to the same.
        for (port, node) in places {
            let Some(link) = self.owners_at(port, node, at).link_to(entity) else { continue };
            let called = self.called.get(&(port, node.map(str::to_owned))).into_iter().flatten();
            called.filter(|endpoint| !self.listeners.contains_key(endpoint)).for_each(|it| add(it, link));
        }
        callers
    }

    /// Those who owned at `at` what `entity` was seen to call within `[from, until]`.
    pub(super) fn called_by(
        &self,
        entity: &EntityKey,
        at: &TimeInterval,
        from: UnixMicros,
        until: UnixMicros,
    ) -> BTreeSet<EntityKey> {
        let endpoints = self.calling.get(entity).into_iter().flatten().filter(|endpoint| {
            let span = self.callers.get(endpoint).and_then(|line| line.get(entity));
            span.is_some_and(|span| span.since <= until && span.until >= from)
        });
        endpoints.flat_map(|endpoint| self.owners(endpoint, at).owners).collect()
    }

    /// The sources that told what `entity` listens on: its own node's.
    pub(super) fn nodes_of(&self, entity: &EntityKey) -> BTreeSet<SourceId> {
        let own = self.listening.get(entity).into_iter().flatten();
        own.filter_map(|endpoint| self.listeners.get(endpoint)?.get(entity))
            .map(|span| span.learned_from.frame.source)
            .collect()
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

    /// The pod that `entity` ran in at `at`; itself, where none is known.
    pub(super) fn home_of<'a>(&'a self, entity: &'a EntityKey, at: UnixMicros) -> &'a EntityKey {
        self.runs_in(entity, at).filter(|home| home.kind == EntityKind::Pod).unwrap_or(entity)
    }

    /// Where `entity` was seen to run.
    pub(super) fn homes_of(&self, entity: &EntityKey) -> impl Iterator<Item = &EntityKey> {
        self.homes.get(entity).into_iter().flat_map(BTreeMap::keys)
    }

    /// Those who listen and call for `entity`: of a pod the containers that were seen in it, else itself.
    pub(super) fn members_of(&self, entity: &EntityKey) -> BTreeSet<EntityKey> {
        if entity.kind == EntityKind::Pod {
            return self.tenants.get(entity).cloned().unwrap_or_default();
        }
        BTreeSet::from([entity.clone()])
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
            self.evicted_until = self.evicted_until.max(Some(relation.until));
        }
        self.moves.everything();
    }

    fn remove(&mut self, relation: &Relation) {
        let Relation { kind, from, to, .. } = relation;
        match kind {
            RelationKind::Listens => {
                if drop_edge(&mut self.listeners, to, from) {
                    drop_place(&mut self.wildcards, to);
                }
                drop_member(&mut self.listening, from, to);
                self.moves.everything();
            }
            RelationKind::Calls => {
                if drop_edge(&mut self.callers, to, from) {
                    drop_place(&mut self.called, to);
                }
                drop_member(&mut self.calling, from, to);
            }
            RelationKind::RunsIn => {
                drop_edge(&mut self.homes, from, to);
                drop_member(&mut self.tenants, to, from);
                self.moves.home(from, to);
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

    /// The time up to which relations were evicted over budget.
    pub(super) const fn evicted_until(&self) -> Option<UnixMicros> {
        self.evicted_until
    }
}

/// Removes an edge; whether its beginning has none left.
fn drop_edge(edges: &mut Edges, a: &EntityKey, b: &EntityKey) -> bool {
    let Some(line) = edges.get_mut(a) else { return false };
    line.remove(b);
    let empty = line.is_empty();
    if empty {
        edges.remove(a);
    }
    empty
}

fn drop_member(index: &mut BTreeMap<EntityKey, BTreeSet<EntityKey>>, of: &EntityKey, member: &EntityKey) {
    if let Some(line) = index.get_mut(of) {
        line.remove(member);
        if line.is_empty() {
            index.remove(of);
        }
    }
}

fn drop_place(index: &mut BTreeMap<Place, BTreeSet<EntityKey>>, endpoint: &EntityKey) {
    let Some(place) = place_of(endpoint) else { return };
    if let Some(line) = index.get_mut(&place) {
        line.remove(endpoint);
        if line.is_empty() {
            index.remove(&place);
        }
    }
}

//! Entities and relations that were seen, on their way into ClickHouse: each with the interval in which it is known.
//!
//! Derived from what the engine takes in and from the names, so nothing here needs a disk: after a restart the replay
//! notes it again, and the tables keep one row per interval. Bounded; what does not fit is counted and is known again
//! once the oldest has been let go. Called by the engine's thread (which notes) and by a task (which stores).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tapio_correlation::Pods;
use tapio_schemas::{
    entity::{EntityKey, EntityKind, PodIdentity, Relation, RelationKind},
    intent::LinkKind,
    units::{Micros, UnixMicros},
};
use tapio_store::native::{BlockBuilder, BlockError, EncodedBlock};

/// Entities known at a time.
const ENTITIES_MAX: usize = 200_000;
/// Relations known at a time.
const RELATIONS_MAX: usize = 200_000;
/// What was not seen for this long, and is stored, is let go.
const FORGOTTEN_AFTER: Micros = Micros::from_secs(3_600);
/// The end of an interval is stored again only when it moved this far: live entities must not be rewritten all the
/// time.
const END_STEP: Micros = Micros::from_secs(60);
/// Rows of one block.
const BLOCK_ROWS_MAX: usize = 20_000;

const ENTITY_COLUMNS: [(&str, &str); 7] = [
    ("tenant", "LowCardinality(String)"),
    ("cluster", "LowCardinality(String)"),
    ("kind", "LowCardinality(String)"),
    ("id", "String"),
    ("names", "Map(LowCardinality(String), String)"),
    ("since", "DateTime64(6, 'UTC')"),
    ("until", "DateTime64(6, 'UTC')"),
];

const RELATION_COLUMNS: [(&str, &str); 10] = [
    ("tenant", "LowCardinality(String)"),
    ("cluster", "LowCardinality(String)"),
    ("kind", "LowCardinality(String)"),
    ("from_kind", "LowCardinality(String)"),
    ("from_id", "String"),
    ("to_kind", "LowCardinality(String)"),
    ("to_id", "String"),
    ("link", "LowCardinality(String)"),
    ("since", "DateTime64(6, 'UTC')"),
    ("until", "DateTime64(6, 'UTC')"),
];

/// An interval, and how much of it the tables know.
#[derive(Clone, Copy, Debug)]
struct Known {
    since: UnixMicros,
    until: UnixMicros,
    stored_until: Option<UnixMicros>,
    /// The names of the generation that is stored.
    names_generation: u64,
}

impl Known {
    fn new(since: UnixMicros, until: UnixMicros) -> Self {
        Self { since, until, stored_until: None, names_generation: 0 }
    }

    /// The start stays what it was first: it is part of the row's key.
    fn extend(&mut self, until: UnixMicros) {
        self.until = self.until.max(until);
    }

    fn is_due(&self) -> bool {
        self.stored_until.is_none_or(|stored| self.until.since(stored) >= END_STEP)
    }
}

#[derive(Debug, Default)]
struct Inner {
    entities: HashMap<EntityKey, Known>,
    relations: HashMap<(RelationKind, EntityKey, EntityKey), (Known, LinkKind)>,
    /// Which pod a container runs in.
    pod_of: HashMap<String, String>,
    dropped: u64,
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Seen {
    tenant: String,
    cluster: String,
    inner: Mutex<Inner>,
}

/// Rows to store, and what to say once they are.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) entities: Option<EncodedBlock>,
    pub(crate) relations: Option<EncodedBlock>,
    stored_entities: Vec<(EntityKey, UnixMicros)>,
    stored_relations: Vec<((RelationKind, EntityKey, EntityKey), UnixMicros)>,
    generation: u64,
}

impl Seen {
    pub(crate) fn new(tenant: &str, cluster: &str) -> Self {
        Self { tenant: tenant.to_owned(), cluster: cluster.to_owned(), inner: Mutex::default() }
    }

    /// Notes that an entity lived at `at`.
    pub(crate) fn entity(&self, key: &EntityKey, at: UnixMicros) {
        note_entity(&mut self.lock(), key, at, at);
    }

    /// Notes a relation and the entities that it joins.
    pub(crate) fn relation(&self, relation: &Relation) {
        let mut inner = self.lock();
        let Relation { kind, from, to, since, until, link, .. } = relation;
        note_entity(&mut inner, from, *since, *until);
        note_entity(&mut inner, to, *since, *until);
        if *kind == RelationKind::RunsIn
            && (from.kind, to.kind) == (EntityKind::Container, EntityKind::Pod)
            && inner.pod_of.len() < ENTITIES_MAX
            && !inner.pod_of.contains_key(&from.id)
        {
            inner.pod_of.insert(from.id.clone(), to.id.clone());
        }
        let key = (*kind, from.clone(), to.clone());
        if let Some((known, known_link)) = inner.relations.get_mut(&key) {
            known.extend(*until);
            if *link == LinkKind::Observed {
                *known_link = LinkKind::Observed;
            }
        } else if inner.relations.len() < RELATIONS_MAX {
            inner.relations.insert(key, (Known::new(*since, *until), *link));
        } else {
            inner.dropped += 1;
        }
    }

    /// Notes all pods that have names.
    pub(crate) fn pods(&self, pods: &Pods, now: UnixMicros) {
        let mut inner = self.lock();
        for pod in pods.iter() {
            note_entity(&mut inner, &EntityKey::new(EntityKind::Pod, &*pod.pod_uid), now, now);
        }
    }

    /// How many sightings did not fit, since the last call.
    pub(crate) fn take_dropped(&self) -> u64 {
        std::mem::take(&mut self.lock().dropped)
    }

    /// What the tables do not know yet, as blocks; `None` when there is nothing.
    pub(crate) fn due(&self, pods: &Pods, now: UnixMicros) -> Result<Option<Due>, BlockError> {
        let mut inner = self.lock();
        let Inner { entities, relations, pod_of, .. } = &mut *inner;
        let fresh = |known: &Known| now.since(known.until) < FORGOTTEN_AFTER || known.is_due();
        entities.retain(|_, known| fresh(known));
        relations.retain(|_, (known, _)| fresh(known));
        pod_of.retain(|container, _| {
            entities.contains_key(&EntityKey::new(EntityKind::Container, container.as_str()))
        });

        let generation = pods.generation();
        let mut due = Due {
            entities: None,
            relations: None,
            stored_entities: Vec::new(),
            stored_relations: Vec::new(),
            generation,
        };
        let mut block = BlockBuilder::new(ENTITY_COLUMNS)?;
        for (key, known) in entities.iter() {
            // A name that came later than its entity is stored with it once more.
            let renamed = known.names_generation != generation && pod(key, pod_of, pods).is_some();
            if !(known.is_due() || renamed) || due.stored_entities.len() >= BLOCK_ROWS_MAX {
                continue;
            }
            self.push_entity(&mut block, key, known, pod(key, pod_of, pods), pod_of.get(&key.id));
            due.stored_entities.push((key.clone(), known.until));
        }
        if block.rows() > 0 {
            due.entities = Some(block.encode()?);
        }
        let mut block = BlockBuilder::new(RELATION_COLUMNS)?;
        for (key, (known, link)) in relations.iter() {
            if known.is_due() && due.stored_relations.len() < BLOCK_ROWS_MAX {
                self.push_relation(&mut block, key, known, *link);
                due.stored_relations.push((key.clone(), known.until));
            }
        }
        if block.rows() > 0 {
            due.relations = Some(block.encode()?);
        }
        Ok((due.entities.is_some() || due.relations.is_some()).then_some(due))
    }

    /// Notes that `due` is in the tables.
    pub(crate) fn stored(&self, due: &Due) {
        let mut inner = self.lock();
        for (key, until) in &due.stored_entities {
            if let Some(known) = inner.entities.get_mut(key) {
                known.stored_until = Some(*until);
                known.names_generation = due.generation;
            }
        }
        for (key, until) in &due.stored_relations {
            if let Some((known, _)) = inner.relations.get_mut(key) {
                known.stored_until = Some(*until);
            }
        }
    }

    fn push_entity(
        &self,
        block: &mut BlockBuilder,
        key: &EntityKey,
        known: &Known,
        pod: Option<&PodIdentity>,
        pod_uid: Option<&String>,
    ) {
        let named = pod.into_iter().flat_map(|pod| {
            [
                ("pod_uid", pod.pod_uid.as_str()),
                ("namespace", &pod.namespace),
                ("pod", &pod.pod),
                ("workload", &pod.workload),
                ("workload_kind", &pod.workload_kind),
                ("service", &pod.service),
                ("node", &pod.node),
            ]
        });
        let unnamed = pod_uid.filter(|_| pod.is_none()).map(|uid| ("pod_uid", uid.as_str()));
        let names: Vec<_> = named.chain(unnamed).filter(|(_, name)| !name.is_empty()).collect();
        for (name, column) in block.columns() {
            match name {
                "tenant" => column.push_bytes(self.tenant.as_bytes()),
                "cluster" => column.push_bytes(self.cluster.as_bytes()),
                "kind" => column.push_bytes(key.kind.as_str().as_bytes()),
                "id" => column.push_bytes(key.id.as_bytes()),
                "names" => column.push_map(names.iter().copied()),
                "since" => column.push_unsigned(known.since.0),
                _ => column.push_unsigned(known.until.0),
            }
        }
    }

    fn push_relation(
        &self,
        block: &mut BlockBuilder,
        (kind, from, to): &(RelationKind, EntityKey, EntityKey),
        known: &Known,
        link: LinkKind,
    ) {
        for (name, column) in block.columns() {
            match name {
                "tenant" => column.push_bytes(self.tenant.as_bytes()),
                "cluster" => column.push_bytes(self.cluster.as_bytes()),
                "kind" => column.push_bytes(kind.as_str().as_bytes()),
                "from_kind" => column.push_bytes(from.kind.as_str().as_bytes()),
                "from_id" => column.push_bytes(from.id.as_bytes()),
                "to_kind" => column.push_bytes(to.kind.as_str().as_bytes()),
                "to_id" => column.push_bytes(to.id.as_bytes()),
                "link" => column.push_bytes(link.as_str().as_bytes()),
                "since" => column.push_unsigned(known.since.0),
                _ => column.push_unsigned(known.until.0),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn note_entity(inner: &mut Inner, key: &EntityKey, since: UnixMicros, until: UnixMicros) {
    // Processes and endpoints are in the relations that name them; as entities of their own they would be most rows.
    if matches!(key.kind, EntityKind::Process | EntityKind::Endpoint | EntityKind::Unknown) {
        return;
    }
    if let Some(known) = inner.entities.get_mut(key) {
        known.extend(until);
    } else if inner.entities.len() < ENTITIES_MAX {
        inner.entities.insert(key.clone(), Known::new(since, until));
    } else {
        inner.dropped += 1;
    }
}

fn pod<'a>(key: &EntityKey, pod_of: &HashMap<String, String>, pods: &'a Pods) -> Option<&'a PodIdentity> {
    match key.kind {
        EntityKind::Pod => pods.get(&key.id),
        EntityKind::Container => pods.get(pod_of.get(&key.id)?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tapio_schemas::ids::EventId;

    use super::*;

    /// Scenario: a container runs in a pod and is seen again and again; then the store takes what is due.
    /// Guarantees: nothing is stored again until the interval's end moved by a step, and the container's pod is known.
    #[test]
    fn an_interval_is_stored_again_only_when_it_moved() {
        let seen = Seen::new("default", "demo");
        let pods = Pods::default();
        let mut relation = Relation {
            kind: RelationKind::RunsIn,
            from: EntityKey::new(EntityKind::Container, "c1"),
            to: EntityKey::new(EntityKind::Pod, "p1"),
            since: UnixMicros(1_000_000),
            until: UnixMicros(1_000_000),
            link: LinkKind::Observed,
            learned_from: EventId::default(),
        };
        seen.relation(&relation);
        let now = UnixMicros(2_000_000);
        let due = seen.due(&pods, now).unwrap().unwrap();
        assert_eq!(due.entities.as_ref().map(EncodedBlock::rows), Some(2));
        assert_eq!(due.relations.as_ref().map(EncodedBlock::rows), Some(1));
        seen.stored(&due);
        relation.until = UnixMicros(3_000_000);
        seen.relation(&relation);
        assert!(seen.due(&pods, now).unwrap().is_none());
        relation.until = relation.until.plus(END_STEP);
        seen.relation(&relation);
        assert!(seen.due(&pods, now).unwrap().is_some());
    }
}

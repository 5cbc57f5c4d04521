//! The names of entities, joined by interval from what the watch (or an identity file) and events told.

use std::collections::HashMap;

use tapio_schemas::{
    entity::{EntityKey, EntityKind, PodIdentity},
    finding::NamedEntity,
    units::UnixMicros,
};

/// Who knows names.
pub trait Names {
    /// The pod in which `entity` ran at `at`, if it is known by name.
    fn pod(&self, entity: &EntityKey, at: UnixMicros) -> Option<PodIdentity>;
}

/// An entity with the names that are known for it at `at`.
#[must_use]
pub fn named_entity(entity: &EntityKey, at: UnixMicros, names: &dyn Names) -> NamedEntity {
    let pod = names.pod(entity, at);
    let name = pod.as_ref().map_or_else(|| plain_name(entity), |pod| pod.display_name().to_owned());
    NamedEntity { entity: entity.clone(), name, pod }
}

/// The pods that have names at one moment, by their uids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    by_uid: HashMap<String, PodIdentity>,
    generation: u64,
}

impl Pods {
    /// These pods, as they are after so many changes.
    #[must_use]
    pub fn new(by_uid: HashMap<String, PodIdentity>, generation: u64) -> Self {
        Self { by_uid, generation }
    }

    /// The pod of a uid.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&PodIdentity> {
        self.by_uid.get(uid)
    }

    /// All pods, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &PodIdentity> {
        self.by_uid.values()
    }

    /// How many pods have names.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Whether no pod has a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }

    /// Which change of the names this is.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }
}

/// The name of an entity where nobody knows a better one.
pub(super) fn plain_name(entity: &EntityKey) -> String {
    match entity.kind {
        EntityKind::Container => format!("container {}", entity.id.chars().take(12).collect::<String>()),
        EntityKind::Process => {
            let mut parts = entity.id.split('/');
            match (parts.next(), parts.next()) {
                (Some(node), Some(pid)) => format!("process {pid} on {node}"),
                _ => entity.to_string(),
            }
        }
        EntityKind::Endpoint => {
            entity.id.rsplit_once('|').map_or(entity.id.as_str(), |(_node, id)| id).to_owned()
        }
        _ => entity.id.clone(),
    }
}

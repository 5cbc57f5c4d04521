//! The names of entities, joined by interval from what the watch (or an identity file) and events told.

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

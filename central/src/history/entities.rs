//! Stored entities: containers, pods and their names, with the time in which each was known.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tapio_schemas::{entity::EntityKind, units::UnixMicros};

use super::{History, HistoryError, Row, number, text};
use crate::api::rest::page::Page;

/// Which entities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityFilter {
    /// Of this cluster.
    pub cluster: Option<String>,
    /// Of this kind.
    pub kind: Option<&'static str>,
    /// With this id.
    pub id: Option<String>,
    /// Last known not before.
    pub since: UnixMicros,
}

/// An entity as it was last known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StoredEntity {
    /// The cluster.
    pub cluster: String,
    /// What kind of thing.
    pub kind: String,
    /// Its id.
    pub id: String,
    /// When it was first known.
    pub first_seen: UnixMicros,
    /// When it was last known.
    pub last_seen: UnixMicros,
    /// The names that are known for it, by what they name (`namespace`, `pod`, `workload`, `service`).
    pub names: BTreeMap<String, String>,
}

impl History {
    /// The page of entities that `filter` wants, last appeared first, and one more if another page follows. They are
    /// not ordered by when they were last seen: that changes between pages for all that live.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn entities(
        &self,
        filter: &EntityFilter,
        page: &Page,
    ) -> Result<Vec<StoredEntity>, HistoryError> {
        // The whole life of each, also the part before `since`: an entity that was not seen for a while has two rows.
        // `FINAL`, because names that come later stand in a newer row with the same `until`.
        let mut select = self.select(
            "cluster, kind, id, min(since) AS first_time, max(until) AS last_time, \
             toUnixTimestamp64Micro(first_time) AS first_micros, toUnixTimestamp64Micro(last_time) AS last_micros, \
             argMax(names, until) AS newest_names",
            "tapio.entities FINAL",
        );
        let tenant = select.bind("String", &self.tenant);
        select
            .and_some("cluster = ?", "String", filter.cluster.as_ref())
            .and_some("kind = ?", "String", filter.kind)
            .and_some("id = ?", "String", filter.id.as_ref())
            .and(
                &format!(
                    "(cluster, kind, id) IN (SELECT cluster, kind, id FROM tapio.entities \
                     WHERE tenant = {tenant} AND until >= fromUnixTimestamp64Micro(?))"
                ),
                "Int64",
                filter.since.0,
            );
        let having = page.cursor.as_ref().map_or_else(String::new, |cursor| {
            let at = select.bind("Int64", cursor.at.0);
            let id = select.bind("String", &cursor.id);
            format!("HAVING (first_time, {PATH}) < (fromUnixTimestamp64Micro({at}), {id})")
        });
        let rest = format!(
            "GROUP BY cluster, kind, id {having} ORDER BY first_time DESC, {PATH} DESC LIMIT {}",
            u64::from(page.limit) + 1
        );
        Ok(self.rows(select.build(&rest)).await?.iter().map(read).collect())
    }

    /// What `pods`, by cluster and uid, are called: `namespace/name`. Those without a name are left out.
    ///
    /// # Errors
    /// When the store does not answer.
    pub(super) async fn pod_names(
        &self,
        pods: &BTreeSet<(&str, &str)>,
    ) -> Result<BTreeMap<(String, String), String>, HistoryError> {
        let pods: Vec<_> = pods.iter().collect();
        let mut names = BTreeMap::new();
        for some in pods.chunks(PODS_PER_QUERY) {
            let mut select = self
                .select(&format!("cluster, id, argMax({POD_PATH}, until) AS path"), "tapio.entities FINAL");
            let clusters: BTreeSet<&str> = some.iter().map(|(cluster, _uid)| *cluster).collect();
            let clusters = select.bind_texts(clusters.into_iter().map(str::to_owned).collect());
            let uids = select.bind_texts(some.iter().map(|(_cluster, uid)| (*uid).to_owned()).collect());
            select.and_plain(format!("cluster IN {clusters} AND id IN {uids} AND {POD_IS_NAMED}")).and(
                "kind = ?",
                "String",
                EntityKind::Pod.as_str(),
            );
            let rows = self.rows(select.build("GROUP BY cluster, id")).await?;
            names.extend(rows.iter().map(|row| {
                ((text(row, "cluster").to_owned(), text(row, "id").to_owned()), text(row, "path").to_owned())
            }));
        }
        Ok(names)
    }
}

/// The store reads values out of the request's address, which must not become too long for those on the way.
const PODS_PER_QUERY: usize = 150;

/// How people call a pod, in SQL.
const POD_PATH: &str = "concat(names['namespace'], '/', names['pod'])";
const POD_IS_NAMED: &str = "names['pod'] != ''";

/// The SQL that selects cluster and uid of all pods that are called `pod`, with and without their namespace; both are
/// placeholders.
pub(super) fn pods_called(tenant: &str, pod: &str) -> String {
    format!(
        "SELECT cluster, id FROM tapio.entities WHERE tenant = {tenant} AND kind = '{}' AND {POD_IS_NAMED} \
         AND (names['pod'] = {pod} OR {POD_PATH} = {pod})",
        EntityKind::Pod.as_str()
    )
}

/// What makes an entity unique, in SQL; [`key`] says the same of a [`StoredEntity`].
const PATH: &str = "concat(cluster, '/', kind, '/', id)";

/// What orders entities.
#[must_use]
pub fn key(entity: &StoredEntity) -> (UnixMicros, String) {
    (entity.first_seen, format!("{}/{}/{}", entity.cluster, entity.kind, entity.id))
}

fn read(row: &Row) -> StoredEntity {
    let names = row.get("newest_names").and_then(Value::as_object);
    let names =
        names.into_iter().flatten().filter_map(|(key, name)| Some((key.clone(), name.as_str()?.to_owned())));
    StoredEntity {
        cluster: text(row, "cluster").to_owned(),
        kind: text(row, "kind").to_owned(),
        id: text(row, "id").to_owned(),
        first_seen: UnixMicros(number(row, "first_micros")),
        last_seen: UnixMicros(number(row, "last_micros")),
        names: names.collect(),
    }
}

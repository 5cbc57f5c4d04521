//! Lists that are empty because of a name that nobody has: said on standard error, so that nobody takes them for health.

use std::io::{self, Write as _};

use tapio_schemas::intent;

use super::{
    client::{ApiClient, ClientError, path_segment},
    terminal::escaped,
};
use crate::{
    api::rest::{page::List, params::parse_time},
    history::{clusters::StoredCluster, nodes::StoredNode},
};

/// A name that differs from another in more letters was not meant to be that.
const DISTANCE_MAX: usize = 4;

/// What a list was asked to be of.
#[derive(Clone, Copy, Default)]
pub(super) struct Asked<'a> {
    pub(super) cluster: Option<&'a str>,
    pub(super) node: Option<&'a str>,
    pub(super) intent: Option<&'a str>,
    /// From when, and until when.
    pub(super) between: Option<(&'a str, &'a str)>,
}

impl Asked<'_> {
    /// Says which of the names are nobody's, where `is_empty`. What cannot be asked is not said: the list was answered.
    pub(super) fn explain_empty(self, is_empty: bool, client: &ApiClient) {
        if !is_empty {
            return;
        }
        if let Some(intent) = self.intent.filter(|intent| !intent::ALL.contains(intent)) {
            tell(&unknown_intent(intent));
        }
        if let Some((since, until)) = self.between.filter(|(since, until)| is_backwards(since, until)) {
            tell(&format!(
                "nothing lies between --since {since} and --until {until}: the one is not before the other"
            ));
        }
        let Some(cluster) = self.cluster else {
            if let Some(node) = self.node.filter(|node| is_no_node(node, client)) {
                tell(&format!("no node {node:?} was heard in the last {NODES_SINCE} (--node)"));
            }
            return;
        };
        let clusters = format!("/clusters/{}", path_segment(cluster));
        if is_nobody(&client.get::<StoredCluster>(&clusters, &[])) {
            tell(&format!("no cluster {cluster:?} was ever heard (--cluster)"));
            return;
        }
        let Some(node) = self.node else { return };
        let nodes = format!("/nodes/{}/{}", path_segment(cluster), path_segment(node));
        if is_nobody(&client.get::<StoredNode>(&nodes, &[])) {
            tell(&format!("no node {node:?} of cluster {cluster:?} was ever heard (--node)"));
        }
    }
}

fn is_backwards(since: &str, until: &str) -> bool {
    let now = super::now();
    let time = |text| parse_time(text, now);
    time(since).zip(time(until)).is_some_and(|(since, until)| until <= since)
}

fn unknown_intent(asked: &str) -> String {
    let nearest = intent::ALL
        .iter()
        .map(|known| (strsim::osa_distance(known, asked), known))
        .min()
        .filter(|(distance, _known)| *distance <= DISTANCE_MAX);
    let meant = nearest.map_or_else(String::new, |(_distance, known)| format!(": did you mean {known}?"));
    format!("no agent of this release tells of the intent {asked:?} (--intent){meant}")
}

/// How far back nodes of any cluster are looked for.
const NODES_SINCE: &str = "30d";

fn is_no_node(node: &str, client: &ApiClient) -> bool {
    let query = [("node", node), ("since", NODES_SINCE), ("limit", "1")];
    client.get::<List<StoredNode>>("/nodes", &query).is_ok_and(|list| list.items.is_empty())
}

fn is_nobody<T>(answer: &Result<T, ClientError>) -> bool {
    matches!(answer, Err(ClientError::Refused(problem)) if matches!(problem.status, 400 | 404))
}

fn tell(text: &str) {
    // There is nobody left to tell when even this fails.
    drop(writeln!(io::stderr().lock(), "tapio: {}", escaped(text)));
}

//! What is known now, as JSON: the aggregator's own state, the nodes, and the findings grouped by incident.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Serialize, Serializer};
use tapio_daemon::health::Status as HealthStatus;
use tapio_schemas::{
    finding::{Finding, FindingState},
    units::UnixMicros,
    verdict::{Role, Stance},
};

use super::{
    About, Shared,
    grouping::{Group, group},
    problem::problem,
};
use crate::{
    chains::Chain,
    clock::now,
    nodes::{ACTIVITY_SECS, Counts, NodeStatus, STEP_SECS, Summary},
    recent::{Following, Recent},
};

/// Findings that one answer holds: all that are open, then the latest.
const FINDINGS_MAX: usize = 200;
/// Nodes that one answer holds, those with something to look after first.
const NODES_MAX: usize = 200;

/// A finding with what its picture needs.
#[derive(Debug, Serialize)]
pub(super) struct Shown {
    #[serde(flatten, serialize_with = "behind")]
    finding: Arc<Finding>,
    /// Who calls whom around its fault; absent where nothing is known (any more).
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "behind_some")]
    chain: Option<Arc<Chain>>,
    /// Its revisions that are still kept, the oldest first.
    history: Vec<Revision>,
}

/// What a revision of a finding counted.
#[derive(Debug, Serialize)]
struct Revision {
    revision: u32,
    at: UnixMicros,
    state: FindingState,
    /// Occurrences of the symptom, and of the effects of the fault, that had been seen by then.
    symptoms: u64,
    effects: u64,
}

/// Findings that share a cause.
#[derive(Debug, Serialize)]
struct Incident {
    id: String,
    /// Open while one of its findings is.
    state: FindingState,
    findings: Vec<Shown>,
}

#[derive(Debug, Serialize)]
pub(super) struct Incidents {
    now: UnixMicros,
    /// Where updates go on: everything before it is in here.
    cursor: String,
    incidents: Vec<Incident>,
    /// Findings that are known and not in here.
    left_out: usize,
}

#[derive(Debug, Serialize)]
pub(super) struct Nodes {
    now: UnixMicros,
    /// The time that each node's records and losses are told of.
    activity_secs: u64,
    /// The length of a step of it.
    step_secs: u64,
    nodes: Vec<NodeStatus>,
    /// Nodes that are known and not in here.
    left_out: usize,
}

/// Whether the system can be trusted now.
#[derive(Debug, Serialize)]
pub(super) struct Status {
    now: UnixMicros,
    version: &'static str,
    #[serde(flatten)]
    about: About,
    /// The event time up to which the engine has heard every live source; zero before the first tick.
    watermark: UnixMicros,
    health: HealthStatus,
    nodes: Counts,
    /// Records of all nodes in the last minutes, and how many of them were lost.
    activity_secs: u64,
    records: u64,
    lost: u64,
    open_findings: usize,
}

fn behind<T: Serialize, S: Serializer>(shared: &Arc<T>, serializer: S) -> Result<S::Ok, S::Error> {
    (**shared).serialize(serializer)
}

fn behind_some<T: Serialize, S: Serializer>(
    shared: &Option<Arc<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    shared.as_deref().serialize(serializer)
}

impl Shown {
    pub(super) fn new(shared: &Shared, finding: Arc<Finding>) -> Self {
        let chain = shared.chains.get(&finding.id);
        let history = shared.recent.revisions(&finding.id).iter().map(|it| Revision::of(it)).collect();
        Self { finding, chain, history }
    }
}

impl Revision {
    fn of(finding: &Finding) -> Self {
        let count = |role| {
            let is_of = |line: &&tapio_schemas::verdict::Evidence| {
                line.role == role && line.stance == Stance::Supporting
            };
            // Steps of one role may rest on the same events: the largest is what was seen at least.
            finding.verdict.evidence.iter().filter(is_of).map(|line| line.count).max().unwrap_or_default()
        };
        Self {
            revision: finding.revision,
            at: finding.revised_at,
            state: finding.state,
            symptoms: count(Role::Symptom).saturating_add(finding.continuation.count),
            effects: count(Role::Effect),
        }
    }
}

/// `GET /api/v1/incidents`
pub(super) async fn incidents(State(shared): State<Arc<Shared>>) -> Json<Incidents> {
    let (cursor, mut findings) = beginning(&shared.recent);
    findings.sort_by_key(|finding| {
        (finding.state != FindingState::Open, std::cmp::Reverse(finding.first_symptom_at))
    });
    let left_out = findings.len().saturating_sub(FINDINGS_MAX);
    findings.truncate(FINDINGS_MAX);
    let shown = |finding| Shown::new(&shared, finding);
    let incidents = group(findings).into_iter().map(|Group { id, state, findings, .. }| Incident {
        id,
        state,
        findings: findings.into_iter().map(shown).collect(),
    });
    let incidents = incidents.collect();
    Json(Incidents { now: now(), cursor, incidents, left_out })
}

/// The findings, and a cursor such that what is not among them comes behind it.
fn beginning(recent: &Recent) -> (String, Vec<Arc<Finding>>) {
    // The cursor first: what is announced in between is then told twice, and never not at all.
    let cursor = recent.follow(None).map(|Following { follower, .. }| follower.cursor()).unwrap_or_default();
    (cursor.to_string(), recent.findings())
}

/// `GET /api/v1/nodes`; there may be many, so that another thread looks through them and writes the answer.
pub(super) async fn nodes(State(shared): State<Arc<Shared>>) -> Response {
    let answer = move || {
        let now = now();
        let (nodes, left_out) = shared.nodes.status(now, NODES_MAX);
        Json(Nodes { now, activity_secs: ACTIVITY_SECS, step_secs: STEP_SECS, nodes, left_out })
            .into_response()
    };
    tokio::task::spawn_blocking(answer).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the nodes cannot be told");
        problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "urn:tapio:problem:internal",
            "the nodes cannot be told",
            "the aggregator ends, or has a fault that its log names".to_owned(),
        )
    })
}

/// `GET /api/v1/status`
pub(super) async fn status(State(shared): State<Arc<Shared>>) -> Json<Status> {
    Json(Status::now(&shared))
}

impl Status {
    pub(super) fn now(shared: &Shared) -> Self {
        let now = now();
        let Summary { counts, records, lost } = shared.nodes.summary(now);
        let open = |finding: &&Arc<Finding>| finding.state == FindingState::Open;
        Self {
            now,
            version: env!("CARGO_PKG_VERSION"),
            about: shared.about.clone(),
            watermark: shared.watermark.get(),
            health: shared.health.status(),
            nodes: counts,
            activity_secs: ACTIVITY_SECS,
            records,
            lost,
            open_findings: shared.recent.findings().iter().filter(open).count(),
        }
    }
}

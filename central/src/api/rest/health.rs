//! `GET /health`: whether to trust the answers now.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{answer::Answer, params::Params, problem::Problem};
use crate::{api::ApiState, history::sources::StoredSource};

/// A source that was not heard for this long, microseconds, is called silent.
pub const SILENT_AFTER_MICROS: u64 = crate::history::nodes::SILENT_AFTER.0;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HealthAnswer {
    /// `healthy`, or `degraded` with the reasons.
    pub status: String,
    /// Why it is degraded, each for a person.
    pub reasons: Vec<String>,
    /// Which central answers, and its version.
    pub central: String,
    /// The version of the software.
    pub version: String,
    /// The sources heard in the last day.
    pub sources: Vec<StoredSource>,
}

pub(crate) async fn health(State(state): State<Arc<ApiState>>, params: Params) -> Result<Answer, Problem> {
    let now = params.now();
    params.finish()?;
    let mut reasons = Vec::new();
    let sources = match state.history.sources().await {
        Ok(sources) => sources,
        Err(error) => {
            reasons.push(error.to_string());
            Vec::new()
        }
    };
    if sources.is_empty() && reasons.is_empty() {
        reasons.push("no source was heard in the last day".to_owned());
    }
    for source in &sources {
        let silent = now.since(source.last_seen);
        if silent.0 > SILENT_AFTER_MICROS {
            reasons.push(format!(
                "{}/{} was last heard {} s ago",
                source.cluster,
                source.node,
                silent.0 / 1_000_000
            ));
        }
        for probe in &source.capability {
            if let tapio_schemas::capability::ProbeState::Failed { reason } = &probe.state {
                reasons.push(format!(
                    "{}/{}: probe {} does not work: {reason}",
                    source.cluster, source.node, probe.probe
                ));
            }
        }
    }
    let status = if reasons.is_empty() { "healthy" } else { "degraded" };
    Answer::whole(&HealthAnswer {
        status: status.to_owned(),
        reasons,
        central: state.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sources,
    })
}

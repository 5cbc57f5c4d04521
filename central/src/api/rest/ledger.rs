//! `GET /ledger`: what each stage carried, folded, filtered and lost.

use std::sync::Arc;

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{answer::Answer, findings::SINCE_DEFAULT, params::Params, problem::Problem};
use crate::{
    api::ApiState,
    history::ledger::{LedgerFilter, LedgerSum, LedgerSums},
};

/// The ledger of the time that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LedgerAnswer {
    /// What the kernel's hooks wanted to hand on.
    pub records: u64,
    /// What was lost, at any stage, for any reason.
    pub lost: u64,
    /// Each line.
    pub items: Vec<LedgerSum>,
    /// Whether there are more lines than `items` holds; ask by cluster or node for them. The totals are of all.
    #[serde(default)]
    pub cut: bool,
}

pub(crate) async fn sums(State(state): State<Arc<ApiState>>, mut params: Params) -> Result<Answer, Problem> {
    let filter = LedgerFilter {
        cluster: params.text("cluster"),
        node: params.text("node"),
        since: params.time("since").unwrap_or_else(|| params.now().minus(SINCE_DEFAULT)),
        until: params.time("until"),
    };
    params.finish()?;
    let LedgerSums { records, lost, lines, cut } = state.history.ledger(&filter).await?;
    Answer::whole(&LedgerAnswer { records, lost, items: lines, cut })
}

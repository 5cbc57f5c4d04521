//! The rules of node scope, run on the node over its own observations.
//!
//! What they say ships as an event of the agent, urgently. It changes no answer further up: the aggregator derives
//! its own from the same observations. The engine here is small, and is made anew with each rule set.

use std::{collections::HashSet, sync::Arc};

use tapio_correlation::{Engine, Limits, RuleSet, SourceContext, observe_batch};
use tapio_schemas::{
    batch::BatchView,
    entity::EntityKey,
    ids::{FrameId, RuleSetVersion},
    intent::Severity,
    units::{Micros, UnixMicros},
    verdict::Role,
};

/// Observations that are kept: a node's own, of some minutes.
const OBSERVATIONS_MAX: usize = 8_192;
/// Verdicts that were told and are not told again.
const TOLD_MAX: usize = 1_024;

/// Times that go back by more are of a clock that was set back.
const CLOCK_STEP_MIN: Micros = Micros::from_secs(1);

/// What the node's rules say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodeVerdict {
    pub(crate) rule: String,
    pub(crate) severity: Severity,
    pub(crate) cause: EntityKey,
    /// The first event of the fault.
    pub(crate) root_cause: String,
    /// What a person may want to know of it.
    pub(crate) attributes: String,
}

/// The node's engine.
pub(crate) struct Precorrelate {
    node: String,
    engine: Engine,
    told: HashSet<(String, String)>,
    /// The time that it was told last.
    now: UnixMicros,
}

impl Precorrelate {
    /// An engine for the node-scope part of `rules`; `None` when there is none.
    pub(crate) fn new(node: &str, rules: &RuleSet) -> Option<Self> {
        let rules = rules.node_scope().ok()?;
        if rules.rules().is_empty() {
            return None;
        }
        Some(Self {
            node: node.to_owned(),
            engine: engine(Arc::new(rules)),
            told: HashSet::new(),
            now: UnixMicros(0),
        })
    }

    /// Takes a batch in; returns what is new, if `is_urgent` says that something may be.
    pub(crate) fn batch(
        &mut self,
        frame: FrameId,
        view: &BatchView<'_>,
        missing_probes: &[String],
        now: UnixMicros,
        is_urgent: bool,
    ) -> Vec<NodeVerdict> {
        let source = SourceContext { node: &self.node, clock_error: Micros(0), missing_probes };
        let rules = Arc::clone(self.engine.rules());
        if now.plus(CLOCK_STEP_MIN) < self.now {
            // To this engine all that happens from now on would be long ago.
            self.engine = engine(Arc::clone(&rules));
        }
        self.now = now;
        let engine = &mut self.engine;
        observe_batch(view, frame, &source, &rules, &mut |input| engine.insert(input));
        self.engine.tick(now);
        if !is_urgent {
            return Vec::new();
        }
        let verdicts = self.engine.verdicts();
        verdicts.into_iter().filter_map(|verdict| self.tell(&verdict)).collect()
    }

    fn tell(&mut self, verdict: &tapio_schemas::verdict::Verdict) -> Option<NodeVerdict> {
        let fault = verdict.first(Role::Fault)?;
        let root_cause = fault.events.first()?.to_string();
        if self.told.len() >= TOLD_MAX {
            self.told.clear();
        }
        if !self.told.insert((verdict.rule.clone(), root_cause.clone())) {
            return None;
        }
        let attributes = format!(
            "evidence-present={}\nevidence-expected={}\nsignature={}",
            verdict.evidence_present, verdict.evidence_expected, verdict.signature
        );
        Some(NodeVerdict {
            rule: verdict.rule.clone(),
            severity: verdict.severity,
            cause: verdict.cause.clone(),
            root_cause,
            attributes,
        })
    }
}

fn engine(rules: Arc<RuleSet>) -> Engine {
    let limits = Limits {
        observations_max: OBSERVATIONS_MAX,
        relations_max: OBSERVATIONS_MAX / 4,
        frames_max: OBSERVATIONS_MAX,
        faults_max: 16,
        ..Limits::default()
    };
    Engine::new(rules, limits)
}

/// Reads a pushed rule set and checks that it is the one that was announced.
pub(crate) fn validate(bytes: &[u8], announced: RuleSetVersion) -> Result<RuleSet, String> {
    let rules = RuleSet::from_bytes(bytes).map_err(|error| error.to_string())?;
    if rules.version() == announced {
        Ok(rules)
    } else {
        Err(format!("the rule set is {}, but was announced as {announced}", rules.version()))
    }
}

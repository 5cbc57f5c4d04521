//! What the steps of a rule set look for, each thing once: an intent, and what must hold of an observation.
//!
//! An observation is asked once, when it is inserted, of which kinds it is; what is of none is nobody's evidence. Steps
//! with the same intent and condition share a kind.

use std::collections::BTreeMap;

use tapio_schemas::observation::Observation;

use super::Rule;
use crate::condition::Condition;

/// Evidence of one kind.
#[derive(Clone, Debug, PartialEq)]
struct Kind {
    intent: String,
    condition: Option<Condition>,
}

/// The kinds of a rule set. Steps and rules are named by their places.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kinds {
    kinds: Vec<Kind>,
    by_intent: BTreeMap<String, Vec<usize>>,
    /// Of each step of each rule, in the order in which it observes.
    steps: Vec<Vec<Vec<usize>>>,
    /// Of the intents that the engine needs by itself.
    own: BTreeMap<String, usize>,
}

impl Kinds {
    pub(super) fn of<'a>(rules: &[Rule], own: impl Iterator<Item = &'a str>) -> Self {
        let mut kinds = Self::default();
        for intent in own {
            let kind = kinds.intern(intent, None);
            kinds.own.insert(intent.to_owned(), kind);
        }
        for rule in rules {
            let mut of_rule = Vec::new();
            for step in &rule.steps {
                let of_intent = |intent: &String| {
                    let condition = step.condition.as_ref();
                    match condition.and_then(|condition| condition.decided_by_intent(intent)) {
                        Some(true) => Some(kinds.intern(intent, None)),
                        Some(false) => None,
                        None => Some(kinds.intern(intent, condition)),
                    }
                };
                of_rule.push(step.observe.iter().filter_map(of_intent).collect());
            }
            kinds.steps.push(of_rule);
        }
        kinds
    }

    fn intern(&mut self, intent: &str, condition: Option<&Condition>) -> usize {
        let line = self.by_intent.entry(intent.to_owned()).or_default();
        let same =
            |at: &&usize| self.kinds.get(**at).is_some_and(|kind| kind.condition.as_ref() == condition);
        if let Some(known) = line.iter().find(same) {
            return *known;
        }
        line.push(self.kinds.len());
        self.kinds.push(Kind { intent: intent.to_owned(), condition: condition.cloned() });
        self.kinds.len() - 1
    }

    /// The kinds that an observation is of.
    pub(crate) fn accepting<'a>(&'a self, observation: &'a Observation) -> impl Iterator<Item = usize> + 'a {
        let line = self.by_intent.get(&observation.intent).into_iter().flatten();
        line.copied().filter(|at| {
            let condition = self.kinds.get(*at).and_then(|kind| kind.condition.as_ref());
            condition.is_none_or(|condition| condition.holds(observation))
        })
    }

    /// What the step looks for, in the order in which it observes.
    pub(crate) fn of_step(&self, rule: usize, step: usize) -> &[usize] {
        self.steps.get(rule).and_then(|steps| steps.get(step)).map_or(&[], Vec::as_slice)
    }

    /// The kind of an intent that the engine needs by itself.
    pub(crate) fn own(&self, intent: &str) -> Option<usize> {
        self.own.get(intent).copied()
    }

    /// What happened, of a kind.
    pub(crate) fn intent(&self, kind: usize) -> &str {
        self.kinds.get(kind).map_or("", |kind| &kind.intent)
    }
}

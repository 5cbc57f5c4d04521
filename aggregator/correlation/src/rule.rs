//! Compiled rules: what the compiler makes of rule files, what the engine runs, and the bytes that agents receive.
//!
//! A rule set travels as an rkyv archive behind a small header. Reading it checks the structure (rkyv) and the
//! meaning (conditions, references between steps); nothing here parses text.

mod archive;
mod kinds;
mod set;

pub use archive::{RULE_FORMAT, RuleSetError};
pub(crate) use kinds::Kinds;
use rkyv::{Archive, Deserialize, Serialize};
pub use set::{FieldColumn, RuleSet};
use tapio_schemas::{intent::Severity, units::Micros, verdict::Role};

use crate::{condition::Condition, template::Template};

/// Where all evidence of a rule can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Archive, Serialize, Deserialize)]
pub enum Scope {
    /// In one process.
    Process,
    /// On one node.
    Node,
    /// In one cluster.
    Cluster,
}

/// What a complete verdict of a rule becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Announce {
    /// A finding.
    Finding,
    /// A hypothesis: visible on request, food for other rules and tiers.
    Hypothesis,
}

/// Whether a step must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Presence {
    /// Without it there is no finding.
    Required,
    /// It is looked for and counted; a verdict says when it is missing.
    Expected,
    /// Its presence speaks against the verdict.
    Contradicts,
}

/// Who a step's evidence is about: what it is grouped by and named after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum About {
    /// The container, or what is known where there is none: the process, the node.
    #[default]
    Container,
    /// The pod that the container runs in, or the container where no pod is known: one that is restarted is another
    /// container of the same pod.
    Pod,
}

/// Which of a step's occurrences its line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Tell {
    /// The first.
    First,
    /// The one that reaches furthest.
    Latest,
}

/// On which side of the other step's evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Side {
    /// It begins at or before the other's first occurrence.
    Before,
    /// It ends at or after the other's first occurrence.
    After,
}

/// A bound on a step's time.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct TimeBound {
    /// The other step's place in the rule.
    pub step: u32,
    /// On which side.
    pub side: Side,
    /// How far away at most, in microseconds.
    pub within_micros: u64,
}

/// How a step's entity, process or trace is related to another step's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum LinkTo {
    /// About the same container (or the same entity, where none is known).
    SameContainer,
    /// About a container of the same pod (or the same entity, where no pod is known).
    SamePod,
    /// About the same process.
    SameProcess,
    /// A call to an endpoint that the other's entity, or a container of that pod, listened on at that time.
    CallerOf,
    /// About an entity that calls the other's entity, directly or through others that are affected too.
    TransitivelyCalls,
    /// Of a trace that the other's evidence belongs to.
    SameTrace,
    /// Listens where the other's evidence wanted to and could not, as its node saw: at the same port of one network
    /// namespace, by the same address or by one of which either stands for all.
    KeepsOut,
}

impl LinkTo {
    /// Whether it depends on who listens and who calls.
    pub(crate) const fn is_by_calls(self) -> bool {
        matches!(self, Self::CallerOf | Self::TransitivelyCalls)
    }
}

/// A required relation to another step.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct StepLink {
    /// The other step's place in the rule.
    pub step: u32,
    /// How it must be related.
    pub to: LinkTo,
}

/// One step of a rule's chain.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Step {
    /// Its name within the rule.
    pub id: String,
    /// The code of its [`Role`].
    pub role_code: u8,
    /// The intents that it observes, in the order in which they are told.
    pub observe: Vec<String>,
    /// The word for each intent, in the order of `observe`; empty for one that is not told.
    pub words: Vec<String>,
    /// Who its evidence is about.
    pub about: About,
    /// Which of its occurrences is told.
    pub tell: Tell,
    /// What must hold of an observation.
    pub condition: Option<Condition>,
    /// How often it must have happened to one entity; once where nothing is said.
    pub at_least: u32,
    /// Whether it must be there.
    pub presence: Presence,
    /// When it must be, relative to other steps.
    pub bounds: Vec<TimeBound>,
    /// How it must be related to other steps.
    pub links: Vec<StepLink>,
    /// The probes that could see it.
    pub probes: Vec<String>,
    /// The step whose evidence stands in, where nobody further up the call chain serves anything.
    pub otherwise: Option<u32>,
    /// Its sentence. Empty where it is told with another step.
    pub line: Template,
    /// How it is known, for a person; empty for the probes' names.
    pub basis: Template,
    /// The step with whose sentence its basis is told.
    pub told_with: Option<u32>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Rule {
    /// Its name: the pattern of its verdicts.
    pub id: String,
    /// One sentence for a tired person.
    pub title: Template,
    /// What to do.
    pub recommended_action: Template,
    /// The code of the [`Severity`] of its verdicts.
    pub severity_code: u8,
    /// Where all its evidence can meet.
    pub scope: Scope,
    /// What a complete verdict becomes.
    pub announce: Announce,
    /// The chain.
    pub steps: Vec<Step>,
    /// The place of the fault that everything else is held against.
    pub anchor: u32,
    /// The places of the other steps, in an order in which each comes after those that it refers to.
    pub order: Vec<u32>,
}

impl Step {
    /// Its place in the chain.
    #[must_use]
    pub fn role(&self) -> Role {
        Role::from_code(self.role_code)
    }

    /// Whether its time is that of its end: what follows a fault is dated by when it failed, not when it began.
    #[must_use]
    pub fn is_dated_by_end(&self) -> bool {
        self.bounds.iter().any(|bound| bound.side == Side::After)
    }

    /// Whether it depends on which containers are of which pod.
    pub(crate) fn looks_at_pods(&self) -> bool {
        self.about == About::Pod || self.links.iter().any(|link| link.to == LinkTo::SamePod)
    }

    /// The length of its bounds on one side, the longest.
    pub(crate) fn within(&self, side: Side) -> Micros {
        let of = self.bounds.iter().filter(|bound| bound.side == side).map(|bound| bound.within_micros);
        Micros(of.max().unwrap_or(0))
    }
}

impl Rule {
    /// How bad its verdicts are.
    #[must_use]
    pub fn severity(&self) -> Severity {
        Severity::from_code(self.severity_code)
    }

    /// The step at a place.
    #[must_use]
    pub fn step(&self, place: u32) -> Option<&Step> {
        usize::try_from(place).ok().and_then(|place| self.steps.get(place))
    }

    /// The fault that everything else is held against.
    #[must_use]
    pub fn anchor_step(&self) -> Option<&Step> {
        self.step(self.anchor)
    }

    /// The longest time before the fault that any of its steps looks at.
    #[must_use]
    pub fn reach_before(&self) -> Micros {
        self.reach(Side::Before)
    }

    /// The longest time after the fault that any of its steps looks at.
    #[must_use]
    pub fn reach_after(&self) -> Micros {
        self.reach(Side::After)
    }

    /// Occurrences of the fault at one entity that follow each other within this are one fault.
    #[must_use]
    pub fn merged_within(&self) -> Micros {
        let longest = self.steps.iter().map(|step| step.within(Side::After)).max().unwrap_or_default();
        longest.max(Micros::from_secs(1))
    }

    /// How far from the fault the steps may lie on one side, over the steps that they refer to.
    fn reach(&self, side: Side) -> Micros {
        let mut reaches: Vec<(u32, u64)> = vec![(self.anchor, 0)];
        for place in &self.order {
            let bounds = self.step(*place).map(|step| step.bounds.as_slice()).unwrap_or_default();
            let of = bounds.iter().map(|bound| {
                let other = reaches.iter().find(|(known, _reach)| *known == bound.step);
                let within = if bound.side == side { bound.within_micros } else { 0 };
                other.map_or(0, |(_known, reach)| *reach).saturating_add(within)
            });
            let reach = of.max().unwrap_or(0);
            reaches.push((*place, reach));
        }
        Micros(reaches.into_iter().map(|(_place, reach)| reach).max().unwrap_or(0))
    }
}

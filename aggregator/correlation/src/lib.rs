//! The correlation engine: observations in, verdicts out. Sans-IO and deterministic.
//!
//! State is a set of inputs keyed by event id; verdicts are a pure function of that set, the watermark and the rule
//! set ([`engine`]). Rules arrive compiled ([`rule`]): there is no YAML, no CEL and no other parser of rules here, so
//! that the edge can run node-scope rules with the same code. [`observe`] makes inputs of a batch's rows,
//! [`announce`] makes findings of verdicts, and [`analysis`] is both together over time. The crate never reads a clock, does no I/O and knows no failure class by
//! name: what an out-of-memory kill looks like stands in a rule file.

pub mod analysis;
pub mod announce;
pub mod condition;
pub mod engine;
pub mod observe;
pub mod rule;
pub mod template;

pub use analysis::{Analysis, AnalysisLimits};
pub use announce::{Announcer, Names, Pods};
pub use engine::{Engine, EngineStats, Limits};
pub use observe::{SourceContext, observe_batch};
pub use rule::{Rule, RuleSet, RuleSetError};

//! The rule set in force: the built-in rules and the user's, compiled once at the start, and what of it agents run.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use tapio_compiler::Faults;
use tapio_correlation::{Engine, Limits, RuleSet, RuleSetError};
use tapio_schemas::ids::RuleSetVersion;
use tapio_wire::message;
use thiserror::Error;

/// Why there is no rule set.
#[derive(Debug, Error)]
pub enum RulesError {
    /// Rules are wrong; all faults are listed.
    #[error("rules are wrong:\n{0}")]
    Compile(#[from] Faults),
    /// The part for agents cannot be made.
    #[error("the rules for agents cannot be made")]
    NodeScope(#[from] RuleSetError),
}

/// The rules in force.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    engine: Arc<RuleSet>,
    node: Bytes,
    node_version: RuleSetVersion,
}

impl Rules {
    /// Compiles the built-in rules and those in `directory`.
    ///
    /// # Errors
    /// With every fault, each with its file and place.
    pub(crate) fn compile(directory: Option<&Path>) -> Result<Self, RulesError> {
        let set = compile(directory)?;
        let node = set.node_scope()?;
        Ok(Self {
            node: Bytes::copy_from_slice(node.as_bytes()),
            node_version: node.version(),
            engine: Arc::new(set),
        })
    }

    /// The whole set, for the engine.
    pub(crate) const fn engine(&self) -> &Arc<RuleSet> {
        &self.engine
    }

    /// The version of the whole set.
    pub(crate) fn version(&self) -> RuleSetVersion {
        self.engine.version()
    }

    /// What is pushed to an agent: the rules whose evidence meets on one node.
    pub(crate) fn message(&self) -> message::RuleSet {
        message::RuleSet { version: self.node_version, generation: GENERATION, bytes: self.node.clone() }
    }

    /// How far back the engine's state reaches: the spool is kept for as long.
    pub(crate) fn horizon(&self) -> Duration {
        Duration::from_micros(Engine::new(Arc::clone(&self.engine), Limits::default()).horizon().0)
    }
}

/// The generation of the configuration that brings the rules: they are compiled once, at the start.
const GENERATION: u64 = 1;

fn compile(directory: Option<&Path>) -> Result<RuleSet, Faults> {
    match directory {
        Some(directory) => tapio_compiler::compile_builtin_and_dir(directory),
        None => tapio_compiler::compile_builtin(),
    }
}

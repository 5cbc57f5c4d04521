//! A rule set: rules, their bytes, their version, and what they need to be told.

use std::collections::BTreeSet;

use tapio_schemas::{
    field::{CellType, FIELDS, Layer},
    ids::RuleSetVersion,
    intent,
};

use crate::condition::{FieldType, is_address, layer_name, spec_field_type};

use super::{Kinds, Rule, RuleSetError, Scope, archive};

/// Rules that were compiled and checked together.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleSet {
    rules: Vec<Rule>,
    bytes: Vec<u8>,
    version: RuleSetVersion,
    intents: BTreeSet<String>,
    fields: BTreeSet<String>,
    columns: Vec<FieldColumn>,
    kinds: Kinds,
}

/// A field that the rules read, with its column in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldColumn {
    /// Its name: `layer.field`.
    pub name: String,
    /// The column's id.
    pub id: u16,
    /// The column's layer.
    pub layer: Layer,
    /// The type of its values.
    pub of: FieldType,
    /// Whether its cells are signed.
    pub is_signed: bool,
    /// Whether its cells are addresses.
    pub is_address: bool,
}

/// Intents that the engine itself needs, whatever the rules: changes before a fault, and since when a node is seen.
const OWN_INTENTS: [&str; 3] = [intent::PROCESS_EXECUTED, intent::CONTAINER_SEEN, intent::AGENT_STARTED];

/// Fields that the engine itself needs to tell what changed.
const OWN_FIELDS: [&str; 1] = ["kernel.command"];

impl RuleSet {
    /// The set of these rules, ordered by id.
    ///
    /// # Errors
    ///
    /// When a rule refers to what it does not have, or two have the same id.
    pub fn new(mut rules: Vec<Rule>) -> Result<Self, RuleSetError> {
        rules.sort_by(|a, b| a.id.cmp(&b.id));
        archive::check(&rules)?;
        let bytes = archive::to_bytes(&rules)?;
        Ok(Self::assemble(rules, bytes))
    }

    /// The set that these bytes hold.
    ///
    /// # Errors
    ///
    /// When the bytes are no rule set of a format that this version reads, or are damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RuleSetError> {
        let rules = archive::from_bytes(bytes)?;
        Ok(Self::assemble(rules, bytes.to_vec()))
    }

    fn assemble(rules: Vec<Rule>, bytes: Vec<u8>) -> Self {
        let steps = || rules.iter().flat_map(|rule| &rule.steps);
        let mut intents: BTreeSet<String> = steps().flat_map(|step| step.observe.iter().cloned()).collect();
        let mut fields: BTreeSet<String> = BTreeSet::new();
        for step in steps() {
            fields.extend(step.condition.iter().flat_map(|it| it.fields()).map(str::to_owned));
        }
        for rule in &rules {
            let templates = [&rule.title, &rule.recommended_action].into_iter();
            let lines = rule.steps.iter().flat_map(|step| [&step.line, &step.basis]);
            fields.extend(templates.chain(lines).flat_map(|it| it.fields()).map(str::to_owned));
        }
        if !rules.is_empty() {
            intents.extend(OWN_INTENTS.map(str::to_owned));
            fields.extend(OWN_FIELDS.map(str::to_owned));
        }
        let columns = fields.iter().filter_map(|name| column_of(name)).collect();
        let version = archive::version_of(&bytes);
        let own = OWN_INTENTS.iter().copied().filter(|_intent| !rules.is_empty());
        let kinds = Kinds::of(&rules, own);
        Self { rules, bytes, version, intents, fields, columns, kinds }
    }

    /// The rules, ordered by id.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The rule of this id.
    #[must_use]
    pub fn rule(&self, id: &str) -> Option<&Rule> {
        self.place(id).and_then(|at| self.rules.get(at))
    }

    /// The place of the rule of this id.
    pub(crate) fn place(&self, id: &str) -> Option<usize> {
        self.rules.binary_search_by(|rule| rule.id.as_str().cmp(id)).ok()
    }

    /// What its steps look for.
    pub(crate) const fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// The bytes that [`RuleSet::from_bytes`] reads: what agents receive.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The version: the first 8 bytes of the SHA-256 of the bytes.
    #[must_use]
    pub const fn version(&self) -> RuleSetVersion {
        self.version
    }

    /// Whether a rule, or the engine itself, needs events of this intent.
    #[must_use]
    pub fn needs(&self, intent: &str) -> bool {
        self.intents.contains(intent)
    }

    /// The intents that the set needs.
    pub fn intents(&self) -> impl Iterator<Item = &str> {
        self.intents.iter().map(String::as_str)
    }

    /// The fields that the set reads, by the names of the field table.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.fields.iter().map(String::as_str)
    }

    /// The columns of the fields that the set reads beyond the core.
    #[must_use]
    pub fn columns(&self) -> &[FieldColumn] {
        &self.columns
    }

    /// The rules whose evidence meets on one node: what agents run. The set has a version of its own.
    ///
    /// # Errors
    ///
    /// None in practice: a subset of checked rules is checked.
    pub fn node_scope(&self) -> Result<Self, RuleSetError> {
        Self::new(self.rules.iter().filter(|rule| rule.scope <= Scope::Node).cloned().collect())
    }
}

fn column_of(name: &str) -> Option<FieldColumn> {
    let (layer, field) = name.split_once('.')?;
    let spec = FIELDS.iter().find(|spec| spec.name == field && layer_name(spec.layer) == layer)?;
    Some(FieldColumn {
        name: name.to_owned(),
        id: spec.id,
        layer: spec.layer,
        of: spec_field_type(spec)?,
        is_signed: spec.cell == CellType::Signed,
        is_address: is_address(spec),
    })
}

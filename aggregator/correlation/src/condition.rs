//! Conditions over one observation: a flat, typed program that a stack machine evaluates without any parser.
//!
//! The compiler translates CEL into it; the edge and the aggregator only run it. A program is checked once, when it
//! is made or read ([`Condition::new`]): operands have the right types, and exactly one truth value remains. After
//! that evaluation cannot fail, except by arithmetic (overflow, division by zero), which makes a condition false.

use rkyv::{Archive, Deserialize, Serialize};
use tapio_schemas::{
    field::{CellType, FIELDS, FieldSpec, Layer},
    observation::{Observation, Value},
};
use thiserror::Error;

/// The most operations that a condition may have.
pub const OPERATIONS_MAX: usize = 256;

/// The type of a field or of an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum FieldType {
    /// A truth value.
    Bool,
    /// A signed 64-bit integer.
    Integer,
    /// A double.
    Float,
    /// A text.
    Text,
}

/// One step of the stack machine.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub enum Operation {
    /// Pushes a truth value.
    Bool(bool),
    /// Pushes a whole number.
    Integer(i64),
    /// Pushes a double.
    Float(f64),
    /// Pushes a text.
    Text(String),
    /// Pushes a field of the observation; an absent field is its type's default.
    Field(String, FieldType),
    /// Pushes whether the observation has the field.
    Has(String),
    /// Turns the truth value around.
    Not,
    /// Turns the number's sign around.
    Negate,
    /// Both.
    And,
    /// At least one.
    Or,
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// Less.
    Less,
    /// Less or equal.
    LessOrEqual,
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterOrEqual,
    /// The sum.
    Add,
    /// The difference.
    Subtract,
    /// The product.
    Multiply,
    /// The quotient.
    Divide,
    /// The remainder.
    Remainder,
    /// Whether the operand below is equal to one of the so many operands above it.
    In(u16),
    /// Whether a text begins with the other.
    StartsWith,
    /// Whether a text ends with the other.
    EndsWith,
    /// Whether a text contains the other.
    Contains,
}

/// A checked program that yields one truth value.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Condition {
    operations: Vec<Operation>,
}

/// Why a program is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConditionError {
    /// An operation has no or the wrong operands.
    #[error("operation {at} has operands of the wrong number or type")]
    Operands {
        /// The operation's place in the program.
        at: usize,
    },
    /// The program does not end with one truth value.
    #[error("the condition does not yield one truth value")]
    Result,
    /// The program is longer than [`OPERATIONS_MAX`].
    #[error("the condition has {count} operations, more than {OPERATIONS_MAX}")]
    TooLong {
        /// How many it has.
        count: usize,
    },
    /// A field that the table does not have, or has with another type.
    #[error("no field {name:?} of this type")]
    Field {
        /// The field's name.
        name: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operand<'a> {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(&'a str),
    Undefined,
}

impl Condition {
    /// The program, once it is checked.
    ///
    /// # Errors
    ///
    /// When the program is too long, names an unknown field, or its operands do not fit.
    pub fn new(operations: Vec<Operation>) -> Result<Self, ConditionError> {
        let condition = Self { operations };
        condition.check()?;
        Ok(condition)
    }

    /// Checks the program again; for programs read from bytes.
    ///
    /// # Errors
    ///
    /// As [`Condition::new`].
    pub fn check(&self) -> Result<(), ConditionError> {
        if self.operations.len() > OPERATIONS_MAX {
            return Err(ConditionError::TooLong { count: self.operations.len() });
        }
        let mut stack: Vec<FieldType> = Vec::new();
        for (at, operation) in self.operations.iter().enumerate() {
            let pushed = check_one(operation, &mut stack)?.ok_or(ConditionError::Operands { at })?;
            stack.push(pushed);
        }
        if stack == [FieldType::Bool] { Ok(()) } else { Err(ConditionError::Result) }
    }

    /// The fields that it reads.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.operations.iter().filter_map(|operation| match operation {
            Operation::Field(name, _) | Operation::Has(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// Whether it holds for `observation`.
    #[must_use]
    pub fn holds(&self, observation: &Observation) -> bool {
        self.run(|name, of| read(observation, name, of), |name| has(observation, name)) == Operand::Bool(true)
    }

    /// What it says of every observation of this intent, if it says the same of all.
    pub(crate) fn decided_by_intent(&self, intent: &str) -> Option<bool> {
        let known =
            |name: &str, _of| if name == "intent" { Operand::Text(intent) } else { Operand::Undefined };
        match self.run(known, |_name| Operand::Undefined) {
            Operand::Bool(value) => Some(value),
            _ => None,
        }
    }

    fn run<'a>(
        &'a self,
        read: impl Fn(&'a str, FieldType) -> Operand<'a>,
        has: impl Fn(&'a str) -> Operand<'a>,
    ) -> Operand<'a> {
        let mut stack: Vec<Operand<'_>> = Vec::with_capacity(8);
        for operation in &self.operations {
            let result = match operation {
                Operation::Field(name, of) => read(name, *of),
                Operation::Has(name) => has(name),
                _ => run_one(operation, &mut stack),
            };
            stack.push(result);
        }
        stack.pop().unwrap_or(Operand::Undefined)
    }
}

/// The type of a field that conditions and templates may name, by the names of the field table: `layer.field`, and
/// core fields plain. An address is its text; trace ids have no type that could be compared.
#[must_use]
pub fn field_type(name: &str) -> Option<FieldType> {
    if matches!(name, "intent" | "probe") {
        return Some(FieldType::Text);
    }
    if matches!(name, "count" | "duration_micros" | "severity") {
        return Some(FieldType::Integer);
    }
    let (layer, field) = name.split_once('.')?;
    let spec = FIELDS.iter().find(|spec| spec.name == field && layer_name(spec.layer) == layer)?;
    spec_field_type(spec)
}

/// All names that [`field_type`] knows.
pub fn field_names() -> impl Iterator<Item = String> {
    let core = ["count", "duration_micros", "severity", "intent", "probe"].map(str::to_owned);
    let others = FIELDS
        .iter()
        .filter(|spec| spec.layer != Layer::Core && spec_field_type(spec).is_some())
        .map(|spec| format!("{}.{}", layer_name(spec.layer), spec.name));
    core.into_iter().chain(others)
}

/// The name of a layer in the names of fields; empty for core fields, whose names stand plain.
#[must_use]
pub const fn layer_name(layer: Layer) -> &'static str {
    match layer {
        Layer::Core => "",
        Layer::Trace => "trace",
        Layer::Entity => "entity",
        Layer::Kernel => "kernel",
        Layer::Network => "network",
        Layer::Application => "application",
        Layer::Kubernetes => "kubernetes",
        Layer::Metric => "metric",
        Layer::Impact => "impact",
        Layer::Correlation => "correlation",
        Layer::Raw => "raw",
    }
}

/// The type of a field's values in conditions.
pub(crate) fn spec_field_type(spec: &FieldSpec) -> Option<FieldType> {
    match spec.cell {
        CellType::Unsigned | CellType::Signed => Some(FieldType::Integer),
        CellType::Float => Some(FieldType::Float),
        CellType::Symbol => Some(FieldType::Text),
        CellType::Sixteen => is_address(spec).then_some(FieldType::Text),
    }
}

/// Whether a field's cells are addresses: as the table says it.
pub(crate) fn is_address(spec: &FieldSpec) -> bool {
    spec.clickhouse == "IPv6"
}

const fn is_number(of: FieldType) -> bool {
    matches!(of, FieldType::Integer | FieldType::Float)
}

fn comparable(a: FieldType, b: FieldType) -> bool {
    a == b || (is_number(a) && is_number(b))
}

/// What an operation pushes, once its operands are popped; `None` when they do not fit.
fn check_one(operation: &Operation, stack: &mut Vec<FieldType>) -> Result<Option<FieldType>, ConditionError> {
    use FieldType::{Bool, Float, Integer, Text};
    let pushed = match operation {
        Operation::Bool(_) => Some(Bool),
        Operation::Integer(_) => Some(Integer),
        Operation::Float(_) => Some(Float),
        Operation::Text(_) => Some(Text),
        Operation::Field(name, of) => {
            if field_type(name) != Some(*of) {
                return Err(ConditionError::Field { name: name.clone() });
            }
            Some(*of)
        }
        Operation::Has(name) => {
            if field_type(name).is_none() {
                return Err(ConditionError::Field { name: name.clone() });
            }
            Some(Bool)
        }
        Operation::Not => stack.pop().filter(|of| *of == Bool),
        Operation::Negate => stack.pop().filter(|of| is_number(*of)),
        Operation::In(count) => {
            let start = stack.len().saturating_sub(usize::from(*count));
            let alternatives = stack.split_off(start);
            let complete = alternatives.len() == usize::from(*count);
            stack
                .pop()
                .filter(|needle| complete && alternatives.iter().all(|one| comparable(*one, *needle)))
                .map(|_needle| Bool)
        }
        _ => {
            let (right, left) = (stack.pop(), stack.pop());
            left.zip(right).and_then(|(left, right)| binary_type(operation, left, right))
        }
    };
    Ok(pushed)
}

fn binary_type(operation: &Operation, left: FieldType, right: FieldType) -> Option<FieldType> {
    use FieldType::{Bool, Text};
    let fits = match operation {
        Operation::And | Operation::Or => left == Bool && right == Bool,
        Operation::Equal | Operation::NotEqual => comparable(left, right),
        Operation::Less | Operation::LessOrEqual | Operation::Greater | Operation::GreaterOrEqual => {
            comparable(left, right) && left != Bool
        }
        Operation::StartsWith | Operation::EndsWith | Operation::Contains => left == Text && right == Text,
        _ => return (is_number(left) && left == right).then_some(left),
    };
    fits.then_some(Bool)
}

fn run_one<'a>(operation: &'a Operation, stack: &mut Vec<Operand<'a>>) -> Operand<'a> {
    match operation {
        Operation::Bool(value) => Operand::Bool(*value),
        Operation::Integer(value) => Operand::Integer(*value),
        Operation::Float(value) => Operand::Float(*value),
        Operation::Text(text) => Operand::Text(text),
        Operation::Not => match stack.pop() {
            Some(Operand::Bool(value)) => Operand::Bool(!value),
            _ => Operand::Undefined,
        },
        Operation::Negate => match stack.pop() {
            Some(Operand::Integer(value)) => value.checked_neg().map_or(Operand::Undefined, Operand::Integer),
            Some(Operand::Float(value)) => Operand::Float(-value),
            _ => Operand::Undefined,
        },
        Operation::In(count) => {
            let alternatives = stack.split_off(stack.len().saturating_sub(usize::from(*count)));
            let needle = stack.pop().unwrap_or(Operand::Undefined);
            let is_one = |one: &Operand<'_>| compare(needle, *one).is_some_and(std::cmp::Ordering::is_eq);
            let is_open = needle == Operand::Undefined || alternatives.contains(&Operand::Undefined);
            if alternatives.iter().any(is_one) {
                Operand::Bool(true)
            } else if is_open {
                Operand::Undefined
            } else {
                Operand::Bool(false)
            }
        }
        _ => {
            let right = stack.pop().unwrap_or(Operand::Undefined);
            let left = stack.pop().unwrap_or(Operand::Undefined);
            binary(operation, left, right)
        }
    }
}

fn has<'a>(observation: &Observation, name: &str) -> Operand<'a> {
    let is_core = matches!(name, "count" | "duration_micros" | "severity" | "intent" | "probe");
    Operand::Bool(is_core || observation.attributes.contains_key(name))
}

fn read<'a>(observation: &'a Observation, name: &str, of: FieldType) -> Operand<'a> {
    let integer = |value: u64| Operand::Integer(i64::try_from(value).unwrap_or(i64::MAX));
    match name {
        "count" => return integer(observation.count),
        "duration_micros" => return integer(observation.duration.0),
        "severity" => return Operand::Integer(i64::from(observation.severity.code())),
        "intent" => return Operand::Text(&observation.intent),
        "probe" => return Operand::Text(&observation.probe),
        _ => {}
    }
    match (observation.attributes.get(name), of) {
        (Some(Value::Bool(value)), FieldType::Bool) => Operand::Bool(*value),
        (Some(Value::Integer(value)), FieldType::Integer) => Operand::Integer(*value),
        (Some(Value::Float(value)), FieldType::Float) => Operand::Float(*value),
        (Some(Value::Text(text)), FieldType::Text) => Operand::Text(text),
        (_, FieldType::Bool) => Operand::Bool(false),
        (_, FieldType::Integer) => Operand::Integer(0),
        (_, FieldType::Float) => Operand::Float(0.0),
        (_, FieldType::Text) => Operand::Text(""),
    }
}

#[expect(clippy::cast_precision_loss, reason = "CEL compares integers with doubles as doubles")]
fn compare(left: Operand<'_>, right: Operand<'_>) -> Option<std::cmp::Ordering> {
    match (left, right) {
        (Operand::Bool(a), Operand::Bool(b)) => Some(a.cmp(&b)),
        (Operand::Integer(a), Operand::Integer(b)) => Some(a.cmp(&b)),
        (Operand::Float(a), Operand::Float(b)) => a.partial_cmp(&b),
        (Operand::Integer(a), Operand::Float(b)) => (a as f64).partial_cmp(&b),
        (Operand::Float(a), Operand::Integer(b)) => a.partial_cmp(&(b as f64)),
        (Operand::Text(a), Operand::Text(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

fn binary<'a>(operation: &Operation, left: Operand<'a>, right: Operand<'a>) -> Operand<'a> {
    let by_order = |test: fn(std::cmp::Ordering) -> bool| {
        compare(left, right).map_or(Operand::Undefined, |order| Operand::Bool(test(order)))
    };
    match (operation, left, right) {
        // As in CEL, one side that decides absorbs an undefined other side.
        (Operation::And, Operand::Bool(false), _) | (Operation::And, _, Operand::Bool(false)) => {
            Operand::Bool(false)
        }
        (Operation::Or, Operand::Bool(true), _) | (Operation::Or, _, Operand::Bool(true)) => {
            Operand::Bool(true)
        }
        (Operation::And, Operand::Bool(true), Operand::Bool(true)) => Operand::Bool(true),
        (Operation::Or, Operand::Bool(false), Operand::Bool(false)) => Operand::Bool(false),
        (Operation::Equal, ..) => by_order(std::cmp::Ordering::is_eq),
        (Operation::NotEqual, ..) => by_order(std::cmp::Ordering::is_ne),
        (Operation::Less, ..) => by_order(std::cmp::Ordering::is_lt),
        (Operation::LessOrEqual, ..) => by_order(std::cmp::Ordering::is_le),
        (Operation::Greater, ..) => by_order(std::cmp::Ordering::is_gt),
        (Operation::GreaterOrEqual, ..) => by_order(std::cmp::Ordering::is_ge),
        (Operation::StartsWith, Operand::Text(a), Operand::Text(b)) => Operand::Bool(a.starts_with(b)),
        (Operation::EndsWith, Operand::Text(a), Operand::Text(b)) => Operand::Bool(a.ends_with(b)),
        (Operation::Contains, Operand::Text(a), Operand::Text(b)) => Operand::Bool(a.contains(b)),
        (_, Operand::Integer(a), Operand::Integer(b)) => {
            let result = match operation {
                Operation::Add => a.checked_add(b),
                Operation::Subtract => a.checked_sub(b),
                Operation::Multiply => a.checked_mul(b),
                Operation::Divide => a.checked_div(b),
                Operation::Remainder => a.checked_rem(b),
                _ => None,
            };
            result.map_or(Operand::Undefined, Operand::Integer)
        }
        (_, Operand::Float(a), Operand::Float(b)) => match operation {
            Operation::Add => Operand::Float(a + b),
            Operation::Subtract => Operand::Float(a - b),
            Operation::Multiply => Operand::Float(a * b),
            Operation::Divide => Operand::Float(a / b),
            _ => Operand::Undefined,
        },
        _ => Operand::Undefined,
    }
}

//! CEL conditions to the engine's flat programs. The parser is the `cel` crate's; what the engine has no operation
//! for (macros over lists, maps, calls of functions) is refused with its place.

use cel::{
    IdedExpr, Program,
    common::ast::{CallExpr, Expr, LiteralValue, SelectExpr, SourceInfo, operators},
};
use tapio_correlation::condition::{
    Condition, FieldType, OPERATIONS_MAX, Operation, field_names, field_type,
};

use crate::fault::suggestion;

/// The most bytes that a condition may have.
const CONDITION_BYTES_MAX: usize = 4_096;

/// What is wrong, and at which character of the condition (from 0).
pub(crate) type Wrong = (u64, String);

struct Translator<'s> {
    source: &'s SourceInfo,
    operations: Vec<Operation>,
    wrong: Vec<Wrong>,
}

/// Translates a condition; all faults at once.
pub(crate) fn translate(text: &str) -> Result<Condition, Vec<Wrong>> {
    if text.len() > CONDITION_BYTES_MAX {
        return Err(vec![(0, format!("the condition is longer than {CONDITION_BYTES_MAX} bytes"))]);
    }
    let program = Program::compile(text).map_err(|errors| {
        let wrong = |error: &cel::ParseError| {
            let column = u64::try_from(error.pos.1).unwrap_or(0);
            (column.saturating_sub(1), format!("no CEL: {}", error.msg.lines().next().unwrap_or_default()))
        };
        errors.errors.iter().map(wrong).collect::<Vec<_>>()
    })?;
    let mut translator =
        Translator { source: program.source_info(), operations: Vec::new(), wrong: Vec::new() };
    let root = program.expression();
    let of = translator.expression(root);
    if of.is_some_and(|of| of != FieldType::Bool) {
        translator.refuse(root, "a condition must be true or false".to_owned());
    }
    if translator.operations.len() > OPERATIONS_MAX {
        translator.refuse(root, format!("the condition has more than {OPERATIONS_MAX} operations"));
    }
    if !translator.wrong.is_empty() {
        return Err(translator.wrong);
    }
    Condition::new(translator.operations).map_err(|error| vec![(0, error.to_string())])
}

impl Translator<'_> {
    fn refuse(&mut self, at: &IdedExpr, message: String) {
        let start = self.source.offset_for(at.id).map_or(0, |(start, _stop)| u64::from(start));
        self.wrong.push((start, message));
    }

    fn push(&mut self, operation: Operation, of: FieldType) -> Option<FieldType> {
        self.operations.push(operation);
        Some(of)
    }

    /// Emits an expression; its type, or nothing once it was refused.
    fn expression(&mut self, at: &IdedExpr) -> Option<FieldType> {
        match &at.expr {
            Expr::Literal(literal) => self.literal(at, literal),
            Expr::Ident(name) => self.field(at, name),
            Expr::Select(select) => self.select(at, select),
            Expr::Call(call) => self.call(at, call),
            Expr::List(_) => {
                self.refuse(at, "a list stands only on the right of `in`".to_owned());
                None
            }
            Expr::Comprehension(_) => {
                self.refuse(at, "macros over lists are not supported in conditions".to_owned());
                None
            }
            Expr::Map(_) | Expr::Struct(_) | Expr::Unspecified => {
                self.refuse(at, "maps and structs are not supported in conditions".to_owned());
                None
            }
        }
    }

    fn literal(&mut self, at: &IdedExpr, literal: &LiteralValue) -> Option<FieldType> {
        match literal {
            LiteralValue::Boolean(value) => self.push(Operation::Bool(*value.inner()), FieldType::Bool),
            LiteralValue::Int(value) => self.push(Operation::Integer(*value.inner()), FieldType::Integer),
            LiteralValue::UInt(value) => {
                if let Ok(value) = i64::try_from(*value.inner()) {
                    return self.push(Operation::Integer(value), FieldType::Integer);
                }
                self.refuse(at, "the number is too large".to_owned());
                None
            }
            LiteralValue::Double(value) => self.push(Operation::Float(*value.inner()), FieldType::Float),
            LiteralValue::String(text) => {
                self.push(Operation::Text(text.inner().to_owned()), FieldType::Text)
            }
            LiteralValue::Bytes(_) | LiteralValue::Null => {
                self.refuse(at, "bytes and null are not supported in conditions".to_owned());
                None
            }
        }
    }

    fn field(&mut self, at: &IdedExpr, name: &str) -> Option<FieldType> {
        if let Some(of) = field_type(name) {
            return self.push(Operation::Field(name.to_owned(), of), of);
        }
        let names: Vec<String> = field_names().collect();
        let hint = suggestion(name, names.iter().map(String::as_str));
        self.refuse(at, format!("events have no field `{name}` that conditions can read{hint}"));
        None
    }

    fn select(&mut self, at: &IdedExpr, select: &SelectExpr) -> Option<FieldType> {
        let Expr::Ident(layer) = &select.operand.expr else {
            self.refuse(at, "a field is `layer.field`, for example `network.status`".to_owned());
            return None;
        };
        let name = format!("{layer}.{}", select.field);
        if !select.test {
            return self.field(at, &name);
        }
        let before = self.operations.len();
        self.field(at, &name)?;
        self.operations.truncate(before);
        self.push(Operation::Has(name), FieldType::Bool)
    }

    fn call(&mut self, at: &IdedExpr, call: &CallExpr) -> Option<FieldType> {
        let operation = match call.func_name.as_str() {
            operators::LOGICAL_AND => Operation::And,
            operators::LOGICAL_OR => Operation::Or,
            operators::LOGICAL_NOT => Operation::Not,
            operators::NEGATE => Operation::Negate,
            operators::EQUALS => Operation::Equal,
            operators::NOT_EQUALS => Operation::NotEqual,
            operators::LESS => Operation::Less,
            operators::LESS_EQUALS => Operation::LessOrEqual,
            operators::GREATER => Operation::Greater,
            operators::GREATER_EQUALS => Operation::GreaterOrEqual,
            operators::ADD => Operation::Add,
            operators::SUBSTRACT => Operation::Subtract,
            operators::MULTIPLY => Operation::Multiply,
            operators::DIVIDE => Operation::Divide,
            operators::MODULO => Operation::Remainder,
            operators::IN => return self.membership(at, call),
            "startsWith" => Operation::StartsWith,
            "endsWith" => Operation::EndsWith,
            "contains" => Operation::Contains,
            other => {
                let name = other.trim_matches(|letter| letter == '_' || letter == '@');
                self.refuse(at, format!("`{name}` is not supported in conditions"));
                return None;
            }
        };
        let operands: Vec<&IdedExpr> = call.target.as_deref().into_iter().chain(&call.args).collect();
        let types: Vec<Option<FieldType>> = self.operands(&operation, &operands);
        let types: Vec<FieldType> = types.into_iter().collect::<Option<_>>()?;
        let result = result_of(&operation, &types);
        if result.is_none() {
            self.refuse(
                at,
                "the operands do not fit this operator: compare numbers with numbers and texts with \
                             texts, calculate with numbers of one type"
                    .to_owned(),
            );
        }
        result
    }

    /// Emits operands, and the operation after each one that completes its operands.
    fn operands(&mut self, operation: &Operation, operands: &[&IdedExpr]) -> Vec<Option<FieldType>> {
        let is_unary = matches!(operation, Operation::Not | Operation::Negate);
        let mut types = Vec::new();
        for (place, operand) in operands.iter().enumerate() {
            types.push(self.expression(operand));
            if is_unary || place > 0 {
                self.operations.push(operation.clone());
            }
        }
        types
    }

    fn membership(&mut self, at: &IdedExpr, call: &CallExpr) -> Option<FieldType> {
        let [needle, list] = call.args.as_slice() else {
            self.refuse(at, "`in` needs a value and a list".to_owned());
            return None;
        };
        let Expr::List(alternatives) = &list.expr else {
            self.refuse(list, "on the right of `in` stands a list, for example `[502, 503]`".to_owned());
            return None;
        };
        let of = self.expression(needle);
        let mut fits = true;
        for alternative in &alternatives.elements {
            let its = self.expression(alternative)?;
            fits &= of.is_none_or(|of| is_comparable(of, its));
        }
        if !fits {
            self.refuse(list, "the list's values are of another type".to_owned());
            return None;
        }
        let count = u16::try_from(alternatives.elements.len()).unwrap_or(u16::MAX);
        of?;
        self.push(Operation::In(count), FieldType::Bool)
    }
}

const fn is_number(of: FieldType) -> bool {
    matches!(of, FieldType::Integer | FieldType::Float)
}

fn is_comparable(a: FieldType, b: FieldType) -> bool {
    a == b || (is_number(a) && is_number(b))
}

fn result_of(operation: &Operation, types: &[FieldType]) -> Option<FieldType> {
    use FieldType::{Bool, Text};
    let all = |of: FieldType| types.iter().all(|one| *one == of);
    let first = types.first().copied()?;
    let fits = match operation {
        Operation::Not => types.len() == 1 && all(Bool),
        Operation::Negate => return (types.len() == 1 && is_number(first)).then_some(first),
        Operation::And | Operation::Or => types.len() >= 2 && all(Bool),
        Operation::StartsWith | Operation::EndsWith | Operation::Contains => types.len() == 2 && all(Text),
        Operation::Equal | Operation::NotEqual => {
            types.len() == 2 && types.iter().all(|one| is_comparable(first, *one))
        }
        Operation::Less | Operation::LessOrEqual | Operation::Greater | Operation::GreaterOrEqual => {
            types.len() == 2 && first != Bool && types.iter().all(|one| is_comparable(first, *one))
        }
        _ => return (types.len() == 2 && is_number(first) && all(first)).then_some(first),
    };
    fits.then_some(Bool)
}

//! Messages and enumerations hold to the language's tables.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "this whole file is tests: a helper that fails is a test that fails"
)]

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};
use tapio_proto::DESCRIPTOR_SET;
use tapio_schemas::{
    entity::EntityKind,
    field::{CellType, FIELDS, FieldSpec, Layer},
    finding::{FindingState, Resolution},
    intent::{EventKind, LinkKind, Severity},
    ledger::{Fate, Stage},
    verdict::{Outcome, Role, Stance},
};

fn files() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTOR_SET).unwrap()
}

fn message(name: &str) -> DescriptorProto {
    let files = files();
    let mut messages = files.file.into_iter().flat_map(|file| file.message_type);
    messages.find(|message| message.name() == name).unwrap()
}

/// The types of a message's field that can hold a field of the table.
fn fitting(spec: &FieldSpec) -> &'static [Type] {
    match (spec.cell, spec.clickhouse) {
        // What the language joins into one text comes apart.
        (CellType::Symbol, _) if ["attributes", "parameters"].contains(&spec.name) => &[Type::Message],
        (CellType::Symbol | CellType::Sixteen, _) => &[Type::String],
        (CellType::Float, _) => &[Type::Double],
        (CellType::Signed, _) => &[Type::Sint64],
        (CellType::Unsigned, "UInt8") => &[Type::Uint32, Type::Bool, Type::Enum],
        (CellType::Unsigned, "UInt16" | "UInt32") => &[Type::Uint32],
        // A span's id is a text in every API.
        (CellType::Unsigned, _) => &[Type::Uint64, Type::String],
    }
}

/// Scenario: somebody adds a field to the table of fields, or to a message.
/// Guarantees: each field of the table is in the message of its layer under its id and name, with a type that holds it,
/// and the messages have no other fields below 256.
#[test]
fn events_hold_to_the_table_of_fields() {
    let event = message("Event");
    let layer_of = |layer: Layer| {
        if layer == Layer::Core {
            return event.clone();
        }
        let name = format!("{layer:?}");
        event.nested_type.iter().find(|nested| nested.name() == name).unwrap().clone()
    };
    for spec in FIELDS {
        let layer = layer_of(spec.layer);
        let found = layer.field.iter().find(|field| field.name() == spec.name);
        let field = found.unwrap_or_else(|| panic!("{} has no field {}", layer.name(), spec.name));
        assert_eq!(field.number(), i32::from(spec.id), "{}.{}", layer.name(), spec.name);
        assert!(fitting(spec).contains(&field.r#type()), "{}.{}", layer.name(), spec.name);
    }
    let known = |layer: Layer| FIELDS.iter().filter(move |spec| spec.layer == layer).count();
    for layer in Layer::ALL.into_iter().filter(|layer| *layer != Layer::Core) {
        assert_eq!(layer_of(layer).field.len(), known(layer), "{layer:?}");
    }
    // Id, cluster, node, and one field for each layer but core.
    assert_eq!(event.field.len(), known(Layer::Core) + 3 + Layer::ALL.len() - 1);
}

/// Scenario: somebody adds a value to an enumeration of the language, or renames one.
/// Guarantees: the message's enumeration has the same values under the same codes and names; where the language's zero
/// means something, zero is "unspecified" and each code is one more.
#[test]
fn enumerations_hold_to_the_language() {
    fn names<T: Copy>(all: &[T], code: fn(T) -> u8, name: fn(T) -> &'static str) -> Vec<(i32, &'static str)> {
        all.iter().map(|value| (i32::from(code(*value)), name(*value))).collect()
    }
    let files = files();
    let all: Vec<EnumDescriptorProto> = files.file.into_iter().flat_map(|file| file.enum_type).collect();
    let language = [
        ("Severity", names(Severity::ALL, Severity::code, Severity::as_str)),
        ("EventKind", names(EventKind::ALL, EventKind::code, EventKind::as_str)),
        ("LinkKind", names(LinkKind::ALL, LinkKind::code, LinkKind::as_str)),
        ("EntityKind", names(EntityKind::ALL, EntityKind::code, EntityKind::as_str)),
        ("FindingState", names(FindingState::ALL, FindingState::code, FindingState::as_str)),
        ("Resolution", names(Resolution::ALL, Resolution::code, Resolution::as_str)),
        ("Role", names(Role::ALL, Role::code, Role::as_str)),
        ("Stance", names(Stance::ALL, Stance::code, Stance::as_str)),
        ("Outcome", names(Outcome::ALL, Outcome::code, Outcome::as_str)),
        ("Stage", names(Stage::ALL, Stage::code, Stage::as_str)),
        ("Fate", names(Fate::ALL, Fate::code, Fate::as_str)),
    ];
    assert_eq!(all.len(), language.len(), "an enumeration is compared with nothing");
    for (name, values) in language {
        let found = all.iter().find(|one| one.name() == name).unwrap();
        let prefix: String = name
            .char_indices()
            .flat_map(|(at, letter)| {
                let apart = (at > 0 && letter.is_uppercase()).then_some('_');
                apart.into_iter().chain(letter.to_uppercase())
            })
            .collect();
        let told: Vec<_> =
            found.value.iter().map(|value| (value.number(), value.name().to_owned())).collect();
        let is_shifted = ["FindingState", "Role", "Stance", "Outcome"].contains(&name);
        let unspecified = is_shifted.then_some((-1, "unspecified"));
        let expected: Vec<_> = unspecified
            .into_iter()
            .chain(values)
            .map(|(code, text)| {
                let name = format!("{prefix}_{}", text.to_uppercase().replace('-', "_"));
                (code + i32::from(is_shifted), name)
            })
            .collect();
        assert_eq!(told, expected, "{name}");
    }
}

/// Scenario: a message or field is added without a word about it.
/// Guarantees: every message, field, value and call of the files has a comment.
#[test]
fn everything_is_documented() {
    let mut undocumented = Vec::new();
    for file in files().file {
        let info = file.source_code_info.clone().unwrap_or_default();
        for location in info.location {
            // Paths of declarations end in the number of their list and their place in it: messages 4, enumerations 5,
            // services 6; below them fields 2, nested messages 3, nested enumerations 4, values and methods 2.
            let is_declaration = location.path.len() % 2 == 0
                && matches!(location.path.first(), Some(4..=6))
                && location.path.chunks(2).skip(1).all(|part| matches!(part.first(), Some(2..=4)));
            if is_declaration && location.leading_comments().trim().is_empty() {
                undocumented.push(format!(
                    "{}: {:?}, line {:?}",
                    file.name(),
                    location.path,
                    location.span.first()
                ));
            }
        }
    }
    assert!(undocumented.is_empty(), "{undocumented:#?}");
}

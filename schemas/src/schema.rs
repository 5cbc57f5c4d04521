//! JSON Schemas of ids and addresses, whose text forms are written by hand. All other types derive theirs.
//!
//! Only for documents that describe an API; nothing is checked against these here.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{
    address::Address,
    ids::{EventId, RuleSetVersion, SourceId, SpanId, TraceId},
};

macro_rules! texts {
    ($($type:ty, $name:literal, $about:literal, $pattern:literal;)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $about, "pattern": $pattern })
            }
        }
    )*};
}

texts! {
    SourceId, "SourceId", "Who emits: 32 hexadecimal digits.", "^[0-9a-f]{32}$";
    TraceId, "TraceId", "A W3C trace id.", "^[0-9a-f]{32}$";
    SpanId, "SpanId", "A W3C span id.", "^[0-9a-f]{16}$";
    RuleSetVersion, "RuleSetVersion", "A version of a compiled rule set.", "^[0-9a-f]{16}$";
    EventId, "EventId",
        "Which event: source, incarnation, sequence and row, joined by hyphens.",
        "^[0-9a-f]{32}-[0-9]{1,20}-[0-9]{1,20}-[0-9]{1,10}$";
}

impl JsonSchema for Address {
    fn schema_name() -> Cow<'static, str> {
        "Address".into()
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An IP address, of either version.",
            "anyOf": [{ "type": "string", "format": "ipv4" }, { "type": "string", "format": "ipv6" }],
        })
    }
}

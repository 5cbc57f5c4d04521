//! Who emitted what: tenants, sources, incarnations, sequences, rows, and the W3C trace ids.
//!
//! An event's id is (tenant, source, incarnation, sequence, row): it needs no coordination, never repeats, and says
//! which frame of which process's life carried the event.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize, de};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// A text that is not the id that it should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is no {what}: expected {expected}")]
pub struct ParseIdError {
    what: &'static str,
    expected: &'static str,
    text: String,
}

impl ParseIdError {
    fn new(what: &'static str, expected: &'static str, text: &str) -> Self {
        Self { what, expected, text: text.chars().take(80).collect() }
    }
}

fn hex_16(text: &str) -> Option<[u8; 16]> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Whether all bytes are zero, which stands for "none".
            #[must_use]
            pub fn is_none(&self) -> bool {
                self.0 == [0; 16]
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                hex_16(text).map(Self).ok_or_else(|| ParseIdError::new($what, "32 hexadecimal digits", text))
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

sixteen_bytes! {
    /// Who emits: the first 16 bytes of the SHA-256 of the name (SPIFFE URI) that its certificate carries.
    SourceId, "source id"
}
sixteen_bytes! {
    /// A W3C trace id (Trace Context, section 3.2.2.3).
    TraceId, "trace id"
}

impl SourceId {
    /// The id of the source whose certificate names it `uri`.
    #[must_use]
    pub fn of_name(uri: &str) -> Self {
        let digest: [u8; 32] = Sha256::digest(uri.as_bytes()).into();
        let mut bytes = [0; 16];
        bytes.copy_from_slice(digest.first_chunk::<16>().unwrap_or(&[0; 16]));
        Self(bytes)
    }
}

/// A W3C span id (Trace Context, section 3.2.2.4); zero stands for "none".
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId(pub u64);

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanId({self})")
    }
}
impl FromStr for SpanId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits
            .then(|| u64::from_str_radix(text, 16).ok())
            .flatten()
            .map(Self)
            .ok_or_else(|| ParseIdError::new("span id", "16 hexadecimal digits", text))
    }
}
impl Serialize for SpanId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for SpanId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A tenant's name: 1 to 63 of `a-z0-9-`, as in a DNS label. One tenant is `default`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct TenantId(String);

/// A cluster's name, of the same shape as a [`TenantId`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct ClusterId(String);

/// A node's name: a DNS subdomain (labels joined by dots), at most 253 characters, as Kubernetes has them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct NodeId(String);

fn is_label(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

macro_rules! named {
    ($name:ident, $what:literal, $expected:literal, $valid:expr) => {
        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(ParseIdError::new($what, $expected, text))
                }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

named!(
    TenantId,
    "tenant",
    "1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    is_label
);
named!(
    ClusterId,
    "cluster",
    "1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    is_label
);
named!(NodeId, "node", "a DNS subdomain of at most 253 characters", |text| text.len() <= 253
    && text.split('.').all(is_label));

/// The life of an emitter: durable before its first frame, never used twice by one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Incarnation(pub u64);

/// A frame's place within its incarnation; the first frame is number 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Sequence(pub u64);

/// Which frame: the batch of events that a source shipped together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameId {
    /// Who emitted it.
    pub source: SourceId,
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// Its place in that life.
    pub sequence: Sequence,
}

impl FrameId {
    /// The id of the event in row `row` of this frame.
    #[must_use]
    pub const fn row(self, row: u32) -> EventId {
        EventId { frame: self, row }
    }
}

/// Which event, within one tenant. Its text form is `source-incarnation-sequence-row`, the numbers in decimal.
///
/// The tenant is not repeated: a source belongs to exactly one, its name contains it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// The frame that carried it.
    pub frame: FrameId,
    /// Its row in the frame's batch.
    pub row: u32,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrameId { source, incarnation, sequence } = self.frame;
        write!(f, "{source}-{}-{}-{}", incarnation.0, sequence.0, self.row)
    }
}

impl FromStr for EventId {
    type Err = ParseIdError;
    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = || ParseIdError::new("event id", "source-incarnation-sequence-row", text);
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or_else(error);
        let id = Self {
            frame: FrameId {
                source: next()?.parse()?,
                incarnation: Incarnation(next()?.parse().map_err(|_err| error())?),
                sequence: Sequence(next()?.parse().map_err(|_err| error())?),
            },
            row: next()?.parse().map_err(|_err| error())?,
        };
        if parts.next().is_some() { Err(error()) } else { Ok(id) }
    }
}

impl Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for EventId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A version of a compiled rule set: the first 8 bytes of the SHA-256 of its archive, so equal rules are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleSetVersion(pub u64);

impl fmt::Display for RuleSetVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl Serialize for RuleSetVersion {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for RuleSetVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Scenario: any event id is printed and read again.
        /// Guarantees: the text form is exact.
        #[test]
        fn event_ids_round_trip(source: [u8; 16], incarnation: u64, sequence: u64, row: u32) {
            let id = FrameId {
                source: SourceId(source),
                incarnation: Incarnation(incarnation),
                sequence: Sequence(sequence),
            }.row(row);
            prop_assert_eq!(id.to_string().parse::<EventId>(), Ok(id));
        }
    }

    /// Scenario: names as people mistype them.
    /// Guarantees: each is refused with what was expected; nothing is silently changed.
    #[test]
    fn names_are_refused_with_the_reason() {
        for text in ["", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(64)] {
            assert!(text.parse::<TenantId>().is_err(), "{text:?}");
        }
        assert!("ip-10-0-0-1.eu.example".parse::<NodeId>().is_ok());
        assert!("a..b".parse::<NodeId>().is_err());
        let error = "Shop".parse::<ClusterId>().unwrap_err().to_string();
        assert_eq!(
            error,
            "\"Shop\" is no cluster: expected 1 to 63 of a-z, 0-9 and '-', starting and ending with a letter or digit"
        );
        assert!("1-2-3".parse::<EventId>().is_err());
        assert!("+0000000000000000000000000000001".parse::<TraceId>().is_err());
    }
}

//! The `traceparent` header of W3C Trace Context, level 1, section 3.2.
//!
//! Strict: what the specification calls invalid is no trace. A version above `00` is read as section 3.2.4 asks,
//! its first four fields only, so that newer senders are not lost.

/// Bytes of a version 00 `traceparent`: `vv-tttttttttttttttttttttttttttttttt-pppppppppppppppp-ff`.
const VERSION_00_BYTES: usize = 55;

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceParent {
    /// The trace, never all zero.
    pub trace_id: [u8; 16],
    /// The span of whoever sent the request, never zero.
    pub parent_id: u64,
    /// The flags; bit 0 is "sampled". Of versions above 00 only that bit is kept.
    pub flags: u8,
}

impl TraceParent {
    /// Reads the header's value; blanks around it are not part of it.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let version = hex(value.get(..2)?)?;
        let end_is_well_formed = match version {
            0 => value.len() == VERSION_00_BYTES,
            // 255 is forbidden.
            255 => false,
            // A later version may add fields, and only behind another dash.
            _ => value.get(VERSION_00_BYTES).is_none_or(|byte| *byte == b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|index| value.get(*index) == Some(&b'-'));
        if !end_is_well_formed || !dashes {
            return None;
        }
        let trace_id = hex(value.get(3..35)?)?;
        let parent_id = u64::try_from(hex(value.get(36..52)?)?).ok()?;
        let flags = u8::try_from(hex(value.get(53..55)?)?).ok()?;
        if trace_id == 0 || parent_id == 0 {
            return None;
        }
        Some(Self {
            trace_id: trace_id.to_be_bytes(),
            parent_id,
            flags: if version == 0 { flags } else { flags & 1 },
        })
    }
}

/// The value of lower-case hexadecimal digits, at most 32: upper case is invalid by the specification.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// Scenario: the specification's own example, with blanks as a header may have them.
    /// Guarantees: each field is read.
    #[test]
    fn the_example_is_read() {
        let parent = TraceParent::parse(format!(" {VALID}\t").as_bytes()).unwrap();
        assert_eq!(u128::from_be_bytes(parent.trace_id), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((parent.parent_id, parent.flags), (0x00f0_67aa_0ba9_02b7, 1));
    }

    /// Scenario: values that the specification calls invalid, among them a cut one.
    /// Guarantees: none of them is a trace.
    #[test]
    fn invalid_values_are_refused() {
        for value in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-extra",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceParent::parse(value.as_bytes()), None, "{value}");
        }
    }

    /// Scenario: a sender of a later version, with a field that this one does not know.
    /// Guarantees: the known fields are read, unknown flags are not passed on.
    #[test]
    fn later_versions_are_read() {
        for tail in ["", "-what-ever"] {
            let value = format!("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff{tail}");
            assert_eq!(TraceParent::parse(value.as_bytes()).unwrap().flags, 1);
        }
    }

    proptest! {
        /// Scenario: any ids are written and read.
        /// Guarantees: reading is the inverse of writing, and any change of length is noticed.
        #[test]
        fn what_is_written_is_read(trace in 1_u128.., parent in 1_u64.., flags: u8) {
            let value = format!("00-{trace:032x}-{parent:016x}-{flags:02x}");
            let read = TraceParent::parse(value.as_bytes()).unwrap();
            prop_assert_eq!(read, TraceParent { trace_id: trace.to_be_bytes(), parent_id: parent, flags });
            for cut in 0..value.len() {
                prop_assert_eq!(TraceParent::parse(&value.as_bytes()[..cut]), None);
            }
        }

        /// Scenario: any bytes.
        /// Guarantees: no panic.
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = TraceParent::parse(&bytes);
        }
    }
}

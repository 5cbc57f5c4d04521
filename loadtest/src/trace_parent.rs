//! The W3C `traceparent` header, as the workload sends and relays it.
//!
//! Owns the 128-bit trace id and the 64-bit span id in one value. Never touches a socket. Called by the driver, which
//! starts traces, and by the services, which continue them with a child span of their own.

use std::fmt;

/// Trace context of one request on the wire (W3C Trace Context, level 1, version 00).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// Equal for every hop of one request; never zero.
    pub trace_id: u128,
    /// The sender's span; never zero.
    pub span_id: u64,
    /// The sampled flag.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads `00-<32 hex>-<16 hex>-<2 hex>`; anything else is `None`, as the recommendation asks.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() {
            return None;
        }
        if trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|&id| id != 0)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|&id| id != 0)?;
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self { trace_id, span_id, sampled })
    }

    /// The same trace with another sender.
    #[must_use]
    pub const fn child(self, span_id: u64) -> Self {
        Self { span_id, ..self }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

#[cfg(test)]
mod tests {
    use super::TraceParent;

    /// Scenario: a header is written, read back, continued, and broken in each part.
    /// Guarantees: reading inverts writing; malformed headers are not taken for a trace.
    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let parent = TraceParent { trace_id: 0x4bf9_2f35, span_id: 0xa2fb, sampled: true };
        assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent));
        assert_eq!(parent.child(9).trace_id, parent.trace_id);
        let good = parent.to_string();
        for bad in [
            good.replacen("00-", "01-", 1),
            good.replace('-', "_"),
            format!("{good}-00"),
            format!("00-{:032x}-{:016x}-01", 0, 1),
            format!("00-{:032x}-{:016x}-01", 1, 0),
            String::new(),
        ] {
            assert_eq!(TraceParent::parse(&bad), None, "{bad}");
        }
    }
}

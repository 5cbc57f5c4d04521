//! The whole road, with real parts: QUIC, the spool, the embedded ClickHouse.

#[path = "road/findings.rs"]
mod findings;
#[path = "road/refusals.rs"]
mod refusals;
#[path = "road/storing.rs"]
mod storing;
#[path = "road/support.rs"]
mod support;

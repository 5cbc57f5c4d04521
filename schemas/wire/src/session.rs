//! A session: one source and its aggregator over one bidirectional byte stream, as two pure state machines.
//!
//! ```text
//! source                                      aggregator
//!   Hello ───────────────────────────────────►  knows the source? which frames are durable, which stored?
//!   ◄─────────────────────────────── Welcome    credit, received up to, stored up to
//!   Frame Frame Frame ───────────────────────►  at most as many as there is credit
//!   ◄──────────────────────────── Ack, Credit   received (durable here), stored (durable everywhere)
//!   Heartbeat ───────────────────────────────►
//!   ◄───────────── HeartbeatReply, RuleSet
//! ```
//!
//! [`EdgeSession`] is driven by the agent's uplink and outlives connections; an [`AggregatorSession`] is made by the
//! intake for each connection. Both take bytes and instants, and give events and bytes: after every call, take all of
//! `poll_event` and `poll_output`. The transport's certificate has said who the source is before the first byte.

mod aggregator;
mod edge;
mod fault;
mod outbox;

pub use aggregator::{AggregatorConfig, AggregatorEvent, AggregatorSession, SessionCounts, SourceState};
pub use edge::{EdgeConfig, EdgeEvent, EdgeSession, EdgeStatus, OfferRefusal};
pub use fault::SessionFault;

pub use crate::clock::Now;

//! The agent of one node: captures with eBPF, attributes to containers, folds, spools, ships.
//!
//! [`run`] is all that a process needs; [`Agent`] is the same with access to what runs, for tests of several tiers in
//! one process. The agent decides nothing about failures beyond the node-scope rules that it is pushed, knows no
//! names of Kubernetes, and writes nothing outside its state directory and its folder in bpffs.

mod agent;
mod attribute;
mod capture;
mod clock;
pub mod config;
mod connections;
mod enrolment;
mod event;
mod fold;
pub mod host;
mod memory;
mod metrics;
mod outgoing;
mod pipeline;
mod precorrelate;
pub mod probes;
mod requests;
mod sampler;
pub mod shelf;
mod syscalls;
mod tally;
pub mod uninstall;
mod uplink;

pub use agent::{Agent, AgentError, check, run};
pub use attribute::HierarchyError;
pub use config::{Config, OnExit, Scope};
pub use enrolment::EnrolError;

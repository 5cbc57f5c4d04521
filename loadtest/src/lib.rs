//! Tapio's load side: the demo's workload, drawn scenarios, cgroups as Kubernetes lays them out, the demo driver and
//! the comparer.
//!
//! The only crate that sees all three tiers. Nothing here is part of the running system: the system learns the
//! identity file and what it captures, the truth stays with [`compare`].

pub mod cgroup;
pub mod command;
pub mod compare;
pub mod demo;
pub mod drive;
pub mod footprint;
pub mod http1;
pub mod interrupt;
pub mod one_process;
pub mod processes;
pub mod random;
pub mod run_record;
pub mod scenario;
pub mod service;
pub mod simulation;
pub mod tier;
pub mod trace_parent;
pub mod truth_log;
pub mod workload;

//! Bytes of application protocols, as a system call moved them, made into what a person would say of them.
//!
//! Every parser takes `&[u8]` from outside: it never panics, never allocates more than its input is long, and answers
//! "not this protocol" rather than guess. It does no I/O, knows nothing of sockets or processes, and keeps no state;
//! the agent's request tracking calls it with the first bytes of each message.

pub mod http1;
pub mod trace_context;

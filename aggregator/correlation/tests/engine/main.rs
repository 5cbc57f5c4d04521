//! The engine over small stories: what happened on which node, and what may be concluded from it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "tests stop at the first surprise"
)]

mod announcing;
mod counter_examples;
mod laws;
mod limits;
mod missing_file;
mod observing;
mod oom;
mod port_in_use;
mod speed;
mod story;

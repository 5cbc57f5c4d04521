//! The engine over small stories: what happened on which node, and what may be concluded from it.

mod announcing;
mod counter_examples;
mod laws;
mod observing;
mod oom;
mod speed;
mod story;

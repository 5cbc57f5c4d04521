//! The aggregator's gRPC: the messages and services of package `tapio.v1`, and how the language's types become them.
//!
//! [`v1`] is generated from the `.proto` files beside `src`, and checked in, so that a build needs neither `protoc` nor
//! the time that a generator takes; `generator` makes it anew and compares. The conversions are written by
//! hand and take every field apart, so that a field that is added to the language is not forgotten here. Must never
//! decide anything. Called by the aggregator, and by its tests as a client.

mod event;
mod finding;

pub use event::event;

/// The package `tapio.v1`.
pub mod v1 {
    #![allow(
        missing_docs,
        unreachable_pub,
        unused_qualifications,
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::missing_errors_doc,
        clippy::too_many_lines,
        clippy::use_self,
        reason = "the code is generated"
    )]

    include!("generated/tapio.v1.rs");
}

/// The descriptors of [`v1`], a serialised `google.protobuf.FileDescriptorSet` with comments: what server reflection
/// tells.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!("generated/tapio.v1.bin");

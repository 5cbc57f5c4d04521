//! Makes Rust of the `.proto` files: what `tapio-proto` has checked in.
//!
//! A crate of its own, so that it can be run when the code that it makes does not fit what is written around it yet,
//! and that nobody who builds Tapio compiles it. Needs no `protoc`. Called by its test alone.

use std::{fs, io, path::Path};

use prost::Message as _;
use thiserror::Error;

/// The files that nothing else imports; they bring the others.
const FILES: [&str; 2] = ["tapio/v1/correlation_service.proto", "tapio/v1/event_service.proto"];

/// Why there is no code.
#[derive(Debug, Error)]
pub enum GenerateError {
    /// A definition is wrong; where and why.
    #[error("the definitions cannot be compiled")]
    Definitions(#[from] protox::Error),
    /// A file cannot be read or written.
    #[error("the code cannot be written")]
    Io(#[from] io::Error),
}

/// What is made.
#[derive(Debug)]
pub struct Generated {
    /// Messages, servers and clients.
    pub code: Vec<u8>,
    /// A `google.protobuf.FileDescriptorSet` with comments.
    pub descriptors: Vec<u8>,
}

/// Makes the code of the definitions below `root`.
///
/// # Errors
/// When a definition is wrong, or there is no room for temporary files.
pub fn generate(root: &Path) -> Result<Generated, GenerateError> {
    let descriptors = protox::Compiler::new([root])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?
        .file_descriptor_set();
    let out = tempfile::tempdir()?;
    let encoded = descriptors.encode_to_vec();
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        .out_dir(out.path())
        .compile_fds(descriptors)?;
    Ok(Generated { code: fs::read(out.path().join("tapio.v1.rs"))?, descriptors: encoded })
}

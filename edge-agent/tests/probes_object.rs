//! The object that is checked in is the one that its sources build, as far as that can be told without a compiler
//! for it: `scripts/build-ebpf --check` tells the rest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::too_many_lines,
    reason = "a test that cannot go on fails"
)]

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

fn hex(bytes: &[u8]) -> String {
    let mut text = Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    });
    text.truncate(64);
    text
}

fn sources(root: &Path, directory: &str, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(root.join(directory)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{directory}/{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            sources(root, &path, found);
        } else if path.ends_with(".rs") {
            found.push(path);
        }
    }
}

/// Scenario: the eBPF sources, the records' layout, and the object in the tree.
/// Guarantees: the manifest names exactly these sources and this object, so a forgotten rebuild cannot be merged.
#[test]
fn the_object_was_built_from_these_sources() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files =
        ["ebpf/Cargo.toml", "ebpf/Cargo.lock", "ebpf/.cargo/config.toml"].map(str::to_owned).to_vec();
    sources(&root, "ebpf/src", &mut files);
    sources(&root, "schemas/kernel-abi/src", &mut files);
    files.sort();
    let mut list = String::new();
    for file in &files {
        writeln!(list, "{}  {file}", hex(&std::fs::read(root.join(file)).unwrap())).unwrap();
    }
    let manifest = std::fs::read_to_string(root.join("ebpf/prebuilt/manifest.json")).unwrap();
    let value = |key: &str| {
        let (_, rest) = manifest.split_once(&format!("\"{key}\": \"")).expect("the manifest has the key");
        rest.split('"').next().unwrap().to_owned()
    };
    let advice = "run scripts/build-ebpf and commit what it writes";
    assert_eq!(value("sources"), hex(list.as_bytes()), "the eBPF sources changed: {advice}");
    let object = std::fs::read(root.join("ebpf/prebuilt/tapio.bpf.o")).unwrap();
    assert_eq!(value("object"), hex(&object), "the object is not the manifest's: {advice}");
}

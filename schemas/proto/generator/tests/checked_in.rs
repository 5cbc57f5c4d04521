//! What is checked in is what the `.proto` files give.

use std::{fs, path::Path};

/// Scenario: somebody changes a `.proto` file, or the generator's version.
/// Guarantees: the checked-in code and descriptors are those of the files; where they are not, they are written anew
/// and the test fails once, so that the change is looked at.
#[test]
fn the_checked_in_code_is_that_of_the_proto_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let made = tapio_generator::generate(root).unwrap();
    let mut changed = Vec::new();
    for (name, bytes) in [("tapio.v1.rs", made.code), ("tapio.v1.bin", made.descriptors)] {
        let path = root.join("src/generated").join(name);
        if fs::read(&path).ok().as_ref() != Some(&bytes) {
            fs::write(&path, bytes).unwrap();
            changed.push(path.display().to_string());
        }
    }
    assert!(changed.is_empty(), "written anew from the .proto files, commit them: {}", changed.join(", "));
}

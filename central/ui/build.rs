//! Lists the files of the built front end, so that they can be embedded. It builds nothing: `scripts/build-ui` does.

use std::{
    env,
    error::Error,
    fmt::Write as _,
    fs,
    hash::{DefaultHasher, Hasher as _},
    path::{Path, PathBuf},
};

/// What a browser must be told of a file with this ending. Others have no place in the build.
const CONTENT_TYPES: [(&str, &str); 4] = [
    ("html", "text/html; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("svg", "image/svg+xml"),
];
/// The folder of files with a hash of their content in their name.
const HASHED: &str = "assets/";

fn main() -> Result<(), Box<dyn Error>> {
    let dist = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("dist");
    println!("cargo::rerun-if-changed=dist");
    let mut files = Vec::new();
    collect(&dist, &mut files).map_err(|error| {
        format!("{} cannot be read ({error}): run scripts/build-ui, or restore it", dist.display())
    })?;
    files.sort();
    let mut text = String::from("[\n");
    for file in files {
        let path = file.strip_prefix(&dist)?.to_string_lossy().into_owned();
        let ending = file.extension().unwrap_or_default().to_string_lossy().into_owned();
        let (_, content_type) = CONTENT_TYPES
            .iter()
            .find(|(known, _)| *known == ending)
            .ok_or_else(|| format!("{path}: no content type is known for .{ending}"))?;
        let mut hash = DefaultHasher::new();
        hash.write(&fs::read(&file)?);
        let etag = format!("\"{:016x}\"", hash.finish());
        let is_immutable = path.starts_with(HASHED);
        writeln!(
            text,
            "    Asset {{ path: {path:?}, content_type: {content_type:?}, etag: {etag:?}, \
             is_immutable: {is_immutable}, bytes: include_bytes!({:?}) }},",
            file.display().to_string()
        )?;
    }
    text.push_str("]\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("assets.rs"), text)?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}

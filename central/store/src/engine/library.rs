//! Where the engine's library is.

use std::path::{Path, PathBuf};

use super::EngineError;

/// The version that `scripts/lib/fetch-clickhouse` fetches; a test holds the two together.
pub(super) const VERSION: &str = "26.7.3-stable.1";

/// The library named by `TAPIO_CLICKHOUSE_LIB`, else the one in Tapio's cache directory
/// (`TAPIO_CACHE_DIR`, else `$XDG_CACHE_HOME/tapio`, else `~/.cache/tapio`).
///
/// # Errors
/// [`EngineError::Library`] says where it was looked for and how to get it.
pub fn find_library() -> Result<PathBuf, EngineError> {
    let path = lookup(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))?;
    check(&path)?;
    Ok(path)
}

fn lookup(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<PathBuf, EngineError> {
    if let Some(path) = variable("TAPIO_CLICKHOUSE_LIB") {
        return Ok(path);
    }
    let cache = variable("TAPIO_CACHE_DIR")
        .or_else(|| variable("XDG_CACHE_HOME").map(|path| path.join("tapio")))
        .or_else(|| variable("HOME").map(|path| path.join(".cache").join("tapio")))
        .ok_or_else(|| EngineError::Library {
            path: PathBuf::from("libchdb.so"),
            reason: "none of TAPIO_CLICKHOUSE_LIB, TAPIO_CACHE_DIR, XDG_CACHE_HOME and HOME is set"
                .to_owned(),
        })?;
    Ok(cache.join("clickhouse").join(VERSION).join("libchdb.so"))
}

pub(super) fn check(path: &Path) -> Result<(), EngineError> {
    let reason = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => match std::fs::File::open(path) {
            Ok(_readable) => return Ok(()),
            Err(error) => error.to_string(),
        },
        Ok(_other) => "that is not a file".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(EngineError::Library { path: path.to_owned(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: each of the variables is set alone, and the first two together.
    /// Guarantees: the order of the variables, and the path in the cache that the fetching script uses.
    #[test]
    fn variables_are_taken_in_order() {
        let only = |wanted: &'static str, value: &'static str| {
            lookup(move |name| (name == wanted).then(|| PathBuf::from(value))).unwrap()
        };
        assert_eq!(only("TAPIO_CLICKHOUSE_LIB", "/x/lib.so"), Path::new("/x/lib.so"));
        let cached = |base: &str| PathBuf::from(base).join("clickhouse").join(VERSION).join("libchdb.so");
        assert_eq!(only("TAPIO_CACHE_DIR", "/c"), cached("/c"));
        assert_eq!(only("XDG_CACHE_HOME", "/c"), cached("/c/tapio"));
        assert_eq!(only("HOME", "/h"), cached("/h/.cache/tapio"));
        assert!(lookup(|_name| None).is_err());
    }

    /// Scenario: the fetching script beside this code.
    /// Guarantees: it fetches the version that this code looks for.
    #[test]
    fn the_script_fetches_this_version() {
        let script = include_str!("../../../../scripts/lib/fetch-clickhouse");
        assert!(script.contains(&format!("version='{VERSION}'\n")));
        assert!(script.contains(r#"home="$machine_cache/clickhouse/$version""#));
    }
}

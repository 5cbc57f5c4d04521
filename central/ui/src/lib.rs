//! The web front end as files in memory: what `scripts/build-ui` built into `dist/`, which is checked in, so that
//! building Rust needs no Node.
//!
//! Knows files and what browsers must be told of them; serves nothing.

/// A file of the front end.
#[derive(Clone, Copy, Debug)]
pub struct Asset {
    /// Its path below the page's address, without a slash before it.
    pub path: &'static str,
    /// Its media type.
    pub content_type: &'static str,
    /// Its entity tag, quoted.
    pub etag: &'static str,
    /// Whether its name changes with its content, so that nobody has to ask for it again.
    pub is_immutable: bool,
    /// Its content.
    pub bytes: &'static [u8],
}

/// All files, by path.
pub static ASSETS: &[Asset] = &include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The file at `path`.
#[must_use]
pub fn asset(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.path == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the front end may weigh: it is part of the aggregator's binary, and of each first visit.
    const BYTES_MAX: usize = 150 << 10;

    /// Scenario: the page as it is embedded.
    /// Guarantees: it names only files that are there, asks nobody else, and is small.
    #[test]
    fn the_page_is_whole_and_small() {
        let page = std::str::from_utf8(asset("index.html").unwrap().bytes).unwrap();
        let named: Vec<&str> = page
            .split(['"', '\''])
            .filter_map(|text| text.strip_prefix("./").or_else(|| text.strip_prefix('/')))
            .filter(|text| text.contains('.'))
            .collect();
        assert!(named.len() >= 3, "{named:?}");
        for path in named {
            assert!(asset(path).is_some(), "the page names {path}, which is not there");
        }
        assert!(!page.contains("<style") && !page.contains("style="), "the policy forbids inline styles");
        let bytes: usize = ASSETS.iter().map(|asset| asset.bytes.len()).sum();
        assert!(bytes <= BYTES_MAX, "{bytes} bytes, more than {BYTES_MAX}");
    }
}

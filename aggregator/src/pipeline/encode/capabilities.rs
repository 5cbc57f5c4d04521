//! What each source said of itself, remembered because every block's row of the source repeats it.
//!
//! Bounded: two lives of each source, and so many sources. Called by [`super::Encoder`] only.

use std::collections::BTreeMap;

use tapio_schemas::ids::SourceId;

/// Sources whose capabilities are remembered; beyond, the one that was not asked for for longest is forgotten.
pub(super) const SOURCES_MAX: usize = 16_384;

/// What a source said of itself, as its row has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Described {
    /// A list of `probe=state`, JSON.
    pub(super) capability: String,
    pub(super) agent_version: String,
    pub(super) kernel_release: String,
    pub(super) architecture: String,
    /// An object of numbers, JSON.
    pub(super) limits: String,
}

/// What each source said: of its newest life, and of the one before, whose last frames may come after the newest's
/// announcement.
#[derive(Debug)]
pub(super) struct Capabilities {
    sources_max: usize,
    sources: BTreeMap<SourceId, Capability>,
    /// Rises with each use.
    clock: u64,
}

#[derive(Debug, Default)]
struct Capability {
    /// Incarnation and description, the newer life first.
    lives: [(u64, Described); 2],
    used: u64,
}

impl Capabilities {
    pub(super) const fn new(sources_max: usize) -> Self {
        Self { sources_max, sources: BTreeMap::new(), clock: 0 }
    }

    /// Remembers what a source said.
    pub(super) fn put(&mut self, source: SourceId, incarnation: u64, described: Described) {
        self.clock += 1;
        if !self.sources.contains_key(&source) && self.sources.len() >= self.sources_max {
            let oldest = self.sources.iter().min_by_key(|(_, known)| known.used).map(|(source, _)| *source);
            oldest.and_then(|oldest| self.sources.remove(&oldest));
        }
        let known = self.sources.entry(source).or_default();
        known.used = self.clock;
        let [newest, before] = &mut known.lives;
        if incarnation > newest.0 {
            *before = std::mem::replace(newest, (incarnation, described));
        } else if incarnation == newest.0 {
            newest.1 = described;
        } else if incarnation >= before.0 {
            *before = (incarnation, described);
        }
    }

    /// What a life of a source said.
    pub(super) fn get(&mut self, source: SourceId, incarnation: u64) -> Option<&Described> {
        self.clock += 1;
        let known = self.sources.get_mut(&source)?;
        known.used = self.clock;
        known.lives.iter().find(|life| life.0 == incarnation).map(|life| &life.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a source lives three times; then more sources come than are remembered, while the first is asked for.
    /// Guarantees: its two newest lives are known; the source that nobody asked for is forgotten, not the first.
    #[test]
    fn capabilities_of_the_newest_lives_are_remembered() {
        let source = |number| SourceId([number; 16]);
        let said = |text: &str| Described { capability: text.to_owned(), ..Described::default() };
        let of = |known: &mut Capabilities, number, life| {
            known.get(source(number), life).map(|described| described.capability.clone())
        };
        let mut known = Capabilities::new(2);
        for (life, text) in [(1, "one"), (3, "three"), (2, "two"), (3, "three again")] {
            known.put(source(1), life, said(text));
        }
        assert_eq!(of(&mut known, 1, 1).as_deref(), None);
        assert_eq!(known.sources.len(), 1);
        assert_eq!(of(&mut known, 1, 2).as_deref(), Some("two"));
        known.put(source(9), 1, said("nine"));
        assert_eq!(of(&mut known, 1, 3).as_deref(), Some("three again"));
        known.put(source(5), 1, said("five"));
        assert_eq!(of(&mut known, 9, 1).as_deref(), None);
        assert_eq!(of(&mut known, 5, 1).as_deref(), Some("five"));
        assert_eq!(of(&mut known, 1, 3).as_deref(), Some("three again"));
    }
}

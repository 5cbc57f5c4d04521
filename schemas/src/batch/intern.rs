//! Tables of distinct values: texts and sixteen-byte values become small codes, in the order of their first use.
//!
//! The tables keep their memory from batch to batch. The hash is keyed at random, because texts come from workloads
//! and must not be able to make the agent slow; codes do not depend on it, so equal events make equal bytes.

use std::hash::{BuildHasher, RandomState};

/// An open-addressing index from hashes to codes. It holds no values: the caller compares.
struct HashIndex {
    hasher: RandomState,
    /// Pairs of (hash, code); code 0 marks an empty slot, for it never needs an entry.
    slots: Vec<(u32, u32)>,
    used: usize,
}

impl HashIndex {
    const SLOTS_MIN: usize = 256;

    fn new() -> Self {
        Self { hasher: RandomState::new(), slots: vec![(0, 0); Self::SLOTS_MIN], used: 0 }
    }

    fn hash(&self, bytes: &[u8]) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "32 bits of the hash are enough")]
        let hash = self.hasher.hash_one(bytes) as u32;
        hash
    }

    fn find(&self, hash: u32, equal: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let (other, code) = *self.slots.get(at)?;
            if code == 0 {
                return None;
            }
            if other == hash && equal(code) {
                return Some(code);
            }
            at = (at + 1) & mask;
        }
    }

    fn insert(&mut self, hash: u32, code: u32) {
        if (self.used + 1) * 2 > self.slots.len() {
            let bigger = vec![(0, 0); self.slots.len() * 2];
            for (hash, code) in std::mem::replace(&mut self.slots, bigger) {
                if code != 0 {
                    self.place(hash, code);
                }
            }
        }
        self.place(hash, code);
        self.used += 1;
    }

    fn place(&mut self, hash: u32, code: u32) {
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(slot) = self.slots.get_mut(at) {
            if slot.1 == 0 {
                *slot = (hash, code);
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn clear(&mut self) {
        if self.used > 0 {
            self.slots.fill((0, 0));
            self.used = 0;
        }
    }
}

/// The texts of a batch.
pub(super) struct Symbols {
    index: HashIndex,
    text: String,
    ends: Vec<u64>,
}

impl Symbols {
    pub(super) fn new() -> Self {
        Self { index: HashIndex::new(), text: String::new(), ends: Vec::new() }
    }

    /// The text of a code; code 0, and a code not given, is the empty text.
    pub(super) fn get(&self, code: u32) -> &str {
        let end = |code: usize| self.ends.get(code).map_or(0, |end| usize::try_from(*end).unwrap_or(0));
        match code as usize {
            0 => "",
            1 => self.text.get(..end(0)).unwrap_or(""),
            code => self.text.get(end(code - 2)..end(code - 1)).unwrap_or(""),
        }
    }

    /// The code of `text`, given now if it has none; none if it would exceed `bytes_max`.
    pub(super) fn code(&mut self, text: &str, bytes_max: usize) -> Option<u32> {
        if text.is_empty() {
            return Some(0);
        }
        let hash = self.index.hash(text.as_bytes());
        if let Some(code) = self.index.find(hash, |code| self.get(code) == text) {
            return Some(code);
        }
        if self.text.len() + text.len() > bytes_max {
            return None;
        }
        self.text.push_str(text);
        self.ends.push(self.text.len() as u64);
        let code = u32::try_from(self.ends.len()).ok()?;
        self.index.insert(hash, code);
        Some(code)
    }

    pub(super) fn text(&mut self) -> &mut String {
        &mut self.text
    }

    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    pub(super) fn ends(&self) -> &[u64] {
        &self.ends
    }

    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.text.clear();
        self.ends.clear();
    }
}

/// The sixteen-byte values of a batch.
pub(super) struct Sixteens {
    index: HashIndex,
    values: Vec<[u8; 16]>,
}

impl Sixteens {
    pub(super) fn new() -> Self {
        Self { index: HashIndex::new(), values: Vec::new() }
    }

    pub(super) fn get(&self, code: u64) -> [u8; 16] {
        let index = usize::try_from(code).ok().and_then(|code| code.checked_sub(1));
        index.and_then(|index| self.values.get(index)).copied().unwrap_or_default()
    }

    /// The code of `value`, given now if it has none; none if there would be more than `count_max`.
    pub(super) fn code(&mut self, value: [u8; 16], count_max: usize) -> Option<u32> {
        if value == [0; 16] {
            return Some(0);
        }
        let hash = self.index.hash(&value);
        if let Some(code) = self.index.find(hash, |code| self.get(u64::from(code)) == value) {
            return Some(code);
        }
        if self.values.len() >= count_max {
            return None;
        }
        self.values.push(value);
        let code = u32::try_from(self.values.len()).ok()?;
        self.index.insert(hash, code);
        Some(code)
    }

    pub(super) fn values(&self) -> &[[u8; 16]] {
        &self.values
    }

    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.values.clear();
    }
}

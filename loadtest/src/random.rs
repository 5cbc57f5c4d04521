//! The one source of drawn values: a seeded generator that gives the same scenario for the same seed.
//!
//! Owns no entropy: the seed is an argument, so a printed seed repeats a run. Never used for secrets. Called by
//! [`crate::scenario`], by the load driver and by the services for their span ids.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[derive(Debug, Clone)]
pub struct Draw {
    state: u64,
}

impl Draw {
    /// A generator for one purpose: the label keeps streams apart, so that a new draw in one place does not shift
    /// the values drawn in another.
    #[must_use]
    pub fn labelled(seed: u64, label: &str) -> Self {
        // FNV-1a over the label: any stable hash does, it only separates streams.
        let hash = label.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let mut draw = Self { state: seed ^ hash };
        draw.next_u64();
        draw
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A value in `low..=high`; `low` where the range is empty. The modulo bias is far below what a test can see.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        let span = high.saturating_sub(low).saturating_add(1);
        low.saturating_add(self.next_u64() % span)
    }

    /// True in `percent` of 100 draws.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.between(1, 100) <= percent
    }

    /// One element, or `None` of an empty slice.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let last = from.len().checked_sub(1)?;
        let index = usize::try_from(self.between(0, last as u64)).unwrap_or(0);
        from.get(index)
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = usize::try_from(self.between(0, last as u64)).unwrap_or(last);
            items.swap(last, other);
        }
    }

    /// `digits` lower-case hexadecimal digits.
    pub fn hex(&mut self, digits: usize) -> String {
        self.text(digits, b"0123456789abcdef")
    }

    /// A random UUID, version 4 (RFC 9562), as Kubernetes gives to a pod.
    pub fn uuid(&mut self) -> String {
        let variant = self.text(1, b"89ab");
        format!("{}-{}-4{}-{variant}{}-{}", self.hex(8), self.hex(4), self.hex(3), self.hex(3), self.hex(12))
    }

    /// The alphabet of the random part of Kubernetes' object names (no vowels, no look-alikes).
    pub fn name_suffix(&mut self, length: usize) -> String {
        self.text(length, b"bcdfghjklmnpqrstvwxz2456789")
    }

    fn text(&mut self, length: usize, alphabet: &[u8]) -> String {
        (0..length).filter_map(|_| self.pick(alphabet).map(|&byte| char::from(byte))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Draw;

    /// Scenario: the same seed and label twice, then another label.
    /// Guarantees: a seed repeats a run, and streams of one seed are independent.
    #[test]
    fn a_seed_repeats_and_labels_separate() {
        let draw = |label| {
            let mut draw = Draw::labelled(7, label);
            (draw.uuid(), draw.hex(64), draw.between(3, 9))
        };
        assert_eq!(draw("names"), draw("names"));
        assert_ne!(draw("names"), draw("limits"));
    }

    /// Scenario: many draws from small ranges and a shuffle.
    /// Guarantees: values stay in range, every value occurs, nothing is lost.
    #[test]
    fn ranges_are_kept_and_covered() {
        let mut draw = Draw::labelled(1, "ranges");
        let mut seen = [false; 4];
        for _ in 0..200 {
            let value = draw.between(2, 5);
            seen[usize::try_from(value - 2).unwrap()] = true;
        }
        assert_eq!(seen, [true; 4]);
        let mut items: Vec<u32> = (0..20).collect();
        draw.shuffle(&mut items);
        assert_ne!(items, (0..20).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
        assert_eq!(draw.uuid().len(), 36);
    }
}

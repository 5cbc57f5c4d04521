//! How far what the kernel recorded and counted is in the spool, in a map that is pinned beside the counters.
//!
//! Before a frame is appended to the spool, its [`Mark`] is written: up to where the ring is told by it and the frames
//! before, and what all their ledgers have told so far. Behind the append the mark is confirmed. An agent that starts
//! takes the newest mark whose frame is in the spool, and goes on from there: what is in the ring behind it is read, what
//! is before it is never read again. The map lives and dies with the counters and the ring, and no other file has to agree
//! with it. A kill at any moment leaves one whole mark: the two places are written in turns, each in one system call.
//!
//! Written by the spool's thread ([`Progress`]) and, when the ring must not wait for a slow disk, by the reader
//! ([`Freed`]).

use aya::maps::{Array, Map, MapData, MapError};
use tapio_kernel_abi::{PROBE_COUNT, ProbeId, ProbeStats};
use tapio_schemas::ids::{Incarnation, Sequence};
use tapio_wire::Position;

use super::{pins::Version, ring::RingPlace};

const PROBES: usize = PROBE_COUNT as usize;
/// The name of the map.
const MAP: &str = "PROGRESS";
/// Two marks in turns, and the place that the reader gave back early.
const PLACES: u32 = 3;
const FREED: u32 = 2;
/// Lines of the kernel's ledger.
const LINES: usize = 6;
const WORDS: usize = 6 + (2 + LINES) * PROBES;

/// The map's values: plain numbers in the order of [`Mark::encode`].
type Words = [u64; WORDS];
type Places = Array<MapData, Words>;

/// Up to where everything is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Reached {
    /// Which of the rings that the agent reads, one after the other; not written down.
    pub ring: u32,
    /// Of the ring.
    pub place: RingPlace,
    /// The last drain of folded failures.
    pub drained: u64,
}

/// What the ledgers have told of one probe's kernel part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KernelTold {
    /// As the counters have it; hits and full maps are not told.
    pub stats: ProbeStats,
    /// Hits that the kernel did not deliver to the program that is loaded now.
    pub missed: u64,
}

/// What is told by a frame and all before it, since the ring and the counters were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The frame.
    pub frame: Position,
    /// The end of its ledger's window, Unix microseconds.
    pub until_micros: u64,
    /// What it reaches.
    pub reached: Reached,
    /// Records of the ring that a ledger gives account of, by probe.
    pub accounted: [u64; PROBES],
    /// The kernel's own counts, by probe.
    pub kernel: [KernelTold; PROBES],
}

impl Default for Mark {
    fn default() -> Self {
        Self {
            frame: Position::START,
            until_micros: 0,
            reached: Reached::default(),
            accounted: [0; PROBES],
            kernel: [KernelTold::default(); PROBES],
        }
    }
}

impl Mark {
    fn encode(&self, is_appended: bool) -> Words {
        let Self { frame, until_micros, reached, accounted, kernel } = self;
        let first = [
            frame.incarnation.0,
            frame.sequence.0,
            u64::from(is_appended),
            reached.place.position,
            reached.drained,
            *until_micros,
        ];
        let kernel = kernel.iter().flat_map(|KernelTold { stats, missed }| {
            [stats.emitted, stats.folded, stats.filtered, stats.ring_full, stats.unreadable, *missed]
        });
        let all = first.into_iter().chain(reached.place.taken).chain(*accounted).chain(kernel);
        let mut words = [0; WORDS];
        words.iter_mut().zip(all).for_each(|(word, value)| *word = value);
        words
    }

    /// The mark, and whether its frame is known to be in the spool; nothing where nothing was written.
    fn decode(words: &Words) -> Option<(Self, bool)> {
        let mut words = words.iter().copied();
        let mut next = || words.next().unwrap_or(0);
        let frame = Position { incarnation: Incarnation(next()), sequence: Sequence(next()) };
        let is_appended = next() != 0;
        let (position, drained, until_micros) = (next(), next(), next());
        let taken = std::array::from_fn(|_| next());
        let accounted = std::array::from_fn(|_| next());
        let kernel = std::array::from_fn(|_| {
            let [emitted, folded, filtered, ring_full, unreadable] = std::array::from_fn(|_| next());
            let stats =
                ProbeStats { emitted, folded, filtered, ring_full, unreadable, ..ProbeStats::default() };
            KernelTold { stats, missed: next() }
        });
        let reached = Reached { ring: 0, place: RingPlace { position, taken }, drained };
        let mark = Self { frame, until_micros, reached, accounted, kernel };
        (frame > Position::START).then_some((mark, is_appended))
    }
}

/// Where an agent goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The newest mark whose frame is in the spool.
    pub mark: Mark,
    /// The first record that no frame tells.
    pub place: RingPlace,
    /// Records before it that no ledger gives account of, by probe: what was made of them went with the agent that had
    /// taken them.
    pub lost: [u64; PROBES],
}

/// Decides where to go on. `marks` are in no order; `freed` is what a reader gave back early; `first` is where the ring
/// begins now; `newest` is the spool's newest frame.
fn resume(
    marks: [Option<(Mark, bool)>; 2],
    freed: Option<RingPlace>,
    first: u64,
    newest: Option<Position>,
) -> Resume {
    let is_spooled = |mark: &(Mark, bool)| mark.1 || newest.is_some_and(|newest| newest >= mark.0.frame);
    let spooled = marks.into_iter().flatten().filter(is_spooled).map(|(mark, _)| mark);
    let mark = spooled.max_by_key(|mark| mark.frame).unwrap_or_default();
    let told = mark.reached.place;
    // What was given back without being told is gone, whatever is still there of it.
    let is_gone = first > told.position;
    let place = if is_gone {
        let unknown = RingPlace { position: first, ..told };
        freed.filter(|freed| freed.position >= first).unwrap_or(unknown)
    } else {
        told
    };
    let lost = std::array::from_fn(|probe| {
        let of = |counts: &[u64; PROBES]| counts.get(probe).copied().unwrap_or(0);
        of(&place.taken).saturating_sub(of(&mark.accounted))
    });
    Resume { mark, place, lost }
}

/// The spool's thread's hand on the map.
pub struct Progress {
    places: Places,
    /// Where the mark is that counts.
    confirmed: u32,
}

impl Progress {
    /// Opens or makes the map of `version`.
    pub(super) fn open(version: &Version) -> Result<Self, String> {
        let places = match places(version) {
            Ok(places) => places,
            Err(_absent) => {
                let map = Places::create(PLACES, 0).map_err(|error| super::reason(&error))?;
                map.pin(version.map(MAP)).map_err(|error| super::reason(&error))?;
                places(version).map_err(|error| super::reason(&error))?
            }
        };
        Ok(Self { places, confirmed: 0 })
    }

    /// The reader's hand on the same map.
    pub(super) fn freed(version: &Version) -> Option<Freed> {
        places(version).ok().map(|places| Freed { places })
    }

    /// Decides where to go on, with the spool's newest frame and the ring's present begin.
    pub(super) fn resume(&mut self, first: u64, newest: Option<Position>) -> Result<Resume, MapError> {
        let [even, odd] = [self.places.get(&0, 0)?, self.places.get(&1, 0)?];
        let freed = self.places.get(&FREED, 0)?;
        let freed = Mark::decode(&freed).map(|(mark, _)| mark.reached.place);
        let marks = [Mark::decode(&even), Mark::decode(&odd)];
        let resumed = resume(marks, freed, first, newest);
        self.confirmed = u32::from(marks[1].is_some_and(|(mark, _)| mark.frame == resumed.mark.frame));
        if resumed.mark.frame > Position::START {
            // Whatever becomes of the spool: this frame is in it.
            self.places.set(self.confirmed, resumed.mark.encode(true), 0)?;
        }
        Ok(resumed)
    }

    /// A frame is about to be appended.
    ///
    /// # Errors
    /// The kernel refuses the map; the mark before stays.
    pub fn prepare(&mut self, mark: &Mark) -> Result<(), MapError> {
        self.places.set(1 - self.confirmed, mark.encode(false), 0)
    }

    /// The frame is in the spool.
    ///
    /// # Errors
    /// The kernel refuses the map.
    pub fn confirm(&mut self, mark: &Mark) -> Result<(), MapError> {
        self.confirmed = 1 - self.confirmed;
        self.places.set(self.confirmed, mark.encode(true), 0)
    }
}

/// The reader's hand on the map.
pub(super) struct Freed {
    places: Places,
}

impl Freed {
    /// The records before `place` are about to be given back although they are not in the spool yet.
    pub(super) fn set(&mut self, place: RingPlace) -> Result<(), MapError> {
        // The frame only says that there is something.
        let frame = Position { incarnation: Incarnation(0), sequence: Sequence(1) };
        let mark = Mark { frame, reached: Reached { place, ..Reached::default() }, ..Mark::default() };
        self.places.set(FREED, mark.encode(false), 0)
    }
}

fn places(version: &Version) -> Result<Places, MapError> {
    Places::try_from(Map::from_map_data(MapData::from_pin(version.map(MAP))?)?)
}

/// What a ledger's line adds to a mark, if it is one of a probe.
impl Mark {
    /// Adds the line of a frame's ledger that is about `probe`, at the kernel's stage.
    pub fn add_kernel(&mut self, probe: ProbeId, line: KernelLine, count: u64) {
        let Some(told) = self.kernel.get_mut(probe as usize) else { return };
        let counter = match line {
            KernelLine::Emitted => &mut told.stats.emitted,
            KernelLine::Folded => &mut told.stats.folded,
            KernelLine::Filtered => &mut told.stats.filtered,
            KernelLine::RingFull => &mut told.stats.ring_full,
            KernelLine::Unreadable => &mut told.stats.unreadable,
            KernelLine::Missed => &mut told.missed,
        };
        *counter = counter.saturating_add(count);
    }

    /// Adds records of `probe` that a frame's ledger gives account of.
    pub fn add_accounted(&mut self, probe: ProbeId, count: u64) {
        if let Some(accounted) = self.accounted.get_mut(probe as usize) {
            *accounted = accounted.saturating_add(count);
        }
    }
}

/// The lines of a probe at the kernel's stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelLine {
    /// Records that were sent.
    Emitted,
    /// Hits in a count.
    Folded,
    /// Hits of no interest.
    Filtered,
    /// Hits without room in the ring.
    RingFull,
    /// Hits whose memory could not be read.
    Unreadable,
    /// Hits that were not delivered.
    Missed,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64, position: u64, taken: u64, accounted: u64) -> Mark {
        let mut mark = Mark {
            frame: Position { incarnation: Incarnation(7), sequence: Sequence(sequence) },
            reached: Reached { ring: 0, place: place(position, taken), drained: sequence },
            ..Mark::default()
        };
        mark.add_accounted(ProbeId::Exec, accounted);
        mark.add_kernel(ProbeId::Payload, KernelLine::Missed, sequence);
        mark
    }

    fn place(position: u64, taken: u64) -> RingPlace {
        let mut place = RingPlace { position, ..RingPlace::default() };
        place.taken[ProbeId::Exec as usize] = taken;
        place
    }

    /// Scenario: a mark is written as the map has it.
    /// Guarantees: it is read back as it was; where nothing was written there is none.
    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let written = mark(3, 64, 5, 4);
        assert_eq!(Mark::decode(&written.encode(true)), Some((written, true)));
        assert_eq!(Mark::decode(&written.encode(false)), Some((written, false)));
        assert_eq!(Mark::decode(&[0; WORDS]), None);
    }

    /// Scenario: a kill before the append, behind it, and behind the confirmation; a spool that was emptied since.
    /// Guarantees: the newest frame that is in the spool counts, in whichever place its mark is; what was taken before it
    /// and is accounted for nowhere is lost, by probe.
    #[test]
    fn the_newest_spooled_frame_counts() {
        let (old, new) = ((mark(1, 100, 10, 8), true), mark(2, 200, 20, 17));
        let newest = |sequence| Some(Position { incarnation: Incarnation(7), sequence: Sequence(sequence) });
        let decide = |new, newest| resume([Some(old), Some(new)], None, 100, newest);
        for (is_confirmed, newest, expected) in [
            (false, newest(1), 1),
            (false, None, 1),
            (false, newest(2), 2),
            (true, newest(2), 2),
            (true, None, 2),
        ] {
            let resumed = decide((new, is_confirmed), newest);
            assert_eq!(resumed.mark.frame.sequence.0, expected);
            assert_eq!(resumed.place, resumed.mark.reached.place);
            assert_eq!(resumed.lost[ProbeId::Exec as usize], if expected == 1 { 2 } else { 3 });
            assert_eq!(resume([Some((new, is_confirmed)), Some(old)], None, 100, newest), resumed);
        }
        let fresh = resume([None, None], None, 0, newest(9));
        assert_eq!((fresh.mark, fresh.place), (Mark::default(), RingPlace::default()));
    }

    /// Scenario: the reader gave records back before they were in the spool, once and twice, and was killed before or
    /// behind that; or its frames came into the spool all the same.
    /// Guarantees: what was given back is not read again and is counted as lost; what was not is read.
    #[test]
    fn what_was_given_back_untold_is_lost() {
        let told = Some((mark(1, 100, 10, 10), true));
        let behind = resume([told, None], Some(place(300, 30)), 300, None);
        assert_eq!((behind.place.position, behind.lost[ProbeId::Exec as usize]), (300, 20));
        let twice = resume([told, None], Some(place(400, 45)), 300, None);
        assert_eq!((twice.place.position, twice.lost[ProbeId::Exec as usize]), (400, 35));
        let before = resume([told, None], Some(place(300, 30)), 100, None);
        assert_eq!((before.place.position, before.lost[ProbeId::Exec as usize]), (100, 0));
        let came = resume([told, Some((mark(2, 300, 30, 30), true))], Some(place(300, 30)), 300, None);
        assert_eq!((came.place.position, came.lost[ProbeId::Exec as usize]), (300, 0));
    }
}

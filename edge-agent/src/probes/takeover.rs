//! What an agent finds pinned when it starts: where it goes on, and what it reads to the end before.
//!
//! Probes of another version are taken off, each when its successor is ready; what they recorded and counted is then
//! complete, and is read and told as that of an agent that was killed. Only when all of it is in the spool are their maps
//! removed: whoever is killed before goes on with them.

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use tapio_kernel_abi::{FailedSyscall, FoldKey, FoldValue, ProbeId, ProbeStats, TCP_STATE_AGAIN_SLOT};
use tapio_wire::Position;

use super::{
    PINNED_LAYOUT, PinsError, ProbeCounters,
    attach::Attachment,
    folds::{self, Folds},
    pins::Version,
    progress::{Progress, Resume},
    reason,
    ring::RingReader,
    sum_of,
};

/// What was found pinned.
pub struct Found {
    /// Where the agent goes on.
    pub resume: Resume,
    /// Probes that were attached all the time.
    pub adopted: Vec<ProbeId>,
    /// What was pinned of other versions.
    pub earlier: Vec<Earlier>,
}

/// What was pinned of another version, and is not attached any more.
pub struct Earlier {
    version: Version,
    /// What is to be read to its end; `None` where this version cannot read it.
    pub left: Option<Left>,
}

/// What probes that are off left.
pub struct Left {
    /// Where its records are gone on with.
    pub resume: Resume,
    /// Its records, from there on.
    pub ring: RingReader,
    /// Where is written down what of it is in the spool.
    pub progress: Progress,
    /// What it counted.
    pub counters: Vec<ProbeCounters>,
    /// Failed calls that it counted, that no record carries, and that are not told.
    pub folded: Vec<FailedSyscall>,
    /// The drain that they are.
    pub drained: u64,
}

impl Found {
    pub(super) const fn new(resume: Resume) -> Self {
        Self { resume, adopted: Vec::new(), earlier: Vec::new() }
    }

    /// What is attached now. Where the program is a new one, the kernel counts about it anew.
    pub(super) fn attached(&mut self, attachments: &[Attachment]) {
        for attachment in
            attachments.iter().filter(|attachment| attachment.name == attachment.probe.program())
        {
            if !attachment.is_fresh {
                self.adopted.push(attachment.probe);
            } else if let Some(told) = self.resume.mark.kernel.get_mut(attachment.probe as usize) {
                told.missed = 0;
            }
        }
    }
}

impl Earlier {
    /// Detaches what is left of a version, and opens what it recorded and counted.
    pub(super) fn take(version: Version, newest: Option<Position>) -> Self {
        let name = version.name();
        let is_known = name.split_once('-').is_some_and(|(layout, _)| layout == PINNED_LAYOUT.to_string());
        let ended = version.detach().map_err(|error| reason(&error)).and_then(|_removed| {
            folds::wait_for_running_programs().map_err(|error| reason(&error))?;
            is_known.then(|| left(&version, newest)).transpose()
        });
        let left = ended.unwrap_or_else(|error| {
            tracing::warn!(error, name, "what another version recorded cannot be read");
            None
        });
        Self { version, left }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.version.name()
    }

    /// Removes it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(&self) -> Result<(), PinsError> {
        self.version.remove().map(drop)
    }
}

fn left(version: &Version, newest: Option<Position>) -> Result<Left, String> {
    let pinned = |name: &str| MapData::from_pin(version.map(name)).map_err(|error| reason(&error));
    let refused = |error: MapError| reason(&error);
    let mut ring = RingReader::new(pinned("RECORDS")?).map_err(|error| reason(&error))?;
    let mut progress = Progress::open(version)?;
    let resume = progress.resume(ring.first(), newest).map_err(refused)?;
    if !ring.resume(resume.place) {
        return Err("its ring and what is written down of it do not fit together".to_owned());
    }
    ring.write_down(Progress::freed(version));
    let stats = Map::from_map_data(pinned("STATS")?).and_then(PerCpuArray::try_from).map_err(refused)?;
    let counters = ProbeId::ALL.into_iter().map(|probe| counters(&stats, probe));
    let counters = counters.collect::<Result<_, _>>().map_err(refused)?;
    let fold_map = |name| -> Result<HashMap<MapData, FoldKey, FoldValue>, String> {
        Map::from_map_data(pinned(name)?).and_then(HashMap::try_from).map_err(refused)
    };
    let active: Array<MapData, u32> =
        Map::from_map_data(pinned("FOLDS_ACTIVE")?).and_then(Array::try_from).map_err(refused)?;
    let folds = Folds::new(fold_map("FOLDS_EVEN")?, fold_map("FOLDS_ODD")?, active);
    let mut folded = Vec::new();
    let drained = folds
        .read_all(resume.mark.reached.drained, |failed| folded.push(*failed))
        .map_err(|error| reason(&error))?;
    Ok(Left { resume, ring, progress, counters, folded, drained })
}

fn counters(stats: &PerCpuArray<MapData, ProbeStats>, probe: ProbeId) -> Result<ProbeCounters, MapError> {
    let mut sum = sum_of(stats, probe as u32)?;
    if probe == ProbeId::TcpState {
        sum.add(&sum_of(stats, TCP_STATE_AGAIN_SLOT)?);
    }
    Ok(ProbeCounters { probe, stats: sum, run: None })
}

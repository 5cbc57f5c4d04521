//! The durable road in one hand: accepted frames in, blocks for the store out, without clock, network and threads.
//!
//! For simulations, which drive the very types that the tier's threads drive, on a disk and a store of their own. Must
//! never be a second road: whatever decides anything is in [`crate::pipeline`].

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tapio_daemon::Registry;
use tapio_schemas::{ids::SourceId, units::UnixMicros};
use tapio_spool::{Ordinal, SpoolConfig, SpoolError, disk::Disk};
use tapio_wire::{Position, session::SourceState};

pub use crate::pipeline::{
    cut::{Fragment, Place as FragmentPlace},
    encode::EncoderError,
    start::StartError,
    writer::{Moment, Step, WriterError},
};
use crate::{
    context::Context,
    losses::Losses,
    metrics::Metrics,
    pipeline::{
        encode::{Encoder, Own},
        journal::{Append, Journal, Receipt, Shared},
        positions::Positions,
        record::{self, Kind},
        start::{self, Opened, Place},
        writer::{Parts, Writer},
    },
};

/// What a road is opened with.
pub struct RoadConfig<'a> {
    /// Where its state is.
    pub disk: Arc<dyn Disk>,
    /// The state directory.
    pub root: PathBuf,
    /// The spool's shape.
    pub spool: SpoolConfig,
    /// Stored frames stay in the spool for this long.
    pub replay_window: Duration,
    /// Whose road it is, as rows of its own name it.
    pub source: SourceId,
    /// Makes the numbers of new spools.
    pub random: &'a mut dyn FnMut() -> u128,
}

/// The road.
pub struct Road {
    journal: Journal,
    writer: Writer,
    shared: Arc<Shared>,
    positions: Arc<Positions>,
    group: Vec<Append>,
}

/// Why a road is not opened.
#[derive(Debug, thiserror::Error)]
pub enum RoadError {
    /// What is on the disk cannot be used.
    #[error(transparent)]
    Start(#[from] StartError),
    /// There is no encoder.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// The directory cannot be made.
    #[error("cannot create {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

impl Road {
    /// Opens what is on the disk.
    ///
    /// # Errors
    /// When the disk refuses, or what is on it cannot be used.
    pub fn open(config: RoadConfig<'_>, now: Instant, unix: UnixMicros) -> Result<Self, RoadError> {
        let RoadConfig { disk, root, spool, replay_window, source, random } = config;
        let positions = Arc::new(Positions::default());
        let place = Place {
            root: &root,
            spool: &make(&*disk, &root)?,
            disk,
            config: spool,
            now: unix,
            random: &mut || Ok(random()),
        };
        let Opened { spool, marks, stored, pending, announcements } = start::open(place, &positions)?;
        let own = Own {
            tenant: "default".to_owned(),
            cluster: "simulated".to_owned(),
            node_prefix: "spiffe://simulated/".to_owned(),
            name: "simulated".to_owned(),
            source,
        };
        let mut encoder = Encoder::new(own, Context::default())?;
        announcements.iter().for_each(|(_node, announcement)| encoder.remember(announcement));
        let parts = Parts {
            reader: spool.read_from(Ordinal(stored.until)),
            marks,
            stored,
            pending,
            encoder,
            positions: Arc::clone(&positions),
            losses: Arc::new(Losses::new(unix)),
            metrics: Metrics::register(&Registry::new()).store,
            replay_window,
        };
        let shared = Arc::new(Shared::default());
        let journal = Journal::new(spool, Arc::clone(&shared));
        Ok(Self { journal, writer: Writer::new(parts, now), shared, positions, group: Vec::new() })
    }

    /// How far a source's frames have come; `None` when too many sources are known.
    #[must_use]
    pub fn known(&self, source: SourceId) -> Option<SourceState> {
        let marks = self.positions.of(source)?.marks();
        Some(SourceState { accepted: marks.accepted, received: marks.received, stored: marks.stored })
    }

    /// Takes a frame that `node` sent, to be committed with the next group; false when it came before.
    pub fn accept(
        &mut self,
        source: SourceId,
        position: Position,
        node: &str,
        arrival: UnixMicros,
        frame: Bytes,
    ) -> bool {
        let Some(of_source) = self.positions.of(source) else { return false };
        let group = &mut self.group;
        let receipt = Some(Receipt { source: Arc::clone(&of_source), position });
        let head = record::head(Kind::Frame, arrival, node);
        of_source.accept(position, || group.push(Append { head, body: frame, receipt, room: None }))
    }

    /// Frames that wait for the disk.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.group.len()
    }

    /// Commits what waits.
    ///
    /// # Errors
    /// `Full` and `DiskFull` may be tried again; after any other the road is to be opened anew.
    pub fn commit(&mut self) -> Result<(), SpoolError> {
        let committed = self.journal.commit(&mut self.group);
        let is_disk_full = matches!(committed, Err(SpoolError::DiskFull { .. }));
        self.shared.set_disk_full(is_disk_full);
        committed
    }

    /// What the store is to do next.
    ///
    /// # Errors
    /// A full disk may be tried again; after any other the road is to be opened anew.
    pub fn step(&mut self, now: Instant, unix: UnixMicros) -> Result<Step<'_>, WriterError> {
        let synced = self.shared.synced();
        self.writer.step(Moment { now, unix, synced, is_draining: false })
    }

    /// Answers [`Step::Fence`].
    pub fn fenced(&mut self) {
        self.writer.fenced();
    }

    /// Answers [`Step::AskFragments`].
    pub fn gathered(&mut self, fragments: Vec<Fragment>) {
        self.writer.gathered(fragments);
    }

    /// Answers [`Step::Reconcile`].
    pub fn reconciled(&mut self) {
        self.writer.reconciled();
    }

    /// Answers [`Step::AskLastFrames`].
    pub fn learned(&mut self, frames: Vec<(SourceId, Position)>, unix: UnixMicros) {
        self.writer.learned(frames, unix);
    }

    /// Answers [`Step::AskFramesOfCut`].
    ///
    /// # Errors
    /// When the block cannot be encoded.
    pub fn checked(&mut self, complete: &BTreeSet<(SourceId, Position)>) -> Result<(), WriterError> {
        self.writer.checked(complete)
    }

    /// Answers [`Step::Insert`].
    pub fn inserted(&mut self) {
        self.writer.inserted();
    }

    /// Lets the spool go of what it need not keep.
    ///
    /// # Errors
    /// When the spool cannot be changed: the road is then to be opened anew.
    pub fn trim(&mut self, now: Instant) -> Result<(), SpoolError> {
        let Some(until) = self.writer.take_trim(now, self.shared.is_disk_full()) else { return Ok(()) };
        self.shared.trim(until);
        self.journal.trim()
    }

    /// How many records are on the disk and not stored.
    #[must_use]
    pub fn not_stored(&self) -> u64 {
        self.shared.synced().saturating_sub(self.writer.stored_until())
    }
}

/// Makes the directories; returns that of the spool.
fn make(disk: &dyn Disk, root: &Path) -> Result<PathBuf, RoadError> {
    let spool = root.join("spool");
    let made = disk.create_dir_all(&spool);
    made.map_err(|source| RoadError::Directory { path: spool.clone(), source })?;
    Ok(spool)
}

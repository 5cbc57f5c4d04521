//! The spool of received frames, and whoever waits until a frame is in it.
//!
//! Appends in groups, forces them to the disk, and only then says *received*. Without clock, network and threads: the
//! thread of [`super::spooler`] drives it, and waits where the spool or its disk is full.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use bytes::Bytes;
use tapio_spool::{Ordinal, Spool, SpoolError};
use tapio_wire::Position;
use tokio::sync::OwnedSemaphorePermit;

use super::positions::SourcePosition;

/// A record to append.
#[derive(Debug)]
pub(crate) struct Append {
    /// Head and name.
    pub(crate) head: Vec<u8>,
    /// The body.
    pub(crate) body: Bytes,
    /// Who waits for it.
    pub(crate) receipt: Option<Receipt>,
    /// The room that it takes among the bytes under way; given back once it is on the disk.
    pub(crate) room: Option<OwnedSemaphorePermit>,
}

impl Append {
    /// Its bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// Whom to tell that a frame is on the disk.
#[derive(Debug)]
pub(crate) struct Receipt {
    pub(crate) source: Arc<SourcePosition>,
    pub(crate) position: Position,
}

/// What the journal and the others know of each other without a queue between them.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    synced: AtomicU64,
    trim: AtomicU64,
    used_bytes: AtomicU64,
    disk_full: AtomicBool,
    closing: AtomicBool,
}

impl Shared {
    /// Everything below is on the disk. The writer reads no further: what a power cut may take must not be cut into a
    /// block.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Says that records below are no longer needed. Not a command, because a full spool's queue is full too.
    pub(crate) fn trim(&self, until: u64) {
        self.trim.fetch_max(until, Ordering::AcqRel);
    }

    /// Bytes that the spool uses.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Acquire)
    }

    /// Whether the disk has no room for what waits: what is stored is then not kept for the engine's replay.
    pub(crate) fn is_disk_full(&self) -> bool {
        self.disk_full.load(Ordering::Acquire)
    }

    /// Notes whether the disk has no room for what waits.
    pub(crate) fn set_disk_full(&self, is_full: bool) {
        self.disk_full.store(is_full, Ordering::Release);
    }

    /// Says that a full spool is no longer waited for: what is not acknowledged is sent again.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Whether a full spool is no longer waited for.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }
}

/// The spool's owner.
#[derive(Debug)]
pub(crate) struct Journal {
    spool: Spool,
    shared: Arc<Shared>,
}

impl Journal {
    /// The journal in `spool`; what is in it already is on the disk.
    pub(crate) fn new(spool: Spool, shared: Arc<Shared>) -> Self {
        shared.synced.store(spool.synced().0, Ordering::Release);
        shared.used_bytes.store(spool.used_bytes(), Ordering::Release);
        Self { spool, shared }
    }

    /// Writes a group with one call, forces it to the disk, and tells those who wait. The group is then empty.
    ///
    /// # Errors
    /// `Full` and `DiskFull` leave the group as it is, to be tried again; after any other the process must start again,
    /// and nobody was told.
    pub(crate) fn commit(&mut self, group: &mut Vec<Append>) -> Result<(), SpoolError> {
        let parts: Vec<[&[u8]; 2]> =
            group.iter().map(|append| [append.head.as_slice(), append.body.as_ref()]).collect();
        let records: Vec<&[&[u8]]> = parts.iter().map(<[&[u8]; 2]>::as_slice).collect();
        self.spool.append_batch(&records)?;
        let synced = self.spool.sync()?;
        self.shared.synced.store(synced.0, Ordering::Release);
        self.note_used();
        for append in group.drain(..) {
            if let Some(receipt) = append.receipt {
                receipt.source.received(receipt.position);
            }
            drop(append.room);
        }
        Ok(())
    }

    /// Lets go of what [`Shared::trim`] says.
    ///
    /// # Errors
    /// When the spool cannot be changed.
    pub(crate) fn trim(&mut self) -> Result<(), SpoolError> {
        self.spool.trim_until(Ordinal(self.shared.trim.load(Ordering::Acquire)))?;
        self.note_used();
        Ok(())
    }

    /// Ends in order.
    ///
    /// # Errors
    /// When the spool's end cannot be forced to the disk.
    pub(crate) fn close(self) -> Result<(), SpoolError> {
        self.spool.close()
    }

    fn note_used(&self) {
        self.shared.used_bytes.store(self.spool.used_bytes(), Ordering::Release);
    }
}

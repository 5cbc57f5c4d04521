//! From records of the spool to the blocks of all tables.
//!
//! The same records give the same rows: that is what makes a cut repeatable. (Names of pods may have changed in
//! between; the token decides, so a block is stored with the names of its first try or its second, never both.) Keeps
//! its buffers from block to block. Called by [`super::store`] only.

mod capabilities;
mod events;

use std::collections::{BTreeMap, BTreeSet};

use tapio_schemas::{
    batch::BatchView,
    ids::{FrameId, Incarnation, Sequence, SourceId},
    ledger::{Fate, Ledger, Stage},
    units::UnixMicros,
};
use tapio_store::native::{BlockBuilder, BlockError, EncodedBlock};
use tapio_wire::{
    Position,
    frame::{FrameDecoder, FrameFault, FrameLimits},
};
use thiserror::Error;

use self::{
    capabilities::{Capabilities, Described},
    events::EventRows,
};
use super::{
    cut::{Fragments, Place},
    record::{Kind, Record},
};
use crate::{
    context::Context,
    source::{Announcement, GivenUp},
};

/// The tables of a cut, in the order of the inserts: a frame that has its row in `frames` is complete.
pub(crate) const TABLES: [&str; 4] = ["events", "ledger", "sources", "frames"];

const LEDGER_COLUMNS: [(&str, &str); 13] = [
    ("tenant", "LowCardinality(String)"),
    ("cluster", "LowCardinality(String)"),
    ("node", "LowCardinality(String)"),
    ("source_id", "FixedString(16)"),
    ("incarnation", "UInt64"),
    ("sequence", "UInt64"),
    ("since", "DateTime64(6, 'UTC')"),
    ("until", "DateTime64(6, 'UTC')"),
    ("stage", "LowCardinality(String)"),
    ("fate", "LowCardinality(String)"),
    ("subject", "LowCardinality(String)"),
    ("reason", "LowCardinality(String)"),
    ("count", "UInt64"),
];

const SOURCE_COLUMNS: [(&str, &str); 12] = [
    ("tenant", "LowCardinality(String)"),
    ("cluster", "LowCardinality(String)"),
    ("node", "LowCardinality(String)"),
    ("source_id", "FixedString(16)"),
    ("spiffe_id", "String"),
    ("incarnation", "UInt64"),
    ("capability", "String"),
    ("agent_version", "LowCardinality(String)"),
    ("kernel_release", "LowCardinality(String)"),
    ("architecture", "LowCardinality(String)"),
    ("limits", "String"),
    ("last_seen", "DateTime64(6, 'UTC')"),
];

const FRAME_COLUMNS: [(&str, &str); 11] = [
    ("tenant", "LowCardinality(String)"),
    ("cluster", "LowCardinality(String)"),
    ("node", "LowCardinality(String)"),
    ("source_id", "FixedString(16)"),
    ("incarnation", "UInt64"),
    ("sequence", "UInt64"),
    ("events", "UInt32"),
    ("batch_version", "UInt16"),
    ("received_at", "DateTime64(6, 'UTC')"),
    ("cut", "UInt64"),
    ("aggregator", "LowCardinality(String)"),
];

/// What all rows of a frame share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameScope<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) cluster: &'a str,
    pub(crate) node: &'a str,
    pub(crate) id: FrameId,
}

/// Who the aggregator is, as rows of its own need it.
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) tenant: String,
    pub(crate) cluster: String,
    /// The SPIFFE URI up to a node's name, which is what a node's record has to add.
    pub(crate) node_prefix: String,
    /// Its own name.
    pub(crate) name: String,
    /// Its own source id.
    pub(crate) source: SourceId,
}

/// What is known of a source in a block.
#[derive(Clone, Debug, Default)]
struct SourceRow {
    node: String,
    last_seen: UnixMicros,
}

/// A block and where it goes.
#[derive(Debug)]
pub(crate) struct TableBlock {
    pub(crate) table: &'static str,
    pub(crate) block: EncodedBlock,
}

/// Why there is no encoder. Both are faults of this program or machine, not of data.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// A column's type is not known to the block writer.
    #[error("the tables' columns cannot be encoded")]
    Block(#[from] BlockError),
    /// There is no memory for the decompressor.
    #[error("frames cannot be opened")]
    Frame(#[from] FrameFault),
}

/// The blocks being filled.
pub(crate) struct Encoder {
    own: Own,
    context: Context,
    decoder: FrameDecoder,
    events: EventRows,
    ledger: BlockBuilder,
    sources_block: BlockBuilder,
    frames_block: BlockBuilder,
    sources: BTreeMap<(SourceId, u64), SourceRow>,
    /// What each source's incarnation said of itself last; rows of later blocks repeat it.
    capabilities: Capabilities,
    frames: Vec<(SourceId, Position)>,
    given_up: Vec<(SourceId, Position)>,
    /// The first record of the blocks.
    cut: u64,
}

impl Encoder {
    pub(crate) fn new(own: Own, context: Context) -> Result<Self, EncoderError> {
        Ok(Self {
            own,
            context,
            decoder: FrameDecoder::new(FrameLimits::default())?,
            events: EventRows::new()?,
            ledger: BlockBuilder::new(LEDGER_COLUMNS)?,
            sources_block: BlockBuilder::new(SOURCE_COLUMNS)?,
            frames_block: BlockBuilder::new(FRAME_COLUMNS)?,
            sources: BTreeMap::new(),
            capabilities: Capabilities::new(capabilities::SOURCES_MAX),
            frames: Vec::new(),
            given_up: Vec::new(),
            cut: 0,
        })
    }

    /// Starts the next blocks, whose first record is `cut`.
    pub(crate) fn begin(&mut self, cut: u64) {
        self.cut = cut;
        self.events.clear();
        self.ledger.clear();
        self.sources_block.clear();
        self.frames_block.clear();
        self.sources.clear();
        self.frames.clear();
        self.given_up.clear();
    }

    /// Rows of events so far.
    pub(crate) fn event_rows(&self) -> usize {
        self.events.rows()
    }

    /// The frames in the blocks so far.
    pub(crate) fn frames(&self) -> &[(SourceId, Position)] {
        &self.frames
    }

    /// The places of the frames in the blocks so far, and of those that were given up.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (SourceId, Position)> {
        self.frames.iter().chain(&self.given_up).copied()
    }

    /// Adds a record, the `ordinal`-th of the spool, but for what `fragments` says that the store has of it.
    pub(crate) fn push(
        &mut self,
        ordinal: u64,
        record: &Record<'_>,
        fragments: &Fragments,
    ) -> Result<(), String> {
        match record.kind {
            Kind::Frame => self.push_frame(record, fragments),
            Kind::OwnLedger => {
                let ledger: Ledger =
                    serde_json::from_slice(record.body).map_err(|error| error.to_string())?;
                // The ordinal is unique in the life of the spool, as a sequence must be in the life of a source.
                let id = FrameId {
                    source: self.own.source,
                    incarnation: Incarnation(1),
                    sequence: Sequence(ordinal + 1),
                };
                push_ledger(&mut self.ledger, &self.own, record.name, id, &ledger);
                Ok(())
            }
            Kind::Source => {
                let announcement: Announcement =
                    serde_json::from_slice(record.body).map_err(|error| error.to_string())?;
                self.remember(&announcement);
                let row = self.sources.entry((announcement.source, announcement.incarnation.0)).or_default();
                record.name.clone_into(&mut row.node);
                row.last_seen = row.last_seen.max(record.arrival);
                Ok(())
            }
            Kind::GivenUp => {
                let given_up: GivenUp =
                    serde_json::from_slice(record.body).map_err(|error| error.to_string())?;
                let position = Position::new(given_up.incarnation, given_up.sequence);
                let mut ledger = Ledger { since: record.arrival, until: record.arrival, entries: Vec::new() };
                // Of a frame without a sound header not even the number is known; it had at least one event.
                let events = u64::from(given_up.events.max(1));
                ledger.add(Stage::Intake, Fate::Lost, "events", &given_up.fault, events);
                let id = position.of_source(given_up.source);
                if !has_ledger(fragments.of(given_up.source, position)) {
                    push_ledger(&mut self.ledger, &self.own, record.name, id, &ledger);
                }
                self.given_up.push((given_up.source, position));
                Ok(())
            }
        }
    }

    /// Remembers what a source says of itself: every row of the source repeats it.
    pub(crate) fn remember(&mut self, announcement: &Announcement) {
        let described = Described {
            capability: serde_json::to_string(&announcement.capability).unwrap_or_default(),
            agent_version: announcement.agent_version.clone(),
            kernel_release: announcement.kernel_release.clone(),
            architecture: announcement.architecture.clone(),
            limits: serde_json::to_string(&announcement.limits).unwrap_or_default(),
        };
        self.capabilities.put(announcement.source, announcement.incarnation.0, described);
    }

    fn push_frame(&mut self, record: &Record<'_>, fragments: &Fragments) -> Result<(), String> {
        let Self { own, context, decoder, events, ledger, frames_block, cut, .. } = self;
        let (header, view) = decoder.decode(record.body, None).map_err(|error| error.to_string())?;
        let (id, view) = (header.meta.id, &view);
        let scope = FrameScope { tenant: &own.tenant, cluster: &own.cluster, node: record.name, id };
        let present = fragments.of(id.source, id.into());
        events.push(&scope, view, &context.pods(), present);
        if !has_ledger(present) {
            push_ledger(ledger, own, record.name, id, &view.ledger());
        }
        push_frame_row(frames_block, own, &scope, view, record.arrival, *cut);
        self.frames.push((id.source, id.into()));
        let row = self.sources.entry((id.source, id.incarnation.0)).or_default();
        if row.node.is_empty() {
            record.name.clone_into(&mut row.node);
        }
        row.last_seen = row.last_seen.max(record.arrival);
        Ok(())
    }

    /// The blocks that have rows, in the order in which they are to be inserted.
    pub(crate) fn blocks(&mut self) -> Result<Vec<TableBlock>, BlockError> {
        self.sources_block.clear();
        let unknown = Described { capability: "[]".to_owned(), ..Described::default() };
        for ((source, incarnation), row) in &self.sources {
            let described = self.capabilities.get(*source, *incarnation).unwrap_or(&unknown);
            for (name, column) in self.sources_block.columns() {
                match name {
                    "tenant" => column.push_bytes(self.own.tenant.as_bytes()),
                    "cluster" => column.push_bytes(self.own.cluster.as_bytes()),
                    "node" => column.push_bytes(row.node.as_bytes()),
                    "source_id" => column.push_sixteen(source.0),
                    "spiffe_id" => {
                        column.push_bytes(format!("{}{}", self.own.node_prefix, row.node).as_bytes());
                    }
                    "incarnation" => column.push_unsigned(*incarnation),
                    "capability" => column.push_bytes(described.capability.as_bytes()),
                    "agent_version" => column.push_bytes(described.agent_version.as_bytes()),
                    "kernel_release" => column.push_bytes(described.kernel_release.as_bytes()),
                    "architecture" => column.push_bytes(described.architecture.as_bytes()),
                    "limits" => column.push_bytes(described.limits.as_bytes()),
                    _ => column.push_unsigned(row.last_seen.0),
                }
            }
        }
        let mut blocks = Vec::with_capacity(TABLES.len());
        for table in TABLES {
            let (rows, block) = match table {
                "events" => (self.events.rows(), self.events.encode()),
                "ledger" => (self.ledger.rows(), self.ledger.encode()),
                "sources" => (self.sources_block.rows(), self.sources_block.encode()),
                _ => (self.frames_block.rows(), self.frames_block.encode()),
            };
            if rows > 0 {
                blocks.push(TableBlock { table, block: block? });
            }
        }
        Ok(blocks)
    }
}

fn has_ledger(present: Option<&BTreeSet<Place>>) -> bool {
    present.is_some_and(|present| present.contains(&Place::Ledger))
}

fn push_ledger(block: &mut BlockBuilder, own: &Own, node: &str, id: FrameId, ledger: &Ledger) {
    for entry in &ledger.entries {
        for (name, column) in block.columns() {
            match name {
                "tenant" => column.push_bytes(own.tenant.as_bytes()),
                "cluster" => column.push_bytes(own.cluster.as_bytes()),
                "node" => column.push_bytes(node.as_bytes()),
                "source_id" => column.push_sixteen(id.source.0),
                "incarnation" => column.push_unsigned(id.incarnation.0),
                "sequence" => column.push_unsigned(id.sequence.0),
                "since" => column.push_unsigned(ledger.since.0),
                "until" => column.push_unsigned(ledger.until.0),
                "stage" => column.push_bytes(entry.stage.as_str().as_bytes()),
                "fate" => column.push_bytes(entry.fate.as_str().as_bytes()),
                "subject" => column.push_bytes(entry.subject.as_bytes()),
                "reason" => column.push_bytes(entry.reason.as_bytes()),
                _ => column.push_unsigned(entry.count),
            }
        }
    }
}

fn push_frame_row(
    block: &mut BlockBuilder,
    own: &Own,
    scope: &FrameScope<'_>,
    view: &BatchView<'_>,
    arrival: UnixMicros,
    cut: u64,
) {
    for (name, column) in block.columns() {
        match name {
            "tenant" => column.push_bytes(scope.tenant.as_bytes()),
            "cluster" => column.push_bytes(scope.cluster.as_bytes()),
            "node" => column.push_bytes(scope.node.as_bytes()),
            "source_id" => column.push_sixteen(scope.id.source.0),
            "incarnation" => column.push_unsigned(scope.id.incarnation.0),
            "sequence" => column.push_unsigned(scope.id.sequence.0),
            "events" => column.push_unsigned(u64::from(view.rows())),
            "batch_version" => column.push_unsigned(u64::from(view.version())),
            "received_at" => column.push_unsigned(arrival.0),
            "aggregator" => column.push_bytes(own.name.as_bytes()),
            _ => column.push_unsigned(cut),
        }
    }
}

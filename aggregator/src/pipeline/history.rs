//! What the store itself knows of frames: asked when the marks on this disk cannot say it.
//!
//! A frame that has a row in `frames` is complete, because that row is inserted last. So after the marks were lost the
//! frames that are stored are known, and after a crash whether a cut that was under way was stored as a whole. What
//! this cannot see is a cut that reached some of its tables: of it the tokens keep a second copy out, as long as the
//! tables remember them. Called by [`super::store`] only.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;
use tapio_schemas::ids::SourceId;
use tapio_store::client::{ClientError, Endpoint, Parameter, ReadLimits, Reader};
use tapio_wire::Position;

use super::positions::SOURCES_MAX;

/// Frames of one cut: no block of this many bytes has more.
const FRAMES_PER_CUT_MAX: u64 = 1_000_000;
/// How long a question may take: it goes through the frames of weeks.
const TIME_MAX: Duration = Duration::from_secs(60);
/// How long ago frames are looked for: older ones are refused for their age.
const DAYS_MAX: u64 = 15;

/// Asks the table `frames`.
#[derive(Debug)]
pub(crate) struct History {
    reader: Reader,
    tenant: String,
    cluster: String,
}

#[derive(Deserialize)]
struct Frame {
    source: SourceId,
    incarnation: u64,
    sequence: u64,
}

impl Frame {
    const fn position(&self) -> (SourceId, Position) {
        (self.source, Position::new(self.incarnation, self.sequence))
    }
}

impl History {
    pub(crate) fn new(endpoint: &Endpoint, tenant: &str, cluster: &str) -> Self {
        let limits = ReadLimits { rows_max: FRAMES_PER_CUT_MAX, time_max: TIME_MAX, ..ReadLimits::default() };
        Self { reader: Reader::new(endpoint, limits), tenant: tenant.to_owned(), cluster: cluster.to_owned() }
    }

    /// The last complete frame of each source, of those that were heard last if there are too many.
    ///
    /// # Errors
    /// The server's refusal, or the network's.
    pub(crate) async fn last_frames(&self) -> Result<Vec<(SourceId, Position)>, ClientError> {
        let statement = "SELECT lower(hex(source_id)) AS source, tupleElement(last, 1) AS incarnation, \
             tupleElement(last, 2) AS sequence FROM (\
               SELECT source_id, max((incarnation, sequence)) AS last, max(received_at) AS heard FROM tapio.frames \
               WHERE tenant = {tenant:String} AND cluster = {cluster:String} \
                 AND received_at > now() - toIntervalDay({days:UInt64}) \
               GROUP BY source_id ORDER BY heard DESC LIMIT {sources:UInt64})";
        let parameters = [
            ("tenant", Parameter::from(self.tenant.as_str())),
            ("cluster", Parameter::from(self.cluster.as_str())),
            ("days", Parameter::Unsigned(DAYS_MAX)),
            ("sources", Parameter::Unsigned(SOURCES_MAX as u64)),
        ];
        let frames: Vec<Frame> = self.reader.rows(statement, &parameters).await?;
        Ok(frames.iter().map(Frame::position).collect())
    }

    /// The complete frames of the cut that began with record `cut`.
    ///
    /// # Errors
    /// The server's refusal, or the network's.
    pub(crate) async fn frames_of_cut(
        &self,
        cut: u64,
    ) -> Result<BTreeSet<(SourceId, Position)>, ClientError> {
        let statement = "SELECT lower(hex(source_id)) AS source, incarnation, sequence FROM tapio.frames \
             WHERE tenant = {tenant:String} AND cluster = {cluster:String} AND cut = {cut:UInt64} \
               AND received_at > now() - toIntervalDay({days:UInt64})";
        let parameters = [
            ("tenant", Parameter::from(self.tenant.as_str())),
            ("cluster", Parameter::from(self.cluster.as_str())),
            ("cut", Parameter::Unsigned(cut)),
            ("days", Parameter::Unsigned(DAYS_MAX)),
        ];
        let frames: Vec<Frame> = self.reader.rows(statement, &parameters).await?;
        Ok(frames.iter().map(Frame::position).collect())
    }
}

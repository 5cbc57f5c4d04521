//! What the store itself knows of frames: asked when the marks on this disk cannot say it.
//!
//! A frame that has a row in `frames` is complete, because that row is inserted last. So after the marks were lost the
//! frames that are stored are known, and after a crash whether a cut that was under way was stored as a whole. A cut that
//! reached some of its tables shows as rows of frames that are not complete; whether those were rolled up is not known,
//! and is made true. Before any of that, inserts of earlier lives are fenced off. Called by [`super::store`] only.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;
use tapio_schemas::ids::SourceId;
use tapio_store::client::{
    ClientError, Endpoint, Parameter, ReadLimits, Reader, SessionId, session::Sessions,
};
use tapio_wire::Position;

use super::{
    cut::{Fragment, Place},
    encode::Own,
    positions::SOURCES_MAX,
};

/// Frames of one cut: no block of this many bytes has more.
const FRAMES_PER_CUT_MAX: u64 = 1_000_000;
/// How long a question may take: it goes through the frames of weeks.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Frames that one statement names.
const FRAMES_PER_QUESTION_MAX: usize = 1_000;
/// How long ago frames are looked for: older ones are refused for their age.
const DAYS_MAX: u64 = 15;

/// Asks the table `frames`.
#[derive(Debug)]
pub(crate) struct History {
    reader: Reader,
    sessions: Sessions,
    own: Own,
    /// The session that this life inserts in.
    session: SessionId,
}

#[derive(Deserialize)]
struct WriterRow {
    session: String,
}

#[derive(Deserialize)]
struct FragmentRow {
    source: SourceId,
    incarnation: u64,
    sequence: u64,
    /// The day of the events, since 1970; none is the ledger.
    day: Option<u32>,
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
    /// What the store has for `own`, whose inserts of this life are in `session`.
    pub(crate) fn new(endpoint: &Endpoint, own: Own, session: SessionId) -> Self {
        let limits = ReadLimits { rows_max: FRAMES_PER_CUT_MAX, time_max: TIME_MAX, ..ReadLimits::default() };
        let sessions = Sessions::new(endpoint, limits);
        Self { reader: Reader::new(endpoint, limits), sessions, own, session }
    }

    /// Fences off the inserts of earlier lives, and opens the session of this one.
    ///
    /// # Errors
    /// The server's refusal, or the network's; while an insert of an earlier life runs, the advice is to retry.
    pub(crate) async fn fence(&self) -> Result<(), ClientError> {
        let statement = "SELECT DISTINCT session FROM tapio.writers WHERE tenant = {tenant:String} \
             AND cluster = {cluster:String} AND aggregator = {aggregator:String} AND session != {session:String}";
        let earlier: Vec<WriterRow> = self.reader.rows(statement, &self.parameters()).await?;
        // First, so that the next life finds it whatever becomes of this one.
        let statement = "INSERT INTO tapio.writers (tenant, cluster, aggregator, session, started_at) \
             SELECT {tenant:String}, {cluster:String}, {aggregator:String}, {session:String}, now64(6)";
        self.reader.execute(statement, &self.parameters()).await?;
        for WriterRow { session } in earlier {
            self.sessions.close(&SessionId::new(session)?).await?;
        }
        self.sessions.open(&self.session).await
    }

    /// Opens the session of this life again, which the server has forgotten; false when a later life of this aggregator
    /// has begun, and closed it.
    ///
    /// # Errors
    /// The server's refusal, or the network's.
    pub(crate) async fn reopen(&self) -> Result<bool, ClientError> {
        // Opened first: a later life that begins between the two closes it again.
        self.sessions.open(&self.session).await?;
        let statement = "SELECT session FROM tapio.writers WHERE tenant = {tenant:String} \
             AND cluster = {cluster:String} AND aggregator = {aggregator:String} ORDER BY started_at DESC LIMIT 1";
        let last: Vec<WriterRow> = self.reader.rows(statement, &self.parameters()).await?;
        let is_last = last.first().is_none_or(|last| last.session == self.session.as_str());
        if !is_last {
            self.sessions.close(&self.session).await?;
        }
        Ok(is_last)
    }

    /// What the tables have of frames that are not complete. Looks at the parts that changed since this aggregator's last
    /// complete frame: a block that is not complete came later.
    ///
    /// # Errors
    /// The server's refusal, or the network's.
    pub(crate) async fn fragments(&self) -> Result<Vec<Fragment>, ClientError> {
        let of = |table: &str, day: &str, time: &str| {
            format!(
                "SELECT DISTINCT source_id, incarnation, sequence, {day} AS day FROM tapio.{table} \
                 WHERE tenant = {{tenant:String}} AND cluster = {{cluster:String}} AND source_id != unhex({{own:String}}) \
                   AND {time} > now() - toIntervalDay({{days:UInt64}}) \
                   AND _part IN (SELECT name FROM system.parts WHERE database = 'tapio' AND table = '{table}' AND active \
                     AND modification_time >= (SELECT max(received_at) FROM tapio.frames \
                       WHERE tenant = {{tenant:String}} AND cluster = {{cluster:String}} \
                         AND aggregator IN ('', {{aggregator:String}}) \
                         AND received_at > now() - toIntervalDay({{days:UInt64}})) - toIntervalSecond(2))"
            )
        };
        let events =
            of("events", "toNullable(toUInt32(toRelativeDayNum(toDate(time_micros))))", "time_micros");
        let ledger = of("ledger", "CAST(NULL, 'Nullable(UInt32)')", "until");
        let statement = format!(
            "SELECT lower(hex(some.source_id)) AS source, some.incarnation AS incarnation, some.sequence AS sequence, \
               some.day AS day FROM ({events} UNION ALL {ledger}) AS some \
             LEFT JOIN (SELECT source_id, max((incarnation, sequence)) AS last FROM tapio.frames \
               WHERE tenant = {{tenant:String}} AND cluster = {{cluster:String}} \
                 AND received_at > now() - toIntervalDay({{days:UInt64}}) GROUP BY source_id) AS complete \
             ON some.source_id = complete.source_id \
             WHERE (some.incarnation, some.sequence) > complete.last"
        );
        let rows: Vec<FragmentRow> = self.reader.rows(&statement, &self.parameters()).await?;
        let fragment = |row: FragmentRow| Fragment {
            source: row.source,
            incarnation: row.incarnation,
            sequence: row.sequence,
            place: row.day.map_or(Place::Ledger, Place::Events),
        };
        Ok(rows.into_iter().map(fragment).collect())
    }

    /// Makes the roll-up say what the events say, of the nodes and minutes of the events of these frames. Nobody else may
    /// store events of those sources meanwhile.
    ///
    /// # Errors
    /// The server's refusal, or the network's.
    pub(crate) async fn reconcile(&self, fragments: &[Fragment]) -> Result<(), ClientError> {
        let of_events = fragments.iter().filter(|fragment| fragment.place != Place::Ledger);
        let frames: BTreeSet<String> = of_events
            .map(|Fragment { source, incarnation, sequence, .. }| {
                format!("(unhex('{source}'), {incarnation}, {sequence})")
            })
            .collect();
        let frames: Vec<String> = frames.into_iter().collect();
        for frames in frames.chunks(FRAMES_PER_QUESTION_MAX) {
            let keys = "tenant, cluster, minute, node, service, kind, intent, severity";
            let frames = frames.join(", ");
            let touched = format!(
                "SELECT DISTINCT node, toDateTime(toStartOfMinute(time_micros), 'UTC') FROM tapio.events \
                 WHERE tenant = {{tenant:String}} AND cluster = {{cluster:String}} \
                   AND time_micros > now() - toIntervalDay({{days:UInt64}}) \
                   AND (source_id, incarnation, sequence) IN ({frames})"
            );
            let statement = format!(
                "INSERT INTO tapio.events_per_minute ({keys}, events, rows, duration_micros) \
                 SELECT {keys}, toUInt64(sum(e)), toUInt64(sum(r)), toUInt64(sum(d)) FROM (\
                   SELECT tenant, cluster, toDateTime(toStartOfMinute(time_micros), 'UTC') AS minute, node, service, kind, \
                     intent, severity, toInt64(sum(count)) AS e, toInt64(count()) AS r, \
                     toInt64(sum(duration_micros)) AS d FROM tapio.events \
                   WHERE tenant = {{tenant:String}} AND cluster = {{cluster:String}} \
                     AND time_micros > now() - toIntervalDay({{days:UInt64}}) AND (node, minute) IN ({touched}) \
                   GROUP BY {keys} \
                   UNION ALL \
                   SELECT {keys}, -toInt64(sum(events)), -toInt64(sum(rows)), -toInt64(sum(duration_micros)) \
                   FROM tapio.events_per_minute \
                   WHERE tenant = {{tenant:String}} AND cluster = {{cluster:String}} AND (node, minute) IN ({touched}) \
                   GROUP BY {keys}) \
                 GROUP BY {keys} HAVING sum(r) > 0"
            );
            self.reader.execute(&statement, &self.parameters()).await?;
        }
        Ok(())
    }

    fn parameters(&self) -> Vec<(&'static str, Parameter)> {
        vec![
            ("tenant", Parameter::from(self.own.tenant.as_str())),
            ("cluster", Parameter::from(self.own.cluster.as_str())),
            ("aggregator", Parameter::from(self.own.name.as_str())),
            ("own", Parameter::from(self.own.source.to_string().as_str())),
            ("session", Parameter::from(self.session.as_str())),
            ("days", Parameter::Unsigned(DAYS_MAX)),
            ("sources", Parameter::Unsigned(SOURCES_MAX as u64)),
        ]
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
        let frames: Vec<Frame> = self.reader.rows(statement, &self.parameters()).await?;
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
               AND aggregator IN ('', {aggregator:String}) \
               AND received_at > now() - toIntervalDay({days:UInt64})";
        let mut parameters = self.parameters();
        parameters.push(("cut", Parameter::Unsigned(cut)));
        let frames: Vec<Frame> = self.reader.rows(statement, &parameters).await?;
        Ok(frames.iter().map(Frame::position).collect())
    }
}

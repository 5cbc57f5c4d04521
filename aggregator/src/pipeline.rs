//! The road from an accepted frame to ClickHouse's rows: the spool, the cut, the encoder, the feeder.
//!
//! Everything here works on frames as they arrived and reads them in place; the owned event is never made (the
//! architecture test looks for it). The intake hands frames over, the sessions read how far they came.

pub(crate) mod cut;
pub(crate) mod encode;
pub(crate) mod history;
pub(crate) mod positions;
pub(crate) mod record;
pub(crate) mod spooler;
pub(crate) mod store;

//! The road from an accepted frame to ClickHouse's rows: the spool, the cut, the encoder, the writer.
//!
//! [`start`] opens what is on the disk, [`journal`] and [`writer`] decide, without clock, network and threads; the
//! threads of [`spooler`] and [`store`] drive them.
//!
//! Everything here works on frames as they arrived and reads them in place; the owned event is never made (the
//! architecture test looks for it). The intake hands frames over, the sessions read how far they came.

pub(crate) mod cut;
pub(crate) mod encode;
pub(crate) mod history;
pub(crate) mod journal;
pub(crate) mod positions;
pub(crate) mod record;
pub(crate) mod spooler;
pub(crate) mod start;
pub(crate) mod store;
pub(crate) mod writer;

//! A frame: one batch, compressed with zstd, behind a header that is frozen for ever.
//!
//! [`FrameEncoder`] is called by a source for every batch that it ships, [`FrameHeader::parse`] by whoever stores or
//! forwards frames without looking inside, [`FrameDecoder`] by the aggregator's intake.

mod codec;
mod fault;
mod header;

pub use codec::{FrameDecoder, FrameEncoder, FrameLimits};
pub use fault::FrameFault;
pub use header::{FrameHeader, FrameMeta, HEADER_BYTES, HEADER_BYTES_MAX, Lane, MAGIC};

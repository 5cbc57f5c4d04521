//! Compresses batches into frames and opens frames into batches, with contexts and buffers that are kept.

use tapio_schemas::{
    batch::{AlignedVec, BatchView},
    ids::SourceId,
};
use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::{CParameter, InBuffer, OutBuffer, ResetDirective, compress_bound},
};

use super::{FrameFault, FrameHeader, FrameMeta, HEADER_BYTES};

/// Level 3 costs a third more CPU for 2 % of the bytes.
const COMPRESSION_LEVEL: i32 = 1;

/// How many bytes of a batch are compressed as one block. The compressor has one code for all literals of a block, and
/// planes of different columns want different ones: blocks of about four planes of a full batch take 2 % less than one
/// block for all, shorter ones pay more for their codes than they save.
const BLOCK_BYTES: usize = 4_096;

/// The most dictionaries that a decoder keeps.
const DICTIONARIES_MAX: usize = 16;

/// How large a frame may be. A decoder checks both before it allocates anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// The most bytes of a payload (compressed).
    pub payload_bytes_max: usize,
    /// The most bytes of a batch (uncompressed).
    pub batch_bytes_max: usize,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { payload_bytes_max: 4 << 20, batch_bytes_max: 16 << 20 }
    }
}

impl FrameLimits {
    fn check(&self, payload_bytes: usize, batch_bytes: usize) -> Result<(), FrameFault> {
        let check = |what, declared: usize, limit: usize| {
            let fault = FrameFault::TooLarge { what, declared: declared as u64, limit: limit as u64 };
            if declared > limit { Err(fault) } else { Ok(()) }
        };
        check("payload", payload_bytes, self.payload_bytes_max)?;
        check("batch", batch_bytes, self.batch_bytes_max)
    }
}

/// Makes frames.
pub struct FrameEncoder {
    compressor: Compressor<'static>,
    dictionary: u32,
    limits: FrameLimits,
    /// Keeps its memory from frame to frame.
    payload: Vec<u8>,
}

impl FrameEncoder {
    /// An encoder without a dictionary.
    ///
    /// # Errors
    /// [`FrameFault::Compress`] if there is no memory for the compressor.
    pub fn new(limits: FrameLimits) -> Result<Self, FrameFault> {
        Self::of(Compressor::new(COMPRESSION_LEVEL), 0, limits)
    }

    /// An encoder with the dictionary `bytes` that both sides know as `id` (not 0).
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_dictionary(id: u32, bytes: &[u8], limits: FrameLimits) -> Result<Self, FrameFault> {
        Self::of(Compressor::with_dictionary(COMPRESSION_LEVEL, bytes), id, limits)
    }

    fn of(
        compressor: std::io::Result<Compressor<'static>>,
        dictionary: u32,
        limits: FrameLimits,
    ) -> Result<Self, FrameFault> {
        let mut compressor = compressor.map_err(|_error| FrameFault::Compress)?;
        for parameter in [CParameter::ChecksumFlag(true), CParameter::ContentSizeFlag(true)] {
            compressor.set_parameter(parameter).map_err(|_error| FrameFault::Compress)?;
        }
        Ok(Self { compressor, dictionary, limits, payload: Vec::new() })
    }

    /// Appends the frame of `batch` to `out`; returns its header.
    ///
    /// # Errors
    /// [`FrameFault::TooLarge`] if the batch or its payload exceeds the limits; `out` is then as before.
    pub fn encode(
        &mut self,
        meta: FrameMeta,
        batch: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<FrameHeader, FrameFault> {
        self.limits.check(0, batch.len())?;
        self.compress(batch).map_err(|_code| FrameFault::Compress)?;
        let payload_bytes = self.payload.len();
        self.limits.check(payload_bytes, batch.len())?;
        let header = FrameHeader {
            meta,
            dictionary: self.dictionary,
            header_bytes: HEADER_BYTES,
            payload_bytes,
            batch_bytes: batch.len(),
        };
        out.extend_from_slice(&header.to_bytes()?);
        out.extend_from_slice(&self.payload);
        Ok(header)
    }
}

impl FrameEncoder {
    /// Compresses `batch` to the payload, block by block.
    fn compress(&mut self, batch: &[u8]) -> Result<(), usize> {
        let blocks = batch.len() / BLOCK_BYTES + 1;
        self.payload.clear();
        // Each block has a header of three bytes, also one that cannot be compressed.
        self.payload.reserve(compress_bound(batch.len()) + 8 * blocks);
        let context = self.compressor.context_mut();
        context.reset(ResetDirective::SessionOnly)?;
        context.set_pledged_src_size(Some(batch.len() as u64))?;
        let mut out = OutBuffer::around(&mut self.payload);
        let mut rest = batch;
        loop {
            let (block, behind) = rest.split_at_checked(BLOCK_BYTES).unwrap_or((rest, &[]));
            let mut input = InBuffer::around(block);
            while input.pos() < block.len() {
                let (read, written) = (input.pos(), out.pos());
                context.compress_stream(&mut out, &mut input)?;
                if (input.pos(), out.pos()) == (read, written) {
                    return Err(0);
                }
            }
            if behind.is_empty() {
                break;
            }
            // There is room for all of it, so nothing may be left over.
            if context.flush_stream(&mut out)? != 0 {
                return Err(0);
            }
            rest = behind;
        }
        if context.end_stream(&mut out)? == 0 { Ok(()) } else { Err(0) }
    }
}

/// Opens frames.
pub struct FrameDecoder {
    /// By dictionary id; the first is without a dictionary.
    decompressors: Vec<(u32, Decompressor<'static>)>,
    limits: FrameLimits,
    /// The batch of the last frame; keeps its memory from frame to frame.
    batch: AlignedVec,
}

impl FrameDecoder {
    /// A decoder that knows no dictionary.
    ///
    /// # Errors
    /// [`FrameFault::Compress`] if there is no memory for the decompressor.
    pub fn new(limits: FrameLimits) -> Result<Self, FrameFault> {
        let plain = Decompressor::new().map_err(|_error| FrameFault::Compress)?;
        Ok(Self { decompressors: vec![(0, plain)], limits, batch: AlignedVec::new() })
    }

    /// Makes frames readable that are compressed with dictionary `id`. The oldest of too many is forgotten.
    ///
    /// # Errors
    /// [`FrameFault::Compress`] if the dictionary cannot be loaded, [`FrameFault::UnknownDictionary`] for id 0.
    pub fn add_dictionary(&mut self, id: u32, bytes: &[u8]) -> Result<(), FrameFault> {
        if id == 0 {
            return Err(FrameFault::UnknownDictionary(0));
        }
        let decompressor = Decompressor::with_dictionary(bytes).map_err(|_error| FrameFault::Compress)?;
        self.decompressors.retain(|(known, _decompressor)| *known != id);
        if self.decompressors.len() > DICTIONARIES_MAX {
            self.decompressors.remove(1);
        }
        self.decompressors.push((id, decompressor));
        Ok(())
    }

    /// Opens `frame`, which must be exactly one. `expected` is the source whose certificate it came with; none where
    /// the frame was checked before, for example when it comes from the own spool.
    ///
    /// The view borrows the decoder's buffer, which the next frame reuses.
    ///
    /// # Errors
    /// The first fault found.
    pub fn decode(
        &mut self,
        frame: &[u8],
        expected: Option<SourceId>,
    ) -> Result<(FrameHeader, BatchView<'_>), FrameFault> {
        let header = FrameHeader::parse(frame)?;
        let named = header.meta.id.source;
        if let Some(expected) = expected.filter(|expected| *expected != named) {
            return Err(FrameFault::WrongSource { named, expected });
        }
        self.limits.check(header.payload_bytes, header.batch_bytes)?;
        let payload = frame.get(header.header_bytes..).ok_or(FrameFault::Truncated)?;
        match payload.len().cmp(&header.payload_bytes) {
            std::cmp::Ordering::Less => return Err(FrameFault::Truncated),
            std::cmp::Ordering::Greater => return Err(FrameFault::LengthMismatch),
            std::cmp::Ordering::Equal => {}
        }
        let known = self.decompressors.iter_mut().find(|(id, _decompressor)| *id == header.dictionary);
        let (_id, decompressor) = known.ok_or(FrameFault::UnknownDictionary(header.dictionary))?;
        self.batch.resize(header.batch_bytes, 0);
        // The buffer is exactly as long as declared: a payload that unpacks to more is refused by zstd.
        let unpacked = decompressor
            .decompress_to_buffer(payload, self.batch.as_mut_slice())
            .map_err(|_error| FrameFault::CorruptPayload)?;
        if unpacked != header.batch_bytes {
            return Err(FrameFault::LengthMismatch);
        }
        let view = BatchView::open(&self.batch)?;
        if view.version() != header.meta.batch_version {
            return Err(FrameFault::Contradiction("the version of the batch"));
        }
        if view.rows() != header.meta.events {
            return Err(FrameFault::Contradiction("the number of events"));
        }
        Ok((header, view))
    }
}

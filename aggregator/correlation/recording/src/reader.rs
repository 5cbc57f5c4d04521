//! Reads one file of a recording, entry by entry, in bounded memory. Nothing is believed before its checksum was.

use std::io::{self, Read};

use thiserror::Error;

use crate::{
    entry::{Ending, Entry, Head},
    layout::{FILE_HEAD_BYTES, FORMAT, Kind, MAGIC, RECORD_BYTES_MAX, RECORD_HEAD_BYTES, RecordHead},
};

/// Disks write blocks of so many bytes, or of a multiple.
const DISK_BLOCK_BYTES: u64 = 512;

/// Why a file cannot be read (further). Whoever shows it names the file in front of it.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The system refused to read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// There is nothing in it.
    #[error("is empty: the aggregator ended before it wrote anything there")]
    Empty,
    /// It is something else.
    #[error("is no recording of tapio-aggregator (--record DIR makes them)")]
    NoRecording,
    /// It is of another release.
    #[error(
        "has format {found}, this release reads {FORMAT}: replay it with the release of tapio that recorded it, or a newer one"
    )]
    Format {
        /// Its format.
        found: u32,
    },
    /// What is written is whole, and says something that this release does not know.
    #[error(
        "is of another release: at byte {at}, {what}; replay it with the release of tapio that recorded it, or a newer one"
    )]
    OtherRelease {
        /// Where that stands.
        at: u64,
        /// How it shows.
        what: &'static str,
    },
    /// It ends within its head.
    #[error("ends at byte {at}, within its head: the aggregator ended as it began to write it")]
    NoHead {
        /// How long it is.
        at: u64,
    },
    /// Bytes changed after they were written.
    #[error(
        "is damaged at byte {at} ({what}): what is behind that cannot be trusted; take another copy of the file"
    )]
    Damaged {
        /// Where the damaged record begins.
        at: u64,
        /// How it shows.
        what: &'static str,
    },
}

/// How a file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As its writer said.
    Closed(Ending),
    /// Its writer ended without a word, or is still at it.
    Open {
        /// Where the last whole record ends.
        at: u64,
        /// Bytes behind it, of a record that is not whole.
        cut_bytes: u64,
    },
}

/// Reads one file.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    body: Vec<u8>,
    /// Bytes taken.
    at: u64,
    number: u64,
    end: Option<End>,
}

impl<R: Read> Reader<R> {
    /// Opens a file and returns what it is, and its compiled rule set.
    ///
    /// # Errors
    /// When it is no recording, of another format, or damaged right there.
    pub fn open(input: R) -> Result<(Self, Head, Vec<u8>), ReadError> {
        let mut reader = Self { input, body: Vec::new(), at: 0, number: 0, end: None };
        let mut start = [0; FILE_HEAD_BYTES];
        let got = reader.fill(&mut start)?;
        let (magic, rest) = start.split_first_chunk().unwrap_or((&[0; 8], &[]));
        let seen = magic.get(..got.min(MAGIC.len())).unwrap_or_default();
        if got == 0 {
            return Err(ReadError::Empty);
        } else if !MAGIC.starts_with(seen) {
            return Err(ReadError::NoRecording);
        } else if got < FILE_HEAD_BYTES {
            return Err(ReadError::NoHead { at: reader.at });
        }
        let (format, zero) = rest.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let found = u32::from_le_bytes(*format);
        if found == 0 && reader.is_cut_in_zeros(&[&format[..], zero].concat())? {
            return Err(ReadError::NoHead { at: reader.at });
        }
        if found != FORMAT {
            return Err(ReadError::Format { found });
        }
        if zero.iter().any(|byte| *byte != 0) {
            return Err(ReadError::Damaged { at: 0, what: "its beginning has another shape" });
        }
        let at = reader.at;
        if reader.record()? != Some(Kind::Head) {
            return Err(reader.without_head("it has no head"));
        }
        // Its checksum is right.
        let other = |_error| ReadError::OtherRelease { at, what: "its head has another shape" };
        let head = serde_json::from_slice(&reader.body).map_err(other)?;
        if reader.record()? != Some(Kind::Rules) {
            return Err(reader.without_head("it has no rules"));
        }
        let rules = std::mem::take(&mut reader.body);
        Ok((reader, head, rules))
    }

    fn without_head(&self, what: &'static str) -> ReadError {
        match self.end {
            Some(_) => ReadError::NoHead { at: self.at },
            None => ReadError::Damaged { at: self.at, what },
        }
    }

    /// The next entry; `None` at the end of what is whole.
    ///
    /// # Errors
    /// When the file cannot be read, or is damaged there.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_>>, ReadError> {
        let at = self.at;
        if self.end.is_some() {
            return Ok(None);
        }
        let Some(kind) = self.record()? else { return Ok(None) };
        let entry = Entry::read(kind, &self.body);
        let entry = entry.ok_or(ReadError::OtherRelease { at, what: "a record has another shape" })?;
        if let Entry::End(ending) = entry {
            self.end = Some(End::Closed(ending));
            if self.input.read(&mut [0])? > 0 {
                return Err(ReadError::Damaged { at: self.at, what: "there is more behind its end" });
            }
        }
        Ok(Some(entry))
    }

    /// How the file ends, once everything is read.
    #[must_use]
    pub const fn end(&self) -> Option<End> {
        self.end
    }

    /// Takes a record into the buffer; `None` where the file ends before it is whole.
    fn record(&mut self) -> Result<Option<Kind>, ReadError> {
        let at = self.at;
        let damaged = |what| Err(ReadError::Damaged { at, what });
        let mut head = [0; RECORD_HEAD_BYTES];
        let got = self.fill(&mut head)?;
        if got < RECORD_HEAD_BYTES {
            self.cut(at);
            return Ok(None);
        }
        let Some(record) = RecordHead::decode(&head, self.number) else {
            if self.is_cut_in_zeros(&head)? {
                self.cut(at);
                return Ok(None);
            }
            return damaged("a record's head does not match its checksum");
        };
        let length = usize::try_from(record.length).unwrap_or(usize::MAX);
        if length > RECORD_BYTES_MAX {
            return damaged("a record is longer than any may be");
        }
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        body.resize(length, 0);
        let got = self.fill(&mut body)?;
        self.body = body;
        if got < length {
            self.cut(at);
            return Ok(None);
        }
        if crc32c::crc32c(&self.body) != record.checksum {
            let body = std::mem::take(&mut self.body);
            if self.is_cut_in_zeros(&body)? {
                self.cut(at);
                return Ok(None);
            }
            return damaged("a record does not match its checksum");
        }
        self.number += 1;
        let unknown = ReadError::OtherRelease { at, what: "a record is of an unknown kind" };
        record.kind.map(Some).ok_or(unknown)
    }

    fn cut(&mut self, whole_until: u64) {
        self.end = Some(End::Open { at: whole_until, cut_bytes: self.at.saturating_sub(whole_until) });
    }

    /// Fills `buffer` as far as there are bytes.
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    /// Where power was cut, a file goes on in zeros that nobody wrote, from the beginning of a block of its disk: whether
    /// that is so, where `taken` is what was read last.
    fn is_cut_in_zeros(&mut self, taken: &[u8]) -> io::Result<bool> {
        let zeros = taken.iter().rev().take_while(|byte| **byte == 0).count() as u64;
        let from = self.at.saturating_sub(zeros).next_multiple_of(DISK_BLOCK_BYTES);
        Ok(self.is_zero_from_here()? && from < self.at)
    }

    fn is_zero_from_here(&mut self) -> io::Result<bool> {
        let mut piece = [0; 4_096];
        loop {
            let got = self.fill(&mut piece)?;
            if piece.iter().take(got).any(|byte| *byte != 0) {
                return Ok(false);
            }
            if got < piece.len() {
                return Ok(true);
            }
        }
    }
}

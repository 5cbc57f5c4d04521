//! Checked views of records in foreign bytes: the ring buffer's memory, or a recorder's file.

use core::mem::{align_of, size_of};

use crate::record::*;

/// A record that may be viewed in any bytes of its size.
///
/// # Safety
/// The type is `repr(C)`, consists of integers only, and has no padding.
pub unsafe trait Plain: Copy + 'static {
    /// The record's bytes.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: the implementor has no padding, so all of its bytes are initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast::<u8>(), size_of::<Self>()) }
    }
}

macro_rules! plain {
    ($($name:ident),+) => { $(
        // SAFETY: `repr(C)` structs of integers without padding, which the layout tests prove.
        unsafe impl Plain for $name {}
    )+ };
}
plain!(
    Header,
    Fork,
    Exec,
    Exit,
    OomVictim,
    TcpState,
    TcpReset,
    TcpRetransmit,
    FailedSyscall,
    FatalSignal,
    PayloadHead
);

/// One record, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordRef<'a> {
    /// A process was made.
    Fork(&'a Fork),
    /// A program was started.
    Exec(&'a Exec),
    /// A process ended.
    Exit(&'a Exit),
    /// The kernel chose a process to kill for memory.
    OomVictim(&'a OomVictim),
    /// A TCP socket changed its state.
    TcpState(&'a TcpState),
    /// A TCP reset was sent or received.
    TcpReset(&'a TcpReset),
    /// A TCP segment was sent again.
    TcpRetransmit(&'a TcpRetransmit),
    /// A system call failed.
    FailedSyscall(&'a FailedSyscall),
    /// A signal that ends a process was generated.
    FatalSignal(&'a FatalSignal),
    /// The beginning of an HTTP/1 message.
    Payload(&'a PayloadHead, &'a [u8]),
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    /// Fewer bytes than a header has.
    Short,
    /// The bytes do not begin at a multiple of eight.
    Misaligned,
    /// The header's length is not that of its kind, or not that of the bytes.
    Length,
    /// No such kind.
    Kind,
}

impl core::fmt::Display for BadRecord {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        formatter.write_str(match self {
            Self::Short => "record is shorter than its header",
            Self::Misaligned => "record does not begin at a multiple of eight bytes",
            Self::Length => "record's length does not fit its kind",
            Self::Kind => "record is of an unknown kind",
        })
    }
}

impl core::error::Error for BadRecord {}

fn head<T: Plain>(bytes: &[u8]) -> Result<&T, BadRecord> {
    if bytes.len() < size_of::<T>() {
        return Err(BadRecord::Length);
    }
    if !bytes.as_ptr().addr().is_multiple_of(align_of::<T>()) {
        return Err(BadRecord::Misaligned);
    }
    // SAFETY: there are enough bytes, they are aligned, and every bit pattern is a `T` by `Plain`'s contract.
    Ok(unsafe { &*bytes.as_ptr().cast::<T>() })
}

fn whole<T: Plain>(bytes: &[u8]) -> Result<&T, BadRecord> {
    if bytes.len() == size_of::<T>() { head(bytes) } else { Err(BadRecord::Length) }
}

fn prefix(bytes: &[u8], length: u16) -> &[u8] {
    bytes.get(..usize::from(length)).unwrap_or(bytes)
}

impl<'a> RecordRef<'a> {
    /// Views bytes as a record after checking length, alignment and kind.
    ///
    /// # Errors
    /// The bytes are no record; the caller counts the reason and goes on.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BadRecord> {
        let header: &Header = head(bytes).map_err(|bad| match bad {
            BadRecord::Length => BadRecord::Short,
            other => other,
        })?;
        if usize::from(header.record_bytes) != bytes.len() {
            return Err(BadRecord::Length);
        }
        Ok(match header.kind {
            KIND_FORK => Self::Fork(whole(bytes)?),
            KIND_EXEC => Self::Exec(whole(bytes)?),
            KIND_EXIT => Self::Exit(whole(bytes)?),
            KIND_OOM_VICTIM => Self::OomVictim(whole(bytes)?),
            KIND_TCP_STATE => Self::TcpState(whole(bytes)?),
            KIND_TCP_RESET => Self::TcpReset(whole(bytes)?),
            KIND_TCP_RETRANSMIT => Self::TcpRetransmit(whole(bytes)?),
            KIND_FAILED_SYSCALL => Self::FailedSyscall(whole(bytes)?),
            KIND_FATAL_SIGNAL => Self::FatalSignal(whole(bytes)?),
            KIND_PAYLOAD => {
                let payload: &PayloadHead = head(bytes)?;
                let data = bytes
                    .get(size_of::<PayloadHead>()..)
                    .and_then(|rest| rest.get(..usize::from(payload.captured_bytes)))
                    .ok_or(BadRecord::Length)?;
                Self::Payload(payload, data)
            }
            _ => return Err(BadRecord::Kind),
        })
    }

    /// What every record begins with.
    #[must_use]
    pub const fn header(&self) -> &'a Header {
        match self {
            Self::Fork(record) => &record.header,
            Self::Exec(record) => &record.header,
            Self::Exit(record) => &record.header,
            Self::OomVictim(record) => &record.header,
            Self::TcpState(record) => &record.header,
            Self::TcpReset(record) => &record.header,
            Self::TcpRetransmit(record) => &record.header,
            Self::FailedSyscall(record) => &record.header,
            Self::FatalSignal(record) => &record.header,
            Self::Payload(record, _) => &record.header,
        }
    }
}

impl Header {
    /// The command name without its padding.
    #[must_use]
    pub fn command(&self) -> &[u8] {
        self.comm.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

impl Exec {
    /// The program as it was named.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        prefix(&self.path, self.path_bytes)
    }
}

impl FailedSyscall {
    /// The path of the call, empty when it has none.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        prefix(&self.path, self.path_bytes)
    }
}

impl Owner {
    /// Whether anybody is known.
    #[must_use]
    pub const fn is_known(&self) -> bool {
        self.tgid != 0
    }
}

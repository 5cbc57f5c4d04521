//! From bytes to messages and back. The reader takes bytes as they come and never holds more than one message's limit.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rkyv::{
    Archive, Deserialize, Serialize,
    api::high::{HighDeserializer, HighSerializer, HighValidator},
    bytecheck::CheckBytes,
    rancor::Failure,
    ser::allocator::ArenaHandle,
    util::AlignedVec,
};
use tapio_schemas::ids::RuleSetVersion;
use thiserror::Error;

use super::{
    Ack, Credit, Drain, Heartbeat, HeartbeatReply, Hello, Host, Kind, Refused, RuleSet, RuleSetApplied,
    UNKNOWN_BODY_BYTES_MAX, Welcome,
};

/// Length and kind.
const PREFIX_BYTES: usize = 5;

/// The two numbers before a rule set's bytes.
const RULE_SET_PREFIX_BYTES: usize = 16;

/// What is wrong with the bytes of a session. The session must end: where the next message begins is no longer known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MessageFault {
    /// A body is longer than its kind allows.
    #[error("a message of kind {kind} declares {declared} bytes, more than its limit of {limit}")]
    TooLarge {
        /// The kind's code.
        kind: u8,
        /// The declared length.
        declared: u32,
        /// The limit.
        limit: usize,
    },
    /// A body is not what its kind is.
    #[error("the body of a message of kind {kind} is corrupt")]
    Corrupt {
        /// The kind's code.
        kind: u8,
    },
}

impl MessageFault {
    /// The fault's name, for counters and refusals.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "message-too-large",
            Self::Corrupt { .. } => "message-corrupt",
        }
    }
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is its body, which says what it is")]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Refused(Refused),
    /// A frame, as the source encoded it; not yet looked at.
    Frame(Bytes),
    Ack(Ack),
    Credit(Credit),
    RuleSet(RuleSet),
    RuleSetApplied(RuleSetApplied),
    Heartbeat(Heartbeat),
    HeartbeatReply(HeartbeatReply),
    Drain(Drain),
    Host(Host),
}

impl Message {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Refused(_) => Kind::Refused,
            Self::Frame(_) => Kind::Frame,
            Self::Ack(_) => Kind::Ack,
            Self::Credit(_) => Kind::Credit,
            Self::RuleSet(_) => Kind::RuleSet,
            Self::RuleSetApplied(_) => Kind::RuleSetApplied,
            Self::Heartbeat(_) => Kind::Heartbeat,
            Self::HeartbeatReply(_) => Kind::HeartbeatReply,
            Self::Drain(_) => Kind::Drain,
            Self::Host(_) => Kind::Host,
        }
    }
}

/// Encodes a message into the pieces to send one after the other: large bodies are not copied.
///
/// # Errors
/// [`MessageFault::TooLarge`] if the body exceeds its kind's limit, so that the other side would end the session.
pub fn encode(message: &Message) -> Result<(Bytes, Option<Bytes>), MessageFault> {
    let kind = message.kind();
    let body = match message {
        Message::Frame(frame) => return Ok((prefix(kind, frame.len())?.freeze(), Some(frame.clone()))),
        Message::RuleSet(rule_set) => {
            let mut head = prefix(kind, RULE_SET_PREFIX_BYTES + rule_set.bytes.len())?;
            head.put_u64_le(rule_set.version.0);
            head.put_u64_le(rule_set.generation);
            return Ok((head.freeze(), Some(rule_set.bytes.clone())));
        }
        Message::Hello(body) => archive(kind, body),
        Message::Welcome(body) => archive(kind, body),
        Message::Refused(body) => archive(kind, body),
        Message::Ack(body) => archive(kind, body),
        Message::Credit(body) => archive(kind, body),
        Message::RuleSetApplied(body) => archive(kind, body),
        Message::Heartbeat(body) => archive(kind, body),
        Message::HeartbeatReply(body) => archive(kind, body),
        Message::Drain(body) => archive(kind, body),
        Message::Host(body) => archive(kind, body),
    }?;
    let mut bytes = prefix(kind, body.len())?;
    bytes.extend_from_slice(&body);
    Ok((bytes.freeze(), None))
}

fn prefix(kind: Kind, length: usize) -> Result<BytesMut, MessageFault> {
    let declared = u32::try_from(length).unwrap_or(u32::MAX);
    let limit = kind.body_bytes_max();
    if length > limit {
        return Err(MessageFault::TooLarge { kind: kind as u8, declared, limit });
    }
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length.min(512));
    bytes.put_u32_le(declared);
    bytes.put_u8(kind as u8);
    Ok(bytes)
}

fn archive<T>(kind: Kind, body: &T) -> Result<AlignedVec, MessageFault>
where
    T: for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, Failure>>,
{
    rkyv::to_bytes::<Failure>(body).map_err(|_failure| MessageFault::Corrupt { kind: kind as u8 })
}

/// Takes a stream's bytes and gives its messages.
#[derive(Debug, Default)]
pub struct MessageReader {
    buffer: BytesMut,
    /// How many bytes of a skipped body are still to come.
    skip: usize,
    skipped: u64,
}

impl MessageReader {
    /// Takes the next bytes of the stream. All messages that are complete should be taken out before the next call.
    pub fn push(&mut self, bytes: &[u8]) {
        let skip = self.skip.min(bytes.len());
        self.skip -= skip;
        self.buffer.extend_from_slice(bytes.get(skip..).unwrap_or_default());
    }

    /// How many messages of unknown kinds were skipped.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The next message, if it is complete.
    ///
    /// # Errors
    /// The stream is of no use any more.
    pub fn next_message(&mut self) -> Result<Option<Message>, MessageFault> {
        loop {
            let Some(([a, b, c, d, code], _body)) = self.buffer.split_first_chunk::<PREFIX_BYTES>() else {
                return Ok(None);
            };
            let (declared, code) = (u32::from_le_bytes([*a, *b, *c, *d]), *code);
            let length = declared as usize;
            let kind = Kind::from_code(code);
            let limit = kind.map_or(UNKNOWN_BODY_BYTES_MAX, Kind::body_bytes_max);
            if length > limit {
                return Err(MessageFault::TooLarge { kind: code, declared, limit });
            }
            let Some(kind) = kind else {
                // A body that nobody reads is not collected either.
                self.buffer.advance(PREFIX_BYTES);
                let here = length.min(self.buffer.len());
                self.buffer.advance(here);
                self.skip = length - here;
                self.skipped += 1;
                continue;
            };
            if self.buffer.len() < PREFIX_BYTES + length {
                return Ok(None);
            }
            self.buffer.advance(PREFIX_BYTES);
            let body = self.buffer.split_to(length).freeze();
            return decode(kind, body).map(Some);
        }
    }
}

fn decode(kind: Kind, body: Bytes) -> Result<Message, MessageFault> {
    Ok(match kind {
        Kind::Frame => Message::Frame(body),
        Kind::RuleSet => {
            let mut body = body;
            if body.len() < RULE_SET_PREFIX_BYTES {
                return Err(MessageFault::Corrupt { kind: kind as u8 });
            }
            let version = RuleSetVersion(body.get_u64_le());
            let generation = body.get_u64_le();
            Message::RuleSet(RuleSet { version, generation, bytes: body })
        }
        Kind::Hello => Message::Hello(owned(kind, &body)?),
        Kind::Welcome => Message::Welcome(owned(kind, &body)?),
        Kind::Refused => Message::Refused(owned(kind, &body)?),
        Kind::Ack => Message::Ack(owned(kind, &body)?),
        Kind::Credit => Message::Credit(owned(kind, &body)?),
        Kind::RuleSetApplied => Message::RuleSetApplied(owned(kind, &body)?),
        Kind::Heartbeat => Message::Heartbeat(owned(kind, &body)?),
        Kind::HeartbeatReply => Message::HeartbeatReply(owned(kind, &body)?),
        Kind::Drain => Message::Drain(owned(kind, &body)?),
        Kind::Host => Message::Host(owned(kind, &body)?),
    })
}

/// The owned value of an archive that lies anywhere: it is copied to where it is aligned, and checked.
fn owned<T>(kind: Kind, body: &[u8]) -> Result<T, MessageFault>
where
    T: Archive,
    T::Archived: for<'a> CheckBytes<HighValidator<'a, Failure>> + Deserialize<T, HighDeserializer<Failure>>,
{
    let mut aligned = AlignedVec::<16>::with_capacity(body.len());
    aligned.extend_from_slice(body);
    rkyv::from_bytes::<T, Failure>(&aligned).map_err(|_failure| MessageFault::Corrupt { kind: kind as u8 })
}

//! How a machine gets its certificate: one request and one reply over TLS 1.3, of which only the server shows who it is.
//!
//! The key is made where it is used and never leaves it: the request carries a signing request (PKCS#10) and a proof of
//! who asks, the reply the certificate or a named refusal. Both are a length (four bytes, little endian) and a body of
//! fields, each with a length of its own; nothing of it needs a library of HTTP or JSON. Whether the proof is good, and
//! which name it buys, the server's caller decides. Called by the agent ([`Enrolment::ask`], [`Stored`]) and by the
//! aggregator ([`read_request`], [`write_reply`]).

mod stored;

use std::{fmt, io, path::PathBuf, sync::Arc, time::Duration};

pub use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

pub use self::stored::{Stored, StoredError, signing_request};
use crate::{
    credentials::Credentials,
    tls::{self, EnrolmentTlsError},
};

/// The protocol.
pub const ALPN: &[u8] = b"tapio-enrol/1";
/// No request is longer: a service account's token has some kilobytes, a signing request some hundred bytes.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;
/// No reply is longer: a chain of certificates.
pub const REPLY_BYTES_MAX: usize = 64 << 10;
/// How long a connection may take to be made, and TLS on it.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the exchange may take: the server asks elsewhere.
const EXCHANGE_TIME_MAX: Duration = Duration::from_secs(20);

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// The token of a Kubernetes service account, bound to the audience of the enrolment and to a pod.
    ServiceAccount(String),
    /// A token that was made for one node.
    Token(String),
    /// The certificate that the connection shows, which is to be renewed.
    Certificate,
}

impl fmt::Debug for Proof {
    /// Without the secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.kind())
    }
}

impl Proof {
    /// Its kind, for logs and metrics.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::ServiceAccount(_) => "service-account",
            Self::Token(_) => "token",
            Self::Certificate => "certificate",
        }
    }

    const fn code(&self) -> u8 {
        match self {
            Self::ServiceAccount(_) => 1,
            Self::Token(_) => 2,
            Self::Certificate => 3,
        }
    }

    fn secret(&self) -> &str {
        match self {
            Self::ServiceAccount(token) | Self::Token(token) => token,
            Self::Certificate => "",
        }
    }
}

/// What a machine asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who it is.
    pub proof: Proof,
    /// The signing request, DER.
    pub signing_request: Vec<u8>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The certificate, followed by those between it and the authority, PEM.
    Issued {
        /// The chain.
        chain_pem: String,
    },
    /// None.
    Refused {
        /// The reason's name, for programs.
        reason: String,
        /// Why, for people.
        text: String,
    },
}

/// Bytes that are no request or no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no message of the enrolment")]
pub struct Malformed;

impl Request {
    /// The request as a body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![self.proof.code()];
        push(&mut body, self.proof.secret().as_bytes());
        push(&mut body, &self.signing_request);
        body
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is no request.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let (kind, rest) = body.split_first().ok_or(Malformed)?;
        let (secret, rest) = take(rest)?;
        let (signing_request, rest) = take(rest)?;
        let secret = || {
            // A token is visible ASCII (RFC 6750, section 2.1): it is put into another request.
            let visible = !secret.is_empty() && secret.iter().all(u8::is_ascii_graphic);
            String::from_utf8(secret.to_vec()).ok().filter(|_| visible).ok_or(Malformed)
        };
        let proof = match kind {
            1 => Proof::ServiceAccount(secret()?),
            2 => Proof::Token(secret()?),
            3 => Proof::Certificate,
            _ => return Err(Malformed),
        };
        if rest.is_empty() {
            Ok(Self { proof, signing_request: signing_request.to_vec() })
        } else {
            Err(Malformed)
        }
    }
}

impl Reply {
    /// The reply as a body.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, fields) = match self {
            Self::Issued { chain_pem } => (0, [chain_pem.as_str(), ""]),
            Self::Refused { reason, text } => (1, [reason.as_str(), text.as_str()]),
        };
        let mut body = vec![kind];
        for field in fields {
            push(&mut body, field.as_bytes());
        }
        body
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is no reply.
    pub fn decode(body: &[u8]) -> Result<Self, Malformed> {
        let (kind, rest) = body.split_first().ok_or(Malformed)?;
        let (first, rest) = take(rest)?;
        let (second, rest) = take(rest)?;
        let text = |field: &[u8]| String::from_utf8(field.to_vec()).map_err(|_other| Malformed);
        let (first, second) = (text(first)?, text(second)?);
        match kind {
            0 if second.is_empty() && rest.is_empty() => Ok(Self::Issued { chain_pem: first }),
            1 if rest.is_empty() => Ok(Self::Refused { reason: first, text: second }),
            _ => Err(Malformed),
        }
    }
}

fn push(body: &mut Vec<u8>, field: &[u8]) {
    // Longer ones are cut, and then refused by who reads them: nothing that we make is so long.
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    body.extend(length.to_le_bytes());
    body.extend(field);
}

fn take(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (length, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_large| Malformed)?;
    rest.split_at_checked(length).ok_or(Malformed)
}

/// Why the other side's message was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection failed, or ended early.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The message says that it is longer than any may be.
    #[error("the message has {0} bytes, more than are read")]
    TooLong(u32),
    /// It is no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// Reads a request. Nothing is allocated for one that says it is too long.
///
/// # Errors
/// When it does not come, or is none.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Result<Request, ReadError> {
    Ok(Request::decode(&read(stream, REQUEST_BYTES_MAX).await?)?)
}

/// Writes a reply, and the end.
///
/// # Errors
/// When the connection failed.
pub async fn write_reply(stream: &mut (impl AsyncWrite + Unpin), reply: &Reply) -> io::Result<()> {
    write(stream, &reply.encode()).await?;
    stream.shutdown().await
}

async fn read(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> Result<Vec<u8>, ReadError> {
    let said = stream.read_u32_le().await?;
    let length = usize::try_from(said).ok().filter(|length| *length <= bytes_max);
    let mut body = vec![0; length.ok_or(ReadError::TooLong(said))?];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    stream.write_all(&[&length.to_le_bytes(), body].concat()).await?;
    stream.flush().await
}

/// Where certificates are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    /// `host:port`.
    pub address: String,
    /// The name that the server's certificate must have.
    pub server_name: ServerName<'static>,
    /// The file of the authorities that vouch for the server, PEM.
    pub authority: PathBuf,
}

/// Why no certificate was got.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// This side cannot be set up.
    #[error(transparent)]
    Tls(#[from] EnrolmentTlsError),
    /// The server cannot be reached, or is not believed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The server's address.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// It does not answer.
    #[error("{address} did not answer in time")]
    Silent {
        /// The server's address.
        address: String,
    },
    /// Its answer cannot be read.
    #[error("the answer of {address} cannot be read: {source}")]
    Answer {
        /// The server's address.
        address: String,
        /// What is wrong.
        source: ReadError,
    },
    /// It refused.
    #[error("{address} refused ({reason}): {text}")]
    Refused {
        /// The server's address.
        address: String,
        /// The reason's name.
        reason: String,
        /// Why, for people.
        text: String,
    },
}

impl Enrolment {
    /// Asks for a certificate. `shown` is the certificate that is to be renewed, where that is the proof.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ask(
        &self,
        request: &Request,
        shown: Option<&Credentials>,
    ) -> Result<String, EnrolmentError> {
        let address = || self.address.clone();
        let tls = TlsConnector::from(Arc::new(tls::enrolment_client_config(&self.authority, shown, ALPN)?));
        let connecting = async {
            let stream = TcpStream::connect(&self.address).await?;
            tls.connect(self.server_name.clone(), stream).await
        };
        let silent = |_elapsed| EnrolmentError::Silent { address: address() };
        let mut stream = timeout(CONNECT_TIME_MAX, connecting)
            .await
            .map_err(silent)?
            .map_err(|source| EnrolmentError::Connect { address: address(), source })?;
        let exchange = async {
            write(&mut stream, &request.encode()).await?;
            Ok(Reply::decode(&read(&mut stream, REPLY_BYTES_MAX).await?)?)
        };
        let reply = timeout(EXCHANGE_TIME_MAX, exchange)
            .await
            .map_err(silent)?
            .map_err(|source| EnrolmentError::Answer { address: address(), source })?;
        match reply {
            Reply::Issued { chain_pem } => Ok(chain_pem),
            Reply::Refused { reason, text } => {
                Err(EnrolmentError::Refused { address: address(), reason, text })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Scenario: any request and reply.
        /// Guarantees: they survive being written; one byte more or less is no message.
        #[test]
        fn messages_survive_being_written(
            secret in "[!-~]{1,200}", der in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,200}",
        ) {
            for proof in [Proof::ServiceAccount(secret.clone()), Proof::Token(secret), Proof::Certificate] {
                let request = Request { proof, signing_request: der.clone() };
                let mut body = request.encode();
                prop_assert_eq!(Request::decode(&body), Ok(request));
                body.push(0);
                prop_assert_eq!(Request::decode(&body), Err(Malformed));
                body.truncate(body.len() - 2);
                prop_assert_eq!(Request::decode(&body), Err(Malformed));
            }
            let refused = Reply::Refused { reason: "a-reason".to_owned(), text: text.clone() };
            for reply in [Reply::Issued { chain_pem: text }, refused] {
                let mut body = reply.encode();
                prop_assert_eq!(Reply::decode(&body), Ok(reply));
                body.push(0);
                prop_assert_eq!(Reply::decode(&body), Err(Malformed));
            }
        }

        /// Scenario: any bytes at all.
        /// Guarantees: they are refused, or are exactly what the message that they give is written as.
        #[test]
        fn other_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), kind in 0_u8..5) {
            let mut body = bytes;
            body.insert(0, kind);
            if let Ok(request) = Request::decode(&body) {
                prop_assert!(request.encode() == body || request.proof == Proof::Certificate);
            }
            if let Ok(reply) = Reply::decode(&body) {
                prop_assert_eq!(reply.encode(), body);
            }
        }
    }

    /// Scenario: a peer says that its message has four gigabytes.
    /// Guarantees: it is refused before anything is allocated or waited for.
    #[tokio::test]
    async fn a_long_message_is_not_read() {
        let mut bytes: &[u8] = &[0xff; 16];
        assert!(matches!(read_request(&mut bytes).await, Err(ReadError::TooLong(u32::MAX))));
    }
}

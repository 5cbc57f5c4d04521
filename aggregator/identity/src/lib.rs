//! Who is at the other end: names in certificates, mutual TLS between machines, and the endpoints that
//! demand it.
//!
//! Every machine of the system has one certificate with one SPIFFE URI, its [`Name`]; the source id of
//! what it sends is made from that. There is no endpoint without mutual TLS except the one for people
//! ([`https`]), and that is encrypted too. The crate must never decide what a peer may do beyond its
//! name, and never read a key that it was not pointed at. What it was pointed at it follows: [`rotation`], [`revocation`]. All three tiers call it.

pub mod credentials;
pub mod enrolment;
pub mod https;
pub mod issuer;
pub mod name;
pub mod peer;
pub mod quic;
pub mod revocation;
pub mod rotation;
pub mod tls;

mod files;
mod pem;

pub use credentials::{Credentials, CredentialsError};
pub use name::{Instance, Name, NameError, NameKind, TrustDomain};
pub use peer::{Expected, PeerError};
pub use revocation::RevocationList;
pub use rotation::{CredentialFiles, CredentialWatch};

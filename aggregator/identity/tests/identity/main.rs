//! The crate as its callers use it: real files, real endpoints, real handshakes.

mod credentials;
mod quic;
mod tls;
mod world;

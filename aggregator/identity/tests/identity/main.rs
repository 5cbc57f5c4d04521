//! The crate as its callers use it: real files, real endpoints, real handshakes.

// The whole program is a test, its helpers too: lints that spare tests shall see it as one.
#![cfg(test)]

mod credentials;
mod quic;
mod rotation;
mod tls;
mod world;

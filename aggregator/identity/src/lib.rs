//! tapio-identity

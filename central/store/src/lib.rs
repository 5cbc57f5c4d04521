//! tapio-store

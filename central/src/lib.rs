//! tapio-central

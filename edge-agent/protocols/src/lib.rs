//! tapio-protocols

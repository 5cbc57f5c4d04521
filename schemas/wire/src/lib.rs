//! tapio-wire

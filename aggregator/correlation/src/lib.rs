//! tapio-correlation

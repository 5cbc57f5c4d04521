//! tapio-daemon

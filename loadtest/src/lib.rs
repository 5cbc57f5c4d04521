//! tapio-loadtest

//! tapio-spool

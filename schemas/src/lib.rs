//! tapio-schemas

//! tapio-aggregator

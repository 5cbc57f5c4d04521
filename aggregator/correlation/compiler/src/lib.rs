//! tapio-compiler

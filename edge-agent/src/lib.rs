//! tapio-edge-agent

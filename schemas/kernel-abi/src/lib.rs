//! tapio-kernel-abi

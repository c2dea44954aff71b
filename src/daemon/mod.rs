//! The shell round the core.

pub mod sockets;

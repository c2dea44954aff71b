//! Bytes to values and back: the protocols that are spoken with workers, the service manager and clients.

pub mod control;
pub mod event;
pub mod lines;
pub mod message;
pub mod node;
pub mod notify;
pub mod secret;
pub mod status;
pub mod target;

pub use crate::core::printable;

//! liveswap swaps the code of a running network service without losing a connection.
//!
//! The house, and who may import whom (`tests/house.rs` enforces it):
//!
//! ```text
//! plain    types that core and sys share: data and no decisions
//! core     decisions: events in, actions out; no clock, descriptor, pid or thread
//! config   TOML -> core::spec                                     knows core
//! wire     bytes <-> values of the protocols                      knows core
//! sys      system calls, and the only unsafe code
//! daemon   the loop round the core: performs actions              knows core, config, wire, sys
//! cli      one file a command family                              knows config, wire, daemon
//! ```
//!
//! All of them know `plain`, which knows none.
//!
//! [`Options`] is liveswap for programs that want to be a manager themselves.

pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
mod path_text;
pub mod plain;
#[cfg(test)]
#[path = "../tests/support/skipped.rs"]
#[expect(dead_code, reason = "the list is read by the last test program")]
mod skipped;
pub mod sys;
pub mod wire;

pub use cli::options::Options;

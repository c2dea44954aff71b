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
//! [`Options`] is liveswap for programs that want to be a manager themselves. Such a program turns the demo of the command line
//! off, which needs an asynchronous runtime: `liveswap = { version = "0.1", default-features = false }`.
//!
//! The interface is [`Options`] and [`Error`]. All modules are hidden here: the program `liveswap`, the tests, the benchmarks and the
//! fuzz targets import them, and they change without notice.

#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod core;
#[doc(hidden)]
pub mod daemon;
mod path_text;
#[doc(hidden)]
pub mod plain;
#[cfg(test)]
#[path = "../tests/support/skipped.rs"]
#[expect(dead_code, reason = "the list is read by the last test program")]
mod skipped;
#[doc(hidden)]
pub mod sys;
#[doc(hidden)]
pub mod wire;

pub use cli::options::{Error, Options};

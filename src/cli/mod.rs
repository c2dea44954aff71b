//! The command line: one room a command family.

mod by_address;
pub mod change;
pub mod check;
pub mod completions;
mod connection;
#[cfg_attr(not(feature = "demo"), path = "no_demo.rs")]
pub mod demo;
pub mod events;
mod find;
mod interrupt;
pub mod man;
pub mod options;
pub mod original;
pub mod output;
mod patient;
mod progress;
pub mod report;
pub mod run;
pub mod status;
mod table;
pub mod try_handover;
pub mod unit;
pub mod upgrade;

//! The command line: one room a command family.

pub mod check;
pub mod demo;
pub mod report;
pub mod run;

//! To come.

pub mod lines;
pub mod notify;

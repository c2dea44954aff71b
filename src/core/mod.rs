//! The decisions of liveswap, as a pure function of its events.

pub mod ids;
pub mod spec;
pub mod time;

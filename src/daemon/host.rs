//! What the operating system gives the manager.
//!
//! ```text
//! jobs      children that do one thing: what they write, their time, their end
//! timers    deadlines by key
//! ```

mod jobs;
mod timers;

pub use self::jobs::{Ended, Failure, Job, Jobs};
pub use self::timers::{Timer, Timers};

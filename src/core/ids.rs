//! Names of the things that the core speaks of.
//!
//! They are plain numbers, never handles: the core's state can be written down and read back, and a number that
//! was once given out is not given out again in the life of a manager.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// One revision of the service, numbered from 1.
    GenerationId(u64)
}
id! {
    /// One of the places for a worker, numbered from 0.
    SlotId(u32)
}
id! {
    /// One worker process, numbered from 1 over the whole life of the manager.
    WorkerId(u64)
}
id! {
    /// Someone who asked for something and waits for the answer.
    RequestId(u64)
}

impl GenerationId {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl WorkerId {
    /// The highest number that is taken from outside: so many more can follow as no manager ever starts.
    pub const MAX: Self = Self(1 << 48);

    /// Reads a number that a process has in its environment; `None` for what no manager has given out.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self).filter(|id| (Self(1)..=Self::MAX).contains(id))
    }

    /// The worker after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

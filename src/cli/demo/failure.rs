//! Why the demo could not be told to its end.

use std::io;
use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::Duration;

/// Why the demo could not be told to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something on this machine stood in the way before liveswap had its turn.
    #[error("{step}: {source}")]
    SetUp {
        /// What was being done.
        step: String,
        /// Why it could not be.
        source: io::Error,
    },
    /// The address for the service cannot be had.
    #[error("cannot listen on {wanted}: {source}")]
    Address {
        /// As asked for.
        wanted: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// Something did not happen in its time.
    #[error("waited {} s for {awaited}", bound.as_secs())]
    Awaited {
        /// What was waited for.
        awaited: &'static str,
        /// How long.
        bound: Duration,
    },
    /// The manager ended by itself.
    #[error("the manager ended ({status}) while the demo waited for {awaited}")]
    Gone {
        /// What was waited for.
        awaited: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// liveswap did not do what it promises.
    #[error("{0}")]
    Broken(String),
    /// Someone pressed Ctrl-C, or the like.
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// Something on this machine stood in the way of `step`.
    pub fn set_up(step: impl Into<String>, source: io::Error) -> Self {
        Self::SetUp { step: step.into(), source }
    }

    /// Returns what the person can do about it, where there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Address { .. } => {
                Some("choose another address by --listen, or leave it out for a free port")
            }
            Self::Awaited { .. } | Self::Gone { .. } | Self::Broken(_) => {
                Some("`liveswap demo --verbose` shows the manager's log as it is written")
            }
            Self::SetUp { .. } | Self::Interrupted => None,
        }
    }
}

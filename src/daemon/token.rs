//! What an epoll event is about.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::ids::WorkerId;
use crate::sys::wait;

/// A client, numbered from 1 over the whole life of the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// The descriptors that the manager waits for.
pub type Poller = wait::Poller<Token>;

/// A descriptor that the manager may wait for.
pub type Watched<T> = wait::Watched<T, Token>;

/// Whose descriptor is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Signals have come.
    Signals,
    /// The manager said something to PID 1.
    Manager,
    /// A worker said something.
    Notify(WorkerId),
    /// A worker's program runs, or a step before it failed.
    Report(WorkerId),
    /// A worker wrote to its standard output or error.
    Output(WorkerId, Stream),
    /// The job of this pid has written.
    Job(i32),
    /// A worker hurt a shared socket.
    Sockets,
    /// Something happened to the path of a socket.
    Paths,
    /// Somebody waits at a socket.
    Doors,
    /// The process of a connection runs its program, or a step before it failed.
    GuestReport(i32),
    /// A hook, a probe or a connection process has written through us.
    Helper(u64),
    /// One of our own outputs takes text again.
    Outlet(Stream),
    /// Somebody comes to the control socket.
    Control,
    /// Somebody comes by TCP.
    ControlTcp,
    /// A client has written, takes more, or has gone.
    Client(ClientId),
    /// The hook `pre_upgrade` has written.
    PreUpgrade,
    /// What is in store under this number has hung up.
    Stored(u64),
    /// A Node worker said something on its channel, or takes more.
    Channel(WorkerId),
    /// A worker that is no child of ours has ended.
    Survivor(WorkerId),
    /// A process of a manager before us, of which no more is known than its pid, has ended.
    Leftover(i32),
}

/// One of the two outputs of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Out => "standard output",
            Self::Err => "standard error",
        })
    }
}

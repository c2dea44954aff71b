//! What a worker can do to a socket that it shares, and its repair.
//!
//! A worker has the same open file description as everyone: its shutdown(2) and listen(2) hit all, and it may unlink the path.
//! A shutdown and a lost path are told by events ([`super::Sockets`] says how); a changed backlog is found by looking.

use std::fmt;
use std::io;

use super::listener::Listener;
use crate::sys::backlog::backlog;
use crate::sys::listener::is_shut_down;
use crate::sys::socket_file::{PathState, SocketFile};

/// What is wrong with a bound socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hurt {
    /// A TCP socket no longer listens: connections are refused. [`Listener::repair`] listens again.
    ShutDown,
    /// A UNIX or UDP socket was shut down, which nothing undoes.
    ShutDownForGood,
    /// Fewer connections can wait than the file wants.
    BacklogShrunk {
        /// What was in force.
        from: u32,
        /// What is in force now.
        to: u32,
    },
    /// Nothing stands at the path of a UNIX socket. [`Listener::repair`] links it back.
    PathGone,
    /// Something else stands at the path of a UNIX socket. [`Listener::repair`] puts the socket in its place.
    PathReplaced,
    /// The folder of a UNIX socket was replaced or moved away. [`Listener::repair`] links the socket into the new one.
    PathMoved,
    /// A UNIX socket has lost its path and its spare name, so that it cannot be linked back.
    PathLost,
}

impl Hurt {
    /// Returns whether only a new socket helps, see [`super::Sockets::replace`].
    pub fn needs_replacement(&self) -> bool {
        match self {
            Self::ShutDownForGood | Self::PathLost => true,
            Self::ShutDown
            | Self::BacklogShrunk { .. }
            | Self::PathGone
            | Self::PathReplaced
            | Self::PathMoved => false,
        }
    }
}

impl fmt::Display for Hurt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShutDown | Self::ShutDownForGood => f.write_str("it was shut down"),
            Self::BacklogShrunk { from, to } => write!(f, "its backlog shrank from {from} to {to}"),
            Self::PathMoved => f.write_str("its folder was replaced or moved away"),
            Self::PathGone => f.write_str("its path was removed"),
            Self::PathReplaced => f.write_str("something else took its path"),
            Self::PathLost => f.write_str("its path and its spare name were removed"),
        }
    }
}

impl Listener {
    /// Looks for what is wrong with the socket; empty where all is well.
    ///
    /// A backlog that a worker raised is left alone. What cannot be found out counts as well.
    pub fn inspect(&self) -> Vec<Hurt> {
        let path = self.file.as_ref().and_then(|file| file.state().ok());
        let path = path.and_then(|state| match state {
            PathState::Ours => None,
            PathState::Gone => Some(Hurt::PathGone),
            PathState::Replaced => Some(Hurt::PathReplaced),
            PathState::Moved => Some(Hurt::PathMoved),
            PathState::Lost => Some(Hurt::PathLost),
        });
        self.inspect_queue().into_iter().chain(path).collect()
    }

    fn inspect_queue(&self) -> Option<Hurt> {
        if is_shut_down(&self.fd).unwrap_or_default() {
            return Some(if self.plan().is_tcp() { Hurt::ShutDown } else { Hurt::ShutDownForGood });
        }
        let (from, to) = (self.backlog_in_force.get()?, backlog(&self.fd).ok()?);
        (to < from).then_some(Hurt::BacklogShrunk { from, to })
    }

    /// Returns whether nothing revives the socket.
    pub fn is_dead(&self) -> bool {
        self.inspect().iter().any(Hurt::needs_replacement)
    }

    /// Repairs one hurt that [`Self::inspect`] found. What is well by now is left alone.
    ///
    /// # Errors
    /// Unsupported where only a replacement helps; EADDRINUSE where another program took the address of a TCP
    /// socket meanwhile; those of linkat(2) and renameat(2) for a path.
    pub fn repair(&self, hurt: &Hurt) -> io::Result<()> {
        match hurt {
            Hurt::ShutDown | Hurt::BacklogShrunk { .. } if self.inspect_queue().is_none() => Ok(()),
            Hurt::ShutDown | Hurt::BacklogShrunk { .. } => self.listen(),
            Hurt::PathGone | Hurt::PathReplaced | Hurt::PathMoved => {
                self.file.as_ref().map_or(Ok(()), SocketFile::restore)
            }
            Hurt::ShutDownForGood | Hurt::PathLost => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

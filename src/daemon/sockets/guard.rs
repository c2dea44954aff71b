//! What a worker can do to a socket that it shares, and its repair.
//!
//! A worker has the same open file description as all others: its shutdown(2), listen(2), connect(2) and setsockopt(2) hit all,
//! and it may unlink the path. A shutdown and a lost path are told by events ([`super::Sockets`] says how); all else is found by
//! looking.

use std::fmt;
use std::io;

use super::listener::Listener;
use crate::sys::backlog::backlog;
use crate::sys::listener::{is_listening, is_shut_down};
use crate::sys::shared_options::Row;
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
    /// An option is otherwise than it was, which deafens the socket or is not what the file says. [`Listener::repair`] puts it
    /// back, where anything does.
    Option(&'static Row),
    /// A TCP socket has keys, so that it answers some peers no more (tcp(7), `TCP_MD5SIG`). [`Listener::repair`] removes them.
    Keys,
    /// The same by RFC 5925, which nothing undoes.
    KeysForGood,
    /// A datagram socket was connected, so that it hears one peer alone. [`Listener::repair`] disconnects it.
    Connected,
    /// A datagram socket has lost its address. [`Listener::repair`] binds it again.
    Moved,
    /// A TCP socket listens elsewhere.
    MovedForGood,
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
            Self::ShutDownForGood | Self::PathLost | Self::KeysForGood | Self::MovedForGood => true,
            Self::Option(row) => row.is_for_good(),
            Self::ShutDown | Self::BacklogShrunk { .. } | Self::Keys | Self::Connected | Self::Moved => false,
            Self::PathGone | Self::PathReplaced | Self::PathMoved => false,
        }
    }
}

impl fmt::Display for Hurt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShutDown | Self::ShutDownForGood => f.write_str("it was shut down"),
            Self::BacklogShrunk { from, to } => write!(f, "its backlog shrank from {from} to {to}"),
            Self::Option(row) if row.name == "SO_ATTACH_FILTER" => f.write_str("a filter was attached to it"),
            Self::Option(row) => write!(f, "its {} was changed", row.name),
            Self::Keys => f.write_str("keys (TCP_MD5SIG) were set on it"),
            Self::KeysForGood => f.write_str("keys (TCP_AO_ADD_KEY) were set on it"),
            Self::Connected => f.write_str("it was connected to one peer"),
            Self::Moved | Self::MovedForGood => f.write_str("it was bound to another address"),
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
        let queue = self.inspect_queue();
        let is_open = !matches!(queue, Some(Hurt::ShutDown | Hurt::ShutDownForGood));
        // What does not listen has lost its address, too, and gets it back with the queue.
        let options = if is_open { self.inspect_options() } else { Vec::new() };
        queue.into_iter().chain(options).chain(path).collect()
    }

    fn inspect_queue(&self) -> Option<Hurt> {
        let is_closed = self.plan().is_tcp() && !is_listening(&self.fd).unwrap_or(true);
        if is_closed || is_shut_down(&self.fd).unwrap_or_default() {
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
    /// socket meanwhile; those of linkat(2) and renameat(2) for a path, and of
    /// setsockopt(2), connect(2) and bind(2) for what was set.
    pub fn repair(&self, hurt: &Hurt) -> io::Result<()> {
        match hurt {
            Hurt::ShutDown | Hurt::BacklogShrunk { .. } if self.inspect_queue().is_none() => Ok(()),
            Hurt::ShutDown | Hurt::BacklogShrunk { .. } => {
                self.bind_where_it_was()?;
                self.listen()
            }
            Hurt::Option(_) | Hurt::Keys | Hurt::Connected | Hurt::Moved => self.repair_options(hurt),
            Hurt::PathGone | Hurt::PathReplaced | Hurt::PathMoved => {
                self.file.as_ref().map_or(Ok(()), SocketFile::restore)
            }
            Hurt::ShutDownForGood | Hurt::PathLost | Hurt::KeysForGood | Hurt::MovedForGood => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }
}

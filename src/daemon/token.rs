//! What an epoll event is about, packed into the number that the kernel keeps with it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::core::ids::{GenerationId, WorkerId};

/// A client, numbered from 1 over the whole life of the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// Whose descriptor is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Signals have come.
    Signals,
    /// A worker said something.
    Notify(WorkerId),
    /// A worker's program runs, or a step before it failed.
    Report(WorkerId),
    /// A worker wrote to its standard output or error.
    Output(WorkerId, Stream),
    /// The checker of a service file has written.
    Checker(GenerationId),
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
    /// The child that looks at the workers has written.
    Survey,
    /// The child that looks whether starting workers serve has written.
    Look,
    /// The program that is tried has written.
    Trial,
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

/// The kind stands in the top byte, the number below it.
const SHIFT: u32 = 56;

impl Token {
    /// Packs it into a number.
    #[must_use]
    pub fn pack(self) -> u64 {
        let (kind, id): (u64, u64) = match self {
            Self::Signals => (0, 0),
            Self::Notify(WorkerId(id)) => (1, id),
            Self::Report(WorkerId(id)) => (2, id),
            Self::Output(WorkerId(id), Stream::Out) => (3, id),
            Self::Output(WorkerId(id), Stream::Err) => (4, id),
            Self::Checker(GenerationId(id)) => (5, id),
            Self::Sockets => (6, 0),
            Self::Outlet(Stream::Out) => (7, 0),
            Self::Outlet(Stream::Err) => (7, 1),
            Self::Control => (8, 0),
            Self::Client(ClientId(id)) => (9, id),
            Self::Survey => (10, 0),
            Self::Look => (22, 0),
            Self::Trial => (11, 0),
            Self::PreUpgrade => (12, 0),
            Self::Stored(number) => (15, number),
            Self::Channel(WorkerId(id)) => (13, id),
            Self::ControlTcp => (14, 0),
            Self::Survivor(WorkerId(id)) => (16, id),
            Self::Leftover(pid) => (17, u64::from(pid.unsigned_abs())),
            Self::Doors => (18, 0),
            Self::GuestReport(pid) => (19, u64::from(pid.unsigned_abs())),
            Self::Helper(number) => (20, number),
            Self::Paths => (21, 0),
        };
        debug_assert!(id < 1 << SHIFT, "more than 2^56 workers");
        kind << SHIFT | id
    }

    /// Unpacks what [`Token::pack`] made; `None` for any other number.
    #[must_use]
    pub fn unpack(number: u64) -> Option<Self> {
        let id = number & ((1 << SHIFT) - 1);
        Some(match number >> SHIFT {
            0 => Self::Signals,
            1 => Self::Notify(WorkerId(id)),
            2 => Self::Report(WorkerId(id)),
            3 => Self::Output(WorkerId(id), Stream::Out),
            4 => Self::Output(WorkerId(id), Stream::Err),
            5 => Self::Checker(GenerationId(id)),
            6 => Self::Sockets,
            7 if id == 0 => Self::Outlet(Stream::Out),
            7 => Self::Outlet(Stream::Err),
            8 => Self::Control,
            9 => Self::Client(ClientId(id)),
            10 => Self::Survey,
            11 => Self::Trial,
            12 => Self::PreUpgrade,
            15 => Self::Stored(id),
            13 => Self::Channel(WorkerId(id)),
            14 => Self::ControlTcp,
            16 => Self::Survivor(WorkerId(id)),
            17 => Self::Leftover(i32::try_from(id).ok()?),
            18 => Self::Doors,
            19 => Self::GuestReport(i32::try_from(id).ok()?),
            20 => Self::Helper(id),
            21 => Self::Paths,
            22 => Self::Look,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        let tokens = [
            Token::Signals,
            Token::Doors,
            Token::GuestReport(i32::MAX),
            Token::Notify(WorkerId(1)),
            Token::Report(WorkerId((1 << SHIFT) - 1)),
            Token::Output(WorkerId(3), Stream::Out),
            Token::Output(WorkerId(3), Stream::Err),
            Token::Checker(GenerationId(9)),
            Token::Sockets,
            Token::Paths,
            Token::Outlet(Stream::Out),
            Token::Outlet(Stream::Err),
            Token::Control,
            Token::ControlTcp,
            Token::Client(ClientId(7)),
            Token::Survey,
            Token::Look,
            Token::Trial,
            Token::PreUpgrade,
            Token::Stored(5),
            Token::Channel(WorkerId(8)),
            Token::Survivor(WorkerId(2)),
            Token::Helper(6),
            Token::Leftover(4711),
        ];
        for token in tokens {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(u64::MAX), None);
    }
}

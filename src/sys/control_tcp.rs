//! A TCP socket by which people and programs speak to the manager, and what the kernel knows of the other end.
//!
//! On a loopback address it knows who *made* the socket at the other end. That says nothing of who speaks by it: a socket is
//! inherited, sent, and turned from a listener into a client (connect(2), `AF_UNSPEC`) by whoever has it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockaddrStorage, getpeername, setsockopt, sockopt};

use super::handover::hand_over;
use super::listener::{bind, create, inet, listen, local_address};
use super::sock_diag::{self, End};
use super::stream_socket::{StreamSocket, accept};
use crate::plain::{SocketAddress, SocketKind};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 128;

/// After so many seconds of silence the peer's machine is asked whether it is still there, and that so often.
const KEEP_ALIVE: u32 = 60;
const PROBES: u32 = 3;

/// The listening socket.
#[derive(Debug)]
pub struct ControlTcp {
    socket: OwnedFd,
    address: SocketAddr,
}

hand_over!(ControlTcp as ControlTcpState { socket: OwnedFd, address: SocketAddr });

impl ControlTcp {
    /// Binds the address and listens.
    ///
    /// # Errors
    ///
    /// Those of bind(2) and listen(2): EADDRINUSE where someone listens there.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let place = SocketAddress::Inet(address);
        let socket = create(&place, SocketKind::Stream)?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // What is left of the connections of a manager before keeps nobody from the address.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(&socket, &place)?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, address })
    }

    /// Where it is bound.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts a connection; `None` where none waits. It does not block.
    ///
    /// # Errors
    ///
    /// Those of [`accept`].
    pub fn accept(&self) -> io::Result<Option<StreamSocket>> {
        let stream = accept(&self.socket)?;
        if let Some(stream) = &stream {
            // All that can fail here is a connection that has ended, which shows by itself.
            let _ = tune(stream);
        }
        Ok(stream)
    }
}

impl AsFd for ControlTcp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Has answers sent at once, and a machine missed that has vanished without a word: nothing else would ever tell of it.
fn tune(stream: &StreamSocket) -> io::Result<()> {
    setsockopt(stream, sockopt::TcpNoDelay, &true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEP_ALIVE)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &(KEEP_ALIVE / PROBES))?;
    setsockopt(stream, sockopt::TcpKeepCount, &PROBES)?;
    Ok(setsockopt(stream, sockopt::TcpUserTimeout, &(KEEP_ALIVE * 2 * 1000))?)
}

/// Returns the socket at the other end of a connection that came to a loopback address of this machine, where some process
/// holds it; `None` where it came to another address, or nobody holds the socket any more.
///
/// # Errors
///
/// The connection has ended already (ENOTCONN), or the kernel has no sock_diag(7) for us.
pub fn local_end(stream: &StreamSocket) -> io::Result<Option<End>> {
    let Some(SocketAddress::Inet(ours)) = local_address(stream)? else {
        return Err(Errno::EAFNOSUPPORT.into());
    };
    if !ours.ip().to_canonical().is_loopback() {
        return Ok(None);
    }
    let theirs: SockaddrStorage = getpeername(stream.as_fd().as_raw_fd())?;
    let theirs = inet(&theirs).ok_or(Errno::EAFNOSUPPORT)?;
    sock_diag::end(theirs, ours)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use nix::unistd::{Uid, geteuid, seteuid};

    use super::super::fork::tests::isolated;
    use super::super::listener::tests::{eventually, reachable};
    use super::*;

    /// A socket at a port that was free a moment ago.
    fn listening(ip: &str) -> ControlTcp {
        eventually(|| {
            let port =
                std::net::TcpListener::bind((ip.trim_matches(['[', ']']), 0)).ok()?.local_addr().ok()?.port();
            ControlTcp::bind(format!("{ip}:{port}").parse().unwrap()).ok()
        })
    }

    fn served(socket: &ControlTcp) -> StreamSocket {
        eventually(|| socket.accept().unwrap())
    }

    fn maker(stream: &StreamSocket) -> Option<u32> {
        local_end(stream).unwrap().map(|end| end.maker)
    }

    #[test]
    fn the_maker_of_the_other_end_is_known_on_any_loopback_address() {
        for ip in reachable(["127.0.0.1", "[::1]", "[::]"]) {
            let socket = listening(ip);
            assert!(socket.accept().unwrap().is_none(), "nobody has come, and nobody waits");
            let to = if ip == "[::]" { "127.0.0.1" } else { ip };
            let mut client = TcpStream::connect(format!("{to}:{}", socket.address().port())).unwrap();
            let mut served = served(&socket);
            assert_eq!(maker(&served), Some(geteuid().as_raw()), "{ip}");
            client.write_all(b"x").unwrap();
            let mut byte = [0; 2];
            assert_eq!(eventually(|| served.read(&mut byte).ok()), 1);
        }
    }

    #[test]
    fn a_stranger_is_known_and_an_end_that_was_closed_is_nobody() {
        if !Uid::effective().is_root() {
            crate::skipped::add("only root can be somebody else");
            return;
        }
        isolated(|| {
            let socket = listening("127.0.0.1");
            // This process is the stranger while it connects: a socket is whose that was who made it.
            seteuid(Uid::from_raw(4711)).unwrap();
            let client = TcpStream::connect(socket.address()).unwrap();
            let gone = TcpStream::connect(socket.address()).unwrap();
            seteuid(Uid::from_raw(0)).unwrap();
            let (stays, leaves) = (served(&socket), served(&socket));
            assert_eq!(maker(&stays), Some(4711));
            (&gone).write_all(b"{\"cmd\":\"die\"}\n").unwrap();
            drop(gone);
            assert_eq!(maker(&leaves), None, "the kernel says root, and means nobody");
            drop(client);
        });
    }

    #[test]
    fn a_taken_address_is_an_error() {
        let socket = listening("127.0.0.1");
        let taken = ControlTcp::bind(socket.address()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        let address = socket.address();
        let client = TcpStream::connect(address).unwrap();
        drop(served(&socket));
        drop((socket, client));
        // Though a connection of it is in TIME-WAIT.
        eventually(|| ControlTcp::bind(address).ok());
    }
}

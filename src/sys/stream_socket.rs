#![expect(unsafe_code, reason = "adopting what accept4(2) returns")]
//! A connection of whatever family: bytes in, bytes out, nothing waited for.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockaddrLike, SockaddrStorage, accept4, getpeername,
    getsockopt, send, shutdown, sockopt,
};

use super::foreign::ForeignFd;
use super::handover::hand_over;
use super::output::is_readable;
use super::retry::at_once;
use super::rights::receive;

/// The most that is thrown away at the end, in bytes.
const LEAVINGS: usize = 64 * 1024;

/// A connected stream socket.
#[derive(Debug)]
pub struct StreamSocket {
    /// Foreign, as a client may leave descriptors in its queue.
    socket: ForeignFd,
}

hand_over!(StreamSocket as StreamSocketState { socket: ForeignFd });

impl From<OwnedFd> for StreamSocket {
    fn from(socket: OwnedFd) -> Self {
        Self { socket: ForeignFd::from(socket).unshared() }
    }
}

impl StreamSocket {
    /// Says that nothing more comes, and throws away what was not read.
    ///
    /// To close a TCP connection while something in it is unread resets it (RFC 1122, 4.2.2.13), and that may cost the
    /// peer the last that it was told.
    pub fn finish(&mut self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        let mut buffer = [0; 4096];
        for _ in 0..LEAVINGS / buffer.len() {
            if !matches!(self.read(&mut buffer), Ok(1..)) {
                break;
            }
        }
    }
}

impl Read for StreamSocket {
    /// Reads what has come by now; `WouldBlock` where nothing has.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        receive(&self.socket, buffer)
    }
}

impl Write for StreamSocket {
    /// Writes what there is room for now; `WouldBlock` where there is none.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        Ok(at_once(|| send(self.socket.as_raw_fd(), bytes, flags))?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for StreamSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Accepts a connection; `None` where none waits. It does not block where the listener does not.
///
/// # Errors
///
/// Those of accept4(2): EMFILE, ENFILE, ENOBUFS or ENOMEM where there is no room for another.
pub fn accept(listener: impl AsFd) -> io::Result<Option<StreamSocket>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(accept_as(listener.as_fd(), flags)?.map(Into::into))
}

/// As [`accept`], but whoever uses the connection waits for it: the flag goes with it to another process.
///
/// # Errors
///
/// Those of [`accept`].
pub fn accept_blocking(listener: impl AsFd) -> io::Result<Option<ForeignFd>> {
    if !is_readable(listener.as_fd())? {
        return Ok(None);
    }
    Ok(accept_as(listener.as_fd(), SockFlag::SOCK_CLOEXEC)?.map(Into::into))
}

fn accept_as(listener: BorrowedFd<'_>, flags: SockFlag) -> io::Result<Option<OwnedFd>> {
    match accept4(listener.as_raw_fd(), flags) {
        // SAFETY: the descriptor was made just now, for this alone.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) })),
        // Nobody was there, or the client has gone again. Where it was a signal the connection waits still, and the listener is
        // reported again. The call is not made again here: it may wait, where others have changed the listener's flags.
        Err(Errno::EAGAIN | Errno::ECONNABORTED | Errno::EINTR) => Ok(None),
        // The network's own errors are reported here and mean the same (accept(2)).
        Err(
            Errno::ENETDOWN
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
            | Errno::EHOSTDOWN
            | Errno::ENONET
            | Errno::EHOSTUNREACH
            | Errno::EOPNOTSUPP
            | Errno::ENETUNREACH
            | Errno::EPERM,
        ) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Whoever has this address.
    Inet(SocketAddr),
    /// A process of this machine, of this user.
    Unix(u32),
}

impl Peer {
    /// Returns what those have in common that come from the same place.
    #[must_use]
    pub fn source(self) -> String {
        match self {
            Self::Inet(address) => address.ip().to_canonical().to_string(),
            Self::Unix(user) => format!("user {user}"),
        }
    }
}

/// Returns who is at the other end.
///
/// # Errors
///
/// Those of getpeername(2): ENOTCONN where it has gone. `Unsupported` for a family that is neither IP nor UNIX.
pub fn peer(connection: impl AsFd) -> io::Result<Peer> {
    let address: SockaddrStorage = getpeername(connection.as_fd().as_raw_fd())?;
    if let Some(address) = address.as_sockaddr_in() {
        return Ok(Peer::Inet(SocketAddrV4::from(*address).into()));
    }
    if let Some(address) = address.as_sockaddr_in6() {
        return Ok(Peer::Inet(SocketAddrV6::from(*address).into()));
    }
    if address.family() == Some(AddressFamily::Unix) {
        return Ok(Peer::Unix(getsockopt(&connection.as_fd(), sockopt::PeerCredentials)?.uid()));
    }
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn nothing_is_waited_for() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut ours = StreamSocket::from(OwnedFd::from(ours));
        let mut buffer = [0; 8];
        assert_eq!(ours.read(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        theirs.write_all(b"text").unwrap();
        assert_eq!(ours.read(&mut buffer).unwrap(), 4);
        let text = vec![b'x'; 1 << 16];
        let full = loop {
            if let Err(error) = ours.write(&text) {
                break error;
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(ours.write(&text).unwrap_err().kind(), io::ErrorKind::BrokenPipe, "and no signal");
    }

    #[test]
    fn what_was_not_read_does_not_cost_the_last_word() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(&vec![b'x'; 20_000]).unwrap();
        let mut served = accept(&listener).unwrap().unwrap();
        served.write_all(b"no").unwrap();
        served.finish();
        drop(served);
        let mut said = String::new();
        client.read_to_string(&mut said).expect("an end, and no reset");
        assert_eq!(said, "no");
    }
}

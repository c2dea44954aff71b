//! The sender of notify datagrams: the manager's own words to systemd, or to whoever set its `NOTIFY_SOCKET`.
//!
//! Nothing here blocks. The socket is never connected, so a receiver that comes back at the same address is
//! reached again.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

use super::retry::at_once;

/// A way to one receiver of notify datagrams.
#[derive(Debug)]
pub struct NotifySender {
    socket: UnixDatagram,
    address: SocketAddr,
}

fn raw(address: &SocketAddr) -> io::Result<UnixAddr> {
    let name = address.as_pathname().map(UnixAddr::new);
    let name = name.or_else(|| address.as_abstract_name().map(UnixAddr::new_abstract));
    Ok(name.ok_or(Errno::EINVAL)??)
}

impl NotifySender {
    /// Opens a way to `address`, the value of `NOTIFY_SOCKET`: `/path` or `@abstract`. Whether anyone listens there
    /// shows only when something is sent.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a `vsock:` address, `InvalidInput` for any other that is neither of the two or is too long,
    /// and what socket(2) returns.
    pub fn new(address: &OsStr) -> io::Result<Self> {
        let address = match address.as_bytes() {
            [b'/', ..] => SocketAddr::from_pathname(address)?,
            [b'@', name @ ..] if !name.is_empty() => SocketAddr::from_abstract_name(name)?,
            [b'v', b's', b'o', b'c', b'k', b':' | b'-', ..] => {
                let why = format!("NOTIFY_SOCKET={}: vsock addresses are not supported", address.display());
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            _ => {
                let why = format!("NOTIFY_SOCKET={}: neither /path nor @abstract", address.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, address })
    }

    /// Sends one datagram.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where the receiver's queue is full: the datagram is not sent, and the caller may try again later
    /// (epoll cannot tell when). Else what sendto(2) returns, such as `ConnectionRefused` or `NotFound` where nobody
    /// listens.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        loop {
            match self.socket.send_to_addr(datagram, &self.address) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A datagram goes whole or not at all.
                sent => return sent.map(|_| ()),
            }
        }
    }

    /// Sends one datagram with a descriptor beside it.
    ///
    /// # Errors
    ///
    /// As [`NotifySender::send`]; also `WouldBlock` where too many descriptors are on their way.
    pub fn send_with(&self, datagram: &[u8], beside: BorrowedFd<'_>) -> io::Result<()> {
        let (parts, descriptors) = ([IoSlice::new(datagram)], [beside.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let address = raw(&self.address)?;
        match at_once(|| sendmsg(self.socket.as_raw_fd(), &parts, &rights, flags, Some(&address))) {
            Err(Errno::ETOOMANYREFS) => Err(io::ErrorKind::WouldBlock.into()),
            sent => Ok(sent.map(|_| ())?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

    fn received(receiver: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let len = receiver.recv(&mut buffer).unwrap();
        buffer[..len].to_vec()
    }

    #[test]
    fn a_path_is_reached_and_reached_again_after_the_receiver_came_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let sender = NotifySender::new(path.as_os_str()).unwrap();
        assert_eq!(sender.send(b"READY=1").unwrap_err().kind(), io::ErrorKind::NotFound);
        let first = UnixDatagram::bind(&path).unwrap();
        sender.send(b"READY=1\nSTATUS=one").unwrap();
        assert_eq!(received(&first), b"READY=1\nSTATUS=one");
        drop(first);
        assert_eq!(sender.send(b"READY=1").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        std::fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        sender.send(b"STATUS=two").unwrap();
        assert_eq!(received(&second), b"STATUS=two");
    }

    #[test]
    fn an_abstract_name_is_reached() {
        let name = format!("liveswap-notify-send-{}", process::id());
        let receiver = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let sender = NotifySender::new(OsStr::new(&format!("@{name}"))).unwrap();
        sender.send(b"STOPPING=1").unwrap();
        assert_eq!(received(&receiver), b"STOPPING=1");
    }

    #[test]
    fn a_full_queue_is_reported_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        let sender = NotifySender::new(path.as_os_str()).unwrap();
        let refusal = std::iter::repeat_with(|| sender.send(b"WATCHDOG=1")).find_map(Result::err).unwrap();
        assert_eq!(refusal.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(received(&receiver), b"WATCHDOG=1");
        sender.send(b"READY=1").unwrap();
    }

    #[test]
    fn the_socket_is_not_inherited_and_does_not_block() {
        let sender = NotifySender::new(OsStr::new("/run/systemd/notify")).unwrap();
        let flags = FdFlag::from_bits_retain(fcntl(&sender.socket, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        let status = OFlag::from_bits_retain(fcntl(&sender.socket, FcntlArg::F_GETFL).unwrap());
        assert!(status.contains(OFlag::O_NONBLOCK));
        assert!(sender.socket.as_raw_fd() > 2);
    }

    #[test]
    fn an_address_that_cannot_be_reached_is_refused_in_words() {
        for (address, kind, says) in [
            ("vsock:2:1234", io::ErrorKind::Unsupported, "vsock addresses are not supported"),
            ("vsock-stream:2:1234", io::ErrorKind::Unsupported, "vsock addresses are not supported"),
            ("", io::ErrorKind::InvalidInput, "neither /path nor @abstract"),
            ("@", io::ErrorKind::InvalidInput, "neither /path nor @abstract"),
            ("relative/notify", io::ErrorKind::InvalidInput, "neither /path nor @abstract"),
        ] {
            let error = NotifySender::new(OsStr::new(address)).unwrap_err();
            assert_eq!(error.kind(), kind, "{address:?}");
            assert!(error.to_string().contains(says), "{error}");
        }
        let long = format!("/{}", "x".repeat(200));
        assert_eq!(NotifySender::new(OsStr::new(&long)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

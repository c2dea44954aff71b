//! A two-way stream between the manager and one worker, along which descriptors travel.
//!
//! Nothing here waits: what is not taken at once is kept by the caller, who knows how much of it there may be.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::retry::at_once;
use super::rights::receive;

/// Makes the two ends: ours, which never blocks, and the worker's.
///
/// # Errors
///
/// Those of socketpair(2).
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours, theirs))
}

/// Sends as many of the bytes as are taken at once, a descriptor beside the first of them, and returns how many were.
///
/// # Errors
///
/// Those of sendmsg(2): `WouldBlock` where nothing is taken now, `BrokenPipe` where the other end has gone, and
/// `ETOOMANYREFS` where too many descriptors are on their way.
pub fn send_some(channel: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<usize> {
    let descriptor = descriptor.map(|fd| [fd.as_raw_fd()]);
    let rights = descriptor.as_ref().map(|fd| ControlMessage::ScmRights(fd));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let bytes = [IoSlice::new(bytes)];
    let channel = channel.as_fd().as_raw_fd();
    Ok(at_once(|| sendmsg::<()>(channel, &bytes, rights.as_slice(), flags, None))?)
}

/// Receives what has come, as much as there is room for; 0 where the other end was closed. Descriptors that come beside it
/// are closed.
///
/// # Errors
///
/// Those of recvmsg(2): `WouldBlock` where nothing has come.
pub fn receive_some(channel: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    receive(channel, buffer)
}

#[cfg(test)]
mod tests {
    #![expect(unsafe_code, reason = "adopting what recvmsg(2) brings")]

    use std::fs::File;
    use std::io::{ErrorKind, IoSliceMut, Read, Write};
    use std::os::fd::FromRawFd;

    use nix::cmsg_space;
    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::super::foreign::Closers;
    use super::*;

    /// What came, and the descriptor beside it.
    fn receive_rights(channel: &OwnedFd) -> (Vec<u8>, Option<OwnedFd>) {
        let (mut buffer, mut control) = ([0; 64], cmsg_space!([i32; 1]));
        let mut room = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(channel.as_raw_fd(), &mut room, Some(&mut control), flags).unwrap();
        let rights = message.cmsgs().unwrap().find_map(|control| match control {
            // SAFETY: the kernel made it for us just now, and nobody else has seen it.
            ControlMessageOwned::ScmRights(fds) => Some(unsafe { OwnedFd::from_raw_fd(fds[0]) }),
            _ => None,
        });
        let length = message.bytes;
        (buffer[..length].to_vec(), rights)
    }

    #[test]
    fn a_descriptor_travels_beside_the_first_byte() {
        let (ours, theirs) = channel().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        assert_eq!(send_some(&ours, b"take this\n", Some(writer.as_fd())).unwrap(), 10);
        drop(writer);
        let (bytes, received) = receive_rights(&theirs);
        assert_eq!(bytes, b"take this\n");
        File::from(received.unwrap()).write_all(b"arrived").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "arrived");
    }

    #[test]
    fn nobody_is_waited_for() {
        let (ours, theirs) = channel().unwrap();
        let mut buffer = [0; 64];
        assert_eq!(receive_some(&ours, &mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        let mut sent = 0;
        let error = loop {
            match send_some(&ours, &[b'x'; 4096], None) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
        };
        assert!(sent > 4096 && error.kind() == ErrorKind::WouldBlock, "{sent} {error}");
        drop(theirs);
        assert_eq!(send_some(&ours, b"x", None).unwrap_err().kind(), ErrorKind::BrokenPipe);
    }

    #[test]
    fn descriptors_that_nobody_asked_for_are_not_kept() {
        let (ours, theirs) = channel().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_some(&theirs, b"hello", Some(writer.as_fd())).unwrap();
        drop(writer);
        let mut buffer = [0; 64];
        assert_eq!(receive_some(&ours, &mut buffer).unwrap(), 5);
        Closers::default().finish();
        // The end is there only if no copy of the writing end is open any more.
        assert_eq!(reader.read(&mut buffer).unwrap(), 0);
        drop(theirs);
        assert_eq!(receive_some(&ours, &mut buffer).unwrap(), 0);
    }
}

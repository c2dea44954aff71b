//! Streams to the journal: sockets on which each line becomes an entry (sd_journal_stream_fd(3)).
//!
//! Whoever holds such a socket can shut it down for all who do (shutdown(2)), so nobody shares one with a process that it
//! does not trust. A new stream is a connection to the same address with a few lines at its head.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::{LOG_DAEMON, LOG_INFO};
use nix::sys::socket::sockopt::{SndBuf, SndBufForce, SockType as TypeOf};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect, getpeername, getsockopt, send,
    setsockopt, shutdown, socket,
};
use nix::sys::stat::fstat;

use super::retry::at_once;

/// How much may wait in a stream until the journal takes it, in bytes; as systemd has it for a unit's.
const SEND_BUFFER: usize = 8 << 20;

/// The address of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalSocket {
    path: PathBuf,
}

impl JournalSocket {
    /// Returns the address that a stream is connected to; `None` where it is no stream socket with a peer in the file system.
    pub fn behind(stream: impl AsFd) -> Option<Self> {
        let stream = stream.as_fd();
        if getsockopt(&stream, TypeOf).ok()? != SockType::Stream {
            return None;
        }
        let peer: UnixAddr = getpeername(stream.as_raw_fd()).ok()?;
        Some(Self { path: peer.path()?.to_owned() })
    }

    /// Whether a journal listens there by its own: `/run/systemd/journal/stdout`, or that of a namespace
    /// (systemd-journald.service(8)).
    pub fn is_usual(&self) -> bool {
        let folder = self.path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        self.path.starts_with("/run/systemd")
            && self.path.ends_with("stdout")
            && folder.is_some_and(|name| name == "journal" || name.starts_with("journal."))
    }

    /// Connects a new stream, without waiting. Its lines are of our unit, have the priority `info` unless they begin with
    /// another (`<3>`), and are shown as those of `identifier`.
    ///
    /// # Errors
    ///
    /// Those of socket(2), connect(2) and send(2): `WouldBlock` where the journal has too many to accept.
    pub fn connect(&self, identifier: &str) -> io::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let address = UnixAddr::new(&self.path)?;
        at_once(|| connect(stream.as_raw_fd(), &address))?;
        // It is a wish: with less, writers wait sooner.
        let _ = setsockopt(&stream, SndBufForce, &SEND_BUFFER)
            .or_else(|_| setsockopt(&stream, SndBuf, &SEND_BUFFER));
        shutdown(stream.as_raw_fd(), Shutdown::Read)?;
        // Identifier, unit (the journal knows it by the cgroup), priority, whether lines begin with another, and three
        // places to forward to, which the journal's own configuration chooses.
        let head = format!("{}\n\n{}\n1\n0\n0\n0\n", identifier.replace('\n', " "), LOG_DAEMON | LOG_INFO);
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let sent = at_once(|| send(stream.as_raw_fd(), head.as_bytes(), flags))?;
        if sent < head.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        // Programs expect an output that waits.
        let flags = OFlag::from_bits_retain(fcntl(&stream, FcntlArg::F_GETFL)?);
        fcntl(&stream, FcntlArg::F_SETFL(flags & !OFlag::O_NONBLOCK))?;
        Ok(stream)
    }
}

/// Returns what `$JOURNAL_STREAM` says of a stream (systemd.exec(5)): its device and inode.
///
/// # Errors
///
/// Those of fstat(2).
pub fn identity(stream: impl AsFd) -> io::Result<String> {
    let stat = fstat(stream)?;
    Ok(format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_new_stream_goes_where_the_old_one_goes_and_has_a_head() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdout");
        let listener = UnixListener::bind(&path).unwrap();
        let old = UnixStream::connect(&path).unwrap();
        let socket = JournalSocket::behind(&old).unwrap();
        assert_eq!(socket.path, path);
        assert!(!socket.is_usual());
        let mut new = UnixStream::from(socket.connect("live\nswap").unwrap());
        new.write_all(b"<3>a line\n").unwrap();
        drop(new);
        listener.accept().unwrap();
        let mut text = String::new();
        listener.accept().unwrap().0.read_to_string(&mut text).unwrap();
        assert_eq!(text, "live swap\n\n30\n1\n0\n0\n0\n<3>a line\n");
        drop(listener);
        assert_eq!(socket.connect("x").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_journal_that_accepts_nothing_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(folder.path().join("stdout")).unwrap();
        let socket = JournalSocket { path: folder.path().join("stdout") };
        let mut streams = Vec::new();
        let error = loop {
            match socket.connect("x") {
                Ok(stream) => streams.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_no_stream_to_a_file_has_no_journal_behind_it() {
        assert_eq!(JournalSocket::behind(UnixStream::pair().unwrap().0), None);
        assert_eq!(JournalSocket::behind(std::fs::File::open("/dev/null").unwrap()), None);
        let usual = |path: &str| JournalSocket { path: path.into() }.is_usual();
        assert!(usual("/run/systemd/journal/stdout") && usual("/run/systemd/journal.web/stdout"));
        assert!(!usual("/run/systemd/journal/socket") && !usual("/tmp/journal/stdout"));
    }
}

//! Writing and reading text without ever waiting for whoever is on the other side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{pipe2, write};

use super::held::anew;

/// Makes a pipe for what a child writes: the end that we read, which never blocks, and the end that it writes to, which
/// does, as programs expect.
///
/// # Errors
///
/// Those of pipe2(2).
pub fn output_pipe() -> io::Result<(File, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((ours.into(), theirs))
}

/// A pipe between us and a worker.
#[derive(Debug)]
pub struct WorkerPipe {
    /// Our end, which never blocks. No other process ever has it: whoever shares it could change its flags.
    pub ours: File,
    /// The end of the worker, which blocks, as programs expect.
    pub theirs: OwnedFd,
    /// A second description of our end, for the worker to keep: so the pipe does not close with a manager that is killed.
    /// None where `/proc` is not mounted.
    pub kept: Option<OwnedFd>,
}

/// Makes a pipe for an output of a worker.
///
/// # Errors
///
/// Those of pipe2(2).
pub fn worker_output() -> io::Result<WorkerPipe> {
    let (ours, theirs) = output_pipe()?;
    let kept = anew(&ours, OFlag::O_RDONLY | OFlag::O_NONBLOCK).ok();
    Ok(WorkerPipe { ours, theirs, kept })
}

/// Makes a pipe for messages to a worker.
///
/// # Errors
///
/// Those of pipe2(2).
pub fn message_pipe() -> io::Result<WorkerPipe> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let kept = anew(&ours, OFlag::O_WRONLY | OFlag::O_NONBLOCK).ok();
    Ok(WorkerPipe { ours: ours.into(), theirs, kept })
}

/// Writes a message of at most `PIPE_BUF` bytes into a pipe: whole or not at all (pipe(7)).
///
/// # Errors
///
/// `WouldBlock` where what was written before is not read, `BrokenPipe` where nobody will.
pub fn write_message(pipe: impl AsFd, message: &[u8]) -> io::Result<()> {
    if message.len() > PIPE_BUF {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    write(pipe, message)?;
    Ok(())
}

/// A way to one of our own outputs that never blocks, whoever else writes there.
///
/// `O_NONBLOCK` belongs to the open file description (open(2)), which we share with the workers and with whoever
/// started us: it is not ours to set. A pipe or a terminal is therefore opened anew, a socket is sent to with
/// `MSG_DONTWAIT`, and a file never makes anyone wait.
#[derive(Debug)]
pub struct Writer {
    fd: OwnedFd,
    is_socket: bool,
}

impl Writer {
    /// Opens a way to where `fd` goes.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2), where no descriptor is left.
    pub fn to(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        let kind = SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits());
        let is_own = kind == SFlag::S_IFIFO || kind == SFlag::S_IFCHR;
        let anew = || {
            let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
            open(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str(), flags, Mode::empty())
        };
        // One that may not be opened, such as another user's terminal, is written to as it is, where poll(2) allows it.
        let opened = if is_own { anew().ok() } else { None };
        let fd = match opened {
            Some(opened) => opened,
            None => fd.try_clone_to_owned()?,
        };
        Ok(Self { fd, is_socket: kind == SFlag::S_IFSOCK })
    }

    /// Writes as much of `bytes` as is taken at once, perhaps nothing, and returns how much.
    ///
    /// # Errors
    ///
    /// Those of write(2): `EPIPE` where nobody reads any more.
    pub fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut written = 0;
        for piece in bytes.chunks(PIPE_BUF) {
            if !is_ready(&self.fd, PollFlags::POLLOUT, PollTimeout::ZERO)? {
                break;
            }
            let result = if self.is_socket {
                send(self.fd.as_raw_fd(), piece, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
            } else {
                write(&self.fd, piece)
            };
            match result {
                Ok(count) => written += count,
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }
}

impl AsFd for Writer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Tells whether there is something to read, be it the end.
///
/// # Errors
///
/// Those of poll(2).
pub fn is_readable(fd: impl AsFd) -> io::Result<bool> {
    is_ready(fd, PollFlags::POLLIN, PollTimeout::ZERO)
}

/// Waits until there is something to read, or `timeout` has passed; returns whether there is.
///
/// # Errors
///
/// Those of poll(2).
pub fn wait_readable(fd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    is_ready(fd, PollFlags::POLLIN, timeout)
}

fn is_ready(fd: impl AsFd, interest: PollFlags, timeout: PollTimeout) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), interest)];
    loop {
        match poll(&mut fds, timeout) {
            // With a signal pending even a look that waits for nothing is interrupted (poll(2)), and says nothing.
            Err(Errno::EINTR) if timeout == PollTimeout::ZERO => {}
            Err(Errno::EINTR) => return Ok(false),
            ready => return Ok(ready? == 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (mut ours, theirs) = output_pipe().unwrap();
        let writer = Writer::to(&theirs).unwrap();
        let text = vec![b'x'; 1 << 20];
        let written = writer.write_some(&text).unwrap();
        assert!(written > 0 && written < text.len(), "{written}");
        assert_eq!(writer.write_some(&text).unwrap(), 0);
        let flags = OFlag::from_bits_retain(fcntl(&theirs, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK), "what is shared stays as it was");
        let mut buffer = vec![0; written];
        ours.read_exact(&mut buffer).unwrap();
        assert_eq!(writer.write_some(b"more").unwrap(), 4);
    }

    #[test]
    fn a_pipe_that_others_fill_is_not_waited_for() {
        let (_ours, theirs) = output_pipe().unwrap();
        let writer = Writer::to(&theirs).unwrap();
        // Between poll(2) and write(2) somebody else may take the room: the write itself must not wait.
        while write(&writer.fd, &[b'x'; 4096]).is_ok() {}
        assert_eq!(write(&writer.fd, b"x"), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_full_socket_is_not_waited_for() {
        let (_ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let writer = Writer::to(&theirs).unwrap();
        let text = vec![b'x'; 1 << 22];
        assert!(writer.write_some(&text).unwrap() < text.len());
    }

    #[test]
    fn a_reader_that_has_gone_is_an_error() {
        let (ours, theirs) = output_pipe().unwrap();
        let writer = Writer::to(&theirs).unwrap();
        drop(ours);
        assert_eq!(writer.write_some(b"text").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}

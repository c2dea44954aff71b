#![expect(unsafe_code, reason = "nix has no pwritev2(2)")]
//! Writing and reading text without ever waiting for whoever is on the other side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc::{self, PIPE_BUF};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{dup2_stderr, dup2_stdout, pipe2, write};

use super::held::anew;
use super::retry::at_once;

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
    at_once(|| write(&pipe, message))?;
    Ok(())
}

/// Tells whether a descriptor is a socket.
pub fn is_socket(fd: impl AsFd) -> bool {
    kind(fd).is_ok_and(|kind| kind == SFlag::S_IFSOCK)
}

fn kind(fd: impl AsFd) -> nix::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(fd)?.st_mode & SFlag::S_IFMT.bits()))
}

/// One of our own two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standard {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// Puts a descriptor in the place of one of our own outputs.
///
/// # Errors
///
/// Those of dup2(2).
pub fn replace(which: Standard, with: impl AsFd) -> io::Result<()> {
    match which {
        Standard::Output => dup2_stdout(with)?,
        Standard::Error => dup2_stderr(with)?,
    }
    Ok(())
}

/// A way to one of our own outputs that never blocks, whoever else writes there.
///
/// `O_NONBLOCK` belongs to the open file description (open(2)), which we share with the workers and with whoever
/// started us: it is not ours to set, and not to be relied on. A pipe or a terminal is therefore opened anew, a socket is sent
/// to with `MSG_DONTWAIT`, and a file never makes anyone wait. What may not be opened anew is written to with `RWF_NOWAIT`
/// (pwritev2(2)). A file that is appended to is opened anew as well, so that the place where it ends is where we write.
#[derive(Debug)]
pub struct Writer {
    fd: OwnedFd,
    way: Way,
}

/// How something is written without waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The description is ours, or never makes anyone wait.
    Plain,
    /// By send(2).
    Socket,
    /// The description is shared, and may or may not wait.
    Shared,
}

impl Writer {
    /// Opens a way to where `fd` goes.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2), where no descriptor is left.
    pub fn to(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        let kind = kind(fd)?;
        let may_wait = kind == SFlag::S_IFIFO || kind == SFlag::S_IFCHR;
        let appends = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?) & OFlag::O_APPEND;
        let anew = || {
            let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | appends;
            open(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str(), flags, Mode::empty())
        };
        // One that may not be opened, such as another user's terminal or pipe, is written to as it is.
        if (may_wait || kind == SFlag::S_IFREG && !appends.is_empty())
            && let Ok(fd) = anew()
        {
            return Ok(Self { fd, way: Way::Plain });
        }
        let way = match kind {
            SFlag::S_IFSOCK => Way::Socket,
            _ if may_wait => Way::Shared,
            _ => Way::Plain,
        };
        Ok(Self { fd: fd.try_clone_to_owned()?, way })
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
            match self.write_piece(piece) {
                Ok(count) => written += count,
                // Not now: a call that may wait all the same is not made again at once, and so it stays bounded.
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                // What was written before counts; the next call meets the error again.
                Err(_) if written > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(written)
    }

    fn write_piece(&self, piece: &[u8]) -> nix::Result<usize> {
        match self.way {
            Way::Plain => write(&self.fd, piece),
            Way::Socket => {
                let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
                at_once(|| send(self.fd.as_raw_fd(), piece, flags))
            }
            Way::Shared => match at_once(|| write_now(self.fd.as_fd(), piece)) {
                // A kernel before 6.5: poll(2) has said that there is room, and nothing says more.
                Err(Errno::EOPNOTSUPP) => write(&self.fd, piece),
                written => written,
            },
        }
    }
}

/// Writes as many bytes as are taken at once, whether or not the open file description waits (`RWF_NOWAIT`, pwritev2(2)).
fn write_now(fd: BorrowedFd<'_>, bytes: &[u8]) -> nix::Result<usize> {
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one piece of memory, as long as said, that the kernel only reads; -1 is "where the description stands".
    let written = unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const piece, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(written).map_err(|_| Errno::last())
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
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match is_ready(&fd, PollFlags::POLLIN, timeout) {
            // By a signal, whatever that was for.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            ready => return ready,
        }
    }
}

fn is_ready(fd: impl AsFd, interest: PollFlags, timeout: PollTimeout) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd.as_fd(), interest)];
    if timeout == PollTimeout::ZERO {
        // With a signal pending even a look that waits for nothing is interrupted (poll(2)).
        return Ok(at_once(|| poll(&mut fds, timeout))? == 1);
    }
    Ok(poll(&mut fds, timeout)? == 1)
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
    fn a_pipe_that_is_shared_is_not_waited_for_whoever_fills_it() {
        let (_ours, theirs) = output_pipe().unwrap();
        let writer = Writer { fd: theirs.try_clone().unwrap(), way: Way::Shared };
        while writer.write_some(&[b'x'; 4096]).unwrap() > 0 {}
        // The kernel says so itself, and not poll(2) a moment before: nothing can come in between.
        assert!(matches!(write_now(theirs.as_fd(), &[b'x'; 4096]), Err(Errno::EAGAIN | Errno::EOPNOTSUPP)));
    }

    #[test]
    fn a_file_is_appended_to_wherever_others_set_its_offset() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let shared = std::fs::OpenOptions::new().append(true).open(file.path()).unwrap();
        let writer = Writer::to(&shared).unwrap();
        writer.write_some(b"one ").unwrap();
        fcntl(&shared, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        io::Seek::rewind(&mut &shared).unwrap();
        writer.write_some(b"two").unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), b"one two");
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

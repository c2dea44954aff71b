#![expect(unsafe_code, reason = "pidfd_open(2) and its kin have no safe wrapper here")]
//! Processes that are no children of ours, held by a descriptor.
//!
//! A number may belong to another process a moment later, as somebody else reaps. A descriptor of pidfd_open(2) never does:
//! it tells the end of its process, and what is done by it is done to that one or to nobody.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use super::foreign::ForeignFd;
use super::handover::hand_over;
use super::output::is_readable;
use super::process::{self, kill_tree};

/// `PIDFD_THREAD` of linux/pidfd.h.
const PIDFD_THREAD: libc::c_int = libc::O_EXCL;

/// A process, as long as somebody has a use for it.
#[derive(Debug)]
pub struct Pidfd {
    pid: Pid,
    fd: OwnedFd,
}

hand_over!(Pidfd as PidfdState { pid: Pid, fd: OwnedFd });

impl Pidfd {
    /// Takes hold of the process that has this number now.
    ///
    /// # Errors
    /// Those of pidfd_open(2): ESRCH where there is none.
    pub fn open(pid: Pid) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        Ok(Self { pid, fd: owned(fd)? })
    }

    /// Takes hold of one thread, for [`Pidfd::copy`] alone: the descriptors of a process can be had by any thread that lives.
    fn of_thread(thread: Pid) -> io::Result<Self> {
        // SAFETY: pidfd_open(2) takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, thread.as_raw(), PIDFD_THREAD) };
        Ok(Self { pid: thread, fd: owned(fd)? })
    }

    /// Takes what another call has returned as the descriptor of that process.
    pub fn adopt(pid: Pid, fd: OwnedFd) -> Self {
        Self { pid, fd }
    }

    /// Takes hold of a process that was started at that moment ([`process::started`]); `None` where it is no more, though
    /// its number may be another's.
    ///
    /// # Errors
    /// Those of pidfd_open(2) but ESRCH.
    pub fn of(pid: Pid, started: u64) -> io::Result<Option<Self>> {
        match Self::open(pid) {
            // Held, it is looked at: what has the number now has it until it is reaped.
            Ok(process) if process::started(pid) == Some(started) && !process.has_ended() => {
                Ok(Some(process))
            }
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Its number; as long as it has not ended it is nobody else's.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has ended, be it reaped or not.
    pub fn has_ended(&self) -> bool {
        is_readable(&self.fd).unwrap_or(false)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Those of pidfd_send_signal(2): ESRCH where it has ended.
    pub fn signal(&self, number: i32) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        let no_information: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: a null pointer stands for what kill(2) would have.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, number, no_information, 0) };
        Errno::result(sent)?;
        Ok(())
    }

    /// Kills it with all that descends from it, see [`kill_tree`].
    ///
    /// # Errors
    /// ESRCH where it has ended.
    pub fn kill_tree(&self) -> io::Result<()> {
        // Once it is stopped it ends by nobody's hand but ours, so its number stays its own.
        self.signal(libc::SIGSTOP)?;
        if self.has_ended() {
            return Err(Errno::ESRCH.into());
        }
        kill_tree(self.pid)
    }

    /// Copies a descriptor of it, which then closes on exec.
    ///
    /// # Errors
    /// Those of pidfd_getfd(2): EPERM where we may not look into the process (ptrace(2)), EBADF where it has no such
    /// descriptor. EINVAL where its first thread has ended and the kernel is older than Linux 6.9, which knows no `PIDFD_THREAD`.
    pub(super) fn copy(&self, number: RawFd) -> io::Result<ForeignFd> {
        let thread = process::living_thread(self.pid);
        if thread != self.pid {
            return Self::of_thread(thread)?.copy(number);
        }
        // SAFETY: pidfd_getfd(2) takes three integers and touches no memory of ours.
        let copy = owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), number, 0) })?;
        Ok(copy.into())
    }
}

impl AsFd for Pidfd {
    /// What becomes readable when it has ended.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(Errno::result(result)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command};

    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::super::held::{self, Kind};
    use super::*;

    fn sleeper() -> (Child, Pid) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        (child, pid)
    }

    #[test]
    fn a_process_is_held_until_its_end() {
        let (mut child, pid) = sleeper();
        let started = process::started(pid).unwrap();
        let held = Pidfd::of(pid, started).unwrap().unwrap();
        assert!(!held.has_ended());
        assert!(Pidfd::of(pid, started + 1).unwrap().is_none(), "the number alone says nothing");
        held.kill_tree().unwrap();
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert!(held.has_ended(), "a zombie has ended");
        assert!(Pidfd::of(pid, started).unwrap().is_none());
        child.wait().unwrap();
        assert_eq!(held.signal(libc::SIGTERM).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert!(held.kill_tree().is_err());
    }

    #[test]
    fn what_a_process_has_open_can_be_had() {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("it")).unwrap();
        let inode = held::inode(&listener).unwrap();
        // Ourselves: whom else may every test look into?
        let own = Pidfd::open(nix::unistd::getpid()).unwrap();
        let open = held::open_files(own.pid()).unwrap();
        let found = open.iter().find(|one| (one.kind, one.inode) == (Kind::Socket, inode)).unwrap();
        match found.copy(&own) {
            Ok(copy) => assert_eq!(held::inode(&copy).unwrap(), inode),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
        }
        assert!(own.copy(1_000_000).is_err());
    }
}

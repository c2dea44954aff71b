//! Waiting for many descriptors at once: a small level-triggered epoll(7).
//!
//! Whatever is not dealt with is reported again by the next wait, so nothing can be forgotten; and a time-out is
//! rounded up, so a deadline has passed when the wait for it ends and no one spins in its last millisecond.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

/// How many events one wait reports at most; the rest come with the next.
const BATCH: usize = 64;

/// What a descriptor is watched for; errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Interest {
    /// Something to read.
    Read,
    /// Room to write.
    Write,
    /// Nothing but errors and the hang-up.
    Nothing,
    /// Nothing but the hang-up, or a shutdown: a listener watched so is not woken by its connections.
    Hangup,
    /// The same, and something to read.
    Arrival,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Read => EpollFlags::EPOLLIN,
            Self::Write => EpollFlags::EPOLLOUT,
            Self::Nothing => EpollFlags::empty(),
            Self::Hangup => EpollFlags::EPOLLRDHUP,
            Self::Arrival => EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLIN,
        }
    }
}

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// As given when the descriptor was added.
    pub token: u64,
    /// There is something to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The other side has gone, or the descriptor is in error.
    pub hangup: bool,
}

/// A set of watched descriptors.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: [EpollEvent; BATCH],
}

impl Poller {
    /// Makes an empty set.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { epoll, events: [EpollEvent::empty(); BATCH] })
    }

    /// Watches `fd` under `token`.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`: `EEXIST` for a descriptor already watched, `EPERM` for one that cannot be waited for.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(interest.flags(), token))?)
    }

    /// Watches `fd`, which is watched already, for something else or under another token.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`: `ENOENT` for a descriptor that is not watched.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(interest.flags(), token))?)
    }

    /// Watches `fd` no longer.
    ///
    /// Closing a descriptor is not enough where a worker holds a copy: the watch belongs to what is open, not to
    /// the number (epoll(7), question 6).
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`: `ENOENT` for a descriptor that is not watched.
    pub fn remove(&self, fd: impl AsFd) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Waits until a descriptor is ready, a signal handler has run, or `timeout` has passed (`None`: for ever), and
    /// puts what is ready in place of what `ready` held.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)`, but for `EINTR`: an interrupted wait finds nothing.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let count = match self.epoll.wait(&mut self.events, rounded_up(timeout)) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        ready.extend(self.events[..count].iter().map(|event| Ready {
            token: event.data(),
            readable: event.events().contains(EpollFlags::EPOLLIN),
            writable: event.events().contains(EpollFlags::EPOLLOUT),
            hangup: event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR),
        }));
        Ok(())
    }
}

/// Returns the time-out in epoll's whole milliseconds; one too long for it ends early, which does no harm.
fn rounded_up(timeout: Option<Duration>) -> EpollTimeout {
    timeout.map_or(EpollTimeout::NONE, |timeout| {
        let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
        let milliseconds = i32::try_from(milliseconds).unwrap_or(i32::MAX);
        EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};

    use super::*;

    const PROMPT: Option<Duration> = Some(Duration::ZERO);

    fn ready(poller: &mut Poller, timeout: Option<Duration>) -> Vec<Ready> {
        let mut ready = Vec::new();
        poller.wait(timeout, &mut ready).unwrap();
        ready
    }

    #[test]
    fn what_is_not_read_is_reported_again() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&near, 7, Interest::Read).unwrap();
        assert_eq!(ready(&mut poller, PROMPT), []);
        far.write_all(b"x").unwrap();
        let expected = [Ready { token: 7, readable: true, writable: false, hangup: false }];
        assert_eq!(ready(&mut poller, None), expected);
        assert_eq!(ready(&mut poller, None), expected);
    }

    #[test]
    fn interest_can_be_changed_and_ended() {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&near, 1, Interest::Hangup).unwrap();
        assert_eq!(ready(&mut poller, PROMPT), [], "data is no hang-up");
        poller.modify(&near, 2, Interest::Write).unwrap();
        assert_eq!(
            ready(&mut poller, None),
            [Ready { token: 2, readable: false, writable: true, hangup: false }]
        );
        poller.remove(&near).unwrap();
        assert_eq!(ready(&mut poller, PROMPT), []);
        assert_eq!(poller.remove(&near).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn a_hangup_is_reported_whatever_the_interest() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut poller = Poller::new().unwrap();
        poller.add(&near, 3, Interest::Hangup).unwrap();
        drop(far);
        assert!(ready(&mut poller, None)[0].hangup);
    }

    #[test]
    fn a_timeout_is_never_cut_short() {
        let mut poller = Poller::new().unwrap();
        let start = Instant::now();
        let timeout = Duration::from_micros(1_100);
        assert_eq!(ready(&mut poller, Some(timeout)), []);
        assert!(start.elapsed() >= timeout);
    }

    #[test]
    fn timeouts_are_rounded_up_and_bounded() {
        assert_eq!(rounded_up(None), EpollTimeout::NONE);
        assert_eq!(rounded_up(PROMPT), EpollTimeout::ZERO);
        assert_eq!(rounded_up(Some(Duration::from_nanos(1))), EpollTimeout::from(1_u8));
        assert_eq!(rounded_up(Some(Duration::from_millis(5))), EpollTimeout::from(5_u8));
        assert_eq!(rounded_up(Some(Duration::MAX)), EpollTimeout::MAX);
    }

    #[test]
    fn the_poller_is_not_inherited() {
        let poller = Poller::new().unwrap();
        assert!(poller.epoll.0.as_raw_fd() > 2);
        let flags = fcntl(&poller.epoll.0, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }
}

//! Waiting for many descriptors at once: a small level-triggered epoll(7).
//!
//! A descriptor is registered by its owner, in a [`Watched`], and the registration ends with the owner, so that none is left behind.
//! What is not dealt with is reported again by the next wait, so nothing can be forgotten. A time-out is rounded up, so that a deadline
//! has passed when the wait for it ends, and no loop spins in its last millisecond.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

use super::handover::{HandOver, Luggage, Unpacked};

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
pub struct Ready<K> {
    /// As given when the descriptor was registered.
    pub key: K,
    /// There is something to read.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The other side has gone, or the descriptor is in error.
    pub hangup: bool,
}

/// A set of registered descriptors, each with a key that says what it is.
#[derive(Debug)]
pub struct Poller<K> {
    set: Rc<Set<K>>,
    events: [EpollEvent; BATCH],
}

impl<K: Copy> Poller<K> {
    /// Makes an empty set.
    ///
    /// # Errors
    /// Those of `epoll_create1(2)`.
    pub fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let set = Rc::new(Set { epoll, keys: RefCell::new(Keys { all: Vec::new(), free: Vec::new() }) });
        Ok(Self { set, events: [EpollEvent::empty(); BATCH] })
    }

    /// Waits until a descriptor is ready, a signal handler has run, or `timeout` has passed (`None`: for ever), and
    /// puts what is ready in place of what `ready` held.
    ///
    /// # Errors
    /// Those of `epoll_wait(2)`, but for `EINTR`: an interrupted wait finds nothing.
    pub fn wait(&mut self, timeout: Option<Duration>, ready: &mut Vec<Ready<K>>) -> io::Result<()> {
        ready.clear();
        let count = match self.set.epoll.wait(&mut self.events, rounded_up(timeout)) {
            Err(Errno::EINTR) => 0,
            count => count?,
        };
        let keys = self.set.keys.borrow();
        ready.extend(self.events[..count].iter().filter_map(|event| {
            Some(Ready {
                key: keys.get(event.data())?,
                readable: event.events().contains(EpollFlags::EPOLLIN),
                writable: event.events().contains(EpollFlags::EPOLLOUT),
                hangup: event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR),
            })
        }));
        Ok(())
    }
}

#[derive(Debug)]
struct Set<K> {
    epoll: Epoll,
    keys: RefCell<Keys<K>>,
}

/// The keys by the numbers that the kernel keeps with the descriptors. The number of an ended registration is used again.
#[derive(Debug)]
struct Keys<K> {
    all: Vec<Option<K>>,
    free: Vec<usize>,
}

impl<K: Copy> Keys<K> {
    fn put(&mut self, key: K) -> usize {
        let number = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            self.all.len() - 1
        });
        self.all[number] = Some(key);
        number
    }

    fn get(&self, number: u64) -> Option<K> {
        self.all.get(usize::try_from(number).ok()?).copied().flatten()
    }

    fn remove(&mut self, number: usize) {
        self.all[number] = None;
        self.free.push(number);
    }
}

/// The owner of a descriptor that can be registered in a [`Poller`]. The registration ends with the owner.
///
/// Closing the descriptor would not be enough for that where a worker holds a copy: a registration belongs to what is open, not to the
/// number (epoll(7), question 6). While it is registered the owner keeps the same descriptor.
#[derive(Debug)]
pub struct Watched<T: AsFd, K: Copy> {
    owner: T,
    registration: RefCell<Option<Registration<K>>>,
}

#[derive(Debug)]
struct Registration<K> {
    set: Rc<Set<K>>,
    number: usize,
    interest: Interest,
}

impl<T: AsFd, K: Copy> Watched<T, K> {
    /// Registers it, or changes what it is registered for or under which key. Where nothing changes, no system call is made.
    ///
    /// # Errors
    /// Those of `epoll_ctl(2)`: `EPERM` for a descriptor that cannot be waited for, `ENOSPC` at `fs.epoll.max_user_watches`. Then it is
    /// registered as before.
    pub fn watch(&self, poller: &Poller<K>, key: K, interest: Interest) -> io::Result<()> {
        let mut registration = self.registration.borrow_mut();
        let set = &poller.set;
        if let Some(registered) = registration.as_mut().filter(|registered| Rc::ptr_eq(&registered.set, set))
        {
            if registered.interest != interest {
                let mut event = EpollEvent::new(interest.flags(), registered.number as u64);
                set.epoll.modify(&self.owner, &mut event)?;
            }
            registered.interest = interest;
            set.keys.borrow_mut().all[registered.number] = Some(key);
            return Ok(());
        }
        let number = set.keys.borrow_mut().put(key);
        if let Err(error) = set.epoll.add(&self.owner, EpollEvent::new(interest.flags(), number as u64)) {
            set.keys.borrow_mut().remove(number);
            return Err(error.into());
        }
        let registered = Registration { set: Rc::clone(set), number, interest };
        if let Some(before) = registration.replace(registered) {
            before.end(&self.owner);
        }
        Ok(())
    }

    /// Ends the registration, if there is one.
    pub fn unwatch(&self) {
        if let Some(registration) = self.registration.take() {
            registration.end(&self.owner);
        }
    }

    /// Returns what it is registered for; `None` where it is not.
    pub fn interest(&self) -> Option<Interest> {
        self.registration.borrow().as_ref().map(|registration| registration.interest)
    }

    /// Returns whether it is registered.
    pub fn is_watched(&self) -> bool {
        self.interest().is_some()
    }
}

impl<K: Copy> Registration<K> {
    fn end(self, owner: impl AsFd) {
        // It cannot fail for what is registered.
        let _ = self.set.epoll.delete(owner);
        self.set.keys.borrow_mut().remove(self.number);
    }
}

impl<T: AsFd, K: Copy> From<T> for Watched<T, K> {
    fn from(owner: T) -> Self {
        Self { owner, registration: RefCell::new(None) }
    }
}

impl<T: AsFd, K: Copy> Drop for Watched<T, K> {
    fn drop(&mut self) {
        self.unwatch();
    }
}

impl<T: AsFd, K: Copy> Deref for Watched<T, K> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.owner
    }
}

impl<T: AsFd, K: Copy> DerefMut for Watched<T, K> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.owner
    }
}

impl<T: AsFd, K: Copy> AsFd for Watched<T, K> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owner.as_fd()
    }
}

/// The program that comes after us registers it anew.
impl<T: AsFd + HandOver, K: Copy> HandOver for Watched<T, K> {
    type State = T::State;

    fn pack(&self, luggage: &mut Luggage) -> T::State {
        self.owner.pack(luggage)
    }

    fn unpack(state: T::State, luggage: &mut Unpacked) -> io::Result<Self> {
        T::unpack(state, luggage).map(Self::from)
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

    fn ready(poller: &mut Poller<u8>, timeout: Option<Duration>) -> Vec<Ready<u8>> {
        let mut ready = Vec::new();
        poller.wait(timeout, &mut ready).unwrap();
        ready
    }

    fn pair() -> (Watched<UnixStream, u8>, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (near.into(), far)
    }

    #[test]
    fn what_is_not_read_is_reported_again() {
        let (near, mut far) = pair();
        let mut poller = Poller::new().unwrap();
        near.watch(&poller, 7, Interest::Read).unwrap();
        assert_eq!(ready(&mut poller, PROMPT), []);
        far.write_all(b"x").unwrap();
        let expected = [Ready { key: 7, readable: true, writable: false, hangup: false }];
        assert_eq!(ready(&mut poller, None), expected);
        assert_eq!(ready(&mut poller, None), expected);
    }

    #[test]
    fn interest_and_key_can_be_changed_and_ended() {
        let (near, mut far) = pair();
        far.write_all(b"x").unwrap();
        let mut poller = Poller::new().unwrap();
        near.watch(&poller, 1, Interest::Hangup).unwrap();
        assert_eq!(ready(&mut poller, PROMPT), [], "data is no hang-up");
        near.watch(&poller, 2, Interest::Write).unwrap();
        let writable = |key| [Ready { key, readable: false, writable: true, hangup: false }];
        assert_eq!(ready(&mut poller, None), writable(2));
        near.watch(&poller, 3, Interest::Write).unwrap();
        assert_eq!(ready(&mut poller, None), writable(3));
        near.unwatch();
        assert!(!near.is_watched());
        assert_eq!(ready(&mut poller, PROMPT), []);
        near.watch(&poller, 4, Interest::Write).unwrap();
        assert_eq!(ready(&mut poller, None), writable(4));
    }

    #[test]
    fn a_registration_ends_with_its_owner_though_a_copy_is_open() {
        let (near, mut far) = pair();
        far.write_all(b"x").unwrap();
        let _copy = near.try_clone().unwrap();
        let mut poller = Poller::new().unwrap();
        near.watch(&poller, 1, Interest::Read).unwrap();
        drop(near);
        assert_eq!(ready(&mut poller, PROMPT), []);
        let (other, _far) = pair();
        other.watch(&poller, 2, Interest::Read).unwrap();
        assert_eq!(poller.set.keys.borrow().all, [Some(2)], "its number is used again");
    }

    #[test]
    fn what_cannot_be_waited_for_stays_unregistered() {
        let poller = Poller::new().unwrap();
        let file = Watched::from(tempfile::tempfile().unwrap());
        let error = file.watch(&poller, 1, Interest::Read).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(!file.is_watched() && poller.set.keys.borrow().all == [None::<u8>]);
    }

    #[test]
    fn another_set_takes_its_place() {
        let (near, mut far) = pair();
        far.write_all(b"x").unwrap();
        let (mut first, mut second) = (Poller::new().unwrap(), Poller::new().unwrap());
        near.watch(&first, 1, Interest::Read).unwrap();
        near.watch(&second, 2, Interest::Read).unwrap();
        assert_eq!(ready(&mut first, PROMPT), []);
        assert_eq!(ready(&mut second, None)[0].key, 2);
    }

    #[test]
    fn a_hangup_is_reported_whatever_the_interest() {
        let (near, far) = pair();
        let mut poller = Poller::new().unwrap();
        near.watch(&poller, 3, Interest::Hangup).unwrap();
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
        let poller = Poller::<u8>::new().unwrap();
        assert!(poller.set.epoll.0.as_raw_fd() > 2);
        let flags = fcntl(&poller.set.epoll.0, FcntlArg::F_GETFD).unwrap();
        assert!(FdFlag::from_bits_retain(flags).contains(FdFlag::FD_CLOEXEC));
    }
}

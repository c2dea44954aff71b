#![expect(unsafe_code, reason = "clone(2) with shared memory and descriptors")]
//! Descriptors that another process has chosen, and how they are closed.
//!
//! The last close(2) of a file may wait: for the peer of a connection with `SO_LINGER` (socket(7)), for a file server
//! (`FUSE_FLUSH`). A worker decides what it sends, and it can put a descriptor inside a descriptor: in the queue of a socket
//! that it sends. So the manager closes nothing that came from outside. A [`ForeignFd`] that is dropped waits in a list, and
//! [`Closers`] has child processes close what is in it. A closer shares the descriptor table and the memory of the manager
//! and owns nothing else: where it waits, it alone waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, pipe2};

use super::cradle::Stack;
use super::fork::make_child;
use super::handover::{HandOver, Luggage, Number, Unpacked};
use super::held;
use super::listener::{is_listening, is_unix, kind};
use super::raw;
use super::reaper;
use crate::plain::SocketKind;

thread_local! {
    /// What waits to be closed. The manager has one thread; closers never touch this list, as each has a batch of its own.
    /// Numbers, so that the end of the thread closes nothing: the end of the process does, and does not wait.
    static WAITING: RefCell<Vec<RawFd>> = const { RefCell::new(Vec::new()) };
}

/// How long a closer may take before another one goes on with the rest of its batch.
const PATIENCE: Duration = Duration::from_millis(2);

/// How long one close may take, in nanoseconds, before the kernel kills the closer: that ends a wait for a peer, though not one
/// for a file server.
const CLOSE_TAKES: i64 = 20_000_000;

/// The most closers at a time.
const MOST: usize = 16;

/// How many descriptors may wait before no more are taken from others.
const MOST_WAITING: usize = 512;

/// How long [`Closers::finish`] waits.
const FINISH: Duration = Duration::from_secs(1);

/// A descriptor that came from outside, or one in whose queue such descriptors may wait.
///
/// On drop it goes to the list of what [`Closers`] closes.
#[derive(Debug)]
pub struct ForeignFd {
    /// None once it was taken out.
    fd: Option<OwnedFd>,
    close: Close,
}

/// Where a descriptor is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    /// In a child, as it may wait.
    InChild,
    /// Here, if it is still the socket that we have bound: a worker may have made a connection of it, which lingers.
    HereIfBound,
    /// Here, as nobody else has it, or nothing that may wait is left in it.
    Here,
}

impl From<OwnedFd> for ForeignFd {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: Some(fd), close: Close::InChild }
    }
}

impl ForeignFd {
    /// Takes it for a socket that we have bound: on drop one of IPv4 or IPv6 is closed at once, so that its address is free.
    /// One of UNIX may have descriptors of others in its queue all the same.
    #[must_use]
    pub fn bound(mut self) -> Self {
        if !is_unix(&self) {
            self.close = Close::HereIfBound;
        }
        self
    }

    /// Takes it for a connection that no other process of this machine shares: on drop one of IPv4 or IPv6 is closed at once.
    #[must_use]
    pub fn unshared(mut self) -> Self {
        if !is_unix(&self) {
            self.close = Close::Here;
        }
        self
    }

    /// Takes it for a socket in whose queue nothing waits and nothing can come: on drop it is closed at once.
    pub(super) fn mark_empty(&mut self) {
        self.close = Close::Here;
    }

    fn closes_here(&self) -> bool {
        match self.close {
            Close::InChild => false,
            Close::HereIfBound => is_listening(self).unwrap_or(false) || is_datagram(self),
            Close::Here => true,
        }
    }

    /// Takes the descriptor out, for an owner that may close it: it was looked at.
    #[must_use]
    pub fn trusted(mut self) -> OwnedFd {
        self.fd.take().unwrap_or_else(|| unreachable!("only this and drop take it"))
    }
}

impl AsFd for ForeignFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Some(fd) => fd.as_fd(),
            None => unreachable!("only `trusted` and drop take it"),
        }
    }
}

impl AsRawFd for ForeignFd {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Drop for ForeignFd {
    fn drop(&mut self) {
        if self.fd.is_none() || self.closes_here() {
            return;
        }
        if let Some(fd) = self.fd.take() {
            let number = fd.into_raw_fd();
            // A thread that ends has no list any more.
            let _ = WAITING.try_with(|waiting| waiting.borrow_mut().push(number));
        }
    }
}

fn is_datagram(fd: &ForeignFd) -> bool {
    kind(fd).is_ok_and(|kind| kind == Some(SocketKind::Datagram))
}

impl HandOver for ForeignFd {
    type State = Number;

    fn pack(&self, luggage: &mut Luggage) -> Number {
        luggage.put(self)
    }

    fn unpack(state: Number, luggage: &mut Unpacked) -> io::Result<Self> {
        luggage.take(state).map(Into::into)
    }
}

/// Whether so many descriptors wait to be closed that no more are to be taken from others for now: or whoever sends them faster
/// than they are closed would fill our table of descriptors.
#[must_use]
pub fn are_too_many() -> bool {
    WAITING.with_borrow(|waiting| waiting.len() > MOST_WAITING)
}

/// Descriptors that closers close, each once.
#[derive(Debug)]
struct Batch {
    descriptors: Vec<RawFd>,
    /// The place of the next one; a closer claims a descriptor before it closes it.
    next: AtomicUsize,
    /// What a closer puts in the place of each: so the number stays taken, and cannot be given to a descriptor of ours while a
    /// closer that was killed may or may not have come to it.
    placeholder: RawFd,
    /// In whose place that is.
    replaced: Vec<AtomicBool>,
}

impl Batch {
    fn of(descriptors: Vec<RawFd>, placeholder: RawFd) -> Self {
        let replaced = descriptors.iter().map(|_| AtomicBool::new(false)).collect();
        Self { descriptors, next: AtomicUsize::new(0), placeholder, replaced }
    }

    /// Gives the numbers free in whose place the placeholder is.
    fn free_replaced(&self) {
        for (number, replaced) in self.descriptors.iter().zip(&self.replaced) {
            if replaced.swap(false, Ordering::Relaxed) {
                free(*number);
            }
        }
    }

    fn is_done(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.descriptors.len()
    }
}

/// A closer that has not been reaped.
#[derive(Debug)]
struct Closer {
    pid: Pid,
    started: Instant,
    is_killed: bool,
    /// What the child runs on and works off. Both must live until it is reaped.
    plan: Box<Plan>,
    _stack: Stack,
}

#[derive(Debug)]
struct Plan {
    parent: Pid,
    batch: Rc<Batch>,
    /// The place of what the closer is closing.
    at: AtomicUsize,
    /// How long one close may take, in nanoseconds; 0 for as long as it likes.
    close_takes: i64,
}

/// No place.
const NOWHERE: usize = usize::MAX;

/// The children that close what waits. Their owner reaps them, and says so by [`Closers::ended`].
#[derive(Debug)]
pub struct Closers {
    current: Option<Rc<Batch>>,
    running: VecDeque<Closer>,
    /// An end of a pipe, which nobody else has; none where there was no descriptor to be had.
    placeholder: Option<OwnedFd>,
    close_takes: i64,
}

impl Default for Closers {
    fn default() -> Self {
        let placeholder = pipe2(OFlag::O_CLOEXEC).ok().map(|(end, _)| end);
        Self { current: None, running: VecDeque::new(), placeholder, close_takes: CLOSE_TAKES }
    }
}

/// Closes a placeholder, which never waits.
fn free(number: RawFd) {
    let _ = nix::unistd::close(number);
}

impl Closers {
    /// Starts a closer where something is to be closed and none is at work on it; returns its process.
    ///
    /// # Errors
    ///
    /// Those of mmap(2) and clone(2); what waits goes on waiting.
    pub fn run(&mut self) -> io::Result<Option<Pid>> {
        let Some(batch) = self.work() else { return Ok(None) };
        if self.running.iter().any(|closer| closer.is_at_work_on(&batch)) {
            return Ok(None);
        }
        if self.running.len() >= MOST {
            self.kill_oldest();
            return Ok(None);
        }
        let closer = Closer::start(batch, self.close_takes)?;
        let pid = closer.pid;
        self.running.push_back(closer);
        Ok(Some(pid))
    }

    /// When [`Closers::run`] is worth a call, whatever happens before: in so long from now.
    pub fn time_left(&self) -> Option<Duration> {
        let has_work = self.current.as_ref().is_some_and(|batch| !batch.is_done());
        let has_work = has_work || WAITING.with_borrow(|waiting| !waiting.is_empty());
        let newest = self.running.back().filter(|_| self.running.len() < MOST);
        let left = |closer: &Closer| PATIENCE.saturating_sub(closer.started.elapsed());
        has_work.then(|| newest.map_or(PATIENCE, left))
    }

    /// Whether a process is a closer.
    pub fn has(&self, pid: Pid) -> bool {
        self.running.iter().any(|closer| closer.pid == pid)
    }

    /// Lets go of a closer that was reaped; returns whether it was one.
    pub fn ended(&mut self, pid: Pid) -> bool {
        let Some(place) = self.running.iter().position(|closer| closer.pid == pid) else { return false };
        let Some(closer) = self.running.remove(place) else { return false };
        let Plan { batch, at, .. } = &*closer.plan;
        let at = at.load(Ordering::Relaxed);
        // It was killed. Where the placeholder is not in its place by then, the descriptor waits still.
        if let (Some(number), Some(false)) = (
            batch.descriptors.get(at),
            batch.replaced.get(at).map(|replaced| replaced.load(Ordering::Relaxed)),
        ) && batch.placeholder >= 0
        {
            // SAFETY: the number is taken until we free it; borrowed for this look alone.
            let held = unsafe { BorrowedFd::borrow_raw(*number) };
            let own = self.placeholder.as_ref().and_then(held::identity);
            if own.is_some() && held::identity(held) == own {
                free(*number);
            } else {
                WAITING.with_borrow_mut(|waiting| waiting.push(*number));
            }
        }
        batch.free_replaced();
        true
    }

    /// Closes what waits and reaps the closers, for a process that is about to become another program: execve(2) would
    /// close the rest, and wait. What is not closed after a second is left to it.
    pub fn finish(&mut self) {
        let end = Instant::now() + FINISH;
        while Instant::now() < end && (self.time_left().is_some() || !self.running.is_empty()) {
            if self.run().is_err() {
                break;
            }
            let ended: Vec<_> = self.running.iter().map(|closer| closer.pid).collect();
            let ended: Vec<_> = ended.into_iter().filter(|pid| reaper::reap(*pid).is_ok()).collect();
            for pid in ended {
                self.ended(pid);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The batch that is to be worked off.
    fn work(&mut self) -> Option<Rc<Batch>> {
        if self.current.as_ref().is_none_or(|batch| batch.is_done()) {
            let waiting = WAITING.take();
            let placeholder = self.placeholder.as_ref().map_or(-1, AsRawFd::as_raw_fd);
            self.current = (!waiting.is_empty()).then(|| Rc::new(Batch::of(waiting, placeholder)));
        }
        self.current.clone()
    }

    fn kill_oldest(&mut self) {
        if let Some(oldest) = self.running.iter_mut().find(|closer| !closer.is_killed) {
            // One that has exited is still ours to reap, so the number is still its own.
            let _ = nix::sys::signal::kill(oldest.pid, Signal::SIGKILL);
            oldest.is_killed = true;
        }
    }
}

impl Drop for Closers {
    fn drop(&mut self) {
        for closer in self.running.drain(..) {
            // It may be past SIGKILL for a while, and its memory must outlive it.
            let _ = nix::sys::signal::kill(closer.pid, Signal::SIGKILL);
            mem::forget(closer);
        }
    }
}

impl Closer {
    fn start(batch: Rc<Batch>, close_takes: i64) -> io::Result<Self> {
        let plan = Box::new(Plan { parent: getpid(), batch, at: AtomicUsize::new(NOWHERE), close_takes });
        let stack = Stack::new()?;
        let flags = libc::SIGCHLD | libc::CLONE_VM | libc::CLONE_FILES;
        let argument = (&raw const *plan).cast_mut().cast::<c_void>();
        // SAFETY: stack and plan live until the child is reaped, as `Closers` keeps them; nobody writes to the plan; the
        // child makes system calls that leave libc alone and changes nothing in our memory but atomic values.
        let clone = || Errno::result(unsafe { libc::clone(work_off, stack.top(), flags, argument) });
        let pid = make_child(|| clone().map(Pid::from_raw))?;
        Ok(Self { pid, started: Instant::now(), is_killed: false, plan, _stack: stack })
    }

    fn is_at_work_on(&self, batch: &Rc<Batch>) -> bool {
        Rc::ptr_eq(&self.plan.batch, batch) && !self.is_killed && self.started.elapsed() < PATIENCE
    }
}

/// What a closer does. All signals are blocked, so that no handler of the manager runs in here.
extern "C" fn work_off(plan: *mut c_void) -> c_int {
    // SAFETY: `Closer::start` passes its plan, which outlives this process and is not written to.
    let plan = unsafe { &*plan.cast::<Plan>() };
    // A manager that is killed leaves its lock and its sockets to nobody.
    raw::end_with_parent(plan.parent);
    let Batch { descriptors, next, placeholder, replaced } = &*plan.batch;
    let timer = raw::deadly_timer();
    loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let (Some(descriptor), Some(is_replaced)) = (descriptors.get(at), replaced.get(at)) else {
            raw::exit(0)
        };
        plan.at.store(at, Ordering::Relaxed);
        if let Ok(timer) = timer {
            raw::start_timer(timer, plan.close_takes);
        }
        is_replaced.store(raw::close_without_linger(*descriptor, *placeholder), Ordering::Relaxed);
        plan.at.store(NOWHERE, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};

    use super::super::fork::tests::isolated;
    use super::*;

    /// A connection whose last close waits for 30,000 s, as its peer does not read, and that peer.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        while client.write(&[b'x'; 4096]).is_ok() {}
        let linger = libc::linger { l_onoff: 1, l_linger: 30_000 };
        setsockopt(&client, sockopt::Linger, &linger).unwrap();
        (client, peer)
    }

    /// A socket in whose queue `inner` waits, and nowhere else.
    fn nested(inner: impl Into<OwnedFd>) -> ForeignFd {
        let (near, far) = UnixStream::pair().unwrap();
        let inner = inner.into();
        let rights = [inner.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&rights)];
        sendmsg::<()>(near.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None).unwrap();
        OwnedFd::from(far).into()
    }

    /// Runs closers until nothing waits and no more than `left` of them are there.
    fn settle(closers: &mut Closers, left: usize) {
        while closers.time_left().is_some() || closers.running.len() > left {
            closers.run().unwrap();
            let pids: Vec<_> = closers.running.iter().map(|closer| closer.pid).collect();
            for pid in pids.into_iter().filter(|pid| reaper::reap(*pid).is_ok()) {
                assert!(closers.ended(pid));
            }
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_dropped_is_closed_though_another_close_waits() {
        isolated(|| {
            // The kernel ends no closer: only then is it certain that the second one did not wait for that.
            let mut closers = Closers::default();
            closers.close_takes = 0;
            let (client, _peer) = lingering();
            drop(nested(client));
            let (near, mut far) = UnixStream::pair().unwrap();
            drop(ForeignFd::from(OwnedFd::from(near)));
            settle(&mut closers, 1);
            assert_eq!(far.read(&mut [0; 1]).unwrap(), 0, "the one behind it is closed");
            assert_eq!(closers.running.len(), 1, "the other closer waits, and nobody for it");
        });
    }

    #[test]
    fn closers_that_wait_are_bounded() {
        isolated(|| {
            let mut closers = Closers::default();
            let mut peers = Vec::new();
            for _ in 0..3 * MOST {
                let (client, peer) = lingering();
                peers.push(peer);
                drop(nested(client));
                settle(&mut closers, MOST);
            }
            assert!(closers.running.len() <= MOST);
            closers.finish();
            assert!(closers.running.is_empty(), "those that wait are killed at the end");
        });
    }

    #[test]
    fn no_descriptor_and_no_process_is_left() {
        isolated(|| {
            let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
            let before = open();
            let mut closers = Closers::default();
            for _ in 0..2_000 {
                let (near, far) = UnixStream::pair().unwrap();
                drop((ForeignFd::from(OwnedFd::from(near)), ForeignFd::from(OwnedFd::from(far))));
                closers.run().unwrap();
            }
            closers.finish();
            drop(closers);
            assert_eq!(open(), before);
            assert_eq!(reaper::next_exited().unwrap(), None);
        });
    }
}

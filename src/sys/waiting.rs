//! Whether a process waits for connections on a socket, as /proc tells it (proc(5)).
//!
//! A server waits in one of these ways, and each of them shows:
//!
//! - A thread of it is in accept(2), recv(2), poll(2) or select(2) on the socket: /proc/PID/task/TID/syscall tells the call and
//!   its arguments. The descriptors of the latter two stand in the memory of the process, /proc/PID/mem.
//! - The socket is in an epoll set, which /proc/PID/fdinfo lists, and a thread is in epoll_wait(2) on the set. Without the
//!   thread a program that loads its application after it has filled the set would pass for one that waits.
//! - An io_uring(7) has an accept or a poll under way, which /proc/PID/fdinfo lists as well.
//!
//! Descriptors are known by the inode of the socket: programs move and copy them, and close those that an epoll set still has.
//!
//! It reads several files for each thread. That takes a millisecond for a small program: it is for a child of the manager.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::FileExt;

use nix::sys::stat::{fstat, major, minor};
use nix::unistd::Pid;

use super::blocked_call::{Call, Kind};
use super::process::living_thread;
use super::usage::socket_inode;

/// `EPOLLIN`, which is `POLLIN` too.
const IN: u32 = 1;

/// The most descriptors of a call of poll(2) or select(2) that are read.
const MOST_DESCRIPTORS: u64 = 1 << 16;

/// The size of `struct pollfd`.
const POLLFD: usize = 8;

/// The operations of io_uring(7) that wait for a connection or a datagram: `IORING_OP_POLL_ADD`, `RECVMSG`, `ACCEPT`, `RECV`.
const RING_WAITS: [&str; 4] = ["6", "10", "13", "27"];

/// The byte of an ELF file that tells its class, and the class of 32-bit programs (elf(5)).
const ELF_CLASS: usize = 4;
const ELF_32: u8 = 1;

/// The sockets that connections come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    inodes: BTreeSet<u32>,
    /// The file system of all sockets, as the kernel writes it.
    device: u64,
}

impl Sockets {
    /// Describes sockets of ours.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of<F: AsFd>(sockets: impl IntoIterator<Item = F>) -> io::Result<Self> {
        let mut all = Self::default();
        for socket in sockets {
            let stat = fstat(socket)?;
            all.inodes.extend(u32::try_from(stat.st_ino));
            all.device = major(stat.st_dev) << 20 | minor(stat.st_dev);
        }
        Ok(all)
    }

    /// The inode numbers of the sockets.
    #[must_use]
    pub fn inodes(&self) -> &BTreeSet<u32> {
        &self.inodes
    }
}

/// Whether processes wait for connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waits {
    /// One of them does.
    Yes,
    /// None does.
    No,
    /// None is seen to, and one of them may wait in a way that does not show: which, and why.
    Hidden(String),
}

/// Looks whether one of these processes waits for connections on one of the sockets.
#[must_use]
pub fn waits(processes: &[Pid], sockets: &Sockets) -> Waits {
    let mut all = Waits::No;
    for pid in processes {
        match Process::read(*pid, sockets).and_then(|process| process.waits()) {
            Ok(Waits::Yes) => return Waits::Yes,
            Ok(Waits::No) => {}
            Ok(hidden @ Waits::Hidden(_)) => all = hidden,
            Err(error) if has_gone(&error) => {}
            Err(error) => all = Waits::Hidden(format!("process {pid} may not be looked into: {error}")),
        }
    }
    all
}

/// What a process has open.
struct Process {
    pid: Pid,
    /// A thread by which /proc shows the descriptors and the memory.
    thread: Pid,
    /// Its descriptors of the sockets, and of the epoll sets that have one of them.
    watched: BTreeSet<RawFd>,
    /// Those of them that are epoll sets.
    sets: BTreeSet<RawFd>,
    rings: Vec<RawFd>,
}

/// What the calls of all threads show.
#[derive(Default)]
struct Calls {
    one_waits: bool,
    /// Why a call could not be seen.
    unseen: Option<String>,
}

impl Process {
    fn read(pid: Pid, sockets: &Sockets) -> io::Result<Self> {
        let thread = living_thread(pid);
        let mut process =
            Self { pid, thread, watched: BTreeSet::new(), sets: BTreeSet::new(), rings: Vec::new() };
        let mut sets = Vec::new();
        for entry in fs::read_dir(format!("/proc/{thread}/fd"))?.flatten() {
            let link = match fs::read_link(entry.path()) {
                // Closed meanwhile.
                Err(error) if has_gone(&error) => continue,
                link => link?,
            };
            let (Some(link), Some(number)) =
                (link.to_str(), entry.file_name().to_str().and_then(|name| name.parse().ok()))
            else {
                continue;
            };
            match link {
                "anon_inode:[eventpoll]" => sets.push(number),
                "anon_inode:[io_uring]" => process.rings.push(number),
                _ if socket_inode(link).is_some_and(|inode| sockets.inodes.contains(&inode)) => {
                    process.watched.insert(number);
                }
                _ => {}
            }
        }
        process.add_sets(&sets, sockets)?;
        Ok(process)
    }

    /// Adds the epoll sets that have one of the sockets, or another such set.
    fn add_sets(&mut self, sets: &[RawFd], sockets: &Sockets) -> io::Result<()> {
        let mut nested = BTreeMap::new();
        for set in sets {
            let text = match self.info(*set) {
                Err(error) if has_gone(&error) => continue,
                text => text?,
            };
            let members: Vec<_> = text.lines().filter_map(Member::parse).collect();
            if members.iter().any(|member| member.is_one_of(sockets)) {
                self.sets.insert(*set);
            }
            let inner: Vec<_> =
                members.iter().map(|member| member.number).filter(|number| sets.contains(number)).collect();
            nested.insert(*set, inner);
        }
        // A set in a set in a set is as deep as the kernel lets it be, but a number may have been given anew.
        for _ in sets {
            let outer = nested.iter().filter(|(_, inner)| inner.iter().any(|one| self.sets.contains(one)));
            let outer: Vec<_> = outer.map(|(set, _)| *set).collect();
            self.sets.extend(outer);
        }
        self.watched.extend(&self.sets);
        Ok(())
    }

    fn info(&self, number: RawFd) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/fdinfo/{number}", self.thread))
    }

    fn waits(&self) -> io::Result<Waits> {
        let calls = self.calls()?;
        // Where no call may be seen, that the socket is in a set must do.
        if calls.one_waits || calls.unseen.is_some() && !self.sets.is_empty() {
            return Ok(Waits::Yes);
        }
        for ring in &self.rings {
            match ring_waits(&self.info(*ring)?) {
                Some(true) if !self.watched.is_empty() => return Ok(Waits::Yes),
                Some(_) => {}
                None => return Ok(Waits::Hidden(format!("process {} uses io_uring", self.pid))),
            }
        }
        let unseen = calls
            .unseen
            .or_else(|| self.is_32_bit().then(|| format!("process {} is a 32-bit program", self.pid)));
        Ok(unseen.map_or(Waits::No, Waits::Hidden))
    }

    /// Looks at the call that each thread is in.
    fn calls(&self) -> io::Result<Calls> {
        let mut calls = Calls::default();
        for entry in fs::read_dir(format!("/proc/{}/task", self.pid))?.flatten() {
            let text = match fs::read_to_string(entry.path().join("syscall")) {
                Err(error) if has_gone(&error) => continue,
                Err(error) => {
                    calls.unseen =
                        Some(format!("the system calls of process {} may not be seen: {error}", self.pid));
                    continue;
                }
                Ok(text) => text,
            };
            let Some(call) = Call::parse(&text) else { continue };
            match call.kind() {
                Kind::Other => {}
                Kind::Unknowable => {
                    calls.unseen =
                        Some(format!("process {} waits by Linux AIO, which does not say for what", self.pid));
                }
                kind => match self.is_waiting_call(&call, kind) {
                    Ok(true) => {
                        calls.one_waits = true;
                        break;
                    }
                    Ok(false) => {}
                    Err(error) if has_gone(&error) => {}
                    Err(error) => {
                        calls.unseen =
                            Some(format!("the memory of process {} may not be read: {error}", self.pid));
                    }
                },
            }
        }
        Ok(calls)
    }

    fn is_waiting_call(&self, call: &Call, kind: Kind) -> io::Result<bool> {
        if self.watched.is_empty() {
            return Ok(false);
        }
        match kind {
            Kind::OnOne => Ok(call.descriptor().is_some_and(|number| self.watched.contains(&number))),
            Kind::Epoll => Ok(call.descriptor().is_some_and(|number| self.sets.contains(&number))),
            Kind::Poll => {
                let count = call.arguments[1].min(MOST_DESCRIPTORS);
                let bytes = self.memory(call.arguments[0], usize::try_from(count).unwrap_or(0) * POLLFD)?;
                let waits = |entry: &[u8]| {
                    let number = entry.first_chunk().copied().map(RawFd::from_ne_bytes);
                    let events = entry[4..].first_chunk().copied().map_or(0, u16::from_ne_bytes);
                    number.is_some_and(|number| self.watched.contains(&number)) && u32::from(events) & IN != 0
                };
                Ok(bytes.chunks_exact(POLLFD).any(waits))
            }
            Kind::Select => {
                let (count, set) = (call.arguments[0].min(MOST_DESCRIPTORS), call.arguments[1]);
                if set == 0 {
                    return Ok(false);
                }
                // The kernel reads whole words of it (select(2)); which byte of a word a bit is in is the machine's own order.
                let words = usize::try_from(count.div_ceil(64)).unwrap_or(0);
                let bytes = self.memory(set, words * 8)?;
                let words: Vec<_> = bytes.chunks_exact(8).filter_map(|word| word.try_into().ok()).collect();
                let is_set = |number: &RawFd| {
                    let number = usize::try_from(*number).unwrap_or(usize::MAX);
                    let word = words.get(number / 64).copied().map(u64::from_ne_bytes);
                    word.is_some_and(|word| word >> (number % 64) & 1 == 1)
                };
                Ok(self.watched.iter().any(is_set))
            }
            Kind::Unknowable | Kind::Other => Ok(false),
        }
    }

    fn memory(&self, at: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        match File::open(format!("/proc/{}/mem", self.thread))?.read_exact_at(&mut bytes, at) {
            // The call is over, and its memory was given back.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EIO | libc::EFAULT)) => Ok(Vec::new()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Vec::new()),
            read => read.map(|()| bytes),
        }
    }

    /// Whether its system calls have other numbers than ours.
    fn is_32_bit(&self) -> bool {
        let mut head = [0; ELF_CLASS + 1];
        let read = File::open(format!("/proc/{}/exe", self.thread))
            .and_then(|mut program| program.read_exact(&mut head));
        read.is_ok() && head.starts_with(b"\x7fELF") && head[ELF_CLASS] == ELF_32
    }
}

/// A member of an epoll set, as a line of fdinfo has it (proc_pid_fdinfo(5)).
struct Member {
    /// The number that it was added by, which may be another's by now.
    number: RawFd,
    events: u32,
    inode: u64,
    device: u64,
}

impl Member {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("tfd:")?.split_whitespace();
        let mut member = Self { number: words.next()?.parse().ok()?, events: 0, inode: 0, device: 0 };
        while let Some(word) = words.next() {
            // A value stands behind the colon, or is the next word.
            let (key, value) = word.split_once(':')?;
            let value = if value.is_empty() { words.next()? } else { value };
            match key {
                "events" => member.events = u32::from_str_radix(value, 16).ok()?,
                "ino" => member.inode = u64::from_str_radix(value, 16).ok()?,
                "sdev" => member.device = u64::from_str_radix(value, 16).ok()?,
                _ => {}
            }
        }
        Some(member)
    }

    fn is_one_of(&self, sockets: &Sockets) -> bool {
        let is_one = u32::try_from(self.inode).is_ok_and(|inode| sockets.inodes.contains(&inode));
        is_one && self.device == sockets.device && self.events & IN != 0
    }
}

/// Whether an io_uring(7) has an operation under way that waits for a connection; `None` where the kernel does not list them.
fn ring_waits(info: &str) -> Option<bool> {
    let (_, polls) = info.split_once("PollList:")?;
    let operations = polls.lines().filter_map(|line| line.trim().strip_prefix("op=")?.split(',').next());
    Some(operations.into_iter().any(|operation| RING_WAITS.contains(&operation)))
}

fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::thread;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    use nix::sys::select::{FdSet, select};
    use nix::unistd::getpid;

    use super::super::listener::tests::eventually;
    use super::*;

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn seen(socket: impl AsFd) -> Waits {
        waits(&[getpid()], &Sockets::of([socket]).unwrap())
    }

    /// Checks that a thread which does this is seen to wait, until a connection comes.
    fn assert_seen(wait: impl FnOnce(&TcpListener) + Send + 'static) {
        let listener = listener();
        let copy = listener.try_clone().unwrap();
        assert_eq!(seen(&listener), Waits::No);
        let thread = thread::spawn(move || wait(&copy));
        eventually(|| (seen(&listener) == Waits::Yes).then_some(()));
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        thread.join().unwrap();
        assert_eq!(seen(&listener), Waits::No, "the thread has ended");
    }

    fn set_of(socket: impl AsFd) -> Epoll {
        let set = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
        set.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
        set
    }

    fn wait_on(set: &Epoll) {
        let mut events = [EpollEvent::empty()];
        while set.wait(&mut events, EpollTimeout::NONE).is_err() {}
    }

    #[test]
    fn every_way_to_wait_is_seen() {
        assert_seen(|listener| drop(listener.accept().unwrap()));
        assert_seen(|listener| {
            let mut wanted = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
            while poll(&mut wanted, PollTimeout::NONE).is_err() {}
        });
        assert_seen(|listener| {
            let mut wanted = FdSet::new();
            wanted.insert(listener.as_fd());
            while select(None, &mut wanted, None, None, None).is_err() {}
        });
        assert_seen(|listener| wait_on(&set_of(listener)));
        // Of a set in a set.
        assert_seen(|listener| {
            let inner = set_of(listener);
            wait_on(&set_of(&inner.0));
        });
        // The set keeps a socket whose descriptor was closed.
        assert_seen(|listener| {
            let copy: OwnedFd = listener.try_clone().unwrap().into();
            let set = set_of(&copy);
            drop(copy);
            wait_on(&set);
        });
    }

    #[test]
    fn a_receiver_of_datagrams_is_seen() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let copy = socket.try_clone().unwrap();
        assert_eq!(seen(&socket), Waits::No);
        let thread = thread::spawn(move || copy.recv(&mut [0]).unwrap());
        eventually(|| (seen(&socket) == Waits::Yes).then_some(()));
        socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn a_set_on_which_no_thread_waits_is_not_enough() {
        let listener = listener();
        let set = set_of(&listener);
        assert_eq!(seen(&listener), Waits::No, "its program may load yet");
        // One that waits for a place to write waits for no connection.
        let thread = thread::spawn(move || {
            let other = Epoll::new(EpollCreateFlags::empty()).unwrap();
            let mut events = [EpollEvent::empty()];
            other.wait(&mut events, EpollTimeout::from(300_u16)).unwrap();
        });
        for _ in 0..5 {
            assert_eq!(seen(&listener), Waits::No, "a thread waits on another set");
        }
        thread.join().unwrap();
        drop(set);
    }

    #[test]
    fn a_process_that_has_gone_waits_for_nothing() {
        let sockets = Sockets::of([listener()]).unwrap();
        assert_eq!(waits(&[Pid::from_raw(i32::MAX)], &sockets), Waits::No);
    }

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "tfd:        4 events:       19 data:                4  pos:0 ino:6e0f sdev:8";
        let member = Member::parse(line).unwrap();
        assert_eq!((member.number, member.events, member.inode, member.device), (4, 0x19, 0x6e0f, 8));
        assert!(Member::parse("pos:\t0").is_none());
        let ring = "SqThread:\t-1\nUserFiles:\t0\nPollList:\n  op=13, task_works=0\nCqOverflowList:\n";
        assert_eq!(ring_waits(ring), Some(true));
        assert_eq!(ring_waits(&ring.replace("op=13", "op=22")), Some(false));
        assert_eq!(ring_waits("SqThread:\t-1\n"), None);
    }

    #[test]
    fn the_file_system_of_sockets_is_written_as_the_kernel_writes_it() {
        let listener = listener();
        let set = set_of(&listener);
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", set.0.as_raw_fd())).unwrap();
        let member = info.lines().find_map(Member::parse).unwrap();
        assert!(member.is_one_of(&Sockets::of([&listener]).unwrap()), "{info}");
    }
}

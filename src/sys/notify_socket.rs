//! The socket on which one worker's notify datagrams come in, `sd_notify(3)`.
//!
//! Each worker has a socket of its own, so the address says which worker a message is about. It does not say who sent it:
//! any user reads the path of every bound socket in /proc/net/unix, and any user may send. So each message comes with its
//! [`Sender`], as the kernel knows it, and the caller decides whom it believes.
//!
//! Every descriptor that a message brings is owned from the moment recvmsg(2) returns, whatever else is wrong with the
//! message, and is closed where that may wait ([`super::foreign`]): no sender can make us leak a descriptor or sleep.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, UnixAddr, bind, setsockopt, shutdown, socket, sockopt,
};
use serde::{Deserialize, Serialize};

use super::foreign::ForeignFd;
use super::handover::{HandOver, Luggage, Number, Unpacked};
use super::options::set_bytes;
use super::path_watch::{PathWatch, WatchedPath};
use super::random::hexadecimal;
use super::rights::{self, Received, Sender};

/// `SO_PASSPIDFD` of asm-generic/socket.h, since Linux 6.5.
const SO_PASSPIDFD: libc::c_int = 76;

/// How many messages are taken out at the end; `net.unix.max_dgram_qlen` is 10 unless it was changed.
const MOST_WAITING: usize = 64;

/// A bound datagram socket; its path is removed on drop.
#[derive(Debug)]
pub struct NotifySocket {
    /// Foreign, as descriptors of others may wait in its queue.
    socket: ForeignFd,
    path: PathBuf,
    /// The watch of the path, where there is one.
    watched: Option<WatchedPath>,
}

/// A [`NotifySocket`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub struct NotifySocketState {
    socket: Number,
    #[serde(with = "crate::path_text")]
    path: PathBuf,
}

impl HandOver for NotifySocket {
    type State = NotifySocketState;

    fn pack(&self, luggage: &mut Luggage) -> NotifySocketState {
        // The watch is made anew.
        let Self { socket, path, watched: _ } = self;
        NotifySocketState { socket: socket.pack(luggage), path: path.clone() }
    }

    fn unpack(
        NotifySocketState { socket, path }: NotifySocketState,
        luggage: &mut Unpacked,
    ) -> io::Result<Self> {
        Ok(Self { socket: ForeignFd::unpack(socket, luggage)?, path, watched: None })
    }
}

/// One message. Its descriptors are closed on drop, which is what a sender of `BARRIER=1` waits for: keep it until
/// the message has been acted on.
#[derive(Debug)]
pub struct Datagram {
    /// How many bytes of the buffer it fills.
    pub len: usize,
    /// What came along, with `FD_CLOEXEC` set; empty if some were lost.
    pub descriptors: Vec<ForeignFd>,
    /// Who sent it, as the kernel vouches.
    pub sender: Option<Sender>,
    /// The message was longer than the buffer (`MSG_TRUNC`); it should be dropped whole.
    pub truncated: bool,
    /// Descriptors were lost, as we had no room for more (`MSG_CTRUNC`); it should be dropped whole.
    pub control_truncated: bool,
}

impl NotifySocket {
    /// Binds a socket with a name of 128 random bits in `folder`, which only we may write to. Any user may send to it, as
    /// workers drop their privileges.
    ///
    /// `SO_RCVBUF` is left alone: UNIX sockets do not heed it (unix(7)). How many messages wait is for the sysctl
    /// `net.unix.max_dgram_qlen` to say, so the socket wants to be read promptly.
    ///
    /// # Errors
    ///
    /// What getrandom(2), socket(2), bind(2) and chmod(2) return, with the path. A path has at most 107 bytes, of
    /// which the name takes 33.
    pub fn bind(folder: &Path) -> io::Result<Self> {
        let path = folder.join(hexadecimal::<16>()?);
        Self::bind_to(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("binding the notify socket {}: {error}", path.display()))
        })
    }

    /// Binds a socket in the place of one whose owner is no more: whoever sends to the path reaches this one from now on,
    /// and there is no moment without a socket there.
    ///
    /// Who has connected to the old one, instead of naming the path with each message as sd_notify(3) does, reaches nobody.
    ///
    /// # Errors
    ///
    /// Those of [`NotifySocket::bind`], and of rename(2).
    pub fn bind_again(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut bound = Self::bind(folder)?;
        fs::rename(&bound.path, path)?;
        path.clone_into(&mut bound.path);
        Ok(bound)
    }

    fn bind_to(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        // Before the address exists, so that no message comes without its sender.
        setsockopt(&socket, sockopt::PassCred, &true)?;
        pass_process(&socket);
        bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        let bound = Self { socket: socket.into(), path: path.to_owned(), watched: None };
        // The file begins with less than this, by the umask, and nobody is told the name before it has all of it. The
        // umask itself belongs to the whole process and stays as it is.
        fs::set_permissions(path, Permissions::from_mode(0o666))?;
        Ok(bound)
    }

    /// Returns the path, the value of the worker's `NOTIFY_SOCKET`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Has `watch` tell when somebody removes the path. Where that is not possible, a removal goes unnoticed.
    pub fn watch_path(&mut self, watch: &PathWatch) {
        // First: a file has one watch, which the end of the one of before would end.
        self.watched = None;
        self.watched = watch.watch_path(&self.path).ok();
    }

    /// Leaves the path in place at the end, as it is another socket's by now.
    pub fn forget_path(&mut self) {
        self.path.clear();
    }

    /// Whether the path still leads to a socket. Only its owner and root can put another one there.
    #[must_use]
    pub fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| file.file_type().is_socket())
    }

    /// Takes the next message, its text into `buffer`, or returns `None` where none waits.
    ///
    /// A message that was cut short is returned too, and says so: after it reading should go on, or one such message
    /// would silence the worker.
    ///
    /// # Errors
    ///
    /// What recvmsg(2) returns but EAGAIN and EINTR.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        self.receive_with(buffer, &mut [0; rights::CONTROL])
    }

    fn receive_with(&self, buffer: &mut [u8], control: &mut [u8]) -> io::Result<Option<Datagram>> {
        let Received { len, mut descriptors, sender, flags } =
            match rights::receive_in(&self.socket, buffer, control) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
        let control_truncated = flags & libc::MSG_CTRUNC != 0;
        if control_truncated {
            descriptors.clear();
        }
        let truncated = flags & libc::MSG_TRUNC != 0;
        Ok(Some(Datagram { len, descriptors, sender, truncated, control_truncated }))
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl NotifySocket {
    /// Has nobody send any more, and takes out what waits; `false` where that cannot be done.
    ///
    /// A sender looks whether the socket can still receive under the same lock under which shutdown(2) ends that, so nothing
    /// comes after it.
    fn empty(&self) -> bool {
        if shutdown(self.socket.as_raw_fd(), Shutdown::Read).is_err() {
            return false;
        }
        (0..MOST_WAITING).any(|_| matches!(self.receive(&mut [0]), Ok(None)))
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        // Our own removal is nobody's news.
        self.watched = None;
        // Whether it is gone already, with its folder for instance, makes no difference.
        let _ = fs::remove_file(&self.path);
        if self.empty() {
            self.socket.mark_empty();
        }
    }
}

/// Has every message bring the process of its sender; a kernel before 6.5 does not know how.
fn pass_process(socket: &OwnedFd) {
    let _ = set_bytes(socket, libc::SOL_SOCKET, SO_PASSPIDFD, &1_i32.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::rights::{CONTROL, MAX_DESCRIPTORS};
    use super::*;
    use std::env;
    use std::fs::File;
    use std::io::{IoSlice, PipeReader, Read, pipe};
    use std::os::unix::net::UnixDatagram;
    use std::process::{self, Command, Stdio};

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::socket::{ControlMessage, MsgFlags, connect, sendmsg};
    use nix::unistd::{Uid, getuid, setresuid};
    use tempfile::TempDir;

    use super::super::foreign::Closers;
    use super::super::fork::tests::isolated;
    use super::super::output::is_readable;

    const ALONE: &str = "LIVESWAP_TEST_ALONE";

    struct Worker {
        socket: UnixDatagram,
        address: UnixAddr,
    }

    impl Worker {
        fn of(path: &Path) -> Self {
            Self { socket: UnixDatagram::unbound().unwrap(), address: UnixAddr::new(path).unwrap() }
        }

        fn send(&self, text: &[u8], descriptors: &[i32]) -> nix::Result<usize> {
            let rights = [ControlMessage::ScmRights(descriptors)];
            let control = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
            let parts = [IoSlice::new(text)];
            sendmsg(self.socket.as_raw_fd(), &parts, control, MsgFlags::empty(), Some(&self.address))
        }
    }

    fn bound() -> (TempDir, NotifySocket, Worker) {
        let folder = tempfile::tempdir().unwrap();
        let socket = NotifySocket::bind(folder.path()).unwrap();
        let worker = Worker::of(socket.path());
        (folder, socket, worker)
    }

    fn next(socket: &NotifySocket) -> (Vec<u8>, Datagram) {
        let mut buffer = [0; 4096];
        let datagram = socket.receive(&mut buffer).unwrap().expect("a message waits");
        (buffer[..datagram.len].to_vec(), datagram)
    }

    fn open_descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    /// Runs the test of this name once more in a process of its own, where no other test opens descriptors, and
    /// returns `None`; in that process it returns the value of [`ALONE`].
    fn alone(test: &str, value: &Path) -> Option<PathBuf> {
        if let Some(value) = env::var_os(ALONE) {
            return Some(value.into());
        }
        let name = format!("{}::{test}", module_path!().split_once("::").unwrap().1);
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", &name, "--test-threads=1"])
            .env(ALONE, value)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        None
    }

    #[test]
    fn every_socket_has_a_name_of_its_own_and_anyone_may_send() {
        let (folder, socket, _) = bound();
        let other = NotifySocket::bind(folder.path()).unwrap();
        assert_ne!(socket.path(), other.path());
        let name = socket.path().file_name().unwrap().to_str().unwrap();
        assert!(name.len() == 32 && name.chars().all(|c| c.is_ascii_hexdigit()), "{name}");
        assert_eq!(fs::metadata(socket.path()).unwrap().permissions().mode() & 0o7777, 0o666);
        let flags = FdFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFD).unwrap());
        assert!(flags.contains(FdFlag::FD_CLOEXEC));
        let status = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL).unwrap());
        assert!(status.contains(OFlag::O_NONBLOCK));
    }

    #[test]
    fn the_path_goes_with_the_socket() {
        let (folder, socket, _) = bound();
        drop(socket);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn at_the_end_only_descriptors_of_others_are_left_to_be_closed() {
        let closers = Closers::default();
        let (_folder, socket, worker) = bound();
        worker.send(b"READY=1", &[]).unwrap();
        drop(socket);
        assert_eq!(closers.time_left(), None, "an empty socket is closed at once");
        assert!(worker.send(b"STOPPING=1", &[]).is_err());

        let (_folder, socket, worker) = bound();
        let connected = Worker::of(socket.path());
        connect(connected.socket.as_raw_fd(), &UnixAddr::new(socket.path()).unwrap()).unwrap();
        worker.send(b"FDSTORE=1", &[worker.socket.as_raw_fd()]).unwrap();
        drop(socket);
        assert!(closers.time_left().is_some(), "what came along is not closed here");
        assert!(nix::sys::socket::send(connected.socket.as_raw_fd(), b"X", MsgFlags::empty()).is_err());
    }

    #[test]
    fn a_folder_that_will_not_do_is_named() {
        let (folder, ..) = bound();
        let missing = folder.path().join("missing");
        let error = NotifySocket::bind(&missing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
        assert!(NotifySocket::bind(&folder.path().join("x".repeat(90))).is_err());
    }

    #[test]
    fn a_message_comes_with_its_text_its_sender_and_its_descriptors() {
        let (_folder, socket, worker) = bound();
        assert!(socket.receive(&mut [0; 8]).unwrap().is_none());
        let (mut reader, writer) = pipe().unwrap();
        worker.send(b"READY=1", &[]).unwrap();
        worker.send(b"FDSTORE=1", &[writer.as_raw_fd(), worker.socket.as_raw_fd()]).unwrap();
        drop(writer);
        let (text, datagram) = next(&socket);
        assert_eq!((text.as_slice(), sender(&datagram)), (&b"READY=1"[..], Some(me())));
        assert!(datagram.descriptors.is_empty() && !datagram.truncated && !datagram.control_truncated);
        let (text, datagram) = next(&socket);
        assert_eq!((text.as_slice(), sender(&datagram)), (&b"FDSTORE=1"[..], Some(me())));
        for descriptor in &datagram.descriptors {
            let flags = FdFlag::from_bits_retain(fcntl(descriptor, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        let [pipe_end, _]: [ForeignFd; 2] = datagram.descriptors.try_into().unwrap();
        io::Write::write_all(&mut File::from(pipe_end.trusted()), b"it is the pipe").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "it is the pipe");
        assert!(socket.receive(&mut [0; 8]).unwrap().is_none());
    }

    #[test]
    fn the_user_of_a_sender_is_told_and_so_is_its_process() {
        if !Uid::effective().is_root() {
            crate::skipped::add("only root can be somebody else");
            return;
        }
        isolated(|| {
            let (folder, socket, worker) = bound();
            fs::set_permissions(folder.path(), Permissions::from_mode(0o711)).unwrap();
            // The kernel tells the real user.
            let (root, other) = (Uid::from_raw(0), Uid::from_raw(4711));
            setresuid(other, root, root).unwrap();
            worker.send(b"READY=1", &[]).unwrap();
            setresuid(root, root, root).unwrap();
            let sender = next(&socket).1.sender.unwrap();
            assert_eq!((sender.pid, sender.uid), (process::id().cast_signed(), 4711));
            // A kernel before 6.5 has none.
            assert!(sender.process.is_none_or(|process| !is_readable(&process).unwrap()), "it lives");
        });
    }

    #[test]
    fn as_many_descriptors_as_a_message_can_bring_arrive() {
        let (_folder, socket, worker) = bound();
        let own = worker.socket.as_raw_fd();
        worker.send(b"x", &[own; MAX_DESCRIPTORS]).unwrap();
        let (_, datagram) = next(&socket);
        assert_eq!(datagram.descriptors.len(), MAX_DESCRIPTORS);
        assert!(datagram.sender.is_some() && !datagram.control_truncated);
        assert_eq!(worker.send(b"x", &[own; MAX_DESCRIPTORS + 1]), Err(Errno::EINVAL));
    }

    #[test]
    fn the_words_of_the_dead_arrive() {
        let (_folder, socket, _) = bound();
        if let Some(path) = alone("the_words_of_the_dead_arrive", socket.path()) {
            Worker::of(&path).send(b"STATUS=last words", &[]).unwrap();
            return;
        }
        let (text, datagram) = next(&socket);
        assert_eq!(text, b"STATUS=last words");
        let sender = datagram.sender.unwrap();
        assert!(sender.pid > 1 && sender.pid.cast_unsigned() != process::id());
        assert_eq!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(sender.pid), None), Err(Errno::ESRCH));
    }

    fn me() -> (i32, u32) {
        (process::id().cast_signed(), getuid().as_raw())
    }

    fn sender(datagram: &Datagram) -> Option<(i32, u32)> {
        datagram.sender.as_ref().map(|sender| (sender.pid, sender.uid))
    }

    fn close_foreign() {
        Closers::default().finish();
    }

    fn closed(reader: &mut PipeReader) -> bool {
        match reader.read(&mut [0; 1]) {
            Ok(0) => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_barrier_falls_only_when_the_datagram_is_dropped() {
        let (_folder, socket, worker) = bound();
        let (mut reader, writer) = pipe().unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        worker.send(b"STATUS=before", &[]).unwrap();
        worker.send(b"BARRIER=1", &[writer.as_raw_fd()]).unwrap();
        drop(writer);
        assert_eq!(next(&socket).0, b"STATUS=before");
        assert!(!closed(&mut reader));
        let (text, datagram) = next(&socket);
        assert_eq!((text.as_slice(), datagram.descriptors.len()), (&b"BARRIER=1"[..], 1));
        close_foreign();
        assert!(!closed(&mut reader));
        drop(datagram);
        close_foreign();
        assert!(closed(&mut reader));
    }

    #[test]
    fn systemd_notify_is_served() {
        let (_folder, socket, _) = bound();
        let sent = Command::new("systemd-notify")
            .args(["--ready", "--status=all is well"])
            .env("NOTIFY_SOCKET", socket.path())
            .stdout(Stdio::null())
            .spawn();
        let Ok(mut helper) = sent else {
            crate::skipped::add("no systemd-notify here");
            return;
        };
        // By default it ends with a barrier, so it exits only if that is served.
        let mut texts = String::new();
        while !texts.contains("BARRIER=1") {
            let mut polled = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut polled, 10_000_u16), Ok(1), "it said {texts:?}");
            texts.push_str(str::from_utf8(&next(&socket).0).unwrap());
        }
        close_foreign();
        assert!(helper.wait().unwrap().success());
        assert!(texts.contains("READY=1") && texts.contains("STATUS=all is well"), "{texts:?}");
    }

    #[test]
    fn a_message_that_is_too_long_says_so() {
        let (_folder, socket, worker) = bound();
        worker.send(&[b'x'; 4097], &[worker.socket.as_raw_fd()]).unwrap();
        worker.send(&[b'y'; 4096], &[]).unwrap();
        let (_, datagram) = next(&socket);
        assert!(datagram.truncated && datagram.len == 4096);
        let (text, datagram) = next(&socket);
        assert!(!datagram.truncated && text == [b'y'; 4096]);
    }

    #[test]
    fn a_hundred_thousand_hostile_messages_leave_no_descriptor_open() {
        let name = "a_hundred_thousand_hostile_messages_leave_no_descriptor_open";
        if alone(name, Path::new("1")).is_none() {
            return;
        }
        let (_folder, socket, worker) = bound();
        let own = worker.socket.as_raw_fd();
        let (long, mut buffer) = ([b'x'; 6000], [0; 4096]);
        let before = open_descriptors();
        let (mut received, mut cut, mut control_cut) = (0, 0, 0);
        for turn in 0..100_000 {
            let (text, count): (&[u8], usize) = match turn % 10 {
                0 => (b"", 0),
                1 => (b"", 1),
                2 => (b"READY=1", 3),
                3 => (b"BARRIER=1", 2),
                4 => (&long, 1),
                5 => (b"\0READY=1\0", 1),
                6 => (b"FDSTORE=1", if turn % 500 == 6 { MAX_DESCRIPTORS } else { 7 }),
                7 => (b"STATUS=\xff\xfe", 2),
                8 if turn % 500 == 8 => (b"x", MAX_DESCRIPTORS + 1),
                _ => (b"WATCHDOG=1", 4),
            };
            // Every room for control messages is tried, from none to enough for some.
            let mut room = [0; CONTROL];
            let room = if turn % 3 == 0 { &mut room[..turn % 97] } else { &mut room[..] };
            match worker.send(text, &[own; MAX_DESCRIPTORS + 1][..count]) {
                Ok(_) => {}
                Err(Errno::EINVAL) if count > MAX_DESCRIPTORS => continue,
                Err(error) => panic!("turn {turn}: {error}"),
            }
            let datagram = socket.receive_with(&mut buffer, room).unwrap().expect("it was sent");
            received += 1;
            cut += usize::from(datagram.truncated);
            control_cut += usize::from(datagram.control_truncated);
            let expected = if datagram.control_truncated { 0 } else { count };
            assert_eq!(datagram.descriptors.len(), expected, "turn {turn}");
            drop(datagram);
            if turn % 50 == 0 {
                close_foreign();
            }
            if turn % 1_000 == 0 {
                assert_eq!(open_descriptors(), before, "turn {turn}");
            }
        }
        close_foreign();
        assert_eq!(open_descriptors(), before);
        assert!(received > 99_000 && cut == 10_000 && control_cut > 10_000, "{received} {cut} {control_cut}");
    }

    #[test]
    fn without_room_for_descriptors_the_message_is_cut_and_the_next_one_is_read() {
        let name = "without_room_for_descriptors_the_message_is_cut_and_the_next_one_is_read";
        if alone(name, Path::new("1")).is_none() {
            return;
        }
        let (_folder, socket, worker) = bound();
        let own = worker.socket.as_raw_fd();
        let before = open_descriptors();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // Descriptors are numbered from the lowest that is free, so some of the hundred fit and most do not.
        let few = u64::try_from(before).unwrap() + 5;
        for _ in 0..100 {
            // Sent under the usual limit, as it also bounds what all processes of a user have in flight.
            worker.send(b"READY=1", &[own; 100]).unwrap();
            worker.send(b"STATUS=still heard", &[]).unwrap();
            setrlimit(Resource::RLIMIT_NOFILE, few, hard).unwrap();
            let (_, datagram) = next(&socket);
            assert!(datagram.control_truncated && datagram.descriptors.is_empty());
            drop(datagram);
            let (text, datagram) = next(&socket);
            assert!(
                text == b"STATUS=still heard" && !datagram.control_truncated && datagram.sender.is_some()
            );
            drop(datagram);
            setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
            close_foreign();
        }
        assert_eq!(open_descriptors(), before);
        worker.send(b"READY=1", &[own; 100]).unwrap();
        assert_eq!(next(&socket).1.descriptors.len(), 100);
    }
}

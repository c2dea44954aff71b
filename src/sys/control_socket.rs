//! A UNIX socket by which people and programs speak to the manager, and who it is that speaks.
//!
//! The file is never more open than it is to be, not even for a moment: it is bound for the owner alone, then given to
//! the group, then opened to it. The kernel tells who has connected, and who may speak is decided by that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::socket::{UnixAddr, connect, getsockopt, sockopt};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::geteuid;

use super::folder::Folder;
use super::foreign::ForeignFd;
use super::handover::hand_over;
use super::listener::{create, listen};
use super::occupant::{Occupant, folder_of, occupant_in, remove_stale};
use super::options::{get_bytes, length_of};
use super::socket_file::{PathState, SocketFile};
use super::stream_socket::{StreamSocket, accept};
use crate::plain::{SocketAddress, SocketKind};

/// How many connections may wait to be accepted.
const BACKLOG: u32 = 128;

/// How long a client waits before it tries again where the queue is full: the kernel tells of no room in it.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// The listening socket.
#[derive(Debug)]
pub struct ControlSocket {
    /// Foreign, as clients that wait to be accepted may have sent descriptors.
    socket: ForeignFd,
    file: SocketFile,
}

hand_over!(ControlSocket as ControlSocketState { socket: ForeignFd, file: SocketFile });

/// Who is at the other end of a connection, as of its making (unix(7), `SO_PEERCRED` and `SO_PEERGROUPS`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process.
    pub pid: i32,
    /// The effective user.
    pub uid: u32,
    /// The effective group and the supplementary ones.
    pub groups: Vec<u32>,
}

impl Peer {
    /// Whether it may speak: root, our own user, and members of `group`.
    pub fn may_speak(&self, group: Option<u32>) -> bool {
        self.uid == 0
            || self.uid == geteuid().as_raw()
            || group.is_some_and(|group| self.groups.contains(&group))
    }
}

impl ControlSocket {
    /// Binds the path, for the owner alone, over what a manager that is no more left there.
    ///
    /// # Errors
    ///
    /// Those of bind(2); EADDRINUSE where someone listens there, or something that is no socket stands there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let folder = Folder::open(&folder_of(path))?;
        match occupant_in(&folder, path)? {
            Occupant::Nobody => {}
            Occupant::Stale => remove_stale(&folder, path)?,
            Occupant::Live | Occupant::NotASocket => return Err(Errno::EADDRINUSE.into()),
        }
        let socket = create(&SocketAddress::Path(path.to_owned()), SocketKind::Stream)?;
        fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let file = SocketFile::bind(&socket, path, folder, 0o600)?;
        // The umask may have taken bits away.
        file.set_mode(0o600)?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket: socket.into(), file })
    }

    /// Opens the socket to a group, or to the owner alone again.
    ///
    /// # Errors
    ///
    /// Those of chown(2): EPERM where we are not of that group. The socket is then the owner's alone.
    pub fn open_to(&self, group: Option<u32>) -> io::Result<()> {
        self.file.set_mode(0o600)?;
        let Some(group) = group else { return Ok(()) };
        self.file.set_owner(geteuid().as_raw(), group)?;
        self.file.set_mode(0o660)
    }

    /// Accepts a connection; `None` where none waits. It does not block.
    ///
    /// # Errors
    ///
    /// Those of [`accept`].
    pub fn accept(&self) -> io::Result<Option<StreamSocket>> {
        accept(&self.socket)
    }

    /// Whether whoever connects to the path comes to this socket.
    pub fn is_in_place(&self) -> bool {
        self.file.state().is_ok_and(|state| state == PathState::Ours)
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Removes the file, so that nobody comes any more.
    pub fn remove(&self) {
        self.file.remove();
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Connects to the socket that stands at a path, and follows no link that stands there. Where its queue is full it tries again
/// until a moment, and at least once: connect(2) itself waits for ever.
///
/// # Errors
///
/// Those of open(2) and connect(2); `PermissionDenied` for a link, `TimedOut` for a queue that stays full.
pub fn connect_until(path: &Path, until: Instant) -> io::Result<UnixStream> {
    let file = open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let kind = SFlag::from_bits_truncate(fstat(&file)?.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFLNK {
        let why = format!("{} is a symbolic link", path.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    let socket = create(&SocketAddress::Path(path.to_owned()), SocketKind::Stream)?;
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    // That very file, whatever has come to stand at the path.
    let held = format!("/proc/self/fd/{}", file.as_raw_fd());
    let try_once = |path: &Path| connect(socket.as_raw_fd(), &UnixAddr::new(path)?);
    loop {
        let tried = match try_once(Path::new(&held)) {
            // There is no /proc.
            Err(Errno::ENOENT) => try_once(path),
            tried => tried,
        };
        match tried {
            Ok(()) => break,
            Err(Errno::EAGAIN) if Instant::now() < until => thread::sleep(TRY_AGAIN),
            Err(Errno::EAGAIN) => {
                let why = format!("too many wait for an answer at {}", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    fcntl(&socket, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(socket.into())
}

/// Returns the process and the user at the other end of a connection to a listener: who called listen(2).
///
/// # Errors
///
/// Those of getsockopt(2).
pub fn peer_of(stream: &impl AsFd) -> io::Result<(i32, u32)> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
    Ok((credentials.pid(), credentials.uid()))
}

/// Returns who is at the other end.
///
/// # Errors
///
/// Those of getsockopt(2).
pub fn peer(stream: &StreamSocket) -> io::Result<Peer> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
    let mut groups = vec![credentials.gid()];
    groups.extend(peer_groups(stream)?);
    Ok(Peer { pid: credentials.pid(), uid: credentials.uid(), groups })
}

fn peer_groups(stream: &StreamSocket) -> io::Result<Vec<u32>> {
    const SIZE: usize = size_of::<libc::gid_t>();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_PEERGROUPS);
    // The kernel says how much room they take. The groups of a connection never change.
    let (_, room) = length_of(stream, level, name);
    let mut groups = vec![0; room as usize];
    let length = get_bytes(stream, level, name, &mut groups)?;
    let (groups, _) = groups.get(..length).unwrap_or_default().as_chunks::<SIZE>();
    Ok(groups.iter().map(|group| u32::from_ne_bytes(*group)).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use nix::unistd::{Gid, getegid, getgroups, getpid, setgroups};

    use super::super::fork::tests::isolated;
    use super::*;

    #[test]
    fn the_kernel_tells_who_has_come() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        assert!(socket.accept().unwrap().is_none(), "nobody has come, and nobody waits");
        let mut client = UnixStream::connect(&path).unwrap();
        let mut served = socket.accept().unwrap().unwrap();
        let peer = peer(&served).unwrap();
        assert_eq!((peer.pid, peer.uid), (getpid().as_raw(), geteuid().as_raw()));
        assert!(peer.groups.contains(&getegid().as_raw()));
        assert!(getgroups().unwrap().iter().all(|group| peer.groups.contains(&group.as_raw())));
        assert!(peer.may_speak(None));
        client.write_all(b"x").unwrap();
        let mut byte = [0; 2];
        assert_eq!(served.read(&mut byte).unwrap(), 1);
        assert_eq!(served.read(&mut byte).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_peer_has_all_of_its_groups_however_many() {
        if !geteuid().is_root() {
            crate::skipped::add("only root can have other groups");
            return;
        }
        isolated(|| {
            let many: Vec<u32> = (1_000..1_100).collect();
            for groups in [&many[..], &many[..1], &[]] {
                setgroups(&groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>()).unwrap();
                let (near, _far) = UnixStream::pair().unwrap();
                let peer = peer(&StreamSocket::from(OwnedFd::from(near))).unwrap();
                assert_eq!(peer.groups, [&[getegid().as_raw()], groups].concat());
            }
        });
    }

    #[test]
    fn a_client_does_not_wait_for_ever_where_the_queue_is_full_and_gets_in_once_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        let now = Instant::now();
        let waiting: Vec<_> = (0..=2 * BACKLOG).map_while(|_| connect_until(&path, now).ok()).collect();
        assert_eq!(waiting.len(), BACKLOG as usize + 1);
        assert_eq!(connect_until(&path, now).unwrap_err().kind(), io::ErrorKind::TimedOut);
        thread::scope(|scope| {
            let client = scope.spawn(|| connect_until(&path, now + Duration::from_secs(600)));
            let mut served = socket.accept().unwrap().unwrap();
            let mut client = client.join().unwrap().unwrap();
            drop(waiting);
            // It waits when it reads and writes.
            assert!(fcntl(&client, FcntlArg::F_GETFL).unwrap() & OFlag::O_NONBLOCK.bits() == 0);
            client.write_all(b"x").unwrap();
            assert_eq!(served.read(&mut [0]).unwrap(), 0, "that is the end of one that has given up");
        });
    }

    #[test]
    fn a_client_follows_no_link_to_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link, file) =
            (folder.path().join("control.sock"), folder.path().join("link"), folder.path().join("file"));
        let _socket = ControlSocket::bind(&path).unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        fs::write(&file, "").unwrap();
        let kind = |path: &Path| connect_until(path, Instant::now()).map_err(|error| error.kind()).err();
        assert_eq!(kind(&path), None);
        assert_eq!(kind(&link), Some(io::ErrorKind::PermissionDenied));
        assert_eq!(kind(&file), Some(io::ErrorKind::ConnectionRefused));
        assert_eq!(kind(&folder.path().join("none")), Some(io::ErrorKind::NotFound));
    }

    #[test]
    fn strangers_may_not_speak_and_members_may() {
        let stranger = Peer { pid: 1, uid: 4_000_000, groups: vec![7, 9] };
        assert!(!stranger.may_speak(None));
        assert!(!stranger.may_speak(Some(8)));
        assert!(stranger.may_speak(Some(9)));
        assert!(Peer { uid: 0, ..stranger }.may_speak(None));
    }

    #[test]
    fn the_file_is_as_open_as_it_is_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let socket = ControlSocket::bind(&path).unwrap();
        let seen =
            || fs::metadata(&path).map(|file| (file.permissions().mode() & 0o777, file.gid())).unwrap();
        assert_eq!(seen().0, 0o600);
        let group = getegid().as_raw();
        socket.open_to(Some(group)).unwrap();
        assert_eq!(seen(), (0o660, group));
        socket.open_to(None).unwrap();
        assert_eq!(seen().0, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_manager_left_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(ControlSocket::bind(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(socket);
    }
}

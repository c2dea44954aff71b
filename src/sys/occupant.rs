//! What stands at a path where a socket is to be bound.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{FileStat, SFlag};

use super::folder::Folder;
use super::retry::at_once;

/// What stands at a path where a socket is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupant {
    /// Nothing.
    Nobody,
    /// A socket that no process has bound any more.
    Stale,
    /// A socket that some process has bound.
    Live,
    /// A file, folder or symbolic link.
    NotASocket,
}

/// Finds out what stands at a path.
///
/// # Errors
/// Those of [`Folder::open`] and [`occupant_in`].
pub fn occupant(path: &Path) -> io::Result<Occupant> {
    match Folder::open(&folder_of(path)) {
        Ok(folder) => occupant_in(&folder, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Occupant::Nobody),
        Err(error) => Err(error),
    }
}

/// Finds out what stands at a path whose folder is held.
///
/// The probe is an attempt to connect with a *datagram* socket whatever the other is: the kernel answers ECONNREFUSED
/// only where no socket is bound to the file, and otherwise connects or names the other's type (EPROTOTYPE). So nothing
/// ever enters the queue of another program.
///
/// # Errors
/// Those of lstat(2) and connect(2), EACCES above all.
pub fn occupant_in(folder: &Folder, path: &Path) -> io::Result<Occupant> {
    // `..` and the like name a folder.
    let Some(name) = path.file_name() else { return Ok(Occupant::NotASocket) };
    match folder.look_at(name) {
        Err(Errno::ENOENT) => return Ok(Occupant::Nobody),
        Err(error) => return Err(error.into()),
        Ok(stat) if !is_socket(&stat) => return Ok(Occupant::NotASocket),
        Ok(_) => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    // A name too long for the way by the descriptor: the probe changes nothing, wherever it goes.
    let address = UnixAddr::new(&folder.path_to(name)).or_else(|_| UnixAddr::new(path))?;
    match at_once(|| connect(probe.as_raw_fd(), &address)) {
        // EPERM: it is connected to another and takes nothing from us.
        Ok(()) | Err(Errno::EPROTOTYPE | Errno::EPERM | Errno::EAGAIN) => Ok(Occupant::Live),
        Err(Errno::ECONNREFUSED) => Ok(Occupant::Stale),
        Err(Errno::ENOENT) => Ok(Occupant::Nobody),
        Err(error) => Err(error.into()),
    }
}

/// Removes a stale socket's file.
///
/// # Errors
/// Those of unlink(2); one that has gone meanwhile is none.
pub fn remove_stale(folder: &Folder, path: &Path) -> io::Result<()> {
    match folder.unlink(path.file_name().unwrap_or_default()) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Returns the path of the folder in which a path's last component is.
pub fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => PathBuf::from("."),
        Some(folder) => folder.to_owned(),
        None => PathBuf::from("/"),
    }
}

/// Whether a file is a socket.
pub(super) fn is_socket(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;
    use crate::plain::{SocketAddress, SocketKind};
    use crate::sys::listener::tests::eventually;
    use crate::sys::listener::{bind, create, listen};

    #[test]
    fn a_dead_socket_is_stale_and_a_bound_one_live_whatever_its_type() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [SocketKind::Stream, SocketKind::Datagram, SocketKind::Seqpacket] {
            let path = folder.path().join(kind.to_string());
            assert_eq!(occupant(&path).unwrap(), Occupant::Nobody);
            let address = SocketAddress::Path(path.clone());
            let socket = create(&address, kind).unwrap();
            bind(&socket, &address).unwrap();
            if kind.is_listened_on() {
                listen(&socket, 1).unwrap();
            }
            assert_eq!(occupant(&path).unwrap(), Occupant::Live, "{kind}");
            drop(socket);
            eventually(|| (occupant(&path).unwrap() == Occupant::Stale).then_some(()));
        }
    }

    #[test]
    fn a_datagram_socket_that_is_connected_to_another_is_live() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let (bound, _other) = (UnixDatagram::bind(&one).unwrap(), UnixDatagram::bind(&other).unwrap());
        bound.connect(&other).unwrap();
        assert_eq!(occupant(&one).unwrap(), Occupant::Live);
    }

    #[test]
    fn a_probe_leaves_nothing_in_the_queue_of_the_other_program() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("live");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(occupant(&path).unwrap(), Occupant::Live);
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_file_a_folder_and_a_link_are_no_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "").unwrap();
        let _listener = UnixListener::bind(path("socket")).unwrap();
        symlink(path("socket"), path("link")).unwrap();
        for name in ["file", "link", "."] {
            assert_eq!(occupant(&path(name)).unwrap(), Occupant::NotASocket, "{name}");
        }
    }
}

//! The file of a bound UNIX socket: its folders, its permissions, its spare name, its end.
//!
//! The file is held by an `O_PATH` descriptor from the moment it was bound, and every change goes through that: whatever
//! others rename or link at the path, no mode or owner is ever set on another file, and no file is unlinked
//! that is not the socket's.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, renameat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, lstat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, mkdir, unlink, unlinkat};
use serde::{Deserialize, Serialize};

use super::handover::{HandOver, Luggage, Unpacked, hand_over};
use super::listener::{Address, bind};

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
/// The probe is an attempt to connect with a *datagram* socket whatever the other is: the kernel answers ECONNREFUSED
/// only where no socket is bound to the file, and otherwise connects or names the other's type (EPROTOTYPE). So nothing
/// ever enters the queue of another program.
///
/// # Errors
/// Those of lstat(2) and connect(2), EACCES above all.
pub fn occupant(path: &Path) -> io::Result<Occupant> {
    match lstat(path) {
        Err(Errno::ENOENT) => return Ok(Occupant::Nobody),
        Err(error) => return Err(error.into()),
        Ok(stat) if !is_socket(&stat) => return Ok(Occupant::NotASocket),
        Ok(_) => {}
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
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
pub fn remove_stale(path: &Path) -> io::Result<()> {
    match unlink(path) {
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Folders made for a socket; on drop those that are empty are removed again.
#[derive(Debug)]
pub struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes the folders above `path` that are missing, with exactly this mode.
    ///
    /// # Errors
    /// Those of mkdir(2); what was made by then is removed again.
    pub fn above(path: &Path, mode: u32) -> io::Result<Self> {
        let mode = Mode::from_bits_truncate(mode);
        let missing = |folder: &&Path| matches!(lstat(*folder), Err(Errno::ENOENT));
        let missing: Vec<_> = path.ancestors().skip(1).take_while(missing).collect();
        let mut folders = Self(Vec::new());
        for folder in missing.into_iter().rev() {
            match mkdir(folder, mode) {
                Err(Errno::EEXIST) => continue,
                other => other?,
            }
            folders.0.push(folder.to_owned());
            // The umask may have taken bits away.
            let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            fchmod(open(folder, flags, Mode::empty())?, mode)?;
        }
        Ok(folders)
    }
}

impl HandOver for MadeFolders {
    type State = Vec<PathBuf>;

    fn pack(&self, luggage: &mut Luggage) -> Vec<PathBuf> {
        self.0.pack(luggage)
    }

    fn unpack(state: Vec<PathBuf>, _: &mut Unpacked) -> io::Result<Self> {
        Ok(Self(state))
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // ENOTEMPTY: someone else uses it now, so it stays.
            let _ = unlinkat(AT_FDCWD, folder, UnlinkatFlags::RemoveDir);
        }
    }
}

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    /// 0 to 0o777.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

/// What became of a socket's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathState {
    /// It still leads to the socket.
    Ours,
    /// Nothing stands there, but the socket has another name from which the path can be restored.
    Gone,
    /// Something else stands there.
    Replaced,
    /// The socket has no name left; nothing can give it one.
    Lost,
}

/// The file of a bound UNIX socket.
///
/// On drop its names are removed, see [`SocketFile::remove`].
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    spare: PathBuf,
    handle: OwnedFd,
    is_ours_to_remove: bool,
}

hand_over!(SocketFile as SocketFileState {
    path: PathBuf,
    spare: PathBuf,
    handle: OwnedFd,
    is_ours_to_remove: bool,
});

impl SocketFile {
    /// Binds a UNIX socket to a path where nothing stands, its file no more open than `mode`.
    ///
    /// The kernel gives the file the mode of the socket itself without the bits of the umask. So there is no moment in
    /// which it is more open, and the umask, which belongs to the whole process, need not change.
    ///
    /// # Errors
    /// Those of bind(2) and of [`SocketFile::hold`].
    pub fn bind(socket: impl AsFd, path: &Path, mode: u32) -> io::Result<Self> {
        fchmod(&socket, Mode::from_bits_truncate(mode))?;
        bind(socket, &Address::Path(path.to_owned()))?;
        let mut file = Self::hold(path).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = unlink(path);
        })?;
        file.is_ours_to_remove = true;
        Ok(file)
    }

    /// Takes hold of the file at the path, which an activator bound and will remove.
    ///
    /// # Errors
    /// Those of open(2); ENOTSOCK where something else stands there.
    pub fn hold(path: &Path) -> io::Result<Self> {
        let handle = open_path(path)?;
        if !is_socket(&fstat(&handle)?) {
            return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
        }
        Ok(Self { spare: spare_of(path), path: path.to_owned(), handle, is_ours_to_remove: false })
    }

    /// Takes hold of a file that a process before us bound, by either of its names; `None` where it has none left.
    /// `identity` is what [`SocketFile::identity`] was.
    pub fn recover(path: &Path, identity: (u64, u64), is_ours_to_remove: bool) -> Option<Self> {
        let spare = spare_of(path);
        let held = |name: &Path| {
            let handle = open_path(name).ok()?;
            let stat = fstat(&handle).ok()?;
            ((stat.st_dev, stat.st_ino) == identity).then_some(handle)
        };
        let handle = held(path).or_else(|| held(&spare))?;
        Some(Self { path: path.to_owned(), spare, handle, is_ours_to_remove })
    }

    /// Returns what tells the file from every other.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = fstat(&self.handle)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Whether its names are removed with it.
    pub fn is_ours_to_remove(&self) -> bool {
        self.is_ours_to_remove
    }

    /// Returns where the socket was bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes both names, each only if it is still the socket's, and an inherited path not at all.
    pub fn remove(&self) {
        let names = [Some(&self.spare), self.is_ours_to_remove.then_some(&self.path)];
        for name in names.into_iter().flatten() {
            if self.is_at(name) == Ok(true) {
                // A name that cannot be removed is found stale, and replaced, by the next start.
                let _ = unlink(name);
            }
        }
    }

    /// Gives the file a second name beside the first, `.NAME.liveswap`, from which the path can be restored.
    ///
    /// One that a killed manager left behind is replaced. Idempotent.
    ///
    /// # Errors
    /// Those of linkat(2): EPERM where the file system has no hard links or the file is another user's; EEXIST where
    /// something that is no socket has the name.
    pub fn keep_spare(&self) -> io::Result<()> {
        match self.link_as(&self.spare) {
            Err(Errno::EEXIST) if self.is_at(&self.spare)? => Ok(()),
            Err(Errno::EEXIST) if is_socket(&lstat(&self.spare)?) => {
                unlink(&self.spare)?;
                Ok(self.link_as(&self.spare)?)
            }
            other => Ok(other?),
        }
    }

    /// Returns who may connect.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn permissions(&self) -> io::Result<Permissions> {
        let stat = fstat(&self.handle)?;
        Ok(Permissions { mode: stat.st_mode & 0o777, uid: stat.st_uid, gid: stat.st_gid })
    }

    /// Sets the mode.
    ///
    /// # Errors
    /// Those of chmod(2); ENOENT where `/proc` is not mounted.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        // chmod(2) has no way to name an O_PATH descriptor but this (open(2)); the link in /proc leads to the inode.
        let mode = Mode::from_bits_truncate(mode);
        Ok(fchmodat(AT_FDCWD, self.proc_path().as_path(), mode, FchmodatFlags::FollowSymlink)?)
    }

    /// Sets the owner and the group.
    ///
    /// # Errors
    /// Those of chown(2).
    pub fn set_owner(&self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(fchownat(&self.handle, c"", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?)
    }

    /// Returns what became of the path.
    ///
    /// # Errors
    /// Those of stat(2).
    pub fn state(&self) -> io::Result<PathState> {
        let ours = fstat(&self.handle)?;
        match lstat(&self.path) {
            Ok(found) if is_same(&found, &ours) => Ok(PathState::Ours),
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) if ours.st_nlink == 0 => Ok(PathState::Lost),
            Ok(_) => Ok(PathState::Replaced),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(PathState::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the path lead to the socket again, over whatever stands there, and keeps a spare. Idempotent.
    ///
    /// # Errors
    /// Those of linkat(2) and renameat(2): ENOENT where the folder or every name is gone, EISDIR where a folder took
    /// the path.
    pub fn restore(&self) -> io::Result<()> {
        match self.state()? {
            PathState::Ours => {}
            PathState::Gone | PathState::Lost => self.link_as(&self.path)?,
            PathState::Replaced => {
                // One step: no moment without a file at the path.
                self.keep_spare()?;
                renameat(AT_FDCWD, &self.spare, AT_FDCWD, &self.path)?;
            }
        }
        self.keep_spare()
    }

    fn link_as(&self, name: &Path) -> nix::Result<()> {
        linkat(AT_FDCWD, self.proc_path().as_path(), AT_FDCWD, name, AtFlags::AT_SYMLINK_FOLLOW)
    }

    fn is_at(&self, name: &Path) -> nix::Result<bool> {
        Ok(is_same(&lstat(name)?, &fstat(&self.handle)?))
    }

    fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

fn open_path(path: &Path) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
}

fn spare_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".liveswap");
    path.with_file_name(name)
}

fn is_same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

fn is_socket(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;
    use crate::sys::listener::tests::eventually;
    use crate::sys::listener::{Kind, create, listen};

    #[test]
    fn a_dead_socket_is_stale_and_a_bound_one_live_whatever_its_type() {
        let folder = tempfile::tempdir().unwrap();
        for kind in [Kind::Stream, Kind::Datagram, Kind::Seqpacket] {
            let path = folder.path().join(kind.to_string());
            assert_eq!(occupant(&path).unwrap(), Occupant::Nobody);
            let address = Address::Path(path.clone());
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

    fn bind_stream(path: &Path, mode: u32) -> (OwnedFd, SocketFile) {
        let socket = create(&Address::Path(path.to_owned()), Kind::Stream).unwrap();
        let file = SocketFile::bind(&socket, path, mode).unwrap();
        listen(&socket, 5).unwrap();
        (socket, file)
    }

    #[test]
    fn the_file_is_never_more_open_than_asked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (_socket, file) = bind_stream(&path, 0o600);
        assert_eq!(file.permissions().unwrap().mode & !0o600, 0);
        file.set_mode(0o666).unwrap();
        assert_eq!(file.permissions().unwrap().mode, 0o666);
    }

    #[test]
    fn a_mode_never_lands_on_a_file_that_took_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let (path, other) = (folder.path().join("socket"), folder.path().join("other"));
        let (_socket, file) = bind_stream(&path, 0o600);
        file.keep_spare().unwrap();
        std::fs::write(&other, "").unwrap();
        std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(&other, &path).unwrap();
        file.set_mode(0o666).unwrap();
        assert_eq!(std::fs::metadata(&other).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(file.permissions().unwrap().mode, 0o666);
    }

    #[test]
    fn folders_get_their_mode_and_go_when_they_are_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/socket");
        let made = MadeFolders::above(&path, 0o777).unwrap();
        for name in ["a", "a/b"] {
            let found = std::fs::metadata(folder.path().join(name)).unwrap().permissions();
            assert_eq!(found.mode() & 0o777, 0o777);
        }
        drop(made);
        assert!(!folder.path().join("a").exists());
        assert!(folder.path().exists());
    }

    #[test]
    fn folders_stay_while_something_else_is_in_them() {
        let folder = tempfile::tempdir().unwrap();
        let made = MadeFolders::above(&folder.path().join("a/b/socket"), 0o755).unwrap();
        std::fs::write(folder.path().join("a/file"), "").unwrap();
        drop(made);
        assert!(folder.path().join("a/file").exists());
        assert!(!folder.path().join("a/b").exists());
    }

    #[test]
    fn a_path_comes_back_after_unlink_rename_and_replacement() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let (_socket, file) = bind_stream(&path, 0o666);
        file.keep_spare().unwrap();
        file.keep_spare().unwrap();
        let hurt_by: [(&dyn Fn(), PathState); 3] = [
            (&|| std::fs::remove_file(&path).unwrap(), PathState::Gone),
            (&|| std::fs::rename(&path, folder.path().join("elsewhere")).unwrap(), PathState::Gone),
            (
                &|| {
                    std::fs::write(folder.path().join("foreign"), "").unwrap();
                    std::fs::rename(folder.path().join("foreign"), &path).unwrap();
                },
                PathState::Replaced,
            ),
        ];
        for (hurt, state) in hurt_by {
            hurt();
            assert_eq!(file.state().unwrap(), state);
            file.restore().unwrap();
            assert_eq!(file.state().unwrap(), PathState::Ours);
            UnixStream::connect(&path).unwrap();
            assert!(folder.path().join(".web.sock.liveswap").exists());
        }
    }

    #[test]
    fn without_any_name_it_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let (_socket, file) = bind_stream(&path, 0o666);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(file.state().unwrap(), PathState::Lost);
        assert_eq!(file.restore().unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn only_what_is_ours_is_unlinked_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let spare = folder.path().join(".web.sock.liveswap");
        let (socket, bound) = bind_stream(&path, 0o666);
        let inherited = SocketFile::hold(&path).unwrap();
        inherited.keep_spare().unwrap();
        drop(inherited);
        assert!(path.exists() && !spare.exists());
        bound.keep_spare().unwrap();
        drop((socket, bound));
        assert!(!path.exists() && !spare.exists());

        let (socket, bound) = bind_stream(&path, 0o666);
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop((socket, bound));
        assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    }

    #[test]
    fn a_spare_that_a_killed_manager_left_is_replaced_and_a_strange_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("web.sock");
        let spare = folder.path().join(".web.sock.liveswap");
        drop(UnixListener::bind(&spare).unwrap());
        let (_socket, file) = bind_stream(&path, 0o666);
        file.keep_spare().unwrap();
        UnixStream::connect(&spare).unwrap();
        std::fs::remove_file(&spare).unwrap();
        std::fs::write(&spare, "precious").unwrap();
        assert_eq!(file.keep_spare().unwrap_err().raw_os_error(), Some(libc::EEXIST));
        drop(file);
        assert_eq!(std::fs::read_to_string(&spare).unwrap(), "precious");
    }
}

//! The file of a bound UNIX socket: its permissions, its spare name, its end.
//!
//! The file is held by an `O_PATH` descriptor from the moment it was bound, and so is its folder; every change goes through
//! these two. Whatever others rename or link at the path or above it, no mode or owner is ever set on another file, no file
//! is unlinked that is not the socket's, and nothing is made in another folder.

use std::cell::{Cell, RefCell};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmod, fchmodat, fstat};
use nix::unistd::{Gid, Uid, fchownat, getegid, geteuid, linkat};
use serde::{Deserialize, Serialize};

use super::folder::{Folder, FolderState, NO_GROUP, Place};
use super::handover::{HandOver, Luggage, Number, Unpacked};
use super::listener::bind;
use super::occupant::{folder_of, is_socket};
use crate::plain::SocketAddress;

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
    /// It leads to another folder, or to none; the socket has a name in the folder of before.
    Moved,
    /// The socket has no name left; nothing can give it one.
    Lost,
}

/// The file of a bound UNIX socket.
///
/// On drop its names are removed, see [`SocketFile::remove`].
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    folder: RefCell<Folder>,
    handle: OwnedFd,
    is_ours_to_remove: Cell<bool>,
}

/// A [`SocketFile`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub struct SocketFileState {
    #[serde(with = "crate::path_text")]
    path: PathBuf,
    /// None where the program of before did not hold it.
    folder: Option<FolderState>,
    handle: Number,
    is_ours_to_remove: bool,
}

impl HandOver for SocketFile {
    type State = SocketFileState;

    fn pack(&self, luggage: &mut Luggage) -> SocketFileState {
        let Self { path, folder, handle, is_ours_to_remove } = self;
        SocketFileState {
            path: path.clone(),
            folder: Some(folder.borrow().pack(luggage)),
            handle: luggage.put(handle),
            is_ours_to_remove: is_ours_to_remove.get(),
        }
    }

    fn unpack(state: SocketFileState, luggage: &mut Unpacked) -> io::Result<Self> {
        let SocketFileState { path, folder, handle, is_ours_to_remove } = state;
        let folder = match folder {
            Some(folder) => Folder::unpack(folder, luggage)?,
            None => Folder::open(&folder_of(&path))?,
        };
        let is_ours_to_remove = Cell::new(is_ours_to_remove);
        Ok(Self { path, folder: RefCell::new(folder), handle: luggage.take(handle)?, is_ours_to_remove })
    }
}

impl SocketFile {
    /// Binds a UNIX socket to a path where nothing stands, its file no more open than `mode`.
    ///
    /// bind(2) takes a path and no folder, as getsockname(2) is to tell that path. So where the folder is another user's,
    /// it is bound with the rights of that user.
    ///
    /// The kernel gives the file the mode of the socket itself without the bits of the umask. So there is no moment in
    /// which it is more open, and the umask, which belongs to the whole process, need not change.
    ///
    /// # Errors
    /// Those of bind(2) and of [`SocketFile::hold`].
    pub fn bind(socket: impl AsFd, path: &Path, folder: Folder, mode: u32) -> io::Result<Self> {
        fchmod(&socket, Mode::from_bits_truncate(mode))?;
        folder.as_owner(|| bind(socket, &SocketAddress::Path(path.to_owned())))?;
        let file = Self::hold_in(folder, path)?;
        file.is_ours_to_remove.set(true);
        let bound = file.permissions()?;
        if bound.uid != geteuid().as_raw() {
            // A folder may give its own group to what is made in it (inode(7), S_ISGID).
            let group = (bound.gid == NO_GROUP.as_raw()).then(getegid);
            fchownat(&file.handle, c"", Some(geteuid()), group, AtFlags::AT_EMPTY_PATH)?;
        }
        Ok(file)
    }

    /// Takes hold of the file at the path, which an activator bound and will remove.
    ///
    /// # Errors
    /// Those of open(2); ENOTSOCK where something else stands there.
    pub fn hold(path: &Path) -> io::Result<Self> {
        Self::hold_in(Folder::open(&folder_of(path))?, path)
    }

    fn hold_in(folder: Folder, path: &Path) -> io::Result<Self> {
        let handle = folder.handle(path.file_name().unwrap_or_default())?;
        if !is_socket(&fstat(&handle)?) {
            return Err(io::Error::from_raw_os_error(libc::ENOTSOCK));
        }
        let folder = RefCell::new(folder);
        Ok(Self { path: path.to_owned(), folder, handle, is_ours_to_remove: Cell::new(false) })
    }

    /// Takes hold of a file that a process before us bound, by either of its names; `None` where it has none left.
    /// `identity` is what [`SocketFile::identity`] was, `place` what [`SocketFile::place`] was, where that is known.
    pub fn recover(
        path: &Path,
        place: Option<&Place>,
        identity: (u64, u64),
        is_ours_to_remove: bool,
    ) -> Option<Self> {
        let folder = match place {
            Some(place) => Folder::reopen(place),
            None => Folder::open(&folder_of(path)),
        };
        let folder = folder.ok()?;
        let held = |name: &OsStr| {
            let handle = folder.handle(name).ok()?;
            let stat = fstat(&handle).ok()?;
            ((stat.st_dev, stat.st_ino) == identity).then_some(handle)
        };
        let handle = held(path.file_name()?).or_else(|| held(&spare_of(path)))?;
        let is_ours_to_remove = Cell::new(is_ours_to_remove);
        Some(Self { path: path.to_owned(), folder: RefCell::new(folder), handle, is_ours_to_remove })
    }

    /// Returns what tells the file from every other.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = fstat(&self.handle)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Returns where its folder is, and whose.
    pub fn place(&self) -> Place {
        self.folder.borrow().place().clone()
    }

    /// Whether its names are removed with it.
    pub fn is_ours_to_remove(&self) -> bool {
        self.is_ours_to_remove.get()
    }

    /// Leaves the path where it is for good: another process keeps the socket, and clients reach it there.
    pub fn leave_path(&self) {
        self.is_ours_to_remove.set(false);
    }

    /// Returns where the socket was bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes both names, each only if it is still the socket's, and an inherited path not at all.
    pub fn remove(&self) {
        let names = [Some(self.spare()), self.is_ours_to_remove.get().then(|| self.name().to_owned())];
        for name in names.into_iter().flatten() {
            if self.is_at(&name) == Ok(true) {
                // A name that cannot be removed is found stale, and replaced, by the next start.
                let _ = self.folder.borrow().unlink(&name);
            }
        }
    }

    /// Gives the file a second name beside the first, `.NAME.liveswap`, from which the path can be restored.
    ///
    /// One that a killed manager left behind is replaced. Idempotent.
    ///
    /// # Errors
    /// Those of linkat(2): EPERM where the file system has no hard links or the file is another user's. `AlreadyExists`, in
    /// words, where something that is no socket has the name.
    pub fn keep_spare(&self) -> io::Result<()> {
        let spare = self.spare();
        match self.link_as(&spare) {
            Err(Errno::EEXIST) if self.is_at(&spare)? => Ok(()),
            Err(Errno::EEXIST) if is_socket(&self.folder.borrow().look_at(&spare)?) => {
                self.folder.borrow().unlink(&spare)?;
                Ok(self.link_as(&spare)?)
            }
            Err(Errno::EEXIST) => {
                let path = self.path.with_file_name(&spare);
                let text = format!(
                    "{}, where its spare link is to stand, is taken by something that is no socket, which is left \
                     alone: move it away",
                    path.display()
                );
                Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
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
        if !self.folder.borrow().is_at(&folder_of(&self.path)) {
            return Ok(if ours.st_nlink == 0 { PathState::Lost } else { PathState::Moved });
        }
        let found = self.folder.borrow().look_at(self.name());
        match found {
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
    /// the path. Those of [`Folder::reopen`] where another folder took the place of the one in which it was bound.
    pub fn restore(&self) -> io::Result<()> {
        if self.state()? == PathState::Moved {
            let folder = Folder::reopen(&self.place())?;
            if !folder.is_at(&folder_of(&self.path)) {
                return Err(io::Error::other("the path leads to another folder than before"));
            }
            let before = self.folder.replace(folder);
            // First the new name: with its last one it is lost.
            let moved = self.restore_in_folder();
            if moved.is_ok() {
                let ours = fstat(&self.handle)?;
                for name in [self.name(), &self.spare()] {
                    if before.look_at(name).is_ok_and(|found| is_same(&found, &ours)) {
                        let _ = before.unlink(name);
                    }
                }
            }
            return moved;
        }
        self.restore_in_folder()
    }

    fn restore_in_folder(&self) -> io::Result<()> {
        match self.state()? {
            PathState::Ours => {}
            PathState::Gone | PathState::Lost => self.link_as(self.name())?,
            PathState::Replaced | PathState::Moved => {
                // One step: no moment without a file at the path.
                self.put_in_place()?;
            }
        }
        match self.keep_spare() {
            // It was warned of when the path was first guarded.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    /// Renames a link to the socket over what stands at the path: the spare, or another where that name is taken.
    fn put_in_place(&self) -> io::Result<()> {
        let mut from = self.spare();
        if self.keep_spare().is_err() {
            from.push(format!(".{}", std::process::id()));
            self.link_as(&from)?;
        }
        let folder = self.folder.borrow();
        let put = renameat(&*folder, from.as_os_str(), &*folder, self.name());
        if put.is_err() && from != self.spare() {
            let _ = folder.unlink(&from);
        }
        Ok(put?)
    }

    fn link_as(&self, name: &OsStr) -> nix::Result<()> {
        let flags = AtFlags::AT_SYMLINK_FOLLOW;
        linkat(AT_FDCWD, self.proc_path().as_path(), &*self.folder.borrow(), name, flags)
    }

    fn is_at(&self, name: &OsStr) -> nix::Result<bool> {
        Ok(is_same(&self.folder.borrow().look_at(name)?, &fstat(&self.handle)?))
    }

    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    fn spare(&self) -> OsString {
        spare_of(&self.path)
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

/// Returns the name of the spare link.
fn spare_of(path: &Path) -> OsString {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".liveswap");
    name
}

fn is_same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;
    use crate::plain::SocketKind;
    use crate::sys::listener::{create, listen};

    fn bind_stream(path: &Path, mode: u32) -> (OwnedFd, SocketFile) {
        let socket = create(&SocketAddress::Path(path.to_owned()), SocketKind::Stream).unwrap();
        let file = SocketFile::bind(&socket, path, Folder::open(&folder_of(path)).unwrap(), mode).unwrap();
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
        std::fs::rename(&spare, folder.path().join("elsewhere")).unwrap();
        std::fs::write(&spare, "precious").unwrap();
        let error = file.keep_spare().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let words = format!("{}, where its spare link is to stand, is taken", spare.display());
        assert!(error.to_string().starts_with(&words), "{error}");
        // What took the path is replaced all the same.
        std::fs::write(folder.path().join("foreign"), "").unwrap();
        std::fs::rename(folder.path().join("foreign"), &path).unwrap();
        file.restore().unwrap();
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert_eq!(std::fs::read_to_string(&spare).unwrap(), "precious");
    }

    #[test]
    fn a_folder_that_was_replaced_gets_the_socket_where_no_link_leads_to_it() {
        let above = tempfile::tempdir().unwrap();
        let name = |name: &str| above.path().join(name);
        let path = name("run/web.sock");
        std::fs::create_dir(name("run")).unwrap();
        std::fs::create_dir(name("private")).unwrap();
        let (_socket, file) = bind_stream(&path, 0o666);
        file.keep_spare().unwrap();

        std::fs::rename(name("run"), name("old")).unwrap();
        assert_eq!(file.state().unwrap(), PathState::Moved);
        symlink(name("private"), name("run")).unwrap();
        assert_eq!(file.state().unwrap(), PathState::Moved);
        assert_eq!(file.restore().unwrap_err().raw_os_error(), Some(libc::ELOOP));
        file.remove();
        assert_eq!(std::fs::read_dir(name("private")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(name("old")).unwrap().count(), 0);

        std::fs::remove_file(name("run")).unwrap();
        std::fs::create_dir(name("run")).unwrap();
        let (_socket, file) = bind_stream(&path, 0o666);
        std::fs::remove_dir(name("old")).unwrap();
        std::fs::rename(name("run"), name("old")).unwrap();
        std::fs::create_dir(name("run")).unwrap();
        file.restore().unwrap();
        assert_eq!(file.state().unwrap(), PathState::Ours);
        UnixStream::connect(&path).unwrap();
        assert_eq!(std::fs::read_dir(name("old")).unwrap().count(), 0, "no name is left behind");
    }
}

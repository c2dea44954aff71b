//! Folders in which others may write: opened step by step, held by descriptor, and worked in by that descriptor alone.
//!
//! A path is only a way to a folder. The user who may write above the folder can make the path lead elsewhere at any
//! moment. What is done by a descriptor is done in the folder that was looked at.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat, stat};
use nix::unistd::{Gid, UnlinkatFlags, geteuid, unlinkat};
use serde::{Deserialize, Serialize};

use super::file_rights::with_rights_of;
use super::handover::{HandOver, Luggage, Unpacked, hand_over, plain};
use crate::plain::Credentials;

/// How many symbolic links one path may have, as for the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The group that stands for all that are not known here, of which nobody is a member.
pub(super) const NO_GROUP: Gid = Gid::from_raw(65534);

/// Which symbolic links are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// None.
    Refused,
    /// Those of root and of our own user; those of another user where they lead to a folder of that user.
    Trusted,
}

/// Where a folder is, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The path without any symbolic link.
    #[serde(with = "crate::path_text")]
    pub path: PathBuf,
    /// The owner.
    pub owner: u32,
}

plain!(Place);

/// A folder that is held.
#[derive(Debug)]
pub struct Folder {
    place: Place,
    fd: OwnedFd,
}

hand_over!(Folder as FolderState { place: Place, fd: OwnedFd });

/// How far a path leads.
struct Walk {
    /// The last folder on the way.
    fd: OwnedFd,
    /// What is missing behind it.
    missing: VecDeque<OsString>,
}

/// Goes along a path, component by component.
fn walk(path: &Path, links: Links) -> io::Result<Walk> {
    let mut rest = components(&std::path::absolute(path)?);
    let mut fd = open("/", folder_flags(), Mode::empty())?;
    let (mut followed, mut leader) = (0, None);
    while let Some(name) = rest.pop_front() {
        let next = match openat(&fd, name.as_os_str(), handle_flags(), Mode::empty()) {
            Err(Errno::ENOENT) => {
                rest.push_front(name);
                break;
            }
            next => next?,
        };
        let found = fstat(&next)?;
        match kind(&found) {
            SFlag::S_IFDIR => fd = next,
            SFlag::S_IFLNK => {
                followed += 1;
                if links == Links::Refused || followed > MAX_LINKS {
                    return Err(Errno::ELOOP.into());
                }
                if found.st_uid != 0 && found.st_uid != geteuid().as_raw() {
                    leader = Some(found.st_uid);
                }
                let target = readlinkat(&next, c"")?;
                for component in components(Path::new(&target)).into_iter().rev() {
                    rest.push_front(component);
                }
            }
            _ => return Err(Errno::ENOTDIR.into()),
        }
    }
    match leader {
        Some(user) if fstat(&fd)?.st_uid != user => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("a symbolic link of user {user} leads to a folder of another user"),
        )),
        _ => Ok(Walk { fd, missing: rest }),
    }
}

/// Returns the components of a path; an absolute one begins with `/`, which openat(2) takes from any folder.
fn components(path: &Path) -> VecDeque<OsString> {
    let names = path.components().filter(|component| *component != Component::CurDir);
    names.map(|component| component.as_os_str().to_owned()).collect()
}

fn handle_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

fn folder_flags() -> OFlag {
    handle_flags() | OFlag::O_DIRECTORY
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

impl Folder {
    /// Opens the folder that a path leads to.
    ///
    /// # Errors
    /// Those of open(2); `PermissionDenied` where a symbolic link on the way is neither root's nor our user's, and leads
    /// to a folder that is not its maker's.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::held(walk(path, Links::Trusted)?)
    }

    /// Opens a folder that was known before: no symbolic link leads to it, and its owner is the same.
    ///
    /// # Errors
    /// Those of open(2); ELOOP where a symbolic link stands on the way; `PermissionDenied` where the owner is another.
    pub fn reopen(place: &Place) -> io::Result<Self> {
        Self::held(walk(&place.path, Links::Refused)?)?.owned_as(place)
    }

    fn owned_as(self, place: &Place) -> io::Result<Self> {
        if self.place.owner == place.owner {
            return Ok(self);
        }
        let (was, is) = (place.owner, self.place.owner);
        let text = format!("its folder was user {was}'s and is user {is}'s now");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }

    fn held(walk: Walk) -> io::Result<Self> {
        if !walk.missing.is_empty() {
            return Err(Errno::ENOENT.into());
        }
        let owner = fstat(&walk.fd)?.st_uid;
        let path = std::fs::read_link(proc_path(&walk.fd))?;
        Ok(Self { place: Place { path, owner }, fd: walk.fd })
    }

    /// Returns where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Whether a path leads to it, symbolic links and all.
    pub fn is_at(&self, path: &Path) -> bool {
        let ours = fstat(&self.fd).map(|stat| (stat.st_dev, stat.st_ino));
        ours.is_ok() && stat(path).map(|stat| (stat.st_dev, stat.st_ino)) == ours
    }

    /// Opens what stands in it, as a handle that neither reads nor writes.
    ///
    /// # Errors
    /// Those of openat(2).
    pub fn handle(&self, name: &OsStr) -> nix::Result<OwnedFd> {
        openat(&self.fd, name, handle_flags(), Mode::empty())
    }

    /// Looks at what stands in it; a symbolic link is not followed.
    ///
    /// # Errors
    /// Those of fstatat(2).
    pub fn look_at(&self, name: &OsStr) -> nix::Result<FileStat> {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    /// Removes a name.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub fn unlink(&self, name: &OsStr) -> nix::Result<()> {
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)
    }

    /// Puts a file in the place of what has the name, in one step, and waits until it is on the disk; anybody may read it.
    ///
    /// # Errors
    /// Those of openat(2), write(2), fsync(2) and renameat(2); then what had the name still has it.
    pub fn replace(&self, name: &OsStr, content: &[u8]) -> io::Result<()> {
        let mut draft = name.to_owned();
        draft.push(format!(".{}", std::process::id()));
        // One that was left there is of no use, and a link is not followed.
        let _ = self.unlink(&draft);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        let mut file = File::from(openat(&self.fd, draft.as_os_str(), flags, mode)?);
        let written = fchmod(&file, mode)
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(content))
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(renameat(&self.fd, draft.as_os_str(), &self.fd, name)?));
        if written.is_err() {
            let _ = self.unlink(&draft);
        }
        written?;
        let folder =
            openat(&self.fd, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
        File::from(folder?).sync_all()
    }

    /// Returns a path to a name in it that leads nowhere else, for the calls that take nothing but a path.
    pub fn path_to(&self, name: &OsStr) -> PathBuf {
        proc_path(&self.fd).join(name)
    }

    /// Does something with the file system rights of its owner and of [`NO_GROUP`], where we are root and the owner is another:
    /// a path that the owner bends leads to nothing that the owner could not do without us.
    pub fn as_owner<T>(&self, action: impl FnOnce() -> T) -> T {
        let who = Credentials { uid: self.place.owner, gid: NO_GROUP.as_raw(), groups: Vec::new() };
        with_rights_of(&who, action)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Folders made for a socket; on drop those that are empty are removed again.
#[derive(Debug)]
pub struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Opens a folder, and makes it and those above it that are missing, with exactly this mode. Where the folder is known
    /// from before, no symbolic link may lead to it, and its owner must be the same.
    ///
    /// # Errors
    /// Those of mkdir(2), [`Folder::open`] and [`Folder::reopen`]; what was made by then is removed again.
    pub fn open(path: &Path, mode: u32, before: Option<&Place>) -> io::Result<(Self, Folder)> {
        let mode = Mode::from_bits_truncate(mode);
        let Walk { mut fd, mut missing } = match before {
            Some(place) => walk(&place.path, Links::Refused)?,
            None => walk(path, Links::Trusted)?,
        };
        let is_new = !missing.is_empty();
        let mut folders = Self(Vec::new());
        while let Some(name) = missing.pop_front() {
            let above = std::fs::read_link(proc_path(&fd))?;
            let is_ours = match mkdirat(&fd, name.as_os_str(), mode) {
                Err(Errno::EEXIST) => false,
                result => result.map(|()| true)?,
            };
            // Held only: the umask may have left no right to read it.
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mut next = openat(&fd, name.as_os_str(), flags, Mode::empty())?;
            if is_ours {
                folders.0.push(above.join(&name));
                if fstat(&next)?.st_uid != geteuid().as_raw() {
                    return Err(io::Error::other("a folder that was just folders was replaced"));
                }
                // chmod(2) has no way to name what is held but this (open(2)).
                fchmodat(AT_FDCWD, proc_path(&next).as_path(), mode, FchmodatFlags::FollowSymlink)?;
            }
            next = openat(&next, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
            fd = next;
        }
        let folder = Folder::held(Walk { fd, missing })?;
        let Some(place) = before else { return Ok((folders, folder)) };
        let folder = if is_new { folder } else { folder.owned_as(place)? };
        if !folder.is_at(path) {
            return Err(io::Error::other("the path leads to another folder than before"));
        }
        Ok((folders, folder))
    }
}

impl HandOver for MadeFolders {
    type State = Vec<PathBuf>;

    fn pack(&self, _: &mut Luggage) -> Vec<PathBuf> {
        self.0.clone()
    }

    fn unpack(state: Vec<PathBuf>, _: &mut Unpacked) -> io::Result<Self> {
        Ok(Self(state))
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let (Some(above), Some(name)) = (folder.parent(), folder.file_name()) else { continue };
            if let Ok(Walk { fd, missing }) = walk(above, Links::Refused)
                && missing.is_empty()
            {
                // ENOTEMPTY: someone else uses it now, so it stays.
                let _ = unlinkat(&fd, name, UnlinkatFlags::RemoveDir);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};

    use nix::unistd::getgroups;

    use super::*;

    #[test]
    fn folders_get_their_mode_and_go_when_they_are_empty() {
        let folder = tempfile::tempdir().unwrap();
        let (made, _) = MadeFolders::open(&folder.path().join("a/b"), 0o777, None).unwrap();
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
        let (made, _) = MadeFolders::open(&folder.path().join("a/b"), 0o755, None).unwrap();
        std::fs::write(folder.path().join("a/file"), "").unwrap();
        drop(made);
        assert!(folder.path().join("a/file").exists());
        assert!(!folder.path().join("a/b").exists());
    }

    #[test]
    fn a_link_that_took_the_place_of_a_folder_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(path("private/in")).unwrap();
        let (made, held) = MadeFolders::open(&path("a/b"), 0o755, None).unwrap();
        let place = held.place().clone();
        std::fs::rename(path("a"), path("old")).unwrap();
        symlink(path("private"), path("a")).unwrap();
        std::fs::create_dir(path("private/b")).unwrap();
        let error = Folder::reopen(&place).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        let error = MadeFolders::open(&path("a/b"), 0o755, Some(&place)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        assert!(held.is_at(&path("old/b")) && !held.is_at(&path("a/b")));
        drop(made);
        assert!(path("private/b").exists(), "an empty folder was removed behind a link");
    }

    #[test]
    fn a_link_of_another_user_leads_to_that_users_folders_alone() {
        if !geteuid().is_root() {
            crate::skipped::add("only root can give a link to another user");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["theirs", "ours"] {
            std::fs::create_dir(path(name)).unwrap();
            symlink(name, path(&format!("to-{name}"))).unwrap();
            assert!(Folder::open(&path(&format!("to-{name}"))).unwrap().is_at(&path(name)));
            lchown(path(&format!("to-{name}")), Some(1), None).unwrap();
        }
        chown(path("theirs"), Some(1), None).unwrap();
        assert!(Folder::open(&path("to-theirs")).unwrap().is_at(&path("theirs")));
        assert_eq!(Folder::open(&path("to-ours")).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let below = MadeFolders::open(&path("to-ours/new"), 0o755, None).unwrap_err();
        assert_eq!(below.kind(), io::ErrorKind::PermissionDenied);
        assert!(!path("ours/new").exists());
    }

    #[test]
    fn an_owner_gets_no_more_than_its_own_rights() {
        if !geteuid().is_root() {
            crate::skipped::add("only root can act for another user");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("theirs")).unwrap();
        chown(path("theirs"), Some(1), None).unwrap();
        let held = Folder::open(&path("theirs")).unwrap();
        held.as_owner(|| std::fs::write(path("theirs/file"), "")).unwrap();
        let error = held.as_owner(|| std::fs::write(path("file"), "")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        std::fs::write(path("file"), "").unwrap();
        // Nor has it the groups of root, which are there again afterwards.
        let groups = getgroups().unwrap();
        for group in groups.iter().map(|group| group.as_raw()).chain([0]) {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o775)).unwrap();
            chown(folder.path(), None, Some(group)).unwrap();
            let error = held.as_owner(|| std::fs::write(path("another"), "")).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "group {group}");
        }
        assert_eq!(getgroups().unwrap(), groups);
        std::fs::write(path("another"), "").unwrap();
        assert_eq!(std::fs::metadata(path("another")).unwrap().gid(), 0);
    }
}

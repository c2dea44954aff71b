//! A folder that is reached by a way on which nobody else can change anything, and the files in it.
//!
//! The way is walked one name at a time, each opened below the one before and looked at by its descriptor. It is refused where
//! a user who is not trusted owns a folder on it, or may write to one: whoever may write to a folder can put another one in the
//! place of what lies in it. A sticky folder such as `/tmp` is an exception for entries of trusted users, which nobody else can
//! rename or remove there. Files are opened below the folder's descriptor, and no link at the last name is followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat, renameat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, mkdirat, stat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

/// The most symbolic links on the way (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The user that stands for every user whom a user namespace does not know (user_namespaces(7)).
const OVERFLOW: u32 = 65534;

/// Write access of the group and of everybody else, and the sticky bit.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// Why a path cannot be relied upon, or not be reached.
#[derive(Debug, thiserror::Error)]
pub enum WayError {
    /// Somebody else decides what is found there.
    #[error("{} {why}", path.display())]
    Unsafe {
        /// The folder or the link on the way.
        path: PathBuf,
        /// What is wrong with it, after its name.
        why: String,
    },
    /// It cannot be reached.
    #[error("{}: {source}", path.display())]
    Io {
        /// As far as it was reached.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Whom a way is safe from: everybody but root and one user.
#[derive(Clone, Copy, Debug)]
pub struct Trusted {
    user: u32,
    /// Whether owners cannot be told apart: in a user namespace everybody from outside is the same user.
    blurs: bool,
}

impl Trusted {
    /// Trusts root and this process's own user.
    #[must_use]
    pub fn us() -> Self {
        Self::user(geteuid().as_raw())
    }

    /// Trusts root and another user.
    #[must_use]
    pub fn user(user: u32) -> Self {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let is_whole = map.split_whitespace().nth(2).is_none_or(|count| count == "4294967295");
        Self { user, blurs: !is_whole }
    }

    fn includes(self, user: u32) -> bool {
        user == 0 || user == self.user || self.blurs && user == OVERFLOW
    }

    /// Whether others may write to something with this owner, group and mode. A group of the number of the trusted user is
    /// that user's own, as most systems give every user one.
    fn excludes_writers(self, stat: &FileStat) -> bool {
        let is_own = stat.st_gid == 0 || stat.st_gid == self.user;
        let writers = if is_own { OTHERS_WRITE } else { OTHERS_WRITE | GROUP_WRITES };
        self.includes(stat.st_uid) && stat.st_mode & writers == 0
    }

    /// Says why something on the way is not to be relied upon. A sticky folder is, but for what is found at the end.
    fn complaint(self, stat: &FileStat, is_last: bool) -> Option<String> {
        if !self.includes(stat.st_uid) {
            return Some(format!("belongs to user {}", stat.st_uid));
        }
        let is_sticky = stat.st_mode & STICKY != 0 && !is_last;
        let mode = stat.st_mode & 0o7777;
        (!is_sticky && !self.excludes_writers(stat))
            .then(|| format!("may be written to by others (mode {mode:04o}, group {})", stat.st_gid))
    }
}

/// Where a walk has got to.
struct Walk {
    trusted: Trusted,
    at: OwnedFd,
    path: PathBuf,
    links: usize,
}

/// What is found at the end of a way.
#[derive(Debug)]
pub struct Found {
    /// The path without symbolic links.
    pub path: PathBuf,
    handle: OwnedFd,
    stat: FileStat,
}

impl Walk {
    fn from_root(trusted: Trusted) -> Result<Self, WayError> {
        let path = PathBuf::from("/");
        let io = |error: Errno| WayError::Io { path: path.clone(), source: error.into() };
        let at =
            open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(io)?;
        Ok(Self { trusted, at, path, links: 0 })
    }

    fn io(&self, error: Errno) -> WayError {
        WayError::Io { path: self.path.clone(), source: error.into() }
    }

    /// Walks all of an absolute path; missing folders are made with the mode `make`, where there is one.
    fn go(&mut self, path: &Path, make: Option<Mode>) -> Result<FileStat, WayError> {
        let names: Vec<_> = path.components().collect();
        let mut stat = fstat(&self.at).map_err(|error| self.io(error))?;
        for (index, component) in names.iter().enumerate() {
            match component {
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
                Component::ParentDir => {
                    self.path.pop();
                    let above = self.path.clone();
                    stat = self.restart(&above)?;
                }
                Component::Normal(name) => {
                    self.rely_on(&stat, false)?;
                    stat = self.step(name, make, index + 1 == names.len())?;
                }
            }
        }
        Ok(stat)
    }

    fn restart(&mut self, path: &Path) -> Result<FileStat, WayError> {
        let links = self.links;
        *self = Self { links, ..Self::from_root(self.trusted)? };
        self.go(path, None)
    }

    /// Refuses what others may change.
    fn rely_on(&self, stat: &FileStat, is_last: bool) -> Result<(), WayError> {
        match self.trusted.complaint(stat, is_last) {
            Some(why) => Err(WayError::Unsafe { path: self.path.clone(), why }),
            None => Ok(()),
        }
    }

    fn step(&mut self, name: &OsStr, make: Option<Mode>, is_last: bool) -> Result<FileStat, WayError> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = match openat(&self.at, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) if make.is_some() => self
                .make(name, make.unwrap_or(Mode::empty()))
                .and_then(|()| openat(&self.at, name, flags, Mode::empty())),
            found => found,
        };
        self.path.push(name);
        let found = found.map_err(|error| self.io(error))?;
        let stat = fstat(&found).map_err(|error| self.io(error))?;
        if kind(&stat) == SFlag::S_IFLNK {
            return self.follow(&found, &stat, make);
        }
        if !is_last && kind(&stat) != SFlag::S_IFDIR {
            return Err(self.io(Errno::ENOTDIR));
        }
        self.at = found;
        Ok(stat)
    }

    /// Makes a folder with exactly this mode; that somebody else has made it meanwhile is no error.
    fn make(&self, name: &OsStr, mode: Mode) -> nix::Result<()> {
        match mkdirat(&self.at, name, mode) {
            // The umask may have taken bits away.
            Ok(()) => fchmodat(&self.at, name, mode, FchmodatFlags::FollowSymlink),
            Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Goes where a link leads that somebody trusted has made.
    fn follow(&mut self, link: &OwnedFd, stat: &FileStat, make: Option<Mode>) -> Result<FileStat, WayError> {
        if !self.trusted.includes(stat.st_uid) {
            let why = format!("is a symbolic link of user {}", stat.st_uid);
            return Err(WayError::Unsafe { path: self.path.clone(), why });
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(self.io(Errno::ELOOP));
        }
        let target = PathBuf::from(readlinkat(link, "").map_err(|error| self.io(error))?);
        self.path.pop();
        // From the root in any case: the folder that the link lies in is held no more than its path is.
        let target = self.path.join(target);
        let links = self.links;
        *self = Self { links, ..Self::from_root(self.trusted)? };
        self.go(&target, make)
    }
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Walks to what stands at an absolute path, and holds it.
///
/// # Errors
///
/// A folder on the way, or what is found, can be changed by others than `trusted`; or it cannot be reached.
pub fn find(path: &Path, trusted: Trusted) -> Result<Found, WayError> {
    let mut walk = Walk::from_root(trusted)?;
    let stat = walk.go(path, None)?;
    walk.rely_on(&stat, true)?;
    Ok(Found { path: walk.path, handle: walk.at, stat })
}

impl Found {
    /// Whether it is a folder.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        kind(&self.stat) == SFlag::S_IFDIR
    }

    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> u32 {
        self.stat.st_uid
    }
}

impl AsFd for Found {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

/// A folder of our own.
#[derive(Debug)]
pub struct Folder {
    handle: OwnedFd,
    path: PathBuf,
    mode: u32,
}

impl Folder {
    /// Opens a folder of our own at an absolute path. `make` is the mode of those on the way that are missing; without it
    /// nothing is made. Where others may write to the folder itself, that right is taken away; one that is shared on purpose, as
    /// /tmp is, is refused.
    ///
    /// # Errors
    ///
    /// The way cannot be relied upon; the folder is not ours, or is none; those of open(2), mkdir(2) and chmod(2).
    pub fn open(path: &Path, make: Option<u32>) -> Result<Self, WayError> {
        let mut walk = Walk::from_root(Trusted::us())?;
        let stat = walk.go(path, make.map(Mode::from_bits_truncate))?;
        let refuse = |why: String| Err(WayError::Unsafe { path: walk.path.clone(), why });
        if kind(&stat) != SFlag::S_IFDIR {
            return refuse("is no folder".into());
        }
        if stat.st_uid != geteuid().as_raw() {
            return refuse(format!("belongs to user {}", stat.st_uid));
        }
        if stat.st_mode & STICKY != 0 {
            return refuse(format!("is shared with others (mode {:04o})", stat.st_mode & 0o7777));
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let handle = openat(&walk.at, ".", flags, Mode::empty()).map_err(|error| walk.io(error))?;
        let folder = Self { handle, path: walk.path, mode: stat.st_mode & 0o7777 };
        if folder.mode & (GROUP_WRITES | OTHERS_WRITE) != 0 {
            folder
                .set_mode(folder.mode & !(GROUP_WRITES | OTHERS_WRITE))
                .map_err(|source| WayError::Io { path: folder.path.clone(), source })?;
        }
        Ok(folder)
    }

    /// Its path, without symbolic links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The mode that it had when it was opened.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// Sets its mode.
    ///
    /// # Errors
    ///
    /// Those of chmod(2).
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(fchmod(&self.handle, Mode::from_bits_truncate(mode))?)
    }

    /// Opens a regular file in it that is ours or root's and has no other name, without waiting for it.
    ///
    /// # Errors
    ///
    /// Those of open(2): ELOOP where it is a symbolic link; an own one where it is no regular file, another user's, or has a
    /// second name.
    pub fn file(&self, name: &str, flags: OFlag, mode: u32) -> io::Result<File> {
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let file = openat(&self.handle, name, flags, Mode::from_bits_truncate(mode))?;
        let stat = fstat(&file)?;
        if kind(&stat) != SFlag::S_IFREG {
            return Err(io::Error::other("it is no regular file"));
        }
        if !Trusted::us().includes(stat.st_uid) {
            return Err(io::Error::other(format!("it belongs to user {}", stat.st_uid)));
        }
        if stat.st_nlink > 1 {
            return Err(io::Error::other("it has another name elsewhere"));
        }
        Ok(file.into())
    }

    /// Makes a file in it that was not there, whatever had its name is removed first. It has exactly this mode.
    ///
    /// # Errors
    ///
    /// Those of unlink(2), open(2) and chmod(2).
    pub fn make_file(&self, name: &str, mode: u32) -> io::Result<File> {
        self.remove(name)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = self.file(name, flags, 0o600)?;
        fchmod(&file, Mode::from_bits_truncate(mode))?;
        Ok(file)
    }

    /// Puts a text into a file in one step: whoever looks finds the file of before, or this one.
    ///
    /// # Errors
    ///
    /// Those of [`Folder::make_file`], write(2) and rename(2).
    pub fn replace(&self, name: &str, text: &[u8], mode: u32) -> io::Result<()> {
        let draft = format!("{name}.new");
        let mut file = self.make_file(&draft, mode)?;
        file.write_all(text).and_then(|()| self.rename(&draft, name)).inspect_err(|_| {
            // The first error is the one to tell.
            let _ = self.remove(&draft);
        })
    }

    /// Gives a file in it another name, over whatever file has that.
    ///
    /// # Errors
    ///
    /// Those of rename(2).
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(renameat(&self.handle, from, &self.handle, to)?)
    }

    /// Removes a file in it; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// Those of unlink(2).
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.handle, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Returns who owns what a path leads to, links followed; for a client that was told where to look.
///
/// # Errors
///
/// Those of stat(2).
pub fn owner_of(path: &Path) -> io::Result<u32> {
    Ok(stat(path)?.st_uid)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::io::Read;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use nix::sys::stat::umask;
    use nix::unistd::Uid;

    use super::super::fork::tests::isolated;
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        Folder::open(path, None).unwrap_err().to_string()
    }

    #[test]
    fn what_is_missing_is_made_with_the_mode_whatever_the_mask() {
        isolated(|| {
            let base = tempfile::tempdir().unwrap();
            umask(Mode::from_bits_truncate(0o077));
            let folder = Folder::open(&base.path().join("a/b"), Some(0o711)).unwrap();
            assert_eq!((mode(&base.path().join("a")), mode(folder.path())), (0o711, 0o711));
            umask(Mode::empty());
            folder.replace("open", b"x", 0o644).unwrap();
            folder.replace("closed", b"x", 0o600).unwrap();
            assert_eq!(mode(&folder.path().join("open")), 0o644);
            assert_eq!(mode(&folder.path().join("closed")), 0o600);
        });
    }

    #[test]
    fn a_folder_of_ours_that_others_may_write_to_is_repaired_and_one_on_the_way_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let (above, own) = (base.path().join("above"), base.path().join("above/own"));
        fs::create_dir_all(&own).unwrap();
        set_mode(&own, 0o777);
        Folder::open(&own, None).unwrap();
        assert_eq!(mode(&own), 0o755);
        set_mode(&above, 0o777);
        let why = refusal(&own);
        assert!(why.contains("above may be written to by others (mode 0777"), "{why}");
        // As /tmp is: what is ours in it stays ours, and it is no folder of our own.
        set_mode(&above, 0o1777);
        Folder::open(&own, None).unwrap();
        assert!(refusal(&above).contains("above is shared with others (mode 1777)"));
        assert_eq!(mode(&above), 0o1777);
    }

    #[test]
    fn a_strangers_folder_or_link_on_the_way_is_refused_and_named() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: only root can give files away");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (above, own) = (base.path().join("above"), base.path().join("above/own"));
        fs::create_dir_all(&own).unwrap();
        chown(&above, Some(4711), None).unwrap();
        let why = refusal(&own);
        assert!(why.contains("/above belongs to user 4711"), "{why}");
        chown(&above, Some(0), None).unwrap();
        chown(&own, Some(4711), None).unwrap();
        assert!(refusal(&own).contains("/own belongs to user 4711"));
        let link = base.path().join("link");
        symlink(&above, &link).unwrap();
        Folder::open(&link, None).unwrap();
        std::os::unix::fs::lchown(&link, Some(4711), None).unwrap();
        assert!(refusal(&link).contains("link is a symbolic link of user 4711"));
    }

    #[test]
    fn links_of_ours_are_followed_and_a_ring_of_them_ends() {
        let base = tempfile::tempdir().unwrap();
        let real = base.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        symlink("real", base.path().join("relative")).unwrap();
        symlink("../real/../relative", real.join("back")).unwrap();
        symlink("ring", base.path().join("ring")).unwrap();
        assert_eq!(Folder::open(&real.join("back"), None).unwrap().path(), real);
        let Err(WayError::Io { source, .. }) = Folder::open(&base.path().join("ring"), None) else {
            panic!("a ring")
        };
        assert_eq!(source.raw_os_error(), Some(libc::ELOOP));
        fs::write(real.join("file"), "x").unwrap();
        assert!(refusal(&real.join("file")).contains("is no folder"));
        assert!(matches!(Folder::open(&real.join("file/x"), None), Err(WayError::Io { .. })));
    }

    #[test]
    fn no_link_is_followed_below_a_folder_and_nothing_is_written_through_one() {
        let base = tempfile::tempdir().unwrap();
        let folder = Folder::open(base.path(), None).unwrap();
        let other = base.path().join("other");
        fs::write(&other, "kept").unwrap();
        for name in ["state", "state.new"] {
            symlink(&other, base.path().join(name)).unwrap();
        }
        let error = folder.file("state", OFlag::O_RDONLY, 0).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        folder.replace("state", b"new", 0o600).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "kept");
        let mut text = String::new();
        folder.file("state", OFlag::O_RDONLY, 0).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "new");
        nix::unistd::mkfifo(&base.path().join("pipe"), Mode::S_IRWXU).unwrap();
        assert!(folder.file("pipe", OFlag::O_RDONLY, 0).unwrap_err().to_string().contains("no regular file"));
        fs::hard_link(&other, base.path().join("lock")).unwrap();
        assert!(folder.file("lock", OFlag::O_RDWR, 0).unwrap_err().to_string().contains("another name"));
        folder.remove("state").unwrap();
        folder.remove("state").unwrap();
        assert_eq!(owner_of(&other).unwrap(), fs::metadata(&other).unwrap().uid());
    }

    #[test]
    fn what_only_root_and_one_user_can_write_is_found_for_that_user() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: only root can give files away");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let program = base.path().join("program");
        fs::write(&program, "x").unwrap();
        let found = |user| find(&program, Trusted::user(user)).map(|found| found.path);
        assert_eq!(found(0).unwrap(), program);
        chown(&program, Some(4711), None).unwrap();
        assert!(found(0).is_err());
        assert_eq!(found(4711).unwrap(), program);
        chown(&program, Some(0), Some(4712)).unwrap();
        set_mode(&program, 0o775);
        assert!(found(0).unwrap_err().to_string().contains("program may be written to by others"));
        set_mode(&program, 0o1777);
        assert!(found(0).is_err(), "sticky means nothing for what is found itself");
    }
}

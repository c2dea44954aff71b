//! A way on which nobody else can change anything.
//!
//! It is walked one name at a time, each opened below the one before and looked at by its descriptor. It is refused where
//! a user who is not trusted owns a folder on it, or may write to one: whoever may write to a folder can put another one in the
//! place of what lies in it. A sticky folder such as `/tmp` is an exception for entries of trusted users, which nobody else can
//! rename or remove there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstat, mkdirat};
use nix::sys::statfs::fstatfs;
use nix::unistd::geteuid;

use super::cgroup::attribute;

/// The most symbolic links on the way (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// The user that stands for every user whom a user namespace does not know (user_namespaces(7)).
const OVERFLOW: u32 = 65534;

/// Write access of the group and of everybody else, and the sticky bit.
pub(super) const GROUP_WRITES: u32 = 0o020;
pub(super) const OTHERS_WRITE: u32 = 0o002;
pub(super) const STICKY: u32 = 0o1000;

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
    /// Whether a user namespace shows everybody from outside as one user, whom nobody inside can be.
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
        // A user namespace gets its map once (user_namespaces(7)), and we are in one namespace for life.
        static BLURS: OnceLock<bool> = OnceLock::new();
        let blurs = *BLURS.get_or_init(|| {
            let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
            !map.is_empty() && !has_overflow(&map)
        });
        Self { user, blurs }
    }

    pub(super) fn includes(self, user: u32) -> bool {
        user == 0 || user == self.user || self.blurs && user == OVERFLOW
    }

    /// Whether others may write to something with this owner, group and mode. A group of the number of the trusted user is
    /// that user's own, as most systems give every user one.
    ///
    /// Where there is an access control list the bits of the group are its mask (acl(5)), and say nothing of the group.
    fn excludes_writers(self, stat: &FileStat, has_list: bool) -> bool {
        let is_own = !has_list && (stat.st_gid == 0 || stat.st_gid == self.user);
        let writers = if is_own { OTHERS_WRITE } else { OTHERS_WRITE | GROUP_WRITES };
        self.includes(stat.st_uid) && stat.st_mode & writers == 0
    }

    /// Says why something on the way is not to be relied upon. A sticky folder is, but for what is found at the end.
    fn complaint(self, stat: &FileStat, has_list: bool, is_last: bool) -> Option<String> {
        if !self.includes(stat.st_uid) {
            return Some(format!("belongs to user {}", stat.st_uid));
        }
        let is_sticky = stat.st_mode & STICKY != 0 && !is_last;
        let mode = stat.st_mode & 0o7777;
        (!is_sticky && !self.excludes_writers(stat, has_list))
            .then(|| format!("may be written to by others (mode {mode:04o}, group {})", stat.st_gid))
    }
}

/// Whether the user who stands for all unknown ones is a user of this namespace as well, by its /proc/PID/uid_map. Where it is,
/// the two cannot be told apart, and neither is trusted.
fn has_overflow(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else {
            return true;
        };
        (first..first + count).contains(&u64::from(OVERFLOW))
    })
}

/// Where a walk has got to.
pub(super) struct Walk {
    trusted: Trusted,
    pub(super) at: OwnedFd,
    pub(super) path: PathBuf,
    links: usize,
}

/// What is found at the end of a way.
#[derive(Debug)]
pub struct Found {
    /// The path without symbolic links.
    pub path: PathBuf,
    stat: FileStat,
    /// The kind of its file system (statfs(2)); none where it cannot be told.
    file_system: Option<i64>,
}

impl Walk {
    pub(super) fn from_root(trusted: Trusted) -> Result<Self, WayError> {
        let path = PathBuf::from("/");
        let io = |error: Errno| WayError::Io { path: path.clone(), source: error.into() };
        let at =
            open(&path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).map_err(io)?;
        Ok(Self { trusted, at, path, links: 0 })
    }

    pub(super) fn io(&self, error: Errno) -> WayError {
        WayError::Io { path: self.path.clone(), source: error.into() }
    }

    /// Walks all of an absolute path; missing folders are made with the mode `make`, where there is one.
    pub(super) fn go(&mut self, path: &Path, make: Option<Mode>) -> Result<FileStat, WayError> {
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
        match self.trusted.complaint(stat, has_list(&self.at, stat), is_last) {
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

/// Whether a file that is held has an access control list by which others than its owner may write to it. Without the group's bit the
/// mask of such a list lets nobody.
fn has_list(held: &OwnedFd, stat: &FileStat) -> bool {
    if stat.st_mode & GROUP_WRITES == 0 {
        return false;
    }
    let path = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
    attribute(&path, c"system.posix_acl_access", &mut [0; 4096]).is_some()
}

/// File systems whose files the kernel or some process makes up: what owner and mode say there means nothing to whoever writes
/// (statfs(2)).
const MADE_UP: [i64; 13] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x1cd1,      // devpts
    0x6573_5546, // fuse
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x6265_6570, // configfs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x4249_4e4d, // binfmt_misc
    0x1980_0202, // mqueue
];

impl Found {
    /// Whether it is on a file system whose files are made up by the kernel or by some process.
    #[must_use]
    pub fn is_made_up(&self) -> bool {
        self.file_system.is_none_or(|kind| MADE_UP.contains(&kind))
    }

    /// Whether it lies in a folder in which everybody may make files, as in `/tmp`: once it is removed, anybody can put another
    /// one there.
    #[must_use]
    pub fn is_in_shared_folder(&self) -> bool {
        self.path.parent().is_some_and(|above| {
            above.metadata().is_ok_and(|above| {
                above.mode() & (OTHERS_WRITE | GROUP_WRITES) & above.mode() != 0 && above.mode() & STICKY != 0
            })
        })
    }
}

pub(super) fn kind(stat: &FileStat) -> SFlag {
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
    let file_system = fstatfs(&walk.at).ok().map(|system| system.filesystem_type().0 & 0xffff_ffff);
    Ok(Found { path: walk.path, stat, file_system })
}

impl Found {
    /// Whether it is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        kind(&self.stat) == SFlag::S_IFREG
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_folder(&self) -> bool {
        kind(&self.stat) == SFlag::S_IFDIR
    }

    /// Who owns it.
    #[must_use]
    pub fn owner(&self) -> u32 {
        self.stat.st_uid
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, chown};

    use nix::unistd::Uid;

    use super::*;

    #[test]
    fn users_from_outside_are_one_in_a_small_namespace_alone() {
        assert!(has_overflow("         0          0 4294967295\n"));
        assert!(has_overflow("0 100000 65536\n"), "as in a container");
        assert!(!has_overflow("0 1000 1\n"), "as by unshare -r");
        assert!(has_overflow("nonsense"));
    }

    #[test]
    fn what_only_root_and_one_user_can_write_is_found_for_that_user() {
        if !Uid::effective().is_root() {
            crate::skipped::add("only root can give files away");
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
        fs::set_permissions(&program, Permissions::from_mode(0o775)).unwrap();
        assert!(found(0).unwrap_err().to_string().contains("program may be written to by others"));
        fs::set_permissions(&program, Permissions::from_mode(0o1777)).unwrap();
        assert!(found(0).is_err(), "sticky means nothing for what is found itself");
    }

    #[test]
    fn a_group_is_not_believed_where_there_is_an_access_control_list() {
        let writable = |gid| {
            let mut stat = fstat(fs::File::open("/").unwrap()).unwrap();
            (stat.st_mode, stat.st_uid, stat.st_gid) = (0o100_775, 0, gid);
            stat
        };
        let root = Trusted { user: 0, blurs: false };
        assert!(root.complaint(&writable(0), false, true).is_none(), "root's own group");
        assert!(
            root.complaint(&writable(0), true, true).is_some(),
            "the bits of the group are the mask of the list"
        );
        assert!(root.complaint(&writable(1), false, true).is_some());
    }
}

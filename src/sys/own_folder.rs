//! A folder of our own that nobody else can change, and the files in it.
//!
//! It is reached by a way that is checked name by name ([`super::way`]). Files are opened below the folder's descriptor, and no link
//! at the last name is followed.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, stat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::way::{GROUP_WRITES, OTHERS_WRITE, STICKY, Trusted, Walk, WayError, kind};

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
            crate::skipped::add("only root can give files away");
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
}

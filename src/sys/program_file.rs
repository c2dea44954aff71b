//! The file of a program: which one it is, and a hold on it, by which it can be executed whatever stands at its path by then.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, stat};
use serde::{Deserialize, Serialize};

use super::exec::RUNNING;
use super::handover::plain;

/// Which file something is, and in which form: the kernel sets `changed` at every write, and at every change of its names and rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    dev: u64,
    ino: u64,
    size: i64,
    /// `st_ctim`, in seconds and nanoseconds.
    changed: (i64, i64),
}

plain!(FileIdentity);

impl FileIdentity {
    /// Of the file at a path, links followed.
    ///
    /// # Errors
    ///
    /// Those of stat(2).
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::of(&stat(path)?))
    }

    /// Of an open file.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn of_open(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::of(&fstat(file)?))
    }

    /// Of an open file that is a regular one, as programs are; `None` for what else there is.
    ///
    /// # Errors
    ///
    /// Those of fstat(2).
    pub fn of_program(file: impl AsFd) -> io::Result<Option<Self>> {
        let found = fstat(file)?;
        let is_regular = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        Ok(is_regular.then(|| Self::of(&found)))
    }

    fn of(file: &FileStat) -> Self {
        let changed = (file.st_ctime, file.st_ctime_nsec);
        Self { dev: file.st_dev, ino: file.st_ino, size: file.st_size, changed }
    }

    /// Whether both are one file, if neither was removed before the other was looked at: a number is given again.
    pub fn is_same_file(self, other: Self) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

impl fmt::Display for FileIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dev, ino, size, changed: (seconds, nanoseconds) } = self;
        write!(f, "{dev}:{ino}:{size}:{seconds}.{nanoseconds}")
    }
}

/// Takes hold of a file, without opening what is in it. It keeps the file system busy (umount(2)).
///
/// # Errors
///
/// Those of open(2).
pub fn hold(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Returns the path of a file that is held, links resolved.
///
/// # Errors
///
/// Those of readlink(2); `NotFound` where it has no name any more, or another file has that.
pub fn path_of(held: &OwnedFd) -> io::Result<PathBuf> {
    let path = fs::read_link(by_descriptor(held))?;
    if FileIdentity::at(&path)?.is_same_file(FileIdentity::of_open(held)?) {
        Ok(path)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Whether the kernel executes a file by itself, as it does this very program: such a one can be executed by a descriptor that is closed
/// by that (execveat(2)), and what needs an interpreter cannot. `false` where it may not be read. It is a regular file: to open another
/// may do something.
pub fn is_native(held: &OwnedFd) -> bool {
    // The magic number, the word's size and order, and the machine (elf(5)).
    let header = |path: &Path| {
        let mut bytes = [0; 20];
        File::open(path)?.read_exact(&mut bytes)?;
        let [m0, m1, m2, m3, class, order, .., machine0, machine1] = bytes;
        Ok::<_, io::Error>([m0, m1, m2, m3, class, order, machine0, machine1])
    };
    header(&by_descriptor(held)).is_ok_and(|found| header(Path::new(RUNNING)).is_ok_and(|own| own == found))
}

/// The path by which a file that is held is reached, whatever stands at its own.
fn by_descriptor(held: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_again_and_another_in_its_place_is_not_it() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("program"), "one").unwrap();
        let (held, before) = (hold(&at("program")).unwrap(), FileIdentity::at(&at("program")).unwrap());
        assert_eq!(FileIdentity::of_open(&held).unwrap(), before);
        fs::write(at("new"), "two").unwrap();
        fs::rename(at("new"), at("program")).unwrap();
        let after = FileIdentity::at(&at("program")).unwrap();
        assert!(after != before && !after.is_same_file(before));
        assert_eq!(path_of(&hold(&at("program")).unwrap()).unwrap(), at("program").canonicalize().unwrap());
        path_of(&held).unwrap_err();
        // Its last name has gone, which is a change, but it is what it was.
        assert!(FileIdentity::of_open(&held).unwrap().is_same_file(before));
    }

    #[test]
    fn what_needs_an_interpreter_or_another_machine_is_not_native() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, bytes: &[u8]| {
            fs::write(folder.path().join(name), bytes).unwrap();
            is_native(&hold(&folder.path().join(name)).unwrap())
        };
        assert!(
            is_native(&hold(Path::new("/bin/true")).unwrap())
                && is_native(&hold(Path::new(RUNNING)).unwrap())
        );
        let mut other = fs::read("/bin/true").unwrap();
        assert!(file("same", &other));
        other[18] ^= 0xff;
        assert!(
            !file("machine", &other)
                && !file("script", b"#!/bin/sh\n                ")
                && !file("short", b"\x7fELF")
        );
        assert!(!is_native(&hold(folder.path()).unwrap()));
        assert_eq!(FileIdentity::of_program(hold(folder.path()).unwrap()).unwrap(), None);
    }
}

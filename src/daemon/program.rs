//! The program of a release: where it stands, and which file it was when the release was read.

use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::release::Release;
use crate::core::spec::Code;
use crate::sys::spawn::DEFAULT_PATH;

/// What tells a file from another one, and from itself after a change: device, inode, size, and the times of its last
/// modification and change in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    dev: u64,
    ino: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// Takes it from what stat(2) says.
    #[must_use]
    pub fn of(file: &Metadata) -> Self {
        Self {
            dev: file.dev(),
            ino: file.ino(),
            size: file.size(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        }
    }
}

/// A program as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its path, symbolic links resolved.
    pub path: PathBuf,
    /// Which file that is.
    pub file: FileIdentity,
}

impl Program {
    /// Finds the program of a command, as execvp(3) would from this directory; `None` where there is none to be found, or
    /// where another one may run in each slot.
    ///
    /// May block, as the file system may.
    pub fn find(word: &str, path: Option<&OsStr>, directory: &Path) -> Option<Self> {
        let places = if word.contains('/') {
            vec![directory.join(word)]
        } else {
            let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
            std::env::split_paths(path).map(|folder| directory.join(folder).join(word)).collect()
        };
        places.iter().find_map(|place| {
            let found = fs::metadata(place).ok().filter(Metadata::is_file)?;
            let is_executable = found.permissions().mode() & 0o111 != 0;
            is_executable.then_some(())?;
            Some(Self { path: place.canonicalize().ok()?, file: FileIdentity::of(&found) })
        })
    }
}

/// What becomes of the old code when new code takes its place, for who may want it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OldCode {
    /// It is where it was, and a rollback starts it.
    Pinned,
    /// Its program, or its target, was replaced in place.
    Replaced,
    /// Both generations start the same files; whether what these load has changed is not known.
    SameFolder,
}

impl Release {
    /// Where its code lies, seen from the release that serves.
    pub fn code_beside(&self, old: &Self) -> Code {
        let program = |release: &Self| release.program.as_ref().map(|program| program.path.clone());
        let target = |release: &Self| release.target.as_ref().map(|target| target.resolved.clone());
        let is_same =
            self.directory == old.directory && program(self) == program(old) && target(self) == target(old);
        if is_same { Code::InPlace } else { Code::Elsewhere }
    }

    /// What has become of the code of `old`, now that this release was read.
    pub fn old_code(&self, old: &Self) -> OldCode {
        let files = |release: &Self| {
            let program = release.program.as_ref().map(|program| program.file);
            (program, release.target.as_ref().and_then(|target| target.file))
        };
        match self.code_beside(old) {
            Code::Elsewhere => OldCode::Pinned,
            Code::InPlace if files(self) == files(old) => OldCode::SameFolder,
            Code::InPlace => OldCode::Replaced,
        }
    }
}

//! The program of a release: where it stands, and which file it was when the release was read.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::release::Release;
use super::run::Daemon;
use crate::core::ids::GenerationId;
use crate::core::notice::Outcome;
use crate::core::spec::Code;
use crate::sys::exec::identity;
use crate::sys::spawn::executable;

/// A program as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its path, symbolic links resolved.
    pub path: PathBuf,
    /// Which file that is (see [`identity`]).
    pub file: String,
}

impl Program {
    /// Finds the program of a command, as execvp(3) would from this directory; `None` where there is none to be found, or
    /// where another one may run in each slot.
    ///
    /// May block, as the file system may.
    pub fn find(word: &str, path: Option<&OsStr>, directory: &Path) -> Option<Self> {
        let found = executable(OsStr::new(word), path, directory).ok()??.canonicalize().ok()?;
        Some(Self { file: identity(&found).ok()?, path: found })
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

impl OldCode {
    /// The word for it in answers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::Replaced => "replaced",
            Self::SameFolder => "same folder",
        }
    }
}

impl Daemon {
    /// What has become of the code beside which that of the last upgrade was started: of the generation before, or of the one
    /// that serves where the upgrade has failed. With it comes what is to be known before one relies on it.
    pub(super) fn old_code(&self) -> Option<(OldCode, Option<String>)> {
        let (to, outcome) = self.manager.last_upgrade()?;
        let (new, old) = match outcome {
            Outcome::Committed if to == self.manager.current() => (to, self.manager.previous()?),
            Outcome::RolledBack(_) => (to, self.manager.current()),
            Outcome::Committed | Outcome::Refused(_) | Outcome::Superseded(_) => return None,
        };
        let (new_release, old_release) = (self.release_of(new)?, self.release_of(old)?);
        let old_code = new_release.old_code(old_release);
        let place = match (&new_release.target, old_code) {
            (_, OldCode::Pinned) => return Some((old_code, None)),
            (Some(target), OldCode::Replaced) => target.resolved.clone(),
            (None, OldCode::Replaced) => new_release.program.as_ref()?.path.display().to_string(),
            (_, OldCode::SameFolder) => new_release.directory.display().to_string(),
        };
        let starts = if *outcome == Outcome::Committed {
            "a rollback starts"
        } else {
            "a worker that is started again runs"
        };
        let note = match old_code {
            OldCode::Replaced => {
                format!(
                    "{place} was replaced: {starts} what lies there now, not the code of generation {old}"
                )
            }
            OldCode::Pinned | OldCode::SameFolder => {
                format!("generations {old} and {new} share {place}: {starts} whatever lies there now")
            }
        };
        Some((old_code, Some(note)))
    }

    fn release_of(&self, generation: GenerationId) -> Option<&Release> {
        let kept = self.kept.as_ref().filter(|(id, _)| *id == generation).map(|(_, release)| release);
        self.generations.get(&generation).map(|of| &of.release).or(kept)
    }
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
            let program = release.program.as_ref().map(|program| program.file.clone());
            (program, release.target.as_ref().and_then(|target| target.file.clone()))
        };
        match self.code_beside(old) {
            Code::Elsewhere => OldCode::Pinned,
            Code::InPlace if files(self) == files(old) => OldCode::SameFolder,
            Code::InPlace => OldCode::Replaced,
        }
    }
}

//! The program of a release: where it stands, and which file it was when the release was read.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::checker::PinnedRelease;
use super::release::Release;
use super::run::{Daemon, Generation};
use crate::core::ids::GenerationId;
use crate::core::notice::Outcome;
use crate::core::spec::Code;
use crate::plain::Credentials;
use crate::sys::file_rights::with_rights_of;
use crate::sys::fork::in_child_with_file;
use crate::sys::program_file::{FileIdentity, hold, is_native, path_of};
use crate::sys::spawn::{Pinned, executable};

/// How long it may take to find a program again: it may lie on a file server that does not answer.
const HOLDING_TAKES: Duration = Duration::from_secs(5);

/// A program as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Its path, symbolic links resolved.
    #[serde(with = "crate::path_text")]
    pub path: PathBuf,
    /// Which file that is.
    pub file: FileIdentity,
    /// Whether the kernel executes it by itself, and so by a descriptor too.
    #[serde(default)]
    pub is_native: bool,
}

impl Program {
    /// Finds the program of a command, as execvp(3) would from this directory for whom the workers are; `None` where there is none to
    /// be found, or where another one may run in each slot.
    ///
    /// Returns a hold on it as well: all that is known of it is of that very file, which the user could have opened, whatever the user
    /// puts into its place meanwhile.
    ///
    /// May block, as the file system may.
    pub fn find(
        word: &str,
        path: Option<&OsStr>,
        directory: &Path,
        who: Option<&Credentials>,
    ) -> Option<(Self, OwnedFd)> {
        let find = || hold(&executable(OsStr::new(word), path, directory).ok()??).ok();
        let held = match who {
            Some(who) => with_rights_of(who, find),
            None => find(),
        };
        Self::of(held?)
    }

    /// Whether our own PATH leads to it as well: then it is the system's, through whatever links, and none of a release.
    fn is_of_system(&self, command: &str) -> bool {
        let name = Path::new(command).file_name().unwrap_or_default();
        let found = executable(name, std::env::var_os("PATH").as_deref(), Path::new("/"));
        found
            .ok()
            .flatten()
            .and_then(|found| found.canonicalize().ok())
            .is_some_and(|found| found == self.path)
    }

    /// Describes a file that is held; `None` for what is no program.
    fn of(held: OwnedFd) -> Option<(Self, OwnedFd)> {
        let file = FileIdentity::of_program(&held).ok()??;
        let path = path_of(&held).ok()?;
        Some((Self { path, file, is_native: is_native(&held) }, held))
    }

    /// Takes hold of it by its path, or where another stands there by a worker that runs it; else of what stands there. May block.
    fn hold_again(&self, workers: &[Pid]) -> Option<(Self, OwnedFd)> {
        let there = hold(&self.path).ok();
        let is_unchanged = |held: &OwnedFd| FileIdentity::of_open(held).is_ok_and(|file| file == self.file);
        if let Some(held) =
            there.as_ref().filter(|held| is_unchanged(held)).and_then(|held| held.try_clone().ok())
        {
            return Some((self.clone(), held));
        }
        // What runs cannot be written to, and so it is the same still.
        let is_it =
            |held: &OwnedFd| FileIdentity::of_open(held).is_ok_and(|file| file.is_same_file(self.file));
        let mut running =
            workers.iter().filter_map(|worker| hold(Path::new(&format!("/proc/{worker}/exe"))).ok());
        running.find(is_it).map(|held| (self.clone(), held)).or_else(|| Self::of(there?))
    }
}

impl Generation {
    /// Which file its workers are to be, where one is held.
    pub(super) fn pinned(&self) -> Option<Pinned<'_>> {
        let (program, file) = self.release.program.as_ref().zip(self.program.as_ref())?;
        let path = CString::new(program.path.as_os_str().as_bytes()).ok()?;
        Some(Pinned { file: file.as_fd(), path, is_native: program.is_native })
    }
}

impl PinnedRelease {
    /// A release that a manager before has checked, whose workers may run.
    pub fn again(mut release: Release, workers: &[Pid]) -> Self {
        let hold = |program: &Program| {
            let work = || {
                let (found, held) = program.hold_again(workers).unzip();
                (serde_json::to_vec(&found).unwrap_or_default(), held)
            };
            let mut work = in_child_with_file(work).ok()?;
            let found: Option<Program> = serde_json::from_slice(&work.wait(HOLDING_TAKES).ok()?).ok()?;
            found.zip(work.file)
        };
        let Some(before) = release.program.take() else { return Self { release, program: None } };
        let (found, program) = hold(&before).unzip();
        if found.as_ref() != Some(&before) {
            release.warnings.push(format!(
                "its program {} was replaced or cannot be opened, and nothing runs the old one any more: what lies there now is started",
                before.path.display()
            ));
        }
        release.program = Some(found.unwrap_or(before));
        Self { release, program }
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
        let ((new_release, _), (old_release, is_held)) = (self.release_of(new)?, self.release_of(old)?);
        let old_code = new_release.old_code(old_release, is_held);
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

    /// What a generation is made of, and whether its program is held.
    fn release_of(&self, generation: GenerationId) -> Option<(&Release, bool)> {
        let there = self.generations.get(&generation).map(|of| (&of.release, of.program.is_some()));
        let kept = self.kept.as_ref().filter(|(id, _)| *id == generation);
        there.or(kept.map(|(_, pinned)| (&pinned.release, pinned.program.is_some())))
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

    /// Says what all generations will have in common, where no link leads to the code: what another one would start is then what lies
    /// there by then.
    pub fn shared_code(&self) -> Option<String> {
        let is_target_linked = self.target.as_ref().is_some_and(|target| target.given != target.resolved);
        let command = &self.spec.process.command[0];
        // Below a target it is as linked as that is.
        let names_own = command.contains('/') && !command.contains("{target}");
        let own = self.program.as_ref().filter(|program| names_own && !program.is_of_system(command));
        let is_program_linked = own.is_some_and(|program| self.directory.join(command) != program.path);
        if self.directory != self.spec.process.directory || is_target_linked || is_program_linked {
            return None;
        }
        let but = if own.is_some_and(|program| program.is_native) {
            " (its program is held, and stays what it was)"
        } else {
            ""
        };
        Some(format!(
            "all generations share {}: a rollback starts whatever lies there then{but}; let a link such as `current` lead to \
             each release, and it starts the old one",
            self.directory.display()
        ))
    }

    /// What has become of the code of `old`, whose program may be held, now that this release was read.
    pub fn old_code(&self, old: &Self, is_held: bool) -> OldCode {
        let target = |release: &Self| release.target.as_ref().and_then(|target| target.file);
        let files = |release: &Self| (release.program.as_ref().map(|program| program.file), target(release));
        // Held, the old one is there still, but not where it was written over.
        let is_another = |(new, old): (&Program, &Program)| old.is_native && !new.file.is_same_file(old.file);
        match self.code_beside(old) {
            Code::Elsewhere => OldCode::Pinned,
            Code::InPlace if files(self) == files(old) => OldCode::SameFolder,
            Code::InPlace if is_held && target(self) == target(old) => {
                let programs = self.program.as_ref().zip(old.program.as_ref());
                if programs.is_some_and(is_another) { OldCode::Pinned } else { OldCode::Replaced }
            }
            Code::InPlace => OldCode::Replaced,
        }
    }
}

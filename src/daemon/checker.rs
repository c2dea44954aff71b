//! The forked child that reads a service file and looks up what it refers to, so that no file, parser or name service
//! can block or harm the manager.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::release::{Refusal, Release, Source};
use super::target::Wanted;
use crate::sys::fork::{ForkedWork, in_child_with_file};
use crate::sys::handover::hand_over;
use crate::sys::reaper::Exit;

/// A release that was checked, with a hold on its program: that stays what it was, whatever comes to stand at its path.
#[derive(Debug)]
pub struct PinnedRelease {
    pub release: Release,
    pub program: Option<OwnedFd>,
}

hand_over!(PinnedRelease as PinnedReleaseState { release: Release, program: Option<OwnedFd> });

/// A check under way.
#[derive(Debug)]
pub struct Checker {
    work: ForkedWork,
    answer: Vec<u8>,
}

hand_over!(Checker as CheckerState { work: ForkedWork, answer: Vec<u8> });

#[derive(Serialize, Deserialize)]
enum Answer {
    Sound(Box<Release>),
    Refused(Refusal),
}

impl Checker {
    /// Begins to read the definition of a service, see [`Release::read`].
    ///
    /// # Errors
    ///
    /// Those of fork(2).
    pub fn start(source: &Source, wanted: &Wanted, yet_to_run: bool, color: bool) -> io::Result<Self> {
        let work = in_child_with_file(|| {
            let (answer, program) = match Release::read(source, wanted, yet_to_run, color) {
                Ok(PinnedRelease { release, program }) => (Answer::Sound(Box::new(release)), program),
                Err(refusal) => (Answer::Refused(refusal), None),
            };
            // An answer that cannot be written is none, and the manager says so.
            (serde_json::to_vec(&answer).unwrap_or_default(), program)
        })?;
        Ok(Self { work, answer: Vec::new() })
    }

    /// The child.
    pub fn pid(&self) -> Pid {
        self.work.pid
    }

    /// Takes what the child has written by now; returns whether that was all.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub fn read(&mut self) -> io::Result<bool> {
        self.work.read(&mut self.answer)
    }

    /// Returns the answer, once the child has been reaped.
    ///
    /// # Errors
    ///
    /// Why there is no release.
    pub fn finish(mut self, exit: Exit) -> Result<PinnedRelease, Refusal> {
        let failed = |why: String| Refusal { summary: why.clone(), details: why };
        if exit != Exit::Code(0) {
            let bug = if matches!(exit, Exit::Code(_)) { "; this is a bug of liveswap" } else { "" };
            return Err(failed(format!("the check of the service file {exit}{bug}")));
        }
        self.read().map_err(|error| failed(format!("cannot read the check's answer: {error}")))?;
        match serde_json::from_slice(&self.answer) {
            Ok(Answer::Sound(release)) => {
                Ok(PinnedRelease { release: *release, program: self.work.file.take() })
            }
            Ok(Answer::Refused(refusal)) => Err(refusal),
            Err(error) => Err(failed(format!("cannot understand the check's answer: {error}"))),
        }
    }
}

impl AsFd for Checker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }
}

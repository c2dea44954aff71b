//! The forked child that reads a service file and looks up what it refers to, so that no file, parser or name service
//! can block or harm the manager.

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::host::{Ended, Failure};
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

#[derive(Serialize, Deserialize)]
enum Answer {
    Sound(Box<Release>),
    Refused(Refusal),
}

/// Begins to read the definition of a service, see [`Release::read`].
///
/// # Errors
///
/// Those of fork(2).
pub fn start(source: &Source, wanted: &Wanted, yet_to_run: bool, color: bool) -> io::Result<ForkedWork> {
    in_child_with_file(|| {
        let (answer, program) = match Release::read(source, wanted, yet_to_run, color) {
            Ok(PinnedRelease { release, program }) => (Answer::Sound(Box::new(release)), program),
            Err(refusal) => (Answer::Refused(refusal), None),
        };
        // An answer that cannot be written is none, and the manager says so.
        (serde_json::to_vec(&answer).unwrap_or_default(), program)
    })
}

/// Returns the release that a check has found.
///
/// # Errors
///
/// Why there is none.
pub fn result(ended: Ended) -> Result<PinnedRelease, Refusal> {
    let failed = |why: String| Refusal { summary: why.clone(), details: why };
    if let Err(failure) = ended.result {
        let bug =
            if matches!(failure, Failure::Exit(Exit::Code(_))) { "; this is a bug of liveswap" } else { "" };
        return Err(failed(format!("the check of the service file {failure}{bug}")));
    }
    match serde_json::from_slice(&ended.said) {
        Ok(Answer::Sound(release)) => Ok(PinnedRelease { release: *release, program: ended.file }),
        Ok(Answer::Refused(refusal)) => Err(refusal),
        Err(error) => Err(failed(format!("cannot understand the check's answer: {error}"))),
    }
}

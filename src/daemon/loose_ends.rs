//! What a turn leaves to its end, or to the next: what others have sent is closed, and children that are too many are reaped.

use std::io;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::host::Timer;
use super::looks::{Look, Looks, Wanted};
use super::run::{Daemon, Role};
use crate::core::ids::GenerationId;
use crate::core::notice::Outcome;
use crate::core::time::Mono;
use crate::sys::foreign::{Closers, ForeignFd};
use crate::sys::handover::{HandOver, Luggage, Unpacked};
use crate::sys::stall::LIMIT;

/// What a turn leaves to its end, or to the next.
#[derive(Debug, Default)]
pub(super) struct LooseEnds {
    /// What workers wait to be closed until all that they said was acted on (sd_notify_barrier(3)).
    pub(super) barriers: Vec<ForeignFd>,
    /// The children that close what came from outside.
    pub(super) closers: Closers,
    /// The look at starting workers that is under way, and those that are wanted.
    pub(super) looks: Looks,
    /// When to look for what has outlived its worker.
    pub(super) look_for_orphans_at: Option<Mono>,
    /// How often in a row cgroups could not be removed.
    pub(super) tidied: u8,
    /// The generation whose way to its notify sockets was looked at last.
    pub(super) way_of: Option<GenerationId>,
    /// Where there is no control server at its default address.
    pub(super) default_control: DefaultControl,
    /// The service stops, and the manager has closed its sockets.
    pub(super) sockets_are_closed: bool,
    /// At the end: what outlives us, as nothing ends it.
    pub(super) left_behind: Vec<Pid>,
    /// What more is known of the generation that was refused last than the core's answer says.
    pub(super) refused: Option<Refused>,
}

/// How it is with a control server that is not at its default address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum DefaultControl {
    /// Nothing was said of that.
    #[default]
    Untold,
    /// The log has said so.
    Told,
    /// It leaves the address free until the next upgrade.
    Yields,
}

/// What of it another program in our place goes on with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct LooseEndsState {
    look_for_orphans_at: Option<Mono>,
    #[serde(default)]
    look: <Option<Look> as HandOver>::State,
    #[serde(default)]
    wanted_looks: Vec<Wanted>,
}

impl HandOver for LooseEnds {
    type State = LooseEndsState;

    fn pack(&self, luggage: &mut Luggage) -> LooseEndsState {
        LooseEndsState {
            look_for_orphans_at: self.look_for_orphans_at,
            look: self.looks.under_way.pack(luggage),
            wanted_looks: self.looks.wanted.clone(),
        }
    }

    fn unpack(state: LooseEndsState, luggage: &mut Unpacked) -> io::Result<Self> {
        let looks = Looks { under_way: HandOver::unpack(state.look, luggage)?, wanted: state.wanted_looks };
        Ok(Self { look_for_orphans_at: state.look_for_orphans_at, looks, ..Self::default() })
    }
}

/// What more is known of a refusal than its reason.
#[derive(Clone, Debug, Default)]
pub(super) struct Refused {
    reason: String,
    /// What is wrong with the service file, laid out for a person.
    pub(super) details: Option<Vec<String>>,
    /// What to do next.
    pub(super) hint: Option<String>,
}

impl Refused {
    pub(super) fn new(reason: &str, details: Option<Vec<String>>, hint: Option<String>) -> Self {
        Self { reason: reason.to_owned(), details, hint }
    }

    /// Whether an outcome is this refusal.
    pub(super) fn is_of(&self, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Refused(reason) if *reason == self.reason)
    }
}

impl Daemon {
    /// Has what came from outside, and is of no use any more, closed by a child: it may make that one wait.
    pub(super) fn close_foreign(&mut self) {
        match self.loose_ends.closers.run() {
            Ok(Some(closer)) => drop(self.host.roles.insert(closer, Role::Closer)),
            Ok(None) => {}
            Err(error) => debug!("cannot start a closer of descriptors: {error}; trying again"),
        }
        let left = self.loose_ends.closers.time_left();
        self.host.timers.set(Timer::Closers, left.map(|left| self.now() + left));
    }
}

/// Tells that the loop was held up: by a system call, which was interrupted then, or by a machine that has no time for it.
/// Returns whether there was something to tell.
pub(super) fn tell_stalls(count: u32) -> bool {
    if count > 0 {
        let limit = LIMIT.as_secs();
        warn!(
            "the manager was held up for {count} x {limit} s; a system call that takes so long is interrupted"
        );
    }
    count > 0
}

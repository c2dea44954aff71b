//! What was asked for while something else was under way.

use serde::{Deserialize, Serialize};

use super::Action;
use super::ids::RequestId;
use super::manager::Manager;
use super::notice::Outcome;
use super::respawn::Respawn;
use super::time::Mono;
use super::upgrade::{Change, Origin, answer};

/// Why an upgrade to a target that somebody named never began.
const ANOTHER_TARGET: &str = "an upgrade to another target was asked for";

/// What waits: any number of requests for the same thing is one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Waiting {
    pub(super) upgrade: Option<WantedUpgrade>,
    pub(super) respawn: Option<Respawn>,
}

/// The wish for an upgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WantedUpgrade {
    /// Those who want what the service file defines, whatever the target.
    requests: Vec<RequestId>,
    /// The one who names a target.
    target: Option<RequestId>,
}

impl WantedUpgrade {
    /// All who are to be answered.
    pub(super) fn into_requests(self) -> Vec<RequestId> {
        self.requests.into_iter().chain(self.target).collect()
    }
}

impl Manager {
    pub(super) fn ask_upgrade(&mut self, request: Option<RequestId>, out: &mut Vec<Action>) {
        if self.refuse_when_stopping(request, out) {
            return;
        }
        self.waiting.upgrade.get_or_insert_default().requests.extend(request);
    }

    /// Asks for an upgrade to the target that the request names. Of several that wait only the newest can be had; who wants
    /// no certain target is content with it.
    pub(super) fn ask_upgrade_to(&mut self, request: RequestId, out: &mut Vec<Action>) {
        if self.refuse_when_stopping(Some(request), out) {
            return;
        }
        let before = self.waiting.upgrade.get_or_insert_default().target.replace(request);
        answer(before.into_iter().collect(), &Outcome::Superseded(ANOTHER_TARGET.into()), out);
    }

    /// Forgets who asked for what: nobody of them is there any more. An upgrade that nobody has begun is not wanted either.
    pub(super) fn forget_who_asked(&mut self) {
        self.waiting.upgrade = None;
        self.awaiting_end.clear();
        if let Some(respawn) = &mut self.waiting.respawn {
            respawn.requests.clear();
        }
        match &mut self.change {
            Some(Change::Respawn(respawn)) => respawn.requests.clear(),
            Some(Change::Upgrade(upgrade)) => {
                upgrade.requests.clear();
                upgrade.undo.clear();
            }
            None => {}
        }
    }

    /// Begins what waits, where nothing is under way. An upgrade goes first, as it makes fresh workers too; a respawn under
    /// way waits for it, and goes on where workers of before are left.
    pub(super) fn begin_waiting(&mut self, now: Mono, out: &mut Vec<Action>) {
        if self.upgrade().is_some() {
            return;
        }
        if let Some(wanted) = self.waiting.upgrade.take() {
            let origin = Origin::File { target: wanted.target };
            self.begin_upgrade(now, origin, wanted.into_requests(), out);
        } else if self.change.is_none()
            && let Some(respawn) = self.waiting.respawn.take()
        {
            self.begin_respawn(respawn, out);
        }
    }
}

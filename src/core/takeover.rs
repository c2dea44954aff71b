//! Going on with what a manager has left that was killed.
//!
//! Its workers have served on all the while; but nobody heard what they said, nobody is there any more who asked for
//! something, and nobody sees to what was being prepared. So an upgrade under way ends in favour of the generation that
//! serves, and everything else goes on by the ordinary rules, deadlines included.

use std::collections::BTreeSet;

use super::Action;
use super::ids::WorkerId;
use super::manager::Manager;
use super::notice::{DrainReason, Exit, Notice};
use super::time::Mono;
use super::upgrade::Phase;
use super::worker::Worker;

/// The reason of an upgrade that ended with its manager.
const KILLED: &str = "the manager was killed";

impl Manager {
    /// Takes over; `gone` are the workers that have no process any more.
    pub(super) fn taken_over(&mut self, now: Mono, gone: &BTreeSet<WorkerId>, out: &mut Vec<Action>) {
        self.forget_who_asked();
        // Those that are left are nobody's any more.
        self.guests = false;
        // Whoever starts a manager wants the service to run. An upgrade that the end cut short has left its sockets.
        if self.stop.take().is_some() {
            out.push(Action::RestoreSockets(self.current));
        }
        self.workers.change_all(|_, worker| {
            worker.taken_over(now, &self.generations[&worker.generation].policy);
        });
        let left = self.workers.which(Worker::is_live).iter().filter(|id| !gone.contains(id)).count();
        out.push(Action::Tell(Notice::TakenOver(self.current, left)));
        self.end_upgrade_of_before(now, out);
        for id in gone {
            self.exited(now, *id, Exit::Unseen, out);
        }
        let unheard = |worker: &Worker| worker.may_be_unheard(&self.generations[&worker.generation].policy);
        for id in self.workers.which(unheard) {
            // Not killed: it may serve.
            self.drain(now, id, DrainReason::Unheard, out);
        }
        self.served &= self.generations[&self.current].wanted() == 0 || self.workers.ready() > 0;
    }

    /// Ends the upgrade under way, where one is, in favour of the generation that serves.
    fn end_upgrade_of_before(&mut self, now: Mono, out: &mut Vec<Action>) {
        let latest = self.latest_restoration(now);
        let Some(upgrade) = self.upgrade_mut() else { return };
        match &mut upgrade.phase {
            Phase::Checking { .. } => self.refuse(KILLED.into(), out),
            Phase::Surging { .. } | Phase::Probation { .. } => self.roll_back(now, KILLED.into(), out),
            // Nobody has brought the old generation back meanwhile.
            Phase::RollingBack { give_up_at, .. } => *give_up_at = latest,
        }
    }
}

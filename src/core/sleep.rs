//! A lazy service: its workers start with the first connection, and go when none has been left for a while.
//!
//! Who sleeps is as it is to be, with no worker. An upgrade does not wait for a connection: only workers that run show whether
//! a release is good.

use super::Action;
use super::manager::Manager;
use super::notice::Notice;
use super::time::Mono;
use super::upgrade::Phase;

impl Manager {
    /// Whether the generation that serves has no worker until there is something to do.
    pub fn is_asleep(&self) -> bool {
        self.stop.is_none() && self.generations[&self.current].asleep
    }

    /// Has the workers start that somebody waits for.
    pub(super) fn wake(&mut self, now: Mono, out: &mut Vec<Action>) {
        if !self.is_asleep() {
            return;
        }
        let current = self.current;
        self.generations.entry(current).and_modify(|of| of.asleep = false);
        out.push(Action::Tell(Notice::Woken(current)));
        // Whoever goes back to it waits for these workers as well.
        let latest = self.latest_restoration(now);
        if let Some(upgrade) = self.upgrade_mut()
            && let Phase::RollingBack { give_up_at, .. } = &mut upgrade.phase
        {
            *give_up_at = latest.max(*give_up_at);
        }
    }

    /// Lets all workers go where nothing else is under way.
    pub(super) fn fall_asleep(&mut self, out: &mut Vec<Action>) {
        let current = self.current;
        let is_busy = self.change.is_some() || !self.is_settled();
        let of = &self.generations[&current];
        if is_busy || self.stop.is_some() || !of.policy.lazy || of.wanted() == 0 {
            return;
        }
        self.generations.entry(current).and_modify(|of| of.asleep = true);
        out.push(Action::Tell(Notice::Asleep(current)));
    }
}

//! How the service ends.

use std::time::Duration;

use super::Action;
use super::manager::{Manager, Stop};
use super::notice::{DrainReason, Notice};
use super::time::Mono;
use super::worker::Worker;

/// A second SIGTERM or SIGINT that comes this soon is the same wish: timeout(1) signals its child and then the child's group,
/// and a terminal and a service manager may both pass one on.
const SAME_WISH: Duration = Duration::from_millis(200);

impl Manager {
    pub(super) fn stop(&mut self, now: Mono, out: &mut Vec<Action>) {
        if self.stop.is_some() {
            if self.same_wish_until.is_none_or(|until| until <= now) {
                self.kill(out);
            }
            return;
        }
        self.same_wish_until = Some(now + SAME_WISH);
        self.supersede_all("the service stops", out);
        self.stop = Some(Stop::Draining);
        out.push(Action::Tell(Notice::Stopping(self.workers.len())));
        for id in self.workers.which(Worker::is_live) {
            self.drain(now, id, DrainReason::Stop, out);
        }
    }

    pub(super) fn kill(&mut self, out: &mut Vec<Action>) {
        if self.stop == Some(Stop::Ended) {
            return;
        }
        self.supersede_all("the service is killed", out);
        self.stop = Some(Stop::Draining);
        out.push(Action::Tell(Notice::KillingAll(self.workers.len())));
        for id in self.workers.which(|worker| !worker.is_killing()) {
            self.kill_worker(id, out);
        }
    }
}

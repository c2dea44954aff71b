//! The wish for fresh workers of the generation that serves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Action;
use super::ids::{RequestId, WorkerId};
use super::manager::Manager;
use super::notice::{Notice, Outcome};
use super::upgrade::{Change, answer};
use super::worker::Worker;

/// The wish for fresh workers of the serving generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Respawn {
    pub(super) requests: Vec<RequestId>,
    /// Those that are to be replaced.
    stale: BTreeSet<WorkerId>,
    /// They do not wait for their successors, but are killed.
    kills: bool,
}

impl Manager {
    pub(super) fn ask_respawn(&mut self, request: Option<RequestId>, out: &mut Vec<Action>) {
        if self.refuse_when_stopping(request, out) {
            return;
        }
        // One that is starting is fresh.
        let stale = self.workers.which(Worker::is_ready).into_iter().collect();
        self.want_respawn(Respawn { requests: request.into_iter().collect(), stale, kills: false });
    }

    /// Has every worker killed and replaced.
    pub(super) fn ask_respawn_now(&mut self, request: RequestId, out: &mut Vec<Action>) {
        if self.refuse_when_stopping(Some(request), out) {
            return;
        }
        let stale = self.workers.which(Worker::is_live).into_iter().collect();
        self.want_respawn(Respawn { requests: vec![request], stale, kills: true });
    }

    /// Has every worker replaced that has a socket which is no more, also one that is starting.
    pub(super) fn socket_replaced(&mut self) {
        let stale = self.workers.which(Worker::is_live).into_iter().collect();
        self.want_respawn(Respawn { requests: Vec::new(), stale, kills: false });
    }

    /// Has a respawn wait, together with one that waits already.
    pub(super) fn want_respawn(&mut self, wanted: Respawn) {
        let Some(waiting) = &mut self.waiting.respawn else {
            self.waiting.respawn = Some(wanted);
            return;
        };
        waiting.requests.extend(wanted.requests);
        waiting.stale.extend(wanted.stale);
        waiting.kills |= wanted.kills;
    }

    pub(super) fn begin_respawn(&mut self, respawn: Respawn, out: &mut Vec<Action>) {
        let mut outdated = Vec::new();
        self.workers.change_all(|id, worker| {
            worker.outdated |= worker.is_live() && respawn.stale.contains(&id);
            outdated.extend((worker.is_live() && worker.outdated).then_some(id));
        });
        let kills = respawn.kills;
        self.change = Some(Change::Respawn(respawn));
        out.push(Action::Tell(Notice::RespawnBegan(self.current)));
        if kills {
            // Whoever wants this does not want to wait for what failed before.
            self.generations.entry(self.current).and_modify(|current| current.backoff.clear());
            for id in outdated {
                self.kill_worker(id, out);
            }
        }
    }

    /// Ends a respawn that waits where the upgrade has replaced all workers of before.
    pub(super) fn drop_respawn_if_met(&mut self, outcome: &Outcome, out: &mut Vec<Action>) {
        let live: BTreeSet<_> = self.workers.which(Worker::is_live).into_iter().collect();
        if let Some(respawn) = self.waiting.respawn.take_if(|respawn| respawn.stale.is_disjoint(&live)) {
            answer(respawn.requests, outcome, out);
        }
    }

    pub(super) fn end_respawn(&mut self, outcome: &Outcome, out: &mut Vec<Action>) {
        let Some(Respawn { requests, .. }) = self.stop_respawning() else { return };
        let result = outcome.reason().map_or(Ok(()), |why| Err(why.to_owned()));
        out.push(Action::Tell(Notice::RespawnEnded(self.current, result)));
        answer(requests, outcome, out);
    }

    pub(super) fn stop_respawning(&mut self) -> Option<Respawn> {
        let is_respawn = |change: &mut Change| matches!(change, Change::Respawn(_));
        let Some(Change::Respawn(respawn)) = self.change.take_if(is_respawn) else { return None };
        self.keep_one_a_slot();
        Some(respawn)
    }

    /// Of two live workers in a slot keeps the one that serves, or else the older one; the other is outdated now.
    fn keep_one_a_slot(&mut self) {
        let mut kept = BTreeMap::new();
        for (id, worker) in self.workers.iter().filter(|(_, worker)| worker.is_live()) {
            let rank = (worker.is_ready(), Reverse(id));
            let best = kept.entry((worker.generation, worker.slot)).or_insert(rank);
            *best = rank.max(*best);
        }
        let kept: BTreeSet<_> = kept.into_values().map(|(_, Reverse(id))| id).collect();
        self.workers.change_all(|id, worker| {
            worker.outdated = worker.is_live() && !kept.contains(&id);
        });
    }
}

//! The door into the core: events in, actions out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::backoff::Backoff;
use super::generation::Generation;
use super::ids::{GenerationId, RequestId, WorkerId};
use super::notice::{DrainReason, Exit, Notice, Outcome, WorkerNotice};
use super::roster::Roster;
use super::spec::Policy;
use super::time::{Human, Mono};
use super::upgrade::{Change, answer};
use super::waiting::Waiting;
use super::word::Word;
use super::worker::{KILL_TAKES, Turn, Worker, WorkerState, silence_allowed};
use super::{Action, Event};

/// SIGKILL, the one signal whose sender may be the kernel's out-of-memory killer or an operator, never the program.
const SIGKILL: i32 = 9;

/// The whole state of a manager, as plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manager {
    /// Those that serve, are being upgraded to, or still have a process.
    pub(super) generations: BTreeMap<GenerationId, Generation>,
    pub(super) workers: Roster,
    /// The newest generation that was committed.
    pub(super) current: GenerationId,
    /// The one that was committed before it, to which a rollback goes.
    pub(super) previous: Option<GenerationId>,
    pub(super) change: Option<Change>,
    pub(super) waiting: Waiting,
    pub(super) stop: Option<Stop>,
    /// Until when asking for the end once more is the same wish.
    pub(super) same_wish_until: Option<Mono>,
    /// Who is told when the service has ended.
    pub(super) awaiting_end: Vec<RequestId>,
    /// Whether there are processes of single connections.
    pub(super) guests: bool,
    /// Whether all workers were ready once.
    pub(super) served: bool,
    /// How the last upgrade ended.
    pub(super) last_upgrade: Option<(GenerationId, Outcome)>,
    /// The worker whose loss rolled the latest upgrade back.
    pub(super) culprit: Option<WorkerId>,
    /// Why the last worker that died by itself did; empty once all are ready again.
    pub(super) trouble: String,
    /// How the last worker of the current generation was lost that nobody had asked to end, in a few words; empty where none
    /// was.
    #[serde(default)]
    pub(super) last_exit: String,
    pub(super) next_worker: WorkerId,
    pub(super) next_generation: GenerationId,
    /// The latest moment that was heard of; time never goes back in here.
    pub(super) now: Mono,
}

/// How the service is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stop {
    Draining,
    Ended,
}

impl Manager {
    /// Makes a manager whose first generation is prepared; its first event starts the workers.
    pub fn new(policy: Policy) -> Self {
        let first = GenerationId(1);
        Self {
            generations: BTreeMap::from([(first, Generation::first(policy))]),
            workers: Roster::default(),
            current: first,
            previous: None,
            change: None,
            waiting: Waiting::default(),
            stop: None,
            same_wish_until: None,
            awaiting_end: Vec::new(),
            guests: false,
            served: false,
            last_upgrade: None,
            culprit: None,
            trouble: String::new(),
            last_exit: String::new(),
            next_worker: WorkerId(1),
            next_generation: first.next(),
            now: Mono::ZERO,
        }
    }

    /// As [`Manager::new`], where the numbers up to `taken` are those of workers of which this manager knows nothing.
    pub fn counting_from(taken: Option<WorkerId>, policy: Policy) -> Self {
        let next_worker = taken.map_or(WorkerId(1), WorkerId::next);
        Self { next_worker, ..Self::new(policy) }
    }

    /// Takes an event that happened at `now` and appends what is to be done.
    pub fn handle(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        // Most of what a worker says changes nothing that anyone else is decided by.
        let is_of_one = matches!(event, Event::Executed(_) | Event::Said(..));
        let is_due = self.next_deadline().is_some_and(|at| at <= now);
        self.now = self.now.max(now);
        let before = out.len();
        match event {
            Event::Heard(event) => return self.take(*event, out),
            event => self.take(event, out),
        }
        self.tick_workers(self.now, out);
        if !is_of_one || is_due || out.len() > before {
            self.settle(out);
        }
    }

    /// Takes an event for what it says, without a look at the clock or at what follows.
    fn take(&mut self, event: Event, out: &mut Vec<Action>) {
        let now = self.now;
        match event {
            Event::Tick | Event::Heard(_) => {}
            Event::Overslept => self.overslept(now),
            Event::Upgrade(request) => self.ask_upgrade(request, out),
            Event::Respawn(request) => self.ask_respawn(request, out),
            Event::SocketReplaced => self.socket_replaced(),
            Event::Connected => self.wake(now, out),
            Event::Guests(are_there) => self.guests = are_there,
            Event::Idle => self.fall_asleep(out),
            Event::Scale(by) => self.scale_within_bounds(by, out),
            Event::Asked(request, wish) => self.asked(now, request, wish, out),
            Event::Stop => self.stop(now, out),
            Event::Kill => self.kill(out),
            Event::FileRead(generation, hook) => self.file_read(now, generation, hook, out),
            Event::HookEnded(generation, result) => self.hook_ended(now, generation, result, out),
            Event::Prepared(generation, policy, code) => self.prepared(generation, policy, code, out),
            Event::PreparationFailed(generation, why) => self.preparation_failed(generation, why, out),
            Event::Executed(id) => self.executed(now, id),
            Event::Said(id, word) => self.said(now, id, word, out),
            Event::Probed(id, passed) => self.probed(now, id, passed, out),
            Event::Looked(id, sight) => self.looked(now, id, sight, out),
            Event::StartFailed(id, why) => self.exited(now, id, Exit::NotExecuted(why), out),
            Event::Exited(id, exit) => self.exited(now, id, exit, out),
            Event::DoesNotEnd(id, what) => self.does_not_end(now, id, what, out),
            Event::TakenOver(gone) => self.taken_over(now, &gone, out),
        }
    }

    /// Returns the moment at which [`Event::Tick`] is due; `None`: never, as things stand.
    pub fn next_deadline(&self) -> Option<Mono> {
        let workers = self.workers.deadlines().map(|(first, _)| first);
        let upgrade = self.upgrade().and_then(|upgrade| upgrade.deadline(self.now));
        let restart = self.restart_deadline().filter(|_| self.stop.is_none());
        workers.into_iter().chain(upgrade).chain(restart).min()
    }

    /// Whether the indexes say what a scan of all workers and slots says. A check for tests, which takes that scan.
    pub fn is_indexed(&self) -> bool {
        self.workers.is_indexed() && self.generations.values().all(|of| of.backoff.is_indexed(self.now))
    }

    /// Brings everything as far as the facts allow.
    fn settle(&mut self, out: &mut Vec<Action>) {
        let now = self.now;
        match self.stop {
            None => {
                // Each may make way for the others, until nothing is left to decide.
                let mut decided = None;
                while decided != Some(out.len()) {
                    decided = Some(out.len());
                    self.prove(now);
                    self.retire(now, out);
                    self.start_missing(now, out);
                    self.conclude(now, out);
                    self.announce_serving(out);
                    self.begin_waiting(now, out);
                }
                self.limit_generations(out);
                self.forget_generations(out);
            }
            Some(Stop::Draining) if self.workers.are_all_stuck() && !self.guests => {
                self.stop = Some(Stop::Ended);
                answer(std::mem::take(&mut self.awaiting_end), &Outcome::Committed, out);
                out.push(Action::Exit);
            }
            Some(Stop::Draining | Stop::Ended) => {}
        }
    }

    fn tick_workers(&mut self, now: Mono, out: &mut Vec<Action>) {
        for id in self.workers.due(now) {
            if let Some(turn) = self.workers.change(id, |worker| worker.tick(now)).flatten() {
                self.turn(now, id, turn, out);
            }
        }
    }

    fn executed(&mut self, now: Mono, id: WorkerId) {
        self.workers.change(id, |worker| {
            worker.executed(now, &self.generations[&worker.generation].policy);
        });
    }

    fn said(&mut self, now: Mono, id: WorkerId, word: Word, out: &mut Vec<Action>) {
        let turn = self
            .workers
            .change(id, |worker| worker.said(now, word, &self.generations[&worker.generation].policy));
        if let Some(turn) = turn.flatten() {
            self.turn(now, id, turn, out);
        }
    }

    /// Does what a worker's word, or time, makes necessary.
    pub(super) fn turn(&mut self, now: Mono, id: WorkerId, turn: Turn, out: &mut Vec<Action>) {
        let worker = &self.workers[id];
        let ready_timeout = self.generations[&worker.generation].policy.ready_timeout;
        let mut tell = |notice| out.push(Action::Tell(Notice::Worker(id, notice)));
        match turn {
            Turn::BecameReady => tell(WorkerNotice::Ready),
            Turn::RunProbe => out.push(Action::Probe(id)),
            Turn::Silent => self.tell_silence(id, out),
            Turn::HasSettled => self.has_settled(now, id, out),
            Turn::Look => self.look(now, id, out),
            Turn::Unseen(why) => self.is_unseen(now, id, why, out),
            Turn::NotReady => {
                let lack = worker.lack.clone();
                let notice = WorkerNotice::NotReady(ready_timeout, lack);
                let why = format!("was {notice}");
                tell(notice);
                self.lose(now, id, &why, false, out);
                // Not killed: it may have accepted connections without a word.
                self.drain(now, id, DrainReason::NotReady, out);
            }
            Turn::Leaves => {
                self.lose(now, id, "stopped by itself", false, out);
                self.drain(now, id, DrainReason::ByItself, out);
            }
            Turn::WatchdogMissed => {
                tell(WorkerNotice::WatchdogMissed);
                self.abort(now, id, "missed its watchdog", out);
            }
            Turn::WatchdogTriggered => {
                tell(WorkerNotice::WatchdogTriggered);
                self.abort(now, id, "triggered its watchdog", out);
            }
            Turn::DoesNotEnd(time) => {
                tell(WorkerNotice::DrainTimedOut(time));
                self.kill_worker(id, out);
            }
            Turn::OutlivesSigkill => out.push(Action::Examine(id)),
        }
    }

    /// Tells that a worker has said nothing for a while, once for each generation.
    fn tell_silence(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        let generation = self.workers[id].generation;
        let Some(of) = self.generations.get_mut(&generation) else { return };
        if let Some(time) =
            silence_allowed(&of.policy).filter(|_| !std::mem::replace(&mut of.told_silence, true))
        {
            out.push(Action::Tell(Notice::Worker(id, WorkerNotice::Silent(time))));
        }
    }

    pub(super) fn exited(&mut self, now: Mono, id: WorkerId, exit: Exit, out: &mut Vec<Action>) {
        let Some(worker) = self.workers.get(id) else { return };
        if worker.is_live() {
            let why = match worker.ready_since() {
                // What it said soon before that is to be seen beside it.
                Some(since) if self.is_to_prove(worker) => {
                    format!("{exit}, {} after it was ready", Human(now - since))
                }
                Some(_) => exit.to_string(),
                None => format!("{exit} before it was ready"),
            };
            let foreign_kill = matches!(exit, Exit::Signal(SIGKILL, _));
            let (generation, in_short) = (worker.generation, exit.in_short());
            out.push(Action::Tell(Notice::Worker(id, WorkerNotice::Died(exit))));
            self.lose(now, id, &why, foreign_kill, out);
            self.note_loss(generation, &in_short);
        } else {
            out.push(Action::Tell(Notice::Worker(id, WorkerNotice::Ended(exit))));
        }
        self.workers.remove(id);
    }

    /// Takes the loss of a live worker, before its state says so: who is told, and when its slot starts again.
    fn lose(&mut self, now: Mono, id: WorkerId, why: &str, foreign_kill: bool, out: &mut Vec<Action>) {
        let worker = &self.workers[id];
        let (generation, slot) = (worker.generation, worker.slot);
        let (was_ready, ready_for, outdated) = (worker.is_ready(), worker.ready_for(now), worker.outdated);
        let reason = format!("worker {id} (slot {slot}) {why}");
        self.trouble.clone_from(&reason);
        self.note_loss(generation, why.strip_prefix("was ").unwrap_or(why));
        if self.upgrade().is_some_and(|upgrade| upgrade.is_forward() && upgrade.to == generation) {
            self.new_worker_failed(now, id, reason, foreign_kill, out);
        } else if !was_ready && !outdated && !foreign_kill {
            self.end_respawn(&Outcome::RolledBack(reason), out);
        }
        if outdated {
            // Its slot is its successor's: that one's deaths alone count.
            return;
        }
        let Some(of) = self.generations.get_mut(&generation) else { return };
        let backoff = Backoff::after_death(of.backoff.get(slot).copied(), now, ready_for, &of.policy);
        of.backoff.insert(slot, backoff);
        let restarts = generation == self.current || generation == self.incoming();
        if restarts && self.stop.is_none() {
            out.push(Action::Tell(Notice::Backoff(generation, slot, backoff.start_at() - now)));
        }
    }

    /// Remembers how a worker of the generation that serves was lost, until that one is at full strength again.
    fn note_loss(&mut self, generation: GenerationId, how: &str) {
        if generation == self.current {
            how.clone_into(&mut self.last_exit);
        }
    }

    pub(super) fn drain(&mut self, now: Mono, id: WorkerId, why: DrainReason, out: &mut Vec<Action>) {
        let timeout = self.generations[&self.workers[id].generation].policy.drain_timeout;
        self.set_state(id, WorkerState::Draining { since: now, kill_at: now + timeout, why });
        out.push(Action::Tell(Notice::Worker(id, WorkerNotice::Draining(why))));
        if why != DrainReason::ByItself {
            out.push(Action::Drain(id));
        }
    }

    fn abort(&mut self, now: Mono, id: WorkerId, why: &str, out: &mut Vec<Action>) {
        let timeout = self.generations[&self.workers[id].generation].policy.drain_timeout;
        self.lose(now, id, why, false, out);
        self.set_state(id, WorkerState::Aborting { since: now, kill_at: now + timeout });
        out.push(Action::Abort(id));
    }

    pub(super) fn kill_worker(&mut self, id: WorkerId, out: &mut Vec<Action>) {
        self.set_state(id, WorkerState::Killing { stuck_at: self.now + KILL_TAKES });
        out.push(Action::Kill(id));
    }

    pub(super) fn set_state(&mut self, id: WorkerId, state: WorkerState) {
        self.workers.change(id, |worker| worker.state = state);
    }

    fn announce_serving(&mut self, out: &mut Vec<Action>) {
        if self.incoming() != self.current || !self.is_settled() {
            return;
        }
        self.trouble.clear();
        if !self.served {
            self.served = true;
            out.push(Action::Tell(Notice::Serving(self.current)));
        }
    }

    /// Whether the service still has a use for the generation itself, beside letting it drain.
    pub(super) fn is_in_use(&self, generation: GenerationId) -> bool {
        generation == self.current || self.upgrade().is_some_and(|upgrade| upgrade.to == generation)
    }

    /// Kills the oldest generations that drain where there are too many.
    fn limit_generations(&mut self, out: &mut Vec<Action>) {
        let allowed = self.generations[&self.current].policy.max_generations as usize;
        let draining: Vec<_> = self.generations.keys().copied().filter(|id| self.only_drains(*id)).collect();
        for generation in draining.iter().copied().take(draining.len().saturating_sub(allowed)) {
            out.push(Action::Tell(Notice::GenerationCut(generation)));
            let of = |worker: &Worker| worker.generation == generation && !worker.is_killing();
            for id in self.workers.which(of) {
                self.kill_worker(id, out);
            }
        }
    }

    /// Whether all that is left of the generation are workers that finish. One that a failed upgrade left may still serve.
    fn only_drains(&self, generation: GenerationId) -> bool {
        let cohorts = self.workers.of(generation);
        !self.is_in_use(generation)
            && cohorts.iter().all(|cohort| cohort.live() == 0)
            && cohorts.iter().any(|cohort| !cohort.ending.is_empty())
    }

    /// Lets go of the generations of which nothing is left.
    fn forget_generations(&mut self, out: &mut Vec<Action>) {
        let is_empty = |of: GenerationId| self.workers.of(of).iter().all(|cohort| cohort.is_empty());
        let gone: Vec<_> = self
            .generations
            .keys()
            .copied()
            .filter(|generation| is_empty(*generation) && !self.is_in_use(*generation))
            .collect();
        for generation in gone {
            self.generations.remove(&generation);
            out.push(Action::Tell(Notice::GenerationGone(generation)));
            out.push(Action::Forget(generation));
        }
    }
}

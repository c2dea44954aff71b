//! The promises themselves: what each decision of the core must be justified by.

use std::collections::BTreeSet;

use liveswap::core::ids::{GenerationId, RequestId, SlotId, WorkerId};
use liveswap::core::notice::{DrainReason, Exit, Notice, Outcome, WorkerNotice};
use liveswap::core::sight::Sight;
use liveswap::core::spec::{Readiness, Strategy};
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Event, Wish};

use super::{Checker, Course, PATIENCE, Phase, STUCK_AFTER, Seen, Stage, Verdict, Want, ensure};

/// How often an upgrade makes good a worker that was killed from outside.
const SPARED: u32 = 3;

impl Checker {
    pub(super) fn check_notice(&mut self, now: Mono, notice: &Notice) -> Verdict {
        match notice {
            Notice::UpgradeBegan(to) => self.check_begun(now, *to, false)?,
            Notice::RollbackBegan(to, _) => self.check_begun(now, *to, true)?,
            Notice::Surging(to) => {
                self.go_on(*to, &[Phase::Checking], Phase::Surging)?;
                self.sockets_of = *to;
            }
            Notice::Probation(to, _) => {
                self.go_on(*to, &[Phase::Surging], Phase::Probation)?;
                self.check_alone(*to)?;
            }
            Notice::RollingBack(to, _) => {
                self.go_on(*to, &[Phase::Surging, Phase::Probation], Phase::RollingBack)?;
                // The old generation comes back at once.
                self.backoff.retain(|(generation, _), _| *generation != self.current);
            }
            Notice::UpgradeEnded(to, outcome) => self.check_outcome(*to, outcome)?,
            Notice::Serving(generation) => {
                ensure!(*generation == self.current && self.is_full(*generation), "it does not");
                ensure!(!self.served, "that is no news");
                self.served = true;
            }
            Notice::Woken(generation) | Notice::Asleep(generation) => {
                self.check_sleep(*generation, matches!(notice, Notice::Asleep(_)))?;
            }
            Notice::RespawnBegan(generation) => {
                ensure!(*generation == self.current && self.upgrade.is_none() && !self.respawning, "not now");
                self.rest();
                self.respawning = true;
                self.stale = std::mem::take(&mut self.stale_to_come);
                self.kills = std::mem::take(&mut self.kills_to_come);
                if self.kills {
                    // Fresh ones come at once.
                    self.backoff.retain(|(of, _), _| of != generation);
                }
                for (id, worker) in &mut self.workers {
                    worker.outdated |= worker.stage.is_live() && self.stale.contains(id);
                }
            }
            Notice::RespawnEnded(generation, result) => {
                ensure!(self.respawning, "there was none");
                if result.is_ok() {
                    self.check_alone(*generation)?;
                }
                self.respawning = false;
                if result.is_ok() {
                    self.kills = false;
                    self.stale.clear();
                }
                self.keep_one_a_slot();
            }
            Notice::Scaled(generation, strength) => {
                let asked_for = self.scaling.remove(generation);
                ensure!(asked_for == Some(*strength), "{asked_for:?} was asked for");
                self.generations.get_mut(generation).ok_or("no such generation")?.strength = *strength;
            }
            Notice::GenerationGone(generation) => ensure!(!self.has_workers(*generation), "it has workers"),
            Notice::GenerationCut(generation) => {
                ensure!(!self.is_in_use(*generation), "it is in use");
                let live = self.workers.values().any(|w| w.generation == *generation && w.stage.is_live());
                ensure!(!live, "it does not only drain");
                let older = self.generations.keys().find(|id| **id < *generation && self.only_drains(**id));
                ensure!(older.is_none(), "generation {older:?} drains for longer");
                self.cut = Some(*generation);
            }
            Notice::Backoff(generation, slot, pause) => {
                let policy = &self.release(*generation)?.policy;
                let (least, most) = (policy.restart_initial_delay, policy.restart_max_delay);
                ensure!(
                    (least..=most).contains(pause),
                    "a pause between {least:?} and {most:?} was asked for"
                );
                self.backoff.insert((*generation, *slot), now + *pause);
            }
            Notice::Stopping(_) | Notice::KillingAll(_) => ensure!(self.stop_by.is_some(), "nobody asked"),
            Notice::TakenOver(generation, left) => {
                let (current, live) = (self.current, self.live().count());
                ensure!((*generation, *left) == (current, live), "{current} serves with {live} workers");
            }
            Notice::Worker(..) => unreachable!("has a check of its own"),
        }
        Ok(())
    }

    fn check_begun(&mut self, now: Mono, to: GenerationId, goes_back: bool) -> Verdict {
        ensure!(self.upgrade.is_none(), "another is under way");
        ensure!(to == self.last_begun.next(), "a number was left out or used again");
        ensure!(self.stop_by.is_none(), "the service stops");
        self.last_begun = to;
        // A respawn that was just given up is put off, no more.
        self.stale_to_come.append(&mut self.stale);
        self.kills_to_come |= std::mem::take(&mut self.kills);
        let (phase, until) = (Phase::Checking, now + PATIENCE);
        let old_has_an_excuse = !self.is_full(self.current);
        self.upgrade = Some(Course {
            to,
            phase,
            until,
            old_has_an_excuse,
            has_failed: false,
            proven: false,
            made_room: None,
            spared: 0,
            given_over: BTreeSet::new(),
            goes_back,
            target: None,
        });
        self.rest();
        Ok(())
    }

    fn check_sleep(&mut self, generation: GenerationId, falls_asleep: bool) -> Verdict {
        let is_due = if falls_asleep { &mut self.is_to_sleep } else { &mut self.is_to_wake };
        ensure!(generation == self.current && std::mem::take(is_due), "not now");
        self.generations.get_mut(&generation).ok_or("no such generation")?.asleep = falls_asleep;
        if !falls_asleep {
            // It comes back beside whatever is under way.
            self.disturb();
            self.grant(PATIENCE / 2);
        }
        Ok(())
    }

    pub(super) fn check_worker_notice(
        &mut self,
        now: Mono,
        event: &Event,
        id: WorkerId,
        notice: &WorkerNotice,
    ) -> Verdict {
        match notice {
            WorkerNotice::Ready => self.check_ready(now, event, id),
            WorkerNotice::Draining(why) => self.check_drain(now, id, *why),
            WorkerNotice::Silent(time) => self.check_silence(now, id, *time),
            WorkerNotice::NotReady(..) => {
                let worker = self.present(id)?;
                ensure!(worker.stage == Stage::Starting, "it is not starting");
                ensure!(worker.deadline.is_some_and(|at| at <= now), "it has time left");
                Ok(())
            }
            WorkerNotice::WatchdogMissed => {
                let worker = self.present(id)?;
                ensure!(worker.stage == Stage::Ready, "it is not ready");
                ensure!(worker.deadline.is_some_and(|at| at <= now), "it has time left");
                Ok(())
            }
            WorkerNotice::WatchdogTriggered => {
                ensure!(*event == Event::Said(id, Word::WatchdogTrigger), "it did not");
                Ok(())
            }
            WorkerNotice::DrainTimedOut(time) => {
                let worker = self.present(id)?;
                ensure!(worker.deadline.is_some_and(|at| at <= now), "it has time left");
                ensure!(
                    worker.asked_at.map(|at| now - at) == Some(*time),
                    "it was asked at {:?}",
                    worker.asked_at
                );
                Ok(())
            }
            WorkerNotice::Unseen(_) => {
                ensure!(matches!(event, Event::Looked(of, Sight::Hidden(_)) if *of == id), "it was seen");
                Ok(())
            }
            WorkerNotice::Died(_) => {
                ensure!(self.ending.get(&id) == Some(&true), "it did not");
                Ok(())
            }
            WorkerNotice::Ended(_) => {
                ensure!(self.ending.get(&id) == Some(&false), "it did not");
                Ok(())
            }
            WorkerNotice::Stuck(_) => {
                let is_told = matches!(event, Event::DoesNotEnd(of, _) if *of == id);
                ensure!(is_told && self.present(id)?.stage == Stage::Stuck, "it is not");
                Ok(())
            }
            WorkerNotice::Spared => {
                let is_kill = matches!(event, Event::Exited(_, Exit::Signal(9, _)));
                ensure!(is_kill && self.ending.get(&id) == Some(&true), "it was not killed from outside");
                let upgrade = self.upgrade.as_mut().filter(|upgrade| upgrade.phase == Phase::Surging);
                let upgrade = upgrade.ok_or("nothing surges")?;
                upgrade.spared += 1;
                ensure!(upgrade.spared <= SPARED, "that is too often");
                upgrade.has_failed = false;
                Ok(())
            }
        }
    }

    pub(super) fn check_start(
        &mut self,
        now: Mono,
        id: WorkerId,
        generation: GenerationId,
        slot: SlotId,
    ) -> Verdict {
        ensure!(id == self.last_worker.next(), "a number was left out or used again");
        self.last_worker = id;
        ensure!(self.stop_by.is_none(), "the service stops");
        let phase = self.upgrade.as_ref().map(|upgrade| upgrade.phase);
        let may =
            generation == self.current && phase != Some(Phase::Probation) || generation == self.incoming();
        ensure!(may, "the generation is not to have a new worker");
        let release = self.release(generation)?;
        ensure!(slot.0 < release.wanted(), "there is no such slot");
        let (ready_timeout, watchdog) = (release.policy.ready_timeout, release.policy.watchdog);
        let twin =
            |w: &&Seen| w.generation == generation && w.slot == slot && w.stage.is_live() && !w.outdated;
        ensure!(!self.workers.values().any(|w| twin(&w)), "the slot is filled");
        let due = self.backoff.remove(&(generation, slot));
        ensure!(due.is_none_or(|at| at <= now), "its slot waits until {due:?}");
        let live = self.live().count() + 1;
        let most = (self.most_workers() + self.surge()) as usize;
        ensure!(live <= most, "{live} live workers, {most} allowed");
        if self.rules().strategy == Strategy::Recreate {
            let is_other = |w: &Seen| w.stage != Stage::Stuck && (w.generation != generation || w.outdated);
            let other = self.workers.values().any(is_other);
            ensure!(!other, "another release runs still");
        }
        let seen = Seen {
            generation,
            slot,
            stage: Stage::Starting,
            deadline: Some(now + ready_timeout),
            watchdog,
            executed: None,
            ready_since: None,
            silent_since: Some(now),
            outdated: false,
            asked_at: None,
            signalled: false,
            looked_at: false,
            was_looked_at: false,
            serves_since: None,
        };
        self.workers.insert(id, seen);
        Ok(())
    }

    pub(super) fn check_ready(&mut self, now: Mono, event: &Event, id: WorkerId) -> Verdict {
        let generation = self.present(id)?.generation;
        let readiness = self.release(generation)?.policy.readiness;
        let replaces = self.replaces(id);
        let worker = self.present(id)?;
        ensure!(worker.stage == Stage::Starting, "it is not starting");
        let is_so = match readiness {
            Readiness::Notify => *event == Event::Said(id, Word::Ready),
            Readiness::Settled(time) => {
                let was_seen = worker.serves_since == Some(now) || !replaces;
                was_seen && worker.executed.is_some_and(|at| at + time <= now)
            }
            Readiness::Accepting(time) => worker.serves_since.is_some_and(|at| at + time <= now),
            Readiness::Probe(_) => *event == Event::Probed(id, true),
        };
        ensure!(is_so, "it is not");
        worker.stage = Stage::Ready;
        worker.ready_since = Some(now);
        worker.deadline = worker.watchdog.map(|interval| now + interval);
        let slot = worker.slot;
        self.give_over(generation, slot);
        Ok(())
    }

    /// Promises 1 and 2.
    pub(super) fn check_drain(&mut self, now: Mono, id: WorkerId, why: DrainReason) -> Verdict {
        let worker = self.present(id)?;
        let (generation, slot, stage) = (worker.generation, worker.slot, worker.stage);
        ensure!(stage.is_live(), "it leaves already");
        let timeout = self.release(generation)?.policy.drain_timeout;
        match why {
            DrainReason::Replaced | DrainReason::RolledBack | DrainReason::ScaledDown | DrainReason::Idle => {
                let asleep = self.release(generation)?.asleep;
                ensure!((why == DrainReason::Idle) <= asleep, "the generation does not sleep");
                ensure!(!self.is_wanted(&self.workers[&id]), "it is one of those that are to be");
                let is_kept = self.phase_of(self.incoming()) == Some(Phase::Surging)
                    && generation == self.current
                    && slot.0 < self.generations[&generation].wanted();
                // A twin that a respawn left over may go at any time.
                if is_kept && why == DrainReason::Replaced && !self.workers[&id].outdated {
                    self.check_proof(slot)?;
                }
                if stage == Stage::Ready || is_kept {
                    self.check_leave(id, slot, stage == Stage::Ready)?;
                }
            }
            DrainReason::NotReady | DrainReason::ByItself => self.lost(generation),
            DrainReason::Unheard => {
                ensure!(self.is_unheard(id), "somebody has listened to it all the while");
                self.lost(generation);
            }
            DrainReason::Stop => ensure!(self.stop_by.is_some(), "nobody asked for an end"),
        }
        if let Some(upgrade) = self.upgrade.as_mut().filter(|_| why == DrainReason::Replaced) {
            upgrade.given_over.insert(slot);
        }
        let worker = self.present(id)?;
        worker.stage = Stage::Draining;
        worker.signalled = why == DrainReason::ByItself;
        (worker.asked_at, worker.deadline) = (Some(now), Some(now + timeout));
        Ok(())
    }

    /// Checks that the new workers have stayed ready for long enough before one of the old ones goes, unless it is the first, which
    /// makes room in its slot: what it has made in a slot that was scaled away since is none.
    fn check_proof(&mut self, slot: SlotId) -> Verdict {
        let (surge, strength) = (self.surge(), self.generations[&self.incoming()].wanted());
        if let Some(upgrade) = self.upgrade.as_mut().filter(|upgrade| !upgrade.proven) {
            let before = upgrade.made_room.replace(slot).filter(|before| before.0 < strength);
            let is_first = surge == 0 && before.is_none();
            ensure!(is_first, "the new workers have not been ready for long enough");
        }
        Ok(())
    }

    pub(super) fn check_leave(&self, id: WorkerId, slot: SlotId, is_ready: bool) -> Verdict {
        let incoming = self.incoming();
        let strength = self.generations[&incoming].wanted();
        let ready = self.ready_slots(incoming);
        let all = ready.len() == strength as usize;
        let replaced = match self.rules().strategy {
            Strategy::Recreate => true,
            Strategy::BlueGreen => all,
            Strategy::Rolling { .. } if slot.0 < strength => ready.contains(&slot),
            Strategy::Rolling { .. } => all,
        };
        let left = self.live().filter(|w| w.stage == Stage::Ready).count() - usize::from(is_ready);
        let floor = self.fewest_workers().saturating_sub(self.unavailable()) as usize;
        let worker = &self.workers[&id];
        let is_leftover = !self.is_in_use(worker.generation)
            || slot.0 >= self.generations[&worker.generation].wanted()
            || worker.outdated && !self.respawning;
        let surplus = is_leftover && left >= self.most_workers() as usize;
        let room = self.unavailable() > 0 && (left >= floor || !is_ready);
        ensure!(
            replaced || surplus || room,
            "its replacement is not ready, and {left} ready workers are left of {floor}"
        );
        ensure!(!self.undisturbed || left >= floor, "{left} ready workers are left of {floor}");
        Ok(())
    }

    pub(super) fn check_kill(&mut self, now: Mono, event: &Event, id: WorkerId) -> Verdict {
        let (cut, is_same_wish) = (self.cut, self.is_same_wish);
        let is_respawned = self.kills && self.respawning;
        if self.workers.get(&id).is_some_and(|worker| worker.stage.is_live()) {
            self.disturb();
        }
        let worker = self.present(id)?;
        ensure!(!matches!(worker.stage, Stage::Killing | Stage::Stuck), "it was sent SIGKILL before");
        let is_stop = matches!(event, Event::Stop | Event::Kill | Event::Asked(_, Wish::Kill));
        let is_stop = is_stop && !is_same_wish;
        let is_asked_for = is_stop || is_respawned && worker.outdated && worker.stage.is_live();
        if !is_asked_for {
            ensure!(!worker.stage.is_live(), "it is live, and nobody asked for it");
            let overdue = worker.deadline.is_some_and(|at| at <= now);
            ensure!(overdue || cut == Some(worker.generation), "it has time left");
        }
        worker.stage = Stage::Killing;
        worker.deadline = Some(now + STUCK_AFTER);
        Ok(())
    }

    /// Checks that a slot which is to have a worker has one, unless its pause is not over or there is no room for one more.
    ///
    /// While an upgrade surges that goes for the slots that the old generation still keeps: a worker of its own that dies
    /// there is started again. What a failed upgrade left may stand in for it.
    pub(super) fn check_started(&self, now: Mono) -> Verdict {
        let strategy = self.rules().strategy;
        if strategy == Strategy::Recreate
            || self.live().count() >= (self.most_workers() + self.surge()) as usize
        {
            return Ok(());
        }
        let surge = self.upgrade.as_ref().filter(|upgrade| upgrade.phase == Phase::Surging);
        let generation = if surge.is_some() { self.current } else { self.incoming() };
        let is_own = |w: &Seen| {
            let strength = self.generations.get(&w.generation).map_or(0, super::Release::wanted);
            self.is_in_use(w.generation) && !w.outdated && w.slot.0 < strength
        };
        if surge.is_some() && (self.unavailable() > 0 || !self.live().all(is_own)) {
            return Ok(());
        }
        for slot in (0..self.generations[&generation].wanted()).map(SlotId) {
            let is_due = self.backoff.get(&(generation, slot)).is_none_or(|at| *at <= now);
            let is_kept = surge.is_none_or(|upgrade| !upgrade.given_over.contains(&slot));
            let is_filled = self.live().any(|w| w.generation == generation && w.slot == slot && !w.outdated);
            ensure!(is_filled || !is_due || !is_kept, "slot {slot} of generation {generation} has no worker");
        }
        Ok(())
    }

    /// Promises 3 and 6.
    pub(super) fn check_outcome(&mut self, to: GenerationId, outcome: &Outcome) -> Verdict {
        let Some(course) = self.upgrade.take().filter(|course| course.to == to) else {
            return Err("no such upgrade is under way".into());
        };
        let is_given_up = course.phase != Phase::Checking || self.cancelled == Some(to);
        ensure!(is_given_up, "what was being prepared goes on");
        match (outcome, course.phase) {
            (Outcome::Committed, Phase::Surging | Phase::Probation) => {
                let release = self.release(to)?;
                let is_tried = release.is_tried_first() || release.policy.probation.is_zero();
                ensure!(is_tried || course.phase == Phase::Probation, "it was on no probation");
                ensure!(course.proven, "the new workers have not been ready for long enough");
                self.previous = Some(std::mem::replace(&mut self.current, to));
                self.generations.entry(to).and_modify(super::Release::settle_in);
                self.served = true;
                if !self.is_any_live(&self.stale_to_come) {
                    self.stale_to_come.clear();
                    self.kills_to_come = false;
                }
                self.check_alone(to)?;
            }
            (Outcome::RolledBack(_), Phase::RollingBack) => {
                let is_back = self.is_full(self.current);
                ensure!(is_back || course.old_has_an_excuse, "the old generation is not at full strength");
            }
            (Outcome::Refused(_), Phase::Checking) => {
                ensure!(!self.has_workers(to), "something was started");
            }
            (Outcome::Superseded(_), _) => ensure!(self.stop_by.is_some(), "by what?"),
            (_, phase) => return Err(format!("that cannot come out of {phase:?}")),
        }
        self.ended = Some((to, outcome.clone()));
        self.ended_target = course.target;
        Ok(())
    }

    pub(super) fn check_answer(&mut self, request: RequestId, outcome: &Outcome) -> Verdict {
        let asked = self.requests.get(&request).ok_or("nobody asked")?;
        ensure!(asked.answered.is_none(), "it was answered {:?} before", asked.answered);
        let (want, began) = (asked.want, self.last_begun > asked.after);
        let ended = self.ended.as_ref().map(|(_, outcome)| outcome);
        let is_true = match (want, outcome) {
            (Want::End, _) => *outcome == Outcome::Committed && self.all_are_stuck(),
            (Want::Target, Outcome::Superseded(_)) if self.stop_by.is_none() => {
                let has_begun = self.upgrade.as_ref().is_some_and(|course| course.target == Some(request));
                !has_begun && self.target_to_come.is_some_and(|newest| newest > request)
            }
            (_, Outcome::Superseded(_)) => self.stop_by.is_some(),
            (Want::Target, _) => ended == Some(outcome) && self.ended_target == Some(request),
            (Want::Upgrade, _) => began && ended == Some(outcome),
            (Want::ThatUpgrade, _) => ended == Some(outcome),
            (Want::NotThatUpgrade, Outcome::Committed) => {
                matches!(ended, Some(Outcome::RolledBack(_) | Outcome::Refused(_)))
            }
            (Want::NotThatUpgrade, Outcome::Refused(_)) => ended == Some(&Outcome::Committed),
            (Want::NotThatUpgrade, Outcome::RolledBack(_)) => false,
            (Want::Respawn, _) => !matches!(outcome, Outcome::Refused(_)),
            (Want::Possible, _) => *outcome == Outcome::Committed,
            (Want::Impossible, _) => matches!(outcome, Outcome::Refused(_)),
        };
        ensure!(is_true, "{want:?} was asked for, and what ended was {ended:?}");
        if want == Want::Respawn && matches!(outcome, Outcome::RolledBack(_)) {
            // It has failed, and is not put off.
            self.kills = false;
        }
        self.requests.entry(request).and_modify(|asked| asked.answered = Some(outcome.clone()));
        let is_replaced = *outcome != Outcome::Committed || !self.is_any_live(&self.requests[&request].stale);
        ensure!(is_replaced, "a worker of before serves");
        Ok(())
    }

    /// Checks that the generation is at full strength and nobody else is live.
    pub(super) fn check_alone(&self, generation: GenerationId) -> Verdict {
        ensure!(self.is_full(generation), "generation {generation} is not at full strength");
        let other = self.live().find(|w| w.generation != generation || w.outdated);
        ensure!(other.is_none(), "others were not told to drain: {other:?}");
        Ok(())
    }
}

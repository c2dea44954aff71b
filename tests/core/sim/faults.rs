//! What people ask for, and what goes wrong beside the workers themselves, at any moment.

use std::time::Duration;

use liveswap::core::ids::{GenerationId, WorkerId};
use liveswap::core::notice::Exit;
use liveswap::core::sight::Sight;
use liveswap::core::word::Word;
use liveswap::core::{Event, Scale, Wish};

use super::chance::Whose;
use super::checker::Verdict;
use super::world::{Coming, World};
use crate::story::secs;

impl World {
    /// Somebody asks for something, and perhaps for more later.
    pub(super) fn command(&mut self, number: u64) -> Verdict {
        self.plan_next(Coming::Command(number + 1));
        self.chance.turn_to(Whose::Command(number));
        if self.chance.one_in(6) {
            return self.wish();
        }
        let request = self.chance.one_in(2).then(|| self.request());
        match self.chance.below(48) {
            0..20 => self.handle(&Event::Upgrade(request)),
            20..27 => self.handle(&Event::Respawn(request)),
            27 => self.handle(&Event::SocketReplaced),
            28..36 => {
                let by = self.chance.pick(&[1, 1, -1, -1, -1, 3, -3]);
                if self.scaled + by > 4 {
                    return Ok(());
                }
                self.scaled += by;
                self.handle(&Event::Scale(by))
            }
            36 | 37 if self.plan.stops => self.handle(&Event::Stop),
            38 if self.plan.stops => self.handle(&Event::Kill),
            40..43 => self.handle(&Event::Connected),
            43..46 => self.handle(&Event::Idle),
            46 | 47 => {
                let time = self.chance.time(secs(100));
                self.later(time, Coming::Event(Event::Guests(false)));
                self.handle(&Event::Guests(true))
            }
            _ => self.handle(&Event::Tick),
        }
    }

    /// Somebody asks for what no signal says.
    fn wish(&mut self) -> Verdict {
        let request = self.request();
        let ends = if self.plan.stops { 16 } else { 14 };
        let wish = match self.chance.below(ends) {
            0..6 => Wish::Rollback,
            10..14 => Wish::UpgradeTo,
            6 | 7 => Wish::RespawnNow,
            8 => Wish::Scale(Scale::By(self.chance.pick(&[0, -1, -9, i32::MIN, i32::MAX]))),
            9 => Wish::Scale(Scale::To(self.chance.pick(&[1, 2, 3, 0, 4_097, u32::MAX]))),
            14 => Wish::Stop,
            _ => Wish::Kill,
        };
        self.handle(&Event::Asked(request, wish))
    }

    /// Something goes wrong beside the workers themselves, and perhaps more later.
    pub(super) fn mishap(&mut self, number: u64) -> Verdict {
        self.plan_next(Coming::Mishap(number + 1));
        self.chance.turn_to(Whose::Mishap(number));
        match self.chance.below(9) {
            0..3 => self.stray_event(),
            3 | 4 => {
                self.forge();
                Ok(())
            }
            5 => {
                let time = self.chance.time(secs(30));
                self.note(|| format!("NO PROCESS CAN BE MADE for {time:?}"));
                self.no_fork_until = self.now + time;
                Ok(())
            }
            6 => {
                self.massacre();
                Ok(())
            }
            7 => {
                self.reap_at_once();
                Ok(())
            }
            _ if self.chance.one_in(2) => self.kill_manager(),
            _ => {
                self.note(|| "THE MANAGER DIES after its next decision".into());
                self.dies_next = true;
                Ok(())
            }
        }
    }

    /// Writes down when the next of its kind comes, often together with something else, or that there is none.
    pub(super) fn plan_next(&mut self, coming: Coming) {
        let (whose, in_a_row) = match coming {
            Coming::Command(number) => (Whose::Command(number), 30),
            Coming::Mishap(number) => (Whose::Mishap(number), 5),
            Coming::Event(_) | Coming::Forged(..) | Coming::Feed(_) => unreachable!("nobody plans these"),
        };
        self.chance.turn_to(whose);
        if self.chance.below(in_a_row) > 0 {
            let most = self.chance.pick(&[Duration::ZERO, secs(1) / 10, secs(30), secs(300), secs(300)]);
            let time = self.chance.time(most);
            self.later(time, coming);
        }
    }

    /// The manager is killed, and after a while another takes over. What anybody says meanwhile is heard by nobody.
    pub(super) fn kill_manager(&mut self) -> Verdict {
        (self.dies_next, self.age) = (false, Duration::ZERO);
        if self.checker.has_exited() {
            return Ok(());
        }
        let most = self.chance.pick(&[Duration::ZERO, secs(1), secs(10), secs(300)]);
        let gap = self.chance.time(most);
        self.note(|| format!("THE MANAGER IS KILLED; another takes over after {gap:?}"));
        self.now = self.now + gap;
        self.checker.grant(gap);
        let later = self.coming.split_off(&(self.now, u64::MAX));
        for (key, coming) in std::mem::replace(&mut self.coming, later) {
            match coming {
                Coming::Event(Event::Exited(id, _) | Event::StartFailed(id, _)) => {
                    self.processes.remove(&id);
                }
                Coming::Event(_) | Coming::Forged(..) => {}
                Coming::Feed(_) | Coming::Command(_) | Coming::Mishap(_) => {
                    self.coming.insert((self.now, key.1), coming);
                }
            }
        }
        // Whoever checked, prepared or probed something did so for the manager that is no more.
        let is_of_manager = |coming: &Coming| {
            matches!(
                coming,
                Coming::Event(
                    Event::FileRead(..)
                        | Event::HookEnded(..)
                        | Event::Prepared(..)
                        | Event::PreparationFailed(..)
                        | Event::Probed(..)
                        | Event::Looked(..)
                )
            )
        };
        self.coming.retain(|_, coming| !is_of_manager(coming));
        let is_gone = |id: &WorkerId| !self.processes.contains_key(id);
        let gone = self.manager.workers().map(|(id, _)| id).filter(is_gone).collect();
        self.handle(&Event::TakenOver(gone))
    }

    /// Any worker that there ever was, or none that there is.
    fn anybody(&mut self) -> WorkerId {
        let newest = self.newest_worker.0;
        WorkerId(u64::from(self.chance.below(u32::try_from(newest).expect("there are few workers") + 2)))
    }

    /// An event about somebody who has gone or never was: a late or forged one, which must do nothing at all.
    fn stray_event(&mut self) -> Verdict {
        // What is due comes first: it may start the very worker that nobody is yet.
        self.handle(&Event::Tick)?;
        let event = if self.chance.one_in(2) { self.stray_check() } else { self.stray_of_worker() };
        let Some(event) = event else { return Ok(()) };
        let before = self.manager.clone();
        self.handle(&event)?;
        if self.manager == before { Ok(()) } else { Err("something stray did something".into()) }
    }

    fn stray_of_worker(&mut self) -> Option<Event> {
        let id = self.anybody();
        let event = match self.chance.below(9) {
            0 => Event::Said(id, Word::Ready),
            7 => Event::Looked(id, Sight::Serves),
            1 => Event::Said(id, Word::Stopping),
            2 => Event::Said(id, Word::WatchdogTrigger),
            3 => Event::Exited(id, Exit::Signal(9, "SIGKILL".into())),
            4 => Event::StartFailed(id, "fork: EAGAIN".into()),
            5 => Event::Probed(id, true),
            6 => Event::Executed(id),
            _ => Event::Said(id, Word::ExtendTimeout(secs(3600))),
        };
        (!self.processes.contains_key(&id)).then_some(event)
    }

    /// The end of a step of the checks of a generation before the newest: nobody waits for it any more.
    fn stray_check(&mut self) -> Option<Event> {
        let before = u32::try_from(self.newest_generation.0).expect("there are few") - 1;
        let id = GenerationId(before.checked_sub(self.chance.below(2))?.into());
        Some(match self.chance.below(4) {
            0 => Event::HookEnded(id, Ok(())),
            1 => Event::HookEnded(id, Err("exited with status 1".into())),
            2 => Event::FileRead(id, None),
            _ => Event::PreparationFailed(id, "address already in use".into()),
        })
    }

    /// Somebody who knows where says words in a worker's name, perhaps before its program even runs.
    fn forge(&mut self) {
        let id = self.anybody();
        for _ in 0..=self.chance.below(3) {
            let word = match self.chance.below(6) {
                0 => Word::Ready,
                1 => Word::Stopping,
                2 => Word::WatchdogTrigger,
                3 => Word::Drained,
                4 => Word::ExtendTimeout(self.chance.time(secs(30))),
                _ => Word::Reloading,
            };
            let time = self.chance.time(secs(1));
            self.later(time, Coming::Forged(id, word));
        }
    }

    /// Many processes end at one moment, in any order.
    fn massacre(&mut self) {
        let share = self.chance.pick(&[1, 2, 4]);
        let mut ids: Vec<_> = self.processes.keys().copied().collect();
        ids.retain(|_| share == 1 || self.chance.below(share) == 0);
        self.chance.shuffle(&mut ids);
        let is_foreign = self.chance.one_in(2);
        for id in ids {
            let exit = if is_foreign { Exit::Signal(9, "SIGKILL".into()) } else { Exit::Status(1) };
            self.later(Duration::ZERO, Coming::Event(Event::Exited(id, exit)));
        }
    }

    /// One SIGCHLD stands for many: all that was to end soon has ended, and is reaped together, in any order.
    fn reap_at_once(&mut self) {
        let most = self.chance.pick(&[secs(1), secs(10), secs(60)]);
        let until = self.now + self.chance.time(most);
        let is_end = |coming: &Coming| matches!(coming, Coming::Event(Event::Exited(..)));
        let ends = self.coming.range(..=(until, u64::MAX)).filter(|(_, coming)| is_end(coming));
        let keys: Vec<_> = ends.map(|(key, _)| *key).collect();
        let mut ends: Vec<_> = keys.iter().filter_map(|key| self.coming.remove(key)).collect();
        self.chance.shuffle(&mut ends);
        for end in ends {
            self.later(Duration::ZERO, end);
        }
    }
}

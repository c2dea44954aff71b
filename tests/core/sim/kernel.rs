//! The fake kernel: what the core decides is done here, and what comes of it is written down to happen.

use std::time::Duration;

use liveswap::core::ids::{GenerationId, WorkerId};
use liveswap::core::notice::Exit;
use liveswap::core::sight::{Lack, Sight};
use liveswap::core::spec::{Code, Policy, Readiness};
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Action, Event};

use super::chance::Whose;
use super::checker::KILL_TAKES;
use super::release::{Fate, Release, policy};
use super::world::{Coming, World};
use crate::story::secs;

/// The most that the kernel itself takes for anything.
const SOON: Duration = Duration::from_millis(3);

/// A process of the fake kernel.
pub struct Process {
    fate: Fate,
    policy: Policy,
    boots_at: Mono,
    pub feeds_every: Option<Duration>,
    /// Chatters, and does not heed its drain signal in good order.
    is_odd: bool,
    /// No look tells anything of it.
    is_hidden: bool,
}

impl World {
    pub(super) fn perform(&mut self, action: &Action) {
        match *action {
            Action::ReadFile(id, _)
            | Action::RunHook(id)
            | Action::Prepare(id)
            | Action::Reuse(id, _)
            | Action::CancelPreparation(id) => self.chance.turn_to(Whose::Generation(id.0)),
            Action::Start { worker: id, .. }
            | Action::Probe(id)
            | Action::Look(id, _)
            | Action::Drain(id)
            | Action::Abort(id)
            | Action::Kill(id)
            | Action::Examine(id) => self.chance.turn_to(Whose::Worker(id.0)),
            _ => {}
        }
        match *action {
            Action::ReadFile(id, target) => {
                self.target = target;
                self.read_file(id);
            }
            Action::RunHook(id) => {
                let result = if self.fails(6) { Err("exited with status 1".into()) } else { Ok(()) };
                self.answer_check(Event::HookEnded(id, result));
            }
            Action::Prepare(id) => self.prepare(id),
            Action::Reuse(id, earlier) => self.reuse(id, earlier),
            Action::CancelPreparation(id) => self.cancel(id),
            Action::Start { worker, generation, .. } => self.start(worker, generation),
            Action::Probe(id) => self.probe(id),
            Action::Look(id, beside) => self.look(id, beside.is_some()),
            Action::Drain(id) => self.drain(id),
            Action::Abort(id) => {
                if !self.fails(4) {
                    self.soon(Event::Exited(id, Exit::Signal(6, "SIGABRT".into())));
                }
            }
            Action::Kill(id) if self.fails(10) => {
                // It sleeps in the kernel, for a while or for ever.
                self.checker.kill_is_slow();
                if self.chance.one_in(2) {
                    let time = self.chance.time(secs(20));
                    self.later(time, Coming::Event(Event::Exited(id, Exit::Signal(9, "SIGKILL".into()))));
                }
            }
            Action::Examine(id) => self.soon(Event::DoesNotEnd(id, "process 4711 does not end".into())),
            Action::Kill(id) => {
                let time = self.chance.time(KILL_TAKES);
                self.later(time, Coming::Event(Event::Exited(id, Exit::Signal(9, "SIGKILL".into()))));
            }
            // Its release is kept, as somebody may want to go back to it.
            Action::Forget(_)
            | Action::RestoreSockets(_)
            | Action::TellHook(..)
            | Action::Answer(..)
            | Action::Exit => {}
            Action::Tell(ref notice) => self.disk.record(notice, &self.manager),
        }
    }

    fn read_file(&mut self, id: GenerationId) {
        self.newest_generation = id;
        if self.fails(8) {
            self.answer_check(Event::PreparationFailed(id, "web.toml:3:11: unknown key".into()));
        } else {
            let hook = self.chance.one_in(4).then(|| self.chance.pick(&[secs(1), secs(60)]));
            self.answer_check(Event::FileRead(id, hook));
        }
    }

    fn prepare(&mut self, id: GenerationId) {
        if self.fails(8) {
            self.answer_check(Event::PreparationFailed(id, "address already in use".into()));
            return;
        }
        let release =
            if self.faults && !self.plan.is_calm { Release::any(&mut self.chance) } else { Release::Good };
        let policy = match self.releases.get(&self.manager.current()) {
            Some((_, policy)) if !self.chance.one_in(2) => policy.clone(),
            _ => policy(&mut self.chance),
        };
        self.note(|| format!("generation {id} is {release:?}: {policy:?}"));
        self.releases.insert(id, (release, policy.clone()));
        self.disk.prepare(id, self.target.is_some());
        let code = self.chance.pick(&[Code::Elsewhere, Code::InPlace]);
        self.answer_check(Event::Prepared(id, policy, code));
    }

    fn reuse(&mut self, id: GenerationId, earlier: GenerationId) {
        self.newest_generation = id;
        if self.fails(8) {
            self.answer_check(Event::PreparationFailed(id, "address already in use".into()));
            return;
        }
        self.disk.reuse(id, earlier);
        let release = self.releases[&earlier].clone();
        self.note(|| format!("generation {id} is what generation {earlier} was"));
        let code = self.chance.pick(&[Code::Elsewhere, Code::InPlace]);
        self.answer_check(Event::Prepared(id, release.1.clone(), code));
        self.releases.insert(id, release);
    }

    /// A step of the checks ends soon, or late, or never.
    fn answer_check(&mut self, event: Event) {
        if self.fails(12) {
            return;
        }
        let most = if self.fails(6) { secs(90) } else { secs(1) / 2 };
        let time = self.chance.time(most);
        self.later(time, Coming::Event(event));
    }

    /// What was under way ends without an event, unless that event is already on its way.
    fn cancel(&mut self, id: GenerationId) {
        let race = self.faults && self.chance.one_in(3);
        let of = |event: &Event| match event {
            Event::FileRead(of, _)
            | Event::HookEnded(of, _)
            | Event::Prepared(of, ..)
            | Event::PreparationFailed(of, _) => *of == id,
            _ => false,
        };
        if !race {
            self.coming.retain(|_, coming| !matches!(coming, Coming::Event(event) if of(event)));
        }
    }

    fn start(&mut self, id: WorkerId, generation: GenerationId) {
        let (release, policy) = self.releases[&generation].clone();
        let recovers = !self.faults && self.plan.all_recover;
        let fate = match release {
            _ if recovers => Fate::Good,
            _ if self.faults && self.now < self.no_fork_until => Fate::NotForked,
            release => release.fate(&mut self.chance),
        };
        let is_odd = self.fails(3) || release != Release::Good && self.fails(2);
        let boot = self.chance.time(policy.ready_timeout / 3);
        let exec = self.chance.time(SOON);
        let is_hidden = self.fails(8);
        let boots_at = self.now + boot;
        let mut process = Process { fate, boots_at, feeds_every: None, is_odd, is_hidden, policy };
        match fate {
            Fate::NotForked => self.after(exec, Event::StartFailed(id, "fork: EAGAIN".into())),
            Fate::NotExecuted => {
                self.after(exec, Event::Exited(id, Exit::NotExecuted("execve: ENOENT".into())));
            }
            _ => {
                self.after(exec, Event::Executed(id));
                process.feeds_every = process.policy.watchdog.map(|interval| interval / 2);
                self.run(id, &mut process, exec, boot.max(exec));
            }
        }
        if process.feeds_every.is_some() {
            self.later(exec, Coming::Feed(id));
        }
        self.processes.insert(id, process);
        self.newest_worker = id;
    }

    /// Writes down what a worker that is executed is going to do.
    fn run(&mut self, id: WorkerId, process: &mut Process, exec: Duration, boot: Duration) {
        let limit = process.policy.ready_timeout;
        let lives = boot + self.chance.time(secs(200));
        if process.is_odd {
            self.chatter(id, exec, lives, process);
        }
        let exits = |status| Event::Exited(id, Exit::Status(status));
        match process.fate {
            Fate::NotForked | Fate::NotExecuted => {}
            Fate::Good => self.after(boot, Event::Said(id, Word::Ready)),
            Fate::NeverReady => process.boots_at = Mono::NEVER,
            Fate::SlowButAsks => {
                process.boots_at = self.now + limit * 2;
                self.after(limit / 2, Event::Said(id, Word::ExtendTimeout(limit * 2)));
                self.after(limit * 2, Event::Said(id, Word::Ready));
            }
            Fate::DiesBooting => {
                process.boots_at = Mono::NEVER;
                let time = exec + self.chance.time(limit * 2);
                self.after(time, exits(1));
            }
            Fate::DiesReady => {
                self.after(boot, Event::Said(id, Word::Ready));
                self.after(lives, exits(3));
            }
            Fate::Leaves => {
                self.after(boot, Event::Said(id, Word::Ready));
                self.after(lives, Event::Said(id, Word::Stopping));
                if self.chance.one_in(2) {
                    self.after(lives + SOON, exits(0));
                }
            }
            Fate::Hangs => {
                self.after(boot, Event::Said(id, Word::Ready));
                process.feeds_every = None;
            }
            Fate::Triggers => {
                self.after(boot, Event::Said(id, Word::Ready));
                let time = exec + self.chance.time(lives);
                self.after(time, Event::Said(id, Word::WatchdogTrigger));
            }
            Fate::KilledFromOutside => {
                let time = exec + self.chance.time(lives);
                self.after(boot, Event::Said(id, Word::Ready));
                self.after(time, Event::Exited(id, Exit::Signal(9, "SIGKILL".into())));
            }
        }
    }

    /// Words that mean little, and some that mean something at the wrong moment.
    fn chatter(&mut self, id: WorkerId, exec: Duration, lives: Duration, process: &mut Process) {
        for _ in 0..self.chance.below(6) {
            let word = match self.chance.below(9) {
                0 => Word::Reloading,
                1 => Word::status("busy"),
                2 => Word::Errno(13),
                3 => Word::ExitStatus(1),
                4 => Word::Connections(self.chance.below(100).into()),
                5 => Word::Watchdog,
                6 => Word::Drained,
                7 => Word::ExtendTimeout(self.chance.time(secs(30))),
                _ => {
                    let interval = self.chance.pick(&[Duration::ZERO, secs(5), secs(20)]);
                    // It feeds as the shortest of its intervals needs, for it does not know which comes when.
                    process.feeds_every = Some(process.feeds_every.unwrap_or(secs(2)).min(secs(2)));
                    Word::WatchdogInterval(interval)
                }
            };
            let time = exec + self.chance.time(lives);
            self.after(time, Event::Said(id, word));
        }
    }

    fn probe(&mut self, id: WorkerId) {
        let Some(process) = self.processes.get(&id) else { return };
        let (passes, pause) = match process.policy.readiness {
            Readiness::Probe(pause) => (process.boots_at <= self.now, pause),
            Readiness::Notify | Readiness::Settled(_) | Readiness::Accepting(_) => {
                unreachable!("nobody probes such a worker")
            }
        };
        if process.is_odd && self.fails(6) {
            return;
        }
        let time = self.chance.time(pause);
        self.after(time, Event::Probed(id, passes));
    }

    /// Looks at the processes of a worker, and at those of the one beside it that it replaces.
    fn look(&mut self, id: WorkerId, is_beside: bool) {
        let Some(process) = self.processes.get(&id) else { return };
        let lack = if is_beside { Lack::Listening("127.0.0.1:80".into()) } else { Lack::Waiting };
        let sight = match process {
            Process { is_hidden: true, .. } => Sight::Hidden("it is not dumpable".into()),
            Process { boots_at, .. } if *boots_at <= self.now => Sight::Serves,
            Process { .. } => Sight::NotYet(lack),
        };
        if process.is_odd && self.fails(6) {
            return;
        }
        self.soon(Event::Looked(id, sight));
    }

    fn drain(&mut self, id: WorkerId) {
        let Some(process) = self.processes.get(&id) else { return };
        let (is_odd, limit) = (process.is_odd, process.policy.drain_timeout);
        let time = self.chance.time(limit / 2);
        if self.fails(20) {
            // It became another user, and nothing reaches it.
            self.soon(Event::DoesNotEnd(id, "process 4711 may not be signalled".into()));
        }
        if !is_odd {
            self.after(time, Event::Exited(id, Exit::Status(0)));
            return;
        }
        for _ in 0..self.chance.below(4) {
            let word = match self.chance.below(6) {
                0 => Word::Ready,
                1 => Word::Stopping,
                2 => Word::WatchdogTrigger,
                3 => Word::Drained,
                4 => Word::Connections(self.chance.below(9).into()),
                _ => Word::ExtendTimeout(self.chance.time(limit) + SOON),
            };
            let time = self.chance.time(limit);
            self.after(time, Event::Said(id, word));
        }
        match self.chance.below(3) {
            // It does not heed the signal.
            0 => {}
            1 => self.after(time, Event::Exited(id, Exit::Status(143))),
            _ => self.after(time, Event::Exited(id, Exit::Signal(15, "SIGTERM".into()))),
        }
    }

    fn soon(&mut self, event: Event) {
        let time = self.chance.time(SOON);
        self.after(time, event);
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.later(time, Coming::Event(event));
    }
}

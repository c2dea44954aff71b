//! A fake kernel with virtual time, and everything that can go wrong in one.

use std::collections::BTreeMap;
use std::time::Duration;

use liveswap::core::ids::{GenerationId, RequestId, WorkerId};
use liveswap::core::notice::{Exit, Outcome};
use liveswap::core::spec::{Policy, Readiness};
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Action, Event, Manager, Scale, Wish};

use super::chance::Chance;
use super::checker::{Checker, KILL_TAKES, PATIENCE, Verdict};
use super::release::{Fate, Release, policy};
use crate::story::secs;

/// The most that the kernel itself takes for anything.
const SOON: Duration = Duration::from_millis(3);

/// More events than this after the faults have stopped are a core that spins.
const MANY_EVENTS: u64 = 100_000;

/// Something that is going to happen.
enum Coming {
    Event(Event),
    /// A worker feeds its watchdog, and will again.
    Feed(WorkerId),
    /// Somebody asks for something, and will again while the faults last.
    Command,
}

/// A process of the fake kernel.
struct Process {
    fate: Fate,
    policy: Policy,
    boots_at: Mono,
    feeds_every: Option<Duration>,
    /// Chatters, and does not heed its drain signal in good order.
    is_odd: bool,
}

/// What a seed is about.
struct Plan {
    /// There is no fault of any worker: then the limits hold to the letter.
    is_calm: bool,
    /// A stop may come at any moment.
    stops: bool,
    /// Once the faults stop, workers of every release are good; otherwise those of new ones.
    all_recover: bool,
}

pub struct World {
    chance: Chance,
    now: Mono,
    /// The latest moment that the core has heard of.
    latest: Mono,
    manager: Manager,
    checker: Checker,
    coming: BTreeMap<(Mono, u64), Coming>,
    order: u64,
    processes: BTreeMap<WorkerId, Process>,
    releases: BTreeMap<GenerationId, (Release, Policy)>,
    /// Faults happen still.
    faults: bool,
    plan: Plan,
    scaled: i32,
    requests: u64,
    pub events: u64,
    /// What happened, in words; kept where somebody is going to read it.
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let plan = Plan { is_calm: chance.one_in(5), stops: chance.one_in(4), all_recover: chance.one_in(2) };
        let release =
            if plan.is_calm || chance.one_in(2) { Release::Good } else { Release::any(&mut chance) };
        let policy = policy(&mut chance);
        let mut world = Self {
            now: Mono::ZERO,
            latest: Mono::ZERO,
            manager: Manager::new(policy.clone()),
            checker: Checker::new(policy.clone()),
            coming: BTreeMap::new(),
            order: 0,
            processes: BTreeMap::new(),
            releases: BTreeMap::new(),
            faults: true,
            plan,
            scaled: 0,
            requests: 0,
            events: 0,
            trace: traced.then(Vec::new),
            chance,
        };
        world.note(|| format!("generation 1 is {release:?}: {policy:?}"));
        world.releases.insert(GenerationId(1), (release, policy));
        world
    }

    /// Lives through the whole seed: a time of faults, a time without, and the end.
    pub fn live(&mut self) -> Verdict {
        self.handle(&Event::Tick)?;
        let next = self.chance.time(secs(60));
        self.later(next, Coming::Command);
        let length = self.chance.pick(&[15, 40, 80, 200]);
        while self.events < length && !self.checker.has_exited() {
            self.step()?;
        }
        self.faults = false;
        if !self.manager.is_stopping() {
            self.converge()?;
            let end = if self.chance.one_in(8) { Event::Kill } else { Event::Stop };
            self.handle(&end)?;
        }
        while !self.checker.has_exited() {
            self.step()?;
        }
        for event in [Event::Stop, Event::Tick, Event::Scale(1), Event::Kill] {
            self.handle(&event)?;
        }
        let request = self.request();
        self.handle(&Event::Upgrade(Some(request)))?;
        self.checker.check_answers()
    }

    /// The faults have stopped: one more upgrade, or none, and all must be well in bounded time.
    fn converge(&mut self) -> Verdict {
        let all_recover = self.plan.all_recover;
        self.note(|| {
            format!("THE FAULTS STOP; {}", if all_recover { "all recover" } else { "new releases are good" })
        });
        let last = if self.plan.all_recover && self.chance.one_in(2) {
            None
        } else {
            let request = self.request();
            self.handle(&Event::Upgrade(Some(request)))?;
            Some(request)
        };
        let (until, most) = (self.now + 2 * PATIENCE, self.events + MANY_EVENTS);
        while self.now < until && self.check_well().is_err() && self.step()? {
            if self.events > most {
                return Err(format!("it is still busy after {MANY_EVENTS} events"));
            }
        }
        self.check_well()?;
        let outcome = last.map(|request| self.checker.answer(request));
        if outcome.is_some_and(|outcome| outcome != Some(&Outcome::Committed)) {
            return Err(format!("the last upgrade, to a good release, was {outcome:?}"));
        }
        Ok(())
    }

    /// Checks that all is well, and that nothing wakes the manager but a watchdog.
    fn check_well(&self) -> Verdict {
        self.checker.check_converged()?;
        let feeds = self.processes.values().any(|process| process.feeds_every.is_some());
        match self.manager.next_deadline() {
            Some(at) if !feeds => Err(format!("it wakes at idle: {at:?}")),
            Some(_) | None => Ok(()),
        }
    }

    /// Lets the next thing happen; `false` where there is none.
    fn step(&mut self) -> Result<bool, String> {
        if self.faults && !self.plan.is_calm && self.chance.one_in(300) {
            let jump = self.chance.time(secs(900));
            self.note(|| format!("THE CLOCK JUMPS by {jump:?}"));
            self.now = self.now + jump;
            self.checker.clock_jumped(jump);
        }
        let coming = self.coming.first_key_value().map(|((at, _), _)| *at);
        let due = match (coming, self.manager.next_deadline()) {
            (None, None) => return Ok(false),
            (Some(at), None) => (at, true),
            (None, Some(at)) => (at, false),
            (Some(at), Some(deadline)) => {
                // At the same moment, or with the clock beyond both, either may be first.
                let tie = at.max(self.now) == deadline.max(self.now);
                (at.min(deadline), if tie { self.chance.one_in(2) } else { at < deadline })
            }
        };
        self.now = self.now.max(due.0);
        if due.1
            && let Some((_, coming)) = self.coming.pop_first()
        {
            self.happen(coming)?;
        } else {
            self.handle(&Event::Tick)?;
        }
        Ok(true)
    }

    fn happen(&mut self, coming: Coming) -> Verdict {
        match coming {
            Coming::Event(event) => match &event {
                Event::Executed(id) | Event::Said(id, _) if !self.processes.contains_key(id) => Ok(()),
                Event::Exited(id, _) | Event::StartFailed(id, _) => {
                    // Whoever ends first ends.
                    if self.processes.remove(id).is_some() { self.handle(&event) } else { Ok(()) }
                }
                _ => self.handle(&event),
            },
            Coming::Feed(id) => {
                let Some(Process { feeds_every: Some(every), .. }) = self.processes.get(&id) else {
                    return Ok(());
                };
                let every = *every;
                self.later(every, Coming::Feed(id));
                self.handle(&Event::Said(id, Word::Watchdog))
            }
            Coming::Command => self.command(),
        }
    }

    /// Hands an event in and performs what follows.
    fn handle(&mut self, event: &Event) -> Verdict {
        self.events += 1;
        // Who brings an event may have looked at the clock a while ago.
        let late = self.faults && *event != Event::Tick && self.chance.one_in(32);
        let age = if late { self.chance.time(secs(10)) } else { Duration::ZERO };
        let read = Mono(0) + self.now.since(Mono(0) + age);
        self.latest = self.latest.max(read);
        let mut actions = Vec::new();
        self.manager.handle(read, event.clone(), &mut actions);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>7}.{:06} {event:?}", self.now.0 / 1_000_000, self.now.0 % 1_000_000));
            trace.extend(actions.iter().map(|action| format!("{:18}{}", "", in_words(action))));
        }
        self.checker.observe(self.latest, event, &actions, &self.manager)?;
        self.checker.grant(age);
        if self.chance.one_in(16) {
            self.check_quiet()?;
        }
        if self.chance.one_in(200) {
            self.travel()?;
        }
        for action in &actions {
            self.perform(action);
        }
        Ok(())
    }

    /// Checks that everything was decided at once: a moment later there is nothing to do, nor to tell.
    fn check_quiet(&mut self) -> Verdict {
        let mut actions = Vec::new();
        self.manager.handle(self.latest, Event::Tick, &mut actions);
        if actions.is_empty() { Ok(()) } else { Err(format!("this came a Tick late: {actions:?}")) }
    }

    /// Lets the state travel, as through the manager's re-exec, and goes on with what arrives.
    fn travel(&mut self) -> Verdict {
        let text = serde_json::to_string(&self.manager).map_err(|error| error.to_string())?;
        let arrived: Manager = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if arrived != self.manager {
            return Err("the state did not survive its journey".into());
        }
        self.manager = arrived;
        let _ = (self.manager.status(), self.manager.busy_until());
        Ok(())
    }

    fn perform(&mut self, action: &Action) {
        match *action {
            Action::ReadFile(id) => self.read_file(id),
            Action::RunHook(id) => {
                let result = if self.fails(6) { Err("exited with status 1".into()) } else { Ok(()) };
                self.answer_check(Event::HookEnded(id, result));
            }
            Action::Prepare(id) => self.prepare(id),
            Action::Reuse(id, earlier) => self.reuse(id, earlier),
            Action::CancelPreparation(id) => self.cancel(id),
            Action::Start { worker, generation, .. } => self.start(worker, generation),
            Action::Probe(id) => self.probe(id),
            Action::Drain(id) => self.drain(id),
            Action::Abort(id) => {
                if !self.fails(4) {
                    self.soon(Event::Exited(id, Exit::Signal(6, "SIGABRT".into())));
                }
            }
            Action::Kill(id) => {
                let time = self.chance.time(KILL_TAKES);
                self.later(time, Coming::Event(Event::Exited(id, Exit::Signal(9, "SIGKILL".into()))));
            }
            // Its release is kept, as somebody may want to go back to it.
            Action::Forget(_)
            | Action::RestoreSockets(_)
            | Action::TellHook(..)
            | Action::Answer(..)
            | Action::Tell(_)
            | Action::Exit => {}
        }
    }

    fn read_file(&mut self, id: GenerationId) {
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
            Some((_, policy)) if self.chance.one_in(2) => policy.clone(),
            _ => policy(&mut self.chance),
        };
        self.note(|| format!("generation {id} is {release:?}: {policy:?}"));
        self.releases.insert(id, (release, policy.clone()));
        self.answer_check(Event::Prepared(id, policy));
    }

    fn reuse(&mut self, id: GenerationId, earlier: GenerationId) {
        if self.fails(8) {
            self.answer_check(Event::PreparationFailed(id, "address already in use".into()));
            return;
        }
        let release = self.releases[&earlier].clone();
        self.answer_check(Event::Prepared(id, release.1.clone()));
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
            | Event::Prepared(of, _)
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
        let fate = if recovers { Fate::Good } else { release.fate(&mut self.chance) };
        let is_odd = self.fails(3) || release != Release::Good && self.fails(2);
        let boot = self.chance.time(policy.ready_timeout / 3);
        let exec = self.chance.time(SOON);
        let mut process = Process { fate, boots_at: self.now + boot, feeds_every: None, is_odd, policy };
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
            Readiness::Notify | Readiness::Settled(_) => unreachable!("nobody probes such a worker"),
        };
        if process.is_odd && self.fails(6) {
            return;
        }
        let time = self.chance.time(pause);
        self.after(time, Event::Probed(id, passes));
    }

    fn drain(&mut self, id: WorkerId) {
        let Some(process) = self.processes.get(&id) else { return };
        let (is_odd, limit) = (process.is_odd, process.policy.drain_timeout);
        let time = self.chance.time(limit / 2);
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

    fn command(&mut self) -> Verdict {
        if !self.faults {
            return Ok(());
        }
        let most = self.chance.pick(&[secs(1) / 10, secs(30), secs(300)]);
        let next = self.chance.time(most);
        self.later(next, Coming::Command);
        let request = self.chance.one_in(2).then(|| self.request());
        if self.chance.one_in(6) {
            return self.wish();
        }
        match self.chance.below(40) {
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
            _ => self.handle(&Event::Tick),
        }
    }

    /// Somebody asks for what no signal says.
    fn wish(&mut self) -> Verdict {
        let request = self.request();
        let ends = if self.plan.stops { 12 } else { 10 };
        let wish = match self.chance.below(ends) {
            0..6 => Wish::Rollback,
            6..8 => Wish::RespawnNow,
            8 => Wish::Scale(Scale::By(self.chance.pick(&[-9, -1, 0, i32::MIN, i32::MAX]))),
            9 => Wish::Scale(Scale::To(self.chance.pick(&[0, 1, 2, 3, u32::MAX]))),
            10 => Wish::Stop,
            _ => Wish::Kill,
        };
        self.handle(&Event::Asked(request, wish))
    }

    /// The whole state of the core, in its own words.
    pub fn state(&self) -> String {
        serde_json::to_string(&self.manager).unwrap_or_else(|error| error.to_string())
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Whether something goes wrong now, once in so many times.
    fn fails(&mut self, in_times: u32) -> bool {
        self.faults && !self.plan.is_calm && self.chance.one_in(in_times)
    }

    fn soon(&mut self, event: Event) {
        let time = self.chance.time(SOON);
        self.after(time, event);
    }

    fn after(&mut self, time: Duration, event: Event) {
        self.later(time, Coming::Event(event));
    }

    fn later(&mut self, time: Duration, coming: Coming) {
        self.order += 1;
        self.coming.insert((self.now + time, self.order), coming);
    }

    fn note(&mut self, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(words());
        }
    }
}

fn in_words(action: &Action) -> String {
    match action {
        Action::Tell(notice) => format!("“{notice}”"),
        _ => format!("{action:?}"),
    }
}

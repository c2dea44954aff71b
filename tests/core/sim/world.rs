//! A world of virtual time round the core: things come to happen, the core hears of them, and the checker looks on.

use std::collections::BTreeMap;
use std::time::Duration;

use liveswap::core::ids::{GenerationId, RequestId, WorkerId};
use liveswap::core::notice::Outcome;
use liveswap::core::spec::Policy;
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Action, Event, Manager, Scale, Wish};

use super::chance::{Chance, Whose};
use super::checker::{Checker, PATIENCE, Verdict};
use super::kernel::Process;
use super::release::{Release, policy};
use super::restart::Disk;
use crate::story::secs;

/// More events than this after the faults have stopped are a core that spins: six workers of a broken release, probed every 12 ms,
/// make 100,000 in ten minutes.
const MANY_EVENTS: u64 = 300_000;

/// Something that is going to happen.
pub enum Coming {
    Event(Event),
    /// Somebody who knows where says a word in a worker's name.
    Forged(WorkerId, Word),
    /// A worker feeds its watchdog, and will again.
    Feed(WorkerId),
    /// Somebody asks for something, for the so manieth time.
    Command(u64),
    /// Something goes wrong beside the workers, for the so manieth time.
    Mishap(u64),
}

/// What a run is about.
pub struct Plan {
    /// There is no fault of any worker: then the limits hold to the letter.
    pub is_calm: bool,
    /// A stop may come at any moment.
    pub stops: bool,
    /// Once the faults stop, workers of every release are good; otherwise those of new ones.
    pub all_recover: bool,
}

impl Plan {
    fn new(chance: &mut Chance) -> Self {
        Self { is_calm: chance.one_in(5), stops: chance.one_in(4), all_recover: !chance.one_in(2) }
    }
}

pub struct World {
    pub chance: Chance,
    pub now: Mono,
    /// The latest moment that the core has heard of.
    latest: Mono,
    /// How long ago whoever brings the next event looked at the clock.
    pub age: Duration,
    pub manager: Manager,
    pub checker: Checker,
    pub coming: BTreeMap<(Mono, u64), Coming>,
    order: u64,
    /// The manager is woken late, and sees it.
    oversleeps: bool,
    pub processes: BTreeMap<WorkerId, Process>,
    pub newest_worker: WorkerId,
    pub newest_generation: GenerationId,
    pub releases: BTreeMap<GenerationId, (Release, Policy)>,
    pub disk: Disk,
    /// The request whose target the preparation under way is about.
    pub target: Option<RequestId>,
    /// Faults happen still.
    pub faults: bool,
    pub plan: Plan,
    pub no_fork_until: Mono,
    /// The manager is killed after it has decided once more, and before it has done all of that.
    pub dies_next: bool,
    pub scaled: i32,
    requests: u64,
    steps: u64,
    pub events: u64,
    /// What happened, in words; kept where somebody is going to read it.
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(mut chance: Chance, is_traced: bool) -> Self {
        let plan = Plan::new(&mut chance);
        let release =
            if plan.is_calm || !chance.one_in(2) { Release::Good } else { Release::any(&mut chance) };
        let policy = policy(&mut chance);
        let mut world = Self {
            now: Mono::ZERO,
            latest: Mono::ZERO,
            age: Duration::ZERO,
            manager: Manager::new(policy.clone()),
            checker: Checker::new(policy.clone()),
            coming: BTreeMap::new(),
            order: 0,
            oversleeps: false,
            processes: BTreeMap::new(),
            newest_worker: WorkerId(0),
            newest_generation: GenerationId(1),
            releases: BTreeMap::new(),
            disk: Disk::new(),
            target: None,
            faults: true,
            plan,
            no_fork_until: Mono::ZERO,
            dies_next: false,
            scaled: 0,
            requests: 0,
            steps: 0,
            events: 0,
            trace: is_traced.then(Vec::new),
            chance,
        };
        world.note(|| format!("generation 1 is {release:?}: {policy:?}"));
        world.releases.insert(GenerationId(1), (release, policy));
        world
    }

    /// Lives through the whole run: a time of faults, a time without, and the end.
    pub fn live(&mut self) -> Verdict {
        let length = self.chance.pick(&[15, 40, 80, 200]);
        self.plan_next(Coming::Command(0));
        if !self.plan.is_calm {
            self.plan_next(Coming::Mishap(0));
        }
        self.handle(&Event::Tick)?;
        while self.events < length && !self.checker.has_exited() && self.step()? {}
        (self.faults, self.age) = (false, Duration::ZERO);
        if !self.manager.is_stopping() {
            self.converge()?;
            self.chance.turn_to(Whose::Run);
            let end = if self.chance.one_in(8) { Event::Kill } else { Event::Stop };
            self.handle(&end)?;
        }
        while !self.checker.has_exited() {
            if !self.step()? {
                return Err("nothing is left to happen, and the service has not ended".into());
            }
        }
        for event in [Event::Stop, Event::Tick, Event::Scale(1), Event::SocketReplaced, Event::Kill] {
            self.handle(&event)?;
        }
        let (upgrade, respawn) = (self.request(), self.request());
        self.handle(&Event::Upgrade(Some(upgrade)))?;
        self.handle(&Event::Respawn(Some(respawn)))?;
        for wish in [Wish::Rollback, Wish::RespawnNow, Wish::Scale(Scale::To(2)), Wish::Stop, Wish::Kill] {
            let request = self.request();
            self.handle(&Event::Asked(request, wish))?;
        }
        self.checker.check_answers()
    }

    /// The faults have stopped: one more upgrade, or none, and all must be well in bounded time.
    fn converge(&mut self) -> Verdict {
        let all_recover = self.plan.all_recover;
        self.note(|| {
            format!("THE FAULTS STOP; {}", if all_recover { "all recover" } else { "new releases are good" })
        });
        self.chance.turn_to(Whose::Run);
        // Asleep it would be well with no worker.
        self.handle(&Event::Connected)?;
        let last = if self.plan.all_recover && !self.chance.one_in(2) {
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
        // Under `recreate` one that nothing ends may be left from before.
        let is_stuck = |outcome: &Outcome| outcome.reason().is_some_and(|why| why.contains("process 4711"));
        let is_good = |outcome: &Outcome| *outcome == Outcome::Committed || is_stuck(outcome);
        if outcome.is_some_and(|outcome| !outcome.is_some_and(is_good)) {
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
        self.steps += 1;
        self.chance.turn_to(Whose::Clock(self.steps));
        if self.faults {
            self.disturb_clock();
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
        if std::mem::take(&mut self.oversleeps) {
            self.handle(&Event::Overslept)?;
        }
        if due.1
            && let Some((_, coming)) = self.coming.pop_first()
        {
            self.happen(coming)?;
        } else {
            self.handle(&Event::Tick)?;
        }
        Ok(true)
    }

    /// Now and then the clock makes a leap, as after a sleep of the machine, or an event comes with a moment of before.
    fn disturb_clock(&mut self) {
        match self.chance.below(300) {
            289..299 => {
                let most = self.chance.pick(&[secs(10), secs(3600)]);
                self.age = self.chance.time(most);
            }
            299 if !self.plan.is_calm => {
                let most = self.chance.pick(&[secs(900), secs(3 * 24 * 3600)]);
                let leap = self.chance.time(most);
                self.note(|| format!("THE CLOCK LEAPS by {leap:?}"));
                self.now = self.now + leap;
                self.checker.clock_jumped(leap);
                self.oversleeps = self.chance.one_in(2);
            }
            _ => {}
        }
    }

    fn happen(&mut self, coming: Coming) -> Verdict {
        match coming {
            Coming::Event(event) => match &event {
                // Whoever ends first ends.
                Event::Exited(id, _) | Event::StartFailed(id, _) => match self.processes.remove(id) {
                    Some(_) => self.handle(&event),
                    None => Ok(()),
                },
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
            Coming::Forged(..) if !self.faults => Ok(()),
            Coming::Forged(id, word) => self.handle(&Event::Said(id, word)),
            Coming::Command(_) | Coming::Mishap(_) if !self.faults => Ok(()),
            Coming::Command(number) => self.command(number),
            Coming::Mishap(number) => self.mishap(number),
        }
    }

    /// Hands an event in and performs what follows. Where somebody is due by now, the event may be one of several that are heard
    /// before the clock is looked at.
    pub fn handle(&mut self, event: &Event) -> Verdict {
        let is_due = self.faults && self.manager.next_deadline().is_some_and(|at| at <= self.now);
        let is_heard = !matches!(event, Event::Tick | Event::Overslept | Event::TakenOver(_));
        if is_due && is_heard && self.chance.one_in(2) {
            self.hand_in(&Event::Heard(Box::new(event.clone())))?;
            return self.hand_in(&Event::Tick);
        }
        self.hand_in(event)
    }

    fn hand_in(&mut self, event: &Event) -> Verdict {
        self.events += 1;
        let age = if *event == Event::Tick { Duration::ZERO } else { std::mem::take(&mut self.age) };
        let read = Mono(0) + self.now.since(Mono(0) + age);
        self.latest = self.latest.max(read);
        let mut actions = Vec::new();
        self.manager.handle(read, event.clone(), &mut actions);
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{} {event:?}", moment(self.now)));
            trace.extend(actions.iter().map(|action| format!("{:18}{}", "", in_words(action))));
        }
        self.checker.observe(self.latest, event, &actions, &self.manager)?;
        self.checker.grant(age);
        // Where the choices are given somebody looks for the first sign of a failure.
        let (quiet, travel) = if self.chance.is_replay() { (1, 10) } else { (16, 200) };
        if self.events.is_multiple_of(quiet) && !matches!(event, Event::Heard(_)) {
            self.check_quiet()?;
        }
        if self.events.is_multiple_of(travel) {
            self.travel()?;
        }
        let is_killed = self.dies_next && self.faults;
        for action in &actions {
            // Who takes over makes up for what a worker was to be told.
            let is_done = matches!(action, Action::Drain(_) | Action::Abort(_) | Action::Kill(_));
            if is_done || !is_killed {
                self.perform(action);
            }
        }
        self.disk.check_restart()?;
        if is_killed { self.kill_manager() } else { Ok(()) }
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

    /// The whole state of the core, in its own words.
    pub fn state(&self) -> String {
        serde_json::to_string(&self.manager).unwrap_or_else(|error| error.to_string())
    }

    pub fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }

    /// Whether something goes wrong now, once in so many times.
    pub fn fails(&mut self, in_times: u32) -> bool {
        self.faults && !self.plan.is_calm && self.chance.one_in(in_times)
    }

    pub fn later(&mut self, time: Duration, coming: Coming) {
        self.order += 1;
        self.coming.insert((self.now + time, self.order), coming);
    }

    pub fn note(&mut self, words: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(words());
        }
    }
}

fn moment(at: Mono) -> String {
    format!("{:>7}.{:06}", at.0 / 1_000_000, at.0 % 1_000_000)
}

fn in_words(action: &Action) -> String {
    match action {
        Action::Tell(notice) => format!("“{notice}”"),
        _ => format!("{action:?}"),
    }
}

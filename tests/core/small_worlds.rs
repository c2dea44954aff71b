//! Small worlds, exhaustively: one or two slots, one upgrade, and every order in which things can happen.
//!
//! The simulator tries some orders of events in large worlds; here are all of them in small ones. From a service that
//! serves the search goes, breadth first, to every state that can be reached by what may happen next: each process goes
//! on; the upgrade is asked for; and there are surprises: a process fails, or does nothing while time passes to the next
//! deadline, or people ask for something else. Of surprises there is one; `SMALL_WORLDS=2` allows two, and takes minutes.
//! Two states that differ in names and in times of the past alone are one.
//!
//! After every step the promises are checked, by the checker of the simulator. From every state two futures must end well:
//! one in which all goes on as it should leads to full strength, and one in which nobody says another word leads to an
//! answer for everyone who asked.

mod names;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::env;
use std::time::Duration;

use liveswap::core::ids::{GenerationId, RequestId, WorkerId};
use liveswap::core::notice::Exit;
use liveswap::core::spec::{Allowance, Code, Policy, Strategy};
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Action, Event, Manager, Scale, Wish};

use crate::sim::checker::Checker;
use crate::story::{policy, secs};

/// No future takes more steps than this.
const LONG: usize = 400;

/// What a process of the small kernel is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Process {
    Forked,
    Boots,
    Serves,
    /// Was told to drain, or to abort.
    Finishes,
    Killed,
    /// Nothing ends it.
    Stuck,
}

/// What is left of what may happen beside the usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Budget {
    upgrades: u32,
    surprises: u32,
}

#[derive(Clone, Debug)]
struct World {
    manager: Manager,
    checker: Checker,
    processes: BTreeMap<WorkerId, Process>,
    /// The action of the checks that is under way.
    check: Option<Action>,
    budget: Budget,
    requests: u64,
    now: Mono,
}

/// What an event takes from the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cost {
    Nothing,
    Upgrade,
    Surprise,
}

impl World {
    /// A service that serves.
    fn new(policy: &Policy, budget: Budget) -> Result<Self, String> {
        let world = Self {
            manager: Manager::new(policy.clone()),
            checker: Checker::new(policy.clone()),
            processes: BTreeMap::new(),
            check: None,
            budget,
            requests: 0,
            now: Mono::ZERO,
        };
        let mut world = world.after(&Event::Tick, Cost::Nothing)?;
        while let Some(event) = world.next_if_all_goes_well() {
            world = world.after(&event, Cost::Nothing)?;
        }
        world.checker.check_converged()?;
        Ok(world)
    }

    /// Whatever may happen next.
    fn all_that_may_happen(&self) -> Vec<(Event, Cost)> {
        let mut all = Vec::new();
        for (id, process) in &self.processes {
            all.extend(of_process(*id, *process));
        }
        if let Some(check) = &self.check {
            all.extend(self.of_check(check));
        }
        if self.may_wait() {
            let is_idle = all.iter().all(|(_, cost)| *cost != Cost::Nothing);
            all.push((Event::Tick, if is_idle { Cost::Nothing } else { Cost::Surprise }));
        }
        if !self.checker.has_exited() {
            let request = RequestId(self.requests + 1);
            all.push((Event::Upgrade(Some(request)), Cost::Upgrade));
            let asked = |wish| Event::Asked(request, wish);
            for wish in [
                asked(Wish::UpgradeTo),
                Event::Respawn(Some(request)),
                Event::SocketReplaced,
                Event::Scale(1),
                Event::Scale(-1),
                Event::Stop,
                Event::Kill,
                asked(Wish::Rollback),
                asked(Wish::RespawnNow),
                asked(Wish::Scale(Scale::To(2))),
                asked(Wish::Scale(Scale::By(-1))),
                asked(Wish::Stop),
                asked(Wish::Kill),
            ] {
                all.push((wish, Cost::Surprise));
            }
        }
        all.retain(|(_, cost)| self.budget.pays(*cost));
        all
    }

    /// Time may pass to the next deadline: a killed process is gone before.
    fn may_wait(&self) -> bool {
        let is_prompt = self.processes.values().all(|process| *process != Process::Killed);
        is_prompt && self.manager.next_deadline().is_some()
    }

    fn of_check(&self, check: &Action) -> Vec<(Event, Cost)> {
        let failed = |id: GenerationId| (Event::PreparationFailed(id, "no".into()), Cost::Surprise);
        match check {
            Action::ReadFile(id, _) => vec![
                (Event::FileRead(*id, None), Cost::Nothing),
                (Event::FileRead(*id, Some(secs(4))), Cost::Nothing),
                failed(*id),
            ],
            Action::RunHook(id) => vec![
                (Event::HookEnded(*id, Ok(())), Cost::Nothing),
                (Event::HookEnded(*id, Err("no".into())), Cost::Surprise),
            ],
            Action::Prepare(id) | Action::Reuse(id, _) => {
                let prepared = Event::Prepared(*id, self.checker.policy().clone(), Code::InPlace);
                vec![(prepared, Cost::Nothing), failed(*id)]
            }
            other => unreachable!("{other:?} is no check"),
        }
    }

    /// What happens next where nothing goes wrong and nobody is slow; `None` once all is at rest.
    fn next_if_all_goes_well(&self) -> Option<Event> {
        let of_processes = self.processes.iter().flat_map(|(id, process)| of_process(*id, *process));
        let of_check = self.check.iter().flat_map(|check| self.of_check(check));
        let mut well = of_processes.chain(of_check).filter(|(_, cost)| *cost == Cost::Nothing);
        well.next().map(|(event, _)| event).or_else(|| self.may_wait().then_some(Event::Tick))
    }

    /// What happens next where nobody says another word, and ends only where it is killed.
    fn next_if_all_are_silent(&self) -> Option<Event> {
        let killed = self.processes.iter().find(|(_, process)| **process == Process::Killed);
        let end = killed.map(|(id, _)| Event::Exited(*id, Exit::Signal(9, "SIGKILL".into())));
        end.or_else(|| self.may_wait().then_some(Event::Tick))
    }

    /// The world after an event, with all promises checked.
    fn after(&self, event: &Event, cost: Cost) -> Result<Self, String> {
        let mut world = self.clone();
        world.budget.pay(cost);
        match event {
            Event::Tick => world.now = world.manager.next_deadline().unwrap_or(world.now).max(world.now),
            Event::Upgrade(Some(request)) | Event::Respawn(Some(request)) | Event::Asked(request, _) => {
                world.requests = request.0;
            }
            Event::FileRead(..)
            | Event::HookEnded(..)
            | Event::Prepared(..)
            | Event::PreparationFailed(..) => {
                world.check = None;
            }
            Event::Executed(id) => world.goes_on(*id, Process::Boots),
            Event::Said(id, Word::Ready) => world.goes_on(*id, Process::Serves),
            Event::Said(id, Word::Stopping) => world.goes_on(*id, Process::Finishes),
            Event::DoesNotEnd(id, _) => world.goes_on(*id, Process::Stuck),
            Event::Exited(id, _) | Event::StartFailed(id, _) => {
                world.processes.remove(id);
            }
            _ => {}
        }
        let mut actions = Vec::new();
        world.manager.handle(world.now, event.clone(), &mut actions);
        world.checker.observe(world.now, event, &actions, &world.manager)?;
        for action in actions {
            world.perform(action);
        }
        let mut late = Vec::new();
        world.manager.clone().handle(world.now, Event::Tick, &mut late);
        if late.is_empty() { Ok(world) } else { Err(format!("this came a Tick late: {late:?}")) }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::ReadFile(..) | Action::RunHook(_) | Action::Prepare(_) | Action::Reuse(..) => {
                self.check = Some(action);
            }
            Action::CancelPreparation(_) => self.check = None,
            Action::Start { worker, .. } => {
                self.processes.insert(worker, Process::Forked);
            }
            Action::Drain(id) | Action::Abort(id) => self.goes_on(id, Process::Finishes),
            Action::Kill(id) => self.goes_on(id, Process::Killed),
            Action::Probe(_)
            | Action::Look(..)
            | Action::Examine(_)
            | Action::RestoreSockets(_)
            | Action::Forget(_)
            | Action::TellHook(..)
            | Action::Answer(..)
            | Action::Tell(_)
            | Action::Exit => {}
        }
    }

    fn goes_on(&mut self, id: WorkerId, to: Process) {
        self.processes.insert(id, to);
    }

    /// What tells this world from others, in few bytes; the budget aside, of which no future knows.
    fn name(&self) -> u64 {
        let Self { manager, checker, processes, check, budget: _, requests: _, now } = self;
        names::name(&format!("{manager:?}{checker:?}{processes:?}{check:?}"), *now)
    }
}

impl Budget {
    fn of(&mut self, cost: Cost) -> Option<&mut u32> {
        match cost {
            Cost::Nothing => None,
            Cost::Upgrade => Some(&mut self.upgrades),
            Cost::Surprise => Some(&mut self.surprises),
        }
    }

    fn pays(mut self, cost: Cost) -> bool {
        self.of(cost).is_none_or(|left| *left > 0)
    }

    fn pay(&mut self, cost: Cost) {
        if let Some(left) = self.of(cost) {
            *left -= 1;
        }
    }
}

/// What a process may do next.
fn of_process(id: WorkerId, process: Process) -> Vec<(Event, Cost)> {
    let said = |word| Event::Said(id, word);
    let status = |status| Event::Exited(id, Exit::Status(status));
    let killed = || Event::Exited(id, Exit::Signal(9, "SIGKILL".into()));
    let stuck = || Event::DoesNotEnd(id, "it does not end".into());
    match process {
        Process::Forked => vec![
            (Event::Executed(id), Cost::Nothing),
            (Event::StartFailed(id, "fork: EAGAIN".into()), Cost::Surprise),
        ],
        Process::Boots => vec![
            (said(Word::Ready), Cost::Nothing),
            (status(1), Cost::Surprise),
            (killed(), Cost::Surprise),
            (said(Word::Stopping), Cost::Surprise),
        ],
        Process::Serves => vec![
            (status(1), Cost::Surprise),
            (killed(), Cost::Surprise),
            (said(Word::Stopping), Cost::Surprise),
            (said(Word::WatchdogTrigger), Cost::Surprise),
        ],
        Process::Finishes => vec![(status(0), Cost::Nothing), (stuck(), Cost::Surprise)],
        Process::Killed => vec![(killed(), Cost::Nothing), (stuck(), Cost::Surprise)],
        Process::Stuck => vec![(status(0), Cost::Surprise)],
    }
}

/// A step of a future of a state.
struct Step {
    place: usize,
    /// Why all is not well yet, what happens next, and the state after that. `None` where all is well, or becomes well.
    next: Option<(String, Event, u64)>,
}

/// All states that were reached, and how.
struct Search {
    name: String,
    /// Where each state came from, and by which event.
    path: Vec<(usize, Event)>,
    transitions: usize,
    /// The next step of each state, by its name, where nothing goes wrong any more.
    converging: BTreeMap<u64, Step>,
    /// The next step where nobody says another word.
    ending: BTreeMap<u64, Step>,
}

impl Search {
    /// Goes everywhere; returns how many states and transitions there are.
    fn run(name: String, first: World) -> (usize, usize) {
        let path = vec![(0, Event::Tick)];
        let mut search =
            Self { name, path, transitions: 0, converging: BTreeMap::new(), ending: BTreeMap::new() };
        let mut open = VecDeque::from([(0, first.name(), first)]);
        let mut seen: HashSet<_> = open.iter().map(|(_, name, world)| (*name, world.budget)).collect();
        while let Some((place, name, world)) = open.pop_front() {
            let mut reached = Vec::new();
            for (event, cost) in world.all_that_may_happen() {
                search.transitions += 1;
                let after = world.after(&event, cost);
                let after =
                    after.unwrap_or_else(|why| search.fail(place, std::slice::from_ref(&event), &why));
                let name = after.name();
                reached.push((event.clone(), name));
                if seen.insert((name, after.budget)) {
                    search.path.push((place, event));
                    open.push_back((search.path.len() - 1, name, after));
                }
            }
            if !search.converging.contains_key(&name) {
                let step = search.if_all_goes_well(place, &world, &reached);
                search.converging.insert(name, step);
                let step = search.if_all_are_silent(place, &world, &reached);
                search.ending.insert(name, step);
            }
        }
        search.check_futures(&search.converging);
        search.check_futures(&search.ending);
        (seen.len(), search.transitions)
    }

    /// Returns where all goes on from a state if nothing goes wrong any more: to one of those that were `reached` from it, as what
    /// is usual is always tried.
    fn if_all_goes_well(&self, place: usize, world: &World, reached: &[(Event, u64)]) -> Step {
        let is_well = match (world.manager.is_stopping(), world.checker.has_exited()) {
            (false, _) => world.checker.check_converged(),
            (true, true) => world.checker.check_over(),
            (true, false) => Err("the service does not end".into()),
        };
        let next = is_well.err().map(|why| {
            let event = world.next_if_all_goes_well();
            let event = event.unwrap_or_else(|| self.fail(place, &[], &not_well(&why)));
            let to = reached.iter().find(|(tried, _)| *tried == event).expect("it was tried").1;
            (why, event, to)
        });
        Step { place, next }
    }

    /// Returns where all goes on from a state if nobody says another word: to one that was `reached` from it, or to the end. To go
    /// there takes less time than to find out the names of the states on the way.
    fn if_all_are_silent(&self, place: usize, from: &World, reached: &[(Event, u64)]) -> Step {
        let (mut world, mut events) = (from.clone(), Vec::new());
        while let Err(why) = world.checker.check_over() {
            let Some(event) = world.next_if_all_are_silent().filter(|_| events.len() < LONG) else {
                self.fail(place, &events, &not_well(&why));
            };
            if events.is_empty()
                && let Some((_, to)) = reached.iter().find(|(tried, _)| *tried == event)
            {
                return Step { place, next: Some((why, event, *to)) };
            }
            let after = world.after(&event, Cost::Nothing);
            events.push(event);
            world = after.unwrap_or_else(|why| self.fail(place, &events, &why));
        }
        Step { place, next: None }
    }

    /// Checks that the steps lead to where all is well, from every state.
    fn check_futures(&self, steps: &BTreeMap<u64, Step>) {
        let mut good = HashSet::new();
        for (start, Step { place, .. }) in steps {
            let (mut at, mut events) = (*start, Vec::new());
            let mut passed = vec![at];
            while !good.contains(&at)
                && let Some((why, event, to)) = &steps[&at].next
            {
                if events.len() == LONG {
                    self.fail(*place, &events, &not_well(why));
                }
                events.push(event.clone());
                passed.push(*to);
                at = *to;
            }
            good.extend(passed);
        }
    }

    /// Fails with the way that led here.
    fn fail(&self, mut place: usize, last: &[Event], why: &str) -> ! {
        let mut events = last.to_vec();
        events.reverse();
        while place != 0 {
            events.push(self.path[place].1.clone());
            place = self.path[place].0;
        }
        let events: Vec<_> = events.iter().rev().map(|event| format!("    {event:?}")).collect();
        panic!("{}: {why}, after\n{}", self.name, events.join("\n"));
    }
}

fn not_well(why: &str) -> String {
    format!("it does not become well: {why}")
}

fn small_policy(
    workers: u32,
    strategy: Option<Strategy>,
    min_ready: Duration,
    probation: Duration,
) -> Policy {
    Policy {
        lazy: false,
        strategy,
        min_ready: Some(min_ready),
        probation,
        ready_timeout: secs(4),
        drain_timeout: secs(4),
        // A pause that does not grow: then it does not matter how often a slot has failed.
        restart_initial_delay: secs(1),
        restart_max_delay: secs(1),
        ..policy(workers)
    }
}

fn explore(workers: u32, name: &str, strategy: impl Into<Option<Strategy>>) {
    let strategy = strategy.into();
    let surprises =
        env::var("SMALL_WORLDS").map_or(1, |text| text.parse().expect("SMALL_WORLDS is a number"));
    let budget = Budget { upgrades: 1, surprises };
    for (min_ready, probation) in [
        (Duration::ZERO, Duration::ZERO),
        (Duration::ZERO, secs(2)),
        (secs(2), Duration::ZERO),
        (secs(1), secs(2)),
    ] {
        let name = format!("{name}, {workers} slots, min_ready {min_ready:?}, probation {probation:?}");
        let first = World::new(&small_policy(workers, strategy, min_ready, probation), budget);
        let first = first.unwrap_or_else(|why| panic!("{name}: {why}"));
        let (states, transitions) = Search::run(name.clone(), first);
        println!("{name}: {states} states, {transitions} transitions");
    }
}

fn rolling(surge: u32, unavailable: u32) -> Strategy {
    Strategy::Rolling { max_surge: Allowance::Count(surge), max_unavailable: Allowance::Count(unavailable) }
}

#[test]
fn in_every_order_a_rolling_upgrade_keeps_the_promises() {
    explore(1, "rolling", rolling(1, 0));
    explore(2, "rolling", rolling(1, 0));
}

#[test]
fn in_every_order_an_upgrade_without_surge_keeps_the_promises() {
    explore(1, "without surge", rolling(0, 1));
    explore(2, "without surge", rolling(0, 1));
}

#[test]
fn in_every_order_a_blue_green_upgrade_keeps_the_promises() {
    explore(1, "blue-green", Strategy::BlueGreen);
    explore(2, "blue-green", Strategy::BlueGreen);
}

#[test]
fn in_every_order_an_upgrade_in_place_keeps_the_promises() {
    explore(1, "auto, in place", None);
    explore(2, "auto, in place", None);
}

#[test]
fn in_every_order_recreation_keeps_the_promises() {
    explore(1, "recreate", Strategy::Recreate);
    explore(2, "recreate", Strategy::Recreate);
}

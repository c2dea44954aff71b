//! What the core costs by itself: `cargo bench --bench core` prints the processor time of one event, with 64, 256 and 1,000 workers.
//!
//! An event that concerns one worker should cost the same whatever their number, so the figures of a line should be equal. They
//! are printed and never asserted. Each event is followed by the question for the next deadline, as in the manager's loop.

use std::collections::VecDeque;
use std::time::Duration;

use liveswap::core::ids::WorkerId;
use liveswap::core::notice::Exit;
use liveswap::core::spec::{Allowance, Code, Policy, Readiness, Strategy};
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Action, Event, Manager};
use nix::time::{ClockId, clock_gettime};

const SIZES: [u32; 3] = [64, 256, 1000];

/// How often a measurement is repeated; the best one counts, as others measure the rest of the machine.
const TIMES: usize = 15;

/// How many times at least a line's event is handed in for one measurement.
const EVENTS: u64 = 2000;

/// The longest pause before a restart. All other deadlines are further off.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

fn main() {
    let head = SIZES.map(|size| format!("{size:>10}"));
    println!("{:56} {}  workers", "nanoseconds an event", head.concat());
    let upgrade = |service: &mut Service| service.hand_in(Event::Upgrade(None));
    let respawn = |service: &mut Service| service.hand_in(Event::Respawn(None));
    print("upgrade, rolling, 25 % surge", Strategy::ROLLING, upgrade);
    print("upgrade, rolling, one at a time", one_at_a_time(1, 0), upgrade);
    print("upgrade, rolling, no surge", one_at_a_time(0, 1), upgrade);
    print("upgrade, blue-green", Strategy::BlueGreen, upgrade);
    print("upgrade, recreate", Strategy::Recreate, upgrade);
    print("respawn, rolling, 25 % surge", Strategy::ROLLING, respawn);
    print("respawn, rolling, no surge", one_at_a_time(0, 1), respawn);
    print("all workers die and are started again", Strategy::ROLLING, Service::lose_all);
    print("at rest: READY=1 once more", Strategy::ROLLING, |service| service.all_say(&Word::Ready));
    print("at rest: STATUS=", Strategy::ROLLING, |service| service.all_say(&Word::status("4 of 4")));
    print("at rest: WATCHDOG=1", Strategy::ROLLING, |service| service.all_say(&Word::Watchdog));
}

fn one_at_a_time(surge: u32, unavailable: u32) -> Strategy {
    Strategy::Rolling { max_surge: Allowance::Count(surge), max_unavailable: Allowance::Count(unavailable) }
}

fn print(what: &str, strategy: Strategy, occasion: impl Fn(&mut Service) + Copy) {
    let figures = SIZES.map(|size| format!("{:>10}", nanoseconds(size, strategy, occasion)));
    println!("{what:.<56} {}", figures.concat());
}

fn nanoseconds(workers: u32, strategy: Strategy, occasion: impl Fn(&mut Service)) -> u128 {
    let mut service = Service::new(workers, strategy);
    service.settle();
    let measure = || {
        let (begun, events) = (processor_time(), service.events);
        while service.events < events + EVENTS {
            occasion(&mut service);
            service.settle();
        }
        processor_time().saturating_sub(begun).as_nanos() / u128::from(service.events - events)
    };
    std::iter::repeat_with(measure).take(TIMES).min().expect("it was measured")
}

fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("the clock of this thread").into()
}

/// A service whose workers do at once what they are to do.
struct Service {
    manager: Manager,
    policy: Policy,
    now: Mono,
    inbox: VecDeque<Event>,
    actions: Vec<Action>,
    events: u64,
}

impl Service {
    fn new(workers: u32, strategy: Strategy) -> Self {
        let policy = Policy {
            workers,
            lazy: false,
            readiness: Readiness::Notify,
            ready_timeout: Duration::from_secs(60),
            strategy: Some(strategy),
            min_ready: None,
            probation: Duration::ZERO,
            drain_timeout: Duration::from_secs(60),
            max_generations: 4,
            restart_initial_delay: Duration::from_millis(100),
            restart_max_delay: LONGEST_PAUSE,
            watchdog: Some(Duration::from_secs(30)),
        };
        Self {
            manager: Manager::new(policy.clone()),
            policy,
            now: Mono::ZERO,
            inbox: VecDeque::from([Event::Tick]),
            actions: Vec::new(),
            events: 0,
        }
    }

    fn hand_in(&mut self, event: Event) {
        self.inbox.push_back(event);
    }

    /// Hands events in until all is at rest.
    fn settle(&mut self) {
        loop {
            while let Some(event) = self.inbox.pop_front() {
                self.now = self.now + Duration::from_micros(1);
                self.handle(event);
            }
            match self.manager.next_deadline().filter(|at| *at - self.now <= LONGEST_PAUSE) {
                Some(at) => {
                    self.now = at;
                    self.hand_in(Event::Tick);
                }
                None => return,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        self.events += 1;
        self.manager.handle(self.now, event, &mut self.actions);
        assert!(self.manager.next_deadline().is_none_or(|at| at > self.now), "it would spin");
        for action in self.actions.drain(..) {
            match action {
                Action::ReadFile(generation, _) => self.inbox.push_back(Event::FileRead(generation, None)),
                Action::Prepare(generation) => {
                    let policy = self.policy.clone();
                    self.inbox.push_back(Event::Prepared(generation, policy, Code::Elsewhere));
                }
                Action::Start { worker, .. } => {
                    self.inbox.push_back(Event::Executed(worker));
                    self.inbox.push_back(Event::Said(worker, Word::Ready));
                }
                Action::Drain(worker) => self.inbox.push_back(Event::Exited(worker, Exit::Status(0))),
                other => assert!(
                    matches!(other, Action::Tell(_) | Action::TellHook(..) | Action::Forget(_)),
                    "{other:?} is not expected"
                ),
            }
        }
    }

    fn workers(&self) -> Vec<WorkerId> {
        self.manager.live_workers().map(|(id, _)| id).collect()
    }

    fn all_say(&mut self, word: &Word) {
        for id in self.workers() {
            self.hand_in(Event::Said(id, word.clone()));
        }
    }

    fn lose_all(&mut self) {
        for id in self.workers() {
            self.hand_in(Event::Exited(id, Exit::Status(1)));
        }
    }
}

//! A fake world for the core: virtual time, workers that behave as the story says, and a record of what happened.

use std::collections::BTreeMap;
use std::time::Duration;

use liveswap::core::ids::{GenerationId, RequestId, SlotId, WorkerId};
use liveswap::core::notice::{Exit, Notice, Outcome, WorkerNotice};
use liveswap::core::spec::{Allowance, Code, Policy, Readiness, Strategy};
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Action, Event, Manager, Wish};

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn policy(workers: u32) -> Policy {
    Policy {
        workers,
        lazy: false,
        readiness: Readiness::Notify,
        ready_timeout: secs(30),
        strategy: Some(Strategy::Rolling {
            max_surge: Allowance::Count(1),
            max_unavailable: Allowance::Count(0),
        }),
        min_ready: None,
        probation: Duration::ZERO,
        drain_timeout: secs(60),
        max_generations: 4,
        restart_initial_delay: Duration::from_millis(100),
        restart_max_delay: secs(30),
        watchdog: None,
    }
}

/// What a worker of some generation does once it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Says READY=1 at once, exits 0 when told to drain.
    Good,
    /// Says nothing.
    Silent,
    /// Exits with this status at once.
    Exits(i32),
    /// Is ready, but does not heed its drain signal.
    Stubborn,
    /// Is ready, and ends neither when told to drain nor when killed, but when the story says so.
    Stuck,
}

pub struct Story {
    pub manager: Manager,
    pub now: Mono,
    pub next: Policy,
    /// Where the code of the next generation lies.
    pub code: Code,
    pub behaviour: BTreeMap<GenerationId, Behaviour>,
    pub hook: Option<Duration>,
    pub check_fails: Option<String>,
    /// Notices in words, oldest first.
    pub told: Vec<String>,
    pub answers: Vec<(RequestId, Outcome)>,
    pub forgotten: Vec<GenerationId>,
    /// The earlier generations to which it went back.
    pub reused: Vec<GenerationId>,
    /// The requests that named the targets of the upgrades, where one did.
    pub targets: Vec<Option<RequestId>>,
    pub ended: bool,
    inbox: Vec<Event>,
    requests: u64,
}

impl Story {
    pub fn with(policy: Policy) -> Self {
        Self::of(policy, Behaviour::Good)
    }

    /// A service whose first generation does not say that it is ready.
    pub fn with_silent(policy: Policy) -> Self {
        Self::of(policy, Behaviour::Silent)
    }

    fn of(policy: Policy, first: Behaviour) -> Self {
        let mut story = Self {
            manager: Manager::new(policy.clone()),
            now: Mono::ZERO,
            next: policy,
            code: Code::Elsewhere,
            behaviour: BTreeMap::from([(GenerationId(1), first)]),
            hook: None,
            check_fails: None,
            told: Vec::new(),
            answers: Vec::new(),
            forgotten: Vec::new(),
            reused: Vec::new(),
            targets: Vec::new(),
            ended: false,
            inbox: Vec::new(),
            requests: 0,
        };
        story.event(Event::Tick);
        story
    }

    /// A service of so many good workers, all ready.
    pub fn with_workers(workers: u32) -> Self {
        let story = Self::with(policy(workers));
        assert_eq!(story.manager.status(), format!("generation 1: {workers} of {workers} ready"));
        story
    }

    /// The workers of the generation to come behave like this.
    pub fn release(&mut self, generation: u64, behaviour: Behaviour) -> &mut Self {
        self.behaviour.insert(GenerationId(generation), behaviour);
        self
    }

    pub fn upgrade(&mut self) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.event(Event::Upgrade(Some(request)));
        request
    }

    /// Somebody asks for what no signal says.
    pub fn ask(&mut self, wish: Wish) -> RequestId {
        self.requests += 1;
        let request = RequestId(self.requests);
        self.event(Event::Asked(request, wish));
        request
    }

    /// The answer to a request, which comes once.
    pub fn answer(&self, request: RequestId) -> Option<&Outcome> {
        let mut answers = self.answers.iter().filter(|(to, _)| *to == request);
        let answer = answers.next().map(|(_, outcome)| outcome);
        assert!(answers.next().is_none(), "{request} was answered twice: {:?}", self.answers);
        answer
    }

    /// Hands an event in, and all that follows from it at the same moment.
    pub fn event(&mut self, event: Event) -> &mut Self {
        self.inbox.push(event);
        while !self.inbox.is_empty() {
            let event = self.inbox.remove(0);
            let mut actions = Vec::new();
            self.manager.handle(self.now, event, &mut actions);
            for action in actions {
                self.perform(action);
            }
        }
        self
    }

    /// Lets time pass, deadline by deadline.
    pub fn after(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while let Some(deadline) = self.manager.next_deadline().filter(|deadline| *deadline <= end) {
            assert!(deadline >= self.now, "a deadline of the past is left: {deadline:?} at {:?}", self.now);
            self.now = deadline;
            self.event(Event::Tick);
            let again = self.manager.next_deadline();
            assert!(again.is_none_or(|again| again > deadline), "the core would spin at {deadline:?}");
        }
        self.now = end;
        self.event(Event::Tick)
    }

    pub fn worker_in(&self, generation: u64, slot: u32) -> WorkerId {
        let mut live = self.manager.live_workers();
        let found =
            live.find(|(_, w)| w.generation() == GenerationId(generation) && w.slot() == SlotId(slot));
        found.map_or_else(
            || panic!("no worker in slot {slot} of generation {generation}: {:#?}", self.told),
            |it| it.0,
        )
    }

    pub fn ready(&self, generation: u64) -> usize {
        let of = |w: &liveswap::core::Worker| w.is_ready() && w.generation() == GenerationId(generation);
        self.manager.workers().filter(|(_, w)| of(w)).count()
    }

    pub fn draining(&self) -> usize {
        self.manager.workers().filter(|(_, worker)| worker.is_draining()).count()
    }

    /// Asserts that these stand in the record in this order, each as a part of a line, and forgets what came before them.
    pub fn expect_order(&mut self, parts: &[&str]) -> &mut Self {
        let mut from = 0;
        for part in parts {
            match self.told[from..].iter().position(|line| line.contains(part)) {
                Some(at) => from += at + 1,
                None => panic!("{part:?} is missing after line {from} of {:#?}", self.told),
            }
        }
        self.told.drain(..from);
        self
    }

    pub fn expect_never(&self, part: &str) -> &Self {
        assert!(!self.told.iter().any(|line| line.contains(part)), "{part:?} stands in {:#?}", self.told);
        self
    }

    fn behaviour_of(&self, id: WorkerId) -> Behaviour {
        let generation =
            self.manager.worker(id).expect("an action names a worker that is there").generation();
        self.behaviour.get(&generation).copied().unwrap_or(Behaviour::Good)
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Tell(notice) => {
                let where_ = match &notice {
                    // The record is read by people: say whose worker it was.
                    Notice::Worker(id, what) if !matches!(what, WorkerNotice::Ended(_)) => {
                        let worker = self.manager.worker(*id);
                        worker.map_or(String::new(), |w| format!(" [{}/{}]", w.generation(), w.slot()))
                    }
                    _ => String::new(),
                };
                self.told.push(format!("{notice}{where_}"));
            }
            Action::ReadFile(id, target) => {
                self.targets.push(target);
                self.inbox.push(match self.check_fails.take() {
                    Some(why) => Event::PreparationFailed(id, why),
                    None => Event::FileRead(id, self.hook),
                });
            }
            Action::RunHook(_) | Action::Probe(_) | Action::Look(..) => {}
            Action::Reuse(id, earlier) => {
                self.reused.push(earlier);
                self.inbox.push(Event::Prepared(id, self.next.clone(), self.code));
            }
            Action::Prepare(id) => self.inbox.push(Event::Prepared(id, self.next.clone(), self.code)),
            Action::Start { worker, .. } => match self.behaviour_of(worker) {
                Behaviour::Good | Behaviour::Stubborn | Behaviour::Stuck => {
                    self.inbox.push(Event::Executed(worker));
                    self.inbox.push(Event::Said(worker, Word::Ready));
                }
                Behaviour::Silent => self.inbox.push(Event::Executed(worker)),
                Behaviour::Exits(status) => {
                    self.inbox.push(Event::Executed(worker));
                    self.inbox.push(Event::Exited(worker, Exit::Status(status)));
                }
            },
            Action::Drain(worker) => {
                if !matches!(self.behaviour_of(worker), Behaviour::Stubborn | Behaviour::Stuck) {
                    self.inbox.push(Event::Exited(worker, Exit::Status(0)));
                }
            }
            Action::Abort(worker) => {
                self.inbox.push(Event::Exited(worker, Exit::Signal(6, "SIGABRT".into())));
            }
            Action::Kill(worker) => {
                if self.behaviour_of(worker) != Behaviour::Stuck {
                    self.inbox.push(Event::Exited(worker, Exit::Signal(9, "SIGKILL".into())));
                }
            }
            Action::Examine(worker) => {
                self.inbox
                    .push(Event::DoesNotEnd(worker, format!("process {} does not end", 4000 + worker.0)));
            }
            Action::Forget(id) => self.forgotten.push(id),
            Action::Answer(request, outcome) => self.answers.push((request, outcome)),
            Action::Exit => self.ended = true,
            Action::CancelPreparation(_) | Action::RestoreSockets(_) | Action::TellHook(..) => {}
        }
    }
}

//! What the core promises (see `liveswap::core`), checked from outside after each event.
//!
//! The checker keeps a model of its own: what it knows, it knows from the events and the actions alone. It shares no
//! rule with the core beside the data types, so that a wrong rule there is not repeated here.

mod looks;
mod model;
mod rules;
mod silence;
mod takeover;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use liveswap::core::ids::{GenerationId, RequestId, SlotId, WorkerId};
use liveswap::core::notice::{Notice, Outcome};
use liveswap::core::spec::{Allowance, Code, Policy, Readiness, Strategy};
use liveswap::core::time::Mono;
use liveswap::core::word::Word;
use liveswap::core::{Action, Event, Manager, Wish};

use crate::story::secs;

/// A broken promise, in words.
pub type Verdict = Result<(), String>;

/// Returns from a function with the message unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)*) => {
        if !$condition {
            return Err(format!($($message)*));
        }
    };
}
use ensure;

/// The longest that an upgrade may take with the longest time-outs that a seed can choose.
pub const PATIENCE: Duration = Duration::from_secs(2 * 3600);

/// What rolling is where nobody says how.
const ROLLING: Strategy =
    Strategy::Rolling { max_surge: Allowance::Percent(25), max_unavailable: Allowance::Count(0) };

/// The longest that the fake kernel needs to end a process after SIGKILL.
pub const KILL_TAKES: Duration = Duration::from_millis(5);

/// How long after SIGKILL a process that is still there is asked after.
pub const STUCK_AFTER: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Ready,
    Draining,
    Aborting,
    Killing,
    /// Nothing ends it.
    Stuck,
}

impl Stage {
    fn is_live(self) -> bool {
        matches!(self, Self::Starting | Self::Ready)
    }
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that the others do not touch")]
struct Seen {
    generation: GenerationId,
    slot: SlotId,
    stage: Stage,
    /// When the present stage must be over.
    deadline: Option<Mono>,
    watchdog: Option<Duration>,
    executed: Option<Mono>,
    ready_since: Option<Mono>,
    /// Since when it has said nothing; `None` once it has said something.
    silent_since: Option<Mono>,
    /// Was there, ready, when a respawn began.
    outdated: bool,
    /// When it was asked to end.
    asked_at: Option<Mono>,
    /// Was sent its drain signal, or needs none.
    signalled: bool,
    /// A look at it is under way, or there was one.
    looked_at: bool,
    was_looked_at: bool,
    /// When a look showed that it serves, or that none shows it.
    serves_since: Option<Mono>,
}

#[derive(Clone, Debug)]
struct Release {
    policy: Policy,
    /// How it replaces another.
    strategy: Strategy,
    strength: u32,
    /// It is to have no worker until it is woken.
    asleep: bool,
}

impl Release {
    fn first(policy: Policy) -> Self {
        Self {
            strategy: policy.strategy.unwrap_or(ROLLING),
            strength: policy.workers,
            asleep: policy.lazy,
            policy,
        }
    }

    /// One that is to replace another, whose code lies there.
    fn beside(policy: Policy, code: Code) -> Self {
        let by_place = if code == Code::InPlace { Strategy::BlueGreen } else { ROLLING };
        let strategy = policy.strategy.unwrap_or(by_place);
        Self { strategy, asleep: false, ..Self::first(policy) }
    }

    /// It serves: what it replaces from now on are workers of its own.
    fn settle_in(&mut self) {
        self.strategy = self.policy.strategy.unwrap_or(ROLLING);
    }

    /// Whether its probation comes before the first drain.
    fn is_tried_first(&self) -> bool {
        self.policy.strategy.is_none() && self.strategy == Strategy::BlueGreen
    }

    /// How long the first new workers must stay ready.
    fn proof_takes(&self) -> Duration {
        let min_ready = self.policy.min_ready.unwrap_or_default();
        match self.strategy {
            Strategy::Recreate => Duration::ZERO,
            _ if self.is_tried_first() => min_ready + self.policy.probation,
            _ => min_ready,
        }
    }

    /// How many workers it is to have now.
    fn wanted(&self) -> u32 {
        if self.asleep { 0 } else { self.strength }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Checking,
    Surging,
    Probation,
    RollingBack,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that the others do not touch")]
struct Course {
    to: GenerationId,
    phase: Phase,
    until: Mono,
    /// Whether it is not the core's doing if the old generation is not at full strength after a rollback.
    old_has_an_excuse: bool,
    /// The new generation lost a worker with this event.
    has_failed: bool,
    /// The first new workers have stayed ready for long enough.
    proven: bool,
    /// The slot of the old one that has gone before that, to make room.
    made_room: Option<SlotId>,
    /// How many new workers that were killed from outside were made good.
    spared: u32,
    /// The slots that the old generation need not fill any more.
    given_over: BTreeSet<SlotId>,
    /// It goes back to an earlier generation.
    goes_back: bool,
    /// The request that names its target.
    target: Option<RequestId>,
}

/// What somebody who waits for an answer wants, which tells what is a true one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// An upgrade that has not begun.
    Upgrade,
    /// The same, to the target that this request names.
    Target,
    /// The upgrade under way.
    ThatUpgrade,
    /// That the upgrade under way does not come to be.
    NotThatUpgrade,
    Respawn,
    /// What can be done at once.
    Possible,
    Impossible,
    End,
}

#[derive(Clone, Debug)]
struct Asked {
    /// The newest generation that had begun.
    after: GenerationId,
    want: Want,
    /// The workers that are to be replaced before it is done.
    stale: BTreeSet<WorkerId>,
    answered: Option<Outcome>,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that the others do not touch")]
pub struct Checker {
    workers: BTreeMap<WorkerId, Seen>,
    /// Prepared, and neither forgotten nor given up: the shell holds sockets for them.
    generations: BTreeMap<GenerationId, Release>,
    current: GenerationId,
    previous: Option<GenerationId>,
    upgrade: Option<Course>,
    respawning: bool,
    /// The workers that the respawn under way, or just given up, is to replace.
    stale: BTreeSet<WorkerId>,
    /// The workers that the respawn to come is to replace.
    stale_to_come: BTreeSet<WorkerId>,
    /// The respawn under way is to kill those that it replaces; the one to come is.
    kills: bool,
    kills_to_come: bool,
    requests: BTreeMap<RequestId, Asked>,
    last_worker: WorkerId,
    last_begun: GenerationId,
    /// The newest request that names a target, until its upgrade begins.
    target_to_come: Option<RequestId>,
    /// How the last upgrade ended, until its hook was told.
    ended: Option<(GenerationId, Outcome)>,
    /// The request that named the target of the last upgrade.
    ended_target: Option<RequestId>,
    /// When a slot may start again.
    backoff: BTreeMap<(GenerationId, SlotId), Mono>,
    /// By when the service must have ended.
    stop_by: Option<Mono>,
    /// Until when another SIGTERM is the same wish as the first.
    same_wish_until: Option<Mono>,
    exited: bool,
    served: bool,
    /// Since the service was last at full strength with nothing under way, it lost no worker and was not scaled.
    undisturbed: bool,
    /// The generation that the sockets are as it wants them.
    sockets_of: GenerationId,
    /// The strengths that the present event asks for, until they were told.
    scaling: BTreeMap<GenerationId, u32>,
    /// The generation whose preparation the present event ended.
    cancelled: Option<GenerationId>,
    /// The generation whose end the present event forced.
    cut: Option<GenerationId>,
    /// The workers whose end is the present event, and whether they were live until then.
    ending: BTreeMap<WorkerId, bool>,
    /// The present event is that another manager takes over.
    takes_over: bool,
    /// The present event asks for what was asked for a moment ago.
    is_same_wish: bool,
    /// Some process has outlived SIGKILL for a while.
    kills_slowly: bool,
    /// Connections have processes of their own.
    has_guests: bool,
    /// The present event is to wake the generation that serves, or to let it fall asleep.
    is_to_wake: bool,
    is_to_sleep: bool,
    /// The generations of which it was told that a worker says nothing.
    told_silence: BTreeSet<GenerationId>,
}

impl Checker {
    pub fn new(policy: Policy) -> Self {
        let first = GenerationId(1);
        Self {
            workers: BTreeMap::new(),
            generations: BTreeMap::from([(first, Release::first(policy))]),
            current: first,
            previous: None,
            upgrade: None,
            respawning: false,
            stale: BTreeSet::new(),
            stale_to_come: BTreeSet::new(),
            kills: false,
            kills_to_come: false,
            requests: BTreeMap::new(),
            last_worker: WorkerId(0),
            last_begun: first,
            target_to_come: None,
            ended: None,
            ended_target: None,
            backoff: BTreeMap::new(),
            stop_by: None,
            same_wish_until: None,
            exited: false,
            served: false,
            undisturbed: false,
            sockets_of: first,
            scaling: BTreeMap::new(),
            cancelled: None,
            cut: None,
            ending: BTreeMap::new(),
            takes_over: false,
            is_same_wish: false,
            kills_slowly: false,
            has_guests: false,
            is_to_wake: false,
            is_to_sleep: false,
            told_silence: BTreeSet::new(),
        }
    }

    /// Takes one event and what the core made of it.
    pub fn observe(&mut self, now: Mono, event: &Event, actions: &[Action], manager: &Manager) -> Verdict {
        let (event, is_judged) = match event {
            Event::Heard(event) => (&**event, false),
            event => (event, true),
        };
        let newest = self.last_worker;
        self.take_event(now, event);
        self.note_proof(now);
        for action in actions {
            self.take_action(now, event, action).map_err(|why| format!("{why}, at {action:?}"))?;
            self.note_proof(now);
        }
        if let Event::Said(id, Word::Ready) = event
            && *id <= newest
        {
            self.check_heard(*id)?;
        }
        ensure!(!self.is_to_wake && !self.is_to_sleep, "it was to wake, or to fall asleep");
        if let Event::TakenOver(_) = event {
            self.check_taken_over(newest)?;
        }
        ensure!(manager.is_indexed(), "an index differs from a scan");
        if is_judged { self.check_state(now, manager) } else { Ok(()) }
    }

    /// The clock jumped: nobody can be blamed for what was due meanwhile.
    pub fn clock_jumped(&mut self, by: Duration) {
        self.grant(by);
        self.disturb();
    }

    /// What is to end in time gets so much more of it.
    pub fn grant(&mut self, time: Duration) {
        if let Some(upgrade) = &mut self.upgrade {
            upgrade.until = upgrade.until + time;
        }
        self.stop_by = self.stop_by.map(|at| at + time);
    }

    /// A process that was sent SIGKILL takes its time.
    pub fn kill_is_slow(&mut self) {
        if !std::mem::replace(&mut self.kills_slowly, true) {
            self.grant(STUCK_AFTER + KILL_TAKES);
        }
    }

    pub fn has_exited(&self) -> bool {
        self.exited
    }

    /// The policy of the generation that serves.
    pub fn policy(&self) -> &Policy {
        &self.generations[&self.current].policy
    }

    pub fn answer(&self, request: RequestId) -> Option<&Outcome> {
        self.requests.get(&request).and_then(|asked| asked.answered.as_ref())
    }

    /// Checks that the service is as it is to be, all that was asked is answered, and nothing else is left.
    pub fn check_converged(&self) -> Verdict {
        self.check_over()?;
        ensure!(self.is_full(self.current), "generation {} is not at full strength", self.current);
        let is_surplus = |worker: &Seen| worker.stage != Stage::Stuck && !self.is_wanted(worker);
        let surplus = self.workers.iter().find(|(_, worker)| is_surplus(worker));
        ensure!(surplus.is_none(), "worker {} is one too many", surplus.map_or(0, |(id, _)| id.0));
        let unused = self.generations.keys().find(|id| **id != self.current && !self.has_workers(**id));
        ensure!(unused.is_none(), "generation {unused:?} is there");
        Ok(())
    }

    /// Checks that nothing is under way and nobody waits for an answer.
    pub fn check_over(&self) -> Verdict {
        ensure!(self.upgrade.is_none() && !self.respawning, "something is still under way");
        self.check_answers()
    }

    pub fn check_answers(&self) -> Verdict {
        let open: Vec<_> = self.requests.iter().filter(|(_, asked)| asked.answered.is_none()).collect();
        ensure!(open.is_empty(), "unanswered: {open:?}");
        ensure!(self.ended.is_none(), "the hook was not told of {:?}", self.ended);
        Ok(())
    }

    fn take_event(&mut self, now: Mono, event: &Event) {
        let until = self.same_wish_until.filter(|_| *event == Event::Stop && self.stop_by.is_some());
        self.is_same_wish = until.is_some_and(|at| now < at);
        (self.cut, self.cancelled) = (None, None);
        let stale = self.stale_by(event);
        self.stale_to_come.extend(&stale);
        match event {
            Event::Upgrade(Some(request)) | Event::Respawn(Some(request)) => {
                let is_upgrade = matches!(event, Event::Upgrade(_));
                self.ask(*request, if is_upgrade { Want::Upgrade } else { Want::Respawn }, stale);
            }
            Event::Connected => {
                self.is_to_wake = self.stop_by.is_none() && self.generations[&self.current].asleep;
            }
            Event::Guests(are_there) => {
                self.has_guests = *are_there;
                // The end has waited for them.
                self.stop_by = self.stop_by.map(|at| at.max(now));
            }
            Event::Idle => self.is_to_sleep = self.may_sleep(),
            Event::Scale(by) => {
                self.disturb();
                self.scaling = self.scaled_within_bounds(*by);
            }
            Event::Asked(request, wish) => self.take_wish(now, *request, *wish, stale),
            Event::Stop if self.is_same_wish => {}
            Event::Stop | Event::Kill => self.take_stop(now, *event == Event::Kill),
            Event::Prepared(generation, policy, code) => {
                self.generations.insert(*generation, Release::beside(policy.clone(), *code));
            }
            Event::Executed(id) => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.executed = Some(now);
                }
            }
            Event::StartFailed(id, _) | Event::Exited(id, _) => self.take_end(*id),
            Event::Overslept => self.oversleep(now),
            Event::DoesNotEnd(id, _) => {
                let is_left = |worker: &&mut Seen| !worker.stage.is_live() && worker.stage != Stage::Stuck;
                if let Some(worker) = self.workers.get_mut(id).filter(is_left) {
                    (worker.stage, worker.deadline, worker.signalled) = (Stage::Stuck, None, true);
                    let generation = worker.generation;
                    // Two releases would run beside each other.
                    let is_recreated = self.rules().strategy == Strategy::Recreate;
                    let is_old =
                        |it: &&mut Course| is_recreated && it.phase == Phase::Surging && it.to != generation;
                    if let Some(upgrade) = self.upgrade.as_mut().filter(is_old) {
                        upgrade.has_failed = true;
                    }
                }
            }
            Event::Looked(id, sight) => self.take_sight(now, *id, sight),
            Event::TakenOver(gone) => self.take_over(now, gone),
            Event::Said(id, word) => self.take_word(now, *id, word),
            Event::Tick
            | Event::Heard(_)
            | Event::Upgrade(None)
            | Event::Respawn(None)
            | Event::SocketReplaced
            | Event::FileRead(..)
            | Event::HookEnded(..)
            | Event::PreparationFailed(..)
            | Event::Probed(..) => {}
        }
    }

    /// What was due in the meantime is given as much time again.
    fn oversleep(&mut self, now: Mono) {
        self.grant(PATIENCE);
        let proving =
            self.upgrade.as_ref().filter(|it| it.phase == Phase::Surging && !it.proven).map(|it| it.to);
        for worker in self.workers.values_mut() {
            let policy = &self.generations[&worker.generation].policy;
            let time = match worker.stage {
                Stage::Starting => policy.ready_timeout,
                Stage::Ready => worker.watchdog.unwrap_or_default(),
                Stage::Draining | Stage::Aborting => policy.drain_timeout,
                Stage::Killing | Stage::Stuck => STUCK_AFTER,
            };
            worker.deadline = worker.deadline.map(|at| at.max(now + time));
            worker.silent_since = worker.silent_since.map(|_| now);
            if worker.stage == Stage::Ready && Some(worker.generation) == proving {
                worker.ready_since = Some(now);
            }
        }
    }

    /// Whether the generation that serves may let its workers go: it is lazy, and nothing else is to be done.
    fn may_sleep(&self) -> bool {
        let of = &self.generations[&self.current];
        let is_busy = self.upgrade.is_some() || self.respawning || self.stop_by.is_some();
        of.policy.lazy && of.wanted() > 0 && !is_busy && self.check_alone(self.current).is_ok()
    }

    fn take_end(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.remove(&id) {
            let was_live = worker.stage.is_live();
            self.ending.insert(id, was_live);
            if was_live {
                self.lost(worker.generation);
            }
        }
    }

    fn take_wish(&mut self, now: Mono, request: RequestId, wish: Wish, to_replace: BTreeSet<WorkerId>) {
        let want = match wish {
            Wish::Rollback => match &self.upgrade {
                Some(upgrade) if upgrade.goes_back => Want::ThatUpgrade,
                // What it takes back is taken back for no fault of its own.
                Some(_) => Want::NotThatUpgrade,
                None if self.previous.is_some() => Want::Upgrade,
                None => Want::Impossible,
            },
            Wish::UpgradeTo => Want::Target,
            Wish::RespawnNow => Want::Respawn,
            Wish::Scale(scale) if self.scaled_as_asked(scale).is_none() => Want::Impossible,
            Wish::Scale(_) => Want::Possible,
            Wish::Stop | Wish::Kill => Want::End,
        };
        self.ask(request, want, to_replace);
        match wish {
            Wish::Rollback => {}
            Wish::UpgradeTo => self.target_to_come = Some(request),
            Wish::RespawnNow => self.kills_to_come = true,
            Wish::Scale(scale) => {
                self.disturb();
                self.scaling = self.scaled_as_asked(scale).unwrap_or_default();
            }
            Wish::Stop if self.stop_by.is_some() => {}
            Wish::Stop => self.take_stop(now, false),
            Wish::Kill => self.take_stop(now, true),
        }
    }

    fn ask(&mut self, request: RequestId, want: Want, stale: BTreeSet<WorkerId>) {
        let asked = Asked { after: self.last_begun, want, stale, answered: None };
        self.requests.insert(request, asked);
    }

    fn take_stop(&mut self, now: Mono, at_once: bool) {
        let longest = self.generations.values().map(|release| release.policy.drain_timeout).max();
        let time = if at_once { Duration::ZERO } else { longest.unwrap_or_default() };
        let kill_takes = if self.kills_slowly { STUCK_AFTER + 2 * KILL_TAKES } else { KILL_TAKES };
        let latest = now + time + kill_takes;
        let is_second = self.stop_by.is_some();
        if !is_second {
            self.same_wish_until = (!at_once).then(|| now + Duration::from_millis(200));
        }
        let latest = if is_second { now + kill_takes } else { latest };
        let asked_for = self.workers.values().filter_map(|worker| worker.deadline).max();
        let latest = if at_once || is_second {
            latest
        } else {
            latest.max(asked_for.map_or(Mono::ZERO, |at| at + kill_takes))
        };
        self.stop_by = Some(latest.min(self.stop_by.unwrap_or(latest)));
    }

    /// The workers that are to be replaced because of this event.
    fn stale_by(&self, event: &Event) -> BTreeSet<WorkerId> {
        let is_stale = |worker: &Seen| match event {
            Event::Respawn(_) => worker.stage == Stage::Ready,
            Event::SocketReplaced | Event::Asked(_, Wish::RespawnNow) => worker.stage.is_live(),
            _ => false,
        };
        self.workers.iter().filter(|(_, worker)| is_stale(worker)).map(|(id, _)| *id).collect()
    }

    fn take_word(&mut self, now: Mono, id: WorkerId, word: &Word) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.silent_since = None;
        match word {
            Word::Watchdog if worker.stage == Stage::Ready => {
                worker.deadline = worker.watchdog.map(|interval| now + interval);
            }
            Word::WatchdogInterval(interval) => {
                worker.watchdog = (!interval.is_zero()).then_some(*interval);
                if worker.stage == Stage::Ready {
                    worker.deadline = worker.watchdog.map(|interval| now + interval);
                }
            }
            // The kernel gives no time.
            Word::ExtendTimeout(_) if worker.stage == Stage::Killing => {}
            Word::ExtendTimeout(time) => {
                worker.deadline = worker.deadline.map(|at| at.max(now + *time));
                self.grant(*time);
                self.excuse_the_old();
            }
            Word::Drained if worker.stage == Stage::Draining => {
                worker.deadline = worker.deadline.map(|at| at.min(now + secs(1)));
            }
            _ => {}
        }
    }

    fn take_action(&mut self, now: Mono, event: &Event, action: &Action) -> Verdict {
        match action {
            Action::ReadFile(generation, target) => {
                ensure!(self.phase_of(*generation) == Some(Phase::Checking), "nobody checks it");
                let newest = self.target_to_come.take();
                ensure!(*target == newest, "the target of {newest:?} is to be read");
                self.upgrade.iter_mut().for_each(|upgrade| upgrade.target = *target);
            }
            Action::RunHook(generation) | Action::Prepare(generation) => {
                ensure!(self.phase_of(*generation) == Some(Phase::Checking), "nobody checks it");
            }
            Action::Reuse(generation, earlier) => {
                ensure!(self.phase_of(*generation) == Some(Phase::Checking), "nobody checks it");
                ensure!(Some(*earlier) == self.previous, "it is not the one that was committed before");
            }
            Action::CancelPreparation(generation) => {
                ensure!(*generation != self.current, "it serves");
                ensure!(!self.has_workers(*generation), "it has workers");
                self.generations.remove(generation);
                self.cancelled = Some(*generation);
            }
            Action::Start { worker, generation, slot } => {
                self.check_start(now, *worker, *generation, *slot)?;
            }
            Action::Probe(id) => {
                let worker = self.present(*id)?;
                ensure!(
                    worker.stage == Stage::Starting && worker.executed.is_some(),
                    "it is not to be probed"
                );
            }
            Action::Look(id, beside) => self.check_look(now, *id, *beside)?,
            Action::Drain(id) => {
                let worker = self.present(*id)?;
                ensure!(worker.stage == Stage::Draining, "nobody said that it drains");
                ensure!(!worker.signalled, "it was sent its drain signal before");
                worker.signalled = true;
            }
            Action::Abort(id) => {
                let worker = self.present(*id)?;
                ensure!(worker.stage.is_live(), "it leaves already");
                worker.stage = Stage::Aborting;
                let generation = worker.generation;
                let timeout = self.release(generation)?.policy.drain_timeout;
                let worker = self.present(*id)?;
                (worker.asked_at, worker.deadline) = (Some(now), Some(now + timeout));
                self.lost(generation);
            }
            Action::Kill(id) => self.check_kill(now, event, *id)?,
            Action::Examine(id) => {
                let worker = self.present(*id)?;
                ensure!(worker.stage == Stage::Killing, "it was not killed");
                ensure!(
                    worker.deadline.take().is_some_and(|at| at <= now),
                    "it has time left, or was asked after before"
                );
            }
            Action::RestoreSockets(generation) => {
                ensure!(*generation == self.current, "it does not serve");
                self.sockets_of = *generation;
            }
            Action::Forget(generation) => {
                ensure!(*generation != self.current, "it serves");
                ensure!(self.phase_of(*generation).is_none(), "it is being upgraded to");
                ensure!(!self.has_workers(*generation), "it has workers");
                ensure!(self.generations.remove(generation).is_some(), "it was let go before");
            }
            Action::TellHook(generation, outcome) => {
                let told = Some((*generation, outcome.clone()));
                ensure!(self.ended.take() == told, "no such upgrade has just ended");
            }
            Action::Answer(request, outcome) => self.check_answer(*request, outcome)?,
            Action::Tell(Notice::Worker(id, notice)) => self.check_worker_notice(now, event, *id, notice)?,
            Action::Tell(notice) => self.check_notice(now, notice)?,
            Action::Exit => {
                ensure!(self.stop_by.is_some(), "nobody asked for an end");
                ensure!(self.all_are_stuck(), "workers are left");
                ensure!(!self.has_guests, "connections are left");
                ensure!(!self.exited, "it ends twice");
                self.exited = true;
            }
        }
        Ok(())
    }

    /// Checks that a worker which said that it is ready is not taken for one that starts.
    fn check_heard(&self, id: WorkerId) -> Verdict {
        let Some(worker) = self.workers.get(&id) else { return Ok(()) };
        let asked_for = self.release(worker.generation)?.policy.readiness == Readiness::Notify;
        ensure!(!asked_for || worker.stage != Stage::Starting, "READY=1 was not heard");
        Ok(())
    }

    fn check_state(&mut self, now: Mono, manager: &Manager) -> Verdict {
        self.ending.clear();
        if !self.respawning {
            self.stale.clear();
            self.kills = false;
        }
        let spared = self.live().find(|worker| worker.outdated && self.kills);
        ensure!(spared.is_none(), "it was to be killed: {spared:?}");
        self.check_view(manager)?;
        ensure!(self.scaling.is_empty(), "not scaled: {:?}", self.scaling);
        for (id, worker) in &self.workers {
            let asked = worker.stage != Stage::Draining || worker.signalled;
            ensure!(asked, "worker {id} is to drain and was not sent its signal");
            let overdue = worker.deadline.is_some_and(|at| at <= now);
            ensure!(!overdue, "worker {id} is {:?} beyond its deadline", worker.stage);
        }
        self.check_silence_told(now)?;
        let next = manager.next_deadline();
        ensure!(next.is_none_or(|at| at > now), "it would spin: {next:?}");
        if let Some(upgrade) = &self.upgrade {
            let goes_on = matches!(upgrade.phase, Phase::Surging | Phase::Probation);
            ensure!(!goes_on || !upgrade.has_failed, "a failing worker does not roll the upgrade back");
        }
        let overdue = self.upgrade.as_ref().filter(|upgrade| upgrade.until < now);
        ensure!(overdue.is_none(), "the upgrade does not end: {overdue:?}");
        ensure!(
            self.exited || self.has_guests || self.stop_by.is_none_or(|at| now <= at),
            "the service does not end"
        );
        ensure!(self.ended.is_none(), "the hook was not told of {:?}", self.ended);
        if self.stop_by.is_some() {
            return Ok(());
        }
        self.check_started(now)?;
        let goes_back = self.upgrade.as_ref().is_none_or(|upgrade| upgrade.phase == Phase::RollingBack);
        let has_sockets = !goes_back || self.sockets_of == self.current;
        ensure!(has_sockets, "the sockets are as generation {} wants them", self.sockets_of);
        let idle: Vec<_> = self.generations.keys().filter(|id| !self.is_in_use(**id)).collect();
        for id in &idle {
            ensure!(self.has_workers(**id), "generation {id} is not let go of");
        }
        let draining = idle.into_iter().filter(|id| self.only_drains(**id)).count();
        let most = self.release(self.current)?.policy.max_generations as usize;
        ensure!(draining <= most, "{draining} generations drain, {most} may");
        Ok(())
    }

    /// Checks that the core's own view says what its actions said.
    fn check_view(&self, manager: &Manager) -> Verdict {
        let mut count = 0;
        for (id, worker) in manager.workers() {
            count += 1;
            let seen = self.workers.get(&id).ok_or(format!("worker {id} should not be there"))?;
            let same = worker.generation() == seen.generation
                && worker.slot() == seen.slot
                && worker.is_live() == seen.stage.is_live()
                && worker.is_ready() == (seen.stage == Stage::Ready)
                && worker.is_draining() == (seen.stage == Stage::Draining);
            ensure!(same, "worker {id} is {worker:?}, not {seen:?}");
        }
        ensure!(count == self.workers.len(), "a worker was dropped");
        ensure!(manager.current() == self.current, "the current generation is {}", manager.current());
        ensure!(manager.is_stopping() == self.stop_by.is_some(), "stopping or not?");
        ensure!(manager.has_served() == self.served, "served or not?");
        Ok(())
    }
}

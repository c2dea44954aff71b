//! PID 1 of a container under chance: managers that crash, hang, serve or end, and signals at any moment. The rules of
//! [`liveswap::core::pid1`] are checked after each event, by a record of their own.

use std::collections::VecDeque;
use std::time::Duration;

use liveswap::core::pid1::{Action, BUG, End, Event, Machine, Notice, Signal, TRIES};
use liveswap::core::time::Mono;

/// How many events the faults of a run go on for.
const FAULTS: u64 = 60;

/// How many events may pass before a run must have come to its end.
const MOST: u64 = 2_000;

const TERM: Signal = Signal { number: 15, is_stop: true };
const HUP: Signal = Signal { number: 1, is_stop: false };
const TTIN: Signal = Signal { number: 21, is_stop: false };

/// Numbers without end, from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// A manager that runs.
struct Manager {
    since: Mono,
    is_heard: bool,
    is_asked_to_stop: bool,
}

/// Whether an end is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Not,
    /// A manager is to bring it about.
    OfManager,
    /// No manager does: the last processes were told to end.
    OfOthers,
}

/// The container, as it is, and what must follow from that.
struct World {
    dice: Dice,
    machine: Machine,
    now: Mono,
    hears: bool,
    manager: Option<Manager>,
    /// Processes that managers have started.
    others: u64,
    /// What was sent and has yet to reach a manager.
    sent: VecDeque<Signal>,
    has_served: bool,
    crashes: u32,
    end: Wanted,
    sockets_are_closed: bool,
    exit: Option<i32>,
    /// The statuses that it may exit with now.
    may_exit: Vec<i32>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let hears = dice.below(4) > 0;
        Self {
            dice,
            machine: Machine::new(hears),
            now: Mono::ZERO,
            hears,
            manager: None,
            others: 0,
            sent: VecDeque::new(),
            has_served: false,
            crashes: 0,
            end: Wanted::Not,
            sockets_are_closed: false,
            exit: None,
            may_exit: Vec::new(),
        }
    }

    fn live(&mut self) -> Result<(), String> {
        for event in 0..MOST {
            self.step(event < FAULTS)?;
            if self.exit.is_some() {
                return Ok(());
            }
            // In the end an end is asked for, and asked for again where the first manager has crashed.
            if event >= FAULTS && event % 50 == 0 {
                self.signal(TERM)?;
            }
        }
        Err(format!("an end was asked for and does not come; {:?}", self.machine))
    }

    /// One thing happens.
    fn step(&mut self, faults: bool) -> Result<(), String> {
        match self.dice.below(if faults { 12 } else { 6 }) {
            0..=2 => self.wait(),
            3 => self.say(),
            4 | 5 => self.end_in_order(),
            6 | 7 => self.crash(),
            8 => self.signal(HUP),
            9 => self.signal(TTIN),
            10 if self.dice.below(6) == 0 => self.signal(TERM),
            _ => self.others_end(),
        }
    }

    /// Time passes to the next deadline, or beyond, or not so far.
    fn wait(&mut self) -> Result<(), String> {
        let next = self.machine.next_deadline();
        if self.manager.is_none() && next.is_none() && self.end != Wanted::OfOthers {
            return Err("nothing runs and nothing is due".into());
        }
        let further = Duration::from_millis(self.dice.below(15_000));
        let until = match next.filter(|_| self.dice.below(3) > 0) {
            Some(next) => next.max(self.now),
            None => self.now + further,
        };
        self.now = until;
        self.hand_in(Event::Tick)
    }

    fn say(&mut self) -> Result<(), String> {
        let ready = self.dice.below(2) == 0;
        if !self.hears {
            return Ok(());
        }
        let Some(manager) = &mut self.manager else { return Ok(()) };
        manager.is_heard = true;
        if ready {
            (self.has_served, self.crashes) = (true, 0);
            self.others = 1 + self.dice.below(3);
        }
        self.hand_in(Event::Said { ready })
    }

    /// A manager that was asked to stop does; another one exits with an error, or goes on.
    fn end_in_order(&mut self) -> Result<(), String> {
        match &self.manager {
            Some(manager) if manager.is_asked_to_stop => {
                self.others = 0;
                self.manager_ends(End::Code(0))
            }
            Some(_) if self.dice.below(8) == 0 => self.manager_ends(End::Code(3)),
            Some(_) | None => Ok(()),
        }
    }

    fn crash(&mut self) -> Result<(), String> {
        if self.manager.is_none() {
            return Ok(());
        }
        let end = if self.dice.below(3) == 0 { End::Code(BUG) } else { End::Signal(9) };
        self.manager_ends(end)
    }

    fn manager_ends(&mut self, end: End) -> Result<(), String> {
        let Some(manager) = self.manager.take() else { return Ok(()) };
        if !self.hears && self.now.since(manager.since) >= Duration::from_secs(10) {
            (self.has_served, self.crashes) = (true, 0);
        }
        let was_first = self.crashes == 0;
        let is_crash = matches!(end, End::Signal(_) | End::Code(BUG));
        let is_meant =
            !is_crash && (end == End::Code(0) || !self.has_served || was_first || self.others == 0);
        self.crashes += 1;
        if is_meant || !self.has_served && self.crashes >= TRIES {
            self.may_exit = vec![end.status()];
        } else if self.end != Wanted::Not && self.crashes > 1 {
            self.end = Wanted::OfOthers;
            self.may_exit = if self.others == 0 { vec![end.status()] } else { Vec::new() };
        }
        let must_exit = !self.may_exit.is_empty();
        self.hand_in(Event::ManagerEnded { end, others: self.others > 0 })?;
        if must_exit && self.exit.is_none() {
            return Err(format!("it goes on after the manager's end by {end:?}"));
        }
        let pause = self.machine.next_deadline().map_or(Duration::ZERO, |next| next.since(self.now));
        if pause > Duration::from_secs(10) {
            return Err(format!("another manager is started after {pause:?}"));
        }
        Ok(())
    }

    fn others_end(&mut self) -> Result<(), String> {
        self.others = self.others.saturating_sub(1);
        if self.others == 0 && self.end == Wanted::OfOthers {
            self.may_exit = vec![0, 3, BUG, 137];
        }
        self.hand_in(Event::Others(self.others > 0))?;
        if self.others == 0 && self.end == Wanted::OfOthers && self.exit.is_none() {
            return Err("no process is left, and it does not end".into());
        }
        Ok(())
    }

    fn signal(&mut self, signal: Signal) -> Result<(), String> {
        if signal.is_stop && self.end == Wanted::OfOthers {
            self.may_exit = vec![0, 3, BUG, 137];
        }
        if signal.is_stop && self.end == Wanted::Not {
            self.end = Wanted::OfManager;
        }
        self.sent.push_back(signal);
        self.hand_in(Event::Signal(signal))?;
        if self.end != Wanted::Not && !self.sockets_are_closed {
            return Err("the sockets stay open though an end was asked for".into());
        }
        if signal.is_stop && self.manager.is_none() && self.exit.is_none() && self.end != Wanted::OfOthers {
            return Err("an end that was asked for waits for a pause to pass".into());
        }
        Ok(())
    }

    fn hand_in(&mut self, event: Event) -> Result<(), String> {
        let mut actions = Vec::new();
        self.machine.handle(self.now, event, &mut actions);
        for action in actions {
            if self.exit.is_some() {
                return Err(format!("{action:?} after the exit"));
            }
            self.perform(action)?;
        }
        if self.machine.next_deadline().is_some_and(|at| at <= self.now) && self.exit.is_none() {
            return Err("what is due is not done".into());
        }
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<(), String> {
        match action {
            Action::Start if self.manager.is_some() => return Err("two managers at a time".into()),
            Action::Start if self.end == Wanted::OfOthers => {
                return Err("a manager after the end was taken over".into());
            }
            Action::Start => {
                self.manager = Some(Manager { since: self.now, is_heard: false, is_asked_to_stop: false });
                // One that an end is wanted of still hears of it, and first.
                if self.end != Wanted::Not && !self.sent.iter().any(|signal| signal.is_stop) {
                    self.sent.push_front(TERM);
                }
            }
            Action::Pass(number) => {
                let Some(manager) = &mut self.manager else { return Err("a signal to no manager".into()) };
                let silence = Duration::from_millis(if self.hears { 5_000 } else { 500 });
                if !manager.is_heard && self.now.since(manager.since) < silence {
                    return Err("a signal to a manager that may not obey it yet".into());
                }
                let Some(first) = self.sent.pop_front() else { return Err(format!("signal {number} again")) };
                if first.number != number {
                    return Err(format!("signal {number} before {}", first.number));
                }
                manager.is_asked_to_stop |= first.is_stop;
            }
            Action::EndOthers if self.end != Wanted::OfOthers => {
                return Err("others are ended for no reason".into());
            }
            Action::EndOthers => {}
            Action::CloseSockets if self.end == Wanted::Not => {
                return Err("the sockets go for no reason".into());
            }
            Action::CloseSockets => self.sockets_are_closed = true,
            Action::Tell(Notice::AnotherTakesOver) if self.machine.next_deadline().is_none() => {
                return Err("another manager is announced, and none is about to start".into());
            }
            Action::Tell(_) => {}
            Action::Exit(status) if self.may_exit.contains(&status) => self.exit = Some(status),
            Action::Exit(status) => return Err(format!("it exits with {status} for no reason")),
        }
        Ok(())
    }
}

/// Tries the seeds; returns the first that fails, and why.
pub fn search(mut seeds: impl Iterator<Item = u64>) -> Option<(u64, String)> {
    seeds.find_map(|seed| World::new(seed).live().err().map(|why| (seed, format!("PID 1: {why}"))))
}

#[test]
fn whatever_becomes_of_managers_the_container_lives_and_ends_as_it_should() {
    assert_eq!(search(0..20_000), None);
}

/// The pauses between managers that crash in a row.
fn pauses(machine: &mut Machine, crashes: usize) -> Vec<Duration> {
    let mut now = machine.next_deadline().expect("a start");
    let mut pauses = Vec::new();
    for _ in 0..crashes {
        let mut out = Vec::new();
        machine.handle(now, Event::Tick, &mut out);
        machine.handle(now, Event::ManagerEnded { end: End::Signal(9), others: true }, &mut out);
        let Some(next) = machine.next_deadline() else { break };
        pauses.push(next.since(now));
        now = next;
    }
    pauses
}

#[test]
fn a_manager_that_crashes_before_it_served_is_tried_a_few_times() {
    let mut machine = Machine::new(true);
    let milliseconds = pauses(&mut machine, 10).into_iter().map(|pause| pause.as_millis());
    assert_eq!(milliseconds.collect::<Vec<_>>(), [100, 200, 400, 800]);
}

#[test]
fn what_has_served_is_never_given_up_and_never_hurried() {
    let mut machine = Machine::new(true);
    let mut out = Vec::new();
    machine.handle(Mono::ZERO, Event::Tick, &mut out);
    machine.handle(Mono::ZERO, Event::Said { ready: true }, &mut out);
    machine.handle(Mono::ZERO, Event::ManagerEnded { end: End::Signal(11), others: true }, &mut out);
    assert_eq!(out.last(), Some(&Action::Tell(Notice::AnotherTakesOver)));
    let pauses = pauses(&mut machine, 50);
    assert_eq!((pauses.len(), pauses.last()), (50, Some(&Duration::from_secs(10))));
}

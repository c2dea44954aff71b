//! The first process of a container, which looks after a manager, as a pure state machine: when a manager is started, which signals it is
//! passed, and when and with which status all ends.
//!
//! [`Machine::handle`] takes an [`Event`] and a moment and appends the [`Action`]s that follow. What always holds (the tests check it):
//!
//! 1. There is one manager at a time.
//! 2. A signal is passed once, in the order of arrival, to a manager that obeys signals by then.
//! 3. Once a manager has served, the container ends by nothing but a manager's own will or a signal that asks for the end.
//! 4. As long as it has not ended, a manager runs, or one is about to be started, or the last processes are waited for.
//! 5. A signal that asks for the end brings it about, whatever the managers do.

use std::collections::VecDeque;
use std::time::Duration;

use super::time::Mono;

/// The exit status after a bug of ours (`EX_SOFTWARE` of sysexits.h).
pub const BUG: i32 = 70;

/// How many managers may crash before any of them has served.
pub const TRIES: u32 = 5;

/// How soon another manager is started, and the longest pause between two that crash in a row.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// After so long a manager that has said nothing is signalled all the same; and where it cannot say anything.
const SILENCE: Duration = Duration::from_secs(5);
const MUTE: Duration = Duration::from_millis(500);

/// A manager that cannot say that it is ready has served if it has lived for so long.
const LIFE: Duration = Duration::from_secs(10);

/// How many signals may wait for a manager; those beyond them are lost, but for one that asks for the end.
const MOST_WAITING: usize = 1024;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passes: a deadline may be due.
    Tick,
    /// The manager has said something; whether that it is ready.
    Said {
        /// `READY=1`.
        ready: bool,
    },
    /// A signal has come.
    Signal(Signal),
    /// The manager has ended, or could not be started ([`BUG`]). `others` tells whether processes are left that a manager has started.
    ManagerEnded {
        /// How.
        end: End,
        /// Whether others are left.
        others: bool,
    },
    /// Other children have ended; whether any are left.
    Others(bool),
}

/// A signal by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// Whether it asks for the end: SIGTERM, SIGINT, SIGQUIT.
    pub is_stop: bool,
}

/// How a manager has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Code(i32),
    /// This signal has killed it.
    Signal(i32),
}

impl End {
    /// Returns the exit status that tells of it as a shell does.
    pub fn status(self) -> i32 {
        match self {
            Self::Code(status) => status,
            Self::Signal(number) => 128 + number,
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a manager. That it cannot be started is the end of it by [`BUG`].
    Start,
    /// Send the manager this signal.
    Pass(i32),
    /// Send SIGTERM to all processes that managers have started.
    EndOthers,
    /// Close the sockets that managers have stored: nobody is to serve the clients that wait in their queues.
    CloseSockets,
    /// Say this.
    Tell(Notice),
    /// Exit with this status; nothing follows.
    Exit(i32),
}

/// What there is to say of the end of a manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Another manager takes over.
    AnotherTakesOver,
    /// It is the last of so many that crashed before they served.
    GivenUp,
    /// An end is wanted, and no manager brings it about.
    NoManagerEndsIt,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Whether managers have a socket to speak to us.
    hears: bool,
    manager: Option<Life>,
    /// When one is started, where none runs.
    start_at: Option<Mono>,
    /// Whether any manager was ready.
    has_served: bool,
    /// How many have crashed since one of them was last ready.
    crashes: u32,
    /// Signals that wait for a manager which obeys them.
    waiting: VecDeque<Signal>,
    /// The end that was asked for first.
    stop: Option<Signal>,
    /// No manager brings that about: it ends with this status when no other process is left.
    ending: Option<i32>,
    has_ended: bool,
}

/// The life of a manager.
#[derive(Clone, Copy, Debug)]
struct Life {
    since: Mono,
    /// When it is taken to obey signals though it has said nothing; `None` once it does.
    up_at: Option<Mono>,
}

impl Machine {
    /// Begins with no manager; the first is started at once. `hears` tells whether managers have a socket to speak to us.
    pub fn new(hears: bool) -> Self {
        Self {
            hears,
            manager: None,
            start_at: Some(Mono::ZERO),
            has_served: false,
            crashes: 0,
            waiting: VecDeque::new(),
            stop: None,
            ending: None,
            has_ended: false,
        }
    }

    /// Whether an end was asked for.
    pub fn is_stopping(&self) -> bool {
        self.stop.is_some()
    }

    /// Returns the moment at which [`Event::Tick`] is due; `None`: never, as things stand.
    pub fn next_deadline(&self) -> Option<Mono> {
        let up_at = self.manager.and_then(|manager| manager.up_at);
        self.start_at.into_iter().chain(up_at).min().filter(|_| !self.has_ended)
    }

    /// Takes an event that happened at `now` and appends what is to be done.
    pub fn handle(&mut self, now: Mono, event: Event, out: &mut Vec<Action>) {
        match event {
            _ if self.has_ended => return,
            Event::Tick | Event::Others(true) => {}
            Event::Said { ready } => {
                if let Some(manager) = &mut self.manager {
                    manager.up_at = None;
                    if ready {
                        self.note_ready();
                    }
                }
            }
            Event::Signal(signal) => self.signalled(now, signal, out),
            Event::ManagerEnded { end, others } => self.manager_ended(now, end, others, out),
            Event::Others(false) => {
                if let Some(status) = self.ending {
                    self.exit(status, out);
                }
            }
        }
        self.go_on(now, out);
    }

    /// Starts a manager where one is due, and passes on what waits for one that obeys signals.
    fn go_on(&mut self, now: Mono, out: &mut Vec<Action>) {
        if self.has_ended {
            return;
        }
        if self.start_at.take_if(|at| *at <= now).is_some() {
            let silence = if self.hears { SILENCE } else { MUTE };
            self.manager = Some(Life { since: now, up_at: Some(now + silence) });
            out.push(Action::Start);
        }
        if let Some(manager) = &mut self.manager {
            manager.up_at = manager.up_at.filter(|at| *at > now);
            if manager.up_at.is_none() {
                out.extend(self.waiting.drain(..).map(|signal| Action::Pass(signal.number)));
            }
        }
    }

    fn signalled(&mut self, now: Mono, signal: Signal, out: &mut Vec<Action>) {
        if signal.is_stop {
            if let Some(status) = self.ending {
                // Once more: at once. The kernel ends all that is left with us.
                return self.exit(status, out);
            }
            if self.stop.is_none() {
                self.stop = Some(signal);
                // Or clients would wait in their queues until the end.
                out.push(Action::CloseSockets);
            }
            // An end does not wait for a pause to pass.
            self.start_at = self.start_at.map(|_| now);
        }
        let is_first_stop = signal.is_stop && !self.waiting.iter().any(|waiting| waiting.is_stop);
        if is_first_stop || self.waiting.len() < MOST_WAITING {
            self.waiting.push_back(signal);
        }
    }

    fn note_ready(&mut self) {
        (self.has_served, self.crashes) = (true, 0);
    }

    /// What a manager meant to exit with is the container's status. After a crash another one follows as long as there may be workers
    /// that serve; where none ever has, only so often. One that cannot take over is no reason to end `others` that serve.
    fn manager_ended(&mut self, now: Mono, end: End, others: bool, out: &mut Vec<Action>) {
        let Some(life) = self.manager.take() else { return };
        if !self.hears && life.since + LIFE <= now {
            self.note_ready();
        }
        let is_successor = self.has_served && self.crashes > 0;
        let is_meant = match end {
            End::Code(0) => true,
            End::Code(BUG) | End::Signal(_) => false,
            End::Code(_) => !(is_successor && others),
        };
        if is_meant {
            return self.exit(end.status(), out);
        }
        self.crashes = self.crashes.saturating_add(1);
        if !self.has_served && self.crashes >= TRIES {
            if matches!(end, End::Signal(_) | End::Code(BUG)) {
                out.push(Action::Tell(Notice::GivenUp));
            }
            return self.exit(end.status(), out);
        }
        match self.stop {
            Some(_) if self.crashes > 1 => {
                out.push(Action::Tell(Notice::NoManagerEndsIt));
                out.push(Action::EndOthers);
                self.ending = Some(end.status());
                if !others {
                    self.exit(end.status(), out);
                }
            }
            Some(stop) => {
                out.push(Action::Tell(Notice::AnotherTakesOver));
                // The end is wanted still: the next manager hears of it first, and once.
                if !self.waiting.iter().any(|signal| signal.is_stop) {
                    self.waiting.push_front(stop);
                }
                self.start_at = Some(now);
            }
            None => {
                out.push(Action::Tell(Notice::AnotherTakesOver));
                let doublings = (self.crashes - 1).min(31);
                self.start_at = Some(now + PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE));
            }
        }
    }

    fn exit(&mut self, status: i32, out: &mut Vec<Action>) {
        self.has_ended = true;
        out.push(Action::Exit(status));
    }
}

//! A job: a child that does one thing, with what it writes, the time that it may take, and how it ended.
//!
//! It is work that a fork of the manager does ([`ForkedWork`]), or a program: a hook, a probe, the trial of another manager. Whose it is
//! and what follows from its end, its role tells (`super::super::run::Role`).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::OwnedFd;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::super::token::{Poller, Token, Watched};
use crate::core::time::Mono;
use crate::sys::fork::ForkedWork;
use crate::sys::handover::{HandOver, Luggage, Unpacked, hand_over};
use crate::sys::reaper::Exit;
use crate::sys::spawn::{Report, Spawned};
use crate::sys::wait::Interest;

/// How much is kept of what a program writes, in bytes: the beginning.
const MAX_SAID: usize = 16 * 1024;

/// The jobs under way, by pid.
pub type Jobs = BTreeMap<Pid, Job>;

/// A job under way.
#[derive(Debug)]
pub struct Job {
    child: Child,
    said: Vec<u8>,
    /// When it is given up; `None` where the core or its owner decides that.
    pub until: Option<Mono>,
}

hand_over!(Job as JobState { child: Child, said: Vec<u8>, until: Option<Mono> });

/// What does it.
#[derive(Debug)]
pub enum Child {
    /// A fork of the manager; it writes its result.
    Fork(Box<Watched<ForkedWork>>),
    /// A program, and what it writes where that is kept.
    Program(Watched<Spawned>, Option<Watched<File>>),
}

/// How a job ended.
#[derive(Debug)]
pub struct Ended {
    /// What it wrote.
    pub said: Vec<u8>,
    /// The file that it opened.
    pub file: Option<OwnedFd>,
    /// Whether it exited with status 0, or else how it failed.
    pub result: Result<(), Failure>,
}

/// How a job failed.
#[derive(Clone, Debug)]
pub enum Failure {
    /// It ended otherwise than with status 0.
    Exit(Exit),
    /// Its program could not be executed.
    NotStarted(String),
    /// What it wrote could not be read.
    Unreadable(String),
    /// It was killed, as its time was over.
    TooLate,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(exit) => exit.fmt(f),
            Self::NotStarted(why) => write!(f, "could not be started: {why}"),
            Self::Unreadable(why) => write!(f, "could not be read: {why}"),
            Self::TooLate => f.write_str("took too long"),
        }
    }
}

impl Job {
    /// A fork of the manager.
    pub fn work(work: ForkedWork) -> Self {
        Self::of(Child::Fork(Box::new(work.into())))
    }

    /// A program whose output is not kept.
    pub fn program(program: impl Into<Watched<Spawned>>) -> Self {
        Self::of(Child::Program(program.into(), None))
    }

    /// A program whose output comes by this pipe.
    pub fn program_that_says(program: Spawned, output: File) -> Self {
        Self::of(Child::Program(program.into(), Some(output.into())))
    }

    fn of(child: Child) -> Self {
        Self { child, said: Vec::new(), until: None }
    }

    /// Returns its process.
    pub fn pid(&self) -> Pid {
        match &self.child {
            Child::Fork(work) => work.pid,
            Child::Program(program, _) => program.pid,
        }
    }

    /// Whether it is a program.
    pub fn is_program(&self) -> bool {
        matches!(self.child, Child::Program(..))
    }

    /// Returns how its program starts, where it is one.
    pub fn start(&mut self) -> Option<&mut Watched<Spawned>> {
        match &mut self.child {
            Child::Fork(_) => None,
            Child::Program(program, _) => Some(program),
        }
    }

    /// Has what it writes watched.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub fn watch(&self, poller: &Poller) -> io::Result<()> {
        let token = Token::Job(self.pid().as_raw());
        match &self.child {
            Child::Fork(work) => work.watch(poller, token, Interest::Read),
            Child::Program(_, Some(output)) => output.watch(poller, token, Interest::Read),
            Child::Program(_, None) => Ok(()),
        }
    }

    /// Takes what it has written by now, so that it never waits for us. After the end of it nothing is watched.
    ///
    /// # Errors
    ///
    /// Those of read(2) and recvmsg(2).
    pub fn read(&mut self) -> io::Result<()> {
        match &mut self.child {
            Child::Fork(work) => {
                let is_all = work.read(&mut self.said);
                if !matches!(is_all, Ok(false)) {
                    work.unwatch();
                }
                is_all.map(drop)
            }
            Child::Program(_, Some(output)) => {
                let is_all = read_all(output, &mut self.said);
                if !matches!(is_all, Ok(false)) {
                    output.unwatch();
                }
                is_all.map(drop)
            }
            Child::Program(_, None) => Ok(()),
        }
    }

    /// Takes its end, once the child has been reaped.
    pub fn finish(mut self, exit: Exit) -> Ended {
        let read = self.read();
        let result = match (exit, self.start_failure()) {
            (_, Some(why)) => Err(Failure::NotStarted(why)),
            (Exit::Code(0), None) => read.map_err(|error| Failure::Unreadable(error.to_string())),
            (exit, None) => Err(Failure::Exit(exit)),
        };
        let file = match &mut self.child {
            Child::Fork(work) => work.file.take(),
            Child::Program(..) => None,
        };
        Ended { said: self.said, file, result }
    }

    fn start_failure(&mut self) -> Option<String> {
        match self.start()?.report() {
            Ok(Report::Failed(failure)) => Some(failure.to_string()),
            Ok(Report::NotYet | Report::Executed) | Err(_) => None,
        }
    }
}

impl Ended {
    /// How a job ended whose child is not known to have ended: it was given up.
    pub fn too_late() -> Self {
        Self { said: Vec::new(), file: None, result: Err(Failure::TooLate) }
    }

    /// How a job ended of which nothing but the exit is known.
    pub fn by(exit: Exit) -> Self {
        let result = if exit == Exit::Code(0) { Ok(()) } else { Err(Failure::Exit(exit)) };
        Self { said: Vec::new(), file: None, result }
    }
}

/// Reads what was written by now, and keeps the beginning; returns whether that was all.
fn read_all(output: &mut File, said: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; MAX_SAID];
    loop {
        match output.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(count) => said.extend(&buffer[..count.min(MAX_SAID - said.len())]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A [`Child`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub enum ChildState {
    /// A fork of the manager.
    Fork(<ForkedWork as HandOver>::State),
    /// A program.
    Program(<Spawned as HandOver>::State, <Option<File> as HandOver>::State),
}

impl HandOver for Child {
    type State = ChildState;

    fn pack(&self, luggage: &mut Luggage) -> ChildState {
        match self {
            Self::Fork(work) => ChildState::Fork(work.pack(luggage)),
            Self::Program(program, output) => {
                ChildState::Program(program.pack(luggage), output.pack(luggage))
            }
        }
    }

    fn unpack(state: ChildState, luggage: &mut Unpacked) -> io::Result<Self> {
        Ok(match state {
            ChildState::Fork(work) => Self::Fork(Box::new(HandOver::unpack(work, luggage)?)),
            ChildState::Program(program, output) => {
                Self::Program(HandOver::unpack(program, luggage)?, HandOver::unpack(output, luggage)?)
            }
        })
    }
}

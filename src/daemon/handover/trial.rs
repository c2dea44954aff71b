//! The trial of the program at our path, and the step into its place.

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::Pid;
use tracing::{info, warn};

use super::super::control::Asker;
use super::super::run::{Daemon, Role};
use super::super::token::Token;
use super::{State, UNDERSTOOD, environment, seal};
use crate::core::spec::is_protocol_variable;
use crate::core::time::Mono;
use crate::core::word::one_line;
use crate::sys::exec::become_program;
use crate::sys::handover::Luggage;
use crate::sys::output::output_pipe;
use crate::sys::process::kill_tree;
use crate::sys::program_file::FileIdentity;
use crate::sys::signals::block_early;
use crate::sys::spawn::{Launch, spawn};
use crate::sys::strings::CStrings;
use crate::sys::wait::Interest;
use crate::wire::control::Reply;

/// How long the program at our path may take to say that it understands.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of what it says is kept, in bytes.
const MAX_SAID: usize = 4096;

/// The subcommand that tries a state, before the words with which the program would be executed.
const SUBCOMMAND: &str = "try-handover";

/// Who is to come after us.
#[derive(Debug)]
pub struct Successor {
    /// Where the program stands that this manager is, or what comes after it.
    pub(in super::super) program: PathBuf,
    /// The wish for it to come now.
    pub(in super::super) wish: Option<Reexec>,
}

impl Successor {
    /// Nobody wants one yet.
    pub(in super::super) fn at(program: PathBuf) -> Self {
        Self { program, wish: None }
    }
}

/// The wish for another manager in our place.
#[derive(Debug)]
pub struct Reexec {
    askers: Vec<Asker>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// A child is being shown the state.
    Trying(Trial),
    /// This file has understood, as [`identity`] names it.
    Tried(String),
}

#[derive(Debug)]
struct Trial {
    pid: Pid,
    output: File,
    said: Vec<u8>,
    until: Mono,
}

impl Reexec {
    /// Returns when a trial takes too long.
    pub fn deadline(&self) -> Option<Mono> {
        self.trial().map(|trial| trial.until)
    }

    /// Gives up, and returns those who wait.
    pub fn into_askers(self) -> Vec<Asker> {
        self.askers
    }

    fn trial(&self) -> Option<&Trial> {
        match &self.stage {
            Stage::Trying(trial) => Some(trial),
            Stage::Tried(_) => None,
        }
    }
}

impl Trial {
    /// Takes what was written by now; returns whether that was all.
    fn read(&mut self) -> bool {
        let mut buffer = [0; MAX_SAID];
        loop {
            match self.output.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => {
                    let room = MAX_SAID - self.said.len();
                    self.said.extend(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
    }

    /// Returns which file has understood, or why none has; `how` it ended, and whether with status 0.
    fn result(&self, done: bool, how: &str) -> Result<String, String> {
        let said = String::from_utf8_lossy(&self.said);
        let said = one_line(said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default());
        match (done, said.strip_prefix(UNDERSTOOD)) {
            (true, Some(file)) => Ok(file.to_owned()),
            (true, None) => Err("it is no liveswap that can take over".into()),
            (false, _) if said.is_empty() => Err(format!("it {how}")),
            (false, _) => Err(format!("it {how}: {}", said.trim_start_matches("Error: "))),
        }
    }
}

impl Daemon {
    /// Begins to replace this manager by the program at its path; any number of wishes are one.
    pub(in super::super) fn want_reexec(&mut self, asker: Option<Asker>) {
        let (waiting, others): (Vec<_>, Vec<_>) = asker.into_iter().partition(Asker::waits);
        for asker in others {
            self.control.accept(asker);
        }
        if let Some(reexec) = &mut self.successor.wish {
            reexec.askers.extend(waiting);
            return;
        }
        match self.begin_trial() {
            Ok(trial) => {
                info!("trying {} as the next manager (pid {})", self.successor.program.display(), trial.pid);
                self.successor.wish = Some(Reexec { askers: waiting, stage: Stage::Trying(trial) });
            }
            Err(error) => self.stay(waiting, &error.to_string()),
        }
    }

    fn begin_trial(&mut self) -> io::Result<Trial> {
        if self.ended {
            return Err(io::Error::other("the service has ended"));
        }
        let mut luggage = Luggage::default();
        let memory = seal(&State::of(self, &[], &mut luggage), &luggage)?;
        let (output, theirs) = output_pipe()?;
        let words = [self.successor.program.clone().into(), SUBCOMMAND.into()];
        let words: Vec<OsString> = words.into_iter().chain(env::args_os().skip(1)).collect();
        let mut variables = CStrings::default();
        let is_own = |name: &OsString| name.to_str().is_some_and(is_protocol_variable);
        for (name, value) in env::vars_os().filter(|(name, _)| !is_own(name)) {
            variables.push(&[name.as_bytes(), b"=", value.as_bytes()])?;
        }
        let child = spawn(Launch {
            pinned: None,
            programs: CStrings::of([self.successor.program.as_os_str().as_bytes()])?,
            arguments: CStrings::of(words.iter().map(|word| word.as_bytes()))?,
            shared_environment: Rc::new(variables),
            environment: CStrings::default(),
            pid_variables: Vec::new(),
            directory: CString::new("/")?,
            credentials: None,
            umask: None,
            limits: Vec::new(),
            ignore_sigpipe: false,
            held_signals: 0,
            descriptors: vec![memory.as_fd()],
            cgroup: None,
            stdin: None,
            stdout: Some(theirs.as_fd().into()),
            stderr: Some(theirs.as_fd().into()),
        })?;
        let trial = Trial { pid: child.pid, output, said: Vec::new(), until: self.now() + PATIENCE };
        self.employ(Role::Trial, child);
        if let Err(error) = self.poller.add(&trial.output, Token::Trial.pack(), Interest::Read) {
            self.give_up(&trial);
            return Err(error);
        }
        Ok(trial)
    }

    /// Takes what the program that is tried has written by now.
    pub(in super::super) fn read_trial(&mut self) {
        if let Some(Reexec { stage: Stage::Trying(trial), .. }) = &mut self.successor.wish
            && trial.read()
        {
            let _ = self.poller.remove(&trial.output);
        }
    }

    /// Takes the end of the trial.
    pub(in super::super) fn tried(&mut self, done: bool, how: &str) {
        self.read_trial();
        // One that took too long was given up.
        let Some(Reexec { askers, stage: Stage::Trying(trial) }) = self.successor.wish.take() else { return };
        let _ = self.poller.remove(&trial.output);
        match trial.result(done, how) {
            Ok(file) => self.successor.wish = Some(Reexec { askers, stage: Stage::Tried(file) }),
            Err(why) => self.stay(askers, &why),
        }
    }

    /// Gives up a trial that takes too long.
    pub(in super::super) fn end_late_trial(&mut self) {
        let now = self.now();
        let is_late = |reexec: &mut Reexec| reexec.deadline().is_some_and(|at| at <= now);
        let Some(reexec) = self.successor.wish.take_if(is_late) else { return };
        if let Some(trial) = reexec.trial() {
            let _ = self.poller.remove(&trial.output);
            self.give_up(trial);
        }
        let why = format!("it has not said in {} s whether it understands", PATIENCE.as_secs());
        self.stay(reexec.askers, &why);
    }

    fn give_up(&mut self, trial: &Trial) {
        self.helpers.remove(&trial.pid);
        if self.roles.remove(&trial.pid).is_some()
            && let Err(error) = kill_tree(trial.pid)
        {
            warn!("cannot kill process {}: {error}", trial.pid);
        }
    }

    /// Hands over to the program that was tried, where one was. It returns only where this manager goes on, and then says
    /// whether something has come meanwhile that is to be dealt with first.
    pub(in super::super) fn hands_over(&mut self) -> bool {
        let is_tried = matches!(self.successor.wish, Some(Reexec { stage: Stage::Tried(_), .. }));
        // What is being recorded, and who waits for it, is not handed over: it is a matter of a moment.
        if !is_tried || self.targets.recording.is_some() {
            return false;
        }
        // From here on signals wait for whoever is the manager then; those that have come are ours.
        let blocked = block_early();
        self.take_signals();
        if self.inbox.is_empty()
            && let Some(Reexec { askers, stage: Stage::Tried(file) }) = self.successor.wish.take()
        {
            let Err(why) = blocked.and_then(|()| self.step_down(&askers, &file));
            self.stay(askers, &why.to_string());
        }
        if let Err(error) = self.signals.let_in() {
            warn!("cannot let signals in: {error}");
        }
        true
    }

    fn step_down(&mut self, askers: &[Asker], tried: &str) -> io::Result<Infallible> {
        if self.ended {
            return Err(io::Error::other("the service has ended"));
        }
        if FileIdentity::at(&self.successor.program)?.to_string() != tried {
            return Err(io::Error::other("it was replaced while it was tried"));
        }
        info!("handing over to {}", self.successor.program.display());
        self.outputs.flush(&self.poller);
        // What a closer has not closed by then, execve(2) closes, and may wait for it.
        self.loose_ends.barriers.clear();
        self.loose_ends.closers.finish();
        self.roles.retain(|_, role| *role != Role::Closer);
        let mut luggage = Luggage::default();
        let memory = seal(&State::of(self, askers, &mut luggage), &luggage)?;
        let environment = environment(luggage.put(&memory));
        let arguments: Vec<_> = env::args_os().collect();
        Err(become_program(&self.successor.program, &arguments, &environment, &luggage))
    }

    /// Says why this manager stays.
    fn stay(&mut self, askers: Vec<Asker>, why: &str) {
        let why = format!("{}: {why}", self.successor.program.display());
        warn!("the manager is not replaced, and goes on: {why}");
        for asker in askers {
            self.control.reply(asker, Reply::failed("reexec", &why));
        }
    }
}

//! The trial of the program at our path, and the step into its place.

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::Pid;
use tracing::{info, warn};

use super::super::control::Asker;
use super::super::host::{Ended, Failure, Job};
use super::super::run::{Daemon, Role};
use super::{State, UNDERSTOOD, environment, seal};
use crate::core::spec::is_protocol_variable;
use crate::core::word::one_line;
use crate::sys::exec::become_program;
use crate::sys::handover::Luggage;
use crate::sys::output::output_pipe;
use crate::sys::program_file::FileIdentity;
use crate::sys::signals::block_early;
use crate::sys::spawn::{Launch, spawn};
use crate::sys::strings::CStrings;
use crate::wire::control::Reply;

/// How long the program at our path may take to say that it understands.
const PATIENCE: Duration = Duration::from_secs(10);

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
    Trying,
    /// This file has understood, as [`own_identity`](crate::sys::exec::own_identity) names it.
    Tried(String),
}

impl Reexec {
    /// Gives up, and returns those who wait.
    pub fn into_askers(self) -> Vec<Asker> {
        self.askers
    }
}

/// Returns which file has understood, or why none has.
fn understood(ended: &Ended) -> Result<String, String> {
    let said = String::from_utf8_lossy(&ended.said);
    let said = one_line(said.lines().find(|line| !line.trim().is_empty()).unwrap_or_default());
    match (&ended.result, said.strip_prefix(UNDERSTOOD)) {
        (Ok(()), Some(file)) => Ok(file.to_owned()),
        (Ok(()), None) => Err("it is no liveswap that can take over".into()),
        (Err(Failure::TooLate), _) => {
            Err(format!("it has not said in {} s whether it understands", PATIENCE.as_secs()))
        }
        (Err(failure), _) if said.is_empty() => Err(format!("it {failure}")),
        (Err(failure), _) => Err(format!("it {failure}: {}", said.trim_start_matches("Error: "))),
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
            Ok(pid) => {
                info!("trying {} as the next manager (pid {pid})", self.successor.program.display());
                self.successor.wish = Some(Reexec { askers: waiting, stage: Stage::Trying });
            }
            Err(error) => self.stay(waiting, &error.to_string()),
        }
    }

    fn begin_trial(&mut self) -> io::Result<Pid> {
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
        self.begin_job(Role::Trial, Job::program_that_says(child, output), Some(PATIENCE))
    }

    /// Takes the end of the trial.
    pub(in super::super) fn tried(&mut self, ended: &Ended) {
        let Some(Reexec { askers, stage: Stage::Trying }) = self.successor.wish.take() else { return };
        match understood(ended) {
            Ok(file) => self.successor.wish = Some(Reexec { askers, stage: Stage::Tried(file) }),
            Err(why) => self.stay(askers, &why),
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
        self.outputs.flush(&self.host.poller);
        // What a closer has not closed by then, execve(2) closes, and may wait for it.
        self.loose_ends.barriers.clear();
        self.loose_ends.closers.finish();
        self.host.roles.retain(|_, role| *role != Role::Closer);
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

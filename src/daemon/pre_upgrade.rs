//! The hook `[upgrade] pre_upgrade`: it is told the target of an upgrade, and may name another one or refuse.
//!
//! A Node module exports `function (data, callback)`, as it did for the liveswap that was written in Node: `data.value` is what was
//! typed, or empty; `callback(error)` refuses, `callback(null, path)` names another target. Any other executable has what was typed as
//! its argument, and may print a path as its last line.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::path::Path;

use nix::unistd::Pid;
use serde::Deserialize;
use tracing::info;

use super::host::Job;
use super::launch::{self, Common, Place};
use super::outlet::OUTPUT;
use super::prepare::Stage;
use super::release::Release;
use super::run::{Daemon, Role};
use super::target::Wanted;
use super::token::{Poller, Token, Watched};
use crate::core::Event;
use crate::core::ids::GenerationId;
use crate::core::word::one_line;
use crate::sys::handover::hand_over;
use crate::sys::output::output_pipe;
use crate::sys::spawn::{Launch, Spawned, spawn};
use crate::sys::wait::Interest;
use crate::wire::control::{MAX_PATH, NamedTarget};
use crate::wire::lines::{Line, Lines};

/// Has a module called as it was by the old liveswap; what it calls back comes as a line of JSON on descriptor 3.
const CALL: &str = include_str!("pre_upgrade.js");

/// The longest line that is understood, in bytes: a path, or an error of a module.
const MAX_LINE: usize = 16 * 1024;

/// How much of its output is read at a time, and how often when it has ended.
const READ_SIZE: usize = 16 * 1024;
const LAST_READS: usize = 64;

/// The hook as it runs.
#[derive(Debug)]
pub(super) struct PreUpgrade {
    pid: i32,
    output: Watched<File>,
    lines: Lines,
    /// What it said last that was not blank.
    last: String,
    is_node: bool,
}

hand_over!(PreUpgrade as PreUpgradeState { pid: i32, output: Watched<File>, lines: Lines, last: String, is_node: bool });

/// What a module called back.
#[derive(Deserialize)]
struct CalledBack {
    error: Option<String>,
    value: Option<String>,
}

impl PreUpgrade {
    fn start(place: Place<'_>, hook: &Path, typed: &str) -> io::Result<(Self, Spawned)> {
        let (output, theirs) = output_pipe()?;
        let path = hook.to_string_lossy().into_owned();
        let is_node = place.release.pre_upgrade_is_node;
        let words = if is_node {
            vec!["node".into(), "-e".into(), CALL.into(), path, typed.to_owned()]
        } else {
            vec![path, typed.to_owned()]
        };
        let launch = launch::program(place, &words)?;
        let output_of = theirs.as_fd();
        let spawned = spawn(if is_node {
            Launch { descriptors: vec![output_of], ..launch }
        } else {
            Launch { stdout: Some(output_of.into()), ..launch }
        })?;
        let (lines, output) = (Lines::new(MAX_LINE), output.into());
        Ok((Self { pid: spawned.pid.as_raw(), output, lines, last: String::new(), is_node }, spawned))
    }

    pub(super) fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }

    /// Has its output watched.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch(&self, poller: &Poller) -> io::Result<()> {
        self.output.watch(poller, Token::PreUpgrade, Interest::Read)
    }

    /// Takes what it has written by now, a bounded piece of it; returns whether more may come.
    fn read(&mut self) -> bool {
        let mut buffer = [0; READ_SIZE];
        match self.output.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => self.lines.push(&buffer[..count]),
            Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
        while let Some(line) = self.lines.next_line() {
            note(&line, self.is_node, &mut self.last);
        }
        true
    }

    /// Returns the target that it names, if it names one, or why it refuses; `how` it ended, and whether with status 0.
    fn finish(mut self, done: bool, how: &str) -> Result<Option<String>, String> {
        for _ in 0..LAST_READS {
            if !self.read() {
                break;
            }
        }
        if let Some(line) = self.lines.finish() {
            note(&Line { ended: true, ..line }, self.is_node, &mut self.last);
        }
        let failed = || format!("the hook `pre_upgrade` {how}");
        if !self.is_node {
            return match self.last {
                _ if !done => Err(failed()),
                path if path.len() > MAX_PATH => {
                    Err("the last line of the hook `pre_upgrade` is too long for a path".into())
                }
                path => Ok(Some(path).filter(|path| !path.is_empty())),
            };
        }
        match serde_json::from_str(&self.last) {
            Ok(CalledBack { error: Some(error), .. }) => Err(one_line(&error)),
            Ok(CalledBack { value, .. }) if done => Ok(value.filter(|path| !path.is_empty())),
            Err(_) if done => Err("the hook `pre_upgrade` ended without a call of its callback".into()),
            Ok(_) | Err(_) => Err(failed()),
        }
    }
}

fn note(line: &Line<'_>, is_node: bool, last: &mut String) {
    let text = String::from_utf8_lossy(line.bytes);
    if !text.trim().is_empty() {
        text.trim().clone_into(last);
    }
    if !is_node {
        let end: &[u8] = if line.ended { b"\n" } else { b"" };
        OUTPUT.push_from_worker("", line.bytes, end);
    }
}

impl Daemon {
    /// Runs the hook of what was read, where there is one; returns the release again where there is none.
    pub(super) fn run_pre_upgrade(
        &mut self,
        generation: GenerationId,
        release: Box<Release>,
    ) -> Option<Box<Release>> {
        let Some(hook) = release.spec.hooks.pre_upgrade.as_ref().filter(|_| release.target.is_some()) else {
            return Some(release);
        };
        let typed = self.typed_for(generation);
        let begun = Common::of(&release, generation, &self.heritage).and_then(|common| {
            let place = Place { release: &release, common: &common, generation, slot: None };
            PreUpgrade::start(place, hook, &typed)
        });
        match begun {
            Ok((hook, spawned)) => {
                info!("generation {generation}: running the hook `pre_upgrade` (pid {})", hook.pid);
                // The job has no output of its own that could fail to be watched.
                let _ = self.begin_job(Role::Before(generation), Job::program(spawned), None);
                // Unwatched, it is read when it has ended, or when its time is over.
                let _ = hook.watch(&self.host.poller);
                self.set_stage(generation, Stage::PreUpgrade(hook, release));
            }
            Err(error) => {
                let how = format!("the hook `pre_upgrade` could not be started: {error}");
                self.inbox.push_back(Event::HookEnded(generation, Err(how)));
            }
        }
        None
    }

    /// What was typed for a generation to be; empty where an upgrade names no target.
    fn typed_for(&mut self, generation: GenerationId) -> String {
        match self.candidate_of(generation).map(|candidate| &candidate.wanted) {
            Some(Wanted::Named(named)) => named.typed.clone(),
            Some(Wanted::First | Wanted::Typed | Wanted::Standing { .. }) | None => String::new(),
        }
    }

    /// Takes what the hook has written by now, so that it never waits for us.
    pub(super) fn read_pre_upgrade(&mut self) {
        if let Some(Stage::PreUpgrade(hook, _)) = self.stage()
            && !hook.read()
        {
            // It may have closed its output long before it ends.
            hook.output.unwatch();
        }
    }

    /// Goes on after the hook, with the target that it names or the one of before.
    pub(super) fn pre_upgrade_ended(
        &mut self,
        generation: GenerationId,
        (hook, release): (PreUpgrade, &Release),
        (done, how): (bool, &str),
    ) {
        match hook.finish(done, how) {
            Ok(named) => {
                // What was typed is not another target.
                if let Some(path) = named.filter(|path| *path != self.typed_for(generation)) {
                    info!("generation {generation}: the hook `pre_upgrade` names {}", one_line(&path));
                    let target = NamedTarget { typed: path, path: None };
                    self.want_target(generation, Wanted::Named(target));
                }
                self.run_before(generation, release);
            }
            Err(why) => self.inbox.push_back(Event::HookEnded(generation, Err(why))),
        }
    }
}

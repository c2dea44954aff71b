//! What is ready, turned into events.

use std::io;
use std::time::Duration;

use nix::unistd::{Pid, geteuid};
use tracing::error;

use super::process::{Heard, MESSAGES_A_TURN};
use super::release::Release;
use super::run::Daemon;
use super::sender::Voucher;
use super::token::{Stream, Token};
use crate::core::Event;
use crate::core::ids::WorkerId;
use crate::sys::spawn::Report;
use crate::sys::wait::Ready;

/// How often all that has been said is read before deadlines are judged: a worker that never stops talking does not stop time.
const MOST_ROUNDS: usize = 16;

impl Daemon {
    /// Reads all that has been said by now, before anybody is judged for a silence.
    pub(super) fn hear_all(&mut self, ready: &mut Vec<Ready<Token>>) -> io::Result<()> {
        for _ in 0..MOST_ROUNDS {
            self.host.poller.wait(Some(Duration::ZERO), ready)?;
            if ready.is_empty() {
                break;
            }
            self.collect(ready);
        }
        Ok(())
    }

    /// Turns what is ready into events: what workers say first, exits last. Newcomers come after the clients that are there,
    /// so that nobody is made to go for them whose word has come already.
    pub(super) fn collect(&mut self, ready: &[Ready<Token>]) {
        let mut tokens: Vec<_> = ready.iter().map(|ready| ready.key).collect();
        let is_hung_up = |ready: &Ready<Token>| ready.hangup && ready.key == Token::Doors;
        let hung_up = ready.iter().any(is_hung_up);
        let is_door = |token: &Token| matches!(token, Token::Control | Token::ControlTcp);
        let is_end = |token: &Token| matches!(token, Token::Signals | Token::Survivor(_));
        tokens.sort_by_key(|token| (is_end(token), is_door(token)));
        for token in tokens {
            match token {
                Token::Notify(worker) => self.hear(worker),
                Token::Report(worker) => self.take_report(worker),
                Token::Output(worker, stream) => self.pass_on(worker, stream),
                Token::Sockets => self.mend_sockets(None),
                Token::Paths => {
                    if self.hear_of_paths() {
                        self.mend_sockets(None);
                    }
                }
                Token::Doors => self.knocked(hung_up),
                Token::GuestReport(pid) => self.take_guest_report(Pid::from_raw(pid)),
                Token::Outlet(_) => {} // Flushed in each turn.
                Token::Manager => {}   // PID 1 alone waits for it.
                Token::Helper(number) => self.outputs.pass_on_helper(number),
                Token::Control | Token::ControlTcp | Token::Client(_) => {
                    let requests = self.control.ready(token, &mut self.host);
                    self.take_requests(requests);
                }
                Token::Job(pid) => self.host.read_job(Pid::from_raw(pid)),
                Token::PreUpgrade => self.read_pre_upgrade(),
                Token::Channel(worker) => self.hear_node(worker),
                Token::Stored(number) => self.end_stored(number),
                Token::Survivor(worker) => self.survivor_ended(worker),
                Token::Leftover(pid) => self.leftover_ended(Pid::from_raw(pid)),
                Token::Signals => self.take_signals(),
            }
        }
    }

    /// Reads what happened to the paths of sockets, and returns whether there was anything. The notify sockets are mended by
    /// then.
    pub(super) fn hear_of_paths(&mut self) -> bool {
        let has_changed = self.sockets.drain_watch().unwrap_or_else(|error| {
            error!("cannot read what happened to socket paths: {error}");
            false
        });
        if has_changed {
            self.mend_notify_sockets();
        }
        has_changed
    }

    fn hear(&mut self, worker: WorkerId) {
        self.listen(worker, MESSAGES_A_TURN);
        self.care.looks_at_sockets = true;
    }

    /// Takes what a worker has said on its notify socket, at most so many messages.
    pub(super) fn listen(&mut self, worker: WorkerId, limit: usize) {
        let now = self.now();
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let release = self.generations.get(&process.generation).map(|of| &of.release);
        let voucher = Voucher {
            worker,
            generation: process.generation,
            root: process.pid,
            user: release.map_or_else(|| geteuid().as_raw(), Release::user),
            cgroups: &self.cgroups,
            roles: &self.host.roles,
            found_at_start: &self.host.found_at_start,
        };
        for heard in process.listen(limit, &voucher, now) {
            match heard {
                Heard::Word(word) => self.inbox.push_back(Event::Said(worker, word)),
                Heard::Store(wish) => self.store(worker, wish),
                Heard::Barrier(barrier) => self.loose_ends.barriers.push(barrier),
            }
        }
    }

    /// Takes the report whether the worker's program runs. A failure is kept for the exit, which is sure to follow.
    pub(super) fn take_report(&mut self, worker: WorkerId) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        let Some(start) = &mut process.start else { return };
        let report = match start.report() {
            Ok(Report::NotYet) => return,
            report => report,
        };
        process.start = None;
        match report {
            Ok(Report::NotYet) => {}
            Ok(Report::Executed) => self.inbox.push_back(Event::Executed(worker)),
            Ok(Report::Failed(failure)) => {
                let step = match self.generations.get(&process.generation) {
                    Some(of) => {
                        let place = of.place(process.generation, Some(process.slot));
                        let program = place.fill_in(&of.release.spec.process.command[0]);
                        failure.step.describe(&of.release.directory, &program)
                    }
                    None => failure.step.to_string(),
                };
                process.failure = Some(format!("{step}: {}", failure.reason()));
            }
            Err(error) => process.failure = Some(format!("reading its report: {error}")),
        }
    }

    fn pass_on(&mut self, worker: WorkerId, stream: Stream) {
        let Some(process) = self.processes.get_mut(&worker) else { return };
        if !process.pass_on(stream) {
            process.outputs.retain(|output| output.stream != stream);
        }
    }
}

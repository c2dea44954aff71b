//! `liveswap upgrade` and `liveswap rollback`: the exit status is the outcome.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::connection::{Connection, ConnectionError, understood};
use super::interrupt::{Interrupts, is_control_process_of};
use super::output;
use super::progress::Progress;
use super::report::{self, Hint, Status};
use crate::daemon;
use crate::wire::control::{Command, EventLine, Evidence, Line, NamedTarget, Reply, Request};
use crate::wire::status;
use clap::Args;

/// Arguments of `liveswap upgrade`.
#[derive(Args, Debug)]
pub struct UpgradeArgs {
    /// The service; may be left out where one runs
    name: Option<String>,
    /// Another `target` than the one that serves
    #[arg(long, value_name = "PATH")]
    target: Option<PathBuf>,
    /// Return as soon as the upgrade has begun
    #[arg(long, conflicts_with = "drained")]
    no_wait: bool,
    /// Return when the last worker of the old generations has gone
    #[arg(long)]
    drained: bool,
    /// Print each event, and at last the answer, as a JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `liveswap rollback`.
#[derive(Args, Debug)]
pub struct RollbackArgs {
    /// The service; may be left out where one runs
    name: Option<String>,
    /// Return as soon as it has begun
    #[arg(long)]
    no_wait: bool,
    /// Print each event, and at last the answer, as a JSON object
    #[arg(long)]
    json: bool,
}

/// Returns the target that a path names: as it was typed, and absolute, as a manager in another folder finds it. `found` may choose another
/// name for the absolute path.
///
/// # Errors
///
/// The path is empty, or not UTF-8, which the protocol is.
pub(super) fn named(path: &Path, found: impl FnOnce(String) -> String) -> io::Result<NamedTarget> {
    let text = |path: PathBuf| {
        let text = path.into_os_string().into_string();
        text.map_err(|path| io::Error::other(format!("{} is not UTF-8", path.display())))
    };
    let absolute = text(daemon::absolute(path)?)?;
    Ok(NamedTarget { typed: text(path.to_owned())?, path: Some(found(absolute)) })
}

/// What is asked for, and how it is shown.
struct Change<'a> {
    name: Option<&'a str>,
    command: Command,
    waits: bool,
    drained: bool,
    json: bool,
}

/// Upgrades a service; status 1 unless it is committed.
pub fn upgrade(args: &UpgradeArgs) -> ExitCode {
    let UpgradeArgs { name, target, no_wait, drained, json } = args;
    let target = match target.as_deref().map(|path| named(path, |path| path)).transpose() {
        Ok(target) => target,
        Err(error) => {
            report::print(&error, None);
            return Status::Failed.into();
        }
    };
    let (waits, drained, json) = (!no_wait, *drained, *json);
    Change { name: name.as_deref(), command: Command::Upgrade { target }, waits, drained, json }.run()
}

/// Goes back to the generation before; status 1 unless it serves.
pub fn rollback(args: &RollbackArgs) -> ExitCode {
    let RollbackArgs { name, no_wait, json } = args;
    let (waits, json) = (!no_wait, *json);
    Change { name: name.as_deref(), command: Command::Rollback, waits, drained: false, json }.run()
}

impl Change<'_> {
    fn run(self) -> ExitCode {
        // From the first moment on: a service manager may have us end at any.
        let interrupts = Interrupts::watch(self.waits.then(|| self.command.name()));
        let mut is_of_unit = false;
        let outcome = Connection::open(self.name).and_then(|mut connection| {
            is_of_unit = is_control_process_of(connection.pid);
            interrupts.know(&connection.service);
            let looks_on = self.waits && !self.json && !is_of_unit;
            let progress = looks_on.then(|| Progress::start(&connection.service)).flatten();
            let is_quiet = self.json || is_of_unit;
            let reply = self.follow(&mut connection, progress.as_ref(), is_quiet);
            let told = reply.as_ref().ok().map(|reply| self.in_words(&connection.service, reply));
            let is_shown = progress.is_some_and(|progress| progress.finish(told.as_deref()));
            Ok((connection.service, reply?, told.filter(|_| !is_shown)))
        });
        let ends_with_service = is_of_unit || interrupts.has_come();
        match outcome {
            // The service ends because somebody wants it to: whoever waits for the upgrade waits no longer, and nothing failed.
            Ok((_, reply, _)) if ends_with_service && is_end(&reply) => Status::Done.into(),
            Err(ConnectionError::Lost(_) | ConnectionError::NoSuchManager(_)) if ends_with_service => {
                Status::Done.into()
            }
            Err(error) => error.print(),
            Ok((service, reply, told)) if reply.ok => {
                let trouble = reply.health.as_ref().filter(|health| health.down);
                let trouble = trouble.and_then(|health| health.trouble(reply.generation?));
                if let Some(trouble) = trouble {
                    let heading = format!("{} of `{service}` is of no use", self.command.name());
                    report::print_failure(&heading, None, &[], &[Hint::Alarm(trouble)]);
                    return Status::Failed.into();
                }
                // The manager's own log says it, in the same journal.
                if let Some(told) = told.filter(|_| !self.json && !is_of_unit) {
                    say(&told);
                }
                if !self.json {
                    mention(&reply);
                }
                Status::Done.into()
            }
            Ok((service, reply, _)) => {
                explain_to(&service, &reply, is_of_unit);
                Status::Failed.into()
            }
        }
    }

    /// Asks, shows what happens, and returns the answer.
    fn follow(
        &self,
        connection: &mut Connection,
        progress: Option<&Progress>,
        is_quiet: bool,
    ) -> Result<Reply, ConnectionError> {
        if self.waits {
            connection.ask(&Request::new(Command::Events))?;
        }
        connection.ask(&Request { wait: self.waits, ..Request::new(self.command.clone()) })?;
        let mut old = BTreeSet::new();
        let mut answer: Option<Reply> = None;
        loop {
            let heard = connection.hear()?;
            let is_snapshot = matches!(&heard.line, Line::Reply(reply) if reply.cmd == "events");
            if self.json && !is_snapshot {
                // What cannot be written is told at the end.
                let _ = output::json(&heard.text);
            }
            match heard.line {
                Line::Event(_) if !self.waits => return Err(ConnectionError::Unexpected),
                Line::Event(event) => {
                    match progress {
                        _ if is_quiet => {}
                        None => say(without_reason(&event)),
                        // All else is in the picture.
                        Some(progress) if event.warning => progress.say(without_reason(&event)),
                        Some(_) => {}
                    }
                    if event.event == "generation-gone" {
                        event.generation.map(|id| old.remove(&id));
                    }
                }
                Line::Reply(reply) if is_snapshot => old = generations(&reply),
                Line::Reply(reply) if reply.cmd == self.command.name() || !reply.ok => answer = Some(*reply),
                // Of what was asked for, nothing else has an answer.
                Line::Reply(_) => return Err(ConnectionError::Unexpected),
            }
            if let Some(reply) = answer.take_if(|reply| !self.waits_on(reply, &old)) {
                return Ok(reply);
            }
        }
    }

    /// Whether something is still waited for after the answer.
    fn waits_on(&self, reply: &Reply, old: &BTreeSet<u64>) -> bool {
        let is_old = |id: &u64| reply.generation.is_some_and(|new| *id < new);
        self.drained && reply.ok && old.iter().any(is_old)
    }

    /// Tells how it ended, without the reason.
    fn in_words(&self, service: &str, reply: &Reply) -> String {
        let command = self.command.name();
        if !reply.ok {
            return format!("`{service}`: {command} {}", how(reply));
        }
        if reply.outcome.as_deref() == Some("accepted") {
            return format!("`{service}`: {command} begun");
        }
        let Some(generation) = reply.generation else { return format!("`{service}`: {command} done") };
        let trouble = reply.health.as_ref().and_then(|health| health.trouble(generation));
        let alone = if self.drained { " alone" } else { "" };
        let serves = trouble.unwrap_or_else(|| format!("generation {generation} serves{alone}"));
        format!("`{service}`: {command} done; {serves}")
    }
}

/// Whether an upgrade has not ended as it was to because the service is being stopped.
fn is_end(reply: &Reply) -> bool {
    let is_stopping = reply.health.as_ref().is_some_and(|health| health.stopping);
    is_stopping && reply.outcome.as_deref() == Some("superseded")
}

/// Returns the text of an event without the reason of a failure, which the answer has.
fn without_reason(event: &EventLine) -> &str {
    let reason = event.reason.as_deref().unwrap_or_default();
    let text = event.text.strip_suffix(reason).filter(|_| !reason.is_empty());
    text.map_or(&event.text, |text| text.trim_end_matches([':', ' ']))
}

/// The generations that have workers before the change.
fn generations(snapshot: &Reply) -> BTreeSet<u64> {
    let status = snapshot.status.as_ref().and_then(|text| understood::<status::Status>(text.get()).ok());
    let Some(status) = status else { return BTreeSet::new() };
    status.workers.iter().map(|worker| worker.generation).chain([status.generation]).collect()
}

/// Prints why something was not done.
pub(super) fn explain(service: &str, reply: &Reply) {
    explain_to(service, reply, false);
}

/// As [`explain`]; where the log of the manager has the reason before the same eyes, it is not said again.
fn explain_to(service: &str, reply: &Reply, has_log: bool) {
    let heading = format!("{} of `{service}` {}", reply.cmd, how(reply));
    let mut hints: Vec<_> = reply.hint.iter().filter(|_| !has_log).cloned().map(Hint::Plain).collect();
    if let Some(generation) = reply.generation.filter(|_| matches!(&*reply.cmd, "upgrade" | "rollback")) {
        let again = if reply.cmd == "upgrade" {
            format!("; fix the cause and run `liveswap upgrade {service}` again")
        } else {
            String::new()
        };
        let health = reply.health.clone().unwrap_or_default();
        hints.push(match health.trouble(generation) {
            Some(trouble) if health.down => Hint::Alarm(trouble + &again),
            Some(trouble) => Hint::Plain(trouble + &again),
            None if health.stopping => Hint::Plain("the service is being stopped".into()),
            None => Hint::Plain(format!("generation {generation} is still serving{again}")),
        });
    }
    if has_log {
        return report::print_failure(&heading, None, &[], &hints);
    }
    // They begin with the reason, and show its place.
    if let Some(lines) = reply.details.as_ref().filter(|lines| !lines.is_empty()) {
        return report::print_failure(&heading, None, lines, &hints);
    }
    let details = reply.evidence.as_ref().map(details).unwrap_or_default();
    let cause = reply.reason.as_deref().unwrap_or(&reply.value);
    report::print_failure(&heading, Some(cause), &details, &hints);
    mention(reply);
}

/// Prints what is to be known of the old code before one relies on it.
fn mention(reply: &Reply) {
    if let Some(note) = &reply.note {
        output::error_lines(&format!("note: {note}"));
    }
}

/// How it ended that was asked for, in a word.
fn how(reply: &Reply) -> String {
    reply.outcome.as_deref().unwrap_or("refused").replace('-', " ")
}

fn details(evidence: &Evidence) -> Vec<String> {
    match &evidence.stderr {
        Some(lines) => lines.iter().map(|line| format!("stderr: {line}")).collect(),
        None => vec![format!(
            "what it wrote went where the manager's output goes; in the journal: `journalctl _PID={}` \
             (`output = \"prefix\"` in [service] shows it here)",
            evidence.pid
        )],
    }
}

/// Prints a line; what cannot be written is told at the end.
pub(super) fn say(line: &str) {
    let _ = output::line(line);
}

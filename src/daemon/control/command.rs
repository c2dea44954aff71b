//! A request into an event for the core, an outcome into a reply.

use std::collections::BTreeMap;

use super::super::run::Daemon;
use super::super::token::ClientId;
use super::{Asked, Asker};
use crate::core::ids::RequestId;
use crate::core::notice::{Notice, Outcome};
use crate::core::{Event, Wish};
use crate::wire::control::{Command, EventLine, NamedTarget, Reply, VERSION, line};

/// How many requests of a client may wait for their answers.
const MAX_ASKED: usize = 16;

impl Daemon {
    /// Does what clients have asked for.
    pub(in super::super) fn take_requests(&mut self, requests: Vec<Asked>) {
        let mut later: BTreeMap<ClientId, usize> = BTreeMap::new();
        for (asker, _) in &requests {
            *later.entry(asker.client).or_default() += 1;
        }
        for (asker, what) in requests {
            // Those that come after it are counted already, and some before it are answered by now.
            let later = later.entry(asker.client).or_default();
            *later -= 1;
            let waiting = self.control.asked(asker.client).saturating_sub(*later);
            match what {
                Ok(command) if waiting > MAX_ASKED => {
                    let why = format!("{MAX_ASKED} requests of this client wait for their answers already");
                    self.control.reply(asker, Reply::failed(command.name(), why));
                }
                Ok(command) => self.obey(asker, command),
                Err(reply) => self.control.reply(asker, reply),
            }
        }
        self.begin_examination();
    }

    fn obey(&mut self, asker: Asker, command: Command) {
        match command {
            Command::Upgrade { target: None } => {
                self.ask(asker, |request| Event::Upgrade(Some(request)));
            }
            // Who wants what another one waits for already waits together with that one.
            Command::Upgrade { target: Some(target) } if self.is_awaited(&target) => {
                self.ask(asker, |request| Event::Upgrade(Some(request)));
            }
            Command::Upgrade { target: Some(target) } => {
                let request = self.ask(asker, |request| Event::Asked(request, Wish::UpgradeTo));
                self.targets.asked.insert(request, target);
            }
            Command::Respawn { now: false } => {
                self.ask(asker, |request| Event::Respawn(Some(request)));
            }
            Command::Respawn { now: true } | Command::Kill => self.wish(asker, Wish::RespawnNow),
            Command::Rollback => self.wish(asker, Wish::Rollback),
            Command::Stop { now: false } => self.wish(asker, Wish::Stop),
            Command::Stop { now: true } | Command::Die => self.wish(asker, Wish::Kill),
            Command::Scale(scale) => self.wish(asker, Wish::Scale(scale)),
            Command::Message(text) => {
                let reply = self.send_message(&text);
                self.control.reply(asker, reply);
            }
            Command::Status => self.ask_status(asker),
            Command::Events => self.subscribe(asker),
            Command::Reexec => self.want_reexec(Some(asker)),
            Command::Ping => {
                let reply = self.introduce(Reply::ok(&asker.cmd));
                self.control.reply(asker, reply);
            }
        }
    }

    /// Whether the newest target that was asked for, and whose upgrade has not begun, is this one.
    fn is_awaited(&self, target: &NamedTarget) -> bool {
        self.targets.asked.last_key_value().is_some_and(|(_, newest)| newest == target)
    }

    fn wish(&mut self, asker: Asker, wish: Wish) {
        self.ask(asker, |request| Event::Asked(request, wish));
    }

    fn ask(&mut self, asker: Asker, event: impl FnOnce(RequestId) -> Event) -> RequestId {
        self.control.last_request += 1;
        let request = RequestId(self.control.last_request);
        self.control.askers.insert(request, asker);
        self.inbox.push_back(event(request));
        request
    }

    /// Brings the core's answer to whoever asked, where it is still there.
    pub(in super::super) fn answer(&mut self, request: RequestId, outcome: &Outcome) {
        self.targets.asked.remove(&request);
        if self.hold_answer(request, outcome) {
            return;
        }
        let Some(asker) = self.control.askers.remove(&request) else { return };
        // A respawn that fails has nothing to do with the latest upgrade.
        let is_respawn = matches!(asker.cmd.as_str(), "respawn" | "kill");
        let failed = matches!(outcome, Outcome::RolledBack(_)) && !is_respawn;
        let refused = self.loose_ends.refused.as_ref();
        let refused = refused.filter(|refused| refused.is_of(outcome)).cloned().unwrap_or_default();
        let changes = matches!(asker.cmd.as_str(), "upgrade" | "rollback");
        let old_code = self.old_code().filter(|_| changes);
        let reply = Reply {
            old_code: old_code.as_ref().map(|(what, _)| what.word().into()),
            note: old_code.and_then(|(_, note)| note),
            generation: Some(self.manager.current().0),
            health: Some(self.health()).filter(|health| changes && !health.is_well()),
            details: refused.details,
            hint: refused.hint.or_else(|| self.history.hint().filter(|_| failed)),
            evidence: self.history.evidence.clone().filter(|_| failed),
            ..Reply::of(&asker.cmd, outcome)
        };
        self.control.reply(asker, reply);
    }

    fn subscribe(&mut self, asker: Asker) {
        let is_new = self.control.clients.get_mut(&asker.client).is_some_and(|client| !client.subscribed);
        let reply = if is_new {
            self.introduce(Reply { status: self.status_text(), ..Reply::ok(&asker.cmd) })
        } else {
            Reply::failed(&asker.cmd, "this connection is told of events already")
        };
        let client = asker.client;
        self.control.reply(asker, reply);
        if let Some(client) = self.control.clients.get_mut(&client) {
            client.subscribed = true;
        }
    }

    /// Adds to a reply who it is that answers.
    pub(in super::super) fn introduce(&self, reply: Reply) -> Reply {
        let release = self.generations.get(&self.manager.current()).map(|of| &of.release);
        let service = release.map(|release| release.spec.name.clone());
        let directory = release.and_then(|release| release.directory.to_str()).map(Into::into);
        let default = release.map(|release| &release.spec.control).filter(|control| control.gives_way);
        Reply {
            directory,
            tcp_closed: default
                .and_then(|control| control.tcp)
                .filter(|_| self.control.tcp_address().is_none()),
            version: Some(VERSION),
            program: Some(env!("CARGO_PKG_VERSION").into()),
            pid: Some(std::process::id()),
            service,
            tcp: self.control.tcp_address(),
            ..reply
        }
    }

    /// Tells those who want to know what has happened.
    pub(in super::super) fn publish(&mut self, notice: &Notice, event: &EventLine) {
        if let Notice::UpgradeEnded(_, outcome) = notice {
            self.change_doors(outcome);
        }
        if !self.control.clients.values().any(|client| client.subscribed) {
            return;
        }
        let event = line(event);
        for client in self.control.clients.values_mut().filter(|client| client.subscribed) {
            client.tell(&event);
        }
    }
}

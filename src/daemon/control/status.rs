//! How things stand, by what the core and the shell know without a look at anything else.

use std::rc::Rc;
use std::time::Duration;

use serde_json::value::{RawValue, to_raw_value};

use super::super::run::Daemon;
use crate::core::ids::WorkerId;
use crate::core::notice::Outcome;
use crate::core::spec::{SocketAddress, SocketKind};
use crate::core::time::Mono;
use crate::core::{self, WorkerState};
use crate::wire::status::{Health, LastUpgrade, Socket, Status, WaitingSlot, Worker};

impl Daemon {
    /// Returns how things stand, as JSON; memory and connections that the kernel counts are missing.
    pub(super) fn status_text(&self) -> Option<Box<RawValue>> {
        to_raw_value(&self.status()).ok()
    }

    pub(super) fn status(&self) -> Status {
        let now = self.now();
        let current = self.manager.current();
        let release = self.generations.get(&current).map(|of| &of.release);
        let is_ready = |worker: &core::Worker| worker.generation() == current && worker.is_ready();
        let ready = self.manager.workers().filter(|(_, worker)| is_ready(worker)).count();
        let mut workers: Vec<_> =
            self.manager.workers().map(|(id, worker)| self.worker_status(id, worker, now)).collect();
        workers.sort_by_key(|worker| (worker.slot, worker.generation, worker.id));
        let ago = |at: Option<Mono>| at.map(|at| ms(now - at));
        Status {
            service: release.map_or_else(String::new, |release| release.spec.name.clone()),
            pid: std::process::id(),
            up_ms: ms(now - Mono::ZERO),
            phase: self.manager.phase().into(),
            summary: self.manager.status() + &self.dead_sockets(),
            generation: current.0,
            generation_ms: ago(self.history.serves_since),
            directory: release.map_or_else(String::new, |release| release.directory.display().to_string()),
            target: release.and_then(|release| release.target.as_ref()).map(|target| target.given.clone()),
            begun_with: release.and_then(|release| release.begun_with.clone()),
            wanted: self.manager.strength(current).unwrap_or_default(),
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
            health: self.health(),
            upgrading_to: self.manager.upgrading_to().map(|id| id.0),
            previous: self.manager.previous().map(|id| id.0),
            old_code: self
                .old_code()
                .filter(|_| matches!(self.manager.last_upgrade(), Some((_, Outcome::Committed))))
                .map(|(old_code, _)| old_code.word().into()),
            last_upgrade: self.manager.last_upgrade().map(|(to, outcome)| LastUpgrade {
                generation: to.0,
                outcome: outcome.word().into(),
                reason: outcome.reason().map(Into::into),
                ago_ms: ago(self.history.upgraded_at),
            }),
            cgroup: self.cgroups.name().ok().map(Into::into),
            // At a terminal nothing divides cgroups, and nothing is missing.
            no_cgroup: self.cgroups.name().err().filter(|_| self.upward.is_there()).map(Into::into),
            generations: Vec::new(),
            connections: self.has_guests().then(|| self.on_demand.guests.count()),
            workers,
            waiting: self.waiting_slots(now),
            sockets: self.socket_status(),
        }
    }

    /// Returns whether all is well.
    pub(super) fn health(&self) -> Health {
        let core::view::Health { is_full, ready, wanted, last_exit, deaths } =
            self.manager.health(self.now());
        let is_broken = self.socket_status().iter().any(|socket| socket.broken);
        Health {
            full: Some(is_full && !is_broken),
            down: ready == 0 && wanted > 0,
            stopping: self.manager.is_stopping(),
            ready_of_all: ready,
            wanted_now: wanted,
            last_exit,
            deaths,
        }
    }

    fn worker_status(&self, id: WorkerId, worker: &core::Worker, now: Mono) -> Worker {
        let process = self.processes.get(&id);
        let started = self.history.start_of(id);
        let (state, since, deadline, why) = match worker.state() {
            WorkerState::Starting { ready_by, .. } => ("starting", started, Some(ready_by), None),
            WorkerState::Ready { since, .. } => ("ready", Some(since), None, None),
            WorkerState::Draining { since, kill_at, why } => {
                ("draining", Some(since), Some(kill_at), Some(why.to_string()))
            }
            WorkerState::Aborting { since, kill_at } => ("aborting", Some(since), Some(kill_at), None),
            WorkerState::Killing { .. } => ("killing", None, None, None),
            WorkerState::Stuck => ("stuck", None, None, None),
        };
        Worker {
            id: id.0,
            pid: process.map(|process| process.pid.as_raw()),
            generation: worker.generation().0,
            slot: worker.slot().0,
            state: state.into(),
            state_ms: since.map(|since| ms(now - since)),
            age_ms: started.map(|started| ms(now - started)),
            memory: None,
            tree_memory: None,
            connections: worker.connections(),
            restarts: self.history.deaths_in(worker.generation(), worker.slot()),
            says: shortened(worker.status(), SAYS_OF_ALL / self.processes.len().max(1)),
            why,
            unseen: worker.unseen().map(Into::into),
            deadline_ms: deadline.filter(|at| *at != Mono::NEVER).map(|at| ms(at - now)),
        }
    }

    fn waiting_slots(&self, now: Mono) -> Vec<WaitingSlot> {
        let slots = self.manager.waiting_slots();
        let slot =
            |(generation, slot, backoff): (core::ids::GenerationId, core::ids::SlotId, &core::Backoff)| {
                let starts_in_ms = ms(backoff.start_at() - now);
                WaitingSlot { generation: generation.0, slot: slot.0, deaths: backoff.deaths(), starts_in_ms }
            };
        slots.map(slot).collect()
    }

    fn socket_status(&self) -> Vec<Socket> {
        let Some(of) = self.generations.get(&self.manager.current()) else { return Vec::new() };
        let demanded = self.demanded.iter().map(|demanded| &demanded.listener);
        let demanded =
            demanded.filter(|one| !of.sockets.listeners.iter().any(|other| Rc::ptr_eq(one, other)));
        let sockets = of.sockets.listeners.iter().chain(demanded).map(|listener| {
            let spec = &listener.plan().spec;
            let broken = self.is_beyond_repair(listener) || self.is_shared_dead(listener);
            let kind = match (&spec.address, spec.kind) {
                (SocketAddress::Inet(_), SocketKind::Datagram) => "udp",
                (SocketAddress::Inet(_), SocketKind::Stream | SocketKind::Seqpacket) => "tcp",
                (_, SocketKind::Stream) => "unix",
                (_, SocketKind::Datagram) => "unix datagram",
                (_, SocketKind::Seqpacket) => "unix seqpacket",
            };
            Socket {
                name: spec.name.clone(),
                listen: listener.listens_on(),
                kind: Some(kind.into()),
                accept: spec.accept.is_some(),
                broken,
            }
        });
        sockets.collect()
    }
}

/// How much of what all workers say of themselves an answer has room for, in bytes: clients read lines of 1 MiB at most.
const SAYS_OF_ALL: usize = 256 * 1024;

/// Returns as much of a text as fits.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most.saturating_sub('…'.len_utf8())).rev().find(|end| text.is_char_boundary(*end));
    format!("{}…", &text[..end.unwrap_or(0)])
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

//! Whose wish the options of a shared socket are, where they do not deafen it (see `docs/sockets.md`).
//!
//! The kernel does not tell who has set an option. So it is decided by who could: as long as workers of one release alone run, it
//! is that release's wish. What the options are when the first worker of another release starts, they are again when that
//! release has failed; and what they are when it is committed, they stay while workers of the one before drain.

use std::rc::Rc;

use tracing::warn;

use super::run::Daemon;
use crate::core::ids::{GenerationId, WorkerId};

impl Daemon {
    /// Takes down the options as they are, where none but workers of the release that serves could have set them: now a worker of
    /// `generation` is about to start.
    pub(super) fn note_tuning(&mut self, generation: GenerationId) {
        if generation != self.manager.current() && !self.has_others() {
            self.accept_tuning();
        }
    }

    /// An upgrade is committed: what its workers have set is its wish.
    pub(super) fn accept_tuning(&mut self) {
        self.care.others_have_run = false;
        for listener in self.sockets.listeners() {
            listener.accept_tuning();
        }
    }

    /// Has what is beyond repair tried again, and counts repairs anew: an upgrade has ended.
    pub(super) fn forget_repairs(&mut self) {
        for listener in self.sockets.listeners() {
            listener.forget_repairs();
        }
        if !self.care.beyond_repair.is_empty() {
            self.care.beyond_repair.clear();
            self.care.looks_at_sockets = true;
        }
        self.watch_sockets();
    }

    /// Remembers that a worker has ended which may have set something.
    pub(super) fn note_end_of(&mut self, worker: WorkerId) {
        let generation = self.processes.get(&worker).map(|process| process.generation);
        self.care.others_have_run |= generation.is_some_and(|it| it != self.manager.current());
    }

    /// Puts the options back where workers of another release than the one that serves run or ran.
    pub(super) fn mend_tuning(&mut self) {
        if self.manager.upgrading_to().is_none() && (self.has_others() || self.care.others_have_run) {
            self.care.others_have_run = false;
            self.put_back_tuning();
        }
    }

    /// Puts the options back.
    pub(super) fn put_back_tuning(&mut self) {
        for listener in self.sockets.listeners() {
            let (name, listen) = {
                let spec = &listener.plan().spec;
                (spec.name.clone(), spec.listen.clone())
            };
            let mut put_back = Vec::new();
            for (option, done) in listener.put_back_tuning() {
                match done {
                    Ok(()) => put_back.push(option),
                    Err(error) => warn!("socket `{name}` ({listen}): {option} cannot be put back: {error}"),
                }
            }
            if !put_back.is_empty() {
                let options = put_back.join(", ");
                warn!(
                    "socket `{name}` ({listen}): {options} set by another release than the one that serves; put back"
                );
                self.journal.needs_snapshot();
            }
        }
    }

    /// Whether workers run that are not of the release that serves.
    fn has_others(&self) -> bool {
        let current = self.manager.current();
        self.processes.values().any(|process| process.generation != current)
    }

    /// Whether workers share a dead socket in the place of this one.
    pub(super) fn is_shared_dead(&self, listener: &Rc<super::sockets::Listener>) -> bool {
        self.care.successors.iter().any(|known| std::ptr::eq(known.as_ptr(), Rc::as_ptr(listener)))
    }
}

//! What workers leave for those that come after them in their slot: descriptors in store (sd_pid_notify_with_fds(3), `FDSTORE=1`).
//!
//! A slot's store outlives its workers and generations. Each worker is handed all of it when it starts, after its sockets; what
//! is in store stays there until it is removed by name, or what is at its other end hangs up.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use tracing::{debug, warn};

use super::run::Daemon;
use super::token::{Poller, Token, Watched};
use crate::core::ids::{SlotId, WorkerId};
use crate::sys::foreign::ForeignFd;
use crate::sys::handover::hand_over;
use crate::sys::held;
use crate::sys::wait::Interest;

/// The descriptors in store, by slot.
#[derive(Debug, Default)]
pub struct Store {
    slots: BTreeMap<SlotId, Vec<Stored>>,
    /// The number of the newest.
    last: u64,
}

hand_over!(Store as StoreState { slots: BTreeMap<SlotId, Vec<Stored>>, last: u64 });

/// A descriptor in store.
#[derive(Debug)]
pub struct Stored {
    /// By which an event names it.
    number: u64,
    pub(super) name: String,
    pub(super) fd: Watched<ForeignFd>,
    /// It goes with the hang-up of what is at its other end.
    polled: bool,
}

hand_over!(Stored as StoredState { number: u64, name: String, fd: Watched<ForeignFd>, polled: bool });

/// What a worker wants of the store.
#[derive(Debug)]
pub enum StoreWish {
    /// To keep these under a name.
    Keep {
        /// The name.
        name: String,
        /// They are polled.
        polled: bool,
        /// What came along.
        descriptors: Vec<ForeignFd>,
    },
    /// To forget all of a name.
    Forget(String),
}

impl Store {
    /// What the slot's next worker is handed.
    pub(super) fn of(&self, slot: SlotId) -> &[Stored] {
        self.slots.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// Has everything watched by a new set.
    pub(super) fn watch(&self, poller: &Poller) {
        self.slots.values().flatten().for_each(|stored| stored.watch(poller));
    }

    /// Removes those that this is true of.
    fn remove(&mut self, slot: Option<SlotId>, is_it: impl Fn(&Stored) -> bool) {
        for (_, stored) in self.slots.iter_mut().filter(|(of, _)| slot.is_none_or(|slot| slot == **of)) {
            stored.retain(|stored| !is_it(stored));
        }
        self.slots.retain(|_, stored| !stored.is_empty());
    }
}

impl Stored {
    fn watch(&self, poller: &Poller) {
        // Files and memory have no other end, and stay.
        if self.polled && held::may_be_watched(&self.fd) {
            let _ = self.fd.watch(poller, Token::Stored(self.number), Interest::Nothing);
        }
    }
}

impl Daemon {
    /// Does what a worker wants of its slot's store.
    pub(super) fn store(&mut self, worker: WorkerId, wish: StoreWish) {
        let Some(process) = self.processes.get(&worker) else { return };
        let (slot, name_of_worker) = (process.slot, process.name());
        let (name, polled, descriptors) = match wish {
            StoreWish::Forget(name) => {
                return self.stored.remove(Some(slot), |stored| stored.name == name);
            }
            StoreWish::Keep { name, polled, descriptors } => (name, polled, descriptors),
        };
        let of = self.generations.get(&process.generation);
        let most = of.map_or(0, |of| of.release.spec.process.fd_store_max) as usize;
        for fd in descriptors {
            if self.stored.of(slot).len() >= most {
                warn!(
                    "worker {worker} ({name_of_worker}): its store is full (fd_store_max is {most}); `{name}` is not kept"
                );
                return;
            }
            self.stored.last += 1;
            let stored = Stored { number: self.stored.last, name: name.clone(), fd: fd.into(), polled };
            stored.watch(&self.host.poller);
            self.stored.slots.entry(slot).or_default().push(stored);
            debug!("worker {worker} ({name_of_worker}): `{name}` is in store");
        }
    }

    /// Lets go of what has hung up.
    pub(super) fn end_stored(&mut self, number: u64) {
        self.stored.remove(None, |stored| stored.number == number);
    }

    /// Lets go of what is kept for a slot that the service no longer has.
    pub(super) fn tidy_slot(&mut self, slot: SlotId) {
        let strength = self.manager.strength(self.manager.current()).unwrap_or_default();
        if !self.manager.fills(slot) && slot.0 >= strength {
            self.stored.remove(Some(slot), |_| true);
            self.tidy_demands(slot);
        }
    }
}

/// The names of what a worker is handed, its sockets first.
pub(super) fn names<'a>(sockets: impl Iterator<Item = &'a str>, stored: &'a [Stored]) -> String {
    let stored = stored.iter().map(|stored| stored.name.as_str());
    sockets.chain(stored).collect::<Vec<_>>().join(":")
}

/// What a worker is handed of the store.
pub(super) fn descriptors(stored: &[Stored]) -> impl Iterator<Item = std::os::fd::BorrowedFd<'_>> {
    stored.iter().map(|stored| stored.fd.as_fd())
}

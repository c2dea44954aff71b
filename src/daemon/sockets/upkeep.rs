//! What a socket was when it was set up, so that it can be seen what others have made of it, and put back.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::guard::Hurt;
use super::listener::Listener;
use crate::core::sparing::Sparing;
use crate::core::time::Mono;
use crate::plain::SocketAddress;
use crate::sys::listener as socket;
use crate::sys::options::{self, SocketOption, Value};
use crate::sys::shared_options::{Effect, Row, Values, forget_unseen};
use crate::sys::tcp_keys;

/// How often one thing is put back, or a socket bound anew, from one upgrade to the next: workers that do it again and again are
/// not to keep the manager busy.
const MAX_TIMES: u8 = 3;

/// How many repairs of one socket the log tells of in a minute.
const MOST_TOLD: u32 = 10;

/// What is to be kept of a socket.
#[derive(Debug)]
pub(super) struct Upkeep {
    options: RefCell<Values>,
    /// Where it is bound, with the port that the kernel chose.
    local: Option<SocketAddr>,
    /// Whether its activator gave it keys.
    has_keys: bool,
    /// How often each option was put back since the last upgrade.
    put_back: RefCell<BTreeMap<&'static str, u8>>,
    /// How often it was bound anew since then.
    replaced: Cell<u8>,
    /// What the log said of its repairs.
    told: Cell<Sparing>,
}

/// An [`Upkeep`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UpkeepState {
    options: Values,
    local: Option<SocketAddr>,
    has_keys: bool,
    replaced: u8,
}

impl Upkeep {
    /// Takes a socket as it is now for what it is to be.
    pub(super) fn of(fd: &impl AsFd) -> Self {
        let has_keys = tcp_keys::peers(fd).is_ok_and(|peers| !peers.is_empty());
        Self { has_keys, ..Self::of_new(fd) }
    }

    /// The same of a socket that we have just made: only we could have given it keys.
    pub(super) fn of_new(fd: &impl AsFd) -> Self {
        Self {
            options: RefCell::new(Values::read(fd)),
            local: local(fd),
            has_keys: false,
            put_back: RefCell::default(),
            replaced: Cell::new(0),
            told: Cell::default(),
        }
    }

    pub(super) fn pack(&self) -> UpkeepState {
        let Self { options, local, has_keys, put_back: _, replaced, told: _ } = self;
        UpkeepState {
            options: options.borrow().clone(),
            local: *local,
            has_keys: *has_keys,
            replaced: replaced.get(),
        }
    }

    /// Makes it again; a program of before that did not know of it left none.
    pub(super) fn unpack(state: Option<UpkeepState>, fd: &impl AsFd) -> Self {
        let Some(UpkeepState { options, local, has_keys, replaced }) = state else { return Self::of(fd) };
        let (options, replaced) = (RefCell::new(options), Cell::new(replaced));
        Self { options, local, has_keys, put_back: RefCell::default(), replaced, told: Cell::default() }
    }

    /// Does what is our own to do, and takes over the options that it changes.
    pub(super) fn change<T>(&self, fd: &impl AsFd, action: impl FnOnce() -> T) -> T {
        self.options.borrow_mut().change(fd, action)
    }

    /// Returns where it was bound.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Counts one more time; `false` where that is too often.
    fn counts(&self, name: &'static str) -> bool {
        let mut put_back = self.put_back.borrow_mut();
        let times = put_back.entry(name).or_default();
        *times = times.saturating_add(1);
        *times <= MAX_TIMES
    }
}

fn local(fd: &impl AsFd) -> Option<SocketAddr> {
    match socket::local_address(fd) {
        Ok(Some(SocketAddress::Inet(address))) => Some(address),
        _ => None,
    }
}

impl Listener {
    /// The options of its service file, which are put back at any time.
    fn named(&self) -> BTreeSet<SocketOption> {
        self.plan().options().into_keys().collect()
    }

    /// Looks for what deafens the socket, or is otherwise than the file has it.
    pub(super) fn inspect_options(&self) -> Vec<Hurt> {
        let options = self.upkeep.options.borrow();
        let rows = options.differing(&self.fd, &self.named(), Effect::Deafens).into_iter();
        let mut hurts: Vec<_> = rows.map(Hurt::Option).collect();
        let is_moved = self.upkeep.local.is_some() && local(&self.fd) != self.upkeep.local;
        if !self.plan().spec.kind.is_listened_on() {
            if socket::is_connected(&self.fd) {
                hurts.push(Hurt::Connected);
            } else if is_moved {
                hurts.push(Hurt::Moved);
            }
        } else if self.plan().is_tcp() {
            if is_moved {
                hurts.push(Hurt::MovedForGood);
            }
            if tcp_keys::are_for_good(&self.fd) {
                hurts.push(Hurt::KeysForGood);
            } else if !self.upkeep.has_keys && tcp_keys::peers(&self.fd).is_ok_and(|peers| !peers.is_empty())
            {
                hurts.push(Hurt::Keys);
            }
        }
        hurts
    }

    /// Puts back what [`Self::inspect_options`] found.
    ///
    /// # Errors
    /// Those of setsockopt(2), connect(2) and bind(2); in words where it has been put back too often.
    pub(super) fn repair_options(&self, hurt: &Hurt) -> io::Result<()> {
        match hurt {
            Hurt::Option(row) => self.put_back(row),
            Hurt::Keys => tcp_keys::remove(&self.fd, &tcp_keys::peers(&self.fd)?),
            Hurt::Connected | Hurt::Moved => {
                if socket::is_connected(&self.fd) {
                    socket::disconnect(&self.fd)?;
                }
                self.bind_where_it_was()
            }
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Binds the socket to its address again where it has lost it.
    pub(super) fn bind_where_it_was(&self) -> io::Result<()> {
        match self.upkeep.local.filter(|address| local(&self.fd) != Some(*address)) {
            Some(address) => socket::bind(&self.fd, &SocketAddress::Inet(address)),
            None => Ok(()),
        }
    }

    fn put_back(&self, row: &'static Row) -> io::Result<()> {
        self.upkeep.options.borrow_mut().put_back(&self.fd, row)
    }

    /// Counts a repair; `false` where the same was repaired too often since the last upgrade.
    pub(in super::super) fn may_repair(&self, hurt: &Hurt) -> bool {
        match hurt {
            Hurt::Option(row) => self.upkeep.counts(row.name),
            Hurt::Keys => self.upkeep.counts("keys"),
            Hurt::Connected | Hurt::Moved => self.upkeep.counts("connect"),
            Hurt::KeysForGood | Hurt::MovedForGood => self.upkeep.replaced.get() < MAX_TIMES,
            _ => true,
        }
    }

    /// Whether the log is to tell of one more repair, and how many were left out before it: some can be provoked without end.
    pub(in super::super) fn tells(&self, now: Mono) -> Option<u64> {
        let mut told = self.upkeep.told.get();
        let untold = told.note(now, MOST_TOLD);
        self.upkeep.told.set(told);
        untold
    }

    /// Gives up its address, as far as the kernel lets it go while workers have the socket.
    pub(super) fn make_room(&self) {
        if let Some(file) = &self.file {
            file.remove();
        }
        if self.plan().is_tcp() {
            let _ = socket::shut_down(&self.fd);
        }
        if self.upkeep.local.is_some() {
            if !self.plan().is_tcp() {
                let _ = socket::disconnect(&self.fd);
            }
            // Another is bound over it.
            let _ = options::set(&self.fd, SocketOption::ReuseAddress, &Value::from(true));
        }
    }

    /// Counts how often a socket was bound anew.
    pub(super) fn succeeds(&self, dead: &Self) {
        self.upkeep.replaced.set(dead.upkeep.replaced.get().saturating_add(1));
    }

    /// Puts back the options that tune, and returns which could be put back, and which not, in words; what was put back
    /// too often is left as it is.
    pub(in super::super) fn put_back_tuning(&self) -> Vec<(&'static str, io::Result<()>)> {
        let rows = self.upkeep.options.borrow().differing(&self.fd, &self.named(), Effect::Tunes);
        forget_unseen(&self.fd);
        let counted = rows.into_iter().filter(|row| self.upkeep.counts(row.name));
        counted.map(|row| (row.name, self.put_back(row))).collect()
    }

    /// Takes the options that tune as they are for those that are to be.
    pub(in super::super) fn accept_tuning(&self) {
        self.upkeep.options.borrow_mut().accept(&self.fd, &self.named());
    }

    /// Begins to count anew.
    pub(in super::super) fn forget_repairs(&self) {
        self.upkeep.put_back.borrow_mut().clear();
        self.upkeep.replaced.set(0);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // A worker may have made a connection of it, and have close(2) wait until all of it is sent (socket(7), `SO_LINGER`).
        if self.plan().is_tcp() {
            let _ = socket::do_not_linger(&self.fd);
        }
    }
}

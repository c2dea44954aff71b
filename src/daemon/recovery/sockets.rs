//! The sockets of a service whose manager is no more: with an activator, in its store, or with the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;

use nix::unistd::{Pid, geteuid};
use tracing::{info, warn};

use super::super::release::in_words;
use super::super::sockets::{Listener, ListenerRecord, SocketPlan, Sockets};
use super::super::system_store;
use crate::sys::activation::Inherited;
use crate::sys::bound;
use crate::sys::foreign::ForeignFd;
use crate::sys::held::{self, Held, Kind};
use crate::sys::pidfd::Pidfd;

/// Sockets of before.
#[derive(Debug, Default)]
pub struct Found {
    /// In the order in which they were written down.
    pub listeners: Vec<Rc<Listener>>,
    /// Some had to be bound anew, so that workers have others than we.
    pub any_is_new: bool,
}

/// All sockets that some processes have open, and where.
#[derive(Default)]
struct Open {
    sockets: BTreeMap<u64, Vec<(Pid, Held)>>,
    /// Why it could not be seen what some of them have.
    hidden: Option<io::Error>,
}

impl Open {
    fn of(pids: &BTreeSet<Pid>) -> Self {
        let mut open = Self::default();
        for pid in pids {
            match held::open_files(*pid) {
                Ok(held) => {
                    for one in held.into_iter().filter(|one| one.kind == Kind::Socket) {
                        open.sockets.entry(one.inode).or_default().push((*pid, one));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => open.hidden = Some(error),
            }
        }
        open
    }

    /// Copies a socket from whoever has it: `NotFound` where nobody has, `PermissionDenied` where we may not.
    fn copy(&self, inode: u64) -> io::Result<ForeignFd> {
        let hidden = self.hidden.as_ref().map(io::Error::kind);
        let mut error = io::Error::from(hidden.unwrap_or(io::ErrorKind::NotFound));
        for (pid, one) in self.sockets.get(&inode).into_iter().flatten() {
            match Pidfd::open(*pid).and_then(|process| one.copy(&process)) {
                Ok(fd) => return Ok(fd),
                Err(why) if why.kind() == io::ErrorKind::PermissionDenied => error = why,
                // It was closed a moment ago, as connections are, or its process has ended.
                Err(_) => {}
            }
        }
        Err(error)
    }
}

impl Found {
    /// Finds the sockets that were written down; of what an activator handed over it leaves the rest.
    ///
    /// # Errors
    ///
    /// Which one can be neither found nor bound anew, in words.
    pub fn again(
        records: Vec<ListenerRecord>,
        holders: &BTreeSet<Pid>,
        inherited: &mut Vec<Inherited>,
    ) -> Result<Self, String> {
        let open = Open::of(holders);
        let mut found = Self::default();
        for record in records {
            // The kind is part of it: a file may have any number, sockets have one device of their own.
            let is_it = Some((Kind::Socket, record.inode));
            let handed = inherited.iter().position(|one| held::identity(&one.fd) == is_it);
            // What comes back from the store has its flags still.
            let is_reset = handed.is_some_and(|place| !system_store::is_ours(&inherited[place]));
            let fd = match handed {
                Some(place) => Ok(inherited.remove(place).fd),
                None => open.copy(record.inode).map(ForeignFd::trusted),
            };
            let (name, listen) = (record.plan.spec.name.clone(), record.plan.spec.listen.clone());
            let plan = record.plan.clone();
            let kept = fd.and_then(|fd| Listener::recover(record, fd));
            let why = match kept {
                Ok(Some(listener)) => {
                    if is_reset && let Err(error) = listener.restore_blocking() {
                        warn!("socket `{name}` ({listen}): its activator may have made it blocking: {error}");
                    }
                    found.listeners.push(Rc::new(listener));
                    continue;
                }
                Ok(None) => "its path has gone".to_owned(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    "no worker has it any more".to_owned()
                }
                Err(error) => error.to_string(),
            };
            let socket = format!("socket `{name}` ({listen})");
            let fresh = Sockets::bind_again(&plan).map_err(|error| {
                format!("{socket} cannot be had ({why}), nor bound anew: {}", in_words(&error))
            })?;
            warn!("{socket} is lost: {why}; it is bound anew");
            found.listeners.push(Rc::new(fresh));
            found.any_is_new = true;
        }
        Ok(found)
    }

    /// Whether any process may have one of these sockets from before, by their addresses.
    pub fn may_be_there(plans: &[SocketPlan]) -> bool {
        // An address that does not say its port is not known again.
        plans
            .iter()
            .any(|plan| plan.has_open_port() || bound::may_be_taken(&plan.spec.address, plan.spec.kind))
    }

    /// Whether [`Found::any`] would find a socket, or cannot be sure.
    pub fn is_anything_there(holders: &BTreeSet<Pid>) -> bool {
        let open = Open::of(holders);
        let is_one = |inode: &u64| open.copy(*inode).is_ok_and(|fd| is_listener(&fd) && is_of_a_manager(&fd));
        open.hidden.is_some() || open.sockets.keys().any(is_one)
    }

    /// Fetches all listening sockets that some processes have and that we or root have made: what a worker has bound for
    /// itself, or was handed by others, is none of the service.
    ///
    /// # Errors
    ///
    /// Why one of them cannot be had.
    pub fn any(holders: &BTreeSet<Pid>) -> io::Result<Self> {
        let mut open = Open::of(holders);
        let mut found = Self::default();
        if let Some(error) = open.hidden.take() {
            return Err(error);
        }
        for inode in open.sockets.keys() {
            let fd = match open.copy(*inode) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                fd => fd?,
            };
            if is_listener(&fd)
                && is_of_a_manager(&fd)
                && let Some(listener) = Listener::reclaim(fd.trusted())
            {
                info!("socket {} is kept from the workers of before", listener.plan().spec.listen);
                found.listeners.push(Rc::new(listener));
            }
        }
        Ok(found)
    }
}

impl Found {
    /// Adds what came back from an activator's store; workers may have the same.
    #[must_use]
    pub fn and(mut self, stored: Vec<Inherited>) -> Self {
        for Inherited { fd, name } in stored {
            let inode = held::inode(&fd).ok();
            let is_known = self.listeners.iter().any(|known| held::inode(&**known).ok() == inode);
            // A second listener of one socket would remove its path when it is dropped.
            if is_known {
                continue;
            }
            if let Some(listener) = Listener::reclaim(fd) {
                self.listeners.push(Rc::new(listener));
            } else {
                warn!("`{name}` from the store is of no use any more");
            }
        }
        self
    }
}

/// Whether the kernel says that we or root have made a socket, and that it still is where it was bound.
fn is_of_a_manager(fd: &ForeignFd) -> bool {
    match bound::maker(fd) {
        Ok(maker) => maker.is_some_and(|maker| maker == 0 || maker == geteuid().as_raw()),
        Err(error) => {
            warn!("a socket of before is not kept, as the kernel does not tell who made it: {error}");
            false
        }
    }
}

/// Whether it is one that many share: connections are each worker's own.
fn is_listener(fd: &ForeignFd) -> bool {
    use crate::plain::SocketKind;
    use crate::sys::listener::{is_connected, is_listening, kind};
    match kind(fd) {
        Ok(Some(SocketKind::Datagram)) => !is_connected(fd),
        Ok(Some(_)) => is_listening(fd).unwrap_or(false),
        Ok(None) | Err(_) => false,
    }
}

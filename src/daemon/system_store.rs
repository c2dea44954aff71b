//! Our sockets in the service manager's store (sd_notify(3), `FDSTORE=1`): whoever is started next gets them from there, may
//! anything have become of the workers.
//!
//! A socket is known by its inode, which its name holds, so a descriptor that comes back is recognised, and let go of by
//! name. What an activator has bound it keeps by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::rc::Rc;

use super::sockets::Listener;
use crate::sys::activation::Inherited;
use crate::sys::held;
use crate::sys::notify_send::NotifySender;
use crate::wire::notify::{Upward, compose};

/// How the names of our sockets begin; a number follows.
const NAME: &str = "liveswap-";

/// What the service manager keeps for us.
#[derive(Debug, Default)]
pub struct SystemStore {
    kept: BTreeSet<u64>,
    /// Something is yet to be said.
    is_behind: bool,
    /// Whether the receiver keeps what it is sent.
    is_there: bool,
}

impl SystemStore {
    /// Begins with what came back from it.
    pub fn of(inherited: &[Inherited]) -> Self {
        Self { kept: inherited.iter().filter_map(inode_of).collect(), ..Self::from_environment() }
    }

    /// Begins with an empty one.
    pub fn from_environment() -> Self {
        Self { is_there: is_there(), ..Self::default() }
    }

    /// Whether a socket stays open in there when we close ours, over a restart of the service.
    pub fn has(&self, listener: &Listener) -> bool {
        self.is_there && held::inode(listener).is_ok_and(|inode| self.kept.contains(&inode))
    }

    /// Whether it could not be told all that there is to tell.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Has exactly these sockets kept, as far as the receiver takes it now.
    pub fn keep(&mut self, sender: &NotifySender, listeners: &[Rc<Listener>]) {
        let ours = listeners.iter().filter(|listener| !listener.is_inherited());
        let ours = ours.filter_map(|listener| Some((held::inode(&**listener).ok()?, listener)));
        self.is_behind = self.tell(sender, &ours.collect()).is_err();
    }

    fn tell(&mut self, sender: &NotifySender, ours: &BTreeMap<u64, &Rc<Listener>>) -> io::Result<()> {
        let gone: Vec<_> = self.kept.iter().copied().filter(|inode| !ours.contains_key(inode)).collect();
        for inode in gone {
            until_later(sender.send(compose(&[Upward::Discard(&name(inode))]).as_bytes()))?;
            self.kept.remove(&inode);
        }
        for (inode, listener) in ours {
            if !self.kept.contains(inode) {
                let message = compose(&[Upward::Store(&name(*inode))]);
                until_later(sender.send_with(message.as_bytes(), listener.as_fd()))?;
                self.kept.insert(*inode);
            }
        }
        Ok(())
    }
}

/// Whether a descriptor that was handed over is one of those that we had stored.
pub fn is_ours(inherited: &Inherited) -> bool {
    inode_of(inherited).is_some()
}

/// Whether our service manager is a systemd with a store. It says so by `FDSTORE` since version 254; before, any systemd may have
/// one, and is known by `SYSTEMD_EXEC_PID` (systemd.exec(5)). Nothing else that hands out a `NOTIFY_SOCKET` is known to keep sockets
/// beyond our end.
fn is_there() -> bool {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    match number("FDSTORE") {
        Some(room) => room > 0,
        None => number("SYSTEMD_EXEC_PID") == Some(std::process::id()),
    }
}

fn inode_of(inherited: &Inherited) -> Option<u64> {
    inherited.name.strip_prefix(NAME)?.parse().ok()
}

fn name(inode: u64) -> String {
    format!("{NAME}{inode}")
}

/// A receiver that has gone has nothing to be told; one that is busy is told later.
fn until_later(sent: io::Result<()>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

//! The control server on TCP: where it listens, and what a client must show.
//!
//! The token decides, on a loopback address too: the kernel knows who made a socket, not who speaks by it. Nothing changes but by a commit: the socket of a generation to be is bound before anything is
//! touched, and nobody is let in by it until that generation serves.

use std::io;
use std::net::SocketAddr;

use nix::errno::Errno;
use thiserror::Error;
use tracing::{info, warn};

use super::super::outlet::OUTPUT;
use super::super::release::Release;
use super::super::run::Daemon;
use super::{Control, NO_ROOM_PAUSE};
use crate::core::notice::Outcome;
use crate::sys::control_tcp::ControlTcp;
use crate::wire::secret::Secret;

/// Why the address of `[control] tcp` cannot be had; nothing has changed.
#[derive(Debug, Error)]
#[error("`[control] tcp` ({address}): {}", match overlaps {
    Some(present) => format!("the present one, {present}, holds this address"),
    None => "cannot listen on this address".into(),
})]
pub struct TcpError {
    address: SocketAddr,
    /// The address that is to be given up, where it may be the one in the way.
    overlaps: Option<SocketAddr>,
    source: io::Error,
}

impl TcpError {
    /// Returns what to do next, where we know it.
    pub fn hint(&self) -> Option<String> {
        let hint = match Errno::from_raw(self.source.raw_os_error()?) {
            Errno::EADDRINUSE if self.overlaps.is_some() => {
                "a running manager cannot change over to an address that its old one covers: choose another port, or \
                 restart the manager"
            }
            Errno::EADDRINUSE => {
                let port = self.address.port();
                return Some(format!(
                    "`ss -ltnp 'sport = :{port}'` shows who listens there; choose another port"
                ));
            }
            Errno::EACCES => "ports below 1024 need CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=)",
            Errno::EADDRNOTAVAIL => "no interface has this address",
            Errno::EINVAL => "a link-local IPv6 address needs its interface: [fe80::1%2]:3000",
            Errno::EAFNOSUPPORT => "this kernel has no IPv6; take an IPv4 address",
            _ => return None,
        };
        Some(hint.into())
    }
}

/// Says on standard output where the control server of `liveswap -s` listens, in the words that scripts wait for: those of the liveswap
/// that was written in Node.
pub fn say_where(address: SocketAddr) {
    OUTPUT.push_from_worker("", format!("Starting on port {}", address.port()).as_bytes(), b"\n");
}

impl Control {
    /// Listens where the first generation wants it; `own` is the token where the service file names none.
    ///
    /// # Errors
    ///
    /// The address cannot be had.
    pub fn listen_by_tcp(&mut self, release: &Release, own: Option<&Secret>) -> Result<(), TcpError> {
        self.tcp = self.prepare_tcp(release.spec.control.tcp)?;
        self.ask_for(release, own);
        self.tell_where();
        Ok(())
    }

    /// Asks for the token of this release from now on, and believes the kernel or not as its file has it.
    fn ask_for(&mut self, release: &Release, own: Option<&Secret>) {
        self.token = release.control_token.as_ref().or(own).cloned();
        self.local_owner = release.spec.control.local_owner;
    }

    /// Where it listens by TCP.
    pub(in super::super) fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(ControlTcp::address)
    }

    /// Binds the address of a generation to be; `None` where none is wanted, or it is the present one.
    ///
    /// # Errors
    ///
    /// It cannot be had.
    pub(in super::super) fn prepare_tcp(
        &self,
        wanted: Option<SocketAddr>,
    ) -> Result<Option<ControlTcp>, TcpError> {
        let present = self.tcp.as_ref().map(ControlTcp::address);
        let Some(address) = wanted.filter(|_| wanted != present) else { return Ok(None) };
        ControlTcp::bind(address).map(Some).map_err(|source| {
            let covers = |present: &SocketAddr| {
                let is_any = present.ip().is_unspecified() || address.ip().is_unspecified();
                is_any && present.port() == address.port() && source.kind() == io::ErrorKind::AddrInUse
            };
            TcpError { address, overlaps: present.filter(covers), source }
        })
    }

    fn tell_where(&self) {
        if let Some(tcp) = &self.tcp {
            info!("control server listening on {}", tcp.address());
        }
    }
}

impl Daemon {
    /// Lets in whom the generation that serves now lets in, or goes on as before where there is no new one.
    pub(super) fn change_doors(&mut self, outcome: &Outcome) {
        let current = self.manager.current();
        let committed = *outcome == Outcome::Committed;
        if let Some(of) = self.generations.get_mut(&current).filter(|_| committed) {
            self.control.open_to(of.release.control_group);
            self.control.ask_for(&of.release, self.runtime.token());
            let (wanted, bound) = (of.release.spec.control.tcp, of.control_tcp.take());
            if self.control.tcp.as_ref().map(ControlTcp::address) != wanted {
                self.move_to(bound);
            }
        }
        // What was bound for a generation that does not serve has no use any more.
        self.generations.values_mut().for_each(|of| of.control_tcp = None);
    }

    fn move_to(&mut self, tcp: Option<ControlTcp>) {
        self.control.close_doors(&self.poller);
        self.control.tcp = tcp;
        self.control.tell_where();
        if self.control.admits_at.is_none()
            && let Err(error) = self.control.watch_doors(&self.poller)
        {
            warn!("cannot watch where the manager is spoken to: {error}; trying again in a second");
            self.control.close_doors(&self.poller);
            self.control.admits_at = Some(self.now() + NO_ROOM_PAUSE);
        }
    }
}

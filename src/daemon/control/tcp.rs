//! The control server on TCP: where it listens, and what a client must show.
//!
//! The token decides, on a loopback address too: the kernel knows who made a socket, not who speaks by it. Nothing changes but by a commit: the socket of a generation to be is bound before anything is
//! touched, and nobody is let in by it until that generation serves.

use std::fmt;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::rc::Rc;

use nix::errno::Errno;
use thiserror::Error;
use tracing::{info, warn};

use super::super::loose_ends::DefaultControl;
use super::super::outlet::OUTPUT;
use super::super::release::Release;
use super::super::run::Daemon;
use super::super::sockets::{Listener, covers};
use super::super::token::{Poller, Token, Watched};
use super::Control;
use crate::core::ids::GenerationId;
use crate::core::notice::Outcome;
use crate::core::spec::Protocol;
use crate::sys::control_tcp::ControlTcp;
use crate::sys::wait::Interest;
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

/// Whether the application is to find the default address of the control server free when it starts, as it binds for itself.
fn binds_first(release: &Release) -> bool {
    release.spec.control.gives_way && release.spec.process.protocol != Protocol::Node
}

/// Says how a manager is found that has no control server.
fn is_found_in(folder: &impl fmt::Display) -> String {
    format!(
        "in {folder} `liveswap -u`, `-k`, `-d` and `-m` find this manager, and `-p PORT` with `-s` gives the control server another port"
    )
}

/// Says on standard output where the control server of `liveswap -s` listens, in the words that scripts wait for: those of the liveswap
/// that was written in Node.
pub fn say_where(address: SocketAddr) {
    OUTPUT.push_from_worker("", format!("Starting on port {}", address.port()).as_bytes(), b"\n");
}

impl Control {
    /// Listens where the first generation wants it; `own` is the token where the service file names none, and `kept` are the sockets of
    /// before. A default address is the application's where one of these has it, and as long as a program starts that binds for itself.
    ///
    /// # Errors
    ///
    /// The address cannot be had.
    pub fn listen_by_tcp(
        &mut self,
        release: &Release,
        own: Option<&Secret>,
        kept: &[Rc<Listener>],
    ) -> Result<(), TcpError> {
        let is_kept = |address| kept.iter().any(|listener| covers(&listener.plan().spec, address));
        let may_be_kept = |address: &SocketAddr| release.spec.control.gives_way && is_kept(*address);
        let wanted =
            release.spec.control.tcp.filter(|address| !may_be_kept(address) && !binds_first(release));
        self.tcp = self.prepare_tcp(wanted)?.map(Watched::from);
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
        self.tcp.as_ref().map(|tcp| tcp.address())
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
        let present = self.tcp_address();
        let Some(address) = wanted.filter(|_| wanted != present) else { return Ok(None) };
        ControlTcp::bind(address).map(Some).map_err(|source| {
            let covers = |present: &SocketAddr| {
                let is_any = present.ip().is_unspecified() || address.ip().is_unspecified();
                is_any && present.port() == address.port() && source.kind() == io::ErrorKind::AddrInUse
            };
            TcpError { address, overlaps: present.filter(covers), source }
        })
    }

    /// Listens at the default address of a control server, and has that watched.
    ///
    /// # Errors
    ///
    /// The address cannot be had.
    fn open_default(&mut self, address: SocketAddr, poller: &Poller) -> io::Result<()> {
        let tcp = Watched::from(ControlTcp::bind(address)?);
        if self.admits_at.is_none() {
            tcp.watch(poller, Token::ControlTcp, Interest::Read)?;
        }
        self.tcp = Some(tcp);
        self.tell_where();
        Ok(())
    }

    /// Stops listening by TCP; connections stay. Returns where it listened.
    fn close_tcp(&mut self) -> Option<SocketAddr> {
        self.tcp.take().map(|tcp| tcp.address())
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
            let is_default = of.release.spec.control.gives_way;
            if !is_default && self.control.tcp_address() != wanted {
                self.move_to(bound);
            }
        }
        // What was bound for a generation that does not serve has no use any more.
        self.generations.values_mut().for_each(|of| of.control_tcp = None);
        self.open_default_control();
    }

    /// Binds the control server of a generation to be, where it is to have another than the present one. At a default address the
    /// application goes first: a program that binds for itself finds it free.
    ///
    /// # Errors
    ///
    /// The address cannot be had.
    pub(in super::super) fn prepare_control(
        &mut self,
        release: &Release,
    ) -> Result<Option<ControlTcp>, TcpError> {
        if !release.spec.control.gives_way {
            return self.control.prepare_tcp(release.spec.control.tcp);
        }
        if binds_first(release) {
            self.control.close_tcp();
            if self.loose_ends.default_control == DefaultControl::Yields {
                self.loose_ends.default_control = DefaultControl::Told;
            }
        }
        Ok(None)
    }

    /// Closes the control server of the default address until the next upgrade, as a worker has died whose program binds for itself. It may
    /// have been late to bind that address.
    pub(in super::super) fn yield_default_control(&mut self) {
        let Some(of) = self.generations.get(&self.manager.current()) else { return };
        let folder = of.release.directory.display();
        if !binds_first(&of.release) {
            return;
        }
        self.loose_ends.default_control = DefaultControl::Yields;
        if let Some(address) = self.control.close_tcp() {
            let why = "a worker has died, whose program may listen there";
            info!("control server on {address} closed: {why}; {}", is_found_in(&folder));
        }
    }

    /// Closes the control server where its address is the default one, as the application listens at `listen`; returns whether it was
    /// there.
    pub(in super::super) fn close_default_control(&mut self, listen: &str) -> bool {
        let Some(of) = self.generations.get(&self.manager.current()) else { return false };
        let (is_default, folder) = (of.release.spec.control.gives_way, of.release.directory.display());
        let Some(address) = is_default.then(|| self.control.close_tcp()).flatten() else {
            return false;
        };
        info!(
            "control server on {address} closed: the application listens on {listen}; {}",
            is_found_in(&folder)
        );
        true
    }

    /// Opens the control server at its default address, where the application has none there.
    pub(in super::super) fn open_default_control(&mut self) {
        let Some(of) = self.generations.get(&self.manager.current()) else { return };
        let (control, folder) = (&of.release.spec.control, of.release.directory.display());
        let Some(address) = control.tcp.filter(|_| control.gives_way && self.control.tcp.is_none()) else {
            return;
        };
        if self.manager.is_stopping() || self.loose_ends.default_control == DefaultControl::Yields {
            return;
        }
        let before = mem::replace(&mut self.loose_ends.default_control, DefaultControl::Told);
        match self.control.open_default(address, &self.host.poller) {
            Ok(()) => {
                self.loose_ends.default_control = DefaultControl::Untold;
                if binds_first(&of.release) && self.manager.current() == GenerationId(1) {
                    say_where(address);
                }
            }
            Err(error) if before == DefaultControl::Untold && binds_first(&of.release) => {
                info!("no control server on {address}: {error}; {}", is_found_in(&folder));
            }
            Err(_) => {}
        }
    }

    fn move_to(&mut self, tcp: Option<ControlTcp>) {
        self.control.tcp = tcp.map(Watched::from);
        self.control.tell_where();
        if self.control.admits_at.is_none()
            && let Err(error) = self.control.watch_doors(&self.host.poller)
        {
            warn!("cannot watch where the manager is spoken to: {error}; trying again in a second");
            self.control.pause_accepting(&mut self.host);
        }
    }
}

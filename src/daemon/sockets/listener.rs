//! One bound socket: how it comes to be, changes and ends.

use std::cell::{Cell, OnceCell, Ref, RefCell};
use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use super::super::token::Watched;
use super::error::{Problem, Step};
use super::path::{bind_path, permissions, set_permissions};
use super::plan::SocketPlan;
use super::upkeep::Upkeep;
use crate::core::spec::SocketSpec;
use crate::plain::{SocketAddress, SocketKind};
use crate::sys::activation::Inherited;
use crate::sys::backlog::backlog;
use crate::sys::folder::MadeFolders;
use crate::sys::foreign::ForeignFd;
use crate::sys::handover::hand_over;
use crate::sys::listener as socket;
use crate::sys::options::{self, SocketOption, Value};
use crate::sys::path_watch::{PathWatch, WatchedPath};
use crate::sys::socket_file::{Permissions, SocketFile};

/// The backlog where the file says nothing: the kernel cuts it to `net.core.somaxconn`.
const DEFAULT_BACKLOG: u32 = u32::MAX;

/// One bound socket, shared by the generations that use it.
///
/// It closes when the last of them is gone; then the path of a UNIX socket that we bound is unlinked, if it is still ours,
/// and the folders made for it are removed, if they are empty.
#[derive(Debug)]
pub struct Listener {
    // In the order in which they are to be dropped: our own unlink shall wake nobody.
    pub(super) watched: OnceCell<WatchedPath>,
    pub(super) file: Option<SocketFile>,
    pub(super) folders: Option<MadeFolders>,
    /// Registered once, whatever for.
    pub(in super::super) fd: Watched<ForeignFd>,
    pub(super) is_inherited: bool,
    pub(super) plan: RefCell<SocketPlan>,
    pub(super) baseline: RefCell<Baseline>,
    /// The backlog as the kernel had it after our own listen(2); `None` where it cannot be known.
    pub(super) backlog_in_force: Cell<Option<u32>>,
    pub(super) upkeep: Upkeep,
    /// Whether it was non-blocking when that was last written down.
    pub(super) noted_non_blocking: Cell<Option<bool>>,
}

/// What the socket has where the file says nothing, so that an option can be taken out of the file again.
#[derive(Debug)]
pub(super) struct Baseline {
    /// As each was before it was first set.
    options: BTreeMap<SocketOption, Value>,
    /// Of the path.
    permissions: Option<Permissions>,
    backlog: u32,
}

hand_over!(Baseline as BaselineState {
    options: BTreeMap<SocketOption, Value>,
    permissions: Option<Permissions>,
    backlog: u32,
});

impl Listener {
    /// Binds a socket and listens on it; where that fails, nothing is left of it.
    pub(super) fn bind(plan: &SocketPlan) -> Result<Self, Problem> {
        Self::bind_over(plan, None)
    }

    /// Does the same where another socket stood, or stands.
    ///
    /// `before` is a socket of the same address that is to be replaced, or could not be.
    pub(super) fn bind_over(plan: &SocketPlan, before: Option<&Self>) -> Result<Self, Problem> {
        let address = match before.and_then(|before| before.upkeep.local()) {
            // The port that the kernel chose is known by now.
            Some(local) => SocketAddress::Inet(local),
            None => plan.spec.address.clone(),
        };
        let fd = socket::create(&address, plan.spec.kind).map_err(Step::Creating.failed())?;
        // Over one that is dead, a datagram socket is bound as it is over none, but for this.
        let is_over = plan.spec.kind == SocketKind::Datagram && before.is_some();
        if plan.is_tcp() || is_over {
            // Connections of a former life in TIME_WAIT must not keep the port.
            let step = Step::Setting(SocketOption::ReuseAddress);
            options::set(&fd, SocketOption::ReuseAddress, &Value::from(true)).map_err(step.failed())?;
        }
        let mut baseline = BTreeMap::new();
        for (option, value) in plan.options() {
            let set = options::get(&fd, option).and_then(|before| {
                baseline.insert(option, before);
                options::set(&fd, option, &value)
            });
            set.map_err(Step::Setting(option).failed())?;
        }
        let (file, folders, permissions) = match &address {
            SocketAddress::Path(path) => {
                let place = before.and_then(|before| before.file.as_ref()).map(SocketFile::place);
                let (folders, file, permissions) = bind_path(&fd, path, plan, place.as_ref())?;
                (Some(file), Some(folders), Some(permissions))
            }
            SocketAddress::Inet(_) | SocketAddress::Abstract(_) => {
                socket::bind(&fd, &address).map_err(Step::Binding.failed())?;
                if is_over {
                    options::set(&fd, SocketOption::ReuseAddress, &Value::from(false))
                        .map_err(Step::Setting(SocketOption::ReuseAddress).failed())?;
                }
                (None, None, None)
            }
        };
        let baseline = Baseline { options: baseline, permissions, backlog: DEFAULT_BACKLOG };
        let backlog_in_force = listen(&fd, plan, &baseline).map_err(Step::Listening.failed())?;
        Ok(Self {
            watched: OnceCell::new(),
            file,
            folders,
            upkeep: Upkeep::of_new(&fd),
            fd: ForeignFd::from(fd).bound().into(),
            is_inherited: false,
            plan: RefCell::new(plan.clone()),
            baseline: RefCell::new(baseline),
            backlog_in_force: Cell::new(backlog_in_force),
            noted_non_blocking: Cell::default(),
        })
    }

    /// Takes over an activator's descriptor as it is; [`Self::change`] then makes it what the file wants.
    ///
    /// `Err` gives back the descriptor, and what it is in words, where it is no socket that a file can ask for.
    pub(super) fn adopt(Inherited { fd, name }: Inherited) -> Result<Self, (Inherited, String)> {
        let what = socket::local_address(&fd).and_then(|address| Ok((address, socket::kind(&fd)?)));
        let (address, kind) = match what {
            Ok((Some(address), Some(kind))) => (address, kind),
            Ok(_) => return Err((Inherited { fd, name }, "an address or a type that is not served".into())),
            Err(error) => return Err((Inherited { fd, name }, error.to_string())),
        };
        let file = match &address {
            // Where the path has gone there is nothing to guard; the socket itself may still serve.
            SocketAddress::Path(path) => SocketFile::hold(path).ok(),
            SocketAddress::Inet(_) | SocketAddress::Abstract(_) => None,
        };
        let permissions = file.as_ref().and_then(|file| file.permissions().ok());
        let is_listening = socket::is_listening(&fd).unwrap_or_default();
        let in_force = backlog(&fd).ok().filter(|_| is_listening);
        let baseline =
            Baseline { options: BTreeMap::new(), permissions, backlog: in_force.unwrap_or(DEFAULT_BACKLOG) };
        Ok(Self {
            watched: OnceCell::new(),
            file,
            folders: None,
            upkeep: Upkeep::of(&fd),
            fd: ForeignFd::from(fd).bound().into(),
            is_inherited: true,
            plan: RefCell::new(SocketPlan::of(name, address, kind)),
            baseline: RefCell::new(baseline),
            backlog_in_force: Cell::new(in_force),
            noted_non_blocking: Cell::default(),
        })
    }

    /// Returns what the socket is at present; for one just inherited, its `FDNAME` and address.
    pub fn plan(&self) -> Ref<'_, SocketPlan> {
        self.plan.borrow()
    }

    /// Returns where it listens: as the file has it, with the port that the kernel chose where the file leaves that to it.
    pub fn listens_on(&self) -> String {
        match self.chosen() {
            Some(local) => local.to_string(),
            None => self.plan().spec.listen.clone(),
        }
    }

    /// Returns a sentence that tells the port that the kernel chose.
    pub(super) fn chosen_port(&self) -> Option<String> {
        let local = self.chosen()?;
        let SocketSpec { name, listen, .. } = &self.plan().spec;
        Some(format!("socket `{name}` ({listen}) listens on {local}"))
    }

    fn chosen(&self) -> Option<SocketAddr> {
        self.upkeep.local().filter(|_| self.plan().has_open_port())
    }

    /// Returns whether an activator bound it.
    pub fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Leaves the path of a UNIX socket where it is when the socket is closed here: another process keeps it open.
    pub fn leave_path(&self) {
        if let Some(file) = &self.file {
            file.leave_path();
        }
    }

    /// Returns an option that `to` wants otherwise and that only bind(2) could change.
    pub(super) fn unchangeable(&self, to: &SocketPlan) -> Option<SocketOption> {
        let (old, new) = (self.plan().options(), to.options());
        let baseline = &self.baseline.borrow().options;
        let differing = names(&old, &new).into_iter().filter(|option| option.is_fixed_by_bind());
        differing.filter(|option| old.get(option) != new.get(option)).find(|option| {
            let wanted = new.get(option).or_else(|| baseline.get(option));
            wanted.is_some_and(|wanted| options::get(&self.fd, *option).ok().as_ref() != Some(wanted))
        })
    }

    /// Changes what differs between the present plan and this one; where that fails, the plan is the new one
    /// nevertheless, so that changing back undoes what was done.
    pub(super) fn change(&self, to: &SocketPlan) -> Result<(), Problem> {
        let from = self.plan.replace(to.clone());
        let (old, new) = (from.options(), to.options());
        if old != new {
            self.upkeep.change(&self.fd, || self.change_options(&old, &new))?;
        }
        self.change_permissions(&from)?;
        if to.spec.kind.is_listened_on() {
            let is_listening = socket::is_listening(&self.fd).map_err(Step::Listening.failed())?;
            if !is_listening || from.spec.options.backlog != to.spec.options.backlog {
                self.listen().map_err(Step::Listening.failed())?;
            }
        }
        Ok(())
    }

    fn change_options(
        &self,
        old: &BTreeMap<SocketOption, Value>,
        new: &BTreeMap<SocketOption, Value>,
    ) -> Result<(), Problem> {
        let tos_changes = old.get(&SocketOption::IpTos) != new.get(&SocketOption::IpTos);
        for option in names(old, new).into_iter().filter(|option| !option.is_fixed_by_bind()) {
            // IP_TOS has set the priority too, so it must be set again.
            let is_overridden = option == SocketOption::Priority && tos_changes;
            if old.get(&option) == new.get(&option) && !is_overridden {
                continue;
            }
            self.change_option(option, new.get(&option)).map_err(Step::Setting(option).failed())?;
        }
        Ok(())
    }

    fn change_option(&self, option: SocketOption, value: Option<&Value>) -> io::Result<()> {
        let baseline = &mut self.baseline.borrow_mut().options;
        let Some(value) = value else {
            return baseline.get(&option).map_or(Ok(()), |before| options::set(&self.fd, option, before));
        };
        if let Entry::Vacant(vacant) = baseline.entry(option) {
            vacant.insert(options::get(&self.fd, option)?);
        }
        options::set(&self.fd, option, value)
    }

    fn change_permissions(&self, from: &SocketPlan) -> Result<(), Problem> {
        let baseline = self.baseline.borrow();
        let (Some(file), Some(baseline)) = (&self.file, &baseline.permissions) else { return Ok(()) };
        let (old, new) = (permissions(from, baseline), permissions(&self.plan(), baseline));
        if old == new { Ok(()) } else { set_permissions(file, new) }
    }

    /// Opens the queue with the length that the file wants.
    pub(super) fn listen(&self) -> io::Result<()> {
        self.backlog_in_force.set(listen(&self.fd, &self.plan(), &self.baseline.borrow())?);
        Ok(())
    }

    /// Has nobody wait in accept(2) for a connection that another one took.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn set_non_blocking(&self) -> io::Result<()> {
        if options::get(&self.fd, SocketOption::NonBlocking)? == Value::from(true) {
            return Ok(());
        }
        self.set_blocking(false)
    }

    fn set_blocking(&self, blocks: bool) -> io::Result<()> {
        let set = || options::set(&self.fd, SocketOption::NonBlocking, &Value::from(!blocks));
        self.upkeep.change(&self.fd, set)
    }

    /// Has the queue be as long as whoever uses the socket wants it.
    ///
    /// # Errors
    /// Those of listen(2).
    pub fn set_backlog(&self, backlog: Option<u32>) -> io::Result<()> {
        if self.plan().spec.options.backlog == backlog {
            return Ok(());
        }
        self.plan.borrow_mut().spec.options.backlog = backlog;
        self.listen()
    }

    /// Makes a socket that was just inherited block or not, as the file says: what its activator needed does not count.
    ///
    /// This comes last, not in [`Self::change`]: later on, workers may have set `O_NONBLOCK` for themselves, and where
    /// the file says nothing it must stay.
    pub(super) fn settle_blocking(&self) -> io::Result<()> {
        let is_non_blocking = self.plan().spec.options.non_blocking;
        self.set_blocking(!is_non_blocking)
    }

    /// Keeps a spare name of the path and watches it; returns what is not possible, in words. Idempotent.
    pub(super) fn guard_path(&self, watch: &io::Result<Watched<PathWatch>>) -> Vec<String> {
        let Some(file) = self.file.as_ref().filter(|_| self.watched.get().is_none()) else {
            return Vec::new();
        };
        let mut warnings = Vec::new();
        if let Err(error) = file.keep_spare() {
            warnings.push(format!("its path could not be restored after a removal: {error}"));
        }
        let unwatched = |error: &io::Error| format!("a removal of its path would go unnoticed: {error}");
        match watch {
            Err(error) => warnings.push(unwatched(error)),
            Ok(watch) => match watch.watch_path(file.path()) {
                Ok(watched) => self.watched.set(watched).unwrap_or_default(),
                Err(error) => warnings.push(unwatched(&error)),
            },
        }
        warnings
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Opens the queue with the length that the file wants; returns the length in force, where there is a queue.
fn listen(fd: &impl AsFd, plan: &SocketPlan, baseline: &Baseline) -> io::Result<Option<u32>> {
    if !plan.spec.kind.is_listened_on() {
        return Ok(None);
    }
    socket::listen(fd, plan.spec.options.backlog.unwrap_or(baseline.backlog))?;
    Ok(backlog(fd).ok())
}

/// Returns all options that either has, in the order in which they are to be set.
fn names(
    one: &BTreeMap<SocketOption, Value>,
    other: &BTreeMap<SocketOption, Value>,
) -> BTreeSet<SocketOption> {
    one.keys().chain(other.keys()).copied().collect()
}

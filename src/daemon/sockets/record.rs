//! Sockets that go on under another program or another manager.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::listener::{BaselineState, Listener};
use super::plan::SocketPlan;
use super::upkeep::{Upkeep, UpkeepState};
use crate::core::spec::SocketAddress;
use crate::sys::activation::Inherited;
use crate::sys::folder::Place;
use crate::sys::foreign::ForeignFd;
use crate::sys::handover::{HandOver, Luggage, Number, Unpacked};
use crate::sys::held;
use crate::sys::socket_file::{SocketFile, SocketFileState};

/// A [`Listener`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListenerState {
    file: Option<SocketFileState>,
    #[serde(default, with = "crate::path_text::list")]
    folders: Option<Vec<PathBuf>>,
    fd: Number,
    is_inherited: bool,
    plan: SocketPlan,
    baseline: BaselineState,
    backlog_in_force: Option<u32>,
    upkeep: Option<UpkeepState>,
}

impl HandOver for Listener {
    type State = ListenerState;

    fn pack(&self, luggage: &mut Luggage) -> ListenerState {
        // The watch of its path is made anew: see [`Self::guard_path`].
        let Self {
            watched: _,
            file,
            folders,
            fd,
            is_inherited,
            plan,
            baseline,
            backlog_in_force,
            upkeep,
            noted_non_blocking: _,
        } = self;
        ListenerState {
            upkeep: Some(upkeep.pack()),
            file: file.pack(luggage),
            folders: folders.pack(luggage),
            fd: luggage.put(fd),
            is_inherited: *is_inherited,
            plan: plan.borrow().clone(),
            baseline: baseline.borrow().pack(luggage),
            backlog_in_force: backlog_in_force.get(),
        }
    }

    fn unpack(state: ListenerState, luggage: &mut Unpacked) -> io::Result<Self> {
        let fd = luggage.take(state.fd)?;
        Ok(Self {
            watched: OnceCell::new(),
            file: HandOver::unpack(state.file, luggage)?,
            folders: HandOver::unpack(state.folders, luggage)?,
            upkeep: Upkeep::unpack(state.upkeep, &fd),
            fd: ForeignFd::from(fd).bound().into(),
            is_inherited: state.is_inherited,
            plan: RefCell::new(state.plan),
            baseline: RefCell::new(HandOver::unpack(state.baseline, luggage)?),
            backlog_in_force: Cell::new(state.backlog_in_force),
            noted_non_blocking: Cell::default(),
        })
    }
}

/// What a manager knows of a socket beside its descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub struct ListenerRecord {
    /// By which the socket is known wherever it is open.
    pub inode: u64,
    file: Option<FileRecord>,
    #[serde(default, with = "crate::path_text::list")]
    folders: Option<Vec<PathBuf>>,
    is_inherited: bool,
    /// What it is.
    pub plan: SocketPlan,
    baseline: BaselineState,
    backlog_in_force: Option<u32>,
    upkeep: Option<UpkeepState>,
    /// Whether it was non-blocking, as its workers may have made it; `None` of a program that did not write it down.
    non_blocking: Option<bool>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileRecord {
    #[serde(with = "crate::path_text")]
    path: PathBuf,
    identity: (u64, u64),
    place: Option<Place>,
    is_ours_to_remove: bool,
}

impl Listener {
    /// Writes it down.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn record(&self) -> io::Result<ListenerRecord> {
        let Self {
            watched: _,
            file,
            folders,
            fd,
            is_inherited,
            plan,
            baseline,
            backlog_in_force,
            upkeep,
            noted_non_blocking: _,
        } = self;
        let file = file.as_ref().map(|file| {
            let (path, is_ours_to_remove) = (file.path().to_owned(), file.is_ours_to_remove());
            let (identity, place) = (file.identity()?, Some(file.place()));
            Ok::<_, io::Error>(FileRecord { path, identity, place, is_ours_to_remove })
        });
        let luggage = &mut Luggage::default();
        Ok(ListenerRecord {
            inode: held::inode(fd)?,
            file: file.transpose()?,
            folders: folders.pack(luggage),
            is_inherited: *is_inherited,
            plan: plan.borrow().clone(),
            baseline: baseline.borrow().pack(luggage),
            backlog_in_force: backlog_in_force.get(),
            upkeep: Some(upkeep.pack()),
            non_blocking: self.note_blocking().1,
        })
    }

    /// Makes it again of what was written down and its descriptor; `None` where it has no path any more by which anybody
    /// could reach it.
    ///
    /// # Errors
    /// None that is known.
    pub fn recover(record: ListenerRecord, fd: OwnedFd) -> io::Result<Option<Self>> {
        let ListenerRecord {
            inode: _,
            file,
            folders,
            is_inherited,
            plan,
            baseline,
            backlog_in_force,
            upkeep,
            non_blocking,
        } = record;
        let had_file = file.is_some();
        let file = file.and_then(|FileRecord { path, identity, place, is_ours_to_remove }| {
            SocketFile::recover(&path, place.as_ref(), identity, is_ours_to_remove)
        });
        if had_file && file.is_none() {
            return Ok(None);
        }
        let luggage = &mut Unpacked::take_over(&[])?;
        Ok(Some(Self {
            watched: OnceCell::new(),
            file,
            folders: HandOver::unpack(folders, luggage)?,
            upkeep: Upkeep::unpack(upkeep, &fd),
            fd: ForeignFd::from(fd).bound().into(),
            is_inherited,
            plan: RefCell::new(plan),
            baseline: RefCell::new(HandOver::unpack(baseline, luggage)?),
            backlog_in_force: Cell::new(backlog_in_force),
            noted_non_blocking: Cell::new(non_blocking),
        }))
    }

    /// Takes a socket for ours of which nothing is known but that a manager of this service had bound it; `None` for what no
    /// file can ask for, and where nobody can reach it any more.
    pub fn reclaim(fd: OwnedFd) -> Option<Self> {
        let mut listener = Self::adopt(Inherited { fd, name: String::new() }).ok()?;
        listener.is_inherited = false;
        let has_path = matches!(listener.plan().spec.address, SocketAddress::Path(_));
        if has_path && listener.file.is_none() {
            return None;
        }
        let path = listener.file.as_ref().map(|file| file.path().to_owned());
        if let (Some(path), Some(file)) = (path, listener.file.take()) {
            let identity = file.identity().ok()?;
            listener.file = SocketFile::recover(&path, Some(&file.place()), identity, true);
        }
        Some(listener)
    }
}

//! The runtime directory of a service, held by one manager at a time.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{Pid, Uid, geteuid, getpid};

use super::recovery::STATE;
use crate::sys::handover::{HandOver, Luggage, Number, Unpacked};
use crate::sys::occupant::{Occupant, occupant};
use crate::sys::process;

/// The longest path of a runtime directory: of the 107 bytes of a socket's path, `/notify/` and a name take 40.
const MAX_PATH: usize = 107 - 40;

/// What Node programs load first, and what it is called in the runtime directory.
const NODE_PROGRAM: &str = include_str!("node/first.js");
pub(super) const NODE_MODULE: &str = "first.js";

/// How long the children of a manager that was killed may take to become their programs, and how often it is looked.
const CHILDREN_TAKE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What execve(2) still has to do when it has closed most descriptors, which it is given many times over.
const EXECUTE_TAKES: Duration = Duration::from_millis(20);

/// The name of the control socket in the runtime directory.
pub const CONTROL: &str = "control.sock";

/// The directory for sockets and state; what we made in it is removed at the end.
#[derive(Debug)]
pub struct RuntimeDirectory {
    path: PathBuf,
    /// Who holds the lock is the service's manager.
    lock: Flock<File>,
}

/// Why there is no runtime directory to be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Another manager runs this service.
    #[error("service `{service}` is run by another manager (pid {pid}), which holds {}", path.display())]
    Taken {
        /// The service's name.
        service: String,
        /// Its manager, as written in the lock file.
        pid: String,
        /// The runtime directory.
        path: PathBuf,
    },
    /// Somebody else's directory stands where ours should be.
    #[error("{} belongs to somebody else", .0.display())]
    Foreign(PathBuf),
    /// The notify sockets in it would have names longer than a socket's address can be (unix(7)).
    #[error("{} is too long for a runtime directory: it may have {MAX_PATH} bytes", .0.display())]
    TooLong(PathBuf),
    /// It cannot be made or written to.
    #[error("cannot use {} as the runtime directory", path.display())]
    Io {
        /// The directory or the file in it.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

impl RuntimeDirectory {
    /// Makes and locks the runtime directory of a service.
    ///
    /// # Errors
    ///
    /// Another manager holds it, or it cannot be made.
    pub fn take(service: &str) -> Result<Self, RuntimeError> {
        let path = locate(service);
        if path.as_os_str().len() > MAX_PATH {
            return Err(RuntimeError::TooLong(path));
        }
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| RuntimeError::Io { path, source }
        };
        // Workers under another user must reach their notify sockets, whose names cannot be guessed.
        DirBuilder::new().recursive(true).mode(0o711).create(&path).map_err(io(&path))?;
        // Links are followed where the path is given to us; a folder in the world's may not be one.
        let path = if std::env::var_os("RUNTIME_DIRECTORY").is_some() {
            path.canonicalize().map_err(io(&path))?
        } else {
            path
        };
        let owner = fs::symlink_metadata(&path).map_err(io(&path))?;
        if !owner.is_dir() || owner.uid() != geteuid().as_raw() {
            return Err(RuntimeError::Foreign(path));
        }
        let lock = lock(&path, service)?;
        let directory = Self { path, lock };
        directory.restore().map_err(io(&directory.notify()))?;
        Ok(directory)
    }

    /// Whether the manager before us was killed: one that ends in order removes its control socket.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.control().exists()
    }

    /// Waits until the last children of a manager that was killed are their programs.
    ///
    /// They have let go of the lock by then, but execve(2) closes one descriptor after the other, and shows the new environment
    /// at its end.
    pub fn wait_for_children(&self) {
        let begun = Instant::now();
        let holds = || matches!(occupant(&self.control()), Ok(Occupant::Live));
        while holds() && begun.elapsed() < CHILDREN_TAKE {
            thread::sleep(LOOK_AGAIN);
        }
        if self.is_abandoned() {
            thread::sleep(EXECUTE_TAKES);
        }
    }

    /// Removes what managers have left in there that are no more.
    ///
    /// # Errors
    ///
    /// Those of unlink(2) and mkdir(2).
    pub fn clear(&self) -> Result<(), RuntimeError> {
        let notify = self.notify();
        let io = |source| RuntimeError::Io { path: notify.clone(), source };
        match fs::remove_dir_all(&notify) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
            _ => self.restore().map_err(io),
        }
    }

    /// Makes the folder of the notify sockets again where somebody has removed it.
    ///
    /// # Errors
    ///
    /// Those of mkdir(2) and chmod(2).
    pub fn restore(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o711).create(self.notify())?;
        fs::set_permissions(self.notify(), Permissions::from_mode(0o711))
    }

    /// Returns its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of the state for another manager.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.path.join(STATE)
    }

    /// Returns the path of the control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path.join(CONTROL)
    }

    /// Returns the path of the module that Node programs load first.
    #[must_use]
    pub fn node_module(&self) -> PathBuf {
        self.path.join(NODE_MODULE)
    }

    /// Sees to it that the module is there, for any user to read.
    ///
    /// # Errors
    ///
    /// Those of open(2), write(2), chmod(2) and rename(2).
    pub fn lay_out_node_module(&self) -> io::Result<()> {
        let (path, new) = (self.node_module(), self.path.join("first.js.new"));
        if fs::symlink_metadata(&path).is_ok_and(|file| file.len() == NODE_PROGRAM.len() as u64) {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o711).create(&self.path)?;
        fs::write(&new, NODE_PROGRAM)?;
        fs::set_permissions(&new, Permissions::from_mode(0o644))?;
        fs::rename(&new, &path)
    }

    /// Returns the folder of the notify sockets.
    #[must_use]
    pub fn notify(&self) -> PathBuf {
        self.path.join("notify")
    }
}

impl HandOver for RuntimeDirectory {
    type State = (PathBuf, Number);

    fn pack(&self, luggage: &mut Luggage) -> Self::State {
        (self.path.clone(), luggage.put(&*self.lock))
    }

    fn unpack((path, lock): Self::State, luggage: &mut Unpacked) -> io::Result<Self> {
        // The lock belongs to the open file description (flock(2)), so it is held already, and this confirms it.
        let lock = Flock::lock(luggage.take(lock)?.into(), FlockArg::LockExclusiveNonblock);
        Ok(Self { path, lock: lock.map_err(|(_, error)| error)? })
    }
}

impl Drop for RuntimeDirectory {
    fn drop(&mut self) {
        // The lock file stays: removed, two managers could hold two locks of one name.
        let _ = fs::remove_dir_all(self.notify());
        let _ = fs::remove_file(self.node_module());
    }
}

/// Returns where the runtime directory of a service is, whether it exists or not.
#[must_use]
pub fn locate(service: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(given) = variable("RUNTIME_DIRECTORY") {
        // systemd separates several by colons; the first is as good as any.
        let first = given.to_string_lossy().split(':').next().map(PathBuf::from);
        return first.unwrap_or(given);
    }
    let user = geteuid();
    if user.is_root() {
        return Path::new("/run/liveswap").join(service);
    }
    variable("XDG_RUNTIME_DIR")
        .map_or_else(|| private_folder(user), |base| base.join("liveswap"))
        .join(service)
}

/// A service's runtime directory with a control socket in it, whether anybody listens there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The service's name, as the directory has it; `None` for a directory that was given to us.
    pub service: Option<String>,
    /// The path of its control socket.
    pub socket: PathBuf,
}

impl Place {
    fn of(service: String, base: &Path) -> Self {
        let socket = base.join(&service).join(CONTROL);
        Self { service: Some(service), socket }
    }
}

/// Returns where the manager of `service` may be, or any manager, that this user can speak to; most likely first.
///
/// A named one is found in a folder that may be entered but not listed, as /run/liveswap is for all but root.
#[must_use]
pub fn places(service: Option<&str>) -> Vec<Place> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let given = variable("RUNTIME_DIRECTORY").map(|_| locate(""));
    let given = given.map(|folder| Place { service: None, socket: folder.join(CONTROL) });
    let own = [variable("XDG_RUNTIME_DIR").map(|base| base.join("liveswap")), Some(shared_folder(geteuid()))];
    let bases = [Some(PathBuf::from("/run/liveswap"))].into_iter().chain(own).flatten();
    // A stranger's folder in the world's could hold anything.
    let bases = bases.filter(|base| {
        let trusted = |uid: u32| uid == 0 || uid == geteuid().as_raw();
        fs::symlink_metadata(base).is_ok_and(|base| base.is_dir() && trusted(base.uid()))
    });
    let mut found: Vec<_> = match service {
        Some(name) => bases.map(|base| Place::of(name.to_owned(), &base)).collect(),
        None => bases.flat_map(|base| folders(&base)).collect(),
    };
    found.sort_by(|a, b| a.service.cmp(&b.service));
    given.into_iter().chain(found).filter(|place| place.socket.exists()).collect()
}

fn folders(base: &Path) -> impl Iterator<Item = Place> + use<> {
    let entries = fs::read_dir(base).into_iter().flatten().flatten();
    let base = base.to_owned();
    entries.filter_map(move |entry| Some(Place::of(entry.file_name().into_string().ok()?, &base)))
}

fn shared_folder(user: Uid) -> PathBuf {
    std::env::temp_dir().join(format!("liveswap-{user}"))
}

/// A folder of our own in the world's; that it is not somebody else's is checked on its use.
fn private_folder(user: Uid) -> PathBuf {
    let folder = shared_folder(user);
    // Where it exists with another mode or owner, the folder in it cannot be made or is found to be foreign.
    let _ = DirBuilder::new().mode(0o700).create(&folder);
    folder
}

/// Returns the pid of whoever holds the lock, as he wrote it.
fn holder(lock: &mut File) -> String {
    let mut pid = String::new();
    let _ = lock.rewind().and_then(|()| lock.read_to_string(&mut pid));
    if pid.trim().is_empty() { "unknown".into() } else { pid.trim().to_owned() }
}

/// Takes the lock. Children of a manager that was killed hold it until they have become their programs, and are waited for.
fn lock(directory: &Path, service: &str) -> Result<Flock<File>, RuntimeError> {
    let path = directory.join("lock");
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let io = |source| RuntimeError::Io { path: path.clone(), source };
    let mut file = open.map_err(io)?;
    let begun = Instant::now();
    let mut lock = loop {
        let holder = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((taken, Errno::EWOULDBLOCK)) => {
                file = taken;
                holder(&mut file)
            }
            Err((_, error)) => return Err(io(error.into())),
        };
        let is_dead = holder.parse().is_ok_and(|pid| process::started(Pid::from_raw(pid)).is_none());
        if !is_dead || begun.elapsed() > CHILDREN_TAKE {
            return Err(RuntimeError::Taken { service: service.into(), pid: holder, path: directory.into() });
        }
        thread::sleep(LOOK_AGAIN);
    };
    lock.set_len(0).and_then(|()| writeln!(lock, "{}", getpid())).map_err(io)?;
    Ok(lock)
}

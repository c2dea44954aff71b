//! The runtime directory of a service, held by one manager at a time.
//!
//! What lies in it decides what the manager and its workers do: the state for another manager, the token, a module that Node programs
//! load. So nobody but root and the manager's user may be able to change anything on the way to it or in it
//! ([`crate::sys::way`]), and files are opened below it, where no link is followed.

mod error;
mod lock;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::geteuid;
use tracing::warn;

pub use self::error::RuntimeError;
use self::lock::{CHILDREN_TAKE, LOOK_AGAIN};
pub use super::places::{
    Connected, Place, believed_at, id_of_user, own_user, places, places_of_others, stranger_at, user_name,
    users_with_places,
};
use super::recovery::STATE;
use super::rival;
use crate::sys::handover::{HandOver, Luggage, Number, PathState, Unpacked};
use crate::sys::occupant::{Occupant, occupant};
use crate::sys::own_folder::Folder;
use crate::sys::random;
use crate::sys::way::WayError;
use crate::wire::secret::Secret;

/// The longest path of a runtime directory: of the 107 bytes of a socket's path, `/notify/` and a name take 40.
const MAX_PATH: usize = 107 - 40;

/// What Node programs load first, and what it is called in the runtime directory.
const NODE_PROGRAM: &str = include_str!("node/first.js");
pub(super) const NODE_MODULE: &str = "first.js";

/// What execve(2) still has to do when it has closed most descriptors, which it is given many times over.
const EXECUTE_TAKES: Duration = Duration::from_millis(20);

/// The name of the control socket in the runtime directory.
pub const CONTROL: &str = "control.sock";

/// The name of the file of the token.
const TOKEN: &str = "token";

/// How often a start is tried where managers that end remove the folder at the same moment.
const ATTEMPTS: usize = 100;

/// The mode of the folders that we make: workers under another user must reach their notify sockets.
const MODE: u32 = 0o711;

/// The mode of our own folder in the world's.
const PRIVATE: u32 = 0o700;

/// The longest token that is read, in bytes, with what may stand around it.
const MAX_TOKEN: u64 = 4096;

/// The directory for sockets and state; what we made in it is removed at the end.
#[derive(Debug)]
pub struct RuntimeDirectory {
    path: PathBuf,
    /// Who holds the lock is the service's manager.
    lock: Flock<File>,
    /// Whether the manager before us has said that it left nobody.
    is_left_in_order: bool,
    /// Whether nothing needs the folder any more: no worker is left, or none was started yet.
    is_disposable: bool,
    /// What `[control] tcp` asks for where the service file names no token.
    token: Option<Secret>,
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
        let is_gone = |error: &RuntimeError| matches!(error, RuntimeError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
        let mut attempts = 1..ATTEMPTS;
        loop {
            match Self::try_take(&path, service) {
                Err(error) if is_gone(&error) && attempts.next().is_some() => {}
                taken => return taken,
            }
        }
    }

    fn try_take(path: &Path, service: &str) -> Result<Self, RuntimeError> {
        let folder = prepare(path)?;
        let path = folder.path().to_owned();
        // Without a lock it may be new, or somebody has removed what was in it under a manager that lives.
        let is_new = !path.join(lock::NAME).exists();
        let (lock, is_left_in_order) = lock::take(&folder, service)?;
        if is_new {
            rival::refuse(&path.join(lock::NAME), &path.join(CONTROL), service)?;
        }
        let directory = Self { path, lock, is_left_in_order, is_disposable: is_new, token: None };
        directory.restore().map_err(|source| RuntimeError::Io { path: directory.notify(), source })?;
        Ok(directory)
    }

    /// Opens it. The way is looked at again each time: somebody may have removed it, and it be made again.
    fn folder(&self) -> io::Result<Folder> {
        Folder::open(&self.path, None).map_err(io_error)
    }

    /// Makes the token for this run of the manager, or takes that of a manager that was killed where `is_taken_over`.
    ///
    /// # Errors
    ///
    /// Those of getrandom(2), open(2) and write(2).
    pub fn make_token(&mut self, is_taken_over: bool) -> Result<(), RuntimeError> {
        let kept = is_taken_over.then(|| self.read_token().ok()).flatten();
        let made = kept.map_or_else(|| self.write_token(None), Ok);
        let token = made.map_err(|source| RuntimeError::Io { path: self.path.join(TOKEN), source })?;
        self.token = Some(token);
        Ok(())
    }

    /// Goes on after a re-exec with the token in use, or with that of the file where another one is in use.
    pub fn lay_out_token(&mut self, in_use: Option<&Secret>) {
        let there = self.read_token().ok().filter(|there| in_use.is_none_or(|token| token == there));
        let token = there.map_or_else(|| self.write_token(in_use), Ok);
        match token {
            Ok(token) => self.token = Some(token),
            Err(error) => {
                warn!("{}: cannot be written: {error}", self.path.join(TOKEN).display());
                self.token = in_use.cloned();
            }
        }
    }

    /// Returns what `[control] tcp` asks for where the service file names no token.
    #[must_use]
    pub fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    fn read_token(&self) -> io::Result<Secret> {
        let file = self.folder()?.file(TOKEN, OFlag::O_RDONLY, 0)?;
        let mut text = Vec::new();
        file.take(MAX_TOKEN).read_to_end(&mut text)?;
        Secret::read(&text).map_err(io::Error::other)
    }

    fn write_token(&self, token: Option<&Secret>) -> io::Result<Secret> {
        let token = match token {
            Some(token) => token.clone(),
            None => Secret::from(random::hexadecimal::<32>()?.as_str()),
        };
        self.folder()?.replace(TOKEN, token.to_file().as_bytes(), 0o600)?;
        Ok(token)
    }

    /// Whether the manager before us was killed: one that ends in order removes its control socket.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.control().exists()
    }

    /// Whether the manager before us has ended in order and left nobody. It says so in the lock file; a directory without one is new, or
    /// was emptied by somebody.
    #[must_use]
    pub fn is_left_in_order(&self) -> bool {
        self.is_left_in_order && !self.is_abandoned()
    }

    /// Notes that workers may need the folder from now on.
    pub fn note_use(&mut self) {
        self.is_disposable = false;
    }

    /// Says in the lock file that the service has ended and no worker is left. The folder is then removed, unless
    /// `RUNTIME_DIRECTORY` names it.
    pub fn note_end(&mut self) {
        lock::note_end(&mut self.lock);
        self.is_disposable = true;
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
        if fs::read_dir(&notify).is_ok_and(|mut entries| entries.next().is_none()) {
            return Ok(());
        }
        match fs::remove_dir_all(&notify) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io(error)),
            _ => self.restore().map_err(io),
        }
    }

    /// Makes the folder of the notify sockets again where somebody has removed it, and the token's file.
    ///
    /// # Errors
    ///
    /// Those of mkdir(2) and chmod(2), and where others could change what is in it.
    pub fn restore(&self) -> io::Result<()> {
        let notify = Folder::open(&self.notify(), Some(MODE)).map_err(io_error)?;
        if notify.mode() != MODE {
            notify.set_mode(MODE)?;
        }
        if let Some(token) = self.token.as_ref().filter(|_| !self.path.join(TOKEN).exists()) {
            self.write_token(Some(token))?;
        }
        Ok(())
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
        let folder = Folder::open(&self.path, Some(MODE)).map_err(io_error)?;
        if is_module(&folder).unwrap_or(false) {
            return Ok(());
        }
        folder.replace(NODE_MODULE, NODE_PROGRAM.as_bytes(), 0o644)
    }

    /// Returns the folder of the notify sockets.
    #[must_use]
    pub fn notify(&self) -> PathBuf {
        self.path.join("notify")
    }
}

impl HandOver for RuntimeDirectory {
    type State = (PathState, Number);

    fn pack(&self, luggage: &mut Luggage) -> Self::State {
        (self.path.pack(luggage), luggage.put(&*self.lock))
    }

    fn unpack((path, lock): Self::State, luggage: &mut Unpacked) -> io::Result<Self> {
        // The lock belongs to the open file description (flock(2)), so it is held already, and this confirms it.
        let lock = Flock::lock(luggage.take(lock)?.into(), FlockArg::LockExclusiveNonblock);
        let lock = lock.map_err(|(_, error)| error)?;
        let path = PathBuf::unpack(path, luggage)?;
        Ok(Self { path, lock, is_left_in_order: false, is_disposable: false, token: None })
    }
}

impl Drop for RuntimeDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.notify());
        let Ok(folder) = self.folder() else { return };
        let _ = folder.remove(NODE_MODULE);
        let _ = folder.remove(TOKEN);
        if self.is_disposable && !is_given() {
            let _ = lock::remove(&folder);
        }
    }
}

/// Returns where the runtime directory of a service is, whether it exists or not.
#[must_use]
pub fn locate(service: &str) -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(given) = variable("RUNTIME_DIRECTORY") {
        // systemd separates several by colons; the first is as good as any.
        let first = given.as_os_str().as_bytes().split(|byte| *byte == b':').next();
        return first.map(|first| PathBuf::from(OsStr::from_bytes(first))).unwrap_or(given);
    }
    let user = geteuid();
    if user.is_root() {
        return Path::new("/run/liveswap").join(service);
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(base) => base.join("liveswap").join(service),
        None => private_folder().join(service),
    }
}

/// The name of such a folder, before the user's number.
pub(super) const PRIVATE_FOLDER: &str = "liveswap-";

/// Whether the folder is one that we were given, and not ours to change or remove.
fn is_given() -> bool {
    std::env::var_os("RUNTIME_DIRECTORY").is_some_and(|given| !given.is_empty())
}

/// A folder of our own in the world's; that nobody else can change it is checked on its use.
pub(super) fn private_folder() -> PathBuf {
    private_folder_of(geteuid().as_raw())
}

/// The same of another user.
pub(super) fn private_folder_of(user: u32) -> PathBuf {
    std::env::temp_dir().join(format!("{PRIVATE_FOLDER}{user}"))
}

/// Makes a runtime directory, or repairs it, and sees to it that others cannot change what is in it.
fn prepare(path: &Path) -> Result<Folder, RuntimeError> {
    let refuse = |error: WayError| match error {
        WayError::Unsafe { .. } => RuntimeError::Unsafe { path: path.to_owned(), reason: error.to_string() },
        WayError::Io { path, source } => RuntimeError::Io { path, source },
    };
    let io = |source| RuntimeError::Io { path: path.to_owned(), source };
    // It may come from the environment, and is relative to where we are.
    let path = std::path::absolute(path).map_err(io)?;
    let own = private_folder();
    if path.starts_with(&own) {
        let own = Folder::open(&own, Some(PRIVATE)).map_err(refuse)?;
        if own.mode() != PRIVATE {
            own.set_mode(PRIVATE).map_err(io)?;
        }
    }
    let folder = Folder::open(&path, Some(MODE)).map_err(refuse)?;
    // Whoever gave us one has chosen its mode.
    if !is_given() && folder.mode() != MODE {
        folder.set_mode(MODE).map_err(io)?;
    }
    Ok(folder)
}

fn io_error(error: WayError) -> io::Error {
    match error {
        WayError::Io { source, .. } => source,
        WayError::Unsafe { .. } => io::Error::other(error.to_string()),
    }
}

/// Whether the module is there, byte by byte, and for any user to read.
fn is_module(folder: &Folder) -> io::Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    let file = folder.file(NODE_MODULE, OFlag::O_RDONLY, 0)?;
    let mode = file.metadata()?.permissions().mode();
    let mut text = Vec::new();
    file.take(NODE_PROGRAM.len() as u64 + 1).read_to_end(&mut text)?;
    Ok(text == NODE_PROGRAM.as_bytes() && mode & 0o777 == 0o644)
}

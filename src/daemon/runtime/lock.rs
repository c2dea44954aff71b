//! The lock of the runtime directory: who holds it is the service's manager.

use std::fs::{File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{Pid, getpid};

use super::RuntimeError;
use crate::sys::own_folder::Folder;
use crate::sys::process;

/// How long the children of a manager that was killed may take to become their programs, and how often it is looked.
pub(super) const CHILDREN_TAKE: Duration = Duration::from_secs(5);
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// The name of the lock file.
pub(super) const NAME: &str = "lock";

/// What the lock file says after an end in order, in the place of a pid.
const ENDED: &str = "ended";

/// Says in the lock file that the service has ended and no worker is left.
pub(super) fn note_end(lock: &mut File) {
    // What cannot be written is a longer look for processes at the next start.
    let _ = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| writeln!(lock, "{ENDED}"));
}

/// Returns what the lock file says of the manager that holds the lock: its pid, and its service. An earlier version wrote the pid alone.
fn holder(lock: &mut File) -> (String, Option<String>) {
    let mut text = String::new();
    let _ = lock.rewind().and_then(|()| lock.read_to_string(&mut text));
    let mut words = text.split_whitespace();
    let pid = words.next().unwrap_or("unknown").to_owned();
    (pid, words.next().map(Into::into))
}

/// Takes the lock. Children of a manager that was killed hold it until they have become their programs, and are waited for.
/// Returns also whether the manager before us has ended in order.
pub(super) fn take(folder: &Folder, service: &str) -> Result<(Flock<File>, bool), RuntimeError> {
    let directory = folder.path();
    let path = directory.join(NAME);
    let io = |source| RuntimeError::Io { path: path.clone(), source };
    let mut file = folder.file(NAME, OFlag::O_RDWR | OFlag::O_CREAT, 0o600).map_err(io)?;
    // The umask may have taken bits away, and the next manager is to open it.
    file.set_permissions(Permissions::from_mode(0o600)).map_err(io)?;
    let begun = Instant::now();
    let mut lock = loop {
        let (holder, other) = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => break lock,
            Err((taken, Errno::EWOULDBLOCK)) => {
                file = taken;
                holder(&mut file)
            }
            Err((_, error)) => return Err(io(error.into())),
        };
        let is_dead = holder.parse().is_ok_and(|pid| process::started(Pid::from_raw(pid)).is_none());
        if !is_dead || begun.elapsed() > CHILDREN_TAKE {
            let (service, pid, path) = (service.to_owned(), holder, directory.into());
            return Err(match other.filter(|other| *other != service) {
                Some(other) => RuntimeError::OfAnother { service, other, pid, path },
                None => RuntimeError::Taken { service, pid, path },
            });
        }
        thread::sleep(LOOK_AGAIN);
    };
    let is_left_in_order = holder(&mut lock).0 == ENDED;
    let text = format!("{} {service}\n", getpid());
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(text.as_bytes()))
        .map_err(io)?;
    Ok((lock, is_left_in_order))
}

//! The lock of the runtime directory: who holds it is the service's manager.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
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

/// Removes the lock file and then its folder, if nothing else is in it.
///
/// Another manager that has opened the file before, and gets the lock now, finds that its file has no name any more
/// ([`take`]).
pub(super) fn remove(folder: &Folder) -> io::Result<()> {
    folder.remove(NAME)?;
    // By rmdir(2), which follows no link.
    fs::remove_dir(folder.path())
}

/// Whether the file is the one that has the lock's name now.
fn is_current(file: &File, folder: &Folder) -> io::Result<bool> {
    let (held, named) = (file.metadata()?, folder.file(NAME, OFlag::O_RDONLY, 0)?.metadata()?);
    Ok((held.dev(), held.ino()) == (named.dev(), named.ino()))
}

/// Takes the lock. Children of a manager that was killed hold it until they have become their programs, and are waited for.
/// Returns also whether the manager before us has ended in order. The error is NotFound where a manager that
/// ended just now has removed the lock file or its folder.
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
    if !is_current(&lock, folder).map_err(io)? {
        return Err(io(io::ErrorKind::NotFound.into()));
    }
    let is_left_in_order = holder(&mut lock).0 == ENDED;
    let text = format!("{} {service}\n", getpid());
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| lock.write_all(text.as_bytes()))
        .map_err(io)?;
    Ok((lock, is_left_in_order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_whose_file_was_removed_meanwhile_is_not_the_services() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("web");
        let folder = Folder::open(&path, Some(0o700)).unwrap();
        let (lock, is_left_in_order) = take(&folder, "web").unwrap();
        assert!(is_current(&lock, &folder).unwrap() && !is_left_in_order);
        // Another manager has opened the file, and waits for nothing but the lock.
        let other = folder.file(NAME, OFlag::O_RDWR, 0o600).unwrap();
        remove(&folder).unwrap();
        drop(lock);
        assert!(!path.exists());
        assert_eq!(is_current(&other, &folder).unwrap_err().kind(), io::ErrorKind::NotFound);
        let is_gone = |error: &RuntimeError| matches!(error, RuntimeError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound);
        assert!(take(&folder, "web").is_err_and(|error| is_gone(&error)));
        let folder = Folder::open(&path, Some(0o700)).unwrap();
        let (_lock, _) = take(&folder, "web").unwrap();
        assert!(!is_current(&other, &folder).unwrap());
    }
}

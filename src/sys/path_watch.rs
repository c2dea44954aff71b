//! Notice of what others do to the files of UNIX sockets (inotify(7)).
//!
//! The files themselves are watched, not their folders: an unlink, a rename and a replacement each change the file
//! (its count of links, or its name), whereas neither a connection nor other files beside it cause an event.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::unistd::dup;

/// The limits of inotify(7), and where they are set.
pub(super) const INSTANCES: (&str, &str) = ("instances", "fs.inotify.max_user_instances");
pub(super) const WATCHES: (&str, &str) = ("watches", "fs.inotify.max_user_watches");

/// How often events are read in one call: whoever may change a watched file can make events without end.
const READS: usize = 16;

/// One inotify descriptor for all paths; readable when something happened to one of them.
#[derive(Clone, Debug)]
pub struct PathWatch {
    inotify: Rc<Inotify>,
}

/// A file under watch, until drop.
#[derive(Debug)]
pub struct WatchedPath {
    inotify: Rc<Inotify>,
    descriptor: WatchDescriptor,
}

impl PathWatch {
    /// Makes a watch that has no path yet.
    ///
    /// # Errors
    /// Those of `inotify_init(2)`: EMFILE at `fs.inotify.max_user_instances`, which the words of the error name.
    pub fn new() -> io::Result<Self> {
        Ok(Self { inotify: Rc::new(instance()?) })
    }

    /// Watches the file that stands at the path now. A file may be watched once at a time.
    ///
    /// # Errors
    /// Those of `inotify_add_watch(2)`: EACCES where we may not read the file, ENOSPC at `fs.inotify.max_user_watches`.
    pub fn watch_path(&self, path: &Path) -> io::Result<WatchedPath> {
        let events = AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DELETE_SELF;
        let events = events | AddWatchFlags::IN_DONT_FOLLOW;
        let descriptor = self.inotify.add_watch(path, events).map_err(|error| match error {
            Errno::ENOSPC => exhausted(WATCHES),
            error => error.into(),
        })?;
        Ok(WatchedPath { inotify: Rc::clone(&self.inotify), descriptor })
    }

    /// Reads events away, and returns whether any tells of a path; what happened is then to be looked at. That a watch has ended
    /// (`IN_IGNORED`), as with each worker, tells of none. Where events come faster than they are read, the rest stays for the next call.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn drain(&self) -> io::Result<bool> {
        let mut any = false;
        for _ in 0..READS {
            match self.inotify.read_events() {
                Ok(events) => {
                    any |= events.iter().any(|event| !event.mask.contains(AddWatchFlags::IN_IGNORED));
                }
                Err(Errno::EAGAIN) => return Ok(any),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(any)
    }
}

/// Makes an inotify instance.
///
/// # Errors
/// Those of `inotify_init(2)`. Its EMFILE mostly means another limit than that of open files, which its words would name.
pub(super) fn instance() -> io::Result<Inotify> {
    Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(|error| match error {
        Errno::EMFILE if dup(io::stderr()).is_ok() => exhausted(INSTANCES),
        error => error.into(),
    })
}

/// Says which limit of inotify is reached, and where it is set.
pub(super) fn exhausted((what, setting): (&str, &str)) -> io::Error {
    let why = format!("this user has as many inotify {what} as there may be; raise `sysctl {setting}`");
    io::Error::new(io::ErrorKind::QuotaExceeded, why)
}

impl AsFd for PathWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Drop for WatchedPath {
    fn drop(&mut self) {
        // EINVAL: the file has gone, and the watch with it.
        let _ = self.inotify.rm_watch(self.descriptor);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn it_wakes_for_what_is_done_to_the_path_and_not_for_a_connection() {
        let folder = tempfile::tempdir().unwrap();
        let (path, spare) = (folder.path().join("socket"), folder.path().join("spare"));
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::hard_link(&path, &spare).unwrap();
        let watch = PathWatch::new().unwrap();
        let watched = watch.watch_path(&path).unwrap();
        assert!(!watch.drain().unwrap());

        let client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(client);
        std::fs::write(folder.path().join("other"), "").unwrap();
        assert!(!watch.drain().unwrap());

        std::fs::remove_file(&path).unwrap();
        assert!(watch.drain().unwrap());
        std::fs::rename(&spare, &path).unwrap();
        assert!(watch.drain().unwrap());
        std::fs::rename(folder.path().join("other"), &path).unwrap();
        assert!(watch.drain().unwrap());
        assert!(!watch.drain().unwrap());

        drop(watched);
        watch.drain().unwrap();
        let watched = watch.watch_path(&path).unwrap();
        drop(watched);
        assert!(!watch.drain().unwrap(), "the end of a watch says nothing of the path");
    }
}

//! Which processes hold a socket, as /proc tells it (proc(5)).
//!
//! It reads the descriptors of every process of the machine, and of every thread, as a thread may have a table of its own. That
//! takes milliseconds to seconds: it is for a child of the manager. What it cannot see is a socket that no descriptor refers to: one on
//! its way to another process, or one that a kernel service such as io_uring(7) keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;

use nix::unistd::{Pid, geteuid};

use super::process::users;
use super::usage::socket_inode;

/// The processes that hold sockets.
#[derive(Debug, Default)]
pub struct Holders {
    /// By the inode number of the socket.
    pub of: BTreeMap<u32, BTreeSet<Pid>>,
    /// A process that we could not look into, and that is neither root's nor ours.
    pub hidden: Option<Pid>,
}

/// Looks who holds any of these sockets.
pub fn holders(inodes: &BTreeSet<u32>) -> Holders {
    let mut holders = Holders::default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    for pid in pids {
        match sockets_of(pid) {
            Ok(sockets) => {
                for inode in sockets.intersection(inodes) {
                    holders.of.entry(*inode).or_default().insert(pid);
                }
            }
            Err(error) if has_gone(&error) => {}
            Err(_) if users(pid).is_some_and(|users| users.iter().all(|user| is_trusted(*user))) => {}
            Err(_) => holders.hidden = Some(pid),
        }
    }
    holders
}

/// The sockets of all threads of a process.
fn sockets_of(pid: Pid) -> io::Result<BTreeSet<u32>> {
    let mut sockets = BTreeSet::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let entries = match fs::read_dir(thread.path().join("fd")) {
            Err(error) if has_gone(&error) => continue,
            entries => entries?,
        };
        for entry in entries.flatten() {
            match fs::read_link(entry.path()) {
                Ok(target) => sockets.extend(target.to_str().and_then(socket_inode)),
                // Closed meanwhile.
                Err(error) if has_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(sockets)
}

fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a user is root or ours.
#[must_use]
pub fn is_trusted(user: u32) -> bool {
    user == 0 || user == geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use nix::sys::stat::fstat;
    use nix::unistd::getpid;

    use super::*;

    #[test]
    fn the_holder_of_a_socket_is_found_as_long_as_it_holds_it() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = u32::try_from(fstat(socket.as_fd()).unwrap().st_ino).unwrap();
        let inodes = BTreeSet::from([inode]);
        assert!(holders(&inodes).of[&inode].contains(&getpid()));
        drop(socket);
        assert!(holders(&inodes).of.get(&inode).is_none_or(|pids| !pids.contains(&getpid())));
    }

    #[test]
    #[expect(unsafe_code, reason = "unshare(2), which nix has in a feature of its own")]
    fn a_socket_in_the_table_of_one_thread_alone_is_found() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            // SAFETY: this thread has a table of its own from here on, which nothing else relies on.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let socket = TcpListener::bind("127.0.0.1:0").unwrap();
            tell.send(u32::try_from(fstat(socket.as_fd()).unwrap().st_ino).unwrap()).unwrap();
            let _ = ended.recv();
        });
        let inode = told.recv().unwrap();
        assert!(holders(&BTreeSet::from([inode])).of[&inode].contains(&getpid()));
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn the_users_of_a_process_are_four() {
        assert_eq!(users(getpid()).unwrap()[1], geteuid().as_raw());
        assert_eq!(users(Pid::from_raw(i32::MAX)), None);
        assert!(is_trusted(0) && !is_trusted(4_000_000));
    }
}

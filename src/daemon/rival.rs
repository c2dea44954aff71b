//! Another manager of the same service, whose lock somebody has removed: a cleaner of temporary files, for instance.
//!
//! The lock is held still, but nobody who comes finds it by its name. The kernel tells of a file that is open and removed
//! (proc_pid_fd(5)).

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Pid, getpid};

use super::runtime::RuntimeError;
use crate::plain::SocketAddress;
use crate::sys::exec::DELETED;
use crate::sys::process::{name, processes};
use crate::sys::unix_names;

/// Refuses to start beside a manager whose lock file of this path was removed, and removes the new one: with it the next attempt
/// would take the folder for one in order.
///
/// # Errors
///
/// There is one.
pub(super) fn refuse(lock: &Path, control: &Path, service: &str) -> Result<(), RuntimeError> {
    // A manager that lives has a control socket, whose name the kernel lists though it was removed. So mostly there is none, and no
    // process needs to be looked at.
    if unix_names::is_taken(&SocketAddress::Path(control.to_owned())).is_ok_and(|is_taken| !is_taken) {
        return Ok(());
    }
    let Some(pid) = another_manager(lock) else { return Ok(()) };
    let _ = fs::remove_file(lock);
    let path = lock.parent().unwrap_or(lock).to_owned();
    Err(RuntimeError::Taken { service: service.into(), pid: pid.to_string(), path })
}

/// Returns the process that has a removed lock file of that path open. Only processes of our own name are looked into, as all
/// descriptors of a machine would take long.
fn another_manager(lock: &Path) -> Option<Pid> {
    let mut removed = lock.as_os_str().to_owned();
    removed.push(DELETED);
    let removed = PathBuf::from(removed);
    let own = name(getpid());
    let is_alike = |pid: &Pid| {
        *pid != getpid() && name(*pid).is_some_and(|name| Some(&name) == own.as_ref() || name == "liveswap")
    };
    processes().filter(is_alike).find(|pid| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|link| link == removed)
    })
}

//! What processes use, as /proc tells it (proc(5)).
//!
//! Reading of many processes takes milliseconds: not for the manager itself, but for a child of it.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use nix::unistd::{Pid, SysconfVar, sysconf};

use super::process::{living_thread, parents};

/// Returns for each of `roots` itself and all that descend from it; one that descends from two roots counts for the nearer.
pub fn families(roots: &[Pid]) -> BTreeMap<Pid, Vec<Pid>> {
    let parents: BTreeMap<Pid, Pid> = parents().collect();
    let mut families: BTreeMap<Pid, Vec<Pid>> = roots.iter().map(|root| (*root, vec![*root])).collect();
    for pid in parents.keys().filter(|pid| !roots.contains(*pid)) {
        let mut ancestor = parents.get(pid);
        // A chain is no longer than there are processes; what changes meanwhile cannot make it a ring for ever.
        for _ in 0..parents.len() {
            let Some(one) = ancestor else { break };
            if let Some(family) = families.get_mut(one) {
                family.push(*pid);
                break;
            }
            ancestor = parents.get(one);
        }
    }
    families
}

/// Returns the resident memory of a process, in bytes.
pub fn resident(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten()?;
    Some(pages * u64::try_from(size).ok()?)
}

/// Returns the inode numbers of the sockets that a process has open; none of one that has gone.
///
/// # Errors
///
/// Those of readdir(3) and readlink(2): EACCES where we may not look (ptrace(2)). Root without `CAP_SYS_PTRACE` sees which
/// descriptors there are, and not what they are.
pub fn sockets(pid: Pid) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(format!("/proc/{}/fd", living_thread(pid))) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut sockets = Vec::new();
    for entry in entries.flatten() {
        match fs::read_link(entry.path()) {
            Ok(target) => sockets.extend(target.to_str().and_then(socket_inode)),
            // Closed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sockets)
}

pub(super) fn socket_inode(link: &str) -> Option<u32> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use nix::sys::stat::fstat;
    use nix::unistd::{getpid, getppid};

    use super::*;

    #[test]
    fn our_own_use_is_seen() {
        let socket = UnixDatagram::unbound().unwrap();
        let inode = fstat(socket.as_fd()).unwrap().st_ino;
        assert!(sockets(getpid()).unwrap().iter().any(|found| u64::from(*found) == inode));
        assert!(sockets(Pid::from_raw(i32::MAX)).unwrap().is_empty());
        assert!(resident(getpid()).unwrap() > 100_000);
        assert_eq!(resident(Pid::from_raw(i32::MAX)), None);
    }

    #[test]
    fn a_family_is_its_nearest_ancestor_s() {
        let families = families(&[getppid(), getpid()]);
        assert!(families[&getpid()].contains(&getpid()));
        assert!(!families[&getppid()].contains(&getpid()));
    }
}

//! What processes use, as /proc tells it (proc(5)).
//!
//! Reading of many processes takes milliseconds: not for the manager itself, but for a child of it.

use std::collections::BTreeMap;
use std::fs;

use nix::unistd::{Pid, SysconfVar, sysconf};

use super::process::parents;

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

/// Returns the inode numbers of the sockets that a process has open; none where we may not look.
pub fn sockets(pid: Pid) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
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
        assert!(sockets(getpid()).any(|found| u64::from(found) == inode));
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

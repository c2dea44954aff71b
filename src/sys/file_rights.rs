//! The file system rights of another user, for a moment.

use nix::sys::prctl::{get_dumpable, get_pdeathsig, set_dumpable, set_pdeathsig};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid, setgroups};

use crate::plain::Credentials;

/// Does something with the file system rights of a user and of these groups alone, where we are root and the user is another; else with
/// our own.
pub fn with_rights_of<T>(who: &Credentials, action: impl FnOnce() -> T) -> T {
    let (user, group) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    if !geteuid().is_root() || user.is_root() {
        return action();
    }
    // The kernel forgets these two with such a change.
    let (is_dumpable, parent_death) = (get_dumpable(), get_pdeathsig());
    let own = getgroups();
    // Without the groups of root; a namespace may refuse it (user_namespaces(7)).
    let groups: Vec<_> = who.groups.iter().copied().map(Gid::from_raw).collect();
    let is_without = own.is_ok() && setgroups(&groups).is_ok();
    setfsgid(group);
    // The rights of root that concern files go with the id and come back with it (capabilities(7)).
    setfsuid(user);
    let done = action();
    setfsuid(geteuid());
    setfsgid(getegid());
    if let (true, Ok(own)) = (is_without, own) {
        let _ = setgroups(&own);
    }
    let _ = is_dumpable.and_then(set_dumpable);
    let _ = parent_death.and_then(set_pdeathsig);
    done
}

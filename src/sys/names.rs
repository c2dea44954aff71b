//! Users and groups by name.
//!
//! Every look-up in here may ask a name service (nsswitch.conf(5)) and wait for it as long as it likes: call them only
//! in a forked checker ([`super::fork::in_child`]), never in the manager itself.

use std::ffi::CString;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getgid, getgrouplist, getgroups, getuid};

use crate::plain::Credentials;

/// Why a name could not be turned into a number.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// The user data base knows no such name.
    #[error("there is no user `{0}`: make it (useradd --system {0}), or name another")]
    NoSuchUser(String),
    /// The group data base knows no such name.
    #[error("there is no group `{0}`: make it (groupadd --system {0}), or name another")]
    NoSuchGroup(String),
    /// A bare number says nothing of the groups.
    #[error("user {0} has no entry in the user data base: give its `group` too")]
    NoEntry(u32),
    /// The data base could not be asked.
    #[error("looking up `{name}`")]
    Lookup {
        /// What was looked up.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Returns the number of a user given by name or number; a number need not have an entry.
///
/// # Errors
/// A name without an entry, or a data base that fails.
pub fn user_id(text: &str) -> Result<Uid, NameError> {
    match text.parse() {
        Ok(number) => Ok(Uid::from_raw(number)),
        Err(_) => named_user(text).map(|user| user.uid),
    }
}

/// Returns the name of a user; `None` if the user data base has none or cannot be asked.
#[must_use]
pub fn user_name(user: Uid) -> Option<String> {
    User::from_uid(user).ok().flatten().map(|user| user.name)
}

/// Returns the number of a group given by name or number; a number need not have an entry.
///
/// # Errors
/// A name without an entry, or a data base that fails.
pub fn group_id(text: &str) -> Result<Gid, NameError> {
    match text.parse() {
        Ok(number) => Ok(Gid::from_raw(number)),
        Err(_) => found(text, Group::from_name(text))?
            .map(|group| group.gid)
            .ok_or_else(|| NameError::NoSuchGroup(text.to_owned())),
    }
}

/// Returns who a process shall be: `None` where nothing is asked for, so that nothing is changed.
///
/// The group defaults to the user's own, the supplementary groups to those of the user's entry; what no user is named
/// for stays as it is in this process.
///
/// # Errors
/// A name without an entry, a user's number without an entry where no group is given, or a data base that fails.
pub fn credentials(
    user: Option<&str>,
    group: Option<&str>,
    supplementary: Option<&[String]>,
) -> Result<Option<Credentials>, NameError> {
    if user.is_none() && group.is_none() && supplementary.is_none() {
        return Ok(None);
    }
    let given_group = group.map(group_id).transpose()?;
    let given_groups =
        supplementary.map(|names| names.iter().map(|name| group_id(name)).collect()).transpose()?;
    let Some(user) = user else {
        let groups = given_groups.map_or_else(|| own_groups("this process"), Ok)?;
        return Ok(Some(numbers(getuid(), given_group.unwrap_or_else(getgid), groups)));
    };
    let entry = match user.parse() {
        Ok(number) => found(user, User::from_uid(Uid::from_raw(number)))?.ok_or(number),
        Err(_) => Ok(named_user(user)?),
    };
    let (uid, gid, entry_name) = match entry {
        Ok(entry) => (entry.uid, given_group.unwrap_or(entry.gid), Some(entry.name)),
        Err(number) => {
            let gid = given_group.ok_or(NameError::NoEntry(number))?;
            (Uid::from_raw(number), gid, None)
        }
    };
    let groups = match (given_groups, entry_name) {
        (Some(groups), _) => groups,
        // What nobody may change in a user namespace need not keep a process from being who it is.
        (None, _) if uid == getuid() && gid == getgid() && are_groups_fixed() => own_groups(user)?,
        (None, Some(name)) => groups_of(&name, gid)?,
        (None, None) => vec![gid],
    };
    Ok(Some(numbers(uid, gid, groups)))
}

fn numbers(uid: Uid, gid: Gid, groups: Vec<Gid>) -> Credentials {
    let groups = groups.into_iter().map(Into::into).collect();
    Credentials { uid: uid.into(), gid: gid.into(), groups }
}

/// Returns the variables that a login as this user would have (systemd.exec(5), `User=`); none for a number without an
/// entry.
///
/// # Errors
/// A name without an entry, or a data base that fails.
pub fn login_variables(user: &str) -> Result<Vec<(&'static str, String)>, NameError> {
    let entry = match user.parse() {
        Ok(number) => found(user, User::from_uid(Uid::from_raw(number)))?,
        Err(_) => Some(named_user(user)?),
    };
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    Ok(entry.map_or_else(Vec::new, |entry| {
        let name = entry.name;
        vec![
            ("USER", name.clone()),
            ("LOGNAME", name),
            ("HOME", text(entry.dir)),
            ("SHELL", text(entry.shell)),
        ]
    }))
}

/// Whether our user namespace lets nobody set supplementary groups (user_namespaces(7)).
fn are_groups_fixed() -> bool {
    std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny")
}

fn named_user(name: &str) -> Result<User, NameError> {
    found(name, User::from_name(name))?.ok_or_else(|| NameError::NoSuchUser(name.to_owned()))
}

fn groups_of(name: &str, gid: Gid) -> Result<Vec<Gid>, NameError> {
    let c_name = CString::new(name).map_err(|_| NameError::NoSuchUser(name.to_owned()))?;
    getgrouplist(&c_name, gid).map_err(|error| lookup_error(name, error))
}

fn own_groups(name: &str) -> Result<Vec<Gid>, NameError> {
    getgroups().map_err(|error| lookup_error(name, error))
}

/// Reads the answer of a look-up, in which "not found" has several errors too (getpwnam(3), NOTES).
fn found<T>(name: &str, answer: nix::Result<Option<T>>) -> Result<Option<T>, NameError> {
    match answer {
        Ok(entry) => Ok(entry),
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        Err(error) => Err(lookup_error(name, error)),
    }
}

fn lookup_error(name: &str, error: Errno) -> NameError {
    NameError::Lookup { name: name.to_owned(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: Option<&str>, group: Option<&str>, groups: Option<&[String]>) -> Credentials {
        credentials(user, group, groups).unwrap().expect("something was asked for")
    }

    #[test]
    fn names_and_numbers_are_understood() {
        assert_eq!(user_id("root").unwrap(), Uid::from_raw(0));
        assert_eq!(user_id("4242").unwrap(), Uid::from_raw(4_242));
        assert_eq!(group_id("root").unwrap(), Gid::from_raw(0));
        assert_eq!(group_id("4242").unwrap(), Gid::from_raw(4_242));
    }

    #[test]
    fn unknown_names_are_told_in_words() {
        assert_eq!(
            user_id("no-such").unwrap_err().to_string(),
            "there is no user `no-such`: make it (useradd --system no-such), or name another"
        );
        assert_eq!(
            group_id("no-such").unwrap_err().to_string(),
            "there is no group `no-such`: make it (groupadd --system no-such), or name another"
        );
        let refusal = credentials(Some("4000000"), None, None).unwrap_err().to_string();
        assert_eq!(refusal, "user 4000000 has no entry in the user data base: give its `group` too");
    }

    #[test]
    fn nothing_asked_changes_nothing() {
        assert_eq!(credentials(None, None, None).unwrap(), None);
    }

    #[test]
    fn a_user_brings_its_groups_unless_others_are_given() {
        let root = who(Some("root"), None, None);
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&root.gid));
        let odd = who(Some("0"), Some("7"), Some(&["8".to_owned(), "9".to_owned()]));
        assert_eq!(odd.gid, 7);
        assert_eq!(odd.groups, [8, 9]);
    }

    #[test]
    fn a_number_without_an_entry_has_the_given_group_alone() {
        let nobody = who(Some("4000000"), Some("4000001"), None);
        assert_eq!(nobody.uid, 4_000_000);
        assert_eq!(nobody.groups, [4_000_001]);
    }

    #[test]
    fn a_group_alone_keeps_the_user() {
        let kept = who(None, Some("7"), None);
        assert_eq!(kept, numbers(getuid(), Gid::from_raw(7), getgroups().unwrap()));
    }
}

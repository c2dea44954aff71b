//! Whether a user can pass through the folders above a path (path_resolution(7)).

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A folder that a user may not pass through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Where it is.
    pub folder: PathBuf,
    /// Its mode, 0 to 0o7777.
    pub mode: u32,
    /// Its owner.
    pub owner: u32,
}

/// Returns the topmost folder above `path` that a user with these groups may not pass through, by its mode; access control lists are not
/// looked at. Root passes everywhere.
pub fn closed_above(path: &Path, user: u32, groups: &[u32]) -> Option<Closed> {
    let folders: Vec<&Path> = path.ancestors().skip(1).collect();
    let closed = folders.into_iter().rev().find_map(|folder| {
        let metadata = fs::metadata(folder).ok()?;
        let (mode, owner) = (metadata.permissions().mode() & 0o7777, metadata.uid());
        let right = match (owner == user, groups.contains(&metadata.gid())) {
            (true, _) => 0o100,
            (false, true) => 0o010,
            (false, false) => 0o001,
        };
        (mode & right == 0).then(|| Closed { folder: folder.to_owned(), mode, owner })
    });
    closed.filter(|_| user != 0)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn the_topmost_folder_that_is_closed_to_a_user_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let set = |name: &str, mode| {
            fs::set_permissions(folder.path().join(name), Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let path = folder.path().join("a/b/socket");
        let owner = fs::metadata(folder.path()).unwrap();
        let (nobody, group) = (owner.uid() + 4711, owner.gid());
        for (mode, of_group, of_others) in [(0o711, true, true), (0o710, true, false), (0o701, false, true)] {
            set("", 0o755);
            set("a", mode);
            let closed = |groups: &[u32]| closed_above(&path, nobody, groups).map(|closed| closed.folder);
            let a = folder.path().join("a");
            assert_eq!(closed(&[group]), (!of_group).then(|| a.clone()), "{mode:o}");
            assert_eq!(closed(&[group + 1]), (!of_others).then_some(a), "{mode:o}");
            set("", 0o700);
            assert_eq!(closed(&[group]), Some(folder.path().to_owned()));
        }
        assert_eq!(closed_above(&path, 0, &[]), None);
    }
}

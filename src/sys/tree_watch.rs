//! Notice of changes in whole folders (inotify(7)).
//!
//! What has its name from a tool and not from a person is left out: hidden files and folders, `target`, and the copies that
//! editors end with `~`. Each path is also watched from the folder that it stands in, so that it may be replaced, or go and
//! come back; and so is each symbolic link on the way to it, such as `current`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, mem};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::path_watch::{WATCHES, exhausted, instance};

/// Files written, made, removed and renamed; reading is no change.
const CHANGES: AddWatchFlags = AddWatchFlags::IN_CLOSE_WRITE
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_MOVE);

/// Folders and files under watch; readable when something may have changed.
#[derive(Debug)]
pub struct TreeWatch {
    inotify: Inotify,
    paths: Vec<PathBuf>,
    folders: BTreeMap<WatchDescriptor, Folder>,
}

#[derive(Debug, Default)]
struct Folder {
    path: PathBuf,
    /// All in it counts, but for what is left out.
    whole: bool,
    /// What counts in any case.
    names: BTreeSet<OsString>,
    /// Links on the way to what is watched: where one leads elsewhere, all behind it is another.
    links: BTreeSet<OsString>,
}

impl TreeWatch {
    /// Watches files, and folders with all that is in them, by absolute paths.
    ///
    /// # Errors
    /// Those of inotify_add_watch(2): ENOSPC at `fs.inotify.max_user_watches`, EACCES for a folder that we may not read.
    pub fn new(paths: Vec<PathBuf>) -> io::Result<Self> {
        let mut watch = Self { inotify: instance()?, paths, folders: BTreeMap::new() };
        watch.add_all()?;
        Ok(watch)
    }

    fn add_all(&mut self) -> io::Result<()> {
        let paths = mem::take(&mut self.paths);
        let added = paths.iter().try_for_each(|path| {
            for link in path.ancestors().skip(1).filter(|way| way.is_symlink()) {
                if let (Some(folder), Some(name)) = (link.parent(), link.file_name())
                    && let Some(folder) = self.add(folder)?
                {
                    folder.links.insert(name.to_owned());
                }
            }
            if let (Some(folder), Some(name)) = (path.parent(), path.file_name())
                && let Some(folder) = self.add(folder)?
            {
                folder.names.insert(name.to_owned());
            }
            self.add_tree(path)
        });
        self.paths = paths;
        added
    }

    /// Watches a folder and all below it; anything else is watched from where it stands.
    fn add_tree(&mut self, path: &Path) -> io::Result<()> {
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            // First it is watched and then listed: what comes between the two is found twice, but found.
            let Some(folder) = self.add(&path)? else { continue };
            folder.whole = true;
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            waiting.extend(folders.filter(|entry| counts(&entry.file_name())).map(|entry| entry.path()));
        }
        Ok(())
    }

    /// Watches one folder; `None` where there is none at the path.
    fn add(&mut self, path: &Path) -> io::Result<Option<&mut Folder>> {
        match self.inotify.add_watch(path, CHANGES | AddWatchFlags::IN_ONLYDIR) {
            Ok(descriptor) => {
                let folder = self.folders.entry(descriptor).or_default();
                path.clone_into(&mut folder.path);
                Ok(Some(folder))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(Errno::ENOSPC) => {
                let error = exhausted(WATCHES);
                Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
            }
            Err(error) => {
                let error = io::Error::from(error);
                Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
            }
        }
    }

    /// Takes what has happened, and returns one of the paths where something changed.
    ///
    /// # Errors
    /// Those of [`TreeWatch::new`] for new folders; the others are still watched.
    pub fn changed(&mut self) -> io::Result<Option<PathBuf>> {
        let mut changed = None;
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        let path = self.take(&event)?;
                        changed = changed.or(path);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(changed),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self, event: &InotifyEvent) -> io::Result<Option<PathBuf>> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            // Anything may have happened.
            self.add_all()?;
            return Ok(self.paths.first().cloned());
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.remove(&event.wd);
            return Ok(None);
        }
        let (Some(folder), Some(name)) = (self.folders.get(&event.wd), &event.name) else { return Ok(None) };
        let is_named = folder.names.contains(name);
        let path = folder.path.join(name);
        if folder.links.contains(name) {
            self.forget(&path);
            self.add_all()?;
            return Ok(Some(path));
        }
        let is_meant = is_named || (folder.whole && counts(name));
        if !is_meant {
            return Ok(None);
        }
        // A link that was given is followed, one that was found is not.
        if is_named || event.mask.contains(AddWatchFlags::IN_ISDIR) {
            if event.mask.intersects(AddWatchFlags::IN_MOVE) {
                self.forget(&path);
            }
            if event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
                self.add_tree(&path)?;
            }
        }
        Ok(Some(path))
    }

    /// Watches no longer what is not at this path any more.
    fn forget(&mut self, path: &Path) {
        for (descriptor, folder) in &self.folders {
            if folder.path.starts_with(path) {
                // IN_IGNORED follows, and takes it from the map.
                let _ = self.inotify.rm_watch(*descriptor);
            }
        }
    }
}

impl AsFd for TreeWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Whether a name was given by a person.
fn counts(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !bytes.starts_with(b".") && !bytes.ends_with(b"~") && name != "target"
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn it_tells_of_changes_and_not_of_what_tools_leave() {
        let base = tempfile::tempdir().unwrap();
        let at = |name: &str| base.path().join(name);
        for folder in ["src/deep", "src/.git", "src/target", "one", "two"] {
            fs::create_dir_all(at(folder)).unwrap();
        }
        fs::write(at("web.toml"), "").unwrap();
        symlink("one", at("current")).unwrap();
        let mut watch = TreeWatch::new(vec![at("src"), at("web.toml"), at("current")]).unwrap();
        let mut expect = |wanted: Option<&str>| assert_eq!(watch.changed().unwrap(), wanted.map(at));

        for name in ["src/.git/index", "src/target/debug", "src/.main.rs.swp", "src/main.rs~", "other"] {
            fs::write(at(name), "").unwrap();
        }
        expect(None);
        fs::read(at("web.toml")).unwrap();
        expect(None);
        fs::write(at("src/deep/main.rs"), "").unwrap();
        expect(Some("src/deep/main.rs"));
        fs::rename(at("other"), at("web.toml")).unwrap();
        expect(Some("web.toml"));
        fs::remove_file(at("src/deep/main.rs")).unwrap();
        expect(Some("src/deep/main.rs"));

        // What comes new is watched, too, and what was moved away no longer.
        fs::create_dir_all(at("src/new/er")).unwrap();
        expect(Some("src/new"));
        fs::write(at("src/new/er/file"), "").unwrap();
        expect(Some("src/new/er/file"));
        fs::rename(at("src/new"), at("old")).unwrap();
        expect(Some("src/new"));
        fs::write(at("old/er/file"), "").unwrap();
        expect(None);

        // A link that is pointed elsewhere is followed there.
        fs::write(at("current/file"), "").unwrap();
        expect(Some("current/file"));
        symlink("two", at("next")).unwrap();
        fs::rename(at("next"), at("current")).unwrap();
        expect(Some("current"));
        fs::write(at("one/file"), "").unwrap();
        expect(None);
        fs::write(at("two/file"), "").unwrap();
        expect(Some("current/file"));

        // So is one on the way.
        fs::write(at("two/part"), "").unwrap();
        let mut behind = TreeWatch::new(vec![at("current/part")]).unwrap();
        for target in ["one", "two"] {
            let _ = fs::write(at("one/part"), "");
            assert_eq!(behind.changed().unwrap(), (target == "two").then(|| at("current/part")));
            symlink(target, at("next")).unwrap();
            fs::rename(at("next"), at("current")).unwrap();
            assert_eq!(behind.changed().unwrap(), Some(at("current")));
        }
        drop(behind);
        while watch.changed().unwrap().is_some() {}

        // A path may go and come back.
        fs::remove_dir_all(at("src")).unwrap();
        assert!(watch.changed().unwrap().is_some());
        fs::create_dir(at("src")).unwrap();
        assert_eq!(watch.changed().unwrap(), Some(at("src")));
        fs::write(at("src/main.rs"), "").unwrap();
        assert_eq!(watch.changed().unwrap(), Some(at("src/main.rs")));
    }
}

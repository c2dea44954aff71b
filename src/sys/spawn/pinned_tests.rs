//! Which file is executed where one is pinned.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::super::super::program_file::{hold, is_native};
use super::*;

/// A folder with `releases/1` and `releases/2`, `current` that leads to the first, and a program in each that says its number.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    /// With copies of a binary, or of a script.
    fn new(is_native: bool) -> Self {
        let site = Self { folder: tempdir().unwrap() };
        for number in ["1", "2"] {
            fs::create_dir_all(site.at("releases").join(number)).unwrap();
            site.write(&format!("releases/{number}/server"), is_native, number);
        }
        symlink("releases/1", site.at("current")).unwrap();
        site
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts another file there, as mv(1) does. A binary says where it is by its size.
    fn write(&self, name: &str, is_native: bool, number: &str) {
        let new = self.at("new");
        if is_native {
            let mut bytes = fs::read("/bin/readlink").unwrap();
            bytes.resize(bytes.len() + number.parse::<usize>().unwrap(), 0);
            fs::write(&new, bytes).unwrap();
        } else {
            fs::write(&new, format!("#!/bin/sh\necho {number} $0\n")).unwrap();
        }
        fs::set_permissions(&new, Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, self.at(name)).unwrap();
    }

    fn switch(&self) {
        symlink("releases/2", self.at("next")).unwrap();
        fs::rename(self.at("next"), self.at("current")).unwrap();
    }

    /// What is executed where the first program is held and `current/server` is asked for.
    fn runs(&self, held: &(OwnedFd, PathBuf, bool)) -> String {
        let (file, path, is_native) = held;
        let command = self.at("current/server").to_str().unwrap().to_owned();
        let mut launch = launch(&[&command, "-n", "/proc/self/exe"]);
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        launch.pinned = Some(Pinned { file: file.as_fd(), path, is_native: *is_native });
        written(&launch).replace(self.folder.path().to_str().unwrap(), "")
    }

    fn held(&self) -> (OwnedFd, PathBuf, bool) {
        let path = self.at("current/server").canonicalize().unwrap();
        {
            let held = hold(&path).unwrap();
            let is_native = is_native(&held);
            (held, path, is_native)
        }
    }
}

#[test]
fn a_binary_stays_what_it_was_whatever_comes_to_stand_at_its_path() {
    let site = Site::new(true);
    let held = site.held();
    assert!(held.2);
    assert_eq!(site.runs(&held), "/releases/1/server");
    site.switch();
    assert_eq!(site.runs(&held), "/releases/1/server");
    site.write("releases/1/server", true, "3");
    assert_eq!(site.runs(&held), "/releases/1/server (deleted)");
    fs::remove_dir_all(site.at("releases/1")).unwrap();
    assert_eq!(site.runs(&held), "/releases/1/server (deleted)");
    // What changes its rights or is written over is the same file, and has its name.
    let held = site.held();
    fs::set_permissions(site.at("releases/2/server"), Permissions::from_mode(0o700)).unwrap();
    assert_eq!(site.runs(&held), "/releases/2/server");
}

#[test]
fn a_script_stays_in_the_folder_where_it_was() {
    let site = Site::new(false);
    let held = site.held();
    assert!(!held.2);
    let current = site.at("current/server").display().to_string();
    assert_eq!(
        site.runs(&held),
        format!("1 {}\n", current.replace(site.folder.path().to_str().unwrap(), ""))
    );
    site.switch();
    assert_eq!(site.runs(&held), "1 /releases/1/server\n");
    // Nothing can start what it was, but its neighbours are those of before.
    site.write("releases/1/server", false, "3");
    assert_eq!(site.runs(&held), "3 /releases/1/server\n");
    fs::remove_dir_all(site.at("releases/1")).unwrap();
    assert_eq!(site.runs(&held), "2 /current/server\n");
}

#[test]
fn a_name_that_is_looked_up_is_that_of_the_file_that_was_found() {
    let site = Site::new(true);
    let path = format!("{}:{}", site.at("bin").display(), site.at("releases/1").display());
    let (file, found, is_native) = site.held();
    let mut launch = launch(&["server", "-n", "/proc/self/exe"]);
    launch.programs = candidates(OsStr::new("server"), Some(OsStr::new(&path))).unwrap();
    let found = CString::new(found.as_os_str().as_bytes()).unwrap();
    launch.pinned = Some(Pinned { file: file.as_fd(), path: found, is_native });
    // Another of its name comes before it by now.
    fs::create_dir(site.at("bin")).unwrap();
    site.write("bin/server", true, "4");
    assert_eq!(written(&launch), site.at("releases/1/server").display().to_string());
}

#[test]
fn a_descriptor_leads_nobody_past_a_folder_that_is_closed_to_them() {
    if !is_root("becoming another user") {
        return;
    }
    let site = Site::new(true);
    fs::set_permissions(site.folder.path(), Permissions::from_mode(0o700)).unwrap();
    let (file, path, is_native) = site.held();
    let mut launch = launch(&[site.at("current/server").to_str().unwrap()]);
    launch.credentials = Some(Credentials { uid: 4711, gid: 4711, groups: Vec::new() });
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    launch.pinned = Some(Pinned { file: file.as_fd(), path, is_native });
    assert_eq!(failure(&launch), (Step::Execute, libc::EACCES));
}

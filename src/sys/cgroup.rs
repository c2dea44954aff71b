#![expect(unsafe_code, reason = "getxattr(2), which nix does not have")]
//! Control groups of version 2 (cgroups(7)): what a process has started, however it hides.
//!
//! A group is divided only where whoever made it says that it may be, as systemd's `Delegate=yes` does, or two would write to the
//! same tree (systemd.resource-control(5), "Delegation").

use std::ffi::{CStr, CString, OsString};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, Pid, access};

/// By these attributes systemd marks a group that is somebody else's to divide, since 251 and before.
const DELEGATED: [&CStr; 2] = [c"user.delegate", c"trusted.delegate"];

/// The group beside those that we make, in which the service manager starts us (`DelegateSubgroup=`).
pub const OWN_SUBGROUP: &str = "manager";

/// A group that is ours to divide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegated {
    /// Where it is in the file system.
    pub path: PathBuf,
    /// What it is called in /proc/PID/cgroup.
    pub name: String,
}

impl Delegated {
    /// Finds the group of this process, if that is ours to divide.
    ///
    /// Where we are in a group below it, so that it has no process of its own, the memory of those that we make is counted.
    ///
    /// # Errors
    ///
    /// Why it is not, in words.
    pub fn find() -> Result<Self, String> {
        let groups = read("/proc/self/cgroup")?;
        let mounts = read("/proc/self/mountinfo")?;
        let name = unified(&groups).ok_or("the kernel has no cgroup v2")?;
        let path = place(&mounts, name).ok_or("cgroup v2 is not mounted")?;
        let own = Self { path, name: name.to_owned() };
        if own.is_ours() {
            return own.writable();
        }
        let above = own.above().filter(|_| own.path.ends_with(OWN_SUBGROUP)).filter(Self::is_ours);
        let above = above.ok_or_else(|| format!("cgroup {name} is not delegated to it (Delegate=yes)"))?;
        // Some have it already, others cannot have it; then what each process uses is added up.
        let _ = fs::write(above.path.join("cgroup.subtree_control"), "+memory");
        above.writable()
    }

    /// A container may see a group that is marked, and have it mounted for reading alone.
    fn writable(self) -> Result<Self, String> {
        match access(&self.path, AccessFlags::W_OK) {
            Ok(()) => Ok(self),
            Err(error) => Err(format!("cgroup {} cannot be divided: {}", self.name, error.desc())),
        }
    }

    fn above(&self) -> Option<Self> {
        let (name, _) = self.name.rsplit_once('/')?;
        Some(Self { path: self.path.parent()?.to_owned(), name: name.to_owned() })
    }

    fn is_ours(&self) -> bool {
        DELEGATED.iter().any(|attribute| has_attribute(&self.path, attribute))
    }
}

fn read(path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// Returns the name of the group of version 2 that a process is in; `None` where it has gone, or there is none.
pub fn of_process(pid: Pid) -> Option<String> {
    unified(&read(&format!("/proc/{pid}/cgroup")).ok()?).map(str::to_owned)
}

/// The group of version 2 in a /proc/PID/cgroup.
fn unified(groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| line.strip_prefix("0::"))
}

/// Where a group is in the file system, by a /proc/PID/mountinfo (proc_pid_mountinfo(5)).
fn place(mounts: &str, name: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        if rest.split(' ').next()? != "cgroup2" {
            return None;
        }
        let below = Path::new(name).strip_prefix(unescaped(root)).ok()?;
        Some(unescaped(point).join(below))
    })
}

/// A path in which blanks and the like are written as `\040`.
fn unescaped(text: &str) -> PathBuf {
    let octal = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits.get(..3)?).ok()?, 8).ok();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let code = octal(tail).filter(|_| *first == b'\\');
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

fn has_attribute(path: &Path, name: &CStr) -> bool {
    attribute(path, name, &mut [0_u8; 1]).is_some_and(|value| value == b"1")
}

/// Returns the value of an extended attribute, if there is one and it fits (xattr(7)).
pub(super) fn attribute<'a>(path: &Path, name: &CStr, value: &'a mut [u8]) -> Option<&'a [u8]> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: two C strings, and as many bytes to write to as said.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.get(..usize::try_from(length).ok()?)
}

/// Makes a group, with those above it, unless it is there, and returns a hold on its folder.
///
/// # Errors
///
/// Those of mkdir(2) and open(2).
pub fn make(path: &Path) -> io::Result<OwnedFd> {
    DirBuilder::new().recursive(true).create(path)?;
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Kills all processes of a group and of those below it, new ones included.
///
/// # Errors
///
/// Those of open(2): `NotFound` where there is no such group. Before Linux 5.14 each is killed by itself.
pub fn kill(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path.join("cgroup.kill")).and_then(|file| write(&file, b"1")) {
        Err(error) if error.kind() == ErrorKind::NotFound && path.is_dir() => {
            for pid in processes(path) {
                let _ = super::process::signal(pid, libc::SIGKILL);
            }
            Ok(())
        }
        done => done,
    }
}

fn write(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut file, bytes)
}

/// Removes a group and those below it, as far as they have no process.
///
/// # Errors
///
/// Those of rmdir(2): `ResourceBusy` while a process is in it.
pub fn remove(path: &Path) -> io::Result<()> {
    for below in groups_in(path) {
        remove(&below)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Returns the groups that are right below one.
#[must_use]
pub fn groups_in(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Returns the processes of a group and of those below it.
#[must_use]
pub fn processes(path: &Path) -> Vec<Pid> {
    let list = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let own = list.lines().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
    own.chain(groups_in(path).iter().flat_map(|below| processes(below))).collect()
}

/// Returns the memory that a group and those below it use, in bytes, where the kernel counts it (`memory.current`).
#[must_use]
pub fn memory(path: &Path) -> Option<u64> {
    fs::read_to_string(path.join("memory.current")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::fork::tests::wait_for_exit;
    use super::super::reaper::Exit;
    use super::super::spawn::spawn;
    use super::*;

    #[test]
    fn a_group_is_found_where_it_is_mounted() {
        let mounts = "\
25 1 0:22 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
30 25 0:26 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw
";
        let found = place(mounts, "/system.slice/web.service");
        assert_eq!(found, Some("/sys/fs/cgroup/unified/system.slice/web.service".into()));
        let bound = "30 25 0:26 /a\\040b /mnt/c\\134d rw - cgroup2 none rw\n";
        assert_eq!(place(bound, "/a b/web.service"), Some("/mnt/c\\d/web.service".into()));
        assert_eq!(place(bound, "/elsewhere"), None, "it is not in sight");
        assert_eq!(place("", "/"), None);
    }

    #[test]
    fn a_process_is_in_its_group_from_the_beginning() {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let own = of_process(Pid::this()).unwrap_or_default();
        let path = place(&mounts, &own).unwrap_or_default().join(format!("liveswap-test-{}", Pid::this()));
        let Ok(folder) = make(&path) else {
            crate::skipped::add("no control group of version 2 can be made here");
            return;
        };
        let (mut reader, writer) = io::pipe().unwrap();
        let mut launch = super::super::spawn::tests::launch(&["cat", "/proc/self/cgroup"]);
        launch.cgroup = Some(folder.as_fd());
        launch.stdout = Some(writer.as_fd().into());
        let spawned = spawn(launch).unwrap();
        drop(writer);
        let mut said = String::new();
        io::Read::read_to_string(&mut reader, &mut said).unwrap();
        assert_eq!(wait_for_exit(spawned.pid), Exit::Code(0));
        remove(&path).unwrap();
        assert!(
            said.lines().any(|line| line.ends_with(&format!("/liveswap-test-{}", Pid::this()))),
            "{said}"
        );
    }

    #[test]
    fn the_group_of_version_2_is_told_from_others() {
        assert_eq!(unified("4:memory:/a\n1:name=systemd:/b\n0::/c:d\n"), Some("/c:d"));
        assert_eq!(unified("4:memory:/a\n"), None);
    }
}

//! Processes as /proc shows them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A process, as it was when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub group: i32,
    pub session: i32,
    /// `R`, `S`, `Z` … of proc(5).
    pub state: char,
    /// Empty for a zombie, and for processes that we may not read.
    pub command: Vec<String>,
    /// What it was executed with.
    pub environment: BTreeMap<String, String>,
}

impl Process {
    /// Reads one process; `None` where it has gone.
    pub fn read(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(of(pid, "stat")).ok()?;
        // The name stands in parentheses and may hold anything.
        let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
        let state = fields.next()?.chars().next()?;
        let mut number = || fields.next()?.parse().ok();
        let (parent, group, session) = (number()?, number()?, number()?);
        let command = strings(&of(pid, "cmdline"));
        let pairs = strings(&of(pid, "environ"));
        let environment = pairs
            .iter()
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Some(Self { pid, parent, group, session, state, command, environment })
    }

    /// Reads all processes of the machine.
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter_map(Self::read).collect()
    }

    pub fn is_zombie(&self) -> bool {
        self.state == 'Z'
    }
}

/// Returns `/proc/PID/NAME`.
pub fn of(pid: i32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// Returns the value of a line of `/proc/PID/status`, such as `VmRSS` or `SigIgn`.
///
/// # Panics
///
/// Where the process has gone.
pub fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(of(pid, "status")).unwrap_or_else(|error| panic!("process {pid}: {error}"));
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {key} in the status of process {pid}")).trim().to_owned()
}

/// Returns the open descriptors of a process and what each is.
pub fn descriptors(pid: i32) -> BTreeMap<i32, String> {
    let entries = fs::read_dir(of(pid, "fd")).unwrap_or_else(|error| panic!("process {pid}: {error}"));
    let one = |path: PathBuf| {
        let number = path.file_name()?.to_str()?.parse().ok()?;
        Some((number, fs::read_link(&path).ok()?.display().to_string()))
    };
    entries.filter_map(|entry| one(entry.ok()?.path())).collect()
}

fn strings(path: &Path) -> Vec<String> {
    // Any process of the machine may have made its own as long as it likes.
    let mut bytes = Vec::new();
    let _ = File::open(path).and_then(|file| file.take(1 << 20).read_to_end(&mut bytes));
    let parts = bytes.split(|&byte| byte == 0).filter(|part| !part.is_empty());
    parts.map(|part| OsStr::from_bytes(part).to_string_lossy().into_owned()).collect()
}

/// Returns when a process was started, in hundredths of a second since the boot.
pub fn started(pid: i32) -> u64 {
    let stat = fs::read_to_string(of(pid, "stat")).expect("a living process");
    let after_name = stat.rsplit_once(") ").expect("a name in parentheses").1;
    after_name.split(' ').nth(19).and_then(|ticks| ticks.parse().ok()).expect("a start time")
}

/// Returns the present time as [`started`] counts.
pub fn now() -> u64 {
    let uptime = fs::read_to_string("/proc/uptime").expect("the uptime");
    let seconds = uptime.split(' ').next().expect("a number").replace('.', "");
    seconds.parse().expect("a number")
}

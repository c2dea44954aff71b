#![expect(unsafe_code, reason = "kill(2) by number: nix knows no real-time signals")]
//! Signals to other processes, and the processes that descend from one.
//!
//! Whatever a caller passes, no signal goes to PID 1, to "every process", or to the manager's own process group.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, Pid, access, getpgid, getpgrp, getpid};

/// How often a tree is searched again for processes that appeared in the meantime.
const MAX_PASSES: usize = 16;

/// The highest signal number of Linux.
const MAX_SIGNAL: i32 = 64;

/// A signal's number that shows as its name: `SIGTERM`, `SIGRTMIN+2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignalName(pub i32);

impl fmt::Display for SignalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.0;
        let first = libc::SIGRTMIN();
        match Signal::try_from(number) {
            Ok(signal) => f.write_str(signal.as_str()),
            Err(_) if number == first => f.write_str("SIGRTMIN"),
            Err(_) if (first..=MAX_SIGNAL).contains(&number) => write!(f, "SIGRTMIN+{}", number - first),
            Err(_) => write!(f, "signal {number}"),
        }
    }
}

/// Sends a signal to one process. The caller vouches that it has not been reaped.
///
/// # Errors
/// Those of kill(2), and `InvalidInput` for PID 1 and for what is no single process.
pub fn signal(pid: Pid, number: i32) -> io::Result<()> {
    send(pid, pid.as_raw(), number)
}

/// Sends a signal to a whole process group, named by its leader.
///
/// A zombie still holds the group's number: for a worker that has exited and is not yet reaped, SIGKILL to its group
/// is all that can still be done, as its children are no longer known by their parent.
///
/// # Errors
/// Those of kill(2): `ESRCH` where the group has no member; `InvalidInput` for our own group and for PID 1.
pub fn signal_group(leader: Pid, number: i32) -> io::Result<()> {
    if leader == getpgrp() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a signal to our own process group"));
    }
    send(leader, -leader.as_raw(), number)
}

fn send(pid: Pid, target: libc::pid_t, number: i32) -> io::Result<()> {
    if pid.as_raw() <= 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("a signal to process {pid}")));
    }
    // SAFETY: kill(2) touches no memory of ours.
    if unsafe { libc::kill(target, number) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Returns the processes that descend from `root`, itself excluded, as far as their parents still live.
pub fn descendants(root: Pid) -> BTreeSet<Pid> {
    let mut tree = BTreeSet::from([root]);
    add_children(&mut tree, |_| ());
    tree.remove(&root);
    tree
}

/// Finds out whether we may make files in a folder.
///
/// # Errors
/// Those of access(2): why not.
pub fn may_make_files_in(folder: &Path) -> io::Result<()> {
    Ok(access(folder, AccessFlags::W_OK | AccessFlags::X_OK)?)
}

/// Returns our own file mode creation mask, which umask(2) tells only by changing it; the usual one where /proc does not say.
pub fn own_umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    mask.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o022)
}

/// `CAP_KILL` of capabilities(7), a bit of the effective set.
const CAP_KILL: u64 = 1 << 5;

/// Whether we may signal the processes of other users (kill(2)); where /proc does not say, we are taken to.
pub fn may_signal_others() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    effective.is_none_or(|set| set & CAP_KILL != 0)
}

/// Returns our own children, reaped ones excluded.
///
/// # Errors
/// What keeps us from looking, such as `EMFILE`: then they may be there all the same.
pub fn own_children() -> io::Result<Vec<Pid>> {
    children(getpid())
}

/// Returns the real, effective, saved and file system user of a process (proc_pid_status(5)); `None` where it has gone.
///
/// The owner of its folder in /proc will not do: that is root for every program that changes its user as it is executed,
/// and whoever executes it has written its environment.
pub fn users(pid: Pid) -> Option<[u32; 4]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let users: Vec<u32> = users.split_whitespace().filter_map(|uid| uid.parse().ok()).collect();
    users.try_into().ok()
}

/// Returns when a process was started, in clock ticks since the boot; `None` where it has ended, reaped or not, or we may
/// not look.
///
/// Nobody is younger than his descendants.
pub fn started(pid: Pid) -> Option<u64> {
    Stat::of(pid).filter(|stat| !stat.has_ended).map(|stat| stat.started)
}

/// Returns the parent of a process; `None` where it has gone.
pub fn parent(pid: Pid) -> Option<Pid> {
    Stat::of(pid).map(|stat| stat.parent)
}

/// The most that is read of an environment, in bytes: many times what a program is executed with.
const MAX_ENVIRONMENT: u64 = 1 << 20;

/// What a process was executed with, as it says now: it may have written something else there, or made it as long as it likes
/// (`PR_SET_MM_MAP`).
#[derive(Debug)]
pub struct Environment(Vec<u8>);

impl Environment {
    /// Reads it; none where the process has gone, or we may not look.
    pub fn of(pid: Pid) -> Self {
        let mut bytes = Vec::new();
        let read = File::open(format!("/proc/{}/environ", living_thread(pid)))
            .and_then(|file| file.take(MAX_ENVIRONMENT).read_to_end(&mut bytes));
        // What was read before an error says as much as it says.
        let _ = read;
        Self(bytes)
    }

    /// Returns the value of a variable.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.raw_value(name)?.to_str()
    }

    /// Returns the value of a variable, which need not be UTF-8.
    pub fn raw_value(&self, name: &str) -> Option<&OsStr> {
        let mut variables = self.0.split(|&byte| byte == 0);
        variables
            .find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
            .map(OsStr::from_bytes)
    }
}

/// Returns the value that a variable had when the process was executed; `None` where it had none, or we may not look.
pub fn variable(pid: Pid, name: &str) -> Option<OsString> {
    Environment::of(pid).raw_value(name).map(OsStr::to_owned)
}

/// Returns a thread by which /proc shows the memory and the descriptors of a process: the first one, which has the process's number, or
/// another where that one has ended.
pub(super) fn living_thread(pid: Pid) -> Pid {
    if !Stat::of(pid).is_some_and(|stat| stat.is_headless) {
        return pid;
    }
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let threads = threads.filter_map(|entry| parse_pid(entry.file_name().to_str()?));
    let is_alive = |thread: &Pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
        text.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    threads.filter(|thread| *thread != pid).find(is_alive).unwrap_or(pid)
}

/// Returns the living members of a process group whose leader has ended; none where a process lives that has the group's number, as
/// the group may be that one's.
pub fn left_in_group(group: Pid) -> Vec<Pid> {
    let lives = |stat: &Stat| !stat.has_ended;
    if Stat::of(group).as_ref().is_some_and(lives) {
        return Vec::new();
    }
    let is_member = |pid: &Pid| Stat::of(*pid).filter(lives).is_some_and(|stat| stat.group == group);
    processes().filter(is_member).collect()
}

/// Returns the process group of a process; `None` where it has gone.
pub fn group(pid: Pid) -> Option<Pid> {
    Stat::of(pid).map(|stat| stat.group)
}

/// Returns what names the present run of the machine: numbers and moments of another one mean nothing.
///
/// # Errors
/// Those of read(2), where `/proc` is not mounted.
pub fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Kills a living process with its process group and all that descends from it, other groups and sessions included.
///
/// Every process is stopped before its children are listed, so that none can fork behind our back, and killed
/// only when the whole tree is known: the children of a killed process could no longer be told from strangers.
///
/// # Errors
/// Those of kill(2) for `root` itself; that one of the others has gone meanwhile is no error.
pub fn kill_tree(root: Pid) -> io::Result<()> {
    signal(root, libc::SIGSTOP)?;
    let mut tree = BTreeSet::from([root]);
    // One that forked before it was stopped shows its child only at the next look: the end is a look that finds none.
    for _ in 0..MAX_PASSES {
        let known = tree.len();
        add_children(&mut tree, freeze);
        add_sessions(&mut tree, freeze);
        if tree.len() == known {
            break;
        }
    }
    for &pid in tree.iter().filter(|pid| **pid != root) {
        // Most lead no group, and some may have gone: neither is an error.
        let _ = signal_group(pid, libc::SIGKILL);
        let _ = signal(pid, libc::SIGKILL);
    }
    // One that somebody else reaps may be gone with its group, and its number be given to another.
    let leads = getpgid(Some(root)) == Ok(root);
    let by_group = signal_group(root, libc::SIGKILL);
    if leads { by_group } else { signal(root, libc::SIGKILL) }
}

/// Stops a process; one that has gone needs no stopping.
fn freeze(pid: Pid) {
    let _ = signal(pid, libc::SIGSTOP);
}

/// Adds all that descends from the members of `tree`, and calls `found` for each before its children are listed.
fn add_children(tree: &mut BTreeSet<Pid>, found: impl Fn(Pid)) {
    let mut unlisted: Vec<Pid> = tree.iter().copied().collect();
    while let Some(parent) = unlisted.pop() {
        // Of whom we cannot look at now, the children become ours at his end.
        for child in children(parent).unwrap_or_default() {
            if tree.insert(child) {
                found(child);
                unlisted.push(child);
            }
        }
    }
}

/// Adds all members of the sessions that members of `tree` lead, whoever their parents are by now.
fn add_sessions(tree: &mut BTreeSet<Pid>, found: impl Fn(Pid)) {
    let leads_session = |pid: &Pid| Stat::of(*pid).is_some_and(|stat| stat.session == *pid);
    let sessions: BTreeSet<Pid> = tree.iter().copied().filter(leads_session).collect();
    if sessions.is_empty() {
        return;
    }
    for pid in processes() {
        if Stat::of(pid).is_some_and(|stat| sessions.contains(&stat.session)) && tree.insert(pid) {
            found(pid);
        }
    }
}

/// Returns the children of all threads of a process; none for one that has gone.
fn children(parent: Pid) -> io::Result<Vec<Pid>> {
    let threads = match fs::read_dir(format!("/proc/{parent}/task")) {
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        threads => threads?,
    };
    let mut children = Vec::new();
    for thread in threads.flatten() {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => children.extend(list.split_whitespace().filter_map(parse_pid)),
            // A thread that has gone, or a kernel without CONFIG_PROC_CHILDREN.
            Err(error) if is_gone(&error) => return Ok(children_by_scan(parent)),
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

/// Whether it is not there to be looked at (proc(5)): its folder has gone, or it ended while its file was open.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn children_by_scan(parent: Pid) -> Vec<Pid> {
    let is_child = |pid: &Pid| Stat::of(*pid).is_some_and(|stat| stat.parent == parent);
    processes().filter(is_child).collect()
}

/// Returns the name of a process (proc_pid_comm(5)), what is no UTF-8 in it replaced; `None` where it has gone.
pub fn name(pid: Pid) -> Option<String> {
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned())
}

/// Returns every process of the machine with its parent.
pub(super) fn parents() -> impl Iterator<Item = (Pid, Pid)> {
    processes().filter_map(|pid| Some((pid, Stat::of(pid)?.parent)))
}

/// Returns every process of the machine.
pub fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| parse_pid(entry.file_name().to_str()?))
}

fn parse_pid(text: &str) -> Option<Pid> {
    text.parse().ok().map(Pid::from_raw)
}

/// What `proc_pid_stat(5)` tells of a process.
struct Stat {
    /// All of its threads have ended.
    has_ended: bool,
    /// The first thread has ended, and others go on: a process lives as long as any thread (pthread_exit(3)).
    is_headless: bool,
    parent: Pid,
    group: Pid,
    session: Pid,
    started: u64,
}

impl Stat {
    /// The most bytes that are read: more than all numbers and a name take.
    const MOST: usize = 2048;

    fn of(pid: Pid) -> Option<Self> {
        // By one read(2), which the kernel answers with the whole: `fs::read` asks seven times.
        let mut buffer = [0; Self::MOST];
        let length = File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut buffer).ok()?;
        // A process chooses its name, which need not be text.
        Self::parse(&String::from_utf8_lossy(buffer.get(..length)?))
    }

    fn parse(text: &str) -> Option<Self> {
        // The program's name, in parentheses, may itself hold spaces and parentheses.
        let mut fields = text.rsplit_once(") ")?.1.split(' ');
        let first_has_ended = matches!(fields.next()?, "Z" | "X");
        let mut pid = || parse_pid(fields.next()?);
        let (parent, group, session) = (pid()?, pid()?, pid()?);
        let threads: u32 = fields.nth(13)?.parse().ok()?;
        let started = fields.nth(1)?.parse().ok()?;
        let is_headless = first_has_ended && threads > 1;
        Some(Self {
            has_ended: first_has_ended && !is_headless,
            is_headless,
            parent,
            group,
            session,
            started,
        })
    }
}

/// Has this process killed when its parent ends (PR_SET_PDEATHSIG(2const)).
///
/// # Errors
/// Those of prctl(2), and ESRCH where `parent` has ended already.
pub fn end_with_parent(parent: Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(nix::errno::Errno::ESRCH.into()) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader, Read};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::Duration;

    use nix::sys::wait::{Id, WaitPidFlag, waitid};

    use super::super::fork::tests::isolated;
    use super::super::output::wait_readable;
    use super::*;

    /// Starts a shell in a group of its own, and returns it with its output once it has written a line.
    fn shell(script: &str) -> (Child, Pid, BufReader<PipeReader>) {
        let (output, input) = io::pipe().unwrap();
        let child = Command::new("sh").args(["-c", script]).process_group(0).stdout(input).spawn().unwrap();
        let mut output = BufReader::new(output);
        output.read_line(&mut String::new()).unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        (child, pid, output)
    }

    #[test]
    fn a_process_whose_name_is_no_text_is_known() {
        isolated(|| {
            let before = started(getpid()).unwrap();
            nix::sys::prctl::set_name(c"\xff) R 1").unwrap();
            assert_eq!((started(getpid()), parent(getpid())), (Some(before), Some(nix::unistd::getppid())));
        });
    }

    /// Waits until nobody holds the output any more, that is, until the whole tree is dead.
    fn wait_for_silence(mut output: BufReader<PipeReader>) {
        let is_closed = wait_readable(output.get_ref(), Duration::from_secs(60));
        assert!(is_closed.unwrap(), "some process still lives");
        assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
    }

    #[test]
    fn signals_have_names() {
        assert_eq!(SignalName(15).to_string(), "SIGTERM");
        assert_eq!(SignalName(36).to_string(), "SIGRTMIN+2");
        assert_eq!(SignalName(99).to_string(), "signal 99");
    }

    #[test]
    fn init_everyone_and_ourselves_are_never_signalled() {
        for pid in [-1, 0, 1] {
            let pid = Pid::from_raw(pid);
            assert_eq!(signal(pid, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(signal_group(pid, 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(kill_tree(pid).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
        assert_eq!(signal_group(getpgrp(), 0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_group_is_signalled_whole() {
        let (mut child, pid, output) = shell("sleep 1000 & echo up; wait");
        signal_group(pid, libc::SIGKILL).unwrap();
        wait_for_silence(output);
        child.wait().unwrap();
    }

    #[test]
    fn descendants_are_found_by_both_ways() {
        let (mut child, pid, output) = shell("sleep 1000 & echo up; wait");
        let found = descendants(pid);
        assert_eq!(found.len(), 1);
        assert_eq!(found.iter().copied().collect::<Vec<_>>(), children_by_scan(pid));
        assert!(descendants(getpid()).is_superset(&found));
        kill_tree(pid).unwrap();
        wait_for_silence(output);
        child.wait().unwrap();
        assert!(descendants(pid).is_empty());
    }

    #[test]
    fn a_tree_is_killed_with_its_sessions_and_the_orphans_in_them() {
        // timeout(1) leads a group of its own, and is an orphan in a session that a descendant leads.
        let in_session = "(timeout 1000 sh -c \"echo up; exec sleep 1000\" &); sleep 1000";
        let (mut child, pid, output) = shell(&format!("(sleep 1000 &); setsid sh -c '{in_session}' & wait"));
        kill_tree(pid).unwrap();
        wait_for_silence(output);
        child.wait().unwrap();
    }

    #[test]
    fn a_zombie_has_no_tree_but_still_a_group() {
        let (mut child, pid, output) = shell("sleep 1000 & echo up; exit 0");
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert!(descendants(pid).is_empty());
        signal_group(pid, libc::SIGKILL).unwrap();
        wait_for_silence(output);
        child.wait().unwrap();
    }

    #[test]
    fn a_program_s_name_cannot_confuse_its_stat() {
        let stat =
            Stat::parse("7 (a) R 1 (b) S 5 6 8 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9").unwrap();
        assert_eq!((stat.parent, stat.group, stat.session), [5, 6, 8].map(Pid::from_raw).into());
        assert_eq!(stat.started, 4711);
        let zombie = |threads: u32| {
            Stat::parse(&format!("7 (a) Z 5 6 8 0 -1 4 1 2 3 4 5 6 7 8 20 0 {threads} 0 4711 9")).unwrap()
        };
        assert!(zombie(1).has_ended && !zombie(1).is_headless);
        assert!(!zombie(2).has_ended && zombie(2).is_headless, "another thread goes on");
        assert!(Stat::parse("7 (a) S").is_none());
    }
}

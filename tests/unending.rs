//! Workers that nothing ends: a frozen process, one that sleeps in the kernel, one that may not be signalled.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use support::client::{Target, ask};
use support::log::Verdict;
use support::manager::{Manager, Place, Starter, wait_gone};
use support::process::Process;
use support::service::Service;
use support::{is_root, loopback};

/// A process that its parent cannot reap, whatever it was sent, before this is dropped: the kernel keeps it for whoever traces it
/// (ptrace(2)).
struct Held(Pid);

impl Held {
    fn hold(pid: i32) -> Self {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty()).expect("a process of ours");
        Self(pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = waitpid(self.0, None);
    }
}

fn stubborn() -> Service {
    Service::worker().args(["--ignore-term"]).listen(loopback()).set("drain.timeout", "'100ms'")
}

#[test]
fn an_old_worker_that_does_not_end_is_named_and_keeps_nobody_waiting() {
    let address = loopback();
    let service = Service::worker().listen(address).set("drain.timeout", "'100ms'");
    let mut manager = Manager::start(service.clone().release(1).args(["--ignore-term"]));
    let old = manager.wait_workers(1, 1).remove(0);
    let held = Held::hold(old.pid);
    let place = manager.place();
    manager.upgrade_committed(service.release(2));
    let stuck = format!("stuck: process {} does not end after SIGKILL", old.pid);
    manager.wait_log(place, [&stuck]);
    let status = manager.cli(["status"]);
    assert!(status.stdout.contains("stuck"), "{status:#?}");
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "2");

    // It is waited for no longer than the others take, and told of at the end.
    manager.signal(Signal::SIGTERM);
    manager.wait_log(place, ["generation 2, slot 0", "gone: exited with status 0"]);
    let named = format!("left behind: worker 1 (generation 1, slot 0, pid {})", old.pid);
    manager.wait_log(place, [&named]);
    drop(held);
    assert_eq!(manager.wait_exit().code(), Some(1));
}

#[test]
fn under_recreate_it_takes_the_upgrade_back() {
    let service = stubborn().set("upgrade.strategy", "'recreate'");
    let mut manager = Manager::start(service.clone().release(1));
    let old = manager.wait_workers(1, 1).remove(0);
    let held = Held::hold(old.pid);
    let outcome = manager.upgrade(service.release(2));
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    let reason = format!("process {} does not end after SIGKILL", old.pid);
    assert!(outcome.reason.contains(&reason), "{outcome:?}");
    assert!(outcome.status.contains("generation 1: 1 of 1 ready"), "{outcome:?}");
    drop(held);
    manager.wait_workers(1, 1);
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.wait_exit().code(), Some(0));
}

/// Has the next child of a process stop before its first instruction, and returns it once it is there.
fn hold_next_child(parent: i32, cause: impl FnOnce()) -> Pid {
    let parent = Pid::from_raw(parent);
    ptrace::seize(parent, ptrace::Options::PTRACE_O_TRACEFORK).expect("a process of ours");
    cause();
    loop {
        match waitpid(parent, Some(WaitPidFlag::__WALL)).expect("a process that is traced") {
            WaitStatus::PtraceEvent(..) => {
                let child = ptrace::getevent(parent).expect("its child");
                ptrace::detach(parent, None).expect("it goes on");
                let child = Pid::from_raw(i32::try_from(child).expect("a pid"));
                // It is traced as its parent was.
                let stopped = waitpid(child, Some(WaitPidFlag::__WALL)).expect("the child");
                assert!(
                    matches!(stopped, WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)),
                    "{stopped:?}"
                );
                return child;
            }
            WaitStatus::Stopped(_, signal) => ptrace::cont(parent, signal).expect("it goes on"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_worker_that_is_not_yet_its_program_gets_no_signal_that_could_end_the_manager() {
    let service = Service::worker().listen(loopback()).set("drain.signal", "'SIGQUIT'");
    let mut manager = Manager::start(service.set("drain.timeout", "'1h'"));
    let worker = Pid::from_raw(manager.wait_workers(1, 1)[0].pid);
    let child = hold_next_child(manager.pid(), || kill(worker, Signal::SIGKILL).expect("it is there"));
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    // By SIGQUIT it would end with its tracer at the earliest.
    let ended = waitpid(child, Some(WaitPidFlag::__WALL)).expect("the child");
    assert!(matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, false)), "{ended:?}");
    manager.wait_log(place, ["gone: was killed by SIGKILL"]);
    assert_eq!(manager.wait_exit().code(), Some(0));
}

/// Starts a worker that has left a process behind in a session of its own, which says nothing of whose it is, and holds that.
fn start_beside_a_stranger() -> (Manager, i32, Held) {
    let service = Service::worker().listen(loopback()).after("setsid -f env -i sleep 4711");
    let mut manager = Manager::start(service);
    manager.wait_ready();
    let stranger = manager.wait_until("what was left behind", || manager.descendants_named("sleep").pop());
    let held = Held::hold(stranger);
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    manager.wait_log(place, ["generation 1, slot 0", "gone: exited with status 0"]);
    manager.wait_until("its death", || Process::read(stranger)?.is_zombie().then_some(()));
    (manager, stranger, held)
}

#[test]
fn the_manager_goes_after_all_that_it_has_killed() {
    let (mut manager, _, held) = start_beside_a_stranger();
    // The kernel still has it.
    assert!(Process::read(manager.pid()).is_some_and(|manager| !manager.is_zombie()));
    drop(held);
    assert_eq!(manager.wait_exit().code(), Some(0));
}

#[test]
fn what_the_manager_has_killed_in_vain_is_named_at_the_end() {
    let (mut manager, stranger, held) = start_beside_a_stranger();
    let place = Place::START;
    manager.wait_log(place, [&format!("process {stranger} does not end after SIGKILL; it is left behind")]);
    manager.wait_log(place, [&format!("left behind: process {stranger} (sleep)")]);
    assert_eq!(manager.wait_exit().code(), Some(1));
    drop(held);
}

#[test]
fn what_has_become_root_is_left_and_no_failure() {
    if !is_root("a program that becomes root") {
        return;
    }
    let starter = Starter::default().of_a_user();
    // Beside the test's folder, which is given to that user.
    let folder = tempfile::tempdir().expect("a folder");
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(folder.path(), mode(0o755)).expect("chmod");
    let root = folder.path().join("root");
    fs::copy("/usr/bin/setpriv", &root).expect("a copy");
    fs::set_permissions(&root, mode(0o4755)).expect("chmod");
    let become_root = format!("{} --reuid=0 --regid=0 --clear-groups", root.display());
    let service = Service::worker().program(starter.worker_program().display()).listen(loopback());
    let service = service.after(&format!("setsid -f env -i {become_root} sleep 4712"));
    let mut manager = starter.start(service);
    manager.wait_ready();
    let left = manager.wait_until("what has become root", || {
        let found = Process::all().into_iter().find(|process| process.command == ["sleep", "4712"])?;
        Some(found.pid)
    });
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    manager.wait_log(place, [&format!("process {left} (sleep) may not be signalled; it is left")]);
    assert_eq!(manager.wait_exit().code(), Some(0));
    kill(Pid::from_raw(left), Signal::SIGKILL).expect("it is there");
}

/// A manager that may do all that it takes to run workers as another user, but end them.
fn without_cap_kill() -> Starter {
    Starter::default().by(&["setpriv", "--bounding-set=-kill", "--inh-caps=-kill"])
}

#[test]
fn workers_that_could_not_be_ended_are_refused_at_the_start() {
    if !is_root("taking a capability away") {
        return;
    }
    let service = Service::worker().listen(loopback()).set("service.user", "'nobody'");
    let mut manager = without_cap_kill().start(service);
    manager.wait_log(Place::START, ["workers of user", "could not be ended", "lacks CAP_KILL"]);
    assert_eq!(manager.wait_exit().code(), Some(3));
}

#[test]
fn a_worker_that_has_become_another_user_is_named_and_not_waited_for() {
    if !is_root("taking a capability away") {
        return;
    }
    let address = loopback();
    let service = Service::worker().listen(address);
    let left = service.clone().release(1).after("exec setpriv --reuid=65534 --clear-groups \"$0\" \"$@\"");
    let mut manager = without_cap_kill().start(left);
    manager.wait_ready();
    let old = manager.wait_workers(1, 1).remove(0);
    let place = manager.place();
    manager.upgrade_committed(service.release(2));
    manager.wait_log(place, [&format!("stuck: process {} may not be signalled", old.pid)]);
    manager.signal(Signal::SIGTERM);
    manager.wait_log(place, [&format!("left behind: worker 1 (generation 1, slot 0, pid {})", old.pid)]);
    kill(Pid::from_raw(old.pid), Signal::SIGKILL).expect("it is there");
    // The manager does not wait for it, and may have gone first.
    wait_gone(old.pid);
    assert_eq!(manager.wait_exit().code(), Some(1));
}

//! Workers that nothing ends: a frozen process, one that sleeps in the kernel, one that may not be signalled.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use support::client::{Target, ask};
use support::log::Verdict;
use support::loopback;
use support::manager::{Manager, Starter};
use support::service::Service;

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

//! What each signal to the manager does, and that none is lost.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Connection, Load, MODES, Target, ask};
use support::log::Step;
use support::manager::{Manager, Place, Starter, wait_gone};
use support::process::{Process, status};
use support::service::Service;
use support::{eventually, is_installed, loopback};

/// Whether the process has taken a signal in hand: blocks it, or has a handler for it.
fn minds(pid: i32, signal: Signal) -> bool {
    let bits = |key| u64::from_str_radix(&status(pid, key), 16).expect("a mask");
    (bits("SigBlk") | bits("SigCgt")) & (1 << (signal as i32 - 1)) != 0
}

fn pids(manager: &Manager) -> BTreeSet<i32> {
    manager.workers().into_iter().map(|worker| worker.pid).collect()
}

#[test]
fn a_hangup_right_after_the_start_is_honoured() {
    for delay_ms in [0, 1, 3, 10, 30] {
        let address = loopback();
        let service = Service::worker().workers(2).listen(address).args(["--boot", "20"]);
        let mut manager = Starter::default().start(service.clone().release(1));
        // Before that, the manager is not there yet: the kernel itself would end the program.
        eventually("a manager that minds SIGHUP", || minds(manager.pid(), Signal::SIGHUP).then_some(()));
        thread::sleep(Duration::from_millis(delay_ms));
        manager.rewrite(service.clone().release(2));
        manager.signal(Signal::SIGHUP);
        manager.wait_log(Place::START, ["generation 2 committed"]);
        manager.wait_ready();
        manager.wait_workers(2, 2);
        assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "2", "after {delay_ms} ms");
        manager.stop();
    }
}

#[test]
fn any_number_of_hangups_in_an_upgrade_is_followed_by_one_more() {
    let address = loopback();
    let service = Service::worker().workers(2).listen(address);
    let manager = Manager::start(service.clone().release(1));
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    let place = manager.place();
    manager.rewrite(service.clone().release(2).args(["--boot", "500"]));
    manager.signal(Signal::SIGHUP);
    manager.wait_until("a worker of generation 2", || {
        manager.workers().iter().any(|worker| worker.generation == 2).then_some(())
    });
    manager.rewrite(service.clone().release(3));
    for _ in 0..50 {
        manager.signal(Signal::SIGHUP);
    }
    manager.wait_log(place, ["generation 2 committed"]);
    manager.wait_log(place, ["generation 3 committed"]);
    manager.wait_workers(3, 2);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "3");
    // The next one's number tells that there was no other in between.
    let outcome = manager.upgrade_committed(service.release(4));
    assert_eq!(outcome.generation, 4);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn a_hangup_is_honoured_while_old_workers_still_drain() {
    let address = loopback();
    let service = Service::worker().workers(1).listen(address);
    let manager = Manager::start(service.clone().release(1));
    // This connection keeps the first worker in its drain.
    let mut idle = Connection::open(&Target::Tcp(address)).expect("a connection");
    idle.get("/", true).expect("an answer");
    manager.upgrade_committed(service.clone().release(2));
    manager.upgrade_committed(service.clone().release(3));
    assert!(
        manager.workers().iter().any(|worker| worker.generation == 1),
        "the first worker has gone too soon"
    );
    let (answer, closes) = idle.get("/", true).expect("an answer in the drain");
    assert!(String::from_utf8_lossy(&answer).starts_with("release=1 "), "{answer:?}");
    assert!(closes, "no Connection: close");
    manager.wait_workers(3, 1);
    manager.stop();
}

/// Sends `signal` while requests of 200 ms are under way: they are answered, and the manager exits 0.
fn drains_and_exits(signal: Signal) {
    let address = loopback();
    let mut manager = Manager::start(Service::worker().workers(2).listen(address).release(1));
    let requests: Vec<_> = (0..4)
        .map(|_| {
            let mut connection = Connection::open(&Target::Tcp(address)).expect("a connection");
            // Once answered it is surely accepted, and not in the queue of a listener that is about to close.
            connection.get("/", true).expect("an answer");
            thread::spawn(move || connection.get("/slow", true))
        })
        .collect();
    let place = manager.place();
    manager.signal(signal);
    for request in requests {
        let answer = request.join().expect("a client").expect("an answer in spite of the stop");
        assert!(answer.0.starts_with(b"release=1 "));
    }
    let status = manager.wait_exit();
    if !status.success() {
        manager.fail(&format!("{signal}: {status}"));
    }
    manager.wait_said(place, "STOPPING=1", |message| message.is("STOPPING"));
}

#[test]
fn a_term_drains_the_workers_and_exits_0() {
    drains_and_exits(Signal::SIGTERM);
}

#[test]
fn an_interrupt_drains_the_workers_and_exits_0() {
    drains_and_exits(Signal::SIGINT);
}

#[test]
fn a_second_term_kills_at_once() {
    let service =
        Service::worker().workers(2).release(1).args(["--ignore-term"]).set("drain.timeout", "'1h'");
    let mut manager = Manager::start(service);
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    for _ in 0..2 {
        manager.wait_worker(place, "a worker that drains", |one| one.step == Step::Draining);
    }
    manager.insist(Signal::SIGTERM);
}

#[test]
fn a_quit_kills_at_once() {
    let service =
        Service::worker().workers(2).release(1).args(["--ignore-term"]).set("drain.timeout", "'1h'");
    let mut manager = Manager::start(service);
    manager.signal(Signal::SIGQUIT);
    manager.wait_exit();
}

#[test]
fn a_term_in_an_upgrade_ends_both_generations() {
    let service = Service::worker().workers(2).listen(loopback());
    let mut manager = Manager::start(service.clone().release(1));
    manager.rewrite(service.release(2).args(["--never-ready"]));
    manager.signal(Signal::SIGHUP);
    manager.wait_until("a worker of generation 2", || {
        manager.workers().iter().any(|worker| worker.generation == 2).then_some(())
    });
    manager.signal(Signal::SIGTERM);
    let status = manager.wait_exit();
    if !status.success() {
        manager.fail(&format!("{status}"));
    }
}

#[test]
fn a_usr1_replaces_every_worker_by_a_fresh_one_of_the_same_generation() {
    let address = loopback();
    let manager = Manager::start(Service::worker().workers(4).listen(address).release(1));
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    // What the file says by now is of no account: a respawn is no upgrade.
    manager.rewrite("broken");
    for _ in 0..3 {
        let before = pids(&manager);
        load.wait_for_more(50);
        manager.signal(Signal::SIGUSR1);
        manager.wait_until("four fresh workers", || {
            let now = pids(&manager);
            (now.len() == 4 && now.is_disjoint(&before)).then_some(())
        });
        manager.wait_workers(1, 4);
    }
    let report = load.stop();
    report.assert_spotless();
    assert_eq!(report.by_generation.keys().collect::<Vec<_>>(), [&1]);
    manager.stop();
}

#[test]
fn ttin_and_ttou_add_and_remove_a_worker() {
    let address = loopback();
    let manager = Manager::start(Service::worker().workers(2).listen(address).release(1));
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    for (signal, count) in [
        (Signal::SIGTTIN, 3),
        (Signal::SIGTTIN, 4),
        (Signal::SIGTTOU, 3),
        (Signal::SIGTTOU, 2),
        (Signal::SIGTTOU, 1),
        (Signal::SIGTTIN, 2),
    ] {
        load.wait_for_more(20);
        let place = manager.place();
        manager.signal(signal);
        manager.wait_workers(1, count);
        manager.wait_status(place, &format!("generation 1: {count} of {count} ready"));
    }
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn the_last_worker_cannot_be_taken_away() {
    let manager = Manager::start(Service::worker().workers(1).release(1));
    let before = pids(&manager);
    let place = manager.place();
    manager.signal(Signal::SIGTTOU);
    manager.wait_log(place, ["scaled to 1"]);
    manager.signal(Signal::SIGTTIN);
    manager.wait_status(place, "2 of 2 ready");
    assert!(pids(&manager).is_superset(&before));
    manager.stop();
}

#[test]
fn the_reader_of_the_log_and_a_job_of_the_shell_outlive_the_manager() {
    if !is_installed("bash") {
        return;
    }
    let starter = Starter::default();
    let (job, log) = (starter.path("job"), starter.path("log"));
    // The reader is slow, and writes the lines down only when it has them all.
    let script = format!(
        "env -i sleep 1000 >/dev/null 2>&1 & echo $! >{}; exec 2> >(text=$(cat); echo \"$text\" >{}); exec \"$0\" \"$@\"",
        job.display(),
        log.display()
    );
    let mut manager = starter.by(&["bash", "-c", &script]).start(Service::worker().workers(2));
    manager.wait_ready();
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
    let text = eventually("the whole log", || {
        fs::read_to_string(&log).ok().filter(|text| text.matches("gone: exited with status 0").count() == 2)
    });
    assert!(text.contains("stopping: 2 workers"), "{text}");
    let job = Pid::from_raw(fs::read_to_string(&job).expect("a pid").trim().parse().expect("a number"));
    kill(job, Signal::SIGKILL).expect("the job of the shell lives");
}

/// A hook that leaves two processes behind, and writes down which.
fn leaving(pids: &Path) -> String {
    let script = format!("sleep 1000 & echo $! >>{0}; setsid sleep 1001 & echo $! >>{0}", pids.display());
    format!("['sh', '-c', '{script}']")
}

#[test]
fn what_hooks_have_started_in_the_background_lives_until_the_manager_ends() {
    let starter = Starter::default();
    let pids = starter.path("pids");
    let service =
        Service::worker().set("upgrade.before", leaving(&pids)).set("upgrade.after", leaving(&pids));
    let mut manager = starter.start(service.clone().release(1));
    manager.wait_ready();
    for release in 2..=3 {
        let place = manager.place();
        manager.upgrade_committed(service.clone().release(release));
        manager.wait_log(place, ["the hook `after` is done"]);
        manager.wait_log(place, ["gone: exited with status 0"]);
    }
    let left: Vec<i32> =
        fs::read_to_string(&pids).expect("pids").lines().map(|pid| pid.parse().expect("a number")).collect();
    assert_eq!(left.len(), 8);
    for pid in &left {
        assert!(Process::read(*pid).is_some(), "{pid} has ended with its hook: {left:?}");
    }
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
    for pid in left {
        wait_gone(pid);
    }
}

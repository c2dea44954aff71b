//! How workers are replaced, held to their limits, and brought back.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Connection, Load, MODES, Target, ask};
use support::log::{Step, Transition, Verdict};
use support::manager::{Manager, Place, Starter, Worker, text_of, wait_gone};
use support::process::of;
use support::service::Service;
use support::{eventually, loopback, worker_program};

/// Follows the log from a settled state; returns the fewest ready and the most live workers at any time.
///
/// Live are those that start or serve; who drains is not counted.
fn extremes(transitions: &[Transition], settled: &[Worker]) -> (usize, usize) {
    let mut live: BTreeSet<i32> = settled.iter().map(|worker| worker.pid).collect();
    let mut ready = live.clone();
    let (mut fewest, mut most) = (ready.len(), live.len());
    for Transition { pid, step, .. } in transitions {
        match step {
            Step::Started => {
                live.insert(*pid);
            }
            Step::Ready => {
                ready.insert(*pid);
            }
            Step::Draining | Step::Gone => {
                live.remove(pid);
                ready.remove(pid);
            }
        }
        fewest = fewest.min(ready.len());
        most = most.max(live.len());
    }
    (fewest, most)
}

#[test]
fn a_rolling_upgrade_keeps_to_surge_and_unavailability() {
    for (surge, unavailable, fewest_allowed, most_allowed) in
        [("'25%'", "0", 6, 8), ("1", "0", 6, 7), ("0", "2", 4, 6), ("2", "1", 5, 8)]
    {
        let address = loopback();
        let service = Service::worker()
            .workers(6)
            .listen(address)
            // The later a slot, the sooner it is ready: no luck of the order may hide a miscount.
            .args(["--boot", "100,80,60,40,20,0"])
            .set("upgrade.max_surge", surge)
            .set("upgrade.max_unavailable", unavailable);
        let manager = Manager::start(service.clone().release(1));
        let settled = manager.wait_workers(1, 6);
        let load = Load::start(&[Target::Tcp(address)], &MODES);
        let place = manager.place();
        manager.upgrade_committed(service.release(2));
        manager.wait_workers(2, 6);
        let (fewest, most) = extremes(&manager.transitions(place), &settled);
        if fewest < fewest_allowed || most > most_allowed {
            manager.fail(&format!("surge {surge}, unavailable {unavailable}: {fewest} ready, {most} live"));
        }
        load.stop().assert_spotless();
        manager.stop();
    }
}

#[test]
fn an_upgrade_in_which_the_service_is_made_smaller_and_a_new_worker_dies_still_ends() {
    let service = Service::worker().workers(4).listen(loopback());
    let manager = Manager::start(service.clone().release(1));
    let place = manager.place();
    manager.rewrite(service.release(2).args(["--boot", "300"]));
    manager.signal(Signal::SIGHUP);
    let new = manager.wait_worker(place, "a new worker", |one| one.generation == 2);
    // Now one old worker is too many, and takes the room that the next new worker needs.
    manager.signal(Signal::SIGTTOU);
    manager.wait_log(place, ["generation 2 scaled to 3"]);
    kill(Pid::from_raw(new.pid), Signal::SIGKILL).expect("the new worker");
    assert_eq!(manager.wait_outcome(place).verdict, Verdict::Committed);
    manager.wait_workers(2, 3);
    manager.stop();
}

/// Returns the places in the log at which workers of a generation took a step.
fn places(transitions: &[Transition], generation: u64, step: Step) -> Vec<usize> {
    let fits = |one: &Transition| one.generation == generation && one.step == step;
    transitions.iter().enumerate().filter(|(_, one)| fits(one)).map(|(place, _)| place).collect()
}

#[test]
fn blue_green_drains_nobody_before_all_new_workers_are_ready() {
    let service = Service::worker().workers(4).listen(loopback()).set("upgrade.strategy", "'blue-green'");
    let manager = Manager::start(service.clone().release(1));
    let place = manager.place();
    manager.upgrade_committed(service.release(2));
    manager.wait_workers(2, 4);
    let log = manager.transitions(place);
    let (ready, draining) = (places(&log, 2, Step::Ready), places(&log, 1, Step::Draining));
    if ready.len() != 4 || draining.len() != 4 || ready.last() > draining.first() {
        manager.fail("a wrong order");
    }
    manager.stop();
}

#[test]
fn the_manager_chooses_by_where_the_code_lies() {
    let starter = Starter::default();
    for folder in ["one", "two"] {
        fs::create_dir(starter.path(folder)).expect("a folder");
    }
    let service = Service::worker().workers(4).listen(loopback()).unset("upgrade.strategy");
    let within = |folder| service.clone().release(folder).set("service.directory", format!("'{folder}'"));
    let mut manager = starter.start(within("one"));
    manager.wait_ready();
    // In another directory: slot by slot.
    let place = manager.place();
    manager.upgrade_committed(within("two"));
    manager.wait_workers(2, 4);
    let log = manager.transitions(place);
    let (ready, draining) = (places(&log, 2, Step::Ready), places(&log, 1, Step::Draining));
    assert!(draining.first() < ready.last(), "{log:?}");
    // In the same: the old processes may be the only copy of the old code.
    let place = manager.place();
    manager.upgrade_committed(within("two"));
    manager.wait_workers(3, 4);
    let log = manager.transitions(place);
    let (ready, draining) = (places(&log, 3, Step::Ready), places(&log, 2, Step::Draining));
    assert!(ready.len() == 4 && draining.first() > ready.last(), "{log:?}");
    manager.stop();
}

#[test]
fn what_has_become_of_the_old_code_is_told() {
    let starter = Starter::default();
    for folder in ["one", "two"] {
        fs::create_dir(starter.path(folder)).expect("a folder");
    }
    let program = starter.path("server");
    let replace = || {
        // A script: a binary is held (tests/pinned.rs).
        let copy = program.with_extension("new");
        let text = format!("#!/bin/sh\nexec {} \"$@\"\n", worker_program().display());
        fs::write(&copy, text).expect("a script");
        fs::set_permissions(&copy, Permissions::from_mode(0o755)).expect("its mode");
        fs::rename(&copy, &program).expect("the program replaced");
    };
    replace();
    let service = Service::worker().program(program.display()).listen(loopback());
    let within = |folder| service.clone().release(folder).set("service.directory", format!("'{folder}'"));
    let mut manager = starter.start(within("one"));
    manager.wait_ready();
    let upgraded = |service: Service| {
        let place = manager.place();
        manager.rewrite(service);
        let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
        (answer["old_code"].as_str().expect("a word").to_owned(), answer["note"].clone(), place)
    };
    let (old_code, note, _) = upgraded(within("two"));
    assert_eq!((old_code.as_str(), note.as_str()), ("pinned", None));
    let (old_code, note, place) = upgraded(within("two"));
    let folder = manager.path("two").canonicalize().expect("a path");
    let words =
        format!("generations 2 and 3 share {}: a rollback starts whatever lies there now", folder.display());
    assert_eq!((old_code.as_str(), note.as_str()), ("same folder", Some(words.as_str())));
    manager.wait_log(place, [&words]);
    replace();
    let (old_code, note, _) = upgraded(within("two"));
    assert_eq!(old_code, "replaced");
    assert!(
        note.as_str().is_some_and(|note| note.contains("server was replaced: a rollback starts")),
        "{note}"
    );
    assert_eq!(manager.ask(r#"{"cmd":"status"}"#)["status"]["old_code"], "replaced");
    // Of a release that failed: those that serve are safe, those that are started again may not be.
    let (old_code, note, _) = upgraded(within("two").args(["--exit", "3"]));
    assert_eq!(old_code, "same folder");
    let words = "a worker that is started again runs whatever lies there now";
    assert!(note.as_str().is_some_and(|note| note.contains(words)), "{note}");
    manager.stop();
}

#[test]
fn recreate_starts_nobody_before_all_old_workers_have_ended() {
    let service = Service::worker().workers(4).listen(loopback()).set("upgrade.strategy", "'recreate'");
    let manager = Manager::start(service.clone().release(1));
    let place = manager.place();
    manager.upgrade_committed(service.release(2));
    manager.wait_workers(2, 4);
    let log = manager.transitions(place);
    let (gone, started) = (places(&log, 1, Step::Gone), places(&log, 2, Step::Started));
    if gone.len() != 4 || started.len() != 4 || gone.last() > started.first() {
        manager.fail("a wrong order");
    }
    manager.stop();
}

#[test]
fn an_upgrade_is_committed_only_after_its_probation() {
    let service = Service::worker().workers(2).listen(loopback()).set("upgrade.probation", "'500ms'");
    let manager = Manager::start(service.clone().release(1));
    let place = manager.place();
    manager.upgrade_committed(service.release(2));
    let log = manager.log.since(0);
    let at =
        |words: &str| log.iter().position(|line| line.contains(words)).unwrap_or_else(|| manager.fail(words));
    assert!(at("generation 2 on probation") < at("generation 2 committed"));
    manager.wait_log(place, ["generation 2 committed"]);
    manager.stop();
}

#[test]
fn hooks_are_told_what_happens() {
    let starter = Starter::default();
    let told = starter.path("told");
    let hook = |when: &str| {
        let line = format!("{when} $LIVESWAP_SERVICE $LIVESWAP_GENERATION $LIVESWAP_OUTCOME");
        format!("['sh', '-c', 'echo {line} >> {}']", told.display())
    };
    let service = Service::worker()
        .listen(loopback())
        .set("upgrade.before", hook("before"))
        .set("upgrade.after", hook("after"));
    let mut manager = starter.start(service.clone().release(1));
    manager.wait_ready();
    let wait_for = |line: &str| {
        manager.wait_until(line, || text_of(&told).lines().any(|told| told.trim() == line).then_some(()));
    };
    manager.upgrade_committed(service.clone().release(2));
    wait_for("before web 2");
    wait_for("after web 2 committed");
    manager.upgrade(service.clone().release(3).args(["--exit", "1"]));
    wait_for("before web 3");
    wait_for("after web 3 rolled-back");
    manager.upgrade(service.set("upgrade.before", "['false']"));
    wait_for("after web 4 refused");
    manager.stop();
}

#[test]
fn a_hook_that_hangs_stops_neither_the_manager_nor_the_next_upgrade() {
    let address = loopback();
    let service = Service::worker().workers(2).listen(address);
    let manager = Manager::start(service.clone().release(1));
    let hanging = service
        .clone()
        .set("upgrade.before", "['sleep', '1000']")
        .set("upgrade.hook_timeout", "'1500ms'")
        .release(2);
    let place = manager.place();
    manager.rewrite(hanging);
    manager.signal(Signal::SIGHUP);
    manager.wait_log(place, ["generation 2"]);
    // Meanwhile life goes on: a worker dies and is replaced, another is added.
    let victim = manager.workers().remove(0);
    kill(Pid::from_raw(victim.pid), Signal::SIGKILL).expect("a worker");
    manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready && one.slot == victim.slot);
    manager.signal(Signal::SIGTTIN);
    manager.wait_worker(place, "a third worker", |one| one.step == Step::Ready && one.slot == 2);
    let outcome = manager.wait_outcome(place);
    assert_eq!(outcome.verdict, Verdict::Refused, "{outcome:?}");
    assert!(outcome.reason.contains("before"), "{outcome:?}");
    manager.wait_until("the hook's end", || {
        let sleeping =
            manager.family().iter().any(|one| one.command.first().is_some_and(|word| word == "sleep"));
        (!sleeping).then_some(())
    });
    manager.upgrade_committed(service.release(3));
    manager.wait_workers(3, 2);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "3");
    manager.stop();
}

#[test]
fn at_the_deadline_of_its_drain_a_worker_goes_with_all_its_processes() {
    let service = Service::worker().workers(2).listen(loopback()).set("drain.timeout", "'400ms'");
    let stubborn = service.clone().args(["--ignore-term", "--leave-child", "--leave-session"]);
    let manager = Manager::start(stubborn.release(1));
    manager.wait_until("the workers' children", || (manager.family().len() >= 6).then_some(()));
    manager.upgrade_committed(service.release(2));
    let workers = manager.wait_workers(2, 2);
    manager.wait_until("nothing but the new workers", || {
        let family: BTreeSet<i32> = manager.family().iter().map(|process| process.pid).collect();
        (family == workers.iter().map(|worker| worker.pid).collect()).then_some(())
    });
    manager.stop();
}

#[test]
fn what_a_drained_worker_leaves_behind_in_its_group_is_killed() {
    let service = Service::worker().workers(2).listen(loopback());
    let manager = Manager::start(service.clone().release(1).args(["--leave-child"]));
    manager.wait_until("the workers' children", || (manager.family().len() == 4).then_some(()));
    manager.upgrade_committed(service.release(2));
    manager.wait_workers(2, 2);
    manager.wait_until("no one left behind", || (manager.family().len() == 2).then_some(()));
    manager.stop();
}

#[test]
fn what_has_left_its_worker_for_good_ends_with_the_worker_and_with_the_service() {
    let service = || Service::worker().workers(2);
    let manager = Manager::start(service().release(1).args(["--leave-daemon"]));
    manager.wait_until("the workers' daemons", || (manager.family().len() == 4).then_some(()));
    let place = manager.place();
    manager.upgrade_committed(service().release(2));
    manager.wait_until("the end of the daemons", || (manager.family().len() == 2).then_some(()));
    manager.wait_log(place, ["has outlived worker 1"]);
    manager.upgrade_committed(service().release(3).args(["--leave-daemon"]));
    manager.wait_until("more daemons", || (manager.family().len() == 4).then_some(()));
    // It checks that nobody is left.
    manager.stop();
}

#[test]
fn a_worker_that_keeps_dying_is_started_again_ever_more_slowly() {
    let address = loopback();
    let service = Service::worker()
        .workers(2)
        .listen(address)
        .set("restart.initial_delay", "'100ms'")
        .set("restart.max_delay", "'400ms'");
    // Slot 1 dies as soon as it is ready; slot 0 serves.
    let manager = Starter::default().start(service.release(1).args([
        "--slot",
        "1",
        "--exit",
        "1",
        "--after-ready",
        "0",
    ]));
    let mut place = Place::START;
    for pause in ["100 ms", "200 ms", "400 ms", "400 ms"] {
        place = manager.wait_log_to(place, ["slot 1", pause]);
    }
    // The socket stays open throughout.
    for _ in 0..20 {
        assert_eq!(ask(&Target::Tcp(address)).expect("an answer").slot, 0);
    }
    manager.stop();
}

#[test]
fn a_worker_killed_from_outside_is_replaced() {
    let address = loopback();
    let manager = Manager::start(Service::worker().workers(4).listen(address).release(1));
    for round in 0..3 {
        let place = manager.place();
        let victim = manager.wait_workers(1, 4).remove(round);
        kill(Pid::from_raw(victim.pid), Signal::SIGKILL).expect("a worker");
        wait_gone(victim.pid);
        manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready && one.slot == victim.slot);
    }
    manager.wait_workers(1, 4);
    manager.stop();
}

#[test]
fn a_generation_is_pinned_to_the_folder_that_its_link_named() {
    let starter = Starter::default();
    let folder = fs::canonicalize(starter.path(".")).expect("a path");
    for release in ["v1", "v2"] {
        fs::create_dir(folder.join(release)).expect("a folder");
    }
    symlink("v1", folder.join("current")).expect("a link");
    let service = Service::worker().workers(2).listen(loopback()).set("service.directory", "'current'");
    let mut manager = starter.start(service.release(1));
    manager.wait_ready();
    let folders = |generation| {
        let workers = manager.wait_workers(generation, 2);
        workers
            .iter()
            .map(|worker| fs::read_link(of(worker.pid, "cwd")).expect("cwd"))
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(folders(1), BTreeSet::from([folder.join("v1")]));

    symlink("v2", folder.join("next")).expect("a link");
    fs::rename(folder.join("next"), folder.join("current")).expect("the link moved");
    let place = manager.place();
    let victim = manager.workers().remove(0);
    kill(Pid::from_raw(victim.pid), Signal::SIGKILL).expect("a worker");
    manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready);
    assert_eq!(folders(1), BTreeSet::from([folder.join("v1")]));

    let place = manager.place();
    manager.signal(Signal::SIGHUP);
    manager.wait_outcome(place);
    assert_eq!(folders(2), BTreeSet::from([folder.join("v2")]));
    manager.stop();
}

/// Opens a connection that a worker of the generation has accepted; one that is just told to drain may take some too.
fn connection_to(generation: u64, target: &Target) -> Connection {
    eventually("a connection to the newest generation", || {
        let mut connection = Connection::open(target).expect("a connection");
        let (answer, _) = connection.get("/", true).expect("an answer");
        let words = String::from_utf8_lossy(&answer).into_owned();
        words.contains(&format!(" generation={generation} ")).then_some(connection)
    })
}

#[test]
fn the_oldest_generation_is_killed_when_too_many_drain() {
    let address = loopback();
    let service = Service::worker()
        .workers(1)
        .listen(address)
        .args(["--linger", "600000"])
        .set("drain.timeout", "'1h'")
        .set("drain.max_generations", 2);
    let mut manager = Manager::start(service.clone().release(1));
    // Each generation keeps a connection, so none of them ends by itself.
    let mut kept = Vec::new();
    for generation in 1..=3 {
        kept.push(connection_to(generation, &Target::Tcp(address)));
        manager.upgrade_committed(service.clone().release(generation + 1));
    }
    manager.wait_until("generation 1 gone and the others alive", || {
        let generations: BTreeMap<u64, u64> =
            manager.workers().iter().map(|one| (one.generation, one.slot)).collect();
        generations.keys().eq(&[2, 3, 4]).then_some(())
    });
    manager.wait_log(Place::START, ["generation 1", "max_generations"]);
    manager.signal(Signal::SIGQUIT);
    manager.wait_exit();
}

#[test]
fn a_probe_decides_who_is_ready() {
    let starter = Starter::default();
    let gate = starter.path("gate");
    let service = Service::command(["sleep", "1000"])
        .workers(2)
        .set("service.protocol", "'plain'")
        .set("ready.when", "'probe'")
        .set("ready.interval", "'20ms'")
        .set("ready.probe", format!("['test', '-e', '{}']", gate.display()));
    fs::write(&gate, "").expect("the gate");
    let mut manager = starter.start(service.clone());
    manager.wait_ready();
    fs::remove_file(&gate).expect("the gate closed");
    let place = manager.place();
    manager.rewrite(service);
    manager.signal(Signal::SIGHUP);
    manager.wait_worker(place, "a new worker", |one| one.step == Step::Started);
    manager.wait_until("a probe at work", || {
        manager.workers().iter().any(|one| one.generation == 2).then_some(())
    });
    manager.wait_log(place, ["generation 2, slot 0", "not ready yet: its probe exited with status 1"]);
    assert!(places(&manager.transitions(place), 2, Step::Ready).is_empty());
    fs::write(&gate, "").expect("the gate");
    assert_eq!(manager.wait_outcome(place).verdict, Verdict::Committed);
    manager.wait_workers(2, 2);
    manager.stop();
}

#[test]
fn a_probe_that_is_not_there_is_named_in_the_log() {
    let service = Service::command(["sleep", "1000"]).set("service.protocol", "'plain'");
    let mut manager = Manager::start(service.clone());
    let place = manager.place();
    let probed = service.set("ready.when", "'probe'").set("ready.probe", "['no-such-probe']");
    let outcome = manager.upgrade(probed.set("ready.timeout", "'1s'"));
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    manager.wait_log(place, ["its probe could not be started: executing: No such file or directory"]);
    manager.signal(Signal::SIGTERM);
    manager.wait_exit();
}

#[test]
fn a_worker_that_stays_alive_is_ready_where_it_says_nothing() {
    let service = Service::command(["sleep", "1000"])
        .workers(2)
        .set("service.protocol", "'plain'")
        .set("ready.settle", "'100ms'");
    let manager = Manager::start(service.clone());
    manager.upgrade_committed(service.clone());
    let short =
        Service::command(["sleep", "0.01"]).set("service.protocol", "'plain'").set("ready.settle", "'10s'");
    let outcome = manager.upgrade(short);
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    manager.wait_workers(2, 2);
    manager.stop();
}

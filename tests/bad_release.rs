//! The second promise: a bad release is a non-event.
//!
//! Each kind of badness meets four workers under load over TCP and a UNIX socket. Nothing may fail, the old generation
//! stays at full strength, the reason is in the log and in the STATUS, and a good release afterwards goes through.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fmt::Display;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use support::client::{Load, MODES, Target};
use support::log::Verdict;
use support::loopback;
use support::manager::{Manager, Starter};
use support::service::Service;

/// A running service, and the file from which a bad release is made.
struct Ground {
    manager: Manager,
    good: Service,
}

/// Tries the release that `make` gives; expects `verdict`, for a reason that contains each of `words`.
fn survive<const N: usize, B: Display>(make: impl FnOnce(&Ground) -> B, verdict: Verdict, words: [&str; N]) {
    let starter = Starter::default();
    let targets = [Target::Tcp(loopback()), Target::Unix(starter.path("web.sock"))];
    let [Target::Tcp(address), Target::Unix(path)] = &targets else { unreachable!() };
    let good = Service::worker()
        .workers(4)
        .listen(address)
        .listen(path.display())
        .set("ready.timeout", "'30s'")
        .set("upgrade.probation", "'0s'");
    let mut manager = starter.start(good.clone().release("good"));
    manager.wait_ready();
    let ground = Ground { manager, good };
    let load = Load::start(&targets, &MODES);
    load.wait_for_more(100);

    let bad = make(&ground);
    let manager = ground.manager;
    let outcome = manager.upgrade(bad);
    load.wait_for_more(100);

    if outcome.verdict != verdict || !words.iter().all(|word| outcome.reason.contains(word)) {
        manager.fail(&format!("expected {verdict:?} for {words:?}: {outcome:?}"));
    }
    let status = &outcome.status;
    let told =
        status.contains("generation 1: 4 of 4 ready") && words.iter().all(|word| status.contains(word));
    if !told {
        manager.fail(&format!("the STATUS hides it: {status:?}"));
    }
    let old = manager.wait_workers(1, 4);
    assert_eq!(old.iter().map(|worker| worker.slot).collect::<Vec<_>>(), [0, 1, 2, 3]);

    manager.upgrade_committed(ground.good.release("better"));
    manager.wait_workers(3, 4);
    let report = load.stop();
    println!("{report}");
    report.assert_spotless();
    assert!(report.by_release.contains_key("better"), "{report}");
    manager.stop();
}

/// A release of the test worker with misbehaviour on a short leash.
fn worker_with<const N: usize>(ground: &Ground, arguments: [&str; N]) -> Service {
    ground.good.clone().release("bad").args(arguments)
}

#[test]
fn a_program_that_is_missing() {
    let make = |_: &Ground| Service::command(["./no-such-program"]).workers(4).listen(loopback());
    survive(make, Verdict::RolledBack, ["executing", "No such file or directory"]);
}

#[test]
fn a_program_that_is_not_executable() {
    let make = |ground: &Ground| {
        let path = ground.manager.path("server");
        fs::write(&path, "#!/bin/sh\n").expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        Service::command(["./server"]).workers(4).listen(loopback())
    };
    survive(make, Verdict::RolledBack, ["executing", "Permission denied"]);
}

#[test]
fn a_directory_that_is_missing() {
    let make = |ground: &Ground| worker_with(ground, []).set("service.directory", "'no-such-folder'");
    survive(make, Verdict::Refused, ["no-such-folder", "No such file or directory"]);
}

#[test]
fn a_worker_that_exits_at_once() {
    let make = |ground: &Ground| worker_with(ground, ["--exit", "3"]);
    survive(make, Verdict::RolledBack, ["exited with status 3 before it was ready"]);
}

#[test]
fn a_worker_that_dies_of_a_signal_at_once() {
    let make = |ground: &Ground| worker_with(ground, ["--die", "SIGSEGV"]);
    survive(make, Verdict::RolledBack, ["SIGSEGV", "before it was ready"]);
}

#[test]
fn a_worker_that_is_never_ready() {
    let make = |ground: &Ground| worker_with(ground, ["--never-ready"]).set("ready.timeout", "'500ms'");
    survive(make, Verdict::RolledBack, ["not ready after 500 ms"]);
}

#[test]
fn workers_that_die_within_probation() {
    let make = |ground: &Ground| {
        worker_with(ground, ["--exit", "7", "--after-ready", "300"]).set("upgrade.probation", "'20s'")
    };
    survive(make, Verdict::RolledBack, ["exited with status 7"]);
}

#[test]
fn workers_that_die_within_probation_after_a_switch_at_once() {
    let make = |ground: &Ground| {
        worker_with(ground, ["--exit", "7", "--after-ready", "300"])
            .set("upgrade.strategy", "'blue-green'")
            .set("upgrade.probation", "'20s'")
    };
    survive(make, Verdict::RolledBack, ["exited with status 7"]);
}

#[test]
fn workers_that_say_they_are_ready_and_die() {
    // As a program that forks before it loads its application. Nothing is said of how long they must stay ready.
    let make = |ground: &Ground| {
        worker_with(ground, ["--exit", "3", "--after-ready", "300"]).unset("upgrade.min_ready")
    };
    survive(make, Verdict::RolledBack, ["exited with status 3, ", " after it was ready"]);
}

#[test]
fn workers_that_are_replaced_in_place_and_die_on_probation() {
    // The old program is nowhere any more but in the processes that run it.
    let make = |ground: &Ground| {
        worker_with(ground, ["--exit", "3", "--after-ready", "1300"])
            .unset("upgrade.strategy")
            .set("upgrade.min_ready", "'1s'")
            .set("upgrade.probation", "'20s'")
    };
    survive(make, Verdict::RolledBack, ["exited with status 3", "after it was ready"]);
}

#[test]
fn one_worker_of_four_that_dies() {
    let make = |ground: &Ground| {
        worker_with(ground, ["--slot", "2", "--exit", "9", "--after-ready", "200"])
            .set("upgrade.probation", "'20s'")
    };
    survive(make, Verdict::RolledBack, ["(slot 2)", "exited with status 9"]);
}

#[test]
fn one_worker_of_four_that_is_never_ready() {
    let make = |ground: &Ground| {
        worker_with(ground, ["--slot", "3", "--never-ready"]).set("ready.timeout", "'500ms'")
    };
    survive(make, Verdict::RolledBack, ["(slot 3)", "not ready after 500 ms"]);
}

#[test]
fn a_hook_that_fails() {
    let make = |ground: &Ground| worker_with(ground, []).set("upgrade.before", "['sh', '-c', 'exit 4']");
    survive(make, Verdict::Refused, ["before", "exited with status 4"]);
}

#[test]
fn a_service_file_with_broken_syntax() {
    survive(|_| "[service\ncommand = 7", Verdict::Refused, ["web.toml:1"]);
}

#[test]
fn a_service_file_with_an_unknown_key() {
    let make = |ground: &Ground| worker_with(ground, []).set("service.comand", "['x']");
    survive(make, Verdict::Refused, ["web.toml:", "comand"]);
}

#[test]
fn an_empty_service_file() {
    survive(|_| "", Verdict::Refused, ["web.toml"]);
}

#[test]
fn an_environment_file_that_is_missing() {
    let make =
        |ground: &Ground| worker_with(ground, []).set("service.environment_files", "['/no/such/file']");
    survive(make, Verdict::Refused, ["/no/such/file"]);
}

#[test]
fn a_user_that_does_not_exist() {
    let make = |ground: &Ground| worker_with(ground, []).set("service.user", "'no-such-user'");
    survive(make, Verdict::Refused, ["no-such-user"]);
}

#[test]
fn a_new_socket_whose_address_is_taken() {
    let taken = TcpListener::bind(loopback()).expect("bind");
    let address = taken.local_addr().expect("its address");
    let make = |ground: &Ground| worker_with(ground, []).listen(address);
    survive(make, Verdict::Refused, [&address.to_string()]);
}

//! `liveswap run --watch`: a change on disk is an upgrade.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;
use support::client::{Load, MODES, Target};
use support::loopback;
use support::manager::{Manager, Place, Starter, wait_gone};
use support::process::Process;
use support::service::Service;

/// Starts a manager that watches `src`, where the worker finds what it is called.
fn start(service: &Service) -> Manager {
    let starter = Starter::default();
    fs::create_dir(starter.path("src")).expect("a folder");
    fs::write(starter.path("src/name"), "one").expect("a file");
    let mut manager = starter.instead_of_file(["--watch", "src", "web.toml"]).start(service);
    manager.wait_ready();
    manager.wait_log(Place::START, ["watching", "/src, ", "/web.toml"]);
    manager
}

#[test]
fn a_change_on_disk_is_an_upgrade_and_a_failed_build_is_none() {
    let address = loopback();
    // The build is what becomes of src/name in target/.
    let build =
        "['sh', '-c', 'mkdir -p src/target; touch src/.lock; grep -q . src/name && cp src/name src/target/']";
    let service = Service::worker()
        .after("set -- \"$@\" --release \"$(cat src/name)\"")
        .workers(2)
        .listen(address)
        .set("upgrade.before", build);
    let manager = start(&service);
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);

    // Many at once are one upgrade.
    let place = manager.place();
    for part in 0..50 {
        fs::write(manager.path(&format!("src/part{part}")), "").expect("a file");
    }
    fs::write(manager.path("src/name"), "two").expect("a file");
    manager.wait_log(place, ["/src/part0 changed: upgrading"]);
    manager.wait_log(place, ["generation 2 committed"]);
    load.wait_for_more(50);

    let place = manager.place();
    fs::write(manager.path("src/name"), "").expect("a file");
    manager.wait_log(place, ["/src/name changed: upgrading"]);
    manager.wait_log(place, ["generation 3 refused", "`before` exited with status 1"]);
    // What the build writes has asked for no upgrade, or this one would not be the next.
    let place = manager.place();
    fs::write(manager.path("src/name"), "four").expect("a file");
    manager.wait_log(place, ["generation 4 committed"]);
    manager.wait_workers(4, 2);

    // So is a change of the service file, which editors replace.
    let place = manager.place();
    fs::write(manager.path("web.new"), service.workers(1).to_string()).expect("a file");
    fs::rename(manager.path("web.new"), manager.path("web.toml")).expect("a rename");
    manager.wait_log(place, ["/web.toml changed: upgrading"]);
    manager.wait_log(place, ["generation 5 committed"]);
    manager.wait_workers(5, 1);
    load.stop().assert_spotless();
}

#[test]
fn the_watcher_ends_with_its_manager_however_that_ends() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let manager = start(&Service::worker());
        // It is a fork, and has the manager's own command line.
        let is_watcher = |process: &Process| process.command.iter().any(|word| word == "--watch");
        let watchers: Vec<_> = manager.children().into_iter().filter(is_watcher).collect();
        let [watcher] = &watchers[..] else { panic!("one watcher: {watchers:#?}") };
        manager.signal(signal);
        wait_gone(manager.pid());
        wait_gone(watcher.pid);
    }
}

#[test]
fn what_cannot_be_watched_is_said_at_once() {
    let run = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_liveswap")).arg("run").args(words).output();
        let output = output.expect("the program");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, said) = run(&["--watch", "/no/such/path", "--", "true"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("Error: cannot watch /no/such/path\nCaused by: No such file"), "{said}");
    let (status, said) = run(&["--watch", "web.toml"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("--watch needs a PATH before the FILE"), "{said}");
}

//! What outlives the manager: the release that serves, and the one that was rolled back.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Target, ask};
use support::manager::{Manager, Place, Starter, wait_gone};
use support::service::Service;
use support::{loopback, worker_program};

/// Makes `releases/N`, whose `server` is the worker of that release, or one that fails.
fn release(manager: &Starter, number: u32, is_good: bool) {
    write(&manager.path("releases"), number, is_good);
}

fn write(releases: &Path, number: u32, is_good: bool) {
    let folder = releases.join(number.to_string());
    fs::create_dir_all(&folder).expect("a folder");
    let script = if is_good {
        format!("exec {} worker --release {number}", worker_program().display())
    } else {
        "exit 3".into()
    };
    fs::write(folder.join("server"), script).expect("a script");
}

/// Points `current` at another release, in one step.
fn switch(folder: impl Fn(&str) -> PathBuf, number: u32) {
    symlink(format!("releases/{number}"), folder("next")).expect("a link");
    fs::rename(folder("next"), folder("current")).expect("a rename");
}

/// Has a service with two releases, of which the second is bad, start with the first by the link `current`.
fn start(service: impl Fn(&Starter, Service) -> Service) -> (Manager, Target) {
    let starter = Starter::default();
    release(&starter, 1, true);
    release(&starter, 2, false);
    switch(|name| starter.path(name), 1);
    let address = loopback();
    let base = Service::command(["sh", "./server"]).listen(address).set("upgrade.head", "'head'");
    let service = service(&starter, base);
    let mut manager = starter.start(service);
    manager.wait_ready();
    (manager, Target::Tcp(address))
}

fn by_directory(_: &Starter, base: Service) -> Service {
    base.set("service.directory", "'current'")
}

fn by_target(_: &Starter, base: Service) -> Service {
    base.by(["sh", "{target}/server"]).set("service.target", "'current'")
}

/// Ends the manager and all workers at once, as a reset of the machine does, and starts a manager. Returns where that begins in the log.
fn reset_and_start(manager: &mut Manager) -> Place {
    let workers = manager.workers();
    manager.crash();
    for worker in workers {
        let _ = kill(Pid::from_raw(worker.pid), Signal::SIGKILL);
        wait_gone(worker.pid);
    }
    let place = manager.place();
    manager.restart();
    place
}

/// The same, until the new manager is ready.
fn reset(manager: &mut Manager) -> Place {
    let place = reset_and_start(manager);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    place
}

fn recorded(manager: &Manager) -> String {
    fs::read_to_string(manager.path("head")).expect("a record")
}

fn path(manager: &Manager, number: u32) -> String {
    let folder = manager.path("releases").join(number.to_string());
    folder.canonicalize().expect("a folder").display().to_string()
}

#[test]
fn a_release_that_was_rolled_back_is_not_begun_with() {
    for form in [by_directory, by_target] {
        let (mut manager, target) = start(form);
        switch(|name| manager.path(name), 2);
        let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
        assert_eq!(answer["outcome"], "rolled-back", "{answer}");
        // Once the answer is there, so is the record. No end of line: scripts take all of it for a path.
        assert_eq!(recorded(&manager), path(&manager, 1));
        assert!(manager.path("head.rejected").exists());

        // An upgrade that is refused has tried nothing.
        let text = fs::read_to_string(manager.path("web.toml")).expect("the file");
        manager.rewrite("[service");
        assert_eq!(manager.ask(r#"{"cmd":"upgrade"}"#)["outcome"], "refused");
        manager.rewrite(&text);

        let place = reset(&mut manager);
        let why = format!(
            "begun with {}, which served last: {} was rolled back",
            path(&manager, 1),
            path(&manager, 2)
        );
        manager.wait_log(place, [&why]);
        assert_eq!(ask(&target).expect("an answer").release, "1");
        assert_eq!(manager.ask(r#"{"cmd":"status"}"#)["status"]["begun_with"], why);
        let shown = manager.cli(["status"]);
        assert!(shown.status == 0 && shown.stdout.contains(&why), "{shown:?}");
        // A manager that takes over goes on as it was.
        manager.restart_after_crash();
        assert_eq!(ask(&target).expect("an answer").release, "1");

        // Asked for by hand, the file counts again.
        let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
        assert_eq!(answer["outcome"], "rolled-back", "{answer}");
        write(&manager.path("releases"), 2, true);
        let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
        assert_eq!(answer["outcome"], "committed", "{answer}");
        assert_eq!(recorded(&manager), path(&manager, 2));
        assert!(!manager.path("head.rejected").exists());
        assert_eq!(manager.ask(r#"{"cmd":"status"}"#)["status"]["begun_with"].as_str(), None);
        reset(&mut manager);
        assert_eq!(ask(&target).expect("an answer").release, "2");
        manager.stop();
    }
}

#[test]
fn what_never_served_does_not_take_the_place_of_what_did() {
    let (mut manager, target) = start(by_directory);
    let first = path(&manager, 1);
    // As a deployment while the machine was down: the manager knows nothing against the second, which fails.
    switch(|name| manager.path(name), 2);
    let place = reset_and_start(&mut manager);
    manager.wait_log(place, ["exited with status 3"]);
    write(&manager.path("releases"), 3, false);
    switch(|name| manager.path(name), 3);
    manager.signal(Signal::SIGHUP);
    manager.wait_log(place, ["rolling back: worker"]);
    // The third is known to be bad by now, though nothing comes back to strength, and the first is what served.
    manager.wait_until("what was rejected", || manager.path("head.rejected").exists().then_some(()));
    assert_eq!(recorded(&manager), first);
    reset(&mut manager);
    assert_eq!(ask(&target).expect("an answer").release, "1");
    manager.stop();
}

#[test]
fn a_release_that_was_mended_in_its_folder_is_begun_with() {
    let (mut manager, target) = start(by_directory);
    switch(|name| manager.path(name), 2);
    assert_eq!(manager.ask(r#"{"cmd":"upgrade"}"#)["outcome"], "rolled-back");
    // As a deployment does: the folder is another, its name the same.
    fs::remove_dir_all(manager.path("releases/2")).expect("the bad one removed");
    write(&manager.path("releases"), 2, true);
    reset(&mut manager);
    assert_eq!(ask(&target).expect("an answer").release, "2");
    manager.stop();
}

#[test]
fn who_goes_back_by_hand_does_not_find_the_other_release_after_a_restart() {
    let (mut manager, target) = start(|starter, base| {
        release(starter, 2, true);
        by_directory(starter, base)
    });
    switch(|name| manager.path(name), 2);
    assert_eq!(manager.ask(r#"{"cmd":"upgrade"}"#)["outcome"], "committed");
    let place = manager.place();
    assert_eq!(manager.ask(r#"{"cmd":"rollback"}"#)["outcome"], "committed");
    assert_eq!(recorded(&manager), path(&manager, 1));
    manager.wait_log(place, ["generation 2 gone"]);
    let lines = manager.lines_since(place);
    assert!(!lines.iter().any(|line| line.contains("is not written")), "{lines:?}");
    reset(&mut manager);
    assert_eq!(ask(&target).expect("an answer").release, "1");
    manager.stop();
}

#[test]
fn what_was_chosen_by_name_is_begun_with_until_the_file_names_another() {
    let (mut manager, target) = start(|starter, base| {
        release(starter, 2, true);
        release(starter, 3, true);
        base.by(["sh", "{target}/server"]).set("service.target", "'releases/1'")
    });
    let answer = manager.ask(r#"{"cmd":"upgrade","value":"releases/2"}"#);
    assert_eq!(answer["outcome"], "committed", "{answer}");
    let place = reset(&mut manager);
    manager.wait_log(place, ["an upgrade chose it by its name instead of"]);
    assert_eq!(ask(&target).expect("an answer").release, "2");
    // It stays when the file is read again, and over a second start.
    assert_eq!(manager.ask(r#"{"cmd":"upgrade"}"#)["outcome"], "committed");
    assert_eq!(ask(&target).expect("an answer").release, "2");
    reset(&mut manager);
    assert_eq!(ask(&target).expect("an answer").release, "2");
    let text = fs::read_to_string(manager.path("web.toml")).expect("the file");
    manager.rewrite(text.replace("releases/1", "releases/3"));
    reset(&mut manager);
    assert_eq!(ask(&target).expect("an answer").release, "3");
    manager.stop();
}

#[test]
fn a_unit_with_a_folder_for_its_state_keeps_the_records_there() {
    let starter = Starter::default();
    let (state, other) = (starter.path("state"), starter.path("other"));
    for folder in [&state, &other] {
        fs::create_dir(folder).expect("a folder");
    }
    let starter = starter
        .variable("STATE_DIRECTORY", format!("{}:{}", state.display(), other.display()))
        .variable("CACHE_DIRECTORY", "/nowhere");
    let service = Service::worker().listen(loopback());
    let mut manager = starter.start(service);
    manager.wait_ready();
    manager.wait_until("the record", || fs::read_to_string(state.join("head")).ok());
    let worker = manager.wait_workers(1, 1)[0].pid;
    let environment = support::process::Process::read(worker).expect("a worker").environment;
    assert!(
        !environment.keys().any(|name| name.ends_with("_DIRECTORY") && !name.starts_with("LIVESWAP_")),
        "{environment:?}"
    );
    manager.stop();
}

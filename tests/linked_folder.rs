//! A service in a folder that is reached by a symbolic link, such as `current`.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use support::client::{Target, ask};
use support::loopback;
use support::manager::{Manager, Place, Starter};
use support::process::Process;
use support::service::Service;

/// Starts the manager from a shell that has entered `current`, a link to `releases/1`, where the service file is.
fn start_in_current(starter: Starter, service: &Service) -> Manager {
    for release in ["1", "2"] {
        let folder = starter.path("releases").join(release);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("web.toml"), service.clone().release(release).to_string()).expect("a file");
    }
    symlink("releases/1", starter.path("current")).expect("a link");
    let mut manager = starter.by(&["sh", "-c", "cd current && exec \"$@\"", "sh"]).start("");
    manager.wait_ready();
    manager
}

/// Points `current` at another release, in one step.
fn switch(manager: &Manager, release: &str) {
    symlink(Path::new("releases").join(release), manager.path("new")).expect("a link");
    fs::rename(manager.path("new"), manager.path("current")).expect("a rename");
}

/// The value of PWD with which a process was executed.
fn named_folder(pid: i32) -> Option<PathBuf> {
    Process::read(pid).expect("a process").environment.get("PWD").map(PathBuf::from)
}

#[test]
fn an_upgrade_follows_the_link_in_which_the_manager_was_started() {
    let address = loopback();
    let manager = start_in_current(Starter::default(), &Service::worker().listen(address));
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "1");
    switch(&manager, "2");
    manager.cli(["upgrade"]).assert(0, []);
    // One that is told to drain may still take a connection.
    manager.wait_workers(2, 1);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "2");
    fs::remove_dir_all(manager.path("releases/1")).expect("the first release removed");
    manager.cli(["upgrade"]).assert(0, []);
    manager.reexec();
    manager.cli(["upgrade"]).assert(0, []);
    manager.stop();
}

#[test]
fn a_link_on_the_way_that_moves_is_a_change() {
    let address = loopback();
    let starter = Starter::default().instead_of_file(["--watch", "web.toml", "web.toml"]);
    let manager = start_in_current(starter, &Service::worker().listen(address));
    manager.wait_log(Place::START, ["watching", "/current/web.toml"]);
    let place = manager.place();
    switch(&manager, "2");
    manager.wait_log(place, ["/current changed: upgrading"]);
    manager.wait_log(place, ["generation 2 committed"]);
    manager.wait_workers(2, 1);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "2");
    manager.stop();
}

#[test]
fn the_folder_that_programs_are_told_is_the_pinned_one() {
    let address = loopback();
    let tell = "['sh', '-c', 'cat /proc/$$/environ | tr \"\\\\0\" \"\\\\n\" | grep ^PWD= >told']";
    let service = Service::worker().listen(address).set("upgrade.before", tell);
    let manager = start_in_current(Starter::default(), &service);
    let pinned = manager.path("releases/1").canonicalize().expect("the folder");
    assert_eq!(named_folder(manager.wait_workers(1, 1)[0].pid), Some(pinned));
    switch(&manager, "2");
    manager.cli(["upgrade"]).assert(0, []);
    let pinned = manager.path("releases/2").canonicalize().expect("the folder");
    assert_eq!(named_folder(manager.wait_workers(2, 1)[0].pid), Some(pinned.clone()));
    let told = fs::read_to_string(pinned.join("told")).expect("what the hook was told");
    assert_eq!(told.trim_end(), format!("PWD={}", pinned.display()));
    // What the file says goes first.
    let service = service.set("service.environment", "{ PWD = '/elsewhere' }");
    fs::write(pinned.join("web.toml"), service.to_string()).expect("a file");
    manager.cli(["upgrade"]).assert(0, []);
    assert_eq!(named_folder(manager.wait_workers(3, 1)[0].pid), Some("/elsewhere".into()));
    manager.stop();
}

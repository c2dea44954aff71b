//! The program of a generation stays the file that it was, whatever comes to stand at its path.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::client::{Target, ask};
use support::manager::{Manager, Place, Starter};
use support::process;
use support::service::Service;
use support::{loopback, worker_program};

/// Puts a copy of a program at a path, as mv(1) does, and returns its inode.
fn put(program: &Path, path: &Path) -> u64 {
    let copy = path.with_extension("new");
    fs::copy(program, &copy).expect("a copy");
    fs::rename(&copy, path).expect("a rename");
    fs::metadata(path).expect("a file").ino()
}

/// The outcome in an answer, and what has become of the old code.
fn words(answer: &Value) -> [&str; 2] {
    ["outcome", "old_code"].map(|key| answer[key].as_str().unwrap_or_default())
}

/// The inode of the program that a process runs, and its path as the kernel tells it.
fn runs(pid: i32) -> (u64, String) {
    let exe = process::of(pid, "exe");
    let inode = fs::metadata(&exe).expect("its program").ino();
    (inode, fs::read_link(exe).expect("a link").display().to_string())
}

/// The workers that are ready, by their pids, once they are two of this generation.
fn two_ready(manager: &Manager, generation: u64) -> Vec<i32> {
    manager.wait_until("two workers that are ready", || {
        let status = manager.ask(r#"{"cmd":"status"}"#);
        let workers = status["status"]["workers"].as_array()?.iter();
        let ready = workers.filter(|worker| worker["state"] == "ready" && worker["generation"] == generation);
        let pids: Vec<_> = ready.filter_map(|worker| i32::try_from(worker["pid"].as_i64()?).ok()).collect();
        (pids.len() == 2).then_some(pids)
    })
}

/// Kills a worker and returns what the one that comes for it runs.
fn runs_again(manager: &Manager, generation: u64) -> (u64, String) {
    let before = two_ready(manager, generation);
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).expect("a living worker");
    let another = manager.wait_until("another worker", || {
        two_ready(manager, generation).into_iter().find(|pid| !before.contains(pid))
    });
    runs(another)
}

#[test]
fn a_binary_that_was_replaced_in_place_is_started_again_whoever_is_the_manager() {
    let starter = Starter::default().of_a_copy();
    let program = starter.path("server");
    let first = put(&worker_program(), &program);
    let address = loopback();
    let service = Service::worker().program(program.display()).workers(2).listen(address).release(1);
    let mut manager = starter.start(service.clone());
    manager.wait_ready();
    assert_eq!(runs_again(&manager, 1), (first, program.display().to_string()));

    // The first release is nowhere any more but in the processes that run it.
    put(Path::new("/bin/false"), &program);
    let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
    assert_eq!(words(&answer), ["rolled-back", "pinned"], "{answer}");
    assert_eq!(answer["note"].as_str(), None);
    let removed = format!("{} (deleted)", program.display());
    assert_eq!(runs_again(&manager, 1), (first, removed.clone()));
    manager.reexec();
    assert_eq!(runs_again(&manager, 1), (first, removed.clone()));
    // Without a descriptor from before, it is what a worker runs.
    manager.restart_after_crash();
    assert_eq!(runs_again(&manager, 1), (first, removed.clone()));
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "1");

    // One that is good takes over, and the first comes back by a rollback.
    let second = put(&worker_program(), &program);
    let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
    assert_eq!(words(&answer), ["committed", "pinned"], "{answer}");
    let generation = answer["generation"].as_u64().expect("a number");
    assert_eq!(runs_again(&manager, generation).0, second);
    let answer = manager.ask(r#"{"cmd":"rollback"}"#);
    assert_eq!(answer["outcome"].as_str(), Some("committed"), "{answer}");
    let generation = answer["generation"].as_u64().expect("a number");
    assert_eq!(runs_again(&manager, generation), (first, removed));
    manager.stop();
}

#[test]
fn a_program_that_nothing_runs_any_more_after_a_kill_of_the_manager_is_told() {
    let starter = Starter::default();
    let program = starter.path("server");
    put(&worker_program(), &program);
    let service = Service::worker().program(program.display()).workers(2).listen(loopback()).release(1);
    let mut manager = starter.start(service);
    manager.wait_ready();
    let second = put(&worker_program(), &program);
    assert_eq!(words(&manager.ask(r#"{"cmd":"upgrade"}"#)), ["committed", "pinned"]);
    two_ready(&manager, 2);
    manager.wait_log(Place::START, ["generation 1 gone"]);
    manager.restart_after_crash();
    let place = manager.place();
    let answer = manager.ask(r#"{"cmd":"rollback"}"#);
    assert_eq!(answer["outcome"], "committed", "{answer}");
    manager.wait_log(place, ["WARN", "server was replaced", "nothing runs the old one any more"]);
    assert_eq!(runs_again(&manager, 3).0, second);
    manager.stop();
}

#[test]
fn a_path_that_names_the_target_is_searched_as_the_worker_would() {
    let starter = Starter::default();
    for folder in ["1/bin", "other"] {
        fs::create_dir_all(starter.path(folder)).expect("a folder");
    }
    let ours = put(&worker_program(), &starter.path("1/bin/server"));
    put(&worker_program(), &starter.path("other/server"));
    let path = format!("'{{target}}/bin:{}:/usr/bin:/bin'", starter.path("other").display());
    let service = Service::worker().program("server").workers(2).listen(loopback()).release(1);
    let service = service.set("service.target", "'1'").set("service.environment.PATH", path);
    let mut manager = starter.start(service);
    manager.wait_ready();
    assert_eq!(runs_again(&manager, 1).0, ours);
    manager.stop();
}

/// A folder `releases/N` with a script that is the worker of that release.
fn release(starter: &Starter, number: u32) -> PathBuf {
    let folder = starter.path("releases").join(number.to_string());
    fs::create_dir_all(&folder).expect("a folder");
    let script = folder.join("server");
    let worker = worker_program();
    fs::write(&script, format!("#!/bin/sh\nexec {} worker --release {number}\n", worker.display()))
        .expect("a script");
    fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("its mode");
    folder
}

#[test]
fn a_script_that_is_reached_by_a_link_stays_in_its_release() {
    let starter = Starter::default();
    let second = release(&starter, 2);
    release(&starter, 1);
    symlink("releases/1", starter.path("current")).expect("a link");
    let address = loopback();
    let command = starter.path("current/server").display().to_string();
    let service = Service::command([command.as_str()]).workers(2).listen(address);
    let mut manager = starter.start(service);
    manager.wait_ready();
    fs::write(second.join("server"), "#!/bin/sh\nexit 3\n").expect("a bad release");
    symlink("releases/2", manager.path("next")).expect("a link");
    fs::rename(manager.path("next"), manager.path("current")).expect("a rename");
    let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
    assert_eq!(words(&answer), ["rolled-back", "pinned"], "{answer}");
    runs_again(&manager, 1);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "1");
    manager.restart_after_crash();
    runs_again(&manager, 1);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "1");
    manager.stop();
}

#[test]
fn what_was_written_over_is_told() {
    let starter = Starter::default();
    let program = starter.path("server");
    put(&worker_program(), &program);
    let service = Service::worker().program(program.display()).workers(2).listen(loopback());
    let mut manager = starter.start(service.release(1));
    manager.wait_ready();
    // The same file, by all that is held of it.
    fs::set_permissions(&program, Permissions::from_mode(0o711)).expect("its mode");
    let answer = manager.ask(r#"{"cmd":"upgrade"}"#);
    assert_eq!(words(&answer), ["committed", "replaced"], "{answer}");
    manager.stop();
}

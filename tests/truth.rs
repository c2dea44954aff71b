//! Every word about a service holds, above all where it is not well: the status and its exit status, the answers to upgrades,
//! and what a command says of a manager that stands still.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::control::Ended;
use support::loopback;
use support::manager::{Manager, Place};
use support::service::Service;

fn service() -> Service {
    Service::worker().workers(2).listen(loopback()).set("upgrade.probation", "'0s'")
}

/// A service whose workers, or the one of a slot, die soon after they were ready, and are started again after an hour.
fn dying(arguments: &[&str]) -> Service {
    let dying = service().args(["--exit", "3", "--after-ready", "50"]);
    let dying = arguments.iter().fold(dying, |service, argument| service.args([*argument]));
    dying.set("restart.initial_delay", "'1h'").set("restart.max_delay", "'1h'")
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

#[track_caller]
fn assert_once(ended: &Ended, words: &str) {
    let count = ended.stdout.matches(words).count() + ended.stderr.matches(words).count();
    assert_eq!(count, 1, "{words:?}: {ended:#?}");
}

#[test]
fn a_service_without_a_worker_is_down_in_every_word() {
    let manager = Manager::start(dying(&[]).workers(1));
    manager.wait_log(Place::START, ["slot 0", "starts again in 1 h"]);
    let down = "generation 1 is DOWN: 0 of 1 ready; last exit: status 3, 1 death";
    let status = manager.cli(["status"]);
    assert_eq!((status.status, &*status.stderr), (1, ""), "{status:#?}");
    assert!(status.stdout.starts_with(&format!("web: {down} (manager ")), "{status:#?}");
    let status = manager.cli(["status", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!((status.status, &told["full"], &told["down"]), (1, &json!(false), &json!(true)), "{told}");
    assert_eq!((&told["last_exit"], &told["deaths"]), (&json!("status 3"), &json!(1)), "{told}");
    let refused = manager.cli_upgrade("this is no service file");
    refused.assert(1, [down, "fix the cause and run `liveswap upgrade web` again"]);
    assert!(!refused.stderr.contains("still serving"), "{refused:#?}");
    manager.stop();
}

#[test]
fn the_exit_status_of_status_tells_whether_all_is_well() {
    let manager = Manager::start(service());
    let well = manager.cli(["status"]);
    assert_eq!(well.status, 0, "{well:#?}");
    assert!(well.stdout.contains("2 of 2 ready"), "{well:#?}");
    let well = manager.cli(["status", "--check"]);
    assert_eq!((well.status, &*well.stdout, &*well.stderr), (0, "", ""), "{well:#?}");
    // An upgrade that waits for its first worker takes nothing away.
    manager.rewrite(service().args(["--never-ready"]).set("ready.timeout", "'1h'"));
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("starting");
    manager.cli(["status"]).assert(0, []);
    manager.cli(["rollback"]).assert(0, []);
    Ended::of(upgrade).assert(1, ["rolled back", "generation 1 is still serving"]);
    let path = manager.path("run");
    manager.stop();
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    let none = command.args(["status", "web"]).env("RUNTIME_DIRECTORY", path).output().expect("the program");
    assert_eq!(none.status.code(), Some(4), "{none:?}");

    let manager = Manager::start(dying(&["--slot", "1"]));
    manager.wait_log(Place::START, ["slot 1", "starts again in 1 h"]);
    let status = manager.cli(["status"]);
    assert_eq!(status.status, 1, "{status:#?}");
    assert!(status.stdout.contains("not at full strength: 1 of 2 ready; last exit: status 3"), "{status:#?}");
    let status = manager.cli(["status", "--check"]);
    let line = "web: generation 1 is not at full strength: 1 of 2 ready; last exit: status 3";
    assert!(status.status == 1 && status.stdout.starts_with(line), "{status:#?}");
    assert_eq!((status.stdout.lines().count(), &*status.stderr), (1, ""), "{status:#?}");
    manager.stop();
}

#[test]
fn a_watch_ends_with_0_when_the_service_does() {
    let manager = Manager::start(service());
    for arguments in [&["status", "--watch"][..], &["status", "--watch", "--json", "web"]] {
        let mut command = manager.command([]);
        let child = command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the program");
        // It has found the manager when it has shown it.
        let mut output = child.stdout.take().expect("a pipe");
        std::io::Read::read_exact(&mut output, &mut [0]).expect("a status");
        child.stdout = Some(output);
        if arguments.len() > 2 {
            manager.stop();
            let ended = Ended::of(child);
            assert_eq!((ended.status, &*ended.stderr), (0, ""), "{ended:#?}");
            return;
        }
        kill(pid_of(&child), Signal::SIGKILL).expect("a running command");
        child.wait().expect("its end");
    }
}

#[test]
fn an_answer_has_its_reason_once() {
    let taken = TcpListener::bind((loopback().ip(), 0)).expect("a port");
    let manager = Manager::start(service().set("ready.timeout", "'30s'"));
    let failed = manager.cli_upgrade(service().args(["--exit", "3"]));
    failed.assert(1, ["rolled back", "generation 1 is still serving"]);
    assert_once(&failed, "exited with status 3 before it was ready");
    let refused = manager.cli_upgrade(service().to_string().replace("workers = 2", "workers = 'two'"));
    refused.assert(1, ["refused", "web.toml:", "^^^", "generation 1 is still serving"]);
    assert_once(&refused, "workers = 'two'");
    let address = taken.local_addr().expect("an address");
    let refused = manager.cli_upgrade(service().listen(address));
    refused.assert(1, ["refused", "Hint: `ss -ltnp", "generation 1 is still serving"]);
    assert_once(&refused, "another program listens on this address");
    manager.stop();
}

#[test]
fn a_manager_that_stops_in_the_middle_of_an_upgrade_is_given_up() {
    let manager = Manager::start(service());
    manager.rewrite(service().args(["--never-ready"]).set("ready.timeout", "'1h'"));
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("starting");
    manager.signal(Signal::SIGSTOP);
    let pid = manager.pid();
    let ended = Ended::of(upgrade);
    let status = manager.cli(["status"]);
    manager.signal(Signal::SIGCONT);
    let named = format!("the manager of `web` (pid {pid}) does not answer");
    ended.assert(1, [&named, &format!("kill -CONT {pid}")]);
    // Whose it is nobody has said.
    status.assert(1, [&format!("the manager (pid {pid}) does not answer"), "its process is stopped"]);
    manager.cli(["rollback"]).assert(0, []);
    manager.stop();
}

#[test]
fn a_manager_that_has_long_to_do_is_waited_for() {
    let manager = Manager::start(service());
    let slow = service().args(["--never-ready"]).set("ready.timeout", "'5s'");
    // Longer than nothing may be heard before it is asked whether it lives.
    manager.cli_upgrade(slow).assert(1, ["not ready after 5 s"]);
    manager.stop();
}

#[test]
fn a_worker_that_dies_of_its_drain_signal_has_stopped_cleanly() {
    let plain = |seconds| {
        let service = Service::command(["sleep", seconds]).workers(1).no_sockets();
        service.set("service.protocol", "'plain'").set("ready.settle", "'10ms'")
    };
    let manager = Manager::start(plain("1000"));
    let place = manager.place();
    manager.cli_upgrade(plain("1001")).assert(0, []);
    manager.wait_log(place, ["worker 1", "gone: ended by SIGTERM, as it was asked to"]);
    manager.stop();
}

/// What is to be told of a service that is stopped while a reload of its unit waits for an upgrade.
fn reload(manager: &Manager, of_unit: bool) -> Child {
    manager.rewrite(service().args(["--never-ready"]).set("ready.timeout", "'1h'"));
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let mut command = manager.command(["upgrade", "web"]);
    if of_unit {
        command.env("MAINPID", manager.pid().to_string());
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    watcher.wait_event("starting");
    child
}

#[test]
fn a_reload_ends_well_where_the_service_is_stopped_meanwhile() {
    for signals_client in [false, true] {
        let mut manager = Manager::start(service());
        let child = reload(&manager, true);
        if signals_client {
            kill(pid_of(&child), Signal::SIGTERM).expect("a running command");
        }
        manager.signal(Signal::SIGTERM);
        let ended = Ended::of(child);
        assert_eq!((ended.status, &*ended.stdout, &*ended.stderr), (0, "", ""), "{ended:#?}");
        assert!(manager.wait_exit().success());
    }
    // Any other command, where nothing is stopped, ends as SIGTERM has it.
    let manager = Manager::start(service());
    let mut child = reload(&manager, false);
    kill(pid_of(&child), Signal::SIGTERM).expect("a running command");
    assert_eq!(child.wait().expect("its end").signal(), Some(libc::SIGTERM));
    manager.cli(["rollback"]).assert(0, []);
    manager.stop();
}

/// The manager's log says the same, in the same journal.
#[test]
fn a_failed_reload_says_nothing_twice() {
    let manager = Manager::start(service());
    manager.rewrite(service().args(["--exit", "3"]));
    let mut command = manager.command(["upgrade", "web"]);
    command.env("MAINPID", manager.pid().to_string());
    let ended =
        Ended::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program"));
    ended.assert(1, ["upgrade of `web` rolled back", "generation 1 is still serving"]);
    assert_eq!(ended.stdout, "");
    assert!(!ended.stderr.contains("status 3"), "{ended:#?}");
    manager.stop();
}

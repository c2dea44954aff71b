//! Every word about a service holds, above all where it is not well: the status and its exit status, the answers to upgrades,
//! and what a command says of a manager that stands still.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use nix::sys::signal::Signal;
use support::control::Ended;
use support::loopback;
use support::manager::Manager;
use support::service::Service;

fn service() -> Service {
    Service::worker().workers(2).listen(loopback()).set("upgrade.probation", "'0s'")
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

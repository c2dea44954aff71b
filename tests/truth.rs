//! Every word about a service holds, above all where it is not well: the status and its exit status, the answers to upgrades,
//! and what a command says of a manager that stands still.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use support::manager::Manager;
use support::service::Service;

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

//! The first promise: no connection is refused, reset or cut by an upgrade.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use support::client::{Load, MODES, Mode, Target};
use support::log::{Step, Transition};
use support::loopback;
use support::manager::{Manager, Starter};
use support::service::Service;

const UPGRADES: u64 = 20;

/// Upgrades twenty times in a row under load in every mode.
fn upgrade_under_load(starter: Starter, service: &Service, target: Target) {
    let mut manager = starter.start(service.clone().release(1));
    manager.wait_ready();
    let load = Load::start(&[target], &MODES);
    load.wait_for_more(50);
    let place = manager.place();
    for generation in 2..=UPGRADES + 1 {
        manager.upgrade_committed(service.clone().release(generation));
        load.wait_for_generation(generation);
    }
    manager.wait_workers(UPGRADES + 1, 4);
    let report = load.stop();
    println!("{UPGRADES} upgrades: {report}");
    report.assert_spotless();
    for generation in 1..=UPGRADES {
        assert!(
            report.by_release.contains_key(&generation.to_string()),
            "release {generation} never answered"
        );
    }
    assert_replaced_before_drained(&manager, &manager.transitions(place));
    manager.stop();
}

/// Checks that no worker was told to drain before a worker of a later generation was ready in its slot.
fn assert_replaced_before_drained(manager: &Manager, transitions: &[Transition]) {
    for (place, leaving) in transitions.iter().enumerate().filter(|(_, one)| one.step == Step::Draining) {
        let replaces = |one: &Transition| {
            one.step == Step::Ready && one.slot == leaving.slot && one.generation > leaving.generation
        };
        if !transitions[..place].iter().any(replaces) {
            manager.fail(&format!("drained with no replacement: {leaving:?}"));
        }
    }
}

#[test]
fn twenty_upgrades_over_tcp_lose_no_request() {
    let address = loopback();
    let service = Service::worker().workers(4).listen(address);
    upgrade_under_load(Starter::default(), &service, Target::Tcp(address));
}

#[test]
fn twenty_upgrades_over_a_unix_socket_lose_no_request() {
    let starter = Starter::default();
    let path = starter.path("web.sock");
    let service = Service::worker().workers(4).listen(path.display());
    upgrade_under_load(starter, &service, Target::Unix(path));
}

#[test]
fn twenty_blue_green_upgrades_lose_no_request() {
    let address = loopback();
    let service = Service::worker().workers(4).listen(address).set("upgrade.strategy", "'blue-green'");
    upgrade_under_load(Starter::default(), &service, Target::Tcp(address));
}

#[test]
fn requests_wait_in_the_queue_while_a_service_is_recreated() {
    let address = loopback();
    let service = Service::worker().workers(2).listen(address).set("upgrade.strategy", "'recreate'");
    let manager = Manager::start(service.clone().release(1));
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    for generation in 2..=4 {
        load.wait_for_more(50);
        manager.upgrade_committed(service.clone().release(generation));
        load.wait_for_generation(generation);
    }
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn a_release_that_boots_for_four_seconds_slows_no_request_down() {
    let address = loopback();
    let service = Service::worker().workers(2).listen(address).set("upgrade.max_surge", 2);
    let manager = Manager::start(service.clone().release(1));
    let load = Load::start(&[Target::Tcp(address)], &[Mode::Once, Mode::Once, Mode::KeepAlive, Mode::Slow]);
    load.wait_for_more(500);
    let before = load.mark();
    let place = manager.place();
    manager.upgrade_committed(service.release(2).args(["--boot", "4000"]));
    load.wait_for_generation(2);
    manager.wait_workers(2, 2);
    let during = load.mark();
    println!("slowest before the upgrade {:?}, during it {:?}", before.slowest, during.slowest);
    assert_replaced_before_drained(&manager, &manager.transitions(place));
    load.stop().assert_spotless();
    manager.stop();
}

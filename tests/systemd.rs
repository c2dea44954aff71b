//! Our units under a real systemd, of the versions that there are to support.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::net::SocketAddr;

use support::client::{Load, MODES, Target};
use support::real_systemd::{Unit, outside};
use support::service::Service;
use support::{eventually, loopback};

const RELOADS: u64 = 20;

/// Our drop-in for a systemd that knows no `Type=notify-reload`.
const OLDER: &str = include_str!("../units/liveswap@.service.d/older-systemd.conf");

fn service(address: SocketAddr) -> Service {
    Service::worker().workers(4).listen(address)
}

/// Reloads twenty times in a row under load; `after` sees to it that each has come to its end.
fn reload_under_load(unit: &Unit, address: SocketAddr, after: impl Fn(&Unit, u64)) {
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    for generation in 2..=RELOADS + 1 {
        unit.write(&service(address).release(generation));
        unit.systemctl("reload");
        after(unit, generation);
        load.wait_for_generation(generation);
    }
    let report = load.stop();
    println!("{RELOADS} reloads: {report}");
    report.assert_spotless();
}

fn says(unit: &Unit, generation: u64) -> Option<()> {
    unit.property("StatusText").starts_with(&format!("generation {generation}: 4 of 4 ready")).then_some(())
}

fn twenty_reloads(test: &str, systemd: &str) {
    if outside(test, systemd) {
        return;
    }
    let address = loopback();
    let unit = Unit::start("web", &service(address).release(1), "");
    assert_eq!(unit.property("StatusText"), "generation 1: 4 of 4 ready");
    reload_under_load(&unit, address, |unit, generation| {
        // When `systemctl reload` has returned, the new generation serves.
        assert!(says(unit, generation).is_some(), "{}", unit.journal());
    });
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
    assert_eq!(unit.property("NRestarts"), "0");
}

#[test]
fn twenty_reloads_under_systemd_257_lose_no_request() {
    twenty_reloads("twenty_reloads_under_systemd_257_lose_no_request", "257");
}

#[test]
fn twenty_reloads_under_systemd_254_lose_no_request() {
    twenty_reloads("twenty_reloads_under_systemd_254_lose_no_request", "254");
}

#[test]
fn under_systemd_252_the_drop_in_does_it() {
    if outside("under_systemd_252_the_drop_in_does_it", "252") {
        return;
    }
    let address = loopback();
    let unit = Unit::start("web", &service(address).release(1), OLDER);
    assert_eq!((unit.property("Type").as_str(), unit.property("NotifyAccess").as_str()), ("notify", "main"));
    reload_under_load(&unit, address, |unit, generation| {
        // `systemctl reload` may return when the signal was sent.
        eventually("the new generation", || says(unit, generation));
    });
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

#[test]
fn a_unit_made_for_a_file_runs_and_reloads_it() {
    if outside("a_unit_made_for_a_file_runs_and_reloads_it", "257") {
        return;
    }
    // No character that systemd reads something into gets in the way.
    let folder = std::path::Path::new("/etc/liveswap/100% \"my\" $HOME\\n");
    std::fs::create_dir_all(folder).expect("a folder");
    let address = loopback();
    let service = |release| service(address).release(release).set("drain.timeout", "'90500ms'");
    let watched = service(1).set("watchdog.timeout", "'45s'").set("service.name", "'shop'");
    let unit = Unit::made_for("shop", folder.join("web.toml"), &watched);
    assert_eq!(unit.property("StatusText"), "generation 1: 4 of 4 ready");
    for (property, value) in [
        ("TimeoutStopUSec", "2min 1s"),
        ("WatchdogUSec", "45s"),
        ("RuntimeDirectory", "liveswap/shop"),
        ("LimitNOFILE", "1048576"),
    ] {
        assert_eq!(unit.property(property), value, "{property}");
    }
    unit.write(&service(2).set("service.name", "'shop'"));
    unit.systemctl("reload");
    assert!(says(&unit, 2).is_some(), "{}", unit.journal());
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

#[test]
fn a_release_that_was_rolled_back_shows_in_status_and_journal() {
    if outside("a_release_that_was_rolled_back_shows_in_status_and_journal", "257") {
        return;
    }
    let address = loopback();
    let unit = Unit::start("web", &service(address).release(1), "");
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    unit.write(&service(address).release(2).args(["--exit", "3"]));
    unit.try_systemctl("reload");
    let status = eventually("the outcome in the status", || {
        Some(unit.property("StatusText")).filter(|status| status.contains("rolled back"))
    });
    assert!(
        status.starts_with("generation 1: 4 of 4 ready; upgrade to generation 2 rolled back"),
        "{status}"
    );
    assert!(unit.journal().contains("exited with status 3 before it was ready"), "{}", unit.journal());
    assert_eq!(unit.property("ActiveState"), "active");
    load.stop().assert_spotless();
    unit.systemctl("stop");
}

#[test]
fn a_stop_takes_as_long_as_the_drain() {
    if outside("a_stop_takes_as_long_as_the_drain", "257") {
        return;
    }
    // systemd alone would kill after a second.
    let service = service(loopback()).args(["--ignore-term"]).set("drain.timeout", "'3s'");
    let unit = Unit::start("web", &service, "[Service]\nTimeoutStopSec=1\n");
    unit.systemctl("stop");
    let journal = unit.journal();
    assert_eq!(unit.property("Result"), "success", "{journal}");
    assert!(journal.contains("not finished after 3 s; SIGKILL"), "{journal}");
}

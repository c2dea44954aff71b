//! Our units under a real systemd, of the versions that there are to support.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use support::client::{Connection, Load, MODES, Target, ask};
use support::dice::Dice;
use support::real_systemd::{Unit, outside, processes_in};
use support::service::Service;
use support::{eventually, loopback};

const RELOADS: u64 = 20;

/// Our drop-in by which a reload is a signal to the manager.
const NOTIFY_RELOAD: &str = include_str!("../units/liveswap@.service.d/notify-reload.conf");

fn service(address: SocketAddr) -> Service {
    Service::worker().workers(4).listen(address)
}

/// Reloads twenty times in a row under load.
fn reload_under_load(unit: &Unit, address: SocketAddr) {
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    for generation in 2..=RELOADS + 1 {
        unit.write(&service(address).release(generation));
        unit.systemctl("reload");
        // When `systemctl reload` has returned, the new generation serves.
        assert!(says(unit, generation).is_some(), "{}", unit.journal());
        load.wait_for_generation(generation);
    }
    let report = load.stop();
    println!("{RELOADS} reloads: {report}");
    report.assert_spotless();
}

fn says(unit: &Unit, generation: u64) -> Option<()> {
    unit.property("StatusText").starts_with(&format!("generation {generation}: 4 of 4 ready")).then_some(())
}

fn twenty_reloads(test: &str, systemd: &str, drop_in: &str) {
    if outside(test, systemd) {
        return;
    }
    let address = loopback();
    let unit = Unit::start("web", &service(address).release(1), drop_in);
    let kind = if drop_in == NOTIFY_RELOAD { "notify-reload" } else { "notify" };
    assert_eq!((unit.property("Type").as_str(), unit.property("NotifyAccess").as_str()), (kind, "main"));
    assert_eq!(unit.property("StatusText"), "generation 1: 4 of 4 ready");
    reload_under_load(&unit, address);
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
    assert_eq!(unit.property("NRestarts"), "0");
}

#[test]
fn twenty_reloads_under_systemd_257_lose_no_request() {
    twenty_reloads("twenty_reloads_under_systemd_257_lose_no_request", "257", "");
}

#[test]
fn twenty_reloads_under_systemd_254_lose_no_request() {
    twenty_reloads("twenty_reloads_under_systemd_254_lose_no_request", "254", "");
}

#[test]
fn twenty_reloads_under_systemd_252_lose_no_request() {
    twenty_reloads("twenty_reloads_under_systemd_252_lose_no_request", "252", "");
}

#[test]
fn twenty_reloads_by_signal_under_systemd_257_lose_no_request() {
    twenty_reloads("twenty_reloads_by_signal_under_systemd_257_lose_no_request", "257", NOTIFY_RELOAD);
}

#[test]
fn twenty_reloads_by_signal_under_systemd_254_lose_no_request() {
    twenty_reloads("twenty_reloads_by_signal_under_systemd_254_lose_no_request", "254", NOTIFY_RELOAD);
}

/// Under `Type=notify` the reload is `liveswap upgrade`, whose exit status is the outcome.
fn a_rollback_is_a_failed_reload(test: &str, systemd: &str) {
    if outside(test, systemd) {
        return;
    }
    let address = loopback();
    let unit = Unit::start("web", &service(address).release(1), "");
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    for generation in 2..4 {
        unit.write(&service(address).release(2).args(["--exit", "3"]));
        let reload = unit.try_systemctl("reload");
        assert!(!reload.status.success(), "{reload:?}");
        let status = unit.property("StatusText");
        let words =
            format!("generation 1: 4 of 4 ready; upgrade to generation {generation} rolled back: worker");
        assert!(status.starts_with(&words), "{status}");
        assert_eq!(unit.property("ActiveState"), "active");
        // When it is rolled back, and when it has been.
        let journal = unit.journal();
        assert!(journal.matches("exited with status 3 before it was ready").count() >= 2, "{journal}");
    }
    unit.write(&service(address).release("good"));
    unit.systemctl("reload");
    assert!(says(&unit, 4).is_some(), "{}", unit.journal());
    load.stop().assert_spotless();
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

#[test]
fn a_rollback_is_a_failed_reload_under_systemd_257() {
    a_rollback_is_a_failed_reload("a_rollback_is_a_failed_reload_under_systemd_257", "257");
}

#[test]
fn a_rollback_is_a_failed_reload_under_systemd_252() {
    a_rollback_is_a_failed_reload("a_rollback_is_a_failed_reload_under_systemd_252", "252");
}

#[test]
fn a_manager_that_hangs_is_killed_and_loses_no_request() {
    if outside("a_manager_that_hangs_is_killed_and_loses_no_request", "257") {
        return;
    }
    let address = loopback();
    let watched = "[Service]\nWatchdogSec=1\nTimeoutAbortSec=1\n";
    let unit = Unit::start("web", &service(address).release(1), watched);
    let (workers, before) = (unit.processes(), unit.property("MainPID"));
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    unit.signal(before.parse().expect("a pid"), "STOP");
    wait_for_another(&unit, &before, 1);
    assert!(unit.journal().contains("Watchdog timeout"), "{}", unit.journal());
    assert_eq!(unit.processes(), workers, "{}", unit.journal());
    unit.write(&service(address).release(2));
    unit.systemctl("reload");
    load.wait_for_generation(2);
    load.stop().assert_spotless();
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

const REEXECS: usize = 20;

#[test]
fn twenty_reexecs_under_systemd_lose_no_request() {
    if outside("twenty_reexecs_under_systemd_lose_no_request", "257") {
        return;
    }
    let address = loopback();
    let unit = Unit::start("web", &service(address).release(1), "");
    let (workers, manager) = (unit.processes(), unit.property("MainPID"));
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    for round in 0..REEXECS {
        if round % 2 == 0 {
            let reexec = Unit::cli(&["reexec", "web"]);
            assert!(reexec.status.success(), "{reexec:?}");
        } else {
            let taken_over = || unit.journal().matches("goes on as the manager").count();
            let before = taken_over();
            unit.kill("SIGUSR2");
            eventually("the next one", || (taken_over() > before).then_some(()));
        }
        load.wait_for_more(20);
    }
    assert_eq!((unit.processes(), unit.property("MainPID")), (workers, manager));
    assert_eq!(unit.property("NRestarts"), "0");
    unit.write(&service(address).release(2));
    unit.systemctl("reload");
    load.wait_for_generation(2);
    let report = load.stop();
    println!("{REEXECS} re-execs: {report}");
    report.assert_spotless();
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

/// What a worker leaves behind in a session of its own with an empty environment, of which no other sign leads to it.
fn each_generation_has_a_cgroup(test: &str, systemd: &str, drop_in: &str) {
    if outside(test, systemd) {
        return;
    }
    let address = loopback();
    let unit = Unit::start("web", &service(address).release(1).args(["--leave-stranger"]), drop_in);
    let groups = |generation: u64| {
        let folder = unit.cgroup().expect("a cgroup").join(format!("web.generation-{generation}"));
        std::fs::read_dir(folder)
            .map_or(0, |entries| entries.flatten().filter(|one| one.path().is_dir()).count())
    };
    assert_eq!(groups(1), 4, "one a worker");
    eventually("four workers and a stranger of each", || (unit.processes().len() == 8).then_some(()));
    let status = String::from_utf8(Unit::cli(&["status", "web", "--json"]).stdout).expect("JSON");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert!(
        status["cgroup"].as_str().is_some_and(|name| name.ends_with("liveswap@web.service")),
        "{status:#}"
    );
    let used = &status["generations"][0];
    assert_eq!((&used["generation"], &used["processes"]), (&1.into(), &8.into()), "{status:#}");
    assert!(used["memory"].as_u64() > Some(1 << 20), "{status:#}");

    // One that ends takes its own with it, and no other's.
    let place = unit.cgroup().expect("a cgroup").join("web.generation-1");
    let victim = std::fs::read_dir(&place)
        .expect("it is there")
        .flatten()
        .map(|one| one.path())
        .find(|path| path.is_dir());
    let doomed = processes_in(&victim.expect("a worker's"));
    unit.signal(doomed[0], "KILL");
    eventually("another worker and stranger", || {
        let now = unit.processes();
        (now.len() == 8 && doomed.iter().all(|pid| !now.contains(pid))).then_some(())
    });
    unit.write(&service(address).release(2).args(["--ignore-term"]).set("drain.timeout", "'300ms'"));
    unit.systemctl("reload");
    eventually("the new generation alone", || (unit.processes().len() == 4).then_some(()));
    eventually("the end of the old cgroup", || (!place.exists()).then_some(()));
    assert_eq!(groups(2), 4);
    // Whoever takes over finds them again.
    let before = unit.property("MainPID");
    unit.kill("SIGKILL");
    wait_for_another(&unit, &before, 1);
    assert_eq!(groups(2), 4);
    unit.write(&service(address).release(3));
    unit.systemctl("reload");
    // They ignore the signal, and are killed at their deadline.
    eventually("the newest generation alone", || {
        (unit.processes().len() == 4 && groups(2) == 0).then_some(())
    });
    unit.systemctl("stop");
    assert_eq!(unit.processes(), [0; 0], "{}", unit.journal());
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

#[test]
fn each_generation_has_a_cgroup_under_systemd_257() {
    each_generation_has_a_cgroup("each_generation_has_a_cgroup_under_systemd_257", "257", "");
}

#[test]
fn each_generation_has_a_cgroup_under_systemd_254() {
    each_generation_has_a_cgroup("each_generation_has_a_cgroup_under_systemd_254", "254", "");
}

#[test]
fn each_generation_has_a_cgroup_under_systemd_252() {
    each_generation_has_a_cgroup("each_generation_has_a_cgroup_under_systemd_252", "252", "");
}

#[test]
fn where_the_cgroup_is_for_reading_alone_process_groups_serve() {
    if outside("where_the_cgroup_is_for_reading_alone_process_groups_serve", "257") {
        return;
    }
    // As containers have it, though it is delegated to them.
    let read_only = "[Service]\nReadOnlyPaths=/sys/fs/cgroup\n";
    let unit = Unit::start("web", &service(loopback()).release(1), read_only);
    assert!(!unit.journal().contains("has no cgroup of its own"), "{}", unit.journal());
    let status = String::from_utf8(Unit::cli(&["status", "web"]).stdout).expect("text");
    assert!(
        status.contains("no cgroup, process groups serve") && status.contains("cannot be divided"),
        "{status}"
    );
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

#[test]
fn two_managers_in_one_cgroup_do_each_other_no_harm() {
    if outside("two_managers_in_one_cgroup_do_each_other_no_harm", "257") {
        return;
    }
    let unit = Unit::start("web", &service(loopback()).release(1), "");
    let group = unit.cgroup().expect("a cgroup");
    let address = loopback();
    let file = std::path::Path::new("/etc/liveswap/other.toml");
    std::fs::write(file, Service::worker().workers(1).listen(address).release("other").to_string())
        .expect("a file");
    let script = format!(
        "echo $$ >{}/manager/cgroup.procs && exec {} run {}",
        group.display(),
        env!("CARGO_BIN_EXE_liveswap"),
        file.display()
    );
    let mut other = Command::new("sh").args(["-c", &script]).spawn().expect("another manager");
    let answers = || ask(&Target::Tcp(address)).ok().map(|answer| answer.pid);
    let worker = eventually("its worker", answers);
    // Each has a worker 1 of a generation 1.
    let own = processes_in(&group.join("web.generation-1/worker-1"));
    assert_eq!(processes_in(&group.join("other.generation-1/worker-1")), [worker]);
    unit.signal(own[0], "KILL");
    eventually("another worker in its place", || {
        let status = Unit::cli(&["status", "web"]).stdout;
        String::from_utf8_lossy(&status)
            .contains("4 of 4 ready")
            .then_some(())
            .filter(|()| !unit.processes().contains(&own[0]))
    });
    assert_eq!(answers(), Some(worker));
    unit.signal(other.id().cast_signed(), "TERM");
    assert!(other.wait().expect("its end").success());
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
fn the_units_are_sound() {
    if outside("the_units_are_sound", "257") {
        return;
    }
    let unit = Unit::start("web", &service(loopback()).release(1), "");
    let socket = include_str!("../units/liveswap@.socket");
    std::fs::write("/run/systemd/system/liveswap@.socket", socket).expect("the unit");
    for name in ["liveswap@web.service", "liveswap@web.socket"] {
        let said = Command::new("systemd-analyze").args(["verify", "--man=no", name]).output();
        assert_eq!(String::from_utf8_lossy(&said.expect("systemd-analyze").stderr), "", "{name}");
    }
    unit.systemctl("stop");
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

const KILLS: u64 = 20;

/// Waits until another manager than `before`, the so manieth, has said that all four workers are ready. What systemd knows of one that
/// was killed it still tells for a while.
fn wait_for_another(unit: &Unit, before: &str, round: u64) {
    eventually("another manager", || {
        let manager = unit.property("MainPID");
        let is_another =
            manager != before && manager != "0" && unit.property("NRestarts") == round.to_string();
        let is_active = is_another && unit.property("ActiveState") == "active";
        (is_active && unit.property("StatusText").contains(": 4 of 4 ready")).then_some(())
    });
}

/// Kills the manager at random moments, some of them amid a reload: systemd starts another, which takes over.
fn killed_again_and_again(test: &str, systemd: &str, drop_in: &str) {
    if outside(test, systemd) {
        return;
    }
    let (address, mut dice) = (loopback(), Dice(0x5EED));
    let unit = Unit::start("web", &service(address).release(1), drop_in);
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    let workers = unit.processes();
    for round in 1..=KILLS {
        let before = unit.property("MainPID");
        if round > 1 {
            unit.write(&service(address).release(round));
            unit.kill("SIGHUP");
            std::thread::sleep(Duration::from_millis(dice.below(150) as u64));
        }
        unit.kill("SIGKILL");
        wait_for_another(&unit, &before, round);
        let now = unit.processes();
        let kept = workers.iter().filter(|pid| now.contains(pid)).count();
        assert!(round > 1 || kept == workers.len(), "{workers:?} {now:?} {}", unit.journal());
        load.wait_for_more(20);
    }
    assert!(!unit.journal().contains("starts anew"), "{}", unit.journal());
    unit.write(&service(address).release("last"));
    unit.systemctl("reload");
    let told = |unit: &Unit| unit.property("StatusText").contains(": 4 of 4 ready").then_some(());
    eventually("the last release", || told(&unit).filter(|()| unit.processes().len() == 4));
    load.wait_for_more(50);
    let report = load.stop();
    println!("{KILLS} kills: {report}");
    report.assert_spotless();
    assert!(report.by_release.contains_key("last"), "{report}");
    unit.systemctl("stop");
    assert_eq!(unit.processes(), [0; 0], "{}", unit.journal());
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

#[test]
fn twenty_kills_under_systemd_257_lose_no_request() {
    killed_again_and_again("twenty_kills_under_systemd_257_lose_no_request", "257", "");
}

#[test]
fn twenty_kills_under_systemd_254_lose_no_request() {
    killed_again_and_again("twenty_kills_under_systemd_254_lose_no_request", "254", "");
}

#[test]
fn twenty_kills_under_systemd_252_lose_no_request() {
    killed_again_and_again("twenty_kills_under_systemd_252_lose_no_request", "252", "");
}

#[test]
fn sockets_outlive_manager_and_workers_in_the_store_of_systemd() {
    if outside("sockets_outlive_manager_and_workers_in_the_store_of_systemd", "257") {
        return;
    }
    let address = loopback();
    // The workers die with the manager; what is queued then waits for others.
    let unit = Unit::start("web", &service(address).release(1), "[Service]\nKillMode=mixed\nRestartSec=1\n");
    assert_eq!(unit.property("NFileDescriptorStore"), "1");
    unit.kill("SIGKILL");
    eventually("the end of all workers", || unit.processes().is_empty().then_some(()));
    let mut queued = Connection::open(&Target::Tcp(address)).expect("a connection that nobody accepts yet");
    queued.get("/", false).expect("an answer by a worker that was started later");
    eventually("the next manager", || (unit.property("ActiveState") == "active").then_some(()));
    assert!(unit.journal().contains("no worker has survived"), "{}", unit.journal());

    // One that is let go of is kept no longer.
    let other = loopback();
    unit.write(&service(other).release(2));
    unit.systemctl("reload");
    eventually("one socket in the store", || (unit.property("NFileDescriptorStore") == "1").then_some(()));
    Connection::open(&Target::Tcp(other)).expect("a connection");
    unit.systemctl("stop");
    assert_eq!(unit.property("NFileDescriptorStore"), "0");
}

fn a_restart_loses_no_connection(test: &str, systemd: &str, drop_in: &str) {
    if outside(test, systemd) {
        return;
    }
    let (address, path) = (loopback(), std::path::PathBuf::from("/run/shop/web.sock"));
    let unit = Unit::start("web", &service(address).listen(path.display()).release(1), drop_in);
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path)], &MODES);
    for _ in 0..3 {
        load.wait_for_more(50);
        unit.systemctl("restart");
    }
    load.wait_for_more(50);
    load.stop().assert_spotless();
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

#[test]
fn a_restart_under_systemd_257_loses_no_connection() {
    a_restart_loses_no_connection("a_restart_under_systemd_257_loses_no_connection", "257", "");
}

#[test]
fn a_restart_under_systemd_254_loses_no_connection() {
    a_restart_loses_no_connection("a_restart_under_systemd_254_loses_no_connection", "254", "");
}

#[test]
fn a_restart_under_systemd_252_loses_no_connection() {
    a_restart_loses_no_connection("a_restart_under_systemd_252_loses_no_connection", "252", "");
}

#[test]
fn a_damaged_state_costs_no_connection_where_systemd_keeps_the_sockets() {
    if outside("a_damaged_state_costs_no_connection_where_systemd_keeps_the_sockets", "257") {
        return;
    }
    let (address, path) = (loopback(), std::path::PathBuf::from("/run/shop/web.sock"));
    let damages = "[Service]\nExecStartPre=/bin/sh -c 'test ! -e /run/damage || echo damaged >$RUNTIME_DIRECTORY/state'\n";
    let unit = Unit::start("web", &service(address).listen(path.display()).release(1), damages);
    let file =
        || std::fs::metadata(&path).map(|file| std::os::unix::fs::MetadataExt::ino(&file)).expect("it");
    let before = (file(), unit.property("MainPID"));
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path.clone())], &MODES);
    load.wait_for_more(50);
    std::fs::write("/run/damage", "").expect("a file");
    unit.kill("SIGKILL");
    wait_for_another(&unit, &before.1, 1);
    assert!(unit.journal().contains("cannot be used, so this one starts anew"), "{}", unit.journal());
    load.wait_for_more(50);
    load.stop().assert_spotless();
    assert_eq!(file(), before.0, "the socket was bound anew");
    unit.systemctl("stop");
}

#[test]
fn sockets_of_a_socket_unit_are_taken_over_as_well() {
    if outside("sockets_of_a_socket_unit_are_taken_over_as_well", "257") {
        return;
    }
    let (address, own) = (loopback(), loopback());
    Unit::install_socket("web", &format!("ListenStream={address}\nFileDescriptorName=http\n"));
    let listed = format!("name = 'http'\nlisten = '{address}'");
    let service = Service::worker().workers(4).socket(&listed).listen(own);
    let unit = Unit::start("web", &service, "");
    let workers = unit.processes();
    let load = Load::start(&[Target::Tcp(address), Target::Tcp(own)], &MODES);
    for round in 1..=2 {
        let before = unit.property("MainPID");
        unit.kill("SIGKILL");
        wait_for_another(&unit, &before, round);
        assert_eq!(unit.processes(), workers, "{}", unit.journal());
        assert_eq!(unit.property("NFileDescriptorStore"), "1", "the other one is the activator's");
    }
    unit.write(&service.release(2));
    unit.systemctl("reload");
    load.wait_for_generation(2);
    load.stop().assert_spotless();
    unit.systemctl("stop");
}

/// systemd removes the state when a service is stopped while it waits to start it again; the workers live on.
#[test]
fn a_stop_before_a_restart_and_a_start_lose_no_request() {
    if outside("a_stop_before_a_restart_and_a_start_lose_no_request", "257") {
        return;
    }
    let (address, path) = (loopback(), std::path::PathBuf::from("/run/shop/web.sock"));
    let served = service(address).listen(path.display());
    let unit = Unit::start("web", &served.clone().release(1), "[Service]\nRestartSec=1000\n");
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path)], &MODES);
    load.wait_for_more(50);
    unit.kill("SIGKILL");
    eventually("the wait for a restart", || (unit.property("SubState") == "auto-restart").then_some(()));
    let old = unit.processes();
    unit.systemctl("stop");
    unit.write(&served.release(2));
    unit.systemctl("start");
    load.wait_for_more_of("2", 50);
    eventually("the end of the old workers", || {
        let now = unit.processes();
        (now.len() == 4 && old.iter().all(|pid| !now.contains(pid))).then_some(())
    });
    load.stop().assert_spotless();
    unit.systemctl("stop");
    assert_eq!(unit.processes(), [0; 0], "{}", unit.journal());
}

/// Whether the socket of a worker's descriptor 3 is non-blocking.
fn is_non_blocking(worker: i32) -> bool {
    let info = std::fs::read_to_string(format!("/proc/{worker}/fdinfo/3")).expect("a worker with a socket");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags").trim();
    i32::from_str_radix(flags, 8).expect("a number") & 0o4000 != 0
}

/// A worker that makes its socket non-blocking, as event loops do, and says so to nobody.
fn flag_over_a_kill(test: &str, systemd: &str, drop_in: &str) {
    if outside(test, systemd) {
        return;
    }
    let address = loopback();
    Unit::install_socket("web", &format!("ListenStream={address}\nFileDescriptorName=http\n"));
    let worker = support::worker_program().display().to_string();
    let script = "import os, sys; os.set_blocking(3, False); os.execv(sys.argv[1], sys.argv[1:])";
    for (round, line) in (1..).zip(["", "non_blocking = true"]) {
        let service = Service::command(["python3", "-c", script, &worker]);
        let service = service.socket(&format!("name = 'http'\nlisten = '{address}'\n{line}"));
        let unit = Unit::start("web", &service, drop_in);
        let worker = unit.processes()[0];
        assert!(is_non_blocking(worker));
        let before = unit.property("MainPID");
        unit.kill("SIGKILL");
        eventually("another manager", || {
            (unit.property("MainPID") != before && unit.property("ActiveState") == "active").then_some(())
        });
        assert_eq!(unit.processes(), [worker], "round {round}: {}", unit.journal());
        assert!(is_non_blocking(worker), "round {round}: {}", unit.journal());
        unit.systemctl("stop");
    }
}

#[test]
fn a_non_blocking_socket_of_a_socket_unit_stays_so_over_a_kill_under_systemd_257() {
    flag_over_a_kill(
        "a_non_blocking_socket_of_a_socket_unit_stays_so_over_a_kill_under_systemd_257",
        "257",
        "",
    );
}

#[test]
fn a_non_blocking_socket_of_a_socket_unit_stays_so_over_a_kill_under_systemd_252() {
    flag_over_a_kill(
        "a_non_blocking_socket_of_a_socket_unit_stays_so_over_a_kill_under_systemd_252",
        "252",
        "",
    );
}

#[test]
fn a_start_that_takes_too_long_ends_nobody_who_serves() {
    if outside("a_start_that_takes_too_long_ends_nobody_who_serves", "257") {
        return;
    }
    let address = loopback();
    let hangs =
        "[Service]\nExecStartPre=/bin/sh -c 'test ! -e /run/hang || exec sleep 1000'\nTimeoutStartSec=1\n";
    let unit = Unit::start("web", &service(address).release(1), hangs);
    let (workers, before) = (unit.processes(), unit.property("MainPID"));
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    std::fs::write("/run/hang", "").expect("a file");
    unit.kill("SIGKILL");
    eventually("two starts that take too long", || {
        (unit.journal().matches("operation timed out").count() >= 2).then_some(())
    });
    std::fs::remove_file("/run/hang").expect("it is there");
    eventually("another manager", || {
        (unit.property("MainPID") != before && unit.property("ActiveState") == "active").then_some(())
    });
    assert_eq!(unit.processes(), workers, "{}", unit.journal());
    load.stop().assert_spotless();
    unit.systemctl("stop");
    assert_eq!(unit.processes(), [0; 0], "{}", unit.journal());
}

#[test]
fn a_stop_that_takes_too_long_leaves_nobody_behind() {
    a_long_stop("a_stop_that_takes_too_long_leaves_nobody_behind", "");
}

#[test]
fn a_second_runtime_directory_does_not_keep_a_long_stop_from_leaving_nobody_behind() {
    let test = "a_second_runtime_directory_does_not_keep_a_long_stop_from_leaving_nobody_behind";
    a_long_stop(test, "RuntimeDirectory=other\n");
}

fn a_long_stop(test: &str, line: &str) {
    if outside(test, "257") {
        return;
    }
    let stubborn = service(loopback()).args(["--ignore-term"]).set("drain.timeout", "'2s'");
    let unit = Unit::start("web", &stubborn, &format!("[Service]\nTimeoutStopSec=1\n{line}"));
    let manager = unit.property("MainPID").parse().expect("a pid");
    unit.begin("stop");
    eventually("the drain", || unit.journal().contains("stopping").then_some(()));
    // It hangs, and its workers do not leave.
    unit.signal(manager, "STOP");
    eventually("the end", || (unit.property("ActiveState") == "failed").then_some(()));
    assert_eq!(unit.property("Result"), "timeout", "{}", unit.journal());
    eventually("nobody left", || unit.processes().is_empty().then_some(()));
}

#[test]
fn a_worker_that_shuts_down_its_stream_to_the_journal_ends_its_own_alone() {
    if outside("a_worker_that_shuts_down_its_stream_to_the_journal_ends_its_own_alone", "257") {
        return;
    }
    let script =
        "test \"$JOURNAL_STREAM\" = \"$(stat -L -c %d:%i /proc/self/fd/2)\" && echo spoken by $$ >&2";
    let service = service(loopback()).after(script).args(["--hurt-at-start", "output"]);
    let unit = Unit::start("web", &service.clone().release(1), "");
    let journalctl = |matches: &[&str]| {
        let output = Command::new("journalctl").args(["--no-pager", "-o", "cat"]).args(matches).output();
        String::from_utf8_lossy(&output.expect("journalctl").stdout).into_owned()
    };
    for pid in unit.processes() {
        // The journal knows whose line it is, though the manager has connected the stream.
        let (by, said) = (format!("_PID={pid}"), format!("spoken by {pid}"));
        let matches = [by.as_str(), "-t", "liveswap", "-u", "liveswap@web.service"];
        eventually("the worker's line", || journalctl(&matches).contains(&said).then_some(()));
    }
    unit.write(&service.release(2));
    unit.systemctl("reload");
    eventually("the log", || unit.journal().contains("generation 2 committed").then_some(()));
    unit.systemctl("stop");
    assert_eq!(unit.property("Result"), "success", "{}", unit.journal());
}

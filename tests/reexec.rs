//! The manager's own replacement costs nobody a connection, and nothing that was under way is forgotten.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::Signal;
use support::client::{Connection, Load, MODES, Target};
use support::control::Ended;
use support::loopback;
use support::manager::{Manager, Place, Starter, copy_program, text_of};
use support::service::Service;

const REEXECS: usize = 20;

fn start(service: &Service) -> Manager {
    let mut manager = Starter::default().of_a_copy().start(service);
    manager.wait_ready();
    manager
}

fn service() -> Service {
    Service::worker().workers(2).listen(loopback()).set("upgrade.probation", "'0s'")
}

impl Manager {
    fn worker_pids(&self) -> Vec<i32> {
        self.workers().iter().map(|worker| worker.pid).collect()
    }
}

#[test]
fn twenty_reexecs_in_a_row_lose_no_request() {
    let starter = Starter::default().of_a_copy();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let service = Service::worker().workers(2).listen(address).listen(path.display());
    let mut manager = starter.start(service.clone().release(1));
    manager.wait_ready();
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path.clone())], &MODES);
    load.wait_for_more(50);
    let (workers, descriptors) = (manager.wait_workers(1, 2), manager.descriptors_at_rest());
    for round in 0..REEXECS {
        let place = manager.place();
        copy_program(&manager.path("liveswap"));
        if round % 2 == 0 {
            manager.cli(["reexec"]).assert(0, []);
        } else {
            manager.signal(Signal::SIGUSR2);
        }
        manager.wait_log(place, ["goes on as the manager"]);
        load.wait_for_more(20);
        assert_eq!(manager.workers(), workers);
        manager.wait_until("as many descriptors as before", || {
            (manager.open_descriptors() == descriptors).then_some(())
        });
    }
    manager.upgrade_committed(service.release(2));
    load.wait_for_generation(2);
    manager.wait_workers(2, 2);
    let report = load.stop();
    println!("{REEXECS} re-execs: {report}");
    report.assert_spotless();
    fs::remove_file(&path).expect("the socket's path");
    manager.wait_log(Place::START, ["its path was removed", "repaired"]);
    manager.stop();
    assert!(!path.exists(), "what a manager bound is removed by whoever comes after it");
}

#[test]
fn whoever_waits_for_an_upgrade_hears_of_it_from_the_next_manager() {
    let manager = start(&service());
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let old = manager.worker_pids();
    let gate = manager.path("gate");

    // Some workers have started, none is ready.
    let wait = format!("while ! test -e {}; do sleep 0.01; done", gate.display());
    manager.rewrite(service().after(&wait).release("two"));
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("starting");
    let surged = manager.wait_until("a new worker", || {
        let all = manager.worker_pids();
        (all.len() == 3).then_some(all)
    });
    manager.reexec();
    manager.reexec();
    assert_eq!(manager.worker_pids(), surged);
    assert!(old.iter().all(|pid| surged.contains(pid)), "nobody drains before there is a replacement");
    fs::write(&gate, "").expect("the gate");
    Ended::of(upgrade).assert(0, []);
    watcher.wait_event("upgrade-ended");
    manager.wait_workers(2, 2);

    // One that fails after the re-exec.
    manager.rewrite(service().args(["--never-ready"]).set("ready.timeout", "'3s'"));
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("starting");
    manager.reexec();
    Ended::of(upgrade).assert(1, ["rolled back", "not ready after 3 s"]);
    manager.wait_workers(2, 2);
    manager.stop();
}

#[test]
fn a_probation_goes_on_in_the_next_manager() {
    let manager = start(&service());
    let gate = manager.path("gate");
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let hook = format!("['sh', '-c', 'echo $LIVESWAP_OUTCOME >> {}']", gate.display());
    manager.rewrite(service().set("upgrade.probation", "'2s'").set("upgrade.after", &hook));
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("probation");
    manager.reexec();
    Ended::of(upgrade).assert(0, []);
    manager.wait_until("the hook `after`", || (text_of(&gate) == "committed\n").then_some(()));

    manager.rewrite(service().set("upgrade.probation", "'1h'"));
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("probation");
    manager.reexec();
    let new = manager.wait_workers(3, 2);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(new[0].pid), Signal::SIGABRT).expect("a worker");
    Ended::of(upgrade).assert(1, ["rolled back", "SIGABRT"]);
    manager.wait_workers(2, 2);
    manager.cli(["rollback"]).assert(0, []);
    manager.stop();
}

#[test]
fn a_check_and_a_hook_in_flight_are_carried_over() {
    let manager = start(&service());
    let gate = manager.path("gate");
    let script = format!("while ! test -e {}; do sleep 0.01; done", gate.display());
    manager.rewrite(service().set("upgrade.before", format!("['sh', '-c', '{script}']")));
    let place = manager.place();
    let upgrade = manager.begin(["upgrade"]);
    manager.wait_log(place, ["running the hook `before`"]);
    manager.reexec();
    fs::write(&gate, "").expect("the gate");
    Ended::of(upgrade).assert(0, []);

    // The check takes a few milliseconds, the trial more: this one is overtaken by the check, or carries it over.
    manager.rewrite(service());
    manager.signal(Signal::SIGUSR2);
    let outcome = manager.upgrade(service());
    assert_eq!(outcome.generation, 3);
    manager.stop();
}

#[test]
fn a_drain_keeps_its_deadline() {
    let stubborn = service().args(["--ignore-term"]).set("drain.timeout", "'3s'");
    let manager = start(&stubborn);
    let place = manager.place();
    manager.upgrade_committed(service());
    manager.reexec();
    manager.wait_log(place, ["not finished after 3", "SIGKILL"]);
    manager.wait_workers(2, 2);
    manager.stop();
}

#[test]
fn a_service_that_stops_goes_on_stopping() {
    let address = loopback();
    let service = Service::worker().workers(2).listen(address);
    let mut manager = start(&service);
    let target = Target::Tcp(address);
    let mut held = Connection::open(&target).expect("a connection");
    held.get("/", true).expect("an answer");
    let place = manager.place();
    let stop = manager.begin(["stop"]);
    manager.wait_log(place, ["stopping: 2 workers"]);
    manager.reexec();
    drop(held);
    Ended::of(stop).assert(0, []);
    assert!(manager.wait_exit().success());
}

#[test]
fn no_signal_is_lost_in_the_gap() {
    let manager = start(&service());
    for generation in 2..=11 {
        let place = manager.place();
        manager.signal(Signal::SIGUSR2);
        // Any moment of the trial or of the step may be met.
        manager.wait_log(place, ["trying"]);
        std::thread::sleep(std::time::Duration::from_millis(generation * 2));
        let outcome = manager.upgrade(service().release(generation));
        assert_eq!(outcome.generation, generation);
        manager.wait_log(place, ["goes on as the manager"]);
    }
    manager.stop();
}

#[test]
fn a_line_of_output_is_whole_though_half_of_it_came_before() {
    let starter = Starter::default().of_a_copy();
    let gate = starter.path("gate");
    let script = format!(
        "printf 'half a ' >&2; touch {0}.half; while ! test -e {0}; do sleep 0.01; done; echo line >&2; exec sleep 1000",
        gate.display()
    );
    let service = Service::command(["sh", "-c", &script])
        .set("service.output", "'prefix'")
        .set("service.protocol", "'plain'")
        .set("ready.settle", "'50ms'")
        .set("drain.timeout", "'5s'");
    let mut manager = starter.start(service);
    manager.wait_ready();
    manager.wait_until("half a line", || manager.path("gate.half").exists().then_some(()));
    manager.reexec();
    fs::write(&gate, "").expect("the gate");
    manager.wait_log(Place::START, ["web.0 | half a line"]);
    manager.stop();
}

#[test]
fn a_program_that_cannot_take_over_leaves_the_old_manager_in_its_place() {
    let address = loopback();
    let service = Service::worker().workers(2).listen(address).set("upgrade.probation", "'0s'");
    let manager = start(&service);
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    let (workers, program) = (manager.workers(), manager.path("liveswap"));
    let refused = |words: &[&str]| {
        let place = manager.place();
        let ended = manager.cli(["reexec"]);
        ended.assert(1, []);
        assert!(words.iter().all(|word| ended.stderr.contains(word)), "{words:?}: {ended:#?}");
        manager.wait_log(place, ["the manager is not replaced, and goes on", words[0]]);
        assert_eq!(manager.workers(), workers);
    };
    let install = |text: &str, mode: u32| {
        let draft = manager.path("draft");
        fs::write(&draft, text).expect("a draft");
        fs::set_permissions(&draft, fs::Permissions::from_mode(mode)).expect("its mode");
        fs::rename(&draft, &program).expect("the program replaced");
    };
    fs::remove_file(&program).expect("the program removed");
    refused(&["No such file or directory"]);
    let place = manager.place();
    manager.signal(Signal::SIGUSR2);
    manager.wait_log(place, ["the manager is not replaced, and goes on", "No such file or directory"]);
    install("this is no program", 0o755);
    refused(&["Exec format error"]);
    install("#!/bin/sh\nexit 0\n", 0o755);
    refused(&["it is no liveswap that can take over"]);
    install("#!/bin/sh\necho 'Error: I understand version 9' >&2; exit 1\n", 0o755);
    refused(&["exited with status 1", "I understand version 9"]);
    install("#!/bin/sh\nkill -SEGV $$\n", 0o755);
    refused(&["SIGSEGV"]);
    install("#!/bin/sh\nsleep 1000\n", 0o755);
    refused(&["has not said in 10 s"]);
    install("", 0o644);
    refused(&["Permission denied"]);

    manager.reexec();
    manager.upgrade_committed(service.release(2));
    load.wait_for_generation(2);
    load.stop().assert_spotless();
    manager.stop();
}

//! The manager's death costs nobody a connection: workers serve on, and the next manager takes them up.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Connection, Load, MODES, Target, ask};
use support::control::Ended;
use support::dice::Dice;
use support::log::{Step, Verdict};
use support::manager::{Manager, Place, Starter, Worker, text_of, wait_gone};
use support::process::Process;
use support::service::Service;
use support::{is_root, loopback};

const KILLS: usize = 20;

fn service() -> Service {
    Service::worker()
        .workers(3)
        .set("restart.initial_delay", "'20ms'")
        .set("restart.max_delay", "'200ms'")
        .set("drain.timeout", "'30s'")
}

fn start(service: &Service) -> Manager {
    let mut manager = Starter::default().start(service);
    manager.wait_ready();
    manager
}

impl Manager {
    /// Kills the manager and starts another, which takes over.
    fn succeed(&mut self) -> Place {
        let place = self.restart_after_crash();
        self.wait_log(place, ["was killed", "are taken over"]);
        place
    }
}

fn pids(workers: &[Worker]) -> Vec<i32> {
    workers.iter().map(|worker| worker.pid).collect()
}

/// Kills the manager so often at random moments, most of them amid a change, under load.
fn kill_at_random(kills: usize, workers: usize, adjust: impl FnOnce(Service) -> Service) {
    let seed = std::env::var("SURVIVAL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5EED);
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let service = service().listen(address).listen(path.display()).set("upgrade.probation", "'60ms'");
    let service = adjust(service);
    let mut manager = starter.start(service.clone().release("first"));
    manager.wait_ready();
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path.clone())], &MODES);
    load.wait_for_more(50);
    for round in 0..kills {
        if round % 4 != 3 {
            let boot = dice.below(30).to_string();
            manager.rewrite(service.clone().release(round).args(["--boot", &boot]));
            let signal = if dice.below(4) == 0 { Signal::SIGUSR1 } else { Signal::SIGHUP };
            manager.signal(signal);
        }
        thread::sleep(Duration::from_millis(dice.below(250) as u64));
        manager.crash();
        thread::sleep(Duration::from_millis(dice.below(40) as u64));
        if dice.below(3) == 0 {
            // The next one is killed too, while it takes over or before.
            manager.restart();
            thread::sleep(Duration::from_millis(dice.below(30) as u64));
            manager.crash();
        }
        let place = manager.place();
        manager.restart();
        manager.wait_said(place, "READY=1", |message| message.is("READY"));
        manager.wait_status(place, &format!(": {workers} of {workers} ready"));
        load.wait_for_more(20);
    }
    let place = manager.place();
    let outcome = manager.upgrade_committed(service.release("last"));
    manager.wait_survivors(outcome.generation, workers);
    manager.wait_log(place, ["gone"]);
    load.wait_for_generation(outcome.generation);
    let report = load.stop();
    println!("{kills} kills: {report}");
    if !report.failed.is_empty() {
        manager.fail(&report.to_string());
    }
    report.assert_spotless();
    assert_eq!(manager.log.since(0).iter().filter(|line| line.contains("starts anew")).count(), 0);
    fs::remove_file(&path).expect("the socket's path");
    manager.wait_log(Place::START, ["its path was removed", "repaired"]);
    manager.stop();
    assert!(!path.exists(), "what a manager bound is removed by whoever comes after it");
}

#[test]
fn twenty_kills_at_random_moments_lose_no_request() {
    kill_at_random(KILLS, 3, |service| service);
}

#[test]
fn kills_amid_many_starts_and_drains_lose_no_request() {
    kill_at_random(8, 24, |service| service.workers(24).set("upgrade.strategy", "'blue-green'"));
}

#[test]
fn at_rest_the_same_workers_serve_on() {
    let address = loopback();
    let service = service().listen(address).set("upgrade.probation", "'0s'");
    let mut manager = start(&service.clone().release(1));
    manager.upgrade_committed(service.clone().release(2));
    let workers = manager.wait_workers(2, 3);
    let descriptors = manager.descriptors_at_rest();
    for _ in 0..3 {
        let place = manager.succeed();
        manager.wait_log(place, ["generation 2 taken over with 3 workers"]);
        assert_eq!(manager.survivors(), workers, "nobody was started, nobody was ended");
        let by = ask(&Target::Tcp(address)).expect("an answer").pid;
        assert!(pids(&workers).contains(&by));
    }
    let status = manager.cli(["status"]);
    status.assert(0, []);
    assert!(workers.iter().all(|worker| status.stdout.contains(&worker.pid.to_string())), "{status:#?}");
    let outcome = manager.upgrade_committed(service.clone().release(3));
    assert_eq!(outcome.generation, 3, "numbers go on");
    manager.wait_workers(3, 3);
    manager.wait_survivors(3, 3);
    manager.wait_until("as many descriptors as before", || {
        (manager.open_descriptors() == descriptors).then_some(())
    });
    manager.cli(["rollback"]).assert(0, []);
    // Until it has gone, one that was told to drain may yet accept.
    manager.wait_survivors(4, 3);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "2");
    manager.stop();
}

#[test]
fn an_upgrade_under_way_ends_in_favour_of_the_old_generation() {
    let address = loopback();
    let service = service().listen(address);
    let mut manager = start(&service.clone().release("old"));
    let old = pids(&manager.wait_workers(1, 3));

    // While the file is checked: a hook hangs.
    let hook = "['sh', '-c', 'sleep 1000']";
    manager.rewrite(service.clone().set("upgrade.before", hook));
    let upgrade = manager.begin(["upgrade"]);
    manager.wait_log(Place::START, ["running the hook `before`"]);
    let place = manager.succeed();
    assert_ne!(Ended::of(upgrade).status, 0, "nobody tells that it went well");
    manager.wait_log(place, ["generation 2 refused: the manager was killed"]);
    manager.wait_until("the end of the hook", || (manager.family().len() == 3).then_some(()));
    assert_eq!(pids(&manager.wait_survivors(1, 3)), old);

    // While new workers start: one is ready, the others are not.
    manager.rewrite(service.clone().release("new").args(["--boot", "0,60000,60000"]));
    let place = manager.place();
    manager.signal(Signal::SIGHUP);
    manager.wait_log(place, ["generation 1, slot 0", "draining: replaced"]);
    let place = manager.succeed();
    manager.wait_log(place, ["generation 3 rolling back: the manager was killed"]);
    manager.wait_log(place, ["generation 3 rolled back: the manager was killed"]);
    let now = pids(&manager.wait_survivors(1, 3));
    assert_eq!(now.iter().filter(|pid| old.contains(pid)).count(), 2, "the one that drained was replaced");

    // On probation: nobody of the old ones is left.
    manager.rewrite(service.clone().release("newer").set("upgrade.probation", "'1h'"));
    let place = manager.place();
    manager.signal(Signal::SIGHUP);
    manager.wait_log(place, ["generation 4 on probation"]);
    manager.wait_survivors(4, 3);
    let place = manager.succeed();
    manager.wait_log(place, ["generation 4 rolled back: the manager was killed"]);
    manager.wait_survivors(1, 3);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "old");

    let outcome = manager.upgrade_committed(service.release("newest"));
    assert_eq!(outcome.generation, 5);
    manager.stop();
}

#[test]
fn who_dies_while_nobody_watches_is_replaced() {
    let service = service().listen(loopback());
    let mut manager = start(&service);
    let workers = manager.wait_workers(1, 3);
    manager.crash();
    kill(Pid::from_raw(workers[1].pid), Signal::SIGKILL).expect("a worker");
    wait_gone(workers[1].pid);
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["2 of 3 workers are taken over"]);
    manager.wait_log(place, ["ended, and its exit status is not known"]);
    let all = manager.wait_until("another in its slot", || {
        let all = manager.survivors();
        (all.len() == 3 && all[1].pid != workers[1].pid).then_some(all)
    });
    assert_eq!([all[0].pid, all[2].pid], [workers[0].pid, workers[2].pid]);

    // One that was taken over, and dies now.
    let place = manager.place();
    kill(Pid::from_raw(workers[0].pid), Signal::SIGKILL).expect("a worker");
    manager.wait_log(place, [&format!("pid {}) ended", workers[0].pid)]);
    manager.wait_status(place, "3 of 3 ready");
    manager.wait_survivors(1, 3);
    manager.stop();
}

#[test]
fn where_nobody_has_survived_all_begins_anew() {
    let starter = Starter::default();
    let path = starter.path("web.sock");
    let service = service().listen(path.display());
    let mut manager = starter.start(&service);
    manager.wait_ready();
    let workers = manager.wait_workers(1, 3);
    manager.crash();
    for worker in &workers {
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("a worker");
        wait_gone(worker.pid);
    }
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["starts anew: no worker has survived"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    ask(&Target::Unix(path)).expect("an answer at the stale path");
    manager.stop();
}

#[test]
fn a_worker_that_was_started_in_the_last_moment_drains_as_any_other() {
    let service = service().listen(loopback());
    let mut manager = start(&service.clone().release("old"));
    let old = pids(&manager.wait_workers(1, 3));
    manager.rewrite(service.release("new").args(["--boot", "60000"]).after("(setsid sleep 1000 &)"));
    manager.signal(Signal::SIGHUP);
    let started = manager
        .wait_worker(Place::START, "a new worker", |one| one.generation == 2 && one.step == Step::Started);
    // It has a child by then that is nobody's.
    let daemon = manager.wait_until("its daemon", || manager.descendants_named("sleep").pop());
    manager.crash();
    // As if the manager had not come to write down which process it is.
    let state = manager.path("run/state");
    let text = fs::read_to_string(&state).expect("the state");
    let is_its_own =
        |line: &&str| line.starts_with("{\"Process\"") && line.contains(&format!("\"pid\":{},", started.pid));
    assert_eq!(text.lines().filter(is_its_own).count(), 1, "{text}");
    let others: String = text.split_inclusive('\n').filter(|line| !is_its_own(line)).collect();
    fs::write(&state, others).expect("the state");
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["4 of 4 workers are taken over"]);
    manager.wait_worker(place, "its drain", |one| one.pid == started.pid && one.step == Step::Draining);
    wait_gone(started.pid);
    assert_eq!(pids(&manager.wait_survivors(1, 3)), old);
    // What it has left behind is killed, once it has gone, and nobody else is: it may have served.
    manager.wait_log(place, [&format!("process {daemon} has outlived worker"), "SIGKILL"]);
    wait_gone(daemon);
    let killed = manager.log.since(0).into_iter().filter(|line| line.contains("SIGKILL"));
    assert!(
        killed.clone().all(|line| line.contains(&format!("process {daemon} "))),
        "{:?}",
        killed.collect::<Vec<_>>()
    );
    manager.stop();
}

#[test]
fn a_number_that_is_another_process_s_now_is_no_worker() {
    let service = service().workers(2).listen(loopback());
    let mut manager = start(&service);
    let workers = manager.wait_workers(1, 2);
    manager.crash();
    // Another moment of its start is what a process has that was given the number later.
    let state = manager.path("run/state");
    let text = fs::read_to_string(&state).expect("the state");
    let pid = format!("\"pid\":{},\"started\":", workers[0].pid);
    assert!(text.contains(&pid), "{text}");
    fs::write(&state, text.replace(&pid, &format!("{pid}1"))).expect("the state");
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["1 of 2 workers are taken over"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    // It is known all the same, and no slot has two.
    wait_gone(workers[0].pid);
    let all = manager.wait_survivors(1, 2);
    assert!(all.iter().any(|worker| worker.pid == workers[1].pid));
    manager.stop();
}

#[test]
fn workers_are_heard_again() {
    let watched =
        service().workers(1).listen(loopback()).args(["--ping", "--barrier", "--say", "STATUS=hello"]);
    let watched = watched.set("watchdog.timeout", "'900ms'");
    let mut manager = start(&watched);
    let workers = manager.wait_workers(1, 1);
    manager.crash();
    // Longer than the watchdog allows.
    thread::sleep(Duration::from_millis(1500));
    let place = manager.place();
    manager.restart();
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    thread::sleep(Duration::from_secs(2));
    assert_eq!(manager.survivors(), workers, "it feeds the watchdog of the next manager");
    kill(Pid::from_raw(workers[0].pid), Signal::SIGSTOP).expect("a worker");
    manager.wait_log(place, ["missed its watchdog"]);
    kill(Pid::from_raw(workers[0].pid), Signal::SIGCONT).expect("a worker");
    let place = manager.wait_log_to(place, ["worker 2", "ready"]);
    let status = manager.cli(["status"]);
    assert!(status.stdout.contains("hello"), "{status:#?}");
    manager.wait_log(Place::START, ["worker 1", "ended"]);
    let _ = place;
    manager.stop();
}

#[test]
fn a_drain_keeps_its_deadline() {
    let service = service().workers(1).listen(loopback()).set("upgrade.probation", "'0s'");
    let stubborn = service.clone().args(["--ignore-term"]).set("drain.timeout", "'4s'");
    let mut manager = start(&stubborn);
    let old = manager.wait_workers(1, 1)[0].pid;
    manager.upgrade_committed(service);
    let place = manager.succeed();
    manager.wait_log(place, ["not finished after 4", "SIGKILL"]);
    wait_gone(old);
    manager.wait_survivors(2, 1);
    manager.stop();
}

#[test]
fn a_stop_that_was_cut_short_is_over() {
    let address = loopback();
    let service = service().workers(2).listen(address);
    let mut manager = start(&service);
    let mut held = Connection::open(&Target::Tcp(address)).expect("a connection");
    held.get("/", true).expect("an answer");
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    manager.wait_log(place, ["stopping: 2 workers"]);
    let place = manager.restart_after_crash();
    manager.wait_status(place, "generation 1: 2 of 2 ready");
    drop(held);
    manager.wait_survivors(1, 2);
    manager.stop();
}

#[test]
fn a_file_that_cannot_be_used_does_not_keep_workers_from_being_taken_over() {
    let service = service().listen(loopback());
    let mut manager = start(&service);
    let workers = manager.wait_workers(1, 3);
    manager.crash();
    manager.rewrite("this is no service file");
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["web.toml", "going on with what it was"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    assert_eq!(manager.survivors(), workers);
    assert_eq!(manager.upgrade("nor is this").verdict, Verdict::Refused);
    manager.upgrade_committed(service);
    manager.stop();
}

#[test]
fn a_file_that_cannot_be_used_does_not_end_a_service_whose_workers_are_all_lost() {
    let address = loopback();
    let service = service().listen(address);
    let mut manager = start(&service.clone().release("old"));
    let workers = manager.wait_workers(1, 3);
    manager.crash();
    for worker in &workers {
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("a worker");
        wait_gone(worker.pid);
    }
    manager.rewrite("this is no service file");
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["going on with what it was"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "old");
    assert_eq!(manager.upgrade("nor is this").verdict, Verdict::Refused);
    let outcome = manager.upgrade_committed(service.release("new"));
    // One that is told to drain may still take a connection.
    manager.wait_workers(outcome.generation, 3);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "new");
    manager.stop();
}

/// Kills the manager, has its state be `change`d, and expects a start anew that loses no request.
fn anew(change: impl FnOnce(&str) -> String, words: &str) {
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let service = service().listen(address).listen(path.display());
    let mut manager = starter.start(service.clone().release("old"));
    manager.wait_ready();
    let old = manager.wait_workers(1, 3);
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path)], &MODES);
    load.wait_for_more(50);
    manager.crash();
    let state = manager.path("run/state");
    let text = fs::read_to_string(&state).expect("the state");
    fs::write(&state, change(&text)).expect("the state");
    manager.rewrite(service.clone().release("new"));
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, [words]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    for worker in old {
        wait_gone(worker.pid);
    }
    manager.wait_survivors(1, 3);
    load.wait_for_more(50);
    manager.upgrade_committed(service.release("newer"));
    let report = load.stop();
    if !report.failed.is_empty() {
        manager.fail(&report.to_string());
    }
    report.assert_spotless();
    assert!(report.by_release.contains_key("new"), "{report}");
    manager.stop();
}

#[test]
fn a_damaged_state_is_a_start_anew_with_the_sockets_of_before() {
    anew(
        |text| text[..text.len() / 3].to_owned() + "\n" + text,
        "cannot be used, so this one starts anew: line 1 is damaged",
    );
}

#[test]
fn a_state_of_another_version_is_a_start_anew_with_the_sockets_of_before() {
    anew(|text| text.replacen("{\"version\":", "{\"version\":7", 1), "not version 7");
}

#[test]
fn no_state_at_all_is_a_start_anew_with_the_sockets_of_before() {
    anew(|_| String::new(), "cannot be used, so this one starts anew");
}

#[test]
fn a_runtime_directory_that_was_emptied_is_a_start_anew_with_the_sockets_of_before() {
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let service = service().listen(address).listen(path.display());
    let mut manager = starter.start(&service);
    manager.wait_ready();
    let old = manager.wait_workers(1, 3);
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path)], &MODES);
    load.wait_for_more(50);
    manager.crash();
    // As systemd does without RuntimeDirectoryPreserve=.
    fs::remove_dir_all(manager.path("run")).expect("the runtime directory");
    fs::create_dir(manager.path("run")).expect("a new one");
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["processes of before are there"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    for worker in old {
        wait_gone(worker.pid);
    }
    manager.wait_survivors(1, 3);
    load.wait_for_more(50);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn an_end_in_order_leaves_nothing_to_look_for() {
    let mut manager = start(&service());
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
    assert_eq!(fs::read_to_string(manager.path("run/lock")).expect("the lock"), "ended\n");
    manager.restart();
    manager.wait_survivors(1, 3);
    let lock = fs::read_to_string(manager.path("run/lock")).expect("the lock");
    assert_eq!(lock, format!("{} web\n", manager.pid()));
    manager.stop();
}

#[test]
fn children_of_workers_that_hide_their_environment_go_with_their_workers() {
    let starter = Starter::default();
    let pids = starter.path("pids");
    // In the worker's process group, and with nothing that tells whose they are: as with a title over the environment.
    let hide = format!("env -i sleep 1000 >/dev/null 2>&1 & echo $! >>{}", pids.display());
    let mut manager = starter.start(service().after(&hide));
    manager.wait_ready();
    let children = || -> Vec<i32> {
        let text = fs::read_to_string(&pids).expect("pids");
        text.lines().map(|pid| pid.parse().expect("a number")).collect()
    };
    let first = children();
    assert_eq!(first.len(), 3);
    let workers = manager.wait_workers(1, 3);
    manager.crash();
    // One that has ended meanwhile, and two that end later.
    kill(Pid::from_raw(workers[0].pid), Signal::SIGKILL).expect("a worker");
    wait_gone(workers[0].pid);
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["2 of 3 workers are taken over"]);
    manager.upgrade_committed(service().after(&hide).release(2));
    for pid in first {
        wait_gone(pid);
    }
    let last = children();
    manager.stop();
    for pid in last {
        wait_gone(pid);
    }
}

#[test]
fn a_worker_whose_first_thread_has_ended_is_taken_over() {
    let address = loopback();
    let mut manager = start(&Service::worker().args(["--headless"]).listen(address));
    let answered = || ask(&Target::Tcp(address)).expect("an answer").pid;
    let worker = answered();
    // The thread that answers is not the first one, which may end a moment later.
    let is_headless = || (Process::read(worker).expect("a worker").state == 'Z').then_some(());
    manager.wait_until("the end of its first thread", is_headless);
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    manager.succeed();
    assert_eq!(answered(), worker);
    manager.upgrade_committed(Service::worker().listen(address).release(2));
    load.wait_for_generation(2);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn what_was_being_written_is_ignored() {
    let mut manager = start(&service().listen(loopback()));
    let workers = manager.wait_workers(1, 3);
    manager.crash();
    let state = manager.path("run/state");
    let text = fs::read_to_string(&state).expect("the state");
    fs::write(&state, text + "{\"Event\":[17,{\"Ex").expect("the state");
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["3 of 3 workers are taken over"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    assert_eq!(manager.survivors(), workers);
    manager.stop();
}

#[test]
fn what_another_service_has_left_is_left_alone() {
    let mut manager = start(&service().workers(1).listen(loopback()));
    let other = manager.wait_workers(1, 1)[0].pid;
    manager.crash();
    manager.rewrite(service().workers(1).listen(loopback()).set("service.name", "'shop'"));
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["a manager of service `web` was killed", "left alone"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    assert!(manager.survivors().iter().any(|worker| worker.pid == other));
    kill(Pid::from_raw(other), Signal::SIGKILL).expect("it is there");
    wait_gone(other);
    manager.stop();
}

#[test]
fn a_manager_replaces_itself_and_is_killed_and_replaces_itself() {
    let address = loopback();
    let service = service().workers(2).listen(address).set("upgrade.probation", "'0s'");
    let mut manager = start(&service);
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    let workers = manager.wait_workers(1, 2);
    for _ in 0..2 {
        manager.cli(["reexec"]).assert(0, []);
        manager.succeed();
        manager.cli(["reexec"]).assert(0, []);
        assert_eq!(manager.survivors(), workers);
    }
    manager.upgrade_committed(service.release(2));
    manager.wait_survivors(2, 2);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn workers_of_another_user_are_taken_over_too() {
    if !is_root("another user") {
        return;
    }
    let service = service()
        .workers(2)
        .listen(loopback())
        .set("service.user", "'65534'")
        .set("service.group", "'65534'");
    let starter = Starter::default();
    let program = starter.path("worker");
    fs::copy(support::worker_program(), &program).expect("a copy");
    fs::set_permissions(starter.path(""), fs::Permissions::from_mode(0o755)).expect("its mode");
    let mut manager = starter.start(service.program(program.display()));
    manager.wait_ready();
    let workers = manager.wait_workers(1, 2);
    manager.succeed();
    assert_eq!(manager.survivors(), workers);
    manager.stop();
}

#[test]
fn what_a_worker_writes_meanwhile_is_read_later() {
    let starter = Starter::default();
    let (gate, told) = (starter.path("gate"), starter.path("told"));
    // It dies of the first line that nobody could read.
    let script = format!(
        "printf 'half a '; echo before >&2; while ! test -e {0}; do sleep 0.01; done; echo line || exit 3; \
         echo meanwhile >&2 || exit 3; while read -r line <&$LIVESWAP_MESSAGE_FD; do echo $line >> {1}; done; echo end >> {1}",
        gate.display(),
        told.display()
    );
    let service = Service::command(["sh", "-c", &script])
        .set("service.protocol", "'plain'")
        .set("service.output", "'prefix'")
        .set("service.messages", true)
        .set("ready.settle", "'50ms'");
    let mut manager = starter.start(service);
    manager.wait_ready();
    let worker = manager.wait_workers(1, 1);
    manager.wait_log(Place::START, ["web.0 | before"]);
    manager.crash();
    fs::write(&gate, "").expect("the gate");
    thread::sleep(Duration::from_millis(200));
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["web.0 | meanwhile"]);
    manager.cli(["message", "hello"]).assert(0, []);
    manager.wait_until("the message", || (text_of(&told) == "hello\n").then_some(()));
    assert_eq!(manager.survivors(), worker);
    manager.stop();
}

#[test]
fn a_node_program_is_told_to_drain_by_the_next_manager() {
    if Command::new("node").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "node is needed here");
        support::skipped::add("there is no node");
        return;
    }
    let starter = Starter::default();
    let (address, program) = (loopback(), starter.path("server.js"));
    let text = format!(
        "require('http').createServer((_, answer) => answer.end(`release=${{process.argv[2]}} \
         generation=${{process.env.LIVESWAP_GENERATION}} slot=0 pid=${{process.pid}}\\n`)).listen({}, '{}')",
        address.port(),
        address.ip()
    );
    fs::write(&program, text).expect("the program");
    let service = |release: &str| {
        let program = program.to_str().expect("a path in UTF-8");
        Service::command(["node", program, release]).workers(2).set("service.protocol", "'node'")
    };
    let mut manager = starter.start(service("old"));
    manager.wait_ready();
    let target = Target::Tcp(address);
    assert_eq!(ask(&target).expect("an answer").release, "old");
    let workers = manager.wait_workers(1, 2);
    for _ in 0..2 {
        manager.succeed();
        assert_eq!(manager.survivors(), workers);
        assert_eq!(ask(&target).expect("an answer").release, "old");
    }
    let place = manager.place();
    manager.upgrade_committed(service("new"));
    manager.wait_survivors(2, 2);
    assert_eq!(ask(&target).expect("an answer").release, "new");
    assert!(manager.log.since(0).iter().all(|line| !line.contains("channel is lost")));
    manager.wait_log(place, ["worker 1", "gone: ended"]);
    manager.stop();
}

#[test]
fn workers_that_hide_their_sockets_make_way_for_others() {
    if !is_root("another user") {
        return;
    }
    let starter = Starter::default().of_a_user();
    // A program that its user may execute but not read shows nothing of itself to anybody but root.
    let program = starter.worker_program();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o111)).expect("its mode");
    let address = loopback();
    let service = service().program(program.display()).workers(2).listen(address);
    let mut manager = starter.start(&service);
    manager.wait_ready();
    let workers: Vec<i32> = manager.children().iter().map(|process| process.pid).collect();
    manager.crash();
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["starts anew", "cannot be had"]);
    manager.wait_log(
        place,
        ["the sockets of before are lost with the workers that have them, which must go first"],
    );
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    workers.into_iter().for_each(wait_gone);
    ask(&Target::Tcp(address)).expect("an answer");
    manager.stop();
}

#[test]
fn a_second_manager_names_the_first_one_though_the_runtime_directory_was_swept() {
    let manager = Manager::start(Service::worker().listen(loopback()).release(1));
    for _ in 0..2 {
        manager.sweep_runtime_directory();
        for _ in 0..2 {
            let expected = format!("pid {}", manager.pid());
            manager.cli(["run", "web.toml"]).assert(1, ["is run by another manager", &expected]);
        }
    }
    manager.stop();
}

//! How Node workers live and end: messages, drains, partings, and the end or the replacement of the manager.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::client::{Connection, Mode, Response, Target, ask_any};
use crate::support::log::Step;
use crate::support::manager::{Manager, Place, Starter, wait_gone};
use crate::support::node::{MODES, load, service};
use crate::support::service::Service;
use crate::support::{is_installed, loopback};

/// What most tests here begin with: two workers of a program at an address of their own.
fn start(text: &str) -> (Manager, Target, Service) {
    let address = loopback();
    let service = service("one.js", address);
    let manager = Starter::default().of_a_copy().programs(text).start_ready(&service);
    (manager, Target::Tcp(address), service)
}

/// A program that tells what it hears.
const HEARS: &str = "
server().listen(PORT, HOST)
process.on('message', (text) => console.error(`${release} ${slot} heard ${text}`))
";

/// Has every worker of a program hear a message.
fn assert_heard(manager: &Manager, program: &str, text: &str) {
    let place = manager.place();
    manager.cli(["message", text]).assert(0, []);
    for slot in 0..2 {
        manager.wait_log(place, [&format!("{program} {slot} heard {text}")]);
    }
}

#[test]
fn a_message_reaches_every_worker() {
    if !is_installed("node") {
        return;
    }
    let (manager, ..) = start(HEARS);
    assert_heard(&manager, "one", "good morning");
    assert_heard(&manager, "one", "with \"quotes\" and ümlauts");
    manager.upgrade_to("two.js");
    assert_heard(&manager, "two", "good night");
    manager.stop();
}

#[test]
fn whatever_a_worker_sends_harms_nothing() {
    if !is_installed("node") {
        return;
    }
    let text = "
const net = require('net')
server().listen(PORT, HOST)
process.on('message', (text) => {
  console.error(`${release} ${slot} heard ${text}`)
  if (text !== 'speak') return
  process.send('a word')
  process.send({ cmd: 'NODE_CLUSTER', act: 'queryServer', port: {} })
  process.send({ cmd: 'NODE_HANDLE_NACK' })
  process.send(null)
  process.send('x'.repeat(1_000_000))
  const socket = net.connect(PORT, HOST, () => {
    process.send('a socket', socket, (error) => console.error(`${release} ${slot} sent a socket: ${error}`))
    process.send('the last word', () => console.error(`${release} ${slot} said everything`))
  })
})
";
    let (manager, target, _) = start(text);
    let load = load(&target, &MODES);
    let (place, workers) = (manager.place(), manager.workers());
    for _ in 0..2 {
        assert_heard(&manager, "one", "speak");
    }
    for slot in 0..2 {
        manager.wait_log(place, [&format!("one {slot} sent a socket: null")]);
        manager.wait_log(place, [&format!("one {slot} said everything")]);
    }
    assert_heard(&manager, "one", "and listen");
    assert_eq!(manager.workers(), workers);
    manager.upgrade_to("two.js");
    load.wait_for_more_of("two", 20);
    load.stop().assert_spotless();
    manager.stop();
}

/// Asks a worker for what takes it two seconds, and waits until it works at it.
fn ask_slowly(manager: &Manager, target: &Target) -> Connection {
    let place = manager.place();
    let mut connection = Connection::open(target).expect("a connection");
    connection.send("/slow", false).expect("a request");
    manager.wait_log(place, ["one was asked"]);
    connection
}

#[test]
fn a_request_that_takes_two_seconds_is_answered_by_the_old_worker() {
    if !is_installed("node") {
        return;
    }
    let (manager, target, _) = start("server().listen(PORT, HOST)");
    let mut slow = ask_slowly(&manager, &target);
    manager.upgrade_to("two.js");
    assert_eq!(ask_any(&target, "/").expect("an answer"), Response::new(200, "two"));
    let (answer, _) = slow.response().expect("the old worker's answer");
    assert_eq!(answer, Response::new(200, "one"));
    slow.expect_end().expect("an orderly end");
    manager.wait_workers(2, 2);
    manager.assert_ended_well();
    manager.stop();
}

/// A client that pauses before its next request does not find its connection closed: the draining worker answers, and says that it closes.
#[test]
fn a_draining_worker_answers_on_idle_connections_before_it_closes_them() {
    if !is_installed("node") {
        return;
    }
    let text = "
server().listen(PORT, HOST)
process.on('message', () => require('cluster').worker.disconnect())
";
    let (address, one) = (loopback(), Response::new(200, "one"));
    let target = Target::Tcp(address);
    // The drain time-out bounds the linger.
    for timeout in ["60s", "1s"] {
        let service = service("one.js", address).set("service.workers", 1);
        let service = service.set("drain.timeout", format!("'{timeout}'"));
        let manager = Starter::default().programs(text).start_ready(&service);
        for request in [
            format!(r#"{{"cmd":"upgrade","value":"{}","wait":false}}"#, manager.path("one.js").display()),
            // A program that leaves by itself, as one does that wants to be replaced.
            r#"{"cmd":"message","value":"leave"}"#.to_owned(),
        ] {
            let mut connections = [(); 2].map(|()| Connection::open(&target).expect("a connection"));
            for connection in &mut connections {
                assert_eq!(connection.exchange("/", true).expect("an answer"), (one.clone(), false));
            }
            let [mut used, mut unused] = connections;
            let place = manager.place();
            manager.ask(&request);
            manager.wait_worker(place, "the old worker to drain", |worker| worker.step == Step::Draining);
            let mut is_told = false;
            while !is_told {
                let answer = used.exchange("/", true).expect("an answer");
                is_told = answer.1;
                assert_eq!(answer.0, one);
            }
            used.expect_end().expect("an orderly end");
            unused.expect_end().expect("an orderly end");
            manager.wait_worker(place, "the end of the old worker", |worker| worker.step == Step::Gone);
            manager.wait_until("another worker", || (manager.workers().len() == 1).then_some(()));
            assert_eq!(ask_any(&target, "/").expect("an answer"), one);
        }
        manager.assert_ended_well();
        manager.stop();
    }
}

/// Node keeps them as long as their clients ask, as proxies do for ever; ours are told to go.
#[test]
fn connections_that_are_always_busy_are_let_go_of() {
    if !is_installed("node") {
        return;
    }
    let text = "
http.createServer((request, response) => setTimeout(() => response.end(release), 50)).listen(PORT, HOST)
";
    let address = loopback();
    let service = service("one.js", address).set("drain.timeout", "'5s'");
    let manager = Starter::default().programs(text).start_ready(&service);
    let load = load(&Target::Tcp(address), &[Mode::KeepAlive; 8]);
    for program in ["two", "one"] {
        let place = manager.place();
        manager.upgrade_to(&format!("{program}.js"));
        for _ in 0..2 {
            manager.wait_worker(place, "the end of an old worker", |one| one.step == Step::Gone);
        }
        load.wait_for_more_of(program, 100);
    }
    let report = load.stop();
    println!("{report}");
    manager.assert_ended_well();
    report.assert_spotless();
    manager.stop();
}

#[test]
fn a_program_that_never_ends_by_itself_is_ended_after_its_last_answer() {
    if !is_installed("node") {
        return;
    }
    let (manager, target, _) = start("server().listen(PORT, HOST); setInterval(() => {}, 1000)");
    let mut slow = ask_slowly(&manager, &target);
    let begun = Instant::now();
    let place = manager.place();
    manager.upgrade_to("two.js");
    let (answer, _) = slow.response().expect("the old worker's answer");
    assert_eq!(answer, Response::new(200, "one"));
    slow.expect_end().expect("an orderly end");
    for worker in ["worker 1", "worker 2"] {
        manager.wait_log(
            place,
            [worker, "has closed its servers and does not end; it is sent its drain signal"],
        );
    }
    manager.wait_workers(2, 2);
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "long before the time-out of the drain, which is 60 s"
    );
    manager.stop();
}

#[test]
fn a_worker_that_parts_by_itself_is_replaced() {
    if !is_installed("node") {
        return;
    }
    let text = "
const cluster = require('cluster')
server().listen(PORT, HOST)
process.on('message', (text) => {
  if (text === `disconnect ${slot}`) process.disconnect()
  if (text === `leave ${slot}`) cluster.worker.disconnect()
})
";
    let (manager, target, _) = start(text);
    let replaced = |place| {
        manager
            .wait_worker(place, "another worker in slot 0", |one| one.slot == 0 && one.step == Step::Ready);
        manager.wait_workers(1, 2);
        assert_eq!(ask_any(&target, "/").expect("an answer"), Response::new(200, "one"));
    };
    // Node ends a worker that closes its channel, whatever it serves.
    let place = manager.place();
    manager.cli(["message", "disconnect 0"]).assert(0, []);
    manager.wait_log(place, ["slot 0", "exited with status 0"]);
    replaced(place);
    // Whoever leaves by the door of the cluster closes its servers before.
    let load = load(&target, &MODES);
    let place = manager.place();
    manager.cli(["message", "leave 0"]).assert(0, []);
    manager.wait_log(place, ["slot 0", "draining"]);
    replaced(place);
    load.wait_for_more(20);
    let report = load.stop();
    println!("{report}");
    report.assert_spotless();
    manager.stop();
}

#[test]
fn a_program_that_fails_says_how() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let starter = Starter::default()
        .programs("server().listen(PORT, HOST)")
        .program("missing.js", "require('./no-such-module')")
        .program("silent.js", "console.log('nothing to do')")
        .program("dies.js", "server().listen(PORT, HOST, () => setTimeout(() => process.exit(7), 300))");
    let service = service("one.js", address)
        .set("service.output", "'prefix'")
        .set("ready.timeout", "'2s'")
        .set("upgrade.probation", "'2s'");
    let manager = starter.start_ready(&service);
    let load = load(&Target::Tcp(address), &[Mode::Once]);
    for (target, reason) in [
        ("missing.js", "exited with status 1"),
        // Its channel keeps it from its end.
        ("silent.js", "not ready after 2 s"),
    ] {
        let answer = manager.ask_target(target);
        let reason = answer["reason"].as_str().is_some_and(|why| why.contains(reason));
        assert!(answer["outcome"] == "rolled-back" && reason, "{target}: {answer}");
        load.wait_for_more_of("one", 20);
    }
    let place = manager.place();
    let missing = manager.ask_target("missing.js");
    assert!(missing["evidence"]["stderr"].to_string().contains("Cannot find module './no-such-module'"));
    let refused = manager.ask_target("no-such-file.js");
    assert_eq!(refused["outcome"], "refused", "{refused}");
    manager.wait_log(place, ["no-such-file.js"]);
    load.stop().assert_spotless();
    // It serves before it dies: what it has answered until then is its own.
    let answer = manager.ask_target("dies.js");
    let reason = answer["reason"].as_str().is_some_and(|why| why.contains("exited with status 7"));
    assert!(answer["outcome"] == "rolled-back" && reason, "{answer}");
    assert_eq!(ask_any(&Target::Tcp(address), "/").expect("an answer"), Response::new(200, "one"));
    manager.stop();
}

#[test]
fn every_way_to_replace_workers_loses_no_request() {
    if !is_installed("node") {
        return;
    }
    let (manager, target, service) = start("server().listen(PORT, HOST)");
    let load = load(&target, &MODES);
    manager.cli(["respawn"]).assert(0, []);
    load.wait_for_more(50);
    manager.cli(["scale", "4"]).assert(0, []);
    manager.wait_workers(1, 4);
    manager.cli(["scale", "1"]).assert(0, []);
    manager.wait_workers(1, 1);
    load.wait_for_more(50);
    for (strategy, program) in [("blue-green", "two"), ("recreate", "one"), ("rolling", "two")] {
        manager.rewrite(service.clone().set("upgrade.strategy", format!("'{strategy}'")));
        manager.upgrade_to(&format!("{program}.js"));
        load.wait_for_more_of(program, 50);
    }
    let report = load.stop();
    println!("{report}");
    if !report.failed.is_empty() {
        manager.fail(&report.to_string());
    }
    manager.assert_ended_well();
    manager.stop();
}

#[test]
fn connections_wait_while_all_workers_are_dead() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let service = service("one.js", address).set("restart.initial_delay", "'500ms'");
    let manager = Starter::default().programs("server().listen(PORT, HOST)").start_ready(&service);
    let place = manager.place();
    for worker in manager.workers() {
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("a worker");
        wait_gone(worker.pid);
    }
    assert_eq!(ask_any(&Target::Tcp(address), "/").expect("an answer"), Response::new(200, "one"));
    manager.wait_log(place, ["was killed by SIGKILL"]);
    manager.stop();
}

#[test]
fn a_program_that_would_be_a_cluster_by_itself_is_a_worker() {
    if !is_installed("node") {
        return;
    }
    let text = "
const cluster = require('cluster')
if (cluster.isPrimary) {
  console.error('it is the primary')
  for (const _ of require('os').cpus()) cluster.fork()
} else {
  console.error(`it is worker ${cluster.worker.id}`)
  server().listen(PORT, HOST)
}
";
    let (manager, target, _) = start(text);
    manager.wait_log(Place::START, ["it is worker"]);
    let load = load(&target, &MODES);
    manager.upgrade_to("two.js");
    load.wait_for_more_of("two", 20);
    load.stop().assert_spotless();
    assert!(!manager.log.since(0).iter().any(|line| line.contains("it is the primary")));
    manager.stop();
}

#[test]
fn a_server_may_close_and_listen_again() {
    if !is_installed("node") {
        return;
    }
    let text = "
const again = server().listen(PORT, HOST)
server().on('error', (error) => console.error(`${slot} twice: ${error.code}`)).listen(PORT, HOST)
process.on('message', (text) => {
  if (text === 'close') again.close(() => console.error(`${slot} closed`))
  if (text === 'listen') again.listen(PORT, HOST, () => console.error(`${slot} listens`))
})
";
    let (manager, target, _) = start(text);
    for slot in 0..2 {
        manager.wait_log(Place::START, [&format!("{slot} twice: EADDRINUSE")]);
    }
    for _ in 0..2 {
        for (message, said) in [("close", "closed"), ("listen", "listens")] {
            let place = manager.place();
            manager.cli(["message", message]).assert(0, []);
            for slot in 0..2 {
                manager.wait_log(place, [&format!("{slot} {said}")]);
            }
        }
        assert_eq!(ask_any(&target, "/").expect("an answer"), Response::new(200, "one"));
    }
    manager.stop();
}

#[test]
fn workers_serve_on_when_the_manager_is_killed() {
    if !is_installed("node") {
        return;
    }
    let (manager, target, _) = start("server().listen(PORT, HOST)");
    let load = load(&target, &MODES);
    manager.upgrade_to("two.js");
    let workers = manager.wait_workers(2, 2);
    manager.signal(Signal::SIGKILL);
    wait_gone(manager.pid());
    load.wait_for_more_of("two", 200);
    let report = load.stop();
    println!("{report}");
    report.assert_spotless();
    let mut left: Vec<i32> = manager.family().iter().map(|process| process.pid).collect();
    left.sort_unstable();
    let mut pids: Vec<i32> = workers.iter().map(|worker| worker.pid).collect();
    pids.sort_unstable();
    assert_eq!(left, pids);
    for pid in pids {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("a worker");
        wait_gone(pid);
    }
}

#[test]
fn a_reexec_keeps_sockets_and_channels() {
    if !is_installed("node") {
        return;
    }
    let (manager, target, _) = start(HEARS);
    let load = load(&target, &MODES);
    let workers = manager.workers();
    for round in 1..=3 {
        manager.reexec();
        load.wait_for_more_of("one", 20);
        assert_eq!(manager.workers(), workers);
        assert_heard(&manager, "one", &format!("round {round}"));
    }
    // A worker that drains meanwhile is not forgotten.
    let mut slow = ask_slowly(&manager, &target);
    manager.upgrade_to("two.js");
    manager.reexec();
    let (answer, _) = slow.response().expect("the old worker's answer");
    assert_eq!(answer, Response::new(200, "one"));
    load.wait_for_more_of("two", 20);
    manager.wait_workers(2, 2);
    assert_heard(&manager, "two", "after all");
    manager.upgrade_to("one.js");
    load.wait_for_more_of("one", 20);
    let report = load.stop();
    println!("{report}");
    report.assert_spotless();
    manager.assert_ended_well();
    manager.stop();
}

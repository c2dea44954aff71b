//! `[ready] when = "accepting"`: a worker counts as ready once the kernel tells that it waits for connections.
//!
//! And under `when = "settled"`: one that binds by itself counts as ready only once it listens, where the one that it replaces does.

#[expect(dead_code, reason = "no single test uses all of the support")]
#[path = "../support/mod.rs"]
mod support;

mod servers;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::log::Verdict;
use support::manager::{Manager, Place, Starter};
use support::service::Service;
use support::{PATIENCE, eventually, is_root, loopback};

/// Builds the server of these tests in a folder, where a manager of any user reaches it.
fn build(folder: &Path) -> String {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/accepting/server.c");
    let program = folder.join("server");
    let status = Command::new("cc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
    assert!(status.expect("cc").success(), "the server does not compile");
    program.to_str().expect("UTF-8").to_owned()
}

/// Makes a FIFO, by which the server is told to go on.
fn fifo(folder: &Path) -> String {
    let path = folder.join("go");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    path.to_str().expect("UTF-8").to_owned()
}

fn accepting(program: &str, way: &str) -> Service {
    Service::command([program, way])
        .set("service.protocol", "'plain'")
        .set("ready.when", "'accepting'")
        // A worker that is taken for ready by its age alone would be so at once.
        .set("ready.settle", "'1ms'")
}

/// The status of the only worker.
fn worker(manager: &Manager) -> Value {
    manager.ask(r#"{"cmd":"status"}"#)["status"]["workers"][0].clone()
}

/// Waits until the worker has been looked at several times, and checks that it is not ready.
fn is_not_ready(manager: &Manager, way: &str) {
    let is_old = || Some(worker(manager)).filter(|worker| worker["age_ms"].as_u64() > Some(400));
    let worker = eventually("an older worker", is_old);
    assert_eq!(worker["state"], "starting", "{way}: it does not wait for connections yet: {worker}");
}

#[test]
fn a_worker_is_ready_once_it_waits_in_any_way() {
    for way in ["accept", "poll", "select", "epoll", "thread", "grandchild-epoll", "datagram"] {
        let starter = Starter::default();
        let program = build(&starter.path(""));
        let fifo = fifo(&starter.path(""));
        let address = loopback();
        let kind = if way == "datagram" { "datagram" } else { "stream" };
        let service = accepting(&program, way)
            .args([&fifo])
            .socket(&format!("listen = \"{address}\"\ntype = \"{kind}\""));
        let mut manager = starter.start(service);
        manager.wait_log(Place::START, ["it loads"]);
        is_not_ready(&manager, way);
        fs::write(&fifo, "x").expect("a word to the server");
        manager.wait_ready();
        let worker = worker(&manager);
        assert_eq!(worker["state"], "ready", "{way}: {worker}");
        assert_eq!(worker["unseen"], Value::Null, "{way}: it was seen");
        if kind == "stream" {
            assert!(answers(address), "{way}: it answers");
        }
        manager.stop();
    }
}

/// Whether a server answers there, whatever it says.
fn answers(address: SocketAddr) -> bool {
    let ask = || {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
        let mut answer = [0; 5];
        connection.read_exact(&mut answer)?;
        io::Result::Ok(answer)
    };
    ask().is_ok_and(|answer| answer == *b"HTTP/")
}

#[test]
fn a_worker_that_has_accepted_is_ready_though_it_has_no_time_to_wait() {
    let starter = Starter::default();
    let program = build(&starter.path(""));
    let address = loopback();
    let mut manager = starter.start(accepting(&program, "busy").listen(address));
    manager.wait_log(Place::START, ["it waits"]);
    is_not_ready(&manager, "busy");
    let _connection = TcpStream::connect(address).expect("a connection");
    manager.wait_ready();
    manager.stop();
}

#[test]
fn a_release_that_never_accepts_is_rolled_back_and_says_why() {
    let starter = Starter::default();
    let program = build(&starter.path(""));
    let address = loopback();
    let service = accepting(&program, "poll").listen(address).set("ready.timeout", "'2s'");
    let mut manager = starter.start(&service);
    manager.wait_ready();
    let place = manager.place();
    manager.rewrite(service.by([&program, "never"]));
    manager.signal(nix::sys::signal::Signal::SIGHUP);
    let outcome = manager.wait_outcome(place);
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    let reason = "was not waiting for connections on a socket of the file after 2 s";
    assert!(outcome.reason.contains(reason), "{outcome:?}");
    assert!(answers(address), "the old release serves");
    manager.stop();
}

#[test]
fn a_worker_that_may_not_be_looked_at_is_ready_once_it_has_settled() {
    if !is_root("another user") {
        return;
    }
    let starter = Starter::default().of_a_user();
    let program = build(&starter.path(""));
    let mut manager = starter.start(accepting(&program, "hidden").listen(loopback()));
    manager.wait_ready();
    manager.wait_log(Place::START, ["cannot be seen waiting for connections", "`settle` alone"]);
    let worker = worker(&manager);
    let why = worker["unseen"].as_str().unwrap_or_default();
    assert!(why.contains("may not be looked into: Permission denied"), "{worker}");
    let shown = manager.cli(["status"]).stdout;
    assert!(shown.contains("worker 1 counts as ready by `settle` alone: process"), "{shown}");
    manager.stop();
}

#[test]
fn root_without_the_right_to_trace_looks_with_the_rights_of_the_worker() {
    if !is_root("another user") {
        return;
    }
    let starter = Starter::default().by(&["setpriv", "--bounding-set=-sys_ptrace"]);
    let program = build(&starter.path(""));
    fs::set_permissions(starter.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("chmod");
    let service = accepting(&program, "accept").listen(loopback()).set("service.user", "'nobody'");
    let mut manager = starter.start(service);
    manager.wait_ready();
    let worker = worker(&manager);
    assert_eq!(worker["unseen"], Value::Null, "it was seen: {worker}");
    manager.stop();
}

#[test]
fn a_look_that_is_under_way_survives_a_reexec() {
    let starter = Starter::default().of_a_copy();
    let program = build(&starter.path(""));
    let fifo = fifo(&starter.path(""));
    let mut manager = starter.start(accepting(&program, "accept").args([&fifo]).listen(loopback()));
    manager.wait_log(Place::START, ["it loads"]);
    for _ in 0..5 {
        manager.reexec();
    }
    fs::write(&fifo, "x").expect("a word to the server");
    manager.wait_ready();
    manager.stop();
}

/// A service whose workers are ready once they have lived for a moment, unless more is asked of them.
fn settled<const N: usize>(command: [&str; N]) -> Service {
    Service::command(command).set("service.protocol", "'plain'").set("ready.settle", "'50ms'")
}

/// Starts a service, and waits until its worker listens by itself.
fn start_listening(starter: Starter, service: &Service, address: SocketAddr) -> Manager {
    let mut manager = starter.start(service);
    manager.wait_ready();
    eventually("the first worker listens", || answers(address).then_some(()));
    manager
}

#[test]
fn a_release_that_cannot_bind_what_the_old_one_binds_is_rolled_back() {
    let starter = Starter::default();
    let program = build(&starter.path(""));
    let address = loopback();
    let service = settled([&program, "binds", &address.to_string()]).set("ready.timeout", "'2s'");
    let manager = start_listening(starter, &service, address);
    let place = manager.place();
    manager.signal(nix::sys::signal::Signal::SIGHUP);
    let outcome = manager.wait_outcome(place);
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    let reason = format!(
        "was not listening after 2 s: the worker that it replaces listens on {address}, which is no [[socket]] of the file"
    );
    assert!(outcome.reason.contains(&reason), "{outcome:?}");
    assert!(answers(address), "the old worker serves");
    manager.stop();
}

#[test]
fn a_release_that_shares_the_address_of_the_old_one_is_committed() {
    let starter = Starter::default();
    let program = build(&starter.path(""));
    let address = loopback();
    let service = settled([&program, "shares", &address.to_string()]);
    let manager = start_listening(starter, &service, address);
    manager.upgrade_committed(&service);
    manager.stop();
}

#[test]
fn a_release_that_takes_a_socket_of_the_file_instead_is_committed() {
    let starter = Starter::default();
    let program = build(&starter.path(""));
    let address = loopback();
    let service = settled([&program, "binds", &address.to_string()]).listen(loopback());
    let manager = start_listening(starter, &service, address);
    manager.upgrade_committed(service.by([&program, "accept"]));
    manager.stop();
}

#[test]
fn a_socket_that_the_new_file_no_longer_has_is_no_address_of_the_old_worker_s_own() {
    let starter = Starter::default();
    let program = build(&starter.path(""));
    let service = settled([&program, "accept"]);
    let mut manager = starter.start(service.clone().listen(loopback()));
    manager.wait_ready();
    manager.upgrade_committed(service.by([&program, "never"]));
    manager.stop();
}

#[test]
fn under_recreate_the_old_one_has_gone_and_asks_for_nothing() {
    let starter = Starter::default();
    let program = build(&starter.path(""));
    let address = loopback();
    let service = settled([&program, "binds", &address.to_string()])
        .unset("upgrade.min_ready")
        .set("upgrade.strategy", "'recreate'");
    let mut manager = starter.start(&service);
    manager.wait_ready();
    manager.upgrade_committed(service.by([&program, "never"]));
    manager.stop();
}

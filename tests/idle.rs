//! A manager with nothing to do does nothing, and one that has done much has not grown.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Target, ask};
use support::loopback;
use support::manager::{Manager, Place};
use support::service::Service;

/// How long the manager is watched.
const WATCH: Duration = Duration::from_secs(5);

/// How long after strace has attached the watch begins: attaching interrupts the call in which the manager sleeps, and
/// the manager goes back to sleep.
const SETTLE: Duration = Duration::from_millis(500);

/// Returns the system calls of a process in the time of the watch; `None` where there is no strace to be had.
fn system_calls(pid: i32, folder: &Path) -> Option<Vec<String>> {
    let trace = folder.join("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-ttt", "-o"]).arg(&trace).args(["-p", &pid.to_string()]);
    let mut strace = match command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn() {
        Ok(strace) => strace,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => panic!("strace: {error}"),
    };
    let mut told = BufReader::new(strace.stderr.take().expect("its standard error"));
    let mut line = String::new();
    told.read_line(&mut line).expect("a line of strace");
    if !line.contains("attached") {
        told.read_to_string(&mut line).expect("the rest");
        let _ = strace.wait();
        eprintln!("strace: {line}");
        return None;
    }
    // Here time itself is what is waited for.
    thread::sleep(SETTLE);
    let from = now();
    thread::sleep(WATCH);
    let to = now();
    kill(Pid::from_raw(strace.id().cast_signed()), Signal::SIGINT).expect("strace runs");
    strace.wait().expect("strace");
    let lines = fs::read_to_string(&trace).expect("the trace");
    let in_watch = |line: &&str| {
        let stamp = line.split(' ').find_map(|word| word.contains('.').then(|| word.parse::<f64>().ok())?);
        stamp.is_none_or(|stamp| (from..to).contains(&stamp))
    };
    Some(lines.lines().filter(in_watch).map(str::to_owned).collect())
}

/// The wall clock as strace writes it.
fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock after 1970").as_secs_f64()
}

#[test]
fn with_64_workers_ready_the_manager_sleeps() {
    let service = Service::worker().workers(64).listen(loopback()).release(1);
    let manager = Manager::start(service);
    assert_eq!(manager.wait_workers(1, 64).len(), 64);
    manager.wait_status(Place::START, "64 of 64 ready");
    assert_sleeps(&manager);
    assert_eq!(manager.threads(), "1", "threads");
    println!("resident with 64 workers: {} KiB", manager.resident());
    manager.stop();
}

#[test]
fn while_its_workers_sleep_so_does_the_manager() {
    let address = loopback();
    let service = Service::worker().workers(2).listen(address).set("service.lazy", true);
    let manager = Manager::start(service.set("service.idle_timeout", "'50ms'").release(1));
    // Once before anybody came, and once after.
    assert_sleeps(&manager);
    ask(&Target::Tcp(address)).expect("an answer");
    manager.wait_log(Place::START, ["asleep: no connection is left"]);
    manager.wait_until("the end of all workers", || manager.children().is_empty().then_some(()));
    assert_sleeps(&manager);
    manager.stop();
}

/// Checks that the manager makes no system call.
fn assert_sleeps(manager: &Manager) {
    if let Some(calls) = system_calls(manager.pid(), manager.folder.path()) {
        assert!(calls.is_empty(), "system calls while idle:\n{}", calls.join("\n"));
    } else {
        assert!(std::env::var_os("CI").is_none(), "strace is needed here");
        support::skipped::add("no system call was counted, as strace cannot be used");
    }
}

#[test]
fn a_hundred_upgrades_leave_nothing_behind() {
    let service = Service::worker().workers(2).listen(loopback());
    let manager = Manager::start(service.clone().release(1));
    let upgrade = |generation: u64| {
        manager.upgrade_committed(service.clone().release(generation));
        manager.wait_workers(generation, 2);
        manager.wait_until("the old generation gone", || (manager.children().len() == 2).then_some(()));
    };
    // The first few make what is made once.
    (2..=11).for_each(upgrade);
    let (descriptors, memory) = (manager.descriptors_at_rest(), manager.anonymous());
    (12..=111).for_each(upgrade);
    let (descriptors_after, memory_after) = (manager.descriptors_at_rest(), manager.anonymous());
    println!("descriptors {descriptors} -> {descriptors_after}, memory {memory} -> {memory_after} KiB");
    assert_eq!(descriptors, descriptors_after, "descriptors");
    // A hundred times the least conceivable leak, a generation's data, would be much more than an allocator's whim.
    assert!(memory_after <= memory + 256, "memory grew from {memory} to {memory_after} KiB");
    let notify_sockets = fs::read_dir(manager.path("run")).expect("the runtime folder").count();
    assert!(notify_sockets < 10, "{notify_sockets} files in the runtime folder");
    manager.stop();
}

//! What a worker finds when it starts: the protocol of `LISTEN_FDS` to the letter, and nothing more.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::geteuid;
use support::client::{Target, ask};
use support::log::Verdict;
use support::loopback;
use support::manager::{Manager, Place, Starter, Worker};
use support::process::{Process, descriptors, of, status};
use support::service::Service;

/// A program that says nothing, opens nothing and changes nothing: it shows what the manager made.
fn sleeper() -> Service {
    Service::command(["sleep", "1000"]).set("service.protocol", "'plain'").set("ready.settle", "'50ms'")
}

fn environment(worker: &Worker) -> BTreeMap<String, String> {
    Process::read(worker.pid).expect("a living worker").environment
}

fn only_worker(manager: &Manager) -> Worker {
    let mut workers = manager.wait_workers(1, 1);
    workers.remove(0)
}

#[test]
fn the_variables_of_the_protocol_are_to_the_letter() {
    let starter = Starter::default()
        .variable("FROM_MANAGER", "manager")
        .variable("OVERRIDDEN", "manager")
        .variable("LIVESWAP_SLOT", "99")
        .variable("WATCHDOG_USEC", "1");
    fs::write(starter.path("env"), "# a comment\nFROM_FILE=file\nOVERRIDDEN=file\nQUOTED=\"two words\"\n")
        .expect("env");
    let service = Service::worker()
        .socket(&format!("name = 'one'\nlisten = '{}'", loopback()))
        .socket(&format!("name = 'two'\nlisten = '{}'", loopback()))
        .set("service.environment_files", "['env', '-no-such-file']")
        .set("service.environment", "{ OVERRIDDEN = 'key', PLACE = '{generation}/{slot}' }")
        .release(1);
    let upward = starter.path("notify").display().to_string();
    let mut manager = starter.start(service);
    manager.wait_ready();
    let worker = only_worker(&manager);
    let has = environment(&worker);
    let pid = worker.pid.to_string();
    let expected = [
        ("LISTEN_FDS", "2"),
        ("LISTEN_FDNAMES", "one:two"),
        ("LISTEN_PID", pid.as_str()),
        ("LIVESWAP_SERVICE", "web"),
        ("LIVESWAP_GENERATION", "1"),
        ("LIVESWAP_SLOT", "0"),
        ("FROM_MANAGER", "manager"),
        ("FROM_FILE", "file"),
        ("QUOTED", "two words"),
        ("OVERRIDDEN", "key"),
        ("PLACE", "1/0"),
    ];
    for (name, value) in expected {
        assert_eq!(has.get(name).map(String::as_str), Some(value), "{name}");
    }
    for name in ["WATCHDOG_USEC", "WATCHDOG_PID", "MAINPID"] {
        assert_eq!(has.get(name), None, "{name}");
    }
    let notify = has.get("NOTIFY_SOCKET").expect("a notify socket");
    assert_ne!(*notify, upward, "the manager's own notify socket");
    assert!(Path::new(notify).exists(), "{notify}");
    manager.stop();
}

#[test]
fn each_variable_is_there_once() {
    let manager =
        Manager::start(sleeper().listen(loopback()).set("service.environment", "{ PATH = '/usr/bin:/bin' }"));
    let raw = fs::read(of(only_worker(&manager).pid, "environ")).expect("the environment");
    let mut names: Vec<&[u8]> =
        raw.split(|byte| *byte == 0).filter_map(|pair| pair.split(|byte| *byte == b'=').next()).collect();
    names.retain(|name| !name.is_empty());
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    manager.stop();
}

#[test]
fn without_a_socket_no_variable_speaks_of_one() {
    let manager = Manager::start(sleeper());
    let has = environment(&only_worker(&manager));
    assert!(!has.keys().any(|name| name.starts_with("LISTEN_")), "{has:?}");
    assert!(!has.contains_key("NOTIFY_SOCKET"), "a plain worker says nothing");
    manager.stop();
}

#[test]
fn a_cleared_environment_holds_the_protocol_and_the_file_alone() {
    let service = sleeper()
        .listen(loopback())
        .set("service.clear_environment", true)
        .set("service.environment", "{ A = 'b' }");
    let mut manager = Starter::default().variable("FROM_MANAGER", "x").start(service);
    manager.wait_ready();
    let has = environment(&only_worker(&manager));
    let names: Vec<&str> = has.keys().map(String::as_str).collect();
    let protocol =
        ["A", "LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "LIVESWAP_GENERATION", "LIVESWAP_SERVICE"];
    assert!(protocol.iter().all(|name| names.contains(name)), "{names:?}");
    assert!(!names.contains(&"FROM_MANAGER") && !names.contains(&"RUNTIME_DIRECTORY"), "{names:?}");
    manager.stop();
}

#[test]
fn listen_pid_can_be_left_out_for_wrapper_scripts() {
    let manager = Manager::start(sleeper().listen(loopback()).set("service.listen_pid", false));
    let has = environment(&only_worker(&manager));
    assert_eq!(has.get("LISTEN_FDS").map(String::as_str), Some("1"));
    assert_eq!(has.get("LISTEN_PID"), None);
    manager.stop();
}

#[test]
fn a_watchdog_is_announced_to_the_worker_itself() {
    let service =
        Service::worker().listen(loopback()).release(1).args(["--ping"]).set("watchdog.timeout", "'20s'");
    let manager = Manager::start(service);
    let worker = only_worker(&manager);
    let has = environment(&worker);
    assert_eq!(has.get("WATCHDOG_USEC").map(String::as_str), Some("20000000"));
    assert_eq!(has.get("WATCHDOG_PID"), Some(&worker.pid.to_string()));
    manager.stop();
}

#[test]
fn a_worker_inherits_its_sockets_from_3_up_and_nothing_else() {
    let manager =
        Manager::start(sleeper().workers(3).listen(loopback()).listen(loopback()).listen(loopback()));
    let held = descriptors(manager.pid());
    for worker in manager.wait_workers(1, 3) {
        let has = descriptors(worker.pid);
        assert_eq!(has.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5], "{has:?}");
        assert_eq!(has[&0], "/dev/null");
        let sockets = [3, 4, 5].map(|fd| &has[&fd]);
        assert!(
            sockets.iter().all(|socket| held.values().any(|held| held == *socket)),
            "{has:?} of {held:?}"
        );
        // Blocking, as sd_listen_fds(3) users expect: O_NONBLOCK is 0o4000, and O_CLOEXEC 0o2000000.
        let info = fs::read_to_string(of(worker.pid, "fdinfo/3")).expect("fdinfo");
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
        let flags = u32::from_str_radix(flags.trim(), 8).expect("octal flags");
        assert_eq!(flags & 0o2_004_000, 0, "{flags:o}");
    }
    manager.stop();
}

#[test]
fn a_worker_leads_a_group_of_its_own_with_all_signals_at_their_defaults() {
    let manager = Manager::start(sleeper().workers(2));
    for worker in manager.wait_workers(1, 2) {
        assert_eq!(worker.group, worker.pid);
        for (key, mask) in [("SigBlk", 0), ("SigCgt", 0), ("SigIgn", 1 << 12)] {
            let has = u64::from_str_radix(&status(worker.pid, key), 16).expect("a mask");
            assert_eq!(has, mask, "{key}; SIGPIPE alone is ignored");
        }
    }
    manager.upgrade_committed(sleeper().set("service.ignore_sigpipe", false));
    let worker = manager.wait_workers(2, 1).remove(0);
    assert_eq!(u64::from_str_radix(&status(worker.pid, "SigIgn"), 16), Ok(0));
    manager.stop();
}

#[test]
fn limits_and_umask_are_as_the_file_says() {
    let service =
        sleeper().set("service.limits", "{ nofile = '512:1024', core = 0 }").set("service.umask", "'0027'");
    let manager = Manager::start(service);
    let worker = only_worker(&manager);
    let limits = fs::read_to_string(of(worker.pid, "limits")).expect("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("a limit");
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["512", "1024"]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    assert_eq!(status(worker.pid, "Umask"), "0027");
    manager.stop();
}

#[test]
fn generation_and_slot_are_filled_in_the_command() {
    let service =
        Service::worker().workers(2).args(["--say", "STATUS={generation}-{slot}"]).release("r{generation}");
    let manager = Manager::start(service.clone());
    let words: Vec<Vec<String>> =
        manager.wait_workers(1, 2).into_iter().map(|worker| worker.command).collect();
    for (slot, command) in words.iter().enumerate() {
        assert!(command.contains(&format!("STATUS=1-{slot}")), "{command:?}");
        assert!(command.contains(&"r1".to_owned()), "{command:?}");
    }
    manager.upgrade_committed(service);
    assert!(manager.wait_workers(2, 2)[1].command.contains(&"STATUS=2-1".to_owned()));
    manager.stop();
}

#[test]
fn a_worker_runs_in_its_directory_and_a_relative_program_is_looked_up_there() {
    let starter = Starter::default();
    fs::create_dir(starter.path("app")).expect("a folder");
    let program = starter.path("app/server");
    fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").expect("a program");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let service = Service::command(["./server"])
        .set("service.protocol", "'plain'")
        .set("ready.settle", "'50ms'")
        .set("service.directory", "'app'");
    let app = fs::canonicalize(starter.path("app")).expect("a path");
    let mut manager = starter.start(service);
    manager.wait_ready();
    assert_eq!(fs::read_link(of(only_worker(&manager).pid, "cwd")).expect("cwd"), app);
    manager.stop();
}

#[test]
fn a_worker_can_be_another_user() {
    if !geteuid().is_root() {
        support::skipped::add("only root can become another user");
        return;
    }
    let service = sleeper().set("service.user", "'nobody'").set("service.directory", "'/'");
    let manager = Manager::start(service);
    let worker = only_worker(&manager);
    let nobody = nix::unistd::User::from_name("nobody").expect("a look-up").expect("nobody");
    let ids = |key| status(worker.pid, key).split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(ids("Uid"), vec![nobody.uid.to_string(); 4]);
    assert_eq!(ids("Gid"), vec![nobody.gid.to_string(); 4]);
    assert!(!ids("Groups").contains(&"0".to_owned()), "root's groups are kept");
    manager.stop();
}

#[test]
fn a_step_that_fails_before_the_program_runs_is_named() {
    if !geteuid().is_root() {
        support::skipped::add("only root can become a user that may not enter the folder");
        return;
    }
    let manager = Manager::start(sleeper());
    let locked = manager.path("locked");
    fs::create_dir(&locked).expect("a folder");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).expect("chmod");
    let outcome =
        manager.upgrade(sleeper().set("service.user", "'nobody'").set("service.directory", "'locked'"));
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    assert!(outcome.reason.contains("changing directory"), "{outcome:?}");
    assert!(outcome.reason.contains("Permission denied"), "{outcome:?}");
    manager.stop();
}

#[test]
fn prefixed_output_names_the_worker_of_each_line() {
    let script =
        "echo out of $LIVESWAP_SLOT; echo err of $LIVESWAP_SLOT >&2; printf unfinished >&2; exec sleep 1000";
    let service = Service::command(["sh", "-c", script])
        .workers(2)
        .set("service.protocol", "'plain'")
        .set("service.output", "'prefix'")
        .set("ready.settle", "'50ms'");
    let manager = Manager::start(service);
    for slot in 0..2 {
        let words = format!("err of {slot}");
        let line = manager.wait_log(Place::START, [&words]);
        assert!(line.len() > words.len() && line.ends_with(&words), "{line:?}");
    }
    manager.stop();
}

#[test]
fn a_service_with_the_test_worker_answers() {
    let address = loopback();
    let manager = Manager::start(Service::worker().workers(2).listen(address).release("x"));
    let answer = ask(&Target::Tcp(address)).expect("an answer");
    assert_eq!((answer.release.as_str(), answer.generation), ("x", 1));
    assert!(manager.workers().iter().any(|worker| worker.pid == answer.pid && worker.slot == answer.slot));
    manager.stop();
}

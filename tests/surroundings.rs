//! The manager in its surroundings: under a watchdog, with a log that is JSON or that nobody reads.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use support::client::{Target, ask};
use support::manager::{Place, Starter};
use support::process::status;
use support::service::Service;
use support::{eventually, is_installed, is_root, loopback};

#[test]
fn the_watchdog_of_the_service_manager_is_fed() {
    let starter = Starter::default().variable("WATCHDOG_USEC", Duration::from_millis(100).as_micros());
    let mut manager = starter.start(Service::worker().release(1));
    manager.wait_ready();
    for _ in 0..3 {
        let place = manager.place();
        manager.wait_said(place, "WATCHDOG=1", |message| message.is("WATCHDOG"));
    }
    manager.stop();
}

#[test]
fn a_drain_that_may_take_long_asks_for_time() {
    let service = Service::worker().release(1).args(["--ignore-term"]).set("drain.timeout", "'500s'");
    let mut manager = Starter::default().start(service);
    manager.wait_ready();
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    let message =
        manager.wait_said(place, "more time", |message| message.get("EXTEND_TIMEOUT_USEC").is_some());
    let micros: u64 = message.get("EXTEND_TIMEOUT_USEC").unwrap().parse().unwrap();
    assert!(micros > 490_000_000, "{micros}");
    assert!(manager.insist(Signal::SIGTERM).success());
}

#[test]
fn the_log_can_be_json() {
    let mut manager = Starter::default().flag("--log-format=json").start(Service::worker().release(1));
    manager.wait_ready();
    let line = manager.wait_log(Place::START, ["generation 1 serving"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["message"], "generation 1 serving");
    assert_eq!(value["level"], "INFO");
    let line = manager.wait_log(Place::START, ["started"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["worker"], &value["generation"], &value["slot"]), (&1.into(), &1.into(), &0.into()));
    let line = manager.wait_log(Place::START, ["worker 1", "ready"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["event"], &value["slot"]), (&"worker-ready".into(), &0.into()));
    assert!(value["pid"].is_number() && value.get("reason").is_none(), "{line}");
    manager.rewrite(Service::worker().release(2).args(["--exit", "3"]));
    manager.signal(Signal::SIGHUP);
    let line = manager.wait_log(Place::START, ["rolled-back"]);
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&value["generation"], &value["outcome"]), (&2.into(), &"rolled-back".into()));
    assert_eq!(value["reason"], "worker 2 (slot 0) exited with status 3 before it was ready");
    manager.stop();
}

#[test]
fn nobody_has_to_read_the_log() {
    let address = loopback();
    let worker = support::worker_program();
    // More than any pipe holds, from the workers themselves.
    let script = format!(
        "head -c 1000000 /dev/zero | tr '\\0' x | fold -w 2000 >&2; exec {} --linger 10000",
        worker.display()
    );
    let service =
        || Service::command(["sh", "-c", &script]).listen(address).set("service.output", "'prefix'");
    let mut manager = Starter::default().log_unread().start(service().workers(2));
    manager.wait_ready();
    for _ in 0..3 {
        let place = manager.place();
        manager.signal(Signal::SIGHUP);
        manager.wait_said(place, "RELOADING=1", |message| message.is("RELOADING"));
        manager.wait_said(place, "READY=1", |message| message.is("READY"));
        ask(&Target::Tcp(address)).unwrap();
    }
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
}

#[test]
fn a_log_that_may_not_grow_ends_nobody_and_its_lines_are_counted() {
    let (folder, address) = (tempfile::tempdir().unwrap(), loopback());
    let path = folder.path().join("log");
    // Larger than what else the manager writes, which the limit is for as well.
    fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    // What workers say is the same there: SIGXFSZ is for them what it always was.
    let service = Service::worker().listen(address);
    let mut manager = Starter::default().writes_to(file.into()).start(service.clone().release(1));
    manager.wait_ready();
    let size = fs::metadata(&path).unwrap().len() + 20;
    manager.limit(&format!("--fsize={size}:"));
    for release in 2..5 {
        let ended = manager.cli_upgrade(service.clone().release(release));
        assert_eq!(ended.status, 0, "{ended:?}");
        assert_eq!(ask(&Target::Tcp(address)).unwrap().release, release.to_string());
    }
    for worker in manager.workers() {
        let ignored = u64::from_str_radix(&status(worker.pid, "SigIgn"), 16).expect("a mask");
        assert_eq!(ignored & (1 << (Signal::SIGXFSZ as i32 - 1)), 0, "a worker ignores SIGXFSZ");
    }
    assert!(!fs::read_to_string(&path).unwrap().contains("generation 4 committed"), "there was no limit");
    manager.limit("--fsize=unlimited:");
    assert_eq!(manager.cli_upgrade(service.clone().release(5)).status, 0);
    eventually("the number of the lines that were lost", || {
        let log = fs::read_to_string(&path).unwrap();
        let line = log.lines().find(|line| line.contains("lines of standard error were lost"))?;
        let count = line.split(" lines of").next()?.rsplit(' ').next()?.parse::<u32>().ok()?;
        (count > 5).then_some(())
    });
    manager.stop();
}

#[test]
fn a_parent_that_ignores_sigchld_changes_nothing() {
    let starter = Starter::default().by(&["env", "--ignore-signal=CHLD", "--block-signal=ALRM"]);
    let mut manager = starter.start(Service::worker().listen(loopback()).release(1));
    manager.wait_ready();
    let worker = manager.wait_workers(1, 1)[0].pid;
    let ignored = u64::from_str_radix(&status(worker, "SigIgn"), 16).expect("a mask");
    assert_eq!(ignored & (1 << (Signal::SIGCHLD as i32 - 1)), 0, "the worker ignores SIGCHLD");
    kill(Pid::from_raw(worker), Signal::SIGKILL).unwrap();
    manager.wait_log(Place::START, ["worker 1", "SIGKILL"]);
    manager.wait_log(Place::START, ["worker 2", "ready"]);
    let checked = Command::new("env")
        .args(["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_liveswap"), "check"])
        .arg(manager.path("web.toml"))
        .output()
        .unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    manager.stop();
}

#[test]
fn root_of_a_user_namespace_may_be_named() {
    // Groups that the namespace does not know are there, and nobody may set any.
    let namespace = ["unshare", "--user", "--map-root-user"];
    let namespace = if geteuid().is_root() {
        [&["setpriv", "--groups", "0,12345"][..], &namespace].concat()
    } else {
        namespace.to_vec()
    };
    if !Command::new(namespace[0]).args(&namespace[1..]).arg("true").status().is_ok_and(|how| how.success()) {
        support::skipped::add("no user namespaces here");
        return;
    }
    let service = Service::worker().listen(loopback()).set("service.user", "'root'");
    let mut manager = Starter::default().by(&namespace).start(service);
    manager.wait_ready();
    manager.stop();
}

#[test]
fn the_limit_of_inotify_is_named_and_not_that_of_open_files() {
    // Of all limits of user namespaces this one is the namespace's own (namespaces(7), /proc/sys/user); the sysctl that the warning
    // names is the whole machine's.
    let script = "echo 0 >/proc/sys/user/max_inotify_instances || exit 77; exec \"$@\"";
    let namespace = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh"];
    if !Command::new(namespace[0]).args(&namespace[1..]).arg("true").status().is_ok_and(|how| how.success()) {
        support::skipped::add("no user namespaces here, or they have no limit of their own");
        return;
    }
    let starter = Starter::default();
    let service = Service::worker().listen(starter.path("web.sock").display());
    let mut manager = starter.by(&namespace).start(service);
    manager.wait_log(Place::START, ["would go unnoticed", "fs.inotify.max_user_instances"]);
    manager.wait_ready();
    manager.stop();
}

#[test]
fn output_without_end_holds_nobody_up() {
    // What leaves its worker's group goes on writing to the worker's pipe after the worker has gone.
    let service = Service::command(["sh", "-c", "setsid yes & sleep 0.2; exit 7"]).no_sockets();
    let service = service
        .set("service.output", "'prefix'")
        .set("service.protocol", "'plain'")
        .set("ready.settle", "'50ms'");
    let mut manager = Starter::default().start(service.workers(1));
    manager.wait_log(Place::START, ["exited with status 7"]);
    manager.wait_log(Place::START, ["worker 2", "exited with status 7"]);
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
}

#[test]
fn modes_are_as_promised_whatever_the_umask() {
    let users: &[bool] = if is_root("to be another user") { &[false, true] } else { &[false] };
    for (umask, is_user) in ["0000", "0027", "0077", "0177", "0777"]
        .iter()
        .flat_map(|mask| users.iter().map(move |user| (mask, *user)))
    {
        let script = format!("umask {umask}; exec \"$0\" \"$@\"");
        let starter = Starter::default().by(&["sh", "-c", &script]);
        let starter = if is_user { starter.of_a_user() } else { starter };
        let (open, closed) = (starter.path("made/above/open.sock"), starter.path("made/above/closed.sock"));
        let service = Service::worker()
            .program(starter.worker_program().display())
            .listen(open.display())
            .socket(&format!("listen = {:?}\nmode = '0640'", closed.display()));
        let mut manager = starter.start(service);
        manager.wait_ready();
        for (path, mode) in [
            ("made", 0o755),
            ("made/above", 0o755),
            ("made/above/open.sock", 0o666),
            ("made/above/closed.sock", 0o640),
            ("run/control.sock", 0o600),
            ("run/lock", 0o600),
            ("run/notify", 0o711),
            ("run/state", 0o600),
            ("run/token", 0o600),
        ] {
            let found = fs::metadata(manager.path(path)).expect(path).permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{path} with umask {umask}: {found:o}, not {mode:o}");
        }
        manager.stop();
    }
}

#[test]
fn a_notify_socket_that_a_worker_cannot_reach_is_named() {
    if !is_root("to be another user") {
        return;
    }
    let starter = Starter::default();
    let folder = starter.path("");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("chmod");
    let service =
        Service::command(["sleep", "1000"]).set("service.user", "'daemon'").set("service.directory", "'/'");
    let mut manager = starter.start(service);
    let folder = folder.display().to_string();
    let closed = format!("{} is closed to them (mode 0700, user 0)", folder.trim_end_matches('/'));
    manager.wait_log(Place::START, ["cannot reach their notify sockets", &closed]);
    manager.signal(Signal::SIGQUIT);
    manager.wait_exit();
}

#[test]
fn a_kernel_that_lacks_what_has_no_substitute_is_named() {
    if !is_installed("strace") {
        return;
    }
    let without = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=pidfd_open:error=ENOSYS"];
    let mut manager = Starter::default().by(&without).start(Service::worker().listen(loopback()));
    manager.wait_log(Place::START, ["has no pidfd_open(2)", "Linux 5.3 or newer is needed"]);
    assert_eq!(manager.wait_exit().code(), Some(1));
}

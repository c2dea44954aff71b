//! The manager in a container, as PID 1 of a PID namespace: it reaps, passes signals on, and its end is no silent one.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Connection, Load, MODES, Target, ask};
use support::dice::Dice;
use support::log::Verdict;
use support::manager::{Manager, Place, Starter, text_of};
use support::process::{Process, descriptors};
use support::service::Service;
use support::stranger::{NOBODY, as_user, nested, notify, notify_sockets_below, open_to_all, while_stopped};
use support::{is_root, loopback};

const KILLS: usize = 20;

/// Executes what its arguments end with as the first process of a PID namespace.
const CONTAINER: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];

/// Processes of a PID namespace of their own. All pids are as they are outside of it.
struct Container {
    manager: Manager,
    init: i32,
}

impl Container {
    /// Starts a service as the first process of a container; `None` where that cannot be had.
    fn start(starter: Starter, service: &Service) -> Option<Self> {
        Self::start_by(starter, &[], service)
    }

    /// Starts it by another program, which executes what its arguments end with.
    fn start_by(starter: Starter, program: &[&str], service: &Service) -> Option<Self> {
        if !is_root("a PID namespace") {
            return None;
        }
        let starter = starter.by(&[&CONTAINER, program].concat());
        let manager = starter.start(service);
        let outside = manager.pid();
        let init = manager.wait_until("PID 1", || only(Process::all(), |one| one.parent == outside)).pid;
        Some(Self { manager, init })
    }

    fn wait_ready(mut self) -> Self {
        self.manager.wait_ready();
        self
    }

    /// The manager, where there is one at this moment.
    fn child(&self) -> Option<i32> {
        let is_manager =
            |one: &Process| one.parent == self.init && one.command.get(1).is_some_and(|word| word == "run");
        only(Process::all(), is_manager).map(|one| one.pid)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.init), signal).expect("PID 1 is there");
    }

    /// Kills the manager and returns what it was.
    fn crash(&self) -> i32 {
        let pid = self.manager.wait_until("a manager", || self.child());
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the manager is there");
        pid
    }

    /// Waits for the next manager to have taken over.
    fn wait_taken_over(&self, place: Place) {
        self.manager.wait_log(place, ["the manager was killed by SIGKILL"]);
        self.manager.wait_log(place, ["are taken over"]);
        self.manager.wait_said(place, "READY=1", |message| message.is("READY"));
    }

    fn workers(&self) -> Vec<i32> {
        self.manager.survivors().iter().map(|worker| worker.pid).collect()
    }

    fn upgrade(&self, service: &Service) {
        let place = self.manager.place();
        self.manager.rewrite(service);
        self.signal(Signal::SIGHUP);
        let outcome = self.manager.wait_outcome(place);
        assert_eq!(outcome.verdict, Verdict::Committed, "{outcome:?}");
    }

    /// Ends it as a container engine does, and returns what that sees.
    fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.manager.wait_exit()
    }
}

fn only(processes: Vec<Process>, wanted: impl Fn(&Process) -> bool) -> Option<Process> {
    processes.into_iter().find(|one| wanted(one))
}

fn service() -> Service {
    Service::worker().workers(2).set("restart.initial_delay", "'20ms'").set("drain.timeout", "'30s'")
}

#[test]
fn strangers_are_reaped_whoever_they_are_left_to() {
    let starter = Starter::default();
    let orphan = starter.path("orphan");
    let worker = support::worker_program();
    let script = format!("(sh -c 'echo born >{}' &) ; exec {}", orphan.display(), worker.display());
    let service = Service::command(["sh", "-c", &script]).workers(2).no_sockets();
    let Some(container) = Container::start(starter, &service) else { return };
    let container = container.wait_ready();
    container.manager.wait_until("an orphan", || (text_of(&orphan) == "born\n").then_some(()));
    let manager = container.child().expect("a manager");
    container.manager.wait_until("that only the workers are left to it", || {
        let children = Process::all().into_iter().filter(|one| one.parent == manager);
        let (zombies, living): (Vec<_>, Vec<_>) = children.partition(Process::is_zombie);
        (zombies.is_empty() && living.len() == 2).then_some(())
    });
    // One that comes from outside, as `docker exec` brings it, is left to PID 1.
    let target = container.init.to_string();
    let enter = ["nsenter", "--target", &target, "--pid", "--mount", "sh", "-c", "(sleep 0.01 &)"];
    let entered = Command::new(enter[0]).args(&enter[1..]).status().expect("nsenter");
    assert!(entered.success());
    container.manager.wait_until("that PID 1 has the manager alone", || {
        let children = Process::all().into_iter().filter(|one| one.parent == container.init);
        children.map(|one| one.pid).eq([manager]).then_some(())
    });
    assert!(container.stop().success());
}

#[test]
fn twenty_kills_of_the_manager_lose_no_request() {
    let mut dice = Dice(0x00C0_FFEE);
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let service = service().listen(address).listen(path.display());
    let Some(container) = Container::start(starter, &service.clone().release("first")) else { return };
    let container = container.wait_ready();
    let load = Load::start(&[Target::Tcp(address), Target::Unix(path)], &MODES);
    load.wait_for_more(50);
    for round in 0..KILLS {
        let place = container.manager.place();
        if round % 2 == 0 {
            let before = container.manager.wait_until("that nobody drains any more", || {
                Some(container.workers()).filter(|workers| workers.len() == 2)
            });
            container.crash();
            container.wait_taken_over(place);
            assert_eq!(container.workers(), before, "nobody was started, nobody was ended");
        } else {
            // Amid an upgrade.
            container.manager.rewrite(service.clone().release(round).args(["--boot", "20"]));
            container.signal(Signal::SIGHUP);
            thread::sleep(Duration::from_millis(dice.below(80) as u64));
            container.crash();
            container.wait_taken_over(place);
            container.manager.wait_status(place, ": 2 of 2 ready");
        }
        load.wait_for_more(20);
    }
    container.upgrade(&service.release("last"));
    load.wait_for_more_of("last", 20);
    let report = load.stop();
    println!("{KILLS} kills in a container: {report}");
    report.assert_spotless();
    assert!(container.stop().success());
}

#[test]
fn the_sockets_outlive_everybody_but_pid_1() {
    let address = loopback();
    let service = service().listen(address).release(1);
    let Some(container) = Container::start(Starter::default(), &service) else { return };
    let container = container.wait_ready();
    let (place, workers) = (container.manager.place(), container.workers());
    container.crash();
    for pid in &workers {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("a worker");
    }
    // Reaped: until then one of its threads may yet accept a connection, and take that with it.
    container.manager.wait_until("the end of all workers", || {
        workers.iter().all(|pid| Process::read(*pid).is_none()).then_some(())
    });
    // There is nobody who could accept it, and it is not refused.
    let mut connection = Connection::open(&Target::Tcp(address)).expect("a queue");
    if let Err(error) = connection.get("/", false) {
        container.manager.fail(&error.to_string());
    }
    container.manager.wait_status(place, ": 2 of 2 ready");
    assert!(container.stop().success());
}

#[test]
fn what_is_signalled_while_there_is_no_manager_is_obeyed_by_the_next() {
    let service = service().release(1);
    let Some(container) = Container::start(Starter::default(), &service) else { return };
    let container = container.wait_ready();
    let place = container.manager.place();
    container.crash();
    container.manager.wait_log(place, ["the manager was killed by SIGKILL"]);
    assert!(container.stop().success());
}

#[test]
fn a_stop_outlives_the_manager_that_was_to_bring_it_about() {
    let starter = Starter::default();
    let service = service().release(1).args(["--ignore-term"]).set("drain.timeout", "'2s'");
    let Some(container) = Container::start(starter, &service) else { return };
    let mut container = container.wait_ready();
    let place = container.manager.place();
    container.signal(Signal::SIGTERM);
    container.manager.wait_said(place, "STOPPING=1", |message| message.is("STOPPING"));
    container.crash();
    container.manager.wait_log(place, ["are taken over"]);
    assert!(container.manager.wait_exit().success());
}

#[test]
fn a_stop_refuses_new_clients_though_pid_1_had_kept_the_sockets() {
    let address = loopback();
    let Some(container) = Container::start(Starter::default(), &service().listen(address).release(1)) else {
        return;
    };
    let container = container.wait_ready();
    let mut held = Connection::open(&Target::Tcp(address)).expect("a connection");
    held.get("/", true).expect("an answer");
    container.signal(Signal::SIGTERM);
    container.manager.wait_until("refused clients", || {
        let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
        std::net::TcpStream::connect(address).is_err_and(refused).then_some(())
    });
    held.get("/", false).expect("an answer by the worker that drains");
    assert!(container.stop().success());
}

#[test]
fn a_program_that_cannot_be_executed_is_no_end_of_those_who_serve() {
    let address = loopback();
    let starter = Starter::default().of_a_copy();
    let Some(container) = Container::start(starter, &service().listen(address).release(1)) else { return };
    let container = container.wait_ready();
    let (place, workers) = (container.manager.place(), container.workers());
    replace(&container.manager.path("liveswap"), "no program at all");
    container.crash();
    container.manager.wait_log(place, ["the manager could not be started"]);
    container.wait_taken_over(place);
    assert_eq!(container.workers(), workers);
    assert!(ask(&Target::Tcp(address)).is_ok());
    assert!(container.stop().success());
}

#[test]
fn where_no_manager_comes_up_a_stop_is_still_a_drain() {
    let starter = Starter::default().of_a_copy();
    let Some(container) = Container::start(starter, &service().release(1)) else { return };
    let container = container.wait_ready();
    let place = container.manager.place();
    replace(&container.manager.path("liveswap"), "#!/bin/sh\nkill -9 $$\n");
    container.crash();
    container.manager.wait_log(place, ["the manager was killed by SIGKILL"]);
    let status = container.stop();
    assert_eq!(status.code(), Some(128 + 9));
}

/// Puts another program in the place of one.
fn replace(program: &Path, text: &str) {
    let draft = program.with_extension("new");
    fs::write(&draft, text).expect("a program");
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).expect("permissions");
    fs::rename(&draft, program).expect("its place");
}

#[test]
fn a_second_signal_kills_at_once() {
    let service = service().release(1).args(["--ignore-term"]).set("drain.timeout", "'500s'");
    let Some(container) = Container::start(Starter::default(), &service) else { return };
    let mut container = container.wait_ready();
    let place = container.manager.place();
    container.signal(Signal::SIGINT);
    container.manager.wait_said(place, "STOPPING=1", |message| message.is("STOPPING"));
    let init = Pid::from_raw(container.init);
    let status = container.manager.insist_by(|| {
        let _ = kill(init, Signal::SIGTERM);
    });
    assert!(status.success());
}

#[test]
fn each_signal_reaches_the_manager() {
    let service = service().listen(loopback()).release(1);
    let Some(container) = Container::start(Starter::default(), &service) else { return };
    let container = container.wait_ready();
    let manager = container.child();
    let wait_workers = |count: usize| {
        container
            .manager
            .wait_until("another number of workers", || (container.workers().len() == count).then_some(()));
    };
    container.signal(Signal::SIGTTIN);
    wait_workers(3);
    container.signal(Signal::SIGTTOU);
    wait_workers(2);
    let place = container.manager.place();
    let kept = descriptors(container.init).len();
    container.signal(Signal::SIGUSR2);
    container.manager.wait_log(place, ["goes on as the manager"]);
    assert_eq!(container.child(), manager, "the same process");
    container.manager.cli(["status"]).assert(0, []);
    assert_eq!(descriptors(container.init).len(), kept, "each socket is stored once");
    let (place, before) = (container.manager.place(), container.workers());
    container.signal(Signal::SIGUSR1);
    container.manager.wait_status(place, ": 2 of 2 ready");
    container.manager.wait_until("fresh workers", || {
        let now = container.workers();
        (now.len() == 2 && now.iter().all(|pid| !before.contains(pid))).then_some(())
    });
    assert!(container.stop().success());
}

#[test]
fn a_bad_service_file_ends_the_container_with_its_own_status() {
    let service = service().set("service.wrokers", "3");
    if !is_root("a PID namespace") {
        return;
    }
    let mut manager = Starter::default().by(&CONTAINER).start(service);
    manager.wait_log(Place::START, ["wrokers"]);
    assert_eq!(manager.wait_exit().code(), Some(3));
}

#[test]
fn a_manager_that_crashes_before_it_ever_serves_is_given_up_aloud() {
    let service = service().args(["--never-ready"]).set("ready.timeout", "'500s'");
    let Some(mut container) = Container::start(Starter::default(), &service) else { return };
    for time in 1..=5 {
        container.manager.wait_until("the end of another manager", || {
            // It may be a child of the one before that is on its way out.
            container.child().map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
            let ends = container.manager.log.since(0);
            (ends.iter().filter(|line| line.contains("the manager was killed")).count() >= time).then_some(())
        });
    }
    container.manager.wait_log(Place::START, ["was killed by SIGKILL 5 times before it served; giving up"]);
    assert_eq!(container.manager.wait_exit().code(), Some(128 + 9));
}

#[test]
fn the_control_socket_answers_from_outside() {
    let service = service().release(1);
    let Some(container) = Container::start(Starter::default(), &service) else { return };
    let container = container.wait_ready();
    container.manager.cli(["status"]).assert(0, []);
    let place = container.manager.place();
    container.crash();
    container.wait_taken_over(place);
    container.manager.cli(["upgrade"]).assert(0, []);
    container.manager.cli(["stop"]).assert(0, []);
    let mut container = container;
    assert!(container.manager.wait_exit().success());
}

#[test]
fn the_lines_of_workers_stay_as_they_are_and_tell_why_one_failed() {
    let Some(container) = Container::start(Starter::default(), &service()) else { return };
    let container = container.wait_ready();
    let script = r#"printf '{"level":"error"}\n' >&2; exit 1"#;
    let upgrade = container.manager.cli_upgrade(Service::command(["sh", "-c", script]));
    upgrade.assert(1, [r#"stderr: {"level":"error"}"#]);
    let line = container.manager.wait_log(Place::START, [r#"{"level":"error"}"#]);
    assert_eq!(line, r#"{"level":"error"}"#);
    container.manager.cli(["stop"]).assert(0, []);
    let mut container = container;
    assert!(container.manager.wait_exit().success());
}

#[test]
fn sockets_of_an_activator_go_through_to_every_manager() {
    let address = loopback();
    let listener = TcpListener::bind(address).expect("a socket");
    let starter = Starter::default().inherit([listener.into()], "http");
    let service = service().listen(address).release(1);
    let enter = ["sh", "-c", "LISTEN_PID=$$ exec \"$@\"", "sh"];
    let Some(container) = Container::start_by(starter, &enter, &service) else { return };
    let container = container.wait_ready();
    for _ in 0..2 {
        let place = container.manager.place();
        container.crash();
        container.wait_taken_over(place);
        container.upgrade(&service);
        assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "1");
    }
    assert!(container.stop().success());
}

#[test]
fn a_descriptor_inside_a_descriptor_does_not_hold_pid_1_up() {
    let starter = Starter::default();
    open_to_all(&starter.path(""));
    let Some(container) = Container::start(starter, &service().listen(loopback())) else { return };
    let container = container.wait_ready();
    // Its own socket is the one beside the folder of those of the workers.
    let below = container.manager.path("run");
    let is_its_own = |path: &String| !path.contains("/notify/") && !path.contains("control");
    let path = notify_sockets_below(&below).into_iter().find(is_its_own).expect("the socket of PID 1");
    let mut peers = Vec::new();
    while_stopped(container.init, || {
        for _ in 0..5 {
            let far = nested(&mut peers);
            as_user(NOBODY, || notify(&path, b"X_A=1", &[far.as_raw_fd()]));
        }
    });
    let place = container.manager.place();
    container.crash();
    container.wait_taken_over(place);
    container.manager.assert_never_held_up();
    assert!(container.stop().success());
}

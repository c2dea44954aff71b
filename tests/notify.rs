//! What workers say to the manager, and what anyone may throw at it.
//!
//! The notify socket of a worker tells by its address which worker a message is about, and believes the user of the manager, who
//! the tests are. So they speak for the worker where that is simpler; `tests/trust.rs` tries to as somebody else.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::io::{self, IoSlice, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::unistd::Pid;
use support::client::{Target, ask};
use support::log::{Step, Verdict};
use support::loopback;
use support::manager::{Manager, Place, Starter, Worker};
use support::process::Process;
use support::service::Service;

/// A mouth that speaks for a worker.
struct Mouth {
    socket: UnixDatagram,
    path: String,
}

impl Mouth {
    fn of(worker: &Worker) -> Self {
        let mut environment = Process::read(worker.pid).expect("a living worker").environment;
        let path = environment.remove("NOTIFY_SOCKET").expect("a notify socket");
        Self { socket: UnixDatagram::unbound().expect("a socket"), path }
    }

    fn say(&self, message: impl AsRef<[u8]>) {
        self.socket.send_to(message.as_ref(), &self.path).expect("a listening manager");
    }

    /// Sends a message with `count` copies of a descriptor.
    fn say_with(&self, message: &[u8], descriptor: &impl AsRawFd, count: usize) {
        let address = UnixAddr::new(self.path.as_str()).expect("an address");
        let descriptors = vec![descriptor.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let words = [IoSlice::new(message)];
        sendmsg(self.socket.as_raw_fd(), &words, &rights, MsgFlags::empty(), Some(&address))
            .expect("a manager");
    }

    /// Waits until the manager has heard everything said before.
    fn barrier(&self) {
        let (mut kept, sent) = io::pipe().expect("a pipe");
        self.say_with(b"BARRIER=1", &sent, 1);
        drop(sent);
        // The end of the file: the manager has closed its copy.
        assert_eq!(kept.read(&mut [0]).expect("an end"), 0);
    }
}

fn ready_worker(manager: &Manager) -> Worker {
    let mut workers = manager.wait_workers(1, 1);
    workers.remove(0)
}

#[test]
fn a_worker_that_asks_for_more_time_gets_it() {
    let service = Service::worker().listen(loopback()).release(1);
    let manager = Manager::start(service.clone());
    let slow = ["--say", "EXTEND_TIMEOUT_USEC=20000000", "--boot", "1500"];
    manager.upgrade_committed(service.clone().args(slow).set("ready.timeout", "'400ms'"));
    let outcome = manager.upgrade(service.args(["--boot", "60000"]).set("ready.timeout", "'400ms'"));
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    manager.stop();
}

#[test]
fn a_worker_that_does_not_feed_its_watchdog_is_replaced() {
    let service = Service::worker().workers(2).listen(loopback()).release(1).set("watchdog.timeout", "'1s'");
    let manager = Manager::start(service.args(["--ping"]));
    let workers = manager.wait_workers(1, 2);
    let hanging = Pid::from_raw(workers[0].pid);
    // Time itself is what is tried here: three times the watchdog's.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(manager.workers(), workers, "workers that feed their watchdog were replaced");
    let place = manager.place();
    kill(hanging, Signal::SIGSTOP).expect("SIGSTOP");
    manager.wait_log(place, ["watchdog"]);
    // Stopped, it cannot even die of SIGABRT.
    kill(hanging, Signal::SIGCONT).expect("SIGCONT");
    let next = manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready && one.slot == 0);
    assert_ne!(next.pid, hanging.as_raw());
    manager.stop();
}

#[test]
fn a_watchdog_can_be_triggered_without_a_time_out() {
    let manager = Manager::start(Service::worker().listen(loopback()).release(1));
    let worker = ready_worker(&manager);
    let place = manager.place();
    Mouth::of(&worker).say("WATCHDOG=trigger");
    manager.wait_log(place, ["SIGABRT"]);
    manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready && one.pid != worker.pid);
    manager.stop();
}

#[test]
fn a_barrier_falls_after_all_that_was_said_before() {
    // The worker itself waits at one before it is ready …
    let manager = Manager::start(Service::worker().listen(loopback()).release(1).args(["--barrier"]));
    // … and they are served for its whole life.
    let mouth = Mouth::of(&ready_worker(&manager));
    for round in 0..100 {
        mouth.say(format!("STATUS=round {round}"));
        mouth.barrier();
    }
    manager.stop();
}

#[test]
fn readiness_may_come_from_anyone_who_was_told_the_address() {
    let mut manager =
        Starter::default().start(Service::worker().listen(loopback()).release(1).args(["--never-ready"]));
    let worker = manager.wait_until("the worker", || manager.workers().pop());
    let mouth = Mouth::of(&worker);
    mouth.say("RELOADING=1\nMONOTONIC_USEC=1");
    mouth.say("\n\nSTATUS=almost\nMAINPID=1\nREADY=0\n");
    mouth.barrier();
    assert!(manager.transitions(Place::START).iter().all(|one| one.step != Step::Ready));
    mouth.say("READY=1\nMAINPID=1\n");
    manager.wait_ready();
    mouth.say("READY=1");
    mouth.barrier();
    manager.wait_worker(Place::START, "the worker ready", |one| one.step == Step::Ready);
    let ready = manager.transitions(Place::START).iter().filter(|one| one.step == Step::Ready).count();
    assert_eq!(ready, 1, "ready more than once");
    // Its drain: dying of SIGTERM is a clean stop.
    manager.stop();
}

#[test]
fn a_worker_may_name_another_of_its_processes_as_the_main_one() {
    let script = "sleep 7777 & wait";
    let mut manager = Starter::default().start(Service::command(["sh", "-c", script]).workers(1));
    let worker = manager.wait_until("the worker", || manager.workers().pop());
    let child = manager.wait_until("its child", || {
        Process::all()
            .into_iter()
            .find(|one| one.parent == worker.pid && one.command.contains(&"7777".into()))
    });
    let mouth = Mouth::of(&worker);
    mouth.say(format!("MAINPID={}\nREADY=1", child.pid));
    manager.wait_ready();
    let place = manager.wait_log_to(Place::START, ["generation 1 serving"]);

    // The end of the first process is not the worker's …
    kill(Pid::from_raw(worker.pid), Signal::SIGKILL).unwrap();
    manager.wait_log(place, [&format!("goes on as pid {}", child.pid)]);
    mouth.barrier();
    assert_eq!(manager.transitions(place), []);
    // … that of the main one is.
    kill(Pid::from_raw(child.pid), Signal::SIGKILL).unwrap();
    manager.wait_log(place, [&format!("pid {}) was killed by SIGKILL", child.pid)]);
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
}

#[test]
fn a_worker_that_says_it_stops_gets_a_replacement_at_once() {
    let address = loopback();
    let service = Service::worker().listen(address).release(1).set("drain.timeout", "'500ms'");
    let manager = Manager::start(service);
    let worker = ready_worker(&manager);
    // The line that it is ready may come after the word upward, and is not that of another.
    let place = manager.wait_log_to(Place::START, ["generation 1 serving"]);
    Mouth::of(&worker).say("STOPPING=1");
    let next = manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready);
    assert_ne!(next.pid, worker.pid);
    manager.wait_until("the first worker gone", || {
        manager.workers().iter().all(|one| one.pid != worker.pid).then_some(())
    });
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").pid, next.pid);
    manager.stop();
}

#[test]
fn the_last_words_of_a_worker_are_heard_before_its_end_is_announced() {
    let service = Service::worker().listen(loopback()).release(1);
    let manager = Manager::start(service.clone());
    for generation in 2..12 {
        let place = manager.place();
        let last = service
            .clone()
            .args(["--exit", "5", "--last-words", "READY=1"])
            .set("upgrade.probation", "'10s'");
        let outcome = manager.upgrade(last);
        assert_eq!((outcome.generation, outcome.verdict), (generation, Verdict::RolledBack), "{outcome:?}");
        let steps: Vec<Step> = manager
            .transitions(place)
            .into_iter()
            .filter(|one| one.generation == generation && one.step != Step::Started)
            .map(|one| one.step)
            .collect();
        if !steps.starts_with(&[Step::Ready, Step::Gone]) {
            manager.fail(&format!("generation {generation}: {steps:?}"));
        }
    }
    manager.stop();
}

#[test]
fn a_drain_that_is_reported_done_ends_before_its_deadline() {
    let address = loopback();
    // It ignores SIGTERM, so it would be killed after an hour; but it says that it is done.
    let service = Service::worker().listen(address).set("drain.timeout", "'1h'");
    let manager = Manager::start(service.clone().release(1).args(["--ignore-term"]));
    let old = ready_worker(&manager);
    let mouth = Mouth::of(&old);
    manager.upgrade_committed(service.release(2));
    mouth.say("X_LIVESWAP_CONNECTIONS=3");
    mouth.say("X_LIVESWAP_CONNECTIONS=0\nX_LIVESWAP_DRAINED=1");
    manager.wait_workers(2, 1);
    manager.stop();
}

#[test]
fn what_the_manager_says_upward_tells_the_course_of_an_upgrade() {
    let service = Service::worker().workers(2).listen(loopback());
    let manager = Manager::start(service.clone().release(1));
    manager.wait_status(Place::START, "generation 1: 2 of 2 ready");
    let committed = manager.upgrade_committed(service.clone().release(2));
    assert!(committed.status.starts_with("generation 2: "), "{committed:?}");
    let failed = manager.upgrade(service.release(3).args(["--exit", "1"]));
    assert!(
        failed.status.starts_with("generation 2: 2 of 2 ready; upgrade to generation 3 rolled back: "),
        "{failed:?}"
    );
    let systemd = manager.systemd.clone();
    manager.stop();
    assert!(systemd.wait(0, |message| message.is("STOPPING")).is_some(), "no STOPPING=1");
}

#[test]
fn a_notify_socket_that_a_cleaner_has_removed_is_bound_anew() {
    let mut manager = Manager::start(Service::worker().workers(2));
    let workers = manager.wait_workers(1, 2);
    let place = manager.place();
    let mouth = Mouth::of(&workers[0]);
    mouth.say("STATUS=before");
    for worker in &workers {
        std::fs::remove_file(&Mouth::of(worker).path).expect("a notify socket");
    }
    for name in ["run/state", "run/control.sock"] {
        std::fs::remove_file(manager.path(name)).expect(name);
    }
    manager.wait_log(place, ["of the sockets in", "were removed; they are bound anew"]);
    manager.wait_until("all paths back", || {
        workers.iter().all(|worker| std::path::Path::new(&Mouth::of(worker).path).exists()).then_some(())
    });
    manager.wait_until("the state back", || manager.path("run/state").exists().then_some(()));
    mouth.say("STOPPING=1");
    manager.wait_worker(place, "the one that spoke", |one| {
        one.pid == workers[0].pid && one.step == Step::Draining
    });
    manager.signal(Signal::SIGQUIT);
    assert!(manager.wait_exit().success());
}

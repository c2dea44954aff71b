//! Where workers, hooks and probes write to: never a socket that is the manager's own, which any of them could shut down.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstat;
use nix::unistd::Pid;
use support::PATIENCE;
use support::loopback;
use support::manager::{Manager, Place, Starter};
use support::service::Service;

/// A manager whose outputs are one socket.
fn with_a_socket(starter: Starter, service: &Service) -> Manager {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let mut manager = starter.writes_to(theirs.into()).start(service);
    manager.log.add(ours);
    manager.wait_ready();
    manager
}

#[test]
fn a_worker_that_shuts_its_outputs_down_ends_its_own_alone() {
    let service = Service::worker().workers(2).listen(loopback()).set("upgrade.probation", "'0s'");
    let manager = with_a_socket(Starter::default(), &service.clone().args(["--hurt-at-start", "output"]));
    for release in 2..4 {
        let place = manager.place();
        manager.upgrade_committed(service.clone().release(release).args(["--hurt-at-start", "output"]));
        manager.wait_log(place, ["generation", "committed"]);
    }
    let place = manager.place();
    let script = "echo goes on >&2; echo out";
    let talker = service.clone().after(script);
    manager.upgrade_committed(talker);
    manager.wait_log(place, ["goes on"]);
    manager.wait_log(place, ["out"]);
    manager.stop();
}

#[test]
fn what_comes_through_the_manager_is_unchanged_from_workers_hooks_and_probes() {
    let raw = "printf 'a\\tb \\033[31mred\\r\\n<0>two\\nno end' >&2";
    let script = format!("{raw}; exec sleep 1000");
    let service = Service::command(["sh", "-c", &script])
        .set("service.protocol", "'plain'")
        .set("upgrade.probation", "'0s'")
        .set("ready.when", "'probe'")
        .set("ready.probe", "['sh', '-c', 'echo from the probe >&2']");
    let manager = with_a_socket(Starter::default(), &service);
    for line in ["a\tb \x1b[31mred\r", "<0>two", "from the probe"] {
        manager.wait_log(Place::START, [line]);
    }
    let hooked = service
        .set("upgrade.before", "['sh', '-c', 'echo from before >&2; echo out of before']")
        .set("upgrade.after", "['sh', '-c', 'echo from after >&2']");
    manager.upgrade_committed(hooked);
    for line in ["from before", "out of before", "from after"] {
        manager.wait_log(Place::START, [line]);
    }
    // It came with the end of the first worker.
    assert_eq!(manager.wait_log(Place::START, ["no end"]), "no end");
    // The last words of a release that fails are known, as they came by.
    let broken = Service::command(["sh", "-c", "echo broken >&2; exit 1"]);
    manager.rewrite(broken);
    let ended = manager.ask(r#"{"cmd":"upgrade"}"#);
    assert_eq!(ended["evidence"]["stderr"][0], "broken", "{ended}");
    manager.stop();
}

#[test]
fn a_hook_has_another_socket_than_the_manager() {
    let service = Service::worker().listen(loopback()).set("upgrade.probation", "'0s'");
    let manager = with_a_socket(Starter::default(), &service);
    let differs = r#"test "$(readlink /proc/$$/fd/2)" != "$(readlink /proc/$PPID/fd/2)""#;
    // A hook that fails refuses the upgrade.
    manager.upgrade_committed(service.set("upgrade.before", format!("['sh', '-c', '''{differs}''']")));
    manager.stop();
}

#[test]
fn output_through_a_socket_outlives_the_manager_and_its_replacement() {
    let starter = Starter::default();
    let script = "trap 'echo spoken >&2 || exit 3' USR1; echo READY >&2; while :; do sleep 0.01; done";
    let service = Service::command(["sh", "-c", script])
        .set("service.protocol", "'plain'")
        .set("ready.settle", "'20ms'")
        .set("drain.timeout", "'5s'");
    let mut manager = with_a_socket(starter.of_a_copy(), &service);
    let worker = manager.wait_workers(1, 1);
    let speak = |place: Place, manager: &Manager| {
        kill(Pid::from_raw(worker[0].pid), Signal::SIGUSR1).expect("the worker");
        manager.wait_log(place, ["spoken"]);
    };
    manager.wait_log(Place::START, ["READY"]);
    speak(manager.place(), &manager);
    let place = manager.place();
    manager.cli(["reexec"]).assert(0, []);
    speak(place, &manager);
    manager.crash();
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["taken over"]);
    speak(manager.place(), &manager);
    assert_eq!(manager.survivors(), worker);
    manager.stop();
}

/// What listens where a journal would.
struct Journal {
    path: PathBuf,
    /// Each stream that came, in order.
    streams: Receiver<UnixStream>,
}

impl Journal {
    fn listen(folder: &Path) -> Self {
        let path = folder.join("stdout");
        let listener = UnixListener::bind(&path).expect("a socket");
        let (sender, streams) = channel();
        // It ends with the test.
        thread::spawn(move || listener.incoming().flatten().try_for_each(|stream| sender.send(stream)));
        Self { path, streams }
    }

    /// A stream as systemd would connect for the manager, and the journal's end of it.
    fn connect(&self) -> (UnixStream, UnixStream) {
        let stream = UnixStream::connect(&self.path).expect("the journal");
        (stream, self.next())
    }

    fn next(&self) -> UnixStream {
        self.streams.recv_timeout(PATIENCE).expect("a stream")
    }
}

/// Reads the head of a stream.
fn head_of(stream: &UnixStream) -> Vec<String> {
    let mut reader = BufReader::with_capacity(1, stream.try_clone().expect("a copy"));
    let line = |_| {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a line of the head");
        line
    };
    (0..7).map(line).collect()
}

const HEAD: [&str; 7] = ["liveswap\n", "\n", "30\n", "1\n", "0\n", "0\n", "0\n"];

/// A manager whose outputs are a stream to that journal.
fn with_a_journal(journal: &Journal, service: &Service) -> (Manager, UnixStream) {
    let (theirs, ours) = journal.connect();
    let stat = fstat(&theirs).expect("its inode");
    let starter = Starter::default().variable("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
    let manager = starter.writes_to(theirs.into()).start(service);
    manager.log.add(ours.try_clone().expect("a copy"));
    (manager, ours)
}

#[test]
fn each_worker_has_a_stream_to_the_journal_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::listen(folder.path());
    let script = "test \"$JOURNAL_STREAM\" = \"$(stat -L -c %d:%i /proc/self/fd/2)\" && echo it is named >&2; \
                  test /proc/self/fd/1 -ef /proc/self/fd/2 && echo it is one; true";
    let service = Service::worker().workers(2).listen(loopback()).set("upgrade.probation", "'0s'");
    let service = service.after(script).args(["--hurt-at-start", "output"]);
    let (mut manager, ours) = with_a_journal(&journal, &service);
    for _ in 0..2 {
        let stream = journal.next();
        assert_eq!(head_of(&stream), HEAD);
        let mut lines = BufReader::new(stream).lines().map(|line| line.expect("a line"));
        assert_eq!(lines.next().as_deref(), Some("it is named"));
        assert_eq!(lines.next().as_deref(), Some("it is one"));
        // The worker shuts it down.
        assert_eq!(lines.next(), None);
    }
    manager.wait_ready();
    manager.wait_log(Place::START, ["<6>generation 1 serving"]);
    // Somebody shuts down the manager's own: it connects again, and the log goes on where it was.
    ours.shutdown(Shutdown::Both).expect("shutdown");
    manager.cli(["scale", "1"]).assert(0, []);
    let again = journal.next();
    assert_eq!(head_of(&again), HEAD);
    manager.log.add(again);
    manager.wait_log(Place::START, ["connected again"]);
    let place = manager.place();
    manager.cli(["scale", "2"]).assert(0, []);
    manager.wait_log(place, ["<6>worker 3", "started"]);
    manager.stop();
}

#[test]
fn a_journal_that_takes_no_stream_costs_no_worker_and_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::listen(folder.path());
    let script = "echo hello of $LIVESWAP_GENERATION >&2";
    let service = Service::worker().listen(loopback()).set("upgrade.probation", "'0s'");
    let service = service.after(script);
    let (mut manager, _ours) = with_a_journal(&journal, &service);
    manager.wait_ready();
    drop(journal.next());
    fs::remove_file(&journal.path).expect("it is there");
    let place = manager.place();
    manager.upgrade_committed(service.release(2));
    manager.wait_log(place, ["the journal takes no stream of a worker"]);
    manager.wait_log(place, ["hello of 2"]);
    manager.stop();
}

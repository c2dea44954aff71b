//! What workers leave for those that come after them: descriptors in store.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::log::Step;
use support::manager::{Manager, Place, Starter};
use support::service::Service;
use support::{PATIENCE, is_installed, loopback};

/// A connection that says a line at a time.
struct Talk(BufReader<TcpStream>);

impl Talk {
    fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Self(BufReader::new(stream))
    }

    /// Says a line, and returns the answer: who answers, and which line of the connection that was.
    fn say(&mut self) -> (u64, u64) {
        self.0.get_mut().write_all(b"hello\n").expect("the connection is open");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("the connection is open");
        let numbers = answer.trim().strip_prefix("generation ").and_then(|rest| rest.split_once(", line "));
        let (generation, line) = numbers.unwrap_or_else(|| panic!("{answer:?}"));
        (generation.parse().expect("a number"), line.parse().expect("a number"))
    }
}

#[test]
fn a_connection_outlives_its_worker_by_being_handed_over() {
    if !is_installed("python3") {
        return;
    }
    let (address, folder) =
        (loopback(), Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/handover"));
    let text = fs::read_to_string(folder.join("service.toml")).expect("the example's service file");
    let text = text.replace("127.0.0.1:8080", &address.to_string());
    let text = text.replace("[service]\n", &format!("[service]\ndirectory = {:?}\n", folder.display()));
    let mut manager = Starter::default().start(text);
    manager.wait_ready();

    let mut long = Talk::open(address);
    let mut later = Vec::new();
    assert_eq!(long.say(), (1, 1));
    for generation in 2..=6 {
        // In the midst of an upgrade, too, whoever has the connection then.
        let place = manager.place();
        manager.signal(Signal::SIGHUP);
        let line = 2 * generation - 2;
        assert_eq!(long.say().1, line);
        manager.wait_worker(place, "the old one to be gone", |one| one.step == Step::Gone);
        assert_eq!(long.say(), (generation, line + 1));
        later.push(Talk::open(address));
    }
    for (place, talk) in later.iter_mut().enumerate() {
        assert_eq!(talk.say(), (6, 1), "the connection of upgrade {place}");
    }
    assert!(
        manager
            .transitions(Place::START)
            .iter()
            .filter(|one| one.step == Step::Gone)
            .all(|one| one.words == "gone: exited with status 0")
    );
    manager.stop();
}

/// A worker that writes down what it finds in store, and puts in there what its file `wish` says: a name for a piece of
/// memory, `end NAME` for an end of a pair, `close` for the end of those, `forget NAME`.
const KEEPER: &str = r#"
import os, socket, time
def notify(message, *fds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(os.environ["NOTIFY_SOCKET"])
        socket.send_fds(sender, [message.encode()], list(fds))
names = os.environ.get("LISTEN_FDNAMES", "")
first = os.pread(3, 99, 0).decode() if names and not names.startswith("end") else ""
found = f"{os.environ['FDSTORE']} {os.environ.get('LISTEN_FDS', 0)} {names} {first}"
with open("found.new", "w") as file: file.write(found)
os.rename("found.new", "found")
ends = []
notify("READY=1")
while True:
    try:
        with open("wish") as file: wishes = file.read().splitlines()
        os.remove("wish")
    except FileNotFoundError:
        time.sleep(0.005)
        continue
    for wish in wishes:
        what, _, name = wish.partition(" ")
        if what == "keep":
            memory = os.memfd_create(name)
            os.write(memory, f"memory of {name}".encode())
            notify(f"FDSTORE=1\nFDNAME={name}", memory)
            os.close(memory)
        elif what == "end":
            ours, theirs = socket.socketpair()
            notify(f"FDSTORE=1\nFDNAME={name}", theirs.fileno())
            ends.append(ours)
        elif what == "close":
            ends.clear()
        elif what == "forget":
            notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    # All of it is done when this is.
    ours, theirs = os.pipe()
    notify("BARRIER=1", theirs)
    os.close(theirs)
    os.read(ours, 1)
    os.close(ours)
    open("done", "w").close()
"#;

/// A manager of one keeper with room for three.
struct Keeper(Manager);

impl Keeper {
    fn start() -> Option<Self> {
        let service = Service::command(["python3", "-c", KEEPER]).no_sockets().workers(1);
        is_installed("python3").then(|| Self(Manager::start(service.set("service.fd_store_max", 3))))
    }

    fn wish(&self, wishes: &str) {
        let _ = fs::remove_file(self.0.path("done"));
        fs::write(self.0.path("wish.new"), wishes).expect("a wish");
        fs::rename(self.0.path("wish.new"), self.0.path("wish")).expect("a wish");
        self.0.wait_until("the wish to be heard", || self.0.path("done").exists().then_some(()));
    }

    /// What the next worker finds, after this one was killed.
    fn next_finds(&self) -> String {
        fs::remove_file(self.0.path("found")).expect("the worker has found something");
        let [worker] = &self.0.workers()[..] else { self.0.fail("one worker") };
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("the worker is there");
        self.0.wait_until("the next one", || fs::read_to_string(self.0.path("found")).ok())
    }
}

#[test]
fn memory_in_store_is_handed_to_whoever_comes_next() {
    let Some(keeper) = Keeper::start() else { return };
    keeper.wish("keep cache\nkeep b\n");
    assert_eq!(keeper.next_finds(), "3 2 cache:b memory of cache");
    // It stays in store until it is removed, for an upgrade too.
    let place = keeper.0.place();
    fs::remove_file(keeper.0.path("found")).expect("the worker has found something");
    keeper.0.signal(Signal::SIGHUP);
    keeper.0.wait_outcome(place);
    assert_eq!(fs::read_to_string(keeper.0.path("found")).expect("found"), "3 2 cache:b memory of cache");
    keeper.0.wait_workers(2, 1);
    keeper.wish("forget cache\n");
    assert_eq!(keeper.next_finds(), "3 1 b memory of b");
    let place = keeper.0.place();
    keeper.0.signal(Signal::SIGUSR2);
    keeper.0.wait_log(place, ["goes on as the manager"]);
    assert_eq!(keeper.next_finds(), "3 1 b memory of b", "the store outlives the manager's replacement");
}

#[test]
fn the_store_is_bounded_and_loses_what_hangs_up() {
    let Some(keeper) = Keeper::start() else { return };
    keeper.wish("forget nothing\n");
    let descriptors = keeper.0.descriptors_at_rest();
    let place = keeper.0.place();
    keeper.wish("end end1\nend end2\nkeep m\nkeep n\n");
    keeper.0.wait_log(place, ["its store is full (fd_store_max is 3); `n` is not kept"]);
    // What is not kept is closed soon, by a child.
    let are_open = |count| (keeper.0.open_descriptors() == count).then_some(());
    keeper.0.wait_until("three to be kept", || are_open(descriptors + 3));
    keeper.wish("close\n");
    keeper.0.wait_until("what hung up to go", || are_open(descriptors + 1));
    assert_eq!(keeper.next_finds(), "3 1 m memory of m");
    keeper.wish("forget m\n");
    keeper.0.wait_until("all of it to go", || are_open(descriptors));
    assert_eq!(keeper.next_finds(), "3 0  ");
}

//! What starts on demand: lazy workers, and a process for each connection.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::client::{Connection, Target, ask};
use support::dice::Dice;
use support::log::Verdict;
use support::manager::{Manager, Place, Starter, copy_program};
use support::process::Process;
use support::service::Service;
use support::{PATIENCE, is_installed, is_root, loopback};

fn lazy() -> Service {
    Service::worker().workers(2).set("service.lazy", true).set("drain.timeout", "'30s'")
}

impl Manager {
    fn wait_asleep(&self, place: Place) {
        self.wait_status(place, "asleep until a connection comes");
        self.wait_until("that no worker is left", || self.workers().is_empty().then_some(()));
    }
}

#[test]
fn lazy_workers_start_with_the_first_connection() {
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let mut manager = starter.start(lazy().listen(address).listen(path.display()).release(1));
    manager.wait_ready();
    assert_eq!(
        manager.wait_status(Place::START, "generation 1"),
        "generation 1: asleep until a connection comes"
    );
    assert!(manager.workers().is_empty());
    let status = manager.cli(["status"]);
    assert!(status.stdout.contains("web: asleep, generation 1"), "{status:#?}");
    let connection = ask(&Target::Unix(path)).expect("an answer");
    assert_eq!(connection.release, "1");
    manager.wait_log(Place::START, ["generation 1 woken by a connection"]);
    manager.wait_workers(1, 2);
    assert!(ask(&Target::Tcp(address)).is_ok());
    manager.stop();
}

#[test]
fn a_datagram_wakes_as_well() {
    let address = loopback();
    let socket = format!("listen = '{address}'\ntype = 'datagram'");
    let mut manager = Starter::default().start(lazy().socket(&socket));
    manager.wait_ready();
    let client = std::net::UdpSocket::bind(loopback()).expect("a socket");
    client.send_to(b"x", address).expect("a datagram");
    manager.wait_log(Place::START, ["generation 1 woken by a connection"]);
    manager.wait_workers(1, 2);
    manager.stop();
}

#[test]
fn nobody_is_refused_whenever_the_workers_fall_asleep() {
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let service = lazy().listen(address).listen(path.display()).set("service.idle_timeout", "'40ms'");
    let mut manager = starter.start(service.release(1));
    manager.wait_ready();
    let targets = [Target::Tcp(address), Target::Unix(path)];
    let mut dice = Dice(0x51EE9);
    for round in 0..60 {
        ask(&targets[round % 2]).expect("an answer");
        // They fall asleep after some 70 ms.
        thread::sleep(Duration::from_millis(dice.below(140) as u64));
    }
    manager.wait_until("the last sleep", || manager.workers().is_empty().then_some(()));
    println!("60 requests, {} sleeps", sleeps(&manager));
    assert!(sleeps(&manager) > 5);
    assert!(!manager.log.since(0).iter().any(|line| line.contains("SIGKILL")));
    manager.stop();
}

/// How often the workers have fallen asleep.
fn sleeps(manager: &Manager) -> usize {
    manager.log.since(0).iter().filter(|line| line.contains("asleep: no connection is left")).count()
}

#[test]
fn whoever_has_a_connection_keeps_the_workers() {
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let service = lazy().listen(address).listen(path.display()).set("service.idle_timeout", "'30ms'");
    let mut manager = starter.start(service.release(1));
    manager.wait_ready();
    for target in [Target::Tcp(address), Target::Unix(path)] {
        let (place, before) = (manager.place(), sleeps(&manager));
        let mut connection = Connection::open(&target).expect("a connection");
        connection.get("/", true).expect("an answer");
        for _ in 0..20 {
            // Each takes a count as long as the one by which it would fall asleep.
            let status = manager.cli(["status", "--json"]);
            assert!(status.stdout.contains("\"connections\":1"), "{status:#?}");
        }
        manager.wait_workers(1, 2);
        assert_eq!(sleeps(&manager), before, "somebody has a connection");
        drop(connection);
        manager.wait_asleep(place);
    }
    manager.stop();
}

/// Serves a connection after the other, each as long as its client likes, and says nothing of them.
const SILENT: &str = "import socket
door = socket.socket(fileno=3)
while True:
    served = door.accept()[0]
    while text := served.recv(100): served.sendall(text)";

#[test]
fn who_cannot_be_looked_into_is_not_idle() {
    if !is_root("a worker of another user") || !is_installed("python3") {
        return;
    }
    // Root as in a container: it may not look into processes of others.
    let starter = Starter::default().by(&["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]);
    let address = loopback();
    let service = Service::command(["python3", "-c", SILENT])
        .listen(address)
        .set("service.protocol", "'plain'")
        .set("service.user", "'nobody'")
        .set("service.directory", "'/'")
        .set("service.lazy", true)
        .set("service.idle_timeout", "'30ms'")
        .set("ready.settle", "'10ms'");
    let mut manager = starter.start(service);
    manager.wait_ready();
    let mut stream = TcpStream::connect(address).expect("a place in the queue");
    for _ in 0..20 {
        stream.write_all(b"x").expect("he listens");
        assert_eq!(stream.read(&mut [0]).expect("an echo"), 1);
        // Each takes a count as long as the one by which it would fall asleep.
        manager.cli(["status"]).assert(0, []);
    }
    assert_eq!(sleeps(&manager), 0);
    manager.stop();
}

#[test]
fn an_upgrade_of_a_sleeping_service_shows_whether_the_release_is_good() {
    let address = loopback();
    let service = lazy().listen(address).set("service.idle_timeout", "'50ms'");
    let mut manager = Starter::default().start(service.clone().release(1));
    manager.wait_ready();
    let outcome = manager.upgrade(service.clone().release(2).args(["--exit", "3"]));
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    let place = manager.place();
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "1");
    manager.wait_asleep(place);
    let outcome = manager.upgrade_committed(service.clone().release(3));
    assert_eq!(outcome.generation, 3);
    manager.wait_asleep(place);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "3");
    // One that is not lazy does not wait for anybody.
    manager.upgrade_committed(Service::worker().workers(2).listen(address).release(4));
    manager.wait_workers(4, 2);
    manager.stop();
}

#[test]
fn the_next_manager_lets_them_sleep_on() {
    let address = loopback();
    let starter = Starter::default().of_a_copy();
    let mut manager = starter.start(lazy().listen(address).release(1));
    manager.wait_ready();
    let place = manager.place();
    copy_program(&manager.path("liveswap"));
    manager.signal(Signal::SIGUSR2);
    manager.wait_log(place, ["goes on as the manager"]);
    manager.restart_after_crash();
    assert!(manager.workers().is_empty());
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "1");
    manager.wait_workers(1, 2);
    manager.stop();
}

/// A line-by-line service of inetd's kind.
const ECHO: &str = "echo \"hello $REMOTE_ADDR of generation $LIVESWAP_GENERATION\"; exec cat";

fn inetd(address: SocketAddr) -> Service {
    Service::command(["sh", "-c", ECHO]).socket(&format!("listen = '{address}'\naccept = true"))
}

/// Somebody who has a connection, and what he was greeted with.
struct Guest {
    stream: BufReader<TcpStream>,
    greeting: String,
}

impl Guest {
    fn come(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut guest = Self { stream: BufReader::new(stream), greeting: String::new() };
        guest.greeting = guest.hear();
        guest
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line, or an end");
        line.trim_end().to_owned()
    }

    fn echo(&mut self, text: &str) -> String {
        writeln!(self.stream.get_mut(), "{text}").expect("he listens");
        self.hear()
    }

    /// Says that nothing more comes, and sees the end.
    fn leave(mut self) {
        self.stream.get_mut().shutdown(Shutdown::Write).expect("it is there");
        let mut rest = String::new();
        self.stream.read_to_string(&mut rest).expect("an end");
        assert_eq!(rest, "");
    }
}

#[test]
fn each_connection_has_a_process() {
    let address = loopback();
    let mut manager = Starter::default().start(inetd(address));
    manager.wait_ready();
    assert!(manager.wait_status(Place::START, "generation 1").contains("a process for each connection"));
    let mut guests: Vec<_> = (0..3).map(|_| Guest::come(address)).collect();
    for (number, guest) in guests.iter_mut().enumerate() {
        assert_eq!(guest.greeting, "hello 127.0.0.1 of generation 1");
        assert_eq!(guest.echo(&number.to_string()), number.to_string());
    }
    assert_eq!(manager.children().len(), 3);
    let status = manager.cli(["status"]);
    assert!(status.stdout.contains("connections: 3"), "{status:#?}");
    guests.into_iter().for_each(Guest::leave);
    manager.wait_until("the end of their processes", || manager.children().is_empty().then_some(()));
    manager.cli(["scale", "3"]).assert(1, ["each connection has a process of its own"]);
    manager.stop();
}

#[test]
fn no_connection_is_accepted_while_a_worker_shares_the_socket() {
    let (address, starter) = (loopback(), Starter::default());
    // It drains for ever, and accepts nothing.
    let worker = "trap '' TERM; while :; do sleep 0.1; done";
    let service = Service::command(["sh", "-c", worker])
        .listen(address)
        .set("service.protocol", "'plain'")
        .set("ready.settle", "'1ms'")
        .set("drain.timeout", "'1h'");
    let mut manager = starter.start(service.clone());
    manager.wait_ready();
    let [worker] = &manager.wait_workers(1, 1)[..] else { panic!("one worker") };
    manager.upgrade_committed(inetd(address).set("drain.timeout", "'1h'"));
    let waiting = TcpStream::connect(address).expect("a place in the queue");
    for _ in 0..3 {
        // The manager has looked at all that had come when it answers.
        let status = manager.cli(["status"]);
        assert!(status.stdout.contains("connections: 0"), "{status:#?}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker.pid), Signal::SIGKILL).expect("it runs");
    waiting.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut greeting = String::new();
    BufReader::new(waiting).read_line(&mut greeting).expect("a line");
    assert_eq!(greeting, "hello 127.0.0.1 of generation 2\n");
    manager.stop();
}

#[test]
fn the_process_of_a_connection_has_no_socket_that_listens() {
    let address = loopback();
    let script = "for fd in /proc/self/fd/*; do readlink $fd; done | grep -c socket:";
    let mut manager = Starter::default().start(
        Service::command(["sh", "-c", script]).socket(&format!("listen = '{address}'\naccept = true")),
    );
    manager.wait_ready();
    // Its own standard output is a pipe there: the connection is standard input alone.
    assert_eq!(Guest::come(address).greeting, "1");
    manager.stop();
}

#[test]
fn no_more_come_in_than_may() {
    let (address, starter) = (loopback(), Starter::default());
    let path = starter.path("echo.sock");
    let limits = "accept = true\nmax_connections = 3\nmax_connections_per_source = 2";
    let service = Service::command(["sh", "-c", ECHO])
        .socket(&format!("listen = '{address}'\n{limits}"))
        .socket(&format!("listen = '{}'\naccept = true\nmax_connections = 1", path.display()));
    let mut manager = starter.start(service);
    manager.wait_ready();
    let (one, _two) = (Guest::come(address), Guest::come(address));
    assert_eq!(Guest::come(address).greeting, "", "the third of this source is closed at once");
    manager.wait_log(Place::START, ["there are 2 already of 127.0.0.1 (max_connections_per_source)"]);
    one.leave();
    manager.wait_until("one process less", || (manager.children().len() == 1).then_some(()));
    assert_ne!(Guest::come(address).greeting, "");
    // The other socket has limits of its own.
    let mut stays = BufReader::new(UnixStream::connect(&path).expect("a connection"));
    let mut line = String::new();
    stays.read_line(&mut line).expect("a greeting");
    assert_eq!(line, "hello  of generation 1\n");
    let mut text = String::new();
    UnixStream::connect(&path).expect("a connection").read_to_string(&mut text).expect("an end");
    assert_eq!(text, "");
    manager.wait_log(Place::START, ["there are 1 already (max_connections)"]);
    drop(stays);
    manager.stop();
}

#[test]
fn an_upgrade_is_for_those_who_come_after_it() {
    let address = loopback();
    let starter = Starter::default().of_a_copy();
    let mut manager = starter.start(inetd(address));
    manager.wait_ready();
    let mut old = Guest::come(address);
    manager.upgrade_committed(inetd(address));
    let mut new = Guest::come(address);
    assert_eq!(new.greeting, "hello 127.0.0.1 of generation 2");
    // Another manager has them too.
    let place = manager.place();
    copy_program(&manager.path("liveswap"));
    manager.signal(Signal::SIGUSR2);
    manager.wait_log(place, ["goes on as the manager"]);
    assert_eq!((old.echo("a"), new.echo("b")), ("a".to_owned(), "b".to_owned()));
    assert!(manager.cli(["status"]).stdout.contains("connections: 2"));
    new.leave();
    old.leave();
    manager.wait_until("the end of their processes", || manager.children().is_empty().then_some(()));
    // To workers, and back.
    let workers = Service::worker().workers(2).listen(address).release("workers");
    manager.upgrade_committed(workers);
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, "workers");
    manager.upgrade_committed(inetd(address));
    manager.wait_until("the end of the workers", || manager.children().is_empty().then_some(()));
    assert_eq!(Guest::come(address).greeting, "hello 127.0.0.1 of generation 4");
    manager.stop();
}

#[test]
fn on_the_way_to_workers_nobody_is_let_in_by_us() {
    // Workers share the listener, and have it as they like it: accepting here would block the manager for good.
    let address = loopback();
    let mut manager = Starter::default().start(inetd(address));
    manager.wait_ready();
    let workers = Service::worker().workers(2).listen(address).args(["--boot", "60000"]);
    manager.rewrite(workers.set("ready.timeout", "'1h'"));
    let place = manager.place();
    manager.signal(Signal::SIGHUP);
    manager.wait_log(place, ["generation 2 starting"]);
    let waiting: Vec<_> =
        (0..3).map(|_| TcpStream::connect(address).expect("a place in the queue")).collect();
    assert!(manager.cli(["status"]).stdout.contains("upgrading"), "it does not hang");
    manager.cli(["rollback"]).assert(0, []);
    for stream in waiting {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut greeting = String::new();
        BufReader::new(stream).read_line(&mut greeting).expect("a greeting");
        assert_eq!(greeting, "hello 127.0.0.1 of generation 1\n");
    }
    manager.stop();
}

#[test]
fn a_socket_that_its_activator_shut_down_is_no_reason_to_spin() {
    let starter = Starter::default();
    let path = starter.path("echo.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("a socket");
    let copy = std::os::fd::OwnedFd::from(listener.try_clone().expect("a copy"));
    let socket = format!("name = 'echo'\nlisten = '{}'\naccept = true", path.display());
    let mut manager =
        starter.inherit([copy], "echo").start(Service::command(["sh", "-c", ECHO]).socket(&socket));
    manager.wait_ready();
    nix::sys::socket::shutdown(std::os::fd::AsRawFd::as_raw_fd(&listener), nix::sys::socket::Shutdown::Both)
        .expect("it listens");
    manager.wait_log(Place::START, ["socket `echo`", "shut down"]);
    manager.wait_until("that it sleeps", || {
        let slept = support::process::status(manager.pid(), "voluntary_ctxt_switches");
        thread::sleep(Duration::from_millis(50));
        (support::process::status(manager.pid(), "voluntary_ctxt_switches") == slept).then_some(())
    });
    manager.stop();
}

#[test]
fn who_cannot_be_served_for_want_of_descriptors_waits() {
    let address = loopback();
    let mut manager = Starter::default().start(inetd(address));
    manager.wait_ready();
    manager.limit_descriptors(1);
    let clients: Vec<_> =
        (0..10).map(|_| TcpStream::connect(address).expect("a place in the queue")).collect();
    manager.wait_log(Place::START, ["a connection cannot be served", "Too many open files"]);
    manager.limit("--nofile=1024:");
    let greeted = clients.into_iter().filter(|stream| {
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        let mut greeting = String::new();
        BufReader::new(stream).read_line(&mut greeting).is_ok() && !greeting.is_empty()
    });
    assert_eq!(greeted.count(), 10);
    manager.stop();
}

#[test]
fn a_stop_waits_for_connections_until_its_deadline() {
    let address = loopback();
    let script = "trap 'echo bye; exit 0' TERM; echo hello; while :; do sleep 0.01; done";
    let polite =
        Service::command(["sh", "-c", script]).socket(&format!("listen = '{address}'\naccept = true"));
    let mut manager = Starter::default().start(&polite);
    manager.wait_ready();
    let mut guest = Guest::come(address);
    manager.signal(Signal::SIGTERM);
    assert_eq!(guest.hear(), "bye");
    assert!(manager.wait_exit().success());

    let stubborn = "trap '' TERM; echo hello; while :; do sleep 0.01; done";
    let service = polite.by(["sh", "-c", stubborn]);
    let mut manager = Starter::default().start(service.clone().set("drain.timeout", "'300ms'"));
    manager.wait_ready();
    let mut guest = Guest::come(address);
    manager.signal(Signal::SIGTERM);
    manager.wait_log(Place::START, ["has not finished in time; SIGKILL"]);
    assert_eq!(guest.hear(), "");
    assert!(manager.wait_exit().success());

    // Once more: at once.
    let mut manager = Starter::default().start(service.set("drain.timeout", "'500s'"));
    manager.wait_ready();
    let _guest = Guest::come(address);
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    manager.wait_status(place, "stopping: connections are left");
    // Whoever asks is answered meanwhile.
    let status = manager.cli(["status"]);
    assert!(status.stdout.contains("connections: 1"), "{status:#?}");
    manager.cli(["stop", "--now"]).assert(0, []);
    assert!(manager.wait_exit().success());
}

#[test]
fn a_program_that_is_not_there_costs_its_client_the_connection_and_nobody_else() {
    let address = loopback();
    let service =
        Service::command(["/no/such/program"]).socket(&format!("listen = '{address}'\naccept = true"));
    let mut manager = Starter::default().start(service);
    manager.wait_ready();
    assert_eq!(Guest::come(address).greeting, "");
    manager.wait_log(
        Place::START,
        ["the process for a connection of 127.0.0.1 could not be started", "No such file"],
    );
    manager.upgrade_committed(inetd(address));
    assert_eq!(Guest::come(address).greeting, "hello 127.0.0.1 of generation 2");
    manager.stop();
}

#[test]
fn sshd_works_as_under_inetd() {
    if !is_root("sshd") || !is_installed("sshd") || !is_installed("ssh") {
        return;
    }
    let starter = Starter::default();
    let (address, at) = (loopback(), |name: &str| starter.path(name).display().to_string());
    for key in ["host", "own"] {
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &at(key)]).status();
        assert!(made.expect("ssh-keygen").success());
    }
    std::fs::copy(at("own.pub"), at("authorized")).expect("a copy");
    std::fs::create_dir_all("/run/sshd").expect("the folder that sshd wants");
    let sshd = ["/usr/sbin/sshd", "-i", "-e", "-f", "/dev/null", "-o", &format!("HostKey={}", at("host"))]
        .map(str::to_owned);
    let options =
        [format!("AuthorizedKeysFile={}", at("authorized")), "StrictModes=no".into(), "UsePAM=no".into()];
    let options = options.into_iter().flat_map(|option| ["-o".to_owned(), option]);
    let words: Vec<_> = sshd.into_iter().chain(options).map(|word| format!("\"{word}\"")).collect();
    let file = format!(
        "[service]\ncommand = [{}]\n[[socket]]\nlisten = '{address}'\naccept = true\n",
        words.join(", ")
    );
    let key = at("own");
    let mut manager = starter.start(file);
    manager.wait_ready();
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    let ssh = |command: &str| {
        let quiet = [
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "BatchMode=yes",
        ];
        let mut ssh = Command::new("ssh");
        ssh.args(quiet).args([
            "-o",
            "IdentitiesOnly=yes",
            "-i",
            &key,
            "-p",
            &port,
            "-l",
            "root",
            &host,
            command,
        ]);
        ssh
    };
    let said = ssh("echo $((6 * 7))").output().expect("ssh");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "42\n", "{said:?} {}", manager.log.since(0).join("\n"));
    // A session outlives an upgrade.
    let mut session = ssh("read line; echo \"$line\"")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("ssh");
    manager.wait_until("its shell", || {
        Process::all().into_iter().find(|one| one.command.iter().any(|word| word.starts_with("read line")))
    });
    manager.signal(Signal::SIGHUP);
    manager.wait_log(Place::START, ["generation 2 committed"]);
    session.stdin.take().expect("its input").write_all(b"still here\n").expect("it listens");
    let said = session.wait_with_output().expect("its end");
    assert_eq!(String::from_utf8_lossy(&said.stdout), "still here\n");
    manager.wait_until("the end of its process", || manager.children().is_empty().then_some(()));
    manager.stop();
}

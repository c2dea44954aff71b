//! Sockets over upgrades: added, removed, changed, adopted, hurt and repaired.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use liveswap::sys::options::{SocketOption, Value, get};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use support::client::{Connection, Load, MODES, Target, ask};
use support::log::Verdict;
use support::manager::{Manager, Place, Starter};
use support::process::descriptors;
use support::service::Service;
use support::{PATIENCE, eventually, loopback, sweep};

/// The release that answers at an address.
fn release_at(target: &Target) -> String {
    ask(target).unwrap_or_else(|error| panic!("{target:?}: {error}")).release
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).expect("the socket's path").permissions().mode() & 0o777
}

/// The sockets that a process holds, as `socket:[inode]`.
fn sockets_of(pid: i32) -> Vec<String> {
    descriptors(pid).into_values().filter(|link| link.starts_with("socket:")).collect()
}

#[test]
fn sockets_are_added_removed_and_changed_in_one_upgrade() {
    let starter = Starter::default();
    let (kept, removed, added) = (loopback(), loopback(), loopback());
    let (changed, removed_path) = (starter.path("changed.sock"), starter.path("removed.sock"));
    let base = Service::worker().workers(2);
    let changed_lines = |mode: &str| format!("listen = '{}'\nmode = '{mode}'", changed.display());
    let first = base
        .clone()
        .listen(kept)
        .listen(removed)
        .socket(&changed_lines("0600"))
        .listen(removed_path.display());
    let second = base.listen(added).socket(&changed_lines("0660")).listen(kept);
    let targets = [Target::Tcp(kept), Target::Unix(changed.clone())];

    let mut manager = starter.start(first.release(1));
    manager.wait_ready();
    assert_eq!(mode_of(&changed), 0o600);
    assert_eq!(release_at(&Target::Tcp(removed)), "1");
    assert_eq!(release_at(&Target::Unix(removed_path.clone())), "1");
    let before = sockets_of(manager.pid());
    let load = Load::start(&targets, &MODES);
    load.wait_for_more(50);
    manager.upgrade_committed(second.release(2));
    load.wait_for_generation(2);
    manager.wait_workers(2, 2);

    assert_eq!(mode_of(&changed), 0o660);
    assert_eq!(release_at(&Target::Tcp(added)), "2");
    manager.wait_until("the removed sockets gone", || {
        let refused =
            ask(&Target::Tcp(removed)).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        (refused && !removed_path.exists()).then_some(())
    });
    // Those that stayed are the very same sockets.
    let after = sockets_of(manager.pid());
    assert!(after.iter().filter(|socket| before.contains(socket)).count() >= 2, "{before:?} -> {after:?}");
    let report = load.stop();
    report.assert_spotless();
    manager.stop();
    assert!(!changed.exists(), "the path of a socket outlives the manager");
}

#[test]
fn an_upgrade_that_is_rolled_back_leaves_the_sockets_as_they_were() {
    let starter = Starter::default();
    let (kept, added) = (loopback(), loopback());
    let path = starter.path("web.sock");
    let lines = |mode: &str| format!("listen = '{}'\nmode = '{mode}'", path.display());
    let first = Service::worker().listen(kept).socket(&lines("0600"));
    let second = Service::worker().listen(kept).socket(&lines("0666")).listen(added).args(["--exit", "1"]);
    let mut manager = starter.start(first.release(1));
    manager.wait_ready();
    let outcome = manager.upgrade(second.release(2));
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    assert_eq!(mode_of(&path), 0o600);
    manager.wait_until("the new socket closed", || ask(&Target::Tcp(added)).is_err().then_some(()));
    assert_eq!(release_at(&Target::Unix(path)), "1");
    manager.stop();
}

#[test]
fn connections_in_the_queue_outlive_all_workers() {
    let address = loopback();
    let service = Service::worker().workers(1).listen(address).set("upgrade.strategy", "'recreate'");
    let manager = Manager::start(service.clone().release(1));
    // The first generation never accepts again once it drains, and the second boots for a second: what connects in
    // between waits in the queue.
    manager.rewrite(service.release(2).args(["--boot", "1000"]));
    let place = manager.place();
    manager.signal(Signal::SIGHUP);
    manager.wait_until("no worker of generation 1", || {
        manager.workers().iter().all(|worker| worker.generation == 2).then_some(())
    });
    let mut waiting: Vec<Connection> =
        (0..20).map(|_| Connection::open(&Target::Tcp(address)).expect("a connection")).collect();
    for connection in &mut waiting {
        let (answer, _) = connection.get("/", false).expect("an answer");
        assert!(answer.starts_with(b"release=2 "));
    }
    manager.wait_log(place, ["generation 2 committed"]);
    manager.stop();
}

/// Runs a worker that harms a socket after the start; waits until the manager has named the harm and made it good.
fn hurt_and_repaired(listen: &str, target: &Target, harm: &str, words: &[&str], starter: Starter) {
    let service = Service::worker().workers(2).socket(&format!("listen = '{listen}'\nbacklog = 100"));
    let mut manager = starter.start(service.clone().release(1));
    manager.wait_ready();
    let place = manager.place();
    manager.upgrade_committed(service.clone().release(2).args(["--slot", "1", "--hurt-at-start", harm]));
    for word in words {
        manager.wait_log(place, [word]);
    }
    manager.wait_until("an answer", || ask(target).ok());
    // Whole again: an upgrade under load goes through without a loss.
    manager.upgrade_committed(service.clone().release(3));
    manager.wait_workers(3, 2);
    let load = Load::start(std::slice::from_ref(target), &MODES);
    manager.upgrade_committed(service.release(4));
    load.wait_for_generation(4);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn a_tcp_socket_that_a_worker_shuts_down_is_repaired() {
    let address = loopback();
    let listen = address.to_string();
    hurt_and_repaired(&listen, &Target::Tcp(address), "shutdown", &[&listen], Starter::default());
}

#[test]
fn a_unix_socket_that_a_worker_shuts_down_is_repaired() {
    let starter = Starter::default();
    let path = starter.path("web.sock");
    let listen = path.display().to_string();
    hurt_and_repaired(&listen, &Target::Unix(path), "shutdown", &["web.sock"], starter);
}

#[test]
fn workers_of_a_socket_that_is_no_more_are_replaced_however_often_it_takes() {
    let starter = Starter::default();
    let (path, gate) = (starter.path("run/web.sock"), starter.path("gate"));
    fs::write(&gate, "").expect("the gate");
    let service = Service::worker().workers(2).listen(path.display());
    let service =
        service.after(&format!("test -e {} || exit 1", gate.display())).set("restart.max_delay", "'200ms'");
    let mut manager = starter.start(service.release(1));
    manager.wait_ready();
    let place = manager.place();
    fs::remove_file(&gate).expect("the gate");
    sweep(path.parent().expect("a folder"));
    let first = manager.wait_log_to(place, ["respawn given up"]);
    manager.wait_log_to(first, ["respawn given up"]);
    fs::write(&gate, "").expect("the gate");
    manager.wait_log(first, ["generation 1 respawned"]);
    assert_eq!(release_at(&Target::Unix(path)), "1");
    manager.stop();
}

#[test]
fn a_unix_path_that_a_worker_unlinks_is_repaired() {
    let starter = Starter::default();
    let path = starter.path("web.sock");
    let listen = path.display().to_string();
    hurt_and_repaired(&listen, &Target::Unix(path), "unlink", &["web.sock"], starter);
}

#[test]
fn a_backlog_that_a_worker_shrinks_is_repaired() {
    let address = loopback();
    let service = Service::worker().workers(2).socket(&format!("listen = '{address}'\nbacklog = 100"));
    let manager = Manager::start(service.clone().release(1));
    let place = manager.place();
    // No event tells of it, so the manager looks when workers come and go.
    manager.upgrade_committed(service.clone().release(2).args(["--slot", "0", "--hurt-at-drain", "backlog"]));
    manager.upgrade_committed(service.release(3));
    manager.wait_log(place, ["backlog", &address.to_string()]);
    manager.stop();
}

/// A listener and a datagram socket of an activator, of which the test keeps copies, and the service that has both.
struct Shared {
    tcp: TcpListener,
    udp: UdpSocket,
    starter: Starter,
    service: Service,
}

impl Shared {
    fn new() -> Self {
        let address = loopback();
        let (tcp, udp) = (TcpListener::bind(address).expect("bind"), UdpSocket::bind(address).expect("bind"));
        let copies = [
            OwnedFd::from(tcp.try_clone().expect("a copy")),
            OwnedFd::from(udp.try_clone().expect("a copy")),
        ];
        let service = Service::worker()
            .listen(address)
            .socket(&format!("name = 'datagrams'\nlisten = '{address}'\ntype = 'datagram'"));
        Self { tcp, udp, starter: Starter::default().inherit(copies, "web:datagrams"), service }
    }

    fn defers(&self) -> i32 {
        match get(&self.tcp, SocketOption::DeferAccept).expect("TCP_DEFER_ACCEPT") {
            Value::Number(seconds) => seconds,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_release_that_is_rolled_back_leaves_nothing_on_the_sockets() {
    let shared = Shared::new();
    let mut manager = shared.starter.start(shared.service.clone().release(1));
    manager.wait_ready();
    assert_eq!(shared.tcp.local_addr().expect("an address"), shared.udp.local_addr().expect("an address"));
    let tcp = shared.tcp;
    for (harm, words) in [
        ("defer", "TCP_DEFER_ACCEPT set by another release than the one that serves; put back"),
        ("dont-route", "its SO_DONTROUTE was changed"),
        ("connect", "it was connected to one peer"),
    ] {
        let place = manager.place();
        let bad = shared.service.clone().release(2).args(["--hurt-first", harm, "--exit", "3"]);
        assert_eq!(manager.upgrade(bad).verdict, Verdict::RolledBack);
        manager.wait_log(place, [words]);
        assert_eq!(get(&tcp, SocketOption::DeferAccept).expect("read"), Value::Number(0), "{harm}");
        assert_eq!(getsockopt(&tcp, sockopt::DontRoute), Ok(false), "{harm}");
        manager.wait_until("a datagram socket without a peer", || shared.udp.peer_addr().err());
        assert_eq!(release_at(&Target::Tcp(tcp.local_addr().expect("an address"))), "1");
    }
    manager.stop();
}

#[test]
fn what_a_release_that_serves_has_set_is_its_wish_unless_it_deafens() {
    let mut shared = Shared::new();
    let tuned = shared.service.clone().args(["--hurt-first", "defer"]);
    let mut manager = std::mem::take(&mut shared.starter).start(tuned.clone().release(1));
    manager.wait_ready();
    let wish = shared.defers();
    assert!(wish >= 60, "{wish}");
    manager.upgrade_committed(tuned.release(2));
    assert_eq!(shared.defers(), wish);
    let bad = shared.service.clone().release(3).args(["--exit", "3"]);
    assert_eq!(manager.upgrade(bad).verdict, Verdict::RolledBack);
    assert_eq!(shared.defers(), wish, "the release that serves has set it");
    manager.upgrade_committed(shared.service.clone().release(4).args(["--hurt-first", "dont-route"]));
    manager.wait_log(Place::START, ["its SO_DONTROUTE was changed", "repaired"]);
    assert_eq!(getsockopt(&shared.tcp, sockopt::DontRoute), Ok(false));
    manager.stop();
}

#[test]
fn a_folder_that_became_a_link_gets_no_socket_and_the_status_says_so() {
    let starter = Starter::default();
    let (path, private) = (starter.path("app/run/web.sock"), starter.path("private"));
    fs::create_dir_all(starter.path("app/run")).expect("a folder");
    fs::create_dir(&private).expect("a folder");
    let service = Service::worker().listen(path.display());
    let mut manager = starter.start(service.clone().release(1));
    manager.wait_ready();
    let place = manager.place();
    let run = manager.path("app/run");
    fs::rename(&run, manager.path("app/old")).expect("another name");
    symlink(&private, &run).expect("a link");
    for entry in fs::read_dir(manager.path("app/old")).expect("a folder") {
        fs::remove_file(entry.expect("an entry").path()).expect("removed");
    }
    manager.wait_log(place, ["web.sock", "cannot be repaired", "Too many levels of symbolic links"]);
    let status = manager.cli(["status"]);
    assert!(status.stdout.contains("web.sock; broken, and could not be repaired"), "{status:#?}");
    let outcome = manager.upgrade(service.clone().release(2));
    assert_eq!(outcome.verdict, Verdict::Refused, "{outcome:?}");
    assert_eq!(fs::read_dir(&private).expect("a folder").count(), 0, "something was made behind the link");

    fs::remove_file(&run).expect("the link gone");
    fs::create_dir(&run).expect("a folder");
    manager.upgrade_committed(service.release(3));
    assert_eq!(release_at(&Target::Unix(path)), "3");
    manager.stop();
}

#[test]
fn a_file_that_has_the_name_of_the_spare_link_is_told_in_the_right_words() {
    let starter = Starter::default();
    let (path, spare) = (starter.path("web.sock"), starter.path(".web.sock.liveswap"));
    fs::write(&spare, "precious").expect("a file");
    let mut manager = starter.start(Service::worker().listen(path.display()).release(1));
    manager.wait_ready();
    let words = format!(
        "{}, where its spare link is to stand, is taken by something that is no socket",
        spare.display()
    );
    manager.wait_log(Place::START, [&words]);
    assert_eq!(release_at(&Target::Unix(path)), "1");
    manager.signal(Signal::SIGTERM);
    manager.wait_exit();
    assert_eq!(fs::read_to_string(&spare).expect("the file"), "precious");
}

#[test]
fn sockets_of_an_activator_are_used_instead_of_binding() {
    let (by_name, by_address) = (loopback(), loopback());
    let first = TcpListener::bind(by_name).expect("bind");
    let second = TcpListener::bind(by_address).expect("bind");
    let service = Service::worker()
        .workers(2)
        .socket(&format!("name = 'api'\nlisten = '{by_address}'"))
        .socket(&format!("name = 'web'\nlisten = '{by_name}'"));
    let copies = [&first, &second].map(|listener| OwnedFd::from(listener.try_clone().expect("a copy")));
    let mut manager = Starter::default().inherit(copies, "web:other").start(service.clone().release(1));
    manager.wait_ready();
    assert_eq!(release_at(&Target::Tcp(by_name)), "1");
    assert_eq!(release_at(&Target::Tcp(by_address)), "1");
    let ours = sockets_of(std::process::id().cast_signed());
    let shared = sockets_of(manager.pid()).into_iter().filter(|socket| ours.contains(socket)).count();
    assert_eq!(shared, 2, "the manager does not hold the activator's sockets");
    let load = Load::start(&[Target::Tcp(by_name), Target::Tcp(by_address)], &MODES);
    manager.upgrade_committed(service.release(2));
    load.wait_for_generation(2);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn a_socket_of_an_activator_that_matches_nothing_is_an_error_that_names_it() {
    let stray = TcpListener::bind(loopback()).expect("bind");
    let service = Service::worker().listen(loopback()).release(1);
    let mut manager = Starter::default().inherit([OwnedFd::from(stray)], "stray").start(service);
    let status = manager.wait_exit();
    assert!(!status.success(), "{status}");
    manager.wait_log(Place::START, ["stray"]);
}

#[test]
fn a_stale_path_is_replaced_and_a_live_one_is_refused() {
    let starter = Starter::default();
    let path = starter.path("web.sock");
    drop(UnixListener::bind(&path).expect("bind"));
    assert!(fs::metadata(&path).expect("a stale path").file_type().is_socket());
    let service = Service::worker().listen(path.display()).release(1);
    let mut manager = starter.start(service);
    manager.wait_ready();
    assert_eq!(release_at(&Target::Unix(path)), "1");
    manager.stop();

    let starter = Starter::default();
    let path = starter.path("web.sock");
    let live = UnixListener::bind(&path).expect("bind");
    let mut manager = starter.start(Service::worker().listen(path.display()).release(1));
    assert!(!manager.wait_exit().success());
    manager.wait_log(Place::START, ["web.sock"]);
    live.set_nonblocking(true).expect("a living listener");
    assert!(path.exists(), "the path of a live socket was removed");
}

#[test]
fn an_address_that_is_taken_ends_the_start_with_a_clear_error() {
    let taken = TcpListener::bind(loopback()).expect("bind");
    let address = taken.local_addr().expect("its address").to_string();
    let mut manager = Starter::default().start(Service::worker().listen(&address).release(1));
    let status = manager.wait_exit();
    assert_eq!(status.code(), Some(1), "{status}");
    manager.wait_log(Place::START, [&address]);
}

#[test]
fn datagrams_are_answered_over_an_upgrade() {
    let address = loopback();
    let service = Service::worker().workers(2).socket(&format!("listen = '{address}'\ntype = 'datagram'"));
    let manager = Manager::start(service.clone().release(1));
    let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
    client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let exchange = || {
        client.send_to(b"?", address).expect("send");
        let mut answer = [0; 256];
        let length = client.recv(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    assert!(exchange().starts_with("release=1 "));
    for release in 2..=5 {
        manager.upgrade_committed(service.clone().release(release));
        manager.wait_workers(release, 2);
        let answer = exchange();
        assert!(answer.starts_with(&format!("release={release} ")), "{answer}");
    }
    manager.stop();
}

#[test]
fn ipv6_and_abstract_names_are_served() {
    let port = 20_000 + u16::try_from(std::process::id() % 10_000).expect("a port");
    let address = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    if TcpListener::bind(address).is_err() {
        support::skipped::add("this machine has no IPv6, or the port is taken");
        return;
    }
    let name = format!("liveswap-test-{}", std::process::id());
    let service = Service::worker().listen(address).listen(format!("@{name}")).release(1);
    let manager = Manager::start(service.clone());
    assert_eq!(release_at(&Target::Tcp(address)), "1");
    let by_name = || {
        use std::os::linux::net::SocketAddrExt;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
        UnixStream::connect_addr(&address)
    };
    by_name().expect("a connection");
    manager.upgrade_committed(service.release(2));
    eventually("an answer of release 2", || (release_at(&Target::Tcp(address)) == "2").then_some(()));
    by_name().expect("a connection");
    manager.stop();
}

#[test]
fn a_socket_that_is_shut_down_without_end_is_repaired_each_time_and_told_of_a_few_times() {
    let mut shared = Shared::new();
    let mut manager = std::mem::take(&mut shared.starter).start(shared.service.clone().release(1));
    manager.wait_ready();
    for _ in 0..30 {
        nix::sys::socket::shutdown(shared.tcp.as_raw_fd(), nix::sys::socket::Shutdown::Read)
            .expect("shutdown");
        manager.wait_until("a socket that listens again", || {
            getsockopt(&shared.tcp, sockopt::AcceptConn).expect("read").then_some(())
        });
    }
    assert_eq!(release_at(&Target::Tcp(shared.tcp.local_addr().expect("an address"))), "1");
    // The last of them was told of, if at all, by now.
    manager.upgrade_committed(shared.service.clone().release(2));
    let told =
        manager.lines_since(Place::START).iter().filter(|line| line.contains("it was shut down")).count();
    assert_eq!(told, 10, "repairs told of");
    manager.stop();
}

#[test]
fn the_port_that_the_kernel_chose_is_told_and_stays() {
    let service = Service::worker()
        .socket("name = 'one'\nlisten = '127.0.0.1:0'")
        .socket("name = 'two'\nlisten = '127.0.0.1:0'");
    let mut manager = Manager::start(service.clone().release(1));
    let ports = |manager: &Manager| {
        let status = manager.ask(r#"{"cmd":"status"}"#);
        let sockets = status["status"]["sockets"].as_array().expect("sockets").clone();
        let port = |socket: &serde_json::Value| socket["listen"].as_str().expect("an address").parse();
        sockets.iter().map(|socket| port(socket).expect("an address")).collect::<Vec<SocketAddr>>()
    };
    let chosen = ports(&manager);
    assert!(chosen.len() == 2 && chosen[0] != chosen[1], "{chosen:?}");
    for (name, address) in ["one", "two"].into_iter().zip(&chosen) {
        let line = format!("socket `{name}` (127.0.0.1:0) listens on {address}");
        manager.wait_log(Place::START, [&line]);
        assert_eq!(release_at(&Target::Tcp(*address)), "1");
    }
    manager.upgrade_committed(service.clone().release(2));
    assert_eq!(ports(&manager), chosen);
    manager.reexec();
    manager.upgrade_committed(service.release(3));
    assert_eq!(ports(&manager), chosen);
    manager.restart_after_crash();
    assert_eq!(ports(&manager), chosen);
    manager.stop();
}

#[test]
fn the_control_server_of_the_same_file_is_blamed_for_its_address() {
    let address = loopback();
    let service = Service::worker().listen(address).set("control.tcp", format!("'{address}'"));
    let mut manager = Starter::default().start(service);
    manager.wait_log(Place::START, ["the control server", "of the same service has this address"]);
    assert!(!manager.wait_exit().success());
}

fn is_refused<T>(connection: &io::Result<T>) -> bool {
    connection.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Starts two workers at a TCP address and a UNIX path, and opens a connection by TCP that keeps one of them from ending.
fn start_with_a_held_connection(starter: Starter, address: SocketAddr, path: &Path) -> (Manager, Connection) {
    let service = Service::worker().workers(2).listen(address).listen(path.display());
    let mut manager = starter.start(service);
    manager.wait_ready();
    let mut held = Connection::open(&Target::Tcp(address)).expect("a connection");
    held.get("/", true).expect("an answer");
    (manager, held)
}

#[test]
fn while_a_stop_drains_new_clients_are_refused_and_old_ones_served() {
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let (mut manager, mut held) = start_with_a_held_connection(starter, address, &path);
    manager.signal(Signal::SIGTERM);
    manager.wait_until("refused clients", || {
        (is_refused(&TcpStream::connect(address)) && UnixStream::connect(&path).is_err()).then_some(())
    });
    assert!(!path.exists(), "the path outlives the socket");
    held.get("/", false).expect("an answer by the worker that drains");
    assert!(manager.wait_exit().success());
}

#[test]
fn a_stop_leaves_the_path_of_a_socket_that_the_service_manager_keeps() {
    let starter = Starter::default().variable("FDSTORE", 8);
    let path = starter.path("web.sock");
    let mut manager = starter.start(Service::worker().listen(path.display()));
    manager.wait_ready();
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
    assert!(path.exists(), "clients cannot reach the stored socket");
    // Nobody has kept it in truth.
    assert!(is_refused(&UnixStream::connect(&path)));
}

#[test]
fn a_stop_that_is_replaced_in_its_midst_and_killed_is_followed_by_a_start_with_all_sockets() {
    let starter = Starter::default();
    let (address, path) = (loopback(), starter.path("web.sock"));
    let (mut manager, _held) = start_with_a_held_connection(starter, address, &path);
    let place = manager.place();
    manager.signal(Signal::SIGTERM);
    manager.wait_log(place, ["stopping: 2 workers"]);
    manager.signal(Signal::SIGUSR2);
    manager.wait_log(place, ["goes on as the manager"]);
    manager.restart_after_crash();
    for target in [Target::Tcp(address), Target::Unix(path)] {
        ask(&target).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    }
    manager.stop();
}

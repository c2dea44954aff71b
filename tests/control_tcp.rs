//! The control server on TCP: what it answers, who may speak, and that a client which may not does no harm.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::Value;
use support::client::{Load, MODES, Target};
use support::control::Client;
use support::log::Verdict;
use support::manager::{Manager, Place, Starter, copy_program, liveswap};
use support::service::Service;
use support::{eventually, is_root, loopback};

const TOKEN: &str = "correct-horse-battery-staple";

/// A service, and where its manager is spoken to.
fn service() -> (Service, SocketAddr) {
    let address = loopback();
    let control = SocketAddr::new(address.ip(), 3000);
    let service = Service::worker().workers(2).listen(address).set("upgrade.probation", "'0s'");
    (by_tcp(service, control), control)
}

fn by_tcp(service: Service, control: SocketAddr) -> Service {
    service.set("control.tcp", format!("'{control}'"))
}

/// Asks one thing on a connection of its own, whose first line shows no token.
fn ask_without(control: SocketAddr, line: &str) -> Value {
    let mut client = Client::by_tcp(control);
    client.say(line);
    client.hear()
}

/// Asks one thing on a connection of its own, with the token that the manager has made.
fn ask(manager: &Manager, control: SocketAddr, line: &str) -> Value {
    ask_with(&manager.token(), control, line)
}

fn ask_with(token: &str, control: SocketAddr, line: &str) -> Value {
    let mut line: Value = serde_json::from_str(line).expect("a request");
    line["token"] = token.into();
    ask_without(control, &line.to_string())
}

/// Writes a token file that nobody else can read.
fn write_token(path: &Path, token: &str) {
    fs::write(path, format!("{token}\n")).expect("the token");
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("chmod");
}

/// A manager that also lets in whoever shows the token.
fn start_with_token(service: Service) -> Manager {
    let starter = Starter::default();
    write_token(&starter.path("token"), TOKEN);
    let mut manager = starter.start(service.set("control.token_file", "'token'"));
    manager.wait_ready();
    manager
}

/// A shell of another user, or in another network, by words that go before it.
fn shell<const N: usize>(by: [&str; N], script: &str) -> Child {
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).args(["bash", "-c", script]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a shell")
}

/// What makes a command a stranger's.
const STRANGER: [&str; 4] = ["setpriv", "--reuid=4711", "--regid=4711", "--clear-groups"];

/// Has somebody say `text` to `to`, and returns the lines that he is answered before the end. That nobody takes all of it is
/// no failure.
fn told<const N: usize>(by: [&str; N], to: SocketAddr, text: &str) -> Vec<Value> {
    let (ip, port) = (to.ip(), to.port());
    let script = format!("trap '' PIPE; exec 3<>/dev/tcp/{ip}/{port}; printf '%s' '{text}' >&3; cat <&3");
    lines(shell(by, &script))
}

fn lines(child: Child) -> Vec<Value> {
    let output = child.wait_with_output().expect("its end");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn reason(line: &Value) -> &str {
    line["reason"].as_str().unwrap_or_default()
}

/// How many connections to `to` the kernel keeps whose maker has closed them, and has forgotten whose they were.
fn forgotten(to: SocketAddr) -> usize {
    let IpAddr::V4(ip) = to.ip() else { panic!("an IPv4 address") };
    let to = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), to.port());
    let table = fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    // FIN-WAIT-2, and no inode.
    fields.filter(|fields| fields[2] == to && fields[3] == "05" && fields[9] == "0").count()
}

fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

#[test]
fn it_answers_line_by_line_as_the_control_socket_does() {
    let (service, control) = service();
    let manager = Manager::start(service.clone().set("service.messages", "true"));
    manager.wait_log(Place::START, ["control server listening on", &control.to_string()]);
    let mut client = Client::with_token(control, &manager.token());
    client.say(r#"{"cmd":"upgrade","value":""}"#);
    let mut answer = client.hear();
    let note =
        answer.as_object_mut().and_then(|answer| answer.remove("note")).expect("a note on the old code");
    assert!(note.as_str().is_some_and(|note| note.starts_with("generations 1 and 2 share ")), "{note}");
    let expected = r#"{"cmd":"upgrade","value":"OK","ok":true,"outcome":"committed","generation":2,"old_code":"same folder"}"#;
    assert_eq!(answer, serde_json::from_str::<Value>(expected).expect("JSON"));
    client.say(r#"{"cmd":"message","value":"π"}"#);
    assert_eq!(client.hear()["value"], "OK");
    // A command that is wrong is a command; so are long ones, and several at once.
    let long = format!("{{\"cmd\":\"fly\",\"id\":2,\"more\":\"{}\"}}\n", "x".repeat(60_000));
    client
        .send(format!("{{\"cmd\":\"ping\",\"id\":1}}\n{long}{{\"cmd\":\"status\",\"id\":3}}\r\n").as_bytes());
    let (ping, fly, status) = (client.hear(), client.hear(), client.hear());
    assert_eq!((&ping["id"], &ping["service"]), (&1.into(), &"web".into()));
    assert_eq!((&fly["id"], &fly["value"]), (&2.into(), &"unknown cmd `fly`".into()));
    assert_eq!(status["status"]["phase"], "serving", "{status}");
    // Who shuts its mouth still hears its answer.
    client.say(r#"{"cmd":"respawn"}"#);
    client.fall_silent();
    assert_eq!(client.hear()["outcome"], "committed");
    assert_eq!(client.try_hear(), None);
    manager.stop();
    assert!(is_free(control));
}

#[test]
fn kill_and_die_are_answered_by_their_names_on_either_socket() {
    let (service, control) = service();
    let mut manager = Manager::start(service.args(["--ignore-term"]));
    let first = manager.workers();
    let mut by_tcp = Client::with_token(control, &manager.token());
    by_tcp.say(r#"{"cmd":"kill","id":7}"#);
    let answer = by_tcp.hear();
    assert_eq!((&answer["cmd"], &answer["value"], &answer["id"]), (&"kill".into(), &"OK".into(), &7.into()));
    let second = manager.wait_workers(1, 2);
    assert!(second.iter().all(|worker| first.iter().all(|old| old.pid != worker.pid)), "{second:?}");
    let answer = manager.ask(r#"{"cmd":"kill"}"#);
    assert_eq!((&answer["cmd"], &answer["value"]), (&"kill".into(), &"OK".into()));
    by_tcp.say(r#"{"cmd":"die"}"#);
    let answer = by_tcp.hear();
    assert_eq!((&answer["cmd"], &answer["value"]), (&"die".into(), &"OK".into()));
    // It is true when it is said.
    let address = SocketAddr::new(control.ip(), 8080);
    assert!(is_free(control) && is_free(address) && !manager.control_path().exists());
    assert_eq!(by_tcp.try_hear(), None);
    assert!(manager.wait_exit().success());
}

#[test]
fn whoever_shows_no_token_is_refused_the_owner_included() {
    let (service, control) = service();
    let manager = Manager::start(service);
    let workers = manager.workers();
    let refused = |said: &Value, why: &str| {
        assert!(said["ok"] == false && reason(said).contains(why), "{why}: {said}");
    };
    refused(&ask_without(control, r#"{"cmd":"die"}"#), "the first line must have the `token`");
    refused(&ask_with("", control, r#"{"cmd":"die"}"#), "the `token` is not the right one");
    let other = manager.token().replace(char::is_numeric, "x");
    refused(&ask_with(&other, control, r#"{"cmd":"die"}"#), "the `token` is not the right one");
    if is_root("being another user") {
        let said = told(STRANGER, control, "{\"cmd\":\"die\"}\n");
        assert_eq!(said.len(), 1, "{said:?}");
        refused(&said[0], "the first line must have the `token`");
    }
    assert_eq!(
        (ask(&manager, control, r#"{"cmd":"ping"}"#)["ok"].clone(), manager.workers()),
        (true.into(), workers)
    );
    manager.stop();
}

#[test]
fn the_managers_own_token_is_its_users_alone_and_lasts_as_long_as_the_service() {
    let (service, control) = service();
    let mut manager = Starter::default().of_a_copy().start(service);
    manager.wait_ready();
    let path = manager.path("run/token");
    let mode = fs::metadata(&path).expect("the token").permissions().mode();
    assert_eq!((mode & 0o777, manager.token().len()), (0o600, 64));
    let first = manager.token();
    manager.reexec();
    assert_eq!(
        (manager.token(), &ask(&manager, control, r#"{"cmd":"ping"}"#)["ok"]),
        (first.clone(), &true.into())
    );
    manager.crash();
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["are taken over"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    assert_eq!(
        (manager.token(), &ask(&manager, control, r#"{"cmd":"ping"}"#)["ok"]),
        (first.clone(), &true.into())
    );
    // Removed together with the control socket, it is written again.
    fs::remove_file(&path).expect("the token");
    fs::remove_file(manager.control_path()).expect("the control socket");
    manager.wait_log(place, ["it is bound anew"]);
    assert_eq!(manager.token(), first);
    manager.signal(Signal::SIGTERM);
    assert!(manager.wait_exit().success());
    assert!(!path.exists(), "it goes with the service");
    manager.restart();
    manager.wait_until("another token", || {
        fs::read_to_string(&path).is_ok_and(|token| !token.is_empty()).then_some(())
    });
    assert_ne!(manager.token(), first);
    manager.stop();
}

/// A service whose manager asks its user and root for no token.
fn of_local_owner() -> (Service, SocketAddr) {
    let (service, control) = service();
    (service.set("control.local_owner", "true"), control)
}

#[test]
fn under_local_owner_the_owner_needs_no_token_and_a_stranger_does() {
    let (service, control) = of_local_owner();
    let manager = Manager::start(service.clone());
    assert_eq!(ask_without(control, r#"{"cmd":"ping"}"#)["ok"], true);
    assert_eq!(ask(&manager, control, r#"{"cmd":"ping"}"#)["ok"], true, "a token that is shown does no harm");
    if is_root("being another user") {
        let said = told(STRANGER, control, "{\"cmd\":\"ping\"}\n");
        assert!(reason(&said[0]).contains("the first line must have the `token`"), "{said:?}");
    }
    manager.upgrade_committed(service.set("control.local_owner", "false"));
    let refused = ask_without(control, r#"{"cmd":"ping"}"#);
    assert!(reason(&refused).contains("the first line must have the `token`"), "{refused}");
    manager.stop();
}

/// A TCP socket of which anybody who has it can make a client: who made it says nothing of who speaks by it then. Of one that has listened
/// only some kernels let a client be made (not 6.18.44, for one).
fn unconnected() -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket")
}

fn connect(socket: OwnedFd, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else { panic!("an IPv4 address") };
    nix::sys::socket::connect(socket.as_raw_fd(), &nix::sys::socket::SockaddrIn::from(to))
        .expect("a connection");
    socket.into()
}

#[test]
fn under_local_owner_a_socket_that_a_stranger_holds_too_does_not_speak_for_its_maker() {
    if !is_root("being another user") {
        return;
    }
    let (service, control) = of_local_owner();
    let manager = Manager::start(service);
    let ask_by = |socket: OwnedFd, stranger: Option<Child>| {
        let mut stream = connect(socket, control);
        std::io::Write::write_all(&mut stream, b"{\"cmd\":\"ping\"}\n").expect("a request");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("an answer");
        if let Some(mut stranger) = stranger {
            stranger.kill().expect("SIGKILL");
            stranger.wait().expect("its end");
        }
        serde_json::from_str::<Value>(&line).expect("JSON")
    };
    assert_eq!(ask_by(unconnected(), None)["ok"], true, "root alone has it");
    let shared = unconnected();
    let mut command = Command::new(STRANGER[0]);
    // It has become the stranger when it has said so.
    command.args(&STRANGER[1..]).args(["sh", "-c", "echo; exec sleep 600"]).stdout(Stdio::piped());
    let mut stranger = command.stdin(shared.try_clone().expect("a copy")).spawn().expect("setpriv");
    let mut line = String::new();
    BufReader::new(stranger.stdout.as_mut().expect("its output")).read_line(&mut line).expect("a line");
    let refused = ask_by(shared, Some(stranger));
    assert!(reason(&refused).contains("the first line must have the `token`"), "{refused}");
    manager.stop();
}

#[test]
fn under_local_owner_a_worker_does_not_speak_for_its_manager() {
    let (service, control) = of_local_owner();
    let (ip, port) = (control.ip(), control.port());
    let script = format!(
        "(exec 3<>/dev/tcp/{ip}/{port}; printf \"{{\\\"cmd\\\":\\\"ping\\\"}}\\n\" >&3; head -n 1 <&3 >said.new; mv said.new said) &"
    );
    let service = service.workers(1).after(&format!("bash -c '{script} wait'"));
    let manager = Manager::start(service);
    let said =
        manager.wait_until("what the worker is told", || fs::read_to_string(manager.path("said")).ok());
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert!(reason(&said).contains("the first line must have the `token`"), "{said}");
    manager.stop();
}

#[test]
fn a_stranger_who_has_gone_before_it_is_met_does_not_pass_for_root() {
    if !is_root("being another user") {
        return;
    }
    let (service, control) = of_local_owner();
    let manager = Manager::start(service);
    let workers = manager.workers();
    let script = format!(
        "for i in 1 2 3 4 5; do exec 3<>/dev/tcp/{}/{}; printf '{{\"cmd\":\"die\"}}\\n' >&3; exec 3>&-; done",
        control.ip(),
        control.port()
    );
    // The manager finds connections that are closed already.
    manager.signal(Signal::SIGSTOP);
    let status = shell(STRANGER, &script).wait().expect("its end");
    assert!(status.success());
    eventually("that the kernel forgets whose they are", || (forgotten(control) == 5).then_some(()));
    manager.signal(Signal::SIGCONT);
    assert_eq!(ask(&manager, control, r#"{"cmd":"status"}"#)["status"]["phase"], "serving");
    assert_eq!(manager.workers(), workers);
    manager.stop();
}

#[test]
fn a_browser_cannot_be_made_to_speak_to_it() {
    let (service, control) = service();
    let manager = Manager::start(service);
    let workers = manager.workers();
    let body = "{\"cmd\":\"die\"}\n";
    let head =
        format!("Host: {control}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", body.len());
    for request in [
        format!("GET / HTTP/1.1\r\n{head}"),
        format!("POST / HTTP/1.1\r\n{head}{body}"),
        format!("GET /{} HTTP/1.1\r\n{head}{body}", "x".repeat(3000)),
        format!("\r\n\r\n{body}"),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{body}"),
        format!("\u{16}\u{3}\u{1}\n{body}"),
    ] {
        let mut client = Client::by_tcp(control);
        client.send(request.as_bytes());
        let refusal = client.hear();
        assert!(reason(&refusal).starts_with("a line must be a JSON object"), "{refusal}");
        assert_eq!(client.try_hear(), None, "{request:?}");
    }
    // In pieces, as a slow network brings it: nothing after the first line is heard.
    let mut client = Client::by_tcp(control);
    client.send(b"POST / HT");
    client.send(b"TP/1.1\r\n");
    assert!(reason(&client.hear()).starts_with("a line must be a JSON object"));
    client.send(format!("{head}{body}").as_bytes());
    assert_eq!(client.try_hear(), None);
    // One that has spoken commands before is no exception.
    let mut client = Client::with_token(control, &manager.token());
    client.send(format!("{{\"cmd\":\"ping\"}}\nnonsense\n{body}").as_bytes());
    assert_eq!((client.hear()["ok"].clone(), client.hear()["ok"].clone()), (true.into(), false.into()));
    assert_eq!(client.try_hear(), None);
    assert_eq!(manager.workers(), workers);
    manager.stop();
}

#[test]
fn a_long_line_is_refused_and_the_service_unharmed() {
    let (service, control) = service();
    let manager = Manager::start(service);
    let mut client = Client::with_token(control, &manager.token());
    client.send(&vec![b'x'; 10 << 20]);
    let refusal = client.try_hear();
    assert!(refusal.is_none_or(|refusal| refusal["value"] == "a line has at most 1052672 bytes"));
    assert_eq!(client.try_hear(), None);
    let resident = manager.resident();
    assert!(resident < 64 * 1024, "{resident} KiB");
    assert_eq!(ask(&manager, control, r#"{"cmd":"ping"}"#)["ok"], true);
    manager.stop();
}

#[test]
fn a_thousand_idle_clients_and_half_lines_keep_nobody_out() {
    let (service, control) = service();
    let manager = Manager::start(service);
    let before = manager.open_descriptors();
    let load = Load::start(&[Target::Tcp(SocketAddr::new(control.ip(), 8080))], &MODES);
    let token = manager.token();
    let mut upgrade = Client::with_token(control, &token);
    upgrade.say(r#"{"cmd":"events"}"#);
    assert_eq!(upgrade.hear()["ok"], true);
    let mut idle: Vec<Client> = Vec::new();
    for number in 0..1000 {
        let mut client = Client::with_token(control, &token);
        if number % 2 == 0 {
            client.send(b"{\"cmd\":");
        }
        idle.push(client);
    }
    assert_eq!(ask(&manager, control, r#"{"cmd":"status"}"#)["ok"], true);
    assert_eq!(manager.ask(r#"{"cmd":"status"}"#)["ok"], true, "the control socket has the same places");
    upgrade.say(r#"{"cmd":"upgrade"}"#);
    upgrade.wait_event("upgrade-ended");
    let first = idle.remove(0).try_hear().expect("a reason");
    assert!(reason(&first).contains("idle"), "{first}");
    manager
        .wait_until("no more than 64 held", || (manager.open_descriptors() < before + 64 + 24).then_some(()));
    load.wait_for_more(20);
    drop(idle);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn a_thousand_who_show_no_token_push_out_nobody_who_may_speak() {
    if !is_root("being another user") {
        return;
    }
    let (service, control) = service();
    let manager = start_with_token(service);
    let before = manager.open_descriptors();
    // Idle, and there before all of them.
    let mut idle: Vec<Client> = (0..60).map(|_| Client::with_token(control, TOKEN)).collect();
    assert_eq!(ask_with(TOKEN, control, r#"{"cmd":"ping"}"#)["ok"], true, "all are let in");
    let script = format!(
        "ulimit -n 2048; for i in {{1..1000}}; do exec {{fd}}<>/dev/tcp/{}/{}; printf '{{\"cmd\":' >&$fd; done; \
         echo; read",
        control.ip(),
        control.port()
    );
    let mut crowd = shell(STRANGER, &script);
    let mut line = String::new();
    BufReader::new(crowd.stdout.as_mut().expect("its output")).read_line(&mut line).expect("a line");
    assert_eq!(ask_with(TOKEN, control, r#"{"cmd":"ping"}"#)["ok"], true);
    // Those that had to go may still be on their way to be closed.
    manager.wait_until("no more held than have a place", || {
        (manager.open_descriptors() <= before + 60 + 16 + 8).then_some(())
    });
    // One who shows it comes through the crowd.
    let said = told(STRANGER, control, &format!("{{\"cmd\":\"ping\",\"token\":\"{TOKEN}\"}}\n-\n"));
    assert_eq!(said[0]["ok"], true, "{said:?}");
    for client in &mut idle {
        client.say(r#"{"cmd":"ping"}"#);
        assert_eq!(client.hear()["ok"], true);
    }
    drop(crowd.stdin.take());
    crowd.wait().expect("its end");
    manager.stop();
}

/// A flood of newcomers costs the owner of the token a place now and then, and never the service.
#[test]
fn a_flood_of_strangers_does_not_keep_the_owner_of_the_token_out() {
    if !is_root("being another user") {
        return;
    }
    let (service, control) = service();
    let manager = Manager::start(service);
    let token = manager.token();
    let script = format!(
        "ulimit -n 64; echo; while :; do for fd in {{10..40}}; do eval \"exec $fd<>/dev/tcp/{}/{}; printf x >&$fd\"; done; done",
        control.ip(),
        control.port()
    );
    let mut flood = shell(STRANGER, &script);
    let mut line = String::new();
    BufReader::new(flood.stdout.as_mut().expect("its output")).read_line(&mut line).expect("a line");
    let served = (0..100).filter(|_| {
        let mut client = Client::by_tcp(control);
        client.say(&format!("{{\"cmd\":\"ping\",\"token\":\"{token}\"}}"));
        client.try_hear().is_some_and(|answer| answer["ok"] == true)
    });
    let served = served.count();
    assert!(flood.try_wait().expect("wait").is_none(), "the flood goes on");
    flood.kill().expect("SIGKILL");
    flood.wait().expect("its end");
    assert!(served >= 80, "{served} of 100 were served");
    manager.stop();
}

#[test]
fn a_token_file_is_what_everybody_shows() {
    if !is_root("being another user") {
        return;
    }
    let (service, control) = service();
    let manager = start_with_token(service);
    assert_eq!(ask_with(TOKEN, control, r#"{"cmd":"ping"}"#)["ok"], true);
    let refused = ask(&manager, control, r#"{"cmd":"ping"}"#);
    assert!(reason(&refused).contains("not the right one"), "the manager's own does not count beside it");
    // Shown once, it holds for the connection.
    let right = format!("{{\"cmd\":\"ping\",\"token\":\"{TOKEN}\"}}\n{{\"cmd\":\"ping\"}}\nthe end\n");
    let said = told(STRANGER, control, &right);
    let ok: Vec<_> = said.iter().map(|line| (line["cmd"].as_str(), line["ok"].as_bool())).collect();
    assert_eq!(ok, [(Some("ping"), Some(true)), (Some("ping"), Some(true)), (Some(""), Some(false))]);
    for (line, why) in [
        ("{\"cmd\":\"die\"}\n".to_owned(), "the first line must have the `token`"),
        (format!("{{\"cmd\":\"die\",\"token\":\"{TOKEN}x\"}}\n{right}"), "the `token` is not the right one"),
        (format!("\n{right}"), "a line must be a JSON object"),
        (format!("{}\n{right}", "x".repeat(5000)), "a line has at most 4096 bytes"),
    ] {
        let said = told(STRANGER, control, &line);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(reason(&said[0]).contains(why), "{why}: {said:?}");
    }
    // Half a line for ever is not for ever.
    let said = told(STRANGER, control, "{\"cmd\":\"pi");
    assert_eq!(reason(&said[0]), "the token was not shown within 10 s");
    let log = manager.log.since(0).join("\n");
    assert!(!log.contains(TOKEN), "the token is nobody's to read");
    manager.stop();
}

#[test]
fn elsewhere_the_token_alone_decides() {
    if !is_root("a network of its own") {
        return;
    }
    let own = "ip link set lo up && ip address add 192.0.2.7/32 dev lo && exec \"$@\"";
    let starter = Starter::default().by(&["unshare", "--net", "sh", "-c", own, "sh"]);
    write_token(&starter.path("token"), TOKEN);
    let anywhere: SocketAddr = "0.0.0.0:3000".parse().expect("an address");
    let plain = Service::worker().set("upgrade.probation", "'0s'");
    let service = by_tcp(plain, anywhere).set("control.token_file", "'token'");
    let mut manager = starter.start(&service);
    manager.wait_ready();
    let network = format!("--net=/proc/{}/ns/net", manager.pid());
    let inside = ["nsenter", &network];
    let (elsewhere, here): (SocketAddr, SocketAddr) =
        ("192.0.2.7:3000".parse().expect("an address"), "127.0.0.1:3000".parse().expect("an address"));
    let say = |to: SocketAddr, token: &str| {
        told(inside, to, &format!("{{\"cmd\":\"ping\"{token}}}\nthe end\n")).remove(0)
    };
    let shown = |token: &str| format!(",\"token\":\"{token}\"");
    assert!(reason(&say(here, "")).contains("the first line must have the `token`"));
    assert!(reason(&say(elsewhere, "")).contains("the first line must have the `token`"), "root or not");
    assert!(reason(&say(elsewhere, &shown("wrong-horse-battery-staple-"))).contains("not the right one"));
    assert_eq!(say(elsewhere, &shown(TOKEN))["ok"], true);

    // Another token counts from the commit on.
    let other = "another-horse-battery-staple";
    write_token(&manager.path("token"), other);
    assert_eq!(say(elsewhere, &shown(TOKEN))["ok"], true);
    manager.upgrade(service.clone().args(["--exit", "1"]));
    assert_eq!(say(elsewhere, &shown(TOKEN))["ok"], true, "a release that failed changes nothing");
    manager.upgrade_committed(&service);
    assert!(reason(&say(elsewhere, &shown(TOKEN))).contains("not the right one"));
    assert_eq!(say(elsewhere, &shown(other))["ok"], true);
    manager.stop();
}

#[test]
fn a_token_file_that_others_may_use_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("token");
    let control: SocketAddr = "0.0.0.0:3000".parse().expect("an address");
    let service = by_tcp(Service::worker(), control).set("control.token_file", "'token'");
    fs::write(folder.path().join("web.toml"), service.to_string()).expect("the service file");
    let check = |status: i32, words: &str| {
        let (ended, said) = liveswap(folder.path(), ["check", "web.toml"]);
        assert!(ended.code() == Some(status) && said.contains(words), "{words}: {ended}: {said}");
    };
    check(3, "No such file or directory");
    write_token(&path, TOKEN);
    check(0, "");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("chmod");
    check(0, "");
    for mode in [0o604, 0o640, 0o620, 0o601] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("chmod");
        check(3, &format!("others may use it (mode {mode:04o}); make it the owner's alone: chmod 600"));
    }
    write_token(&path, "too-short");
    check(3, "the token must have 16 to 1024 characters, not 9");
    write_token(&path, "two words are one too many");
    check(3, "visible ASCII characters alone");
    if is_root("a file of another user") {
        write_token(&path, TOKEN);
        chown(&path, Some(4711), None).expect("chown");
        check(3, "it belongs to user 4711");
    }
    fs::remove_file(&path).expect("the token");
    fs::create_dir(&path).expect("a folder");
    check(3, "it is no regular file");
}

#[test]
fn a_taken_address_is_an_error_at_the_start() {
    let (service, control) = service();
    let taken = TcpListener::bind(control).expect("the address");
    let mut manager = Starter::default().start(&service);
    assert_eq!(manager.wait_exit().code(), Some(1));
    manager
        .wait_log(Place::START, ["`[control] tcp`", &control.to_string(), "cannot listen on this address"]);
    manager.wait_log(Place::START, ["Hint", "ss -ltnp 'sport = :3000'"]);
    drop(taken);
}

#[test]
fn an_upgrade_moves_the_control_server_when_it_is_committed_and_not_before() {
    let (service, old) = service();
    let new = SocketAddr::new(old.ip(), 3001);
    let manager = Manager::start(service.clone());
    let before = manager.open_descriptors();
    let mut held = Client::with_token(old, &manager.token());

    let taken = TcpListener::bind(new).expect("the address");
    let refused = manager.upgrade(by_tcp(service.clone(), new));
    assert_eq!(refused.verdict, Verdict::Refused);
    assert!(refused.reason.contains("cannot listen on this address"), "{}", refused.reason);
    drop(taken);
    let covers: SocketAddr = SocketAddr::new([0, 0, 0, 0].into(), 3000);
    write_token(&manager.path("token"), TOKEN);
    let refused = manager.upgrade(by_tcp(service.clone(), covers).set("control.token_file", "'token'"));
    assert!(refused.reason.contains("the present one"), "{}", refused.reason);

    let failed = manager.upgrade(by_tcp(service.clone(), new).args(["--exit", "1"]));
    assert_eq!(failed.verdict, Verdict::RolledBack);
    manager.wait_until("the new address free again", || is_free(new).then_some(()));
    assert_eq!(ask(&manager, old, r#"{"cmd":"ping"}"#)["ok"], true);

    manager.upgrade_committed(by_tcp(service.clone(), new));
    assert_eq!(ask(&manager, new, r#"{"cmd":"ping"}"#)["ok"], true);
    assert!(TcpStream::connect(old).is_err());
    held.say(r#"{"cmd":"ping"}"#);
    assert_eq!(held.hear()["ok"], true, "a connection that is there stays");
    let place = manager.place();
    assert_eq!(ask(&manager, new, r#"{"cmd":"rollback"}"#)["outcome"], "committed");
    // The answer may be here before the line of the log, which is not to be taken for that of the next upgrade.
    manager.wait_log(place, ["generation 6 committed"]);
    manager.wait_said(place, "READY=1", |message| message.is("READY"));
    assert_eq!(ask(&manager, old, r#"{"cmd":"ping"}"#)["ok"], true);
    assert!(is_free(new));

    manager.upgrade_committed(Service::worker().workers(2).set("upgrade.probation", "'0s'"));
    assert!(is_free(old));
    drop(held);
    manager.wait_until("no descriptor more than before", || {
        (manager.open_descriptors() <= before).then_some(())
    });
    manager.stop();
}

#[test]
fn a_reexec_keeps_the_listener_and_whoever_waits() {
    let starter = Starter::default().of_a_copy();
    let (service, control) = service();
    let moved = SocketAddr::new(control.ip(), 3001);
    let mut manager = starter.start(service.clone());
    manager.wait_ready();
    manager.rewrite(by_tcp(service, moved).set("upgrade.probation", "'1h'"));
    let token = manager.token();
    let mut watcher = Client::with_token(control, &token);
    watcher.say(r#"{"cmd":"events"}"#);
    let mut upgrade = Client::with_token(control, &token);
    upgrade.say(r#"{"cmd":"upgrade"}"#);
    watcher.wait_event("probation");
    // One has come to the listener that is not yet listened to; half of a line is said.
    let mut early = Client::by_tcp(moved);
    early.say(r#"{"cmd":"ping"}"#);
    upgrade.send(b"{\"cmd\":");
    for _ in 0..2 {
        let place = manager.place();
        copy_program(&manager.path("liveswap"));
        assert_eq!(ask(&manager, control, r#"{"cmd":"reexec"}"#)["value"], "OK");
        manager.wait_log(place, ["goes on as the manager"]);
    }
    upgrade.send(b"\"ping\"}\n");
    assert_eq!(upgrade.hear()["cmd"], "ping");
    assert_eq!(ask(&manager, control, r#"{"cmd":"rollback"}"#)["ok"], true);
    let answer = upgrade.hear();
    assert_eq!((&answer["cmd"], &answer["outcome"]), (&"upgrade".into(), &"rolled-back".into()));
    watcher.wait_event("upgrade-ended");
    assert_eq!(early.try_hear(), None, "the new listener has gone with its generation");
    assert_eq!(ask(&manager, control, r#"{"cmd":"die"}"#)["value"], "OK");
    assert!(is_free(control) && is_free(moved));
    assert!(manager.wait_exit().success());
}

#[test]
fn it_is_there_until_the_last_worker_has_gone() {
    let (service, control) = service();
    let mut manager = Manager::start(service);
    let mut held = TcpStream::connect(SocketAddr::new(control.ip(), 8080)).expect("the service");
    let place = manager.place();
    let token = manager.token();
    let mut stop = Client::with_token(control, &token);
    std::io::Write::write_all(&mut held, b"GET / HTTP/1.1\r\nHost: a\r\n").expect("half a request");
    manager.signal(Signal::SIGTERM);
    manager.wait_log(place, ["stopping"]);
    stop.say(r#"{"cmd":"stop"}"#);
    stop.say(r#"{"cmd":"ping"}"#);
    assert_eq!(stop.hear()["cmd"], "ping");
    assert_eq!(ask(&manager, control, r#"{"cmd":"die"}"#)["value"], "OK");
    assert_eq!(stop.hear()["cmd"], "stop");
    assert!(is_free(control));
    assert!(manager.wait_exit().success());
    let mut rest = Vec::new();
    let _ = held.read_to_end(&mut rest);
}

//! Every form of `listen()`: each serves, and goes on to over upgrades, without a failed request.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::{fs, process};

use crate::support::client::{Load, Target, ask_any};
use crate::support::log::Log;
use crate::support::manager::{Manager, Place, Starter};
use crate::support::node::{MODES, load, service};
use crate::support::service::Service;
use crate::support::{PATIENCE, eventually, is_installed, is_root, loopback};

const IPV4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const IPV6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Returns a port that is free at all addresses of the machine, below those that the kernel gives away.
fn port() -> u16 {
    static COUNTER: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + u16::try_from(process::id() % 1_000).expect("a port") * 20;
    eventually("a free port", || {
        let port = first + COUNTER.fetch_add(1, Ordering::Relaxed) % 20;
        let all = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
        all.iter().all(|ip| TcpListener::bind((*ip, port)).is_ok()).then_some(port)
    })
}

/// Whether this machine has IPv6; where it has not, the test says so.
fn has_ipv6() -> bool {
    let has = TcpListener::bind((IPV6, 0)).is_ok();
    if !has {
        crate::support::skipped::add("this machine has no IPv6");
    }
    has
}

/// Upgrades `one.js` to `two.js`, back and once more, under load at each of the targets.
fn upgrade_under_load(manager: &Manager, targets: &[Target]) {
    let loads: Vec<Load> = targets.iter().map(|target| load(target, &MODES)).collect();
    let wait_for = |program: &str| {
        for load in &loads {
            load.wait_for_more_of(program, 20);
        }
    };
    wait_for("one");
    for program in ["two", "one", "two"] {
        manager.upgrade_to(&format!("{program}.js"));
        wait_for(program);
    }
    for load in loads {
        let report = load.stop();
        println!("{report}");
        if !report.failed.is_empty() {
            manager.fail(&report.to_string());
        }
    }
    manager.assert_ended_well();
}

/// Runs the same program through upgrades under load.
fn serve(starter: Starter, service: &Service, text: &str, targets: &[Target]) {
    if !is_installed("node") {
        return;
    }
    let manager = starter.programs(text).start_ready(service);
    upgrade_under_load(&manager, targets);
    manager.stop();
}

/// The same, at an address of its own.
fn serve_at(address: SocketAddr, text: &str) {
    serve(Starter::default(), &service("one.js", address), text, &[Target::Tcp(address)]);
}

#[test]
fn a_port_alone_is_all_addresses_of_both_ip_versions() {
    if has_ipv6() {
        let port = port();
        let targets = [IPV4, IPV6].map(|ip| Target::Tcp((ip, port).into()));
        let service = service("one.js", (IPV4, port).into());
        serve(Starter::default(), &service, "server().listen(PORT)", &targets);
    }
}

#[test]
fn a_host_and_a_port() {
    serve_at(loopback(), "server().listen(+PORT, HOST)");
}

#[test]
fn options_that_are_not_exclusive() {
    serve_at(loopback(), "server().listen({ host: HOST, port: PORT, exclusive: false, backlog: 100 })");
}

/// It is shared with no other worker, and with the next generation's all the same.
#[test]
fn options_that_are_exclusive() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let text = "server().listen({ host: HOST, port: PORT, exclusive: true })\n\
        .on('error', error => { console.error(error.code); process.exit(7) })";
    let service = service("one.js", address).workers(1).set("service.output", "'prefix'");
    let manager = Starter::default().programs(text).start_ready(&service);
    upgrade_under_load(&manager, &[Target::Tcp(address)]);
    let place = manager.place();
    manager.cli(["scale", "2"]).assert(0, []);
    manager.wait_log(place, ["(generation 4, slot 1", "exited with status 7"]);
    manager.wait_log(place, ["web.1 | EADDRINUSE"]);
    manager.stop();
}

#[test]
fn an_ipv6_host() {
    if has_ipv6() {
        serve_at((IPV6, port()).into(), "server().listen(PORT, HOST)");
    }
}

#[test]
fn ipv6_only() {
    if !has_ipv6() || !is_installed("node") {
        return;
    }
    let port = port();
    let text = "server().listen({ host: '::', port: PORT, ipv6Only: true })";
    let manager = Starter::default().programs(text).start_ready(&service("one.js", (IPV6, port).into()));
    upgrade_under_load(&manager, &[Target::Tcp((IPV6, port).into())]);
    let refused = TcpStream::connect((IPV4, port)).expect_err("the port of the other IP version");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    manager.stop();
}

#[test]
fn a_unix_path() {
    let starter = Starter::default();
    // Node makes the path absolute.
    let targets = [Target::Unix(starter.path("web.sock"))];
    serve(starter, &service("one.js", loopback()), "server().listen('web.sock')", &targets);
}

#[test]
fn a_port_that_the_kernel_chooses_is_one_for_all_workers_and_generations() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let text = "
const first = server().listen(0, HOST, () => console.error(`${release} ${slot} first ${first.address().port}`))
const second = server().listen(0, HOST, () => console.error(`${release} ${slot} second ${second.address().port}`))
";
    let manager = Starter::default().programs(text).start_ready(&service("one.js", address));
    let port = |worker: &str, which: &str| -> u16 {
        let line = manager.wait_log(Place::START, [&format!("{worker} {which} ")]);
        line.rsplit(' ').next().and_then(|port| port.parse().ok()).expect("a port")
    };
    let both = |worker: &str| ["first", "second"].map(|which| port(worker, which));
    let ports = both("one 0");
    assert_ne!(ports[0], ports[1], "two servers of one program");
    assert_eq!(both("one 1"), ports);
    upgrade_under_load(&manager, &ports.map(|port| Target::Tcp((address.ip(), port).into())));
    for worker in ["two 0", "two 1"] {
        assert_eq!(both(worker), ports, "{worker}");
    }
    manager.stop();
}

#[test]
fn several_servers_in_one_program() {
    let starter = Starter::default();
    let [first, second] = [loopback(), loopback()];
    let targets = [Target::Tcp(first), Target::Tcp(second), Target::Unix(starter.path("web.sock"))];
    let text = format!(
        "server().listen(PORT, HOST); server().listen(8080, '{}'); server().listen(__dirname + '/web.sock')",
        second.ip()
    );
    serve(starter, &service("one.js", first), &text, &targets);
}

#[test]
fn a_server_that_listens_half_a_second_later() {
    serve_at(loopback(), "setTimeout(() => server().listen(PORT, HOST), 500)");
}

#[test]
fn a_socket_of_the_service_file() {
    let address = loopback();
    let service = service("one.js", address).listen(address);
    serve(Starter::default(), &service, "server().listen({ fd: 3 })", &[Target::Tcp(address)]);
}

#[test]
fn datagrams() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let text = "
const socket = require('dgram').createSocket('udp4')
socket.on('message', (message, from) => socket.send(release, from.port, from.address))
socket.bind(PORT, HOST)
";
    let manager = Starter::default().programs(text).start_ready(&service("one.js", address));
    let client = UdpSocket::bind((address.ip(), 0)).expect("a socket");
    client.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let exchange = || {
        client.send_to(b"?", address).expect("send");
        let mut answer = [0; 16];
        let length = client.recv(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    for program in ["two", "one", "two"] {
        let target = manager.path(&format!("{program}.js")).display().to_string();
        let mut upgrade = manager.begin(["upgrade", "--target", &target]);
        let status = loop {
            exchange();
            if let Some(status) = upgrade.try_wait().expect("its end") {
                break status;
            }
        };
        assert!(status.success(), "{status}");
        eventually("an answer of the new one", || (exchange() == program).then_some(()));
    }
    manager.stop();
}

/// Asks over TLS until its input ends, each time with the ticket of the time before, and says what came of it.
const TLS_CLIENT: &str = "
const tls = require('tls')
const [host, port] = process.argv.slice(1)
let session
let stopped = false
process.stdin.resume().on('end', () => { stopped = true })
function ask() {
  if (stopped) return process.exit(0)
  let text = ''
  let was = 'new'
  const socket = tls.connect({ host, port, session, rejectUnauthorized: false }, () => {
    was = socket.isSessionReused() ? 'resumed' : 'new'
    socket.write('GET / HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n')
  })
  socket.on('session', (ticket) => { session = ticket })
  socket.on('data', (bytes) => { text += bytes })
  socket.on('error', (error) => console.log('failed', error.code))
  socket.on('close', () => {
    const whole = text.startsWith('HTTP/1.1 200 OK\\r\\n')
    console.log(whole ? `answer: ${text.split('\\r\\n\\r\\n')[1]} ${was}` : `failed: ${text}`)
    setTimeout(ask, 3)
  })
}
ask()
";

#[test]
fn https_and_the_tickets_of_one_worker_at_another() {
    if !is_installed("node") || !is_installed("openssl") {
        return;
    }
    let starter = Starter::default();
    let make = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"];
    let mut openssl = Command::new("openssl");
    openssl.args(make).arg("-keyout").arg(starter.path("key.pem")).arg("-out").arg(starter.path("cert.pem"));
    assert!(openssl.stderr(Stdio::null()).status().expect("openssl").success());
    let address = loopback();
    let text = "
const read = (name) => require('fs').readFileSync(`${__dirname}/${name}`)
// Tickets hold in one context alone, and unless told otherwise Node makes it of the command line.
const options = { key: read('key.pem'), cert: read('cert.pem'), sessionIdContext: 'web' }
require('https').createServer(options, (request, response) => response.end(release)).listen(PORT, HOST)
";
    let manager = starter.programs(text).start_ready(&service("one.js", address));
    let [host, port] = [address.ip().to_string(), address.port().to_string()];
    let mut node = Command::new("node");
    node.args(["-e", TLS_CLIENT, &host, &port]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut client = node.spawn().expect("a client");
    let said = Log::collect(client.stdout.take().expect("its output"));
    let wait_for = |program: &str, mut count: usize| {
        let wanted = format!("answer: {program} ");
        let found = said.wait(said.len(), PATIENCE, |line| {
            count -= usize::from(line.starts_with(&wanted));
            (count == 0).then_some(())
        });
        assert!(found.is_some(), "in vain awaited: answers of {program}: {:#?}", said.since(0));
    };
    wait_for("one", 20);
    for program in ["two", "one", "two"] {
        manager.upgrade_to(&format!("{program}.js"));
        wait_for(program, 20);
    }
    drop(client.stdin.take());
    assert!(client.wait().expect("its end").success());
    let lines = said.since(0);
    assert!(lines.iter().all(|line| line.starts_with("answer: ")), "{lines:#?}");
    let fresh = lines.iter().filter(|line| line.ends_with(" new")).count();
    println!("{} answers over TLS, {fresh} of them with a session of their own", lines.len());
    assert_eq!(fresh, 1, "all workers of all generations have the keys of the first: {lines:#?}");
    manager.stop();
}

#[test]
fn a_listen_that_fails_gives_the_program_its_usual_error() {
    if !is_installed("node") {
        return;
    }
    let [address, taken] = [loopback(), loopback()];
    let _taken = TcpListener::bind(taken).expect("the test's own listener");
    let handled = format!(
        "server().on('error', (error) => {{ console.error(`met ${{error.code}}`); process.exit(3) }})
.listen(8080, '{}')",
        taken.ip()
    );
    let starter = Starter::default()
        .programs("server().listen(PORT, HOST)")
        .program("handled.js", &handled)
        .program("unhandled.js", &format!("server().listen(8080, '{}')", taken.ip()));
    let service = service("one.js", address).set("service.output", "'prefix'");
    let manager = starter.start_ready(&service);
    let load = load(&Target::Tcp(address), &MODES);
    for (program, status, said) in
        [("handled", "status 3", "met EADDRINUSE"), ("unhandled", "status 1", "EADDRINUSE")]
    {
        let answer = manager.ask_target(&format!("{program}.js"));
        assert_eq!(answer["outcome"], "rolled-back", "{answer}");
        assert!(answer["reason"].as_str().is_some_and(|reason| reason.contains(status)), "{answer}");
        let stderr = answer["evidence"]["stderr"].to_string();
        assert!(stderr.contains(said), "{program}: {answer}");
        load.wait_for_more_of("one", 20);
    }
    manager.upgrade_to("two.js");
    load.wait_for_more_of("two", 20);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn a_socket_that_no_generation_uses_any_more_is_let_go_of() {
    if !is_installed("node") {
        return;
    }
    let [both, first, second] = [loopback(), loopback(), loopback()];
    let also = |address: SocketAddr| {
        format!("server().listen(PORT, HOST); server().listen(8080, '{}')", address.ip())
    };
    let starter = Starter::default().program("one.js", &also(first)).program("two.js", &also(second));
    let manager = starter.start_ready(&service("one.js", both));
    let load = load(&Target::Tcp(both), &MODES);
    let answers = |address| ask_any(&Target::Tcp(address), "/").map(|response| response.body);
    assert_eq!(answers(first).expect("an answer"), "one");
    let place = manager.place();
    manager.upgrade_to("two.js");
    assert_eq!(answers(second).expect("an answer"), "two");
    manager.wait_log(place, [&format!("socket {first} let go of")]);
    eventually("the end of the first one's port", || {
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        TcpStream::connect(first).is_err_and(refused).then_some(())
    });
    load.wait_for_more_of("two", 20);
    load.stop().assert_spotless();
    // Whoever comes back finds it free.
    manager.upgrade_to("one.js");
    assert_eq!(answers(first).expect("an answer"), "one");
    manager.stop();
}

#[test]
fn another_user_may_listen_where_it_could_by_itself_alone() {
    if !is_installed("node") || !is_root("another user") {
        return;
    }
    let address = loopback();
    let text = "
const listen = (...place) => server()
  .on('error', (error) => console.error(`${release} at ${place[0]}: ${error.code}`))
  .listen(...place, () => console.error(`${release} at ${place[0]}: listens`))
listen(80, HOST)
listen(`${__dirname}/web.sock`)
listen(PORT, HOST)
";
    let starter = Starter::default().programs(text);
    fs::set_permissions(starter.path(""), fs::Permissions::from_mode(0o755)).expect("a folder for all");
    let path = starter.path("web.sock");
    let service = service("one.js", address).set("service.user", "'nobody'");
    let manager = starter.start_ready(&service);
    let told = |program: &str| {
        for words in [
            format!("{program} at 80: EACCES"),
            format!("{program} at {}: EACCES", path.display()),
            format!("{program} at {}: listens", address.port()),
        ] {
            manager.wait_log(Place::START, [&words]);
        }
    };
    told("one");
    upgrade_under_load(&manager, &[Target::Tcp(address)]);
    told("two");
    assert!(!path.exists());
    manager.stop();
}

/// A port of the service file is granted for TCP or for UDP, not for both.
#[test]
fn another_user_gets_a_port_below_1024_for_the_kind_alone_that_the_file_grants() {
    if !is_installed("node") || !is_root("another user") {
        return;
    }
    let address = loopback();
    let (granted, beside) = (SocketAddr::new(address.ip(), 80), loopback().ip());
    let text = format!(
        "
const said = (what) => console.error(`${{release}}: ${{what}}`)
const failed = (what) => (error) => said(`${{what}}: ${{error.code}}`)
const dgram = require('dgram')
const datagrams = (port, host, what) => dgram.createSocket('udp4')
  .on('error', failed(what)).bind(port, host, () => said(`${{what}}: bound`))
const listen = (port, host, what) => server().on('error', failed(what)).listen(port, host, () => said(`${{what}}: listens`))
datagrams(80, HOST, 'udp 80')
datagrams(0, HOST, 'udp 0')
listen(80, HOST, 'tcp 80')
listen(80, '{beside}', 'tcp 80 elsewhere')
listen(80, '::ffff:' + HOST, 'tcp 80 mapped')
server().on('error', failed('fd 4')).listen({{ fd: 4 }}, () => said('fd 4: listens'))
listen(PORT, HOST, 'tcp')
"
    );
    let starter = Starter::default().programs(&text);
    fs::set_permissions(starter.path(""), fs::Permissions::from_mode(0o755)).expect("a folder for all");
    let service = service("one.js", address).listen(granted).set("service.user", "'nobody'");
    let manager = starter.start_ready(&service);
    for words in [
        "udp 80: EACCES",
        "udp 0: bound",
        "tcp 80: listens",
        "tcp 80 elsewhere: EACCES",
        "tcp 80 mapped: EACCES",
        "fd 4: EBADF",
        "tcp: listens",
    ] {
        manager.wait_log(Place::START, [&format!("one: {words}")]);
    }
    manager.stop();
}

/// A datagram that a program sends at its start has it bind a socket; that is no sign that it serves.
#[test]
fn a_socket_that_only_sends_is_no_readiness() {
    if !is_installed("node") {
        return;
    }
    let address = loopback();
    let sends = "require('dgram').createSocket('udp4').send('started', 9, HOST)
setTimeout(() => process.exit(5), 500)";
    let starter =
        Starter::default().program("one.js", "server().listen(PORT, HOST)").program("two.js", sends);
    let manager = starter.start_ready(&service("one.js", address));
    let load = load(&Target::Tcp(address), &MODES);
    let answer = manager.ask_target("two.js");
    let why = answer["reason"].as_str().expect("a reason");
    assert!(why.contains("exited with status 5 before it was ready"), "{answer}");
    load.wait_for_more_of("one", 20);
    load.stop().assert_spotless();
    assert_eq!(manager.ask(r#"{"cmd":"status"}"#)["status"]["sockets"].as_array().map(Vec::len), Some(1));
    manager.stop();
}

#[test]
fn a_server_that_its_program_closes_is_closed() {
    if !is_installed("node") {
        return;
    }
    let (address, other) = (loopback(), loopback());
    let text = format!(
        "server().listen(PORT, HOST)
const other = server().listen(8080, '{}', () => other.close())
const any = server().listen(0, HOST, () => any.close())",
        other.ip()
    );
    let manager = Starter::default().programs(&text).start_ready(&service("one.js", address));
    let place = Place::START;
    manager.wait_log(place, [&format!("socket {}:0 let go of", address.ip())]);
    manager.wait_log(place, [&format!("socket {other} let go of")]);
    let refused = TcpStream::connect(other).expect_err("a port that nobody listens on");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    manager.stop();
}

#[test]
fn a_unix_path_is_as_open_as_the_program_s_mask_has_it() {
    if !is_installed("node") {
        return;
    }
    let service = service("one.js", loopback()).set("service.umask", "'0027'");
    let manager = Starter::default().programs("server().listen('web.sock')").start_ready(&service);
    let mode = fs::metadata(manager.path("web.sock")).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o750);
    manager.stop();
}

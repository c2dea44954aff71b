//! What newcomers get wrong: the log and the answer of an upgrade say what it is, and what to write instead.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use support::is_installed;
use support::loopback;
use support::manager::{Manager, Place, Starter};
use support::service::Service;

/// A service whose workers run `script` by a shell.
fn script(text: &str) -> Service {
    Service::command(["sh", "-c", text])
        .set("service.output", "'prefix'")
        .set("restart.initial_delay", "'1ms'")
}

fn start(service: &Service) -> Manager {
    Starter::default().start(service)
}

#[test]
fn a_worker_that_says_nothing_is_told_of_long_before_it_has_failed() {
    // At half of the time-out, where that is short.
    let service = script("exec sleep 1000").workers(2).listen(loopback()).set("ready.timeout", "'2s'");
    let mut manager = start(&service);
    let line = manager.wait_log(Place::START, ["has not said READY=1 for 1 s"]);
    assert!(line.contains("if it never says READY=1: `protocol = \"plain\"` in [service]"), "{line}");
    manager.insist(Signal::SIGTERM);
}

#[test]
fn a_program_that_binds_for_itself_is_told_which_descriptor_it_has() {
    let address = loopback();
    let bind = format!("import socket; socket.create_server(('{}', {}))", address.ip(), address.port());
    let service =
        Service::command(["python3", "-c", &bind]).set("service.output", "'prefix'").listen(address);
    let mut manager = start(&service.set("restart.initial_delay", "'1ms'"));
    let line = manager.wait_log(Place::START, ["hint:"]);
    let said = format!("it binds {address} itself; liveswap holds that socket and passes it as descriptor 3");
    assert!(line.contains(&said), "{line}");
    manager.insist(Signal::SIGTERM);
}

#[test]
fn a_program_that_listens_by_itself_and_says_nothing_is_told_what_it_binds() {
    let address = loopback();
    let other = format!("{}:8099", address.ip());
    let bind = format!(
        "import socket, time; s = socket.create_server(('{}', 8099)); time.sleep(1000)",
        address.ip()
    );
    let service = Service::command(["python3", "-c", &bind]).listen(address);
    let mut manager = start(&service.set("ready.timeout", "'20s'"));
    let line = manager.wait_log(Place::START, ["hint: it binds"]);
    let said =
        format!("it binds {other} itself, which is no [[socket]] of the file: have it take the socket");
    assert!(line.contains(&said), "{line}");
    manager.insist(Signal::SIGTERM);
}

#[test]
fn a_program_that_goes_to_the_background_is_told_to_stay() {
    let mut manager = start(&script("sleep 1000 & exit 0").listen(loopback()));
    let line = manager.wait_log(Place::START, ["hint:"]);
    assert!(line.contains("a worker runs in the foreground until it is told to drain"), "{line}");
    manager.insist(Signal::SIGTERM);
}

#[test]
fn a_program_that_misses_a_socket_is_told_that_the_file_has_none() {
    let mut manager = start(&script("echo 'accept: Bad file descriptor' >&2; exit 1"));
    let line = manager.wait_log(Place::START, ["hint:"]);
    assert!(line.contains("the file has no [[socket]]"), "{line}");
    manager.insist(Signal::SIGTERM);
}

#[test]
fn a_missing_program_is_said_with_what_to_do_next() {
    let mut manager = start(&Service::command(["./server --port 80"]).listen(loopback()));
    let line = manager.wait_log(Place::START, ["hint:"]);
    assert!(line.contains("there is no shell") && line.contains(r#"["./server", "--port", "80"]"#), "{line}");
    manager.insist(Signal::SIGTERM);
}

#[test]
fn on_a_terminal_each_line_names_its_worker() {
    if !is_installed("script") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let service = "[service]\ncommand = ['sh', '-c', 'echo hello; exec sleep 1000']\nprotocol = 'plain'\n";
    fs::write(folder.path().join("web.toml"), service).expect("a service file");
    // script(1) gives it a terminal.
    let script = "exec script -qec 'exec \"$LIVESWAP\" run web.toml' /dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(folder.path()).env("LIVESWAP", env!("CARGO_BIN_EXE_liveswap"));
    command.env("RUNTIME_DIRECTORY", folder.path()).env_remove("NOTIFY_SOCKET");
    let mut terminal = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a shell");
    let shown = BufReader::new(terminal.stdout.take().expect("what it shows"));
    let line = shown.lines().map_while(Result::ok).find(|line| line.contains("hello")).expect("the line");
    assert!(line.contains("web.0 | hello"), "{line:?}");
    let mut stop = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    stop.args(["stop", "--now"]).env("RUNTIME_DIRECTORY", folder.path()).output().expect("an answer");
    terminal.wait().expect("its end");
}

#[test]
fn the_answer_of_an_upgrade_has_the_hint() {
    let good = Service::worker().listen(loopback());
    let manager = Manager::start(good.clone());
    manager.rewrite(good.by(["sh", "-c", "exit 0"]));
    let upgrade = manager.cli(["upgrade"]);
    assert_eq!(upgrade.status, 1, "{upgrade:?}");
    assert!(upgrade.stderr.contains("Hint: a worker runs in the foreground"), "{upgrade:?}");
    manager.wait_log(Place::START, ["generation 2: hint: a worker runs in the foreground"]);
    manager.stop();
}

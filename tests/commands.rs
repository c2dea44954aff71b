//! The third promise: every command tells the truth about how it ended, by its exit status and in words.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::client::{Load, MODES, Target};
use support::control::{Ended, lines_of};
use support::manager::{Manager, Place};
use support::service::Service;
use support::{is_installed, loopback};

fn service() -> Service {
    Service::worker().workers(2).listen(loopback()).set("upgrade.probation", "'0s'")
}

#[test]
fn an_upgrade_is_shown_as_it_happens_and_exits_0_when_it_serves() {
    let manager = Manager::start(service().release("one"));
    let ended = manager.cli_upgrade(service().release("two"));
    ended.assert(0, []);
    let told = ["generation 2 checking", "slot 0", "slot 1", "generation 2 committed", "generation 2 serves"];
    let mut from = 0;
    for words in told {
        let found = ended.stdout[from..].find(words).unwrap_or_else(|| panic!("{words:?}: {ended:#?}"));
        from += found;
    }
    assert!(ended.stderr.starts_with("note: generations 1 and 2 share "), "{ended:#?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:#?}");
    manager.stop();
}

#[test]
fn on_a_terminal_an_upgrade_is_a_picture_that_ends_with_the_outcome() {
    if !is_installed("script") {
        return;
    }
    let manager = Manager::start(service().release("one"));
    manager.rewrite(service().release("two"));
    // script(1) gives it a terminal.
    let mut command = Command::new("script");
    command.args(["-qec", concat!(env!("CARGO_BIN_EXE_liveswap"), " upgrade"), "/dev/null"]);
    command.current_dir(manager.path("")).env("RUNTIME_DIRECTORY", manager.path("run")).env("TERM", "xterm");
    let shown = command.stdin(Stdio::null()).output().expect("script");
    let shown = String::from_utf8(shown.stdout).expect("UTF-8").replace('\r', "");
    let pictures: Vec<_> = shown.split("\x1b[J").collect();
    let (first, last) = (pictures[1], pictures[pictures.len() - 1]);
    assert!(first.contains("SLOT  OLD") && first.contains("worker 1 ready"), "{shown:?}");
    // Back over all lines of the picture before: the heading, the table's head and two slots.
    assert!(
        pictures[..pictures.len() - 1].iter().skip(1).all(|picture| picture.ends_with("\x1b[4A")),
        "{shown:?}"
    );
    assert!(last.contains("worker 4 ready\n") || last.contains("worker 3 ready\n"), "{shown:?}");
    assert!(last.contains("`web`: upgrade done; generation 2 serves\n\x1b[?7h"), "{shown:?}");
    manager.stop();
}

#[test]
fn each_bad_release_exits_1_with_its_reason() {
    let good = service().set("ready.timeout", "'30s'");
    let manager = Manager::start(good.clone());
    let bad = |arguments: &[&str]| {
        arguments.iter().fold(good.clone(), |service, argument| service.args([*argument]))
    };
    let check = |text: &str, words: [&str; 2]| {
        manager.cli_upgrade(text).assert(1, [words[0], words[1], "generation 1 is still serving"]);
    };
    let missing = Service::command(["./no-such-program"]).workers(2).to_string();
    check(&missing, ["rolled back", "No such file or directory"]);
    check(&bad(&["--exit", "3"]).to_string(), ["rolled back", "exited with status 3"]);
    check(&bad(&["--die", "SIGSEGV"]).to_string(), ["rolled back", "SIGSEGV"]);
    let silent = bad(&["--never-ready"]).set("ready.timeout", "'300ms'").to_string();
    check(&silent, ["rolled back", "not ready after 300 ms"]);
    let hook = good.clone().set("upgrade.before", "['sh', '-c', 'exit 4']").to_string();
    check(&hook, ["refused", "the hook `before` exited with status 4"]);
    check("[service\n", ["refused", "web.toml:1"]);
    let probation = bad(&["--exit", "7", "--after-ready", "200"]).set("upgrade.probation", "'20s'");
    check(&probation.to_string(), ["rolled back", "exited with status 7"]);
    manager.cli_upgrade(&good).assert(0, []);
    manager.stop();
}

#[test]
fn a_failure_shows_what_the_worker_wrote_last() {
    let script = "echo fine; echo \"Error: Cannot find module './db'\" >&2; exit 1";
    let broken = Service::command(["sh", "-c", script]).workers(1);
    let manager = Manager::start(service());
    let ended = manager.cli_upgrade(broken.clone().set("service.output", "'prefix'"));
    ended.assert(1, ["exited with status 1", "stderr: Error: Cannot find module './db'"]);
    manager.cli_upgrade(broken).assert(1, ["journalctl _PID="]);
    let missing = manager.cli_upgrade(Service::command(["./no-such-program"]));
    missing.assert(1, ["could not be started"]);
    assert!(!missing.stderr.contains("journalctl"), "it has written nothing: {missing:#?}");
    manager.stop();
}

#[test]
fn two_upgrades_at_once_each_hear_their_own_truth() {
    let manager = Manager::start(service());
    manager.rewrite(service().args(["--never-ready"]).set("ready.timeout", "'2s'"));
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let first = manager.begin(["upgrade"]);
    watcher.wait_event("starting");
    manager.rewrite(service().release("two"));
    let second = manager.begin(["upgrade"]);
    Ended::of(first).assert(1, ["rolled back", "not ready after 2 s"]);
    Ended::of(second).assert(0, []);
    manager.wait_workers(3, 2);
    manager.stop();
}

#[test]
fn a_rollback_under_load_goes_back_to_the_pinned_release() {
    let address = loopback();
    let good = Service::worker().workers(2).listen(address).set("upgrade.probation", "'0s'");
    let manager = Manager::start(good.clone().release("one"));
    manager.cli(["rollback"]).assert(1, ["there is no generation before generation 1"]);
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    // The second release leaves the socket's name and the first's file behind.
    manager.cli_upgrade(good.release("two")).assert(0, []);
    load.wait_for_more(50);
    manager.rewrite("this is no service file");
    manager.cli(["rollback"]).assert(0, []);
    load.wait_for_more(50);
    let workers = manager.wait_workers(3, 2);
    assert!(workers.iter().all(|worker| worker.command.contains(&"one".to_owned())), "{workers:#?}");
    manager.cli(["rollback"]).assert(0, []);
    let workers = manager.wait_workers(4, 2);
    assert!(workers.iter().all(|worker| worker.command.contains(&"two".to_owned())), "{workers:#?}");
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn a_rollback_binds_again_what_the_upgrade_let_go_of() {
    let (old, new) = (loopback(), loopback());
    let first = Service::worker().workers(1).listen(old);
    let manager = Manager::start(first);
    manager.cli_upgrade(Service::worker().workers(1).listen(new)).assert(0, []);
    manager.wait_log(Place::START, ["generation 1 gone"]);
    manager.wait_until("the old address let go of", || TcpListener::bind(old).ok());
    manager.cli(["rollback"]).assert(0, []);
    manager.wait_until("the old address served again", || std::net::TcpStream::connect(old).ok());
    manager.stop();
}

#[test]
fn a_rollback_takes_back_an_upgrade_on_probation() {
    let manager = Manager::start(service());
    manager.rewrite(service().release("two").set("upgrade.probation", "'1h'"));
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("probation");
    manager.cli(["rollback"]).assert(0, []);
    Ended::of(upgrade).assert(1, ["rolled back", "a rollback was asked for"]);
    manager.wait_workers(1, 2);
    manager.stop();
}

#[test]
fn ctrl_c_leaves_the_upgrade_running_and_says_so() {
    let manager = Manager::start(service());
    manager.rewrite(service().set("upgrade.probation", "'1h'"));
    let mut watcher = manager.client();
    watcher.say(r#"{"cmd":"events"}"#);
    let upgrade = manager.begin(["upgrade"]);
    watcher.wait_event("probation");
    let pid = Pid::from_raw(i32::try_from(upgrade.id()).expect("a pid"));
    kill(pid, Signal::SIGINT).expect("a running command");
    Ended::of(upgrade).assert(130, ["the upgrade goes on without this command"]);
    assert_eq!(manager.ask(r#"{"cmd":"status"}"#)["status"]["phase"], "probation");
    manager.cli(["rollback"]).assert(0, []);
    manager.stop();
}

#[test]
fn an_upgrade_need_not_be_waited_for() {
    let manager = Manager::start(service());
    let ended = manager.cli(["upgrade", "--no-wait"]);
    ended.assert(0, []);
    assert!(ended.stdout.contains("upgrade begun"), "{ended:#?}");
    manager.wait_workers(2, 2);
    manager.stop();
}

#[test]
fn an_upgrade_can_be_waited_for_until_the_last_old_worker_has_gone() {
    let stubborn = service().args(["--ignore-term"]).set("drain.timeout", "'1s'");
    let manager = Manager::start(stubborn);
    manager.rewrite(service());
    manager.cli(["upgrade", "--drained"]).assert(0, []);
    assert!(manager.workers().iter().all(|worker| worker.generation == 2), "{:#?}", manager.workers());
    manager.stop();
}

#[test]
fn json_is_events_and_at_last_the_answer() {
    let manager = Manager::start(service());
    let ended = manager.cli(["upgrade", "web", "--json"]);
    ended.assert(0, []);
    let lines: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (answer, events) = lines.split_last().expect("lines");
    assert_eq!((&answer["cmd"], &answer["value"]), (&"upgrade".into(), &"OK".into()));
    assert_eq!(events.last().expect("events")["event"], "upgrade-ended");
    assert!(events.iter().any(|event| event["event"] == "worker-ready" && event["slot"] == 1));
    manager.stop();
}

#[test]
fn a_respawn_replaces_every_worker_gently_or_at_once() {
    let manager = Manager::start(service());
    let pids = || manager.wait_workers(1, 2).into_iter().map(|worker| worker.pid).collect::<Vec<_>>();
    let first = pids();
    manager.cli(["respawn"]).assert(0, []);
    let second = pids();
    assert!(second.iter().all(|pid| !first.contains(pid)));
    let place = manager.place();
    manager.cli(["respawn", "--now"]).assert(0, []);
    manager.wait_log(place, ["gone: was killed by SIGKILL"]);
    assert!(pids().iter().all(|pid| !second.contains(pid)));
    manager.stop();
}

#[test]
fn the_number_of_workers_can_be_set() {
    let manager = Manager::start(service());
    manager.cli(["scale", "4"]).assert(0, []);
    manager.wait_workers(1, 4);
    manager.cli(["scale", "-1"]).assert(0, []);
    manager.wait_workers(1, 3);
    manager.cli(["scale", "web", "+2"]).assert(0, []);
    manager.wait_workers(1, 5);
    manager.cli(["scale", "0"]).assert(1, ["1 to 4096 workers"]);
    manager.cli(["scale", "many"]).assert(2, ["must be a number of workers"]);
    manager.stop();
}

#[test]
fn a_stop_returns_when_everything_is_let_go_of() {
    let address = loopback();
    let text = Service::worker().workers(2).listen(address).to_string();
    for arguments in [&["stop"][..], &["stop", "web", "--now"]] {
        let mut manager = Manager::start(&text);
        let child = manager.command([]).args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ended::of(child.expect("the program")).assert(0, []);
        drop(TcpListener::bind(address).expect("the address is free"));
        assert!(!manager.control_path().exists());
        assert!(manager.wait_exit().success());
    }
}

#[test]
fn a_message_reaches_every_worker_by_the_pipe_that_it_inherits() {
    let manager = Manager::start(service());
    manager
        .cli(["message", "hello"])
        .assert(1, ["no worker of this service takes messages", "messages = true"]);
    let path = manager.path("heard");
    let script = format!(
        "eval \"exec 9<&$LIVESWAP_MESSAGE_FD\"; while read -r line <&9; do echo \"$LIVESWAP_SLOT $line\" >> {}; done",
        path.display()
    );
    let reader = Service::command(["sh", "-c", &script]).workers(3).set("service.protocol", "'plain'");
    let reader = reader.set("service.messages", true).set("ready.settle", "'10ms'").listen(loopback());
    manager.cli_upgrade(reader).assert(0, []);
    manager.cli(["message", "hello, all"]).assert(0, []);
    let mut heard =
        manager.wait_until("three lines", || Some(lines_of(&path)).filter(|lines| lines.len() == 3));
    heard.sort();
    assert_eq!(heard, ["0 hello, all", "1 hello, all", "2 hello, all"]);
    manager.stop();
}

#[test]
fn a_worker_that_does_not_read_its_messages_is_named_and_harms_nobody() {
    let deaf = Service::command(["sleep", "1000"]).workers(2).set("service.protocol", "'plain'");
    let manager = Manager::start(deaf.set("service.messages", true).set("ready.settle", "'10ms'"));
    let text = "x".repeat(4000);
    let request = format!(r#"{{"cmd":"message","value":"{text}"}}"#);
    let mut client = manager.client();
    let refusal = (0..100).find_map(|_| {
        client.say(&request);
        Some(client.hear()).filter(|reply| reply["ok"] == false)
    });
    let refusal = refusal.expect("a full pipe");
    let reason = refusal["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("2 of 2 workers") && reason.contains("has not read"), "{reason}");
    manager.cli(["status"]).assert(0, []);
    manager.stop();
}

#[test]
fn managers_are_found_by_name_and_those_that_are_not_there_are_not() {
    let manager = Manager::start(service());
    manager.cli(["status", "web"]).assert(0, []);
    manager.cli(["status", "other"]).assert(4, ["no manager runs service `other`"]);
    let empty = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    command.args(["upgrade", "no-such-service-of-a-test"]).env("RUNTIME_DIRECTORY", empty.path());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program");
    Ended::of(child).assert(4, ["no manager runs service"]);
    manager.stop();
}

#[test]
fn a_status_agrees_with_the_kernel() {
    let address = loopback();
    let script = fs::canonicalize(support::worker_program()).expect("the worker").display().to_string();
    let service = Service::command([script.as_str(), "--linger", "10000"]).workers(2).listen(address);
    let manager = Manager::start(service);
    let connections = |manager: &Manager| -> u64 {
        let status = &manager.ask(r#"{"cmd":"status"}"#)["status"];
        let workers = status["workers"].as_array().expect("workers");
        workers.iter().map(|worker| worker["connections"].as_u64().expect("a count")).sum()
    };
    assert_eq!(connections(&manager), 0);
    let clients: Vec<_> = (0..7).map(|_| std::net::TcpStream::connect(address).expect("connect")).collect();
    manager.wait_until("seven connections", || (connections(&manager) == 7).then_some(()));
    let status = &manager.ask(r#"{"cmd":"status"}"#)["status"];
    for worker in status["workers"].as_array().expect("workers") {
        let pid = i32::try_from(worker["pid"].as_i64().expect("a pid")).expect("a pid");
        let resident: u64 =
            support::process::status(pid, "VmRSS").trim_end_matches(" kB").parse().expect("a number");
        let memory = worker["memory"].as_u64().expect("memory") / 1024;
        assert!(memory.abs_diff(resident) < 1024, "{memory} KiB of {resident}");
    }
    drop(clients);
    manager.wait_until("none again", || (connections(&manager) == 0).then_some(()));
    let shown = manager.cli(["status"]);
    let words = ["web: serving, generation 1", "2 of 2 ready", "SLOT", "CONNECTIONS"];
    assert!(words.iter().all(|word| shown.stdout.contains(word)), "{shown:#?}");
    manager.stop();
}

#[test]
fn events_are_shown_until_the_service_ends() {
    let manager = Manager::start(service());
    let mut events = manager.begin(["events", "--json"]);
    let mut shown = BufReader::new(events.stdout.take().expect("its output")).lines();
    let mut next = || shown.next().map(|line| line.expect("a line"));
    assert!(next().expect("how things stand").contains("\"phase\":\"serving\""));
    manager.cli(["upgrade"]).assert(0, []);
    manager.cli(["stop"]).assert(0, []);
    let rest: Vec<String> = std::iter::from_fn(next).collect();
    for word in ["upgrade-began", "worker-ready", "upgrade-ended", "stopping", "worker-gone"] {
        assert!(rest.iter().any(|line| line.contains(word)), "{word}: {rest:#?}");
    }
    assert_eq!(Ended::of(events).status, 0);
}

#[test]
fn shells_get_their_completions() {
    let folder = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "zsh", "fish"] {
        let (status, text) = support::manager::liveswap(folder.path(), ["completions", shell]);
        assert!(status.success() && text.contains("rollback"), "{shell}: {text}");
    }
}

#[test]
fn each_command_has_a_manual_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let program = || Command::new(env!("CARGO_BIN_EXE_liveswap"));
    let pages = folder.path().join("man/man1");
    assert!(program().arg("man").arg(&pages).status().expect("the program").success());
    let help = program().arg("--help").output().expect("the program").stdout;
    let help = String::from_utf8(help).expect("UTF-8");
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands =
        commands.take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let mut wanted: Vec<_> =
        commands.filter(|name| *name != "help").map(|name| format!("liveswap-{name}.1")).collect();
    wanted.extend(["liveswap.1".into(), "liveswap-original.1".into()]);
    wanted.sort();
    let entries = fs::read_dir(&pages).expect("the pages");
    let mut found: Vec<_> =
        entries.map(|entry| entry.expect("a page").file_name().into_string().expect("UTF-8")).collect();
    found.sort();
    assert_eq!(found, wanted);
    let page = fs::read_to_string(pages.join("liveswap-upgrade.1")).expect("a page");
    assert!(page.contains("\\-\\-no\\-wait"), "{page}");
}

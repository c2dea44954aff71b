//! The control socket: who may speak, what it answers, and that no client can hold up the manager or another.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::{Uid, getegid};
use serde_json::Value;
use support::client::{Load, MODES, Target};
use support::control::Client;
use support::manager::{Manager, Starter};
use support::service::Service;
use support::{PATIENCE, loopback};

fn service() -> Service {
    Service::worker().workers(2).set("upgrade.probation", "'0s'")
}

fn mode(manager: &Manager) -> u32 {
    fs::metadata(manager.control_path()).expect("the control socket").permissions().mode() & 0o777
}

#[test]
fn it_answers_line_by_line_and_echoes_what_it_was_asked() {
    let manager = Manager::start(service());
    let mut client = manager.client();
    client.say(r#"{"cmd":"upgrade","value":""}"#);
    let mut answer = client.hear();
    let note =
        answer.as_object_mut().and_then(|answer| answer.remove("note")).expect("a note on the old code");
    assert!(note.as_str().is_some_and(|note| note.starts_with("generations 1 and 2 share ")), "{note}");
    let expected = r#"{"cmd":"upgrade","value":"OK","ok":true,"outcome":"committed","generation":2,"old_code":"same folder"}"#;
    assert_eq!(answer, serde_json::from_str::<Value>(expected).expect("JSON"));
    // Several at once, the last without being waited for.
    client.send(b"{\"cmd\":\"ping\",\"id\":1}\n{\"cmd\":\"fly\",\"id\":\"b\"}\n\n{\"cmd\":\"scale\",\"value\":3,\"id\":3}\n");
    let (ping, fly, scale) = (client.hear(), client.hear(), client.hear());
    assert_eq!((&ping["id"], &ping["service"], &ping["version"]), (&1.into(), &"web".into(), &1.into()));
    assert_eq!((&fly["id"], &fly["value"]), (&"b".into(), &"unknown cmd `fly`".into()));
    assert_eq!((&scale["id"], &scale["value"]), (&3.into(), &"OK".into()));
    // Who shuts its mouth still hears its answer.
    client.say(r#"{"cmd":"respawn"}"#);
    client.fall_silent();
    assert_eq!(client.hear()["outcome"], "committed");
    assert_eq!(client.try_hear(), None);
    manager.stop();
}

#[test]
fn many_requests_in_one_piece_are_all_answered() {
    let manager = Manager::start(service());
    let mut client = manager.client();
    client.send("{\"cmd\":\"ping\"}\n".repeat(40).as_bytes());
    for _ in 0..40 {
        assert_eq!(client.hear()["value"], "OK");
    }
    manager.stop();
}

#[test]
fn what_waits_is_answered_when_the_service_stops() {
    let manager = Manager::start(service());
    manager.rewrite(service().set("upgrade.probation", "'1h'"));
    let mut upgrade = manager.client();
    upgrade.say(r#"{"cmd":"events"}"#);
    upgrade.say(r#"{"cmd":"upgrade"}"#);
    upgrade.wait_event("probation");
    let mut stop = manager.client();
    stop.say(r#"{"cmd":"stop"}"#);
    assert_eq!(upgrade.wait_event("upgrade-ended")["outcome"], "superseded");
    let answer = std::iter::from_fn(|| upgrade.try_hear()).find(|line| line["cmd"] == "upgrade");
    assert_eq!(answer.expect("an answer")["value"], "superseded: the service stops");
    assert_eq!(stop.hear()["value"], "OK");
    assert_eq!(stop.try_hear(), None);
}

#[test]
fn events_begin_with_how_things_stand() {
    let manager = Manager::start(service());
    let mut client = manager.client();
    client.say(r#"{"cmd":"events"}"#);
    let first = client.hear();
    assert_eq!((&first["cmd"], &first["status"]["ready"]), (&"events".into(), &2.into()));
    client.say(r#"{"cmd":"events"}"#);
    assert_eq!(client.hear()["ok"], false, "once is enough");
    assert_eq!(manager.ask(r#"{"cmd":"upgrade"}"#)["ok"], true);
    let began = client.hear();
    assert_eq!((&began["event"], &began["generation"]), (&"upgrade-began".into(), &2.into()));
    let ready = client.wait_event("worker-ready");
    let worker = manager.wait_until("the worker", || {
        manager.workers().into_iter().find(|worker| worker.generation == 2 && worker.slot == 0)
    });
    assert_eq!((&ready["slot"], &ready["pid"]), (&0.into(), &worker.pid.into()));
    manager.stop();
}

#[test]
fn it_is_the_owner_s_alone_unless_a_group_is_named_and_the_group_changes_at_commit() {
    let group = getegid().to_string();
    let manager = Manager::start(service());
    assert_eq!(mode(&manager), 0o600);
    let open = service().set("control.group", format!("'{group}'"));
    manager.upgrade(open.clone().args(["--exit", "1"]));
    assert_eq!(mode(&manager), 0o600, "a release that failed changes nothing");
    manager.upgrade_committed(open);
    assert_eq!(mode(&manager), 0o660);
    manager.upgrade_committed(service());
    assert_eq!(mode(&manager), 0o600);
    manager.stop();
}

#[test]
fn strangers_are_refused_and_members_of_the_group_are_not() {
    if !Uid::effective().is_root() {
        support::skipped::add("only root can try another user's way in");
        return;
    }
    let starter = Starter::default();
    let folder = starter.path("");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("chmod");
    let mut manager = starter.start(service().set("control.group", "'4242'"));
    manager.wait_ready();
    // Where the file lets a stranger through, it is still the kernel's word that counts.
    fs::set_permissions(manager.control_path(), fs::Permissions::from_mode(0o666)).expect("chmod");
    let program = folder.join("liveswap");
    fs::copy(env!("CARGO_BIN_EXE_liveswap"), &program).expect("a copy that others may execute");
    let run = |group: &str, groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "4711", "--regid", group, groups]).arg(&program).args(["scale", "+1"]);
        command.env("RUNTIME_DIRECTORY", manager.path("run")).stdout(Stdio::piped()).stderr(Stdio::piped());
        support::control::Ended::of(command.spawn().expect("setpriv"))
    };
    run("4711", "--clear-groups").assert(1, ["user 4711 may not speak to this manager"]);
    run("4242", "--clear-groups").assert(0, []);
    run("4711", "--groups=1,4242").assert(0, []);
    manager.wait_workers(1, 4);
    manager.stop();
}

#[test]
fn a_long_line_is_refused_and_the_service_unharmed() {
    let manager = Manager::start(service());
    let mut client = manager.client();
    client.send(&vec![b'x'; 10 << 20]);
    let refusal = client.try_hear();
    assert!(refusal.is_none_or(|refusal| refusal["value"] == "a line has at most 1052672 bytes"));
    assert_eq!(client.try_hear(), None);
    let resident = manager.resident();
    assert!(resident < 64 * 1024, "{resident} KiB");
    assert_eq!(manager.ask(r#"{"cmd":"ping"}"#)["ok"], true);
    manager.stop();
}

#[test]
fn the_edges_of_json_and_of_a_line_are_answered_and_harm_nothing() {
    let manager = Manager::start(service());
    let nested = format!(r#"{{"cmd":"ping","value":{}"#, "[".repeat(60_000));
    let surrogate = r#"{"cmd":"message","value":"\ud800"}"#.to_owned();
    let key = r#"{"\udc00":1,"cmd":"\ud800\ud800"}"#.to_owned();
    for bad in [nested, surrogate, key, "[".repeat(60_000), format!("{}1", "-".repeat(60_000))] {
        let mut client = manager.client();
        client.say(&bad);
        assert_ne!(client.hear()["ok"], true, "{bad:.40}");
        assert_eq!(manager.ask(r#"{"cmd":"ping"}"#)["ok"], true, "{bad:.40}");
    }
    let ping = r#"{"cmd":"ping"}"#;
    for (length, is_taken) in [(1_052_671, true), (1_052_672, true), (1_052_673, false)] {
        let mut client = manager.client();
        client.say(&format!("{}{ping}", " ".repeat(length - ping.len())));
        assert_eq!(client.hear()["ok"] == true, is_taken, "{length} bytes");
    }
    manager.stop();
}

#[test]
fn a_thousand_idle_clients_and_half_lines_keep_nobody_out() {
    let address = loopback();
    let manager = Manager::start(service().listen(address));
    let before = manager.open_descriptors();
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    let mut upgrade = manager.client();
    upgrade.say(r#"{"cmd":"events"}"#);
    assert_eq!(upgrade.hear()["ok"], true);
    let mut idle: Vec<Client> = Vec::new();
    for number in 0..1000 {
        let mut client = manager.client();
        if number % 2 == 0 {
            client.send(b"{\"cmd\":");
        }
        idle.push(client);
    }
    // Newcomers push out those who were idle for longest, and nobody else.
    assert_eq!(manager.ask(r#"{"cmd":"status"}"#)["ok"], true);
    upgrade.say(r#"{"cmd":"upgrade"}"#);
    upgrade.wait_event("upgrade-ended");
    let first = idle.remove(0).try_hear().expect("a reason");
    assert!(first["value"].as_str().is_some_and(|why| why.contains("idle")), "{first}");
    assert!(manager.open_descriptors() < before + 64 + 24, "no more than 64 are held");
    load.wait_for_more(20);
    drop(idle);
    load.stop().assert_spotless();
    manager.stop();
}

#[test]
fn who_reads_nothing_is_dropped_and_delays_nobody() {
    let manager = Manager::start(service());
    let mut deaf = manager.client();
    deaf.say(r#"{"cmd":"events"}"#);
    let mut client = manager.client();
    assert_eq!(manager.ask(r#"{"cmd":"ping"}"#)["ok"], true);
    let held = manager.open_descriptors();
    let mut slowest = Duration::ZERO;
    for _ in 0..50_000 {
        let asked = Instant::now();
        client.say(r#"{"cmd":"scale","value":"2"}"#);
        assert_eq!(client.hear()["ok"], true);
        slowest = slowest.max(asked.elapsed());
        if manager.open_descriptors() < held {
            break;
        }
    }
    assert!(manager.open_descriptors() < held, "it is kept for ever");
    assert!(slowest < PATIENCE / 6, "{slowest:?}");
    let resident = manager.resident();
    assert!(resident < 64 * 1024, "{resident} KiB");
    manager.stop();
}

#[test]
fn clients_that_die_in_the_middle_matter_to_nobody() {
    let manager = Manager::start(service());
    for request in ["{\"cmd\":\"upgrade\"}\n", "{\"cmd\":\"status\"}\n", "{\"cmd\":\"events\"}\n", "{\"cm"] {
        for _ in 0..5 {
            manager.client().send(request.as_bytes());
        }
    }
    assert_eq!(manager.ask(r#"{"cmd":"upgrade"}"#)["ok"], true);
    let status = manager.ask(r#"{"cmd":"status"}"#);
    assert_eq!(status["status"]["phase"], "serving", "{status}");
    manager.stop();
}

#[test]
fn many_who_ask_at_once_are_all_answered() {
    let manager = Manager::start(service());
    let mut clients: Vec<Client> = (0..40).map(|_| manager.client()).collect();
    for client in &mut clients {
        client.say(r#"{"cmd":"status"}"#);
    }
    for client in &mut clients {
        let answer = client.hear();
        assert_eq!(answer["status"]["workers"].as_array().map(Vec::len), Some(2), "{answer}");
        assert!(answer["status"]["workers"][0]["memory"].is_u64(), "{answer}");
    }
    // More than may wait of one client.
    let mut greedy = manager.client();
    greedy.send("{\"cmd\":\"status\"}\n".repeat(40).as_bytes());
    let answers: Vec<Value> = (0..40).map(|_| greedy.hear()).collect();
    let refused = answers.iter().filter(|answer| answer["ok"] == false).count();
    assert_eq!(refused, 40 - 16);
    manager.stop();
}

#[test]
fn a_manager_without_descriptors_waits_for_one_and_does_not_spin() {
    let starter = Starter::default().by(&["prlimit", "--nofile=40:40"]);
    let mut manager = starter.start(service().workers(1));
    manager.wait_ready();
    let mut clients = Vec::new();
    for _ in 0..60 {
        let stream = UnixStream::connect(manager.control_path()).expect("the backlog takes it");
        clients.push(stream);
    }
    manager.wait_log(support::manager::Place::START, ["the control socket cannot accept"]);
    drop(clients);
    assert_eq!(manager.ask(r#"{"cmd":"ping"}"#)["ok"], true);
    manager.stop();
}

#[test]
fn a_control_socket_that_was_removed_is_bound_anew() {
    let manager = Manager::start(service());
    let mut before = manager.client();
    for how in ["removed", "replaced", "folder"] {
        let place = manager.place();
        match how {
            "removed" => fs::remove_file(manager.control_path()).expect("it is there"),
            "replaced" => {
                let other = manager.path("run/other");
                drop(UnixListener::bind(&other).expect("another socket"));
                fs::rename(other, manager.control_path()).expect("a new path");
            }
            _ => manager.sweep_runtime_directory(),
        }
        manager.wait_log(place, ["control.sock was removed or replaced; it is bound anew"]);
        assert_eq!(manager.ask(r#"{"cmd":"ping"}"#)["value"], "OK", "{how}");
    }
    before.say(r#"{"cmd":"ping"}"#);
    assert_eq!(before.hear()["value"], "OK", "who was there already is still served");
}

//! What comes from outside and is printed: a manager that is somebody else's, a file, a name. None of it steers a terminal, makes
//! a line of its own or grows without bound.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::{Value, json};
use support::manager::Starter;
use support::service::Service;
use support::stranger::{DAEMON, as_user, open_to_all};

/// A title of the terminal, a bell, a carriage return, a line of its own, C1, a turn of the direction, an invisible letter.
const HOSTILE: &str = "\x1b]0;x\x07\r\nHint: forged\u{9b}2J\u{202e}\u{200b}\u{e0041}\x7f";

/// Whether nothing in the bytes does more than be read. Newlines are ours.
fn is_harmless(bytes: &[u8]) -> bool {
    let text = str::from_utf8(bytes).expect("UTF-8");
    let bad = ['\u{202e}', '\u{200b}', '\u{e0041}'];
    text.chars().all(|c| c == '\n' || !c.is_control() && !bad.contains(&c))
}

#[track_caller]
fn assert_harmless(output: &Output) {
    let shown =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(is_harmless(&output.stdout) && is_harmless(&output.stderr), "{shown:?}");
    assert!(!shown.lines().any(|line| line.starts_with("Hint: forged")), "{shown}");
}

/// Something that looks like a manager to whoever asks in `folder`; `answer` is what it writes for a line.
fn pretend(folder: &Path, answer: impl Fn(&str, &mut UnixStream) + Send + 'static) {
    serve(UnixListener::bind(folder.join("control.sock")).expect("a socket"), answer);
}

fn serve(listener: UnixListener, answer: impl Fn(&str, &mut UnixStream) + Send + 'static) {
    // It ends with the test.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            for line in BufReader::new(stream.try_clone().expect("a descriptor")).lines() {
                let Ok(line) = line else { break };
                let request: Value = serde_json::from_str(&line).expect("a request");
                let cmd = request["cmd"].as_str().expect("a cmd").to_owned();
                answer(&cmd, &mut stream);
                if cmd == "stop" {
                    break;
                }
            }
        }
    });
}

fn liveswap<S: AsRef<std::ffi::OsStr>>(folder: &Path, words: &[S]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    command.args(words).current_dir(folder).env("RUNTIME_DIRECTORY", folder).stdin(Stdio::null());
    command.output().expect("the program")
}

fn pong() -> Value {
    json!({ "cmd": "ping", "value": "OK", "ok": true, "service": "a", "version": 1 })
}

/// A full answer with a hostile text wherever there is a text.
fn hostile_answer(cmd: &str) -> Value {
    let x = |text: &str| format!("{text}{HOSTILE}");
    let mut answer = json!({
        "cmd": cmd, "value": x("no"), "ok": matches!(cmd, "ping" | "status" | "events"), "outcome": x("refused"),
        "version": 1, "program": x("0"), "service": x("a"), "pid": 1, "generation": 1, "reason": x("why"),
        "hint": x("hint"), "evidence": { "worker": 1, "slot": 0, "pid": 5, "stderr": [x("last words")] },
    });
    if matches!(cmd, "status" | "events") {
        answer["status"] = json!({
            "service": x("a"), "pid": 1, "up_ms": 5, "directory": x("/d"), "target": x("/t"), "phase": x("serving"),
            "summary": x("sum"), "generation": 1, "generation_ms": 1, "wanted": 1, "ready": 1, "generations": [],
            "last_upgrade": { "generation": 1, "outcome": x("committed"), "reason": x("why"), "ago_ms": 1 },
            "cgroup": x("/c"), "no_cgroup": x("none"),
            "workers": [{ "id": 1, "pid": 5, "generation": 1, "slot": 0, "state": x("ready"), "state_ms": 1, "age_ms": 1,
                          "restarts": 0, "says": x("says"), "why": x("why") }],
            "waiting": [], "sockets": [{ "name": x("n"), "listen": x("l"), "broken": true }],
        });
    }
    answer
}

#[test]
fn no_command_prints_what_a_strange_manager_wants_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    pretend(folder.path(), |cmd, stream| {
        let answer = hostile_answer(cmd);
        // Raw where JSON lets it: C1, bidirectional controls and DEL need no escape in it.
        let _ = writeln!(stream, "{answer}");
        if cmd == "events" {
            let event = json!({ "event": "x", "warning": true, "text": HOSTILE, "reason": HOSTILE });
            let _ = writeln!(stream, "{event}");
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    });
    let ask = |words: &[&str]| liveswap(folder.path(), words);
    for words in [&["status"][..], &["stop"], &["scale", "2"], &["message", "x"], &["respawn"], &["reexec"]] {
        let output = ask(words);
        assert_harmless(&output);
        let shown = [output.stdout, output.stderr].concat();
        assert!(
            String::from_utf8_lossy(&shown).contains(r"\x1b]0;x\x07\r\nHint: forged\x9b2J\u{202e}"),
            "{words:?}"
        );
    }
    for words in
        [&["upgrade", "--no-wait"][..], &["upgrade"], &["rollback"], &["events"], &["events", "--json"]]
    {
        assert_harmless(&ask(words));
    }
    // The JSON means what it meant.
    let output = ask(&["status", "--json"]);
    assert_harmless(&output);
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["directory"], format!("/d{HOSTILE}"));
}

/// Every row is as wide as its widest cell, and a format takes no width of more than 16 bits.
#[test]
fn a_cell_without_end_is_cut() {
    let folder = tempfile::tempdir().unwrap();
    pretend(folder.path(), |cmd, stream| {
        let mut answer = hostile_answer(cmd);
        if cmd == "status" {
            let mut worker = answer["status"]["workers"][0].clone();
            worker["says"] = "short".into();
            let mut workers = vec![worker.clone(); 1000];
            worker["says"] = "x".repeat(70_000).into();
            workers.push(worker);
            answer["status"]["workers"] = workers.into();
        }
        let _ = writeln!(stream, "{answer}");
    });
    let output = liveswap(folder.path(), &["status"]);
    assert_harmless(&output);
    let text = String::from_utf8_lossy(&output.stdout);
    // A socket of it is broken.
    assert_eq!((output.status.code(), &*output.stderr), (Some(1), &b""[..]), "{text:.1000}");
    let cut = format!("{}…", "x".repeat(199));
    assert!(text.lines().any(|line| line.ends_with(&cut)), "{text:.1000}");
    let longest = text.lines().map(|line| line.chars().count()).max();
    assert!(longest.is_some_and(|longest| longest < 1000), "a line of {longest:?} characters");
}

#[test]
fn a_line_without_end_and_an_answer_without_end_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let (sent, counted) = std::sync::mpsc::channel();
    pretend(folder.path(), move |cmd, stream| match cmd {
        "ping" => drop(writeln!(stream, "{}", pong())),
        "status" => {
            let chunk = vec![b'x'; 1 << 16];
            let written = (0_u64..1 << 14).take_while(|_| stream.write_all(&chunk).is_ok()).count();
            let _ = sent.send(written << 16);
        }
        // Lines that nobody asked for, as many as are taken.
        _ => while writeln!(stream, r#"{{"event":"x","warning":false,"text":"y"}}"#).is_ok() {},
    });
    let endless = liveswap(folder.path(), &["status"]);
    assert_eq!(endless.status.code(), Some(1), "{endless:?}");
    assert!(
        String::from_utf8_lossy(&endless.stderr).contains("a line of more than 1048576 bytes"),
        "{endless:?}"
    );
    let written = counted.recv_timeout(support::PATIENCE).expect("the end of what was sent");
    assert!(written < 8 << 20, "the client took {written} bytes");
    for words in [&["scale", "2"][..], &["upgrade", "--no-wait"]] {
        let output = liveswap(folder.path(), words);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("something else"), "{output:?}");
    }
}

#[test]
fn a_manager_that_does_not_answer_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    pretend(folder.path(), |cmd, stream| match cmd {
        "ping" => drop(writeln!(stream, "{}", pong())),
        // It ends with the client, which gives up.
        _ => drop(stream.write_all(b" ").and_then(|()| std::io::Read::read(stream, &mut [0])).map(|_| ())),
    });
    let output = liveswap(folder.path(), &["status"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no answer in 5 s"), "{output:?}");
}

/// connect(2) waits for ever where a queue is full, and each silent one had a time of its own.
#[test]
fn any_number_of_managers_that_do_not_answer_keep_a_client_from_another_for_one_time_together() {
    let base = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = base.path().join("liveswap").join(name);
        fs::create_dir_all(&folder).expect("a folder");
        folder
    };
    let listener = |name: &str, queue: i32| {
        let listener = UnixListener::bind(folder(name).join("control.sock")).expect("a socket");
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(queue).expect("a backlog"))
            .expect("listen");
        listener
    };
    let silent: Vec<_> = (0..20).map(|at| listener(&format!("silent{at}"), 100)).collect();
    let full: Vec<_> = (0..20).map(|at| listener(&format!("full{at}"), 0)).collect();
    let connect = |at| UnixStream::connect(base.path().join(format!("liveswap/full{at}/control.sock")));
    let waiting: Vec<_> = (0..full.len()).map(|at| connect(at).expect("the only one in the queue")).collect();
    let server = "127.0.0.1:9";
    pretend(&folder("z"), move |cmd, stream| {
        let answer =
            json!({ "cmd": cmd, "value": "OK", "ok": true, "service": "z", "version": 1, "tcp": server });
        let _ = writeln!(stream, "{answer}");
    });
    let began = std::time::Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    command.args(["-k", "-p", "9"]).env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", base.path());
    let output = command.env("TMPDIR", base.path()).output().expect("the program");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{ cmd: 'kill', value: 'OK' }\n");
    assert!(began.elapsed() < std::time::Duration::from_secs(100), "forty times 5 s are 200 s");
    drop((silent, full, waiting));
}

#[test]
fn a_manager_that_stands_still_is_named_and_holds_up_no_other() {
    let base = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = base.path().join("liveswap").join(name);
        fs::create_dir_all(&folder).expect("a folder");
        folder
    };
    // Nobody accepts what comes.
    let _still = UnixListener::bind(folder("still").join("control.sock")).expect("a socket");
    pretend(&folder("web"), |cmd, stream| {
        let mut answer = hostile_answer(cmd);
        answer["service"] = "web".into();
        if cmd == "status" {
            (answer["status"]["service"], answer["status"]["sockets"]) = (json!("web"), json!([]));
        }
        let _ = writeln!(stream, "{answer}");
    });
    let ask = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
        command.args(words).env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", base.path());
        command.env("TMPDIR", base.path()).output().expect("the program")
    };
    let own = std::process::id();
    let output = ask(&["status"]);
    let (shown, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("web: ") && shown.contains("1 of 1 ready"), "{output:?}");
    let named = format!("the manager of `still` (pid {own}) does not answer");
    assert!(said.contains(&named) && output.status.code() == Some(1), "{output:?}");
    assert_eq!(ask(&["status", "web"]).status.code(), Some(0));
    // It may be the one that is meant.
    let output = ask(&["stop"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("several managers run: web, still") && output.status.code() == Some(2), "{said}");
}

fn flags(folder: &Path, server: SocketAddr, words: &[&str]) -> String {
    let (ip, port) = (server.ip().to_string(), server.port().to_string());
    let output = liveswap(folder, &[words, &["-a", &ip, "-p", &port]].concat());
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn a_control_server_that_drips_or_is_silent_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((support::loopback().ip(), 0)).expect("a port");
    let server = listener.local_addr().expect("an address");
    // It ends with the test.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).expect("a request");
            let until = std::time::Instant::now() + support::PATIENCE;
            while std::time::Instant::now() < until && !line.contains("silent") {
                if stream.write_all(b" ").is_err() {
                    break;
                }
                thread::sleep(std::time::Duration::from_millis(100));
            }
            // The client closes it.
            let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        }
    });
    for words in [&["-k"][..], &["-m", "x"], &["-m", "silent"]] {
        let said = flags(folder.path(), server, words);
        assert!(said.contains("value: 'no answer in 5 s'"), "{words:?}: {said}");
    }
}

/// What takes long is waited for, as long as the control server shows that it lives.
#[test]
fn a_control_server_that_stands_still_is_given_up_and_one_that_lives_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind((support::loopback().ip(), 0)).expect("a port");
    let server = listener.local_addr().expect("an address");
    let still = TcpListener::bind((support::loopback().ip(), 0)).expect("a port");
    let still = (still.local_addr().expect("an address"), still);
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut pings = 0;
        for line in BufReader::new(stream.try_clone().expect("a descriptor")).lines() {
            let request: Value = serde_json::from_str(&line.expect("a line")).expect("a request");
            if request["cmd"] == "ping" {
                pings += 1;
                let answer = json!({ "cmd": "ping", "value": "OK", "ok": true, "id": request["id"] });
                let _ = writeln!(stream, "{answer}");
            }
            if pings == 2 {
                let _ = writeln!(stream, "{}", json!({ "cmd": "upgrade", "value": "OK", "ok": true }));
            }
        }
    });
    assert_eq!(flags(folder.path(), server, &["-u"]), "{ cmd: 'upgrade', value: 'OK' }\n");
    let said = flags(folder.path(), still.0, &["-u"]);
    assert_eq!(said, "{ cmd: 'upgrade', value: 'no answer in 5 s' }\n");
}

#[test]
fn a_strangers_port_is_sent_no_text_and_no_token_but_the_strangers_own() {
    if !support::is_root("a port of another user") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let ip = support::loopback().ip();
    let listener = as_user(DAEMON, || TcpListener::bind((ip, 0)).expect("a port"));
    let server = listener.local_addr().expect("an address");
    let token = folder.path().join("token");
    fs::write(&token, "0123456789abcdef").expect("a token");
    let by_token = ["-k", "--token-file", token.to_str().expect("UTF-8")];
    let refused = format!("user {DAEMON} listens at {server}");
    for words in [&["-m", "a text"][..], &by_token] {
        let said = flags(folder.path(), server, words);
        assert!(said.contains(&refused), "{words:?}: {said}");
    }
    listener.set_nonblocking(true).expect("a flag");
    assert_eq!(listener.accept().map(|_| ()).map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    listener.set_nonblocking(false).expect("a flag");
    std::os::unix::fs::chown(&token, Some(DAEMON), None).expect("chown");
    let serving = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("a request");
        stream.write_all(b"{\"cmd\":\"kill\",\"value\":\"OK\",\"ok\":true}\n").expect("an answer");
        line
    });
    assert_eq!(flags(folder.path(), server, &by_token), "{ cmd: 'kill', value: 'OK' }\n");
    assert!(serving.join().expect("the control server").contains("0123456789abcdef"));
}

/// Any user's manager may say that its control server is where root's is.
#[test]
fn a_stranger_does_not_draw_a_command_to_his_manager_by_naming_another_ones_address() {
    if !support::is_root("a service of another user") {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("liveswap").join("his");
    fs::create_dir_all(&folder).expect("a folder");
    open_to_all(base.path());
    std::os::unix::fs::chown(&folder, Some(DAEMON), Some(DAEMON)).expect("chown");
    let root = TcpListener::bind((support::loopback().ip(), 0)).expect("a port");
    let server = root.local_addr().expect("an address");
    let socket = as_user(DAEMON, || UnixListener::bind(folder.join("control.sock")).expect("a socket"));
    serve(socket, move |cmd, stream| {
        let answer =
            json!({ "cmd": cmd, "value": "his", "ok": true, "service": "his", "version": 1, "tcp": server });
        let _ = writeln!(stream, "{answer}");
    });
    let serving = thread::spawn(move || {
        let (mut stream, _) = root.accept().expect("a client");
        BufReader::new(&stream).read_line(&mut String::new()).expect("a request");
        stream.write_all(b"{\"cmd\":\"kill\",\"value\":\"root's\",\"ok\":true}\n").expect("an answer");
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    command.args(["-k", "-a", &server.ip().to_string(), "-p", &server.port().to_string()]);
    command.env_remove("RUNTIME_DIRECTORY").env("XDG_RUNTIME_DIR", base.path()).env("TMPDIR", base.path());
    let output = command.output().expect("the program");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{ cmd: 'kill', value: \"root's\" }\n");
    serving.join().expect("the control server");
}

#[test]
fn check_and_run_print_nothing_of_a_file_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let toml = |text: &str| {
        serde_json::to_string(text).unwrap().replace('\u{7f}', "\\u007f").replace('\u{e0041}', "\\U000e0041")
    };
    let hostile = toml(HOSTILE);
    let texts = [
        format!("[service]\ncommand = ['x']\ndirectory = {}\n", toml(&format!("/no{HOSTILE}"))),
        format!("[service]\ncommand = ['x']\nenvironment_files = [{}]\n", toml(&format!("./e{HOSTILE}"))),
        format!("[service]\ncommand = [{}]\n", toml(&format!("/no{HOSTILE}"))),
        format!("[service]\ncommand = ['x']\nuser = {hostile}\n"),
        format!("[service]\ncommand = ['x']\n{hostile} = 1\n"),
        format!("[service]\ncommand = ['x']\noutput = {hostile}\n"),
        format!("[service]\ncommand = ['x']\n[[socket]]\nlisten = {hostile}\n"),
        format!("[service]\ncommand = ['x']\n[[socket]]\nlisten = {}\n", toml(&format!("./a{HOSTILE}"))),
        // No TOML at all, and a comment beside a fault.
        format!("[service] {HOSTILE}"),
        "[service]\ncommand = 1 # \u{202e}\u{9b}\n".into(),
    ];
    for text in &texts {
        fs::write(folder.path().join("a.toml"), text).unwrap();
        let output = liveswap(folder.path(), &["check", "a.toml"]);
        assert!(!output.stderr.is_empty() || !output.stdout.is_empty());
        assert_harmless(&output);
        assert_harmless(&liveswap(folder.path(), &["unit", "a.toml"]));
        if output.status.code() == Some(3) {
            assert_harmless(&liveswap(folder.path(), &["run", "a.toml"]));
        }
    }
    // The file's own name.
    let name = format!("b{HOSTILE}.toml");
    fs::write(folder.path().join(&name), "[service]\ncommand = ['/no']\nname = 'b'\n").unwrap();
    assert_harmless(&liveswap(folder.path(), &["check", &name]));
    assert_harmless(&liveswap(folder.path(), &["unit", &name]));
    assert_harmless(&liveswap(folder.path(), &["check", "no-such\x1b[2J\n.toml"]));
}

#[test]
fn what_was_typed_wrong_is_quoted_harmlessly() {
    let folder = tempfile::tempdir().unwrap();
    for words in [
        &[HOSTILE][..],
        &["check"],
        &["status", "--no\x1b[2J\nHint: forged"],
        &["status", HOSTILE],
        &["scale", HOSTILE],
        &["run", "--log-level", HOSTILE, "x"],
        &["run", "--watch", HOSTILE],
        &["-s", "x", "-p", HOSTILE],
        &["-s", "x", "--no\x1b[2J"],
        &["-u", HOSTILE, "-p", "1"],
        &["-m", "x", "-a", HOSTILE],
        &["try-handover", "--", HOSTILE],
    ] {
        let output = liveswap(folder.path(), words);
        assert!(!output.status.success(), "{words:?}");
        assert_harmless(&output);
    }
    let raw = std::ffi::OsStr::from_bytes(b"\xff\x9b\x1b");
    assert_harmless(&liveswap(folder.path(), &[std::ffi::OsStr::new("check"), raw]));
}

#[test]
fn the_log_has_no_line_that_another_wrote() {
    // A folder whose name would be two lines, the second of the highest priority.
    let folder = format!("/no{HOSTILE}\n<0>forged");
    let folder = serde_json::to_string(&folder).expect("a text").replace('\u{7f}', "\\u007f");
    for format in ["plain", "journal", "json", "human"] {
        let mut manager = Starter::default().flag(&format!("--log-format={format}")).start(Service::worker());
        manager.wait_ready();
        let place = manager.place();
        manager.rewrite(Service::worker().set("service.directory", &folder));
        let ended = manager.ask(r#"{"cmd":"upgrade"}"#);
        assert_eq!(ended["ok"], false, "{ended}");
        let refused = manager.wait_log(place, ["refused", "cannot enter directory", "forged"]);
        assert!(refused.contains("\\n<0>forged"), "{refused}");
        let log = manager.log.since(0);
        for line in &log {
            assert!(is_harmless(line.as_bytes()), "{line:?}");
            assert!(!line.starts_with("<0>") && !line.starts_with("Hint"), "{log:#?}");
        }
        manager.stop();
    }
}

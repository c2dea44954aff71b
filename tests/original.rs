//! The command line of the liveswap that was written in Node, and what its users did with it.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;

use nix::sys::signal::Signal;
use support::client::{Connection, Target, ask_any};
use support::control::Client;
use support::log::Step;
use support::manager::{Manager, Place, Starter, Worker, liveswap};
use support::{is_installed, is_root, loopback};

/// The hello world of Node's own front page as it was, and the one that it is upgraded to.
const HELLO: &str = include_str!("node/hello/index1.js");
const NOT_FOUND: &str = include_str!("node/hello/index2.js");

/// A program that answers with a text, and writes down every message that it gets with its pid.
fn app(address: SocketAddr, text: &str) -> String {
    format!(
        "process.on('message', text => require('fs').appendFileSync('heard', process.pid + ' ' + text + '\\n'))\n\
         require('http').createServer((request, response) => response.end('{text}'))\
         .listen({}, '{}')\n",
        address.port(),
        address.ip()
    )
}

/// A manager of seven workers that answer with `1`, with more words for its command line.
struct Old {
    manager: Manager,
    address: SocketAddr,
    host: String,
}

impl Old {
    /// `None` where there is no Node.
    fn start<const N: usize>(prepare: impl FnOnce(&Starter), more: [&str; N]) -> Option<Self> {
        if !is_installed("node") {
            return None;
        }
        let (starter, address) = (Starter::default(), loopback());
        fs::write(starter.path("app1.js"), app(address, "1")).expect("a program");
        fs::write(starter.path("app2.js"), app(address, "2")).expect("a program");
        prepare(&starter);
        let host = address.ip().to_string();
        let words = ["-s", "app1.js", "-f", "7", "-a", &host];
        let words: Vec<_> = words.into_iter().chain(more).collect();
        let starter = starter.original(&words);
        let mut manager = starter.start("this file is not read");
        manager.wait_ready();
        Some(Self { manager, address, host })
    }

    /// Starts one whose program answers with `1` on the default port of the control server, in front of more words; the manager has not yet
    /// become ready.
    fn start_at_the_default_port(program: &str, more: &[&str]) -> Option<Self> {
        if !is_installed("node") {
            return None;
        }
        let (starter, address) = (Starter::default(), SocketAddr::new(loopback().ip(), 3000));
        fs::write(starter.path("app1.js"), app(address, "1")).expect("a program");
        fs::write(starter.path("app2.js"), app(address, "2")).expect("a program");
        for name in ["one", "two"] {
            let number = if name == "one" { 1 } else { 2 };
            let script = format!("#!/bin/sh\nexec node app{number}.js\n");
            fs::write(starter.path(name), script).expect("a program");
            fs::set_permissions(starter.path(name), fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        let host = address.ip().to_string();
        let words = ["-s", program, "-f", "1", "-a", &host];
        let words: Vec<_> = words.into_iter().chain(more.iter().copied()).collect();
        let manager = starter.original(&words).start("this file is not read");
        Some(Self { manager, address, host })
    }

    /// Speaks to the manager by the original command line; returns the exit status, and what it printed on standard output.
    fn flags<const N: usize>(&self, flags: [&str; N]) -> (i32, String) {
        self.flags_in(&self.manager.path(""), flags)
    }

    /// The same in another folder.
    fn flags_in<const N: usize>(&self, folder: &Path, flags: [&str; N]) -> (i32, String) {
        let mut command = self.manager.command(flags);
        let output = command.args(["-a", &self.host]).current_dir(folder).output().expect("the program");
        let (status, error) =
            (output.status.code().expect("a status"), String::from_utf8_lossy(&output.stderr));
        // A failure, and nothing else, is told on standard error too.
        assert_eq!(error.starts_with("Error: "), status != 0, "{error}");
        assert_eq!(error.is_empty(), status == 0, "{error}");
        (status, String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn says(&self) -> String {
        let mut connection = Connection::open(&Target::Tcp(self.address)).expect("a connection");
        let (body, _) = connection.get("/", false).expect("an answer");
        String::from_utf8_lossy(&body).into_owned()
    }

    /// Waits until the program answers, where it may not yet listen.
    fn wait_says(&self, text: &str) {
        let ask = || ask_any(&Target::Tcp(self.address), "/").ok().filter(|answer| answer.body == text);
        self.manager.wait_until(&format!("an answer {text}"), ask);
    }

    fn workers(&self, generation: u64) -> BTreeSet<i32> {
        self.manager.wait_workers(generation, 7).into_iter().map(|worker| worker.pid).collect()
    }

    fn control(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), 3000)
    }
}

fn ok(command: &str) -> (i32, String) {
    (0, format!("{{ cmd: '{command}', value: 'OK' }}\n"))
}

#[test]
fn a_message_reaches_all_seven() {
    let Some(old) = Old::start(|_| (), []) else { return };
    assert_eq!(old.says(), "1");
    assert_eq!(old.flags(["-m", "message to worker"]), ok("message"));
    let heard = old.manager.wait_until("seven to have heard it", || {
        let text = fs::read_to_string(old.manager.path("heard")).unwrap_or_default();
        (text.lines().count() == 7).then_some(text)
    });
    let expected: BTreeSet<_> = old.workers(1).iter().map(|pid| format!("{pid} message to worker")).collect();
    assert_eq!(heard.lines().map(str::to_owned).collect::<BTreeSet<_>>(), expected);
}

#[test]
fn kill_replaces_all_seven() {
    let Some(old) = Old::start(|_| (), []) else { return };
    let before = old.workers(1);
    assert_eq!(old.flags(["-k"]), ok("kill"));
    assert!(old.workers(1).is_disjoint(&before));
    assert_eq!(old.says(), "1");
}

#[test]
fn an_upgrade_swaps_the_code_and_again_without_a_path_the_workers() {
    let Some(old) = Old::start(|_| (), []) else { return };
    assert_eq!(old.flags(["-u", "./app2.js"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    let before = old.workers(2);
    assert_eq!(old.flags(["-u"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    assert!(old.workers(3).is_disjoint(&before));
    let (status, said) = old.flags(["-u", "./nowhere.js"]);
    let path = old.manager.path("nowhere.js");
    let value = format!("target {}: No such file or directory (os error 2)", path.display());
    assert_eq!((status, said), (1, format!("{{ cmd: 'upgrade', value: '{value}' }}\n")));
    assert_eq!(old.says(), "2");
}

#[test]
fn a_pre_upgrade_that_fails_refuses_with_its_own_words() {
    let module = "module.exports = (data, callback) => callback(new Error('no pull of ' + data.value))";
    let Some(old) = Old::start(
        |starter| fs::write(starter.path("pre.js"), module).expect("a module"),
        ["--pre-upgrade", "./pre.js"],
    ) else {
        return;
    };
    let before = old.workers(1);
    let expected = "{ cmd: 'upgrade', value: 'no pull of app2.js' }\n".to_owned();
    assert_eq!(old.flags(["-u", "app2.js"]), (1, expected));
    assert_eq!((old.says().as_str(), old.workers(1)), ("1", before));
}

#[test]
fn a_pre_upgrade_makes_and_names_the_path() {
    let module = "const fs = require('fs')\n\
        module.exports = function (data, callback) {\n\
          fs.copyFileSync('app2.js', 'made.js')\n\
          callback(null, __dirname + '/made.js')\n\
        }";
    let Some(old) = Old::start(
        |starter| fs::write(starter.path("pre.js"), module).expect("a module"),
        ["--pre-upgrade", "pre"],
    ) else {
        return;
    };
    // The path that is asked for is there neither before nor after.
    assert_eq!(old.flags(["-u", "app3.js"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    let runs_it = |worker: &Worker| worker.command.iter().any(|word| word.ends_with("/made.js"));
    assert!(old.manager.wait_workers(2, 7).iter().all(runs_it));
}

/// Deploy scripts map a tag to a folder in the module: `liveswap -u v2`.
#[test]
fn a_pre_upgrade_is_told_what_was_typed() {
    let module = "const fs = require('fs')\n\
        module.exports = (data, callback) => {\n\
          fs.appendFileSync(__dirname + '/told', JSON.stringify([data.value, String(data)]) + '\\n')\n\
          callback(null, data.value.startsWith('v') ? `${__dirname}/releases/${data.value}.js` : data.value)\n\
        }";
    let Some(old) = Old::start(
        |starter| {
            fs::write(starter.path("pre.js"), module).expect("a module");
            fs::create_dir(starter.path("releases")).expect("a folder");
            // What stands at the path that a tag would be is not what the module means.
            fs::copy(starter.path("app1.js"), starter.path("v2")).expect("a decoy");
            fs::copy(starter.path("app2.js"), starter.path("releases/v2.js")).expect("a program");
        },
        ["--pre-upgrade", "./pre.js"],
    ) else {
        return;
    };
    let told = || fs::read_to_string(old.manager.path("told")).unwrap_or_default();
    assert_eq!(old.flags(["-u", "v2"]), ok("upgrade"));
    assert_eq!((told().as_str(), old.says().as_str()), ("[\"v2\",\"v2\"]\n", "2"));
    assert_eq!(old.flags(["-u"]), ok("upgrade"));
    assert_eq!((told().lines().last(), old.says().as_str()), (Some("[\"\",\"\"]"), "2"));
    // What the module gives back as it was typed is found where it was typed, or else where the manager was started.
    let releases = old.manager.path("releases");
    fs::copy(old.manager.path("app1.js"), releases.join("here.js")).expect("a program");
    assert_eq!(old.flags_in(&releases, ["-u", "./here.js"]), ok("upgrade"));
    assert_eq!((told().lines().last(), old.says().as_str()), (Some("[\"./here.js\",\"./here.js\"]"), "1"));
    assert_eq!(old.flags_in(&releases, ["-u", "app2.js"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    let mut client = Client::with_token(old.control(), &old.manager.token());
    client.say(r#"{"cmd":"upgrade","value":"app1.js"}"#);
    assert_eq!(client.hear()["value"], "OK");
    assert_eq!((told().lines().last(), old.says().as_str()), (Some("[\"app1.js\",\"app1.js\"]"), "1"));
    client.say(r#"{"cmd":"upgrade","value":"v3"}"#);
    let answer = client.hear();
    assert!(
        answer["value"].as_str().is_some_and(|why| why.contains("releases/v3.js: No such file")),
        "{answer}"
    );
    assert_eq!(old.says(), "1");
}

/// `client.message({ value: { … } })`, by a client that can show no token.
#[test]
fn a_message_is_any_json_value() {
    let program = "process.on('message', value => require('fs').appendFileSync('values', JSON.stringify(value) + '\\n'))\n";
    let Some(old) = Old::start(
        |starter| {
            let text = fs::read_to_string(starter.path("app1.js")).expect("the program");
            fs::write(starter.path("app1.js"), program.to_owned() + &text).expect("a program");
        },
        ["--local-owner"],
    ) else {
        return;
    };
    let mut client = Client::by_tcp(old.control());
    let long = format!("\"{}\"", "x".repeat((1 << 20) - 2));
    let values =
        [r#"{"b":[1.5,null,true],"a":{"text":"two\nlines"}}"#, "[]", "0", "null", r#""a\nb""#, long.as_str()];
    for value in values {
        client.say(&format!(r#"{{"cmd":"message","value":{value}}}"#));
        assert_eq!(client.hear()["value"], "OK", "{value:.40}");
    }
    let heard = || fs::read_to_string(old.manager.path("values")).unwrap_or_default();
    old.manager.wait_until("seven to have heard each", || {
        (heard().lines().count() == 7 * values.len()).then_some(())
    });
    let heard = heard();
    for value in values {
        assert_eq!(heard.lines().filter(|line| *line == value).count(), 7, "{value:.40}");
    }
    for (value, why) in [
        (format!("[{long}]"), "a message has at most 1048576 bytes of JSON"),
        (r#"{"cmd":"NODE_CLUSTER","act":"disconnect"}"#.to_owned(), "no `cmd` that begins with NODE_"),
    ] {
        client.say(&format!(r#"{{"cmd":"message","value":{value}}}"#));
        let answer = client.hear();
        assert!(answer["value"].as_str().is_some_and(|text| text.contains(why)), "{answer}");
    }
    assert_eq!(old.flags(["-m", &"y".repeat(100_000)]), ok("message"));
    // By TCP the first line, which shows the token, cannot be so long.
    let token = old.manager.path("run/token").display().to_string();
    let long = "y".repeat(100_000);
    let mut command = old.manager.command(["--token-file", &token, "-m", &long, "-a", &old.host]);
    let elsewhere = tempfile::tempdir().expect("a folder");
    let output = command.env("RUNTIME_DIRECTORY", elsewhere.path()).output().expect("the program");
    assert_eq!(String::from_utf8_lossy(&output.stdout), ok("message").1);
    client.say(&format!(r#"{{"cmd":"message","value":"{}"}}"#, "z".repeat(2 << 20)));
    assert_eq!(client.hear()["value"], "a line has at most 1052672 bytes");
}

#[test]
fn what_waits_for_a_worker_that_does_not_read_is_bounded() {
    let Some(old) = Old::start(|_| (), ["--local-owner", "-f", "1"]) else { return };
    let worker = old.manager.workers()[0].pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGSTOP).expect("a worker");
    let before = old.manager.resident();
    let mut client = Client::by_tcp(old.control());
    let line = format!(r#"{{"cmd":"message","value":"{}"}}"#, "x".repeat(500_000));
    let mut refused = None;
    for _ in 0..20 {
        client.say(&line);
        refused =
            refused.or(client.hear()["value"].as_str().filter(|value| *value != "OK").map(str::to_owned));
    }
    let why = refused.expect("a refusal");
    assert!(why.contains("has not read its earlier messages"), "{why}");
    // Lines and answers are there meanwhile, twenty messages are not.
    let more = old.manager.resident().saturating_sub(before);
    assert!(more < 6 * 1024, "{more} KiB more");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker), Signal::SIGCONT).expect("a worker");
    let last = line.replace('x', "y");
    old.manager.wait_until("the worker to read again", || {
        client.say(&last);
        (client.hear()["value"] == "OK").then_some(())
    });
    let text = "y".repeat(500_000);
    old.manager.wait_until("the message", || {
        fs::read_to_string(old.manager.path("heard")).ok().filter(|heard| heard.contains(&text))
    });
}

/// Port 3000 is the default of Express too.
#[test]
fn the_application_has_the_default_port_of_the_control_server() {
    let Some(mut old) = Old::start_at_the_default_port("app1.js", &[]) else { return };
    let folder = old.manager.path("").canonicalize().expect("the folder");
    let folder = folder.display().to_string();
    let folder = folder.trim_end_matches('/');
    old.manager.wait_log(Place::START, ["control server on", "closed: the application listens on", folder]);
    old.manager.wait_ready();
    assert_eq!(old.says(), "1");
    assert_eq!(old.flags(["-u", "app2.js"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    assert_eq!(old.flags(["-m", "still there"]), ok("message"));
    assert_eq!(old.flags(["-k"]), ok("kill"));
    assert_eq!(old.says(), "2");
    old.manager.reexec();
    assert_eq!(old.flags(["-u"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    // A manager that takes over leaves the application its address.
    old.manager.crash();
    let place = old.manager.place();
    old.manager.restart();
    old.manager.wait_log(place, ["are taken over"]);
    assert_eq!(old.flags(["-u", "app2.js"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    // Elsewhere it is said where to go.
    let elsewhere = tempfile::tempdir().expect("a folder");
    for (flags, more) in [(["-k", "-f", "1"], ""), (["-k", "-p", "3000"], " and without -p")] {
        let expected = format!(
            "{{ cmd: 'kill', value: 'the application listens at {}, and the control server has closed: call this in {folder}{more}' }}\n",
            old.address
        );
        assert_eq!(old.flags_in(elsewhere.path(), flags), (1, expected));
    }
    // The address is the control server's again when no generation has it.
    let place = old.manager.place();
    let other = SocketAddr::new(old.address.ip(), loopback().port());
    fs::write(old.manager.path("app3.js"), app(other, "3")).expect("a program");
    assert_eq!(old.flags(["-u", "app3.js"]), ok("upgrade"));
    old.manager.wait_log(place, ["control server listening on", ":3000"]);
    assert_eq!(old.flags_in(elsewhere.path(), ["-m", "back"]), ok("message"));
    let mut client = Client::with_token(old.control(), &old.manager.token());
    client.say(r#"{"cmd":"ping"}"#);
    assert_eq!(client.hear()["tcp"], old.control().to_string());
    assert_eq!(old.flags(["-u", "app1.js"]), ok("upgrade"));
    assert_eq!(old.says(), "1");
    let closed = old.manager.lines_since(Place::START);
    assert_eq!(
        closed.iter().filter(|line| line.contains("closed: the application")).count(),
        2,
        "{closed:#?}"
    );
    assert_eq!(old.flags(["-d"]), ok("die"));
    assert!(old.manager.wait_exit().success());
}

/// A program that is alive for a second counts as ready. Where it is later than that, the control server is in its way once.
#[test]
fn a_program_that_binds_for_itself_has_the_default_port_too() {
    let Some(mut old) = Old::start_at_the_default_port("./one", &["-z"]) else { return };
    old.manager.wait_ready();
    old.wait_says("1");
    assert_eq!(old.flags(["-u", "./two"]), ok("upgrade"));
    old.wait_says("2");
    let late = old.manager.place();
    fs::write(old.manager.path("late"), "#!/bin/sh\nsleep 2\nexec node app1.js\n").expect("a program");
    fs::write(old.manager.path("none"), "#!/bin/sh\nexec sleep 600\n").expect("a program");
    for name in ["late", "none"] {
        fs::set_permissions(old.manager.path(name), fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    assert_eq!(old.flags(["-u", "./late"]), ok("upgrade"));
    old.manager
        .wait_log(late, ["control server on", "closed: a worker has died, whose program may listen there"]);
    old.wait_says("1");
    // One that leaves the port to the control server.
    let place = old.manager.place();
    assert_eq!(old.flags(["-u", "./none"]), ok("upgrade"));
    old.manager.wait_log(place, ["control server listening on", ":3000"]);
    assert_eq!(old.flags(["-u", "./two"]), ok("upgrade"));
    old.wait_says("2");
    assert_eq!(old.flags(["-d"]), ok("die"));
    assert!(old.manager.wait_exit().success());
}

#[test]
fn a_port_that_was_typed_stays_the_control_servers() {
    let Some(old) = Old::start_at_the_default_port("app1.js", &["-p", "3000"]) else { return };
    let both = [
        &old.address.to_string(),
        "the control server",
        "has this address",
        "`-a` and `-p` of `liveswap -s`",
    ];
    old.manager.wait_log(Place::START, both);
    assert_eq!(old.flags(["-d"]), ok("die"));
}

#[test]
fn head_is_there_at_a_clean_end_and_another_target_that_is_typed_is_told() {
    let Some(mut old) = Old::start(|_| (), ["-H", "./HEAD"]) else { return };
    assert_eq!(old.flags(["-d"]), ok("die"));
    assert!(old.manager.wait_exit().success());
    let head = fs::read_to_string(old.manager.path("HEAD")).expect("it is there");
    let app1 = old.manager.path("app1.js").canonicalize().expect("the program").display().to_string();
    assert_eq!(head, app1, "a clean path, and nothing after it");
    // As the liveswap that was written in Node reads it.
    let reader = format!("require(require('fs').readFileSync({:?}).toString())", old.manager.path("HEAD"));
    fs::write(old.manager.path("app1.js"), "console.log('it is read')").expect("a program");
    let output = Command::new("node").args(["-e", &reader]).output().expect("node");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "it is read\n");
    fs::write(old.manager.path("app1.js"), app(old.address, "1")).expect("a program");

    let errors = fs::File::create(old.manager.path("errors")).expect("a file");
    let mut command = old.manager.command(["-s", "app2.js", "-f", "1", "-H", "HEAD", "-a", &old.host]);
    let mut child = command.stderr(errors).spawn().expect("the program");
    old.manager.wait_until("it to serve", || TcpStream::connect(old.address).ok());
    assert_eq!(old.says(), "2");
    assert_eq!(old.flags(["-d"]), ok("die"));
    assert!(child.wait().expect("its end").success());
    let errors = fs::read_to_string(old.manager.path("errors")).expect("the log");
    let app2 = app1.replace("app1", "app2");
    let told = format!("HEAD names {app1}; starting {app2}, which was typed");
    assert!(errors.contains(&told), "{errors}");
    assert_eq!(fs::read_to_string(old.manager.path("HEAD")).expect("it is there"), app2);
}

#[test]
fn flags_are_taken_as_they_were() {
    if !is_installed("node") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let (status, said) = liveswap(folder.path(), []);
    assert!(status.success() && said.contains("Usage: liveswap"), "{said}");
    // 0 workers stand for as many as there are CPUs, and the last of two values counts.
    let (starter, address) = (Starter::default(), loopback());
    fs::write(starter.path("app1.js"), app(address, "1")).expect("a program");
    let host = address.ip().to_string();
    let words = ["-s", "none.js", "-f", "7", "-a", "127.0.0.1", "-f", "0", "-a", &host, "-s", "app1.js"];
    let mut manager = starter.original(&words).start("this file is not read");
    manager.wait_ready();
    let cpus = thread::available_parallelism().expect("a number").get();
    manager.wait_workers(1, cpus);
    let output = manager.command(["-a", &host, "-d", "-d"]).output().expect("the program");
    assert_eq!(String::from_utf8_lossy(&output.stdout), ok("die").1);
    assert!(manager.wait_exit().success());
}

/// Asserts that nobody listens at an address any more.
fn assert_free(address: SocketAddr) {
    let error = TcpStream::connect(address).expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
}

#[test]
fn die_frees_both_ports_before_it_answers() {
    let Some(mut old) = Old::start(|_| (), []) else { return };
    assert_eq!(old.flags(["-d"]), ok("die"));
    assert_free(old.address);
    assert_free(old.control());
    assert!(old.manager.wait_exit().success());
    let expected = format!("{{ cmd: 'die', value: 'connect ECONNREFUSED {}' }}\n", old.control());
    assert_eq!(old.flags(["-d"]), (1, expected));
}

#[test]
fn sigterm_frees_both_ports_before_the_end() {
    let Some(mut old) = Old::start(|_| (), []) else { return };
    old.manager.signal(Signal::SIGTERM);
    assert!(old.manager.wait_exit().success());
    assert_free(old.address);
    assert_free(old.control());
}

#[test]
fn the_control_server_speaks_the_lines_of_always() {
    let Some(old) = Old::start(|_| (), []) else { return };
    let mut client = Client::with_token(old.control(), &old.manager.token());
    let path = old.manager.path("app2.js");
    client.say(&format!(r#"{{"cmd":"upgrade","value":"{}"}}"#, path.display()));
    let answer = client.hear();
    assert_eq!((answer["cmd"].as_str(), answer["value"].as_str()), (Some("upgrade"), Some("OK")));
    assert_eq!(old.says(), "2");
}

/// The clients of old cannot show a token.
#[test]
fn under_local_owner_a_client_needs_no_token() {
    let Some(old) = Old::start(|_| (), ["--local-owner"]) else { return };
    let mut client = Client::by_tcp(old.control());
    client.say(r#"{"cmd":"message","value":"of old"}"#);
    assert_eq!(client.hear()["value"], "OK");
    let Some(old) = Old::start(|_| (), []) else { return };
    let mut client = Client::by_tcp(old.control());
    client.say(r#"{"cmd":"message","value":"of old"}"#);
    assert!(
        client.hear()["value"]
            .as_str()
            .is_some_and(|why| why.contains("the first line must have the `token`"))
    );
}

#[test]
fn a_program_that_has_got_the_port_is_not_shown_the_token() {
    let Some(mut old) = Old::start(|_| (), []) else { return };
    old.manager.crash();
    let token = old.manager.token();
    let thief = TcpListener::bind(old.control()).expect("the port");
    let listens = thread::spawn(move || {
        let (mut stream, _) = thief.accept().expect("a client");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("a request");
        stream.write_all(b"{\"cmd\":\"kill\",\"value\":\"OK\",\"ok\":true}\n").expect("an answer");
        line
    });
    assert_eq!(old.flags(["-k"]), ok("kill"));
    let heard = listens.join().expect("the thief");
    assert!(heard.contains("kill") && !heard.contains("token") && !heard.contains(&token), "{heard}");
    // The one manager that is meant is found among others, and no stranger's port is asked where it is there.
    let place = old.manager.place();
    old.manager.restart();
    old.manager.wait_log(place, ["are taken over"]);
    assert_eq!(old.flags(["-m", "still there"]), ok("message"));
}

#[test]
fn of_three_upgrades_at_once_each_hears_its_own_truth() {
    let Some(old) = Old::start(|_| (), []) else { return };
    let mut client = Client::with_token(old.control(), &old.manager.token());
    let line = |id: u32, path: &str| {
        format!("{{\"id\":{id},\"cmd\":\"upgrade\",\"value\":\"{}\"}}", old.manager.path(path).display())
    };
    let lines = [line(1, "app2.js"), line(2, "nowhere.js"), line(3, "app1.js"), line(4, "app1.js")];
    client.say(&lines.join("\n"));
    let answers: Vec<_> =
        (0..4).map(|_| client.hear()).map(|a| (a["id"].clone(), a["value"].clone())).collect();
    let superseded = "superseded: an upgrade to another target was asked for";
    // Two who want the same wait together.
    let ok = |id: u32| (id.into(), "OK".into());
    let mut last = answers[2..].to_vec();
    last.sort_by_key(|(id, _)| id.as_u64());
    assert_eq!((&answers[..2], last), (&[(2.into(), superseded.into()), ok(1)][..], vec![ok(3), ok(4)]));
    assert_eq!(old.says(), "1");
    old.workers(3);
}

#[test]
fn head_tells_what_serves_and_what_was_typed_is_begun_with() {
    let Some(mut old) = Old::start(|_| (), ["-H", "HEAD"]) else { return };
    let head = |old: &Old| fs::read_to_string(old.manager.path("HEAD")).expect("it is recorded");
    // Nobody waits for the record of the first one.
    old.manager.wait_until("the first record", || old.manager.path("HEAD").exists().then_some(()));
    assert!(head(&old).ends_with("/app1.js"));
    // What is refused or rolled back is not recorded.
    fs::write(old.manager.path("broken.js"), "process.exit(3)").expect("a program");
    let (status, said) = old.flags(["-u", "broken.js"]);
    assert_eq!(status, 1);
    assert!(said.starts_with("{ cmd: 'upgrade', value: 'rolled back: worker "), "{said}");
    assert!(said.contains("exited with status 3 before it was ready"), "{said}");
    assert!(head(&old).ends_with("/app1.js"));
    assert_eq!(old.flags(["-u", "app2.js"]), ok("upgrade"));
    assert!(head(&old).ends_with("/app2.js"));
    assert_eq!(old.flags(["-d"]), ok("die"));
    assert!(old.manager.wait_exit().success());

    let again = |words: [&str; 8]| {
        let mut command = old.manager.command(words);
        let child = command.stderr(std::process::Stdio::null()).stdout(std::process::Stdio::null()).spawn();
        let mut child = child.expect("the program");
        let said = old
            .manager
            .wait_until("it to serve", || Some(TcpStream::connect(old.address)).filter(Result::is_ok));
        drop(said);
        let said = old.says();
        assert_eq!(old.flags(["-d"]), ok("die"));
        assert!(child.wait().expect("its end").success());
        said
    };
    // As deploy scripts start it again: `liveswap -s "$(cat HEAD)"`.
    let recorded = head(&old);
    assert_eq!(again(["-s", &recorded, "-f", "1", "-a", &old.host, "-H", "HEAD"]), "2");
    assert_eq!(again(["-s", "app1.js", "-f", "1", "-a", &old.host, "-H", "HEAD"]), "1");
    assert!(head(&old).ends_with("/app1.js"));
}

/// Runs a script in a network of its own, and in a folder with the pair of programs; returns what it printed, and its `log`.
fn typed(script: &str) -> Option<(String, String)> {
    if !is_installed("node") || !is_root("a network of its own") {
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in [
        ("index1.js", HELLO),
        ("index2.js", NOT_FOUND),
        ("get.js", include_str!("node/hello/get.js")),
        ("pull.js", PULL),
    ] {
        fs::write(folder.path().join(name), text).expect("a program");
    }
    let program = Path::new(env!("CARGO_BIN_EXE_liveswap"));
    let path = format!(
        "{}:{}",
        program.parent().expect("a folder").display(),
        std::env::var("PATH").expect("a PATH")
    );
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", &format!("ip link set lo up\n{script}")])
        .current_dir(folder.path())
        .env("PATH", path)
        .env("RUNTIME_DIRECTORY", folder.path().join("run"))
        .output()
        .expect("unshare");
    let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{log}");
    Some((String::from_utf8_lossy(&output.stdout).into_owned(), log))
}

#[test]
fn the_hello_world_pair_typed_as_it_was_always_typed() {
    let script = "liveswap -s index1.js >log 2>&1 &\n\
        node get.js until-it-serves\n\
        liveswap -u ./index2.js\n\
        node get.js\n\
        liveswap -v\n\
        liveswap -d\n\
        wait $! && echo ended";
    let Some((said, log)) = typed(script) else { return };
    let expected = format!(
        "200 Hello World\n{{ cmd: 'upgrade', value: 'OK' }}\n404 Not Found\n{}\n{{ cmd: 'die', value: 'OK' }}\nended\n",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(said, expected, "{log}");
    assert!(log.lines().any(|line| line == "Starting on port 3000"), "{log}");
}

/// What the README of the original shows beside the pair, with each option.
#[test]
fn the_other_examples_typed_as_they_were_always_typed() {
    let script = "liveswap --pre-upgrade ./pull.js --start ./index1.js >log 2>&1 &\n\
        node get.js until-it-serves\n\
        liveswap -u ./index2.js\n\
        node get.js\n\
        liveswap --upgrade index1.js\n\
        node get.js\n\
        liveswap --message 'a message'\n\
        liveswap --kill\n\
        liveswap --version\n\
        liveswap --die\n\
        wait $! && echo ended\n\
        liveswap -s index1.js --port 9008 --address 127.0.0.2 --forks 2 --head HEAD -z >>log 2>&1 &\n\
        node get.js until-it-serves\n\
        liveswap -p 9008 -a 127.0.0.2 -u index2.js\n\
        node get.js\n\
        cat HEAD\n\
        echo\n\
        liveswap -p 9008 -a 127.0.0.2 -d\n\
        wait $! && echo ended";
    let Some((said, log)) = typed(script) else { return };
    let ok = |command: &str| format!("{{ cmd: '{command}', value: 'OK' }}");
    let said: Vec<_> = said.lines().collect();
    let version = concat!("liveswap ", env!("CARGO_PKG_VERSION"));
    let (upgrade, message, kill, die) = (ok("upgrade"), ok("message"), ok("kill"), ok("die"));
    let (hello, not_found) = ("200 Hello World", "404 Not Found");
    let first = [
        hello, &upgrade, not_found, &upgrade, hello, &message, &kill, version, &die, "ended", hello, &upgrade,
    ];
    assert_eq!(said[..12], first, "{log}");
    assert_eq!((said[12], &said[14..]), (not_found, &[die.as_str(), "ended"][..]), "{log}");
    assert!(said[13].ends_with("/index2.js"), "{said:?}");
    assert!(log.lines().any(|line| line == "executing pre-upgrade script..."), "{log}");
    assert!(log.lines().any(|line| line == "Starting on port 9008"), "{log}");
}

/// The module of its README.
const PULL: &str = "function preupgrade(data, callback) {
  console.log('executing pre-upgrade script...');

  var err, value = data.value;
  try {
    // execute pre-upgrade code
  } catch (e) {
    err = e.toString();
  }

  callback(err, value);
}
module.exports = preupgrade;
";

#[test]
fn any_executable_is_a_target_too() {
    let starter = Starter::default();
    for name in ["one", "two"] {
        let script = format!("#!/bin/sh\n# {name}\nexec sleep 600\n");
        fs::write(starter.path(name), script).expect("a program");
        fs::set_permissions(starter.path(name), fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let host = loopback().ip().to_string();
    let starter = starter.original(&["-s", "./one", "-f", "1", "-z", "-a", &host]);
    let mut manager = starter.start("this file is not read");
    manager.wait_ready();
    let output = manager.command(["-u", "two", "-a", &host]).output().expect("the program");
    assert_eq!(String::from_utf8_lossy(&output.stdout), ok("upgrade").1);
    // With -z the old one has gone before the new one starts.
    let transitions = manager.transitions(Place::START);
    let place = |worker, step| transitions.iter().position(|one| one.worker == worker && one.step == step);
    assert!(place(1, Step::Gone) < place(2, Step::Started), "{transitions:#?}");
}

#[test]
fn what_cannot_be_is_said_in_words_of_the_command_line() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("index.js"), "").expect("a program");
    let (status, said) = liveswap(folder.path(), ["-s", "index.js", "-f", "5000"]);
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("`-f` must be an integer from 1 to 4096"), "{said}");
    let (status, said) = liveswap(folder.path(), ["-s", "index.js", "-a", "0.0.0.0"]);
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("--token-file") && said.contains("-a 0.0.0.0 -p 3000"), "{said}");
    let (status, said) = liveswap(folder.path(), ["-s", "nowhere.js"]);
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("nowhere.js: No such file"), "{said}");
    let (status, said) = liveswap(folder.path(), ["-k", "-d"]);
    assert_eq!(status.code(), Some(2), "{said}");
}

#[test]
fn it_is_replaced_by_another_program_like_any_manager() {
    let Some(old) = Old::start(|_| (), []) else { return };
    let before = old.workers(1);
    let place = old.manager.place();
    old.manager.signal(Signal::SIGUSR2);
    old.manager.wait_log(place, ["goes on as the manager"]);
    assert_eq!(old.workers(1), before);
    assert_eq!(old.flags(["-m", "still there"]), ok("message"));
    assert_eq!(old.flags(["-u", "app2.js"]), ok("upgrade"));
    assert_eq!(old.says(), "2");
    assert!(matches!(old.control().ip(), IpAddr::V4(_)));
}

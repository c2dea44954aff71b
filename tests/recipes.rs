//! The recipes of docs/recipes.md, each really run: requests under load, a good upgrade and a bad one.
//!
//! Service files, apps and commands come out of the document itself.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use support::client::{Load, Mode, Report, Response, Target};
use support::control::Ended;
use support::documents::{Block, blocks, document};
use support::log::{Step, Transition};
use support::manager::{Manager, Place, Starter};
use support::{PATIENCE, is_installed, is_root, loopback, skipped};

/// What the app of the first release answers, and of the second.
const ANSWERS: [&str; 2] = ["release 1", "release 2"];

/// The modes of the clients of a recipe over HTTP.
const CLIENTS: [Mode; 4] = [Mode::Once, Mode::KeepAlive, Mode::Once, Mode::KeepAlive];

/// How a worker ends that finishes its requests and then sends itself the drain signal again.
const BY_SIGNAL: &str = "gone: ended by SIGTERM, as it was asked to";

const BY_STATUS: &str = "gone: exited with status 0";

/// A recipe laid out on disk.
struct Recipe {
    starter: Starter,
    service: String,
    address: SocketAddr,
    deploy: String,
}

impl Recipe {
    /// Lays out the service file of a section that contains `word`, with two releases of its app and, as `releases/3`, one
    /// whose `file` is broken.
    fn new(section: &str, word: &str, file: &str, break_it: impl Fn(&str) -> String) -> Self {
        let starter = Starter::default();
        // Workers of another user pass through it.
        fs::set_permissions(starter.path(""), fs::Permissions::from_mode(0o755)).expect("its mode");
        let (address, folder) = (loopback(), starter.path(""));
        let place = |text: &str| {
            let listen = format!("listen({}, '{}')", address.port(), address.ip());
            text.replace("127.0.0.1:8000", &address.to_string())
                .replace("listen(8000, '127.0.0.1')", &listen)
                .replace("/srv/web/", folder.to_str().expect("UTF-8"))
        };
        let recipes = fs::read_to_string(document("docs/recipes.md")).expect("the recipes");
        let text = section_of(&recipes, section);
        let is_service = |block: &Block<'_>| block.text.contains("[service]") && block.text.contains(word);
        let service = blocks(text).into_iter().find(is_service).expect("a service file").text;
        for (number, answer) in [("1", ANSWERS[0]), ("2", ANSWERS[1]), ("3", ANSWERS[1])] {
            let release = starter.path("releases").join(number);
            fs::create_dir_all(&release).expect("a release");
            for (name, text) in files_of(text) {
                let text = place(text).replace(ANSWERS[0], answer);
                let text = if (number, name) == ("3", file) { break_it(&text) } else { text };
                fs::write(release.join(name), text).expect("a file of the release");
            }
        }
        symlink("releases/1", starter.path("current")).expect("the link");
        let commands = blocks(section_of(&recipes, "Run and upgrade"));
        let deploy = commands.iter().rfind(|block| block.language == "sh").expect("the commands").text;
        Self { service: place(service), deploy: place(deploy), address, starter }
    }

    /// Does something in the folder of each release.
    fn each_release(self, prepare: impl Fn(&Path)) -> Self {
        for number in ["1", "2", "3"] {
            prepare(&self.starter.path("releases").join(number));
        }
        self
    }

    /// Starts the service, and upgrades it under load to the good release and to the broken one, which must be rolled back
    /// for a reason that contains `why`. `ends` is how each old worker ends.
    fn run(self, why: &str, ends: &[&str]) -> Report {
        let Self { starter, service, address, deploy } = self;
        let mut manager = starter.start(&service);
        manager.wait_ready();
        let answers = ANSWERS.map(|body| Response::new(200, body));
        let load = Load::start_on_others(&[Target::Tcp(address)], &CLIENTS, &answers);
        load.wait_for_more_of(ANSWERS[0], 50);
        upgrade(&manager, &deploy).assert(0, []);
        load.wait_for_more_of(ANSWERS[1], 50);
        let broken = upgrade(&manager, &deploy.replace("releases/2", "releases/3"));
        broken.assert(1, ["rolled back", why]);
        load.wait_for_more_of(ANSWERS[1], 50);
        manager.cli(["status", "--check"]).assert(0, []);
        let report = load.stop();
        println!("{report}");
        assert_ends(&manager, ends);
        manager.stop();
        report
    }
}

/// Waits until the workers of the first generation have ended, and fails the test unless they did so in these ways.
fn assert_ends(manager: &Manager, expected: &[&str]) {
    let is_end = |one: &Transition| one.generation == 1 && one.step == Step::Gone;
    let ends = manager.wait_until("the end of the old workers", || {
        let ends = manager.transitions(Place::START).into_iter().filter(is_end);
        let ends: Vec<String> = ends.map(|one| one.words).collect();
        (ends.len() == expected.len()).then_some(ends)
    });
    if ends != expected {
        manager.fail(&format!("the old workers ended in another way: {ends:?}"));
    }
}

/// Runs the commands of an upgrade as the document has them.
fn upgrade(manager: &Manager, commands: &str) -> Ended {
    let folder = Path::new(env!("CARGO_BIN_EXE_liveswap")).parent().expect("its folder");
    let path = format!("{}:{}", folder.display(), env::var("PATH").expect("PATH"));
    let mut command = Command::new("sh");
    command.args(["-e", "-c", commands]).env("PATH", path).env("RUNTIME_DIRECTORY", manager.path("run"));
    Ended::of(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a shell"))
}

/// The text below a heading, up to the next one.
fn section_of<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, section) = document.split_once(&format!("\n## {heading}\n")).expect("the section");
    section.split_once("\n## ").map_or(section, |(section, _)| section)
}

/// The files of a section: the text of each block is one whose name stands before it, as in "The app, `app.py`:".
fn files_of(section: &str) -> Vec<(&str, &str)> {
    fn name(before: &str) -> Option<&str> {
        Some(before.split_once(", `")?.1.split_once('`')?.0)
    }
    blocks(section).into_iter().filter_map(|block| Some((name(block.before)?, block.text))).collect()
}

/// Returns a folder that tests/recipes/install fills; where it did not, the test says so and proves nothing, and in CI it fails.
fn installed(name: &str) -> Option<PathBuf> {
    let path = document("target/recipes").join(name);
    let found = path.exists();
    if !found {
        assert!(env::var_os("CI").is_none(), "{} is missing, and CI must not do without it", path.display());
        skipped::add(&format!("{name} is not installed; tests/recipes/install does it"));
    }
    found.then_some(path)
}

/// A recipe for a Python server; its broken release cannot be imported.
fn python(section: &str, word: &str) -> Option<Recipe> {
    let venv = installed("venv")?;
    let recipe = Recipe::new(section, word, "app.py", |app| format!("import no_such_module\n{app}"));
    Some(recipe.each_release(|release| symlink(&venv, release.join("venv")).expect("a link")))
}

#[test]
fn gunicorn() {
    let Some(recipe) = python("gunicorn", "gunicorn") else { return };
    recipe.run("exited with status", &[BY_STATUS]).assert_spotless();
}

/// That some requests are lost under load is what the document says.
#[test]
fn uvicorn_as_it_is() {
    let Some(recipe) = python("uvicorn", "--fd") else { return };
    let report = recipe.run("exited with status 1", &[BY_SIGNAL; 2]);
    assert!(report.failed.len() < 10, "{report}");
}

#[test]
fn uvicorn_by_a_program_that_lets_clients_finish() {
    let Some(recipe) = python("uvicorn", "serve.py") else { return };
    recipe.run("exited with status 1", &[BY_SIGNAL; 2]).assert_spotless();
}

#[test]
fn puma() {
    if is_installed("puma") {
        let recipe =
            Recipe::new("puma", "puma", "config.ru", |app| format!("require 'no_such_library'\n{app}"));
        recipe.run("exited with status 1", &[BY_SIGNAL; 2]).assert_spotless();
    }
}

#[test]
fn node() {
    if is_installed("node") {
        let recipe =
            Recipe::new("Node", "target", "index.js", |app| format!("require('no-such-module')\n{app}"));
        recipe.run("exited with status 1", &[BY_STATUS; 2]).assert_spotless();
    }
}

#[test]
fn go() {
    if is_installed("go") {
        let break_it = |app: &str| app.replace("func main() {", "func main() {\n\tlog.Fatal(release)");
        let recipe = Recipe::new("Go", "server", "main.go", break_it).each_release(|release| {
            let mut build = Command::new("go");
            build.args(["build", "-o", "server", "main.go"]).current_dir(release);
            // Without cgo no C compiler is needed.
            let output = build.env("CGO_ENABLED", "0").env("GOFLAGS", "").output().expect("go build");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
        recipe.run("exited with status 1", &[BY_STATUS; 2]).assert_spotless();
    }
}

/// PHP's releases are told apart by the folder in which php-fpm was started, as the document says.
#[test]
fn php_fpm() {
    if !is_installed("php-fpm8.2") || !is_root("php-fpm with children of another user") {
        return;
    }
    let break_it = |text: &str| text.replace("pm = static", "pm = no-such-manager");
    let Recipe { starter, service, address, deploy } =
        Recipe::new("php-fpm", "php-fpm", "php-fpm.conf", break_it);
    let mut manager = starter.start(&service);
    manager.wait_ready();
    let load = FastCgi::start(address);
    load.wait_for(ANSWERS[0]);
    upgrade(&manager, &deploy).assert(0, []);
    load.wait_for(ANSWERS[1]);
    let to_broken = deploy.replace("releases/2", "releases/3");
    upgrade(&manager, &to_broken).assert(1, ["rolled back", "exited with status 78"]);
    load.wait_for(ANSWERS[1]);
    fs::write(manager.path("releases/3/index.php"), "<?php echo").expect("a broken app");
    upgrade(&manager, &to_broken).assert(1, ["refused", "before"]);
    load.wait_for(ANSWERS[1]);
    load.stop();
    assert_ends(&manager, &[BY_STATUS]);
    manager.stop();
}

/// Load by FastCGI: two clients that ask for the app until they are stopped.
struct FastCgi {
    stop: Arc<AtomicBool>,
    answers: Receiver<io::Result<String>>,
    clients: Vec<JoinHandle<()>>,
}

impl FastCgi {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, answers) = mpsc::channel();
        let clients = [(); 2].map(|()| {
            let (stop, sender) = (Arc::clone(&stop), sender.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    sender.send(ask_fast_cgi(address)).expect("the test");
                    thread::sleep(Duration::from_millis(5));
                }
            })
        });
        Self { stop, answers, clients: clients.into() }
    }

    /// Waits for an answer of a release, and fails the test where a request does.
    fn wait_for(&self, release: &str) {
        let begun = Instant::now();
        // What came before is of no interest but for its failures.
        for answer in self.answers.try_iter() {
            assert!(answer.is_ok(), "{answer:?}");
        }
        while begun.elapsed() < PATIENCE {
            let answer = self.answers.recv_timeout(PATIENCE).expect("an answer");
            if answer.expect("a request answered") == release {
                return;
            }
        }
        panic!("in vain awaited: an answer of {release}");
    }

    fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.clients.into_iter().for_each(|client| client.join().expect("a client"));
        for answer in self.answers.try_iter() {
            assert!(answer.is_ok(), "{answer:?}");
        }
    }
}

/// Asks php-fpm for the app as the document has nginx do it; returns the body.
fn ask_fast_cgi(address: SocketAddr) -> io::Result<String> {
    let record = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).expect("a short record").to_be_bytes();
        [&[1, kind, 0, 1, length[0], length[1], 0, 0], content].concat()
    };
    let variables = [("SCRIPT_FILENAME", "/proc/self/cwd/index.php"), ("REQUEST_METHOD", "GET")];
    let length = |text: &str| u8::try_from(text.len()).expect("a short text");
    let parameters = variables
        .map(|(name, value)| [&[length(name), length(value)], name.as_bytes(), value.as_bytes()].concat());
    // BEGIN_REQUEST as a responder, PARAMS, the end of PARAMS, the end of STDIN.
    let begin = record(1, &[0, 1, 0, 0, 0, 0, 0, 0]);
    let request = [begin, record(4, &parameters.concat()), record(4, &[]), record(5, &[])].concat();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&request)?;
    let mut output = Vec::new();
    loop {
        let mut header = [0; 8];
        stream.read_exact(&mut header)?;
        let mut content =
            vec![0; usize::from(u16::from_be_bytes([header[4], header[5]])) + usize::from(header[6])];
        stream.read_exact(&mut content)?;
        content.truncate(content.len() - usize::from(header[6]));
        match header[1] {
            // STDOUT, END_REQUEST
            6 => output.extend(content),
            3 => break,
            kind => return Err(io::Error::other(format!("a record of type {kind}: {content:?}"))),
        }
    }
    let text = String::from_utf8_lossy(&output);
    let (_, body) =
        text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("no answer: {text:?}")))?;
    Ok(body.to_owned())
}

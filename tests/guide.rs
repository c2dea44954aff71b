//! The guide's examples, each really run: started, asked, upgraded under a strict load, stopped.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, io};

use nix::sys::signal::Signal;
use support::client::{Connection, Target};
use support::documents::document;
use support::log::{Step, Verdict};
use support::manager::{Place, Starter};
use support::{eventually, is_installed, loopback};

/// How many times each example is upgraded.
const UPGRADES: u64 = 3;

/// How many workers each example has.
const WORKERS: usize = 2;

#[test]
fn the_python_example_loses_no_request() {
    if is_installed("python3") {
        upgrade_under_load("python/service.toml", |_| {});
    }
}

#[test]
fn the_go_example_loses_no_request() {
    if is_installed("go") {
        upgrade_under_load("go/service.toml", |examples| {
            let mut build = Command::new("go");
            build.args(["build", "-o", "worker", "main.go"]).current_dir(examples.join("go"));
            // Without cgo no C compiler is needed.
            let output = build.env("CGO_ENABLED", "0").env("GOFLAGS", "").output().expect("go build");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        });
    }
}

#[test]
fn the_node_example_loses_no_request() {
    if is_installed("node") {
        upgrade_under_load("node/service.toml", |_| {});
    }
}

#[test]
fn the_wrapper_that_becomes_its_server_loses_no_request() {
    if is_installed("python3") {
        upgrade_under_load("shell/service.toml", |_| {});
    }
}

#[test]
fn the_wrapper_that_stays_loses_no_request() {
    if is_installed("python3") {
        upgrade_under_load("shell/supervise.toml", |_| {});
    }
}

/// Runs the example of a service file through upgrades under load, and through its end.
fn upgrade_under_load(file: &str, prepare: impl FnOnce(&Path)) {
    // Longer than any pause of a client on an overloaded machine: that HTTP has a race there is not what this is about.
    let starter = Starter::default().variable("LINGER", 20);
    let examples = starter.path("examples");
    copy_folder(&document("docs/examples"), &examples).expect("a copy of the examples");
    prepare(&examples);
    let address = loopback();
    let text = fs::read_to_string(examples.join(file)).expect("the example's service file");
    let folder = examples.join(file).parent().expect("a folder").to_owned();
    let text = replace_once(&text, "127.0.0.1:8080", &address.to_string());
    let text =
        replace_once(&text, "[service]\n", &format!("[service]\ndirectory = {:?}\n", folder.display()));
    let mut manager = starter.start(text);
    manager.wait_ready();

    let target = Target::Tcp(address);
    let load = Load::start(&target);
    for generation in 2..=UPGRADES + 1 {
        load.wait_for(generation - 1);
        let mut idle = Connection::open(&target).expect("a connection");
        let (_, closes) = idle.get("/", true).expect("an answer");
        assert!(!closes, "a worker that does not drain ends a connection");
        let place = manager.place();
        manager.signal(Signal::SIGHUP);
        let outcome = manager.wait_outcome(place);
        if outcome.verdict != Verdict::Committed {
            manager.fail(&format!("not committed: {outcome:?}"));
        }
        // Its worker was told to drain, and has kept it open for a request that may come.
        eventually("the end of a connection announced", || {
            let (body, closes) = idle.get("/", true).unwrap_or_else(|error| {
                manager.fail(&format!("a connection that was idle in the upgrade: {error}"))
            });
            assert_eq!(generation_in(&body).expect("an answer"), generation - 1);
            closes.then_some(())
        });
        idle.expect_end().expect("an orderly end");
        load.wait_for(generation);
        manager.wait_workers(generation, WORKERS);
    }
    load.stop();
    for ended in manager.transitions(Place::START).iter().filter(|one| one.step == Step::Gone) {
        if ended.words != "gone: exited with status 0" {
            manager.fail(&format!("it did not drain as it should: {ended:?}"));
        }
    }
    manager.stop();
}

/// Clients that ask until they are stopped, some with one connection a request, some with many requests over one.
struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Answers by generation.
    answered: BTreeMap<u64, u64>,
    failed: Vec<String>,
}

impl Load {
    fn start(target: &Target) -> Self {
        let shared = Arc::new(Shared::default());
        let clients = [true, false, true, false].map(|keep_alive| {
            let (shared, target) = (Arc::clone(&shared), target.clone());
            thread::spawn(move || ask_until_stopped(&shared, &target, keep_alive))
        });
        Self { shared, clients: clients.into() }
    }

    /// Waits until a generation has answered a good number of requests.
    fn wait_for(&self, generation: u64) {
        eventually(&format!("answers of generation {generation}"), || {
            let seen = self.shared.seen.lock().expect("what was seen");
            assert!(seen.failed.is_empty(), "{:#?}", seen.failed);
            (seen.answered.get(&generation) >= Some(&50)).then_some(())
        });
    }

    /// Ends the load, and fails the test where a request did.
    fn stop(self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.clients.into_iter().for_each(|client| client.join().expect("a client"));
        let seen = self.shared.seen.lock().expect("what was seen");
        assert!(seen.failed.is_empty(), "{:#?}", seen.failed);
        println!("answers by generation: {:?}, 0 failed", seen.answered);
    }
}

fn ask_until_stopped(shared: &Shared, target: &Target, keep_alive: bool) {
    let mut kept = None;
    while !shared.stopped.load(Ordering::SeqCst) {
        let answer = ask(&mut kept, target, keep_alive);
        let mut seen = shared.seen.lock().expect("what was seen");
        match answer {
            Ok(generation) => *seen.answered.entry(generation).or_default() += 1,
            Err(error) => seen.failed.push(format!("keep_alive {keep_alive}: {error}")),
        }
        drop(seen);
        thread::sleep(Duration::from_millis(3));
    }
}

/// Sends one request; returns the generation that answered.
fn ask(kept: &mut Option<Connection>, target: &Target, keep_alive: bool) -> io::Result<u64> {
    let mut connection = kept.take().map_or_else(|| Connection::open(target), Ok)?;
    let (body, closes) = connection.get("/", keep_alive)?;
    if closes {
        connection.expect_end()?;
    } else if keep_alive {
        *kept = Some(connection);
    } else {
        return Err(io::Error::other("Connection: close was ignored"));
    }
    generation_in(&body)
}

/// Reads `generation 2 slot 0 pid 1234`.
fn generation_in(body: &[u8]) -> io::Result<u64> {
    let text = String::from_utf8_lossy(body);
    let parse = || {
        let words: Vec<_> = text.strip_suffix('\n')?.split(' ').collect();
        let ["generation", generation, "slot", slot, "pid", pid] = words[..] else { return None };
        let _: (usize, u32) = (slot.parse().ok()?, pid.parse().ok()?);
        generation.parse().ok()
    };
    parse().ok_or_else(|| io::Error::other(format!("not an answer: {text:?}")))
}

fn replace_once(text: &str, old: &str, new: &str) -> String {
    assert_eq!(text.matches(old).count(), 1, "{old:?} in:\n{text}");
    text.replace(old, new)
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &copy)?;
        } else {
            fs::copy(entry.path(), copy)?;
        }
    }
    Ok(())
}

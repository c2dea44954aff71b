//! The guide's examples, each really run: started, asked, upgraded under a strict load, stopped. And the documents
//! themselves: their links lead somewhere, their quotes are exact, their service files are sound.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, io};

use liveswap::config::{self, Origin};
use nix::sys::signal::Signal;
use support::client::{Connection, Target};
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

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let mut broken = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = file.parent().expect("a folder").join(path);
            let target = if path.is_empty() { file.clone() } else { target };
            if !target.exists() {
                broken.push(format!("{}: {link}: no such file", file.display()));
            } else if !anchor.is_empty()
                && !anchors(&fs::read_to_string(&target).expect("text")).contains(&anchor.into())
            {
                broken.push(format!("{}: {link}: no such heading", file.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn what_the_guide_quotes_stands_in_the_examples() {
    let guide = document("docs/guide.md");
    let text = fs::read_to_string(&guide).expect("the guide");
    let mut quotes = 0;
    for block in blocks(&text) {
        // A quote names its source in the line before it.
        let Some(source) = links(block.before).last().filter(|link| link.starts_with("examples/")) else {
            continue;
        };
        let whole = fs::read_to_string(guide.with_file_name(source)).expect("a source");
        assert!(whole.contains(block.text), "{source} does not say:\n{}", block.text);
        quotes += 1;
    }
    assert!(quotes >= 4, "only {quotes} quotes were found");
}

#[test]
fn every_service_file_in_the_documents_is_sound() {
    let mut files = 0;
    for file in documents() {
        let text = fs::read_to_string(&file).expect("a document");
        for block in blocks(&text).into_iter().filter(|block| block.language == "toml") {
            let origin = Origin { path: "/srv/web.toml".into(), cpus: 2 };
            // An excerpt lacks the one key that must be there.
            let excerpt = match (block.text.contains("[service]"), block.text.contains("command =")) {
                (true, true) => block.text.to_owned(),
                (true, false) => block.text.replace("[service]\n", "[service]\ncommand = [\"./server\"]\n"),
                (false, _) => format!("{}\n[service]\ncommand = [\"./server\"]\n", block.text),
            };
            if let Err(problems) = config::parse(&excerpt, &origin) {
                panic!("{}: {}", file.display(), problems.render(false));
            }
            files += 1;
        }
    }
    assert!(files >= 5, "only {files} service files were found");
}

/// A fenced block of a document.
struct Block<'a> {
    language: &'a str,
    text: &'a str,
    /// The last line before it that is not blank.
    before: &'a str,
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((before, opened)) = rest.split_once("```") {
        let (language, opened) = opened.split_once('\n').expect("a fence is a line");
        let (text, after) = opened.split_once("```\n").expect("a fence that is closed");
        let before = before.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        blocks.push(Block { language, text, before });
        rest = after;
    }
    blocks
}

/// The targets of all `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// The names under which headings can be linked to, by the rules of the common forges.
fn anchors(text: &str) -> Vec<String> {
    let headings =
        text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        kept.chars().filter(|one| one.is_alphanumeric() || matches!(one, '-' | '_')).collect()
    };
    headings.map(slug).collect()
}

fn documents() -> Vec<PathBuf> {
    let mut found = vec![document("README.md"), document("CHANGELOG.md")];
    for folder in ["docs", "docs/adr"] {
        let entries = fs::read_dir(document(folder)).expect("a folder of documents");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        found.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    found
}

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

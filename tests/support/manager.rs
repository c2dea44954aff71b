//! A manager under test.

use std::fmt::Display;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::log::{Log, Transition, Verdict, transition, verdict};
use super::process::{Process, descriptors, status};
use super::systemd::{Message, Systemd};
use super::{PATIENCE, eventually, sweep};

/// The variable by which every process that descends from one manager is known, wherever it hides.
const MARK: &str = "TEST_FAMILY";

/// A running manager with a folder of its own; whatever is left of it is killed on drop.
pub struct Manager {
    child: Child,
    pub folder: TempDir,
    pub log: Log,
    pub systemd: Systemd,
    mark: String,
    /// The words that make a command run as its user, where that is not who the test is.
    as_user: Vec<String>,
    /// How it is started again.
    words: Vec<String>,
    environment: Vec<(String, String)>,
}

/// Where the log and the upward messages had got to at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    log: usize,
    said: usize,
}

impl Place {
    /// A wait from here sees everything.
    pub const START: Self = Self { log: 0, said: 0 };
}

/// How an upgrade ended, by all that tells of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub generation: u64,
    pub verdict: Verdict,
    /// The reason in the log.
    pub reason: String,
    /// The STATUS at the end.
    pub status: String,
}

/// A worker, by what it was executed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    pub pid: i32,
    pub group: i32,
    pub generation: u64,
    pub slot: u64,
    pub command: Vec<String>,
}

/// How a manager is started.
pub struct Starter {
    folder: TempDir,
    environment: Vec<(String, String)>,
    inherited: Vec<OwnedFd>,
    names: String,
    wrapper: Vec<String>,
    flags: Vec<String>,
    /// The command of the program; none with the original command line.
    subcommand: Option<&'static str>,
    /// What says where the service is defined.
    source: Vec<String>,
    log_is_read: bool,
    /// Its standard output and error, where those are not a pipe of ours.
    outputs: Option<OwnedFd>,
    /// Who the manager is, where that is not who the test is.
    user: Option<u32>,
    /// Whether the program is a copy in the folder.
    has_copy: bool,
}

impl Default for Starter {
    fn default() -> Self {
        let folder =
            tempfile::Builder::new().prefix("liveswap-test-").tempdir().expect("a folder for the test");
        Self {
            folder,
            environment: Vec::new(),
            inherited: Vec::new(),
            names: String::new(),
            wrapper: Vec::new(),
            flags: Vec::new(),
            subcommand: Some("run"),
            source: vec!["web.toml".to_owned()],
            log_is_read: true,
            outputs: None,
            user: None,
            has_copy: false,
        }
    }
}

impl Starter {
    /// The folder that holds the service file, for tests that need a path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Adds a variable to the manager's environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Display) -> Self {
        self.environment.push((name.to_owned(), value.to_string()));
        self
    }

    /// Passes sockets as an activator does, two at most, with the names that `LISTEN_FDNAMES` is to hold.
    #[must_use]
    pub fn inherit<const N: usize>(mut self, sockets: [OwnedFd; N], names: &str) -> Self {
        assert!(N <= 2, "they travel as standard input and output");
        self.inherited = sockets.into();
        names.clone_into(&mut self.names);
        self
    }

    /// Starts the manager by another program, which executes what its arguments end with.
    #[must_use]
    pub fn by(mut self, program: &[&str]) -> Self {
        self.wrapper = program.iter().map(ToString::to_string).collect();
        self
    }

    /// Starts the manager as a user that nobody else is, who can reach nothing but the test's folder; takes root.
    #[must_use]
    pub fn of_a_user(mut self) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        // Beyond all that systems give to people and services by themselves.
        let user = 2_000_000 + 16 * process::id() + COUNTER.fetch_add(1, Ordering::Relaxed);
        let copies = [PathBuf::from(env!("CARGO_BIN_EXE_liveswap")), super::worker_program()];
        for program in copies {
            let name = program.file_name().and_then(|name| name.to_str()).expect("a name");
            fs::copy(&program, self.path(name)).expect("a copy");
        }
        let number = user.to_string();
        let ids = [format!("--reuid={number}"), format!("--regid={number}")];
        self.wrapper.extend(["setpriv".to_owned(), "--clear-groups".to_owned()].into_iter().chain(ids));
        self.user = Some(user);
        self
    }

    /// Who the manager is, where that is not who the test is.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// Starts a copy of the program in the test's folder, where it may be replaced.
    #[must_use]
    pub fn of_a_copy(mut self) -> Self {
        copy_program(&self.path("liveswap"));
        self.has_copy = true;
        self
    }

    /// The worker's program, in a place where the manager can reach it.
    pub fn worker_program(&self) -> PathBuf {
        if self.user.is_some() { self.path("worker") } else { super::worker_program() }
    }

    /// Adds a flag of `liveswap run`.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    /// Has the service defined by these words instead of the service file.
    #[must_use]
    pub fn instead_of_file<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.source = words.map(str::to_owned).to_vec();
        self
    }

    /// Starts the manager by the original command line.
    #[must_use]
    pub fn original(self, words: &[&str]) -> Self {
        let source = words.iter().map(ToString::to_string).collect();
        Self { subcommand: None, source, ..self }
    }

    /// Lets nobody read the manager's log; what waits for a line of it waits in vain.
    #[must_use]
    pub fn log_unread(mut self) -> Self {
        self.log_is_read = false;
        self
    }

    /// Has the manager write there, to both of its outputs; who reads it adds that to the log ([`Log::add`]).
    #[must_use]
    pub fn writes_to(mut self, outputs: OwnedFd) -> Self {
        self.outputs = Some(outputs);
        self
    }

    /// Starts the manager on the service file `text`.
    pub fn start(mut self, text: impl Display) -> Manager {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let mark = format!("{}-{}", process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let runtime = self.path("run");
        fs::create_dir(&runtime).expect("a runtime folder");
        let systemd = Systemd::listen(&self.path("notify")).expect("the notify socket");
        fs::write(self.path("web.toml"), text.to_string()).expect("the service file");

        if let Some(user) = self.user {
            let entries = fs::read_dir(self.folder.path()).expect("the folder");
            for path in entries.map(|entry| entry.expect("an entry").path()).chain([self.path("")]) {
                chown(&path, Some(user), Some(user)).expect("chown");
            }
        }

        let words = self.words();
        let mut command = self.command(&words);
        for name in
            ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "RUST_LOG"]
        {
            command.env_remove(name);
        }
        if let Some(outputs) = &self.outputs {
            command.stdout(outputs.try_clone().expect("a copy"));
        }
        let stderr = self.outputs.take().map_or_else(Stdio::piped, Stdio::from);
        let mut child = command
            .current_dir(self.folder.path())
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("RUNTIME_DIRECTORY", &runtime)
            .env(MARK, &mark)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(stderr)
            .spawn()
            .expect("the manager");
        // The command keeps copies of what it gave.
        drop(command);
        let log = match child.stderr.take().filter(|_| self.log_is_read) {
            Some(stderr) => Log::collect(stderr),
            None => Log::collect(std::io::empty()),
        };
        let as_user = if self.user.is_some() { self.wrapper } else { Vec::new() };
        let environment = self.environment;
        Manager { child, folder: self.folder, log, systemd, mark, as_user, words, environment }
    }

    /// The words of the command.
    fn words(&self) -> Vec<String> {
        let wrapper = self.wrapper.iter().map(String::as_str);
        let flags = self.flags.iter().map(String::as_str);
        let copy = self.path("liveswap");
        let program = if self.user.is_some() || self.has_copy {
            copy.to_str().expect("a path in UTF-8")
        } else {
            env!("CARGO_BIN_EXE_liveswap")
        };
        let source = self.source.iter().map(String::as_str);
        wrapper
            .chain([program])
            .chain(self.subcommand)
            .chain(flags)
            .chain(source)
            .map(str::to_owned)
            .collect()
    }

    /// The command, through a shell where descriptors have to get to their place: it moves those that come as its
    /// standard input and output to 3 and 4, and its pid stays the manager's.
    fn command(&self, words: &[String]) -> Command {
        let mut sockets =
            self.inherited.iter().map(|fd| Stdio::from(fd.try_clone().expect("a copy of a socket")));
        let (Some(first), second) = (sockets.next(), sockets.next()) else {
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null());
            return command;
        };
        let moves = if second.is_some() { "exec 3<&0 4>&1" } else { "exec 3<&0" };
        let script = format!(
            "{moves} </dev/null >/dev/null; export LISTEN_FDS={} LISTEN_FDNAMES={} LISTEN_PID=$$; exec \"$@\"",
            self.inherited.len(),
            self.names
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg("sh").args(words);
        command.stdin(first).stdout(second.unwrap_or_else(Stdio::null));
        command
    }
}

impl Manager {
    /// Starts a manager on the service file `text` and waits until it says READY=1.
    pub fn start(text: impl Display) -> Self {
        let mut manager = Starter::default().start(text);
        manager.wait_ready();
        manager
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid")
    }

    /// Returns the path of a file in the folder of the service file.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn place(&self) -> Place {
        Place { log: self.log.len(), said: self.systemd.said.len() }
    }

    /// Fails the test with all that is known.
    pub fn fail(&self, what: &str) -> ! {
        panic!("{what}\n--- said upward\n{}\n--- log\n{}\n---", self.upward(), self.log.since(0).join("\n"))
    }

    fn upward(&self) -> String {
        self.systemd.said.since(0).join("\n").replace('\u{1f}', " · ")
    }

    /// Waits for the first READY=1.
    pub fn wait_ready(&mut self) {
        self.wait_said(Place::START, "READY=1", |message| message.is("READY"));
    }

    /// Waits for an upward message at or after `place`.
    pub fn wait_said(&self, place: Place, what: &str, wanted: impl FnMut(&Message) -> bool) -> Message {
        let found = self.systemd.wait(place.said, wanted);
        found.unwrap_or_else(|| self.fail(&format!("in vain awaited upward: {what}"))).0
    }

    /// Waits for a STATUS at or after `place` that contains `words`, and returns it.
    pub fn wait_status(&self, place: Place, words: &str) -> String {
        let wanted = |message: &Message| message.get("STATUS").is_some_and(|status| status.contains(words));
        let message = self.wait_said(place, &format!("a STATUS with {words:?}"), wanted);
        message.get("STATUS").unwrap_or_default().to_owned()
    }

    /// Waits for a line of the log at or after `place` that contains each of `words`, and returns it.
    pub fn wait_log<const N: usize>(&self, place: Place, words: [&str; N]) -> String {
        self.wait_line(place, words).0
    }

    /// Waits like [`Manager::wait_log`], but returns the place after the line.
    pub fn wait_log_to<const N: usize>(&self, place: Place, words: [&str; N]) -> Place {
        Place { log: self.wait_line(place, words).1, ..place }
    }

    fn wait_line<const N: usize>(&self, place: Place, words: [&str; N]) -> (String, usize) {
        let wanted = |line: &str| words.iter().all(|word| line.contains(word)).then(|| line.to_owned());
        let found = self.log.wait(place.log, PATIENCE, wanted);
        found.unwrap_or_else(|| self.fail(&format!("in vain awaited in the log: {words:?}")))
    }

    /// Waits for a step of a worker at or after `place`.
    pub fn wait_worker(&self, place: Place, what: &str, wanted: impl Fn(&Transition) -> bool) -> Transition {
        let found = self.log.wait(place.log, PATIENCE, |line| transition(line).filter(&wanted));
        found.unwrap_or_else(|| self.fail(&format!("in vain awaited in the log: {what}"))).0
    }

    /// Returns what has happened to workers since `place`.
    pub fn transitions(&self, place: Place) -> Vec<Transition> {
        self.log.since(place.log).iter().filter_map(|line| transition(line)).collect()
    }

    /// Waits until an upgrade has ended, or has begun to roll back.
    pub fn wait_decision(&self, place: Place) {
        let decided =
            |line: &str| (line.contains(" rolling back: ") || verdict(line).is_some()).then_some(());
        if self.log.wait(place.log, PATIENCE, decided).is_none() {
            self.fail("in vain awaited in the log: a verdict, or a rollback");
        }
    }

    /// Waits for the end of an upgrade at or after `place`: in the log and upward, RELOADING first, then READY.
    pub fn wait_outcome(&self, place: Place) -> Outcome {
        let reloading = self.systemd.wait(place.said, |message| message.is("RELOADING"));
        let (reloading, next) = reloading.unwrap_or_else(|| self.fail("in vain awaited upward: RELOADING=1"));
        let stamp: Option<u64> = reloading.get("MONOTONIC_USEC").and_then(|stamp| stamp.parse().ok());
        if stamp.is_none() {
            self.fail("RELOADING=1 without MONOTONIC_USEC");
        }
        let ready = self.systemd.wait(next, |message| message.is("READY"));
        let (ready, next) =
            ready.unwrap_or_else(|| self.fail("in vain awaited upward: READY=1 after RELOADING=1"));
        let found = self.log.wait(place.log, PATIENCE, verdict);
        let Some(((generation, verdict, reason), _)) = found else {
            self.fail("in vain awaited in the log: a verdict")
        };
        let tells = |message: &Message| {
            let status = message.get("STATUS")?;
            let told = match verdict {
                Verdict::Committed => status.starts_with(&format!("generation {generation}: ")),
                Verdict::RolledBack => status.contains("rolled back"),
                Verdict::Refused => status.contains("refused"),
                Verdict::Superseded => status.contains("superseded"),
            };
            told.then(|| status.to_owned())
        };
        // With READY=1 or soon after it.
        let status = tells(&ready).unwrap_or_else(|| {
            let told = self.systemd.wait(next, |message| tells(message).is_some());
            let (told, _) = told.unwrap_or_else(|| self.fail(&format!("no STATUS tells of {verdict:?}")));
            tells(&told).unwrap_or_default()
        });
        Outcome { generation, verdict, reason, status }
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("a running manager");
    }

    /// Returns the lines of the log from there on.
    pub fn lines_since(&self, place: Place) -> Vec<String> {
        self.log.since(place.log)
    }

    /// Fails where a system call of the manager has waited so long that it was interrupted.
    pub fn assert_never_held_up(&self) {
        let lines = self.lines_since(Place::START);
        if lines.iter().any(|line| line.contains("was held up")) {
            self.fail("a call of the manager waited");
        }
    }

    /// Kills the manager, and nobody else, without a warning.
    pub fn crash(&mut self) {
        self.signal(Signal::SIGKILL);
        self.child.wait().expect("its end");
    }

    /// Kills the manager, starts another and waits until that one has said that it is ready. Returns the place in the log from
    /// which on it speaks.
    pub fn restart_after_crash(&mut self) -> Place {
        self.crash();
        let place = self.place();
        self.restart();
        self.wait_said(place, "READY=1", |message| message.is("READY"));
        place
    }

    /// Starts the manager again, as it was started.
    pub fn restart(&mut self) {
        let mut command = Command::new(&self.words[0]);
        let mut child = command
            .args(&self.words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .current_dir(self.folder.path())
            .env("NOTIFY_SOCKET", self.path("notify"))
            .env("RUNTIME_DIRECTORY", self.path("run"))
            .env(MARK, &self.mark)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stderr(Stdio::piped())
            .spawn()
            .expect("the manager");
        self.log.add(child.stderr.take().expect("its standard error"));
        self.child = child;
    }

    /// Returns the workers, whoever's children they are.
    pub fn survivors(&self) -> Vec<Worker> {
        let leads = |process: &Process| process.group == process.pid;
        workers_among(self.family().into_iter().filter(leads))
    }

    /// Waits until the workers are `count` of `generation` and no others, whoever's children they are.
    pub fn wait_survivors(&self, generation: u64, count: usize) -> Vec<Worker> {
        self.wait_until(&format!("{count} workers of generation {generation} alone"), || {
            let workers = self.survivors();
            let all = workers.len() == count && workers.iter().all(|worker| worker.generation == generation);
            all.then_some(workers)
        })
    }

    /// Writes the service file anew, in one step as an editor does.
    pub fn rewrite(&self, text: impl Display) {
        let draft = self.path("web.toml.new");
        fs::write(&draft, text.to_string()).expect("the new service file");
        fs::rename(&draft, self.path("web.toml")).expect("the service file replaced");
    }

    /// Rewrites the service file, sends SIGHUP and waits for the end of the upgrade.
    pub fn upgrade(&self, text: impl Display) -> Outcome {
        let place = self.place();
        self.rewrite(text);
        self.signal(Signal::SIGHUP);
        self.wait_outcome(place)
    }

    /// Upgrades, and fails the test unless the upgrade is committed.
    pub fn upgrade_committed(&self, text: impl Display) -> Outcome {
        let outcome = self.upgrade(text);
        if outcome.verdict != Verdict::Committed {
            self.fail(&format!("not committed: {outcome:?}"));
        }
        outcome
    }

    /// Returns every process that descends from the manager, itself and zombies excepted.
    pub fn family(&self) -> Vec<Process> {
        let ours = |process: &Process| process.environment.get(MARK) == Some(&self.mark);
        Process::all().into_iter().filter(|process| process.pid != self.pid() && ours(process)).collect()
    }

    /// Returns the manager's children, zombies included.
    pub fn children(&self) -> Vec<Process> {
        Process::all().into_iter().filter(|process| process.parent == self.pid()).collect()
    }

    /// Returns the processes of this name that descend from the manager, whatever their environment.
    pub fn descendants_named(&self, name: &str) -> Vec<i32> {
        let all = Process::all();
        let parent = |pid: i32| all.iter().find(|process| process.pid == pid).map(|process| process.parent);
        let ours = |process: &&Process| {
            let mut ancestors = std::iter::successors(Some(process.parent), |&pid| parent(pid));
            process.command.first().is_some_and(|word| word == name) && ancestors.any(|pid| pid == self.pid())
        };
        all.iter().filter(ours).map(|process| process.pid).collect()
    }

    /// Returns the workers, draining ones included, in the order of generation and slot.
    pub fn workers(&self) -> Vec<Worker> {
        workers_among(self.children().into_iter())
    }

    /// Waits until the workers are `count` of `generation` and no others.
    pub fn wait_workers(&self, generation: u64, count: usize) -> Vec<Worker> {
        self.wait_until(&format!("{count} workers of generation {generation} alone"), || {
            let workers = self.workers();
            let all = workers.len() == count && workers.iter().all(|worker| worker.generation == generation);
            all.then_some(workers)
        })
    }

    /// Waits until `condition` gives a value, or fails with the log.
    pub fn wait_until<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(value) = condition() {
                return value;
            }
            if started.elapsed() > PATIENCE {
                self.fail(&format!("in vain awaited: {what}; the family: {:#?}", self.family()));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Removes the runtime directory as a cleaner does that knows no manager, and waits until the manager can be reached again.
    pub fn sweep_runtime_directory(&self) {
        let place = self.place();
        sweep(&self.path("run"));
        // It may have been bound anew amid the removal, and once more after it.
        self.wait_log(place, ["control.sock was removed or replaced; it is bound anew"]);
        self.wait_until("a control socket", || self.control_path().exists().then_some(()));
    }

    pub fn open_descriptors(&self) -> usize {
        descriptors(self.pid()).len()
    }

    /// Waits until the manager sleeps, with every dead child reaped, and counts its descriptors: a worker that has
    /// just gone from /proc may still have its notify socket.
    pub fn descriptors_at_rest(&self) -> usize {
        let asleep = || {
            let slept = status(self.pid(), "voluntary_ctxt_switches");
            let reaped = !self.children().iter().any(Process::is_zombie);
            (reaped && status(self.pid(), "State").starts_with('S')).then_some(slept)
        };
        self.wait_until("the manager at rest", || {
            let slept = asleep()?;
            let count = self.open_descriptors();
            (asleep()? == slept).then_some(count)
        })
    }

    /// Sets a resource limit of the manager, as prlimit(1) writes it: `--nproc=1:`.
    pub fn limit(&self, limit: &str) {
        let pid = self.pid().to_string();
        // By the manager's own user, whom that takes no privilege.
        let wrapper = self.as_user.iter().map(String::as_str);
        let words: Vec<&str> = wrapper.chain(["prlimit", "--pid", &pid, limit]).collect();
        let status = Command::new(words[0]).args(&words[1..]).status().expect("prlimit");
        assert!(status.success(), "prlimit {limit}: {status}");
    }

    /// Lets the manager open so many descriptors more, and not one beyond them.
    pub fn limit_descriptors(&self, more: usize) {
        let open = descriptors(self.pid());
        let free = (0..).filter(|number| !open.contains_key(number)).nth(more).expect("numbers without end");
        self.limit(&format!("--nofile={free}:"));
    }

    /// Returns the resident memory in KiB.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS")
    }

    /// Returns what it has of memory that is no file's, in KiB: pages of the program come and go.
    pub fn anonymous(&self) -> u64 {
        self.memory("RssAnon")
    }

    fn memory(&self, kind: &str) -> u64 {
        let value = status(self.pid(), kind);
        value.trim_end_matches(" kB").parse().unwrap_or_else(|_| panic!("{kind}: {value}"))
    }

    pub fn threads(&self) -> String {
        status(self.pid(), "Threads")
    }

    /// Waits for the end of the manager and checks that nothing of the service is left.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            if started.elapsed() > PATIENCE {
                self.fail("in vain awaited: the end of the manager");
            }
            thread::sleep(Duration::from_millis(2));
        };
        let left = self.family();
        if !left.is_empty() {
            self.fail(&format!("left behind: {left:#?}"));
        }
        status
    }

    /// Sends a signal again and again until the manager has ended: a second one that comes at once is the same wish.
    pub fn insist(&mut self, signal: Signal) -> ExitStatus {
        let pid = Pid::from_raw(self.pid());
        self.insist_by(|| {
            let _ = kill(pid, signal);
        })
    }

    /// As [`Manager::insist`], by another way of asking.
    pub fn insist_by(&mut self, ask: impl Fn()) -> ExitStatus {
        let started = Instant::now();
        while self.child.try_wait().expect("wait").is_none() && started.elapsed() < PATIENCE {
            ask();
            thread::sleep(Duration::from_millis(20));
        }
        self.wait_exit()
    }

    /// Sends SIGTERM and waits for a clean end.
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_exit();
        if !status.success() {
            self.fail(&format!("the manager ended with {status}"));
        }
    }
}

/// Returns the workers among processes, in the order of generation and slot.
fn workers_among(processes: impl Iterator<Item = Process>) -> Vec<Worker> {
    let worker = |process: Process| {
        // A probe sees the worker's variables too, and this one beside them; an orphan of a worker that the
        // manager has inherited has its variables, and a session of its own.
        let other = process.environment.contains_key("LIVESWAP_WORKER_PID") || process.session == process.pid;
        let number = |name: &str| process.environment.get(name)?.parse().ok();
        let (generation, slot) = (number("LIVESWAP_GENERATION")?, number("LIVESWAP_SLOT")?);
        let Process { pid, group, command, .. } = process;
        (!other).then_some(Worker { pid, group, generation, slot, command })
    };
    let mut workers: Vec<Worker> = processes.filter_map(worker).collect();
    workers.sort_by_key(|worker| (worker.generation, worker.slot, worker.pid));
    workers
}

impl Drop for Manager {
    /// Kills what this test has started, and only that: the manager, and then every process with its mark.
    fn drop(&mut self) {
        let mut left = Vec::new();
        if let Ok(None) = self.child.try_wait() {
            // Stopped first, so that it starts nobody whom we then miss.
            self.signal(Signal::SIGSTOP);
            left = self.children();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        left.extend(self.family());
        for process in left {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
    }
}

/// Runs `liveswap` with arguments to its end; returns its status and what it wrote.
pub fn liveswap<const N: usize>(folder: &Path, arguments: [&str; N]) -> (ExitStatus, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    let output = command.args(arguments).current_dir(folder).stdin(Stdio::null()).output().expect("liveswap");
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

/// Copies the program to a path, in one step, as an installation does.
///
/// By cp(1): a copy that this process wrote itself could not be executed as long as a child that another test has just forked
/// still holds it open (`ETXTBSY`).
pub fn copy_program(path: &Path) {
    let draft = path.with_extension("new");
    let status = Command::new("cp").arg(env!("CARGO_BIN_EXE_liveswap")).arg(&draft).status().expect("cp");
    assert!(status.success(), "cp: {status}");
    fs::rename(&draft, path).expect("the program replaced");
}

/// Waits until a process has gone.
pub fn wait_gone(pid: i32) {
    eventually(&format!("the end of process {pid}"), || {
        Process::read(pid).is_none_or(|process| process.is_zombie()).then_some(())
    });
}

/// Returns a file's text, or nothing where it does not exist yet.
pub fn text_of(path: &Path) -> String {
    File::open(path).and_then(std::io::read_to_string).unwrap_or_default()
}

//! The worker that the integration tests put under the manager.
//!
//! A small HTTP/1.1 server on std and libc alone, so that it boots in about a millisecond, and that misbehaves on
//! demand (see [`Options`]). It takes its sockets by `LISTEN_FDS`, checks the variables to the letter of
//! `sd_listen_fds(3)`, says READY=1 and drains on SIGTERM.
//!
//! # A drain that loses nothing
//!
//! All generations share one listening socket, so a connection belongs to whoever accepts it, and the promise of
//! a drain is: *what was accepted is served, what was not stays in the queue for the others*. Each listener has a
//! thread that blocks in accept(2), which alone is free of the thundering herd: with poll(2) before it, another
//! worker may take the connection in between and leave this one blocked. The main thread waits for SIGTERM by
//! sigwait(3). To stop accepting it sets a flag and then interrupts the acceptors by SIGUSR1, whose handler is
//! installed without `SA_RESTART`, again and again until they have gone: a signal that comes between an acceptor's
//! look at the flag and its accept(2) is followed by the next. accept(2) returns either a connection or `EINTR`,
//! never loses one for the other, so a connection that wins the race against the signal is served like any other.
//!
//! A connection kept alive is told `Connection: close` with its next answer; one that stays idle is closed after
//! the linger time.

#![expect(
    unsafe_code,
    reason = "adopting descriptors and installing a signal handler have no safe interface in std"
)]

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IoSlice, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::thread::JoinHandleExt;
use std::path::PathBuf;
use std::process::{self, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use liveswap::sys::options::{SocketOption, Value, set};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{self, SaFlags, SigAction, SigHandler, SigSet, Signal};
use nix::sys::socket::{
    self, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, SockaddrIn, SockaddrStorage,
    UnixAddr, getsockname, getsockopt, setsockopt, sockopt,
};

/// How this worker behaves, from its command line.
///
/// `--slot K` confines the misbehaviour (everything below `only_slot`) to the worker of that slot.
#[derive(Debug)]
struct Options {
    /// `--release R`: what the answers name.
    release: String,
    /// `--boot MS` or `--boot MS,MS,…`: the pause before READY=1, everywhere or slot by slot.
    boot: Vec<u64>,
    /// `--linger MS`: how long an idle connection is kept once the drain has begun.
    linger: Duration,
    /// `--ping`: says `WATCHDOG=1` at half of `WATCHDOG_USEC`.
    ping: bool,
    /// `--say LINES`: notify messages before READY=1, each a datagram.
    say: Vec<String>,
    /// `--barrier`: waits, before READY=1, until the manager has heard all of that (`sd_notify_barrier(3)`).
    barrier: bool,
    /// `--last-words LINES`: a notify message immediately before every kind of end.
    last_words: Option<String>,
    /// `--journal FILE`: a line for each of started, ready, draining, drained is appended to it.
    journal: Option<PathBuf>,
    /// `--greet`: every connection is told at once who has accepted it, by an interim response (RFC 9110, 15.2).
    greet: bool,
    /// `--slot K`.
    only_slot: Option<String>,
    quirks: Vec<Quirk>,
    /// `--exit STATUS` or `--die SIGNAL`: an end by itself, without ever accepting a connection.
    end: Option<End>,
    /// `--after-ready MS`: that end comes so long after READY=1, and not before it.
    end_after_ready: Option<Duration>,
    /// `--hurt-first WHAT`: harm to the shared sockets before anything else.
    hurt_first: Option<Hurt>,
    /// `--hurt-at-start WHAT`: harm to the shared socket, immediately after READY=1.
    hurt_at_start: Option<Hurt>,
    /// `--hurt-at-drain WHAT`.
    hurt_at_drain: Option<Hurt>,
}

/// Misbehaviour that needs no further word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quirk {
    /// `--never-ready`: neither READY=1 nor an end.
    NeverReady,
    /// `--ignore-term`: SIGTERM has no effect.
    IgnoreTerm,
    /// `--leave-child`: a child process outlives the worker, in its process group.
    LeaveChild,
    /// `--leave-session`: a child process outlives the worker, in a session of its own.
    LeaveSession,
    /// `--leave-daemon`: a process outlives the worker in a session of its own, and is not even its child.
    LeaveDaemon,
    /// `--leave-stranger`: as `--leave-daemon`, and nothing in its environment tells whose it is.
    LeaveStranger,
    /// `--headless`: the first thread ends, and others serve (pthread_exit(3) in main).
    Headless,
}

#[derive(Clone, Copy, Debug)]
enum End {
    Exit(u8),
    Die(Signal),
}

/// What a worker can do to the socket that it shares.
#[derive(Clone, Copy, Debug)]
enum Hurt {
    Shutdown,
    Backlog,
    Unlink,
    /// Shuts down its standard output and error, which are to be sockets.
    Output,
    /// A datagram socket hears nobody but the discard port of this machine.
    Connect,
    /// A listener tells of no connection before its client has spoken (`TCP_DEFER_ACCEPT`).
    Defer,
    /// No client behind a router is answered (`SO_DONTROUTE`).
    DontRoute,
}

impl FromStr for Hurt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "shutdown" => Ok(Self::Shutdown),
            "backlog" => Ok(Self::Backlog),
            "unlink" => Ok(Self::Unlink),
            "output" => Ok(Self::Output),
            "connect" => Ok(Self::Connect),
            "defer" => Ok(Self::Defer),
            "dont-route" => Ok(Self::DontRoute),
            _ => Err(format!("no such harm: {text}")),
        }
    }
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self {
            release: "1".to_owned(),
            boot: Vec::new(),
            linger: Duration::from_secs(1),
            ping: false,
            say: Vec::new(),
            barrier: false,
            last_words: None,
            journal: None,
            greet: false,
            only_slot: None,
            quirks: Vec::new(),
            end: None,
            end_after_ready: None,
            hurt_first: None,
            hurt_at_start: None,
            hurt_at_drain: None,
        };
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| fail(&format!("{flag} needs a value")));
            match flag.as_str() {
                "--release" => options.release = value(),
                "--boot" => options.boot = value().split(',').map(number).collect(),
                "--linger" => options.linger = Duration::from_millis(number(&value())),
                "--ping" => options.ping = true,
                "--say" => options.say.push(value()),
                "--barrier" => options.barrier = true,
                "--last-words" => options.last_words = Some(value()),
                "--journal" => options.journal = Some(PathBuf::from(value())),
                "--greet" => options.greet = true,
                "--slot" => options.only_slot = Some(value()),
                "--never-ready" => options.quirks.push(Quirk::NeverReady),
                "--exit" => options.end = Some(End::Exit(number(&value()))),
                "--die" => options.end = Some(End::Die(number(&value()))),
                "--after-ready" => options.end_after_ready = Some(Duration::from_millis(number(&value()))),
                "--ignore-term" => options.quirks.push(Quirk::IgnoreTerm),
                "--hurt-first" => options.hurt_first = Some(number(&value())),
                "--hurt-at-start" => options.hurt_at_start = Some(number(&value())),
                "--hurt-at-drain" => options.hurt_at_drain = Some(number(&value())),
                "--leave-child" => options.quirks.push(Quirk::LeaveChild),
                "--leave-daemon" => options.quirks.push(Quirk::LeaveDaemon),
                "--leave-stranger" => options.quirks.push(Quirk::LeaveStranger),
                "--headless" => options.quirks.push(Quirk::Headless),
                "--leave-session" => options.quirks.push(Quirk::LeaveSession),
                _ => fail(&format!("unknown flag {flag}")),
            }
        }
        options
    }

    /// Forgets the misbehaviour where it is meant for another slot.
    fn in_slot(mut self, slot: &str) -> Self {
        if self.only_slot.as_deref().is_some_and(|only| only != slot) {
            self.quirks.clear();
            self.end = None;
            self.hurt_first = None;
            self.hurt_at_start = None;
            self.hurt_at_drain = None;
        }
        self
    }

    fn has(&self, quirk: Quirk) -> bool {
        self.quirks.contains(&quirk)
    }
}

fn number<T: FromStr>(text: &str) -> T {
    text.parse().unwrap_or_else(|_| fail(&format!("bad value {text:?}")))
}

fn fail(message: &str) -> ! {
    eprintln!("worker: {message}");
    process::exit(64)
}

/// What all threads of the worker share.
struct Worker {
    options: Options,
    generation: String,
    slot: String,
    notify: Option<Notify>,
    draining: AtomicBool,
    /// Hangs up when the drain begins, so that a thread can wait for that along with its connection.
    drain_begins: PipeReader,
    open: Mutex<u64>,
    none_open: Condvar,
}

struct Notify {
    socket: UnixDatagram,
    address: UnixAddr,
}

impl Notify {
    /// Opens the socket that `NOTIFY_SOCKET` names; without the variable nothing is ever said.
    fn from_environment() -> Option<Self> {
        let path = std::env::var_os("NOTIFY_SOCKET")?;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => UnixAddr::new_abstract(name),
            None => UnixAddr::new(path.as_os_str()),
        };
        let address =
            address.unwrap_or_else(|error| fail(&format!("NOTIFY_SOCKET={}: {error}", path.display())));
        Some(Self { socket: UnixDatagram::unbound().ok()?, address })
    }

    fn say(&self, message: &str) {
        let _ = socket::sendto(self.socket.as_raw_fd(), message.as_bytes(), &self.address, MsgFlags::empty());
    }

    /// Sends one end of a pipe and waits until the manager has closed it.
    fn barrier(&self) -> io::Result<()> {
        let (kept, sent) = io::pipe()?;
        let (words, descriptors) = ([IoSlice::new(b"BARRIER=1")], [sent.as_raw_fd()]);
        let rights = [ControlMessage::ScmRights(&descriptors)];
        socket::sendmsg(self.socket.as_raw_fd(), &words, &rights, MsgFlags::empty(), Some(&self.address))?;
        drop(sent);
        match poll(&mut [PollFd::new(kept.as_fd(), PollFlags::empty())], 30_000_u16) {
            Ok(0) => Err(ErrorKind::TimedOut.into()),
            other => other.map(drop).map_err(io::Error::from),
        }
    }
}

impl Worker {
    fn say(&self, message: &str) {
        if let Some(notify) = &self.notify {
            notify.say(message);
        }
    }

    /// Appends a line to the journal; one write(2) with `O_APPEND`, so lines of several workers never mix.
    fn note(&self, what: &str) {
        let Some(path) = &self.options.journal else { return };
        let line = format!(
            "{what} release={} generation={} slot={} pid={}\n",
            self.options.release,
            self.generation,
            self.slot,
            process::id()
        );
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            fail(&format!("journal {}: {error}", path.display()));
        }
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    fn open_connections(&self) -> MutexGuard<'_, u64> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connection_opened(&self) {
        *self.open_connections() += 1;
    }

    fn connection_closed(&self) {
        let mut open = self.open_connections();
        *open -= 1;
        if self.is_draining() {
            self.say(&format!("X_LIVESWAP_CONNECTIONS={open}"));
            self.none_open.notify_all();
        }
    }

    fn end(&self, end: End) -> ! {
        if let Some(words) = &self.options.last_words {
            self.say(words);
        }
        match end {
            End::Exit(status) => process::exit(status.into()),
            End::Die(deadly) => {
                // SAFETY: the default action is no handler that could be unsound; std has one of its own for SIGSEGV.
                let _ = unsafe { signal::signal(deadly, SigHandler::SigDfl) };
                let _ = signal::raise(deadly);
                fail(&format!("still alive after {deadly}"))
            }
        }
    }

    fn answer(&self, path: &str) -> Vec<u8> {
        if let Some(length) = path.strip_prefix("/body?n=") {
            return pattern(length.parse().unwrap_or(0));
        }
        if path == "/slow" {
            thread::sleep(Duration::from_millis(200));
        }
        let (release, pid) = (&self.options.release, process::id());
        format!("release={release} generation={} slot={} pid={pid}\n", self.generation, self.slot)
            .into_bytes()
    }
}

/// The bytes of `/body?n=`: the client knows them and compares each.
fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Runs the worker.
pub fn main() -> ExitCode {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let sockets = sockets_from_environment().unwrap_or_else(|message| fail(&message));
    let slot = variable("LIVESWAP_SLOT");
    let (drain_begins, drain) = io::pipe().unwrap_or_else(|error| fail(&format!("pipe: {error}")));
    let skip = usize::from(std::env::args().nth(1).as_deref() == Some("worker"));
    let worker = Arc::new(Worker {
        options: Options::parse(std::env::args().skip(1 + skip)).in_slot(&slot),
        generation: variable("LIVESWAP_GENERATION"),
        slot,
        notify: Notify::from_environment(),
        draining: AtomicBool::new(false),
        drain_begins,
        open: Mutex::new(0),
        none_open: Condvar::new(),
    });
    let waited_for = SigSet::from(Signal::SIGTERM);
    if worker.options.has(Quirk::IgnoreTerm) {
        waited_for.thread_block().unwrap_or_else(|error| fail(&format!("blocking SIGTERM: {error}")));
    }
    for socket in &sockets {
        hurt(worker.options.hurt_first, socket.as_fd());
    }
    boot(&worker);
    // For sigwait(3); before the first thread, so that all inherit the mask, but after the boot: like any program
    // that hangs there, a worker that never becomes ready dies of SIGTERM.
    waited_for.thread_block().unwrap_or_else(|error| fail(&format!("blocking SIGTERM: {error}")));
    become_ready(&worker, &sockets);

    if worker.options.has(Quirk::Headless) {
        thread::spawn(move || serve_until_told(&worker, sockets, drain));
        // SAFETY: the thread owns nothing that others use; no destructor of it is missed, as the process goes on.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
        fail("the first thread goes on")
    }
    serve_until_told(&worker, sockets, drain)
}

/// Serves until SIGTERM, drains and ends; that `drain` is closed tells all connections of it.
fn serve_until_told(worker: &Arc<Worker>, sockets: Vec<OwnedFd>, drain: PipeWriter) -> ! {
    let waited_for = SigSet::from(Signal::SIGTERM);
    install_interrupt();
    let sockets: Vec<Arc<OwnedFd>> = sockets.into_iter().map(Arc::new).collect();
    let acceptors: Vec<JoinHandle<()>> = sockets.iter().map(|socket| accept_on(worker, socket)).collect();
    loop {
        match waited_for.wait() {
            Ok(_) if worker.options.has(Quirk::IgnoreTerm) => {}
            Ok(_) => break,
            Err(error) => fail(&format!("sigwait: {error}")),
        }
    }

    worker.note("draining");
    for socket in &sockets {
        hurt(worker.options.hurt_at_drain, socket.as_fd());
    }
    worker.draining.store(true, Ordering::SeqCst);
    drop(drain);
    interrupt_until_gone(acceptors);
    // What waits is for others to accept; where there are none, it is refused.
    drop(sockets);
    let mut open = worker.open_connections();
    worker.say(&format!("X_LIVESWAP_CONNECTIONS={open}"));
    while *open > 0 {
        open = worker.none_open.wait(open).unwrap_or_else(PoisonError::into_inner);
    }
    drop(open);
    worker.say("X_LIVESWAP_DRAINED=1");
    worker.note("drained");
    worker.end(End::Exit(0))
}

/// Does all that comes before READY=1, and all the ends that come instead of it.
fn boot(worker: &Worker) {
    let options = &worker.options;
    worker.note("started");
    leave_children(options);
    for words in &options.say {
        worker.say(words);
    }
    if let (true, Some(notify)) = (options.barrier, &worker.notify) {
        notify.barrier().unwrap_or_else(|error| fail(&format!("barrier: {error}")));
    }
    let slot = worker.slot.parse().unwrap_or(0);
    let boot = options.boot.get(slot).or(options.boot.last()).copied().unwrap_or(0);
    thread::sleep(Duration::from_millis(boot));
    if let (Some(end), None) = (options.end, options.end_after_ready) {
        worker.end(end);
    }
    if options.has(Quirk::NeverReady) {
        loop {
            thread::park();
        }
    }
}

/// Says READY=1, and does what may come between that and the first accept.
fn become_ready(worker: &Arc<Worker>, sockets: &[OwnedFd]) {
    let options = &worker.options;
    worker.note("ready");
    worker.say("READY=1");
    if let (Some(end), Some(pause)) = (options.end, options.end_after_ready) {
        thread::sleep(pause);
        worker.end(end);
    }
    for socket in sockets {
        hurt(options.hurt_at_start, socket.as_fd());
    }
    if options.ping {
        ping_the_watchdog(Arc::clone(worker));
    }
}

#[expect(clippy::zombie_processes, reason = "they are to outlive this process")]
fn leave_children(options: &Options) {
    let leave = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap_or_else(|error| fail(&format!("{words:?}: {error}")));
    };
    if options.has(Quirk::LeaveChild) {
        leave(&["sleep", "1000"]);
    }
    if options.has(Quirk::LeaveSession) {
        leave(&["setsid", "sleep", "1000"]);
    }
    if options.has(Quirk::LeaveDaemon) {
        leave(&["setsid", "--fork", "sleep", "1000"]);
    }
    if options.has(Quirk::LeaveStranger) {
        leave(&["setsid", "--fork", "env", "-i", "sleep", "1000"]);
    }
}

fn ping_the_watchdog(worker: Arc<Worker>) {
    let interval: u64 = number(&std::env::var("WATCHDOG_USEC").unwrap_or_default());
    if std::env::var("WATCHDOG_PID").is_ok_and(|pid| pid != process::id().to_string()) {
        fail("WATCHDOG_PID is not this process");
    }
    thread::spawn(move || {
        loop {
            worker.say("WATCHDOG=1");
            thread::sleep(Duration::from_micros(interval / 2));
        }
    });
}

/// Takes the sockets that the manager passed, as `sd_listen_fds(3)` and `sd_listen_fds_with_names(3)` demand.
fn sockets_from_environment() -> Result<Vec<OwnedFd>, String> {
    // Others need be no text.
    let text =
        |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let variables: HashMap<String, String> =
        std::env::vars_os().filter_map(text).filter(|(name, _)| name.starts_with("LISTEN_")).collect();
    let Some(count) = variables.get("LISTEN_FDS") else {
        return if variables.is_empty() { Ok(Vec::new()) } else { Err(format!("stray {variables:?}")) };
    };
    let count: RawFd = count.parse().map_err(|_| format!("LISTEN_FDS={count}"))?;
    if variables.get("LISTEN_PID").is_some_and(|pid| *pid != process::id().to_string()) {
        return Err(format!("{variables:?} in process {}", process::id()));
    }
    let names = variables.get("LISTEN_FDNAMES").ok_or("no LISTEN_FDNAMES")?;
    if RawFd::try_from(names.split(':').count()) != Ok(count) || count < 1 {
        return Err(format!("{count} descriptors named {names:?}"));
    }
    let sockets: Vec<OwnedFd> = (3..3 + count)
        // SAFETY: LISTEN_PID says that these descriptors were passed to this very process, and nobody else in it
        // takes them.
        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
        .collect();
    match sockets.iter().find(|socket| getsockopt(socket, sockopt::SockType).is_err()) {
        Some(socket) => Err(format!("descriptor {} is not a socket", socket.as_raw_fd())),
        None => Ok(sockets),
    }
}

/// Makes SIGUSR1 interrupt a blocking call and do nothing else.
fn install_interrupt() {
    extern "C" fn nothing(_: i32) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing, which is async-signal-safe.
    let installed = unsafe { signal::sigaction(Signal::SIGUSR1, &action) };
    installed.unwrap_or_else(|error| fail(&format!("sigaction: {error}")));
}

fn interrupt_until_gone(acceptors: Vec<JoinHandle<()>>) {
    for acceptor in acceptors {
        while !acceptor.is_finished() {
            // SAFETY: the thread has not been joined, so its identifier is valid even if it has just finished.
            unsafe { libc::pthread_kill(acceptor.as_pthread_t(), libc::SIGUSR1) };
            thread::sleep(Duration::from_micros(200));
        }
        let _ = acceptor.join();
    }
}

fn accept_on(worker: &Arc<Worker>, socket: &Arc<OwnedFd>) -> JoinHandle<()> {
    let (worker, socket) = (Arc::clone(worker), Arc::clone(socket));
    let datagrams = getsockopt(&socket, sockopt::SockType) == Ok(SockType::Datagram);
    thread::spawn(move || {
        while !worker.is_draining() {
            let taken =
                if datagrams { echo(&worker, socket.as_fd()) } else { accept(&worker, socket.as_fd()) };
            match taken {
                Ok(()) | Err(Errno::EINTR | Errno::ECONNABORTED) => {}
                Err(Errno::EAGAIN) => {
                    let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
                }
                // Another worker has shut the listener down: the manager will revive it.
                Err(Errno::EINVAL) => thread::sleep(Duration::from_millis(1)),
                Err(error) => fail(&format!("accept: {error}")),
            }
        }
    })
}

fn accept(worker: &Arc<Worker>, listener: BorrowedFd<'_>) -> nix::Result<()> {
    let fd = socket::accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4(2) has just made this descriptor for us.
    let mut stream = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    if worker.options.greet {
        // Here and not in the thread: between this and accept4(2) nothing can be lost but this one connection.
        let greeting = format!("HTTP/1.1 103 Early Hints\r\nWorker: {}\r\n\r\n", process::id());
        let _ = stream.write_all(greeting.as_bytes());
    }
    worker.connection_opened();
    let worker = Arc::clone(worker);
    thread::spawn(move || {
        // An error of the connection is the client's affair: it sees it and reports it.
        let _ = serve(&worker, stream);
        worker.connection_closed();
    });
    Ok(())
}

/// Answers one datagram with the line that `GET /` answers.
fn echo(worker: &Worker, socket: BorrowedFd<'_>) -> nix::Result<()> {
    let mut buffer = [0; 2048];
    let (_, sender) = socket::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer)?;
    if let Some(sender) = sender {
        let _ = socket::sendto(socket.as_raw_fd(), &worker.answer("/"), &sender, MsgFlags::empty());
    }
    Ok(())
}

/// Serves a connection until its end, or until the answer that announces it.
fn serve(worker: &Worker, mut stream: File) -> io::Result<()> {
    let mut received = Vec::new();
    while let Some(head) = next_request(worker, &mut stream, &mut received)? {
        let path = head.split(' ').nth(1).unwrap_or("/");
        let body = worker.answer(path);
        let last = worker.is_draining() || head.to_ascii_lowercase().contains("\r\nconnection: close");
        let connection = if last { "Connection: close\r\n" } else { "" };
        let mut answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{connection}\r\n", body.len()).into_bytes();
        answer.extend_from_slice(&body);
        stream.write_all(&answer)?;
        if last {
            break;
        }
    }
    Ok(())
}

/// Waits for a whole request head; `None` where the client has gone, or said nothing for the linger of a drain.
fn next_request(worker: &Worker, stream: &mut File, received: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = received.drain(..end + 4).collect();
            return String::from_utf8(head)
                .map(Some)
                .map_err(|error| io::Error::new(ErrorKind::InvalidData, error));
        }
        if !readable(worker, stream)? {
            return Ok(None);
        }
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk)? {
            0 => return Ok(None),
            length => received.extend_from_slice(&chunk[..length]),
        }
    }
}

/// Waits until the connection has something to read; `false` once it has had nothing for the linger of a drain.
fn readable(worker: &Worker, stream: &File) -> io::Result<bool> {
    let mut linger_until = None;
    loop {
        let timeout = match linger_until {
            None => PollTimeout::NONE,
            Some(until) => {
                let left: Duration = Instant::duration_since(&until, Instant::now());
                // Rounded up: a poll of 0 ms would not wait for the last fraction.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let mut both = [
            PollFd::new(stream.as_fd(), PollFlags::POLLIN),
            PollFd::new(worker.drain_begins.as_fd(), PollFlags::empty()),
        ];
        let watched = if linger_until.is_some() { &mut both[..1] } else { &mut both[..] };
        let ready = match poll(watched, timeout) {
            Err(Errno::EINTR) => continue,
            other => other?,
        };
        if watched[0].any() == Some(true) {
            return Ok(true);
        }
        match linger_until {
            Some(_) if ready == 0 => return Ok(false),
            Some(_) => {}
            None => linger_until = Some(Instant::now() + worker.options.linger),
        }
    }
}

fn hurt(hurt: Option<Hurt>, socket: BorrowedFd<'_>) {
    let is_datagram = getsockopt(&socket, sockopt::SockType).is_ok_and(|kind| kind == SockType::Datagram);
    let done = match hurt {
        None => return,
        Some(Hurt::Connect) if is_datagram => {
            let nobody = SockaddrIn::new(127, 0, 0, 1, 9);
            socket::connect(socket.as_raw_fd(), &nobody).map_err(io::Error::from)
        }
        Some(Hurt::Defer) if !is_datagram => set(socket, SocketOption::DeferAccept, &Value::Number(60)),
        Some(Hurt::DontRoute) if !is_datagram => {
            setsockopt(&socket, sockopt::DontRoute, &true).map_err(io::Error::from)
        }
        Some(Hurt::Connect | Hurt::Defer | Hurt::DontRoute) => return,
        Some(Hurt::Shutdown) => socket::shutdown(socket.as_raw_fd(), Shutdown::Read).map_err(io::Error::from),
        Some(Hurt::Backlog) => {
            Backlog::new(1).and_then(|backlog| socket::listen(&socket, backlog)).map_err(io::Error::from)
        }
        Some(Hurt::Unlink) => getsockname::<UnixAddr>(socket.as_raw_fd())
            .map_err(io::Error::from)
            .and_then(|address| address.path().map_or(Ok(()), fs::remove_file)),
        // One socket may be both: then it is shut down already.
        Some(Hurt::Output) => socket::shutdown(io::stderr().as_raw_fd(), Shutdown::Both)
            .and_then(|()| socket::shutdown(io::stdout().as_raw_fd(), Shutdown::Both).or(Ok(())))
            .map_err(io::Error::from),
    };
    if let Err(error) = done {
        fail(&format!("{hurt:?}: {error}"));
    }
}

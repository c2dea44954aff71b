//! A strict client: it checks every connection and every byte, and forgives nothing.
//!
//! It counts as failed whatever a user would notice: a connection refused or reset, an answer truncated, wrong or
//! late, an idle connection closed without notice. Only a close that the server announced by `Connection: close` is
//! in order; a new connection follows it.
//!
//! Where tests kill workers, the client knows on which of them each request was lost ([`Load::start_attributed`]), so
//! that those, and no others, can be forgiven ([`Report::forgive`]).
//!
//! A server that is no test worker of ours may close an idle connection at any moment, as HTTP lets it. A request that met
//! such a close, with not a byte of an answer, is sent again on a new connection, as every client does; these are counted
//! apart ([`Report::closed_idle`]), and the second attempt is forgiven nothing. A request that a server had taken before it
//! died looks the same from here, so tests ask the manager too how its workers ended.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::dice::Dice;

/// Where the server listens.
#[derive(Clone, Debug)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// How one thread of the client sends its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One connection a request.
    Once,
    /// Many requests over one connection.
    KeepAlive,
    /// One connection a request, and the answer takes 200 ms.
    Slow,
    /// Many requests over one connection, with pauses of up to 1.5 s.
    Thinking,
}

impl Mode {
    fn is_keep_alive(self) -> bool {
        matches!(self, Self::KeepAlive | Self::Thinking)
    }

    /// How long a client pauses after an answer, in milliseconds, so that it does not take the processors from those it measures.
    fn pause(self, dice: &mut Dice) -> u64 {
        match self {
            Self::Once | Self::KeepAlive => 3,
            Self::Slow => 0,
            Self::Thinking => dice.below(1500) as u64,
        }
    }
}

/// All modes over all targets.
pub const MODES: [Mode; 3] = [Mode::Once, Mode::KeepAlive, Mode::Slow];

/// An answer to `GET /`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub release: String,
    pub generation: u64,
    pub slot: u64,
    pub pid: i32,
}

/// An answer of whatever server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Response {
    pub fn new(status: u16, body: &str) -> Self {
        Self { status, body: body.to_owned() }
    }
}

/// What the servers are, and so what a perfect answer is.
#[derive(Clone, Debug)]
enum Server {
    /// Test workers.
    Worker,
    /// Test workers that name themselves on every connection.
    Greeting,
    /// Any others, which answer `GET /` by one of these.
    Other(Vec<Response>),
}

/// Whose an answer is: a release, and a generation where the answer names one; `None` where it was only a body.
type Origin = Option<(String, Option<u64>)>;

/// A request without a perfect answer.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it was noticed.
    pub at: Instant,
    /// The worker that had accepted the connection, where it had the time to say so.
    pub by: Option<i32>,
    target: String,
    /// When, in which mode, and why.
    text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.by {
            Some(pid) => write!(f, "on worker {pid}: {}", self.text),
            None => write!(f, "{}", self.text),
        }
    }
}

/// A worker that a test has killed, or stopped for good.
#[derive(Clone, Copy, Debug)]
pub struct Killed {
    pub pid: i32,
    /// Just before it was.
    pub at: Instant,
}

/// What a client has seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub answered: u64,
    pub failed: Vec<Failure>,
    pub by_generation: BTreeMap<u64, u64>,
    /// By what test workers name, or by the body of what others answer.
    pub by_release: BTreeMap<String, u64>,
    /// Requests that met the end of an idle connection, and were sent again.
    pub closed_idle: u64,
    /// The slowest request since the last [`Load::mark`], those of [`Mode::Slow`] less their 200 ms.
    pub slowest: Duration,
}

impl Report {
    /// Fails the test unless every request was answered, and some were.
    pub fn assert_spotless(&self) {
        assert!(self.failed.is_empty(), "{self}");
        assert!(self.answered > 0, "no request was sent");
    }

    /// Takes out the failures on connections that a killed worker had accepted.
    ///
    /// A worker names itself the moment that it has accepted, so a connection that broke without a name is its victim
    /// only if it died between those two system calls: that is one connection for each kill and socket at most.
    #[must_use]
    pub fn forgive(mut self, killed: &[Killed]) -> Self {
        let mut nameless = BTreeMap::new();
        self.failed.retain(|failure| {
            let before = |killed: &&Killed| killed.at <= failure.at;
            if let Some(pid) = failure.by {
                return !killed.iter().filter(before).any(|killed| killed.pid == pid);
            }
            let count = nameless.entry(failure.target.clone()).or_insert(0);
            *count += 1;
            *count > killed.iter().filter(before).count()
        });
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, failed, by_generation, by_release, closed_idle, slowest } = self;
        if by_generation.is_empty() {
            write!(f, "{answered} answered by {by_release:?}, {} failed, ", failed.len())?;
            write!(f, "{closed_idle} sent again as an idle connection was closed, ")?;
        } else {
            write!(f, "{answered} answered by generations {by_generation:?}, {} failed, ", failed.len())?;
        }
        write!(f, "slowest {:.1} ms", slowest.as_secs_f64() * 1000.0)?;
        failed.iter().take(20).try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}

/// Load that goes on until it is stopped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    server: Server,
    stop: AtomicBool,
    started: Instant,
    report: Mutex<Report>,
}

impl Shared {
    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Starts one thread for each mode and target.
    pub fn start(targets: &[Target], modes: &[Mode]) -> Self {
        Self::start_with(targets, modes, Server::Worker)
    }

    /// As [`Load::start`], over test workers with `--greet`: each failure knows its worker.
    pub fn start_attributed(targets: &[Target], modes: &[Mode]) -> Self {
        Self::start_with(targets, modes, Server::Greeting)
    }

    /// As [`Load::start`], over servers that are no test workers, and answer `GET /` by one of `answers`.
    pub fn start_on_others(targets: &[Target], modes: &[Mode], answers: &[Response]) -> Self {
        Self::start_with(targets, modes, Server::Other(answers.to_vec()))
    }

    fn start_with(targets: &[Target], modes: &[Mode], server: Server) -> Self {
        let shared = Arc::new(Shared {
            server,
            stop: AtomicBool::new(false),
            started: Instant::now(),
            report: Mutex::new(Report::default()),
        });
        let pairs = targets.iter().flat_map(|target| modes.iter().map(move |mode| (target.clone(), *mode)));
        let run = |(seed, (target, mode)): (u64, (Target, Mode))| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || send_until_stopped(&shared, &target, mode, Dice(seed)))
        };
        let threads = (1..).zip(pairs).map(run).collect();
        let load = Self { shared, threads };
        load.wait_for_more(1);
        load
    }

    /// Waits until so many more requests than now have been answered or have failed.
    pub fn wait_for_more(&self, count: u64) {
        let done = || {
            let report = self.shared.report();
            report.answered + report.failed.len() as u64
        };
        let aim = done() + count;
        super::eventually("more requests", || (done() >= aim).then_some(()));
    }

    /// Returns how many requests have failed by now.
    pub fn failures(&self) -> usize {
        self.shared.report().failed.len()
    }

    /// Waits for an answer of a generation.
    pub fn wait_for_generation(&self, generation: u64) {
        let answered = || self.shared.report().by_generation.contains_key(&generation);
        super::eventually(&format!("an answer of generation {generation}"), || answered().then_some(()));
    }

    /// Waits for so many more answers of a release.
    pub fn wait_for_more_of(&self, release: &str, count: u64) {
        let answered = || self.shared.report().by_release.get(release).copied().unwrap_or_default();
        let aim = answered() + count;
        super::eventually(&format!("answers of {release:?}"), || (answered() >= aim).then_some(()));
    }

    /// Returns what was seen so far and begins to look for the slowest request anew.
    pub fn mark(&self) -> Report {
        let mut report = self.shared.report();
        let seen = report.clone();
        report.slowest = Duration::ZERO;
        seen
    }

    /// Lets the requests under way finish and returns what was seen.
    pub fn stop(self) -> Report {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a thread of the client");
        }
        self.shared.report().clone()
    }
}

fn send_until_stopped(shared: &Shared, target: &Target, mode: Mode, mut dice: Dice) {
    let (mut connection, mut by) = (None, None);
    for number in 0_u64.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let begun = Instant::now();
        let result = match &shared.server {
            Server::Worker | Server::Greeting => {
                let body = (number % 16 == 15 && mode != Mode::Slow).then_some(100_000);
                let open = connection.take().map_or_else(|| connect(shared, target, &mut by), Ok);
                open.and_then(|open| one_request(open, mode, body)).map(|(answer, kept)| {
                    connection = kept;
                    answer.map(|answer| (answer.release, Some(answer.generation)))
                })
            }
            Server::Other(answers) => ask_other(shared, answers, target, mode, &mut connection),
        };
        let mut took = begun.elapsed();
        if mode == Mode::Slow {
            took = took.saturating_sub(Duration::from_millis(200));
        }
        let mut report = shared.report();
        report.slowest = report.slowest.max(took);
        match result {
            Ok(answer) => {
                report.answered += 1;
                if let Some((release, generation)) = answer {
                    *report.by_release.entry(release).or_default() += 1;
                    if let Some(generation) = generation {
                        *report.by_generation.entry(generation).or_default() += 1;
                    }
                }
            }
            Err(error) => {
                let at = shared.started.elapsed().as_secs_f64();
                let target = format!("{target:?}");
                let text = format!("at {at:.3} s, {mode:?} over {target}, after {took:?}: {error}");
                report.failed.push(Failure { at: Instant::now(), by, target, text });
            }
        }
        drop(report);
        thread::sleep(Duration::from_millis(mode.pause(&mut dice)));
    }
}

/// Opens a connection; `by` becomes the worker that has accepted it, where workers name themselves.
fn connect(shared: &Shared, target: &Target, by: &mut Option<i32>) -> io::Result<Connection> {
    *by = None;
    let mut connection = Connection::open(target)?;
    if matches!(shared.server, Server::Greeting) {
        *by = Some(connection.greeting()?);
    }
    Ok(connection)
}

/// Sends one request to a server that is no test worker, on the connection that was kept or a new one.
fn ask_other(
    shared: &Shared,
    answers: &[Response],
    target: &Target,
    mode: Mode,
    kept: &mut Option<Connection>,
) -> io::Result<Origin> {
    let keep_alive = mode.is_keep_alive();
    let old = kept.take().map(|mut connection| (connection.exchange("/", keep_alive), connection));
    let (exchanged, mut connection) = match old {
        Some((Err(_), connection)) if connection.closed_idle => {
            shared.report().closed_idle += 1;
            let mut connection = Connection::open(target)?;
            (connection.exchange("/", keep_alive), connection)
        }
        Some(exchanged) => exchanged,
        None => {
            let mut connection = Connection::open(target)?;
            (connection.exchange("/", keep_alive), connection)
        }
    };
    let (response, closes) = exchanged?;
    if closes {
        connection.expect_end()?;
    } else if keep_alive {
        *kept = Some(connection);
    } else {
        return Err(wrong("the server ignored Connection: close".to_owned()));
    }
    if !answers.contains(&response) {
        return Err(wrong(format!("not one of the answers: {response:?}")));
    }
    Ok(Some((response.body, None)))
}

/// Sends one `GET` to a server that is no test worker, over a connection of its own.
///
/// # Errors
///
/// Whatever keeps it from a whole answer.
pub fn ask_any(target: &Target, path: &str) -> io::Result<Response> {
    let mut connection = Connection::open(target)?;
    let (response, _) = connection.exchange(path, false)?;
    connection.expect_end()?;
    Ok(response)
}

/// Sends one request; returns the answer, if it is one, and the connection where it goes on.
fn one_request(
    mut connection: Connection,
    mode: Mode,
    body: Option<usize>,
) -> io::Result<(Option<Answer>, Option<Connection>)> {
    let path = match (body, mode) {
        (Some(length), _) => format!("/body?n={length}"),
        (None, Mode::Slow) => "/slow".to_owned(),
        (None, _) => "/".to_owned(),
    };
    let (content, closes) = connection.get(&path, mode.is_keep_alive())?;
    let kept = if closes {
        connection.expect_end()?;
        None
    } else if mode.is_keep_alive() {
        Some(connection)
    } else {
        return Err(wrong("the server ignored Connection: close".to_owned()));
    };
    match body {
        None => answer(&content).map(|answer| (Some(answer), kept)),
        Some(length)
            if content.len() == length
                && content.iter().eq((0..=250).cycle().take(length).collect::<Vec<u8>>().iter()) =>
        {
            Ok((None, kept))
        }
        Some(length) => Err(wrong(format!("{} bytes instead of {length}, or others", content.len()))),
    }
}

/// Sends one `GET /` over a connection of its own.
///
/// # Errors
///
/// Whatever makes the answer less than perfect.
pub fn ask(target: &Target) -> io::Result<Answer> {
    let (answer, _) = one_request(Connection::open(target)?, Mode::Once, None)?;
    Ok(answer.expect("GET / has an answer"))
}

fn wrong(what: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

fn answer(content: &[u8]) -> io::Result<Answer> {
    let text = String::from_utf8_lossy(content);
    let parse = || {
        let mut fields = text.strip_suffix('\n')?.split(' ');
        let mut field = |name: &str| fields.next()?.strip_prefix(name);
        Some(Answer {
            release: field("release=")?.to_owned(),
            generation: field("generation=")?.parse().ok()?,
            slot: field("slot=")?.parse().ok()?,
            pid: field("pid=")?.parse().ok()?,
        })
    };
    parse().ok_or_else(|| wrong(format!("not an answer: {text:?}")))
}

/// A connection to the server, over TCP or UNIX alike.
pub struct Connection {
    stream: File,
    received: Vec<u8>,
    /// Whether the last request met the end of the connection, with not a byte of an answer.
    closed_idle: bool,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Those of connect(2), and a time-out.
    pub fn open(target: &Target) -> io::Result<Self> {
        let timeout = Some(super::PATIENCE);
        let stream: OwnedFd = match target {
            Target::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, super::PATIENCE)
                    .map_err(|error| during("connect", &error))?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                stream.into()
            }
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).map_err(|error| during("connect", &error))?;
                stream.set_read_timeout(timeout)?;
                stream.set_write_timeout(timeout)?;
                stream.into()
            }
        };
        Ok(Self { stream: stream.into(), received: Vec::new(), closed_idle: false })
    }

    /// Sends a request and reads the whole answer; returns its body and whether the server closes the connection.
    ///
    /// # Errors
    ///
    /// Whatever makes the answer less than perfect.
    pub fn get(&mut self, path: &str, keep_alive: bool) -> io::Result<(Vec<u8>, bool)> {
        self.send(path, keep_alive)?;
        let head = self.head()?;
        let (status, headers) = parts(&head);
        if status != "HTTP/1.1 200 OK" {
            return Err(wrong(format!("head {head:?}")));
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        let length: usize = length.ok_or_else(|| wrong(format!("no length in {head:?}")))?;
        let body = self.take(length)?;
        self.expect_no_more()?;
        Ok((body, closes(&headers)))
    }

    /// Sends a request and reads the whole answer, as [`Connection::response`] does.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from a whole answer.
    pub fn exchange(&mut self, path: &str, keep_alive: bool) -> io::Result<(Response, bool)> {
        self.send(path, keep_alive).inspect_err(|error| self.closed_idle = is_end(error))?;
        self.response()
    }

    /// Reads a whole answer, whatever its status and however its length is told; returns it and whether the server closes
    /// the connection.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from a whole answer.
    pub fn response(&mut self) -> io::Result<(Response, bool)> {
        let head = self.head().inspect_err(|error| {
            self.closed_idle = self.received.is_empty() && is_end(error);
        })?;
        let (status, headers) = parts(&head);
        let status = status.strip_prefix("HTTP/1.1 ").and_then(|status| status.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| wrong(format!("head {head:?}")))?;
        let body = match headers.get("content-length").and_then(|length| length.parse().ok()) {
            Some(length) => self.take(length)?,
            None if headers.get("transfer-encoding") == Some(&"chunked") => self.chunks()?,
            None => return Err(wrong(format!("no length in {head:?}"))),
        };
        self.expect_no_more()?;
        let body = String::from_utf8(body).map_err(|error| wrong(error.to_string()))?;
        Ok((Response { status, body }, closes(&headers)))
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// Those of write(2).
    pub fn send(&mut self, path: &str, keep_alive: bool) -> io::Result<()> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).map_err(|error| during("sending", &error))
    }

    /// Reads so many bytes of a body.
    fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.received.len() < length {
            self.receive("the body")?;
        }
        Ok(self.received.drain(..length).collect())
    }

    /// Reads a body that comes in chunks.
    fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.up_to(b"\r\n", "a chunk")?;
            let length = usize::from_str_radix(line.trim_end(), 16);
            let length = length.map_err(|_| wrong(format!("not the length of a chunk: {line:?}")))?;
            let mut chunk = self.take(length + 2)?;
            if chunk.split_off(length) != b"\r\n" {
                return Err(wrong("a chunk without its end".to_owned()));
            }
            if length == 0 {
                return Ok(body);
            }
            body.extend(chunk);
        }
    }

    fn expect_no_more(&self) -> io::Result<()> {
        match self.received.len() {
            0 => Ok(()),
            length => Err(wrong(format!("{length} bytes beyond the answer"))),
        }
    }

    /// Reads the greeting of a test worker with `--greet`, which it sends as soon as it has accepted.
    ///
    /// # Errors
    ///
    /// Anything else than a greeting.
    pub fn greeting(&mut self) -> io::Result<i32> {
        let head = self.head()?;
        let pid = head.strip_prefix("HTTP/1.1 103 Early Hints\r\nWorker: ").map(str::trim_end);
        pid.and_then(|pid| pid.parse().ok()).ok_or_else(|| wrong(format!("no greeting: {head:?}")))
    }

    /// Reads up to the empty line that ends a head.
    fn head(&mut self) -> io::Result<String> {
        self.up_to(b"\r\n\r\n", "the head")
    }

    fn up_to(&mut self, end: &[u8], what: &str) -> io::Result<String> {
        let end = loop {
            if let Some(place) = self.received.windows(end.len()).position(|window| window == end) {
                break place + end.len();
            }
            self.receive(what)?;
        };
        let text = self.received.drain(..end).collect();
        String::from_utf8(text).map_err(|error| wrong(error.to_string()))
    }

    fn receive(&mut self, what: &str) -> io::Result<()> {
        let mut chunk = [0; 16_384];
        match self.stream.read(&mut chunk).map_err(|error| during(what, &error))? {
            0 => {
                let text = format!("closed within {what}, {} bytes of it here", self.received.len());
                Err(io::Error::new(ErrorKind::UnexpectedEof, text))
            }
            length => {
                self.received.extend_from_slice(&chunk[..length]);
                Ok(())
            }
        }
    }

    /// Reads the end that the server announced.
    ///
    /// # Errors
    ///
    /// A reset instead of an orderly end, or more bytes.
    pub fn expect_end(&mut self) -> io::Result<()> {
        match self.stream.read(&mut [0; 16]).map_err(|error| during("the end", &error))? {
            0 => Ok(()),
            length => Err(wrong(format!("{length} bytes instead of the end"))),
        }
    }
}

fn during(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Whether an error is that the other end has closed.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
}

/// Returns the first line of a head, and its headers by their names in small letters.
fn parts(head: &str) -> (&str, BTreeMap<String, &str>) {
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let headers = lines.filter_map(|line| line.split_once(": "));
    (status, headers.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect())
}

fn closes(headers: &BTreeMap<String, &str>) -> bool {
    headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
}

//! A strict client: it checks every connection and every byte, and forgives nothing.
//!
//! It counts as failed whatever a user would notice: a connection refused or reset, an answer truncated, wrong or
//! late, an idle connection closed without notice. Only a close that the server announced by `Connection: close` is
//! in order; a new connection follows it.
//!
//! Where tests kill workers, the client knows on which of them each request was lost ([`Load::start_attributed`]), so
//! that those, and no others, can be forgiven ([`Report::forgive`]).

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
    pub by_release: BTreeMap<String, u64>,
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
        let Self { answered, failed, by_generation, slowest, .. } = self;
        write!(f, "{answered} answered by generations {by_generation:?}, {} failed, ", failed.len())?;
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
    /// Whether the workers name themselves on every connection.
    attributed: bool,
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
        Self::start_with(targets, modes, false)
    }

    /// As [`Load::start`], over test workers with `--greet`: each failure knows its worker.
    pub fn start_attributed(targets: &[Target], modes: &[Mode]) -> Self {
        Self::start_with(targets, modes, true)
    }

    fn start_with(targets: &[Target], modes: &[Mode], attributed: bool) -> Self {
        let shared = Arc::new(Shared {
            attributed,
            stop: AtomicBool::new(false),
            started: Instant::now(),
            report: Mutex::new(Report::default()),
        });
        let pairs = targets.iter().flat_map(|target| modes.iter().map(move |mode| (target.clone(), *mode)));
        let run = |(target, mode): (Target, Mode)| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || send_until_stopped(&shared, &target, mode))
        };
        let threads = pairs.map(run).collect();
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

fn send_until_stopped(shared: &Shared, target: &Target, mode: Mode) {
    let (mut connection, mut by) = (None, None);
    for number in 0_u64.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let body = (number % 16 == 15 && mode != Mode::Slow).then_some(100_000);
        let begun = Instant::now();
        let open = connection.take().map_or_else(|| connect(target, shared.attributed, &mut by), Ok);
        let result = open.and_then(|open| one_request(open, mode, body));
        let result = result.map(|(answer, kept)| {
            connection = kept;
            answer
        });
        let mut took = begun.elapsed();
        if mode == Mode::Slow {
            took = took.saturating_sub(Duration::from_millis(200));
        }
        let mut report = shared.report();
        report.slowest = report.slowest.max(took);
        match result {
            Ok(answer) => {
                report.answered += 1;
                if let Some(Answer { release, generation, .. }) = answer {
                    *report.by_generation.entry(generation).or_default() += 1;
                    *report.by_release.entry(release).or_default() += 1;
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
        // A pause, so that the client does not take the processors from those it measures.
        thread::sleep(Duration::from_millis(if mode == Mode::Slow { 0 } else { 3 }));
    }
}

/// Opens a connection; `by` becomes the worker that has accepted it, where workers name themselves.
fn connect(target: &Target, attributed: bool, by: &mut Option<i32>) -> io::Result<Connection> {
    *by = None;
    let mut connection = Connection::open(target)?;
    if attributed {
        *by = Some(connection.greeting()?);
    }
    Ok(connection)
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
    let (content, closes) = connection.get(&path, mode == Mode::KeepAlive)?;
    let kept = if closes {
        connection.expect_end()?;
        None
    } else if mode == Mode::KeepAlive {
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
        Ok(Self { stream: stream.into(), received: Vec::new() })
    }

    /// Sends a request and reads the whole answer; returns its body and whether the server closes the connection.
    ///
    /// # Errors
    ///
    /// Whatever makes the answer less than perfect.
    pub fn get(&mut self, path: &str, keep_alive: bool) -> io::Result<(Vec<u8>, bool)> {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).map_err(|error| during("sending", &error))?;
        let head = self.head()?;
        let mut lines = head.split("\r\n");
        if lines.next() != Some("HTTP/1.1 200 OK") {
            return Err(wrong(format!("head {head:?}")));
        }
        let headers: BTreeMap<String, &str> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let length = headers.get("content-length").and_then(|length| length.parse().ok());
        let length: usize = length.ok_or_else(|| wrong(format!("no length in {head:?}")))?;
        while self.received.len() < length {
            self.receive("the body")?;
        }
        let closes = headers.get("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let body = self.received.drain(..length).collect();
        if !self.received.is_empty() {
            return Err(wrong(format!("{} bytes beyond the answer", self.received.len())));
        }
        Ok((body, closes))
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
        let end = loop {
            if let Some(place) = self.received.windows(4).position(|window| window == b"\r\n\r\n") {
                break place + 4;
            }
            self.receive("the head")?;
        };
        let head = self.received.drain(..end).collect();
        String::from_utf8(head).map_err(|error| wrong(error.to_string()))
    }

    fn receive(&mut self, what: &str) -> io::Result<()> {
        let mut chunk = [0; 16_384];
        match self.stream.read(&mut chunk).map_err(|error| during(what, &error))? {
            0 => Err(wrong(format!("closed within {what}, {} bytes of it here", self.received.len()))),
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

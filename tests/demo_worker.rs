//! The demo's worker alone, with the test in the manager's part: it owns the listening socket and the notify socket.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use liveswap::cli::demo::load::Load;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Bounds every wait; nothing is expected to take nearly as long.
const LIMIT: Duration = Duration::from_secs(60);

/// A worker under the test's management; dropping it kills it.
struct Worker {
    child: Option<Child>,
    notify: UnixDatagram,
    /// Everything said so far.
    said: Vec<String>,
    _folder: TempDir,
}

impl Worker {
    /// Starts `liveswap demo-worker` with a copy of `listener` as descriptor 3.
    fn start(listener: impl Into<OwnedFd>, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let notify = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        notify.set_read_timeout(Some(LIMIT)).unwrap();
        // The shell moves its standard input to descriptor 3 and becomes the worker, so that LISTEN_PID is right.
        let child = Command::new("sh")
            .args(["-c", r#"exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@""#, "sh"])
            .args([env!("CARGO_BIN_EXE_liveswap"), "demo-worker"])
            .args(arguments)
            .env("NOTIFY_SOCKET", folder.path().join("notify"))
            .env("LIVESWAP_GENERATION", "7")
            .stdin(Stdio::from(listener.into()))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child: Some(child), notify, said: Vec::new(), _folder: folder }
    }

    fn started_ready(listener: impl Into<OwnedFd>, release: &str) -> Self {
        let mut worker = Self::start(listener, &["--release", release]);
        worker.wait_for("READY=1");
        worker
    }

    /// Reads messages until `line` is in one.
    fn wait_for(&mut self, line: &str) {
        loop {
            let mut datagram = [0; 4096];
            let length = self.notify.recv(&mut datagram).unwrap_or_else(|error| {
                panic!("no {line} from the worker ({error}); it said {:?}", self.said);
            });
            let lines: Vec<_> = str::from_utf8(&datagram[..length]).unwrap().lines().collect();
            self.said.extend(lines.iter().map(ToString::to_string));
            if lines.contains(&line) {
                return;
            }
        }
    }

    fn ask_to_drain(&self) {
        let pid = self.child.as_ref().unwrap().id().cast_signed();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    }

    /// Waits until the worker has ended, and asserts that it did so as a good one does.
    fn wait_for_clean_exit(mut self) {
        let Output { status, stderr, .. } = self.child.take().unwrap().wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&stderr);
        assert!(status.success() && stderr.is_empty(), "{status}, stderr: {stderr}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn connect(address: SocketAddr) -> BufReader<TcpStream> {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    BufReader::new(stream)
}

fn ask<S: Read + Write>(connection: &mut BufReader<S>, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes()).unwrap();
}

/// Reads one answer: the head's lines in lower case, and the body.
fn answer<S: Read>(connection: &mut BufReader<S>) -> (Vec<String>, String) {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        assert!(connection.read_line(&mut line).unwrap() > 0, "closed in the head, after {head:?}");
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_lowercase()),
        }
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

fn assert_closed<S: Read>(connection: &mut BufReader<S>) {
    assert_eq!(connection.read(&mut [0]).unwrap(), 0, "the connection goes on");
}

fn announces_close(head: &[String]) -> bool {
    head.contains(&"connection: close".to_owned())
}

#[test]
fn the_answer_names_the_release_and_the_generation() {
    let (listener, address) = bind();
    let _worker = Worker::started_ready(listener, "3");
    let mut connection = connect(address);
    for _ in 0..2 {
        ask(&mut connection, "/");
        let (head, body) = answer(&mut connection);
        assert_eq!((head[0].as_str(), body.as_str()), ("http/1.1 200 ok", "release 3\n"));
        assert!(head.contains(&"x-generation: 7".to_owned()), "{head:?}");
        assert!(!announces_close(&head), "{head:?}");
    }
    ask(&mut connection, "/slow?ms=10001");
    assert_eq!(answer(&mut connection).0[0], "http/1.1 400 bad request");
}

#[test]
fn a_unix_socket_serves_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.sock");
    let worker = Worker::started_ready(UnixListener::bind(&path).unwrap(), "1");
    let mut connection = BufReader::new(UnixStream::connect(&path).unwrap());
    ask(&mut connection, "/");
    assert_eq!(answer(&mut connection).1, "release 1\n");
    drop(connection);
    worker.ask_to_drain();
    worker.wait_for_clean_exit();
}

/// Ten workers follow one another on one socket, and the load notices nothing.
#[tokio::test]
async fn no_request_fails_while_workers_drain() {
    let (listener, address) = bind();
    let start = |release: u32| {
        let listener = listener.try_clone().unwrap();
        tokio::task::spawn_blocking(move || Worker::started_ready(listener, &release.to_string()))
    };
    let mut serving = start(1).await.unwrap();
    let load = Load::new(address);
    let clients = load.start(8, 8);
    let answers = async |release: u32| {
        let before = load.answered_by(release);
        while load.answered_by(release) < before + 50 {
            assert!(load.tally().failures() == 0, "{:?}", load.tally().reasons());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    answers(1).await;
    for release in 2..=10 {
        load.expect_up_to(release);
        let next = start(release).await.unwrap();
        let old = std::mem::replace(&mut serving, next);
        old.ask_to_drain();
        tokio::task::spawn_blocking(|| old.wait_for_clean_exit()).await.unwrap();
        answers(release).await;
    }
    clients.stop().await;
    let tally = load.tally();
    assert_eq!(tally.failures(), 0, "{:?}", tally.reasons());
    assert_eq!(tally.by_release().len(), 10, "{:?}", tally.by_release());
}

#[test]
fn a_request_under_way_is_finished_and_announces_the_close() {
    let (listener, address) = bind();
    let mut worker = Worker::started_ready(listener, "1");
    let mut slow = connect(address);
    // The first answer proves that this connection was accepted.
    ask(&mut slow, "/");
    answer(&mut slow);
    ask(&mut slow, "/slow?ms=1500");
    worker.ask_to_drain();
    worker.wait_for("X_LIVESWAP_CONNECTIONS=1");
    let (head, body) = answer(&mut slow);
    assert_eq!(body, "release 1\n");
    assert!(announces_close(&head), "{head:?}");
    assert_closed(&mut slow);
    worker.wait_for("X_LIVESWAP_DRAINED=1");
    assert_eq!(
        worker.said,
        ["READY=1", "X_LIVESWAP_CONNECTIONS=1", "X_LIVESWAP_CONNECTIONS=0", "X_LIVESWAP_DRAINED=1"]
    );
    worker.wait_for_clean_exit();
}

#[test]
fn an_idle_connection_is_still_answered_once_while_draining_and_then_closed() {
    let (listener, address) = bind();
    let mut worker = Worker::started_ready(listener, "1");
    let mut used = connect(address);
    let mut idle = connect(address);
    for connection in [&mut used, &mut idle] {
        ask(connection, "/");
        assert!(!announces_close(&answer(connection).0));
    }
    worker.ask_to_drain();
    worker.wait_for("X_LIVESWAP_CONNECTIONS=2");
    ask(&mut used, "/");
    assert!(announces_close(&answer(&mut used).0));
    assert_closed(&mut used);
    assert_closed(&mut idle);
    worker.wait_for("X_LIVESWAP_DRAINED=1");
    worker.wait_for_clean_exit();
}

#[test]
fn a_draining_worker_leaves_new_connections_to_the_next() {
    let (listener, address) = bind();
    let mut old = Worker::started_ready(listener.try_clone().unwrap(), "1");
    let mut held = connect(address);
    ask(&mut held, "/");
    answer(&mut held);
    ask(&mut held, "/slow?ms=500");
    old.ask_to_drain();
    old.wait_for("X_LIVESWAP_CONNECTIONS=1");
    let mut queued = connect(address);
    ask(&mut queued, "/");
    assert_eq!(answer(&mut held).1, "release 1\n");
    old.wait_for_clean_exit();
    let _new = Worker::started_ready(listener, "2");
    assert_eq!(answer(&mut queued).1, "release 2\n");
}

#[test]
fn a_release_that_is_never_ready_accepts_nothing_and_ends_when_asked() {
    let (listener, address) = bind();
    let mut worker = Worker::start(listener.try_clone().unwrap(), &["--release", "3", "--never-ready"]);
    worker.wait_for("STATUS=waiting for a database that never answers");
    let _client = connect(address);
    worker.ask_to_drain();
    let later = worker.notify.try_clone().unwrap();
    worker.wait_for_clean_exit();
    later.set_nonblocking(true).unwrap();
    assert!(later.recv(&mut [0; 64]).is_err(), "it spoke again");
    listener.set_nonblocking(true).unwrap();
    listener.accept().expect("the connection still waits for a worker that is ready");
}

#[test]
fn a_worker_without_a_socket_says_what_is_missing() {
    let output = Command::new(env!("CARGO_BIN_EXE_liveswap"))
        .args(["demo-worker", "--release", "1"])
        .env_remove("LISTEN_FDS")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("no socket was passed (LISTEN_FDS is not set"), "{stderr}");
}

/// `liveswap demo` with a made-up environment, in a temporary folder of its own.
fn demo(arguments: &[&str]) -> (Output, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_liveswap"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", OsStr::new(folder.path()))
        .output()
        .unwrap();
    (output, folder)
}

#[test]
fn the_demo_refuses_a_taken_address_and_leaves_nothing_behind() {
    let (_listener, address) = bind();
    let (output, folder) = demo(&["--listen", &address.to_string()]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        stderr,
        format!(
            "Error: the demo did not end well\n\
             Caused by: cannot listen on {address}: Address already in use (os error 98)\n\
             Hint: choose another address by --listen, or leave it out for a free port\n"
        )
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_prints_its_service_file() {
    let (output, _folder) = demo(&["--print-config"]);
    assert!(output.status.success());
    let file: toml::Table = str::from_utf8(&output.stdout).unwrap().parse().unwrap();
    assert_eq!(file["service"]["command"][1].as_str(), Some("demo-worker"));
    assert_eq!(file["socket"][0]["listen"].as_str(), Some("127.0.0.1:8080"));
}

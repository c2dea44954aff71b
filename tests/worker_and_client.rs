//! The support tried on itself: the worker drains without a loss, and the client notices one.
//!
//! Without a manager: a test passes the socket by itself.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Load, MODES, Mode, Target, ask};
use support::{loopback, worker_program};

/// Starts a worker on a socket that comes as its standard input, as descriptor 3.
fn start(listener: &TcpListener, release: &str) -> Child {
    let socket = OwnedFd::from(listener.try_clone().expect("a copy"));
    Command::new("sh")
        .args([
            "-c",
            "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$ exec \"$@\"",
            "sh",
        ])
        .arg(worker_program())
        .args(["--release", release, "--linger", "10000"])
        .env("LIVESWAP_GENERATION", release)
        .env("LIVESWAP_SLOT", "0")
        .stdin(Stdio::from(socket))
        .spawn()
        .expect("a worker")
}

#[test]
fn a_worker_that_drains_while_another_serves_loses_no_request() {
    let address = loopback();
    let listener = TcpListener::bind(address).expect("bind");
    let mut serving = start(&listener, "1");
    let load = Load::start(&[Target::Tcp(address)], &[Mode::Once, Mode::Once, Mode::KeepAlive, Mode::Slow]);
    for release in 2..=20 {
        let next = start(&listener, &release.to_string());
        load.wait_for_generation(release);
        kill(Pid::from_raw(serving.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");
        let status = serving.wait().expect("wait");
        assert!(status.success(), "release {release}: {status}");
        serving = next;
    }
    let report = load.stop();
    kill(Pid::from_raw(serving.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");
    assert!(serving.wait().expect("wait").success());
    report.assert_spotless();
}

#[test]
fn the_client_notices_a_server_that_is_killed() {
    let address = loopback();
    let listener = TcpListener::bind(address).expect("bind");
    let mut worker = start(&listener, "1");
    let load = Load::start(&[Target::Tcp(address)], &MODES);
    load.wait_for_more(50);
    worker.kill().expect("kill");
    worker.wait().expect("wait");
    let _next = Reaped(start(&listener, "2"));
    load.wait_for_generation(2);
    let report = load.stop();
    assert!(!report.failed.is_empty(), "{report}");
}

#[test]
fn the_client_notices_each_kind_of_bad_answer() {
    let bad = [
        ("refused", None),
        ("closed within the head", Some("HTTP/1.1 200 OK\r\nContent-Le")),
        (
            "closed within the body",
            Some("HTTP/1.1 200 OK\r\nContent-Length: 30\r\nConnection: close\r\n\r\nshort"),
        ),
        ("500", Some("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")),
        ("not an answer", Some("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwrong")),
        ("beyond the answer", Some("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n12")),
    ];
    for (reason, answer) in bad {
        let address = loopback();
        if let Some(answer) = answer {
            let listener = TcpListener::bind(address).expect("bind");
            thread::spawn(move || {
                let (mut stream, _) = listener.accept().expect("accept");
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(answer.as_bytes());
            });
        }
        let error = ask(&Target::Tcp(address)).expect_err(reason).to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
}

/// A worker that ends with the test.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

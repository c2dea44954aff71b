//! What anyone may put in the manager's way: service files that are none, hooks that never end, datagrams without end.
//!
//! All of it meets a service under load, and none of it may be noticed by a client.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::{self, File};
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use support::ground::{Ground, WORKERS};
use support::is_installed;
use support::log::Verdict;
use support::manager::{Manager, Starter, liveswap};
use support::process::Process;
use support::service::Service;

/// Longer than any refusal may take, on a machine that does many other things.
const PROMPTLY: Duration = Duration::from_secs(10);

/// Puts at the service file's path what `put` makes, and sees that the upgrade is refused promptly for a reason that
/// contains `words`, in a little memory and without harm; and that `liveswap check` and `liveswap run` end as promptly.
fn refused(put: impl Fn(&Path), words: &str) {
    let ground = Ground::new(Starter::default(), |service| service);
    let file = ground.manager.path("web.toml");
    fs::remove_file(&file).expect("the service file gone");
    put(&file);
    let (memory, place, begun) = (ground.manager.anonymous(), ground.manager.place(), Instant::now());
    ground.manager.signal(Signal::SIGHUP);
    let outcome = ground.manager.wait_outcome(place);
    if outcome.verdict != Verdict::Refused || !outcome.reason.contains(words) || begun.elapsed() > PROMPTLY {
        ground.manager.fail(&format!("expected a refusal for {words:?}: {outcome:?}"));
    }
    assert!(ground.manager.anonymous() < memory + 4096, "{memory} KiB became {}", ground.manager.anonymous());
    for command in ["check", "run"] {
        let begun = Instant::now();
        let (status, said) = liveswap(ground.manager.folder.path(), [command, "web.toml"]);
        assert!(status.code() == Some(3) && said.contains(words), "{command}: {status}: {said}");
        assert!(begun.elapsed() < PROMPTLY, "{command} took {:?}", begun.elapsed());
    }
    if file.is_dir() {
        fs::remove_dir(&file).expect("the folder gone");
    }
    ground.assert_unharmed(3);
}

#[test]
fn a_service_file_that_is_gone_is_refused() {
    refused(|_| (), "No such file or directory");
}

#[test]
fn a_service_file_that_is_a_directory_is_refused() {
    refused(|path| fs::create_dir(path).expect("a folder"), "no regular file");
}

#[test]
fn a_service_file_that_is_dev_zero_is_refused() {
    refused(|path| symlink("/dev/zero", path).expect("a link"), "no regular file");
}

#[test]
fn a_service_file_that_links_to_itself_is_refused() {
    refused(|path| symlink(path, path).expect("a link"), "Too many levels of symbolic links");
}

#[test]
fn a_service_file_of_100_megabytes_is_refused() {
    let put = |path: &Path| {
        File::create(path).and_then(|file| file.set_len(100_000_000)).expect("a large file");
    };
    refused(put, "it has 100000000 bytes, more than the 1048576 allowed");
}

#[test]
fn a_service_file_that_is_a_pipe_that_nobody_writes_is_refused() {
    refused(|path| mkfifo(path, Mode::S_IRWXU).expect("a pipe"), "no regular file");
}

#[test]
fn a_service_file_that_is_a_socket_is_refused() {
    refused(|path| drop(UnixListener::bind(path).expect("a socket")), "No such device or address");
}

#[test]
fn a_service_file_of_ten_thousand_errors_is_refused() {
    refused(|path| fs::write(path, "[x]\n".repeat(10_000)).expect("a file"), "web.toml:1:");
}

#[test]
fn an_environment_file_that_is_a_pipe_that_nobody_writes_refuses_the_upgrade() {
    let ground = Ground::new(Starter::default(), |service| service);
    mkfifo(&ground.manager.path("env"), Mode::S_IRWXU).expect("a pipe");
    let outcome = ground.manager.upgrade(ground.service.clone().set("service.environment_files", "['-env']"));
    assert_eq!(outcome.verdict, Verdict::Refused, "{outcome:?}");
    assert!(outcome.reason.contains("no regular file"), "{outcome:?}");
    ground.assert_unharmed(3);
}

#[test]
fn a_hook_that_never_ends_is_killed_with_all_that_it_started_and_refuses_the_upgrade() {
    let ground = Ground::new(Starter::default(), |service| service);
    let script = "trap '' TERM HUP INT; setsid sleep 7777 & sleep 7777 & while :; do sleep 7777; done";
    let endless = ground.service.clone().set("upgrade.before", format!("['sh', '-c', \"{script}\"]"));
    let place = ground.manager.place();
    ground.manager.rewrite(endless.set("upgrade.hook_timeout", "'1s'"));
    ground.manager.signal(Signal::SIGHUP);
    let started = || (ground.manager.descendants_named("sleep").len() == 3).then_some(());
    ground.manager.wait_until("the hook's processes", started);
    let outcome = ground.manager.wait_outcome(place);
    assert_eq!(outcome.verdict, Verdict::Refused, "{outcome:?}");
    assert!(outcome.reason.contains("before"), "{outcome:?}");
    let gone = || ground.manager.descendants_named("sleep").is_empty().then_some(());
    ground.manager.wait_until("the end of the hook's processes", gone);
    ground.assert_unharmed(3);
}

#[test]
fn a_hundred_thousand_hostile_datagrams_with_descriptors_are_not_noticed() {
    const MESSAGES: usize = 100_000;
    let ground = Ground::new(Starter::default(), |service| service);
    let manager = &ground.manager;
    let workers = manager.wait_workers(1, WORKERS);
    let process = Process::read(workers[0].pid).expect("a living worker");
    let address = UnixAddr::new(process.environment["NOTIFY_SOCKET"].as_str()).expect("an address");
    let socket = UnixDatagram::unbound().expect("a socket");
    let file = File::open("/dev/null").expect("a file");
    let send = |text: &[u8], descriptor: &dyn AsRawFd, count: usize| {
        let descriptors = vec![descriptor.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if count == 0 { &rights[..0] } else { &rights[..] };
        sendmsg(socket.as_raw_fd(), &[IoSlice::new(text)], rights, MsgFlags::empty(), Some(&address))
            .expect("a listening manager");
    };
    let barrier = || {
        let (mut ours, theirs) = io::pipe().expect("a pipe");
        send(b"BARRIER=1", &theirs, 1);
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).expect("an end"), 0);
    };
    let long = [b"STATUS=".as_slice(), &[b'x'; 8000]].concat();
    let texts: [&[u8]; 9] = [
        b"",
        b"\0",
        b"FDSTORE=1\nFDNAME=x",
        b"BARRIER=1\nREADY=1",
        b"BARRIER=1\0",
        b"MAINPID=1\nREADY=1",
        b"EXTEND_TIMEOUT_USEC=99999999999999999999",
        b"STATUS=\x1b[2J\xff",
        &long,
    ];
    let (open, memory) = (manager.descriptors_at_rest(), manager.anonymous());
    // A child closes them, a moment later.
    let at_rest = |when: &str| {
        manager.wait_until(&format!("{open} descriptors {when}"), || {
            (manager.open_descriptors() == open).then_some(())
        });
    };
    for number in 0..MESSAGES {
        // Mostly a few; now and then as many as a message can bring. Two at least: one would make a barrier of some.
        let count = if number % 1000 == 0 { 253 } else { 2 + number % 5 };
        send(texts[number % texts.len()], &file, if number % 7 == 0 { 0 } else { count });
        if number % 10_000 == 0 {
            barrier();
            at_rest(&format!("after {number} messages"));
        }
    }
    barrier();
    at_rest("at the end");
    assert!(manager.anonymous() < memory + 4096, "{memory} KiB became {}", manager.anonymous());
    assert_eq!(manager.workers(), workers, "a message has killed a worker");
    let steers = |line: &String| line.contains('\u{1b}');
    assert!(!manager.log.since(0).iter().any(steers), "a control character in the log");
    ground.assert_unharmed(2);
}

/// Says that it is ready, and leaves a process that is another one at every moment: each forks and exits.
const COMET: &str = "\
import os, signal, socket
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect(os.environ['NOTIFY_SOCKET'])
if os.fork() == 0:
    os.setsid()
    while True:
        if os.fork(): os._exit(0)
n.send(b'READY=1')
signal.pause()
";

#[test]
fn a_process_that_is_another_one_at_every_moment_holds_nothing_up_and_goes_with_the_service() {
    if !is_installed("python3") {
        return;
    }
    let manager = Manager::start(Service::command(["python3", "-c", COMET]));
    for _ in 0..50 {
        assert_eq!(manager.ask(r#"{"cmd":"ping"}"#)["ok"], true);
    }
    // It sees to it that no process of the service is left.
    manager.stop();
}

#[test]
fn what_is_no_state_is_refused_by_the_program_that_is_to_go_on() {
    let (reader, mut writer) = io::pipe().expect("a pipe");
    writer
        .write_all(b"{\"version\":5,\"program\":\"x\",\"descriptors\":[0,1,2,-1,4711],\"state\":[]}")
        .expect("room");
    drop(writer);
    for mut state in [Stdio::from(reader), Stdio::null()] {
        let mut command = Command::new("sh");
        let script = "exec 3<&0 </dev/null; exec \"$0\" try-handover run web.toml";
        command
            .args(["-c", script, env!("CARGO_BIN_EXE_liveswap")])
            .stdin(std::mem::replace(&mut state, Stdio::null()));
        let ended = command.output().expect("a shell");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.starts_with("Error: ") && !said.contains("bug"), "{said}");
    }
}

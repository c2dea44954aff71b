//! Real children, asked what they found, in each kind of memory in which they can come into being.

#[path = "pinned_tests.rs"]
mod pinned;

use std::fs::{self, File, Permissions};
use std::io::{PipeReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::io::IntoRawFd;
use std::time::Duration;

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Uid, geteuid, getsid, setgid, setgroups, setuid};
use tempfile::tempdir;

use super::super::fork::tests::{isolated, pristine, wait_for_exit};
use super::super::interpreter::Interpreter;
use super::super::limits;
use super::super::output::wait_readable;
use super::super::raw;
use super::super::reaper::Exit;
use super::super::signals::Signals;
use super::super::stall::StallTimer;
use super::*;

fn c_strings(texts: &[&str]) -> CStrings {
    CStrings::of(texts).unwrap()
}

/// Where valgrind watches: it does not know a child that shares memory and yet is no thread.
const COPIES_ALONE: &str = "LIVESWAP_TEST_WITHOUT_SHARED_MEMORY";

/// Each in which a child may come into being here.
fn memories() -> impl Iterator<Item = Memory> {
    let all = [Memory::Shared, Memory::Copied].into_iter();
    all.filter(|memory| *memory == Memory::Copied || std::env::var_os(COPIES_ALONE).is_none())
}

/// The plainest launch there is.
pub(in super::super) fn launch<'a>(arguments: &[&str]) -> Launch<'a> {
    Launch {
        programs: candidates(OsStr::new(arguments[0]), None).unwrap(),
        pinned: None,
        arguments: c_strings(arguments),
        shared_environment: Rc::new(c_strings(&["PATH=/bin:/usr/bin"])),
        environment: CStrings::default(),
        pid_variables: Vec::new(),
        directory: c"/".to_owned(),
        credentials: None,
        umask: None,
        limits: Vec::new(),
        ignore_sigpipe: true,
        held_signals: 0,
        descriptors: Vec::new(),
        cgroup: None,
        stdin: None,
        stdout: None,
        stderr: None,
    }
}

/// What became of a child.
#[derive(Debug)]
struct Outcome {
    pid: Pid,
    report: Report,
    exit: Exit,
    output: String,
}

impl Outcome {
    /// Returns the value of a line of /proc/PID/status.
    fn status(&self, key: &str) -> Vec<&str> {
        let mut lines = self.output.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| *name == key).expect(key).1.split_whitespace().collect()
    }
}

/// Runs a child to its end in each kind of memory, and returns what it wrote to its standard output.
fn runs(launch: &Launch<'_>) -> impl Iterator<Item = Outcome> {
    memories().map(|memory| {
        let (mut reader, writer) = io::pipe().unwrap();
        let launch = Launch { stdout: Some(writer.as_fd().into()), ..launch.clone() };
        let spawned = spawn_in(memory, launch).unwrap();
        drop(writer);
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        let pid = spawned.pid;
        Outcome { pid, report: final_report(spawned), exit: wait_for_exit(pid), output }
    })
}

/// Waits for the report as the manager does.
fn final_report(mut spawned: Spawned) -> Report {
    loop {
        assert!(wait_readable(&spawned, Duration::from_secs(60)).unwrap(), "no report has come");
        match spawned.report().unwrap() {
            Report::NotYet => {}
            report => return report,
        }
    }
}

/// Returns what all of them are.
fn agreed<T: PartialEq + fmt::Debug>(all: impl Iterator<Item = T>) -> T {
    all.reduce(|one, other| {
        assert_eq!(one, other);
        one
    })
    .unwrap()
}

/// Runs a child that succeeds, and returns what it wrote.
fn written(launch: &Launch<'_>) -> String {
    agreed(runs(launch).map(|outcome| {
        assert_eq!((outcome.report, outcome.exit), (Report::Executed, Exit::Code(0)), "{outcome:?}");
        outcome.output
    }))
}

/// Runs a child that cannot start, and returns why.
fn failure(launch: &Launch<'_>) -> (Step, i32) {
    agreed(runs(launch).map(|outcome| {
        let Report::Failed(Failure { step, errno, .. }) = outcome.report else { panic!("{outcome:?}") };
        assert_eq!((outcome.exit, outcome.output.as_str()), (Exit::Code(127), ""));
        (step, errno)
    }))
}

/// Tells whether this test can change its user, and loudly if not.
fn is_root(test: &str) -> bool {
    let root = geteuid().is_root();
    if !root {
        crate::skipped::add(&format!("{test} needs root"));
    }
    root
}

fn nobody() -> Credentials {
    let groups = vec![7, 65_534];
    Credentials { uid: 65_534, gid: 65_534, groups }
}

#[test]
fn the_environment_is_exact_and_knows_the_pid() {
    let mut launch = launch(&["env"]);
    launch.shared_environment = Rc::new(c_strings(&["A=1", "EMPTY="]));
    launch.environment = c_strings(&["LISTEN_FDS=2"]);
    launch.pid_variables = vec![c"LISTEN_PID", c"WATCHDOG_PID"];
    for outcome in runs(&launch) {
        let pid = outcome.pid;
        let expected = format!("A=1\nEMPTY=\nLISTEN_FDS=2\nLISTEN_PID={pid}\nWATCHDOG_PID={pid}\n");
        assert_eq!(outcome.output, expected, "{outcome:?}");
    }
}

#[test]
fn arguments_arrive_as_they_are() {
    let output = written(&launch(&["/bin/sh", "-c", "printf '<%s>' \"$0\" \"$@\"", "zero", "a b", ""]));
    assert_eq!(output, "<zero><a b><>");
}

#[test]
fn only_the_given_descriptors_are_open() {
    // One that anybody may inherit, as a careless parent of the manager leaves it.
    let leaked = unistd::dup(io::stderr()).unwrap();
    let (one, two) = io::pipe().unwrap();
    let mut launch = launch(&["ls", "/proc/self/fd"]);
    assert_eq!(written(&launch), "0\n1\n2\n3\n", "the last one is the folder that ls reads");
    launch.descriptors = vec![one.as_fd(), two.as_fd()];
    assert_eq!(written(&launch), "0\n1\n2\n3\n4\n5\n");
    drop(leaked);
}

#[test]
fn the_standard_streams_go_where_they_should() {
    let (mut reader, writer) = io::pipe().unwrap();
    let mut launch = launch(&["/bin/sh", "-c", "readlink /proc/$$/fd/0; echo to stderr >&2"]);
    launch.stderr = Some(writer.as_fd().into());
    assert_eq!(written(&launch), "/dev/null\n");
    drop(writer);
    let mut errors = String::new();
    reader.read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "to stderr\n".repeat(memories().count()));
}

#[test]
fn standard_output_and_error_can_be_swapped() {
    isolated(|| {
        let (mut readers, writers): (Vec<PipeReader>, Vec<_>) = (0..2).map(|_| io::pipe().unwrap()).unzip();
        for (writer, place) in writers.into_iter().zip(1..) {
            raw::duplicate(writer.into_raw_fd(), place).unwrap();
        }
        let mut launch = launch(&["/bin/sh", "-c", "echo output; echo error >&2"]);
        let (stdout, stderr) = (io::stdout(), io::stderr());
        (launch.stdout, launch.stderr) = (Some(stderr.as_fd().into()), Some(stdout.as_fd().into()));
        let spawned = spawn_in(memories().last().unwrap(), launch).unwrap();
        assert_eq!(wait_for_exit(spawned.pid), Exit::Code(0));
        let texts = readers.iter_mut().map(|reader| {
            let mut bytes = [0; 64];
            let count = reader.read(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..count]).into_owned()
        });
        assert_eq!(texts.collect::<Vec<_>>(), ["error\n", "output\n"]);
    });
}

#[test]
fn descriptors_arrive_in_order_wherever_they_were() {
    isolated(|| {
        let folder = tempdir().unwrap();
        // The files take the lowest free numbers, 4 and up: each is in the place of another.
        let files: Vec<File> =
            (4..9).map(|number| File::create(folder.path().join(number.to_string())).unwrap()).collect();
        for (file, number) in files.iter().zip(4..) {
            assert_eq!(file.as_raw_fd(), number);
        }
        // More targets than sources: the report's own pipe is in the way of some.
        let order = [5, 4, 6, 8, 7, 4, 4, 5, 6, 8];
        let mut launch =
            launch(&["/bin/sh", "-c", "for n in 3 4 5 6 7 8 9 10 11 12; do readlink /proc/$$/fd/$n; done"]);
        launch.descriptors = order.iter().map(|number| files[number - 4].as_fd()).collect();
        let output = written(&launch);
        let found: Vec<_> = output.lines().map(|line| line.rsplit_once('/').unwrap().1.to_owned()).collect();
        assert_eq!(found, order.map(|number| number.to_string()));
    });
}

#[test]
fn signals_are_as_if_nobody_had_touched_them() {
    // The test process ignores SIGPIPE, as every Rust program does.
    let blocked = SigSet::from(Signal::SIGUSR2);
    blocked.thread_block().unwrap();
    for (ignore_sigpipe, ignored) in [(true, "0000000000001000"), (false, "0000000000000000")] {
        let mut launch = launch(&["cat", "/proc/self/status"]);
        launch.ignore_sigpipe = ignore_sigpipe;
        for outcome in runs(&launch) {
            assert_eq!(outcome.status("SigIgn"), [ignored]);
            assert_eq!(outcome.status("SigBlk"), ["0000000000000000"]);
            assert_eq!(outcome.status("SigCgt"), ["0000000000000000"]);
        }
    }
    assert!(SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR2), "the parent's mask is restored");
    blocked.thread_unblock().unwrap();
}

#[test]
#[expect(unsafe_code, reason = "signal(2)")]
fn a_child_resets_the_signals_of_the_manager_and_those_that_it_found_ignored() {
    pristine(
        concat!(
            module_path!(),
            "::a_child_resets_the_signals_of_the_manager_and_those_that_it_found_ignored"
        ),
        || {
            // As nohup(1) and a shell in the background leave them.
            for ignored in [Signal::SIGINT, Signal::SIGTSTP, Signal::SIGWINCH] {
                // SAFETY: to ignore a signal runs no code of ours.
                unsafe { signal(ignored, SigHandler::SigIgn) }.unwrap();
            }
            let _timer = StallTimer::new().unwrap();
            let _signals = Signals::install().unwrap();
            let of_manager =
                [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGALRM, Signal::SIGTSTP];
            let changed = changed_signals();
            assert!(of_manager.iter().all(|signal| changed >> (*signal as i32 - 1) & 1 == 1), "{changed:x}");
            assert_eq!(changed >> (Signal::SIGCONT as i32 - 1) & 1, 0, "{changed:x}");
            let mut launch = launch(&["cat", "/proc/self/status"]);
            for (ignore_sigpipe, ignored) in [(true, "0000000000001000"), (false, "0000000000000000")] {
                launch.ignore_sigpipe = ignore_sigpipe;
                for outcome in runs(&launch) {
                    assert_eq!(outcome.status("SigIgn"), [ignored]);
                    assert_eq!(outcome.status("SigCgt"), ["0000000000000000"]);
                }
            }
        },
    );
}

#[test]
fn a_child_leads_a_group_in_our_session() {
    for outcome in runs(&launch(&["cat", "/proc/self/stat"])) {
        let fields: Vec<_> = outcome.output.split(' ').collect();
        let (pid, session) = (outcome.pid.to_string(), getsid(None).unwrap().to_string());
        assert_eq!(fields[4..6], [pid, session]);
    }
}

#[test]
fn umask_limits_and_directory_are_set() {
    let folder = tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let mut launch = launch(&["/bin/sh", "-c", "umask; ulimit -Sn; ulimit -Hn; ulimit -Sc; pwd -P"]);
    launch.directory = CString::new(folder.as_os_str().as_bytes()).unwrap();
    launch.umask = Some(0o137);
    launch.limits = vec![
        (Resource::Nofile, Limit { soft: Some(50), hard: Some(60) }),
        (Resource::Core, Limit { soft: Some(0), hard: limits::own(Resource::Core).unwrap().hard }),
    ];
    assert_eq!(written(&launch), format!("0137\n50\n60\n0\n{}\n", folder.display()));
}

#[test]
fn a_limit_below_the_passed_descriptors_does_not_keep_them_away() {
    let (reader, _writer) = io::pipe().unwrap();
    let mut launch = launch(&["true"]);
    launch.descriptors = vec![reader.as_fd(); 7];
    // The program itself cannot even load its libraries then, and complains.
    launch.stderr = Some(reader.as_fd().into());
    launch.limits = vec![(Resource::Nofile, Limit { soft: Some(5), hard: Some(5) })];
    assert!(runs(&launch).all(|outcome| outcome.report == Report::Executed));
}

#[test]
fn a_child_becomes_another_user() {
    if !is_root("becoming another user") {
        return;
    }
    let mut launch = launch(&["cat", "/proc/self/status"]);
    launch.credentials = Some(nobody());
    for outcome in runs(&launch) {
        assert_eq!(outcome.status("Uid"), ["65534"; 4]);
        assert_eq!(outcome.status("Gid"), ["65534"; 4]);
        assert_eq!(outcome.status("Groups"), ["7", "65534"]);
    }
}

#[test]
fn the_directory_is_entered_as_the_new_user() {
    if !is_root("entering a directory as another user") {
        return;
    }
    let folder = tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
    let mut launch = launch(&["true"]);
    launch.directory = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
    launch.credentials = Some(nobody());
    assert_eq!(failure(&launch), (Step::Directory, libc::EACCES));
}

#[test]
fn who_one_is_already_needs_no_right() {
    if !is_root("giving up root for good") {
        return;
    }
    isolated(|| {
        let who = nobody();
        setgroups(&who.groups.iter().copied().map(Gid::from_raw).collect::<Vec<_>>()).unwrap();
        setgid(Gid::from_raw(who.gid)).unwrap();
        setuid(Uid::from_raw(who.uid)).unwrap();
        let mut launch = launch(&["true"]);
        launch.credentials = Some(who.clone());
        assert_eq!(written(&launch), "");
        launch.credentials = Some(Credentials { groups: vec![0], ..who });
        assert_eq!(failure(&launch), (Step::Groups, libc::EPERM));
    });
}

#[test]
fn a_missing_directory_is_reported() {
    let mut launch = launch(&["true"]);
    launch.directory = c"/nonexistent/app".to_owned();
    assert_eq!(failure(&launch), (Step::Directory, libc::ENOENT));
}

#[test]
fn an_impossible_limit_is_reported_by_its_name() {
    let mut launch = launch(&["true"]);
    launch.limits = vec![(Resource::Stack, Limit { soft: None, hard: Some(1) })];
    assert_eq!(failure(&launch), (Step::Limit(Resource::Stack), libc::EINVAL));
}

#[test]
fn more_descriptors_than_the_kernel_allows_are_reported() {
    isolated(|| {
        let (reader, _writer) = io::pipe().unwrap();
        let mut launch = launch(&["true"]);
        launch.descriptors = vec![reader.as_fd(); 40];
        limits::set_own(Resource::Nofile, Limit { soft: Some(30), hard: Some(30) }).unwrap();
        let (step, errno) = failure(&launch);
        assert_eq!(step, Step::Descriptors);
        assert!([libc::EINVAL, libc::EMFILE, libc::EBADF].contains(&errno));
    });
}

#[test]
fn a_program_that_cannot_be_executed_is_reported() {
    assert_eq!(failure(&launch(&["/nonexistent"])), (Step::Execute, libc::ENOENT));
    assert_eq!(failure(&launch(&["no-such-program"])), (Step::Execute, libc::ENOENT));
    assert_eq!(failure(&launch(&["/etc/passwd"])), (Step::Execute, libc::EACCES));
    assert_eq!(failure(&launch(&["/etc/passwd/x"])), (Step::Execute, libc::ENOTDIR));
    let folder = tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "echo no interpreter\n").unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(failure(&launch(&[script.to_str().unwrap()])), (Step::Execute, libc::ENOEXEC));
}

#[test]
fn the_path_is_searched_as_execvp_does() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("true"), "not executable").unwrap();
    let forbidden = folder.path().as_os_str().to_str().unwrap();
    let with_path = |path: String| {
        let mut launch = launch(&["true"]);
        launch.programs = candidates(OsStr::new("true"), Some(OsStr::new(&path))).unwrap();
        launch
    };
    written(&with_path(format!("/nonexistent:/etc/passwd:{forbidden}:/bin:/usr/bin")));
    assert_eq!(failure(&with_path(format!("{forbidden}:/nonexistent"))), (Step::Execute, libc::EACCES));
    assert_eq!(failure(&with_path("/nonexistent".to_owned())), (Step::Execute, libc::ENOENT));
}

#[test]
fn a_relative_program_is_looked_up_in_the_directory() {
    let mut launch = launch(&["./true"]);
    launch.directory = c"/usr/bin".to_owned();
    written(&launch);
}

#[test]
fn what_others_reach_has_a_memory_of_its_own() {
    let (_, input) = io::pipe().unwrap();
    let copied = |launch| is_in_reach_of_others(&plan(launch, input.as_fd()).unwrap());
    assert!(!copied(launch(&["true"])));
    let folder = File::open("/").unwrap();
    assert!(copied(Launch { cgroup: Some(folder.as_fd()), ..launch(&["true"]) }));
    let nobody = Credentials { uid: 4711, gid: 4711, groups: Vec::new() };
    assert!(copied(Launch { credentials: Some(nobody), ..launch(&["true"]) }));
}

#[test]
fn candidates_are_those_of_execvp() {
    let list = |program, path: Option<&str>| candidates(OsStr::new(program), path.map(OsStr::new)).unwrap();
    assert_eq!(list("./a", Some("/bin")), c_strings(&["./a"]));
    assert_eq!(list("a", Some("/x::/y")), c_strings(&["/x/a", "./a", "/y/a"]));
    assert_eq!(list("a", None), c_strings(&["/bin/a", "/usr/bin/a"]));
}

#[test]
fn a_report_is_not_waited_for_and_counts_when_the_child_has_gone() {
    let (report, input) = pipe2(OFlag::O_NONBLOCK).unwrap();
    let mut spawned = Spawned { pid: Pid::this(), report, heard: Vec::new(), cradle: None };
    assert_eq!(spawned.report().unwrap(), Report::NotYet);
    let failure = plain(Step::Directory, libc::ENOENT);
    let (text, length) = failure.encode();
    unistd::write(&input, &text[..length]).unwrap();
    assert_eq!(spawned.report().unwrap(), Report::NotYet);
    drop(input);
    assert_eq!(spawned.report().unwrap(), Report::Failed(failure));
}

#[test]
fn a_report_in_no_known_form_is_an_error() {
    for bytes in [&b"x"[..], b"\xff1234", b"twice as much"] {
        let (report, input) = pipe2(OFlag::O_NONBLOCK).unwrap();
        unistd::write(&input, bytes).unwrap();
        drop(input);
        let mut spawned = Spawned { pid: Pid::this(), report, heard: Vec::new(), cradle: None };
        assert_eq!(spawned.report().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}

/// Has whoever opens the file wait, as on a dead file server, until it is taken back (fcntl(2), `F_SETLEASE`); SIGIO tells
/// that somebody does.
#[expect(unsafe_code, reason = "nix has no leases")]
fn set_lease(file: &File, lease: c_int) {
    // SAFETY: fcntl(2) touches no memory of ours.
    let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, lease) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

#[test]
fn a_child_that_hangs_on_its_way_holds_nobody_up_and_loses_nothing() {
    isolated(|| {
        let folder = tempdir().unwrap();
        let program = folder.path().join("program");
        fs::copy("/bin/true", &program).unwrap();
        let opened = SigSet::from(Signal::SIGIO);
        opened.thread_block().unwrap();
        for memory in memories() {
            for keeps_it in [true, false] {
                let leased = File::open(&program).unwrap();
                set_lease(&leased, libc::F_WRLCK);
                let mut spawned = spawn_in(memory, launch(&[program.to_str().unwrap()])).unwrap();
                opened.wait().unwrap();
                assert_eq!(spawned.report().unwrap(), Report::NotYet);
                let pid = spawned.pid;
                if keeps_it {
                    set_lease(&leased, libc::F_UNLCK);
                    assert_eq!(final_report(spawned), Report::Executed);
                } else {
                    drop(spawned);
                    // What it lives on is nobody else's now: these would be given its memory.
                    let others: Vec<_> = (0..64).map(|_| vec![0xff_u8; 4096]).collect();
                    set_lease(&leased, libc::F_UNLCK);
                    drop(others);
                }
                assert_eq!(wait_for_exit(pid), Exit::Code(0));
            }
        }
    });
}

#[test]
fn an_error_of_the_child_is_none_of_ours() {
    isolated(|| {
        let spawned = spawn(launch(&["/nonexistent"])).unwrap();
        let pid = spawned.pid;
        // Only the child meets with an error from here on.
        Errno::clear();
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        assert_eq!(Errno::last_raw(), 0);
        assert_eq!(final_report(spawned), Report::Failed(plain(Step::Execute, libc::ENOENT)));
        assert_eq!(wait_for_exit(pid), Exit::Code(127));
    });
}

#[test]
fn every_step_survives_the_pipe() {
    for step in Step::all() {
        let failures =
            [plain(step, libc::EPERM), Failure { interpreter: Interpreter::named(b"/x"), ..plain(step, 2) }];
        for failure in failures {
            let (text, length) = failure.encode();
            assert_eq!(Failure::decode(&text[..length]), Some(failure));
        }
    }
    assert_eq!(Failure::decode(&[200, 0, 0, 0, 0]), None);
    assert_eq!(Failure::decode(&[0, 0, 0, 0]), None);
}

/// A failure that is no interpreter's.
fn plain(step: Step, errno: i32) -> Failure {
    Failure { step, errno, interpreter: Interpreter::NONE }
}

#[test]
fn an_interpreter_that_cannot_be_executed_is_named() {
    isolated(|| {
        let folder = tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let write = |name: &str, text: &[u8], mode| {
            fs::write(at(name), text).unwrap();
            fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
        };
        write("plain", b"text", 0o755);
        write("folder-less", format!("#!{}/x\n", at("plain")).as_bytes(), 0o755);
        write("dos", b"#!/bin/sh\r\nexit\r\n", 0o755);
        write("missing", b"#! /nonexistent/python9 -u\n", 0o755);
        write("not-executable", b"#!/nonexistent/python9\n", 0o644);
        // A copy of a binary whose loader is another.
        let mut binary = fs::read("/proc/self/exe").unwrap();
        let loader = b"/ld-linux";
        let place = binary.windows(loader.len()).position(|part| part == loader);
        for (program, errno, interpreter) in [
            ("dos", libc::ENOENT, "/bin/sh\r"),
            ("missing", libc::ENOENT, "/nonexistent/python9"),
            ("folder-less", libc::ENOTDIR, &format!("{}/x", at("plain"))),
            ("plain", libc::ENOEXEC, ""),
            ("not-executable", libc::EACCES, ""),
            ("nothing", libc::ENOENT, ""),
        ] {
            let spawned = spawn(launch(&[&at(program)])).unwrap();
            let pid = spawned.pid;
            let interpreter = Interpreter::named(interpreter.as_bytes());
            let expected = Failure { step: Step::Execute, errno, interpreter };
            assert_eq!(final_report(spawned), Report::Failed(expected), "{program}");
            wait_for_exit(pid);
        }
        if let Some(place) = place {
            binary[place + 1] = b'x';
            write("binary", &binary, 0o755);
            let spawned = spawn(launch(&[&at("binary")])).unwrap();
            let pid = spawned.pid;
            let Report::Failed(failure) = final_report(spawned) else { panic!("it has no such loader") };
            assert!(String::from_utf8_lossy(failure.interpreter.name()).contains("/xd-linux"), "{failure}");
            wait_for_exit(pid);
        }
    });
}

#[test]
fn failures_are_told_in_words() {
    let by =
        |name: &[u8]| Failure { interpreter: Interpreter::named(name), ..plain(Step::Execute, 2) }.reason();
    assert_eq!(by(b"/bin/x"), "its interpreter `/bin/x`: No such file or directory (os error 2)");
    assert!(
        by(b"/bin/sh\r").starts_with("its interpreter `/bin/sh\\r`: No such file"),
        "{}",
        by(b"/bin/sh\r")
    );
    assert!(by(b"/bin/sh\r").contains("carriage return"));

    let failure = |step| plain(step, libc::ENOENT);
    let words = failure(Step::Limit(Resource::Nofile)).to_string();
    assert_eq!(words, "setting the limit `nofile`: No such file or directory (os error 2)");
    let describe = |step: Step| step.describe(Path::new("/srv/app"), "./server");
    assert_eq!(describe(Step::Directory), "changing directory to /srv/app");
    assert_eq!(describe(Step::Execute), "executing ./server");
    assert_eq!(describe(Step::User), "becoming the user");
}

#[test]
fn a_manager_begins_with_its_signals_held_back() {
    isolated(|| {
        for held in [0, super::super::signals::early_set()] {
            let launch = Launch { held_signals: held, ..launch(&["cat", "/proc/self/status"]) };
            for outcome in runs(&launch) {
                assert_eq!(outcome.status("SigBlk"), [format!("{held:016x}")]);
            }
        }
    });
}

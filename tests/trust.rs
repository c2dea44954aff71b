//! Whom the manager believes: the kernel's word on a process, and nothing that the process says of itself.
//!
//! What is tried here is tried as another user, and so needs root.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Target, ask};
use support::control::lines_of;
use support::log::{Step, Verdict};
use support::manager::{Manager, Place, Starter, Worker, wait_gone};
use support::process::{self, Process};
use support::service::Service;
use support::stranger::{
    self, DAEMON, NOBODY, as_user, nested, notify, notify_sockets_below, open_to_all, pass,
};
use support::{eventually, is_installed, is_root, loopback};

/// A manager whose notify sockets every user reaches, as those below /run.
fn start(service: &Service) -> Manager {
    let starter = Starter::default();
    open_to_all(&starter.path(""));
    let mut manager = starter.start(service);
    manager.wait_ready();
    manager
}

fn notify_socket(manager: &Manager) -> String {
    let mut found = notify_sockets_below(&manager.path("run/notify"));
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

fn only_worker(manager: &Manager) -> Worker {
    manager.wait_workers(1, 1).remove(0)
}

/// Waits until the manager has heard all that was sent to a worker's socket before.
fn barrier(path: &str) {
    let (mut kept, sent) = io::pipe().expect("a pipe");
    notify(path, b"BARRIER=1", &[sent.as_raw_fd()]);
    drop(sent);
    assert_eq!(kept.read(&mut [0]).expect("an end"), 0);
}

const IGNORED: &str = "notify message ignored";

#[test]
fn what_a_stranger_says_on_a_notify_socket_is_ignored_and_told_once_a_minute() {
    if !is_root("to be another user") {
        return;
    }
    let service = Service::worker().listen(loopback()).set("service.fd_store_max", 8);
    let manager = start(&service);
    let (worker, path) = (only_worker(&manager), notify_socket(&manager));
    let (file, place) = (File::open("/dev/null").expect("a file"), manager.place());
    let open = manager.descriptors_at_rest();
    as_user(NOBODY, || {
        for words in ["WATCHDOG=trigger", "STOPPING=1", "STATUS=forged", "MAINPID=1", "ERRNO=5"] {
            notify(&path, words.as_bytes(), &[]);
        }
        notify(&path, b"FDSTORE=1\nFDNAME=planted", &[file.as_raw_fd()]);
    });
    let told = manager.wait_log(place, [IGNORED]);
    assert!(told.contains("user 65534") && told.contains(&std::process::id().to_string()), "{told}");
    barrier(&path);
    assert_eq!(manager.workers(), [worker], "a stranger has ended a worker");
    let status = manager.ask(r#"{"cmd":"status"}"#).to_string();
    assert!(!status.contains("forged"), "{status}");
    manager.wait_until("every descriptor closed", || (manager.open_descriptors() == open).then_some(()));
    let lines = manager.lines_since(place);
    assert_eq!(lines.iter().filter(|line| line.contains(IGNORED)).count(), 1, "{lines:?}");
    manager.stop();
}

#[test]
fn a_stranger_does_not_commit_a_release_that_is_not_ready() {
    if !is_root("to be another user") {
        return;
    }
    let service = Service::worker().listen(loopback()).set("ready.timeout", "'3s'");
    let manager = start(&service);
    let (old, place) = (notify_socket(&manager), manager.place());
    manager.rewrite(service.args(["--never-ready"]));
    manager.signal(Signal::SIGHUP);
    manager.wait_worker(place, "a new worker", |one| one.step == Step::Started && one.generation == 2);
    let new = notify_sockets_below(&manager.path("run/notify")).into_iter().find(|path| *path != old);
    let new = new.expect("the socket of the new worker");
    as_user(NOBODY, || notify(&new, b"READY=1", &[]));
    let outcome = manager.wait_outcome(place);
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    manager.stop();
}

/// A server that becomes another user before it says that it is ready.
const DROPS: &str = "\
import os, socket, signal
os.setgid(4711); os.setuid(4711)
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect(os.environ['NOTIFY_SOCKET'])
n.send(b'READY=1\\nSTATUS=dropped')
signal.pause()
";

#[test]
fn a_server_that_drops_its_privileges_is_believed_and_so_is_its_child() {
    if !is_root("to be another user") || !is_installed("python3") {
        return;
    }
    let manager = start(&Service::command(["python3", "-c", DROPS]));
    manager.stop();
    // One level down: the process that speaks is not the one that we have started.
    let manager = start(&Service::command(["sh", "-c", "python3 -c \"$0\"; exit 3", DROPS]));
    let status = manager.ask(r#"{"cmd":"status"}"#).to_string();
    assert!(status.contains("dropped"), "{status}");
    manager.stop();
}

/// A process of another user that carries the variables of a worker.
struct Impostor(Child);

impl Impostor {
    fn of(worker: &Worker, user: u32, number: &str) -> Self {
        let environment = Process::read(worker.pid).expect("a living worker").environment;
        let kept = ["LIVESWAP_SERVICE", "LIVESWAP_RUNTIME_DIRECTORY", "LIVESWAP_GENERATION", "LIVESWAP_SLOT"];
        let kept = environment.into_iter().filter(|(name, _)| kept.contains(&name.as_str()));
        let mut command = Command::new("sleep");
        command.arg("1000").env_clear().envs(kept).env("LIVESWAP_WORKER", number).uid(user);
        Self(command.stdout(Stdio::null()).spawn().expect("sleep"))
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn assert_unharmed(&mut self) {
        let ended = self.0.try_wait().expect("a child of ours");
        assert_eq!(ended, None, "a process of another user was signalled");
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_of_another_user_is_not_adopted_whatever_its_environment_says() {
    if !is_root("to be another user") {
        return;
    }
    for number in ["1", "2", "0", "72057594037927936", "18446744073709551615", "-1"] {
        let address = loopback();
        let mut manager = start(&Service::worker().listen(address));
        let worker = only_worker(&manager);
        let mut impostor = Impostor::of(&worker, NOBODY, number);
        manager.crash();
        let place = manager.place();
        manager.restart();
        manager.wait_log(place, ["1 of 1 workers are taken over"]);
        assert_eq!(manager.survivors(), [worker], "{number}");
        ask(&Target::Tcp(address)).expect("an answer");
        // An upgrade starts workers with numbers of their own, and ends what is left of before.
        manager.upgrade_committed(Service::worker().listen(address).release("second"));
        impostor.assert_unharmed();
        manager.stop();
        impostor.assert_unharmed();
    }
}

#[test]
fn without_a_state_no_process_and_no_socket_of_another_user_is_taken() {
    if !is_root("to be another user") {
        return;
    }
    for number in ["1", "72057594037927936", "18446744073709551615"] {
        let address = loopback();
        let service = Service::worker().listen(address);
        let mut manager = start(&service);
        let worker = only_worker(&manager);
        let mut impostor = Impostor::of(&worker, NOBODY, number);
        manager.crash();
        std::fs::write(manager.path("run/state"), "no state").expect("a state that is none");
        let place = manager.place();
        manager.restart();
        manager.wait_log(place, ["cannot be used"]);
        manager.wait_said(place, "READY=1", |message| message.is("READY"));
        wait_gone(worker.pid);
        impostor.assert_unharmed();
        manager.stop();
        impostor.assert_unharmed();
    }
}

#[test]
fn an_impostor_of_the_right_user_that_is_older_than_the_service_is_not_adopted() {
    if !is_root("to be another user") {
        return;
    }
    let starter = Starter::default();
    open_to_all(&starter.path(""));
    let runtime = starter.path("run");
    let mut command = Command::new("sleep");
    command.arg("1000").env("LIVESWAP_SERVICE", "web").env("LIVESWAP_WORKER", "7");
    let mut older = Impostor(command.env("LIVESWAP_RUNTIME_DIRECTORY", &runtime).spawn().expect("sleep"));
    // Starts are told in hundredths of a second.
    let born = process::started(older.pid());
    eventually("a later time", || (process::now() > born + 1).then_some(()));
    let mut manager = starter.start(Service::worker().listen(loopback()));
    manager.wait_ready();
    manager.crash();
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["1 of 1 workers are taken over"]);
    older.assert_unharmed();
    manager.stop();
    older.assert_unharmed();
}

#[test]
fn a_worker_that_was_taken_over_cannot_name_a_stranger_as_its_main_process() {
    if !is_root("to be another user") {
        return;
    }
    let service = Service::worker().listen(loopback()).set("service.user", "'daemon'");
    let mut manager = start(&service);
    let worker = only_worker(&manager);
    let mut impostor = Impostor::of(&worker, NOBODY, "1");
    manager.crash();
    let place = manager.place();
    manager.restart();
    manager.wait_log(place, ["1 of 1 workers are taken over"]);
    let path = Process::read(worker.pid).expect("a living worker").environment["NOTIFY_SOCKET"].clone();
    as_user(DAEMON, || notify(&path, format!("MAINPID={}", impostor.pid()).as_bytes(), &[]));
    barrier(&path);
    kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("SIGKILL");
    manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready && one.pid != worker.pid);
    let adopted = |line: &String| line.contains("goes on as pid");
    assert!(!manager.lines_since(place).iter().any(adopted), "the stranger is a worker now");
    impostor.assert_unharmed();
    manager.stop();
    impostor.assert_unharmed();
}

fn while_stopped(manager: &Manager, act: impl FnOnce()) {
    stranger::while_stopped(manager.pid(), act);
}

#[test]
fn a_descriptor_inside_a_descriptor_of_a_stranger_does_not_hold_the_manager_up() {
    if !is_root("to be another user") {
        return;
    }
    let manager = start(&Service::worker().listen(loopback()));
    let path = notify_socket(&manager);
    let mut peers = Vec::new();
    for round in 0..20 {
        let far = nested(&mut peers);
        // Believed or not, and with a message that keeps it for a while or none.
        let user = if round % 2 == 0 { NOBODY } else { 0 };
        let text: &[u8] = if round % 3 == 0 { b"BARRIER=1" } else { b"X_A=1" };
        while_stopped(&manager, || {
            as_user(user, || notify(&path, text, &[far.as_raw_fd()]));
            drop(far);
        });
        barrier(&path);
    }
    manager.assert_never_held_up();
    manager.stop();
}

#[test]
fn what_is_left_in_the_queue_of_a_dead_worker_does_not_hold_the_manager_up() {
    if !is_root("to be another user") {
        return;
    }
    let manager = start(&Service::worker().listen(loopback()));
    let (worker, path, place) = (only_worker(&manager), notify_socket(&manager), manager.place());
    let mut peers = Vec::new();
    // While the manager stands still the worker ends, and its socket has more messages than are read of the dead.
    while_stopped(&manager, || {
        for _ in 0..5 {
            let far = nested(&mut peers);
            as_user(NOBODY, || notify(&path, b"X_A=1", &[far.as_raw_fd()]));
        }
        kill(Pid::from_raw(worker.pid), Signal::SIGKILL).expect("SIGKILL");
    });
    manager.wait_worker(place, "a replacement", |one| one.step == Step::Ready && one.pid != worker.pid);
    assert!(manager.ask(r#"{"cmd":"ping"}"#).to_string().contains("OK"));
    manager.stop();
}

#[test]
fn a_client_that_leaves_descriptors_behind_does_not_hold_the_manager_up() {
    let manager = start(&Service::worker().listen(loopback()));
    let mut peers = Vec::new();
    for round in 0..10 {
        let client = UnixStream::connect(manager.control_path()).expect("the control socket");
        // Beside a line that is read, beside half a line, and behind a line after which nothing is read.
        let text: &[u8] = [b"{\"cmd\":\"ping\"}\n".as_slice(), b"{", b"\n"][round % 3];
        while_stopped(&manager, || pass(&client, text, nested(&mut peers)));
        drop(client);
        assert!(manager.ask(r#"{"cmd":"ping"}"#).to_string().contains("OK"), "round {round}");
    }
    manager.assert_never_held_up();
    manager.stop();
}

/// Fills every pipe to the manager that it was handed, and clears O_NONBLOCK on whatever it has.
const HARMS_PIPES: &str = "\
import os, socket, fcntl, stat, select, signal
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect(os.environ['NOTIFY_SOCKET'])
for fd in range(1, 40):
    try: flags, kind = fcntl.fcntl(fd, fcntl.F_GETFL), os.fstat(fd).st_mode
    except OSError: continue
    if not stat.S_ISFIFO(kind): continue
    if fd > 2 and flags & os.O_ACCMODE == os.O_WRONLY:
        os.set_blocking(fd, False)
        try:
            while True: os.write(fd, b'x' * 4096)
        except BlockingIOError: pass
    os.set_blocking(fd, True)
    if fd > 2 and flags & os.O_ACCMODE == os.O_RDONLY and os.fork() == 0:
        # Reads its own output before the manager does.
        while True: os.read(fd, 65536)
n.send(b'READY=1')
if os.fork() == 0:
    while True: os.write(1, b'line\\n')
signal.pause()
";

#[test]
fn a_worker_cannot_make_the_manager_wait_for_a_pipe_between_them() {
    if !is_installed("python3") {
        return;
    }
    let service = Service::command(["python3", "-c", HARMS_PIPES]);
    let service = service.set("service.messages", true).set("service.output", "'prefix'");
    let manager = start(&service);
    for _ in 0..200 {
        assert!(manager.ask(r#"{"cmd":"ping"}"#).to_string().contains("OK"));
    }
    // It is full, so this one is not taken; that is an answer all the same.
    let answer = manager.ask(r#"{"cmd":"message","value":"hello"}"#).to_string();
    assert!(answer.contains("message"), "{answer}");
    manager.assert_never_held_up();
    manager.stop();
}

/// After the manager has gone: whatever it was handed leads elsewhere, to a file that it may not open.
const SWAPS: &str = "\
import os, socket, signal, sys, time
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect(os.environ['NOTIFY_SOCKET'])
n.send(b'READY=1')
secret = os.open(sys.argv[1], os.O_PATH)
number = int(os.environ['LIVESWAP_MESSAGE_FD'])
kept = os.dup(number)
parent = os.getppid()
while os.getppid() == parent: time.sleep(0.001)
while True:
    os.dup2(secret, number); os.dup2(secret, number + 1)
    os.dup2(kept, number); os.dup2(kept, number + 1)
";

#[test]
fn what_a_worker_puts_at_a_number_is_not_opened_in_recovery() {
    if !is_root("to be another user") || !is_installed("python3") {
        return;
    }
    let starter = Starter::default();
    open_to_all(&starter.path(""));
    let secret = starter.path("secret");
    std::fs::write(&secret, "untouched\n").expect("a file");
    let service = Service::command(["python3", "-c", SWAPS, secret.to_str().expect("UTF-8")]);
    let service = service.set("service.messages", true).set("service.user", "'daemon'");
    let mut manager = starter.start(service);
    manager.wait_ready();
    for _ in 0..10 {
        manager.crash();
        let place = manager.place();
        manager.restart();
        manager.wait_said(place, "READY=1", |message| message.is("READY"));
        manager.ask(r#"{"cmd":"message","value":"owned"}"#);
        assert_eq!(lines_of(&secret), ["untouched"], "root has written into a file for a worker");
    }
    manager.stop();
}

/// Leaves a process whose environment is as long as its memory, 2 GiB of zeroes, which takes no privilege; and ends.
const ENDLESS: &str = "\
import ctypes, mmap, os, socket, struct, time
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect(os.environ['NOTIFY_SOCKET'])
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True); libc.sbrk.restype = ctypes.c_void_p
    size = 2 << 30
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    stat = open('/proc/self/stat').read().rsplit(') ', 1)[1].split()
    code, stack, data, arguments = stat[23:25], stat[25], stat[42:44], stat[45:47]
    numbers = [*code, *data, stat[44], libc.sbrk(0), stack, *arguments, start, start + size]
    layout = struct.pack('11QPIi', *map(int, numbers), 0, 0, -1)
    done = libc.prctl(35, 14, layout, len(layout), 0)
    open('endless', 'w').write(f'{os.getpid()} {done} {ctypes.get_errno()}')
    time.sleep(1000)
while not os.path.exists('endless'): time.sleep(0.01)
n.send(b'READY=1')
";

#[test]
fn an_environment_without_end_costs_the_manager_nothing() {
    if !is_installed("python3") {
        return;
    }
    let manager = start(&Service::command(["python3", "-c", ENDLESS]).set("restart.initial_delay", "'10s'"));
    let said = std::fs::read_to_string(manager.path("endless")).expect("what the process says");
    let words: Vec<i32> = said.split(' ').map(|word| word.parse().expect("a number")).collect();
    assert_eq!(words[1], 0, "PR_SET_MM_MAP: errno {}", words[2]);
    manager.wait_log(Place::START, [&format!("process {} has outlived", words[0]), "SIGKILL"]);
    wait_gone(words[0]);
    let most = process::status(manager.pid(), "VmHWM");
    let most: u64 = most.trim_end_matches(" kB").trim().parse().expect("a size");
    assert!(most < 100_000, "{most} KiB were used to read it");
    manager.stop();
}

/// Sends descriptors whose close is slow, and then so many that are not that they would fill any table.
const FLOOD: &str = "\
import array, os, resource, signal, socket, struct, sys
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]; resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
os.setgid(65534); os.setuid(65534)
signal.signal(signal.SIGALRM, lambda *_: None); signal.setitimer(signal.ITIMER_REAL, .02, .02)
door = socket.socket(); door.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
door.bind(('127.0.0.1', 0)); door.listen(1024); peers = []
def slow():
    c = socket.socket(); c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    c.connect(door.getsockname()); peers.append(door.accept()[0]); c.setblocking(False)
    try:
        while True: c.send(b'x' * 65536)
    except BlockingIOError: pass
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 60))
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    socket.send_fds(near, [b'x'], [c.fileno()]); c.close(); near.close()
    return far.detach()
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect(sys.argv[1])
def send(numbers): n.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', numbers))])
null = os.open('/dev/null', os.O_RDONLY)
for _ in range(2):
    batch = [slow() for _ in range(200)]
    send(batch)
    for number in batch: os.close(number)
for _ in range(100): send([null] * 253)
print('sent', flush=True); signal.pause()
";

#[test]
fn a_stranger_cannot_fill_the_manager_s_table_of_descriptors() {
    if !is_root("to be another user") || !is_installed("python3") {
        return;
    }
    let manager = start(&Service::worker().listen(loopback()));
    let path = notify_socket(&manager);
    let mut flood = Command::new("python3");
    flood.args(["-c", FLOOD, &path]).stdout(Stdio::piped());
    let mut flood = Impostor(flood.spawn().expect("python3"));
    let mut said = io::BufReader::new(flood.0.stdout.take().expect("its output"));
    let reading = std::thread::spawn(move || {
        let mut line = String::new();
        said.read_line(&mut line).expect("a line");
        line
    });
    let mut most = 0;
    while !reading.is_finished() {
        most = most.max(manager.open_descriptors());
        assert_eq!(manager.ask(r#"{"cmd":"ping"}"#)["ok"], true);
    }
    assert_eq!(reading.join().expect("a line"), "sent\n");
    // What waits to be closed, what is being closed, and what one message brings.
    assert!(most < 4_000, "{most} descriptors");
    barrier(&path);
    manager.stop();
}

/// Types into the terminal of whoever started the manager.
const TYPES: &str = "\
import fcntl, os, signal, socket
n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.connect(os.environ['NOTIFY_SOCKET'])
done = []
for fd in (0, 1, 2):
    try: fcntl.ioctl(fd, 0x5412, b'x'); done.append(str(fd))
    except OSError: pass
try: os.open('/dev/tty', os.O_RDWR); done.append('tty')
except OSError: pass
n.send(b'READY=1\\nSTATUS=typed by ' + ' '.join(done or ['none']).encode())
signal.pause()
";

#[test]
fn a_worker_has_no_controlling_terminal_to_type_into() {
    if !is_root("to be another user") || !is_installed("python3") || !is_installed("script") {
        return;
    }
    let starter = Starter::default();
    open_to_all(&starter.path(""));
    let service = Service::command(["python3", "-c", TYPES]).set("service.user", "'daemon'");
    // script(1) gives it a terminal.
    let script = "exec script -qec 'exec \"$LIVESWAP\" run web.toml' /dev/null";
    let mut command = Command::new("sh");
    std::fs::write(starter.path("web.toml"), service.to_string()).expect("a service file");
    std::fs::create_dir(starter.path("run")).expect("a runtime directory");
    command
        .args(["-c", script])
        .current_dir(starter.path(""))
        .env("LIVESWAP", env!("CARGO_BIN_EXE_liveswap"));
    command.env("RUNTIME_DIRECTORY", starter.path("run")).env_remove("NOTIFY_SOCKET");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut terminal = command.spawn().expect("a shell");
    let ask = |command: &str| {
        let mut asking = Command::new(env!("CARGO_BIN_EXE_liveswap"));
        let asking = asking.args([command, "--json"]).env("RUNTIME_DIRECTORY", starter.path("run"));
        String::from_utf8(asking.output().expect("an answer").stdout).expect("UTF-8")
    };
    let status =
        eventually("what the worker says", || Some(ask("status")).filter(|text| text.contains("typed by")));
    let mut stop = Command::new(env!("CARGO_BIN_EXE_liveswap"));
    stop.arg("stop").env("RUNTIME_DIRECTORY", starter.path("run")).output().expect("an answer");
    terminal.wait().expect("its end");
    assert!(status.contains("typed by none"), "{status}");
}

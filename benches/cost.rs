//! What liveswap costs: `cargo bench` prints the figures that the project measures itself by.
//!
//! They are printed and never asserted, since a figure depends on the machine and on who else uses it. The program is
//! its own worker: `cost worker …` runs the one of the integration tests.

#[expect(dead_code, reason = "no single program uses all of the support")]
#[path = "../tests/support/mod.rs"]
mod support;
#[path = "../tests/support/worker.rs"]
mod worker;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Connection, Target, ask};
use support::loopback;
use support::manager::{Manager, Starter};
use support::process::of;
use support::service::Service;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("worker") {
        return worker::main();
    }
    let boot = worker_boot();
    print("boot of the worker alone, to READY=1", boot);
    start(boot);
    swap(boot);
    for workers in [64, 256] {
        many(workers);
    }
    ignored_term();
    throughput();
    ExitCode::SUCCESS
}

fn print(what: &str, time: Duration) {
    println!("{what:.<64} {:9.2} ms", time.as_secs_f64() * 1000.0);
}

fn print_count(what: &str, value: impl std::fmt::Display, unit: &str) {
    println!("{what:.<64} {value:>9} {unit}");
}

/// Returns the middle one of repeated measurements.
fn median(times: usize, measure: impl FnMut() -> Duration) -> Duration {
    let mut all: Vec<Duration> = std::iter::repeat_with(measure).take(times).collect();
    all.sort_unstable();
    all[times / 2]
}

fn this_program() -> String {
    std::env::current_exe().expect("the path of this program").display().to_string()
}

fn service(address: SocketAddr) -> Service {
    let program = this_program();
    Service::command([program.as_str(), "worker", "--linger", "10000"]).listen(address)
}

/// Starts the worker without a manager.
fn worker_alone(listener: &TcpListener) -> Child {
    let script = "exec 3<&0 </dev/null; export LISTEN_FDS=1 LISTEN_FDNAMES=http LISTEN_PID=$$; exec \"$@\"";
    Command::new("sh")
        .args(["-c", script, "sh", &this_program(), "worker", "--release", "alone"])
        .envs([("LIVESWAP_GENERATION", "0"), ("LIVESWAP_SLOT", "0")])
        .stdin(Stdio::from(OwnedFd::from(listener.try_clone().expect("a copy"))))
        .spawn()
        .expect("a worker")
}

fn end(mut worker: Child) {
    kill(Pid::from_raw(worker.id().cast_signed()), Signal::SIGTERM).expect("a living worker");
    worker.wait().expect("its end");
}

fn worker_boot() -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let notify = folder.path().join("notify");
    let socket = UnixDatagram::bind(&notify).expect("bind");
    // Without a socket and a shell to put it in its place: READY=1 comes before the first accept anyway.
    let mut command = Command::new(this_program());
    command.arg("worker").env("NOTIFY_SOCKET", &notify).stdin(Stdio::null());
    median(20, || {
        let begun = Instant::now();
        let worker = command.spawn().expect("a worker");
        while !matches!(socket.recv(&mut [0; 4096]), Ok(7..=8)) {}
        let took = begun.elapsed();
        end(worker);
        while socket.set_nonblocking(true).is_ok() && socket.recv(&mut [0; 4096]).is_ok() {}
        socket.set_nonblocking(false).expect("a blocking socket again");
        took
    })
}

/// From the start to the first answered request.
fn start(boot: Duration) {
    let first_answer = |address| {
        loop {
            if ask(&Target::Tcp(address)).is_ok() {
                return;
            }
            thread::sleep(Duration::from_micros(100));
        }
    };
    let managed = median(20, || {
        let address = loopback();
        let starter = Starter::default();
        let begun = Instant::now();
        let manager = starter.start(service(address).release(1));
        first_answer(address);
        let took = begun.elapsed();
        manager.stop();
        took
    });
    print("start to the first answer", managed);
    print("  beyond the worker's own boot (aim: 10 ms)", managed.saturating_sub(boot));
}

/// From SIGHUP to READY=1, and until the old workers have gone.
fn swap(boot: Duration) {
    let service = service(loopback()).workers(2);
    let manager = Manager::start(service.clone().release(1));
    let mut generation = 1;
    let mut complete = Vec::new();
    let ready = median(50, || {
        generation += 1;
        manager.rewrite(service.clone().release(generation));
        let place = manager.place();
        let begun = Instant::now();
        manager.signal(Signal::SIGHUP);
        manager.wait_said(place, "RELOADING=1", |message| message.is("RELOADING"));
        manager.wait_log(place, [&format!("generation {generation} committed")]);
        let took = begun.elapsed();
        manager.wait_log(place, [&format!("generation {} gone", generation - 1)]);
        complete.push(begun.elapsed());
        took
    });
    complete.sort_unstable();
    print("swap of 2 workers, SIGHUP to committed", ready);
    print("swap of 2 workers, SIGHUP until the old ones have gone", complete[complete.len() / 2]);
    print("  beyond two boots of the worker (aim: 5 ms)", ready.saturating_sub(2 * boot));
    manager.stop();
}

/// The time for which a process, of one thread, has used a processor.
fn cpu_of(pid: i32) -> Duration {
    let text = fs::read_to_string(of(pid, "schedstat")).expect("schedstat");
    Duration::from_nanos(text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("nanoseconds"))
}

/// All workers at once.
fn many(workers: u32) {
    let service = service(loopback()).workers(workers).set("upgrade.strategy", "'blue-green'");
    let manager = Manager::start(service.clone().release(1));
    let mut cpu = Vec::new();
    let mut generation = 1;
    let wall = median(5, || {
        generation += 1;
        manager.rewrite(service.clone().release(generation));
        let place = manager.place();
        let (begun, used) = (Instant::now(), cpu_of(manager.pid()));
        manager.signal(Signal::SIGHUP);
        manager.wait_log(place, [&format!("generation {generation} committed")]);
        let took = begun.elapsed();
        manager.wait_log(place, [&format!("generation {} gone", generation - 1)]);
        cpu.push(cpu_of(manager.pid()).saturating_sub(used));
        took
    });
    cpu.sort_unstable();
    let (wall_aim, cpu_aim) = if workers == 64 { (120, 20) } else { (500, 80) };
    print(&format!("{workers} workers at once, SIGHUP to committed (aim: {wall_aim} ms)"), wall);
    print(&format!("  the manager's processor time (aim: {cpu_aim} ms)"), cpu[cpu.len() / 2]);
    print_count(
        &format!("  resident memory with {workers} workers (aim: 4096 KiB)"),
        manager.resident(),
        "KiB",
    );
    manager.stop();
}

/// How long after its deadline a worker that ignores SIGTERM is still there.
fn ignored_term() {
    const DEADLINE: Duration = Duration::from_millis(300);
    let late = median(5, || {
        let service = service(loopback()).release(1).args(["--ignore-term"]).set("drain.timeout", "'300ms'");
        let mut manager = Manager::start(service);
        let begun = Instant::now();
        manager.signal(Signal::SIGTERM);
        manager.wait_exit();
        begun.elapsed().saturating_sub(DEADLINE)
    });
    print("a worker that ignores SIGTERM: gone after its deadline (aim: 100)", late);
}

/// Requests a second over connections kept alive, and the worker's processor time for each.
fn throughput() {
    let address = loopback();
    let listener = TcpListener::bind(address).expect("bind");
    let worker = worker_alone(&listener);
    drop(listener);
    measure_throughput("worker alone", address, worker.id().cast_signed());
    end(worker);

    let address = loopback();
    let manager = Manager::start(service(address).release(1));
    measure_throughput("through liveswap", address, manager.wait_workers(1, 1)[0].pid);
    manager.stop();
}

fn measure_throughput(what: &str, address: SocketAddr, worker: i32) {
    const WHILE: Duration = Duration::from_secs(3);
    let target = Target::Tcp(address);
    ask(&target).expect("an answer");
    let stop = AtomicBool::new(false);
    let (used, begun) = (process_time(worker), Instant::now());
    let run = |keep_alive: bool| {
        let mut sent = 0_u64;
        let mut connection = None;
        while !stop.load(Ordering::Relaxed) {
            let open = || Connection::open(&target).expect("a connection");
            let (_, closes) = connection.get_or_insert_with(open).get("/", keep_alive).expect("an answer");
            if closes {
                connection = None;
            }
            sent += 1;
        }
        sent
    };
    let total = thread::scope(|scope| {
        let clients = [true, false].map(|keep_alive| scope.spawn(move || run(keep_alive)));
        thread::sleep(WHILE);
        stop.store(true, Ordering::Relaxed);
        clients.map(|client| client.join().expect("a client")).iter().sum::<u64>()
    });
    let rate = u128::from(total) * 1000 / begun.elapsed().as_millis();
    let each = process_time(worker).saturating_sub(used).as_micros() / u128::from(total);
    print_count(&format!("requests a second, {what}"), rate, "1/s");
    print_count("  the worker's processor time for each", each, "µs");
}

/// The processor time of all threads of a process, ended ones included, in ticks of 10 ms.
fn process_time(pid: i32) -> Duration {
    let stat = fs::read_to_string(of(pid, "stat")).expect("stat");
    let fields: Vec<&str> = stat[stat.rfind(')').expect("a name")..].split(' ').collect();
    let ticks: u64 = [12, 13].iter().filter_map(|field| fields.get(*field)?.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

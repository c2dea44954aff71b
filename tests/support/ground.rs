//! A service under the load of the strict client, of whose workers a test may kill some.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Connection, Killed, Load, MODES, Report, Target};
use super::log::{Step, Transition};
use super::loopback;
use super::manager::{Manager, Place, Starter};
use super::service::Service;

/// How many workers it has.
pub const WORKERS: usize = 3;

/// A running service over TCP and a UNIX socket; no request may fail but those that a killed worker had accepted.
pub struct Ground {
    pub manager: Manager,
    /// What generation 1 was made of, to make others of.
    pub service: Service,
    targets: [Target; 2],
    load: Load,
    killed: Vec<Killed>,
}

impl Ground {
    /// Starts the service that `adjust` makes of the usual one, and the load.
    pub fn new(starter: Starter, adjust: impl FnOnce(Service) -> Service) -> Self {
        let (address, path) = (loopback(), starter.path("web.sock"));
        let service = Service::worker()
            .program(starter.worker_program().display())
            .workers(3)
            .listen(address)
            .listen(path.display())
            .args(["--greet"])
            .set("ready.timeout", "'30s'")
            .set("drain.timeout", "'30s'")
            .set("restart.initial_delay", "'20ms'")
            .set("restart.max_delay", "'200ms'");
        let service = adjust(service);
        let mut manager = starter.start(service.clone().release("first"));
        manager.wait_ready();
        let targets = [Target::Tcp(address), Target::Unix(path)];
        let load = Load::start_attributed(&targets, &MODES);
        load.wait_for_more(100);
        Self { manager, service, targets, load, killed: Vec::new() }
    }

    /// Sends SIGKILL to a worker. What it had accepted is lost, and nothing else.
    pub fn kill(&mut self, pid: i32) {
        self.take_out(pid, Signal::SIGKILL);
    }

    /// Stops a worker, as if it hung. What it had accepted is lost, and nothing else.
    pub fn freeze(&mut self, pid: i32) {
        self.take_out(pid, Signal::SIGSTOP);
    }

    /// Kills a worker that may have gone meanwhile.
    pub fn kill_if_there(&mut self, pid: i32) {
        self.expect_killed(&[pid]);
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }

    /// Forgives what these workers have accepted, or are about to: the manager will kill them.
    pub fn expect_killed(&mut self, pids: &[i32]) {
        let at = Instant::now();
        self.killed.extend(pids.iter().map(|&pid| Killed { pid, at }));
    }

    fn take_out(&mut self, pid: i32, signal: Signal) {
        self.expect_killed(&[pid]);
        kill(Pid::from_raw(pid), signal)
            .unwrap_or_else(|error| self.manager.fail(&format!("{pid}: {error}")));
    }

    /// Waits until so many requests more have been answered or lost.
    pub fn wait_for_more(&self, count: u64) {
        self.load.wait_for_more(count);
    }

    /// Waits for a step of a worker of `generation`.
    pub fn wait_step(&self, place: Place, generation: u64, step: Step) -> Transition {
        let what = format!("{step:?} of a worker of generation {generation}");
        self.manager.wait_worker(place, &what, |one| one.generation == generation && one.step == step)
    }

    /// Opens idle connections until each worker has accepted one, so that none can finish its drain at once.
    pub fn hold_all(&self) -> Vec<Connection> {
        let mut open: Vec<i32> = self.manager.workers().iter().map(|worker| worker.pid).collect();
        let mut held = Vec::new();
        while !open.is_empty() {
            let mut connection = Connection::open(&self.targets[0]).expect("a connection");
            let by = connection.greeting().expect("a greeting");
            open.retain(|pid| *pid != by);
            held.push(connection);
        }
        held
    }

    /// Checks that a good release still goes through, that `generation` is what it is, and that nothing was lost.
    pub fn assert_unharmed(self, generation: u64) -> Report {
        let Self { manager, service, load, killed, .. } = self;
        let outcome = manager.upgrade_committed(service.release("last"));
        assert_eq!(outcome.generation, generation, "{outcome:?}");
        manager.wait_workers(generation, WORKERS);
        load.wait_for_generation(generation);
        load.wait_for_more(100);
        let report = load.stop();
        println!("{} killed: {report}", killed.len());
        let unforgiven = report.clone().forgive(&killed);
        if !unforgiven.failed.is_empty() {
            manager.fail(&unforgiven.to_string());
        }
        unforgiven.assert_spotless();
        manager.stop();
        report
    }
}

//! Many signals at random moments, and workers that die at random: it must converge, and nothing may leak.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::client::{Target, ask};
use support::dice::Dice;
use support::loopback;
use support::manager::{Manager, Worker};
use support::service::Service;

/// The release that a worker runs, by its command line.
fn release(worker: &Worker) -> Option<&str> {
    let place = worker.command.iter().position(|word| word == "--release")?;
    worker.command.get(place + 1).map(String::as_str)
}

fn storm(seed: u64) {
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let address = loopback();
    let service = Service::worker()
        .workers(4)
        .listen(address)
        .set("restart.initial_delay", "'10ms'")
        .set("restart.max_delay", "'200ms'")
        .set("drain.timeout", "'5s'");
    let manager = Manager::start(service.clone().release(0));
    // One upgrade first: what is made lazily is there before descriptors are counted.
    manager.upgrade_committed(service.clone().release(0));
    manager.wait_workers(2, 4);
    let descriptors = manager.descriptors_at_rest();

    let mut newest = 0;
    for _ in 0..50 {
        match dice.below(5) {
            0 | 1 => {
                newest += 1;
                let boot = dice.below(40).to_string();
                manager.rewrite(service.clone().release(newest).args(["--boot", &boot]));
                manager.signal(Signal::SIGHUP);
            }
            2 => manager.signal(Signal::SIGUSR1),
            3 => manager.signal(Signal::SIGTTIN),
            _ => manager.signal(Signal::SIGTTOU),
        }
        let workers = manager.workers();
        if dice.below(3) == 0 && !workers.is_empty() {
            let victim = &workers[dice.below(workers.len())];
            // It may have ended meanwhile: then nothing was hit.
            let _ = kill(Pid::from_raw(victim.pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(dice.below(60) as u64));
    }
    newest += 1;
    manager.rewrite(service.clone().release(newest));
    manager.signal(Signal::SIGHUP);

    converge(&manager, &newest.to_string());
    assert_eq!(ask(&Target::Tcp(address)).expect("an answer").release, newest.to_string());
    manager.wait_until("as many descriptors as before", || {
        // Each worker has a notify socket; their number is what the last TTIN and TTOU made it.
        let workers = manager.workers().len();
        (manager.open_descriptors() + 4 == descriptors + workers).then_some(())
    });
    manager.stop();
}

/// Waits until the newest release alone runs, at the strength that the STATUS tells, without orphan or zombie.
fn converge(manager: &Manager, newest: &str) {
    manager.wait_until(&format!("release {newest} alone"), || {
        let workers = manager.workers();
        let all_newest = workers.iter().all(|worker| release(worker) == Some(newest));
        let count = workers.len();
        let told = manager.systemd.status().contains(&format!(": {count} of {count} ready"));
        let family = manager.family();
        let no_stranger = family.len() == count && manager.children().len() == count;
        (count > 0 && all_newest && told && no_stranger).then_some(())
    });
}

#[test]
fn a_storm_of_signals_and_deaths_converges_to_the_newest_file() {
    let seed = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse().ok());
    storm(seed.unwrap_or(0x5EED));
}

#[test]
fn another_storm_converges_as_well() {
    storm(0xBAD_CAFE);
}

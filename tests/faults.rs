//! Workers that are killed, hang or leave processes behind at the worst moments, under load.
//!
//! Whatever happens to a worker, nothing may be lost but what that very worker had accepted.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::dice::Dice;
use support::ground::{Ground, WORKERS};
use support::log::{Step, Verdict};
use support::manager::Starter;
use support::process::Process;
use support::service::Service;

/// A moment of an upgrade to generation 2, and the worker that is killed then.
#[derive(Clone, Copy, Debug)]
enum Victim {
    /// A new worker that is still booting.
    Booting,
    /// A new worker that has just become ready, while others still boot.
    JustReady,
    /// An old worker that is not replaced yet.
    NotReplaced,
    /// An old worker that drains, while others are still to be replaced.
    Draining,
    /// A new worker on probation.
    OnProbation,
    /// An old worker that still drains during the probation.
    DrainingInProbation,
}

/// Kills one worker in an upgrade, and sees how that ends.
fn killed(strategy: &str, victim: Victim, verdict: Verdict) {
    let adjust = |service: Service| service.set("upgrade.strategy", strategy);
    let mut ground = Ground::new(Starter::default(), adjust);
    let held = ground.hold_all();
    let new = ground.service.clone().release("second").args(["--boot", "150,300,450"]);
    let new = new.set("upgrade.probation", "'1s'");
    let place = ground.manager.place();
    ground.manager.rewrite(new);
    ground.manager.signal(Signal::SIGHUP);

    let probation = || ground.manager.wait_log(place, ["generation 2 on probation"]);
    let pid = match victim {
        Victim::Booting => ground.wait_step(place, 2, Step::Started).pid,
        Victim::JustReady => ground.wait_step(place, 2, Step::Ready).pid,
        Victim::NotReplaced => {
            ground.wait_step(place, 2, Step::Started);
            let workers = ground.manager.workers();
            let last = workers.iter().rfind(|worker| worker.generation == 1).expect("an old worker");
            last.pid
        }
        Victim::Draining => ground.wait_step(place, 1, Step::Draining).pid,
        Victim::OnProbation => {
            probation();
            ground.wait_step(place, 2, Step::Ready).pid
        }
        Victim::DrainingInProbation => {
            probation();
            ground.wait_step(place, 1, Step::Draining).pid
        }
    };
    ground.kill(pid);

    let outcome = ground.manager.wait_outcome(place);
    if outcome.verdict != verdict {
        ground.manager.fail(&format!("{victim:?}: {outcome:?}"));
    }
    drop(held);
    let serving = if verdict == Verdict::Committed { 2 } else { 1 };
    ground.manager.wait_workers(serving, WORKERS);
    ground.assert_unharmed(3);
}

#[test]
fn a_new_worker_killed_while_it_boots_is_replaced() {
    killed("'rolling'", Victim::Booting, Verdict::Committed);
}

#[test]
fn a_new_worker_killed_when_just_ready_is_replaced() {
    killed("'rolling'", Victim::JustReady, Verdict::Committed);
}

#[test]
fn an_old_worker_killed_before_its_turn_does_not_stop_an_upgrade() {
    killed("'rolling'", Victim::NotReplaced, Verdict::Committed);
}

#[test]
fn an_old_worker_killed_in_its_drain_does_not_stop_an_upgrade() {
    killed("'rolling'", Victim::Draining, Verdict::Committed);
}

#[test]
fn a_new_worker_killed_on_probation_brings_the_old_generation_back() {
    killed("'rolling'", Victim::OnProbation, Verdict::RolledBack);
}

#[test]
fn an_old_worker_killed_in_its_drain_does_not_fail_the_probation() {
    killed("'rolling'", Victim::DrainingInProbation, Verdict::Committed);
}

#[test]
fn a_new_worker_killed_before_the_switch_at_once_is_replaced() {
    killed("'blue-green'", Victim::JustReady, Verdict::Committed);
}

#[test]
fn an_old_worker_killed_before_the_switch_at_once_does_not_stop_it() {
    killed("'blue-green'", Victim::NotReplaced, Verdict::Committed);
}

#[test]
fn a_new_worker_killed_after_the_switch_at_once_brings_the_old_generation_back() {
    killed("'blue-green'", Victim::OnProbation, Verdict::RolledBack);
}

#[test]
fn workers_killed_at_random_in_twenty_upgrades_take_only_their_own_requests_along() {
    let seed = std::env::var("FAULT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0xFA_017);
    println!("seed {seed}");
    let mut dice = Dice(seed);
    let mut ground = Ground::new(Starter::default(), |service| service);
    for upgrade in 0..20 {
        let place = ground.manager.place();
        let boot = dice.below(60).to_string();
        ground.manager.rewrite(ground.service.clone().release(upgrade).args(["--boot", &boot]));
        ground.manager.signal(Signal::SIGHUP);
        // Any moment will do: this pause is chance, and nothing is expected at its end.
        thread::sleep(Duration::from_millis(dice.below(150) as u64));
        let workers = ground.manager.workers();
        if !workers.is_empty() {
            ground.kill_if_there(workers[dice.below(workers.len())].pid);
        }
        ground.manager.wait_outcome(place);
    }
    ground.assert_unharmed(22);
}

#[test]
fn a_worker_that_is_stopped_is_replaced_by_its_watchdog_and_takes_only_its_own_requests_along() {
    let adjust = |service: Service| {
        service.args(["--ping"]).set("watchdog.timeout", "'3s'").set("drain.timeout", "'3s'")
    };
    let mut ground = Ground::new(Starter::default(), adjust);
    let place = ground.manager.place();
    let victim = ground.manager.workers().remove(0);
    ground.freeze(victim.pid);
    ground.manager.wait_log(place, [&format!("pid {})", victim.pid), "missed its watchdog; SIGABRT"]);
    // Stopped, it cannot even die of that.
    ground.manager.wait_log(place, [&format!("pid {})", victim.pid), "was killed by SIGKILL"]);
    let next = ground
        .manager
        .wait_worker(place, "a replacement", |one| one.step == Step::Ready && one.slot == victim.slot);
    assert_ne!(next.pid, victim.pid);
    ground.assert_unharmed(2);
}

#[test]
fn an_old_worker_that_is_stopped_holds_no_upgrade_up_and_is_killed_at_the_deadline_of_its_drain() {
    let mut ground = Ground::new(Starter::default(), |service| service.set("drain.timeout", "'2s'"));
    let victim = ground.manager.workers().remove(0);
    let place = ground.manager.place();
    ground.freeze(victim.pid);
    ground.manager.upgrade_committed(ground.service.clone().release("second"));
    ground.manager.wait_log(place, [&format!("pid {})", victim.pid), "not finished after 2", "s; SIGKILL"]);
    ground.manager.wait_workers(2, WORKERS);
    ground.assert_unharmed(3);
}

#[test]
fn a_new_worker_that_is_stopped_before_it_is_ready_rolls_the_upgrade_back() {
    let adjust = |service: Service| service.set("drain.timeout", "'500ms'").set("ready.timeout", "'1s'");
    let mut ground = Ground::new(Starter::default(), adjust);
    let place = ground.manager.place();
    ground.manager.rewrite(ground.service.clone().release("second").args(["--boot", "60000"]));
    ground.manager.signal(Signal::SIGHUP);
    let victim = ground.wait_step(place, 2, Step::Started);
    ground.freeze(victim.pid);
    let outcome = ground.manager.wait_outcome(place);
    assert_eq!(outcome.verdict, Verdict::RolledBack, "{outcome:?}");
    assert!(outcome.reason.contains("not ready after 1 s"), "{outcome:?}");
    ground.manager.wait_workers(1, WORKERS);
    ground.assert_unharmed(3);
}

/// Drains workers that ignore SIGTERM and have left processes behind by `quirk`, `left` each; none of all that may
/// be there one second after the deadline.
fn no_survivor(quirk: &str) {
    let mut ground = Ground::new(Starter::default(), |service| service);
    let stubborn = ground.service.clone().release("stubborn").args(["--ignore-term", quirk]);
    ground.manager.upgrade_committed(stubborn.set("drain.timeout", "'1s'"));
    let old: Vec<i32> = ground.manager.wait_workers(2, WORKERS).iter().map(|worker| worker.pid).collect();
    let left = ground.manager.wait_until("what the workers leave behind", || {
        let left = ground.manager.descendants_named("sleep");
        (left.len() == WORKERS).then_some(left)
    });
    // Who is whose is told by the time of their birth, which the kernel counts in hundredths of a second.
    thread::sleep(Duration::from_millis(20));
    let place = ground.manager.place();
    // They do not drain: what they have accepted is lost at the deadline.
    ground.expect_killed(&old);
    ground.manager.rewrite(ground.service.clone().release("next"));
    ground.manager.signal(Signal::SIGHUP);
    let lives = |pid: &i32| Process::read(*pid).is_some_and(|process| !process.is_zombie());
    for pid in &old {
        ground.manager.wait_log(place, [&format!("pid {pid})"), "not finished after 1", "s; SIGKILL"]);
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    while let Some(survivor) = old.iter().chain(&left).find(|pid| lives(pid)) {
        if Instant::now() > deadline {
            ground.manager.fail(&format!("one second after the deadline, process {survivor} still lives"));
        }
        thread::sleep(Duration::from_millis(5));
    }
    ground.manager.wait_workers(3, WORKERS);
    ground.assert_unharmed(4);
}

#[test]
fn a_daemon_of_a_worker_that_is_killed_does_not_outlive_the_deadline_by_a_second() {
    no_survivor("--leave-daemon");
}

#[test]
fn a_daemon_without_its_worker_s_environment_does_not_outlive_the_deadline_by_a_second() {
    no_survivor("--leave-stranger");
}

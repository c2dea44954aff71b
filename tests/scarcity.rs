//! What happens where the machine runs out of something: processes, descriptors, room in the runtime directory.
//!
//! Whatever cannot be had, the old generation serves on, the reason is told, and once it can be had again everything
//! goes on by itself. Nothing leaks.

#[expect(dead_code, reason = "no single test uses all of the support")]
mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use support::ground::{Ground, WORKERS};
use support::is_root;
use support::log::{Step, Verdict};
use support::manager::{Manager, Place, Starter};
use support::service::Service;

/// Mounts `options` of a tmpfs over the runtime directory, does `then`, and goes on as the manager.
fn in_a_small_room(options: &str, then: &str) -> Starter {
    let script = format!("mount -t tmpfs -o mode=0711,{options} none run && {then} && exec \"$@\"");
    Starter::default().by(&["unshare", "-m", "sh", "-c", &script, "sh"])
}

/// The runtime directory as the manager sees it.
fn runtime(manager: &Manager) -> PathBuf {
    let path = manager.path("run");
    Path::new("/proc").join(manager.pid().to_string()).join("root").join(path.strip_prefix("/").unwrap())
}

/// Sees that no upgrade goes through, for a reason that contains `words`, and that nothing else changes; then calls
/// `mend`, after which it does.
fn rides_out(mut ground: Ground, words: &str, mend: impl FnOnce(&Manager)) {
    let outcome = ground.manager.upgrade(ground.service.clone().release("second"));
    if outcome.verdict != Verdict::RolledBack || !outcome.reason.contains(words) {
        ground.manager.fail(&format!("expected a rollback for {words:?}: {outcome:?}"));
    }
    ground.manager.wait_workers(1, WORKERS);
    // A worker that dies now may or may not find room for its successor.
    let victim = ground.manager.workers().remove(1);
    let place = ground.manager.place();
    ground.kill(victim.pid);
    ground.manager.wait_worker(place, "its end", |one| one.pid == victim.pid && one.step == Step::Gone);
    ground.wait_for_more(100);
    mend(&ground.manager);
    ground.manager.wait_worker(place, "a successor", |one| one.slot == 1 && one.step == Step::Ready);
    ground.manager.wait_workers(1, WORKERS);
    ground.assert_unharmed(3);
}

#[test]
fn a_runtime_directory_that_fills_up_stops_upgrades_and_nothing_else() {
    if !is_root("a file system of its own") {
        return;
    }
    let ground = Ground::new(in_a_small_room("nr_inodes=40", "true"), |service| service);
    let ballast = runtime(&ground.manager).join("ballast");
    fs::create_dir(&ballast).expect("a folder");
    let full = (0..100).find_map(|number| File::create(ballast.join(number.to_string())).err());
    assert_eq!(full.map(|error| error.kind()), Some(std::io::ErrorKind::StorageFull));
    rides_out(ground, "No space left on device", |manager| {
        fs::remove_dir_all(&ballast).expect("room again");
        manager.wait_log(Place::START, ["run/state is written again"]);
    });
}

#[test]
fn a_runtime_directory_that_becomes_read_only_stops_upgrades_and_nothing_else() {
    if !is_root("a file system of its own") {
        return;
    }
    let ground = Ground::new(in_a_small_room("size=1m", "true"), |service| service);
    // Over the directory comes a view of itself that cannot be written to: what is open stays open.
    let script = |manager: &Manager, script: &str| {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--target", &manager.pid().to_string(), "sh", "-c", script, "sh"]);
        assert!(command.arg(manager.path("run")).status().expect("nsenter").success());
    };
    script(&ground.manager, "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\"");
    rides_out(ground, "Read-only file system", |manager| script(manager, "umount \"$1\""));
}

/// Starts where the runtime directory cannot be used from the start: that ends at once and says why.
fn cannot_start(options: &str, then: &str, words: &str) {
    if !is_root("a file system of its own") {
        return;
    }
    let mut manager = in_a_small_room(options, then).start(Service::worker());
    manager.wait_log(Place::START, [words]);
    manager.wait_log(Place::START, ["Hint: set RUNTIME_DIRECTORY"]);
    assert_eq!(manager.wait_exit().code(), Some(1));
}

#[test]
fn a_read_only_runtime_directory_ends_the_start() {
    cannot_start("ro", "true", "Read-only file system");
}

#[test]
fn a_runtime_directory_without_room_for_files_ends_the_start() {
    cannot_start("nr_inodes=2", "true", "No space left on device");
}

#[test]
fn a_runtime_directory_without_room_for_bytes_ends_the_start() {
    cannot_start("size=4k", "head -c 4096 /dev/zero >run/ballast", "No space left on device");
}

#[test]
fn with_too_few_descriptors_an_upgrade_fails_wherever_they_run_out_and_leaks_none() {
    let ground = Ground::new(Starter::default(), |service| service);
    let manager = &ground.manager;
    // One upgrade first: what is made lazily is there before descriptors are counted.
    manager.upgrade_committed(ground.service.clone().release("warm"));
    manager.wait_workers(2, WORKERS);
    let (open, most) = (manager.descriptors_at_rest(), 60);
    let mut failures = 0;
    let enough = (0..most).find(|&more| {
        manager.limit_descriptors(more);
        let place = manager.place();
        manager.rewrite(ground.service.clone().release(more));
        manager.signal(Signal::SIGHUP);
        manager.wait_decision(place);
        manager.limit("--nofile=1024:");
        let outcome = manager.wait_outcome(place);
        println!("{more} more: {outcome:?}");
        let full_strength = || {
            let workers = manager.workers();
            let one = workers.iter().all(|worker| worker.generation == workers[0].generation);
            (workers.len() == WORKERS && one && manager.open_descriptors() == open).then_some(())
        };
        manager.wait_until("full strength and as many descriptors as before", full_strength);
        if outcome.verdict != Verdict::Committed {
            failures += 1;
            if !outcome.reason.contains("Too many open files") {
                manager.fail(&format!("{more} descriptors more: {outcome:?}"));
            }
        }
        outcome.verdict == Verdict::Committed
    });
    let enough = enough.unwrap_or_else(|| manager.fail("no upgrade went through"));
    assert!(failures > 3, "{failures} failures only");
    ground.assert_unharmed(3 + u64::try_from(enough).expect("a few") + 1);
}

#[test]
fn without_a_descriptor_left_the_dead_are_replaced_later_and_leave_nothing_behind() {
    let mut ground = Ground::new(Starter::default(), |service| service);
    let leaving = ground.service.clone().release("leaving").args(["--leave-daemon"]);
    ground.manager.upgrade_committed(leaving);
    let victim = ground.manager.wait_workers(2, WORKERS).remove(0);
    let daemons = ground.manager.wait_until("the daemons", || {
        let daemons = ground.manager.descendants_named("sleep");
        (daemons.len() == WORKERS).then_some(daemons)
    });
    let place = ground.manager.place();
    ground.manager.limit_descriptors(0);
    ground.kill(victim.pid);
    ground.manager.wait_log(place, ["could not be started", "Too many open files"]);
    ground.wait_for_more(100);
    ground.manager.limit("--nofile=1024:");
    ground.manager.wait_worker(place, "a successor", |one| {
        one.slot == victim.slot && one.pid != victim.pid && one.step == Step::Ready
    });
    // The successor has a daemon, too: as many as before, but one of them is another.
    ground.manager.wait_until("the end of the dead worker's daemon", || {
        let now = ground.manager.descendants_named("sleep");
        (now.len() == WORKERS && now != daemons).then_some(())
    });
    ground.assert_unharmed(3);
}

#[test]
fn where_no_process_can_be_forked_upgrades_are_refused_and_the_dead_are_replaced_later() {
    if !is_root("becoming a user whose processes are counted") {
        return;
    }
    let mut ground = Ground::new(Starter::default().of_a_user(), |service| service);
    ground.manager.limit("--nproc=1:");
    let outcome = ground.manager.upgrade(ground.service.clone().release("second"));
    assert_eq!(outcome.verdict, Verdict::Refused, "{outcome:?}");
    assert!(outcome.reason.contains("Resource temporarily unavailable"), "{outcome:?}");
    let victim = ground.manager.wait_workers(1, WORKERS).remove(0);
    let place = ground.manager.place();
    ground.kill(victim.pid);
    ground.manager.wait_log(place, ["could not be started", "Resource temporarily unavailable"]);
    ground.wait_for_more(100);
    ground.manager.limit("--nproc=4096:");
    ground.manager.wait_workers(1, WORKERS);
    ground.assert_unharmed(3);
}

#[test]
fn where_forks_begin_to_fail_half_way_through_an_upgrade_it_rolls_back() {
    if !is_root("becoming a user whose processes are counted") {
        return;
    }
    let ground = Ground::new(Starter::default().of_a_user(), |service| service);
    let manager = &ground.manager;
    let open = manager.descriptors_at_rest();
    // The first new worker still starts, and sees to it that nobody follows.
    let place = manager.place();
    let half = ground.service.clone().release("half").after("prlimit --pid $PPID --nproc=1:");
    manager.rewrite(half.set("upgrade.max_surge", 1));
    manager.signal(Signal::SIGHUP);
    manager.wait_decision(place);
    let started = manager.transitions(place).iter().filter(|one| one.step == Step::Ready).count();
    manager.limit("--nproc=4096:");
    let outcome = manager.wait_outcome(place);
    assert_eq!((outcome.verdict, started), (Verdict::RolledBack, 1), "{outcome:?}");
    assert!(outcome.reason.contains("Resource temporarily unavailable"), "{outcome:?}");
    manager.wait_workers(1, WORKERS);
    manager.wait_until("as many descriptors", || (manager.open_descriptors() == open).then_some(()));
    ground.assert_unharmed(3);
}

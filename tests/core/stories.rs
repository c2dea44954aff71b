//! What the core decides, told as stories: each names the promise or the rule that it shows.

use std::collections::BTreeSet;
use std::time::Duration;

use liveswap::core::ids::{GenerationId, RequestId, WorkerId};
use liveswap::core::notice::{Exit, Outcome};
use liveswap::core::sight::{Lack, Sight};
use liveswap::core::spec::{Allowance, Code, Policy, Readiness, Strategy};
use liveswap::core::view::Health;
use liveswap::core::word::Word;
use liveswap::core::{Event, Scale, Wish};

use crate::story::{Behaviour, Story, policy, secs};

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn killed() -> Exit {
    Exit::Signal(9, "SIGKILL".into())
}

fn rolling(surge: u32, unavailable: u32) -> Strategy {
    Strategy::Rolling { max_surge: Allowance::Count(surge), max_unavailable: Allowance::Count(unavailable) }
}

#[test]
fn an_upgrade_replaces_slot_by_slot() {
    let mut story = Story::with_workers(2);
    let request = story.upgrade();
    story.expect_order(&[
        "generation 1 serving",
        "generation 2 checking",
        "generation 2 starting",
        "worker 3 ready [2/0]",
        "worker 1 draining: replaced [1/0]",
        "worker 4 ready [2/1]",
        "worker 2 draining: replaced [1/1]",
        "generation 2 committed",
        "worker 2 gone: exited with status 0",
        "generation 1 gone",
    ]);
    assert_eq!(story.answers, [(request, Outcome::Committed)]);
    assert_eq!(story.forgotten, [GenerationId(1)]);
    assert_eq!(story.manager.status(), "generation 2: 2 of 2 ready");
}

#[test]
fn a_release_that_is_never_ready_changes_nothing() {
    let mut story = Story::with_workers(2);
    let request = story.release(2, Behaviour::Silent).upgrade();
    assert_eq!(story.ready(1), 2);
    assert_eq!(story.manager.status(), "generation 1: 2 of 2 ready; upgrading to generation 2: 0 of 2 ready");
    story.after(secs(30));
    story.expect_order(&[
        "worker 3 not ready after 30 s",
        "generation 2 rolled back: worker 3 (slot 0) was not ready",
    ]);
    story.expect_never("[1/0]").expect_never("[1/1]");
    let reason = "worker 3 (slot 0) was not ready after 30 s";
    assert_eq!(story.answers, [(request, Outcome::RolledBack(reason.into()))]);
    assert_eq!(
        story.manager.status(),
        format!("generation 1: 2 of 2 ready; upgrade to generation 2 rolled back: {reason}")
    );
    assert_eq!(story.forgotten, [GenerationId(2)]);
}

#[test]
fn old_workers_that_drained_come_back_before_the_new_ones_go() {
    let mut story = Story::with_workers(2);
    story.release(1, Behaviour::Good).release(2, Behaviour::Good);
    story.next.probation = secs(10);
    story.upgrade();
    assert_eq!((story.ready(1), story.ready(2)), (0, 2));
    story.event(Event::Exited(story.worker_in(2, 1), Exit::Status(3)));
    story.expect_order(&[
        "generation 2 on probation for 10 s",
        "worker 4 exited with status 3",
        "generation 2 rolling back: worker 4 (slot 1) exited with status 3",
        "ready [1/1]",
        "ready [1/0]",
        "worker 3 draining: its generation failed [2/0]",
        "generation 2 rolled back",
    ]);
    assert_eq!((story.ready(1), story.ready(2)), (2, 0));
}

#[test]
fn an_old_failure_does_not_keep_the_old_release_from_coming_back() {
    let mut story = Story::with(Policy { restart_initial_delay: secs(30), ..policy(1) });
    story.release(1, Behaviour::Exits(1)).event(Event::Respawn(None));
    story.expect_order(&["respawn given up", "slot 0 (generation 1) starts again in 30 s"]);
    story.next.probation = secs(10);
    story.release(1, Behaviour::Good).upgrade();
    story.event(Event::Exited(story.worker_in(2, 0), Exit::Status(3)));
    story.expect_order(&["generation 2 rolling back", "ready [1/0]", "generation 2 rolled back"]);
    assert_eq!(story.ready(1), 1, "at once");
}

#[test]
fn probation_that_passes_commits() {
    let mut story = Story::with_workers(1);
    story.next.probation = secs(10);
    let request = story.upgrade();
    assert!(story.answers.is_empty());
    assert_eq!(story.manager.status(), "generation 1: 0 of 1 ready; generation 2: 1 of 1 ready on probation");
    story.after(secs(10));
    assert_eq!(story.answers, [(request, Outcome::Committed)]);
}

#[test]
fn a_worker_that_is_added_on_probation_must_be_ready_too() {
    let mut story = Story::with_workers(1);
    story.next.probation = secs(10);
    let request = story.upgrade();
    story.release(2, Behaviour::Silent).event(Event::Scale(1)).after(secs(20));
    assert!(story.answers.is_empty(), "1 of 2 ready is not full strength");
    story.event(Event::Said(story.worker_in(2, 1), Word::Ready));
    assert_eq!(story.answers, [(request, Outcome::Committed)]);
}

#[test]
fn going_unready_on_probation_rolls_back() {
    let mut story = Story::with_workers(1);
    story.next.probation = secs(10);
    story.upgrade();
    story.event(Event::Said(story.worker_in(2, 0), Word::Stopping));
    story.expect_order(&[
        "worker 2 draining: it stops by itself",
        "generation 2 rolled back: worker 2 (slot 0) stopped by itself",
    ]);
    assert_eq!(story.ready(1), 1);
}

#[test]
fn one_of_four_that_dies_ready_rolls_back_in_mid_upgrade() {
    let mut story = Story::with_workers(4);
    story.release(2, Behaviour::Silent).upgrade();
    story.event(Event::Said(story.worker_in(2, 0), Word::Ready));
    assert_eq!((story.ready(1), story.ready(2)), (3, 1));
    story.event(Event::Exited(story.worker_in(2, 0), Exit::Signal(11, "SIGSEGV".into())));
    story
        .expect_order(&["generation 2 rolling back: worker 5 (slot 0) was killed by SIGSEGV", "rolled back"]);
    assert_eq!((story.ready(1), story.ready(2)), (4, 0));
}

#[test]
fn a_kill_from_outside_says_nothing_about_the_release() {
    let mut story = Story::with_workers(1);
    story.release(2, Behaviour::Silent).upgrade();
    story.event(Event::Exited(story.worker_in(2, 0), killed()));
    story.expect_order(&["was killed by SIGKILL", "was killed from outside; the upgrade goes on"]);
    story.release(2, Behaviour::Good).after(secs(1));
    story.expect_order(&["generation 2 committed"]);
}

#[test]
fn kills_from_outside_are_spared_only_so_often() {
    let mut story = Story::with_workers(1);
    story.release(2, Behaviour::Silent).upgrade();
    for _ in 0..4 {
        story.event(Event::Exited(story.worker_in(2, 0), killed())).after(secs(1));
    }
    story.expect_order(&[
        "generation 2 rolled back: worker 5 (slot 0) was killed by SIGKILL before it was ready",
    ]);
}

#[test]
fn a_second_hup_follows_and_any_number_is_one() {
    let mut story = Story::with_workers(1);
    story.release(2, Behaviour::Silent);
    let requests: Vec<RequestId> = (0..4).map(|_| story.upgrade()).collect();
    story.event(Event::Said(story.worker_in(2, 0), Word::Ready));
    story.expect_order(&["generation 2 committed", "generation 3 checking", "generation 3 committed"]);
    story.expect_never("generation 4");
    assert_eq!(story.answers.iter().map(|(request, _)| *request).collect::<Vec<_>>(), requests);
}

#[test]
fn a_second_upgrade_does_not_wait_for_a_long_drain() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).upgrade();
    story.upgrade();
    assert_eq!(story.ready(3), 1);
    assert_eq!(story.draining(), 1, "generation 1 drains on");
}

#[test]
fn at_its_deadline_a_drain_ends() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).upgrade();
    story.after(secs(59)).expect_never("SIGKILL");
    story.after(secs(1));
    story.expect_order(&[
        "worker 1 not finished after 1 min; SIGKILL",
        "worker 1 gone: was killed by SIGKILL",
    ]);
}

#[test]
fn a_worker_may_ask_for_time_and_may_say_that_it_is_done() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).upgrade();
    story.event(Event::Said(WorkerId(1), Word::ExtendTimeout(secs(100))));
    story.after(secs(99)).expect_never("SIGKILL");
    story.event(Event::Said(WorkerId(1), Word::Drained)).after(secs(1));
    assert_eq!(story.draining(), 0);
    story.expect_order(&["worker 1 not finished after 1 min 40 s; SIGKILL"]);
}

#[test]
fn the_oldest_generation_is_killed_when_too_many_drain() {
    let mut story = Story::with(Policy { max_generations: 2, ..policy(1) });
    for generation in 1..=4 {
        story.release(generation, Behaviour::Stubborn);
        story.upgrade();
    }
    story.expect_order(&["generation 4 committed", "generation 1 killed: more generations drain"]);
    assert_eq!(story.draining(), 2);
}

#[test]
fn what_serves_is_not_killed_with_the_generations_that_drain() {
    let mut story = Story::with(Policy { max_generations: 1, ..policy(2) });
    story.next.probation = secs(10);
    story.upgrade();
    story.release(1, Behaviour::Exits(1));
    story.event(Event::Exited(story.worker_in(2, 1), Exit::Status(3))).after(secs(600));
    story.expect_order(&["generation 2 rolled back"]);
    story.release(3, Behaviour::Exits(1)).upgrade();
    story.after(secs(600)).expect_order(&["generation 3 rolled back"]);
    assert_eq!(story.ready(2), 1, "nobody else serves");
}

#[test]
fn without_surge_an_old_worker_goes_first() {
    let mut story = Story::with(Policy { strategy: Some(rolling(0, 1)), ..policy(2) });
    story.next.strategy = Some(rolling(0, 1));
    story.release(2, Behaviour::Silent).upgrade();
    assert_eq!(story.ready(1), 1, "one may be missing, not two");
    story.event(Event::Said(story.worker_in(2, 0), Word::Ready));
    assert_eq!((story.ready(1), story.ready(2)), (0, 1));
    story.event(Event::Said(story.worker_in(2, 1), Word::Ready));
    story.expect_order(&["generation 2 committed"]);
}

#[test]
fn without_surge_a_failure_restores_the_worker_that_went_first() {
    let mut story = Story::with(Policy { strategy: Some(rolling(0, 1)), ..policy(2) });
    story.next.strategy = Some(rolling(0, 1));
    story.release(2, Behaviour::Exits(1)).upgrade();
    story.expect_order(&["generation 2 rolled back"]);
    assert_eq!(story.ready(1), 2);
}

#[test]
fn blue_green_drains_the_old_when_all_the_new_are_ready() {
    let mut story = Story::with_workers(3);
    story.next.strategy = Some(Strategy::BlueGreen);
    story.release(2, Behaviour::Silent).upgrade();
    for slot in 0..3 {
        assert_eq!(story.ready(1), 3);
        story.event(Event::Said(story.worker_in(2, slot), Word::Ready));
    }
    assert_eq!((story.ready(1), story.ready(2)), (0, 3));
    story.expect_order(&["generation 2 committed"]);
}

#[test]
fn fewer_workers_in_the_midst_of_blue_green_do_not_hold_it_up() {
    let mut story = Story::with_workers(3);
    story.next.strategy = Some(Strategy::BlueGreen);
    story.release(2, Behaviour::Silent).upgrade();
    story.event(Event::Scale(-2)).event(Event::Scale(1));
    for slot in 0..2 {
        story.event(Event::Said(story.worker_in(2, slot), Word::Ready));
    }
    story.expect_order(&["generation 2 committed"]);
}

#[test]
fn recreate_stops_before_it_starts() {
    let mut story = Story::with_workers(2);
    story.next.strategy = Some(Strategy::Recreate);
    story.release(1, Behaviour::Stubborn).upgrade();
    story.expect_never("[2/");
    story.after(secs(60));
    story.expect_order(&["worker 2 gone", "worker 3 ready [2/0]", "generation 2 committed"]);
}

#[test]
fn recreate_rolls_back_to_the_old_release() {
    let mut story = Story::with_workers(2);
    story.next.strategy = Some(Strategy::Recreate);
    story.release(2, Behaviour::Exits(7)).upgrade();
    story.expect_order(&[
        "generation 2 rolling back",
        "ready [1/0]",
        "ready [1/1]",
        "generation 2 rolled back",
    ]);
    assert_eq!(story.ready(1), 2);
}

#[test]
fn room_is_made_only_by_what_the_replaced_leave_above_the_floor() {
    let mut story = Story::with_workers(3);
    story.next.strategy = Some(rolling(1, 1));
    story.release(2, Behaviour::Silent).upgrade();
    assert_eq!((story.ready(1), story.draining()), (2, 0), "slot 0 made room for slots 0 and 1");
    story.event(Event::Exited(story.worker_in(2, 1), killed()));
    // Slot 2 is replaced while slot 1 waits for room: only one of the two may go.
    story.event(Event::Said(story.worker_in(2, 2), Word::Ready));
    assert_eq!((story.ready(1), story.ready(2)), (1, 1));
    story.worker_in(1, 1);
}

#[test]
fn a_rollback_has_the_time_that_a_killed_process_takes_to_go() {
    let mut story = Story::with_workers(2);
    story.next.strategy = Some(Strategy::Recreate);
    story.next.probation = secs(10);
    story.release(2, Behaviour::Stuck).upgrade();
    story.release(1, Behaviour::Silent).event(Event::Exited(WorkerId(3), Exit::Status(1)));
    story.after(secs(60)).expect_order(&["worker 4 not finished after 1 min; SIGKILL"]);
    story.after(Duration::from_millis(20)).event(Event::Exited(WorkerId(4), killed()));
    story.after(Duration::from_millis(29_990));
    for slot in [0, 1] {
        story.event(Event::Said(story.worker_in(1, slot), Word::Ready));
    }
    story.expect_order(&["ready [1/0]", "ready [1/1]", "generation 2 rolled back"]);
}

#[test]
fn a_failed_hook_refuses_before_anything_is_touched() {
    let mut story = Story::with_workers(1);
    story.hook = Some(secs(300));
    let request = story.upgrade();
    story.event(Event::HookEnded(GenerationId(2), Err("the hook `before` exited with status 1".into())));
    let outcome = Outcome::Refused("the hook `before` exited with status 1".into());
    assert_eq!(story.answers, [(request, outcome)]);
    story.expect_never("[2/");
}

#[test]
fn a_hook_that_never_ends_refuses_in_time() {
    let mut story = Story::with_workers(1);
    story.hook = Some(secs(300));
    story.upgrade();
    story.after(secs(300));
    story.expect_order(&["generation 2 refused: a hook before the upgrade was not done in time"]);
}

#[test]
fn a_broken_file_refuses_and_the_next_upgrade_works() {
    let mut story = Story::with_workers(1);
    story.check_fails = Some("web.toml:3:1: unknown key".into());
    story.upgrade();
    assert!(
        story.manager.status().ends_with("refused: web.toml:3:1: unknown key"),
        "{}",
        story.manager.status()
    );
    story.upgrade();
    assert_eq!(story.manager.status(), "generation 3: 1 of 1 ready");
}

#[test]
fn a_worker_that_dies_is_started_again_ever_more_slowly() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Exits(1));
    story.event(Event::Exited(WorkerId(1), Exit::Status(1)));
    for pause in ["100 ms", "200 ms", "400 ms", "800 ms", "1.6 s"] {
        story.expect_order(&[&format!("slot 0 (generation 1) starts again in {pause}")]);
        story.after(secs(2));
    }
    story.after(secs(3600));
    assert!(story.told.last().unwrap().ends_with("in 30 s"), "{:?}", story.told.last());
    story.release(1, Behaviour::Good).after(secs(30));
    assert_eq!(story.manager.status(), "generation 1: 1 of 1 ready");
    let worker = story.after(secs(31)).worker_in(1, 0);
    story.event(Event::Exited(worker, Exit::Status(1)));
    assert!(story.told.last().unwrap().ends_with("in 100 ms"), "a long life makes good");
}

#[test]
fn a_word_that_comes_when_a_slot_is_due_does_not_hold_it_up() {
    let mut story = Story::with_workers(2);
    story.event(Event::Exited(WorkerId(1), Exit::Status(1)));
    story.now = story.now + Duration::from_millis(150);
    story.event(Event::Said(WorkerId(2), Word::Watchdog));
    assert_eq!(story.ready(1), 2, "the pause was 100 ms");
}

#[test]
fn an_upgrade_in_a_crash_loop_is_the_way_out() {
    let mut story = Story::with(policy(1));
    story.release(1, Behaviour::Exits(1)).event(Event::Exited(WorkerId(1), Exit::Status(1)));
    story.after(secs(10));
    story.upgrade();
    story.expect_order(&["generation 2 committed"]);
    assert_eq!(story.forgotten, [GenerationId(1)]);
}

#[test]
fn what_a_failed_rollback_left_stands_in_and_makes_way() {
    let mut story = Story::with_workers(2);
    story.next.probation = secs(10);
    story.upgrade();
    story.release(1, Behaviour::Exits(1));
    story.event(Event::Exited(story.worker_in(2, 1), Exit::Status(3)));
    story.after(secs(600)).expect_order(&["generation 2 rolled back"]);
    assert_eq!((story.ready(1), story.ready(2)), (0, 1), "the old release is broken by now");
    story.next.probation = Duration::ZERO;
    story.release(3, Behaviour::Silent).upgrade();
    for slot in [1, 0] {
        let live = story.manager.workers().filter(|(_, worker)| worker.is_live()).count();
        assert!(live <= 3, "{live} live workers");
        story.event(Event::Said(story.worker_in(3, slot), Word::Ready));
    }
    story.expect_order(&["generation 3 committed"]);
    assert_eq!(story.ready(2), 0);
}

#[test]
fn an_old_worker_that_dies_in_an_upgrade_is_started_again() {
    let mut story = Story::with_workers(2);
    story.release(2, Behaviour::Silent).upgrade();
    story.event(Event::Exited(story.worker_in(1, 1), killed())).after(secs(1));
    assert_eq!(story.ready(1), 2);
    story.after(secs(30));
    assert_eq!(story.manager.status().split(';').next(), Some("generation 1: 2 of 2 ready"));
}

#[test]
fn a_respawn_replaces_each_worker_once_its_successor_is_ready() {
    let mut story = Story::with_workers(2);
    story.event(Event::Respawn(Some(RequestId(9))));
    story.expect_order(&[
        "generation 1 respawning",
        "worker 3 ready",
        "worker 1 draining: replaced",
        "worker 4 ready",
        "worker 2 draining: replaced",
        "generation 1 respawned",
    ]);
    assert_eq!(story.answers, [(RequestId(9), Outcome::Committed)]);
}

#[test]
fn a_respawn_outlives_the_upgrade_that_goes_before_it() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Silent).event(Event::Respawn(Some(RequestId(9))));
    story.release(1, Behaviour::Good).release(2, Behaviour::Exits(1)).upgrade();
    story.expect_order(&["respawn given up: an upgrade goes first", "generation 2 rolled back"]);
    story.expect_order(&["generation 1 respawning", "worker 1 draining: replaced", "generation 1 respawned"]);
    assert_eq!(story.answers.last(), Some(&(RequestId(9), Outcome::Committed)));
}

#[test]
fn a_socket_that_was_replaced_in_an_upgrade_is_given_to_all() {
    let mut story = Story::with_workers(2);
    story.release(2, Behaviour::Silent).upgrade();
    story.event(Event::Said(story.worker_in(2, 0), Word::Ready));
    story.event(Event::SocketReplaced).release(2, Behaviour::Good);
    story.event(Event::Said(story.worker_in(2, 1), Word::Ready));
    story.expect_order(&[
        "generation 2 committed",
        "generation 2 respawning",
        "worker 3 draining",
        "worker 4 draining",
    ]);
    assert_eq!(story.ready(2), 2);
}

#[test]
fn a_respawn_whose_worker_fails_leaves_the_rest_alone() {
    let mut story = Story::with_workers(2);
    story.release(1, Behaviour::Silent).event(Event::Respawn(Some(RequestId(9))));
    story.after(secs(30));
    story.expect_order(&["generation 1 respawn given up: worker 3 (slot 0) was not ready"]);
    assert_eq!(story.ready(1), 2);
}

#[test]
fn what_the_end_of_a_respawn_settles_is_settled_at_once() {
    let mut story = Story::with_silent(policy(2));
    story.event(Event::Said(WorkerId(1), Word::Ready)).event(Event::Respawn(None));
    story.event(Event::Said(WorkerId(2), Word::Ready));
    assert!(!story.manager.has_served(), "worker 3 is to take over slot 0");
    story.manager.handle(story.now, Event::Upgrade(None), &mut Vec::new());
    assert!(story.manager.has_served(), "worker 3 is not, and both slots are served");
}

#[test]
fn the_end_of_an_outdated_worker_does_not_hasten_its_successor() {
    let mut story = Story::with_workers(1);
    story.after(secs(60)).release(1, Behaviour::Silent).event(Event::Respawn(None));
    for fresh in [2, 3] {
        story.event(Event::Exited(WorkerId(fresh), killed())).after(Duration::from_millis(200));
    }
    story.event(Event::Exited(WorkerId(4), killed()));
    story.expect_order(&["worker 4 was killed", "slot 0 (generation 1) starts again in 400 ms"]);
    story.event(Event::Exited(WorkerId(1), killed())).after(Duration::from_millis(399));
    assert_eq!(story.manager.workers().count(), 0);
    story.after(Duration::from_millis(1));
    assert_eq!(story.manager.workers().count(), 1);
}

#[test]
fn a_respawn_given_up_leaves_one_worker_in_each_slot() {
    let mut story = Story::with(Policy { strategy: Some(rolling(2, 0)), ..policy(2) });
    story.release(1, Behaviour::Silent).event(Event::Respawn(None));
    story.event(Event::Exited(WorkerId(3), Exit::Status(1)));
    story.expect_order(&["respawn given up: worker 3", "worker 4 draining: replaced"]);
    assert_eq!(story.ready(1), 2);
    let request = story.upgrade();
    assert_eq!(story.answers, [(request, Outcome::Committed)]);
}

#[test]
fn a_blue_green_respawn_given_up_keeps_the_workers_that_serve() {
    let mut story = Story::with(Policy { strategy: Some(Strategy::BlueGreen), ..policy(3) });
    story.release(1, Behaviour::Silent).event(Event::Exited(WorkerId(3), Exit::Status(1))).after(secs(1));
    story.event(Event::Respawn(None)).event(Event::Said(WorkerId(5), Word::Ready));
    assert_eq!(story.ready(1), 3, "all serve until every fresh one does");
    story.event(Event::Exited(WorkerId(4), Exit::Status(1)));
    story.expect_order(&["respawn given up: worker 4", "worker 6 draining: replaced"]);
    assert_eq!(story.ready(1), 3, "worker 5 stands in for the one that failed");
    story.release(1, Behaviour::Good).after(secs(1));
    story.expect_order(&["worker 7 ready [1/2]", "worker 5 draining: replaced"]);
    assert_eq!(story.ready(1), 3);
}

#[test]
fn scaling_adds_and_removes_at_the_end() {
    let mut story = Story::with_workers(2);
    story.event(Event::Scale(1)).event(Event::Scale(-1)).event(Event::Scale(-1)).event(Event::Scale(-1));
    story.expect_order(&[
        "worker 3 ready [1/2]",
        "worker 3 draining: fewer workers",
        "worker 2 draining: fewer workers",
    ]);
    assert_eq!(story.manager.status(), "generation 1: 1 of 1 ready", "never to none");
}

#[test]
fn fewer_workers_in_the_new_file_are_fewer_workers() {
    let mut story = Story::with_workers(4);
    story.next = policy(2);
    story.upgrade();
    assert_eq!(story.manager.status(), "generation 2: 2 of 2 ready");
    assert_eq!(story.ready(1), 0);
}

#[test]
fn a_stop_drains_and_ends_and_a_second_one_kills() {
    let mut story = Story::with_workers(2);
    story.release(1, Behaviour::Stubborn).event(Event::Stop);
    assert!(!story.ended);
    assert_eq!(story.manager.status(), "stopping: 2 workers left to drain");
    story.after(millis(200)).event(Event::Stop);
    assert!(story.ended);
}

/// timeout(1) sends SIGTERM to its child, and then to the child's group.
#[test]
fn a_second_stop_that_comes_at_once_is_the_same_wish() {
    let mut story = Story::with_workers(2);
    story.release(1, Behaviour::Stubborn).event(Event::Stop).event(Event::Stop);
    story.after(millis(199)).event(Event::Stop);
    story.expect_never("killing");
    assert_eq!((story.ended, story.draining()), (false, 2));
    story.after(millis(1)).event(Event::Stop);
    assert!(story.ended);
    // Of a kill there is no doubt.
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).event(Event::Stop).event(Event::Kill);
    assert!(story.ended);
}

#[test]
fn a_service_whose_workers_die_again_and_again_says_so() {
    let policy = Policy { restart_initial_delay: secs(1), restart_max_delay: secs(60), ..policy(2) };
    let mut story = Story::with(policy);
    let full = Health { is_full: true, ready: 2, wanted: 2, last_exit: None, deaths: 0 };
    assert_eq!(story.manager.health(story.now), full);
    story.event(Event::Exited(story.worker_in(1, 1), Exit::Status(1)));
    let last_exit = Some("status 1".into());
    let expected = Health { is_full: false, ready: 1, last_exit, deaths: 1, ..full.clone() };
    assert_eq!(story.manager.health(story.now), expected);
    story.after(secs(1));
    let last_exit = Some("status 1".into());
    let recovered = Health { last_exit, deaths: 1, ..full.clone() };
    assert_eq!(story.manager.health(story.now), recovered, "another one is there");
    story.after(secs(60));
    assert_eq!(story.manager.health(story.now), full, "and has lasted");
    story.release(1, Behaviour::Exits(3));
    for slot in [0, 1] {
        story.event(Event::Exited(story.worker_in(1, slot), killed()));
    }
    story.after(secs(10));
    let health = story.manager.health(story.now);
    assert_eq!((health.is_full, health.ready, health.last_exit.as_deref()), (false, 0, Some("status 3")));
    assert!(health.deaths >= 4, "{health:?}");
    story.event(Event::Stop);
    let health = story.manager.health(story.now);
    assert_eq!((health.is_full, health.ready, health.wanted), (false, 0, 0));
}

#[test]
fn an_upgrade_may_have_as_few_workers_as_its_limits_say() {
    let mut story = Story::with_workers(4);
    story.release(2, Behaviour::Silent);
    story.next.strategy = Some(rolling(0, 1));
    story.upgrade();
    let health = story.manager.health(story.now);
    assert_eq!((health.is_full, health.ready, health.wanted), (true, 3, 4));
    story.event(Event::Exited(story.worker_in(1, 3), Exit::Status(1)));
    assert!(!story.manager.health(story.now).is_full, "{:?}", story.manager.health(story.now));
}

#[test]
fn a_service_that_sleeps_and_one_without_workers_are_at_full_strength() {
    let asleep = lazy(2);
    assert!(asleep.manager.health(asleep.now).is_full);
    let on_demand = Story::with(policy(0));
    let health = on_demand.manager.health(on_demand.now);
    assert_eq!((health.is_full, health.wanted), (true, 0));
}

#[test]
fn a_death_by_the_drain_signal_is_a_clean_end() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).upgrade();
    story.event(Event::Exited(WorkerId(1), Exit::Drained("SIGTERM".into())));
    story.expect_order(&["worker 1 gone: ended by SIGTERM, as it was asked to"]);
    assert!(story.manager.health(story.now).is_full);
}

#[test]
fn a_stop_in_an_upgrade_tells_everyone_who_asked() {
    let mut story = Story::with_workers(2);
    story.release(2, Behaviour::Silent);
    let (first, second) = (story.upgrade(), story.upgrade());
    story.event(Event::Stop);
    assert!(story.ended);
    let outcome = Outcome::Superseded("the service stops".into());
    assert_eq!(story.answers, [(first, outcome.clone()), (second, outcome)]);
}

#[test]
fn a_watchdog_that_is_not_fed_aborts_and_restarts() {
    let mut story = Story::with(Policy { watchdog: Some(secs(3)), ..policy(1) });
    story.after(secs(2)).event(Event::Said(WorkerId(1), Word::Watchdog)).after(secs(2));
    story.expect_never("watchdog");
    story.after(secs(1));
    story.expect_order(&[
        "worker 1 missed its watchdog; SIGABRT",
        "slot 0 (generation 1) starts again in 100 ms",
    ]);
    story.after(secs(1));
    assert_eq!(story.ready(1), 1);
}

#[test]
fn alive_for_a_while_is_ready_where_the_worker_says_nothing() {
    let mut story = Story::with(Policy { readiness: Readiness::Settled(secs(1)), ..policy(1) });
    assert_eq!(story.ready(1), 0, "its READY=1 is not asked for");
    story.after(Duration::from_millis(999));
    assert_eq!(story.ready(1), 0);
    story.after(Duration::from_millis(1));
    assert_eq!(story.ready(1), 1);
}

#[test]
fn a_probe_is_tried_until_it_passes() {
    let mut story = Story::with(Policy { readiness: Readiness::Probe(secs(1)), ..policy(1) });
    story.event(Event::Probed(WorkerId(1), false)).after(secs(5));
    assert_eq!(story.ready(1), 0);
    story.event(Event::Probed(WorkerId(1), true));
    assert_eq!(story.ready(1), 1);
}

#[test]
fn a_worker_that_is_looked_at_is_ready_when_it_has_waited_for_connections_long_enough() {
    let mut story = Story::with(Policy { readiness: Readiness::Accepting(secs(1)), ..policy(1) });
    story.after(secs(2)).event(Event::Looked(WorkerId(1), Sight::NotYet(Lack::Waiting)));
    story.after(secs(5)).event(Event::Looked(WorkerId(1), Sight::Serves));
    story.after(Duration::from_millis(999));
    assert_eq!(story.ready(1), 0);
    story.after(Duration::from_millis(1));
    assert_eq!(story.ready(1), 1);
}

#[test]
fn a_worker_that_never_waits_for_connections_has_failed_in_time() {
    let mut story = Story::with(Policy { readiness: Readiness::Accepting(secs(1)), ..policy(1) });
    story.after(secs(2)).event(Event::Looked(WorkerId(1), Sight::NotYet(Lack::Waiting)));
    story.after(secs(60));
    story.expect_order(&["worker 1 not waiting for connections on a socket of the file after"]);
}

#[test]
fn a_worker_that_cannot_be_seen_is_ready_once_it_has_settled() {
    let mut story = Story::with(Policy { readiness: Readiness::Accepting(secs(1)), ..policy(1) });
    story.after(secs(2)).event(Event::Looked(WorkerId(1), Sight::Hidden("not dumpable".into())));
    story.expect_order(&["worker 1 cannot be seen waiting for connections: not dumpable"]);
    story.after(secs(1));
    assert_eq!(story.ready(1), 1);
}

#[test]
fn a_settled_worker_must_listen_where_the_one_that_it_replaces_does() {
    let settled = Policy { readiness: Readiness::Settled(secs(1)), ..policy(1) };
    let mut story = Story::with(settled);
    story.after(secs(1));
    assert_eq!(story.ready(1), 1, "the first one replaces none");
    story.upgrade();
    story.after(secs(1));
    assert_eq!(story.ready(2), 0);
    story.event(Event::Looked(WorkerId(2), Sight::NotYet(Lack::Listening("127.0.0.1:80".into()))));
    story.after(secs(1)).event(Event::Looked(WorkerId(2), Sight::Serves));
    assert_eq!(story.ready(2), 1);
}

#[test]
fn a_late_word_of_a_draining_worker_changes_nothing() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).upgrade();
    for word in [Word::Ready, Word::Stopping, Word::WatchdogTrigger, Word::Watchdog] {
        story.event(Event::Said(WorkerId(1), word));
    }
    assert_eq!(story.draining(), 1);
    assert_eq!(story.ready(2), 1);
}

#[test]
fn a_rollback_goes_back_to_the_generation_before_as_a_new_one() {
    let mut story = Story::with_workers(2);
    story.upgrade();
    story.hook = Some(secs(60));
    let request = story.ask(Wish::Rollback);
    story.expect_order(&[
        "generation 2 committed",
        "generation 3 checking: generation 1 once more",
        "generation 3 starting",
        "draining: replaced [2/0]",
        "generation 3 committed",
    ]);
    assert_eq!(story.answer(request), Some(&Outcome::Committed), "its hook `before` does not run");
    assert_eq!(story.reused, [GenerationId(1)]);
    let again = story.ask(Wish::Rollback);
    assert_eq!(story.answer(again), Some(&Outcome::Committed));
    assert_eq!(story.reused, [GenerationId(1), GenerationId(2)], "and forth again");
    assert_eq!(story.manager.status(), "generation 4: 2 of 2 ready");
}

#[test]
fn without_a_generation_before_there_is_nothing_to_go_back_to() {
    let mut story = Story::with_workers(1);
    let request = story.ask(Wish::Rollback);
    let why = "there is no generation before generation 1: a rollback goes back from an upgrade";
    assert_eq!(story.answer(request), Some(&Outcome::Refused(why.into())));
    story.release(2, Behaviour::Exits(1)).upgrade();
    let request = story.ask(Wish::Rollback);
    assert_eq!(story.answer(request), Some(&Outcome::Refused(why.into())), "one that failed is none");
}

#[test]
fn a_rollback_that_fails_changes_nothing() {
    let mut story = Story::with_workers(2);
    story.upgrade();
    let request = story.release(3, Behaviour::Exits(1)).ask(Wish::Rollback);
    let outcome = story.answer(request).expect("an answer");
    assert_eq!(outcome.word(), "rolled-back");
    assert_eq!(story.ready(2), 2);
}

#[test]
fn a_rollback_takes_back_the_upgrade_under_way() {
    for probation in [0, 10] {
        let mut story = Story::with_workers(2);
        story.next.probation = secs(probation);
        let behaviour = if probation == 0 { Behaviour::Silent } else { Behaviour::Good };
        let upgrade = story.release(2, behaviour).upgrade();
        let request = story.ask(Wish::Rollback);
        assert_eq!(story.answer(request), Some(&Outcome::Committed));
        let why = "a rollback was asked for";
        assert_eq!(story.answer(upgrade), Some(&Outcome::RolledBack(why.into())));
        assert_eq!((story.ready(1), story.ready(2)), (2, 0));
    }
}

#[test]
fn a_rollback_refuses_an_upgrade_that_is_being_checked() {
    let mut story = Story::with_workers(1);
    story.hook = Some(secs(60));
    let upgrade = story.upgrade();
    let request = story.ask(Wish::Rollback);
    assert_eq!(story.answer(request), Some(&Outcome::Committed));
    assert_eq!(story.answer(upgrade), Some(&Outcome::Refused("a rollback was asked for".into())));
}

#[test]
fn two_who_want_to_go_back_want_the_same() {
    let mut story = Story::with_workers(1);
    story.upgrade();
    story.release(3, Behaviour::Silent);
    let requests = [story.ask(Wish::Rollback), story.ask(Wish::Rollback)];
    story.event(Event::Said(story.worker_in(3, 0), Word::Ready));
    for request in requests {
        assert_eq!(story.answer(request), Some(&Outcome::Committed));
    }
    assert_eq!(story.reused, [GenerationId(1)]);
}

#[test]
fn a_respawn_at_once_kills_and_is_answered_when_fresh_ones_serve() {
    let mut story = Story::with_workers(2);
    story.release(1, Behaviour::Silent);
    let request = story.ask(Wish::RespawnNow);
    story.expect_order(&["worker 1 gone: was killed by SIGKILL", "worker 2 gone: was killed by SIGKILL"]);
    assert_eq!(story.answer(request), None);
    for slot in 0..2 {
        story.event(Event::Said(story.worker_in(1, slot), Word::Ready));
    }
    assert_eq!(story.answer(request), Some(&Outcome::Committed));
    story.expect_never("Backoff").expect_never("starts again");
}

#[test]
fn a_respawn_that_fails_says_so() {
    let mut story = Story::with_workers(1);
    let request = story.release(1, Behaviour::Exits(1)).ask(Wish::RespawnNow);
    assert_eq!(story.answer(request).map(Outcome::word), Some("rolled-back"));
}

#[test]
fn a_respawn_at_once_waits_for_an_upgrade() {
    let mut story = Story::with_workers(2);
    story.release(2, Behaviour::Silent).upgrade();
    let request = story.ask(Wish::RespawnNow);
    assert_eq!(story.ready(1), 2, "nobody is killed in an upgrade");
    story.after(secs(30));
    story.expect_order(&["generation 2 rolled back", "worker 1 gone: was killed by SIGKILL"]);
    assert_eq!(story.answer(request), Some(&Outcome::Committed));
}

#[test]
fn a_scale_is_answered_and_what_cannot_be_is_refused() {
    let mut story = Story::with_workers(2);
    let grown = story.ask(Wish::Scale(Scale::To(4)));
    assert_eq!((story.answer(grown), story.ready(1)), (Some(&Outcome::Committed), 4));
    story.ask(Wish::Scale(Scale::By(-3)));
    assert_eq!(story.ready(1), 1);
    for scale in [Scale::To(0), Scale::By(-1), Scale::To(4097), Scale::By(i32::MAX)] {
        let request = story.ask(Wish::Scale(scale));
        let why = story.answer(request).and_then(Outcome::reason).expect("a refusal");
        assert!(why.starts_with("a service has 1 to 4096 workers"), "{why}");
    }
    assert_eq!(story.ready(1), 1);
}

#[test]
fn a_stop_is_answered_when_it_is_over_and_a_second_does_not_hurry_it() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn);
    let first = story.ask(Wish::Stop);
    let second = story.ask(Wish::Stop);
    let upgrade = story.upgrade();
    assert_eq!(story.answer(upgrade), Some(&Outcome::Superseded("the service stops".into())));
    let scale = story.ask(Wish::Scale(Scale::To(2)));
    assert_eq!(story.answer(scale).map(Outcome::word), Some("superseded"));
    assert_eq!(story.answer(first), None);
    story.expect_never("SIGKILL");
    let kill = story.ask(Wish::Kill);
    assert!(story.ended);
    for request in [first, second, kill] {
        assert_eq!(story.answer(request), Some(&Outcome::Committed));
    }
    let late = story.ask(Wish::Stop);
    assert_eq!(story.answer(late), Some(&Outcome::Committed));
}

#[test]
fn a_rollback_under_recreate_waits_for_what_drains_already() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).upgrade();
    story.next.strategy = Some(Strategy::Recreate);
    story.next.drain_timeout = secs(1);
    story.upgrade();
    assert_eq!(story.ready(2) + story.ready(3), 0, "generation 1 has not ended");
    let request = story.ask(Wish::Rollback);
    story.after(secs(30));
    assert_eq!(story.answer(request), None, "generation 2 is not back");
    story.after(secs(30));
    assert_eq!((story.answer(request), story.ready(2)), (Some(&Outcome::Committed), 1));
}

#[test]
fn of_two_targets_that_wait_the_newest_is_had_and_the_other_hears_so() {
    let mut story = Story::with_workers(1);
    story.release(2, Behaviour::Silent).upgrade();
    let (first, second) = (story.ask(Wish::UpgradeTo), story.ask(Wish::UpgradeTo));
    let whatever = story.upgrade();
    let superseded = Outcome::Superseded("an upgrade to another target was asked for".into());
    assert_eq!(story.answer(first), Some(&superseded));
    story.after(secs(60));
    for request in [second, whatever] {
        assert_eq!(story.answer(request), Some(&Outcome::Committed));
    }
    story.expect_order(&["generation 2 rolled back", "generation 3 committed"]);
    story.expect_never("generation 4");
    assert_eq!(story.targets, [None, Some(second)]);
}

#[test]
fn an_upgrade_ends_with_its_manager_in_favour_of_what_serves() {
    let mut story = Story::with_workers(2);
    story.next.probation = secs(10);
    let request = story.upgrade();
    assert_eq!((story.ready(1), story.ready(2)), (0, 2));
    story.event(Event::TakenOver(BTreeSet::new()));
    story.expect_order(&[
        "generation 2 on probation",
        "generation 1 taken over with 2 workers",
        "generation 2 rolling back: the manager was killed",
        "ready [1/1]",
        "draining: its generation failed",
        "generation 2 rolled back: the manager was killed",
    ]);
    assert_eq!((story.ready(1), story.ready(2)), (2, 0));
    assert_eq!(story.answer(request), None, "nobody is there any more who could hear it");
    story.event(Event::TakenOver(BTreeSet::new()));
    assert_eq!(
        story.manager.status(),
        "generation 1: 2 of 2 ready; upgrade to generation 2 rolled back: the manager was killed"
    );
}

#[test]
fn what_was_said_while_there_was_no_manager_is_no_reason_to_blame_anyone() {
    let mut story = Story::with(Policy { watchdog: Some(secs(5)), ..policy(2) });
    let dies = story.worker_in(1, 1);
    story.release(1, Behaviour::Silent).event(Event::Exited(dies, Exit::Status(1)));
    story.after(secs(1));
    story.event(Event::Said(story.worker_in(1, 0), Word::Watchdog));
    // Long after every deadline, one worker has died, and one may have said that it is ready.
    story.now = story.now + secs(20);
    let (serves, starts) = (story.worker_in(1, 0), story.worker_in(1, 1));
    story.release(1, Behaviour::Good).event(Event::TakenOver(BTreeSet::new()));
    story.expect_never("missed its watchdog");
    assert_eq!(story.worker_in(1, 0), serves);
    assert_ne!(story.worker_in(1, 1), starts, "nobody waits for a word that may have come");
    story.expect_order(&[
        "taken over with 2 workers",
        "draining: nobody could hear whether it is ready [1/1]",
    ]);
    story.event(Event::TakenOver(BTreeSet::from([serves])));
    story.expect_order(&["taken over with 1 worker", "worker 1 ended, and its exit status is not known"]);
    story.after(secs(1));
    assert_eq!(story.ready(1), 2);
}

#[test]
fn whoever_starts_a_manager_wants_the_service_to_run() {
    let mut story = Story::with_workers(1);
    story.release(1, Behaviour::Stubborn).event(Event::Stop);
    assert_eq!((story.ready(1), story.draining()), (0, 1));
    story.release(1, Behaviour::Good).event(Event::TakenOver(BTreeSet::new()));
    story.expect_order(&["stopping", "taken over with 0 workers", "ready [1/0]", "generation 1 serving"]);
    assert_eq!((story.ready(1), story.draining()), (1, 1), "who drains goes on draining");
    story.after(secs(60));
    story.expect_order(&["worker 1 not finished after 1 min; SIGKILL"]);
}

fn lazy(workers: u32) -> Story {
    let mut story = Story::with(Policy { lazy: true, ..policy(workers) });
    story.next.lazy = true;
    story
}

#[test]
fn who_sleeps_is_at_full_strength_with_nobody() {
    let mut story = lazy(2);
    assert_eq!((story.ready(1), story.manager.phase()), (0, "asleep"));
    assert_eq!(story.manager.status(), "generation 1: asleep until a connection comes");
    story.event(Event::Connected);
    story.expect_order(&[
        "generation 1 serving",
        "generation 1 woken by a connection",
        "worker 2 ready [1/1]",
    ]);
    assert_eq!(story.ready(1), 2);
    story.event(Event::Idle);
    story.expect_order(&[
        "generation 1 asleep",
        "worker 1 draining: nothing is to be done",
        "worker 2 draining",
    ]);
    assert_eq!((story.ready(1), story.manager.next_deadline()), (0, None));
}

#[test]
fn a_connection_that_comes_while_workers_go_has_others_started() {
    let mut story = lazy(1);
    story.release(1, Behaviour::Stubborn).event(Event::Connected).event(Event::Idle);
    assert_eq!((story.ready(1), story.draining()), (0, 1));
    story.event(Event::Connected);
    assert_eq!((story.ready(1), story.draining()), (1, 1));
}

#[test]
fn a_release_is_tried_though_nobody_waits_for_it() {
    let mut story = lazy(2);
    let bad = story.release(2, Behaviour::Exits(3)).upgrade();
    assert!(matches!(story.answer(bad), Some(Outcome::RolledBack(_))));
    assert_eq!(story.manager.phase(), "asleep", "there was nobody to bring back");
    let good = story.release(3, Behaviour::Good).upgrade();
    assert_eq!(story.answer(good), Some(&Outcome::Committed));
    assert_eq!(story.ready(3), 2);
}

#[test]
fn nobody_falls_asleep_amid_something_else() {
    let mut story = lazy(2);
    story.event(Event::Connected).release(2, Behaviour::Silent).upgrade();
    story.event(Event::Idle);
    story.expect_never("asleep: no connection is left");
    assert_eq!(story.ready(1), 2);
    let mut story = Story::with_workers(1);
    story.event(Event::Idle);
    assert_eq!(story.ready(1), 1, "it is not lazy");
}

#[test]
fn an_end_waits_for_connections_that_have_processes() {
    let mut story = Story::with(policy(0));
    story.event(Event::Guests(true)).event(Event::Stop);
    assert!(!story.ended);
    assert_eq!(story.manager.status(), "stopping: connections are left");
    story.event(Event::Guests(false));
    assert!(story.ended);
}

/// A service whose upgrades must stay ready for a second before the first old worker goes.
fn careful(workers: u32, strategy: impl Into<Option<Strategy>>) -> Policy {
    Policy { strategy: strategy.into(), min_ready: Some(secs(1)), ..policy(workers) }
}

#[test]
fn no_old_worker_drains_before_the_first_new_one_has_stayed_ready() {
    let mut story = Story::with(careful(3, rolling(1, 0)));
    let request = story.upgrade();
    story.expect_order(&["generation 2 starting", "worker 4 ready"]).expect_never("draining");
    story.after(Duration::from_millis(999)).expect_never("draining");
    assert_eq!(story.ready(1), 3);
    // Those that come later go as they become ready.
    story.after(Duration::from_millis(1));
    story.expect_order(&["worker 1 draining: replaced", "generation 2 committed"]);
    assert_eq!(story.answer(request), Some(&Outcome::Committed));
}

#[test]
fn a_release_that_says_ready_and_dies_is_rolled_back_and_touches_nothing() {
    for strategy in [Some(rolling(1, 0)), Some(Strategy::BlueGreen), None] {
        let mut story = Story::with(careful(3, strategy));
        story.code = Code::InPlace;
        let request = story.upgrade();
        story.after(Duration::from_millis(300));
        let first = story.worker_in(2, 0);
        story.event(Event::Exited(first, Exit::Status(3)));
        let reason = "worker 4 (slot 0) exited with status 3, 300 ms after it was ready";
        assert_eq!(story.answer(request), Some(&Outcome::RolledBack(reason.into())), "{strategy:?}");
        story.expect_never("draining: replaced");
        story.after(secs(2));
        assert_eq!(story.manager.status().split(';').next(), Some("generation 1: 3 of 3 ready"));
    }
}

#[test]
fn a_break_in_readiness_begins_the_wait_anew() {
    let mut story = Story::with(careful(1, rolling(1, 0)));
    story.upgrade();
    story.after(Duration::from_millis(900));
    let first = story.worker_in(2, 0);
    // Killed from outside: it gets another chance.
    story.event(Event::Exited(first, Exit::Signal(9, "SIGKILL".into())));
    story.after(secs(1));
    story.expect_never("draining");
    story.after(Duration::from_millis(100));
    story.expect_order(&["worker 1 draining: replaced", "generation 2 committed"]);
}

#[test]
fn without_room_beside_the_old_one_of_them_makes_it_and_the_second_waits() {
    let mut story = Story::with(careful(3, rolling(0, 2)));
    story.upgrade();
    story.expect_order(&["worker 1 draining: replaced", "worker 4 ready"]).expect_never("draining");
    story.after(secs(1));
    story.expect_order(&[
        "worker 2 draining: replaced",
        "worker 3 draining: replaced",
        "generation 2 committed",
    ]);
}

#[test]
fn in_place_all_new_workers_stay_ready_through_the_probation_before_an_old_one_drains() {
    let mut story = Story::with(Policy { probation: secs(10), ..careful(2, None) });
    story.code = Code::InPlace;
    story.upgrade();
    story.expect_order(&["worker 3 ready", "worker 4 ready"]);
    story.after(secs(10)).expect_never("draining");
    assert_eq!((story.ready(1), story.ready(2)), (2, 2));
    story.after(secs(1));
    // The probation is over by then.
    story.expect_order(&[
        "worker 1 draining: replaced",
        "worker 2 draining: replaced",
        "generation 2 committed",
    ]);
    // Its own workers are replaced one by one.
    story.event(Event::Respawn(None));
    story.expect_order(&["worker 5 ready", "worker 3 draining: replaced", "worker 6 ready"]);
}

#[test]
fn elsewhere_it_goes_slot_by_slot_and_the_probation_follows() {
    let mut story = Story::with(Policy { probation: secs(10), ..careful(2, None) });
    story.upgrade();
    story.after(secs(1));
    story.expect_order(&[
        "worker 1 draining: replaced",
        "worker 4 ready",
        "worker 2 draining",
        "on probation",
    ]);
    story.after(secs(10)).expect_order(&["generation 2 committed"]);
}

#[test]
fn what_was_said_in_time_is_heard_before_anybody_is_judged() {
    let mut story = Story::with(policy(2));
    story.release(2, Behaviour::Silent).upgrade();
    let first = story.worker_in(2, 0);
    story.now = story.now + secs(30);
    // Both wait to be heard, and the time of one is over.
    story.event(Event::Heard(Box::new(Event::Said(story.worker_in(1, 1), Word::Watchdog))));
    story.event(Event::Heard(Box::new(Event::Said(first, Word::Ready))));
    story.event(Event::Tick);
    story.expect_order(&["worker 3 ready", "worker 1 draining: replaced"]).expect_never("rolling back");
}

#[test]
fn who_has_overslept_gives_everybody_the_time_once_more() {
    let mut story = Story::with(Policy { watchdog: Some(secs(3)), ..policy(2) });
    story.release(2, Behaviour::Silent).upgrade();
    story.now = story.now + secs(3600);
    story.event(Event::Overslept);
    story.expect_never("watchdog").expect_never("not ready");
    story.after(secs(3));
    story.expect_order(&["worker 1 missed its watchdog", "worker 2 missed its watchdog"]);
    story.after(secs(26)).expect_never("not ready");
    story.after(secs(1)).expect_order(&["worker 3 not ready after 30 s"]);
}

//! What a person at a terminal sees of an upgrade: each slot with its old and its new worker, as they stand now.
//!
//! It is a picture of the status, fetched several times a second on a connection of its own, so that it agrees with
//! `liveswap status` and nothing of it has to be concluded from events.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::connection::{Connection, understood};
use super::output;
use super::table::table;
use crate::wire::control::Command;
use crate::wire::status::{Human, Status, Worker};

/// How often the picture is made anew.
const PAUSE: Duration = Duration::from_millis(250);

/// How many slots are shown; those in which something happens go first.
const SLOTS_MAX: usize = 16;

/// A picture on the terminal, until it is finished.
#[derive(Debug)]
pub struct Progress {
    picture: Arc<Mutex<Picture>>,
    /// Tells the painter the outcome, and by being dropped to come to an end.
    end: mpsc::Sender<String>,
    /// Returns whether the outcome is in the last picture.
    painter: JoinHandle<bool>,
}

impl Progress {
    /// Begins to show a service; `None` where nobody looks, or its manager does not answer.
    pub fn start(service: &str) -> Option<Self> {
        if !output::draws() {
            return None;
        }
        let mut connection = Connection::open(Some(service)).ok()?;
        let before = status(&mut connection)?.generation;
        let picture = Arc::<Mutex<Picture>>::default();
        let canvas = Arc::clone(&picture);
        let (end, ended) = mpsc::channel();
        let painter = thread::spawn(move || {
            let mut end: Option<String> = None;
            while let Some(status) = status(&mut connection) {
                let lines = match &end {
                    None => lines(&status, before),
                    Some(outcome) => last_lines(&status, before, outcome),
                };
                draw(&canvas, None, Some(lines));
                if let Some(outcome) = end {
                    return !outcome.is_empty();
                }
                end = match ended.recv_timeout(PAUSE) {
                    Ok(outcome) => Some(outcome),
                    Err(RecvTimeoutError::Disconnected) => Some(String::new()),
                    Err(RecvTimeoutError::Timeout) => None,
                };
            }
            false
        });
        Some(Self { picture, end, painter })
    }

    /// Prints a line above the picture.
    pub fn say(&self, line: &str) {
        draw(&self.picture, Some(line), None);
    }

    /// Leaves the picture as it is at the end, with the outcome below it, where there is one. Returns whether that is shown.
    pub fn finish(self, outcome: Option<&str>) -> bool {
        let Self { end, painter, .. } = self;
        // Where the painter has gone it shows nothing.
        let _ = outcome.map(|outcome| end.send(outcome.to_owned()));
        drop(end);
        // A bug in it has been told by the panic hook.
        painter.join().unwrap_or(false)
    }
}

fn status(connection: &mut Connection) -> Option<Status> {
    let reply = connection.ask_once(Command::Status).ok()?;
    understood(reply.status?.get()).ok()
}

/// The lines on the terminal.
#[derive(Debug, Default)]
struct Picture {
    lines: Vec<String>,
    /// How many of them there was room for.
    drawn: usize,
}

/// Draws a picture again, with other lines if some are given, and prints `above` it what stays.
fn draw(picture: &Mutex<Picture>, above: Option<&str>, lines: Option<Vec<String>>) {
    let mut picture = picture.lock().unwrap_or_else(PoisonError::into_inner);
    picture.lines = lines.unwrap_or_else(|| std::mem::take(&mut picture.lines));
    picture.drawn = output::redraw(picture.drawn, above, &picture.lines);
}

/// Lays the status out: what goes on, then a line a slot. What is of a generation after `before` is new.
fn lines(status: &Status, before: u64) -> Vec<String> {
    laid_out(&status.summary, status, before, true)
}

/// Lays the status out as it stays on the terminal: without the times that would go on, and with the outcome at the end. The
/// reason of a failure follows it.
fn last_lines(status: &Status, before: u64, outcome: &str) -> Vec<String> {
    let Status { generation, health, .. } = status;
    let strength = health.trouble(*generation).unwrap_or_else(|| match health.full {
        Some(_) => {
            format!("generation {generation}: {} of {} ready", health.ready_of_all, health.wanted_now)
        }
        None => format!("generation {generation}: {} of {} ready", status.ready, status.wanted),
    });
    let mut lines = laid_out(&strength, status, before, false);
    lines.extend(Some(outcome).filter(|outcome| !outcome.is_empty()).map(Into::into));
    lines
}

/// Lays the status out under a heading, with the times that go on or without them.
fn laid_out(heading: &str, status: &Status, before: u64, with_times: bool) -> Vec<String> {
    let mut slots: Vec<u32> = status.workers.iter().map(|worker| worker.slot).collect();
    slots.extend(status.waiting.iter().map(|slot| slot.slot));
    slots.sort_unstable();
    slots.dedup();
    let of = |slot: u32| status.workers.iter().filter(move |worker| worker.slot == slot);
    let is_busy = |slot: &u32| of(*slot).any(|worker| worker.state != "ready");
    // Stable: within the two the order is that of the slots.
    slots.sort_by_cached_key(|slot| !is_busy(slot));
    let more = slots.len().saturating_sub(SLOTS_MAX);
    slots.truncate(SLOTS_MAX);
    slots.sort_unstable();
    let cell = |slot: u32, is_new: bool| {
        let words = of(slot).filter(|worker| (worker.generation > before) == is_new);
        let mut words: Vec<_> = words.map(|worker| in_words(worker, with_times)).collect();
        let waiting =
            status.waiting.iter().filter(|at| at.slot == slot && (at.generation > before) == is_new);
        let starts = |ms| if with_times { format!(" in {}", human(ms)) } else { String::new() };
        words.extend(waiting.map(|at| format!("starts again{}", starts(at.starts_in_ms))));
        words.join(" · ")
    };
    let rows: Vec<_> =
        slots.iter().map(|slot| vec![slot.to_string(), cell(*slot, false), cell(*slot, true)]).collect();
    let mut lines = vec![format!("{}: {heading}", status.service)];
    lines.extend(table(&["SLOT", "OLD", "NEW"], &rows).lines().map(|line| format!("  {line}")));
    if more > 0 {
        lines.push(format!("  and {more} slots more"));
    }
    lines
}

/// A worker in a few words.
fn in_words(worker: &Worker, with_times: bool) -> String {
    let Worker { id, state, .. } = worker;
    let since = worker.state_ms.filter(|ms| with_times && *ms >= 1000);
    let since = since.map_or_else(String::new, |ms| format!(" for {}", human(ms)));
    match state.as_str() {
        "draining" => {
            let left = match worker.connections {
                Some(1) => ", 1 connection left".into(),
                Some(count) => format!(", {count} connections left"),
                None => String::new(),
            };
            let killed = worker.deadline_ms.filter(|_| with_times);
            let killed = killed.map_or_else(String::new, |ms| format!(", killed in {}", human(ms)));
            format!("worker {id} draining{since}{left}{killed}")
        }
        "starting" => format!("worker {id} starting{since}"),
        _ => format!("worker {id} {state}"),
    }
}

/// In whole seconds, rounded up: what is told again and again should not flicker.
fn human(ms: u64) -> String {
    Human(Duration::from_secs(ms.div_ceil(1000))).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::status::{Health, WaitingSlot};

    fn worker(id: u64, generation: u64, slot: u32, state: &str) -> Worker {
        Worker {
            id,
            pid: None,
            generation,
            slot,
            state: state.into(),
            state_ms: Some(2_000),
            age_ms: None,
            memory: None,
            tree_memory: None,
            connections: (state == "draining").then_some(3),
            restarts: 0,
            says: String::new(),
            why: None,
            unseen: None,
            deadline_ms: (state == "draining").then_some(57_400),
        }
    }

    fn picture(workers: Vec<Worker>, waiting: Vec<WaitingSlot>) -> String {
        lines(&status(workers, waiting), 1).join("\n")
    }

    fn status(workers: Vec<Worker>, waiting: Vec<WaitingSlot>) -> Status {
        Status {
            service: "web".into(),
            pid: 1,
            up_ms: 0,
            phase: "upgrading".into(),
            summary: "generation 1: 3 of 3 ready; upgrading to generation 2".into(),
            generation: 1,
            generation_ms: None,
            directory: "/".into(),
            target: None,
            wanted: 3,
            ready: 3,
            upgrading_to: Some(2),
            previous: None,
            old_code: None,
            begun_with: None,
            last_upgrade: None,
            cgroup: None,
            no_cgroup: None,
            generations: Vec::new(),
            connections: None,
            workers,
            waiting,
            sockets: Vec::new(),
            health: Health { full: Some(true), ready_of_all: 3, wanted_now: 3, ..Health::default() },
        }
    }

    #[test]
    fn the_last_picture_ends_with_the_outcome_and_tells_no_time_that_would_go_on() {
        let mut workers = vec![worker(1, 1, 0, "draining"), worker(4, 2, 0, "ready")];
        workers[0].deadline_ms = Some(57_400);
        let status =
            status(workers, vec![WaitingSlot { generation: 1, slot: 2, deaths: 1, starts_in_ms: 1 }]);
        let expected = "\
web: generation 1: 3 of 3 ready
  SLOT  OLD                                    NEW
     0  worker 1 draining, 3 connections left  worker 4 ready
     2  starts again
`web`: upgrade done; generation 2 serves";
        assert_eq!(last_lines(&status, 1, "`web`: upgrade done; generation 2 serves").join("\n"), expected);
    }

    #[test]
    fn each_slot_is_shown_with_its_old_and_its_new_worker() {
        let workers = vec![
            worker(1, 1, 0, "draining"),
            worker(4, 2, 0, "ready"),
            worker(2, 1, 1, "ready"),
            worker(5, 2, 1, "starting"),
        ];
        let waiting = vec![WaitingSlot { generation: 1, slot: 2, deaths: 1, starts_in_ms: 1_400 }];
        let expected = "\
web: generation 1: 3 of 3 ready; upgrading to generation 2
  SLOT  OLD                                                            NEW
     0  worker 1 draining for 2 s, 3 connections left, killed in 58 s  worker 4 ready
     1  worker 2 ready                                                 worker 5 starting for 2 s
     2  starts again in 2 s";
        assert_eq!(picture(workers, waiting), expected);
    }

    #[test]
    fn of_many_slots_the_busy_ones_are_shown() {
        let mut workers: Vec<_> = (0..40).map(|slot| worker(u64::from(slot), 1, slot, "ready")).collect();
        workers.push(worker(41, 2, 39, "starting"));
        let picture = picture(workers, Vec::new());
        assert!(
            picture.contains("worker 41 starting") && picture.ends_with("and 24 slots more"),
            "{picture}"
        );
        assert_eq!(picture.lines().count(), SLOTS_MAX + 3);
    }
}

//! The manager's log as a source of events, and the one place that knows its wording.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that come in while others wait for them.
#[derive(Clone, Default)]
pub struct Log {
    shared: Arc<(Mutex<Lines>, Condvar)>,
}

#[derive(Default)]
struct Lines {
    texts: Vec<String>,
    /// How many streams may still bring some.
    streams: usize,
    closed: bool,
}

impl Log {
    /// Collects every line of `stream` until its end.
    pub fn collect(stream: impl Read + Send + 'static) -> Self {
        let log = Self::default();
        log.add(stream);
        log
    }

    /// Collects every line of another stream as well.
    pub fn add(&self, stream: impl Read + Send + 'static) {
        let collecting = self.clone();
        let mut lines = self.lock();
        lines.streams += 1;
        lines.closed = false;
        drop(lines);
        thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { break };
                collecting.push(String::from_utf8_lossy(&line).into_owned());
            }
            let mut lines = collecting.lock();
            lines.streams -= 1;
            lines.closed = lines.streams == 0;
            drop(lines);
            collecting.shared.1.notify_all();
        });
    }

    /// Adds a line.
    pub fn push(&self, line: String) {
        self.lock().texts.push(line);
        self.shared.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many lines there are: the place from which a later wait looks.
    pub fn len(&self) -> usize {
        self.lock().texts.len()
    }

    /// Returns the lines from a place on.
    pub fn since(&self, place: usize) -> Vec<String> {
        self.lock().texts[place..].to_vec()
    }

    /// Waits for a line at or after `place` of which `found` makes something; returns that and the place after it.
    /// `None` at the deadline, or where no line can follow.
    pub fn wait<T>(
        &self,
        place: usize,
        patience: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Option<(T, usize)> {
        let deadline = Instant::now() + patience;
        let mut next = place;
        let mut lines = self.lock();
        loop {
            while let Some(line) = lines.texts.get(next) {
                next += 1;
                if let Some(value) = found(line) {
                    return Some((value, next));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.closed {
                return None;
            }
            lines = self.shared.1.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How an upgrade ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Committed,
    RolledBack,
    Refused,
    Superseded,
}

/// Reads `generation 2 rolled back: …` out of a line: the generation, the verdict and the words after it.
pub fn verdict(line: &str) -> Option<(u64, Verdict, String)> {
    let (generation, rest) = after_number(line, "generation ")?;
    let words = [
        (" committed", Verdict::Committed),
        (" rolled back", Verdict::RolledBack),
        (" refused", Verdict::Refused),
        (" superseded", Verdict::Superseded),
    ];
    let (text, verdict) = words.into_iter().find(|(text, _)| rest.starts_with(text))?;
    Some((generation, verdict, rest[text.len()..].trim_start_matches(':').trim().to_owned()))
}

/// What happened to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Started,
    Ready,
    Draining,
    /// It is no more, for whatever reason.
    Gone,
}

/// A line of the log about one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    pub worker: u64,
    pub generation: u64,
    pub slot: u64,
    pub pid: i32,
    pub step: Step,
    /// What the line says of the worker.
    pub words: String,
}

/// Reads `worker 5 (generation 2, slot 0, pid 1234) ready` out of a line.
pub fn transition(line: &str) -> Option<Transition> {
    let (worker, rest) = after_number(line, "worker ")?;
    let rest = rest.strip_prefix(" (")?;
    let (generation, _) = after_number(rest, "generation ")?;
    let (slot, _) = after_number(rest, "slot ")?;
    let (pid, rest) = after_number(rest, "pid ")?;
    let words = rest.strip_prefix(") ")?;
    let steps = [
        ("started", Step::Started),
        ("ready", Step::Ready),
        ("draining", Step::Draining),
        ("gone", Step::Gone),
        ("exited", Step::Gone),
        ("was killed", Step::Gone),
        ("could not be started", Step::Gone),
    ];
    let (_, step) = steps.into_iter().find(|(text, _)| words.starts_with(text))?;
    Some(Transition {
        worker,
        generation,
        slot,
        pid: i32::try_from(pid).ok()?,
        step,
        words: words.to_owned(),
    })
}

/// Finds the first `word` that a number follows; returns the number and what comes after it.
fn after_number<'a>(text: &'a str, word: &str) -> Option<(u64, &'a str)> {
    text.match_indices(word).find_map(|(place, _)| {
        let rest = &text[place + word.len()..];
        let end = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
        Some((rest[..end].parse().ok()?, &rest[end..]))
    })
}

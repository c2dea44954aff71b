//! What the demo has to tell: its events, and the summary at the end. With `--json` each is one line.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use super::tally::Tally;

/// Something worth a line.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The first release serves.
    Serving { release: u32, listen: SocketAddr, status: &'a str, took_ms: Millis },
    /// The clients are at work.
    Load { one_request_each: u32, keep_alive: u32 },
    /// The service file now names this release, and the manager is about to be told.
    Upgrading { release: u32, never_ready: bool },
    /// This release serves.
    Swapped { release: u32, status: &'a str, took_ms: Millis },
    /// This release failed, and the one before it serves on.
    RolledBack { release: u32, reason: &'a str, took_ms: Millis },
    /// The release before the failed one answered that many requests since.
    StillServing { release: u32, answers: u64 },
    /// The manager drained its workers and exited with status 0.
    Stopped { took_ms: Millis },
    /// How the load fares.
    Progress(Progress),
    /// A line of the manager's log.
    Log { line: &'a str },
    /// The end.
    Summary(&'a Summary),
}

/// How the load fares.
#[derive(Debug, Serialize)]
pub struct Progress {
    /// Requests that have ended.
    pub requests: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// The longest time that an answer took.
    pub slowest_ms: Millis,
}

impl From<&Tally> for Progress {
    fn from(tally: &Tally) -> Self {
        Self {
            requests: tally.requests(),
            failed: tally.failures(),
            slowest_ms: tally.times().slowest().into(),
        }
    }
}

/// What a person wants to see at the end; what did not come to pass is `None`.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Whether everything went as promised.
    pub ok: bool,
    /// Requests sent.
    pub requests: u64,
    /// Those without the one right answer.
    pub failed: u64,
    /// Why they failed, and how many for each reason.
    pub failures: BTreeMap<String, u64>,
    /// How many requests each release answered.
    pub answered_by_release: BTreeMap<u32, u64>,
    /// Half of the answers took no longer.
    pub median_ms: Millis,
    /// 99 of 100 answers took no longer.
    pub p99_ms: Millis,
    /// The longest time that an answer took.
    pub slowest_ms: Millis,
    /// From SIGHUP until release 2 served.
    pub swap_ms: Option<Millis>,
    /// Why release 3 was rolled back, in the manager's words.
    pub rolled_back: Option<String>,
    /// Why the story did not end well.
    pub error: Option<String>,
    /// The last lines of the manager's log, if it did not.
    pub log: Vec<String>,
}

impl Summary {
    /// Takes over what came of the requests.
    pub fn count(&mut self, tally: &Tally) {
        self.requests = tally.requests();
        self.failed = tally.failures();
        self.failures.clone_from(tally.reasons());
        self.answered_by_release.clone_from(tally.by_release());
        self.median_ms = tally.times().within(50).into();
        self.p99_ms = tally.times().within(99).into();
        self.slowest_ms = tally.times().slowest().into();
    }
}

/// A time in milliseconds, for the machine as a number, for the person with a unit that suits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Millis(f64);

impl From<Duration> for Millis {
    /// Rounds to microseconds.
    fn from(duration: Duration) -> Self {
        Self((duration.as_secs_f64() * 1e6).round() / 1e3)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms < 10.0 => write!(f, "{ms:.1} ms"),
            ms if ms < 1000.0 => write!(f, "{ms:.0} ms"),
            ms => write!(f, "{:.2} s", ms / 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_for_people_and_for_machines() {
        let millis = |micros| Millis::from(Duration::from_micros(micros));
        assert_eq!(millis(432).to_string(), "0.4 ms");
        assert_eq!(millis(38_400).to_string(), "38 ms");
        assert_eq!(millis(2_012_000).to_string(), "2.01 s");
        assert_eq!(serde_json::to_string(&millis(38_400)).unwrap(), "38.4");
    }

    #[test]
    fn an_event_is_one_object_that_names_itself() {
        let event = Event::Progress(Progress { requests: 7, failed: 0, slowest_ms: Millis(1.5) });
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(text, r#"{"event":"progress","requests":7,"failed":0,"slowest_ms":1.5}"#);
        let text = serde_json::to_string(&Event::Summary(&Summary::default())).unwrap();
        assert!(text.starts_with(r#"{"event":"summary","ok":false,"requests":0,"#), "{text}");
    }
}

//! How the demo is shown: a live line and colour on a terminal, plain lines in a pipe, or one JSON object a line.
//!
//! A reader that went away is no reason to fail: the story has an exit status of its own, so errors of writing are
//! passed over, and nothing here panics.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use super::event::{Event, Progress, Summary};
use super::log::Log;
use crate::wire::printable::{printable, printable_json, printable_lines};

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// With a last line that is drawn anew.
    Terminal { colour: bool },
    /// Lines that stay.
    Plain,
    /// Objects.
    Json,
}

/// The demo's face.
pub struct Show<W> {
    form: Form,
    out: RefCell<W>,
    /// What is going on, for the live line.
    doing: RefCell<String>,
    /// Whether the cursor stands behind a live line.
    live: Cell<bool>,
    /// The manager's log, if it is to be shown.
    log: RefCell<Option<Log>>,
}

/// The ways to stress a piece of text (ECMA-48, "select graphic rendition").
#[derive(Clone, Copy)]
enum Style {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
}

impl Show<io::Stdout> {
    /// Chooses the form by what the standard output is; a terminal is left uncoloured at the wish of `NO_COLOR`.
    pub fn on_stdout(json: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        let form = match json {
            true => Form::Json,
            false if io::stdout().is_terminal() && !dumb => {
                Form::Terminal { colour: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
            }
            false => Form::Plain,
        };
        Self::new(form, io::stdout())
    }
}

impl<W: Write> Show<W> {
    fn new(form: Form, out: W) -> Self {
        Self {
            form,
            out: RefCell::new(out),
            doing: RefCell::default(),
            live: Cell::new(false),
            log: RefCell::default(),
        }
    }

    /// Shows the lines of `log`, too, each before the next event.
    pub fn follow(&self, log: Log) {
        self.log.replace(Some(log));
    }

    /// Shows the lines that have come to the log.
    pub fn tell_log(&self) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            while let Some(line) = log.next_line() {
                self.show(&Event::Log { line: &line });
            }
        }
    }

    /// Returns how many moments, of ten a second, pass between two [`Event::Progress`].
    pub fn moments_per_progress(&self) -> u32 {
        match self.form {
            Form::Terminal { .. } => 1,
            Form::Plain | Form::Json => 10,
        }
    }

    /// Shows one event.
    pub fn tell(&self, event: &Event<'_>) {
        self.tell_log();
        self.show(event);
    }

    fn show(&self, event: &Event<'_>) {
        if let Some(doing) = doing_after(event) {
            self.doing.replace(doing);
        }
        let text = match (self.form, event) {
            (Form::Json, event) => match serde_json::to_string(event) {
                Ok(object) => printable_json(&object).into_owned() + "\n",
                Err(error) => format!("{{\"event\":\"error\",\"error\":\"{error}\"}}\n"),
            },
            (Form::Terminal { .. }, Event::Progress(progress)) => {
                let live = format!("\r\x1b[2K   ...  {} ({})", self.doing.borrow(), load_line(progress));
                self.live.set(true);
                self.write(&live);
                return;
            }
            (Form::Terminal { .. } | Form::Plain, event) => printable_lines(&self.lines(event)),
        };
        let clear = if self.live.take() { "\r\x1b[2K" } else { "" };
        self.write(&format!("{clear}{text}"));
    }

    fn write(&self, text: &str) {
        let mut out = self.out.borrow_mut();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// The lines that a person reads.
    fn lines(&self, event: &Event<'_>) -> String {
        let ok = self.styled(Style::Green, "ok");
        match event {
            Event::Serving { release, listen, status, took_ms } => {
                format!("    {ok}  release {release} serves at http://{listen}/ after {took_ms} ({status})\n")
            }
            Event::Load { one_request_each, keep_alive } => format!(
                "    {ok}  load: {one_request_each} clients with a new connection for each request, \
                 {keep_alive} over keep-alive\n"
            ),
            Event::Upgrading { release, never_ready } => {
                let which = if *never_ready { ", which never becomes ready" } else { "" };
                format!("   ...  SIGHUP: upgrade to release {release}{which}\n")
            }
            Event::Swapped { release, status, took_ms } => {
                format!("    {ok}  release {release} took over in {took_ms} ({status})\n")
            }
            Event::RolledBack { release, reason, took_ms } => {
                format!(
                    "    {ok}  release {release} was rolled back after {took_ms}\n        {}\n",
                    printable(reason)
                )
            }
            Event::StillServing { release, answers } => {
                format!("    {ok}  release {release} still serves: {answers} answers since\n")
            }
            Event::Stopped { took_ms } => {
                format!(
                    "    {ok}  SIGTERM: the manager drained its workers in {took_ms} and exited with status 0\n"
                )
            }
            Event::Progress(progress) => format!("   ...  {}\n", load_line(progress)),
            Event::Log { line } => format!("        {}\n", self.styled(Style::Dim, &printable(line))),
            Event::Summary(summary) => self.summary(summary),
        }
    }

    fn summary(&self, summary: &Summary) -> String {
        if summary.requests == 0 {
            return String::new(); // the error says it all
        }
        let mut text = String::new();
        let mut row = |name: &str, value: &str| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {name:<15} {value}");
        };
        let releases = summary.answered_by_release.iter();
        let releases: Vec<_> =
            releases.map(|(release, count)| format!("release {release}: {count}")).collect();
        row("requests sent", &format!("{} ({})", summary.requests, releases.join(", ")));
        let failed = match summary.failed {
            0 => self.styled(Style::Green, "0"),
            failed => self.styled(Style::Red, &failed.to_string()),
        };
        row("failed", &failed);
        for (reason, count) in &summary.failures {
            row("", &format!("{count} x {reason}"));
        }
        let (median, p99) = (summary.median_ms, summary.p99_ms);
        row("slowest", &format!("{} (half within {median}, 99 % within {p99})", summary.slowest_ms));
        if let Some(took) = summary.swap_ms {
            row("swap", &format!("{took} from SIGHUP until release 2 served"));
        }
        if let Some(reason) = &summary.rolled_back {
            row("bad release", reason);
        }
        if summary.ok {
            let next = "Next: put your own service under it: liveswap run web.toml (docs/guide.md)";
            let _ = writeln!(text, "\n{}", self.styled(Style::Bold, next));
        }
        format!("\n{text}")
    }

    fn styled(&self, style: Style, text: &str) -> String {
        match self.form {
            Form::Terminal { colour: true } => format!("\x1b[{}m{text}\x1b[0m", style as u8),
            Form::Terminal { colour: false } | Form::Plain | Form::Json => text.to_owned(),
        }
    }
}

/// The load in half a line.
fn load_line(progress: &Progress) -> String {
    let Progress { requests, failed, slowest_ms } = progress;
    format!("{requests} requests, {failed} failed, slowest {slowest_ms}")
}

/// What goes on after `event`, if that changes it.
fn doing_after(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Load { .. } => Some("release 1 serves".to_owned()),
        Event::Upgrading { release, .. } => Some(format!("release {release} starts")),
        Event::Swapped { release, .. } | Event::StillServing { release, .. } => {
            Some(format!("release {release} serves"))
        }
        Event::RolledBack { release, .. } => Some(format!("release {} serves on", release - 1)),
        Event::Serving { .. }
        | Event::Stopped { .. }
        | Event::Progress(_)
        | Event::Log { .. }
        | Event::Summary(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Millis;
    use super::*;

    fn shown(form: Form, events: &[Event<'_>]) -> String {
        let show = Show::new(form, Vec::new());
        for event in events {
            show.tell(event);
        }
        String::from_utf8(show.out.into_inner()).unwrap()
    }

    fn millis(ms: u64) -> Millis {
        std::time::Duration::from_millis(ms).into()
    }

    fn progress() -> Event<'static> {
        Event::Progress(Progress { requests: 70, failed: 0, slowest_ms: millis(4) })
    }

    fn rolled_back() -> Event<'static> {
        Event::RolledBack { release: 3, reason: "worker 9 not ready after 2 s", took_ms: millis(2010) }
    }

    #[test]
    fn a_pipe_gets_plain_lines() {
        assert_eq!(
            shown(Form::Plain, &[progress(), rolled_back()]),
            "   ...  70 requests, 0 failed, slowest 4.0 ms\n    \
             ok  release 3 was rolled back after 2.01 s\n        \
             worker 9 not ready after 2 s\n"
        );
    }

    #[test]
    fn a_terminal_gets_a_live_line_that_gives_way_to_the_next_event() {
        let upgrading = Event::Upgrading { release: 3, never_ready: true };
        assert_eq!(
            shown(Form::Terminal { colour: true }, &[upgrading, progress(), rolled_back()]),
            "   ...  SIGHUP: upgrade to release 3, which never becomes ready\n\
             \r\x1b[2K   ...  release 3 starts (70 requests, 0 failed, slowest 4.0 ms)\
             \r\x1b[2K    \x1b[32mok\x1b[0m  release 3 was rolled back after 2.01 s\n        \
             worker 9 not ready after 2 s\n"
        );
    }

    #[test]
    fn the_summary_tells_what_a_person_wants_to_know() {
        let summary = Summary {
            ok: true,
            requests: 500,
            answered_by_release: [(1, 200), (2, 300)].into(),
            median_ms: millis(1),
            p99_ms: millis(5),
            slowest_ms: millis(12),
            swap_ms: Some(millis(38)),
            rolled_back: Some("worker 9 not ready after 2 s".to_owned()),
            ..Summary::default()
        };
        assert_eq!(
            shown(Form::Plain, &[Event::Summary(&summary)]),
            "
  requests sent   500 (release 1: 200, release 2: 300)
  failed          0
  slowest         12 ms (half within 1.0 ms, 99 % within 5.0 ms)
  swap            38 ms from SIGHUP until release 2 served
  bad release     worker 9 not ready after 2 s

Next: put your own service under it: liveswap run web.toml (docs/guide.md)
"
        );
    }

    #[test]
    fn failures_are_shown_with_their_reasons_and_without_a_next_step() {
        let summary = Summary {
            requests: 3,
            failed: 2,
            failures: [("the answer was cut off".to_owned(), 2)].into(),
            answered_by_release: [(1, 1)].into(),
            ..Summary::default()
        };
        let text = shown(Form::Plain, &[Event::Summary(&summary)]);
        assert!(
            text.contains("  failed          2\n                  2 x the answer was cut off\n"),
            "{text}"
        );
        assert!(!text.contains("Next"), "{text}");
    }
}

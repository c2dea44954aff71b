//! The log: one line a transition, in the form that its reader wants.
//!
//! What a line quotes may come from anybody: the status of a worker, a path, an error. So each event is one line in every
//! format, whatever is in it: nothing ends a line or steers a terminal but what stands here.

use std::fmt;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, stderr};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::init::is_looked_after;
use super::outlet::LogWriter;
use super::streams::{JOURNAL_VARIABLE, journal_behind};
use crate::core::printable::{Escaping, printable_json};
use crate::core::spec::Output;
use crate::sys::journal_stream::identity;
use crate::sys::output::Writer;

/// How a log line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For whoever reads standard error: a person at a terminal, the journal, or a file.
    Auto,
    /// Colours where they are wanted, no times.
    Human,
    /// Full times, no colours.
    Plain,
    /// Priorities as sd-daemon(3) has them and no times, which the journal keeps itself.
    Journal,
    /// An object a line.
    Json,
}

/// Sends the log to standard error from now on.
pub fn init(format: LogFormat, level: Level) {
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(|| LogWriter);
    match format.resolve() {
        LogFormat::Json => {
            builder.json().flatten_event(true).with_target(false).with_writer(|| JsonWriter).init();
        }
        style => builder.event_format(Line(style)).init(),
    }
}

/// Writes to standard error what it takes at once, and loses the rest. It takes no lock: a panic may hold any.
pub fn last_words(text: &[u8]) {
    // Where no descriptor is left, the exit status tells.
    let _ = Writer::to(stderr()).and_then(|to| to.write_some(text));
}

/// Whether standard error is a terminal that shows colours, and whoever sits there has not asked for none (`NO_COLOR`).
pub fn wants_color() -> bool {
    stderr().is_terminal() && may_color()
}

/// Whether a terminal, where there is one, is to be shown colours.
pub fn may_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

impl LogFormat {
    fn resolve(self) -> Self {
        match self {
            Self::Auto if stderr().is_terminal() => Self::Human,
            Self::Auto if is_journal() => Self::Journal,
            Self::Auto => Self::Plain,
            given => given,
        }
    }
}

/// Returns where workers write under `output = "auto"`. The journal tells one worker's lines from another's by itself; a person at a terminal
/// does not; and in a container the lines stay as they are, for whoever parses them. Elsewhere nobody may start a manager again that was
/// killed, and a pipe that is not read blocks its writers.
pub(super) fn usual_output() -> Output {
    if is_journal() {
        Output::Inherit
    } else if stderr().is_terminal() {
        Output::Prefix
    } else if is_looked_after() {
        Output::Copy
    } else {
        Output::Inherit
    }
}

/// Whether standard error is a stream to the journal: the one that systemd connected (systemd.exec(5), `$JOURNAL_STREAM`), or
/// one in its place.
fn is_journal() -> bool {
    let is_named = |named| identity(stderr()).is_ok_and(|stream| stream == named);
    std::env::var(JOURNAL_VARIABLE).is_ok_and(is_named) || journal_behind(stderr()).is_some()
}

/// The message alone, led by what the format wants; the fields are for JSON, the message says the same in words.
struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut to: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        match self.0 {
            LogFormat::Human if wants_color() => write!(to, "{} ", color(level))?,
            LogFormat::Human => write!(to, "{level:<5} ")?,
            LogFormat::Journal => write!(to, "<{}>", priority(level))?,
            LogFormat::Auto | LogFormat::Plain | LogFormat::Json => {
                SystemTime.format_time(&mut to)?;
                write!(to, " {level:<5} ")?;
            }
        }
        let mut message = Message(&mut to, Ok(()));
        event.record(&mut message);
        message.1?;
        writeln!(to)
    }
}

/// Writes lines of JSON, with nothing in them that a terminal obeys.
struct JsonWriter;

impl io::Write for JsonWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut LogWriter, printable_json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text of an event.
struct Message<'a, 'w>(&'a mut format::Writer<'w>, fmt::Result);

impl Visit for Message<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.1 = write!(Escaping(&mut *self.0), "{value:?}");
        }
    }
}

/// A mark in the colour of the level.
fn color(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\x1b[31m●\x1b[0m",
        Level::WARN => "\x1b[33m●\x1b[0m",
        Level::INFO => "\x1b[32m●\x1b[0m",
        _ => "\x1b[2m●\x1b[0m",
    }
}

/// The priority of syslog(3) by which the journal files a line (sd-daemon(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(style: LogFormat, message: &str) -> String {
        let kept = Kept::default();
        let to = kept.clone();
        let builder = tracing_subscriber::fmt().with_writer(move || to.clone());
        let subscriber = builder.event_format(Line(style)).finish();
        tracing::subscriber::with_default(subscriber, || tracing::error!("worker 1: {message}"));
        let bytes = kept.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn nothing_that_is_quoted_makes_a_line_of_its_own_or_steers_a_terminal() {
        let hostile = "a\n<0>forged\r\x1b[2J\u{9b}\u{202e}";
        for style in [LogFormat::Human, LogFormat::Plain, LogFormat::Journal] {
            let line = logged(style, hostile);
            let text = r"worker 1: a\n<0>forged\r\x1b[2J\x9b\u{202e}";
            assert!(line.ends_with(&format!("{text}\n")), "{line:?}");
            assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        }
        assert!(logged(LogFormat::Journal, "x").starts_with("<3>"));
    }
}

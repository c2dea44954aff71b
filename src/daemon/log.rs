//! The log: one line a transition, in the form that its reader wants.

use std::fmt;
use std::io::{IsTerminal, stderr};

use nix::sys::stat::fstat;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::outlet::LogWriter;

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
        LogFormat::Json => builder.json().flatten_event(true).with_target(false).init(),
        style => builder.event_format(Line(style)).init(),
    }
}

/// Whether standard error is a terminal that shows colours, and whoever sits there has not asked for none (`NO_COLOR`).
pub fn wants_color() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    stderr().is_terminal()
        && !is_set("NO_COLOR")
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
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

/// Whether standard error is the stream that systemd connected to the journal (systemd.exec(5), `$JOURNAL_STREAM`).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The message alone, led by what the format wants; the fields are for JSON, the message says the same in words.
struct Line(LogFormat);

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
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

struct Message<'a, 'w>(&'a mut Writer<'w>, fmt::Result);

impl Visit for Message<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.1 = write!(self.0, "{value:?}");
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

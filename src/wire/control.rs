//! The protocol of the control socket: a JSON object a line, in both directions (docs/control.md).
//!
//! A request is answered by exactly one [`Reply`], which echoes its `cmd` and, where it has one, its `id`. After `events`
//! there are also lines with `event` instead of `cmd`. Unknown fields are ignored by either side.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

pub use super::event::EventLine;
pub use super::message::{MAX_MESSAGE, Message};
pub use super::secret::Secret;
use super::status::Health;
pub use super::target::{MAX_PATH, NamedTarget};
pub use crate::core::Scale;
use crate::core::notice::Outcome;
use crate::core::printable::printable_json;

/// The version of the protocol: it grows when something in it no longer means what it meant.
pub const VERSION: u32 = 1;

/// The longest line of a client, in bytes, the newline not counted.
pub const MAX_LINE: usize = MAX_MESSAGE + 4096;

/// The longest line of a client that has not shown the token, in bytes; no more is read of it.
pub const MAX_FIRST_LINE: usize = 4 * 1024;

/// The longest line that a client reads, in bytes; more is no answer of a manager.
pub const MAX_ANSWER: usize = 1 << 20;

/// The `value` of a reply where all went well.
pub const OK: &str = "OK";

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the client calls it: echoed.
    pub id: Option<Value>,
    /// What it is.
    pub command: Command,
    /// Whether the answer comes at the end; otherwise as soon as it is begun.
    pub wait: bool,
    /// What shows that the client may speak, where it must show that.
    pub token: Option<Secret>,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Reads the service file again, and changes to what it defines.
    Upgrade {
        /// Another target than the one that serves.
        target: Option<NamedTarget>,
    },
    /// Goes back to the generation before.
    Rollback,
    /// Fresh workers of the same generation; at once: the present ones are killed.
    Respawn {
        /// Without a drain.
        now: bool,
    },
    /// The end; at once: without a drain.
    Stop {
        /// Without a drain.
        now: bool,
    },
    /// A respawn at once, by its short name.
    Kill,
    /// The end at once, by its short name.
    Die,
    /// More or fewer workers.
    Scale(Scale),
    /// A message for every worker.
    Message(Message),
    /// How things stand.
    Status,
    /// What happens from now on.
    Events,
    /// The manager replaces itself by the program now at its path.
    Reexec,
    /// Whether anybody is there, and who.
    Ping,
}

/// A line that is no request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRequest {
    /// What the client calls it, as far as that could be read.
    pub id: Option<Value>,
    /// The `cmd`, as far as it could be read.
    pub cmd: String,
    /// What is wrong.
    pub reason: String,
}

impl Command {
    /// Its name on the wire and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Upgrade { .. } => "upgrade",
            Self::Rollback => "rollback",
            Self::Respawn { .. } => "respawn",
            Self::Stop { .. } => "stop",
            Self::Kill => "kill",
            Self::Die => "die",
            Self::Scale(_) => "scale",
            Self::Message(_) => "message",
            Self::Status => "status",
            Self::Events => "events",
            Self::Reexec => "reexec",
            Self::Ping => "ping",
        }
    }

    /// Reads the fields of a `line`.
    fn read(cmd: &str, fields: &Map<String, Value>, line: &[u8]) -> Result<Self, String> {
        let value = fields.get("value").unwrap_or(&Value::Null);
        let now = || flag(fields, "now", false);
        Ok(match cmd {
            "upgrade" => Self::Upgrade { target: NamedTarget::read(value, fields.get("path"))? },
            "rollback" => Self::Rollback,
            "respawn" => Self::Respawn { now: now()? },
            "stop" => Self::Stop { now: now()? },
            "kill" => Self::Kill,
            "die" => Self::Die,
            "scale" => Self::Scale(scale(value)?),
            "message" => Self::Message(Message::of_request(line)?),
            "status" => Self::Status,
            "events" => Self::Events,
            "reexec" => Self::Reexec,
            "ping" | "version" => Self::Ping,
            _ => return Err(format!("unknown cmd `{}`", crate::core::word::one_line(cmd))),
        })
    }
}

impl Request {
    /// Makes a request that waits for its end.
    pub fn new(command: Command) -> Self {
        Self { id: None, command, wait: true, token: None }
    }

    /// Reads a line, without its newline.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(line: &[u8]) -> Result<Self, BadRequest> {
        let bad = |reason: String| BadRequest { id: None, cmd: String::new(), reason };
        let fields: Map<String, Value> = serde_json::from_slice(line).map_err(|error| {
            bad(format!("a line must be a JSON object like {{\"cmd\":\"status\"}}: {error}"))
        })?;
        let id = fields.get("id").filter(|id| id.is_string() || id.is_number()).cloned();
        let Some(cmd) = fields.get("cmd").and_then(Value::as_str) else {
            return Err(BadRequest { id, ..bad("the object must have a text `cmd`".into()) });
        };
        let read = || {
            let (command, wait) = (Command::read(cmd, &fields, line)?, flag(&fields, "wait", true)?);
            Ok((command, wait, token(&fields)?))
        };
        match read() {
            Ok((command, wait, token)) => Ok(Self { id, command, wait, token }),
            Err(reason) => Err(BadRequest { id, cmd: cmd.to_owned(), reason }),
        }
    }

    /// Writes the line, without its newline.
    pub fn to_line(&self) -> String {
        let mut fields = Map::from_iter([("cmd".to_owned(), Value::from(self.command.name()))]);
        let mut set = |name: &str, value: Value| drop(fields.insert(name.to_owned(), value));
        match &self.command {
            Command::Respawn { now } | Command::Stop { now } if *now => set("now", true.into()),
            Command::Scale(Scale::To(count)) => set("value", (*count).into()),
            Command::Scale(Scale::By(by)) => set("value", format!("{by:+}").into()),
            Command::Upgrade { target: Some(NamedTarget { typed, path }) } => {
                set("value", typed.as_str().into());
                if let Some(path) = path {
                    set("path", path.as_str().into());
                }
            }
            Command::Upgrade { target: None }
            | Command::Message(_)
            | Command::Rollback
            | Command::Respawn { .. }
            | Command::Stop { .. }
            | Command::Kill
            | Command::Die
            | Command::Status
            | Command::Events
            | Command::Reexec
            | Command::Ping => {}
        }
        if !self.wait {
            set("wait", false.into());
        }
        if let Some(id) = &self.id {
            set("id", id.clone());
        }
        if let Some(token) = &self.token {
            set("token", token.expose().into());
        }
        let line = Value::Object(fields).to_string();
        match (&self.command, line.strip_suffix('}')) {
            // As it was written: a number may have more digits than a `Value` holds.
            (Command::Message(message), Some(line)) => format!("{line},\"value\":{}}}", message.json()),
            _ => line,
        }
    }
}

fn flag(fields: &Map<String, Value>, name: &str, default: bool) -> Result<bool, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(Value::Bool(value)) => Ok(*value),
        Some(_) => Err(format!("`{name}` must be true or false")),
    }
}

fn token(fields: &Map<String, Value>) -> Result<Option<Secret>, String> {
    match fields.get("token") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(Secret::from(text.as_str()))),
        Some(_) => Err("`token` must be a text".into()),
    }
}

fn scale(value: &Value) -> Result<Scale, String> {
    let read = match value {
        Value::Number(number) => number.as_u64().and_then(|count| count.try_into().ok()).map(Scale::To),
        Value::String(text) => parse_scale(text),
        _ => None,
    };
    read.ok_or_else(|| "`value` must be a number of workers, or like \"+1\" or \"-1\"".into())
}

/// Reads `4`, `+1` or `-1`.
#[must_use]
pub fn parse_scale(text: &str) -> Option<Scale> {
    match text.as_bytes().first()? {
        b'+' | b'-' => text.parse().ok().map(Scale::By),
        _ => text.parse().ok().map(Scale::To),
    }
}

/// The answer to a request.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Reply {
    /// What the client calls its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
    /// The `cmd` of the request.
    pub cmd: String,
    /// [`OK`], or why not.
    pub value: String,
    /// Whether all went well.
    pub ok: bool,
    /// How it ended: `accepted` where nobody waited, or the word of the core's outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why it did not go well, without the outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The generation that serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How the service stands, in the answer to an upgrade and a rollback, where it is not well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// What is wrong with the service file, as lines that are laid out for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Vec<String>>,
    /// The worker whose loss made an upgrade fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
    /// What has become of the code that served before the upgrade: `pinned`, `replaced` or `same folder`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old_code: Option<String>,
    /// What to know before one relies on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// [`VERSION`], in the answers to `ping`, `status` and `events`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The manager's own version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The service's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The manager's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Where the manager's control server listens, in the answers to `ping`, `status` and `events`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<SocketAddr>,
    /// Where the manager's control server does not listen, as the application has that address; in the same answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp_closed: Option<SocketAddr>,
    /// The folder in which the workers of the serving generation start, links resolved; in the same answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// How things stand: a `wire::status::Status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<RawValue>>,
}

/// What is known of a worker whose loss made an upgrade fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Its number.
    pub worker: u64,
    /// Its place.
    pub slot: u32,
    /// Its process, which is no more.
    pub pid: i32,
    /// The last lines that it wrote to its standard error, where they came through the manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Vec<String>>,
}

impl Reply {
    /// Says that all went well.
    pub fn ok(cmd: impl Into<String>) -> Self {
        Self { cmd: cmd.into(), value: OK.into(), ok: true, ..Self::default() }
    }

    /// Says why not.
    pub fn failed(cmd: impl Into<String>, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        let outcome = Some("refused".into());
        Self { cmd: cmd.into(), value: reason.clone(), reason: Some(reason), outcome, ..Self::default() }
    }

    /// Says how it ended.
    pub fn of(cmd: impl Into<String>, outcome: &Outcome) -> Self {
        let ok = outcome.reason().is_none();
        Self {
            cmd: cmd.into(),
            value: match outcome {
                Outcome::Committed => OK.into(),
                // As all that is refused: why, and no more.
                Outcome::Refused(reason) => reason.clone(),
                Outcome::RolledBack(_) | Outcome::Superseded(_) => outcome.to_string(),
            },
            ok,
            outcome: Some(outcome.word().into()),
            reason: outcome.reason().map(Into::into),
            ..Self::default()
        }
    }
}

/// A line from the manager.
#[derive(Debug)]
pub enum Line {
    /// Something that happened.
    Event(EventLine),
    /// An answer.
    Reply(Box<Reply>),
}

impl Line {
    /// Reads a line, without its newline.
    ///
    /// # Errors
    ///
    /// It is neither.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Kind {
            event: Option<serde::de::IgnoredAny>,
        }
        let kind: Kind = serde_json::from_str(line)?;
        Ok(match kind.event {
            Some(_) => Self::Event(serde_json::from_str(line)?),
            None => Self::Reply(serde_json::from_str(line)?),
        })
    }
}

/// Writes a line, newline included, that a terminal can be shown.
pub fn line(value: &impl Serialize) -> Vec<u8> {
    // Only maps with keys that are no text, and types that refuse by themselves, cannot be written.
    let line = serde_json::to_string(value).unwrap_or_default();
    (printable_json(&line).into_owned() + "\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::ids::{GenerationId, SlotId, WorkerId};
    use crate::core::notice::{Notice, WorkerNotice};

    fn reason(line: &str) -> String {
        Request::parse(line.as_bytes()).unwrap_err().reason
    }

    #[test]
    fn a_request_survives_the_wire() {
        let commands = [
            Command::Upgrade { target: None },
            Command::Upgrade { target: Some(NamedTarget { typed: "/srv/2 π.js".into(), path: None }) },
            Command::Upgrade {
                target: Some(NamedTarget { typed: "v2".into(), path: Some("/srv/v2.js".into()) }),
            },
            Command::Rollback,
            Command::Respawn { now: false },
            Command::Respawn { now: true },
            Command::Stop { now: true },
            Command::Kill,
            Command::Die,
            Command::Scale(Scale::To(4)),
            Command::Scale(Scale::By(-2)),
            Command::Scale(Scale::By(1)),
            Command::Message(Message::text("π \" \\")),
            Command::Status,
            Command::Events,
            Command::Ping,
        ];
        for command in commands {
            for (id, wait) in [(None, true), (Some(Value::from("a")), false), (Some(Value::from(7)), true)] {
                for token in [None, Some(Secret::from("\" π"))] {
                    let request = Request { id: id.clone(), command: command.clone(), wait, token };
                    assert_eq!(Request::parse(request.to_line().as_bytes()), Ok(request));
                }
            }
        }
    }

    #[test]
    fn what_others_write_is_understood() {
        let parse = |line: &str| Request::parse(line.as_bytes()).map(|request| request.command);
        let upgrade = Command::Upgrade { target: None };
        assert_eq!(parse(r#"{"cmd":"upgrade","value":""}"#), Ok(upgrade.clone()));
        assert_eq!(parse("{\"value\":null, \"cmd\":\"upgrade\",\"later\":[1]}\r"), Ok(upgrade));
        assert_eq!(parse(r#"{"cmd":"scale","value":"4"}"#), Ok(Command::Scale(Scale::To(4))));
        assert_eq!(parse(r#"{"cmd":"version"}"#), Ok(Command::Ping));
    }

    #[test]
    fn a_bad_line_is_told_what_is_wrong_and_keeps_its_id() {
        assert!(reason("GET / HTTP/1.1\r").starts_with("a line must be a JSON object"));
        assert!(reason("").starts_with("a line must be a JSON object"));
        assert!(reason("[]").starts_with("a line must be a JSON object"));
        assert!(reason(&"[".repeat(60_000)).starts_with("a line must be a JSON object"));
        assert_eq!(reason("{}"), "the object must have a text `cmd`");
        assert_eq!(reason(r#"{"cmd":7}"#), "the object must have a text `cmd`");
        assert_eq!(reason(r#"{"cmd":"stop","now":1}"#), "`now` must be true or false");
        assert!(reason(r#"{"cmd":"upgrade","value":["/srv/2.js"]}"#).contains("must be the path"));
        assert!(reason(r#"{"cmd":"upgrade","value":"/srv/2\u0000"}"#).contains("no NUL"));
        assert_eq!(reason(r#"{"cmd":"upgrade","value":"2","path":"2"}"#), "`path` must be absolute");
        assert_eq!(reason(r#"{"cmd":"stop","token":1}"#), "`token` must be a text");
        for value in ["-1", "1.5", "\"\"", "\"x\"", "\"+\"", "null", "99999999999"] {
            let line = format!(r#"{{"cmd":"scale","value":{value}}}"#);
            assert!(reason(&line).starts_with("`value` must be a number"), "{line}");
        }
        assert_eq!(reason(r#"{"cmd":"message"}"#), "`value` must be the message");
        let bad = Request::parse(br#"{"id":7,"cmd":"fly\u001b[2J"}"#).unwrap_err();
        assert_eq!((bad.id, bad.cmd.as_str()), (Some(7.into()), "fly\u{1b}[2J"));
        assert_eq!(bad.reason, "unknown cmd `fly\u{fffd}[2J`");
    }

    #[test]
    fn replies_echo_the_cmd_as_they_always_did() {
        let text = |reply: &Reply| String::from_utf8(line(reply)).unwrap();
        assert_eq!(text(&Reply::ok("upgrade")), "{\"cmd\":\"upgrade\",\"value\":\"OK\",\"ok\":true}\n");
        let outcome = Outcome::RolledBack("worker 3 exited".into());
        assert_eq!(
            text(&Reply::of("upgrade", &outcome)),
            "{\"cmd\":\"upgrade\",\"value\":\"rolled back: worker 3 exited\",\"ok\":false,\
             \"outcome\":\"rolled-back\",\"reason\":\"worker 3 exited\"}\n"
        );
    }

    #[test]
    fn events_and_replies_are_told_apart() {
        let notice = Notice::Worker(WorkerId(3), WorkerNotice::Ready);
        let written = String::from_utf8(line(&EventLine::new(&notice, "worker 3 ready"))).unwrap();
        assert_eq!(
            written,
            "{\"event\":\"worker-ready\",\"worker\":3,\"warning\":false,\"text\":\"worker 3 ready\"}\n"
        );
        assert!(matches!(Line::parse(&written), Ok(Line::Event(event)) if event.worker == Some(3)));
        let status = RawValue::from_string("{\"later\":1}".into()).ok();
        let reply = String::from_utf8(line(&Reply { status, ..Reply::ok("status") })).unwrap();
        let Ok(Line::Reply(reply)) = Line::parse(&reply) else { panic!("{reply}") };
        assert_eq!(reply.status.map(|status| status.get().to_owned()), Some("{\"later\":1}".into()));
        let pause = Notice::Backoff(GenerationId(2), SlotId(1), Duration::from_secs(1));
        let event = EventLine::new(&pause, "");
        assert_eq!((event.generation, event.slot), (Some(2), Some(1)));
    }
}

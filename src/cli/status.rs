//! `liveswap status`: how a service stands, at a glance.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use super::connection::{Connection, ConnectionError, LEAST, understood};
use super::output;
use super::patient::PATIENCE;
use super::report::Status as Exit;
use super::table::table;
use super::upgrade::explain;
use crate::wire::control::{Command, Reply, Request};
use crate::wire::printable::printable_json;
use crate::wire::status::{GenerationUse, Human, LastUpgrade, Socket, Status, WaitingSlot, Worker};

/// How often `--watch` looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Arguments of `liveswap status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// The service; without it all that run are shown
    name: Option<String>,
    /// Print the status as a JSON object
    #[arg(long)]
    json: bool,
    /// Show it again every second
    #[arg(long)]
    watch: bool,
    /// Say what is not well in a line for each service, and nothing where all is: for health checks, which go by the exit status
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    check: bool,
}

/// Shows how a service stands, or each that runs. Status 1 where one is not at full strength, or does not answer.
pub fn run(args: &StatusArgs) -> ExitCode {
    let (found, refused) = match &args.name {
        Some(name) => match Connection::open(Some(name)) {
            Ok(connection) => (vec![connection], Vec::new()),
            Err(error) => return error.print(),
        },
        // A health check is about our own: any user could make it fail otherwise.
        None if args.check => Connection::look_for_own(),
        None => Connection::look_for_all(),
    };
    // Others than the caller's own are none of its business, where it may not ask them.
    let is_first = found.is_empty();
    let refused: Vec<_> = refused.into_iter().filter(|error| is_first || error.is_silence()).collect();
    if found.is_empty() && refused.is_empty() {
        return ConnectionError::NoManager.print();
    }
    if args.watch {
        return watch(args.json, found, &refused);
    }
    let has_own = args.name.is_some() || !refused.is_empty() || found.iter().any(|one| !one.is_of_another());
    let form = match (args.json, args.check) {
        (true, _) => Form::Json,
        (_, true) => Form::Check,
        _ => Form::Human,
    };
    let mut shown = Shown { is_well: refused.is_empty(), ..Shown::default() };
    for (connection, answer) in ask(found) {
        let was_well = shown.is_well;
        shown.take(Some(&connection), answer, form);
        if connection.is_of_another() && args.name.is_none() {
            // Likewise.
            shown.is_well = was_well;
        }
    }
    // Who does not read it has the exit status.
    let _ = shown.print(args.json, false);
    for error in &refused {
        let _ = error.print();
    }
    match shown.is_well {
        // What others run is shown, and answers for nothing.
        true if !has_own => Exit::NoManager.into(),
        true => Exit::Done.into(),
        false => Exit::Failed.into(),
    }
}

/// Shows the services again and again, until they have ended or nobody looks.
fn watch(json: bool, found: Vec<Connection>, refused: &[ConnectionError]) -> ExitCode {
    let silent = refused.iter().filter_map(|error| match error {
        ConnectionError::NotAllowed { service, .. } => Some((service.clone(), None)),
        _ => None,
    });
    let known = found.into_iter().map(|connection| (connection.label(), Some(connection)));
    let mut all: Vec<(String, Option<Connection>)> = known.chain(silent).collect();
    loop {
        let form = if json { Form::Json } else { Form::Human };
        let mut shown = Shown::default();
        let mut connections = Vec::new();
        let mut left = Vec::new();
        for (service, connection) in all {
            // Another manager may go on with the service, and one that stood still may answer again.
            match connection.map_or_else(|| Connection::open(Some(&service)), Ok) {
                Ok(connection) => connections.push(connection),
                Err(ConnectionError::NoSuchManager(_)) => {}
                Err(error) => {
                    shown.take(None, Err(error), form);
                    left.push((service, None));
                }
            }
        }
        for (connection, answer) in ask(connections) {
            let is_lost = matches!(answer, Err(ConnectionError::Lost(_)));
            let is_usable = answer.is_ok();
            let service = connection.label();
            if !is_lost {
                shown.take(Some(&connection), answer, form);
            }
            left.push((service, Some(connection).filter(|_| is_usable)));
        }
        if left.is_empty() || shown.print(json, true).is_err() {
            return Exit::Done.into();
        }
        all = left;
        thread::sleep(PAUSE);
    }
}

/// Asks all managers for the status before the first answer is read: they have 5 s together.
fn ask(connections: Vec<Connection>) -> Vec<(Connection, Result<Reply, ConnectionError>)> {
    let asked = connections.into_iter().map(|mut connection| {
        let asked = connection.ask(&Request::new(Command::Status));
        (connection, asked)
    });
    let asked: Vec<_> = asked.collect();
    let until = Instant::now() + PATIENCE;
    let answers = asked.into_iter().map(|(mut connection, asked)| {
        let answer = asked.and_then(|()| connection.reply_until(until.max(Instant::now() + LEAST)));
        (connection, answer)
    });
    answers.collect()
}

/// How a service is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Human,
    Json,
    /// In a line, where it is not well.
    Check,
}

/// What is shown of all services.
#[derive(Debug, Default)]
struct Shown {
    text: String,
    errors: Vec<ConnectionError>,
    is_well: bool,
}

impl Shown {
    fn take(&mut self, of: Option<&Connection>, answer: Result<Reply, ConnectionError>, form: Form) {
        match answer {
            Ok(reply) if reply.ok => {
                let mut status = reply.status.as_ref().and_then(|text| understood::<Status>(text.get()).ok());
                if let Some((connection, status)) = of.zip(status.as_mut()) {
                    // Of another user's service root is shown whose it is.
                    status.service = connection.label();
                }
                self.is_well &= status.as_ref().is_some_and(is_well);
                let text = match (status, &reply.status) {
                    (Some(status), _) if form == Form::Check => match complaint(&status) {
                        Some(complaint) => complaint,
                        None => return,
                    },
                    (Some(status), _) if form == Form::Human => render(&status, output::shows_colors()),
                    // What is newer than we are is shown as it came.
                    (_, Some(text)) => printable_json(text.get()).into_owned(),
                    (_, None) => return,
                };
                self.text.extend([text.as_str(), "\n"]);
            }
            Ok(reply) => {
                self.is_well = false;
                explain(reply.service.as_deref().unwrap_or("?"), &reply);
            }
            Err(error) => {
                self.is_well = false;
                self.errors.push(error);
            }
        }
    }

    /// Prints it; `again` in the place of what stood there before.
    ///
    /// # Errors
    ///
    /// Those of write(2): nobody reads it.
    fn print(&mut self, json: bool, again: bool) -> io::Result<()> {
        let written = match self.text.trim_end() {
            "" if !again || json => Ok(()),
            text if json => output::json(text),
            text if again => output::screen(&format!("{text}\n")),
            text => output::lines(&format!("{text}\n")),
        };
        for error in self.errors.drain(..) {
            let _ = error.print();
        }
        written
    }
}

/// Whether all is well with a service. A manager of before does not say so itself.
fn is_well(status: &Status) -> bool {
    let is_full = status.phase == "asleep" || status.ready >= status.wanted;
    status.health.full.unwrap_or(is_full) && !status.sockets.iter().any(|socket| socket.broken)
}

/// Says in a line what is not well with a service; `None` where all is.
fn complaint(status: &Status) -> Option<String> {
    if is_well(status) {
        return None;
    }
    let broken: Vec<_> = status.sockets.iter().filter(|socket| socket.broken).collect();
    let broken =
        broken.into_iter().map(|socket| format!("socket {} ({}) is broken", socket.name, socket.listen));
    let all: Vec<_> = status.health.trouble(status.generation).into_iter().chain(broken).collect();
    let what = if all.is_empty() { status.summary.clone() } else { all.join("; ") };
    Some(format!("{}: {what}", status.service))
}

/// Lays a status out for a person.
/// The headline of a service that is down is red where colours are shown.
fn render(status: &Status, is_colored: bool) -> String {
    let mut text = String::new();
    let trouble = status.health.trouble(status.generation);
    let since = status.generation_ms.map_or_else(String::new, |ms| format!(" for {}", human(ms)));
    let Status { service, phase, generation, ready, wanted, pid, .. } = status;
    let manager = format!("(manager {pid}, up {})", human(status.up_ms));
    let _ = match trouble {
        Some(trouble) if status.health.down => {
            let line = format!("{service}: {trouble} {manager}");
            writeln!(text, "{}", if is_colored { output::red(&line) } else { line })
        }
        Some(trouble) => writeln!(text, "{service}: {phase}, {trouble} {manager}"),
        None => {
            let strength = if *wanted == 0 && status.sockets.iter().any(|socket| socket.accept) {
                "a process for each connection".into()
            } else {
                format!("{ready} of {wanted} ready")
            };
            writeln!(text, "{service}: {phase}, generation {generation}{since}, {strength} {manager}")
        }
    };
    if phase != "serving" {
        let _ = writeln!(text, "  {}", status.summary);
    }
    let _ = writeln!(text, "  directory: {}", status.directory);
    if let Some(target) = &status.target {
        let _ = writeln!(text, "  target: {target}");
    }
    if let Some(why) = &status.begun_with {
        let _ = writeln!(text, "  {why}");
    }
    for socket in &status.sockets {
        let broken = if socket.broken { "; broken, and could not be repaired" } else { "" };
        let _ = writeln!(text, "  {}{broken}", described(socket));
    }
    if let Some(name) = &status.cgroup {
        let _ = writeln!(text, "  cgroup: {name}{}", uses(&status.generations));
    }
    if let Some(why) = &status.no_cgroup {
        let _ = writeln!(text, "  no cgroup, process groups serve: {why}");
    }
    if let Some(connections) = status.connections {
        let _ = writeln!(text, "  connections: {connections}");
    }
    if let Some(last) = &status.last_upgrade {
        let _ = writeln!(text, "  {}", last_upgrade(last));
    }
    if !status.workers.is_empty() {
        let headings = [
            "SLOT",
            "WORKER",
            "GENERATION",
            "PID",
            "STATE",
            "AGE",
            "MEMORY",
            "CONNECTIONS",
            "RESTARTS",
            "SAYS",
        ];
        let rows: Vec<_> = status.workers.iter().map(row).collect();
        let _ = write!(text, "\n{}", table(&headings, &rows));
    }
    let notes: Vec<_> =
        status.workers.iter().filter_map(note).chain(status.waiting.iter().map(waiting)).collect();
    if !notes.is_empty() {
        let _ = write!(text, "\n{}\n", notes.join("\n"));
    }
    text
}

/// Describes a socket; its name alone would say its address twice.
fn described(socket: &Socket) -> String {
    let same = |(name, listen): (char, char)| name == listen || name == '-';
    let is_named_so = socket.name.chars().count() == socket.listen.chars().count()
        && socket.name.chars().zip(socket.listen.chars()).all(same);
    let name = if is_named_so { String::new() } else { format!(" {}", socket.name) };
    let kind = socket.kind.as_deref().map(|kind| format!("{kind} ")).unwrap_or_default();
    format!("socket{name}: {kind}{}", socket.listen)
}

/// What generations use, in words.
fn uses(generations: &[GenerationUse]) -> String {
    let each = generations.iter().map(|used| {
        let processes = if used.processes == 1 { "process" } else { "processes" };
        let GenerationUse { generation, processes: count, memory } = used;
        format!("generation {generation}: {} in {count} {processes}", bytes(*memory))
    });
    let all: Vec<_> = each.collect();
    if all.is_empty() { String::new() } else { format!(" ({})", all.join(", ")) }
}

fn row(worker: &Worker) -> Vec<String> {
    let number = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
    vec![
        worker.slot.to_string(),
        worker.id.to_string(),
        worker.generation.to_string(),
        worker.pid.map_or_else(String::new, |pid| pid.to_string()),
        worker.state.clone(),
        worker.age_ms.map_or_else(String::new, human),
        worker.tree_memory.or(worker.memory).map_or_else(String::new, bytes),
        number(worker.connections),
        worker.restarts.to_string(),
        worker.says.clone(),
    ]
}

/// What an operator would otherwise hunt for.
fn note(worker: &Worker) -> Option<String> {
    let since = worker.state_ms.map_or_else(String::new, |ms| format!(" since {}", human(ms)));
    let slot = worker.slot;
    Some(match worker.state.as_str() {
        "draining" => {
            let left = match worker.connections {
                Some(1) => "1 connection left".into(),
                Some(count) => format!("{count} connections left"),
                None => worker.why.clone().unwrap_or_default(),
            };
            let killed =
                worker.deadline_ms.map_or_else(String::new, |ms| format!(", killed in {}", human(ms)));
            format!("slot {slot} drains{since}: {left}{killed}")
        }
        "starting" => {
            let fails = worker.deadline_ms.map_or_else(String::new, |ms| format!("; fails in {}", human(ms)));
            format!("slot {slot} starts{since}{fails}")
        }
        "aborting" => format!("slot {slot} was sent SIGABRT{since}"),
        "ready" => {
            let why = worker.unseen.as_ref()?;
            format!("slot {slot}: worker {} counts as ready by `settle` alone: {why}", worker.id)
        }
        _ => return None,
    })
}

fn waiting(slot: &WaitingSlot) -> String {
    let deaths = if slot.deaths == 1 { "a death".into() } else { format!("{} deaths in a row", slot.deaths) };
    format!("slot {} starts again in {}, after {deaths}", slot.slot, human(slot.starts_in_ms))
}

fn last_upgrade(last: &LastUpgrade) -> String {
    let ago = last.ago_ms.map_or_else(String::new, |ms| format!(" {} ago", human(ms)));
    let reason = last.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
    let outcome = last.outcome.replace('-', " ");
    format!("last upgrade: to generation {}, {outcome}{ago}{reason}", last.generation)
}

fn human(ms: u64) -> String {
    // What is longer than a second is told in whole ones.
    let ms = if ms >= 1000 { ms / 1000 * 1000 } else { ms };
    Human(Duration::from_millis(ms)).to_string()
}

fn bytes(count: u64) -> String {
    let mib = count >> 20;
    if mib >= 10 { format!("{mib} MiB") } else { format!("{}.{} MiB", mib, (count >> 10) % 1024 * 10 / 1024) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::status::Health;

    fn worker(slot: u32, state: &str) -> Worker {
        Worker {
            id: 5 + u64::from(slot),
            pid: Some(4242 + i32::try_from(slot).unwrap()),
            generation: 3,
            slot,
            state: state.into(),
            state_ms: Some(48_300),
            age_ms: Some(125_000),
            memory: Some(12 << 20),
            tree_memory: None,
            connections: Some(1),
            restarts: 0,
            says: String::new(),
            why: None,
            unseen: None,
            deadline_ms: None,
        }
    }

    #[test]
    fn a_service_is_read_at_a_glance() {
        let draining = Worker { deadline_ms: Some(12_000), generation: 2, ..worker(2, "draining") };
        let unseen = Some("process 4243 may not be looked into: EACCES".into());
        let says = "all well".into();
        let talker = Worker { says, memory: Some(1_600_000), unseen, ..worker(1, "ready") };
        let last = LastUpgrade {
            generation: 4,
            outcome: "rolled-back".into(),
            reason: Some("worker 9 (slot 0) exited with status 1".into()),
            ago_ms: Some(3_000),
        };
        let status = Status {
            service: "web".into(),
            pid: 77,
            up_ms: 12_000_000,
            phase: "serving".into(),
            summary: "generation 3: 2 of 2 ready".into(),
            generation: 3,
            generation_ms: Some(60_000),
            directory: "/srv/web/3".into(),
            target: Some("/srv/web/3/index.js".into()),
            wanted: 2,
            ready: 2,
            upgrading_to: None,
            previous: Some(2),
            old_code: None,
            begun_with: None,
            last_upgrade: Some(last),
            cgroup: Some("/system.slice/web.service".into()),
            no_cgroup: None,
            connections: None,
            generations: vec![
                GenerationUse { generation: 2, processes: 1, memory: 12 << 20 },
                GenerationUse { generation: 3, processes: 4, memory: 61 << 20 },
            ],
            workers: vec![worker(0, "ready"), talker, draining],
            waiting: vec![WaitingSlot { generation: 3, slot: 4, deaths: 3, starts_in_ms: 400 }],
            sockets: Vec::new(),
            health: Health { full: Some(true), ready_of_all: 2, wanted_now: 2, ..Health::default() },
        };
        let expected = "\
web: serving, generation 3 for 1 min, 2 of 2 ready (manager 77, up 3 h 20 min)
  directory: /srv/web/3
  target: /srv/web/3/index.js
  cgroup: /system.slice/web.service (generation 2: 12 MiB in 1 process, generation 3: 61 MiB in 4 processes)
  last upgrade: to generation 4, rolled back 3 s ago: worker 9 (slot 0) exited with status 1

SLOT  WORKER  GENERATION   PID  STATE           AGE   MEMORY  CONNECTIONS  RESTARTS  SAYS
   0       5           3  4242  ready     2 min 5 s   12 MiB            1         0
   1       6           3  4243  ready     2 min 5 s  1.5 MiB            1         0  all well
   2       7           2  4244  draining  2 min 5 s   12 MiB            1         0

slot 1: worker 6 counts as ready by `settle` alone: process 4243 may not be looked into: EACCES
slot 2 drains since 48 s: 1 connection left, killed in 12 s
slot 4 starts again in 400 ms, after 3 deaths in a row
";
        assert_eq!(render(&status, false), expected);
        let health = Health {
            full: Some(false),
            down: true,
            wanted_now: 2,
            last_exit: Some("status 3".into()),
            deaths: 4,
            ..Health::default()
        };
        let down = Status { health, ..status };
        let first = "web: generation 3 is DOWN: 0 of 2 ready; last exit: status 3, 4 deaths in a row (manager 77, up 3 h 20 min)\n";
        let text = render(&down, false);
        assert!(text.starts_with(first), "{text}");
        assert!(render(&down, true).starts_with("\x1b[31mweb: generation 3 is DOWN"));
        assert!(!is_well(&down));
    }
}

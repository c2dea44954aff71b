//! `liveswap status`: how a service stands, at a glance.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;

use super::connection::{Connection, ConnectionError, understood};
use super::output;
use super::report::Status as Exit;
use super::table::table;
use super::upgrade::explain;
use crate::daemon::runtime::places;
use crate::wire::control::{Command, Reply};
use crate::wire::printable::printable_json;
use crate::wire::status::{GenerationUse, Human, LastUpgrade, Status, WaitingSlot, Worker};

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
}

/// Shows how a service stands, or each that runs.
pub fn run(args: &StatusArgs) -> ExitCode {
    let mut connections = match Connection::open(args.name.as_deref()) {
        Ok(connection) => vec![connection],
        Err(ConnectionError::Several(_)) => all(),
        Err(error) => return error.print(),
    };
    loop {
        let mut text = String::new();
        for connection in &mut connections {
            match connection.ask_once(Command::Status) {
                Ok(reply) if reply.ok => text += &shown(&reply, args.json),
                Ok(reply) => {
                    explain(&connection.service, &reply);
                    return Exit::Failed.into();
                }
                Err(error) => return error.print(),
            }
        }
        if !args.watch {
            // Who does not read it has the exit status.
            let _ = if args.json {
                output::json(&text)
            } else {
                output::lines(&(text.trim_end().to_owned() + "\n"))
            };
            return Exit::Done.into();
        }
        let written = if args.json { output::json(&text) } else { output::screen(&text) };
        if written.is_err() {
            return Exit::Done.into();
        }
        thread::sleep(PAUSE);
    }
}

/// Every manager that lets us speak.
fn all() -> Vec<Connection> {
    let names = places(None).into_iter().filter_map(|place| place.service);
    names.filter_map(|name| Connection::open(Some(&name)).ok()).collect()
}

fn shown(reply: &Reply, json: bool) -> String {
    let Some(text) = &reply.status else { return String::new() };
    match understood(text.get()) {
        Ok(status) if !json => render(&status) + "\n",
        // What is newer than we are is shown as it came.
        Ok(_) | Err(_) => format!("{}\n", printable_json(text.get())),
    }
}

/// Lays a status out for a person.
fn render(status: &Status) -> String {
    let mut text = String::new();
    let since = status.generation_ms.map_or_else(String::new, |ms| format!(" for {}", human(ms)));
    let Status { service, phase, generation, ready, wanted, pid, .. } = status;
    let _ = writeln!(
        text,
        "{service}: {phase}, generation {generation}{since}, {ready} of {wanted} ready (manager {pid}, up {})",
        human(status.up_ms)
    );
    if phase != "serving" {
        let _ = writeln!(text, "  {}", status.summary);
    }
    let _ = writeln!(text, "  directory: {}", status.directory);
    if let Some(target) = &status.target {
        let _ = writeln!(text, "  target: {target}");
    }
    for socket in &status.sockets {
        let broken = if socket.broken { "; broken, and could not be repaired" } else { "" };
        let _ = writeln!(text, "  socket {}: {}{broken}", socket.name, socket.listen);
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
            deadline_ms: None,
        }
    }

    #[test]
    fn a_service_is_read_at_a_glance() {
        let draining = Worker { deadline_ms: Some(12_000), generation: 2, ..worker(2, "draining") };
        let talker = Worker { says: "all well".into(), memory: Some(1_600_000), ..worker(1, "ready") };
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

slot 2 drains since 48 s: 1 connection left, killed in 12 s
slot 4 starts again in 400 ms, after 3 deaths in a row
";
        assert_eq!(render(&status), expected);
    }
}

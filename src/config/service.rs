//! Reads `[service]`: what is started, how often, as whom.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use toml::de::DeValue;

use super::Origin;
use super::demand::OfWorkers;
use super::reader::{At, Flaw, Span, Table};
use super::values;
use crate::core::spec::{
    EnvironmentFile, Identity, Limit, Output, ProcessSpec, Protocol, Resource, is_protocol_variable,
};

/// The values of `output`.
const OUTPUTS: [(&str, Output); 4] = [
    ("auto", Output::Auto),
    ("inherit", Output::Inherit),
    ("prefix", Output::Prefix),
    ("copy", Output::Copy),
];

/// The most workers that a service may have.
pub(super) const WORKERS_MAX: u32 = 4096;

/// The most descriptors that a slot may have in store.
const FD_STORE_MAX: u32 = 1024;

/// The name becomes a folder, and sockets in it have to fit in 107 bytes.
const NAME_MAX: usize = 50;

/// The keys that mean nothing where there are no workers.
const OF_WORKERS: [&str; 8] =
    ["workers", "protocol", "lazy", "idle_timeout", "output", "messages", "fd_store_max", "listen_pid"];

/// What `[service]` says.
pub(super) struct Service {
    pub name: String,
    pub process: ProcessSpec,
    /// `None` where it could not be read, so that nothing is concluded from it; so too `protocol`.
    pub workers: Option<u32>,
    pub protocol: Option<Protocol>,
    pub lazy: Option<At<bool>>,
    pub idle_timeout: Option<At<Duration>>,
    /// Where `command` stands.
    pub command_key: Option<Span>,
    /// The keys that speak of workers.
    pub of_workers: OfWorkers,
}

pub(super) fn read(mut table: Table<'_>, origin: &Origin, drain_signal: i32) -> Service {
    let of_workers = OF_WORKERS.into_iter().filter_map(|key| Some((key, table.key(key)?))).collect();
    let command_key = table.key("command");
    let name = name(&mut table, origin);
    let command = argv(&mut table, "command");
    let target = table.read("target", values::nonempty).map(At::value);
    let target_within = table.read("target_within", values::nonempty);
    if let Some(at) = target_within.as_ref().filter(|_| !table.has("target")) {
        let flaw = Flaw::new("`target_within` is ignored unless `target` is set", "here `target` is not set");
        table.problems().conclude(at.key.clone(), flaw.help("remove it, or set target = \"…\" in [service]"));
    }
    let directory = table.read("directory", values::nonempty);
    let workers = table.read_or("workers", 1, |value| workers(value, origin));
    let usual =
        if target.as_deref().is_some_and(is_node_program) { Protocol::Node } else { Protocol::Notify };
    let protocol = table.read_or("protocol", usual, protocol);
    let lazy = table.read("lazy", values::boolean);
    let idle_timeout = table.read("idle_timeout", values::positive_duration);
    let environment = variables(&table.table("environment", "`environment`"));
    let clear_environment = table.read("clear_environment", values::boolean);
    let files = table.list("environment_files", |value| environment_file(value, origin));
    let identity = Identity {
        user: table.read("user", values::principal).map(At::value),
        group: table.read("group", values::principal).map(At::value),
        supplementary_groups: table.list("supplementary_groups", values::principal).map(At::values),
        umask: table.read("umask", values::mode).map(At::value),
    };
    let limits = limits(table.table("limits", "`limits`"));
    let output = table.read("output", |value| values::choice(value, &OUTPUTS));
    let ignore_sigpipe = table.read("ignore_sigpipe", values::boolean);
    let listen_pid = table.read("listen_pid", values::boolean);
    let messages = table.read("messages", values::boolean);
    let fd_store = table.read("fd_store_max", |value| values::number(value, 0..=FD_STORE_MAX));
    if let Some(At { key, .. }) =
        fd_store.as_ref().filter(|_| protocol.is_some_and(|it| it != Protocol::Notify))
    {
        let flaw =
            Flaw::new("`fd_store_max` is ignored unless `protocol = \"notify\"`", "nobody could fill it");
        table.problems().conclude(key.clone(), flaw.help("remove it"));
    }
    if !table.has("target") {
        table.require("command", r#"the shortest service file: [service] with command = ["./server"]"#);
    }
    table.finish();

    let process = ProcessSpec {
        command: command.unwrap_or_else(|| usual_command(protocol)),
        target,
        target_within: target_within.map(|at| origin.absolute(&at.value)),
        directory: origin.absolute(directory.as_ref().map_or(".", |path| &path.value)),
        protocol: protocol.unwrap_or(Protocol::Notify),
        clear_environment: clear_environment.is_some_and(At::value),
        environment_files: files.map(At::values).unwrap_or_default(),
        environment,
        identity,
        limits,
        output: output.map_or(Output::Auto, At::value),
        ignore_sigpipe: ignore_sigpipe.is_none_or(At::value),
        listen_pid: listen_pid.is_none_or(At::value),
        messages: messages.is_some_and(At::value),
        fd_store_max: fd_store.map_or(0, At::value),
        drain_signal,
    };
    Service { name, process, workers, protocol, lazy, idle_timeout, command_key, of_workers }
}

/// Whether a path is named as Node programs are.
pub fn is_node_program(path: &str) -> bool {
    let end = Path::new(path).extension().and_then(OsStr::to_str);
    end.is_some_and(|end| matches!(end, "js" | "cjs" | "mjs"))
}

/// Returns what runs a target where the file does not say it.
fn usual_command(protocol: Option<Protocol>) -> Vec<String> {
    let words: &[&str] = match protocol {
        Some(Protocol::Node) => &["node", "{target}"],
        Some(Protocol::Notify | Protocol::Plain) | None => &["{target}"],
    };
    words.iter().map(ToString::to_string).collect()
}

/// Takes `key`, an argument vector; `None` where it is absent or bad.
pub(super) fn argv(table: &mut Table<'_>, key: &'static str) -> Option<Vec<String>> {
    let arguments = table.list(key, values::text)?;
    let flaw = match arguments.value.first() {
        None => Some((&arguments.span, "must name a program", "empty")),
        Some(program) if program.value.is_empty() => {
            Some((&program.span, "must name a program first", "empty"))
        }
        Some(_) => None,
    };
    match flaw {
        Some((span, message, label)) => table.judge(key, span, Err(Flaw::new(message, label))),
        None => Some(At::values(arguments)),
    }
}

fn name(table: &mut Table<'_>, origin: &Origin) -> String {
    if let Some(name) = table.read("name", |value| values::text(value).and_then(check_name)) {
        return name.value;
    }
    let stem = origin.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    if !table.has("name") && check_name(stem.clone()).is_err() {
        let message = "the service needs a `name`, since that of its file is no name for a service";
        let help = format!("set name = \"…\" in [service]: {NAME_RULE}");
        table.problems().conclude(table.header(), Flaw::new(message, "no `name` here").help(help));
    }
    stem
}

const NAME_RULE: &str = "1 to 50 of the characters A-Z a-z 0-9 . _ -";

fn check_name(name: String) -> Result<String, Flaw> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let label = match name.chars().find(|c| !legal(*c)) {
        Some(bad) => format!("has the character `{}`", bad.escape_debug()),
        None if name.is_empty() => "empty".into(),
        None if name.len() > NAME_MAX => "too long".into(),
        None if matches!(name.as_str(), "." | "..") => "the name of a folder".into(),
        None => return Ok(name),
    };
    Err(Flaw::new(format!("must be {NAME_RULE}"), label))
}

fn workers(value: &DeValue<'_>, origin: &Origin) -> Result<u32, Flaw> {
    let message = format!("must be an integer from 1 to {WORKERS_MAX} or \"auto\"");
    match value {
        DeValue::String(text) if text == "auto" => Ok(origin.cpus.clamp(1, WORKERS_MAX)),
        DeValue::Integer(_) => {
            values::number(value, 1..=WORKERS_MAX).map_err(|_| Flaw::new(message, "out of range"))
        }
        _ => Err(Flaw::kind(message, value)),
    }
}

fn protocol(value: &DeValue<'_>) -> Result<Protocol, Flaw> {
    if value.as_str() == Some("transparent") {
        let help = "this version of liveswap has \"notify\", \"plain\" and \"node\"";
        return Err(Flaw::new("cannot be \"transparent\" yet", "not yet").help(help));
    }
    let words = [("notify", Protocol::Notify), ("plain", Protocol::Plain), ("node", Protocol::Node)];
    values::choice(value, &words)
}

fn environment_file(value: &DeValue<'_>, origin: &Origin) -> Result<EnvironmentFile, Flaw> {
    let text = values::nonempty(value)?;
    let (path, optional) = match text.strip_prefix('-') {
        Some(path) => (path, true),
        None => (text.as_str(), false),
    };
    if path.is_empty() {
        return Err(Flaw::new("must be the path of a file", "no path after the `-`"));
    }
    Ok(EnvironmentFile { path: origin.absolute(path), optional })
}

fn variables(table: &Table<'_>) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, at) in table.entries() {
        let key = format!("environment.{name}");
        let named = table.judge(&key, &at.key, check_variable(name));
        let value = table.judge(&key, &at.span, values::text(at.value));
        if let (Some(()), Some(value)) = (named, value) {
            variables.insert(name.to_owned(), value);
        }
    }
    variables
}

fn check_variable(name: &str) -> Result<(), Flaw> {
    if is_protocol_variable(name) {
        let help = "liveswap sets the variables of the protocols itself";
        return Err(Flaw::new("must not be set here", "set by liveswap").help(help));
    }
    if name.is_empty() || name.contains(['=', '\0']) {
        return Err(Flaw::new("must be a name for a variable", "empty, or with `=` or NUL"));
    }
    Ok(())
}

fn limits(mut table: Table<'_>) -> BTreeMap<Resource, Limit> {
    let limits = Resource::ALL
        .into_iter()
        .filter_map(|resource| Some((resource, table.read(resource.name(), values::limit)?.value)))
        .collect();
    table.finish();
    limits
}

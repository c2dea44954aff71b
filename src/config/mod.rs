//! TOML -> [`ServiceSpec`]: reads a service file, checks it, and says all that is wrong with it at once.
//!
//! Nothing here opens a file, makes a system call or looks a name up: users, groups and interfaces stay names, and a
//! path is made absolute but not resolved. Every key is read by [`reader::Table`], which collects problems instead of
//! stopping at the first; a [`ServiceSpec`] comes out only where there was none.
//!
//! ```text
//! reader       the tree of the file: takes keys one by one, and what nobody took is unknown
//! values       one value: durations, sizes, modes, signals, limits
//! address      one value: what a socket listens on
//! service      [service]
//! sockets      [[socket]]
//! demand       what starts on demand, and what that rules out
//! policy       [ready] [upgrade] [drain] [restart] [watchdog] [control], and what they say about each other
//! syntax       the errors of the TOML parser, and the text without them
//! lines        where keys stand
//! suggest      "did you mean"
//! diagnostics  the problems, as people read them
//! environment  the files of `environment_files`
//! flags        a service without a file                 original   the same, as the first liveswap had it
//! draft        the file that these are made into
//! ```

mod address;
mod demand;
mod diagnostics;
mod draft;
pub mod environment;
pub mod flags;
mod lines;
pub mod original;
mod policy;
mod reader;
mod service;
mod sockets;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;
mod values;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;

pub use self::diagnostics::{Diagnostics, Problem};
pub use self::draft::COMMAND_LINE;
pub use self::lines::KeyLines;
use self::reader::{At, Problems, Table};
pub use self::service::is_node_program;
pub use self::suggest::closest as closest_name;
use self::syntax::Recovered;
pub use crate::core::spec;
use crate::core::spec::{Policy, ServiceSpec};

/// Where a service file comes from, and what it may refer to without naming it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The absolute path of the file. Its folder is the default directory and the base of relative paths, its stem the
    /// default name.
    pub path: PathBuf,
    /// The CPUs that `workers = "auto"` stands for.
    pub cpus: u32,
}

impl Origin {
    /// Returns `path`, taken from the folder of the service file where it is relative, without its `.` parts.
    fn absolute(&self, path: &str) -> PathBuf {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        folder.join(path).components().filter(|part| *part != Component::CurDir).collect()
    }
}

/// Reads a service file.
///
/// # Errors
///
/// All problems of the file, in its order.
pub fn parse(text: &str, origin: &Origin) -> Result<ServiceSpec, Diagnostics> {
    check(text, origin).map_err(|problems| Diagnostics::new(text, &origin.path, problems))
}

fn check(text: &str, origin: &Origin) -> Result<ServiceSpec, Vec<Problem>> {
    if let Some(problem) = syntax::json(text) {
        return Err(vec![problem]);
    }
    let Recovered { text: sound, problems, shadows } = syntax::recover(text);
    let (tree, _) = DeTable::parse_recoverable(&sound);
    let problems = Problems::new(problems, shadows);
    let spec = read(tree.get_ref(), origin, &problems);
    let list = problems.into_list();
    if list.is_empty() { Ok(spec) } else { Err(list) }
}

/// Returns the text of a service file.
///
/// # Errors
///
/// Where it is not UTF-8, the position of the first bad byte.
pub fn decode<'a>(bytes: &'a [u8], origin: &Origin) -> Result<&'a str, Diagnostics> {
    std::str::from_utf8(bytes).map_err(|error| {
        let start = error.valid_up_to();
        let problem = Problem {
            message: "the file is not UTF-8".into(),
            // The text shown is decoded lossily: in it a replacement character stands at this very position.
            span: start..start + char::REPLACEMENT_CHARACTER.len_utf8(),
            label: bytes.get(start).map_or_else(String::new, |byte| format!("byte 0x{byte:02x}")),
            help: Some("save the file in the encoding UTF-8".into()),
        };
        Diagnostics::new(&String::from_utf8_lossy(bytes), &origin.path, vec![problem])
    })
}

/// Reads all tables; the value is good only where no problem was found.
fn read(tree: &DeTable<'_>, origin: &Origin, problems: &Problems) -> ServiceSpec {
    let mut root = Table::root(tree, problems);
    let drain = policy::drain(root.table("drain", "[drain]"));
    let mut service = service::read(root.table("service", "[service]"), origin, drain.signal);
    let sockets = sockets::read(&mut root, origin, problems);
    demand::settle(&mut service, &sockets, problems);
    let tables = [("ready", "[ready]"), ("restart", "[restart]"), ("watchdog", "[watchdog]")];
    let [ready, restart, watchdog] = tables.map(|(key, name)| root.table(key, name));
    let mut upgrade = root.table("upgrade", "[upgrade]");
    if service.workers == Some(0) {
        demand::refuse_what_is_of_workers([&ready, &restart, &watchdog], &mut upgrade, problems);
    }
    let ready = policy::ready(ready, service.protocol, !sockets.is_empty(), problems);
    let upgrade = policy::upgrade(upgrade, &service, origin, problems);
    let restart = policy::restart(restart, problems);
    let watchdog = policy::watchdog(watchdog, service.protocol, problems);
    let control = policy::control(root.table("control", "[control]"), origin, problems);
    root.finish();

    ServiceSpec {
        name: service.name,
        process: service.process,
        sockets: sockets.into_iter().map(At::value).collect(),
        idle_timeout: service.idle_timeout.map(At::value),
        probe: ready.probe,
        hooks: upgrade.hooks,
        control,
        policy: Policy {
            lazy: service.lazy.is_some_and(At::value),
            workers: service.workers.unwrap_or(1),
            readiness: ready.readiness,
            ready_timeout: ready.timeout,
            strategy: upgrade.strategy,
            min_ready: upgrade.min_ready.or(ready.readiness.stands_for_min_ready().then_some(Duration::ZERO)),
            probation: upgrade.probation,
            drain_timeout: drain.timeout,
            max_generations: drain.max_generations,
            restart_initial_delay: restart.initial_delay,
            restart_max_delay: restart.max_delay,
            watchdog,
        },
    }
}

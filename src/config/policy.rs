//! Reads the tables that tell how an upgrade goes, and checks what they say about each other.
//!
//! A key that would be ignored, since another one chose differently, is an error: its author expects it to act.

use std::ops::Range;
use std::time::Duration;

use super::Origin;
use super::address;
use super::reader::{At, Flaw, Problems, Table};
use super::service::{Service, argv};
use super::values;
use crate::core::spec::{ControlSpec, Hooks, Protocol, Readiness, Strategy};
use crate::core::time::Human;

/// How long a worker must be alive where `settle` is not given.
const SETTLE: Duration = Duration::from_secs(1);

/// The most generations that may drain at a time.
const GENERATIONS_MAX: u32 = 1024;

/// What `[drain]` says.
pub(super) struct Drain {
    pub signal: i32,
    pub timeout: Duration,
    pub max_generations: u32,
}

pub(super) fn drain(mut table: Table<'_>) -> Drain {
    let signal = table.read("signal", values::signal);
    let timeout = table.read("timeout", values::positive_duration);
    let max_generations = table.read("max_generations", |value| values::number(value, 1..=GENERATIONS_MAX));
    table.finish();
    Drain {
        signal: signal.map_or(libc::SIGTERM, At::value),
        timeout: timeout.map_or(Duration::from_secs(60), At::value),
        max_generations: max_generations.map_or(4, At::value),
    }
}

/// What `[ready]` says.
pub(super) struct Ready {
    pub readiness: Readiness,
    pub timeout: Duration,
    pub probe: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Notify,
    Settled,
    Probe,
    Accepting,
}

impl When {
    const WORDS: [(&'static str, Self); 4] = [
        ("notify", Self::Notify),
        ("settled", Self::Settled),
        ("probe", Self::Probe),
        ("accepting", Self::Accepting),
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Settled => "settled",
            Self::Probe => "probe",
            Self::Accepting => "accepting",
        }
    }

    fn default_for(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Notify | Protocol::Node => Self::Notify,
            Protocol::Plain => Self::Settled,
        }
    }
}

/// Reads `[ready]`; `protocol` is `None` where it could not be read, `has_sockets` says whether the file has a `[[socket]]`.
pub(super) fn ready(
    mut table: Table<'_>,
    protocol: Option<Protocol>,
    has_sockets: bool,
    problems: &Problems,
) -> Ready {
    let when = table.read("when", |value| values::choice(value, &When::WORDS));
    let timeout = table.read("timeout", values::positive_duration);
    let settle = table.read("settle", values::positive_duration);
    let probe_key = table.key("probe");
    let probe = argv(&mut table, "probe");
    let interval = table.read("interval", values::positive_duration);

    let limit = timeout.map_or(Duration::from_secs(60), At::value);
    let chosen = match &when {
        Some(when) => Some(when.value),
        None if table.has("when") => None,
        None => protocol.map(When::default_for),
    };
    if let Some(chosen) = chosen {
        let keys: [(&[When], _, _); 3] = [
            (&[When::Settled, When::Accepting], "settle", settle.as_ref().map(|at| &at.key)),
            (&[When::Probe], "probe", probe_key.as_ref()),
            (&[When::Probe], "interval", interval.as_ref().map(|at| &at.key)),
        ];
        for (needed, key, span) in keys {
            if let Some(span) = span.filter(|_| !needed.contains(&chosen)) {
                problems.conclude(span.clone(), ignored(key, needed, chosen));
            }
        }
        if chosen == When::Probe && probe_key.is_none() {
            let span = when.as_ref().map_or(table.header(), |when| when.span.clone());
            let flaw = Flaw::new("`when = \"probe\"` needs the key `probe`", "which command?");
            let help = r#"such as probe = ["curl", "-fsS", "http://127.0.0.1:8080/health"]"#;
            problems.conclude(span, flaw.help(help));
        }
    }
    if let (Some(At { value: When::Notify, span, .. }), Some(Protocol::Plain)) = (&when, protocol) {
        let message = "`when = \"notify\"` contradicts `protocol = \"plain\"`";
        let help = "take \"accepting\", \"settled\" or \"probe\", or protocol = \"notify\"";
        problems.conclude(span.clone(), Flaw::new(message, "a plain worker says nothing").help(help));
    }
    if let Some(At { value: When::Accepting, span, .. }) = &when {
        accepting(span, protocol, has_sockets, problems);
    }
    if let Some(settle) = settle.as_ref().filter(|settle| settle.value >= limit) {
        let message = format!("`settle` must be shorter than `timeout` ({})", Human(limit));
        problems.conclude(settle.span.clone(), Flaw::new(message, "no worker could become ready in time"));
    }
    table.finish();

    let readiness = match chosen.unwrap_or(When::Notify) {
        When::Notify => Readiness::Notify,
        When::Settled => Readiness::Settled(settle.map_or(SETTLE, At::value)),
        When::Accepting => Readiness::Accepting(settle.map_or(SETTLE, At::value)),
        When::Probe => Readiness::Probe(interval.map_or(Duration::from_millis(500), At::value)),
    };
    Ready { readiness, timeout: limit, probe: probe.unwrap_or_default() }
}

/// A key of `[ready]` that acts only where `when` is `needed`.
fn ignored(key: &str, needed: &[When], chosen: When) -> Flaw {
    let needed: Vec<_> = needed.iter().map(|when| format!("\"{}\"", when.word())).collect();
    let message = format!("`{key}` is ignored unless `when = {}`", needed.join(" or "));
    Flaw::new(message, format!("here `when` is \"{}\"", chosen.word()))
        .help(format!("remove it, or set when = {} in [ready]", needed[0]))
}

/// Checks that `when = "accepting"` has something to go by.
fn accepting(span: &Range<usize>, protocol: Option<Protocol>, has_sockets: bool, problems: &Problems) {
    let flaw = match protocol {
        Some(Protocol::Node) => Flaw::new(
            "`when = \"accepting\"` contradicts `protocol = \"node\"`",
            "a Node worker says itself that it listens",
        )
        .help("remove it"),
        Some(Protocol::Notify | Protocol::Plain) | None if !has_sockets => Flaw::new(
            "`when = \"accepting\"` needs a [[socket]]",
            "no worker could wait for connections on one",
        )
        .help("add a [[socket]], or take \"settled\" or \"probe\""),
        Some(Protocol::Notify | Protocol::Plain) | None => return,
    };
    problems.conclude(span.clone(), flaw);
}

/// What `[upgrade]` says.
pub(super) struct Upgrade {
    pub strategy: Option<Strategy>,
    pub min_ready: Option<Duration>,
    pub probation: Duration,
    pub hooks: Hooks,
}

/// Reads `[upgrade]`; shares are shares of the service's workers.
pub(super) fn upgrade(
    mut table: Table<'_>,
    service: &Service,
    origin: &Origin,
    problems: &Problems,
) -> Upgrade {
    let strategy = strategy(&mut table, service.workers.filter(|workers| *workers > 0), problems);
    let pre_upgrade = table.read("pre_upgrade", values::nonempty);
    let head = table.read("head", values::nonempty);
    if let Some(At { key: span, .. }) = pre_upgrade.as_ref().filter(|_| service.process.target.is_none()) {
        let message = "`pre_upgrade` is ignored unless [service] has a `target`";
        let flaw = Flaw::new(message, "here it has none").help("remove it, or set `target` in [service]");
        problems.conclude(span.clone(), flaw);
    }
    let path = |at: Option<At<String>>| at.map(|at| origin.absolute(&at.value));
    let (pre_upgrade, head) = (path(pre_upgrade), path(head));
    let min_ready = min_ready(&mut table, strategy, problems);
    let probation = table.read("probation", values::duration);
    let before = argv(&mut table, "before");
    let after = argv(&mut table, "after");
    let timeout = table.read("hook_timeout", values::positive_duration);
    table.finish();
    Upgrade {
        strategy,
        min_ready,
        probation: probation.map_or(Duration::ZERO, At::value),
        hooks: Hooks {
            before: before.unwrap_or_default(),
            after: after.unwrap_or_default(),
            pre_upgrade,
            head,
            timeout: timeout.map_or(Duration::from_secs(300), At::value),
        },
    }
}

fn min_ready(table: &mut Table<'_>, strategy: Option<Strategy>, problems: &Problems) -> Option<Duration> {
    let At { value, key, .. } = table.read("min_ready", values::duration)?;
    if strategy == Some(Strategy::Recreate) && !value.is_zero() {
        let flaw = Flaw::new(
            "`min_ready` has no use with `strategy = \"recreate\"`",
            "the old workers have gone before a new one is ready",
        );
        problems.conclude(key, flaw.help("remove it, or choose another strategy"));
    }
    Some(value)
}

/// Returns `None` where each upgrade decides by itself.
fn strategy(table: &mut Table<'_>, workers: Option<u32>, problems: &Problems) -> Option<Strategy> {
    let words = [
        ("auto", None),
        ("rolling", Some(Strategy::ROLLING)),
        ("blue-green", Some(Strategy::BlueGreen)),
        ("recreate", Some(Strategy::Recreate)),
    ];
    let said = table.read("strategy", |value| values::choice(value, &words));
    let surge = table.read("max_surge", values::allowance);
    let unavailable = table.read("max_unavailable", values::allowance);
    let readable = [("max_surge", &surge), ("max_unavailable", &unavailable)]
        .iter()
        .all(|(key, at)| at.is_some() || !table.has(key));

    // Limits are limits of a rolling upgrade.
    let is_limited = surge.is_some() || unavailable.is_some();
    let strategy = match said {
        Some(said) => said.value(),
        None => is_limited.then_some(Strategy::ROLLING),
    };
    match strategy {
        Some(Strategy::Rolling { max_surge, max_unavailable }) => {
            let at = surge.as_ref().or(unavailable.as_ref()).map_or(table.header(), |at| at.span.clone());
            let max_surge = surge.map_or(max_surge, At::value);
            let max_unavailable = unavailable.map_or(max_unavailable, At::value);
            let stuck = |workers| max_surge.of(workers) == 0 && max_unavailable.of(workers) == 0;
            if readable && workers.is_some_and(stuck) {
                let message = "`max_surge` and `max_unavailable` must not both be zero";
                let help = "let one of them be at least 1, or no worker could ever be replaced";
                problems.conclude(at, Flaw::new(message, "no worker more, and none fewer").help(help));
            }
            Some(Strategy::Rolling { max_surge, max_unavailable })
        }
        other @ (Some(Strategy::BlueGreen | Strategy::Recreate) | None) => {
            for (key, at) in [("max_surge", surge), ("max_unavailable", unavailable)] {
                if let Some(at) = at {
                    let message = format!("`{key}` is ignored unless `strategy = \"rolling\"`");
                    let flaw = Flaw::new(message, "this strategy has no such limit").help("remove it");
                    problems.conclude(at.key, flaw);
                }
            }
            other
        }
    }
}

/// What `[restart]` says.
pub(super) struct Restart {
    pub initial_delay: Duration,
    pub max_delay: Duration,
}

pub(super) fn restart(mut table: Table<'_>, problems: &Problems) -> Restart {
    let initial = table.read("initial_delay", values::positive_duration);
    let max = table.read("max_delay", values::positive_duration);
    let delays = Restart {
        initial_delay: initial.as_ref().map_or(Duration::from_millis(100), |at| at.value),
        max_delay: max.as_ref().map_or(Duration::from_secs(30), |at| at.value),
    };
    let unreadable =
        initial.is_none() && table.has("initial_delay") || max.is_none() && table.has("max_delay");
    table.finish();
    if let Some(at) = max.or(initial).filter(|_| !unreadable && delays.initial_delay > delays.max_delay) {
        let message = format!(
            "`max_delay` ({}) must not be shorter than `initial_delay` ({})",
            Human(delays.max_delay),
            Human(delays.initial_delay)
        );
        problems.conclude(at.span, Flaw::new(message, "the delay grows from the one to the other"));
    }
    delays
}

/// Reads `[watchdog]`; `protocol` is `None` where it could not be read.
pub(super) fn watchdog(
    mut table: Table<'_>,
    protocol: Option<Protocol>,
    problems: &Problems,
) -> Option<Duration> {
    let timeout = table.read("timeout", values::positive_duration);
    if table.is_present() {
        table.require("timeout", r#"such as timeout = "30s"; without the table there is no watchdog"#);
        let silent = match protocol {
            Some(Protocol::Plain) => Some(("plain", "a plain worker says nothing")),
            Some(Protocol::Node) => Some(("node", "a Node worker has no word for it")),
            Some(Protocol::Notify) | None => None,
        };
        if let Some((word, label)) = silent {
            let message = format!("[watchdog] contradicts `protocol = \"{word}\"`");
            let help = "remove [watchdog], or take protocol = \"notify\"";
            problems.conclude(table.header(), Flaw::new(message, label).help(help));
        }
    }
    table.finish();
    timeout.map(At::value)
}

/// Reads `[control]`.
pub(super) fn control(mut table: Table<'_>, origin: &Origin, problems: &Problems) -> ControlSpec {
    let group = table.read("group", values::principal);
    let tcp = table.read("tcp", address::tcp);
    let token_file = table.read("token_file", values::nonempty);
    let local_owner = table.read("local_owner", values::boolean);
    if let Some(at) = &tcp
        && !at.value.ip().to_canonical().is_loopback()
        && !table.has("token_file")
    {
        let message = "`tcp` needs the key `token_file`, as its address is not a loopback one";
        let help = "who comes from elsewhere cannot read the manager's own token: take 127.0.0.1 or [::1], or set \
                    token_file = \"…\" to a file of mode 0600 with a secret of 16 characters at least";
        problems.conclude(at.span.clone(), Flaw::new(message, "other machines may reach it").help(help));
    }
    if let Some(at) = token_file.as_ref().filter(|_| !table.has("tcp")) {
        let flaw = Flaw::new("`token_file` is ignored unless `tcp` is set", "here `tcp` is not set");
        let help = "remove it, or set tcp = \"127.0.0.1:3000\" in [control]";
        problems.conclude(at.key.clone(), flaw.help(help));
    }
    if let Some(at) = local_owner.as_ref().filter(|_| !table.has("tcp")) {
        let flaw = Flaw::new("`local_owner` is ignored unless `tcp` is set", "here `tcp` is not set");
        let help = "remove it, or set tcp = \"127.0.0.1:3000\" in [control]";
        problems.conclude(at.key.clone(), flaw.help(help));
    }
    table.finish();
    ControlSpec {
        local_owner: local_owner.is_some_and(At::value),
        gives_way: false,
        group: group.map(At::value),
        tcp: tcp.map(At::value),
        token_file: token_file.map(|at| origin.absolute(&at.value)),
    }
}

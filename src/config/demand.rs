//! What starts on demand: lazy workers, and a process for each connection; and what cannot be had together with either.

use super::reader::{At, Flaw, Problems, Span, Table};
use super::service::Service;
use crate::core::spec::{Protocol, SocketSpec};

/// The keys of `[upgrade]` that speak of workers.
const UPGRADE: [&str; 5] = ["strategy", "max_surge", "max_unavailable", "min_ready", "probation"];

/// The keys of `[service]` that speak of workers, and where each stands.
pub(super) type OfWorkers = Vec<(&'static str, Span)>;

/// Checks what `[service]` says against the kind of its sockets, and settles what follows from that.
pub(super) fn settle(service: &mut Service, sockets: &[At<SocketSpec>], problems: &Problems) {
    let accepts = |at: &&At<SocketSpec>| at.value.accept.is_some();
    if let Some(accepting) = sockets.iter().find(accepts) {
        if let Some(other) = sockets.iter().find(|at| !accepts(at)) {
            let message = "either all sockets have `accept = true` or none";
            let label = format!("has not, as `{}` has", accepting.value.name);
            let help = "the command is either started for each connection or given the listening sockets";
            problems.conclude(other.span.clone(), Flaw::new(message, label).help(help));
        }
        for (key, span) in &service.of_workers {
            let message = format!("`{key}` is ignored with `accept = true`");
            problems.conclude(span.clone(), Flaw::new(message, "there are no workers").help("remove it"));
        }
        let has_slot = service.process.command.iter().any(|word| word.contains("{slot}"));
        if let Some(span) = service.command_key.as_ref().filter(|_| has_slot) {
            let flaw = Flaw::new("`{slot}` means nothing with `accept = true`", "there are no slots");
            problems.conclude(span.clone(), flaw);
        }
        service.workers = Some(0);
        service.protocol = Some(Protocol::Plain);
        service.process.protocol = Protocol::Plain;
        return;
    }
    let is_lazy = service.lazy.as_ref().is_some_and(|at| at.value);
    if let Some(At { key, .. }) = service.idle_timeout.as_ref().filter(|_| !is_lazy) {
        let flaw = Flaw::new("`idle_timeout` is ignored without `lazy = true`", "nobody would fall asleep");
        problems.conclude(key.clone(), flaw);
    }
    if let Some(At { key, .. }) = service.lazy.as_ref().filter(|at| at.value) {
        let flaw = if service.protocol == Some(Protocol::Node) {
            let help = "a Node program asks for its sockets only when it runs";
            Some(Flaw::new("`lazy` contradicts `protocol = \"node\"`", "which sockets?").help(help))
        } else if sockets.is_empty() {
            Some(Flaw::new("`lazy` needs a [[socket]]", "nothing would ever wake it"))
        } else {
            None
        };
        if let Some(flaw) = flaw {
            problems.conclude(key.clone(), flaw);
        }
    }
}

/// Reports what speaks of workers where each connection has a process of its own.
pub(super) fn refuse_what_is_of_workers(
    tables: [&Table<'_>; 3],
    upgrade: &mut Table<'_>,
    problems: &Problems,
) {
    let refuse = |what: &str, span: Span| {
        let message = format!("{what} is ignored with `accept = true`");
        problems.conclude(span, Flaw::new(message, "there are no workers").help("remove it"));
    };
    for table in tables.into_iter().filter(|table| table.is_present()) {
        refuse(&format!("`{}`", table.name()), table.header());
    }
    for key in UPGRADE {
        if let Some(span) = upgrade.key(key) {
            refuse(&format!("`{key}`"), span);
        }
    }
}

//! How a manager comes to be: anew, or in the place of one that was killed.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use tracing::{info, warn};

use super::cgroups::Cgroups;
use super::checker::PinnedRelease;
use super::control::{Control, say_where};
use super::launch::Heritage;
use super::recovery::{Claim, Family, Found, Judged, Leftover, STATE, Taken};
use super::release::{Refusal, Release, Source};
use super::run::{Daemon, Role};
use super::runtime::{RuntimeDirectory, locate};
use super::sockets::Sockets;
use super::start::{Post, Start};
use super::upward::ServiceManager;
use super::{ManagerError, prepare, raise_descriptor_limit, summary, system_store, watch};
use crate::core::spec::Protocol;
use crate::sys::activation::{self, Inherited};
use crate::sys::kernel;
use crate::sys::pidfd::Pidfd;

/// Makes the manager of a service; a change of one of the `watched` paths will be an upgrade.
///
/// # Errors
///
/// What keeps it from starting.
pub fn begin(source: Source, watched: &[PathBuf], color: bool) -> Result<Daemon, ManagerError> {
    let io = |doing| move |source| ManagerError::Io { doing, source };
    kernel::check()?;
    let (release, program) = match prepare::first_release(&source, color) {
        Ok(PinnedRelease { release, program }) => (Ok(release), program),
        Err(refusal) => (Err(refusal), None),
    };
    let service = match (&release, name_of(&source)) {
        (Ok(release), _) => release.spec.name.clone(),
        (Err(_), Some(service)) => service,
        (Err(refusal), None) => return Err(ManagerError::BadFile(refusal.clone().into())),
    };
    let mut inherited = activation::take()?;
    for path in watched {
        path.metadata().map_err(|source| ManagerError::Watch { path: path.clone(), source })?;
    }
    let mut runtime = RuntimeDirectory::take(&service)?;
    runtime.wait_for_children();
    let nofile = raise_descriptor_limit().map_err(io("raising the limit of open descriptors"))?;
    let heritage = Heritage::take(nofile).with_runtime(runtime.path());
    let upward = ServiceManager::with_store(&inherited);
    let cgroups = Cgroups::find(&service);
    let before = look(&source, &release, (&runtime, &cgroups), &mut inherited);
    match (&before, &release) {
        (Before::Taken(_), Ok(_)) => {}
        (Before::Taken(_), Err(refusal)) => warn!("{}; going on with what it was", refusal.summary),
        (Before::Left(_), Ok(_)) => runtime.clear()?,
        (Before::Left(Left { recorded: Some(_), .. }), Err(refusal)) => {
            warn!("{}; going on with what it was", refusal.summary);
            runtime.clear()?;
        }
        (Before::Left(_), Err(refusal)) => return Err(ManagerError::BadFile(refusal.clone().into())),
    }
    runtime.make_token(matches!(before, Before::Taken(_)))?;
    let control = Control::bind(&runtime.control(), None).map_err(io("binding the control socket"))?;
    let post = Post { heritage, upward, control, cgroups, runtime };
    let mut daemon = match (before, release) {
        (Before::Taken(taken), _) => taken.take_over(post).map_err(io("taking over"))?,
        (Before::Left(mut left), release) => {
            let first = left.recorded.take().map(|recorded| PinnedRelease::again(*recorded, &[]));
            match first.map_or_else(|| release.map(|release| PinnedRelease { release, program }), Ok) {
                Ok(pinned) => anew(source, pinned, inherited, left, post)?,
                Err(refusal) => return Err(ManagerError::BadFile(refusal.into())),
            }
        }
    };
    if !watched.is_empty() {
        let started = watch::start(watched.to_vec()).map_err(io("starting to watch files"))?;
        daemon.host.roles.insert(started, Role::Watcher);
    }
    daemon.origin.is_watched = !watched.is_empty();
    daemon.watch_all().map_err(io("setting up the event loop"))?;
    daemon.runtime.note_use();
    Ok(daemon)
}

/// Returns what a service whose file cannot be used may be called, if a manager has left something there.
fn name_of(source: &Source) -> Option<String> {
    let Source::File(file) = source else { return None };
    let stem = file.file_stem()?.to_str()?.to_owned();
    locate(&stem).join(STATE).exists().then_some(stem)
}

/// What a manager before us has left.
enum Before {
    /// All that it takes to go on.
    Taken(Box<Taken>),
    /// Processes at most, which are to make way for others.
    Left(Left),
}

#[derive(Default)]
struct Left {
    family: Family,
    leftovers: Vec<Leftover>,
    /// What served, where the service file cannot be used now.
    recorded: Option<Box<Release>>,
}

impl Left {
    /// The workers that there are still of a service, and those among them that are known for it in another way.
    fn of(family: Family, known: Vec<Pidfd>) -> Self {
        let mut leftovers = Leftover::all(&family, |_| true);
        for process in known {
            if leftovers.iter().all(|leftover| leftover.pid() != process.pid()) {
                leftovers.push(Leftover::of(process));
            }
        }
        Self { family, leftovers, recorded: None }
    }
}

/// Whether workers of a service may be there that are in no cgroup, by its sockets: only then all processes are looked at.
fn may_have_left(release: &Release) -> bool {
    // Which sockets Node programs ask for is not known before.
    release.spec.process.protocol == Protocol::Node || Found::may_be_there(&prepare::plans(release))
}

/// Looks at what a manager has left that was killed, and takes it over where it can be; says why where it cannot.
fn look(
    source: &Source,
    release: &Result<Release, Refusal>,
    (runtime, cgroups): (&RuntimeDirectory, &Cgroups),
    inherited: &mut Vec<Inherited>,
) -> Before {
    let service = release.as_ref().ok().map(|release| release.spec.name.as_str());
    let family = |service: &str, users, since| {
        Family::find(&Claim { service, runtime: runtime.path(), cgroups, users, since })
    };
    // Without a record nothing says when the first manager was started: any time since the boot will do.
    let left = |known| {
        release.as_ref().map_or_else(
            |_| Left::default(),
            |release| Left::of(family(&release.spec.name, BTreeSet::from([release.user()]), 0), known),
        )
    };
    let recovered = match Judged::read(&runtime.state(), service) {
        Judged::Nothing if runtime.is_left_in_order() => return Before::Left(Left::default()),
        Judged::Nothing if !runtime.is_abandoned() => {
            // Nothing says that there ever was a manager. So it takes a worker's cgroup, or a socket that a manager has made.
            if cgroups.members().is_empty() && !release.as_ref().is_ok_and(may_have_left) {
                return Before::Left(Left::default());
            }
            let left = left(Vec::new());
            let holders = left.family.pids_with(left.leftovers.iter().map(Leftover::pid));
            let is_ours = !cgroups.members().is_empty() || Found::is_anything_there(&holders);
            return Before::Left(if is_ours { left } else { Left::default() });
        }
        Judged::Nothing => return Before::Left(left(Vec::new())),
        Judged::Foreign(name) => {
            warn!("a manager of service `{name}` was killed; what it has left is left alone");
            return Before::Left(left(Vec::new()));
        }
        Judged::Unusable(why) => {
            warn!("the state of the manager before cannot be used, so this one starts anew: {why}");
            return Before::Left(left(Vec::new()));
        }
        Judged::Whole(recovered) => *recovered,
    };
    if release.is_err() && recovered.record.source != *source {
        return Before::Left(Left::default());
    }
    let (pid, all) = (recovered.record.pid, recovered.record.manager.workers().count());
    let (users, since) = (recovered.record.users(), recovered.record.origin.since);
    let (service, served) = (recovered.service().to_owned(), recovered.serving().cloned());
    let claim = Claim { service: &service, runtime: runtime.path(), cgroups, users, since };
    let family = Family::find(&claim);
    match Taken::find(recovered, &family, inherited, &runtime.notify()) {
        Ok(taken) => {
            taken.kill_rest(&claim);
            warn!(
                "the manager before (pid {pid}) was killed; {} of {all} workers are taken over",
                taken.count()
            );
            Before::Taken(Box::new(taken))
        }
        Err((why, survivors)) => {
            warn!("the manager before (pid {pid}) was killed, and this one starts anew: {why}");
            let recorded = served.filter(|_| release.is_err()).map(Box::new);
            Before::Left(Left { recorded, ..Left::of(family, survivors) })
        }
    }
}

/// Makes a manager that begins with generation 1. Whoever serves still is let to until that one does.
fn anew(
    source: Source,
    PinnedRelease { release, program }: PinnedRelease,
    inherited: Vec<Inherited>,
    Left { family, mut leftovers, recorded: _ }: Left,
    mut post: Post,
) -> Result<Daemon, ManagerError> {
    let io = |doing| move |source: io::Error| ManagerError::Io { doing, source };
    if !leftovers.is_empty() {
        warn!("processes of before are there; they drain as soon as others serve: {}", leftovers.len());
    }
    let holders = family.pids_with(leftovers.iter().map(Leftover::pid));
    let kept = Found::any(&holders).unwrap_or_else(|error| {
        let process = &release.spec.process;
        warn!("the sockets of before are lost with the workers that have them, which must go first: {error}");
        Leftover::end_all(
            std::mem::take(&mut leftovers),
            process.drain_signal,
            release.spec.policy.drain_timeout,
        );
        Found::default()
    });
    let (stored, inherited) = inherited.into_iter().partition(system_store::is_ours);
    let kept = kept.and(stored);
    let mut sockets = Sockets::with_kept(&kept.listeners, inherited);
    post.control.open_to(release.control_group);
    post.control.listen_by_tcp(&release, post.runtime.token(), &kept.listeners)?;
    if let (Source::Original(_), Some(address)) = (&source, post.control.tcp_address()) {
        say_where(address);
    }
    let prepared = prepare::prepare_sockets(&mut sockets, &release)?;
    for warning in &release.warnings {
        warn!("{warning}");
    }
    info!("{} runs {} (pid {})", env!("CARGO_PKG_NAME"), summary(&release.spec), std::process::id());
    let newest = family.newest();
    Daemon::new(Start { source, release, program, prepared, sockets, post, leftovers, newest })
        .map_err(io("setting up the event loop"))
}

//! The way from a service file to a generation: read it, run its hook `before`, read it again, bind its sockets.

use std::error::Error;
use std::time::Duration;
use std::{io, mem};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tracing::{error, info, warn};

use super::checker::{self, PinnedRelease, PinnedReleaseState};
use super::host::{Ended, Job};
use super::launch::Common;
use super::loose_ends::Refused;
use super::pre_upgrade::{PreUpgrade, PreUpgradeState};
use super::release::{Refusal, Release, Source, in_words};
use super::run::{Daemon, Generation, Role};
use super::sockets::{Owner, Prepared, SocketError, SocketPlan, Sockets};
use super::target::Wanted;
use super::token::Poller;
use crate::core::Event;
use crate::core::ids::{GenerationId, RequestId};
use crate::core::spec::{Policy, SocketSpec};
use crate::sys::handover::{HandOver, Luggage, Unpacked, hand_over};
use crate::sys::output::wait_readable;
use crate::sys::{process, reaper};

/// How long new workers must stay ready where nothing is said of it.
const MIN_READY: Duration = Duration::from_secs(1);

/// How long each pause in the first check may be.
const FIRST_CHECK: Duration = Duration::from_secs(30);

/// A generation to be, until its sockets are bound or it is refused.
#[derive(Debug)]
pub(super) struct Candidate {
    generation: GenerationId,
    /// Which target it is to have.
    pub(super) wanted: Wanted,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The file is being read, to learn whether it has a hook.
    Reading(Pid),
    /// The file was read.
    Read(Box<PinnedRelease>),
    /// The hook `pre_upgrade` runs, for what was read.
    PreUpgrade(PreUpgrade, Box<Release>),
    /// The hook `before` runs.
    Hook(Pid),
    /// The hooks have run.
    Ran,
    /// The hooks may have changed everything: the file is being read again.
    ReadingAgain(Pid),
    /// Nothing is under way.
    Idle,
}

hand_over!(Candidate as CandidateState { generation: GenerationId, wanted: Wanted, stage: Stage });

/// A [`Stage`] as plain data.
#[derive(Debug, Serialize, Deserialize)]
pub enum StageState {
    Reading(i32),
    Read(Box<PinnedReleaseState>),
    PreUpgrade(PreUpgradeState, Box<Release>),
    Hook(i32),
    Ran,
    ReadingAgain(i32),
    Idle,
}

impl HandOver for Stage {
    type State = StageState;

    fn pack(&self, luggage: &mut Luggage) -> StageState {
        match self {
            Self::Reading(pid) => StageState::Reading(pid.as_raw()),
            Self::Read(pinned) => StageState::Read(Box::new(pinned.pack(luggage))),
            Self::PreUpgrade(hook, release) => StageState::PreUpgrade(hook.pack(luggage), release.clone()),
            Self::Hook(pid) => StageState::Hook(pid.as_raw()),
            Self::Ran => StageState::Ran,
            Self::ReadingAgain(pid) => StageState::ReadingAgain(pid.as_raw()),
            Self::Idle => StageState::Idle,
        }
    }

    fn unpack(state: StageState, luggage: &mut Unpacked) -> io::Result<Self> {
        Ok(match state {
            StageState::Reading(pid) => Self::Reading(Pid::from_raw(pid)),
            StageState::Read(pinned) => Self::Read(Box::new(PinnedRelease::unpack(*pinned, luggage)?)),
            StageState::PreUpgrade(hook, release) => {
                Self::PreUpgrade(PreUpgrade::unpack(hook, luggage)?, release)
            }
            StageState::Hook(pid) => Self::Hook(Pid::from_raw(pid)),
            StageState::Ran => Self::Ran,
            StageState::ReadingAgain(pid) => Self::ReadingAgain(Pid::from_raw(pid)),
            StageState::Idle => Self::Idle,
        })
    }
}

impl Candidate {
    /// Has the output of the hook `pre_upgrade` watched, where that is under way.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`.
    pub(super) fn watch(&self, poller: &Poller) -> io::Result<()> {
        match &self.stage {
            Stage::PreUpgrade(hook, _) => hook.watch(poller),
            Stage::Reading(_)
            | Stage::ReadingAgain(_)
            | Stage::Read(_)
            | Stage::Hook(_)
            | Stage::Ran
            | Stage::Idle => Ok(()),
        }
    }
}

impl Daemon {
    /// Begins to read the service file, for the target that the request names or the one that serves.
    pub(super) fn begin_check(&mut self, generation: GenerationId, target: Option<RequestId>) {
        let named = target.and_then(|request| self.targets.asked.remove(&request));
        let serving = self.generations.get(&self.manager.current()).map(|of| &of.release);
        let wanted = named.map(Wanted::Named).or_else(|| serving.map(Wanted::as_in));
        self.check(generation, wanted.unwrap_or(Wanted::First), true);
    }

    /// Reads the service file: for the first time, with hooks `yet_to_run`, or again.
    fn check(&mut self, generation: GenerationId, wanted: Wanted, yet_to_run: bool) {
        let work = checker::start(&self.source, &wanted, yet_to_run, false);
        match work.and_then(|work| self.begin_job(Role::Checker(generation), Job::work(work), None)) {
            Ok(pid) => {
                let stage = if yet_to_run { Stage::Reading(pid) } else { Stage::ReadingAgain(pid) };
                self.candidate = Some(Candidate { generation, wanted, stage });
            }
            Err(error) => {
                self.refuse(generation, format!("cannot start the check of the service file: {error}"));
            }
        }
    }

    /// Takes the end of a check.
    pub(super) fn checked(&mut self, generation: GenerationId, ended: Ended) {
        let Some(candidate) = self.candidate_of(generation) else { return };
        let again = match mem::replace(&mut candidate.stage, Stage::Idle) {
            Stage::Reading(_) => false,
            Stage::ReadingAgain(_) => true,
            other @ (Stage::Read(_) | Stage::PreUpgrade(..) | Stage::Hook(_) | Stage::Ran | Stage::Idle) => {
                candidate.stage = other;
                return;
            }
        };
        match checker::result(ended) {
            Ok(pinned) if again => self.bind(generation, pinned),
            Ok(pinned) => {
                let hooks = &pinned.release.spec.hooks;
                let hook = hooks.are_any_before().then_some(hooks.timeout);
                candidate.stage = Stage::Read(Box::new(pinned));
                self.inbox.push_back(Event::FileRead(generation, hook));
            }
            Err(refusal) => {
                let details: Vec<_> = refusal.details.lines().map(str::to_owned).collect();
                // A single line says what the summary says.
                let details = Some(details).filter(|lines| lines.len() > 1);
                for line in details.iter().flatten() {
                    warn!("{line}");
                }
                self.loose_ends.refused = Some(Refused::new(&refusal.summary, details, None));
                self.refuse(generation, refusal.summary);
            }
        }
    }

    /// What may become this generation, where anything may.
    pub(super) fn candidate_of(&mut self, generation: GenerationId) -> Option<&mut Candidate> {
        self.candidate.as_mut().filter(|candidate| candidate.generation == generation)
    }

    /// How far what may become the next generation has got.
    pub(super) fn stage(&mut self) -> Option<&mut Stage> {
        self.candidate.as_mut().map(|candidate| &mut candidate.stage)
    }

    pub(super) fn set_stage(&mut self, generation: GenerationId, stage: Stage) {
        if let Some(candidate) = self.candidate_of(generation) {
            candidate.stage = stage;
        }
    }

    /// Has what is yet to be read be of another target.
    pub(super) fn want_target(&mut self, generation: GenerationId, wanted: Wanted) {
        if let Some(candidate) = self.candidate_of(generation) {
            candidate.wanted = wanted;
        }
    }

    /// Binds what was read; where a hook ran since, the file is read again first.
    pub(super) fn prepare(&mut self, generation: GenerationId) {
        let Some(candidate) = &mut self.candidate else { return };
        match mem::replace(&mut candidate.stage, Stage::Idle) {
            Stage::Read(pinned) => self.bind(generation, *pinned),
            Stage::Ran => {
                let wanted = candidate.wanted.clone();
                self.check(generation, wanted, false);
            }
            Stage::Reading(_)
            | Stage::PreUpgrade(..)
            | Stage::Hook(_)
            | Stage::ReadingAgain(_)
            | Stage::Idle => {}
        }
    }

    /// Makes a generation of what an earlier one was made of, without a look at the file.
    pub(super) fn reuse(&mut self, generation: GenerationId, earlier: GenerationId) {
        let there = self.generations.get(&earlier).map(|of| (&of.release, &of.program));
        let kept = self.kept.as_ref().filter(|(id, _)| *id == earlier);
        match there.or(kept.map(|(_, pinned)| (&pinned.release, &pinned.program))) {
            Some((release, program)) => {
                // Without one of its own it is started by its path.
                let program = program.as_ref().and_then(|program| program.try_clone().ok());
                let release = Release { is_brought_back: true, begun_with: None, ..release.clone() };
                self.bind(generation, PinnedRelease { release, program });
            }
            None => self.refuse(generation, format!("generation {earlier} is not there; a bug of liveswap")),
        }
    }

    fn bind(&mut self, generation: GenerationId, PinnedRelease { release, program }: PinnedRelease) {
        self.candidate = None;
        for warning in &release.warnings {
            warn!("generation {generation}: {warning}");
        }
        let name = &self.generations[&self.manager.current()].release.spec.name;
        if *name != release.spec.name {
            let why = format!(
                "the service's name cannot change from `{name}` to `{}` while it runs: give the file its old name back, or stop the \
                 service and start it anew",
                release.spec.name
            );
            self.refuse(generation, why);
            return;
        }
        let common = match Common::of(&release, generation, &self.heritage) {
            Ok(common) => common,
            Err(error) => return self.refuse(generation, error.to_string()),
        };
        let control_tcp = match self.prepare_control(&release) {
            Ok(control_tcp) => control_tcp,
            Err(error) => return self.refuse_with_hint(generation, &error, error.hint()),
        };
        match prepare_sockets(&mut self.sockets, &release) {
            Ok(sockets) => {
                let policy = self.policy_of(&release);
                let code = release.code_beside(&self.generations[&self.manager.current()].release);
                self.generations
                    .insert(generation, Generation { release, program, common, sockets, control_tcp });
                self.journal.needs_snapshot();
                self.watch_sockets();
                self.inbox.push_back(Event::Prepared(generation, policy, code));
            }
            Err(error) => self.refuse_with_hint(generation, &error, error.hint()),
        }
    }

    /// What the core decides by: where the file does not say how long new workers must stay ready, who develops and sees each
    /// change at once does not wait.
    fn policy_of(&self, release: &Release) -> Policy {
        let mut policy = release.spec.policy.clone();
        let min_ready = if self.origin.is_watched { Duration::ZERO } else { MIN_READY };
        policy.min_ready.get_or_insert(min_ready);
        policy
    }

    fn refuse_with_hint(&mut self, generation: GenerationId, error: &dyn Error, hint: Option<String>) {
        if let Some(hint) = &hint {
            warn!("generation {generation}: hint: {hint}");
        }
        let reason = in_words(error);
        self.loose_ends.refused = Some(Refused::new(&reason, None, hint));
        self.refuse(generation, reason);
    }

    fn refuse(&mut self, generation: GenerationId, why: String) {
        self.inbox.push_back(Event::PreparationFailed(generation, why));
    }

    /// Ends what runs for the candidate; the reaper finds nobody waiting for it.
    pub(super) fn cancel_preparation(&mut self, generation: GenerationId) {
        self.let_go(generation);
        let Some(candidate) = self.candidate.take_if(|candidate| candidate.generation == generation) else {
            return;
        };
        let pid = match candidate.stage {
            Stage::Reading(pid) | Stage::ReadingAgain(pid) | Stage::Hook(pid) => pid,
            Stage::PreUpgrade(hook, _) => hook.pid(),
            Stage::Read(_) | Stage::Ran | Stage::Idle => return,
        };
        self.host.give_up(pid);
    }

    /// Gives the sockets that `generation` holds the options that it wants.
    pub(super) fn restore_sockets(&mut self, generation: GenerationId) {
        self.put_back_tuning();
        let Some(of) = self.generations.get(&generation) else { return };
        self.journal.needs_snapshot();
        for error in self.sockets.revert(&plans(&of.release)) {
            error!("generation {generation}: {}", in_words(&error));
        }
    }
}

/// Binds, or takes over, all sockets of a release in one transaction.
///
/// # Errors
///
/// What failed; then nothing has changed.
pub(super) fn prepare_sockets(sockets: &mut Sockets, release: &Release) -> Result<Prepared, SocketError> {
    let prepared =
        sockets.prepare(&plans(release)).map_err(|error| error.beside(release.spec.control.tcp))?;
    for note in &prepared.notes {
        info!("{note}");
    }
    for warning in &prepared.warnings {
        warn!("{warning}");
    }
    Ok(prepared)
}

/// The sockets of a release, with their owners.
pub(super) fn plans(release: &Release) -> Vec<SocketPlan> {
    let plan = |(spec, owner): (&SocketSpec, &Owner)| SocketPlan { spec: spec.clone(), owner: *owner };
    release.spec.sockets.iter().zip(&release.owners).map(plan).collect()
}

/// Reads the definition of the service for the first generation, and waits for it: there is nothing yet that this could harm.
///
/// # Errors
///
/// Everything that is wrong.
pub(super) fn first_release(source: &Source, color: bool) -> Result<PinnedRelease, Refusal> {
    let failed = |error: io::Error| Refusal::new(&format!("cannot check the service file: {error}"));
    let wanted = if matches!(source, Source::File(_)) { Wanted::First } else { Wanted::Typed };
    let mut work = checker::start(source, &wanted, false, color).map_err(failed)?;
    let mut said = Vec::new();
    while !work.read(&mut said).map_err(failed)? {
        if !wait_readable(&work, FIRST_CHECK).map_err(failed)? {
            let _ = process::kill_tree(work.pid);
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
    }
    let exit = reaper::wait_until_ended(work.pid).map_err(failed)?;
    checker::result(Ended { said, file: work.file.take(), ..Ended::by(exit) })
}

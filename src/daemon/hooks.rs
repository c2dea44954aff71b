//! The hooks round an upgrade: `pre_upgrade` and `before`, one after the other, and `after`.

use std::mem;

use tracing::{info, warn};

use super::host::Job;
use super::launch::{self, Common, Place};
use super::prepare::Stage;
use super::release::Release;
use super::run::{Daemon, Role};
use crate::core::Event;
use crate::core::ids::GenerationId;
use crate::core::notice::Outcome;
use crate::sys::spawn::spawn;

impl Daemon {
    /// Runs what is to run before an upgrade: `pre_upgrade`, then `before`.
    pub(super) fn run_hooks(&mut self, generation: GenerationId) {
        // They may make another program: the file is read again after them.
        if let Some(Stage::Read(pinned)) = self.stage().map(|stage| mem::replace(stage, Stage::Idle))
            && let Some(release) = self.run_pre_upgrade(generation, Box::new(pinned.release))
        {
            self.run_before(generation, &release);
        }
    }

    /// Runs the hook `before`, where there is one.
    pub(super) fn run_before(&mut self, generation: GenerationId, release: &Release) {
        if release.spec.hooks.before.is_empty() {
            self.set_stage(generation, Stage::Ran);
            self.inbox.push_back(Event::HookEnded(generation, Ok(())));
            return;
        }
        let hook = Common::of(release, generation, &self.heritage).and_then(|common| {
            let place = Place { release, common: &common, generation, slot: None };
            spawn(launch::helper(place, &release.spec.hooks.before, &[])?)
        });
        let begin = |hook| self.begin_job(Role::Before(generation), Job::program(hook), None);
        match hook.and_then(begin) {
            Ok(pid) => {
                info!("generation {generation}: running the hook `before` (pid {pid})");
                self.set_stage(generation, Stage::Hook(pid));
            }
            Err(error) => {
                let how = format!("the hook `before` could not be started: {error}");
                self.inbox.push_back(Event::HookEnded(generation, Err(how)));
            }
        }
    }

    /// Takes the end of a hook that ran before an upgrade; `how` it ended, and whether with status 0.
    pub(super) fn before_ended(&mut self, generation: GenerationId, done: bool, how: &str) {
        let stage = self.candidate_of(generation);
        let result = match stage.map(|candidate| mem::replace(&mut candidate.stage, Stage::Ran)) {
            Some(Stage::PreUpgrade(hook, release)) => {
                return self.pre_upgrade_ended(generation, (hook, &release), (done, how));
            }
            _ if done => Ok(()),
            _ => Err(format!("the hook `before` {how}")),
        };
        self.inbox.push_back(Event::HookEnded(generation, result));
    }

    /// Runs the hook `after`, where there is one.
    pub(super) fn run_after(&mut self, generation: GenerationId, outcome: &Outcome) {
        let place =
            self.generations.get(&generation).or_else(|| self.generations.get(&self.manager.current()));
        let Some(of) = place.filter(|of| !of.release.spec.hooks.after.is_empty()) else { return };
        let told = ("LIVESWAP_OUTCOME", outcome.word().to_owned());
        // A refused generation was never made: its hook is the current one's, and hears of the refused one.
        let common = Common::of(&of.release, generation, &self.heritage);
        let launch = common.and_then(|common| {
            let place = Place { release: &of.release, common: &common, generation, slot: None };
            launch::helper(place, &of.release.spec.hooks.after, &[told])
        });
        let patience = Some(of.release.spec.hooks.timeout);
        let begin = |hook| self.begin_job(Role::After(generation), Job::program(hook), patience);
        if let Err(error) = launch.and_then(spawn).and_then(begin) {
            warn!("generation {generation}: cannot run the hook `after`: {error}");
        }
    }
}

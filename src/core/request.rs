//! What is asked for on the control socket: each request is answered once, with its own truth.

use super::generation::MAX_WORKERS;
use super::ids::{GenerationId, RequestId};
use super::manager::{Manager, Stop};
use super::notice::{Notice, Outcome};
use super::time::Mono;
use super::upgrade::{Origin, Phase};
use super::{Action, Scale, Wish};

/// The reason of an upgrade that somebody has taken back.
const TAKEN_BACK: &str = "a rollback was asked for";

impl Manager {
    pub(super) fn asked(&mut self, now: Mono, request: RequestId, wish: Wish, out: &mut Vec<Action>) {
        match wish {
            Wish::UpgradeTo => self.ask_upgrade_to(request, out),
            Wish::Rollback => self.ask_rollback(now, request, out),
            Wish::RespawnNow => self.ask_respawn_now(request, out),
            Wish::Scale(scale) => self.ask_scale(request, scale, out),
            Wish::Stop | Wish::Kill if self.stop == Some(Stop::Ended) => {
                out.push(Action::Answer(request, Outcome::Committed));
            }
            Wish::Stop => {
                self.awaiting_end.push(request);
                // Who asks for a drain once more wants to wait for it, not to cut it short.
                if self.stop.is_none() {
                    self.stop(now, out);
                }
            }
            Wish::Kill => {
                self.awaiting_end.push(request);
                self.kill(out);
            }
        }
    }

    /// Takes back the upgrade under way, or else goes back to the generation before the current one.
    ///
    /// Two who want to go back at the same time want the same: the second does not undo what the first has begun.
    fn ask_rollback(&mut self, now: Mono, request: RequestId, out: &mut Vec<Action>) {
        if self.refuse_when_stopping(Some(request), out) {
            return;
        }
        let Some(upgrade) = self.upgrade_mut() else {
            if let Some(earlier) = self.previous {
                self.begin_upgrade(now, Origin::Earlier(earlier), vec![request], out);
            } else {
                let why = format!(
                    "there is no generation before generation {}: a rollback goes back from an upgrade",
                    self.current
                );
                out.push(Action::Answer(request, Outcome::Refused(why)));
            }
            return;
        };
        if matches!(upgrade.origin, Origin::Earlier(_)) {
            upgrade.requests.push(request);
            return;
        }
        upgrade.undo.push(request);
        match upgrade.phase {
            Phase::Checking { .. } => self.refuse(TAKEN_BACK.into(), out),
            Phase::Surging { .. } | Phase::Probation { .. } => self.roll_back(now, TAKEN_BACK.into(), out),
            Phase::RollingBack { .. } => {}
        }
    }

    fn ask_scale(&mut self, request: RequestId, scale: Scale, out: &mut Vec<Action>) {
        if self.refuse_when_stopping(Some(request), out) {
            return;
        }
        let wanted = self.scaled(scale);
        let is_bad = |strength: &u32| !(1..=MAX_WORKERS).contains(strength);
        let outcome = if wanted.is_empty() {
            Outcome::Refused(
                "each connection has a process of its own, whatever the number of workers".into(),
            )
        } else if let Some(strength) = wanted.iter().map(|(_, strength)| *strength).find(is_bad) {
            Outcome::Refused(format!("a service has 1 to {MAX_WORKERS} workers, not {strength}"))
        } else {
            self.set_strengths(wanted, out);
            Outcome::Committed
        };
        out.push(Action::Answer(request, outcome));
    }

    /// Obeys a signal, which nobody answers: as far as may be.
    pub(super) fn scale_within_bounds(&mut self, by: i32, out: &mut Vec<Action>) {
        if self.stop.is_none() {
            let wanted = self.scaled(Scale::By(by)).into_iter();
            let wanted = wanted.map(|(id, strength)| (id, strength.clamp(1, MAX_WORKERS)));
            self.set_strengths(wanted.collect(), out);
        }
    }

    /// Returns what the generations that may serve would have; in an upgrade both sides, so that the wish outlives
    /// either outcome.
    fn scaled(&self, scale: Scale) -> Vec<(GenerationId, u32)> {
        let new = self.upgrade().map(|upgrade| upgrade.to);
        let sides = [Some(self.current), new].into_iter().flatten();
        let sides = sides.filter_map(|id| Some((id, self.generations.get(&id)?)));
        // Where each connection has a process there is nothing to scale.
        let sides = sides.filter(|(_, of)| of.policy.workers > 0);
        sides.map(|(id, of)| (id, of.scaled(scale))).collect()
    }

    fn set_strengths(&mut self, wanted: Vec<(GenerationId, u32)>, out: &mut Vec<Action>) {
        for (id, strength) in wanted {
            self.generations.entry(id).and_modify(|generation| generation.strength = strength);
            out.push(Action::Tell(Notice::Scaled(id, strength)));
        }
    }
}

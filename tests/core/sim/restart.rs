//! What outlives the machine's memory: the records of the releases, and which release a manager started now would begin with.
//!
//! The rule is checked from the history of outcomes alone, after each event: a release that was rolled back is not started again by a
//! restart while another one has served, and a release with nothing against it is.

use std::collections::BTreeMap;

use liveswap::core::Manager;
use liveswap::core::head::{Rejection, instead, rejection};
use liveswap::core::ids::GenerationId;
use liveswap::core::notice::{Notice, Outcome};

use super::checker::Verdict;

/// A release is known by the first generation that was made of it.
type ReleaseId = GenerationId;

/// What a generation was made of.
#[derive(Clone, Copy, Debug)]
struct Source {
    release: ReleaseId,
    /// What the service file named, where an upgrade chose this release by its name instead.
    passes_over: Option<ReleaseId>,
    is_brought_back: bool,
}

/// The service file and the records beside it.
pub struct Disk {
    /// What the service file names.
    named: ReleaseId,
    serving: Option<ReleaseId>,
    rejected: Option<ReleaseId>,
    /// What the service file named when an upgrade chose the serving release instead.
    chosen: Option<ReleaseId>,
    sources: BTreeMap<GenerationId, Source>,
    /// The releases that served or failed since the last upgrade to a new one was committed, each with what became of it.
    history: Vec<(ReleaseId, Fate)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Serves,
    Failed,
    /// An operator went back from it.
    Left,
}

impl Disk {
    pub fn new() -> Self {
        let first = GenerationId(1);
        let source = Source { release: first, passes_over: None, is_brought_back: false };
        Self {
            named: first,
            serving: None,
            rejected: None,
            chosen: None,
            sources: BTreeMap::from([(first, source)]),
            history: Vec::new(),
        }
    }

    /// Takes that the service file names a new release, or that a request names one, which leaves the file as it is.
    pub fn prepare(&mut self, id: GenerationId, by_name: bool) {
        if !by_name {
            self.named = id;
        }
        let passes_over = by_name.then_some(self.named);
        self.sources.insert(id, Source { release: id, passes_over, is_brought_back: false });
    }

    /// Takes that a generation is made of what an earlier one was.
    pub fn reuse(&mut self, id: GenerationId, earlier: GenerationId) {
        let source = Source { is_brought_back: true, ..self.sources[&earlier] };
        self.sources.insert(id, source);
    }

    /// Writes down what a notice means for the next manager.
    pub fn record(&mut self, notice: &Notice, manager: &Manager) {
        self.remember(notice, manager);
        let brought_back = |id| self.sources.get(&id).is_some_and(|source| source.is_brought_back);
        let verdict = rejection(notice, manager.previous(), brought_back);
        if verdict.is_none() && !matches!(notice, Notice::Serving(_)) {
            return;
        }
        let source = self.sources[&manager.current()];
        if manager.has_served() {
            (self.serving, self.chosen) = (Some(source.release), source.passes_over);
        }
        match verdict {
            Some(Rejection::Of(id)) => self.rejected = self.sources.get(&id).map(|source| source.release),
            Some(Rejection::Cleared) => self.rejected = None,
            None => {}
        }
    }

    /// The history, from the outcomes alone.
    fn remember(&mut self, notice: &Notice, manager: &Manager) {
        let release = |id: &GenerationId| self.sources.get(id).map(|source| source.release);
        let fate = match notice {
            Notice::Serving(id) => (release(id), Fate::Serves),
            Notice::RollingBack(id, _) | Notice::UpgradeEnded(id, Outcome::RolledBack(_)) => {
                // A manager that was killed may not have told that it served.
                let serving = release(&manager.current()).filter(|_| manager.has_served());
                self.history.extend(serving.map(|serving| (serving, Fate::Serves)));
                (release(id), Fate::Failed)
            }
            Notice::UpgradeEnded(id, Outcome::Committed) => {
                if self.sources.get(id).is_some_and(|source| source.is_brought_back) {
                    let left = manager.previous().and_then(|id| release(&id));
                    self.history.extend(left.map(|left| (left, Fate::Left)));
                } else {
                    self.history.clear();
                }
                (release(id), Fate::Serves)
            }
            _ => return,
        };
        if let (Some(release), fate) = fate {
            self.history.push((release, fate));
        }
    }

    /// Checks what a manager would start with if the machine were reset now.
    pub fn check_restart(&self) -> Verdict {
        let passed_over = self.chosen == Some(self.named);
        let serving = self.serving.as_ref();
        let why =
            serving.and_then(|serving| instead(&self.named, serving, self.rejected.as_ref(), passed_over));
        let starts = why.map_or(Some(self.named), |_| self.serving);
        let serves = self.history.iter().rev().find(|(_, fate)| *fate == Fate::Serves).map(|(id, _)| *id);
        let failed = self.history.iter().rev().find(|(_, fate)| *fate != Fate::Serves).map(|(id, _)| *id);
        let named_then = serves.and_then(|id| self.sources[&id].passes_over);
        let has_reason = failed == Some(self.named) || named_then == Some(self.named);
        let expected = serves.filter(|_| has_reason).unwrap_or(self.named);
        if starts == Some(expected) {
            return Ok(());
        }
        Err(format!("a restart begins with {starts:?} instead of {expected}: {why:?}, {:?}", self.history))
    }
}

//! Which release the next manager starts with, as far as this one knows: what to record, and how to read the records.
//!
//! A release outlives the manager in two records: the release that serves, and the release that was rolled back last. A third one says
//! that an upgrade chose the serving release by its name.

use super::ids::GenerationId;
use super::notice::{Notice, Outcome};

/// What a notice says of the release that was rolled back last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// It is the release of this generation.
    Of(GenerationId),
    /// A release was committed since: there is none.
    Cleared,
}

/// Returns what a notice says of the release that was rolled back last; `None` if it says nothing. `previous` is the generation that served
/// before, and `brought_back` tells whether a generation is an earlier one started again.
pub fn rejection(
    notice: &Notice,
    previous: Option<GenerationId>,
    brought_back: impl FnOnce(GenerationId) -> bool,
) -> Option<Rejection> {
    match notice {
        // At once: bringing the old generation back to full strength may take long.
        Notice::RollingBack(failed, _) | Notice::UpgradeEnded(failed, Outcome::RolledBack(_)) => {
            Some(Rejection::Of(*failed))
        }
        // A rollback that an operator asked for rejects the release that served until then.
        Notice::UpgradeEnded(to, Outcome::Committed) => match previous.filter(|_| brought_back(*to)) {
            Some(previous) => Some(Rejection::Of(previous)),
            None => Some(Rejection::Cleared),
        },
        _ => None,
    }
}

/// Why a manager does not start with the release that the service file names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// That release was rolled back.
    RolledBack,
    /// An upgrade chose another one by its name, and the service file names what it named then.
    PassedOver,
}

/// Returns why a manager starts with the `serving` release, as recorded, instead of the `named` one, the release that the service file
/// names; `None` if it starts with that. `passed_over` tells whether an upgrade chose another one by its name instead.
pub fn instead<R: PartialEq>(named: &R, serving: &R, rejected: Option<&R>, passed_over: bool) -> Option<Why> {
    if serving == named {
        return None;
    }
    let why_passed = passed_over.then_some(Why::PassedOver);
    if rejected == Some(named) { Some(Why::RolledBack) } else { why_passed }
}

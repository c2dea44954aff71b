//! What happens, as the clients of `events` are told.

use serde::{Deserialize, Serialize};

use crate::core::notice::{Loudness, Notice};
use crate::core::printable::printable;

/// Something that happened, as `events` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventLine {
    /// The word for it.
    pub event: String,
    /// The generation that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The worker that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u64>,
    /// The worker's place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// The worker's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How an upgrade ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether someone should look at it.
    pub warning: bool,
    /// The line of the log.
    pub text: String,
}

impl EventLine {
    /// Makes the line of a notice, whose `text` the log has; what is known of the worker is for the caller to add. Its texts
    /// are printable, as they quote others and are read by people.
    pub fn new(notice: &Notice, text: &str) -> Self {
        let (outcome, reason) = match notice {
            Notice::UpgradeEnded(_, outcome) => (Some(outcome.word()), outcome.reason()),
            Notice::RollingBack(_, reason) => (None, Some(reason.as_str())),
            Notice::RespawnEnded(_, result) => (None, result.as_ref().err().map(String::as_str)),
            _ => (None, None),
        };
        let (worker, slot) = match notice {
            Notice::Worker(worker, _) => (Some(worker.0), None),
            Notice::Backoff(_, slot, _) => (None, Some(slot.0)),
            _ => (None, None),
        };
        Self {
            event: notice.word().into(),
            generation: notice.generation().map(|id| id.0),
            worker,
            slot,
            pid: None,
            outcome: outcome.map(Into::into),
            reason: reason.map(|reason| printable(reason).into_owned()),
            warning: notice.loudness() == Loudness::Warning,
            text: printable(text).into_owned(),
        }
    }
}

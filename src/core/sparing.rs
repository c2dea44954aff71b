//! Telling of what happens again and again: now and then, with how often it was left out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::time::Mono;

/// In this time the log tells so many times of the same, and then no more.
const WINDOW: Duration = Duration::from_secs(60);

/// What was told of one thing, which others may cause as often as they like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sparing {
    /// How often since the window began.
    told: u32,
    /// How often it was left out since it was told last.
    untold: u64,
    began: Option<Mono>,
}

impl Sparing {
    /// Counts one more time. Returns whether to tell of it, with the number of those left out before; `most` are told within a
    /// minute.
    pub fn note(&mut self, now: Mono, most: u32) -> Option<u64> {
        if self.began.is_none_or(|began| now >= began + WINDOW) {
            (self.told, self.began) = (0, Some(now));
        }
        if self.told >= most {
            self.untold += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

/// Says in a log line how often the same was left out before it; nothing where it was not.
#[must_use]
pub fn more(untold: u64) -> String {
    if untold == 0 { String::new() } else { format!("; {untold} more since the last report") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> Mono {
        Mono::ZERO + Duration::from_secs(second)
    }

    #[test]
    fn a_few_are_told_in_a_minute_and_the_others_counted() {
        let mut sparing = Sparing::default();
        let told: Vec<_> = (0..70).map(|at| sparing.note(second(at), 2)).collect();
        assert_eq!(told[..3], [Some(0), Some(0), None]);
        assert_eq!(told[59..63], [None, Some(58), Some(0), None]);
    }

    #[test]
    fn what_is_rare_is_always_told() {
        let mut sparing = Sparing::default();
        assert!((0..9).all(|at| sparing.note(second(at * 61), 1) == Some(0)));
    }
}

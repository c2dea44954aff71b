//! Time as the core knows it: an argument, never a clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A moment, in microseconds since the manager started (`CLOCK_MONOTONIC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mono(pub u64);

impl Mono {
    /// The start of the manager.
    pub const ZERO: Self = Self(0);
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Returns the time since `earlier`, or zero where `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Mono {
    type Output = Self;

    /// Saturates at [`Mono::NEVER`].
    fn add(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }
}

impl Sub for Mono {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}

/// A duration as the logs and the status write it: `850 ms`, `1.5 s`, `2 min 5 s`, `3 h 20 min`.
#[derive(Clone, Copy, Debug)]
pub struct Human(pub Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let (minutes, hours) = (ms / 60_000, ms / 3_600_000);
        match ms {
            0 if !self.0.is_zero() => write!(f, "{} µs", self.0.as_micros()),
            0..1_000 => write!(f, "{ms} ms"),
            1_000..60_000 if ms % 1_000 < 50 => write!(f, "{} s", ms / 1_000),
            1_000..60_000 => write!(f, "{}.{} s", ms / 1_000, ms % 1_000 / 100),
            60_000..3_600_000 if ms % 60_000 < 1_000 => write!(f, "{minutes} min"),
            60_000..3_600_000 => write!(f, "{minutes} min {} s", ms % 60_000 / 1_000),
            _ if minutes % 60 == 0 => write!(f, "{hours} h"),
            _ => write!(f, "{hours} h {} min", minutes % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_for_people() {
        let text = |ms| Human(Duration::from_millis(ms)).to_string();
        assert_eq!(text(0), "0 ms");
        assert_eq!(text(850), "850 ms");
        assert_eq!(text(1_000), "1 s");
        assert_eq!(text(1_550), "1.5 s");
        assert_eq!(text(60_000), "1 min");
        assert_eq!(text(125_000), "2 min 5 s");
        assert_eq!(text(12_000_000), "3 h 20 min");
        assert_eq!(Human(Duration::from_micros(12)).to_string(), "12 µs");
    }

    #[test]
    fn a_moment_far_off_does_not_overflow() {
        assert_eq!(Mono(5) + Duration::MAX, Mono::NEVER);
        assert_eq!(Mono(5).since(Mono(9)), Duration::ZERO);
    }
}

//! What came of the requests: counts, reasons and times, in bounded memory.

use std::collections::BTreeMap;
use std::time::Duration;

/// How many different reasons of failure are told apart; the rest is counted as one.
const REASONS: usize = 16;

/// The counts over all requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    answered: BTreeMap<u32, u64>,
    failures: BTreeMap<String, u64>,
    times: Histogram,
}

impl Tally {
    /// Counts a request that `release` answered rightly.
    pub fn answered(&mut self, release: u32, took: Duration) {
        *self.answered.entry(release).or_default() += 1;
        self.times.record(took);
    }

    /// Counts a request that failed.
    pub fn failed(&mut self, reason: String) {
        let known = self.failures.len() < REASONS || self.failures.contains_key(&reason);
        let reason = if known { reason } else { "other reasons".to_owned() };
        *self.failures.entry(reason).or_default() += 1;
    }

    /// Returns the number of requests that have ended, in whichever way.
    pub fn requests(&self) -> u64 {
        self.answered.values().sum::<u64>() + self.failures()
    }

    /// Returns the number of requests that failed.
    pub fn failures(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Returns why requests failed, and how many for each reason.
    pub fn reasons(&self) -> &BTreeMap<String, u64> {
        &self.failures
    }

    /// Returns how many requests each release answered.
    pub fn by_release(&self) -> &BTreeMap<u32, u64> {
        &self.answered
    }

    /// Returns how long the answers took.
    pub fn times(&self) -> &Histogram {
        &self.times
    }
}

/// Each power of two is cut into this many buckets, so a quantile is right to a sixteenth.
const BUCKETS_PER_OCTAVE: u64 = 16;

/// Enough for times up to a minute; what is beyond falls into the last.
const BUCKETS: usize = 384;

/// A distribution of times: exact below 32 µs, to a sixteenth above.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    slowest: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], slowest: Duration::ZERO }
    }
}

impl Histogram {
    fn record(&mut self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts[bucket(micros)] += 1;
        self.slowest = self.slowest.max(took);
    }

    /// Returns the longest time, exactly.
    pub fn slowest(&self) -> Duration {
        self.slowest
    }

    /// Returns the time within which `percent` of all lie, or zero if there are none.
    pub fn within(&self, percent: u64) -> Duration {
        let wanted = (self.counts.iter().sum::<u64>() * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen > 0 && seen >= wanted {
                return Duration::from_micros(upper_bound(bucket)).min(self.slowest);
            }
        }
        Duration::ZERO
    }
}

/// The bucket of a time: its leading five bits, after how often it must be halved to have no more.
fn bucket(micros: u64) -> usize {
    let halvings = u64::from((u64::BITS - micros.leading_zeros()).saturating_sub(5));
    let index = halvings * BUCKETS_PER_OCTAVE + (micros >> halvings);
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The longest time in a bucket, in microseconds.
fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let halvings = (bucket / BUCKETS_PER_OCTAVE).saturating_sub(1);
    ((bucket - halvings * BUCKETS_PER_OCTAVE + 1) << halvings) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_ends_where_the_next_begins() {
        for index in 0..BUCKETS - 1 {
            let last = upper_bound(index);
            assert_eq!(bucket(last), index);
            assert_eq!(bucket(last + 1), index + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(upper_bound(BUCKETS - 1) > 60_000_000, "a minute has a bucket of its own");
    }

    #[test]
    fn quantiles_are_right_to_a_sixteenth() {
        let mut tally = Tally::default();
        assert_eq!(tally.times().within(99), Duration::ZERO);
        for ms in 1..=1000 {
            tally.answered(1, Duration::from_millis(ms));
        }
        for (percent, exact) in [(50, 500), (90, 900), (99, 990)] {
            let exact = Duration::from_millis(exact);
            let found = tally.times().within(percent);
            assert!(found >= exact && found <= exact + exact / 16, "{percent} %: {found:?}");
        }
        assert_eq!(tally.times().within(100), Duration::from_secs(1));
        assert_eq!(tally.times().slowest(), Duration::from_secs(1));
    }

    #[test]
    fn reasons_are_counted_and_bounded() {
        let mut tally = Tally::default();
        for number in 0..100 {
            tally.failed(format!("reason {number}"));
            tally.failed("reason 0".to_owned());
        }
        assert_eq!(tally.failures(), 200);
        assert_eq!(tally.reasons()["reason 0"], 101);
        assert_eq!(tally.reasons().len(), REASONS + 1);
    }
}

//! Where everything in a run comes from: a seed.

use std::time::Duration;

/// The random numbers of one seed (SplitMix64), the same on every machine and for ever.
#[derive(Clone)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `count - 1`.
    pub fn below(&mut self, count: u32) -> u32 {
        u32::try_from(self.next() % u64::from(count)).expect("the rest is below a u32")
    }

    /// True once in so many times.
    pub fn one_in(&mut self, count: u32) -> bool {
        self.below(count) == 0
    }

    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let count = u32::try_from(from.len()).expect("there are few to choose from");
        from[self.below(count) as usize].clone()
    }

    /// A time up to `most`, short ones as likely as long ones, and none at all now and then.
    pub fn time(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).expect("no time is that long");
        let shrunk = most >> (2 * self.below(10));
        Duration::from_micros(self.next() % (shrunk + 1))
    }
}

//! Chance that can be had again.

/// Dice by xorshift64*, so that a seed tells the whole story.
pub struct Dice(pub u64);

impl Dice {
    /// A number from 0 to `bound - 1`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(number).expect("it has 31 bits") % bound
    }
}

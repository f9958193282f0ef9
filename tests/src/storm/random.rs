//! [`Random`]: numbers that look random and are the same for the same seed, so that a failure can be had again.

/// A splitmix64 generator: the mixing function of Steele, Lea and Flood (OOPSLA 2014), with which a handful of
/// lines passes the usual tests of randomness.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers depend on both arguments.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        random.number();
        random
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.number() % (high - low + 1)
    }

    /// A number from `low` (at least 1) to `high`, each order of magnitude as likely as the others.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let unit = self.number() as f64 / u64::MAX as f64;
        let number = low as f64 * (high as f64 / low as f64).powf(unit);
        (number as u64).clamp(low, high)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.number().is_multiple_of(times)
    }

    /// One of these.
    ///
    /// # Panics
    /// There are none.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.between(0, of.len() as u64 - 1) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_in_their_range_and_repeat_with_the_seed() {
        let (mut one, mut two) = (Random::new(7, 1), Random::new(7, 1));
        for _ in 0..1000 {
            assert!((3..=9).contains(&one.between(3, 9)));
            assert!((1..=1 << 20).contains(&one.magnitude(1, 1 << 20)));
            two.between(3, 9);
            two.magnitude(1, 1 << 20);
        }
        assert_eq!(one.number(), two.number());
        assert_ne!(Random::new(7, 1).number(), Random::new(7, 2).number());
    }
}

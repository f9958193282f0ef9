//! [`Random`]: numbers that look random and are the same for the same seed, so that a failure can be had again.

/// What a round draws from.
#[derive(Debug, Clone)]
pub struct Random(fastrand::Rng);

impl Random {
    /// A generator whose numbers depend on both arguments.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93)))
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.u64(low..=high)
    }

    /// A number from `low` (at least 1) to `high`, each order of magnitude as likely as the others.
    pub fn magnitude(&mut self, low: u64, high: u64) -> u64 {
        let unit = self.0.f64();
        let number = low as f64 * (high as f64 / low as f64).powf(unit);
        (number as u64).clamp(low, high)
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.0.u64(..times) == 0
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
        assert_eq!(one.between(0, u64::MAX), two.between(0, u64::MAX));
        assert_ne!(Random::new(7, 1).between(0, u64::MAX), Random::new(7, 2).between(0, u64::MAX));
    }
}

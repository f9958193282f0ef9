//! [`Samples`]: durations, and what to say about them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Measured durations, every one of them: a round has thousands at most, and percentiles of those are exact.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Samples {
    nanos: Vec<u64>,
}

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.nanos.push(sample.as_nanos() as u64);
    }

    /// Adds all of another round.
    pub fn extend(&mut self, other: &Self) {
        self.nanos.extend_from_slice(&other.nanos);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.nanos.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nanos.is_empty()
    }

    /// All of them together.
    pub fn total(&self) -> Duration {
        Duration::from_nanos(self.nanos.iter().sum())
    }

    /// The duration below which this share of the samples lies, 0.5 being the median; `None` where there are too
    /// few to say: a 99th percentile of fifty samples would be a worst case under another name.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let needed = (1.0 / (1.0 - share)).floor() as usize / 2;
        if self.nanos.len() < needed.max(1) {
            return None;
        }
        let mut sorted = self.nanos.clone();
        let index = ((sorted.len() - 1) as f64 * share).round() as usize;
        let (_, nanos, _) = sorted.select_nth_unstable(index);
        Some(Duration::from_nanos(*nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(nanos: impl IntoIterator<Item = u64>) -> Samples {
        Samples { nanos: nanos.into_iter().collect() }
    }

    #[test]
    fn percentiles_are_those_of_the_samples_in_order() {
        let samples = of((1..=1001).rev());
        assert_eq!(samples.percentile(0.5), Some(Duration::from_nanos(501)));
        assert_eq!(samples.percentile(0.99), Some(Duration::from_nanos(991)));
        assert_eq!(samples.percentile(0.999), Some(Duration::from_nanos(1000)));
    }

    #[test]
    fn a_percentile_that_too_few_samples_stand_behind_is_not_given() {
        assert_eq!(of([]).percentile(0.5), None);
        assert_eq!(of([7]).percentile(0.5), Some(Duration::from_nanos(7)));
        assert_eq!(of(0..40).percentile(0.99), None);
        assert!(of(0..50).percentile(0.99).is_some());
        assert_eq!(of(0..400).percentile(0.999), None);
    }
}

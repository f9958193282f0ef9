//! [`Samples`]: durations, and what to say about them.

use std::time::Duration;

/// Measured durations, in order of size.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// The duration below which this share of the samples lies; 0.5 is the median.
    ///
    /// # Panics
    /// When there are no samples.
    pub fn percentile(&self, share: f64) -> Duration {
        let last = self.0.len().checked_sub(1).expect("there are samples");
        self.0[((last as f64 * share).round() as usize).min(last)]
    }

    /// The median.
    ///
    /// # Panics
    /// When there are no samples.
    pub fn median(&self) -> Duration {
        self.percentile(0.5)
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(samples: I) -> Self {
        let mut samples: Vec<_> = samples.into_iter().collect();
        samples.sort_unstable();
        Self(samples)
    }
}

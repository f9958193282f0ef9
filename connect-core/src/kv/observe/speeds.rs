//! The two speeds of transfers, which are not the same thing: [`SpeedMeter`] and [`Speeds`].

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Two speeds in GB/s, 10^9 bytes per second. Zero where nothing was moved.
///
/// With one transfer at a time they are equal. When transfers share a link each one gets slower and the link does not:
/// a low speed per transfer says what a request waits for, and a low aggregate speed says that the link could do more.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct Speeds {
    /// What one transfer has: all bytes, by the durations of all transfers added up.
    pub per_transfer: f64,
    /// What all have together: all bytes, by the wall-clock time in which at least one transfer was in flight.
    pub aggregate: f64,
}

/// Adds transfers up to [`Speeds`].
///
/// ```
/// use std::time::{Duration, Instant};
/// use connect_core::kv::SpeedMeter;
///
/// let (mut meter, began) = (SpeedMeter::default(), Instant::now());
/// let after = |seconds| began + Duration::from_secs(seconds);
/// // Two transfers of 6 GB, side by side for most of their time. Nothing is in flight after the sixth second.
/// meter.record(6_000_000_000, after(0), after(4));
/// meter.record(6_000_000_000, after(2), after(6));
/// assert_eq!((meter.speeds().per_transfer, meter.speeds().aggregate), (1.5, 2.0));
/// ```
#[derive(Debug, Clone, Default)]
pub struct SpeedMeter {
    bytes: u64,
    /// The durations of all transfers, added up.
    moving: Duration,
    busy: Busy,
}

impl SpeedMeter {
    /// One transfer that has ended. In any order; what ended long before others is best said first.
    pub fn record(&mut self, bytes: u64, began: Instant, ended: Instant) {
        self.bytes += bytes;
        self.moving += ended.saturating_duration_since(began);
        self.busy.add(began, ended);
    }

    /// Of all transfers so far.
    pub fn speeds(&self) -> Speeds {
        let per = |time: Duration| {
            if time.is_zero() { 0.0 } else { self.bytes as f64 / time.as_secs_f64() / 1e9 }
        };
        Speeds { per_transfer: per(self.moving), aggregate: per(self.busy.time) }
    }
}

/// Stretches of time that later transfers may still overlap. A transfer that lasted for longer than so many others that
/// did not touch each other is counted from the end of those.
const MAX_STRETCHES: usize = 1024;

/// The time in which at least one transfer was in flight.
#[derive(Debug, Clone, Default)]
struct Busy {
    /// In order, and apart from each other.
    stretches: VecDeque<(Instant, Instant)>,
    /// Before this, nothing is added any more.
    until: Option<Instant>,
    time: Duration,
}

impl Busy {
    fn add(&mut self, began: Instant, ended: Instant) {
        let began = self.until.map_or(began, |until| began.max(until));
        if ended <= began {
            return;
        }
        let first = self.stretches.partition_point(|(_, end)| *end < began);
        let after = self.stretches.partition_point(|(start, _)| *start <= ended);
        let mut whole = (began, ended);
        for (start, end) in self.stretches.drain(first..after) {
            whole = (whole.0.min(start), whole.1.max(end));
            self.time -= end - start;
        }
        self.time += whole.1 - whole.0;
        self.stretches.insert(first, whole);
        if self.stretches.len() > MAX_STRETCHES {
            self.until = self.stretches.pop_front().map(|(_, end)| end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn time_without_a_transfer_counts_for_neither_speed() {
        let (mut meter, began) = (SpeedMeter::default(), Instant::now());
        let after = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(meter.speeds(), Speeds::default());
        meter.record(2_000_000_000, after(0), after(1));
        meter.record(2_000_000_000, after(9), after(10));
        assert_eq!(meter.speeds(), Speeds { per_transfer: 2.0, aggregate: 2.0 });
        // One that lasted all the while, and is heard of last.
        meter.record(6_000_000_000, after(0), after(10));
        assert_eq!(meter.speeds(), Speeds { per_transfer: 10.0 / 12.0, aggregate: 1.0 });
    }

    #[test]
    fn transfers_side_by_side_are_slow_each_and_fast_together() {
        let (mut meter, began) = (SpeedMeter::default(), Instant::now());
        for _ in 0..4 {
            meter.record(1_000_000_000, began, began + Duration::from_secs(1));
        }
        assert_eq!(meter.speeds(), Speeds { per_transfer: 1.0, aggregate: 4.0 });
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_time_stays_right() {
        let (mut meter, began) = (SpeedMeter::default(), Instant::now());
        for n in 0..10_000 {
            let at = began + Duration::from_secs(2 * n);
            meter.record(1, at, at + Duration::from_secs(1));
        }
        assert_eq!((meter.busy.stretches.len(), meter.busy.time.as_secs()), (MAX_STRETCHES, 10_000));
        // Longer than what is remembered: from there on it counts.
        meter.record(1, began, began + Duration::from_secs(20_000));
        let (early, late) = (10_000 - MAX_STRETCHES as u64, 2 * MAX_STRETCHES as u64);
        assert_eq!(meter.busy.time.as_secs(), early + late + 1);
    }

    proptest! {
        /// As marking each millisecond would.
        #[test]
        fn the_time_in_flight_is_the_union_of_all_transfers(transfers in prop::collection::vec((0usize..200, 0usize..40), 0..40)) {
            let (mut busy, began, mut marks) = (Busy::default(), Instant::now(), [false; 240]);
            for (start, len) in transfers {
                let at = |n: usize| began + Duration::from_millis(n as u64);
                busy.add(at(start), at(start + len));
                marks[start..start + len].fill(true);
            }
            prop_assert_eq!(busy.time.as_millis() as usize, marks.iter().filter(|mark| **mark).count());
            let apart: Vec<_> = busy.stretches.iter().copied().collect();
            prop_assert!(apart.windows(2).all(|pair| pair[0].1 < pair[1].0));
        }
    }
}

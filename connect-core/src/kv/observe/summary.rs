//! One line about many transfers: [`TransferSummary`].

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use super::speeds::{SpeedMeter, Speeds};
use crate::Report;

/// What the transfers of an engine were like, and what went wrong. Its `Display` is one line.
///
/// Transfers are those that this engine made: reads, and pushes. Those that peers made in its memory have their times
/// there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub struct TransferSummary {
    /// The time it is about.
    pub over: Duration,
    /// Transfers that completed; a hand-off in several chunks is several.
    pub transfers: u64,
    /// Bytes they moved.
    pub bytes: u64,
    /// Descriptors they moved them in.
    pub descriptors: u64,
    /// From being posted until complete, on average.
    pub mean_transfer: Duration,
    /// What nine of ten of the latest took at most.
    pub p90_transfer: Duration,
    /// Getting ready until posted, on average.
    pub mean_post: Duration,
    /// What nine of ten of the latest took at most.
    pub p90_post: Duration,
    /// Both speeds.
    pub speeds: Speeds,
    /// What failed, of any kind: see `kv::metrics` for the kinds.
    pub failed: u64,
    /// Leases of this engine's whose taker fell silent.
    pub expired: u64,
    /// Messages about hand-offs that this engine had given up by then.
    pub late: u64,
}

impl fmt::Display for TransferSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let each = |all: u64| all as f64 / self.transfers.max(1) as f64;
        write!(
            f,
            "{} transfers in {:.1} s: {:.2} ms on average, p90 {:.2} ms; posting {:.2} ms, p90 {:.2} ms; {:.2} MB in \
             {:.1} descriptors each; {:.2} GB/s per transfer, {:.2} GB/s aggregate; {} failed, {} leases expired, {} late \
             notifications",
            self.transfers,
            self.over.as_secs_f64(),
            ms(self.mean_transfer),
            ms(self.p90_transfer),
            ms(self.mean_post),
            ms(self.p90_post),
            each(self.bytes) / 1e6,
            each(self.descriptors),
            self.speeds.per_transfer,
            self.speeds.aggregate,
            self.failed,
            self.expired,
            self.late,
        )
    }
}

/// Adds up to a [`TransferSummary`].
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) began: Instant,
    bytes: u64,
    descriptors: u64,
    transfer: Times,
    post: Times,
    meter: SpeedMeter,
    pub(super) failed: u64,
    pub(super) expired: u64,
    pub(super) late: u64,
}

impl Tally {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            bytes: 0,
            descriptors: 0,
            transfer: Times::default(),
            post: Times::default(),
            meter: SpeedMeter::default(),
            failed: 0,
            expired: 0,
            late: 0,
        }
    }

    pub(super) fn transferred(&mut self, now: Instant, report: &Report) {
        self.bytes += report.bytes;
        self.descriptors += report.descriptors as u64;
        self.transfer.add(report.transfer);
        self.post.add(report.posting);
        self.meter.record(report.bytes, now.checked_sub(report.transfer).unwrap_or(now), now);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.transfer.count + self.failed + self.expired + self.late == 0
    }

    pub(super) fn summary(&self, now: Instant) -> TransferSummary {
        TransferSummary {
            over: now.saturating_duration_since(self.began),
            transfers: self.transfer.count,
            bytes: self.bytes,
            descriptors: self.descriptors,
            mean_transfer: self.transfer.mean(),
            p90_transfer: self.transfer.p90(),
            mean_post: self.post.mean(),
            p90_post: self.post.p90(),
            speeds: self.meter.speeds(),
            failed: self.failed,
            expired: self.expired,
            late: self.late,
        }
    }
}

/// Of so many latest transfers the ninth tenth is known.
const MAX_LATEST: usize = 1024;

#[derive(Debug, Default)]
struct Times {
    count: u64,
    sum: Duration,
    latest: VecDeque<Duration>,
}

impl Times {
    fn add(&mut self, time: Duration) {
        self.count += 1;
        self.sum += time;
        if self.latest.len() == MAX_LATEST {
            self.latest.pop_front();
        }
        self.latest.push_back(time);
    }

    fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.sum.as_secs_f64() / self.count.max(1) as f64)
    }

    fn p90(&self) -> Duration {
        let mut sorted: Vec<_> = self.latest.iter().copied().collect();
        sorted.sort_unstable();
        // The smallest that nine of ten do not exceed.
        let rank = (sorted.len() * 9).div_ceil(10);
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(milliseconds: u64) -> Report {
        Report {
            bytes: 1_000_000,
            descriptors: 3,
            peer: None,
            backend: "local".to_owned(),
            queued: Duration::ZERO,
            posting: Duration::from_millis(1),
            transfer: Duration::from_millis(milliseconds),
            total: Duration::from_millis(milliseconds + 1),
        }
    }

    #[test]
    fn the_line_says_what_a_watcher_asks_for() {
        let began = Instant::now();
        let mut tally = Tally::new(began);
        assert!(tally.is_empty());
        for n in 1..=10 {
            // One after the other, with pauses.
            tally.transferred(began + Duration::from_secs(n), &report(n));
        }
        tally.failed = 2;
        tally.expired = 1;
        let summary = tally.summary(began + Duration::from_secs(10));
        assert_eq!(summary.mean_transfer, Duration::from_micros(5500));
        assert_eq!(summary.p90_transfer, Duration::from_millis(9));
        assert_eq!(
            summary.to_string(),
            "10 transfers in 10.0 s: 5.50 ms on average, p90 9.00 ms; posting 1.00 ms, p90 1.00 ms; 1.00 MB in 3.0 \
             descriptors each; 0.18 GB/s per transfer, 0.18 GB/s aggregate; 2 failed, 1 leases expired, 0 late \
             notifications"
        );
        assert!(!tally.is_empty());
    }

    #[test]
    fn only_the_latest_times_are_kept() {
        let mut times = Times::default();
        (0..5000).for_each(|n| times.add(Duration::from_millis(n)));
        assert_eq!((times.count, times.latest.len()), (5000, MAX_LATEST));
        assert_eq!(times.mean(), Duration::from_micros(2_499_500));
        assert_eq!(Times::default().p90(), Duration::ZERO);
    }
}

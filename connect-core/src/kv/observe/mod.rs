//! What hand-offs tell whoever watches: spans, one line of summary, and, by the feature `metrics`, metrics.
//!
//! [`Observer`] is called from where hand-offs meet the world, and never by what decides about them.

#[cfg(feature = "metrics")]
pub mod metrics;
mod speeds;
mod summary;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::Span;
use tracing::field::Empty;

use super::KvError;
use crate::Report;
#[cfg(feature = "metrics")]
use crate::blocks::BlockCounts;
use crate::error::Error;

pub use speeds::{SpeedMeter, Speeds};
use summary::Tally;
pub use summary::TransferSummary;

/// Which way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    In,
    Out,
}

/// What kind of thing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// A peer can't be connected to, or its card does not fit.
    Handshake,
    /// Bytes could not be moved.
    Transfer,
    /// A message could not be sent.
    Notify,
    /// A lease ended.
    Lease,
    /// Somebody gave the hand-off up.
    Cancel,
}

#[cfg(feature = "metrics")]
impl Failure {
    const ALL: [Self; 5] = [Self::Handshake, Self::Transfer, Self::Notify, Self::Lease, Self::Cancel];

    fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Transfer => "transfer",
            Self::Notify => "notify",
            Self::Lease => "lease",
            Self::Cancel => "cancel",
        }
    }
}

impl From<&KvError> for Failure {
    fn from(error: &KvError) -> Self {
        match error {
            KvError::Incompatible { .. } | KvError::UnknownEngine { .. } => Self::Handshake,
            KvError::LeaseExpired { .. } => Self::Lease,
            KvError::Aborted { .. } | KvError::Transfer(Error::Cancelled { .. }) => Self::Cancel,
            KvError::Malformed(_)
            | KvError::Blocks(_)
            | KvError::DeadlineExceeded { .. }
            | KvError::Transfer(_)
            | KvError::ShutDown => Self::Transfer,
        }
    }
}

/// Tells of one engine's hand-offs.
pub(super) struct Observer {
    #[cfg(feature = "metrics")]
    engine: String,
    transport: &'static str,
    /// How often the line is logged.
    every: Option<Duration>,
    tallies: Mutex<Tallies>,
}

struct Tallies {
    /// Since the engine started.
    all: Tally,
    /// Since the line was logged last.
    recent: Tally,
    /// When gauges are to be set again.
    #[cfg(feature = "metrics")]
    next_levels: Instant,
}

impl Observer {
    pub(super) fn new(engine: &str, transport: &'static str, every: Option<Duration>) -> Self {
        #[cfg(feature = "metrics")]
        metrics::describe();
        let now = Instant::now();
        tracing::debug!(engine, transport, "hand-offs begin");
        Self {
            #[cfg(feature = "metrics")]
            engine: engine.to_owned(),
            transport,
            every,
            tallies: Mutex::new(Tallies {
                all: Tally::new(now),
                recent: Tally::new(now),
                #[cfg(feature = "metrics")]
                next_levels: now,
            }),
        }
    }

    // --- spans ------------------------------------------------------------------------------------------

    /// Around the transfers of one hand-off. What it moved is [recorded](record) when that is known.
    pub(super) fn transfer_span(&self, request: &str, peer: &str, mode: &'static str) -> Span {
        let transport = self.transport;
        tracing::info_span!("kv.transfer", request, peer, bytes = Empty, descriptors = Empty, mode, transport)
    }

    // --- what happened ----------------------------------------------------------------------------------

    /// This side made a transfer.
    pub(super) fn transferred(&self, report: &Report, direction: Direction) {
        let now = Instant::now();
        self.both(|tally| tally.transferred(now, report));
        #[cfg(feature = "metrics")]
        metrics::transferred(report);
        self.moved(report.bytes, direction);
    }

    /// Bytes came or went, in a transfer of either side.
    #[cfg_attr(not(feature = "metrics"), expect(unused_variables, reason = "only metrics tell of them"))]
    pub(super) fn moved(&self, bytes: u64, direction: Direction) {
        #[cfg(feature = "metrics")]
        metrics::moved(bytes, direction);
    }

    /// A peer was connected to.
    pub(super) fn connected(&self, took: Duration) {
        tracing::debug!(?took, "connected");
        #[cfg(feature = "metrics")]
        metrics::connected(took);
    }

    pub(super) fn failed(&self, failure: impl Into<Failure>) {
        let failure = failure.into();
        tracing::debug!(?failure, "failed");
        self.both(|tally| tally.failed += 1);
        #[cfg(feature = "metrics")]
        metrics::failed(failure);
    }

    /// A taker fell silent.
    pub(super) fn expired(&self) {
        self.both(|tally| tally.expired += 1);
        #[cfg(feature = "metrics")]
        metrics::expired();
        self.failed(Failure::Lease);
    }

    /// Somebody spoke of a hand-off that had been given up.
    pub(super) fn late(&self) {
        self.both(|tally| tally.late += 1);
        #[cfg(feature = "metrics")]
        metrics::late();
    }

    // --- what is so now ---------------------------------------------------------------------------------

    /// Since the engine started.
    pub(super) fn summary(&self) -> TransferSummary {
        self.lock().all.summary(Instant::now())
    }

    /// When something is to be told, whatever happens.
    pub(super) fn next(&self) -> Option<Instant> {
        let tallies = self.lock();
        let line =
            self.every.filter(|_| !tallies.recent.is_empty()).map(|every| tallies.recent.began + every);
        #[cfg(feature = "metrics")]
        let line = Some(line.map_or(tallies.next_levels, |line| line.min(tallies.next_levels)));
        line
    }

    /// Logs the line when it is time and there is something to say.
    pub(super) fn log_if_due(&self, now: Instant) {
        let Some(every) = self.every else { return };
        let mut tallies = self.lock();
        if now < tallies.recent.began + every {
            return;
        }
        let recent = std::mem::replace(&mut tallies.recent, Tally::new(now));
        drop(tallies);
        if !recent.is_empty() {
            tracing::info!(transport = self.transport, "KV transfers: {}", recent.summary(now));
        }
    }

    /// Sets gauges when it is time.
    #[cfg(feature = "metrics")]
    pub(super) fn set_levels_if_due(&self, now: Instant, levels: impl FnOnce() -> (u64, BlockCounts)) {
        let is_due = {
            let mut tallies = self.lock();
            let is_due = now >= tallies.next_levels;
            if is_due {
                tallies.next_levels = now + metrics::EVERY;
            }
            is_due
        };
        if is_due {
            let (leases, blocks) = levels();
            self.set_levels(leases, blocks);
        }
    }

    /// Sets gauges.
    #[cfg(feature = "metrics")]
    pub(super) fn set_levels(&self, leases: u64, blocks: BlockCounts) {
        metrics::levels(&self.engine, leases, blocks);
    }

    fn both(&self, change: impl Fn(&mut Tally)) {
        let mut tallies = self.lock();
        change(&mut tallies.all);
        change(&mut tallies.recent);
    }

    /// A poisoned lock means a panic between plain additions.
    fn lock(&self) -> MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes into a transfer's span what was moved.
pub(super) fn record(span: &Span, reports: &[Report]) {
    span.record("bytes", reports.iter().map(|report| report.bytes).sum::<u64>());
    span.record("descriptors", reports.iter().map(|report| report.descriptors).sum::<usize>());
}

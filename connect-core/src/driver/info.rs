//! What everybody may know of an operation: [`OpInfo`], shared by its handle, the driver and the watchdog.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::error::{Context, Error};
use crate::op::slot::{Outcome, Slot};
use crate::op::{OperationName, OperationStatus, Report};
use crate::stats::{self, Counters};

/// The constant facts of one operation, and the slot for its answers.
pub(crate) struct OpInfo {
    pub(crate) id: u64,
    pub(crate) name: OperationName,
    pub(crate) transport: &'static str,
    pub(crate) bytes: u64,
    pub(crate) descriptors: usize,
    pub(crate) created: Instant,
    pub(crate) clock: Clock,
    pub(crate) deadline: Option<Instant>,
    /// The other side's name, once known.
    pub(crate) peer: OnceLock<String>,
    pub(crate) slot: Slot,
    /// Cancelled or dropped by its caller. Tells the driver not to start it, if it comes in time; the command
    /// that follows ends an operation that has started.
    pub(crate) withdrawn: AtomicBool,
    pub(crate) span: tracing::Span,
    pub(crate) counters: Arc<Counters>,
}

impl OpInfo {
    pub(crate) fn context(&self) -> Box<Context> {
        Box::new(Context {
            operation: self.name,
            id: self.id,
            transport: self.transport,
            peer: self.peer.get().cloned(),
            bytes: self.bytes,
            elapsed: self.clock.now().saturating_duration_since(self.created),
        })
    }

    pub(crate) fn deadline_exceeded(&self) -> Error {
        let limit = self.deadline.map(|at| at.saturating_duration_since(self.created)).unwrap_or_default();
        Error::DeadlineExceeded { context: self.context(), limit }
    }

    /// What somebody gets who only waited: nothing was moved.
    pub(crate) fn waited(&self) -> Report {
        let total = self.clock.now().saturating_duration_since(self.created);
        Report {
            bytes: 0,
            descriptors: 0,
            peer: None,
            backend: String::new(),
            queued: total,
            posting: Duration::ZERO,
            transfer: Duration::ZERO,
            total,
        }
    }

    /// The watchdog: the deadline passed and the driver has not said so. The memory stays with the driver.
    pub(crate) fn answer_for_a_stuck_driver(&self) {
        let outcome = Outcome { result: Err(self.deadline_exceeded()), memory: None };
        let count = || {
            stats::add(&self.counters.failed, 1);
            stats::add(&self.counters.deadlines_missed, 1);
        };
        if self.slot.settle(OperationStatus::Errored, outcome, count) {
            tracing::warn!(parent: &self.span, "the transport is stuck in a call; the deadline passed meanwhile");
        }
    }
}

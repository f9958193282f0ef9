//! The ends of operations: what the state machine says is told to the caller, counted, and done with the memory.
//!
//! Memory leaves the driver here and nowhere else: into the slot with a verdict, or freed once it is quiet.

use std::sync::Arc;

use super::operation::Operation;
use super::{CANCEL_GRACE, Driver};
use crate::error::{Cancellation, Error};
use crate::op::slot::Outcome;
use crate::op::state::{Event, Memory, Verdict, Why};
use crate::op::{OperationKind, Report};
use crate::stats;

impl Driver {
    /// Feeds the state machine and does what it says.
    pub(super) fn happened(&mut self, id: u64, event: Event) {
        let Some(operation) = self.operations.get_mut(&id) else { return };
        let step = operation.machine.on(event);
        if step.memory == Memory::Watch && !std::mem::replace(&mut operation.watched, true) {
            let now = self.clock.now();
            operation.grace_ends = now + CANCEL_GRACE;
            self.watched.push(id);
            self.next_watch = Some(now);
        }
        let release = step.memory == Memory::Release;
        if !release && step.verdict.is_none() {
            return;
        }
        let Some(mut operation) = self.operations.remove(&id) else { return };
        if let Some(verdict) = step.verdict {
            self.settle(&mut operation, verdict, release);
        }
        if release {
            self.forget(operation);
        } else {
            self.operations.insert(id, operation);
        }
    }

    /// Tells the caller how an operation ended, and hands over its memory if that is quiet.
    pub(super) fn settle(&mut self, operation: &mut Operation, verdict: Verdict, quiet: bool) {
        let info = Arc::clone(&operation.info);
        self.deadlines.remove(&info);
        stats::sub(&self.counters.open, 1);
        let result = self.verdict_to_result(operation, verdict, quiet);
        let memory = if quiet { operation.memory.take() } else { None };
        if !quiet {
            operation.parked = true;
            stats::add(&self.counters.parked, 1);
            stats::add(&self.counters.parked_bytes, info.bytes);
        }
        match &result {
            Ok(report) => tracing::debug!(parent: &info.span, ?report, "complete"),
            Err(error) => tracing::debug!(parent: &info.span, %error, parked = !quiet, "ended"),
        }
        let outgoing = info.name.is_passive() == (info.name.kind() == OperationKind::Read);
        let moved = if outgoing { &self.counters.bytes_sent } else { &self.counters.bytes_received };
        let counted = match verdict {
            Verdict::Complete => &self.counters.completed,
            Verdict::Stopped(Why::Cancelled) => &self.counters.cancelled,
            Verdict::Failed | Verdict::Stopped(_) => &self.counters.failed,
        };
        // The watchdog may have answered, and counted, for this thread; then the memory is simply freed.
        info.slot.settle(operation.machine.status(), Outcome { result, memory }, || {
            stats::add(counted, 1);
            if verdict == Verdict::Complete {
                stats::add(moved, info.bytes);
            }
            if verdict == Verdict::Stopped(Why::Deadline) {
                stats::add(&self.counters.deadlines_missed, 1);
            }
        });
    }

    fn verdict_to_result(
        &self,
        operation: &mut Operation,
        verdict: Verdict,
        quiet: bool,
    ) -> Result<Report, Error> {
        let info = &operation.info;
        match verdict {
            Verdict::Complete => Ok(operation.report(self.transport.backend())),
            Verdict::Failed => Err(operation.error.take().unwrap_or(Error::ShutDown)),
            Verdict::Stopped(Why::Cancelled) => {
                let outcome = match (operation.opened_at, quiet) {
                    (None, _) => Cancellation::NeverStarted,
                    (Some(_), true) => Cancellation::Drained,
                    (Some(_), false) => Cancellation::Parked,
                };
                Err(Error::Cancelled { context: info.context(), outcome })
            }
            Verdict::Stopped(Why::Deadline) => Err(info.deadline_exceeded()),
            Verdict::Stopped(Why::ShutDown) => Err(Error::ShutDown),
        }
    }

    /// Drops what is left of a finished operation.
    pub(super) fn forget(&mut self, mut operation: Operation) {
        if let Some((offer, key)) = &operation.offer {
            self.offers.remove(offer);
            self.keys.remove(key);
        }
        // It counts as parked until it is gone.
        drop(operation.memory.take());
        if operation.parked {
            stats::sub(&self.counters.parked, 1);
            stats::sub(&self.counters.parked_bytes, operation.info.bytes);
            tracing::debug!(parent: &operation.info.span, "parked memory is quiet and freed");
        }
    }
}

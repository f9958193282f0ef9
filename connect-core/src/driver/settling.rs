//! The ends of operations: what the state machine says is told to the caller, counted, and done with the memory.
//!
//! Memory leaves the driver here and nowhere else: into the slot with a verdict, or freed once it is quiet.

use std::sync::Arc;

use super::operation::Operation;
use super::{CANCEL_GRACE, Deadlines, Driver, OpInfo};
use crate::accelerator::{self, Accelerator};
use crate::error::{Cancellation, Error};
use crate::op::slot::Outcome;
use crate::op::state::{Event, Memory, Verdict, Why};
use crate::op::{OperationStatus, Report};
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
        let (status, deadlines) = (operation.machine.status(), Arc::clone(&self.deadlines));
        let arrived = verdict == Verdict::Complete && info.name.is_incoming();
        let ending = Ending { info, verdict, status, outcome: Outcome { result, memory }, deadlines };
        match operation.accelerators.first() {
            Some(first) if arrived => {
                let (accelerators, wake) = (operation.accelerators.clone(), self.transport.waker());
                stats::add(&self.counters.awaiting_devices, 1);
                accelerator::run_on_thread_of(first.device(), move || {
                    let counters = Arc::clone(&ending.info.counters);
                    ending.tell_when_visible(&accelerators);
                    stats::sub(&counters.awaiting_devices, 1);
                    // For a driver that wants to end.
                    wake();
                });
            }
            _ => ending.tell(),
        }
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
        operation.bind();
        // It counts as parked until it is gone.
        drop(operation.memory.take());
        if operation.parked {
            stats::sub(&self.counters.parked, 1);
            stats::sub(&self.counters.parked_bytes, operation.info.bytes);
            tracing::debug!(parent: &operation.info.span, "parked memory is quiet and freed");
        }
    }
}

/// What the caller of an operation is about to be told. Until then the watchdog keeps the deadline.
struct Ending {
    info: Arc<OpInfo>,
    verdict: Verdict,
    status: OperationStatus,
    outcome: Outcome,
    deadlines: Arc<Deadlines>,
}

impl Ending {
    fn tell(self) {
        let Self { info, verdict, status, outcome, deadlines } = self;
        deadlines.remove(&info);
        let counters = &info.counters;
        let moved = if info.name.is_incoming() { &counters.bytes_received } else { &counters.bytes_sent };
        let counted = match verdict {
            Verdict::Complete => &counters.completed,
            Verdict::Stopped(Why::Cancelled) => &counters.cancelled,
            Verdict::Failed | Verdict::Stopped(_) => &counters.failed,
        };
        // The watchdog may have answered, and counted, in the meantime; then the memory is simply freed.
        info.slot.settle(status, outcome, || {
            stats::add(counted, 1);
            if verdict == Verdict::Complete {
                stats::add(moved, info.bytes);
            }
            if verdict == Verdict::Stopped(Why::Deadline) {
                stats::add(&counters.deadlines_missed, 1);
            }
        });
    }

    /// The same, once the device sees what arrived (P3). This blocks.
    fn tell_when_visible(mut self, accelerators: &[Arc<dyn Accelerator>]) {
        if let Err(error) = accelerator::synchronize(accelerators) {
            self.verdict = Verdict::Failed;
            self.status = OperationStatus::Errored;
            self.outcome.result = Err(Error::Memory(error));
        }
        self.tell();
    }
}

//! The driver's last steps: ending what is open, waiting for what is in flight, letting the transport go.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Driver, Request, channel};
use crate::error::Error;
use crate::op::OperationStatus;
use crate::op::slot::{Opened, Outcome};
use crate::op::state::Why;
use crate::stats;
use crate::transport::closed::Closed;

impl Driver {
    pub(super) fn begin_closing(&mut self, waiting: Option<Request>) {
        let first = self.closing.is_none();
        self.closing.get_or_insert_default().extend(waiting);
        if first {
            self.end_all_waiting();
            // In the order of their creation, so that the same schedule ends the same way twice.
            let mut ids: Vec<u64> = self.operations.keys().copied().collect();
            ids.sort_unstable();
            for id in ids {
                self.stop(id, Why::ShutDown);
            }
        }
    }

    pub(super) fn closing_deadline(&self) -> Option<Instant> {
        self.closing.as_ref()?.iter().filter_map(|request| request.0.deadline).min()
    }

    /// Says whether the driver is done. Offers whose peers are unknown become quiet when the transport
    /// itself is gone, so only transfers in flight are waited for.
    pub(super) fn finish_closing(&mut self, now: Instant) -> bool {
        let awaited = self.counters.awaiting_devices.load(Ordering::Relaxed) > 0;
        let done = !self.transport.has_transfers_in_flight() && !awaited;
        let waiting = self.closing.as_mut().map(std::mem::take).unwrap_or_default();
        let (answered, still_waiting): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|Request(info)| done || info.deadline.is_some_and(|at| at <= now));
        if !done {
            for Request(info) in &answered {
                let outcome = Outcome { result: Err(info.deadline_exceeded()), memory: None };
                info.slot.settle(OperationStatus::Errored, outcome, || {});
                self.deadlines.remove(info);
            }
            self.closing = Some(still_waiting);
            return false;
        }
        self.lingers_for = self.transport.linger();
        self.drop_transport();
        self.closing = Some(answered);
        true
    }

    /// After the last turn: frees what was parked until the transport was gone, and tells those who wait for
    /// that.
    pub(super) fn finish(&mut self) {
        if !self.operations.is_empty() || self.registrations.are_leaving() {
            // Nobody is kept waiting by this beyond a deadline: the watchdog answers for this thread.
            self.clock.sleep(self.lingers_for);
        }
        for (_, operation) in std::mem::take(&mut self.operations) {
            self.forget(operation);
        }
        self.forget_registrations();
        for Request(info) in self.closing.take().iter().flatten() {
            info.slot.open(Opened::default());
            self.deadlines.remove(info);
        }
    }

    /// Replaces the transport by one that is closed. With it go its registrations and connections: nothing
    /// of this connector is reachable after that.
    fn drop_transport(&mut self) {
        self.transport = Box::new(Closed::after(self.transport.as_ref()));
    }

    /// After a panic: every caller gets an answer, no memory is freed.
    pub(super) fn abandon_everything(&mut self) {
        for operation in self.operations.values_mut() {
            let outcome = Outcome { result: Err(Error::ShutDown), memory: None };
            operation.info.slot.settle(OperationStatus::Errored, outcome, || {
                stats::add(&self.counters.failed, 1);
                stats::sub(&self.counters.open, 1);
            });
        }
        self.end_all_waiting();
        // Those who wait for the end answer for themselves when they are dropped.
        drop(self.closing.take());
        // The driver is about to be forgotten, but its inbox must go: commands in it and those still to come
        // answer for themselves when they are dropped.
        self.inbox = channel().1;
    }
}

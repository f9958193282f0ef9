//! Memory that stays registered for longer than one operation, and those who wait for a piece of it.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use super::{Command, Driver, PARKED_INTERVAL, Port, Request};
use crate::Region;
use crate::accelerator::{self, Accelerators};
use crate::error::{Cancellation, Error};
use crate::op::OperationStatus;
use crate::op::slot::{Opened, Outcome};
use crate::op::state::Why;
use crate::stats;
use crate::transport::{Quiescence, RegistrationId, TransportError};

/// Registrations that one connector keeps: each is one more thing that an engine looks through, and whoever needs so
/// many has one large slab in mind.
const MAX_REGISTRATIONS: usize = 1024;

/// A caller's hold on a registration. The last one to have it drops it.
pub(crate) struct Registration {
    pub(crate) id: RegistrationId,
    pub(crate) port: Port,
}

impl Drop for Registration {
    fn drop(&mut self) {
        // When the driver is gone, so is what was registered.
        let _ = self.port.send(Command::Deregister(self.id));
    }
}

/// Memory to keep registered, and what keeps it valid.
pub(crate) struct Keep {
    pub(crate) id: RegistrationId,
    pub(crate) region: Region,
    /// The devices it is on.
    pub(crate) accelerators: Accelerators,
    #[expect(dead_code, reason = "what it is good for is being there")]
    pub(crate) owner: Arc<dyn Any + Send + Sync>,
}

/// What the driver keeps registered.
#[derive(Default)]
pub(super) struct Registrations {
    kept: HashMap<RegistrationId, Keep>,
    /// Given up, and not known to be quiet.
    leaving: Vec<Keep>,
    /// Those who wait for a slot, so that their deadlines are kept.
    waiting: HashMap<u64, Request>,
}

impl Registrations {
    /// Whether peers may still reach memory that nobody here needs.
    pub(super) fn are_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }
}

/// Engines look at the context of the thread they are called on; what they can't do without one they say themselves.
fn bind(accelerators: &Accelerators) {
    if let Err(error) = accelerator::bind(accelerators) {
        tracing::warn!(%error, "no context for the transport to find");
    }
}

impl Driver {
    pub(super) fn register(&mut self, request: &Request, keep: Keep) {
        let Request(info) = request;
        if self.closing.is_some() {
            // Whoever asks is answered when the request is dropped.
            return self.deadlines.remove(info);
        }
        let failed = |source| Error::Transport { context: info.context(), source };
        let held = self.registrations.kept.len() + self.registrations.leaving.len();
        let registered = if held >= MAX_REGISTRATIONS {
            let reason =
                format!("this connector keeps {held} registrations; drop slabs, or use fewer larger ones");
            Err(TransportError::Resource { what: "registering memory", reason })
        } else {
            bind(&keep.accelerators);
            // SAFETY: `keep` owns the region, and is dropped only after the transport said that it is quiet, or is
            // gone.
            unsafe { self.transport.register(keep.id, keep.region) }
        };
        match registered {
            Ok(()) => {
                self.registrations.kept.insert(keep.id, keep);
                info.slot.open(Opened::default());
            }
            Err(source) => {
                // Before the answer: whoever gets that has all of the memory again.
                drop(keep);
                let outcome = Outcome { result: Err(failed(source)), memory: None };
                info.slot.settle(OperationStatus::Errored, outcome, || {});
            }
        }
        // Until here the watchdog kept it: to pin many gigabytes takes an engine long.
        self.deadlines.remove(info);
    }

    pub(super) fn describe(&mut self, request: &Request, regions: &[Region]) {
        let Request(info) = request;
        if self.closing.is_some() {
            return self.deadlines.remove(info);
        }
        let described = self.transport.describe(regions);
        let described = described.map_err(|source| Error::Transport { context: info.context(), source });
        match described.and_then(|blob| Ok(self.encoded.of(&blob)?)) {
            Ok(blob) => info.slot.open(Opened { blob: Some(blob), ..Opened::default() }),
            Err(error) => {
                let outcome = Outcome { result: Err(error), memory: None };
                info.slot.settle(OperationStatus::Errored, outcome, || {});
            }
        }
        self.deadlines.remove(info);
    }

    pub(super) fn deregister(&mut self, id: RegistrationId) {
        let Some(keep) = self.registrations.kept.remove(&id) else { return };
        bind(&keep.accelerators);
        if self.transport.deregister(id) == Quiescence::Busy {
            stats::add(&self.counters.parked, 1);
            stats::add(&self.counters.parked_bytes, keep.region.len());
            self.registrations.leaving.push(keep);
            self.next_watch.get_or_insert(self.clock.now() + PARKED_INTERVAL);
        }
    }

    /// Frees memory that has become quiet.
    pub(super) fn watch_registrations(&mut self) {
        let (transport, leaving) = (&mut self.transport, &mut self.registrations.leaving);
        let is_quiet = |keep: &mut Keep| {
            bind(&keep.accelerators);
            transport.deregister(keep.id) == Quiescence::Quiet
        };
        for keep in leaving.extract_if(.., is_quiet) {
            stats::sub(&self.counters.parked, 1);
            stats::sub(&self.counters.parked_bytes, keep.region.len());
            tracing::debug!(bytes = keep.region.len(), "registered memory is quiet and freed");
        }
    }

    /// The transport is gone, and all of this with it.
    pub(super) fn forget_registrations(&mut self) {
        let Registrations { kept, leaving, waiting } = std::mem::take(&mut self.registrations);
        for keep in leaving {
            stats::sub(&self.counters.parked, 1);
            stats::sub(&self.counters.parked_bytes, keep.region.len());
        }
        drop((kept, waiting));
    }

    // --- those who wait for a slot ----------------------------------------------------------------------

    /// Keeps the deadline of somebody who waits for a slot. Whoever gives a slot back hands it over.
    pub(super) fn await_slot(&mut self, request: Request) {
        let Request(info) = &request;
        if self.closing.is_some() || info.slot.is_settled() {
            return self.deadlines.remove(info);
        }
        if let Some(deadline) = info.deadline {
            self.next_deadline = Some(self.next_deadline.map_or(deadline, |next| next.min(deadline)));
        }
        self.registrations.waiting.insert(info.id, request);
    }

    /// A wait is over: somebody was handed a slot, or gave up, or this is their deadline. Says whether it was one.
    pub(super) fn end_waiting(&mut self, id: u64, why: Why) -> bool {
        let Some(request) = self.registrations.waiting.remove(&id) else { return false };
        let Request(info) = &request;
        self.deadlines.remove(info);
        let (status, error) = match why {
            Why::Deadline => (OperationStatus::Errored, info.deadline_exceeded()),
            Why::Cancelled => {
                let outcome = Cancellation::NeverStarted;
                (OperationStatus::Cancelled, Error::Cancelled { context: info.context(), outcome })
            }
            Why::ShutDown => (OperationStatus::Errored, Error::ShutDown),
        };
        // Changes nothing for who has a slot already.
        info.slot.settle(status, Outcome { result: Err(error), memory: None }, || {});
        true
    }

    /// Nobody gets a slot any more.
    pub(super) fn end_all_waiting(&mut self) {
        for (_, request) in self.registrations.waiting.drain() {
            self.deadlines.remove(&request.0);
            // Answers for itself.
        }
    }
}

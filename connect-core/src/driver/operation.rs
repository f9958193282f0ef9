//! The driver's record of one operation.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use super::{OpInfo, Start};
use crate::Region;
use crate::accelerator::{self, Accelerators};
use crate::error::Error;
use crate::op::slot::Outcome;
use crate::op::state::Machine;
use crate::op::{OperationStatus, Report};
use crate::stats;
use crate::transport::{OfferId, PeerId, TransferId};
use crate::wire::RdmaMetadata;

/// One operation, from the moment the driver takes it up until its memory is quiet.
pub(super) struct Operation {
    pub(super) info: Arc<OpInfo>,
    pub(super) machine: Machine,
    pub(super) regions: Vec<Region>,
    /// The devices that the memory is on.
    pub(super) accelerators: Accelerators,
    /// Owns the regions. Dropped only when the machine says `Release`, see the drop order in `Driver::forget`.
    pub(super) memory: Option<Box<dyn Any + Send>>,
    pub(super) remote: Option<RdmaMetadata>,
    pub(super) offer: Option<(OfferId, String)>,
    pub(super) transfer: Option<(TransferId, PeerId)>,
    /// The first cause of failure (P6).
    pub(super) error: Option<Error>,
    pub(super) taken_at: Instant,
    pub(super) opened_at: Option<Instant>,
    /// The last poll got something done.
    pub(super) advanced: bool,
    /// The transport was told to let go.
    pub(super) ending: bool,
    /// In the driver's watch list.
    pub(super) watched: bool,
    /// Counted as parked.
    pub(super) parked: bool,
    pub(super) grace_ends: Instant,
}

impl Operation {
    pub(super) fn new(mut start: Start) -> Self {
        let now = start.info.clock.now();
        Self {
            info: Arc::clone(&start.info),
            machine: Machine::new(),
            regions: std::mem::take(&mut start.regions),
            accelerators: std::mem::take(&mut start.accelerators),
            memory: start.memory.take(),
            remote: start.remote.take(),
            offer: None,
            transfer: None,
            error: None,
            taken_at: now,
            opened_at: None,
            advanced: false,
            ending: false,
            watched: false,
            parked: false,
            grace_ends: now,
        }
    }

    /// Gets this thread ready for a call of the transport about the operation's memory, or for freeing it. What can't
    /// be used any more must still be let go of, so this only logs.
    pub(super) fn bind(&self) {
        if let Err(error) = accelerator::bind(&self.accelerators) {
            tracing::warn!(parent: &self.info.span, %error, "no context for the transport to find");
        }
    }

    pub(super) fn report(&self, backend: &str) -> Report {
        let (created, now) = (self.info.created, self.info.clock.now());
        let opened = self.opened_at.unwrap_or(now);
        Report {
            bytes: self.info.bytes,
            descriptors: self.info.descriptors,
            peer: self.info.peer.get().cloned(),
            backend: backend.to_owned(),
            queued: self.taken_at.saturating_duration_since(created),
            posting: opened.saturating_duration_since(self.taken_at),
            transfer: now.saturating_duration_since(opened),
            total: now.saturating_duration_since(created),
        }
    }
}

impl Drop for Operation {
    /// Whoever ends an operation takes its memory out first. If it is still here, a panic is unwinding, and
    /// nobody knows whether the memory is quiet: it is never freed (P1), and its caller is told (P2).
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            // Its facts stay with it, for who asks what became of it.
            std::mem::forget((memory, Arc::clone(&self.info)));
            let outcome = Outcome { result: Err(Error::ShutDown), memory: None };
            self.info.slot.settle(OperationStatus::Errored, outcome, || {
                stats::add(&self.info.counters.failed, 1);
            });
        }
    }
}

//! A transport that reaches the fake driver's device memory: `local`, told that it is host memory, which it is.
//!
//! It does what a GPU engine may do at worst. It reads memory when it is asked to, whatever is queued for it; what it
//! writes is not there when it says that it is done, but on its way. It writes down what is wrong with the calls it
//! gets: work that is queued for the memory it is given, and a thread without the device's context.
#![expect(unsafe_code, reason = "implements Transport, and looks into memory")]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use connect_core::transport::local::LocalConfig;
use connect_core::transport::{
    Offer, OfferId, PeerId, Quiescence, Transfer, TransferId, TransferState, Transport, TransportError,
    TransportEvent,
};
use connect_core::{Connector, Device, OperationKind, Region};

use crate::fake::{self, Arrival};

/// A connector whose transport reaches device memory.
pub(crate) fn connector(arrival: Arrival) -> Connector {
    let inner = LocalConfig::default().factory();
    let factory = move |context: &_| {
        let (transfers, offers) = (HashMap::new(), HashMap::new());
        Ok(Box::new(Reaching { inner: inner(context)?, arrival, transfers, offers }) as Box<dyn Transport>)
    };
    Connector::builder().transport(Box::new(factory)).build().unwrap()
}

struct Reaching {
    inner: Box<dyn Transport>,
    arrival: Arrival,
    transfers: HashMap<TransferId, Given>,
    offers: HashMap<OfferId, Given>,
}

/// Memory of an operation, and what was in it if it is written to.
struct Given {
    regions: Vec<Region>,
    before: Option<Vec<Vec<u8>>>,
}

impl Given {
    fn new(regions: &[Region], is_target: bool) -> Self {
        let regions: Vec<Region> =
            regions.iter().filter(|region| !region.device().is_cpu()).copied().collect();
        let before = is_target.then(|| regions.iter().map(content).collect());
        Self { regions, before }
    }

    fn check_idle(&self, call: &str) {
        for region in &self.regions {
            if fake::queued(region.device().id()) > 0 {
                fake::wrong(&format!("{call} with work queued for {}", region.device()));
            }
        }
    }

    fn check_bound(&self, call: &str) {
        if !self.regions.is_empty() && fake::bound().is_none() {
            fake::wrong(&format!("{call} on a thread without a context"));
        }
    }

    /// What was written is not there yet.
    fn postpone(&mut self, arrival: Arrival) {
        for (region, before) in self.regions.iter().zip(self.before.take().into_iter().flatten()) {
            let now = content(region);
            // SAFETY: host memory of the operation, which nobody else uses before it ends.
            unsafe { std::ptr::copy_nonoverlapping(before.as_ptr(), region.addr() as *mut u8, before.len()) };
            fake::arrive(region.addr(), &now, arrival);
        }
    }
}

fn content(region: &Region) -> Vec<u8> {
    // SAFETY: host memory of the operation that it was given for.
    unsafe { std::slice::from_raw_parts(region.addr() as *const u8, region.len() as usize) }.to_vec()
}

fn in_host_memory(regions: &[Region]) -> Vec<Region> {
    regions.iter().map(|region| Region::new(Device::CPU, region.addr(), region.len()).unwrap()).collect()
}

// SAFETY: the regions are host memory, and the inner transport keeps its promises about them; bytes that are on their
// way arrive before their device is synchronised, for which operations wait.
unsafe impl Transport for Reaching {
    fn name(&self) -> &'static str {
        "reaching"
    }

    fn check_device(&self, _: Device) -> Result<(), TransportError> {
        Ok(())
    }

    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        let given = Given::new(offer.regions, offer.kind == OperationKind::Write);
        given.check_idle("offered");
        given.check_bound("offered");
        fake::note("offered");
        let there = Offer { regions: &in_host_memory(offer.regions), ..*offer };
        // SAFETY: the caller's promise is passed on.
        let (id, blob) = unsafe { self.inner.offer(&there) }?;
        self.offers.insert(id, given);
        Ok((id, blob))
    }

    fn end_offer(&mut self, id: OfferId, completed: bool) -> Quiescence {
        if let Some(mut given) = self.offers.remove(&id) {
            given.check_bound("an offer ended");
            if completed {
                fake::note("taken");
                given.postpone(self.arrival);
            }
        }
        self.inner.end_offer(id, completed)
    }

    fn offer_is_quiet(&mut self, id: OfferId) -> Quiescence {
        self.inner.offer_is_quiet(id)
    }

    fn connect(&mut self, blob: &[u8]) -> Result<(PeerId, String), TransportError> {
        self.inner.connect(blob)
    }

    fn forget(&mut self, peer: PeerId) {
        self.inner.forget(peer);
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        let given = Given::new(transfer.local, transfer.kind == OperationKind::Read);
        given.check_idle("begun");
        given.check_bound("begun");
        fake::note("begun");
        let (local, remote) = (in_host_memory(transfer.local), in_host_memory(transfer.remote));
        let there = Transfer { local: &local, remote: &remote, ..*transfer };
        // SAFETY: the caller's promise is passed on.
        let id = unsafe { self.inner.begin(&there) }?;
        self.transfers.insert(id, given);
        Ok(id)
    }

    fn poll(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        let state = self.inner.poll(id);
        if let Some(given) = self.transfers.get_mut(&id) {
            given.check_bound("polled");
            if state == Ok(TransferState::Complete) {
                fake::note("complete");
                given.postpone(self.arrival);
            }
        }
        state
    }

    fn release(&mut self, id: TransferId) -> Quiescence {
        if let Some(given) = self.transfers.get(&id) {
            given.check_bound("released");
        }
        let quiet = self.inner.release(id);
        if quiet == Quiescence::Quiet {
            self.transfers.remove(&id);
        }
        quiet
    }

    fn has_transfers_in_flight(&self) -> bool {
        self.inner.has_transfers_in_flight()
    }

    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool {
        self.inner.progress(events)
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.inner.wait(timeout);
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        self.inner.waker()
    }

    fn is_event_driven(&self) -> bool {
        self.inner.is_event_driven()
    }
}

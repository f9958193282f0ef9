//! What the driver was told: [`Probe`] stands between it and its transport, and takes notes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sim::Net;
use crate::transport::{
    Offer, OfferId, PeerId, Quiescence, RegistrationId, Transfer, TransferId, TransferState, Transport,
    TransportError, TransportEvent,
};
use crate::{Device, Region};

/// What the driver was told about the operation whose memory is at an address.
#[derive(Default, Clone)]
pub(super) struct Told {
    /// Its notification was handed out, or its transfer said to be complete.
    pub(super) completed_at: Option<Instant>,
    /// The first failure, and when.
    pub(super) cause: Option<(TransportError, Instant)>,
    /// It was said to be complete and busy at once.
    pub(super) contradicted: bool,
}

/// All notes.
#[derive(Default)]
pub(super) struct Notes {
    pub(super) told: BTreeMap<u64, Told>,
    /// Failures of calls that name no memory: whoever gets one is the only one.
    pub(super) unclaimed: Vec<TransportError>,
    /// Notifications handed to the driver.
    pub(super) delivered: u64,
    /// Offers that the driver ended as completed.
    pub(super) matched: u64,
}

/// A transport that takes notes.
pub(super) struct Probe {
    inner: Box<dyn Transport>,
    net: Rc<RefCell<Net>>,
    offers: BTreeMap<OfferId, u64>,
    transfers: BTreeMap<TransferId, u64>,
    keys: BTreeMap<Vec<u8>, u64>,
}

impl Probe {
    pub(super) fn new(inner: Box<dyn Transport>, net: Rc<RefCell<Net>>) -> Self {
        Self { inner, net, offers: BTreeMap::new(), transfers: BTreeMap::new(), keys: BTreeMap::new() }
    }

    /// A failure of the operation at `addr`, remembered as its first if it is.
    fn failed(&self, addr: u64, cause: &TransportError) {
        let net = &mut *self.net.borrow_mut();
        let now = net.clock.now();
        net.notes.told.entry(addr).or_default().cause.get_or_insert((cause.clone(), now));
    }

    fn completed(&self, addr: u64) {
        let net = &mut *self.net.borrow_mut();
        let now = net.clock.now();
        net.notes.told.entry(addr).or_default().completed_at.get_or_insert(now);
    }

    fn unclaimed(&self, cause: &TransportError) {
        self.net.borrow_mut().notes.unclaimed.push(cause.clone());
    }
}

// SAFETY: it only takes notes.
unsafe impl Transport for Probe {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn check_device(&self, device: Device) -> Result<(), TransportError> {
        self.inner.check_device(device).inspect_err(|cause| self.unclaimed(cause))
    }

    unsafe fn register(&mut self, id: RegistrationId, region: Region) -> Result<(), TransportError> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner.register(id, region) }
    }

    fn deregister(&mut self, id: RegistrationId) -> Quiescence {
        self.inner.deregister(id)
    }

    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        let addr = offer.regions[0].addr();
        // SAFETY: the caller's promise, passed on.
        let offered = unsafe { self.inner.offer(offer) }.inspect_err(|cause| self.failed(addr, cause))?;
        self.net.borrow_mut().notes.told.entry(addr).or_default();
        self.offers.insert(offered.0, addr);
        self.keys.insert(offer.key.as_bytes().to_vec(), addr);
        Ok(offered)
    }

    fn end_offer(&mut self, id: OfferId, completed: bool) -> Quiescence {
        self.net.borrow_mut().notes.matched += u64::from(completed);
        self.inner.end_offer(id, completed)
    }

    fn offer_is_quiet(&mut self, id: OfferId) -> Quiescence {
        self.inner.offer_is_quiet(id)
    }

    fn connect(&mut self, blob: &[u8]) -> Result<(PeerId, String), TransportError> {
        self.inner.connect(blob).inspect_err(|cause| self.unclaimed(cause))
    }

    fn forget(&mut self, peer: PeerId) {
        self.inner.forget(peer);
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        let addr = transfer.local[0].addr();
        // SAFETY: the caller's promise, passed on.
        let id = unsafe { self.inner.begin(transfer) }.inspect_err(|cause| self.failed(addr, cause))?;
        self.net.borrow_mut().notes.told.entry(addr).or_default();
        self.transfers.insert(id, addr);
        Ok(id)
    }

    fn poll(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        let state = self.inner.poll(id);
        let addr = self.transfers[&id];
        match &state {
            Ok(TransferState::Complete) => self.completed(addr),
            Ok(TransferState::Pending { .. }) => {}
            Err(cause) => self.failed(addr, cause),
        }
        state
    }

    fn release(&mut self, id: TransferId) -> Quiescence {
        self.inner.release(id)
    }

    fn has_transfers_in_flight(&self) -> bool {
        self.inner.has_transfers_in_flight()
    }

    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool {
        let before = events.len();
        let busy = self.inner.progress(events);
        for event in &events[before..] {
            match event {
                TransportEvent::Notification { body, .. } => {
                    self.net.borrow_mut().notes.delivered += 1;
                    if let Some(addr) = self.keys.get(body) {
                        self.completed(*addr);
                    }
                }
                TransportEvent::Message { .. } => {}
                TransportEvent::OfferFailed { id, error } => self.failed(self.offers[id], error),
            }
        }
        busy
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

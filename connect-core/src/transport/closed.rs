//! The transport of a connector that is shut down: it refuses everything, and holds nothing.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Offer, OfferId, PeerId, Quiescence, RegistrationId, Transfer, TransferId, TransferState, Transport,
    TransportError, TransportEvent,
};
use crate::{Device, Region};

/// Takes a transport's place when that is dropped.
pub(crate) struct Closed {
    name: &'static str,
}

impl Closed {
    pub(crate) fn after(transport: &dyn Transport) -> Self {
        Self { name: transport.name() }
    }
}

fn closed() -> TransportError {
    TransportError::Unavailable("the connector is shut down".to_owned())
}

// SAFETY: it touches no memory and completes nothing.
unsafe impl Transport for Closed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn check_device(&self, _: Device) -> Result<(), TransportError> {
        Err(closed())
    }

    unsafe fn register(&mut self, _: RegistrationId, _: Region) -> Result<(), TransportError> {
        Err(closed())
    }

    unsafe fn offer(&mut self, _: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        Err(closed())
    }

    fn end_offer(&mut self, _: OfferId, _: bool) -> Quiescence {
        Quiescence::Quiet
    }

    fn offer_is_quiet(&mut self, _: OfferId) -> Quiescence {
        Quiescence::Quiet
    }

    fn connect(&mut self, _: &[u8]) -> Result<(PeerId, String), TransportError> {
        Err(closed())
    }

    fn forget(&mut self, _: PeerId) {}

    unsafe fn begin(&mut self, _: &Transfer<'_>) -> Result<TransferId, TransportError> {
        Err(closed())
    }

    fn poll(&mut self, _: TransferId) -> Result<TransferState, TransportError> {
        Err(closed())
    }

    fn release(&mut self, _: TransferId) -> Quiescence {
        Quiescence::Quiet
    }

    fn has_transfers_in_flight(&self) -> bool {
        false
    }

    fn progress(&mut self, _: &mut Vec<TransportEvent>) -> bool {
        false
    }

    fn wait(&mut self, _: Option<Duration>) {}

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(|| {})
    }

    fn is_event_driven(&self) -> bool {
        true
    }
}

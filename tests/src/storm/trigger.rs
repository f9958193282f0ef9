//! [`Trigger`]: a transport that kills or stops its own process at a chosen moment.
//!
//! A signal from outside hits a moment by luck only. This one wraps any transport and counts how often its
//! driver passes a [`Point`]; the n-th time, the process is gone in the middle of the call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use connect_core::transport::{
    Offer, OfferId, PeerId, Quiescence, RegistrationId, Transfer, TransferId, TransferState, Transport,
    TransportError, TransportEvent, TransportFactory,
};
use connect_core::{Device, Region};
use nix::sys::signal::{Signal, raise};

/// Where a process can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Point {
    /// Memory is reachable; nobody has heard of it.
    Offered,
    /// Before a peer's blob is loaded.
    Connect,
    /// After it was loaded.
    Connected,
    /// A transfer is prepared; nothing is posted.
    Begun,
    /// Before a transfer is looked at.
    Poll,
    /// Some bytes have moved.
    Moved,
    /// Every byte has moved; the operation has not heard of it.
    Complete,
    /// Before peers are answered.
    Progress,
    /// After something was answered.
    Answered,
    /// The peer's notification has come; the operation has not heard of it.
    Notified,
    /// Before a transfer is ended.
    Release,
    /// Before an offer is ended.
    EndOffer,
    /// Before the transport is closed.
    Closing,
    /// After it was closed.
    Closed,
}

/// What happens there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fate {
    /// `SIGKILL`.
    Kill,
    /// `SIGSTOP`: the process is as good as gone until somebody continues it.
    Stop,
}

/// Ends the process at a point, once armed.
#[derive(Debug, Clone)]
pub struct Trigger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    armed: AtomicBool,
    point: Point,
    /// Passes left until the signal.
    left: AtomicU64,
    fate: Fate,
}

impl Trigger {
    /// Signals the `nth` time (from 1) that `point` is passed.
    pub fn new(point: Point, nth: u64, fate: Fate) -> Self {
        Self(Arc::new(Inner { armed: AtomicBool::new(false), point, left: AtomicU64::new(nth), fate }))
    }

    /// Counts from now on.
    pub fn arm(&self) {
        self.0.armed.store(true, Ordering::SeqCst);
    }

    /// The transport of `factory`, watched.
    pub fn wrap(&self, factory: TransportFactory) -> TransportFactory {
        let trigger = self.clone();
        Box::new(move |context| {
            let inner = Some(factory(context)?);
            Ok(Box::new(Doomed { inner, trigger }) as Box<dyn Transport>)
        })
    }

    fn pass(&self, point: Point) {
        let inner = &*self.0;
        if inner.point != point || !inner.armed.load(Ordering::SeqCst) {
            return;
        }
        if inner.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) == Ok(1) {
            // The driver thread stands here until somebody continues the process.
            let signal = if inner.fate == Fate::Kill { Signal::SIGKILL } else { Signal::SIGSTOP };
            raise(signal).expect("a process may signal itself");
        }
    }
}

/// The wrapped transport.
struct Doomed {
    /// `None` while it is dropped only.
    inner: Option<Box<dyn Transport>>,
    trigger: Trigger,
}

impl Doomed {
    fn inner(&mut self) -> &mut dyn Transport {
        self.inner.as_deref_mut().expect("it lives until the drop")
    }

    fn seen(&self) -> &dyn Transport {
        self.inner.as_deref().expect("it lives until the drop")
    }
}

impl Drop for Doomed {
    fn drop(&mut self) {
        self.trigger.pass(Point::Closing);
        drop(self.inner.take());
        self.trigger.pass(Point::Closed);
    }
}

// SAFETY: every word about memory is the wrapped transport's own.
unsafe impl Transport for Doomed {
    fn name(&self) -> &'static str {
        self.seen().name()
    }

    fn backend(&self) -> &str {
        self.seen().backend()
    }

    fn check_device(&self, device: Device) -> Result<(), TransportError> {
        self.seen().check_device(device)
    }

    unsafe fn register(&mut self, id: RegistrationId, region: Region) -> Result<(), TransportError> {
        // SAFETY: the caller's promise, passed on.
        unsafe { self.inner().register(id, region) }
    }

    fn deregister(&mut self, id: RegistrationId) -> Quiescence {
        self.inner().deregister(id)
    }

    unsafe fn offer(&mut self, offer: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        // SAFETY: the caller's promise is handed on.
        let offered = unsafe { self.inner().offer(offer) };
        self.trigger.pass(Point::Offered);
        offered
    }

    fn end_offer(&mut self, id: OfferId, completed: bool) -> Quiescence {
        self.trigger.pass(Point::EndOffer);
        self.inner().end_offer(id, completed)
    }

    fn offer_is_quiet(&mut self, id: OfferId) -> Quiescence {
        self.inner().offer_is_quiet(id)
    }

    fn connect(&mut self, blob: &[u8]) -> Result<(PeerId, String), TransportError> {
        self.trigger.pass(Point::Connect);
        let connected = self.inner().connect(blob);
        self.trigger.pass(Point::Connected);
        connected
    }

    fn forget(&mut self, peer: PeerId) {
        self.inner().forget(peer);
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        // SAFETY: the caller's promise is handed on.
        let begun = unsafe { self.inner().begin(transfer) };
        self.trigger.pass(Point::Begun);
        begun
    }

    fn poll(&mut self, id: TransferId) -> Result<TransferState, TransportError> {
        self.trigger.pass(Point::Poll);
        let state = self.inner().poll(id);
        match &state {
            Ok(TransferState::Pending { advanced: true }) => self.trigger.pass(Point::Moved),
            Ok(TransferState::Complete) => self.trigger.pass(Point::Complete),
            _ => {}
        }
        state
    }

    fn release(&mut self, id: TransferId) -> Quiescence {
        self.trigger.pass(Point::Release);
        self.inner().release(id)
    }

    fn has_transfers_in_flight(&self) -> bool {
        self.seen().has_transfers_in_flight()
    }

    fn progress(&mut self, events: &mut Vec<TransportEvent>) -> bool {
        self.trigger.pass(Point::Progress);
        let before = events.len();
        let worked = self.inner().progress(events);
        if worked {
            self.trigger.pass(Point::Answered);
        }
        if events.len() > before {
            self.trigger.pass(Point::Notified);
        }
        worked
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        self.inner().wait(timeout);
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        self.seen().waker()
    }

    fn is_event_driven(&self) -> bool {
        self.seen().is_event_driven()
    }
}

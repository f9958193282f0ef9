//! Steering a faulty transport from outside its thread: [`Control`].

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Steers a transport that a [`Plan`](super::Plan) made faulty, while its connector is up.
#[derive(Clone, Default)]
pub struct Control(Arc<Shared>);

#[derive(Default)]
struct Shared {
    vanished: AtomicBool,
    healed: AtomicBool,
    strays: Mutex<Vec<(String, Vec<u8>)>>,
    waker: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

impl Control {
    /// All peers are lost: connecting, beginning and polling fail with
    /// [`PeerLost`](crate::transport::TransportError::PeerLost), and no notification arrives. What is quiet is
    /// still found out with the wrapped transport. [`heal`](Self::heal) brings them back; notifications that
    /// came meanwhile are lost for good.
    pub fn vanish(&self) {
        self.0.vanished.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Ends all faults, for good: nothing is held back or made up any more, and the plan is over.
    pub fn heal(&self) {
        self.0.healed.store(true, Ordering::SeqCst);
        self.0.vanished.store(false, Ordering::SeqCst);
        self.wake();
    }

    /// Delivers a notification that no peer sent. Not if `body` is the key of an open offer: to claim that
    /// its bytes have moved would be a lie that memory is handed out on.
    pub fn inject(&self, from: impl Into<String>, body: impl Into<Vec<u8>>) {
        self.strays().push((from.into(), body.into()));
        self.wake();
    }

    pub(super) fn has_vanished(&self) -> bool {
        self.0.vanished.load(Ordering::SeqCst)
    }

    pub(super) fn is_healed(&self) -> bool {
        self.0.healed.load(Ordering::SeqCst)
    }

    pub(super) fn take_strays(&self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut *self.strays())
    }

    /// The driver may sleep until something happens; this is something.
    pub(super) fn set_waker(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        // Set once: a plan makes one transport.
        let _ = self.0.waker.set(waker);
    }

    fn wake(&self) {
        if let Some(waker) = self.0.waker.get() {
            waker();
        }
    }

    fn strays(&self) -> MutexGuard<'_, Vec<(String, Vec<u8>)>> {
        self.0.strays.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("vanished", &self.has_vanished())
            .field("healed", &self.is_healed())
            .finish_non_exhaustive()
    }
}

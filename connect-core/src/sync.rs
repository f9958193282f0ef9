//! What the hand-offs between callers and the driver are made of: the standard library's primitives, or in
//! loom's tests those of loom, which tries every order in which threads may meet.

#[cfg(not(all(test, loom)))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, atomic, mpsc};

#[cfg(all(test, loom))]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard, atomic};

/// A channel that promises no more than it must: what was sent before a message is seen with it. A receiver
/// may miss a message that another thread has just sent, which is what the sender's look at a sleeping driver
/// is for. Loom's own channel is stronger than that, and would hide a missing fence.
#[cfg(all(test, loom))]
pub(crate) mod mpsc {
    use std::sync::Arc;
    pub(crate) use std::sync::mpsc::{SendError, TryRecvError};

    use loom::sync::Mutex;
    use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    /// No test sends more.
    const SLOTS: usize = 4;

    struct Queue<T> {
        tail: AtomicUsize,
        slots: [(AtomicBool, Mutex<Option<T>>); SLOTS],
    }

    pub(crate) struct Sender<T>(Arc<Queue<T>>);

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    pub(crate) struct Receiver<T> {
        queue: Arc<Queue<T>>,
        head: std::cell::Cell<usize>,
    }

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let slots = std::array::from_fn(|_| (AtomicBool::new(false), Mutex::new(None)));
        let queue = Arc::new(Queue { tail: AtomicUsize::new(0), slots });
        (Sender(Arc::clone(&queue)), Receiver { queue, head: std::cell::Cell::new(0) })
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
            let (full, slot) = &self.0.slots[self.0.tail.fetch_add(1, Ordering::Relaxed)];
            *slot.lock().expect("nobody panics with it") = Some(message);
            full.store(true, Ordering::Release);
            Ok(())
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
            let (full, slot) = self.queue.slots.get(self.head.get()).ok_or(TryRecvError::Empty)?;
            if !full.load(Ordering::Acquire) {
                return Err(TryRecvError::Empty);
            }
            self.head.set(self.head.get() + 1);
            slot.lock().expect("nobody panics with it").take().ok_or(TryRecvError::Empty)
        }
    }
}

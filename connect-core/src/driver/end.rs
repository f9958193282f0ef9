//! The moment a driver thread is done, for those who may wait for it: [`End`].

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

/// Made by the driver thread.
pub(crate) struct End {
    driver: ThreadId,
    reached: Mutex<bool>,
    changed: Condvar,
}

impl End {
    pub(crate) fn new() -> Self {
        Self { driver: thread::current().id(), reached: Mutex::new(false), changed: Condvar::new() }
    }

    /// The driver: its transport is gone.
    pub(crate) fn reached(&self) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits for it, at most this long. The driver itself, which may drop the last handle along with a
    /// user's memory, does not wait.
    pub(crate) fn wait(&self, longest: Duration) {
        if thread::current().id() == self.driver {
            return;
        }
        let reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it was reached makes no difference to the caller.
        drop(self.changed.wait_timeout_while(reached, longest, |reached| !*reached));
    }
}

//! [`OnThread`]: the result of a call that may block, awaited or waited for.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use super::error::RendezvousError;
use crate::task::Wait;

/// A call that runs on a thread of its own.
pub(super) struct OnThread<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    result: Option<T>,
    waker: Option<Waker>,
    caller_is_gone: bool,
}

/// Who waits for the call: asked by the call itself.
pub(super) struct Caller<'a>(&'a dyn Fn(Option<Duration>) -> bool);

impl Caller<'_> {
    /// Whether nobody waits any more.
    pub(super) fn is_gone(&self) -> bool {
        (self.0)(None)
    }

    /// The same after a pause, which ends when the caller goes.
    pub(super) fn is_gone_after(&self, pause: Duration) -> bool {
        (self.0)(Some(pause))
    }
}

type Answer<T> = Result<T, RendezvousError>;

impl<T: Send + 'static> OnThread<Answer<T>> {
    /// Starts the call. A panic in it is an error of the channel that is used under `key`.
    pub(super) fn start(key: String, call: impl FnOnce(&Caller<'_>) -> Answer<T> + Send + 'static) -> Self {
        let state = State { result: None, waker: None, caller_is_gone: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (ours, quoted) = (Arc::clone(&shared), key.clone());
        let run = move || {
            let answer =
                catch_unwind(AssertUnwindSafe(|| call(&Caller(&|pause| ours.caller_is_gone(pause)))));
            ours.finish(answer.unwrap_or_else(|panic| {
                let said = panic.downcast_ref::<&str>().map(|said| said.to_string());
                let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
                Err(RendezvousError::channel(&key, format!("it panicked: {said}").into()))
            }));
        };
        if let Err(error) = thread::Builder::new().name("connect-rendezvous".to_owned()).spawn(run) {
            shared.finish(Err(RendezvousError::channel(&quoted, error.into())));
        }
        Self(shared)
    }
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, result: T) {
        let mut state = self.lock();
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn caller_is_gone(&self, pause: Option<Duration>) -> bool {
        let state = self.lock();
        let Some(pause) = pause else { return state.caller_is_gone };
        let waited = self.changed.wait_timeout_while(state, pause, |state| !state.caller_is_gone);
        waited.unwrap_or_else(PoisonError::into_inner).0.caller_is_gone
    }
}

impl<T> Future for OnThread<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut state = self.0.lock();
        if let Some(result) = state.result.take() {
            return Poll::Ready(result);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl<T: Send + 'static> Wait for OnThread<T> {
    fn wait(self) -> T {
        let mut state = self.0.lock();
        loop {
            if let Some(result) = state.result.take() {
                return result;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for OnThread<T> {
    fn drop(&mut self) {
        self.0.lock().caller_is_gone = true;
        self.0.changed.notify_all();
    }
}

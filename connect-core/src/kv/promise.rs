//! An answer that one thread owes another: [`Promise`] and [`Answer`]. Awaited on any runtime, or waited for.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::task::Wait;

/// The side that answers. Dropped unanswered, it answers `None`.
pub(super) struct Promise<T>(Arc<Shared<T>>);

/// The side that waits.
#[must_use = "an answer is to be waited for"]
pub(super) struct Answer<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

enum State<T> {
    Waiting(Option<Waker>),
    There(Option<T>),
}

pub(super) fn promise<T>() -> (Promise<T>, Answer<T>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::Waiting(None)), changed: Condvar::new() });
    (Promise(Arc::clone(&shared)), Answer(shared))
}

impl<T> Promise<T> {
    pub(super) fn keep(self, value: T) {
        self.0.answer(Some(value));
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.0.answer(None);
    }
}

impl<T> Shared<T> {
    /// The first answer counts.
    fn answer(&self, value: Option<T>) {
        let mut state = self.lock();
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = State::There(value);
            drop(state);
            self.changed.notify_all();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// A poisoned lock means a panic between plain assignments.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Future for Answer<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        match &mut *self.0.lock() {
            State::There(value) => Poll::Ready(value.take()),
            State::Waiting(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T: Send + 'static> Wait for Answer<T> {
    fn wait(self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            match &mut *state {
                State::There(value) => return value.take(),
                State::Waiting(_) => {
                    state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn an_answer_comes_once_to_who_waits_or_awaits_and_none_if_nobody_gives_it() {
        for how in 0..2 {
            let (promise, answer) = promise();
            let other =
                thread::spawn(
                    move || if how == 0 { answer.wait() } else { futures_executor::block_on(answer) },
                );
            thread::sleep(std::time::Duration::from_millis(5));
            promise.keep(7);
            assert_eq!(other.join().unwrap(), Some(7));
        }
        let (promise, answer) = promise::<i32>();
        drop(promise);
        assert_eq!(answer.wait(), None);
    }
}

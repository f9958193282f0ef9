//! The two futures of an operation: [`Pending`] until it is open, [`Completion`] until it has ended. Both
//! need no particular runtime, and both can block instead.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::slot::{First, Opened, Outcome};
use super::{OperationStatus, Received};
use crate::connector::Core;
use crate::driver::{Command, OpInfo};
use crate::error::{Error, Failed, Recovered};
use crate::op::state::Why;

/// What a caller holds of an operation. Dropping it ends the operation.
pub(crate) struct Handle {
    pub(crate) info: Arc<OpInfo>,
    pub(crate) core: Arc<Core>,
}

impl Handle {
    pub(crate) fn status(&self) -> OperationStatus {
        self.info.slot.status()
    }

    /// Asks the driver to end the operation, or not to start it. When the driver is gone, the operation has
    /// ended already.
    pub(crate) fn stop(&self) {
        self.info.withdrawn.store(true, Ordering::Relaxed);
        let _ = self.core.port.send(Command::Stop(self.info.id, Why::Cancelled));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.info.slot.is_settled() {
            self.stop();
        }
    }
}

/// An answer on its way from the driver: `.await` it, or block with [`wait`](Self::wait).
///
/// The request was sent when this value was made; neither awaiting nor waiting starts anything. Dropping it
/// cancels what was asked for.
#[must_use = "dropping it cancels what was asked for"]
pub struct Pending<T, E = Error> {
    state: State<T, E>,
}

enum State<T, E> {
    /// Refused before it reached the driver.
    Ready(Option<Result<T, E>>),
    Waiting {
        handle: Option<Handle>,
        opened: fn(Handle, Opened) -> T,
        ended: fn(Outcome) -> E,
    },
}

// Nothing in it is pinned.
impl<T, E> Unpin for Pending<T, E> {}

impl<T, E> Pending<T, E> {
    pub(crate) fn refused(error: E) -> Self {
        Self { state: State::Ready(Some(Err(error))) }
    }

    /// The operation it is about; `None` when it was refused before it had a number.
    pub(crate) fn info(&self) -> Option<Arc<OpInfo>> {
        match &self.state {
            State::Waiting { handle: Some(handle), .. } => Some(Arc::clone(&handle.info)),
            _ => None,
        }
    }

    pub(crate) fn new(handle: Handle, opened: fn(Handle, Opened) -> T, ended: fn(Outcome) -> E) -> Self {
        Self { state: State::Waiting { handle: Some(handle), opened, ended } }
    }

    /// Withdraws an operation that was asked for, and goes on waiting for the answer. That is
    /// [`Error::Cancelled`] with [`Cancellation::NeverStarted`](crate::Cancellation::NeverStarted) if it had
    /// not started, and then a target comes back. Else it is the operation, which was told to end; what became
    /// of it is what its `wait_for_completion` says.
    ///
    /// A [`connect`](crate::Connector::connect) or [`shutdown`](crate::Connector::shutdown) goes on.
    pub fn cancel(self) -> Self {
        if let State::Waiting { handle: Some(handle), .. } = &self.state {
            handle.stop();
        }
        self
    }

    /// Blocks the calling thread until the answer is there. Do not call it from async code.
    ///
    /// # Errors
    /// As documented where the value was made.
    pub fn wait(self) -> Result<T, E> {
        match self.state {
            State::Ready(result) => result.expect("not polled to its end before"),
            State::Waiting { handle, opened, ended } => {
                let handle = handle.expect("not polled to its end before");
                match handle.info.slot.wait_first(&handle.core.patience.opening) {
                    First::Opened(facts) => Ok(opened(handle, facts)),
                    First::Ended(outcome) => Err(ended(outcome)),
                }
            }
        }
    }
}

impl<T, E> Future for Pending<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.state {
            State::Ready(result) => Poll::Ready(result.take().expect("a future is not polled after its end")),
            State::Waiting { handle, opened, ended } => {
                let waiting = handle.as_ref().expect("a future is not polled after its end");
                match std::task::ready!(waiting.info.slot.poll_first(cx)) {
                    First::Opened(facts) => {
                        let handle = handle.take().expect("checked above");
                        Poll::Ready(Ok(opened(handle, facts)))
                    }
                    First::Ended(outcome) => {
                        let ended = *ended;
                        *handle = None;
                        Poll::Ready(Err(ended(outcome)))
                    }
                }
            }
        }
    }
}

impl<T, E> fmt::Debug for Pending<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").finish_non_exhaustive()
    }
}

/// An operation's end: `.await` it, or block with [`wait`](Self::wait).
///
/// Dropping it ends the operation, as dropping the operation does.
#[must_use = "dropping it cancels the operation"]
pub struct Completion<T, E = Error> {
    handle: Handle,
    finish: fn(Outcome) -> Result<T, E>,
}

// Nothing in it is pinned.
impl<T, E> Unpin for Completion<T, E> {}

impl<T, E> Completion<T, E> {
    pub(crate) fn new(handle: Handle, finish: fn(Outcome) -> Result<T, E>) -> Self {
        Self { handle, finish }
    }

    /// The operation's status.
    pub fn status(&self) -> OperationStatus {
        self.handle.status()
    }

    /// Asks for the end of the operation, and goes on waiting for it.
    pub(crate) fn stop(&self) {
        self.handle.stop();
    }

    /// The same, on the peer's word that it does not touch the memory and will not.
    pub(crate) fn stop_on_word_of_peer(&self) {
        self.handle.info.withdrawn.store(true, Ordering::Relaxed);
        let _ = self.handle.core.port.send(Command::StopOnWord(self.handle.info.id));
    }

    /// Blocks the calling thread until the operation has ended. Do not call it from async code.
    ///
    /// # Errors
    /// Why the operation failed, was cancelled, or missed its deadline.
    pub fn wait(self) -> Result<T, E> {
        let Handle { info, core } = &self.handle;
        (self.finish)(info.slot.wait_outcome(core.patience.of(info.name)))
    }
}

impl<T, E> Future for Completion<T, E> {
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.handle.info.slot.poll_outcome(cx).map(self.finish)
    }
}

impl<T, E> fmt::Debug for Completion<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("id", &self.handle.info.id)
            .field("status", &self.status())
            .finish()
    }
}

/// How an operation over sources ends before it is open.
pub(crate) fn source_ended(outcome: Outcome) -> Error {
    outcome.result.err().unwrap_or(Error::ShutDown)
}

/// How an operation over sources ends.
pub(crate) fn source_finished(outcome: Outcome) -> Result<super::Report, Error> {
    outcome.result
}

/// How an operation over targets ends before it is open.
pub(crate) fn target_ended<M: 'static>(outcome: Outcome) -> Failed<M> {
    let memory = recovered(outcome.memory);
    Failed { error: outcome.result.err().unwrap_or(Error::ShutDown), memory }
}

/// How an operation over targets ends.
pub(crate) fn target_finished<M: 'static>(outcome: Outcome) -> Result<Received<M>, Failed<M>> {
    let memory = recovered(outcome.memory);
    match (outcome.result, memory) {
        (Ok(report), Recovered::Returned(memory)) => Ok(Received { memory, report }),
        // The driver hands memory over with every success.
        (Ok(_), parked) => Err(Failed { error: Error::ShutDown, memory: parked }),
        (Err(error), memory) => Err(Failed { error, memory }),
    }
}

/// The driver carries memory without its type; the handle knows it.
fn recovered<M: 'static>(memory: Option<Box<dyn std::any::Any + Send>>) -> Recovered<M> {
    match memory.map(|memory| memory.downcast::<M>()) {
        Some(Ok(memory)) => Recovered::Returned(*memory),
        _ => Recovered::Parked,
    }
}

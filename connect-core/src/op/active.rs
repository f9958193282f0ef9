//! The two operations that act on a peer's memory: [`ReadOperation`] and [`WriteOperation`].

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;

use super::passive::debug;
use super::pending::{Completion, Handle, source_finished, target_finished};
use super::slot::Opened;
use super::{OperationStatus, Received, Report};
use crate::TargetMemory;
use crate::error::{Error, Failed};

/// Reads a peer's readable memory. Made by [`Connector::begin_read`](crate::Connector::begin_read), and
/// under way since then.
///
/// Await it to get the memory back, filled. Dropping it cancels the transfer; memory that may still be
/// written stays with the connector until it is quiet.
#[must_use = "dropping an operation cancels it"]
pub struct ReadOperation<M> {
    handle: Handle,
    remote: String,
    memory: PhantomData<fn() -> M>,
}

impl<M: TargetMemory> ReadOperation<M> {
    pub(crate) fn new(handle: Handle, opened: Opened) -> Self {
        Self { handle, remote: opened.peer.unwrap_or_default(), memory: PhantomData }
    }

    /// The peer's name.
    pub fn remote(&self) -> &str {
        &self.remote
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.handle.status()
    }

    /// The operation's number within its connector, as logs and errors name it.
    pub fn id(&self) -> u64 {
        self.handle.info.id
    }

    /// Waits until every byte has arrived, and gives the memory back.
    ///
    /// # Errors
    /// [`Error::Transport`] when the peer is gone or refuses, [`Error::DeadlineExceeded`]; with it the
    /// memory, if nothing can write it any more.
    pub fn wait_for_completion(self) -> Completion<Received<M>, Failed<M>> {
        Completion::new(self.handle, target_finished)
    }

    /// Ends the transfer. The result is [`Error::Cancelled`], which says what became of the memory, unless it
    /// had ended already. [`Cancellation::of`](crate::Cancellation::of) tells all of these apart.
    pub fn cancel(self) -> Completion<Received<M>, Failed<M>> {
        self.handle.stop();
        self.wait_for_completion()
    }
}

impl<M: TargetMemory> IntoFuture for ReadOperation<M> {
    type Output = Result<Received<M>, Failed<M>>;
    type IntoFuture = Completion<Received<M>, Failed<M>>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl<M> fmt::Debug for ReadOperation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(f, "ReadOperation", &self.handle)
    }
}

/// Writes a peer's writable memory. Made by [`Connector::begin_write`](crate::Connector::begin_write), and
/// under way since then.
///
/// Dropping it cancels the transfer; memory that may still be read stays with the connector until it is
/// quiet.
#[must_use = "dropping an operation cancels it"]
pub struct WriteOperation {
    handle: Handle,
    remote: String,
}

impl WriteOperation {
    pub(crate) fn new(handle: Handle, opened: Opened) -> Self {
        Self { handle, remote: opened.peer.unwrap_or_default() }
    }

    /// The peer's name.
    pub fn remote(&self) -> &str {
        &self.remote
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.handle.status()
    }

    /// The operation's number within its connector, as logs and errors name it.
    pub fn id(&self) -> u64 {
        self.handle.info.id
    }

    /// Waits until the peer has every byte.
    ///
    /// # Errors
    /// [`Error::Transport`] when the peer is gone or refuses, [`Error::DeadlineExceeded`].
    pub fn wait_for_completion(self) -> Completion<Report> {
        Completion::new(self.handle, source_finished)
    }

    /// Ends the transfer. The result is [`Error::Cancelled`], which says what became of the memory, unless it
    /// had ended already. [`Cancellation::of`](crate::Cancellation::of) tells all of these apart.
    pub fn cancel(self) -> Completion<Report> {
        self.handle.stop();
        self.wait_for_completion()
    }
}

impl IntoFuture for WriteOperation {
    type Output = Result<Report, Error>;
    type IntoFuture = Completion<Report>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl fmt::Debug for WriteOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(f, "WriteOperation", &self.handle)
    }
}

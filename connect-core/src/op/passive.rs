//! The two operations that wait for a peer: [`ReadableOperation`] and [`WritableOperation`].

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;

use super::pending::{Completion, Handle, source_finished, target_finished};
use super::slot::Opened;
use super::{OperationStatus, Received, Report};
use crate::TargetMemory;
use crate::error::{Error, Failed};
use crate::wire::RdmaMetadata;

/// Memory that one peer may read. Made by [`Connector::create_readable`](crate::Connector::create_readable).
///
/// Hand [`metadata`](Self::metadata) to the peer over any channel, then await the operation. Dropping it
/// withdraws the offer.
#[must_use = "dropping an operation cancels it"]
pub struct ReadableOperation {
    handle: Handle,
    metadata: RdmaMetadata,
}

impl ReadableOperation {
    pub(crate) fn new(handle: Handle, opened: Opened) -> Self {
        Self { handle, metadata: metadata_of(opened) }
    }

    /// What the peer needs to read the memory. It holds addresses and the key to them: send it only to whom
    /// it is meant for.
    pub fn metadata(&self) -> &RdmaMetadata {
        &self.metadata
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.handle.status()
    }

    /// The operation's number within its connector, as logs and errors name it.
    pub fn id(&self) -> u64 {
        self.handle.info.id
    }

    /// Waits until a peer has read the memory.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] when nobody did in time, [`Error::Transport`] when the transport failed.
    pub fn wait_for_completion(self) -> Completion<Report> {
        Completion::new(self.handle, source_finished)
    }

    /// Withdraws the offer. The result is [`Error::Cancelled`], which says what became of the memory, unless a
    /// peer was faster. [`Cancellation::of`](crate::Cancellation::of) tells all of these apart.
    pub fn cancel(self) -> Completion<Report> {
        self.handle.stop();
        self.wait_for_completion()
    }
}

impl IntoFuture for ReadableOperation {
    type Output = Result<Report, Error>;
    type IntoFuture = Completion<Report>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl fmt::Debug for ReadableOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(f, "ReadableOperation", &self.handle)
    }
}

/// Memory that one peer may write. Made by [`Connector::create_writable`](crate::Connector::create_writable).
///
/// Hand [`metadata`](Self::metadata) to the peer over any channel, then await the operation: it gives the
/// memory back, filled. Dropping it withdraws the offer.
#[must_use = "dropping an operation cancels it"]
pub struct WritableOperation<M> {
    handle: Handle,
    metadata: RdmaMetadata,
    memory: PhantomData<fn() -> M>,
}

impl<M: TargetMemory> WritableOperation<M> {
    pub(crate) fn new(handle: Handle, opened: Opened) -> Self {
        Self { handle, metadata: metadata_of(opened), memory: PhantomData }
    }

    /// What the peer needs to write the memory. It holds addresses and the key to them: send it only to
    /// whom it is meant for.
    pub fn metadata(&self) -> &RdmaMetadata {
        &self.metadata
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.handle.status()
    }

    /// The operation's number within its connector, as logs and errors name it.
    pub fn id(&self) -> u64 {
        self.handle.info.id
    }

    /// Waits until a peer has written the memory, and gives it back.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] when nobody did in time, [`Error::Transport`] when the transport failed;
    /// with it the memory, if nothing can write it any more.
    pub fn wait_for_completion(self) -> Completion<Received<M>, Failed<M>> {
        Completion::new(self.handle, target_finished)
    }

    /// Withdraws the offer. The result is [`Error::Cancelled`], which says what became of the memory, unless a
    /// peer was faster. [`Cancellation::of`](crate::Cancellation::of) tells all of these apart.
    pub fn cancel(self) -> Completion<Received<M>, Failed<M>> {
        self.handle.stop();
        self.wait_for_completion()
    }
}

impl<M: TargetMemory> IntoFuture for WritableOperation<M> {
    type Output = Result<Received<M>, Failed<M>>;
    type IntoFuture = Completion<Received<M>, Failed<M>>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl<M> fmt::Debug for WritableOperation<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(f, "WritableOperation", &self.handle)
    }
}

fn metadata_of(opened: Opened) -> RdmaMetadata {
    opened.metadata.expect("the driver opens every passive operation with metadata")
}

pub(super) fn debug(f: &mut fmt::Formatter<'_>, name: &str, handle: &Handle) -> fmt::Result {
    f.debug_struct(name)
        .field("id", &handle.info.id)
        .field("bytes", &handle.info.bytes)
        .field("status", &handle.status())
        .finish()
}

//! What tensors can do: [`TensorExt`].
#![expect(unsafe_code, reason = "declares the unsafe methods and passes their contracts on")]

use connect_core::{Connector, RdmaMetadata, ReadableTensor, Report};
use tch::Tensor;

use crate::{Pending, recv, send, target};

/// Sends and receives libtorch tensors.
pub trait TensorExt: sealed::Sealed {
    /// Offers the tensor for one peer to read. The storage is kept alive until the operation ends.
    ///
    /// # Safety
    /// Until the operation has ended (over NIXL: until the transport has proven that no peer reads the tensor
    /// any more), nobody writes to the tensor's storage or resizes it, by any handle or view. On a GPU, what was queued
    /// before this call is waited for; from then on nothing may be queued that writes there.
    ///
    /// # Errors
    /// A [`TensorError`](crate::TensorError) that names the remedy for what can't be offered: undefined, sparse, quantised or
    /// empty tensors, views in too many pieces, tensors on devices that this program or the transport can't reach.
    unsafe fn send_readable(&self, connector: &Connector) -> Pending<ReadableTensor>;

    /// Writes the tensor into the memory that a peer offers, and ends when the peer has every byte.
    ///
    /// The peer's pieces must not end inside one of a view's: to a peer that offers one piece, send a
    /// contiguous tensor.
    ///
    /// # Safety
    /// As [`send_readable`](Self::send_readable).
    ///
    /// # Errors
    /// As [`send_readable`](Self::send_readable), and those of the transfer.
    unsafe fn send_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report>;

    /// Reads what a peer offers into this tensor; every handle and view of it sees the new content.
    ///
    /// The bytes arrive in a new tensor. libtorch then copies them into this one, on the thread that waits or
    /// polls, and counts it as the in-place operation that it is. So the old content can be used until then, and
    /// is left as it was by an operation that fails. On a GPU the copy is queued, and this ends when it is over; only a
    /// deadline that passes during that leaves the new content behind an error.
    ///
    /// # Safety
    /// During this call, and while the operation is waited for or polled, nobody uses the tensor or its storage on another
    /// thread, by any handle or view. (Candle has a lock for this; libtorch has none, and copies without one.) On a GPU, what is queued
    /// counts as use until it is done.
    ///
    /// # Errors
    /// A [`TensorError`](crate::TensorError) that names the remedy for what can't be received into: as for
    /// [`send_readable`](Self::send_readable), and tensors that require gradients or whose elements share storage;
    /// [`TensorError::NotStored`](crate::TensorError::NotStored), which has the content, when libtorch refuses the
    /// copy.
    unsafe fn recv_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report>;

    /// Reads what a peer offers straight into this tensor's elements: for paged pools, where one storage holds
    /// blocks that are read, written and received at the same time. Autograd does not learn of it.
    ///
    /// `lease` is whatever entitles the caller to the elements, a block handle say. It comes back with
    /// success; after a failure it is dropped, but not before the transport has proven that nothing writes
    /// to the elements any more.
    ///
    /// # Safety
    /// From the call until `lease` comes back or is dropped,
    /// * nobody else reads or writes the elements of this tensor, by any handle or view of the storage, and
    /// * nobody resizes the storage.
    ///
    /// On a GPU, what was queued before this call is waited for, and what arrived is there for what is queued afterwards.
    ///
    /// # Errors
    /// As [`recv_into`](Self::recv_into). `Bool` tensors are refused, whose bytes would be there unchecked, and
    /// targets in more pieces than the peer's.
    unsafe fn recv_into_unlocked<L: Send + 'static>(
        &self,
        connector: &Connector,
        metadata: &RdmaMetadata,
        lease: L,
    ) -> Pending<(L, Report)>;
}

impl TensorExt for Tensor {
    unsafe fn send_readable(&self, connector: &Connector) -> Pending<ReadableTensor> {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { send::send_readable(self, connector) }
    }

    unsafe fn send_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { send::send_into(self, connector, metadata) }
    }

    unsafe fn recv_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { recv::recv_into(self, connector, metadata) }
    }

    unsafe fn recv_into_unlocked<L: Send + 'static>(
        &self,
        connector: &Connector,
        metadata: &RdmaMetadata,
        lease: L,
    ) -> Pending<(L, Report)> {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { target::recv_into_unlocked(self, connector, metadata, lease) }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for tch::Tensor {}
}

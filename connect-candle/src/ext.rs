//! What tensors can do: [`TensorExt`].
#![expect(unsafe_code, reason = "declares one unsafe method and passes its contract on")]

use candle_core::Tensor;
use connect_core::{Connector, RdmaMetadata, ReadableTensor, Report};

use crate::{Pending, recv, send, unlocked};

/// Sends and receives Candle tensors.
pub trait TensorExt: sealed::Sealed {
    /// Offers the tensor for one peer to read. It is pinned until the operation ends.
    ///
    /// # Errors
    /// [`TensorError::Busy`](crate::TensorError::Busy) while an operation receives into it, and a
    /// [`TensorError`](crate::TensorError) that names the remedy for what can't be offered: tensors without
    /// elements, in too many pieces, on a device that this build or the transport can't reach, or in GPU memory that
    /// engines can't register.
    fn send_readable(&self, connector: &Connector) -> Pending<ReadableTensor>;

    /// Writes the tensor into the memory that a peer offers, and ends when the peer has every byte.
    ///
    /// The peer's pieces must not end inside one of a view's: to a peer that offers one piece, send a
    /// contiguous tensor.
    ///
    /// # Errors
    /// As [`send_readable`](Self::send_readable), and those of the transfer.
    fn send_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report>;

    /// Reads what a peer offers into this tensor; every clone and view of it sees the new content.
    ///
    /// The bytes arrive in a buffer of their own. A tensor that covers its storage then takes over that
    /// buffer, without a copy; a view of a part has its part copied. Either happens under a brief write lock:
    /// no lock is held while bytes travel, so the old content can be read until then, and what is written
    /// to the tensor meanwhile is lost. When other code keeps the storage locked for more than a second, the
    /// operation fails with [`TensorError::NotStored`](crate::TensorError::NotStored), which has the content.
    ///
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use connect_candle::TensorExt;
    /// use connect_core::Connector;
    ///
    /// let connector = Connector::local()?;
    /// let offer = Tensor::ones(3, DType::F32, &Device::Cpu)?.send_readable(&connector).wait()?;
    /// let target = Tensor::zeros(3, DType::F32, &Device::Cpu)?;
    /// target.recv_into(&connector, offer.metadata()).wait()?;
    /// assert_eq!(target.to_vec1::<f32>()?, [1., 1., 1.]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`TensorError::Busy`](crate::TensorError::Busy) while the storage is offered or receives already;
    /// [`TensorError::Layout`](crate::TensorError::Layout) for broadcast views and for bytes that don't fit.
    fn recv_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report>;

    /// Reads what a peer offers straight into this tensor's elements, without any lock: for paged pools,
    /// where one storage holds blocks that are read, written and received at the same time.
    ///
    /// `lease` is whatever entitles the caller to the elements, a block handle say. It comes back with
    /// success; after a failure it is dropped, but not before the transport has proven that nothing writes
    /// to the elements any more.
    ///
    /// # Safety
    /// From the call until `lease` comes back or is dropped,
    /// * nobody else reads or writes the elements of this tensor, by any view of the storage, and
    /// * nobody replaces the storage's buffer (`recv_into` a tensor that covers the storage, or an
    ///   `InplaceOp1` that assigns a new one).
    ///
    /// # Errors
    /// As [`recv_into`](Self::recv_into), and a target in more pieces than the peer's is refused.
    unsafe fn recv_into_unlocked<L: Send + 'static>(
        &self,
        connector: &Connector,
        metadata: &RdmaMetadata,
        lease: L,
    ) -> Pending<(L, Report)>;
}

impl TensorExt for Tensor {
    fn send_readable(&self, connector: &Connector) -> Pending<ReadableTensor> {
        send::send_readable(self, connector)
    }

    fn send_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
        send::send_into(self, connector, metadata)
    }

    fn recv_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
        recv::recv_into(self, connector, metadata)
    }

    unsafe fn recv_into_unlocked<L: Send + 'static>(
        &self,
        connector: &Connector,
        metadata: &RdmaMetadata,
        lease: L,
    ) -> Pending<(L, Report)> {
        // SAFETY: the caller's promise is passed on as it is.
        unsafe { unlocked::recv_into_unlocked(self, connector, metadata, lease) }
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for candle_core::Tensor {}
}

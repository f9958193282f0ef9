//! Offers of tensors to readers: [`ReadableTensor`] and [`ReadableTensors`].

use std::fmt;
use std::future::IntoFuture;

use crate::dtype::DType;
use crate::error::Error;
use crate::op::{Completion, OperationStatus, ReadableOperation, Report};
use crate::wire::{MetadataError, RdmaMetadata, TensorEnvelope, TensorSpec};

/// A tensor that one peer may read. Made by `TensorExt::send_readable` of the adapters.
///
/// It belongs to the operation until that ends; the adapter says what that means for other users of it.
#[must_use = "dropping an operation withdraws its offer"]
pub struct ReadableTensor {
    operation: ReadableOperation,
    dtype: DType,
    shape: Vec<u64>,
}

impl ReadableTensor {
    /// For adapters: the offer of a tensor's elements in row-major order, as all there is in `operation`.
    pub fn new(operation: ReadableOperation, dtype: DType, shape: Vec<u64>) -> Self {
        Self { operation, dtype, shape }
    }

    /// What a peer needs to read the bytes, exactly as the Python original has it. The peer must know dtype
    /// and shape; [`envelope`](Self::envelope) tells it.
    pub fn metadata(&self) -> &RdmaMetadata {
        self.operation.metadata()
    }

    /// The metadata with the tensor's dtype and shape, under `name`: what `recv_new` of the adapters takes.
    ///
    /// # Errors
    /// A name of more than 4 KiB, or more than 32 dimensions.
    pub fn envelope(&self, name: &str) -> Result<TensorEnvelope, MetadataError> {
        let metadata = self.metadata().clone();
        let all = 0..metadata.descriptors().len();
        let spec = TensorSpec::new(name, self.dtype, self.shape.clone(), all)?;
        TensorEnvelope::new(metadata, vec![spec])
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.operation.status()
    }

    /// Waits until a peer has read the tensor.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] when nobody did in time, [`Error::Transport`] when the transport failed.
    pub fn wait_for_completion(self) -> Completion<Report> {
        self.operation.wait_for_completion()
    }

    /// Withdraws the offer. The result is [`Error::Cancelled`], unless a peer was faster.
    pub fn cancel(self) -> Completion<Report> {
        self.operation.cancel()
    }
}

impl IntoFuture for ReadableTensor {
    type Output = Result<Report, Error>;
    type IntoFuture = Completion<Report>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl fmt::Debug for ReadableTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadableTensor")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .field("operation", &self.operation)
            .finish()
    }
}

/// Named tensors that one peer may read, in one operation. Made by `send_tensors` of the adapters.
#[must_use = "dropping an operation withdraws its offer"]
pub struct ReadableTensors {
    operation: ReadableOperation,
    envelope: TensorEnvelope,
}

impl ReadableTensors {
    /// For adapters: the offer of these tensors, which have the operation's descriptors one after the other.
    ///
    /// # Errors
    /// The tensors make no valid envelope: two of one name, say. The offer is then withdrawn.
    pub fn new(operation: ReadableOperation, tensors: Vec<TensorSpec>) -> Result<Self, MetadataError> {
        let envelope = TensorEnvelope::new(operation.metadata().clone(), tensors)?;
        Ok(Self { operation, envelope })
    }

    /// What a peer needs to receive the tensors: `recv_new` of the adapters takes it.
    pub fn envelope(&self) -> &TensorEnvelope {
        &self.envelope
    }

    /// The document inside the envelope, for peers that know the tensors from elsewhere.
    pub fn metadata(&self) -> &RdmaMetadata {
        self.operation.metadata()
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.operation.status()
    }

    /// Waits until a peer has read the tensors.
    ///
    /// # Errors
    /// [`Error::DeadlineExceeded`] when nobody did in time, [`Error::Transport`] when the transport failed.
    pub fn wait_for_completion(self) -> Completion<Report> {
        self.operation.wait_for_completion()
    }

    /// Withdraws the offer. The result is [`Error::Cancelled`], unless a peer was faster.
    pub fn cancel(self) -> Completion<Report> {
        self.operation.cancel()
    }
}

impl IntoFuture for ReadableTensors {
    type Output = Result<Report, Error>;
    type IntoFuture = Completion<Report>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl fmt::Debug for ReadableTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadableTensors")
            .field("tensors", &self.envelope.tensors())
            .field("operation", &self.operation)
            .finish()
    }
}

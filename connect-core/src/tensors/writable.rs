//! Memory that becomes a tensor once a peer has written it: [`WritableTensor`].

use std::fmt;
use std::future::IntoFuture;

use crate::TargetMemory;
use crate::error::{Error, Failed};
use crate::op::{OperationStatus, Received, Report, WritableOperation};
use crate::task::{Task, Wait};
use crate::wire::{MetadataError, RdmaMetadata, TensorEnvelope, TensorSpec};

/// Memory for a new tensor, which one peer may write. Made by `recv_writable` of the adapters; `T` is the
/// framework's tensor, `E` the adapter's error.
#[must_use = "dropping an operation withdraws its offer"]
pub struct WritableTensor<T, E> {
    offer: Box<dyn Offer<T, E>>,
    spec: TensorSpec,
}

impl<T: Send + 'static, E: From<Error> + Send + 'static> WritableTensor<T, E> {
    /// For adapters: the offer of memory for the tensor that `spec` describes, as all there is in `operation`.
    /// `become_tensor` makes it of the memory once that is filled, on the thread that waits or polls.
    pub fn new<M: TargetMemory>(
        operation: WritableOperation<M>,
        spec: TensorSpec,
        become_tensor: Become<M, T, E>,
    ) -> Self {
        Self { offer: Box::new(Memory { operation, become_tensor }), spec }
    }

    /// Waits until a peer has written the memory, which becomes the tensor.
    ///
    /// # Errors
    /// The operation's: nobody wrote in time, or the transport failed. Or the adapter's, when what was written makes
    /// no tensor.
    pub fn wait_for_completion(self) -> Task<(T, Report), E> {
        self.offer.wait_for_completion()
    }

    /// Withdraws the offer. The result is [`Error::Cancelled`], unless a peer was faster.
    pub fn cancel(self) -> Task<(T, Report), E> {
        self.offer.cancel()
    }
}

impl<T, E> WritableTensor<T, E> {
    /// What a peer needs to write the bytes, exactly as the Python original has it.
    pub fn metadata(&self) -> &RdmaMetadata {
        self.offer.metadata()
    }

    /// The metadata with the tensor's dtype and shape, under `name`.
    ///
    /// # Errors
    /// A name of more than 4 KiB.
    pub fn envelope(&self, name: &str) -> Result<TensorEnvelope, MetadataError> {
        let spec = TensorSpec::new(name, self.spec.dtype, self.spec.shape.clone(), self.spec.descriptors())?;
        TensorEnvelope::new(self.metadata().clone(), vec![spec])
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.offer.status()
    }
}

impl<T: Send + 'static, E: From<Error> + Send + 'static> IntoFuture for WritableTensor<T, E> {
    type Output = Result<(T, Report), E>;
    type IntoFuture = Task<(T, Report), E>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl<T, E> fmt::Debug for WritableTensor<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dtype, shape) = (self.spec.dtype, &self.spec.shape);
        f.debug_struct("WritableTensor").field("dtype", &dtype).field("shape", shape).finish_non_exhaustive()
    }
}

/// Makes a tensor of its filled memory.
type Become<M, T, E> = fn(Received<M>) -> Result<(T, Report), E>;

/// An offer whose kind of memory is forgotten.
trait Offer<T, E>: Send + Sync {
    fn metadata(&self) -> &RdmaMetadata;
    fn status(&self) -> OperationStatus;
    fn wait_for_completion(self: Box<Self>) -> Task<(T, Report), E>;
    fn cancel(self: Box<Self>) -> Task<(T, Report), E>;
}

struct Memory<M, T, E> {
    operation: WritableOperation<M>,
    become_tensor: Become<M, T, E>,
}

impl<M, T, E> Offer<T, E> for Memory<M, T, E>
where
    M: TargetMemory,
    T: Send + 'static,
    E: From<Error> + Send + 'static,
{
    fn metadata(&self) -> &RdmaMetadata {
        self.operation.metadata()
    }

    fn status(&self) -> OperationStatus {
        self.operation.status()
    }

    fn wait_for_completion(self: Box<Self>) -> Task<(T, Report), E> {
        tensor(self.operation.wait_for_completion(), self.become_tensor)
    }

    fn cancel(self: Box<Self>) -> Task<(T, Report), E> {
        tensor(self.operation.cancel(), self.become_tensor)
    }
}

fn tensor<M, T, E>(
    completion: impl Wait<Output = Result<Received<M>, Failed<M>>>,
    become_tensor: Become<M, T, E>,
) -> Task<(T, Report), E>
where
    M: 'static,
    T: 'static,
    E: From<Error> + 'static,
{
    Task::after(completion, move |ended| {
        Task::ready(ended.map_err(|failed| failed.error.into()).and_then(become_tensor))
    })
}

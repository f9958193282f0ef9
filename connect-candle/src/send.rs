//! The sending half: tensors offered to a peer, or written into a peer's memory.

use std::fmt;
use std::future::IntoFuture;

use candle_core::Tensor;
use connect_core::{
    Completion, Connector, Error, OperationStatus, RdmaMetadata, ReadableOperation, Report, Task,
    TensorEnvelope, TensorSpec,
};

use crate::Pending;
use crate::dtype::dtype_of;
use crate::error::{TensorError, TensorInfo};
use crate::pin::TensorSource;
use crate::view;

/// A tensor that one peer may read. Made by [`TensorExt::send_readable`](crate::TensorExt::send_readable).
///
/// Its storage stays pinned until the operation ends: readers go on, in-place operations wait.
#[must_use = "dropping an operation withdraws its offer"]
pub struct ReadableTensor {
    operation: ReadableOperation,
    spec: TensorSpec,
}

impl ReadableTensor {
    /// What a peer needs to read the bytes, exactly as the Python original has it. The peer must know dtype
    /// and shape; [`envelope`](Self::envelope) tells it.
    pub fn metadata(&self) -> &RdmaMetadata {
        self.operation.metadata()
    }

    /// The metadata with the tensor's dtype and shape, under `name`: what
    /// [`recv_new`](crate::recv_new) takes.
    ///
    /// # Errors
    /// [`TensorError::Envelope`] for a name of more than 4 KiB.
    pub fn envelope(&self, name: &str) -> Result<TensorEnvelope, TensorError> {
        single_envelope(self.metadata(), &self.spec, name)
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.operation.status()
    }

    /// Waits until a peer has read the tensor, and unpins it.
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
        let (dtype, shape) = (self.spec.dtype, &self.spec.shape);
        f.debug_struct("ReadableTensor").field("dtype", &dtype).field("shape", shape).finish_non_exhaustive()
    }
}

/// Named tensors that one peer may read, in one operation. Made by [`send_tensors`].
///
/// Their storages stay pinned until the operation ends: readers go on, in-place operations wait.
#[must_use = "dropping an operation withdraws its offer"]
pub struct ReadableTensors {
    operation: ReadableOperation,
    envelope: TensorEnvelope,
}

impl ReadableTensors {
    /// What a peer needs to receive the tensors: [`recv_new`](crate::recv_new) takes it.
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

    /// Waits until a peer has read the tensors, and unpins them.
    ///
    /// # Errors
    /// As [`ReadableTensor::wait_for_completion`].
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
        f.debug_struct("ReadableTensors").field("tensors", &self.envelope.tensors()).finish_non_exhaustive()
    }
}

/// Offers named tensors for one peer to read, as one operation.
///
/// Tensors may share storage, be views, or have no elements (a peer then learns their shape only).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use connect_candle::{recv_new, send_tensors};
/// use connect_core::Connector;
///
/// let connector = Connector::local()?;
/// let (k, v) = (Tensor::ones((2, 8), DType::BF16, &Device::Cpu)?, Tensor::zeros((2, 8), DType::F32, &Device::Cpu)?);
/// let offer = send_tensors(&connector, [("k", &k), ("v", &v)]).wait()?;
/// let tensors = recv_new(&connector, offer.envelope()).wait()?;
/// assert_eq!(tensors["k"].dtype(), DType::BF16);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// A [`TensorError`] that names the tensor: one that can't be described, two of one name, or no elements in
/// any of them.
pub fn send_tensors<'a, N: AsRef<str>>(
    connector: &Connector,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
) -> Pending<ReadableTensors> {
    let mut source = TensorSource::default();
    let mut specs = Vec::new();
    let mut first_descriptor = 0;
    for (name, tensor) in tensors {
        match add(&mut source, name.as_ref(), tensor, first_descriptor) {
            Ok(spec) => {
                first_descriptor += spec.descriptor_count;
                specs.push(spec);
            }
            Err(error) => return Task::ready(Err(error)),
        }
    }
    Task::after(connector.create_readable(source), move |opened| {
        let offer = |operation: ReadableOperation| {
            let envelope = TensorEnvelope::new(operation.metadata().clone(), specs)?;
            Ok(ReadableTensors { operation, envelope })
        };
        Task::ready(opened.map_err(TensorError::from).and_then(offer))
    })
}

/// Offers one tensor.
pub(crate) fn send_readable(tensor: &Tensor, connector: &Connector) -> Pending<ReadableTensor> {
    let mut source = TensorSource::default();
    let spec = match add(&mut source, "", tensor, 0) {
        Ok(spec) if spec.byte_len == 0 => return Task::ready(Err(empty(tensor))),
        Ok(spec) => spec,
        Err(error) => return Task::ready(Err(error)),
    };
    Task::after(connector.create_readable(source), |opened| {
        let offer = |operation| ReadableTensor { operation, spec };
        Task::ready(opened.map(offer).map_err(TensorError::from))
    })
}

/// Writes one tensor into the memory a peer offers.
pub(crate) fn send_into(tensor: &Tensor, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
    let source = match source_for(tensor, metadata) {
        Ok(source) => source,
        Err(error) => return Task::ready(Err(error)),
    };
    Task::after(connector.begin_write(source, metadata), |begun| match begun {
        Ok(operation) => Task::after(operation.wait_for_completion(), |ended| {
            Task::ready(ended.map_err(TensorError::from))
        }),
        Err(error) => Task::ready(Err(error.into())),
    })
}

fn source_for(tensor: &Tensor, metadata: &RdmaMetadata) -> Result<TensorSource, TensorError> {
    let mut source = TensorSource::default();
    if add(&mut source, "", tensor, 0)?.byte_len == 0 {
        return Err(empty(tensor));
    }
    source.split_to_match(&view::piece_lens(metadata), &TensorInfo::new("", tensor))?;
    Ok(source)
}

/// Adds a tensor to a source, and says what a peer must know of it.
fn add(
    source: &mut TensorSource,
    name: &str,
    tensor: &Tensor,
    first_descriptor: usize,
) -> Result<TensorSpec, TensorError> {
    let info = TensorInfo::new(name, tensor);
    view::check_device(tensor.device(), &info)?;
    let count = source.add(tensor, &info)?;
    let dtype = dtype_of(tensor.dtype()).ok_or_else(|| TensorError::DType {
        name: name.to_owned(),
        dtype: tensor.dtype().as_str().to_owned(),
        lacking: "the wire format has no name for",
    })?;
    let shape: Vec<u64> = tensor.dims().iter().map(|&dim| dim as u64).collect();
    Ok(TensorSpec::new(name, dtype, shape, first_descriptor..first_descriptor + count)?)
}

/// An envelope of one tensor that has all descriptors.
pub(crate) fn single_envelope(
    metadata: &RdmaMetadata,
    spec: &TensorSpec,
    name: &str,
) -> Result<TensorEnvelope, TensorError> {
    let spec = TensorSpec::new(name, spec.dtype, spec.shape.clone(), 0..metadata.descriptors().len())?;
    Ok(TensorEnvelope::new(metadata.clone(), vec![spec])?)
}

pub(crate) fn empty(tensor: &Tensor) -> TensorError {
    TensorError::Empty { tensor: TensorInfo::new("", tensor) }
}

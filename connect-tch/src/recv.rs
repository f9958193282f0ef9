//! The receiving half: new tensors filled by a read or by a peer's write.

use std::fmt;
use std::future::IntoFuture;

use connect_core::{
    Connector, DType, Device, Failed, MemoryError, OperationStatus, RdmaMetadata, Received, Report, Task,
    TensorEnvelope, TensorSpec, Wait, WritableOperation,
};
use tch::{Kind, Tensor};

use crate::cuda;
use crate::dtype::{dtype_of, kind_of};
use crate::error::{TensorError, TensorInfo};
use crate::fresh::{Content, FreshTensors};
use crate::send::piece_lens;
use crate::{NamedTensors, Pending};

/// Reads the tensors that an envelope describes into new tensors on the CPU.
///
/// libtorch allocates them, the bytes arrive in place, and nobody else has a handle before they have.
///
/// Tensors for which the envelope has a digest are checked, in one pass over their bytes on the thread that
/// waits or polls. To take nothing without one, ask
/// [`TensorEnvelope::require_digests`](connect_core::TensorEnvelope::require_digests) first.
///
/// # Errors
/// [`TensorError::DType`] for an element type that tch lacks, [`TensorError::Allocation`] for shapes beyond
/// the memory there is, [`TensorError::Operation`] when the transfer fails, [`TensorError::Digest`] when what
/// arrived is not what was sent; no tensor is handed out then.
pub fn recv_new(connector: &Connector, envelope: &TensorEnvelope) -> Pending<NamedTensors> {
    recv_new_on(connector, envelope, tch::Device::Cpu)
}

/// The same on a device. A CUDA device is waited for before the transfer and after it, on a thread of its own.
///
/// # Errors
/// As [`recv_new`], and [`TensorError::Unsupported`] for a device that this program can't reach, and for digests of
/// tensors that are to come onto a GPU: the CPU computes them.
pub fn recv_new_on(
    connector: &Connector,
    envelope: &TensorEnvelope,
    device: tch::Device,
) -> Pending<NamedTensors> {
    let (specs, metadata) = (envelope.tensors().to_vec(), envelope.metadata().clone());
    let (begun, envelope) = (connector.clone(), envelope.clone());
    with_memory(
        connector,
        device,
        move |place| fresh_for(&envelope, device, place),
        move |fresh| {
            Task::after(begun.begin_read(&metadata, fresh), move |begun| match begun {
                Ok(operation) => Task::after(operation.wait_for_completion(), move |ended| {
                    let received =
                        ended.map_err(|failed| TensorError::from(failed.error)).and_then(|received| {
                            FreshTensors::check_digests(&received, &specs)?;
                            Ok(FreshTensors::filled(received))
                        });
                    Task::ready(received.map(|(tensors, report)| NamedTensors::new(tensors, report)))
                }),
                Err(failed) => Task::ready(Err(failed.error.into())),
            })
        },
    )
}

/// Goes on with tensors that `make` allocates: here, or on the device's thread.
fn with_memory<M: Send + 'static, T: 'static>(
    connector: &Connector,
    device: tch::Device,
    make: impl FnOnce(Device) -> Result<M, TensorError> + Send + 'static,
    next: impl FnOnce(M) -> Pending<T> + Send + 'static,
) -> Pending<T> {
    let place = match cuda::place(device, &cuda::Torch) {
        Ok(place) => place,
        Err(reason) => {
            return Task::ready(Err(TensorError::Unsupported { tensor: TensorInfo::default(), reason }));
        }
    };
    let next = |made: Result<M, TensorError>| match made {
        Ok(made) => next(made),
        Err(error) => Task::ready(Err(error)),
    };
    match cuda::accelerator(place, cuda::Torch) {
        None => next(make(place)),
        Some(gpu) => Task::after(connector.run_on(gpu, move || make(place)), |made| {
            next(made.map_err(TensorError::from).and_then(|made| made))
        }),
    }
}

/// Offers memory for a new tensor, for one peer to write.
///
/// # Errors
/// [`TensorError::Empty`] for a shape without elements, [`TensorError::DType`], [`TensorError::Allocation`],
/// [`TensorError::Operation`].
pub fn recv_writable(connector: &Connector, kind: Kind, shape: &[i64]) -> Pending<WritableTensor> {
    recv_writable_on(connector, kind, shape, tch::Device::Cpu)
}

/// The same on a device, as [`recv_new_on`].
///
/// # Errors
/// As [`recv_writable`], and [`TensorError::Unsupported`] for a device that this program can't reach.
pub fn recv_writable_on(
    connector: &Connector,
    kind: Kind,
    shape: &[i64],
    device: tch::Device,
) -> Pending<WritableTensor> {
    let (begun, shape) = (connector.clone(), shape.to_vec());
    with_memory(
        connector,
        device,
        move |place| fresh_writable(kind, &shape, device, place),
        move |made| {
            let (fresh, spec) = made;
            Task::after(begun.create_writable(fresh), move |opened| {
                let offer = |operation| WritableTensor { operation, spec };
                Task::ready(opened.map(offer).map_err(|failed| failed.error.into()))
            })
        },
    )
}

/// Memory for a new tensor, which one peer may write. Made by [`recv_writable`].
#[must_use = "dropping an operation withdraws its offer"]
pub struct WritableTensor {
    operation: WritableOperation<FreshTensors>,
    spec: TensorSpec,
}

impl WritableTensor {
    /// What a peer needs to write the bytes, exactly as the Python original has it.
    pub fn metadata(&self) -> &RdmaMetadata {
        self.operation.metadata()
    }

    /// The metadata with the tensor's dtype and shape, under `name`.
    ///
    /// # Errors
    /// [`TensorError::Envelope`] for a name of more than 4 KiB.
    pub fn envelope(&self, name: &str) -> Result<TensorEnvelope, TensorError> {
        let spec = TensorSpec::new(name, self.spec.dtype, self.spec.shape.clone(), self.spec.descriptors())?;
        Ok(TensorEnvelope::new(self.metadata().clone(), vec![spec])?)
    }

    /// How far the operation is.
    pub fn status(&self) -> OperationStatus {
        self.operation.status()
    }

    /// Waits until a peer has written the memory, and gives the tensor out.
    ///
    /// # Errors
    /// [`TensorError::Operation`]: nobody wrote in time, or the transport failed.
    pub fn wait_for_completion(self) -> Pending<(Tensor, Report)> {
        written(self.operation.wait_for_completion())
    }

    /// Withdraws the offer. The result is [`Error::Cancelled`](connect_core::Error::Cancelled), unless a peer
    /// was faster.
    pub fn cancel(self) -> Pending<(Tensor, Report)> {
        written(self.operation.cancel())
    }
}

impl IntoFuture for WritableTensor {
    type Output = Result<(Tensor, Report), TensorError>;
    type IntoFuture = Pending<(Tensor, Report)>;

    fn into_future(self) -> Self::IntoFuture {
        self.wait_for_completion()
    }
}

impl fmt::Debug for WritableTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dtype, shape) = (self.spec.dtype, &self.spec.shape);
        f.debug_struct("WritableTensor").field("dtype", &dtype).field("shape", shape).finish_non_exhaustive()
    }
}

/// New tensors for an envelope. The envelope is checked: each has the bytes of its descriptors.
fn fresh_for(
    envelope: &TensorEnvelope,
    device: tch::Device,
    place: Device,
) -> Result<FreshTensors, TensorError> {
    let mut fresh = FreshTensors::on(device, place);
    let pieces = piece_lens(envelope.metadata());
    for spec in envelope.tensors() {
        let kind = kind_of(spec.dtype).ok_or_else(|| TensorError::DType {
            name: spec.name.clone(),
            dtype: spec.dtype.to_string(),
            lacking: "tch does not have",
        })?;
        if !place.is_cpu() && spec.digest.is_some() {
            let reason = "its digest is checked by the CPU; receive it there, or have it sent without";
            return Err(TensorError::Unsupported { tensor: described(spec)?, reason });
        }
        fresh.add(&described(spec)?, kind, spec.byte_len, Content::Unset, &pieces[spec.descriptors()])?;
    }
    Ok(fresh)
}

fn fresh_writable(
    kind: Kind,
    shape: &[i64],
    on: tch::Device,
    place: Device,
) -> Result<(FreshTensors, TensorSpec), TensorError> {
    let dtype: DType = dtype_of(kind).ok_or_else(|| TensorError::DType {
        name: String::new(),
        dtype: format!("{kind:?}"),
        lacking: "the wire format has no name for",
    })?;
    let device = Some(Device::CPU);
    let empty = || TensorInfo { name: String::new(), dtype: Some(dtype), shape: shape.to_vec(), device };
    let dims: Result<Vec<u64>, _> = shape.iter().map(|&dim| u64::try_from(dim)).collect();
    let spec = match dims {
        Ok(dims) if !dims.contains(&0) => TensorSpec::new("", dtype, dims, 0..1)?,
        _ => return Err(TensorError::Empty { tensor: empty() }),
    };
    let mut fresh = FreshTensors::on(on, place);
    fresh.add(&described(&spec)?, kind, spec.byte_len, Content::Zeroed, &[spec.byte_len])?;
    Ok((fresh, spec))
}

/// A tensor that does not exist yet, and will be on the CPU.
fn described(spec: &TensorSpec) -> Result<TensorInfo, TensorError> {
    let shape: Result<Vec<i64>, _> = spec.shape.iter().map(|&dim| i64::try_from(dim)).collect();
    let shape = shape.map_err(|_| TensorError::Allocation {
        name: spec.name.clone(),
        bytes: spec.byte_len,
        reason: "a dimension is beyond libtorch's numbers".to_owned(),
    })?;
    Ok(TensorInfo { name: spec.name.clone(), dtype: Some(spec.dtype), shape, device: Some(Device::CPU) })
}

fn written(
    completion: impl Wait<Output = Result<Received<FreshTensors>, Failed<FreshTensors>>>,
) -> Pending<(Tensor, Report)> {
    Task::after(completion, |ended| {
        let received = match ended {
            Ok(received) => received,
            Err(failed) => return Task::ready(Err(failed.error.into())),
        };
        let (tensors, report) = FreshTensors::filled(received);
        let tensor = tensors.into_iter().next().map(|(_, tensor)| (tensor, report));
        Task::ready(tensor.ok_or_else(|| TensorError::Operation(MemoryError::Empty.into())))
    })
}

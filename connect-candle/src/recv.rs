//! The receiving half: new tensors filled by a read or by a peer's write, and existing ones replaced.

use candle_core::{CpuStorage, DType, Device, Shape, Storage, Tensor};
use connect_core::{Connector, Error, RdmaMetadata, Received, Report, Task, TensorEnvelope, TensorSpec};

use crate::dtype::{candle_dtype, dtype_of};
use crate::error::{TensorError, TensorInfo};
use crate::fresh::{Content, Filled, FreshTensors};
use crate::hold;
use crate::send::empty;
use crate::store::store;
use crate::view::{self, Buffer};
use crate::{NamedTensors, Pending, WritableTensor};

/// Reads the tensors that an envelope describes into new tensors on the CPU. [`recv_new_on`] puts them on another
/// device.
///
/// Each buffer becomes its tensor without a copy. Nothing else refers to it before every byte has arrived,
/// so this is the way to receive that costs nothing and can't go wrong. The first touch of fresh memory costs
/// page faults, as with any allocation.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use connect_candle::{TensorExt, recv_new};
/// use connect_core::{Connector, TensorEnvelope};
///
/// let (sender, receiver) = (Connector::local()?, Connector::local()?); // usually in two processes
///
/// let offer = Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu)?.send_readable(&sender).wait()?;
/// let json = offer.envelope("x")?.to_json(); // travels over HTTP, a pipe, NATS ...
///
/// let tensors = recv_new(&receiver, &TensorEnvelope::from_json(&json)?).wait()?;
/// assert_eq!(tensors["x"].to_vec2::<f32>()?, [[1., 2.], [3., 4.]]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Tensors for which the envelope has a digest are checked, in one pass over their bytes on the thread that
/// waits or polls.
///
/// # Errors
/// [`TensorError::DType`] for an element type that Candle lacks, [`TensorError::Allocation`] for shapes
/// beyond the memory there is, [`TensorError::Operation`] when the transfer fails, [`TensorError::Digest`]
/// when what arrived is not what was sent; no tensor is handed out then.
pub fn recv_new(connector: &Connector, envelope: &TensorEnvelope) -> Pending<NamedTensors> {
    recv_new_on(connector, envelope, &Device::Cpu)
}

/// Reads the tensors that an envelope describes into new tensors on a device.
///
/// On a CUDA device (feature `cuda`) each gets plain memory of its own, as the module `cuda` describes, and is
/// handed out when everything that is queued on the device afterwards, by any thread, sees its content. Wherever the
/// sender's tensors are, on the CPU or any GPU, is for the transport to bridge. Digests are computed by the CPU, so
/// tensors that have one are copied to it for that.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use connect_candle::{TensorExt, recv_new_on};
/// use connect_core::{Connector, TensorEnvelope};
///
/// let device = Device::Cpu; // or Device::new_cuda(0)?, over NIXL
/// let (sender, receiver) = (Connector::local()?, Connector::local()?);
/// let offer = Tensor::new(&[1f32, 2.], &Device::Cpu)?.send_readable(&sender).wait()?;
/// let tensors = recv_new_on(&receiver, &offer.envelope("x")?, &device).wait()?;
/// assert!(tensors["x"].device().same_device(&device));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`recv_new`], and [`TensorError::Device`] for a device that this build can't reach.
pub fn recv_new_on(
    connector: &Connector,
    envelope: &TensorEnvelope,
    device: &Device,
) -> Pending<NamedTensors> {
    let specs = envelope.tensors().to_vec();
    let (metadata, envelope) = (envelope.metadata().clone(), envelope.clone());
    let on = device.clone();
    with_memory(
        connector,
        device,
        move || fresh_for(&envelope, &on),
        move |connector, fresh| {
            read(connector, &metadata, fresh, move |received| {
                let (filled, report) = FreshTensors::filled(received);
                for (spec, filled) in specs.iter().zip(&filled) {
                    check_digest(spec, filled)?;
                }
                let tensors = filled.into_iter().map(|filled| (filled.name.clone(), into_tensor(filled)));
                Ok(NamedTensors::new(tensors.collect(), report))
            })
        },
    )
}

fn check_digest(spec: &TensorSpec, filled: &Filled) -> Result<(), TensorError> {
    if spec.digest.is_none() {
        return Ok(());
    }
    let info = || {
        let info = TensorInfo::described(&filled.name, filled.storage.dtype(), &filled.dims);
        info.on(&filled.storage.device())
    };
    let check = |storage: &CpuStorage| Ok(spec.check_digest([view::bytes(storage)])?);
    match &filled.storage {
        Storage::Cpu(storage) => check(storage),
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => check(&crate::cuda::to_host(storage, &info())?),
        _ => Err(view::out_of_reach(&info(), view::NO_DIGEST)),
    }
}

/// Goes on with memory that `make` allocates: here, or on the device's thread, where waiting for it disturbs nobody.
fn with_memory<M: Send + 'static, T: 'static>(
    connector: &Connector,
    device: &Device,
    make: impl FnOnce() -> Result<M, TensorError> + Send + 'static,
    next: impl FnOnce(&Connector, M) -> Pending<T> + Send + 'static,
) -> Pending<T> {
    let next = |connector: &Connector, made: Result<M, TensorError>| match made {
        Ok(made) => next(connector, made),
        Err(error) => Task::ready(Err(error)),
    };
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => {
            // Allocating and receiving share one deadline.
            let connector = connector.with_deadline_from_now();
            let ran = connector.run_on(crate::cuda::accelerator(device), make);
            Task::after(ran, move |made| {
                next(&connector, made.map_err(TensorError::from).and_then(|made| made))
            })
        }
        _ => next(connector, make()),
    }
}

/// The same for receivers that must be able to check what arrives: an envelope in which a tensor has no digest
/// is refused before anything is transferred.
///
/// A digest is worth what the way of the envelope is worth: whoever can change the envelope can change the
/// digest in it. See [`send_tensors_with_digests`](crate::send_tensors_with_digests).
///
/// # Errors
/// As [`recv_new`], and [`TensorError::Envelope`] for a tensor without a digest.
pub fn recv_verified(connector: &Connector, envelope: &TensorEnvelope) -> Pending<NamedTensors> {
    match envelope.require_digests() {
        Ok(()) => recv_new(connector, envelope),
        Err(missing) => Task::ready(Err(missing.into())),
    }
}

/// Offers memory for a new tensor, for one peer to write.
///
/// The peer writes with [`TensorExt::send_into`](crate::TensorExt::send_into), or in Python with
/// `begin_write`; when it has, the memory becomes the tensor without a copy.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use connect_candle::{TensorExt, recv_writable};
/// use connect_core::Connector;
///
/// let (receiver, sender) = (Connector::local()?, Connector::local()?);
/// let offer = recv_writable(&receiver, DType::F32, (2, 2)).wait()?;
/// Tensor::ones((2, 2), DType::F32, &Device::Cpu)?.send_into(&sender, offer.metadata()).wait()?;
/// let (tensor, report) = offer.wait_for_completion().wait()?;
/// assert_eq!((tensor.dims(), report.bytes), (&[2, 2][..], 16));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`TensorError::Empty`] for a shape without elements, [`TensorError::Allocation`],
/// [`TensorError::Operation`].
pub fn recv_writable(
    connector: &Connector,
    dtype: DType,
    shape: impl Into<Shape>,
) -> Pending<WritableTensor> {
    recv_writable_on(connector, dtype, shape, &Device::Cpu)
}

/// The same on a device, in memory as that of [`recv_new_on`].
///
/// # Errors
/// As [`recv_writable`], and [`TensorError::Device`] for a device that this build can't reach.
pub fn recv_writable_on(
    connector: &Connector,
    dtype: DType,
    shape: impl Into<Shape>,
    device: &Device,
) -> Pending<WritableTensor> {
    let (shape, on) = (shape.into(), device.clone());
    with_memory(
        connector,
        device,
        move || fresh_writable(dtype, &shape, &on),
        move |connector, (fresh, spec)| {
            Task::after(connector.create_writable(fresh), |opened| {
                let offer = |operation| WritableTensor::new(operation, spec, written);
                Task::ready(opened.map(offer).map_err(|failed| failed.error.into()))
            })
        },
    )
}

/// Receives into an existing tensor: into a buffer of its own first, then into the tensor's storage.
pub(crate) fn recv_into(tensor: &Tensor, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
    let info = TensorInfo::new("", tensor);
    let claim = match claim(tensor, &info) {
        Ok(claim) => claim,
        Err(error) => return Task::ready(Err(error)),
    };
    let (tensor, metadata) = (tensor.clone(), metadata.clone());
    let (on, pieces, described) = (tensor.device().clone(), view::piece_lens(&metadata), info.clone());
    let fresh = move || {
        let mut fresh = FreshTensors::on(&on);
        fresh.add(&described, Content::Unset, &pieces)?;
        Ok(fresh)
    };
    let device = tensor.device().clone();
    with_memory(connector, &device, fresh, move |connector, fresh| {
        read(connector, &metadata, fresh, move |received| {
            let (filled, report) = FreshTensors::filled(received);
            for filled in filled {
                store(&tensor, filled.storage, &info)?;
            }
            drop(claim);
            Ok(report)
        })
    })
}

const PART_OF_A_GPU_S: &str = "it is a part of a storage on a GPU, into which nothing is received; receive a new tensor \
                               (`recv_new_on`) and copy it there (`slice_set`), or use `recv_into_unlocked`";

/// Reserves the tensor's storage, after the checks that need no transfer.
fn claim(tensor: &Tensor, info: &TensorInfo) -> Result<hold::Claim, TensorError> {
    view::check_device(tensor.device(), info)?;
    if tensor.elem_count() == 0 {
        return Err(empty(tensor));
    }
    let claim = hold::claim(tensor).map_err(|denied| denied.into_error(info))?;
    let (storage, layout) = tensor.storage_and_layout();
    let buffer = Buffer::of(&storage, info)?;
    view::target_runs(&buffer, layout, info)?;
    if !buffer.device.is_cpu() && !buffer.is_covered_by(layout) {
        return Err(view::out_of_reach(info, PART_OF_A_GPU_S));
    }
    Ok(claim)
}

/// Buffers for an envelope's tensors. The envelope is checked: each has the bytes of its descriptors.
fn fresh_for(envelope: &TensorEnvelope, device: &Device) -> Result<FreshTensors, TensorError> {
    let mut fresh = FreshTensors::on(device);
    let pieces = view::piece_lens(envelope.metadata());
    for spec in envelope.tensors() {
        let dtype = candle_dtype(spec.dtype).ok_or_else(|| TensorError::DType {
            name: spec.name.clone(),
            dtype: spec.dtype.to_string(),
            shape: spec.shape.clone(),
            device: view::place(device),
            lacking: "Candle does not have",
        })?;
        // A dimension beyond all addresses has more bytes than there are, and is refused for that.
        let dims = spec.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX));
        let info = TensorInfo::described(&spec.name, dtype, &dims.collect::<Vec<_>>()).on(device);
        fresh.add(&info, Content::Unset, &pieces[spec.descriptors()])?;
    }
    Ok(fresh)
}

fn fresh_writable(
    dtype: DType,
    shape: &Shape,
    device: &Device,
) -> Result<(FreshTensors, TensorSpec), TensorError> {
    let info = TensorInfo::described("", dtype, shape.dims()).on(device);
    let wire = dtype_of(dtype).ok_or_else(|| TensorError::DType {
        name: String::new(),
        dtype: dtype.as_str().to_owned(),
        shape: info.shape.iter().map(|&dim| dim as u64).collect(),
        device: view::place(device),
        lacking: "the wire format has no name for",
    })?;
    if info.shape.contains(&0) {
        return Err(TensorError::Empty { tensor: info });
    }
    let shape: Vec<u64> = info.shape.iter().map(|&dim| dim as u64).collect();
    let spec = TensorSpec::new("", wire, shape, 0..1)?;
    let mut fresh = FreshTensors::on(device);
    fresh.add(&info, Content::Zeroed, &[spec.byte_len])?;
    Ok((fresh, spec))
}

/// Reads into `fresh`, and goes on with what was received.
fn read<T: 'static>(
    connector: &Connector,
    metadata: &RdmaMetadata,
    fresh: FreshTensors,
    finish: impl FnOnce(Received<FreshTensors>) -> Result<T, TensorError> + Send + 'static,
) -> Pending<T> {
    Task::after(connector.begin_read(metadata, fresh), move |begun| match begun {
        Ok(operation) => Task::after(operation.wait_for_completion(), move |ended| {
            Task::ready(ended.map_err(|failed| failed.error.into()).and_then(finish))
        }),
        // The buffer is dropped here, or stays with the connector until it is quiet.
        Err(failed) => Task::ready(Err(failed.error.into())),
    })
}

/// The tensor that a peer has written.
fn written(received: Received<FreshTensors>) -> Result<(Tensor, Report), TensorError> {
    let (filled, report) = FreshTensors::filled(received);
    let tensor = filled.into_iter().next().map(into_tensor);
    let nothing = || Error::from(connect_core::MemoryError::Empty).into();
    tensor.map(|tensor| (tensor, report)).ok_or_else(nothing)
}

fn into_tensor(filled: Filled) -> Tensor {
    Tensor::from((filled.storage, filled.dims))
}

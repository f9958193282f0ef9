//! The receiving half: new tensors filled by a read or by a peer's write, and existing ones replaced.

use candle_core::{DType, Shape, Storage, Tensor};
use connect_core::{Connector, Error, RdmaMetadata, Received, Report, Task, TensorEnvelope, TensorSpec};

use crate::dtype::{candle_dtype, dtype_of};
use crate::error::{TensorError, TensorInfo};
use crate::fresh::{Content, Filled, FreshTensors};
use crate::hold;
use crate::send::empty;
use crate::store::store;
use crate::view;
use crate::{NamedTensors, Pending, WritableTensor};

/// Reads the tensors that an envelope describes into new tensors on the CPU.
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
    let fresh = match fresh_for(envelope) {
        Ok(fresh) => fresh,
        Err(error) => return Task::ready(Err(error)),
    };
    let specs = envelope.tensors().to_vec();
    read(connector, envelope.metadata(), fresh, move |received| {
        let (filled, report) = FreshTensors::filled(received);
        for (spec, filled) in specs.iter().zip(&filled) {
            spec.check_digest([view::bytes(&filled.storage)])?;
        }
        let tensors = filled.into_iter().map(|filled| (filled.name.clone(), into_tensor(filled)));
        Ok(NamedTensors::new(tensors.collect(), report))
    })
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
    let (fresh, spec) = match fresh_writable(dtype, &shape.into()) {
        Ok(fresh) => fresh,
        Err(error) => return Task::ready(Err(error)),
    };
    Task::after(connector.create_writable(fresh), |opened| {
        let offer = |operation| WritableTensor::new(operation, spec, written);
        Task::ready(opened.map(offer).map_err(|failed| failed.error.into()))
    })
}

/// Receives into an existing tensor: into a buffer of its own first, then into the tensor's storage.
pub(crate) fn recv_into(tensor: &Tensor, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
    let info = TensorInfo::new("", tensor);
    let prepare = || {
        let claim = claim(tensor, &info)?;
        let mut fresh = FreshTensors::default();
        fresh.add(&info, Content::Unset, &view::piece_lens(metadata))?;
        Ok((claim, fresh))
    };
    let (claim, fresh) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => return Task::ready(Err(error)),
    };
    let tensor = tensor.clone();
    read(connector, metadata, fresh, move |received| {
        let (filled, report) = FreshTensors::filled(received);
        for filled in filled {
            store(&tensor, filled.storage, &info)?;
        }
        drop(claim);
        Ok(report)
    })
}

/// Reserves the tensor's storage, after the checks that need no transfer.
fn claim(tensor: &Tensor, info: &TensorInfo) -> Result<hold::Claim, TensorError> {
    view::check_device(tensor.device(), info)?;
    if tensor.elem_count() == 0 {
        return Err(empty(tensor));
    }
    let claim = hold::claim(tensor).map_err(|denied| denied.into_error(info))?;
    let (storage, layout) = tensor.storage_and_layout();
    view::target_runs(view::cpu(&storage, info)?, layout, info)?;
    Ok(claim)
}

/// Buffers for an envelope's tensors. The envelope is checked: each has the bytes of its descriptors.
fn fresh_for(envelope: &TensorEnvelope) -> Result<FreshTensors, TensorError> {
    let mut fresh = FreshTensors::default();
    let pieces = view::piece_lens(envelope.metadata());
    for spec in envelope.tensors() {
        let dtype = candle_dtype(spec.dtype).ok_or_else(|| TensorError::DType {
            name: spec.name.clone(),
            dtype: spec.dtype.to_string(),
            shape: spec.shape.clone(),
            lacking: "Candle does not have",
        })?;
        // A dimension beyond all addresses has more bytes than there are, and is refused for that.
        let dims = spec.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(usize::MAX));
        let info = TensorInfo::described(&spec.name, dtype, &dims.collect::<Vec<_>>());
        fresh.add(&info, Content::Unset, &pieces[spec.descriptors()])?;
    }
    Ok(fresh)
}

fn fresh_writable(dtype: DType, shape: &Shape) -> Result<(FreshTensors, TensorSpec), TensorError> {
    let info = TensorInfo::described("", dtype, shape.dims());
    let wire = dtype_of(dtype).ok_or_else(|| TensorError::DType {
        name: String::new(),
        dtype: dtype.as_str().to_owned(),
        shape: info.shape.iter().map(|&dim| dim as u64).collect(),
        lacking: "the wire format has no name for",
    })?;
    if info.shape.contains(&0) {
        return Err(TensorError::Empty { tensor: info });
    }
    let shape: Vec<u64> = info.shape.iter().map(|&dim| dim as u64).collect();
    let spec = TensorSpec::new("", wire, shape, 0..1)?;
    let mut fresh = FreshTensors::default();
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
    Tensor::from((Storage::Cpu(filled.storage), filled.dims))
}

//! The receiving half: new tensors filled by a read or by a peer's write, and existing ones.
#![expect(unsafe_code, reason = "declares one unsafe call: libtorch has no lock")]

use connect_core::{
    Connector, Device, MemoryError, RdmaMetadata, Received, Report, Task, TensorEnvelope, TensorSpec,
};
use tch::{Kind, Tensor};

use crate::dtype::dtype_of;
use crate::error::{ReceivedTensor, TensorError, TensorInfo, first_line};
use crate::fresh::{Content, FreshTensors, Plan};
use crate::send::piece_lens;
use crate::target;
use crate::{NamedTensors, Pending, WritableTensor};

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
/// arrived is not what was sent, [`TensorError::NotBool`] for truth values that are none; no tensor is handed out then.
pub fn recv_new(connector: &Connector, envelope: &TensorEnvelope) -> Pending<NamedTensors> {
    let fresh = match fresh_for(envelope) {
        Ok(fresh) => fresh,
        Err(error) => return Task::ready(Err(error)),
    };
    let specs = envelope.tensors().to_vec();
    read(connector, envelope.metadata(), fresh, move |received| {
        FreshTensors::check_digests(&received, &specs)?;
        let (tensors, report) = FreshTensors::filled(received)?;
        Ok(NamedTensors::new(tensors, report))
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
/// # Errors
/// [`TensorError::Empty`] for a shape without elements, [`TensorError::DType`], [`TensorError::Allocation`],
/// [`TensorError::Operation`].
pub fn recv_writable(connector: &Connector, kind: Kind, shape: impl AsRef<[i64]>) -> Pending<WritableTensor> {
    let (fresh, spec) = match fresh_writable(kind, shape.as_ref()) {
        Ok(fresh) => fresh,
        Err(error) => return Task::ready(Err(error)),
    };
    Task::after(connector.create_writable(fresh), move |opened| {
        let offer = |operation| WritableTensor::new(operation, spec, written);
        Task::ready(opened.map(offer).map_err(|failed| failed.error.into()))
    })
}

/// Receives into an existing tensor: into a new one first, then by a copy of libtorch's.
///
/// # Safety
/// As [`TensorExt::recv_into`](crate::TensorExt::recv_into).
pub(crate) unsafe fn recv_into(
    tensor: &Tensor,
    connector: &Connector,
    metadata: &RdmaMetadata,
) -> Pending<Report> {
    let prepare = || {
        let plan = target::check(tensor)?;
        let mut fresh = FreshTensors::default();
        fresh.add(&plan, Content::Unset, &piece_lens(metadata))?;
        Ok((plan.info, fresh))
    };
    let (info, fresh) = match prepare() {
        Ok(prepared) => prepared,
        Err(error) => return Task::ready(Err(error)),
    };
    let mut target = tensor.shallow_clone();
    read(connector, metadata, fresh, move |received| {
        let (tensors, report) = FreshTensors::filled(received)?;
        for (_, received) in tensors {
            // The caller promised that nobody uses the tensor on another thread now.
            if let Err(error) = target.f_copy_(&received) {
                let (reason, received) = (first_line(&error.to_string()), ReceivedTensor::new(received));
                return Err(TensorError::NotStored { tensor: info, reason, received: Box::new(received) });
            }
        }
        Ok(report)
    })
}

/// New tensors for an envelope. The envelope is checked: each has the bytes of its descriptors.
fn fresh_for(envelope: &TensorEnvelope) -> Result<FreshTensors, TensorError> {
    let mut fresh = FreshTensors::default();
    let pieces = piece_lens(envelope.metadata());
    for spec in envelope.tensors() {
        fresh.add(&Plan::of(spec)?, Content::Unset, &pieces[spec.descriptors()])?;
    }
    Ok(fresh)
}

fn fresh_writable(kind: Kind, shape: &[i64]) -> Result<(FreshTensors, TensorSpec), TensorError> {
    let (shape_given, device) = (Some(shape.to_vec()), Some(Device::CPU));
    let tensor = TensorInfo { name: String::new(), kind: Some(kind), shape: shape_given, device };
    let Some(dtype) = dtype_of(kind) else {
        let lacking = "the wire format has no name for";
        return Err(TensorError::DType { tensor, dtype: format!("{kind:?}"), lacking });
    };
    let dims: Result<Vec<u64>, _> = shape.iter().map(|&dim| u64::try_from(dim)).collect();
    let spec = match dims {
        Ok(dims) if !dims.contains(&0) => TensorSpec::new("", dtype, dims, 0..1)?,
        _ => return Err(TensorError::Empty { tensor }),
    };
    let mut fresh = FreshTensors::default();
    fresh.add(&Plan::of(&spec)?, Content::Zeroed, &[spec.byte_len])?;
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
    let (tensors, report) = FreshTensors::filled(received)?;
    let tensor = tensors.into_iter().next().map(|(_, tensor)| (tensor, report));
    tensor.ok_or_else(|| TensorError::Operation(MemoryError::Empty.into()))
}

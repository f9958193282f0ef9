//! The receiving half: new tensors filled by a read or by a peer's write, and existing ones.
#![expect(unsafe_code, reason = "declares one unsafe call: libtorch has no lock")]

use connect_core::{
    Connector, MemoryError, RdmaMetadata, Received, Report, Task, TensorEnvelope, TensorSpec,
};
use tch::{Kind, Tensor};

use crate::device::{self, Place};
use crate::dtype::dtype_of;
use crate::error::{ReceivedTensor, TensorError, TensorInfo, first_line};
use crate::fresh::{Content, FreshTensors, Plan, described};
use crate::send::piece_lens;
use crate::target;
use crate::{NamedTensors, Pending, WritableTensor};

/// Reads the tensors that an envelope describes into new tensors on the CPU. [`recv_new_on`] puts them on another
/// device.
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
    recv_new_on(connector, envelope, tch::Device::Cpu)
}

/// Reads the tensors that an envelope describes into new tensors on a device.
///
/// A CUDA device is waited for before a peer's bytes can arrive there, and again before the tensors are handed out, so
/// that everything that is queued on it afterwards, by any thread, sees their content. Both happen on a thread of the
/// device. Wherever the sender's tensors are is for the transport to bridge. Digests and truth values are checked by the
/// CPU, so tensors that have any are copied to it for that.
///
/// ```no_run,standalone_crate
/// # fn example(connector: &connect_core::Connector, envelope: &connect_core::TensorEnvelope)
/// # -> Result<(), connect_tch::TensorError> {
/// let tensors = connect_tch::recv_new_on(connector, envelope, tch::Device::Cuda(0)).wait()?;
/// assert_eq!(tensors["x"].device(), tch::Device::Cuda(0));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`recv_new`], and [`TensorError::Device`] for a device that this program can't reach.
pub fn recv_new_on(
    connector: &Connector,
    envelope: &TensorEnvelope,
    device: tch::Device,
) -> Pending<NamedTensors> {
    let plans = || {
        let first = || envelope.tensors().first().map(|spec| described(spec, device::name(device)));
        let place = Place::wanted(device, || first().unwrap_or_default())?;
        let pieces = piece_lens(envelope.metadata());
        let plan = |spec: &TensorSpec| Plan::of(spec, place, &pieces[spec.descriptors()]);
        Ok((place, envelope.tensors().iter().map(plan).collect::<Result<Vec<_>, TensorError>>()?))
    };
    let (place, plans) = match plans() {
        Ok(plans) => plans,
        Err(error) => return Task::ready(Err(error)),
    };
    let specs = envelope.tensors().to_vec();
    read(connector, envelope.metadata(), place, plans, move |received| {
        let filled = FreshTensors::filled_as(received, &specs);
        Task::ready(filled.map(|(tensors, report)| NamedTensors::new(tensors, report)))
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
/// [`TensorError::Empty`] for a shape without elements or with a negative dimension, [`TensorError::Envelope`] for one that
/// no envelope could carry (more than 32 dimensions, or 2^64 bytes), [`TensorError::DType`],
/// [`TensorError::Allocation`], [`TensorError::Operation`].
pub fn recv_writable(connector: &Connector, kind: Kind, shape: impl AsRef<[i64]>) -> Pending<WritableTensor> {
    recv_writable_on(connector, kind, shape, tch::Device::Cpu)
}

/// The same on a device, which is waited for as by [`recv_new_on`].
///
/// # Errors
/// As [`recv_writable`], and [`TensorError::Device`] for a device that this program can't reach.
pub fn recv_writable_on(
    connector: &Connector,
    kind: Kind,
    shape: impl AsRef<[i64]>,
    device: tch::Device,
) -> Pending<WritableTensor> {
    let (place, plan, spec) = match writable(kind, shape.as_ref(), device) {
        Ok(plan) => plan,
        Err(error) => return Task::ready(Err(error)),
    };
    with_fresh(connector, place, vec![plan], Content::Zeroed, move |connector, fresh| {
        Task::after(connector.create_writable(fresh), move |opened| {
            let offer = |operation| WritableTensor::new(operation, spec, written);
            Task::ready(opened.map(offer).map_err(|failed| failed.error.into()))
        })
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
    let (plan, place) = match target::check(tensor, metadata) {
        Ok(plan) => plan,
        Err(error) => return Task::ready(Err(error)),
    };
    let waiting = match place.accelerator() {
        // Receiving and copying share one deadline.
        Some(_) => connector.with_deadline_from_now(),
        None => connector.clone(),
    };
    let (mut target, info) = (tensor.shallow_clone(), plan.info.clone());
    read(&waiting.clone(), metadata, place, vec![plan], move |received| {
        let (tensors, report) = match FreshTensors::filled(received) {
            Ok(filled) => filled,
            Err(error) => return Task::ready(Err(error)),
        };
        let mut copied = Vec::new();
        for (_, received) in tensors {
            // The caller promised that nobody uses the tensor on another thread now.
            if let Err(error) = target.f_copy_(&received) {
                let (reason, received) = (first_line(&error.to_string()), ReceivedTensor::new(received));
                let received = Box::new(received);
                return Task::ready(Err(TensorError::NotStored { tensor: info, reason, received }));
            }
            copied.push(received);
        }
        match place.accelerator() {
            None => Task::ready(Ok(report)),
            // The copy is queued. What it is made of is freed when it is over, and the caller is told then.
            Some(gpu) => Task::after(waiting.run_on(gpu, move || drop(copied)), |over| {
                Task::ready(over.map(|()| report).map_err(TensorError::from))
            }),
        }
    })
}

/// What is to be made for a peer to write, and what that peer must know of it.
fn writable(
    kind: Kind,
    shape: &[i64],
    device: tch::Device,
) -> Result<(Place, Plan, TensorSpec), TensorError> {
    let tensor = || TensorInfo {
        name: String::new(),
        kind: Some(kind),
        shape: Some(shape.to_vec()),
        device: device::name(device),
    };
    let Some(dtype) = dtype_of(kind) else {
        let lacking = "the wire format has no name for";
        return Err(TensorError::DType { tensor: tensor(), dtype: format!("{kind:?}"), lacking });
    };
    let dims: Result<Vec<u64>, _> = shape.iter().map(|&dim| u64::try_from(dim)).collect();
    let spec = match dims {
        Ok(dims) if !dims.contains(&0) => TensorSpec::new("", dtype, dims, 0..1)?,
        _ => return Err(TensorError::Empty { tensor: tensor() }),
    };
    let place = Place::wanted(device, tensor)?;
    Ok((place, Plan::of(&spec, place, &[spec.byte_len])?, spec))
}

/// Goes on with new tensors. They are allocated here, or on the thread of their device, where waiting for it disturbs
/// nobody.
fn with_fresh<T: 'static>(
    connector: &Connector,
    place: Place,
    plans: Vec<Plan>,
    content: Content,
    next: impl FnOnce(&Connector, FreshTensors) -> Pending<T> + Send + 'static,
) -> Pending<T> {
    let make = move || FreshTensors::new(place, plans, content);
    let next = |connector: &Connector, made: Result<FreshTensors, TensorError>| match made {
        Ok(fresh) => next(connector, fresh),
        Err(error) => Task::ready(Err(error)),
    };
    match place.accelerator() {
        None => next(connector, make()),
        Some(gpu) => {
            // Allocating and receiving share one deadline.
            let connector = connector.with_deadline_from_now();
            Task::after(connector.run_on(gpu, make), move |made| {
                next(&connector, made.map_err(TensorError::from).and_then(|made| made))
            })
        }
    }
}

/// Reads into new tensors, and goes on with what was received.
fn read<T: 'static>(
    connector: &Connector,
    metadata: &RdmaMetadata,
    place: Place,
    plans: Vec<Plan>,
    finish: impl FnOnce(Received<FreshTensors>) -> Pending<T> + Send + 'static,
) -> Pending<T> {
    let metadata = metadata.clone();
    with_fresh(connector, place, plans, Content::Unset, move |connector, fresh| {
        Task::after(connector.begin_read(&metadata, fresh), move |begun| match begun {
            Ok(operation) => Task::after(operation.wait_for_completion(), move |ended| match ended {
                Ok(received) => finish(received),
                Err(failed) => Task::ready(Err(failed.error.into())),
            }),
            // The buffer is dropped here, or stays with the connector until it is quiet.
            Err(failed) => Task::ready(Err(failed.error.into())),
        })
    })
}

/// The tensor that a peer has written.
fn written(received: Received<FreshTensors>) -> Result<(Tensor, Report), TensorError> {
    let (tensors, report) = FreshTensors::filled(received)?;
    let tensor = tensors.into_iter().next().map(|(_, tensor)| (tensor, report));
    tensor.ok_or_else(|| TensorError::Operation(MemoryError::Empty.into()))
}

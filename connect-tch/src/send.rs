//! The sending half: tensors offered to a peer, or written into a peer's memory.
#![expect(unsafe_code, reason = "passes the contract of the unsafe calls on")]

use connect_core::{Connector, RdmaMetadata, ReadableTensor, ReadableTensors, Report, Task, TensorSpec};
use tch::Tensor;

use crate::Pending;
use crate::error::TensorError;
use crate::inspect::{Facts, TensorSource};

/// Offers one tensor.
///
/// # Safety
/// As [`TensorSource::add`].
pub(crate) unsafe fn send_readable(tensor: &Tensor, connector: &Connector) -> Pending<ReadableTensor> {
    // SAFETY: the caller's promise is passed on as it is.
    let (source, facts) = match unsafe { single(tensor) } {
        Ok(source) => source,
        Err(error) => return Task::ready(Err(error)),
    };
    Task::after(connector.create_readable(source), move |opened| {
        let offer = |operation| ReadableTensor::new(operation, facts.dtype, facts.shape);
        Task::ready(opened.map(offer).map_err(TensorError::from))
    })
}

/// Writes one tensor into the memory a peer offers.
///
/// # Safety
/// As [`TensorSource::add`].
pub(crate) unsafe fn send_into(
    tensor: &Tensor,
    connector: &Connector,
    metadata: &RdmaMetadata,
) -> Pending<Report> {
    // SAFETY: the caller's promise is passed on as it is.
    let (mut source, facts) = match unsafe { single(tensor) } {
        Ok(source) => source,
        Err(error) => return Task::ready(Err(error)),
    };
    if let Err(source) = source.split_to_match(&piece_lens(metadata)) {
        return Task::ready(Err(TensorError::Layout { tensor: facts.info, source }));
    }
    Task::after(connector.begin_write(source, metadata), |begun| match begun {
        Ok(operation) => Task::after(operation.wait_for_completion(), |ended| {
            Task::ready(ended.map_err(TensorError::from))
        }),
        Err(error) => Task::ready(Err(error.into())),
    })
}

/// Offers named tensors for one peer to read, as one operation.
///
/// Tensors may share storage, be views, or have no elements (a peer then learns their shape only).
///
/// # Safety
/// As [`TensorExt::send_readable`](crate::TensorExt::send_readable), for each of them.
///
/// # Errors
/// A [`TensorError`] that names the tensor: one that can't be described, two of one name, or no elements in
/// any of them.
pub unsafe fn send_tensors<'a, N: AsRef<str>>(
    connector: &Connector,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
) -> Pending<ReadableTensors> {
    // SAFETY: the caller's promise is passed on as it is.
    unsafe { send(connector, tensors, false) }
}

/// The same with a digest of each tensor in the envelope, by which the receiver can tell that it has every
/// byte as it was sent.
///
/// The digests are computed before this returns, in one pass over the bytes by BLAKE3 on the calling thread.
/// A receiver that takes nothing without them calls [`recv_verified`](crate::recv_verified).
///
/// # Safety
/// As [`TensorExt::send_readable`](crate::TensorExt::send_readable), for each of them.
///
/// # Errors
/// As [`send_tensors`], and [`TensorError::Device`] for tensors on a GPU: have those checked by other means, or send
/// copies on the CPU.
pub unsafe fn send_tensors_with_digests<'a, N: AsRef<str>>(
    connector: &Connector,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
) -> Pending<ReadableTensors> {
    // SAFETY: the caller's promise is passed on as it is.
    unsafe { send(connector, tensors, true) }
}

/// # Safety
/// As [`TensorSource::add`], for each of them.
unsafe fn send<'a, N: AsRef<str>>(
    connector: &Connector,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
    with_digests: bool,
) -> Pending<ReadableTensors> {
    let mut source = TensorSource::default();
    let mut specs = Vec::new();
    let mut first_descriptor = 0;
    for (name, tensor) in tensors {
        // SAFETY: the caller's promise is passed on as it is.
        match unsafe { add(&mut source, name.as_ref(), tensor, first_descriptor, with_digests) } {
            Ok(spec) => {
                first_descriptor += spec.descriptor_count;
                specs.push(spec);
            }
            Err(error) => return Task::ready(Err(error)),
        }
    }
    Task::after(connector.create_readable(source), move |opened| {
        let offer = |operation| ReadableTensors::new(operation, specs).map_err(TensorError::from);
        Task::ready(opened.map_err(TensorError::from).and_then(offer))
    })
}

/// Adds a tensor to a source, and says what a peer must know of it.
///
/// # Safety
/// As [`TensorSource::add`].
unsafe fn add(
    source: &mut TensorSource,
    name: &str,
    tensor: &Tensor,
    first_descriptor: usize,
    with_digest: bool,
) -> Result<TensorSpec, TensorError> {
    // SAFETY: the caller's promise is passed on as it is.
    let facts = unsafe { source.add(name, tensor) }?;
    let pieces = first_descriptor..first_descriptor + facts.pieces;
    let spec = TensorSpec::new(name, facts.dtype, facts.shape.clone(), pieces)?;
    if !with_digest {
        return Ok(spec);
    }
    // SAFETY: as above; it was added just now.
    let digest = unsafe { source.digest(&facts) }?;
    Ok(spec.with_digest(digest))
}

/// A source of one tensor that has elements.
///
/// # Safety
/// As [`TensorSource::add`].
unsafe fn single(tensor: &Tensor) -> Result<(TensorSource, Facts), TensorError> {
    let mut source = TensorSource::default();
    // SAFETY: the caller's promise is passed on as it is.
    let facts = unsafe { source.add("", tensor) }?;
    if facts.pieces == 0 {
        return Err(TensorError::Empty { tensor: facts.info });
    }
    Ok((source, facts))
}

/// The lengths of the peer's pieces.
pub(crate) fn piece_lens(metadata: &RdmaMetadata) -> Vec<u64> {
    metadata.descriptors().iter().map(|descriptor| descriptor.size()).collect()
}

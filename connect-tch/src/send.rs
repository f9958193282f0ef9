//! The sending half: tensors offered to a peer, or written into a peer's memory.
#![expect(unsafe_code, reason = "declares the unsafe calls and passes their contract on")]

use connect_core::{
    Connector, Device, RdmaMetadata, ReadableTensor, ReadableTensors, Report, Task, TensorSpec,
};
use tch::Tensor;

use crate::Pending;
use crate::error::{TensorError, TensorInfo};
use crate::inspect::{Facts, TensorSource};

/// Sends libtorch tensors.
pub trait TensorExt: sealed::Sealed {
    /// Offers the tensor for one peer to read. The storage is kept alive until the operation ends.
    ///
    /// # Safety
    /// Until the operation has ended (over NIXL: until the transport has proven that no peer reads the tensor
    /// any more), nobody writes to the tensor's storage or resizes it, by any handle or view.
    ///
    /// # Errors
    /// A [`TensorError`] that names the remedy for what can't be offered: undefined, sparse, quantised or
    /// empty tensors, views in too many pieces, tensors on devices that this program can't reach.
    unsafe fn send_readable(&self, connector: &Connector) -> Pending<ReadableTensor>;

    /// Writes the tensor into the memory that a peer offers, and ends when the peer has every byte.
    ///
    /// The peer's pieces must not end inside one of a view's: to a peer that offers one piece, send a
    /// contiguous tensor.
    ///
    /// # Safety
    /// As [`send_readable`](Self::send_readable).
    ///
    /// # Errors
    /// As [`send_readable`](Self::send_readable), and those of the transfer.
    unsafe fn send_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report>;
}

impl TensorExt for Tensor {
    unsafe fn send_readable(&self, connector: &Connector) -> Pending<ReadableTensor> {
        // SAFETY: the caller's promise is passed on as it is.
        let (source, facts) = match unsafe { single(self) } {
            Ok(source) => source,
            Err(error) => return Task::ready(Err(error)),
        };
        Task::after(connector.create_readable(source), move |opened| {
            let offer = |operation| ReadableTensor::new(operation, facts.dtype, facts.shape);
            Task::ready(opened.map(offer).map_err(TensorError::from))
        })
    }

    unsafe fn send_into(&self, connector: &Connector, metadata: &RdmaMetadata) -> Pending<Report> {
        // SAFETY: the caller's promise is passed on as it is.
        let (mut source, facts) = match unsafe { single(self) } {
            Ok(source) => source,
            Err(error) => return Task::ready(Err(error)),
        };
        if let Err(source) = source.split_to_match(&piece_lens(metadata)) {
            return Task::ready(Err(TensorError::Layout { tensor: info(&facts), source }));
        }
        Task::after(connector.begin_write(source, metadata), |begun| match begun {
            Ok(operation) => Task::after(operation.wait_for_completion(), |ended| {
                Task::ready(ended.map_err(TensorError::from))
            }),
            Err(error) => Task::ready(Err(error.into())),
        })
    }
}

/// Offers named tensors for one peer to read, as one operation.
///
/// Tensors may share storage, be views, or have no elements (a peer then learns their shape only).
///
/// # Safety
/// As [`TensorExt::send_readable`], for each of them.
///
/// # Errors
/// A [`TensorError`] that names the tensor: one that can't be described, two of one name, or no elements in
/// any of them.
pub unsafe fn send_tensors<'a, N: AsRef<str>>(
    connector: &Connector,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
) -> Pending<ReadableTensors> {
    let mut source = TensorSource::default();
    let mut specs = Vec::new();
    let mut first_descriptor = 0;
    for (name, tensor) in tensors {
        // SAFETY: the caller's promise is passed on as it is.
        let facts = unsafe { source.add(name.as_ref(), tensor) };
        let spec = facts.and_then(|Facts { dtype, shape, pieces }| {
            Ok(TensorSpec::new(name.as_ref(), dtype, shape, first_descriptor..first_descriptor + pieces)?)
        });
        match spec {
            Ok(spec) => specs.push(spec),
            Err(error) => return Task::ready(Err(error)),
        }
        first_descriptor += specs.last().map_or(0, |spec: &TensorSpec| spec.descriptor_count);
    }
    Task::after(connector.create_readable(source), move |opened| {
        let offer = |operation| ReadableTensors::new(operation, specs).map_err(TensorError::from);
        Task::ready(opened.map_err(TensorError::from).and_then(offer))
    })
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
        return Err(TensorError::Empty { tensor: info(&facts) });
    }
    Ok((source, facts))
}

fn info(facts: &Facts) -> TensorInfo {
    let shape = facts.shape.iter().map(|&dim| dim as i64).collect();
    TensorInfo { name: String::new(), dtype: Some(facts.dtype), shape, device: Some(Device::CPU) }
}

/// The lengths of the peer's pieces.
pub(crate) fn piece_lens(metadata: &RdmaMetadata) -> Vec<u64> {
    metadata.descriptors().iter().map(|descriptor| descriptor.size()).collect()
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for tch::Tensor {}
}

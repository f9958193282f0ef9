//! The sending half: tensors offered to a peer, or written into a peer's memory.

use candle_core::Tensor;
use connect_core::{Connector, RdmaMetadata, ReadableTensor, ReadableTensors, Report, Task, TensorSpec};

use crate::Pending;
use crate::dtype::dtype_of;
use crate::error::{TensorError, TensorInfo};
use crate::pin::TensorSource;
use crate::view;

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
    send(connector, tensors, false)
}

/// The same with a digest of each tensor in the envelope, by which the receiver can tell that it has every
/// byte as it was sent.
///
/// The digests are computed before this returns, in one pass over the bytes by BLAKE3 on the calling thread.
/// A receiver that takes nothing without them calls [`recv_verified`](crate::recv_verified).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use connect_candle::{recv_verified, send_tensors_with_digests};
/// use connect_core::Connector;
///
/// let connector = Connector::local()?;
/// let k = Tensor::ones((2, 8), DType::BF16, &Device::Cpu)?;
/// let offer = send_tensors_with_digests(&connector, [("k", &k)]).wait()?;
/// let tensors = recv_verified(&connector, offer.envelope()).wait()?;
/// assert_eq!(tensors["k"].dims(), [2, 8]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// As [`send_tensors`].
pub fn send_tensors_with_digests<'a, N: AsRef<str>>(
    connector: &Connector,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
) -> Pending<ReadableTensors> {
    send(connector, tensors, true)
}

fn send<'a, N: AsRef<str>>(
    connector: &Connector,
    tensors: impl IntoIterator<Item = (N, &'a Tensor)>,
    with_digests: bool,
) -> Pending<ReadableTensors> {
    let mut source = TensorSource::default();
    let mut specs = Vec::new();
    let mut first_descriptor = 0;
    for (name, tensor) in tensors {
        let added = add(&mut source, name.as_ref(), tensor, first_descriptor);
        let digested = |spec: TensorSpec| {
            let digest = source.digest(tensor, &TensorInfo::new(name.as_ref(), tensor))?;
            Ok(spec.with_digest(digest))
        };
        match if with_digests { added.and_then(digested) } else { added } {
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

/// Offers one tensor.
pub(crate) fn send_readable(tensor: &Tensor, connector: &Connector) -> Pending<ReadableTensor> {
    let mut source = TensorSource::default();
    let spec = match add(&mut source, "", tensor, 0) {
        Ok(spec) if spec.byte_len == 0 => return Task::ready(Err(empty(tensor))),
        Ok(spec) => spec,
        Err(error) => return Task::ready(Err(error)),
    };
    Task::after(connector.create_readable(source), move |opened| {
        let offer = |operation| ReadableTensor::new(operation, spec.dtype, spec.shape);
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
        shape: tensor.dims().iter().map(|&dim| dim as u64).collect(),
        device: view::place(tensor.device()),
        lacking: "the wire format has no name for",
    })?;
    let shape: Vec<u64> = tensor.dims().iter().map(|&dim| dim as u64).collect();
    Ok(TensorSpec::new(name, dtype, shape, first_descriptor..first_descriptor + count)?)
}

pub(crate) fn empty(tensor: &Tensor) -> TensorError {
    TensorError::Empty { tensor: TensorInfo::new("", tensor) }
}

//! A tensor's view of its CPU storage as pieces of memory. Addresses and lengths only: nothing is read here.

use candle_core::{CpuStorage, Layout, Storage};
use connect_core::layout::{self, LayoutError, Run};
use connect_core::{Device, Digest, RdmaMetadata, Region};

use crate::dtype;
use crate::error::{TensorError, TensorInfo};

/// Evaluates `$body` with `$vec` bound to the storage's vector, whatever its element type.
macro_rules! with_vec {
    ($storage:expr, $vec:ident => $body:expr) => {
        match $storage {
            CpuStorage::U8($vec)
            | CpuStorage::F6E2M3($vec)
            | CpuStorage::F6E3M2($vec)
            | CpuStorage::F4($vec)
            | CpuStorage::F8E8M0($vec) => $body,
            CpuStorage::U32($vec) => $body,
            CpuStorage::I16($vec) => $body,
            CpuStorage::I32($vec) => $body,
            CpuStorage::I64($vec) => $body,
            CpuStorage::BF16($vec) => $body,
            CpuStorage::F16($vec) => $body,
            CpuStorage::F32($vec) => $body,
            CpuStorage::F64($vec) => $body,
            CpuStorage::F8E4M3($vec) => $body,
        }
    };
}
pub(crate) use with_vec;

/// Why Candle tensors off the CPU are refused for now.
const NOT_CPU: &str =
    "only CPU tensors can move with this build; move it with `to_device(&Device::Cpu)` first";

/// The storage, if it is in system memory.
pub(crate) fn cpu<'a>(storage: &'a Storage, info: &TensorInfo) -> Result<&'a CpuStorage, TensorError> {
    match storage {
        Storage::Cpu(storage) => Ok(storage),
        _ => Err(TensorError::Device { tensor: info.clone(), reason: NOT_CPU }),
    }
}

/// Refuses devices that this build can't reach, before any lock is taken.
pub(crate) fn check_device(device: &candle_core::Device, info: &TensorInfo) -> Result<(), TensorError> {
    match device {
        candle_core::Device::Cpu => Ok(()),
        _ => Err(TensorError::Device { tensor: info.clone(), reason: NOT_CPU }),
    }
}

/// The pieces to read from, in the row-major order of the view's elements; none without elements.
pub(crate) fn source_regions(
    storage: &Storage,
    view: &Layout,
    info: &TensorInfo,
) -> Result<Vec<Region>, TensorError> {
    let storage = cpu(storage, info)?;
    let (runs, element_bytes) = (runs(storage, view, info)?, element_bytes(storage));
    layout::check_fragmentation(&runs, element_bytes).map_err(|source| refused(info, source))?;
    regions(storage, &runs, element_bytes, info)
}

/// The digest of the view's elements, in row-major order.
pub(crate) fn digest(storage: &Storage, view: &Layout, info: &TensorInfo) -> Result<Digest, TensorError> {
    let storage = cpu(storage, info)?;
    let (runs, size) = (runs(storage, view, info)?, element_bytes(storage));
    // Also asks whether the runs are inside the storage.
    regions(storage, &runs, size, info)?;
    let bytes = bytes(storage);
    Ok(Digest::of_pieces(runs.iter().map(|run| &bytes[run.offset * size..][..run.len * size])))
}

/// All of the storage's bytes.
pub(crate) fn bytes(storage: &CpuStorage) -> &[u8] {
    with_vec!(storage, vec => bytemuck::cast_slice(vec))
}

/// The runs to write to: in elements, each element once, and inside the storage.
pub(crate) fn target_runs(
    storage: &CpuStorage,
    view: &Layout,
    info: &TensorInfo,
) -> Result<Vec<Run>, TensorError> {
    let broadcast = view.dims().iter().zip(view.stride()).any(|(&dim, &stride)| dim > 1 && stride == 0);
    if broadcast {
        return Err(refused(info, LayoutError::Overlap));
    }
    let runs = runs(storage, view, info)?;
    layout::check_disjoint(&runs).map_err(|source| refused(info, source))?;
    regions(storage, &runs, element_bytes(storage), info)?;
    Ok(runs)
}

/// The pieces to write to, in the row-major order of the view's elements.
pub(crate) fn target_regions(
    storage: &Storage,
    view: &Layout,
    info: &TensorInfo,
) -> Result<Vec<Region>, TensorError> {
    let storage = cpu(storage, info)?;
    let runs = target_runs(storage, view, info)?;
    let element_bytes = element_bytes(storage);
    layout::check_fragmentation(&runs, element_bytes).map_err(|source| refused(info, source))?;
    regions(storage, &runs, element_bytes, info)
}

/// The lengths of the peer's pieces.
pub(crate) fn piece_lens(metadata: &RdmaMetadata) -> Vec<u64> {
    metadata.descriptors().iter().map(|descriptor| descriptor.size()).collect()
}

/// The address ranges of `runs`, checked against the storage's length.
fn regions(
    storage: &CpuStorage,
    runs: &[Run],
    element_bytes: usize,
    info: &TensorInfo,
) -> Result<Vec<Region>, TensorError> {
    let (base, bytes) = with_vec!(storage, vec => (vec.as_ptr() as u64, size_of_val(vec.as_slice())));
    layout::regions(Device::CPU, base, bytes, runs, element_bytes).map_err(|source| refused(info, source))
}

/// Cuts `local` where the peer's pieces end.
pub(crate) fn split_to_match(
    local: &[Region],
    peer: &[u64],
    info: &TensorInfo,
) -> Result<Vec<Region>, TensorError> {
    layout::split_to_match(local, peer).map_err(|source| refused(info, source))
}

/// Whether the view is the whole storage in its own order, so that one may stand for the other.
pub(crate) fn covers_storage(storage: &CpuStorage, view: &Layout) -> bool {
    let opaque = dtype::is_opaque(storage_dtype(storage));
    let len = with_vec!(storage, vec => vec.len());
    view.start_offset() == 0 && view.is_contiguous() && (opaque || len == view.shape().elem_count())
}

/// The storage's element type.
pub(crate) fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// Bytes that `elements` elements take, the last byte filled up.
pub(crate) fn byte_len(dtype: candle_core::DType, elements: usize) -> Option<u64> {
    dtype::dtype_of(dtype)?.byte_len(elements as u64)
}

pub(crate) fn refused(info: &TensorInfo, source: LayoutError) -> TensorError {
    TensorError::Layout { tensor: info.clone(), source }
}

/// Bytes of what the storage's vector holds: of an element, or 1 where the elements are opaque bytes.
pub(crate) fn element_bytes(storage: &CpuStorage) -> usize {
    fn size<T>(_: &[T]) -> usize {
        size_of::<T>()
    }
    with_vec!(storage, vec => size(vec))
}

/// The view's runs, in units of what the storage's vector holds.
fn runs(storage: &CpuStorage, view: &Layout, info: &TensorInfo) -> Result<Vec<Run>, TensorError> {
    if dtype::is_opaque(storage_dtype(storage)) {
        return opaque_runs(storage, view, info);
    }
    // A stride beyond `isize` can't be inside any storage; clamped, it is refused as too large.
    let clamped = |&stride: &usize| isize::try_from(stride).unwrap_or(isize::MAX);
    let strides: Vec<isize> = view.stride().iter().map(clamped).collect();
    let runs = layout::contiguous_runs(view.dims(), &strides, view.start_offset());
    runs.map_err(|source| refused(info, source))
}

/// Opaque elements don't begin at byte boundaries, so only all of them together have an address.
fn opaque_runs(storage: &CpuStorage, view: &Layout, info: &TensorInfo) -> Result<Vec<Run>, TensorError> {
    let available = with_vec!(storage, vec => size_of_val(vec.as_slice()));
    let needed = byte_len(storage_dtype(storage), view.shape().elem_count());
    let needed = needed.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
    if view.start_offset() != 0 || !view.is_contiguous() || needed < available {
        return Err(TensorError::OpaqueView { tensor: info.clone() });
    }
    if needed > available {
        return Err(refused(info, LayoutError::OutOfBounds { needed, available }));
    }
    Ok(if needed == 0 { Vec::new() } else { vec![Run { offset: 0, len: needed }] })
}

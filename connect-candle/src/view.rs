//! A tensor's view of its storage as pieces of memory. Addresses and lengths only: nothing is read here but for
//! digests.

use std::sync::Arc;

use candle_core::{CpuStorage, DType, Layout, Storage};
use connect_core::accelerator::Accelerators;
use connect_core::layout::{self, LayoutError, Run};
use connect_core::{Accelerator, Device, Digest, RdmaMetadata, Region};

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

#[cfg(not(feature = "cuda"))]
const NO_CUDA: &str = "this build has no CUDA; build connect-candle with the feature `cuda`, or move the tensor with \
                       `to_device(&Device::Cpu)` first";
const NO_METAL: &str =
    "no transport reaches the memory of Metal devices; move it with `to_device(&Device::Cpu)` first";
pub(crate) const NO_DIGEST: &str =
    "digests are computed by the CPU; move it with `to_device(&Device::Cpu)`, or send it without";

/// Refuses devices that this build can't reach, before any lock is taken.
pub(crate) fn check_device(device: &candle_core::Device, info: &TensorInfo) -> Result<(), TensorError> {
    match device {
        candle_core::Device::Cpu => Ok(()),
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(_) => Ok(()),
        #[cfg(not(feature = "cuda"))]
        candle_core::Device::Cuda(_) => Err(out_of_reach(info, NO_CUDA)),
        candle_core::Device::Metal(_) => Err(out_of_reach(info, NO_METAL)),
    }
}

/// The wire's name of a device, where there is one.
pub(crate) fn place(device: &candle_core::Device) -> Device {
    match device.location() {
        candle_core::DeviceLocation::Cuda { gpu_id } => Device::cuda(gpu_id as u32),
        _ => Device::CPU,
    }
}

pub(crate) fn out_of_reach(info: &TensorInfo, reason: &'static str) -> TensorError {
    TensorError::Device { tensor: info.clone(), reason }
}

/// Where a storage's bytes are, and what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer {
    pub(crate) device: Device,
    pub(crate) base: u64,
    pub(crate) bytes: usize,
    pub(crate) dtype: DType,
}

impl Buffer {
    pub(crate) fn of(storage: &Storage, info: &TensorInfo) -> Result<Self, TensorError> {
        match storage {
            Storage::Cpu(storage) => Ok(Self::of_cpu(storage)),
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) => crate::cuda::buffer(storage, info),
            #[cfg(not(feature = "cuda"))]
            Storage::Cuda(_) => Err(out_of_reach(info, NO_CUDA)),
            Storage::Metal(_) => Err(out_of_reach(info, NO_METAL)),
        }
    }

    pub(crate) fn of_cpu(storage: &CpuStorage) -> Self {
        let (base, bytes) = with_vec!(storage, vec => (vec.as_ptr() as u64, size_of_val(vec.as_slice())));
        Self { device: Device::CPU, base, bytes, dtype: storage_dtype(storage) }
    }

    /// Bytes of what the storage holds one after the other: of an element, or 1 where the elements are opaque bytes.
    pub(crate) fn element_bytes(&self) -> usize {
        if dtype::is_opaque(self.dtype) { 1 } else { self.dtype.size_in_bytes() }
    }

    /// Whether the view is the whole storage in its own order, so that one may stand for the other.
    pub(crate) fn is_covered_by(&self, view: &Layout) -> bool {
        let opaque = dtype::is_opaque(self.dtype);
        let elements = self.bytes / self.element_bytes();
        view.start_offset() == 0 && view.is_contiguous() && (opaque || elements == view.shape().elem_count())
    }
}

/// The device whose queues the storage's content depends on; none for system memory.
pub(crate) fn accelerator(storage: &Storage) -> Option<Arc<dyn Accelerator>> {
    match storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => Some(crate::cuda::accelerator(&storage.device)),
        _ => None,
    }
}

/// Adds the device of a storage, if it has one that is not there yet.
pub(crate) fn add_accelerator(all: &mut Accelerators, storage: &Storage) {
    if let Some(one) = accelerator(storage)
        && !all.iter().any(|other| other.device() == one.device())
    {
        all.push(one);
    }
}

/// Frees a storage that other threads may have worked with.
pub(crate) fn let_go(storage: Storage) {
    match storage {
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => crate::cuda::free_in_order(storage),
        other => drop(other),
    }
}

/// The pieces to read from, in the row-major order of the view's elements; none without elements.
pub(crate) fn source_regions(
    storage: &Storage,
    view: &Layout,
    info: &TensorInfo,
) -> Result<Vec<Region>, TensorError> {
    let buffer = Buffer::of(storage, info)?;
    let runs = runs(&buffer, view, info)?;
    layout::check_fragmentation(&runs, buffer.element_bytes()).map_err(|source| refused(info, source))?;
    regions(&buffer, &runs, info)
}

/// The digest of the view's elements, in row-major order.
pub(crate) fn digest(storage: &Storage, view: &Layout, info: &TensorInfo) -> Result<Digest, TensorError> {
    let Storage::Cpu(storage) = storage else { return Err(out_of_reach(info, NO_DIGEST)) };
    let buffer = Buffer::of_cpu(storage);
    let (runs, size) = (runs(&buffer, view, info)?, buffer.element_bytes());
    // Also asks whether the runs are inside the storage.
    regions(&buffer, &runs, info)?;
    let bytes = bytes(storage);
    Ok(Digest::of_pieces(runs.iter().map(|run| &bytes[run.offset * size..][..run.len * size])))
}

/// All of the storage's bytes.
pub(crate) fn bytes(storage: &CpuStorage) -> &[u8] {
    with_vec!(storage, vec => bytemuck::cast_slice(vec))
}

/// The runs to write to: in elements, each element once, and inside the storage.
pub(crate) fn target_runs(
    buffer: &Buffer,
    view: &Layout,
    info: &TensorInfo,
) -> Result<Vec<Run>, TensorError> {
    let broadcast = view.dims().iter().zip(view.stride()).any(|(&dim, &stride)| dim > 1 && stride == 0);
    if broadcast {
        return Err(refused(info, LayoutError::Overlap));
    }
    let runs = runs(buffer, view, info)?;
    layout::check_disjoint(&runs).map_err(|source| refused(info, source))?;
    regions(buffer, &runs, info)?;
    Ok(runs)
}

/// The pieces to write to, in the row-major order of the view's elements.
pub(crate) fn target_regions(
    storage: &Storage,
    view: &Layout,
    info: &TensorInfo,
) -> Result<Vec<Region>, TensorError> {
    let buffer = Buffer::of(storage, info)?;
    let runs = target_runs(&buffer, view, info)?;
    layout::check_fragmentation(&runs, buffer.element_bytes()).map_err(|source| refused(info, source))?;
    regions(&buffer, &runs, info)
}

/// The lengths of the peer's pieces.
pub(crate) fn piece_lens(metadata: &RdmaMetadata) -> Vec<u64> {
    metadata.descriptors().iter().map(|descriptor| descriptor.size()).collect()
}

/// The address ranges of `runs`, checked against the storage's length.
fn regions(buffer: &Buffer, runs: &[Run], info: &TensorInfo) -> Result<Vec<Region>, TensorError> {
    let Buffer { device, base, bytes, .. } = *buffer;
    layout::regions(device, base, bytes, runs, buffer.element_bytes()).map_err(|source| refused(info, source))
}

/// Cuts `local` where the peer's pieces end.
pub(crate) fn split_to_match(
    local: &[Region],
    peer: &[u64],
    info: &TensorInfo,
) -> Result<Vec<Region>, TensorError> {
    layout::split_to_match(local, peer).map_err(|source| refused(info, source))
}

/// The storage's element type.
pub(crate) fn storage_dtype(storage: &CpuStorage) -> DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

/// Bytes that `elements` elements take, the last byte filled up.
pub(crate) fn byte_len(dtype: DType, elements: usize) -> Option<u64> {
    dtype::dtype_of(dtype)?.byte_len(elements as u64)
}

pub(crate) fn refused(info: &TensorInfo, source: LayoutError) -> TensorError {
    TensorError::Layout { tensor: info.clone(), source }
}

/// The view's runs, in units of what the storage holds one after the other.
fn runs(buffer: &Buffer, view: &Layout, info: &TensorInfo) -> Result<Vec<Run>, TensorError> {
    if dtype::is_opaque(buffer.dtype) {
        return opaque_runs(buffer, view, info);
    }
    // A stride beyond `isize` can't be inside any storage; clamped, it is refused as too large.
    let clamped = |&stride: &usize| isize::try_from(stride).unwrap_or(isize::MAX);
    let strides: Vec<isize> = view.stride().iter().map(clamped).collect();
    let runs = layout::contiguous_runs(view.dims(), &strides, view.start_offset());
    runs.map_err(|source| refused(info, source))
}

/// Opaque elements don't begin at byte boundaries, so only all of them together have an address.
fn opaque_runs(buffer: &Buffer, view: &Layout, info: &TensorInfo) -> Result<Vec<Run>, TensorError> {
    let available = buffer.bytes;
    let needed = byte_len(buffer.dtype, view.shape().elem_count());
    let needed = needed.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
    if view.start_offset() != 0 || !view.is_contiguous() || needed < available {
        return Err(TensorError::OpaqueView { tensor: info.clone() });
    }
    if needed > available {
        return Err(refused(info, LayoutError::OutOfBounds { needed, available }));
    }
    Ok(if needed == 0 { Vec::new() } else { vec![Run { offset: 0, len: needed }] })
}

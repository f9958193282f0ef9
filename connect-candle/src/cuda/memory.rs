//! GPU memory that an engine can register: made, recognised, and described.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, DType, Device, Shape, Storage, Tensor};
use connect_core::Device as Place;

use super::driver::{self, Kind, Range};
use crate::error::{TensorError, TensorInfo};
use crate::view::{self, Buffer};

/// Evaluates `$body` with `$slice` bound to the storage's memory, whatever its element type.
macro_rules! with_slice {
    ($storage:expr, $slice:ident => $body:expr) => {
        match $storage {
            CudaStorageSlice::U8($slice)
            | CudaStorageSlice::F6E2M3($slice)
            | CudaStorageSlice::F6E3M2($slice)
            | CudaStorageSlice::F4($slice)
            | CudaStorageSlice::F8E8M0($slice) => $body,
            CudaStorageSlice::U32($slice) => $body,
            CudaStorageSlice::I16($slice) => $body,
            CudaStorageSlice::I32($slice) => $body,
            CudaStorageSlice::I64($slice) => $body,
            CudaStorageSlice::BF16($slice) => $body,
            CudaStorageSlice::F16($slice) => $body,
            CudaStorageSlice::F32($slice) => $body,
            CudaStorageSlice::F64($slice) => $body,
            CudaStorageSlice::F8E4M3($slice) => $body,
        }
    };
}

const POOLED: &str = "its memory is from CUDA's stream-ordered pool, which engines can't register; copy it with \
                      `connect_candle::cuda::plain`, make it with `cuda::zeros`, or send it with `cuda::send_staged`";
const NOT_OPENED: &str = "other processes can't open its memory (it is managed, or mapped piece by piece); copy it with \
                          `connect_candle::cuda::plain`, or send it with `cuda::send_staged`";
const ELSEWHERE: &str = "CUDA's driver knows its address as memory of another kind or device";

/// A tensor of zeros in plain GPU memory, which can be offered and received into as it is.
///
/// The allocation waits until the device is idle, as `cuMemAlloc` does; make such tensors ahead of the work.
///
/// # Errors
/// [`TensorError::Device`] when `device` is no CUDA device, [`TensorError::Allocation`] when it has no such memory.
pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor, TensorError> {
    let shape = shape.into();
    let info = TensorInfo::described("", dtype, shape.dims()).on(device);
    let Device::Cuda(device) = device else {
        return Err(view::out_of_reach(&info, "it is on no CUDA device"));
    };
    let bytes = view::byte_len(dtype, shape.elem_count()).unwrap_or(u64::MAX);
    let (storage, _) = allocate(device, &info, bytes, true)?;
    Ok(Tensor::from((Storage::Cuda(storage), shape)))
}

/// A copy of a CUDA tensor in plain GPU memory, made on the GPU in the order of the calling thread's work. A tensor
/// that is plain already and covers its storage is returned as it is.
///
/// # Errors
/// [`TensorError::Device`] when the tensor is on no CUDA device, [`TensorError::Allocation`], [`TensorError::Candle`].
pub fn plain(tensor: &Tensor) -> Result<Tensor, TensorError> {
    let info = TensorInfo::new("", tensor);
    if is_plain(tensor)? {
        return Ok(tensor.clone());
    }
    let candle = |source| TensorError::Candle { tensor: info.clone(), source: Box::new(source) };
    let tensor = tensor.contiguous().map_err(candle)?;
    let (guard, layout) = tensor.storage_and_layout();
    let Storage::Cuda(source) = &*guard else {
        return Err(view::out_of_reach(&info, "it is on no CUDA device"));
    };
    let bytes = view::byte_len(info.dtype, layout.shape().elem_count()).unwrap_or(u64::MAX);
    let (mut copy, _) = allocate(&source.device, &info, bytes, false)?;
    let device = source.device.clone();
    let begin = layout.start_offset();
    macro_rules! copy {
        ($($variant:ident)*) => {
            match (&source.slice, &mut copy.slice) {
                $((CudaStorageSlice::$variant(from), CudaStorageSlice::$variant(to)) if !to.is_empty() => {
                    device.memcpy_dtod(&from.slice(begin..begin + to.len()), to).map_err(candle)?;
                })*
                _ => {}
            }
        };
    }
    copy!(U8 U32 I16 I32 I64 BF16 F16 F32 F64 F8E4M3 F6E2M3 F6E3M2 F4 F8E8M0);
    let shape = layout.shape().clone();
    drop(guard);
    Ok(Tensor::from((Storage::Cuda(copy), shape)))
}

/// Whether the tensor lies in plain GPU memory, so that it can be offered as it is.
///
/// # Errors
/// [`TensorError::Device`] when it is on no CUDA device, [`TensorError::Candle`] when the driver does not say.
pub fn is_plain(tensor: &Tensor) -> Result<bool, TensorError> {
    let info = TensorInfo::new("", tensor);
    let (guard, _) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*guard else {
        return Err(view::out_of_reach(&info, "it is on no CUDA device"));
    };
    let (address, bytes) = extent(storage);
    Ok(bytes == 0 || refusal(&kind(storage, address, &info)?, storage, address, bytes).is_none())
}

/// Where a storage's bytes are, if an engine can register them.
pub(crate) fn buffer(storage: &CudaStorage, info: &TensorInfo) -> Result<Buffer, TensorError> {
    let (base, bytes) = extent(storage);
    if bytes > 0
        && let Some(reason) = refusal(&kind(storage, base, info)?, storage, base, bytes)
    {
        return Err(view::out_of_reach(info, reason));
    }
    let device = Place::cuda(ordinal(storage) as u32);
    Ok(Buffer { device, base, bytes, dtype: candle_core::backend::BackendStorage::dtype(storage) })
}

fn kind(storage: &CudaStorage, address: u64, info: &TensorInfo) -> Result<Kind, TensorError> {
    let stream = storage.device.cuda_stream();
    let asked = stream.context().bind_to_thread().and_then(|()| Kind::of(address));
    asked.w().map_err(|source| TensorError::Candle { tensor: info.clone(), source: Box::new(source) })
}

/// Why an engine can't register the memory.
fn refusal(kind: &Kind, storage: &CudaStorage, base: u64, bytes: usize) -> Option<&'static str> {
    let inside = kind.start <= base && base + bytes as u64 <= kind.start.saturating_add(kind.bytes);
    if kind.is_pooled {
        Some(POOLED)
    } else if kind.is_managed || !kind.has_legacy_handles {
        Some(NOT_OPENED)
    } else if !kind.is_device || kind.ordinal != ordinal(storage) as i32 || !inside {
        Some(ELSEWHERE)
    } else {
        None
    }
}

fn ordinal(storage: &CudaStorage) -> usize {
    storage.device.cuda_stream().context().ordinal()
}

/// Address and bytes of a storage. With a device that has a stream of its own the stream waits for what was queued on
/// others; the address is a number all the same.
fn extent(storage: &CudaStorage) -> (u64, usize) {
    fn of<T>(slice: &CudaSlice<T>) -> (u64, usize) {
        let (address, _guard) = slice.device_ptr(slice.stream());
        (address, slice.num_bytes())
    }
    with_slice!(&storage.slice, slice => of(slice))
}

/// Plain memory for a tensor, and its address.
pub(crate) fn allocate(
    device: &CudaDevice,
    info: &TensorInfo,
    bytes: u64,
    zeroed: bool,
) -> Result<(CudaStorage, u64), TensorError> {
    let allocation = |_| TensorError::Allocation { tensor: info.clone(), bytes };
    let stream = device.cuda_stream();
    let length = usize::try_from(bytes).map_err(|_| allocation(driver::TOO_LARGE))?;
    macro_rules! allocate {
        ($variant:ident, $element:ty) => {{
            let len = length / size_of::<$element>();
            CudaStorageSlice::$variant(driver::plain_memory::<$element>(&stream, len).map_err(allocation)?)
        }};
    }
    let mut slice = match info.dtype {
        DType::U8 => allocate!(U8, u8),
        DType::U32 => allocate!(U32, u32),
        DType::I16 => allocate!(I16, i16),
        DType::I32 => allocate!(I32, i32),
        DType::I64 => allocate!(I64, i64),
        DType::BF16 => allocate!(BF16, half::bf16),
        DType::F16 => allocate!(F16, half::f16),
        DType::F32 => allocate!(F32, f32),
        DType::F64 => allocate!(F64, f64),
        DType::F8E4M3 => allocate!(F8E4M3, float8::F8E4M3),
        DType::F6E2M3 => allocate!(F6E2M3, u8),
        DType::F6E3M2 => allocate!(F6E3M2, u8),
        DType::F4 => allocate!(F4, u8),
        DType::F8E8M0 => allocate!(F8E8M0, u8),
        _ => return Err(allocation(driver::TOO_LARGE)),
    };
    let address = with_slice!(&mut slice, slice => {
        let address = slice.device_ptr_mut(&stream).0;
        if zeroed && length > 0 {
            let mut range = Range { address, bytes: length, _owner: slice };
            driver::clear(&stream, &mut range).map_err(allocation)?;
        }
        address
    });
    Ok((CudaStorage { slice, device: device.clone() }, address))
}

/// The storage's content in system memory. Blocks until it is there.
pub(crate) fn to_host(storage: &CudaStorage, info: &TensorInfo) -> Result<CpuStorage, TensorError> {
    let candle = |source| TensorError::Candle { tensor: info.clone(), source: Box::new(source) };
    macro_rules! copy {
        ($($variant:ident)*) => {
            match &storage.slice {
                $(CudaStorageSlice::$variant(slice) if slice.is_empty() => CpuStorage::$variant(Vec::new()),
                CudaStorageSlice::$variant(slice) => {
                    CpuStorage::$variant(storage.device.clone_dtoh(slice).map_err(candle)?)
                })*
            }
        };
    }
    Ok(copy!(U8 U32 I16 I32 I64 BF16 F16 F32 F64 F8E4M3 F6E2M3 F6E3M2 F4 F8E8M0))
}

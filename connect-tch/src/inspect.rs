//! What a tensor is made of, asked in ways that can't panic.
//!
//! Most of tch's getters unwrap libtorch's exceptions: `data_ptr` panics for sparse tensors, `device` for
//! undefined ones. So the questions come in an order in which each is safe to ask, and the address is asked
//! of `torch_sys` itself.
#![expect(
    unsafe_code,
    reason = "asks libtorch for an address without tch's unwrap, and implements SourceMemory"
)]

use std::ffi::{CStr, c_void};

use connect_core::accelerator::Accelerators;
use connect_core::layout::{self, LayoutError};
use connect_core::{DType, Device, Region, SourceMemory};
use tch::Tensor;

use crate::cuda;
use crate::dtype::dtype_of;
use crate::error::{TensorError, TensorInfo, first_line};

/// What a peer must know of a tensor.
pub(crate) struct Facts {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) pieces: usize,
}

/// The elements of some tensors, in row-major order, one tensor after the other.
#[derive(Default)]
pub(crate) struct TensorSource {
    tensors: Vec<Tensor>,
    regions: Vec<Region>,
}

impl TensorSource {
    /// Adds a tensor.
    ///
    /// # Safety
    /// Until this source is dropped, nobody writes to the tensor's storage or resizes it.
    pub(crate) unsafe fn add(&mut self, name: &str, tensor: &Tensor) -> Result<Facts, TensorError> {
        let (info, dtype) = check(name, tensor)?;
        // Not a shallow clone: that is the same tensor object, whose `set_data` exchanges the storage.
        let keep = tensor.f_detach().map_err(|error| torch(&info, &error.to_string()))?;
        let regions = regions(&keep, &info, dtype)?;
        let shape = info.shape.iter().map(|&dim| u64::try_from(dim)).collect::<Result<_, _>>();
        let shape = shape.map_err(|_| torch(&info, "a negative dimension"))?;
        let facts = Facts { dtype, shape, pieces: regions.len() };
        self.tensors.push(keep);
        self.regions.extend(regions);
        Ok(facts)
    }

    /// Cuts the pieces where the peer's end, since an operation pairs them.
    pub(crate) fn split_to_match(&mut self, peer: &[u64]) -> Result<(), LayoutError> {
        self.regions = layout::split_to_match(&self.regions, peer)?;
        Ok(())
    }
}

// SAFETY: the regions lie in the storages of the tensors held here, which keep them alive; moving this struct
// moves neither. That nobody writes to them or moves them is what the callers of `add` promised.
unsafe impl SourceMemory for TensorSource {
    fn regions(&self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        let mut devices: Vec<Device> = self.regions.iter().map(Region::device).collect();
        devices.sort_unstable();
        devices.dedup();
        devices.into_iter().filter_map(|device| cuda::accelerator(device, cuda::Torch)).collect()
    }
}

// SAFETY: a shared reference gives access to the plain numbers in `regions` only; the tensors are not used
// again before they drop, on whichever single thread that happens.
unsafe impl Sync for TensorSource {}

/// The address of the first element, as a number; null where there is none.
pub(crate) fn data_address(tensor: &Tensor) -> Result<u64, String> {
    // SAFETY: `as_ptr` is a living tensor; the function only reads it, and reports exceptions on the side.
    let data = unsafe { torch_sys::at_data_ptr(tensor.as_ptr().cast_mut()) };
    last_error()?;
    Ok(data as u64)
}

/// The dimensions. Nested tensors have none.
fn shape(tensor: &Tensor) -> Result<Vec<i64>, String> {
    let mut shape = vec![0; rank(tensor)?];
    // SAFETY: as in `data_address`; there is room for one number per dimension.
    unsafe { torch_sys::at_shape(tensor.as_ptr().cast_mut(), shape.as_mut_ptr()) };
    last_error()?;
    Ok(shape)
}

/// The strides. Sparse tensors have none.
fn strides(tensor: &Tensor) -> Result<Vec<i64>, String> {
    let mut strides = vec![0; rank(tensor)?];
    // SAFETY: as in `shape`.
    unsafe { torch_sys::at_stride(tensor.as_ptr().cast_mut(), strides.as_mut_ptr()) };
    last_error()?;
    Ok(strides)
}

fn rank(tensor: &Tensor) -> Result<usize, String> {
    // SAFETY: as in `data_address`.
    let rank = unsafe { torch_sys::at_dim(tensor.as_ptr().cast_mut()) };
    last_error()?;
    Ok(rank)
}

/// The exception that the last call on this thread left, if it did.
fn last_error() -> Result<(), String> {
    // SAFETY: the slot belongs to this thread; what it returns is null or a C string that is now ours.
    let error = unsafe { torch_sys::get_and_reset_last_err() };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a C string, see above, and not freed yet.
    let message = first_line(&unsafe { CStr::from_ptr(error) }.to_string_lossy());
    // SAFETY: torch_sys made it with `strdup`, and nothing refers to it any more.
    unsafe { free(error.cast()) };
    Err(message)
}

unsafe extern "C" {
    fn free(memory: *mut c_void);
}

/// Refuses what has no dense memory on the CPU. The order matters: see the module.
fn check(name: &str, tensor: &Tensor) -> Result<(TensorInfo, DType), TensorError> {
    let mut info = TensorInfo { name: name.to_owned(), ..TensorInfo::default() };
    let unsupported = |info: &TensorInfo, reason| TensorError::Unsupported { tensor: info.clone(), reason };
    if !tensor.defined() {
        return Err(unsupported(&info, "it is undefined; assign it first"));
    }
    // tch has no names for some kinds (uint16 and the like): those are errors here.
    let kind = tensor.f_kind().map_err(|error| torch(&info, &error.to_string()))?;
    info.shape =
        shape(tensor).map_err(|_| unsupported(&info, "it has no plain shape; send its parts one by one"))?;
    let place = cuda::place(tensor.device(), &cuda::Torch);
    info.device = place.ok();
    if matches!(kind, tch::Kind::QInt8 | tch::Kind::QUInt8 | tch::Kind::QInt32) {
        return Err(unsupported(&info, "it is quantised; send `int_repr()` and its scales"));
    }
    info.dtype = dtype_of(kind);
    let dtype = info.dtype.ok_or_else(|| TensorError::DType {
        name: name.to_owned(),
        dtype: format!("{kind:?}"),
        lacking: "the wire format has no name for",
    })?;
    if let Err(reason) = place {
        return Err(unsupported(&info, reason));
    }
    if tensor.is_sparse() || tensor.is_mkldnn() {
        return Err(unsupported(&info, "it is sparse or in an opaque layout; call `to_dense` first"));
    }
    if tensor.f_is_conj().unwrap_or(true) || tensor.f_is_neg().unwrap_or(true) {
        return Err(unsupported(
            &info,
            "it is conjugated or negated lazily; call `resolve_conj` and `resolve_neg`",
        ));
    }
    Ok((info, dtype))
}

/// The pieces of a dense tensor. The address fails for the sparse layouts that tch does not report as such.
fn regions(tensor: &Tensor, info: &TensorInfo, dtype: DType) -> Result<Vec<Region>, TensorError> {
    let unsupported = |reason| TensorError::Unsupported { tensor: info.clone(), reason };
    let addr =
        data_address(tensor).map_err(|_| unsupported("it has no dense memory; call `to_dense` first"))?;
    let refused = |source| TensorError::Layout { tensor: info.clone(), source };
    let dims: Vec<usize> = info.shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
    let strides = strides(tensor).map_err(|_| unsupported("it has no strides; call `to_dense` first"))?;
    let strides: Vec<isize> = strides.into_iter().map(|stride| stride as isize).collect();
    let bytes = dtype.bits() as usize / 8;
    // The address is that of the first element already.
    let runs = layout::contiguous_runs(&dims, &strides, 0).map_err(refused)?;
    layout::check_fragmentation(&runs, bytes).map_err(refused)?;
    if addr == 0 && !runs.is_empty() {
        return Err(unsupported("it has no memory behind it; call `contiguous` or `clone` first"));
    }
    // libtorch checked the view against its storage when it was made.
    let device = info.device.unwrap_or(Device::CPU);
    layout::regions(device, addr, usize::MAX, &runs, bytes).map_err(refused)
}

fn torch(info: &TensorInfo, message: &str) -> TensorError {
    TensorError::Torch { tensor: info.clone(), reason: first_line(message) }
}

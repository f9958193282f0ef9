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
use connect_core::layout::{self, LayoutError, Run};
use connect_core::{DType, Digest, Region, SourceMemory};
use tch::Tensor;

use crate::device::{self, Place};
use crate::dtype::dtype_of;
use crate::error::{TensorError, TensorInfo, first_line};

const NO_DIGEST: &str =
    "digests are computed by the CPU; move it with `to_device(Device::Cpu)`, or send it without";

/// A tensor with dense memory within reach.
pub(crate) struct Dense {
    pub(crate) info: TensorInfo,
    pub(crate) dtype: DType,
    pub(crate) place: Place,
}

/// What a peer must know of a tensor.
pub(crate) struct Facts {
    pub(crate) info: TensorInfo,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) pieces: usize,
}

/// The elements of some tensors, in row-major order, one tensor after the other.
#[derive(Default)]
pub(crate) struct TensorSource {
    tensors: Vec<Tensor>,
    regions: Vec<Region>,
    /// Where they are, each once.
    places: Vec<Place>,
}

impl TensorSource {
    /// Adds a tensor.
    ///
    /// # Safety
    /// Until this source is dropped, nobody writes to the tensor's storage or resizes it.
    pub(crate) unsafe fn add(&mut self, name: &str, tensor: &Tensor) -> Result<Facts, TensorError> {
        let dense = check(name, tensor)?;
        // Not a shallow clone: that is the same tensor object, whose `set_data` exchanges the storage.
        let keep = tensor.f_detach().map_err(|error| torch(&dense.info, &error.to_string()))?;
        let regions = regions(&dense.info, &view(&keep, &dense)?)?;
        let Dense { info, dtype, place } = dense;
        let shape = info.shape.iter().flatten().map(|&dim| u64::try_from(dim)).collect::<Result<_, _>>();
        let shape = shape.map_err(|_| torch(&info, "a negative dimension"))?;
        let facts = Facts { info, dtype, shape, pieces: regions.len() };
        self.tensors.push(keep);
        self.regions.extend(regions);
        if !self.places.contains(&place) {
            self.places.push(place);
        }
        Ok(facts)
    }

    /// The digest of the last tensor that was added, of which these are the facts.
    ///
    /// # Safety
    /// As [`add`](Self::add), which it came by.
    ///
    /// # Errors
    /// [`TensorError::Device`] when it is not in system memory.
    pub(crate) unsafe fn digest(&self, facts: &Facts) -> Result<Digest, TensorError> {
        let last = &self.regions[self.regions.len() - facts.pieces..];
        if last.iter().any(|region| !region.device().is_cpu()) {
            return Err(TensorError::Device { tensor: facts.info.clone(), reason: NO_DIGEST });
        }
        let bytes = |region: &Region| {
            let start = std::ptr::with_exposed_provenance::<u8>(region.addr() as usize);
            // SAFETY: the region is system memory of the tensor that was added last and is kept here; the caller
            // promises that nobody writes to it.
            unsafe { std::slice::from_raw_parts(start, region.len() as usize) }
        };
        Ok(Digest::of_pieces(last.iter().map(bytes)))
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
        self.places.iter().filter_map(|place| place.accelerator()).collect()
    }
}

// SAFETY: a shared reference gives access to plain numbers and names of devices only; the tensors are not used
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
pub(crate) fn last_error() -> Result<(), String> {
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

/// Refuses what has no dense memory within reach. The order matters: see the module.
pub(crate) fn check(name: &str, tensor: &Tensor) -> Result<Dense, TensorError> {
    let mut info = TensorInfo { name: name.to_owned(), ..TensorInfo::default() };
    let unsupported = |info: &TensorInfo, reason| TensorError::Unsupported { tensor: info.clone(), reason };
    if !tensor.defined() {
        return Err(unsupported(&info, "it is undefined; assign it first"));
    }
    info.device = device::name(tensor.device());
    // tch has no names for some kinds (uint16 and the like): asking for those is an error.
    info.kind = tensor.f_kind().ok();
    info.shape = shape(tensor).ok();
    if info.shape.is_none() {
        return Err(unsupported(&info, "it is nested, without one shape; send its parts one by one"));
    }
    let Some(kind) = info.kind else {
        let (dtype, lacking) = ("unknown to tch".to_owned(), "can't be named to a peer");
        return Err(TensorError::DType { tensor: info, dtype, lacking });
    };
    if matches!(kind, tch::Kind::QInt8 | tch::Kind::QUInt8 | tch::Kind::QInt32) {
        return Err(unsupported(&info, "it is quantised; send `int_repr()` and its scales"));
    }
    if tensor.is_sparse() {
        return Err(unsupported(&info, "it is sparse (COO); call `to_dense` first, or send its parts"));
    }
    if tensor.is_mkldnn() {
        return Err(unsupported(&info, "it is in oneDNN's own layout (mkldnn); call `to_dense` first"));
    }
    let place = Place::of(tensor, &info)?;
    let dtype = dtype_of(kind).ok_or_else(|| TensorError::DType {
        tensor: info.clone(),
        dtype: format!("{kind:?}"),
        lacking: "the wire format has no name for",
    })?;
    if tensor.f_is_conj().unwrap_or(true) {
        return Err(unsupported(&info, "it is conjugated lazily; call `resolve_conj` first"));
    }
    if tensor.f_is_neg().unwrap_or(true) {
        return Err(unsupported(&info, "it is negated lazily; call `resolve_neg` first"));
    }
    Ok(Dense { info, dtype, place })
}

/// What a dense tensor's view is made of.
pub(crate) struct View {
    place: Place,
    /// Where its first element is; null where there is none.
    addr: u64,
    element_bytes: usize,
    /// From there, in elements.
    pub(crate) runs: Vec<Run>,
}

impl View {
    /// How many bytes it shows.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| (run.len * self.element_bytes) as u64).sum()
    }
}

/// The view of a dense tensor.
pub(crate) fn view(tensor: &Tensor, dense: &Dense) -> Result<View, TensorError> {
    let Dense { info, dtype, place } = dense;
    let unsupported = |reason| TensorError::Unsupported { tensor: info.clone(), reason };
    // Both fail for the sparse layouts that tch does not report as such.
    let addr = data_address(tensor).map_err(|_| unsupported(not_dense(tensor)))?;
    let strides = strides(tensor).map_err(|_| unsupported(not_dense(tensor)))?;
    let strides: Vec<isize> = strides.into_iter().map(|stride| stride as isize).collect();
    let dims = info.shape.iter().flatten();
    let dims: Vec<usize> = dims.map(|&dim| usize::try_from(dim).unwrap_or(0)).collect();
    // The address is that of the first element already.
    let runs = layout::contiguous_runs(&dims, &strides, 0).map_err(|source| refused(info, source))?;
    if addr == 0 && !runs.is_empty() {
        return Err(unsupported("it is all zeros without memory behind them; send a new tensor (`zeros`)"));
    }
    Ok(View { place: *place, addr, element_bytes: dtype.bits() as usize / 8, runs })
}

/// The pieces of memory that a view shows.
pub(crate) fn regions(info: &TensorInfo, view: &View) -> Result<Vec<Region>, TensorError> {
    let View { place, addr, element_bytes, runs } = view;
    layout::check_fragmentation(runs, *element_bytes).map_err(|source| refused(info, source))?;
    // libtorch checked the view against its storage when it was made.
    let regions = layout::regions(place.device(), *addr, usize::MAX, runs, *element_bytes);
    regions.map_err(|source| refused(info, source))
}

/// Why a tensor has no address.
fn not_dense(tensor: &Tensor) -> &'static str {
    if tensor.f_crow_indices().is_ok() {
        "it is sparse (CSR or BSR); call `to_dense` first, or send its parts"
    } else if tensor.f_ccol_indices().is_ok() {
        "it is sparse (CSC or BSC); call `to_dense` first, or send its parts"
    } else {
        "it has no dense memory; call `to_dense` first"
    }
}

pub(crate) fn refused(info: &TensorInfo, source: LayoutError) -> TensorError {
    TensorError::Layout { tensor: info.clone(), source }
}

pub(crate) fn torch(info: &TensorInfo, message: &str) -> TensorError {
    TensorError::Torch { tensor: info.clone(), reason: first_line(message) }
}

#[cfg(test)]
mod tests {
    use connect_core::{Connector, Device, Error, MemoryError};
    use tch::Kind;

    use super::*;
    use crate::cuda::tests::Fake;

    /// A source of one tensor.
    fn source(tensor: &Tensor) -> (TensorSource, Facts) {
        let mut source = TensorSource::default();
        // SAFETY: nobody writes to the tensors of these tests.
        let facts = unsafe { source.add("x", tensor) }.unwrap();
        (source, facts)
    }

    /// System memory that is called a GPU's which is not there: libtorch can't wait for that, and says so.
    fn missing() -> Place {
        Place::among(&Fake::of(1000), tch::Device::Cuda(999)).unwrap()
    }

    fn tensor() -> Tensor {
        Tensor::ones([4], (Kind::Float, tch::Device::Cpu))
    }

    #[test]
    fn p3_a_tensor_on_a_gpu_is_offered_only_after_its_device_was_waited_for() {
        let (mut source, _) = source(&tensor());
        assert!(source.accelerators().is_empty(), "system memory waits for nothing");
        source.places.push(missing());
        let refused = Connector::local().unwrap().create_readable(source).wait().unwrap_err();
        let Error::Memory(MemoryError::Accelerator { device, reason }) = refused else { panic!() };
        assert!(device == Device::cuda(999) && !reason.contains("panicked"), "{device}: {reason}");
    }

    #[test]
    fn a_view_s_memory_is_on_its_tensor_s_device_and_has_no_digest_there() {
        let tensor = tensor();
        let (mut source, facts) = source(&tensor);
        // SAFETY: as above.
        assert!(unsafe { source.digest(&facts) }.is_ok());
        let dense = Dense { place: missing(), ..check("x", &tensor).unwrap() };
        let view = view(&tensor, &dense).unwrap();
        source.regions = regions(&facts.info, &view).unwrap();
        assert_eq!(source.regions[0].device(), Device::cuda(999));
        // SAFETY: as above.
        let refused = unsafe { source.digest(&facts) }.unwrap_err();
        assert!(matches!(refused, TensorError::Device { .. }), "{refused}");
        assert!(refused.to_string().contains("to_device(Device::Cpu)"), "{refused}");
    }

    #[test]
    fn tensors_of_one_device_wait_for_it_once() {
        let (mut source, _) = source(&tensor());
        // SAFETY: as above.
        unsafe { source.add("y", &tensor()) }.unwrap();
        assert_eq!(source.places, [Place::CPU]);
    }
}

//! New tensors as target memory: nobody else has a handle before they are filled.
#![expect(unsafe_code, reason = "implements TargetMemory for tensors of libtorch's own allocation")]

use connect_core::layout;
use connect_core::{Device, Received, Region, Report, TargetMemory, TensorSpec};
use tch::{Kind, Tensor};

use crate::dtype::kind_of;
use crate::error::{TensorError, TensorInfo, first_line};
use crate::inspect::data_address;

/// What a fresh tensor holds before it is filled.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// Nothing yet. For reads: this side's own transport tells when every byte was written.
    Unset,
    /// Zeros. For memory that a peer writes: there, completion is the peer's word, and a peer that lies must
    /// not make stale memory readable.
    Zeroed,
}

/// A tensor to be made.
pub(crate) struct Plan {
    pub(crate) info: TensorInfo,
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<i64>,
    /// Follows from the two.
    pub(crate) bytes: u64,
}

impl Plan {
    /// The tensor that a peer describes.
    ///
    /// # Errors
    /// [`TensorError::DType`], [`TensorError::Allocation`].
    pub(crate) fn of(spec: &TensorSpec) -> Result<Self, TensorError> {
        let (kind, bytes) = (kind_of(spec.dtype), spec.byte_len);
        let shape: Result<Vec<i64>, _> = spec.shape.iter().map(|&dim| i64::try_from(dim)).collect();
        let (name, device) = (spec.name.clone(), Some(Device::CPU));
        let info = TensorInfo { name, kind, shape: shape.clone().ok(), device };
        let Some(kind) = kind else {
            let dtype = spec.dtype.to_string();
            return Err(TensorError::DType { tensor: info, dtype, lacking: "tch does not have" });
        };
        match shape {
            Ok(shape) => Ok(Self { info, kind, shape, bytes }),
            Err(_) => {
                let reason = format!("the shape {:?} is beyond libtorch's numbers", spec.shape);
                Err(TensorError::Allocation { tensor: info, bytes, reason })
            }
        }
    }
}

/// New tensors, filled one after the other.
#[derive(Default)]
pub(crate) struct FreshTensors {
    tensors: Vec<(TensorInfo, Tensor)>,
    regions: Vec<Region>,
}

impl FreshTensors {
    /// Adds a tensor, in pieces like the peer's, since an operation pairs them.
    pub(crate) fn add(&mut self, plan: &Plan, content: Content, peer: &[u64]) -> Result<(), TensorError> {
        let Plan { info, kind, shape, bytes } = plan;
        let allocation = |reason: &str| TensorError::Allocation {
            tensor: info.clone(),
            bytes: *bytes,
            reason: first_line(reason),
        };
        let options = (*kind, tch::Device::Cpu);
        let tensor = match content {
            Content::Unset => Tensor::f_empty(shape.as_slice(), options),
            Content::Zeroed => Tensor::f_zeros(shape.as_slice(), options),
        };
        let tensor = tensor.map_err(|error| allocation(&error.to_string()))?;
        let addr = data_address(&tensor).map_err(|error| allocation(&error))?;
        // Without elements there is no region.
        let whole: Vec<Region> = Region::new(Device::CPU, addr, *bytes).into_iter().collect();
        let pieces = layout::split_to_match(&whole, peer)
            .map_err(|source| TensorError::Layout { tensor: info.clone(), source })?;
        self.regions.extend(pieces);
        self.tensors.push((info.clone(), tensor));
        Ok(())
    }

    /// Checks what arrived against the digests of the envelope whose tensors these are.
    pub(crate) fn check_digests(received: &Received<Self>, specs: &[TensorSpec]) -> Result<(), TensorError> {
        let bytes = |region: &Region| {
            let start = std::ptr::with_exposed_provenance::<u8>(region.addr() as usize);
            // SAFETY: the region is memory of one of the tensors, which live as long as `received` and whose
            // only handles are in there. The operation has given them back, so all of it has been written and
            // nobody writes to it any more.
            unsafe { std::slice::from_raw_parts(start, region.len() as usize) }
        };
        for spec in specs {
            spec.check_digest(received.memory.regions[spec.descriptors()].iter().map(bytes))?;
        }
        Ok(())
    }

    /// The filled tensors, by name. That a completed operation gave them back is the proof that they are.
    ///
    /// # Errors
    /// [`TensorError::NotBool`].
    pub(crate) fn filled(received: Received<Self>) -> Result<(Vec<(String, Tensor)>, Report), TensorError> {
        for (info, tensor) in &received.memory.tensors {
            check_bools(info, tensor)?;
        }
        let tensors = received.memory.tensors.into_iter().map(|(info, tensor)| (info.name, tensor));
        Ok((tensors.collect(), received.report))
    }
}

/// Refuses a `Bool` tensor with a byte that is neither 0 nor 1: libtorch would hand it out as one of Rust's
/// `bool`s, which must not have any other.
fn check_bools(info: &TensorInfo, tensor: &Tensor) -> Result<(), TensorError> {
    if tensor.kind() != Kind::Bool || tensor.numel() == 0 {
        return Ok(());
    }
    // SAFETY: a fresh tensor is contiguous, on the CPU, and has one byte for each of its elements; the
    // operation has given it back, and this is its only handle.
    let bytes = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), tensor.numel()) };
    match bytes.iter().find(|&&byte| byte > 1) {
        Some(&byte) => Err(TensorError::NotBool { tensor: info.clone(), byte }),
        None => Ok(()),
    }
}

// SAFETY: each region is the memory of one of the tensors, which libtorch allocated for exactly these bytes:
// `bytes` follows from the same dtype and shape. The handles here are the only ones, and are not used while
// the operation has them; moving them does not move the storage; numbers take any bit pattern, and
// booleans are checked before anybody gets the tensor (`filled`).
unsafe impl TargetMemory for FreshTensors {
    fn regions(&mut self) -> Vec<Region> {
        self.regions.clone()
    }
}

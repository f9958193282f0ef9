//! New tensors as target memory: nobody else has a handle before they are filled.
#![expect(unsafe_code, reason = "implements TargetMemory for tensors of libtorch's own allocation")]

use connect_core::accelerator::Accelerators;
use connect_core::layout;
use connect_core::{Device, Received, Region, Report, TargetMemory, TensorSpec};
use tch::{Kind, Tensor};

use crate::cuda;
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

/// New tensors, filled one after the other.
pub(crate) struct FreshTensors {
    on: tch::Device,
    place: Device,
    tensors: Vec<(String, Tensor)>,
    regions: Vec<Region>,
}

impl FreshTensors {
    /// For tensors on a device that [`cuda::place`] knows.
    pub(crate) fn on(on: tch::Device, place: Device) -> Self {
        Self { on, place, tensors: Vec::new(), regions: Vec::new() }
    }

    /// Adds a tensor of `bytes` bytes, in pieces like the peer's, since an operation pairs them.
    pub(crate) fn add(
        &mut self,
        info: &TensorInfo,
        kind: Kind,
        bytes: u64,
        content: Content,
        peer: &[u64],
    ) -> Result<(), TensorError> {
        let allocation = |reason: &str| {
            let (name, reason) = (info.name.clone(), first_line(reason));
            TensorError::Allocation { name, bytes, reason }
        };
        let options = (kind, self.on);
        let tensor = match content {
            Content::Unset => Tensor::f_empty(info.shape.as_slice(), options),
            Content::Zeroed => Tensor::f_zeros(info.shape.as_slice(), options),
        };
        let tensor = tensor.map_err(|error| allocation(&error.to_string()))?;
        let addr = data_address(&tensor).map_err(|error| allocation(&error))?;
        // Without elements there is no region.
        let whole: Vec<Region> = Region::new(self.place, addr, bytes).into_iter().collect();
        let pieces = layout::split_to_match(&whole, peer)
            .map_err(|source| TensorError::Layout { tensor: info.clone(), source })?;
        self.regions.extend(pieces);
        self.tensors.push((info.name.clone(), tensor));
        Ok(())
    }

    /// Checks what arrived against the digests of the envelope whose tensors these are.
    pub(crate) fn check_digests(received: &Received<Self>, specs: &[TensorSpec]) -> Result<(), TensorError> {
        if !received.memory.place.is_cpu() {
            // An envelope with digests was refused for another device.
            return Ok(());
        }
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

    /// The filled tensors. That a completed operation gave them back is the proof that they are.
    pub(crate) fn filled(received: Received<Self>) -> (Vec<(String, Tensor)>, Report) {
        let mut tensors = received.memory.tensors;
        for (_, tensor) in &mut tensors {
            if received.memory.place.is_cpu() {
                normalise_bools(tensor);
            } else if tensor.kind() == Kind::Bool {
                *tensor = tensor.view_dtype(Kind::Uint8).ne(0);
            }
        }
        (tensors, received.report)
    }
}

/// Makes every byte of a `Bool` tensor 0 or 1: a peer may have sent others, which libtorch would hand out as
/// Rust's `bool`s.
fn normalise_bools(tensor: &Tensor) {
    if tensor.kind() != Kind::Bool || tensor.numel() == 0 {
        return;
    }
    // SAFETY: a fresh tensor is contiguous, on the CPU, and has one byte for each of its elements; the
    // operation has given it back, and this is its only handle.
    let bytes = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), tensor.numel()) };
    for byte in bytes {
        *byte = u8::from(*byte != 0);
    }
}

// SAFETY: each region is the memory of one of the tensors, which libtorch allocated for exactly these bytes:
// `bytes` follows from the same dtype and shape. The handles here are the only ones, and are not used while
// the operation has them; moving them does not move the storage; numbers take any bit pattern, and
// booleans are made valid before anybody gets the tensor (`filled`).
unsafe impl TargetMemory for FreshTensors {
    fn regions(&mut self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        cuda::accelerator(self.place, cuda::Torch).into_iter().collect()
    }
}

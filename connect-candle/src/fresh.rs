//! Buffers that become tensors: memory of the right element type that no tensor knows until it is filled.
#![expect(
    unsafe_code,
    reason = "implements TargetMemory for vectors whose length is set once they are filled"
)]

use bytemuck::Zeroable;
use candle_core::{CpuStorage, DType, Device, Storage};
use connect_core::accelerator::Accelerators;
use connect_core::{Received, Region, Report, TargetMemory};

use crate::error::{TensorError, TensorInfo};
use crate::view::{self, with_vec};

/// What a fresh buffer holds before it is filled.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// Nothing yet. For reads: this side's own transport tells when every byte was written.
    Unset,
    /// Zeros. For memory that a peer writes: there, completion is the peer's word, and a peer that lies must
    /// not make uninitialised memory readable. The kernel hands out large buffers zeroed anyway.
    Zeroed,
}

/// A buffer that has been filled.
pub(crate) struct Filled {
    pub(crate) name: String,
    pub(crate) dims: Vec<usize>,
    pub(crate) storage: Storage,
}

/// Buffers for some tensors on one device, filled one after the other.
pub(crate) struct FreshTensors {
    device: Device,
    tensors: Vec<Fresh>,
    regions: Vec<Region>,
}

/// A vector in `storage` has length 0, and capacity for at least `len` elements. Memory of a GPU has its length.
struct Fresh {
    name: String,
    dims: Vec<usize>,
    storage: Storage,
    len: usize,
}

impl FreshTensors {
    pub(crate) fn on(device: &Device) -> Self {
        Self { device: device.clone(), tensors: Vec::new(), regions: Vec::new() }
    }

    /// Adds a buffer for one tensor, in pieces like the peer's, since an operation pairs them.
    ///
    /// # Errors
    /// The shape is larger than the address space or than the memory there is, or has not the peer's bytes.
    pub(crate) fn add(
        &mut self,
        info: &TensorInfo,
        content: Content,
        peer: &[u64],
    ) -> Result<(), TensorError> {
        let elements = info.shape.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
        let bytes = elements.and_then(|elements| view::byte_len(info.dtype, elements)).unwrap_or(u64::MAX);
        let allocation = || TensorError::Allocation { tensor: info.clone(), bytes };
        view::check_device(&self.device, info)?;
        let (storage, addr, len) = match &self.device {
            Device::Cpu => {
                let (mut storage, len) = allocate(info.dtype, bytes, content).ok_or_else(allocation)?;
                let addr = with_vec!(&mut storage, vec => vec.as_mut_ptr() as u64);
                (Storage::Cpu(storage), addr, len)
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                let zeroed = matches!(content, Content::Zeroed);
                let (storage, addr) = crate::cuda::allocate(device, info, bytes, zeroed)?;
                (Storage::Cuda(storage), addr, 0)
            }
            _ => return Err(allocation()),
        };
        // Without elements there is no region.
        let whole: Vec<Region> = Region::new(view::place(&self.device), addr, bytes).into_iter().collect();
        self.regions.extend(view::split_to_match(&whole, peer, info)?);
        self.tensors.push(Fresh { name: info.name.clone(), dims: info.shape.clone(), storage, len });
        Ok(())
    }

    /// The filled buffers. That a completed operation gave the memory back is the proof that they are.
    pub(crate) fn filled(received: Received<Self>) -> (Vec<Filled>, Report) {
        let filled = |mut fresh: Fresh| {
            if let Storage::Cpu(storage) = &mut fresh.storage {
                with_vec!(storage, vec => {
                    // SAFETY: the capacity is at least `len`. The regions of the operation were exactly the first
                    // `len` elements of each buffer; every one of their bytes was written by this side's transport
                    // before the operation completed, or was zero to begin with. Each element type takes any bytes.
                    unsafe { vec.set_len(fresh.len) }
                });
            }
            Filled { name: fresh.name, dims: fresh.dims, storage: fresh.storage }
        };
        (received.memory.tensors.into_iter().map(filled).collect(), received.report)
    }
}

// SAFETY: each region lies inside the capacity of one of the vectors, which nothing else refers to and which
// is not touched while the operation has this struct; the buffers are on the heap and stay there when it
// moves; numbers take any bit pattern. Likewise for the memory of a GPU, which is wholly one of the storages'.
unsafe impl TargetMemory for FreshTensors {
    fn regions(&mut self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        self.tensors.iter().find_map(|fresh| view::accelerator(&fresh.storage)).into_iter().collect()
    }
}

/// An empty vector with room for `bytes` bytes, and how many elements that is.
fn allocate(dtype: DType, bytes: u64, content: Content) -> Option<(CpuStorage, usize)> {
    let bytes = usize::try_from(bytes).ok()?;
    macro_rules! allocate {
        ($variant:ident) => {{
            let (vec, len) = room(bytes, content)?;
            (CpuStorage::$variant(vec), len)
        }};
    }
    Some(match dtype {
        DType::U8 => allocate!(U8),
        DType::U32 => allocate!(U32),
        DType::I16 => allocate!(I16),
        DType::I32 => allocate!(I32),
        DType::I64 => allocate!(I64),
        DType::BF16 => allocate!(BF16),
        DType::F16 => allocate!(F16),
        DType::F32 => allocate!(F32),
        DType::F64 => allocate!(F64),
        DType::F8E4M3 => allocate!(F8E4M3),
        DType::F6E2M3 => allocate!(F6E2M3),
        DType::F6E3M2 => allocate!(F6E3M2),
        DType::F4 => allocate!(F4),
        DType::F8E8M0 => allocate!(F8E8M0),
        _ => return None,
    })
}

fn room<T: Zeroable + Copy>(bytes: usize, content: Content) -> Option<(Vec<T>, usize)> {
    let len = bytes / size_of::<T>();
    let mut vec = Vec::new();
    match content {
        Content::Unset => vec.try_reserve_exact(len).ok()?,
        // Clearing plain numbers writes nothing: the zeros stay where they are.
        Content::Zeroed => {
            vec = bytemuck::allocation::try_zeroed_vec(len).ok()?;
            vec.clear();
        }
    }
    Some((vec, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Buffer;

    #[test]
    fn a_buffer_has_room_for_exactly_the_tensors_bytes() {
        for dtype in crate::dtype::ALL {
            for content in [Content::Unset, Content::Zeroed] {
                let info = TensorInfo::described("x", dtype, &[3, 5]);
                let bytes = view::byte_len(dtype, 15).unwrap();
                let mut fresh = FreshTensors::on(&Device::Cpu);
                fresh.add(&info, content, &[bytes]).unwrap();
                assert_eq!(fresh.regions().iter().map(Region::len).collect::<Vec<_>>(), [bytes], "{dtype:?}");
                let Fresh { storage: Storage::Cpu(storage), len, .. } = &fresh.tensors[0] else { panic!() };
                with_vec!(storage, vec => assert!(vec.is_empty() && vec.capacity() >= *len));
                assert_eq!(len * Buffer::of_cpu(storage).element_bytes(), bytes as usize);
            }
        }
    }

    #[test]
    fn shapes_larger_than_memory_are_errors() {
        for dims in [&[usize::MAX, 2][..], &[1 << 60], &[1 << 62, 4], &[usize::MAX]] {
            let info = TensorInfo::described("x", DType::F64, dims);
            let error = FreshTensors::on(&Device::Cpu).add(&info, Content::Unset, &[]).unwrap_err();
            assert!(matches!(error, TensorError::Allocation { .. }), "{error}");
        }
    }

    #[test]
    fn an_empty_tensor_has_no_region() {
        let mut fresh = FreshTensors::on(&Device::Cpu);
        fresh.add(&TensorInfo::described("x", DType::F32, &[3, 0]), Content::Zeroed, &[]).unwrap();
        assert!(fresh.regions().is_empty());
    }
}

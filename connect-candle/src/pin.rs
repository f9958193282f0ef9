//! Tensors as source memory: a read guard of the storage's lock that lives as long as the operation.
//!
//! A clone of the tensor alone would keep nothing safe: safe code may replace the buffer behind every clone
//! through an `InplaceOp1`. Only the lock prevents that. While it is held, readers go on and writers wait.
#![expect(unsafe_code, reason = "extends the guard's lifetime to its tensor's, and implements SourceMemory")]

use std::sync::Arc;

use candle_core::{Storage, StorageRef, Tensor};
use connect_core::accelerator::Accelerators;
use connect_core::{Digest, Region, SourceMemory};

use crate::error::{TensorError, TensorInfo};
use crate::hold::{self, Slot};
use crate::view;

/// A storage's read guard, and what must outlive it. Fields drop in order: the guard first.
pub(crate) struct ReadPin {
    guard: StorageRef<'static>,
    _tensor: LastHandle,
    _slot: Slot,
}

/// A tensor that may be freed here, far from the threads that worked with it.
///
/// Memory of a GPU is freed in the order of the queue of the thread that frees it, which here is one that no other
/// work is in. So the handle goes to the device's thread, and is dropped once all that was queued is over.
struct LastHandle(
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "it keeps the tensor alive"))] Tensor,
);

#[cfg(feature = "cuda")]
impl Drop for LastHandle {
    fn drop(&mut self) {
        crate::cuda::drop_in_order(&self.0);
    }
}

impl ReadPin {
    /// Waits for the storage's read lock. Only [`hold::pin`] calls this, once per storage.
    pub(crate) fn new(tensor: &Tensor, slot: Slot) -> Self {
        let tensor = tensor.clone();
        let (guard, _) = tensor.storage_and_layout();
        // SAFETY: the guard refers to a lock inside an `Arc` that `tensor` owns and never exchanges: on the
        // heap, so moving the handle does not move it. The handle stays in this struct, is not used to
        // change anything, and drops after the guard. The extended lifetime never leaves `storage`, which
        // shortens it to a borrow of this struct.
        let guard = unsafe { std::mem::transmute::<StorageRef<'_>, StorageRef<'static>>(guard) };
        Self { guard, _tensor: LastHandle(tensor), _slot: slot }
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.guard
    }
}

/// The elements of some tensors, in row-major order, one tensor after the other.
#[derive(Default)]
pub(crate) struct TensorSource {
    pins: Vec<Arc<ReadPin>>,
    regions: Vec<Region>,
    accelerators: Accelerators,
}

impl TensorSource {
    /// Pins the tensor's storage and adds its pieces; returns how many they are.
    pub(crate) fn add(&mut self, tensor: &Tensor, info: &TensorInfo) -> Result<usize, TensorError> {
        let pin = hold::pin(tensor).map_err(|denied| denied.into_error(info))?;
        let regions = view::source_regions(pin.storage(), tensor.layout(), info)?;
        view::add_accelerator(&mut self.accelerators, pin.storage());
        let count = regions.len();
        self.pins.push(pin);
        self.regions.extend(regions);
        Ok(count)
    }

    /// The digest of a tensor whose storage was pinned by [`add`](Self::add) just now: nobody can have changed it
    /// since, nor will before the offer ends.
    pub(crate) fn digest(&self, tensor: &Tensor, info: &TensorInfo) -> Result<Digest, TensorError> {
        let pin = self.pins.last().expect("the tensor was added");
        view::digest(pin.storage(), tensor.layout(), info)
    }

    /// Cuts the pieces where the peer's end, for an operation that pairs them.
    pub(crate) fn split_to_match(&mut self, peer: &[u64], info: &TensorInfo) -> Result<(), TensorError> {
        self.regions = view::split_to_match(&self.regions, peer, info)?;
        Ok(())
    }
}

// SAFETY: each region was computed from the storage of one of the pins and lies inside its buffer. The pin's
// read lock keeps everybody from writing to the buffer or replacing it, and its tensor keeps it alive; moving
// this struct moves neither. A `Vec` of Candle's element types has no uninitialised bytes.
unsafe impl SourceMemory for TensorSource {
    fn regions(&self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        self.accelerators.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};
    use std::time::Duration;

    fn source(tensors: &[&Tensor]) -> TensorSource {
        let mut source = TensorSource::default();
        for tensor in tensors {
            source.add(tensor, &TensorInfo::new("", tensor)).unwrap();
        }
        source
    }

    #[test]
    fn a_source_holds_writers_back_and_lets_readers_through_on_any_thread() {
        let tensor = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
        let source = source(&[&tensor]);
        let writer = std::thread::spawn({
            let tensor = tensor.clone();
            move || tensor.one_set().unwrap()
        });
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(tensor.sum_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
        assert!(!writer.is_finished());
        std::thread::spawn(move || drop(source)).join().unwrap();
        writer.join().unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [1.0; 8]);
    }

    #[test]
    fn the_pieces_lie_in_the_tensors_own_storage() {
        let tensor = Tensor::arange(0f32, 12f32, &Device::Cpu).unwrap().reshape((3, 4)).unwrap();
        let base = {
            let (guard, _) = tensor.storage_and_layout();
            let Storage::Cpu(storage) = &*guard else { panic!("not on the CPU") };
            storage.as_slice::<f32>().unwrap().as_ptr() as u64
        };
        let view = tensor.narrow(1, 1, 2).unwrap();
        let addrs: Vec<_> = source(&[&view]).regions().iter().map(|r| (r.addr() - base, r.len())).collect();
        assert_eq!(addrs, [(4, 8), (20, 8), (36, 8)]);
    }

    #[test]
    fn a_released_source_leaves_the_tensor_usable_after_its_other_handles_are_gone() {
        let source = {
            let tensor = Tensor::zeros(8, DType::F32, &Device::Cpu).unwrap();
            source(&[&tensor, &tensor.narrow(0, 2, 3).unwrap()])
        };
        assert_eq!(source.regions().len(), 2);
    }
}

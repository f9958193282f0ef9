//! The memory traits for buffers of the standard library.

use std::sync::Arc;

use bytemuck::{NoUninit, Pod};

use crate::Device;

use super::{MemoryError, Region, SourceMemory, TargetMemory, beginning};

fn region_of<T>(slice: &[T]) -> Vec<Region> {
    Region::of_slice(slice).into_iter().collect()
}

/// The address comes from `as_mut_ptr`, because it is going to be written through.
fn region_of_mut<T>(slice: &mut [T]) -> Vec<Region> {
    Region::new(Device::CPU, slice.as_mut_ptr() as u64, size_of_val(slice) as u64).into_iter().collect()
}

// SAFETY: the elements live on the heap, so they stay where they are when the Vec moves; nobody else can
// reach them while the operation owns the Vec; `NoUninit` says that every byte is initialised.
unsafe impl<T: NoUninit + Send + Sync> SourceMemory for Vec<T> {
    fn regions(&self) -> Vec<Region> {
        region_of(self)
    }
}

// SAFETY: as for Vec.
unsafe impl<T: NoUninit + Send + Sync> SourceMemory for Box<[T]> {
    fn regions(&self) -> Vec<Region> {
        region_of(self)
    }
}

// SAFETY: the elements live in the Arc's allocation; `Arc::get_mut` refuses while the operation holds its
// clone, and `NoUninit` types have no interior mutability.
unsafe impl<T: NoUninit + Send + Sync> SourceMemory for Arc<[T]> {
    fn regions(&self) -> Vec<Region> {
        region_of(self)
    }
}

// SAFETY: as for `Arc<[T]>`; the Vec inside can't be reached mutably while this clone lives.
unsafe impl<T: NoUninit + Send + Sync> SourceMemory for Arc<Vec<T>> {
    fn regions(&self) -> Vec<Region> {
        region_of(self)
    }
}

// SAFETY: a static shared slice is alive and unchanged for good.
unsafe impl<T: NoUninit + Send + Sync> SourceMemory for &'static [T] {
    fn regions(&self) -> Vec<Region> {
        region_of(self)
    }
}

// SAFETY: the elements live on the heap and are owned by the operation alone; `Pod` takes any bit pattern.
unsafe impl<T: Pod + Send> TargetMemory for Vec<T> {
    fn regions(&mut self) -> Vec<Region> {
        region_of_mut(self)
    }

    fn beginning(&mut self, bytes: u64) -> Result<Region, MemoryError> {
        beginning(&region_of_mut(self), bytes)
    }
}

// SAFETY: as for Vec.
unsafe impl<T: Pod + Send> TargetMemory for Box<[T]> {
    fn regions(&mut self) -> Vec<Region> {
        region_of_mut(self)
    }

    fn beginning(&mut self, bytes: u64) -> Result<Region, MemoryError> {
        beginning(&region_of_mut(self), bytes)
    }
}

//! Memory that operations read from and write to: the ownership traits, and the descriptors made of them.
//!
//! A transfer outlives the call that started it, and may outlive the handle that waits for it. So an
//! operation never borrows memory: it owns a [`SourceMemory`] or a [`TargetMemory`], and keeps it until the
//! transport says that nothing will touch it any more.

mod buffers;
mod descriptor;
mod region;

use crate::accelerator::Accelerators;

pub use descriptor::{Descriptor, DescriptorMut};
pub(crate) use region::check_regions;
pub use region::{MAX_DESCRIPTORS, MemoryError, Region};
pub(crate) use region::{joined, push_joined};

/// Memory that a peer may read while an operation holds it.
///
/// Implemented for buffers of plain elements (`Vec<T>`, `Box<[T]>`, `Arc<[T]>`, `Arc<Vec<T>>`,
/// `&'static [T]`), for [`Slot`](crate::Slot), for [`Descriptor`] and for `Vec<Descriptor>`; the tensor adapters implement it for
/// their tensors.
///
/// # Safety
/// From the first call of [`regions`](Self::regions) until the value is dropped, every region it returned
/// must
/// * be readable memory on the device it names, for its whole length,
/// * stay at its address, even when the value itself is moved, and
/// * not be written by anybody (P1: what a reader receives is what was offered).
///
/// The regions are read by another thread or another process while the value is held elsewhere, which is
/// why the trait asks for `Send + Sync`.
pub unsafe trait SourceMemory: Send + Sync + 'static {
    /// The contiguous pieces, in the order in which their bytes make up the content.
    fn regions(&self) -> Vec<Region>;

    /// The devices whose queues the memory depends on, each once: an operation waits for them before a peer can reach
    /// it. None for system memory.
    fn accelerators(&self) -> Accelerators {
        Accelerators::new()
    }
}

/// Memory that a peer may write while an operation holds it, and that the operation gives back at its end.
///
/// Implemented for owned buffers of plain elements (`Vec<T>`, `Box<[T]>`), for [`Slot`](crate::Slot), for
/// [`DescriptorMut`] and for `Vec<DescriptorMut>`; the tensor adapters implement it for the buffers that become tensors.
///
/// # Safety
/// From the first call of [`regions`](Self::regions) until the value is dropped or used again through
/// `&mut`, every region it returned must
/// * be writable memory on the device it names, for its whole length,
/// * stay at its address, even when the value itself is moved,
/// * be accessed by nobody else, and overlap no other region, and
/// * be valid for every bit pattern that the bytes may take.
pub unsafe trait TargetMemory: Send + 'static {
    /// The contiguous pieces, in the order in which the incoming bytes fill them.
    fn regions(&mut self) -> Vec<Region>;

    /// The devices whose queues the memory depends on, each once: an operation waits for them before a peer can reach
    /// it, and again before it hands it back filled. None for system memory.
    fn accelerators(&self) -> Accelerators {
        Accelerators::new()
    }

    /// The first `bytes` bytes, for an operation that may fill less than all
    /// ([`Connector::begin_read_into`](crate::Connector::begin_read_into)). What is said of
    /// [`regions`](Self::regions) holds for it as well, and its bytes are all that will be written. Memory with a
    /// length of its own sets it to this.
    ///
    /// Unless implemented, memory takes all its bytes or none: its type may count on each having been written.
    /// Buffers of the standard library, [`DescriptorMut`] and [`Slot`](crate::Slot) take fewer.
    ///
    /// # Errors
    /// [`MemoryError::TooSmall`], [`MemoryError::AllOrNothing`], [`MemoryError::NotContiguous`] when this is not one
    /// piece, or no memory at all.
    fn beginning(&mut self, bytes: u64) -> Result<Region, MemoryError> {
        let regions = self.regions();
        let region = beginning(&regions, bytes)?;
        match regions[..] {
            [whole] if whole != region => Err(MemoryError::AllOrNothing { needed: bytes, room: whole.len() }),
            _ => Ok(region),
        }
    }
}

/// The first `bytes` bytes of memory that is one piece.
fn beginning(regions: &[Region], bytes: u64) -> Result<Region, MemoryError> {
    match regions {
        [] => Err(MemoryError::Empty),
        [region] if bytes > region.len() => Err(MemoryError::TooSmall { needed: bytes, room: region.len() }),
        [region] => region.slice(0..bytes),
        several => Err(MemoryError::NotContiguous { count: several.len() }),
    }
}

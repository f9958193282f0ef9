//! A slab's memory, [`Mapping`]: whole pages from the system, zero until written, given back when nobody needs
//! them any more.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::{Device, MemoryError, Region};

/// Private anonymous pages. Unlike memory of the allocator they take none until they are touched, and end with an
/// unmapping that nobody else's use of the heap can delay or undo.
pub(crate) struct Mapping {
    start: NonNull<c_void>,
    len: usize,
}

// SAFETY: it is an address range of the process, as good on one thread as on another. What in it may be touched by
// whom is the contract of `bytes` and `bytes_mut`.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(len: usize) -> Result<Self, MemoryError> {
        let size = NonZeroUsize::new(len).ok_or(MemoryError::Empty)?;
        let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: a new mapping, at an address of the kernel's choice, changes nothing that exists.
        let mapped = unsafe { mmap_anonymous(None, size, prot, flags) };
        let exhausted = |reason: String| MemoryError::Exhausted { bytes: len as u64, reason };
        Ok(Self { start: mapped.map_err(|error| exhausted(error.to_string()))?, len })
    }

    pub(crate) fn region(&self) -> Region {
        let region = Region::new(Device::CPU, self.start.as_ptr() as u64, self.len as u64);
        region.expect("the kernel maps neither at zero nor around the end of the address space")
    }

    /// # Safety
    /// Nobody may write to these bytes while the slice lives.
    ///
    /// # Panics
    /// The range is not within the mapping.
    pub(crate) unsafe fn bytes(&self, range: Range<usize>) -> &[u8] {
        let (start, len) = self.part(range);
        // SAFETY: the bytes are within the mapping, which lives as long as `self`, and were zeroed by the kernel; the
        // caller sees to the rest.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// # Safety
    /// Nobody may read or write these bytes by other means while the slice lives.
    ///
    /// # Panics
    /// The range is not within the mapping.
    #[expect(clippy::mut_from_ref, reason = "who may have which bytes is what the callers keep track of")]
    pub(crate) unsafe fn bytes_mut(&self, range: Range<usize>) -> &mut [u8] {
        let (start, len) = self.part(range);
        // SAFETY: as for `bytes`.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    fn part(&self, range: Range<usize>) -> (*mut u8, usize) {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} is not within {}", self.len);
        let start = self.start.as_ptr().cast::<u8>();
        // `wrapping` needs no promise, and does not wrap: the range is within the mapping.
        (start.wrapping_add(range.start), range.end - range.start)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping's, and no slice of it is left: they borrow it. That no transfer is at it
        // is what the driver's share of it is kept for.
        let unmapped = unsafe { munmap(self.start, self.len) };
        debug_assert!(unmapped.is_ok(), "a mapping that was made can be unmapped: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_aligned_and_their_own() {
        let mapping = Mapping::new(10_000).unwrap();
        assert_eq!((mapping.region().addr() % 4096, mapping.region().len()), (0, 10_000));
        // SAFETY: nothing else is at them.
        unsafe { mapping.bytes_mut(4000..5000) }.fill(7);
        // SAFETY: the slice above is gone.
        let bytes = unsafe { mapping.bytes(0..10_000) };
        assert!(
            bytes
                .iter()
                .enumerate()
                .all(|(at, byte)| *byte == if (4000..5000).contains(&at) { 7 } else { 0 })
        );
    }

    #[test]
    fn what_the_system_can_t_give_is_an_error() {
        assert_eq!(Mapping::new(0).err(), Some(MemoryError::Empty));
        assert!(matches!(Mapping::new(usize::MAX / 2), Err(MemoryError::Exhausted { .. })));
    }

    #[test]
    #[should_panic(expected = "is not within")]
    fn a_range_outside_is_never_made() {
        let mapping = Mapping::new(4096).unwrap();
        // SAFETY: it panics before there is a slice.
        let _ = unsafe { mapping.bytes(4000..5000) };
    }
}

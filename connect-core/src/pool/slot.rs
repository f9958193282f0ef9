//! [`Slot`]: one piece of a slab, for as long as somebody needs it.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use super::shared::Shared;
use crate::{MemoryError, Region, SourceMemory, TargetMemory};

/// One piece of a [`Slab`](super::Slab), which goes back when this is dropped.
///
/// It is a buffer of fixed capacity, and source and target memory of every operation. What an operation reads or
/// writes is its length, which begins at zero: a slot just taken holds nothing, and the bytes of its last user
/// become visible only to who asks for them by [`set_len`](Self::set_len).
///
/// ```
/// use std::io::Write;
/// use connect_core::Connector;
///
/// let slab = Connector::local()?.slab(4, 1 << 20).wait()?;
/// let mut slot = slab.try_take().expect("four are free");
/// slot.write_all(b"an embedding")?;
/// assert_eq!(&slot[..], b"an embedding");
/// assert!(slot.resize(2 << 20).is_err(), "a slot does not grow beyond its capacity");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The first byte lies on a multiple of 64, so any element type can be put over it with `bytemuck::cast_slice_mut`.
pub struct Slot {
    shared: Arc<Shared>,
    index: usize,
    len: usize,
}

impl Slot {
    /// The slot of this number, which nobody else has.
    pub(super) fn new(shared: Arc<Shared>, index: usize) -> Self {
        Self { shared, index, len: 0 }
    }

    /// How many bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.shared.slot_bytes()
    }

    /// Which slot of its slab this is, counted from zero.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Changes the length. Bytes that are added are zero.
    ///
    /// # Errors
    /// [`MemoryError::TooSmall`]: it is more than the capacity.
    pub fn resize(&mut self, len: usize) -> Result<(), MemoryError> {
        let old = self.len;
        self.set_len(len)?;
        if len > old {
            self[old..].fill(0);
        }
        Ok(())
    }

    /// Shortens it, if it is longer than that.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Changes the length and touches no byte. Bytes that are added are what the slot's last users left there: write
    /// them before you offer them to anybody.
    ///
    /// # Errors
    /// As [`resize`](Self::resize).
    pub fn set_len(&mut self, len: usize) -> Result<(), MemoryError> {
        if len > self.capacity() {
            return Err(MemoryError::TooSmall { needed: len as u64, room: self.capacity() as u64 });
        }
        self.len = len;
        Ok(())
    }

    /// Where its bytes are in the mapping.
    fn range(&self) -> Range<usize> {
        let start = self.shared.start_of(self.index);
        start..start + self.len
    }

    /// As a region; `None` while it is empty.
    fn region(&self) -> Option<Region> {
        let Range { start, end } = self.range();
        self.shared.mapping().region().slice(start as u64..end as u64).ok()
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: slots do not overlap, this is the only one of its index, and `&self` keeps `deref_mut` out. An
        // operation that may write to the bytes owns the slot, so nobody can call this then.
        unsafe { self.shared.mapping().bytes(self.range()) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `&mut self` is the only way in.
        unsafe { self.shared.mapping().bytes_mut(self.range()) }
    }
}

/// Appends, until the slot is full.
impl io::Write for Slot {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let old = self.len;
        let fits = bytes.len().min(self.capacity() - old);
        self.len = old + fits;
        self[old..].copy_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// SAFETY: the bytes are in the slab's mapping, which the slot keeps; they do not move with the slot. It is the only
// slot of its index until it is dropped, and changes them through `&mut self` only.
unsafe impl SourceMemory for Slot {
    fn regions(&self) -> Vec<Region> {
        self.region().into_iter().collect()
    }
}

// SAFETY: as for SourceMemory; plain bytes take any pattern, and slots do not overlap.
unsafe impl TargetMemory for Slot {
    fn regions(&mut self) -> Vec<Region> {
        self.region().into_iter().collect()
    }

    /// Takes up to the capacity, and sets the length to what is taken.
    fn beginning(&mut self, bytes: u64) -> Result<Region, MemoryError> {
        self.set_len(usize::try_from(bytes).unwrap_or(usize::MAX))?;
        self.region().ok_or(MemoryError::Empty)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        Shared::give_back(&self.shared, self.index);
    }
}

/// Shows no content.
impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("index", &self.index)
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}

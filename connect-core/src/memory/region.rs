//! One contiguous piece of memory as plain numbers, and what can be wrong with it.

use std::fmt;
use std::ops::Range;

use crate::Device;

/// A contiguous piece of memory: where it lives, its first byte's address, its length in bytes.
///
/// A region is a description, not a permission: holding one keeps nothing alive. Whoever makes use of the
/// address relies on the [`SourceMemory`](crate::SourceMemory) or [`TargetMemory`](crate::TargetMemory)
/// that the region came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Region {
    device: Device,
    addr: u64,
    len: u64,
}

impl Region {
    /// Describes `len` bytes at `addr`.
    ///
    /// # Errors
    /// A null address, a length of zero, or a range that wraps around the address space.
    pub fn new(device: Device, addr: u64, len: u64) -> Result<Self, MemoryError> {
        if len == 0 {
            return Err(MemoryError::Empty);
        }
        if addr == 0 {
            return Err(MemoryError::Null);
        }
        if addr.checked_add(len).is_none() {
            return Err(MemoryError::Overflow { addr, len });
        }
        Ok(Self { device, addr, len })
    }

    /// The bytes of a slice in system memory; `None` when it is empty.
    pub fn of_slice<T>(slice: &[T]) -> Option<Self> {
        Self::new(Device::CPU, slice.as_ptr() as u64, size_of_val(slice) as u64).ok()
    }

    /// Where the memory lives.
    pub const fn device(&self) -> Device {
        self.device
    }

    /// The address of the first byte. On an accelerator this is a device address.
    pub const fn addr(&self) -> u64 {
        self.addr
    }

    /// The length in bytes, never zero.
    #[expect(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// One past the last byte.
    pub const fn end(&self) -> u64 {
        self.addr + self.len
    }

    /// The part of this region at `range`, in bytes from its start.
    ///
    /// # Errors
    /// An empty range, or one that reaches past the end.
    pub fn slice(&self, range: Range<u64>) -> Result<Self, MemoryError> {
        if range.start > range.end || range.end > self.len {
            return Err(MemoryError::OutOfBounds { start: range.start, end: range.end, len: self.len });
        }
        Self::new(self.device, self.addr + range.start, range.end - range.start)
    }

    /// Whether `other` lies wholly inside this region.
    pub fn contains(&self, other: &Self) -> bool {
        self.device == other.device && self.addr <= other.addr && other.end() <= self.end()
    }

    /// Whether the two share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.device == other.device && self.addr < other.end() && other.addr < self.end()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} {:#x}+{})", self.device, self.addr, self.len)
    }
}

/// What can become one with the next of its kind.
pub(crate) trait Join: Sized {
    /// Both as one, if `next` begins where this ends.
    fn joined(&self, next: &Self) -> Option<Self>;
}

impl Join for Region {
    fn joined(&self, next: &Self) -> Option<Self> {
        let is_next = self.device == next.device && self.end() == next.addr;
        is_next.then(|| Self { len: self.len + next.len, ..*self })
    }
}

/// What a transfer moves from one side to the other: joined where both are.
impl Join for (Region, Region) {
    fn joined(&self, next: &Self) -> Option<Self> {
        Some((self.0.joined(&next.0)?, self.1.joined(&next.1)?))
    }
}

/// Adds `next`, to the last one if it follows that directly and `is_one` says so of both together.
pub(crate) fn push_joined<T: Join>(all: &mut Vec<T>, next: T, is_one: impl FnOnce(&T) -> bool) {
    let both = all.last().and_then(|last| last.joined(&next)).filter(is_one);
    match (all.last_mut(), both) {
        (Some(last), Some(both)) => *last = both,
        _ => all.push(next),
    }
}

/// What makes memory unusable for an operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// There is nothing to move. Leave tensors without elements out of the operation; their shape says all.
    #[error("the memory is empty: an operation moves at least one byte")]
    Empty,
    /// A null pointer.
    #[error("the address is null")]
    Null,
    /// Address plus length does not fit into the address space.
    #[error("{len} bytes at {addr:#x} reach past the end of the address space")]
    Overflow {
        /// Address of the first byte.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A sub-range that its descriptor does not hold.
    #[error("range {start}..{end} is outside a descriptor of {len} bytes")]
    OutOfBounds {
        /// First byte asked for.
        start: u64,
        /// One past the last byte asked for.
        end: u64,
        /// Bytes there are.
        len: u64,
    },
    /// One contiguous piece of memory is needed, and this is not one.
    #[error(
        "the memory has {count} separate pieces where one is needed; describe them one by one (`Descriptor::list`)"
    )]
    NotContiguous {
        /// How many pieces there are.
        count: usize,
    },
    /// What is to be put into a piece of memory is larger than it.
    #[error("{needed} bytes do not fit into {room}; use larger memory")]
    TooSmall {
        /// Bytes there are to be put into it.
        needed: u64,
        /// Bytes it has.
        room: u64,
    },
    /// Memory that is filled whole or not at all was to be filled in part.
    #[error("this memory takes {room} bytes or none, and there are {needed}; use a plain buffer or a slot")]
    AllOrNothing {
        /// Bytes there are to be put into it.
        needed: u64,
        /// Bytes it has.
        room: u64,
    },
    /// The system gave no memory.
    #[error("no memory of {bytes} bytes: {reason}")]
    Exhausted {
        /// Bytes that were asked for.
        bytes: u64,
        /// What the system said.
        reason: String,
    },
    /// Two targets of one operation share bytes.
    #[error("targets {first} and {second} of one operation overlap")]
    Overlap {
        /// Index of the earlier target.
        first: usize,
        /// Index of the later target.
        second: usize,
    },
    /// More pieces than one operation takes.
    #[error(
        "{count} pieces are more than one operation takes ({max}); make the memory contiguous or split the operation"
    )]
    TooManyPieces {
        /// How many pieces there are.
        count: usize,
        /// How many one operation takes.
        max: usize,
    },
    /// The device that the memory is on failed at work that had to be over first: what was queued for the memory, or
    /// what makes received bytes visible. Usually something queued earlier failed, and the device's context with it;
    /// the reason is its driver's.
    #[error("{device} failed, and its memory can't be used: {reason}")]
    Accelerator {
        /// Which device.
        device: Device,
        /// What its driver said.
        reason: String,
    },
}

/// Most pieces of memory in one operation, and most descriptors in one document.
///
/// A hand-off of 1,024 KV blocks over 64 layers, a descriptor for each, has this many; so does a prompt of
/// 16,384 tokens in blocks of 16 over 64 layers. Longer ones are handed off in several operations.
pub const MAX_DESCRIPTORS: usize = 65_536;

/// The same memory in as few regions as its order allows: those that follow each other directly are joined, where
/// `is_one` says so of both together.
pub(crate) fn joined(regions: &[Region], is_one: impl Fn(&Region) -> bool) -> Vec<Region> {
    let mut all = Vec::new();
    regions.iter().for_each(|region| push_joined(&mut all, *region, &is_one));
    all
}

/// What one operation asks of its memory beyond each region being valid: there is some, not in too many
/// pieces, and targets do not overlap.
pub(crate) fn check_regions(regions: &[Region], is_target: bool) -> Result<(), MemoryError> {
    if regions.is_empty() {
        return Err(MemoryError::Empty);
    }
    if regions.len() > MAX_DESCRIPTORS {
        return Err(MemoryError::TooManyPieces { count: regions.len(), max: MAX_DESCRIPTORS });
    }
    if is_target && regions.len() > 1 {
        let mut order: Vec<usize> = (0..regions.len()).collect();
        order.sort_unstable_by_key(|&i| (regions[i].device, regions[i].addr));
        if let Some(pair) = order.windows(2).find(|pair| regions[pair[0]].overlaps(&regions[pair[1]])) {
            let (first, second) = (pair[0].min(pair[1]), pair[0].max(pair[1]));
            return Err(MemoryError::Overlap { first, second });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_never_null_empty_or_wrapping() {
        let new = |addr, len| Region::new(Device::CPU, addr, len);
        assert_eq!(new(8, 0), Err(MemoryError::Empty));
        assert_eq!(new(0, 8), Err(MemoryError::Null));
        assert_eq!(new(u64::MAX, 2), Err(MemoryError::Overflow { addr: u64::MAX, len: 2 }));
        assert_eq!(new(8, 8).unwrap().end(), 16);
    }

    #[test]
    fn a_slice_stays_inside() {
        let region = Region::new(Device::CPU, 100, 10).unwrap();
        assert_eq!(region.slice(2..10).unwrap(), Region::new(Device::CPU, 102, 8).unwrap());
        assert_eq!(region.slice(10..10), Err(MemoryError::Empty));
        assert!(matches!(region.slice(5..11), Err(MemoryError::OutOfBounds { .. })));
        #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
        let reversed = region.slice(5..4);
        assert!(matches!(reversed, Err(MemoryError::OutOfBounds { .. })));
    }

    #[test]
    fn an_operation_takes_some_memory_of_any_kinds_and_no_overlapping_targets() {
        let region = |addr, len| Region::new(Device::CPU, addr, len).unwrap();
        assert_eq!(check_regions(&[], false), Err(MemoryError::Empty));
        let overlapping = [region(200, 8), region(100, 10), region(109, 4)];
        assert_eq!(check_regions(&overlapping, false), Ok(()));
        assert_eq!(check_regions(&overlapping, true), Err(MemoryError::Overlap { first: 1, second: 2 }));
        let mixed = [region(100, 10), Region::new(Device::cuda(0), 100, 10).unwrap()];
        assert_eq!(check_regions(&mixed, true), Ok(()), "the same numbers on two devices are two places");
        let many = vec![region(100, 1); MAX_DESCRIPTORS + 1];
        assert!(matches!(check_regions(&many, false), Err(MemoryError::TooManyPieces { .. })));
    }

    #[test]
    fn regions_that_follow_each_other_are_joined_and_no_others() {
        let region = |addr, len| Region::new(Device::CPU, addr, len).unwrap();
        let gpu = Region::new(Device::cuda(0), 130, 5).unwrap();
        let apart = [region(100, 10), region(110, 20), gpu, region(130, 5), region(130, 5), region(90, 10)];
        let expected = [region(100, 30), gpu, region(130, 5), region(130, 5), region(90, 10)];
        assert_eq!(joined(&apart, |_| true), expected);
        assert_eq!(joined(&apart, |both| both.len() != 30), apart);
        let last = region(u64::MAX - 4, 4);
        assert_eq!(joined(&[region(u64::MAX - 8, 4), last], |_| true), [region(u64::MAX - 8, 8)]);
    }

    #[test]
    fn overlap_and_containment_know_their_device() {
        let a = Region::new(Device::CPU, 100, 10).unwrap();
        let b = Region::new(Device::CPU, 109, 1).unwrap();
        let c = Region::new(Device::cuda(0), 109, 1).unwrap();
        assert!(a.overlaps(&b) && a.contains(&b));
        assert!(!a.overlaps(&c) && !a.contains(&c));
    }
}

//! [`Descriptor`] and [`DescriptorMut`]: a region together with what keeps it valid.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::accelerator::Accelerators;

use super::{MemoryError, Region, SourceMemory, TargetMemory, beginning};
use crate::Device;

/// A contiguous piece of memory to read from: device, address, length, and a shared owner that keeps it
/// alive and unchanged.
///
/// Clones and slices share the owner, so one buffer can stand in many operations at once.
///
/// ```
/// use connect_core::Descriptor;
///
/// let whole = Descriptor::new(vec![0f32; 1024])?;
/// let row = whole.slice(256..512)?;
/// assert_eq!(row.len(), 256);
/// assert_eq!(row.addr(), whole.addr() + 256);
/// # Ok::<(), connect_core::MemoryError>(())
/// ```
#[derive(Clone)]
pub struct Descriptor {
    region: Region,
    accelerators: Accelerators,
    owner: Arc<dyn Any + Send + Sync>,
}

impl Descriptor {
    /// Takes over memory that is one contiguous piece.
    ///
    /// # Errors
    /// The memory is empty, or made of several pieces ([`Descriptor::list`] takes those).
    pub fn new<M: SourceMemory>(memory: M) -> Result<Self, MemoryError> {
        let mut list = Self::list(memory)?;
        match (list.pop(), list.len()) {
            (Some(descriptor), 0) => Ok(descriptor),
            (_, others) => Err(MemoryError::NotContiguous { count: others + 1 }),
        }
    }

    /// Takes over memory of any number of pieces, one descriptor for each.
    ///
    /// # Errors
    /// The memory is empty.
    pub fn list<M: SourceMemory>(memory: M) -> Result<Vec<Self>, MemoryError> {
        let regions = memory.regions();
        if regions.is_empty() {
            return Err(MemoryError::Empty);
        }
        let accelerators = memory.accelerators();
        let owner: Arc<dyn Any + Send + Sync> = Arc::new(memory);
        let one = |region| Self { region, accelerators: accelerators.clone(), owner: Arc::clone(&owner) };
        Ok(regions.into_iter().map(one).collect())
    }

    /// Describes memory that `owner` keeps valid, for owners this crate does not know.
    ///
    /// # Errors
    /// A null address, a length of zero, or a range that wraps around.
    ///
    /// # Safety
    /// Until the last clone of `owner` is dropped, the `len` bytes at `addr` on `device` must be readable,
    /// stay where they are, and be written by nobody: the contract of [`SourceMemory`].
    pub unsafe fn from_raw_parts(
        device: Device,
        addr: u64,
        len: u64,
        owner: impl Any + Send + Sync,
    ) -> Result<Self, MemoryError> {
        let accelerators = Accelerators::new();
        Ok(Self { region: Region::new(device, addr, len)?, accelerators, owner: Arc::new(owner) })
    }

    /// Where the memory lives.
    pub fn device(&self) -> Device {
        self.region.device()
    }

    /// The address of the first byte.
    pub fn addr(&self) -> u64 {
        self.region.addr()
    }

    /// The length in bytes, never zero.
    #[expect(clippy::len_without_is_empty, reason = "a descriptor is never empty")]
    pub fn len(&self) -> u64 {
        self.region.len()
    }

    /// The same as plain numbers.
    pub fn region(&self) -> Region {
        self.region
    }

    /// The part at `range`, in bytes from the start; it shares the owner.
    ///
    /// # Errors
    /// An empty range, or one that reaches past the end.
    pub fn slice(&self, range: Range<u64>) -> Result<Self, MemoryError> {
        let (accelerators, owner) = (self.accelerators.clone(), Arc::clone(&self.owner));
        Ok(Self { region: self.region.slice(range)?, accelerators, owner })
    }
}

/// The devices of several pieces of memory, each once.
fn each_once<'a>(of: impl Iterator<Item = &'a Accelerators>) -> Accelerators {
    let mut all = Accelerators::new();
    for one in of.flatten() {
        if !all.iter().any(|other| other.device() == one.device()) {
            all.push(Arc::clone(one));
        }
    }
    all
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Descriptor").field(&self.region).finish()
    }
}

// SAFETY: the owner's own contract covers its regions, and this region is one of them or a part of one;
// the Arc keeps the owner where it is.
unsafe impl SourceMemory for Descriptor {
    fn regions(&self) -> Vec<Region> {
        vec![self.region]
    }

    fn accelerators(&self) -> Accelerators {
        self.accelerators.clone()
    }
}

// SAFETY: as for Descriptor, each element for itself.
unsafe impl SourceMemory for Vec<Descriptor> {
    fn regions(&self) -> Vec<Region> {
        self.iter().map(|descriptor| descriptor.region).collect()
    }

    fn accelerators(&self) -> Accelerators {
        each_once(self.iter().map(|descriptor| &descriptor.accelerators))
    }
}

/// A contiguous piece of memory to write to: device, address, length, and its owner, which nobody else can
/// reach.
///
/// It can't be cloned; [`split_at`](Self::split_at) cuts it into parts that do not overlap. When all parts
/// but one are gone, [`into_memory`](Self::into_memory) gives the owner back.
///
/// ```
/// use connect_core::DescriptorMut;
///
/// let whole = DescriptorMut::new(vec![0u8; 10])?;
/// let (left, right) = whole.split_at(4)?;
/// assert_eq!((left.len(), right.len()), (4, 6));
/// drop(left);
/// let buffer: Vec<u8> = right.into_memory().expect("the last part");
/// assert_eq!(buffer.len(), 10);
/// # Ok::<(), connect_core::MemoryError>(())
/// ```
pub struct DescriptorMut {
    region: Region,
    accelerators: Accelerators,
    owner: Arc<Exclusive>,
}

/// The owner of a target. Nothing but `into_memory` looks inside, and only when it holds the last part.
struct Exclusive(Box<dyn Any + Send>);

// SAFETY: a shared reference to `Exclusive` gives access to nothing; the value inside is only moved out of
// the last Arc, by value.
unsafe impl Sync for Exclusive {}

impl DescriptorMut {
    /// Takes over memory that is one contiguous piece.
    ///
    /// # Errors
    /// The memory is empty, or made of several pieces ([`DescriptorMut::list`] takes those).
    pub fn new<M: TargetMemory>(memory: M) -> Result<Self, MemoryError> {
        let mut list = Self::list(memory)?;
        match (list.pop(), list.len()) {
            (Some(descriptor), 0) => Ok(descriptor),
            (_, others) => Err(MemoryError::NotContiguous { count: others + 1 }),
        }
    }

    /// Takes over memory of any number of pieces, one descriptor for each.
    ///
    /// # Errors
    /// The memory is empty.
    pub fn list<M: TargetMemory>(memory: M) -> Result<Vec<Self>, MemoryError> {
        // In its final place first: a boxed value does not move any more.
        let mut memory = Box::new(memory);
        let regions = memory.regions();
        if regions.is_empty() {
            return Err(MemoryError::Empty);
        }
        let accelerators = memory.accelerators();
        let owner = Arc::new(Exclusive(memory));
        let one = |region| Self { region, accelerators: accelerators.clone(), owner: Arc::clone(&owner) };
        Ok(regions.into_iter().map(one).collect())
    }

    /// Describes memory that `owner` keeps valid, for owners this crate does not know.
    ///
    /// # Errors
    /// A null address, a length of zero, or a range that wraps around.
    ///
    /// # Safety
    /// Until `owner` is dropped or taken back, the `len` bytes at `addr` on `device` must be writable, stay
    /// where they are, be accessed by nobody else, and be valid for every bit pattern: the contract of
    /// [`TargetMemory`].
    pub unsafe fn from_raw_parts(
        device: Device,
        addr: u64,
        len: u64,
        owner: impl Any + Send,
    ) -> Result<Self, MemoryError> {
        let accelerators = Accelerators::new();
        let owner = Arc::new(Exclusive(Box::new(owner)));
        Ok(Self { region: Region::new(device, addr, len)?, accelerators, owner })
    }

    /// Where the memory lives.
    pub fn device(&self) -> Device {
        self.region.device()
    }

    /// The address of the first byte.
    pub fn addr(&self) -> u64 {
        self.region.addr()
    }

    /// The length in bytes, never zero.
    #[expect(clippy::len_without_is_empty, reason = "a descriptor is never empty")]
    pub fn len(&self) -> u64 {
        self.region.len()
    }

    /// The same as plain numbers.
    pub fn region(&self) -> Region {
        self.region
    }

    /// Narrows the descriptor to `range`, in bytes from its start. The rest of the owner stays untouched.
    ///
    /// # Errors
    /// An empty range, or one that reaches past the end.
    pub fn slice(self, range: Range<u64>) -> Result<Self, MemoryError> {
        Ok(Self { region: self.region.slice(range)?, ..self })
    }

    /// Cuts the descriptor into `0..mid` and `mid..len`.
    ///
    /// # Errors
    /// One of the parts would be empty.
    pub fn split_at(self, mid: u64) -> Result<(Self, Self), MemoryError> {
        let left = self.region.slice(0..mid)?;
        let right = self.region.slice(mid..self.region.len())?;
        let (accelerators, owner) = (self.accelerators.clone(), Arc::clone(&self.owner));
        Ok((Self { region: left, accelerators, owner }, Self { region: right, ..self }))
    }

    /// Gives the owner back, if this is its last descriptor and `M` is its type; else the descriptor.
    pub fn into_memory<M: 'static>(self) -> Result<M, Self> {
        if !self.owner.0.is::<M>() {
            return Err(self);
        }
        let Self { region, accelerators, owner } = self;
        match Arc::try_unwrap(owner) {
            Ok(Exclusive(memory)) => match memory.downcast::<M>() {
                Ok(memory) => Ok(*memory),
                Err(memory) => Err(Self { region, accelerators, owner: Arc::new(Exclusive(memory)) }),
            },
            Err(owner) => Err(Self { region, accelerators, owner }),
        }
    }
}

impl fmt::Debug for DescriptorMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DescriptorMut").field(&self.region).finish()
    }
}

// SAFETY: the owner's contract covers its regions; the parts cut from them never overlap, and none of them
// can be cloned.
unsafe impl TargetMemory for DescriptorMut {
    fn regions(&mut self) -> Vec<Region> {
        vec![self.region]
    }

    fn accelerators(&self) -> Accelerators {
        self.accelerators.clone()
    }

    /// Parts cut off it are not written either, so whoever has the owner back knows nothing of its bytes.
    fn beginning(&mut self, bytes: u64) -> Result<Region, MemoryError> {
        beginning(&[self.region], bytes)
    }
}

// SAFETY: as for DescriptorMut, each element for itself.
unsafe impl TargetMemory for Vec<DescriptorMut> {
    fn regions(&mut self) -> Vec<Region> {
        self.iter().map(|descriptor| descriptor.region).collect()
    }

    fn accelerators(&self) -> Accelerators {
        each_once(self.iter().map(|descriptor| &descriptor.accelerators))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_returns_only_with_its_last_part_and_its_own_type() {
        let (left, right) = DescriptorMut::new(vec![7u8; 8]).unwrap().split_at(3).unwrap();
        let left = left.into_memory::<Vec<u8>>().expect_err("the other part still lives");
        drop(right);
        let left = left.into_memory::<Vec<u16>>().expect_err("another type");
        assert_eq!(left.into_memory::<Vec<u8>>().unwrap(), vec![7u8; 8]);
    }

    #[test]
    fn parts_of_a_target_never_overlap() {
        let (left, right) = DescriptorMut::new(vec![0u8; 8]).unwrap().split_at(3).unwrap();
        assert!(!left.region().overlaps(&right.region()));
        assert!(left.split_at(3).is_err());
    }

    #[test]
    fn a_list_of_descriptors_is_source_memory_in_order() {
        let a = Descriptor::new(vec![1u8; 4]).unwrap();
        let b = a.slice(1..3).unwrap();
        assert_eq!(vec![a.clone(), b.clone()].regions(), [a.region(), b.region()]);
        assert!(matches!(Descriptor::new(vec![a, b]), Err(MemoryError::NotContiguous { count: 2 })));
    }

    #[test]
    fn empty_memory_is_refused() {
        assert!(matches!(Descriptor::new(Vec::<u8>::new()), Err(MemoryError::Empty)));
        assert!(matches!(DescriptorMut::new(Vec::<u8>::new()), Err(MemoryError::Empty)));
    }
}

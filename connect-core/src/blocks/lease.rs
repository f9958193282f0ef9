//! Blocks in use: [`BlockLease`] and [`SharedBlocks`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::counts::{Use, User};
use super::layout::Placed;
use super::pool::Shared;
use crate::accelerator::Accelerators;
use crate::{Region, SourceMemory, TargetMemory};

/// Blocks of a pool that nobody else has, or some parts of them. They go back when this is dropped.
///
/// It is source and target memory of every operation. Blocks and parts can be [split](Self::split_parts) off to be moved
/// one after another; each block is back when all its pieces are.
pub struct BlockLease {
    /// Dropped first: what an operation has is never free.
    used: Option<Arc<Use>>,
    held: Held,
    /// What the next operation moves, if that is cut differently than [`Placed::pieces`] would.
    pub(super) laid: Option<Vec<Region>>,
    /// Dropped with it, wherever that is.
    #[expect(dead_code, reason = "what it is good for is being dropped")]
    guard: Option<Guard>,
}

/// Tells whoever has a weak one whether the memory it came with is still somewhere.
pub(crate) type Guard = Arc<()>;

/// Blocks of a pool that somebody may read and nobody writes. Clones share them; they go back with the last.
#[derive(Clone)]
pub struct SharedBlocks(Held);

/// Some blocks of a taken set, and some parts of each.
#[derive(Clone)]
pub(super) struct Held {
    taken: Arc<Taken>,
    /// Which of the taken blocks.
    at: Range<usize>,
    parts: Range<u32>,
}

/// Blocks that were taken together, and go back together.
struct Taken {
    shared: Arc<Shared>,
    blocks: Vec<u32>,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shared.give_back(&self.blocks);
    }
}

impl Held {
    pub(super) fn blocks(&self) -> &[u32] {
        &self.taken.blocks[self.at.clone()]
    }

    pub(super) fn parts(&self) -> Range<u32> {
        self.parts.clone()
    }

    pub(super) fn placed(&self) -> &Placed {
        &self.taken.shared.placed
    }

    pub(super) fn is_of(&self, pool: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.taken.shared, pool)
    }

    fn accelerators(&self) -> Accelerators {
        self.taken.shared.accelerators.clone()
    }

    /// An operation is about to have them.
    fn begin_use(&self) -> Arc<Use> {
        self.taken.shared.uses.begin(self.blocks())
    }

    fn pieces(&self) -> Vec<Region> {
        self.placed().pieces(self.blocks(), self.parts())
    }

    /// One part of the block at this place; `None` if it is not part of this, or not in system memory.
    fn part(&self, at: usize, part: u32) -> Option<Region> {
        let block = *self.blocks().get(at)?;
        let region = self.parts.contains(&part).then(|| self.placed().region(block, part))?;
        region.device().is_cpu().then_some(region)
    }
}

impl BlockLease {
    /// Of blocks that were just taken.
    pub(super) fn new(shared: Arc<Shared>, blocks: Vec<u32>) -> Self {
        let (at, parts) = (0..blocks.len(), 0..shared.placed.layout.parts().len() as u32);
        Held { taken: Arc::new(Taken { shared, blocks }), at, parts }.into()
    }

    pub(super) fn held(&self) -> &Held {
        &self.held
    }

    /// An operation is about to have it: which one, is to be said.
    pub(super) fn user(&mut self) -> User {
        self.used.insert(self.held.begin_use()).operation()
    }

    /// The blocks' numbers in their pool.
    pub fn blocks(&self) -> &[u32] {
        self.held.blocks()
    }

    /// Which of each block's parts.
    pub fn parts(&self) -> Range<u32> {
        self.held.parts()
    }

    /// One part of the block at place `at`. `None` if there is no such block or part in this lease, or its memory is not
    /// the system's.
    pub fn part(&self, at: usize, part: u32) -> Option<&[u8]> {
        let region = self.held.part(at, part)?;
        // SAFETY: the pool's contract says that this is initialised memory of its owner, which the lease keeps through
        // its pool, and that nobody but the lease's holder touches a block that is out. Leases of the same block have
        // different parts, and `&self` keeps `part_mut` out.
        Some(unsafe { std::slice::from_raw_parts(region.addr() as *const u8, region.len() as usize) })
    }

    /// The same, to be written.
    pub fn part_mut(&mut self, at: usize, part: u32) -> Option<&mut [u8]> {
        let region = self.held.part(at, part)?;
        // SAFETY: as for `part`, and `&mut self` is the only way in.
        Some(unsafe { std::slice::from_raw_parts_mut(region.addr() as *mut u8, region.len() as usize) })
    }

    /// Where one part of the block at place `at` is, on whatever device. `None` if there is none in this lease.
    pub fn region(&self, at: usize, part: u32) -> Option<Region> {
        let block = *self.blocks().get(at)?;
        self.parts().contains(&part).then(|| self.held.placed().region(block, part))
    }

    /// Splits off the blocks from place `at` on.
    ///
    /// # Panics
    /// There are fewer blocks.
    pub fn split_blocks(self, at: usize) -> (Self, Self) {
        let Held { taken, at: all, parts } = self.held;
        assert!(at <= all.len(), "{at} is past the {} blocks of this lease", all.len());
        let middle = all.start + at;
        let held = |at| Held { taken: Arc::clone(&taken), at, parts: parts.clone() };
        (held(all.start..middle).into(), held(middle..all.end).into())
    }

    /// Splits off the parts from number `part` on, of all blocks: to move some layers now and the rest later.
    ///
    /// # Panics
    /// `part` is not among the parts of this lease, nor their end.
    pub fn split_parts(self, part: u32) -> (Self, Self) {
        let Held { taken, at, parts: Range { start, end } } = self.held;
        assert!((start..=end).contains(&part), "{part} is not among the parts {start}..{end} of this lease");
        let held = |parts| Held { taken: Arc::clone(&taken), at: at.clone(), parts };
        (held(start..part).into(), held(part..end).into())
    }

    /// Some blocks and some parts of it, to be moved apart from the rest. The caller sees to it that no two of one lease
    /// share any, and that the whole is not used meanwhile; see [`Whole`].
    fn window(held: &Held, places: Range<usize>, parts: Range<u32>, guard: &Guard) -> Option<Self> {
        let held = SharedBlocks(held.clone()).select_blocks(places)?.select_parts(parts)?.0;
        Some(Self { guard: Some(Arc::clone(guard)), ..held.into() })
    }

    /// The same blocks for any number of readers, and no writer any more.
    pub fn into_shared(self) -> SharedBlocks {
        SharedBlocks(self.held)
    }
}

/// A lease that is filled piece by piece, in any order.
pub(crate) struct Whole {
    held: Held,
    /// What was handed out: no two overlap.
    windows: Vec<(Range<usize>, Range<u32>)>,
    guard: Guard,
}

impl Whole {
    pub(crate) fn new(lease: BlockLease) -> Self {
        Self { held: lease.held, windows: Vec::new(), guard: Guard::default() }
    }

    /// Alive while a window is somewhere.
    pub(crate) fn guard(&self) -> std::sync::Weak<()> {
        Arc::downgrade(&self.guard)
    }

    /// Hands a piece out; `None` when it is not all there, or some of it was handed out before.
    pub(crate) fn window(&mut self, places: Range<usize>, parts: Range<u32>) -> Option<BlockLease> {
        let overlaps = |window: &(Range<usize>, Range<u32>)| {
            let (blocks, others) = window;
            places.start < blocks.end
                && blocks.start < places.end
                && parts.start < others.end
                && others.start < parts.end
        };
        if self.windows.iter().any(overlaps) {
            return None;
        }
        let window = BlockLease::window(&self.held, places.clone(), parts.clone(), &self.guard)?;
        self.windows.push((places, parts));
        Some(window)
    }

    /// Whether all of it was handed out.
    pub(crate) fn is_covered(&self) -> bool {
        let area = |(blocks, parts): &(Range<usize>, Range<u32>)| blocks.len() as u64 * parts.len() as u64;
        let all = self.held.blocks().len() as u64 * self.held.parts().len() as u64;
        self.windows.iter().map(area).sum::<u64>() == all
    }

    /// The lease, once all windows are back; `None` while a transfer has one.
    pub(crate) fn into_lease(self) -> Option<BlockLease> {
        let Self { held, guard, .. } = self;
        (Arc::strong_count(&guard) == 1).then(|| held.into())
    }
}

impl From<Held> for BlockLease {
    fn from(held: Held) -> Self {
        Self { used: None, held, laid: None, guard: None }
    }
}

impl SharedBlocks {
    pub(super) fn held(&self) -> &Held {
        &self.0
    }

    /// The blocks' numbers in their pool.
    pub fn blocks(&self) -> &[u32] {
        self.0.blocks()
    }

    /// Which of each block's parts.
    pub fn parts(&self) -> Range<u32> {
        self.0.parts()
    }

    /// One part of the block at place `at`. `None` if there is no such block or part here, or its memory is not the
    /// system's.
    pub fn part(&self, at: usize, part: u32) -> Option<&[u8]> {
        let region = self.0.part(at, part)?;
        // SAFETY: as for `BlockLease::part`; who shared the blocks gave up the only way to write them.
        Some(unsafe { std::slice::from_raw_parts(region.addr() as *const u8, region.len() as usize) })
    }

    /// Some of the blocks, by their places. `None` if there are not so many.
    pub fn select_blocks(&self, places: Range<usize>) -> Option<Self> {
        let (start, end) =
            (self.0.at.start.checked_add(places.start)?, self.0.at.start.checked_add(places.end)?);
        let is_inside = start <= end && end <= self.0.at.end;
        is_inside.then(|| Self(Held { at: start..end, ..self.0.clone() }))
    }

    /// Some parts of each block. `None` if they are not among those here.
    pub fn select_parts(&self, parts: Range<u32>) -> Option<Self> {
        let is_inside =
            self.0.parts.start <= parts.start && parts.start <= parts.end && parts.end <= self.0.parts.end;
        is_inside.then(|| Self(Held { parts, ..self.0.clone() }))
    }
}

impl From<BlockLease> for SharedBlocks {
    fn from(lease: BlockLease) -> Self {
        lease.into_shared()
    }
}

// SAFETY: the regions are the owner's of the pool, which `held` keeps and which does not move; its contract makes them
// initialised, and leaves the bytes of a block that is out to its lease. A lease changes them through `&mut self` only.
unsafe impl SourceMemory for BlockLease {
    fn regions(&self) -> Vec<Region> {
        self.held.pieces()
    }

    fn accelerators(&self) -> Accelerators {
        self.held.accelerators()
    }
}

// SAFETY: as for SourceMemory; plain bytes take any pattern, and leases share no part of a block.
unsafe impl TargetMemory for BlockLease {
    fn regions(&mut self) -> Vec<Region> {
        self.laid.take().unwrap_or_else(|| self.held.pieces())
    }

    fn accelerators(&self) -> Accelerators {
        self.held.accelerators()
    }
}

// SAFETY: as for `BlockLease`; nothing here writes.
unsafe impl SourceMemory for SharedBlocks {
    fn regions(&self) -> Vec<Region> {
        self.0.pieces()
    }

    fn accelerators(&self) -> Accelerators {
        self.0.accelerators()
    }
}

/// Shared blocks, cut as the peer's are, or watched.
pub(crate) struct LaidSource {
    /// Dropped first: what an operation has is never free.
    used: Arc<Use>,
    regions: Vec<Region>,
    blocks: SharedBlocks,
    /// Dropped with the last transfer of them.
    #[expect(dead_code, reason = "what it is good for is being dropped")]
    guard: Option<Guard>,
}

impl LaidSource {
    /// As they are.
    pub(super) fn guarded(blocks: SharedBlocks, guard: Guard) -> Self {
        Self::laid(blocks.regions(), blocks, Some(guard))
    }

    /// In the pieces of the peer.
    pub(super) fn laid(regions: Vec<Region>, blocks: SharedBlocks, guard: Option<Guard>) -> Self {
        Self { used: blocks.held().begin_use(), regions, blocks, guard }
    }

    /// Which operation has them, is to be said.
    pub(super) fn user(&self) -> User {
        self.used.operation()
    }
}

// SAFETY: the regions are of `blocks`, in other pieces.
unsafe impl SourceMemory for LaidSource {
    fn regions(&self) -> Vec<Region> {
        self.regions.clone()
    }

    fn accelerators(&self) -> Accelerators {
        self.blocks.0.accelerators()
    }
}

impl fmt::Debug for BlockLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockLease").field("blocks", &self.blocks()).field("parts", &self.parts()).finish()
    }
}

impl fmt::Debug for SharedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedBlocks").field("blocks", &self.blocks()).field("parts", &self.parts()).finish()
    }
}

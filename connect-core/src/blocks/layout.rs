//! [`BlockLayout`]: where the parts of each block lie. Arithmetic only.

use std::sync::Arc;

use super::BlockError;
use crate::Region;
use crate::memory::{MAX_DESCRIPTORS, push_joined};

/// Most blocks in one pool. A pool of 16 tokens a block has 268 million tokens then.
pub const MAX_BLOCKS: u32 = 1 << 24;
/// Most parts of a block: keys and values of 2,048 layers.
pub const MAX_PARTS: usize = 4096;
/// Most ranges of one pool: two tensors for each of 256 layers.
pub const MAX_RANGES: usize = 512;

/// One part of every block: the keys of one layer, say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct BlockPart {
    /// Which of the pool's ranges it lies in.
    pub range: u32,
    /// Bytes from the range's begin to this part of block 0.
    pub offset: u64,
    /// Bytes from this part of one block to this part of the next.
    pub stride: u64,
    /// Its bytes in each block.
    pub size: u64,
}

/// How a pool's memory is cut into blocks, and each block into parts.
///
/// A block is what is handed out; its parts are what of it can be moved apart from the rest, such as one layer of a KV
/// cache. Part `p` of block `b` is the `size` bytes at `offset + b * stride` of its range.
///
/// ```
/// use connect_core::blocks::BlockLayout;
///
/// // 100 blocks of two parts. A whole block is one run of 3,072 bytes ...
/// let by_block = BlockLayout::block_major(100, &[2048, 1024])?;
/// assert_eq!(by_block.range_bytes(), [307_200]);
/// assert_eq!((by_block.parts()[1].offset, by_block.parts()[1].stride), (2048, 3072));
/// // ... or each part is one run over all blocks.
/// let by_part = BlockLayout::part_major(100, &[2048, 1024])?;
/// assert_eq!((by_part.parts()[1].offset, by_part.parts()[1].stride), (204_800, 1024));
/// # Ok::<(), connect_core::blocks::BlockError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockLayout {
    blocks: u32,
    parts: Arc<[BlockPart]>,
    ranges: Arc<[u64]>,
}

impl BlockLayout {
    /// Whole blocks one after another, each with its parts one after another. A block moves as one piece: on transports
    /// that charge for each piece this is the fastest by far.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn block_major(blocks: u32, part_bytes: &[u64]) -> Result<Self, BlockError> {
        let stride = sum(part_bytes)?;
        let parts = offsets(part_bytes).map(|(offset, size)| BlockPart { range: 0, offset, stride, size });
        Self::new(blocks, parts.collect(), vec![product(stride, blocks)?])
    }

    /// The first part of all blocks, then the second part of all blocks, and so on.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn part_major(blocks: u32, part_bytes: &[u64]) -> Result<Self, BlockError> {
        let all = product(sum(part_bytes)?, blocks)?;
        let n = u64::from(blocks);
        let parts = offsets(part_bytes).map(|(before, size)| BlockPart {
            range: 0,
            offset: before * n,
            stride: size,
            size,
        });
        Self::new(blocks, parts.collect(), vec![all])
    }

    /// Any other layout, over ranges of these lengths in bytes.
    ///
    /// # Errors
    /// [`BlockError::Layout`], which says what is wrong: no blocks, no parts, too many of either, a part that is empty
    /// or reaches out of its range, or blocks that overlap within a part.
    pub fn new(blocks: u32, parts: Vec<BlockPart>, ranges: Vec<u64>) -> Result<Self, BlockError> {
        let refuse = |reason: String| Err(BlockError::Layout(reason));
        if blocks == 0 || blocks > MAX_BLOCKS {
            return refuse(format!("{blocks} blocks, where 1 to {MAX_BLOCKS} can be"));
        }
        if parts.is_empty() || parts.len() > MAX_PARTS {
            return refuse(format!("{} parts, where 1 to {MAX_PARTS} can be", parts.len()));
        }
        if ranges.is_empty() || ranges.len() > MAX_RANGES {
            return refuse(format!("{} ranges, where 1 to {MAX_RANGES} can be", ranges.len()));
        }
        for (index, part) in parts.iter().enumerate() {
            let Some(range) = ranges.get(part.range as usize) else {
                return refuse(format!(
                    "part {index} lies in range {}, and there are {}",
                    part.range,
                    ranges.len()
                ));
            };
            if part.size == 0 {
                return refuse(format!("part {index} is empty"));
            }
            if blocks > 1 && part.stride < part.size {
                return refuse(format!(
                    "part {index} has {} bytes in each block, and blocks follow each other after {}",
                    part.size, part.stride
                ));
            }
            let last = u64::from(blocks - 1).checked_mul(part.stride);
            let end = last.and_then(|last| last.checked_add(part.offset)?.checked_add(part.size));
            if end.is_none_or(|end| end > *range) {
                return refuse(format!("part {index} reaches past its range of {range} bytes"));
            }
        }
        if let Some((part, other)) = overlapping(blocks, &parts) {
            return refuse(format!("parts {part} and {other} overlap, or are too entangled to tell"));
        }
        Ok(Self { blocks, parts: parts.into(), ranges: ranges.into() })
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// The parts of each block.
    pub fn parts(&self) -> &[BlockPart] {
        &self.parts
    }

    /// How long each range is, in bytes.
    pub fn range_bytes(&self) -> &[u64] {
        &self.ranges
    }

    /// Bytes of one block, over all parts.
    pub fn block_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.size).sum()
    }

    /// Whether the parts of a block follow each other directly.
    fn is_block_major(&self) -> bool {
        self.parts.windows(2).all(|pair| {
            let next = pair[0].offset.checked_add(pair[0].size);
            pair[0].range == pair[1].range && next == Some(pair[1].offset)
        })
    }
}

/// Two parts that share a byte in some blocks.
///
/// Parts whose spans from the first block to the last are apart share none. Those whose spans overlap must have one
/// stride, and their own place within it; what could do without is refused as well.
fn overlapping(blocks: u32, parts: &[BlockPart]) -> Option<(usize, usize)> {
    let span_end = |part: &BlockPart| part.offset + u64::from(blocks - 1) * part.stride + part.size;
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_unstable_by_key(|&at| (parts[at].range, parts[at].offset));
    let mut rest = &order[..];
    while let Some(&first) = rest.first() {
        // Those whose spans overlap, directly or by way of others.
        let mut end = span_end(&parts[first]);
        let is_apart = |at: &usize| {
            let apart = parts[*at].range != parts[first].range || parts[*at].offset >= end;
            if !apart {
                end = end.max(span_end(&parts[*at]));
            }
            apart
        };
        let count = rest.iter().position(is_apart).unwrap_or(rest.len());
        let (together, others) = rest.split_at(count);
        rest = others;
        let stride = parts[first].stride;
        if let Some(&other) = together.iter().find(|&&at| blocks > 1 && parts[at].stride != stride) {
            return Some((first, other));
        }
        let place = |at: usize| {
            let offset = parts[at].offset - parts[first].offset;
            if blocks > 1 { offset % stride } else { offset }
        };
        let mut by_place = together.to_vec();
        by_place.sort_unstable_by_key(|&at| place(at));
        if let Some(pair) =
            by_place.windows(2).find(|pair| place(pair[0]) + parts[pair[0]].size > place(pair[1]))
        {
            return Some((pair[0].min(pair[1]), pair[0].max(pair[1])));
        }
        // The first part is at place 0 of the next block as well.
        if let Some(&last) = by_place.last()
            && blocks > 1
            && place(last) + parts[last].size > stride
        {
            return Some((first.min(last), first.max(last)));
        }
    }
    None
}

fn sum(part_bytes: &[u64]) -> Result<u64, BlockError> {
    let sum = part_bytes.iter().try_fold(0u64, |sum, bytes| sum.checked_add(*bytes));
    sum.ok_or_else(|| BlockError::Layout("a block has more bytes than there are addresses".to_owned()))
}

fn product(block_bytes: u64, blocks: u32) -> Result<u64, BlockError> {
    let all = block_bytes.checked_mul(u64::from(blocks));
    all.ok_or_else(|| BlockError::Layout("the blocks have more bytes than there are addresses".to_owned()))
}

/// Each part's bytes, and those before it. Their sum was checked.
fn offsets(part_bytes: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    part_bytes.iter().scan(0, |before, size| {
        let offset = *before;
        *before += size;
        Some((offset, *size))
    })
}

/// A layout over memory: what each number stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) layout: BlockLayout,
    /// As many as the layout has, each as long as it says.
    ranges: Arc<[Region]>,
}

impl Placed {
    /// # Errors
    /// The ranges are not as many, or not as long, as the layout says.
    pub(super) fn new(layout: BlockLayout, ranges: Vec<Region>) -> Result<Self, BlockError> {
        let lengths = ranges.iter().map(Region::len);
        if !lengths.eq(layout.ranges.iter().copied()) {
            return Err(BlockError::Layout(format!(
                "the memory is {} ranges of other lengths than the {} of the layout",
                ranges.len(),
                layout.ranges.len()
            )));
        }
        Ok(Self { layout, ranges: ranges.into() })
    }

    pub(super) fn ranges(&self) -> &[Region] {
        &self.ranges
    }

    /// Part `part` of block `block`; both are within the layout.
    pub(super) fn region(&self, block: u32, part: u32) -> Region {
        let BlockPart { range, offset, stride, size } = self.layout.parts[part as usize];
        let start = offset + u64::from(block) * stride;
        let region = self.ranges[range as usize].slice(start..start + size);
        region.expect("the layout was checked against its ranges, and block and part against the layout")
    }

    /// The pieces of these blocks and parts, those that follow each other as one, in the order in which most do.
    pub(super) fn pieces(&self, blocks: &[u32], parts: std::ops::Range<u32>) -> Vec<Region> {
        let (mut pieces, mut last) = (Vec::new(), None);
        for_each(self, blocks, parts, |block, part| {
            let range = Some(self.layout.parts[part as usize].range);
            // Ranges that happen to lie side by side are registered apart.
            let is_one = std::mem::replace(&mut last, range) == range;
            push_joined(&mut pieces, self.region(block, part), |_| is_one);
        });
        pieces
    }
}

/// Goes through blocks and parts so that what lies side by side follows each other: block by block where a block is one
/// run, else part by part.
fn for_each(placed: &Placed, blocks: &[u32], parts: std::ops::Range<u32>, mut each: impl FnMut(u32, u32)) {
    if placed.layout.is_block_major() {
        blocks.iter().for_each(|block| parts.clone().for_each(|part| each(*block, part)));
    } else {
        parts.for_each(|part| blocks.iter().for_each(|block| each(*block, part)));
    }
}

/// What a transfer moves: pieces here and there, pair by pair of the same length. Pairs that follow each other on both
/// sides are one.
pub(super) struct Pairs {
    pub(super) local: Vec<Region>,
    pub(super) remote: Vec<Region>,
}

impl Pairs {
    /// Of blocks `local_blocks` of `local` and `remote_blocks` of `remote`, as many of each, and the same parts, which
    /// were compared.
    ///
    /// # Errors
    /// More pairs than one operation takes.
    pub(super) fn new(
        (local, local_blocks): (&Placed, &[u32]),
        (remote, remote_blocks): (&Placed, &[u32]),
        parts: std::ops::Range<u32>,
    ) -> Result<Self, BlockError> {
        let (mut pairs, mut last) = (Vec::new(), None);
        let indices: Vec<u32> = (0..local_blocks.len() as u32).collect();
        for_each(remote, &indices, parts, |at, part| {
            let here = local.region(local_blocks[at as usize], part);
            let there = remote.region(remote_blocks[at as usize], part);
            let ranges =
                Some((local.layout.parts[part as usize].range, remote.layout.parts[part as usize].range));
            let is_one = std::mem::replace(&mut last, ranges) == ranges;
            push_joined(&mut pairs, (here, there), |_| is_one);
        });
        let count = pairs.len();
        if count > MAX_DESCRIPTORS {
            return Err(BlockError::TooManyPieces { count, max: MAX_DESCRIPTORS });
        }
        let (local, remote) = pairs.into_iter().unzip();
        Ok(Self { local, remote })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Device;

    fn placed(layout: BlockLayout, at: u64) -> Placed {
        let mut next = at;
        let mut range = |len: &u64| {
            let region = Region::new(Device::CPU, next, *len).unwrap();
            // Side by side, so that a join across ranges would show.
            next += len;
            region
        };
        let ranges = layout.range_bytes().iter().map(&mut range).collect();
        Placed::new(layout, ranges).unwrap()
    }

    #[test]
    fn a_block_of_a_block_major_pool_is_one_piece_and_so_are_blocks_that_follow_each_other() {
        let pool = placed(BlockLayout::block_major(10, &[100, 50]).unwrap(), 1000);
        assert_eq!(pool.region(3, 1), Region::new(Device::CPU, 1000 + 3 * 150 + 100, 50).unwrap());
        assert_eq!(pool.pieces(&[3], 0..2).len(), 1);
        assert_eq!(pool.pieces(&[3, 4, 5, 9], 0..2).iter().map(Region::len).collect::<Vec<_>>(), [450, 150]);
        assert_eq!(pool.pieces(&[3, 4], 1..2).len(), 2, "one part of each");
    }

    #[test]
    fn a_part_of_a_part_major_pool_is_one_piece_over_blocks_that_follow_each_other() {
        let pool = placed(BlockLayout::part_major(10, &[100, 50]).unwrap(), 1000);
        assert_eq!(pool.pieces(&[3, 4, 5], 0..2).iter().map(Region::len).collect::<Vec<_>>(), [300, 150]);
        assert_eq!(pool.pieces(&[3, 5], 0..2).len(), 4);
    }

    #[test]
    fn pieces_of_two_ranges_are_not_joined() {
        let part = |range| BlockPart { range, offset: 0, stride: 64, size: 64 };
        let pool = placed(BlockLayout::new(1, vec![part(0), part(1)], vec![64, 64]).unwrap(), 4096);
        assert_eq!(pool.pieces(&[0], 0..2).len(), 2, "though the ranges lie side by side");
    }

    #[test]
    fn layouts_that_reach_out_of_their_memory_are_refused_by_part() {
        let part = BlockPart { range: 0, offset: 0, stride: 64, size: 64 };
        let refused = |blocks, part: BlockPart, range| {
            BlockLayout::new(blocks, vec![part], vec![range]).unwrap_err().to_string()
        };
        assert!(BlockLayout::new(4, vec![part], vec![256]).is_ok());
        assert!(refused(5, part, 256).contains("part 0 reaches past its range of 256 bytes"));
        assert!(refused(4, BlockPart { offset: 1, ..part }, 256).contains("reaches past"));
        assert!(refused(4, BlockPart { stride: u64::MAX / 2, ..part }, 256).contains("reaches past"));
        assert!(refused(4, BlockPart { stride: 63, ..part }, 256).contains("follow each other after 63"));
        assert!(refused(4, BlockPart { size: 0, ..part }, 256).contains("part 0 is empty"));
        assert!(refused(4, BlockPart { range: 1, ..part }, 256).contains("range 1"));
        assert!(
            refused(0, part, 256).contains("0 blocks")
                && refused(MAX_BLOCKS + 1, part, 256).contains("blocks")
        );
        let overlap = |blocks, parts: &[(u64, u64, u64)]| {
            let part = |&(offset, stride, size)| BlockPart { range: 0, offset, stride, size };
            BlockLayout::new(blocks, parts.iter().map(part).collect(), vec![1000]).is_err()
        };
        assert!(!overlap(4, &[(0, 64, 32), (32, 64, 32)]) && !overlap(4, &[(32, 64, 32), (0, 64, 32)]));
        assert!(overlap(4, &[(0, 64, 33), (32, 64, 32)]) && overlap(4, &[(0, 64, 32), (32, 64, 33)]));
        assert!(overlap(4, &[(0, 64, 32), (32, 65, 32)]) && !overlap(4, &[(0, 64, 64), (256, 65, 32)]));
        assert!(overlap(1, &[(0, 0, 32), (31, 0, 32)]) && !overlap(1, &[(0, 0, 32), (32, 0, 32)]));
        assert!(overlap(4, &[(0, 64, 32), (128 + 16, 64, 32)]));
        assert!(BlockLayout::new(1, Vec::new(), vec![1]).is_err());
        assert!(BlockLayout::block_major(2, &[u64::MAX, 1]).is_err());
        assert!(BlockLayout::block_major(2, &[u64::MAX / 2 + 1]).is_err());
    }

    fn layouts() -> impl Strategy<Value = BlockLayout> {
        let sizes = prop::collection::vec(1u64..9, 1..5);
        (1u32..12, sizes, any::<bool>()).prop_map(|(blocks, sizes, by_block)| {
            let make = if by_block { BlockLayout::block_major } else { BlockLayout::part_major };
            make(blocks, &sizes).unwrap()
        })
    }

    /// Each byte of a list of pieces, by its address.
    fn bytes(pieces: &[Region]) -> impl Iterator<Item = u64> + '_ {
        pieces.iter().flat_map(|piece| piece.addr()..piece.end())
    }

    proptest! {
        /// Whatever the layouts are and whatever is joined: each byte here meets the one there that has its block, its
        /// part and its place in that.
        #[test]
        fn pairs_bring_each_byte_to_its_place(
            (here, there, local, remote, parts) in (layouts(), any::<bool>()).prop_flat_map(|(here, by_block)| {
                let sizes: Vec<u64> = here.parts().iter().map(|part| part.size).collect();
                let make = if by_block { BlockLayout::block_major } else { BlockLayout::part_major };
                let there = make(12, &sizes).unwrap();
                let local = Just((0..here.blocks()).collect::<Vec<_>>()).prop_shuffle();
                let remote = Just((0..12u32).collect::<Vec<_>>()).prop_shuffle();
                let count = sizes.len() as u32;
                (Just(here), Just(there), local, remote, (0..count).prop_flat_map(move |from| (Just(from), from + 1..=count)))
            }),
        ) {
            let (here, there) = (placed(here, 1 << 20), placed(there, 1 << 30));
            let remote = &remote[..local.len()];
            let pairs = Pairs::new((&here, &local), (&there, remote), parts.0..parts.1).unwrap();
            prop_assert!(pairs.local.iter().map(Region::len).eq(pairs.remote.iter().map(Region::len)));
            let mut expected: Vec<(u64, u64)> = Vec::new();
            for (block, other) in local.iter().zip(remote) {
                for part in parts.0..parts.1 {
                    let (a, b) = (here.region(*block, part), there.region(*other, part));
                    expected.extend((a.addr()..a.end()).zip(b.addr()..b.end()));
                }
            }
            let mut moved: Vec<(u64, u64)> = bytes(&pairs.local).zip(bytes(&pairs.remote)).collect();
            expected.sort_unstable();
            moved.sort_unstable();
            prop_assert_eq!(moved, expected);
        }

        /// Against each byte of each part of each block.
        #[test]
        fn layouts_with_overlapping_parts_are_refused(
            blocks in 1u32..5, parts in prop::collection::vec((0u64..40, 1u64..12, 1u64..9), 1..4),
        ) {
            let part = |&(offset, stride, size): &_| BlockPart { range: 0, offset, stride, size };
            let parts: Vec<BlockPart> = parts.iter().map(part).collect();
            if let Ok(layout) = BlockLayout::new(blocks, parts.clone(), vec![1 << 20]) {
                let pool = placed(layout, 4096);
                let all: Vec<u32> = (0..blocks).collect();
                let mut seen: Vec<u64> = bytes(&pool.pieces(&all, 0..parts.len() as u32)).collect();
                let count = seen.len();
                seen.sort_unstable();
                seen.dedup();
                prop_assert_eq!(seen.len(), count);
            }
        }

        #[test]
        fn pieces_hold_each_byte_once(layout in layouts(), blocks in prop::collection::btree_set(0u32..12, 1..12)) {
            let pool = placed(layout, 1 << 20);
            let blocks: Vec<u32> = blocks.into_iter().filter(|block| *block < pool.layout.blocks()).collect();
            let parts = pool.layout.parts().len() as u32;
            let pieces = pool.pieces(&blocks, 0..parts);
            let mut all: Vec<u64> = bytes(&pieces).collect();
            all.sort_unstable();
            all.dedup();
            prop_assert_eq!(all.len() as u64, blocks.len() as u64 * pool.layout.block_bytes());
        }
    }
}

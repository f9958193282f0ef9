//! [`KvLayout`]: the shape of a pool of KV blocks.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::KvError;
use crate::DType;
use crate::blocks::{BlockLayout, BlockPart};

/// In which order the bytes of a pool lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BlockOrder {
    /// `[block][layer][k, v][token][head][dim]`: a block is one run of bytes, over all layers. The default: on CPU
    /// transports it moves 2 to 14 times faster than the others, and a request has one descriptor for each run of blocks.
    #[default]
    BlockMajor,
    /// For each layer and each of K and V `[block][token][head][dim]`: what FlashAttention's paged kernels read.
    LayerMajorNhd,
    /// For each layer and each of K and V `[block][head][token][dim]`: what FlashInfer's HND kernels read.
    LayerMajorHnd,
}

impl BlockOrder {
    /// How the bytes of one block of one layer lie. Two pools between which blocks move must agree in this; where the
    /// blocks themselves lie is each side's own.
    pub const fn within_block(self) -> &'static str {
        match self {
            Self::BlockMajor | Self::LayerMajorNhd => "nhd",
            Self::LayerMajorHnd => "hnd",
        }
    }
}

impl fmt::Display for BlockOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlockMajor => "block_major",
            Self::LayerMajorNhd => "layer_major_nhd",
            Self::LayerMajorHnd => "layer_major_hnd",
        })
    }
}

/// The shape of a pool of KV blocks.
///
/// ```
/// use connect_core::DType;
/// use connect_core::kv::KvLayout;
///
/// // Llama-3.1-8B, 1,024 tokens: 134 MB.
/// let layout = KvLayout::new(32, 64, 16, 8, 128, DType::BF16);
/// assert_eq!(layout.bytes_per_token(), 131_072);
/// assert_eq!(layout.bytes_per_block(), 2 << 20);
/// assert_eq!(layout.descriptors_per_block(), 1);
/// assert_eq!(layout.blocks_for(1024), 64);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KvLayout {
    /// Layers of the model that have a cache.
    pub layers: u32,
    /// Blocks in the pool.
    pub blocks: u32,
    /// Tokens in a block.
    pub block_tokens: u32,
    /// Heads of keys and values in this process.
    pub kv_heads: u32,
    /// Elements of a key, for each head.
    pub k_head_dim: u32,
    /// Elements of a value, for each head.
    pub v_head_dim: u32,
    /// Their type.
    pub dtype: DType,
    /// How they lie.
    pub order: BlockOrder,
}

impl KvLayout {
    /// A block-major layout with keys and values of one size.
    pub const fn new(
        layers: u32,
        blocks: u32,
        block_tokens: u32,
        kv_heads: u32,
        head_dim: u32,
        dtype: DType,
    ) -> Self {
        let (k_head_dim, v_head_dim) = (head_dim, head_dim);
        let order = BlockOrder::BlockMajor;
        Self { layers, blocks, block_tokens, kv_heads, k_head_dim, v_head_dim, dtype, order }
    }

    /// The same in another order.
    #[must_use]
    pub const fn with_order(self, order: BlockOrder) -> Self {
        Self { order, ..self }
    }

    /// The same with values of another size than keys.
    #[must_use]
    pub const fn with_v_head_dim(self, v_head_dim: u32) -> Self {
        Self { v_head_dim, ..self }
    }

    /// Bytes of K, and of V, in one layer of one block.
    pub fn part_bytes(&self) -> [u64; 2] {
        let bits = self.dtype.bits() as u64;
        let of =
            |dim: u32| u64::from(self.block_tokens) * u64::from(self.kv_heads) * u64::from(dim) * bits / 8;
        [of(self.k_head_dim), of(self.v_head_dim)]
    }

    /// Bytes that one token takes, over all layers: what a link has to carry for each token that is prefilled.
    pub fn bytes_per_token(&self) -> u64 {
        self.bytes_per_block() / u64::from(self.block_tokens.max(1))
    }

    /// Bytes of one block, over all layers.
    pub fn bytes_per_block(&self) -> u64 {
        u64::from(self.layers) * self.part_bytes().iter().sum::<u64>()
    }

    /// Pieces that one block is in. Blocks that follow each other are joined, in any order.
    pub fn descriptors_per_block(&self) -> u32 {
        match self.order {
            BlockOrder::BlockMajor => 1,
            BlockOrder::LayerMajorNhd | BlockOrder::LayerMajorHnd => 2 * self.layers,
        }
    }

    /// Blocks that so many tokens need; the last may be filled in part.
    pub fn blocks_for(&self, tokens: usize) -> u32 {
        u32::try_from(tokens.div_ceil(self.block_tokens.max(1) as usize)).unwrap_or(u32::MAX)
    }

    /// The parts of a block that are these layers: K and V of one are parts `2 * layer` and `2 * layer + 1`.
    pub fn parts_of(&self, layers: Range<u32>) -> Range<u32> {
        2 * layers.start..2 * layers.end
    }

    /// As blocks of parts, in memory of the pool's own.
    ///
    /// # Errors
    /// [`KvError::Blocks`] for a pool without blocks, layers or bytes, or with more than there can be.
    pub fn block_layout(&self) -> Result<BlockLayout, KvError> {
        let [k, v] = self.part_bytes();
        let parts: Vec<u64> = (0..self.layers).flat_map(|_| [k, v]).collect();
        let make = match self.order {
            BlockOrder::BlockMajor => BlockLayout::block_major,
            BlockOrder::LayerMajorNhd | BlockOrder::LayerMajorHnd => BlockLayout::part_major,
        };
        Ok(make(self.blocks, &parts)?)
    }

    /// As blocks of parts, in two tensors for each layer, K and V, as engines with paged attention have them. Layer-major
    /// orders only.
    ///
    /// # Errors
    /// [`KvError::Blocks`], as above, or because a block-major pool is one tensor.
    pub fn tensor_layout(&self) -> Result<BlockLayout, KvError> {
        if self.order == BlockOrder::BlockMajor {
            let reason = "a block-major pool is one tensor; describe it by `block_layout`".to_owned();
            return Err(crate::blocks::BlockError::Layout(reason).into());
        }
        let sizes = (0..self.layers).flat_map(|_| self.part_bytes());
        let part = |(range, size)| BlockPart { range, offset: 0, stride: size, size };
        let parts: Vec<BlockPart> = (0u32..).zip(sizes).map(part).collect();
        let ranges = parts.iter().map(|part| part.size.saturating_mul(u64::from(self.blocks))).collect();
        Ok(BlockLayout::new(self.blocks, parts, ranges)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_real_models() {
        // bytes per token: Llama-3.2-1B, Qwen3-0.6B, Llama-3.1-8B, Qwen3-8B, Llama-3.3-70B.
        for (layers, heads, dim, bytes) in [
            (16, 8, 64, 32_768),
            (28, 8, 128, 114_688),
            (32, 8, 128, 131_072),
            (36, 8, 128, 147_456),
            (80, 8, 128, 327_680),
        ] {
            let layout = KvLayout::new(layers, 100, 16, heads, dim, DType::BF16);
            assert_eq!(layout.bytes_per_token(), bytes);
            assert_eq!(layout.bytes_per_block(), 16 * bytes);
            for order in [BlockOrder::BlockMajor, BlockOrder::LayerMajorNhd, BlockOrder::LayerMajorHnd] {
                let blocks = layout.with_order(order).block_layout().unwrap();
                assert_eq!(blocks.block_bytes(), 16 * bytes);
                assert_eq!(blocks.parts().len(), 2 * layers as usize);
            }
        }
        // DeepSeek-V3 keeps a compressed latent and the rotated part of the key: 61 layers of 512 and 64.
        let mla = KvLayout::new(61, 10, 16, 1, 512, DType::BF16).with_v_head_dim(64);
        assert_eq!(mla.bytes_per_token(), 70_272);
        assert_eq!(mla.part_bytes(), [16 * 512 * 2, 16 * 64 * 2]);
    }

    #[test]
    fn tensors_of_an_engine_are_ranges_of_their_own() {
        let layout = KvLayout::new(2, 10, 16, 8, 128, DType::F16).with_order(BlockOrder::LayerMajorNhd);
        let tensors = layout.tensor_layout().unwrap();
        assert_eq!(tensors.range_bytes(), [10 * 16 * 8 * 128 * 2; 4]);
        assert_eq!(layout.parts_of(1..2), 2..4);
        assert!(layout.with_order(BlockOrder::BlockMajor).tensor_layout().is_err());
    }

    #[test]
    fn the_last_block_may_be_filled_in_part() {
        let layout = KvLayout::new(2, 10, 16, 8, 128, DType::F16);
        assert_eq!([0, 1, 15, 16, 17, 160].map(|tokens| layout.blocks_for(tokens)), [0, 1, 1, 1, 2, 10]);
    }

    #[test]
    fn impossible_shapes_are_errors() {
        let layout = KvLayout::new(2, 10, 16, 8, 128, DType::F16);
        for bad in [
            KvLayout { layers: 0, ..layout },
            KvLayout { blocks: 0, ..layout },
            KvLayout { block_tokens: 0, ..layout },
            KvLayout { kv_heads: 0, ..layout },
            KvLayout { layers: u32::MAX, ..layout },
        ] {
            assert!(bad.layers == u32::MAX || bad.block_layout().is_err(), "{bad:?}");
        }
    }
}

//! Tokens of one layer, between tensors and blocks.

use std::ops::Range;

use candle_core::{Device, Storage, Tensor};
use connect_core::blocks::BlockLease;
use connect_core::kv::{BlockOrder, KvLayout};

use crate::dtype::{candle_dtype, dtype_of};
use crate::error::{TensorError, TensorInfo};
use crate::view;

/// Copies the keys and values of some tokens of one layer into blocks, the first of them to the beginning of the first
/// block. `k` and `v` are `[heads, tokens, dim]`, or the same with a batch of one in front, on the CPU.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use connect_candle::kv::{export_layer, import_layer};
/// use connect_core::kv::{KvIdentity, KvLayout, KvPool};
/// use connect_core::{Connector, DType as D};
///
/// let layout = KvLayout::new(1, 8, 16, 2, 4, D::F32);
/// let pool = KvPool::new(&Connector::local()?, KvIdentity::new("m", "w"), layout).wait()?;
/// let (k, v) = (Tensor::rand(0f32, 1., (2, 40, 4), &Device::Cpu)?, Tensor::rand(0f32, 1., (2, 40, 4), &Device::Cpu)?);
/// let mut blocks = pool.allocate(40)?;
/// export_layer(&mut blocks, &layout, 0, &k, &v, 0..40)?;
/// let (k2, v2) = import_layer(&blocks, &layout, 0, 40)?;
/// assert_eq!((k.to_vec3::<f32>()?, v.to_vec3::<f32>()?), (k2.to_vec3()?, v2.to_vec3()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`TensorError::DType`] for another element type than the pool's, [`TensorError::Kv`] for other heads or dimensions, for
/// tokens that are not there, for fewer blocks than they need, or for a lease of another layout; [`TensorError::Device`].
pub fn export_layer(
    lease: &mut BlockLease,
    layout: &KvLayout,
    layer: u32,
    k: &Tensor,
    v: &Tensor,
    tokens: Range<usize>,
) -> Result<(), TensorError> {
    check_layer(layout, layer)?;
    let room = lease.blocks().len() * layout.block_tokens as usize;
    if tokens.len() > room {
        return Err(refused("k", k, format!("{} tokens do not fit into {room}", tokens.len())));
    }
    for (name, tensor, dim, part) in
        [("k", k, layout.k_head_dim, 2 * layer), ("v", v, layout.v_head_dim, 2 * layer + 1)]
    {
        let info = TensorInfo::new(name, tensor);
        view::check_device(tensor.device(), &info)?;
        if dtype_of(tensor.dtype()) != Some(layout.dtype) {
            let reason = format!("its elements are {:?}, and the pool's {}", tensor.dtype(), layout.dtype);
            return Err(refused(name, tensor, reason));
        }
        let tensor = plain(name, tensor, layout, dim)?;
        let have = tensor.dim(1).map_err(|source| candle(&info, source))?;
        if tokens.end > have || tokens.start > tokens.end {
            return Err(refused(
                name,
                &tensor,
                format!("it has {have} tokens, and {tokens:?} are asked for"),
            ));
        }
        for (at, first) in tokens.clone().step_by(layout.block_tokens as usize).enumerate() {
            let count = (tokens.end - first).min(layout.block_tokens as usize);
            let block = tensor.narrow(1, first, count).and_then(|some| in_order(&some, layout.order));
            let block = block.map_err(|source| candle(&info, source))?;
            let missing = || refused(name, &tensor, "the pool is not in system memory".to_owned());
            check_part(lease, at, part, layout, &info)?;
            let target = lease.part_mut(at, part).ok_or_else(missing)?;
            copy_block(&block, target, &info, layout, count)?;
        }
    }
    Ok(())
}

/// Copies the keys and values of the first `tokens` tokens of one layer out of blocks: two tensors of
/// `[heads, tokens, dim]`.
///
/// # Errors
/// As [`export_layer`].
pub fn import_layer(
    lease: &BlockLease,
    layout: &KvLayout,
    layer: u32,
    tokens: usize,
) -> Result<(Tensor, Tensor), TensorError> {
    check_layer(layout, layer)?;
    let one = |name: &str, dim: u32, part: u32| {
        let dtype = candle_dtype(layout.dtype).ok_or_else(|| {
            let reason = format!("the pool's elements are {}, which Candle lacks", layout.dtype);
            TensorError::Kv { what: name.to_owned(), reason }
        })?;
        let (heads, dim) = (layout.kv_heads as usize, dim as usize);
        let info = TensorInfo::described(name, dtype, &[heads, tokens, dim]);
        let token_bytes = heads * dim * layout.dtype.bits() as usize / 8;
        let mut blocks = Vec::new();
        for (at, first) in (0..tokens).step_by(layout.block_tokens as usize).enumerate() {
            let count = (tokens - first).min(layout.block_tokens as usize);
            let missing = || TensorError::Kv {
                what: info.to_string(),
                reason: "the pool is not in system memory".to_owned(),
            };
            check_part(lease, at, part, layout, &info)?;
            let bytes = lease.part(at, part).ok_or_else(missing)?;
            let block = match layout.order {
                BlockOrder::LayerMajorHnd => {
                    let shape = [heads, layout.block_tokens as usize, dim];
                    Tensor::from_raw_buffer(bytes, dtype, &shape, &Device::Cpu)
                        .and_then(|block| block.narrow(1, 0, count))
                }
                _ => Tensor::from_raw_buffer(
                    &bytes[..count * token_bytes],
                    dtype,
                    &[count, heads, dim],
                    &Device::Cpu,
                )
                .and_then(|block| block.transpose(0, 1)),
            };
            blocks.push(block.map_err(|source| candle(&info, source))?);
        }
        let all = Tensor::cat(&blocks, 1).and_then(|all| all.contiguous());
        all.map_err(|source| candle(&info, source))
    };
    Ok((one("k", layout.k_head_dim, 2 * layer)?, one("v", layout.v_head_dim, 2 * layer + 1)?))
}

fn check_layer(layout: &KvLayout, layer: u32) -> Result<(), TensorError> {
    let refused = |reason| Err(TensorError::Kv { what: format!("layer {layer}"), reason });
    match layout.block_layout() {
        Err(error) => refused(error.to_string()),
        Ok(_) if layer >= layout.layers => refused(format!("the layout has {} layers", layout.layers)),
        Ok(_) => Ok(()),
    }
}

/// The part is in the lease, and as large as the layout says: the lease may be of another pool.
fn check_part(
    lease: &BlockLease,
    at: usize,
    part: u32,
    layout: &KvLayout,
    info: &TensorInfo,
) -> Result<(), TensorError> {
    let refused = |reason| Err(TensorError::Kv { what: info.to_string(), reason });
    let wanted = layout.part_bytes()[part as usize % 2];
    match lease.region(at, part).map(|region| region.len()) {
        None => refused(format!("block {at} of layer {} is not in the lease", part / 2)),
        Some(has) if has != wanted => {
            refused(format!("the pool has {has} bytes for a layer of a block, and the layout {wanted}"))
        }
        Some(_) => Ok(()),
    }
}

/// `[heads, tokens, dim]`, whatever is in front.
fn plain(name: &str, tensor: &Tensor, layout: &KvLayout, dim: u32) -> Result<Tensor, TensorError> {
    let heads = layout.kv_heads as usize;
    let wanted = format!("[{heads}, tokens, {dim}]");
    let squeezed = match tensor.dims() {
        [1, _, _, _] => tensor.squeeze(0),
        _ => Ok(tensor.clone()),
    };
    let squeezed = squeezed.map_err(|source| candle(&TensorInfo::new(name, tensor), source))?;
    match squeezed.dims() {
        [h, _, d] if (*h, *d) == (heads, dim as usize) => Ok(squeezed),
        _ => Err(refused(name, tensor, format!("it is to be {wanted}"))),
    }
}

/// As the bytes of a block lie, contiguous.
fn in_order(block: &Tensor, order: BlockOrder) -> candle_core::Result<Tensor> {
    match order {
        BlockOrder::LayerMajorHnd => block.contiguous(),
        _ => block.transpose(0, 1)?.contiguous(),
    }
}

/// The bytes of some tokens, into a block that may have room for more.
fn copy_block(
    block: &Tensor,
    target: &mut [u8],
    info: &TensorInfo,
    layout: &KvLayout,
    count: usize,
) -> Result<(), TensorError> {
    let (storage, view) = block.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else {
        return Err(TensorError::Kv { what: info.to_string(), reason: "it is not on the CPU".to_owned() });
    };
    let element = layout.dtype.bits() as usize / 8;
    let bytes = &view::bytes(storage)[view.start_offset() * element..][..view.shape().elem_count() * element];
    if layout.order == BlockOrder::LayerMajorHnd && count < layout.block_tokens as usize {
        // Each head has room for all tokens of the block.
        let heads = layout.kv_heads as usize;
        let (each, room) = (bytes.len() / heads, target.len() / heads);
        for head in 0..heads {
            target[head * room..][..each].copy_from_slice(&bytes[head * each..][..each]);
        }
    } else {
        target[..bytes.len()].copy_from_slice(bytes);
    }
    Ok(())
}

pub(super) fn refused(name: &str, tensor: &Tensor, reason: String) -> TensorError {
    TensorError::Kv { what: TensorInfo::new(name, tensor).to_string(), reason }
}

pub(super) fn candle(info: &TensorInfo, source: candle_core::Error) -> TensorError {
    TensorError::Candle { tensor: info.clone(), source: Box::new(source) }
}

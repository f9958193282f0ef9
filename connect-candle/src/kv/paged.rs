//! Paged caches of an engine, as they are.

use std::sync::Arc;

use candle_core::Tensor;
use connect_core::accelerator::Accelerators;
use connect_core::kv::{BlockOrder, KvIdentity, KvLayout, KvPool};
use connect_core::{Connector, Region, Task};

use super::copy::refused;
use crate::Pending;
use crate::error::{TensorError, TensorInfo};
use crate::{hold, view};

/// Makes a pool of the tensors that an engine with paged attention has: keys and values of each layer, each contiguous
/// and covering its storage, its blocks in the first dimension. Nothing is copied, then or ever; the engine goes on
/// computing in them.
///
/// With [`BlockOrder::LayerMajorNhd`] they are `[blocks, tokens, heads, dim]`, with
/// [`LayerMajorHnd`](BlockOrder::LayerMajorHnd) `[blocks, heads, tokens, dim]`. Other layouts of an engine's own, such
/// as vLLM's `[blocks, heads, dim / x, tokens, x]`, move as well if both sides have the same: name them in the
/// [`KvIdentity`], so that two that differ don't meet.
///
/// # Safety
/// As [`Connector::block_pool_over`]: while a lease of a block is out, nobody but its holder touches that block in these
/// tensors, and nobody writes to it while it is shared or in an operation. The buffers of the tensors must stay where
/// they are until the pool and its leases are gone: no in-place operation may replace one (`slice_set`, `scatter_set`
/// and kernels that write into blocks do not).
///
/// # Errors
/// [`TensorError::Kv`] for tensors that are not as the layout says; [`TensorError::Busy`], [`TensorError::Device`].
pub unsafe fn paged_pool(
    connector: &Connector,
    identity: KvIdentity,
    layout: KvLayout,
    layers: &[(Tensor, Tensor)],
) -> Pending<KvPool> {
    let prepared = memory(&layout, layers).and_then(|memory| {
        let blocks = layout
            .tensor_layout()
            .map_err(|error| TensorError::Kv { what: "the pool".to_owned(), reason: error.to_string() })?;
        Ok((memory, blocks))
    });
    let ((ranges, accelerators), blocks) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Task::ready(Err(error)),
    };
    // A share of each tensor keeps its storage.
    let owner: Arc<Vec<(Tensor, Tensor)>> = Arc::new(layers.to_vec());
    // SAFETY: the ranges are all of the tensors' buffers, which `owner` keeps, initialised and of plain numbers. The rest
    // is the caller's promise.
    let made = unsafe { KvPool::over(connector, identity, layout, blocks, ranges, accelerators, owner) };
    Task::after(made, |pool| {
        let refused = |error: connect_core::kv::KvError| TensorError::Kv {
            what: "the pool".to_owned(),
            reason: error.to_string(),
        };
        Task::ready(pool.map_err(refused))
    })
}

/// Where the tensors are, and the devices whose queues their content depends on.
fn memory(
    layout: &KvLayout,
    layers: &[(Tensor, Tensor)],
) -> Result<(Vec<Region>, Accelerators), TensorError> {
    if layers.len() != layout.layers as usize {
        let reason = format!("there are {} layers, and the layout has {}", layers.len(), layout.layers);
        return Err(TensorError::Kv { what: "the pool".to_owned(), reason });
    }
    let (blocks, tokens, heads) =
        (layout.blocks as usize, layout.block_tokens as usize, layout.kv_heads as usize);
    let (mut all, mut accelerators) = (Vec::with_capacity(2 * layers.len()), Accelerators::new());
    for (index, (k, v)) in layers.iter().enumerate() {
        for (name, tensor, dim) in [("k", k, layout.k_head_dim), ("v", v, layout.v_head_dim)] {
            let name = format!("{name}.{index}");
            let count = blocks * tokens * heads * dim as usize;
            let is_ours = match (layout.order, tensor.dims()) {
                (BlockOrder::LayerMajorNhd, dims) if dims.len() == 4 => {
                    dims == [blocks, tokens, heads, dim as usize]
                }
                (BlockOrder::LayerMajorHnd, dims) if dims.len() == 4 => {
                    dims == [blocks, heads, tokens, dim as usize]
                }
                (_, dims) => dims.first() == Some(&blocks) && tensor.elem_count() == count,
            };
            let dtype = crate::dtype_of(tensor.dtype());
            if !is_ours || dtype != Some(layout.dtype) {
                let reason = format!(
                    "it is not {blocks} blocks of {tokens} tokens, {heads} heads and {dim} elements of {}",
                    layout.dtype
                );
                return Err(refused(&name, tensor, reason));
            }
            let info = TensorInfo::new(&name, tensor);
            view::check_device(tensor.device(), &info)?;
            let pin = hold::pin(tensor).map_err(|denied| denied.into_error(&info))?;
            view::add_accelerator(&mut accelerators, pin.storage());
            match view::source_regions(pin.storage(), tensor.layout(), &info)?[..] {
                [region] => all.push(region),
                _ => return Err(refused(&name, tensor, "it is not contiguous".to_owned())),
            }
        }
    }
    Ok((all, accelerators))
}

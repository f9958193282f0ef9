//! The caches of `candle_nn`, by one copy on each side.

use candle_core::Tensor;
use candle_nn::kv_cache::{ConcatKvCache, KvCache};
use connect_core::blocks::BlockLease;
use connect_core::kv::KvLayout;

use super::copy::{candle, refused};
use super::{export_layer, import_layer};
use crate::error::{TensorError, TensorInfo};

/// A cache of one layer whose tokens can be copied into blocks.
pub trait ExportCache {
    /// Copies all its tokens, and says how many they are.
    ///
    /// # Errors
    /// As [`export_layer`]; [`TensorError::Kv`] for an empty cache.
    fn export(&self, lease: &mut BlockLease, layout: &KvLayout, layer: u32) -> Result<usize, TensorError>;
}

/// A cache of one layer that can be filled from blocks.
pub trait ImportCache {
    /// Appends the first `tokens` tokens of the blocks to what the cache has, which should be nothing.
    ///
    /// # Errors
    /// As [`import_layer`]; [`TensorError::Candle`] when the cache does not take them.
    fn import(
        &mut self,
        lease: &BlockLease,
        layout: &KvLayout,
        layer: u32,
        tokens: usize,
    ) -> Result<(), TensorError>;
}

impl ExportCache for KvCache {
    fn export(&self, lease: &mut BlockLease, layout: &KvLayout, layer: u32) -> Result<usize, TensorError> {
        let refused = |source: candle_core::Error| TensorError::Kv {
            what: "the KvCache".to_owned(),
            reason: source.to_string(),
        };
        let both = self.k().and_then(|k| Ok((k, self.v()?))).map_err(refused)?;
        export(both, lease, layout, layer)
    }
}

impl ExportCache for ConcatKvCache {
    fn export(&self, lease: &mut BlockLease, layout: &KvLayout, layer: u32) -> Result<usize, TensorError> {
        export((self.k().cloned(), self.v().cloned()), lease, layout, layer)
    }
}

impl ImportCache for KvCache {
    fn import(
        &mut self,
        lease: &BlockLease,
        layout: &KvLayout,
        layer: u32,
        tokens: usize,
    ) -> Result<(), TensorError> {
        let (k, v) = with_batch(import_layer(lease, layout, layer, tokens)?)?;
        appended(&k, self.append(&k, &v))
    }
}

impl ImportCache for ConcatKvCache {
    /// The tensors become the cache's own: its first append copies nothing.
    fn import(
        &mut self,
        lease: &BlockLease,
        layout: &KvLayout,
        layer: u32,
        tokens: usize,
    ) -> Result<(), TensorError> {
        let (k, v) = with_batch(import_layer(lease, layout, layer, tokens)?)?;
        appended(&k, self.append(&k, &v))
    }
}

fn export(
    both: (Option<Tensor>, Option<Tensor>),
    lease: &mut BlockLease,
    layout: &KvLayout,
    layer: u32,
) -> Result<usize, TensorError> {
    let (Some(k), Some(v)) = both else {
        let reason = "it is empty; run the prompt first".to_owned();
        return Err(TensorError::Kv { what: "the cache".to_owned(), reason });
    };
    if k.rank() < 2 {
        return Err(refused("k", &k, "it has no tokens".to_owned()));
    }
    let tokens = k.dims()[k.rank() - 2];
    export_layer(lease, layout, layer, &k, &v, 0..tokens)?;
    Ok(tokens)
}

fn appended(k: &Tensor, result: candle_core::Result<(Tensor, Tensor)>) -> Result<(), TensorError> {
    result.map(drop).map_err(|source| candle(&TensorInfo::new("k", k), source))
}

/// `candle_nn`'s caches have a batch in front.
fn with_batch((k, v): (Tensor, Tensor)) -> Result<(Tensor, Tensor), TensorError> {
    let one = |name: &str, tensor: Tensor| {
        tensor.unsqueeze(0).map_err(|source| candle(&TensorInfo::new(name, &tensor), source))
    };
    Ok((one("k", k)?, one("v", v)?))
}

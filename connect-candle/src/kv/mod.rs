//! KV caches of Candle models, in and out of [pools](connect_core::kv).
//!
//! | an engine that keeps its cache | uses | copies |
//! |---|---|---|
//! | as paged tensors, `[blocks, tokens, heads, dim]` or `[blocks, heads, tokens, dim]` for each layer | [`paged_pool`] | nothing: its own memory is the pool |
//! | as a tensor per layer, `[.., heads, tokens, dim]` | [`export_layer`], [`import_layer`] | once on each side |
//! | as `candle_nn`'s `KvCache` or `ConcatKvCache` (feature `nn`) | [`ExportCache`](nn::ExportCache), [`ImportCache`](nn::ImportCache) | once on each side |
//!
//! A tensor per layer can't be a pool: its heads lie apart, and it moves when it grows. The copy is of the tokens that are
//! handed off, at the speed of memory; moving bytes between processes costs as much again.

mod copy;
#[cfg(feature = "nn")]
pub mod nn;
mod paged;

pub use copy::{export_layer, import_layer};
pub use paged::paged_pool;

//! Candle tensors in and out of other processes, without copies.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use connect_candle::{TensorExt, recv_new};
//! use connect_core::{Connector, TensorEnvelope};
//!
//! # let connector = Connector::local()?;
//! // The process that has the tensor:
//! let offer = Tensor::arange(0f32, 6., &Device::Cpu)?.send_readable(&connector).wait()?;
//! let json = offer.envelope("x")?.to_json(); // over HTTP, a pipe, NATS ...
//!
//! // The process that wants it:
//! let tensors = recv_new(&connector, &TensorEnvelope::from_json(&json)?).wait()?;
//! assert_eq!(tensors["x"].to_vec1::<f32>()?, [0., 1., 2., 3., 4., 5.]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Every call begins at once and returns something that can be awaited, on any runtime, or waited for with
//! `wait()`, which blocks.
//!
//! | to | call |
//! |---|---|
//! | offer a tensor, or a view of one | [`TensorExt::send_readable`] |
//! | offer many tensors as one operation | [`send_tensors`] |
//! | read what a peer offers, into new tensors | [`recv_new`]; on a device of your choice [`recv_new_on`] |
//! | both, and know that every byte is as it was sent | [`send_tensors_with_digests`], [`recv_verified`] |
//! | read what a peer offers, into an existing tensor | [`TensorExt::recv_into`] |
//! | have a peer write into a new tensor | [`recv_writable`] |
//! | write a tensor into a peer's memory | [`TensorExt::send_into`] |
//! | receive into blocks of a shared pool | [`TensorExt::recv_into_unlocked`], `unsafe` |
//!
//! # What is copied
//! Nothing that is sent, and nothing that becomes or replaces a whole tensor. A view is sent as the list of
//! its contiguous pieces; one in so many tiny pieces that copying would be faster is an error that names
//! `.contiguous()`. Only [`recv_into`](TensorExt::recv_into) a *part* of a storage copies, once and on this
//! side.
//!
//! # What waits for what
//! A tensor that is offered is pinned: a read lock of its storage is held until the operation ends. Other
//! readers (every operation that computes something new) go on; in-place operations on the same storage
//! (`slice_set`, `zero_set`, `Var::set`) wait, on the thread that calls them. Over NIXL, an offer that nobody
//! took stays pinned beyond its deadline, until the transport can prove that no peer reads it any more. An
//! engine that writes to a pool while parts of it travel uses the KV pools of `connect-core` instead.
//!
//! What this library holds is refused to a second, conflicting operation at once, as
//! [`TensorError::Busy`]. It can't know of locks that other code holds: offering a tensor waits for an
//! in-place operation that is running on its storage, as every Candle operation does, and must not be called
//! from inside one, nor while the calling thread keeps a guard of `Tensor::storage_and_layout`.
//!
//! # Element types
//! All of Candle's. `f4`, `f6e2m3`, `f6e3m2` and `f8e8m0` are opaque bytes to Candle, and move only as whole
//! storages.
//!
//! # Devices
//! The CPU, and with the feature `cuda` CUDA devices (its module `cuda` says which memory, and what is waited for);
//! none of the latter has run on a GPU yet. Others are refused with [`TensorError::Device`].

#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
mod error;
mod ext;
mod fresh;
mod hold;
pub mod kv;
mod pin;
mod recv;
mod send;
mod store;
mod unlocked;
mod view;

pub use connect_core::{ReadableTensor, ReadableTensors};
pub use dtype::{candle_dtype, dtype_of};
pub use error::{TensorError, TensorInfo};
pub use ext::TensorExt;
pub use recv::{recv_new, recv_new_on, recv_verified, recv_writable, recv_writable_on};
pub use send::{send_tensors, send_tensors_with_digests};

/// The tensors of one receive, by name. [`Into`] a `HashMap`, they are what `VarBuilder::from_tensors` takes.
pub type NamedTensors = connect_core::NamedTensors<candle_core::Tensor>;

/// An operation of this crate that has begun: await it, or call [`wait`](connect_core::Task::wait) to block.
/// Dropping it ends the operation.
pub type Pending<T> = connect_core::Task<T, TensorError>;

/// Memory for a new tensor, which one peer may write. Made by [`recv_writable`].
pub type WritableTensor = connect_core::WritableTensor<candle_core::Tensor, TensorError>;

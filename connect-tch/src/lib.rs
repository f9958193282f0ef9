//! libtorch tensors in and out of other processes, without copies.
//!
//! ```no_run,standalone_crate
//! use connect_core::{Connector, TensorEnvelope};
//! use connect_tch::{TensorExt, recv_new};
//! use tch::{Kind, Tensor};
//!
//! # let connector = Connector::local()?;
//! // The process that has the tensor:
//! let tensor = Tensor::arange(6, (Kind::Float, tch::Device::Cpu));
//! // SAFETY: nobody writes to the tensor or resizes it before the offer has ended.
//! let offer = unsafe { tensor.send_readable(&connector) }.wait()?;
//! let json = offer.envelope("x")?.to_json(); // over HTTP, a pipe, NATS ...
//!
//! // The process that wants it:
//! let tensors = recv_new(&connector, &TensorEnvelope::from_json(&json)?).wait()?;
//! assert_eq!(Vec::<f32>::try_from(&tensors["x"])?, [0., 1., 2., 3., 4., 5.]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Names and behaviour are those of `connect-candle`; every call begins at once and returns something that
//! can be awaited or waited for.
//!
//! | to | call |
//! |---|---|
//! | offer a tensor, or a view of one | [`TensorExt::send_readable`], `unsafe` |
//! | offer many tensors as one operation | [`send_tensors`], `unsafe` |
//! | read what a peer offers, into new tensors | [`recv_new`] |
//! | have a peer write into a new tensor | [`recv_writable`] |
//! | write a tensor into a peer's memory | [`TensorExt::send_into`], `unsafe` |
//!
//! # Why sending is unsafe
//! A libtorch tensor has no lock and any number of handles, and every one of them may write to the storage or
//! move it (`resize_`) in safe code. This library can keep the storage alive, and does; that nobody changes
//! it while a peer reads is a promise that only the caller can make. Receiving is safe: a new tensor has no
//! other handle before every byte has arrived.
//!
//! # What can be sent
//! Dense tensors of the element types both sides know, whole or views in not too many pieces, on the CPU or, over NIXL,
//! on a CUDA device: that is waited for before a peer can reach them and after bytes arrived ([`recv_new_on`]). None of
//! the latter has run on a GPU yet. Memory of libtorch's `expandable_segments` can't be registered by engines. Anything
//! else is a [`TensorError`] that names the remedy, never a panic.
//!
//! # Linking
//! A program that uses this crate needs libtorch at run time. A library can't pass an rpath on, so set one in
//! the program's own `.cargo/config.toml`, or set `LD_LIBRARY_PATH`:
//! ```toml
//! [env]
//! LIBTORCH = "/path/to/site-packages/torch"
//! [target.x86_64-unknown-linux-gnu]
//! rustflags = ["-C", "link-arg=-Wl,-rpath,/path/to/site-packages/torch/lib"]
//! ```

mod cuda;
mod dtype;
mod error;
mod fresh;
mod inspect;
mod recv;
mod send;

pub use connect_core::{ReadableTensor, ReadableTensors};
pub use dtype::{dtype_of, kind_of};
pub use error::{TensorError, TensorInfo};
pub use recv::{WritableTensor, recv_new, recv_new_on, recv_writable, recv_writable_on};
pub use send::{TensorExt, send_tensors};

/// An operation of this crate that has begun: await it, or call [`wait`](connect_core::Task::wait) to block.
/// Dropping it ends the operation.
pub type Pending<T> = connect_core::Task<T, TensorError>;

/// The tensors of one receive, by name.
pub type NamedTensors = connect_core::NamedTensors<tch::Tensor>;

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
//! | read what a peer offers, into new tensors | [`recv_new`]; on a device of your choice [`recv_new_on`] |
//! | both, and know that every byte is as it was sent | [`send_tensors_with_digests`], `unsafe`, and [`recv_verified`] |
//! | read what a peer offers, into an existing tensor | [`TensorExt::recv_into`], `unsafe` |
//! | have a peer write into a new tensor | [`recv_writable`], [`recv_writable_on`] |
//! | write a tensor into a peer's memory | [`TensorExt::send_into`], `unsafe` |
//! | receive into blocks of a shared pool | [`TensorExt::recv_into_unlocked`], `unsafe` |
//!
//! # What is unsafe, and why
//! A libtorch tensor has no lock and any number of handles, and every one of them may write to the storage or
//! move it (`resize_`) in safe code. This library can keep the storage alive, and does; that nobody changes
//! it while a peer reads is a promise that only the caller can make, and so is that nobody uses it while it is
//! received into. Receiving a new tensor is safe: it has no other handle before every byte has arrived.
//!
//! # What can be sent
//! Dense tensors of the element types both sides know, whole or views in not too many pieces, on the CPU or, over a
//! transport that reaches it (NIXL), on a CUDA device. Anything else is a [`TensorError`] that names the remedy, never a
//! panic: sparse tensors of every layout, quantised, nested and oneDNN ones, lazy conjugates and negatives, zeros without
//! memory, other devices, and element types that tch or the wire have no name for. `Bool` tensors that arrive are
//! checked: a byte that is neither 0 nor 1 is [`TensorError::NotBool`].
//!
//! # GPUs
//! From the CPU to a GPU the receiver changes two lines; the sender's are the same for a tensor that is on a GPU.
//! ```diff
//! -let device = Device::Cpu;
//! +let device = Device::Cuda(0);
//! -let tensors = recv_new(&connector, &envelope).wait()?;
//! +let tensors = recv_new_on(&connector, &envelope, device).wait()?;
//! ```
//! None of this has run on a GPU yet.
//!
//! A GPU works through streams, and tch shows neither which one a tensor's work is in nor a way to wait for it. So all of
//! the device is waited for: before a peer can reach its memory, and after bytes have arrived, before anybody gets them.
//! Both happen on a thread of the device, and deadlines bound them.
//!
//! libtorch's caching allocator takes memory by `cudaMalloc`, which engines can register. With
//! `PYTORCH_CUDA_ALLOC_CONF` set to `expandable_segments:True` or `backend:cudaMallocAsync` it does not, and tch has no
//! way to ask: the engine then refuses the memory, or moves it through the host.
//!
//! Digests are computed by the CPU: [`send_tensors_with_digests`] refuses tensors on a GPU, and what was received there
//! is copied to the CPU to be checked. So are `Bool` tensors.
//!
//! # Linking
//! A program that uses this crate needs libtorch at run time. A library can't pass an rpath on, but tells the build
//! scripts of those who depend on it where libtorch is. In the program's own `build.rs`:
//! ```text
//! let libtorch = std::env::var("DEP_CONNECT_TCH_LIBTORCH_LIB").expect("connect-tch is a direct dependency");
//! println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}");
//! ```
//! The README has all that a project needs, and the two lines more that a GPU takes: the linker drops libtorch's CUDA part
//! unless told otherwise, and then there is no such device.

mod cuda;
mod device;
mod dtype;
mod error;
mod ext;
mod fresh;
mod inspect;
mod recv;
mod send;
mod target;

pub use connect_core::{ReadableTensor, ReadableTensors};
pub use dtype::{dtype_of, kind_of};
pub use error::{ReceivedTensor, TensorError, TensorInfo};
pub use ext::TensorExt;
pub use recv::{recv_new, recv_new_on, recv_verified, recv_writable, recv_writable_on};
pub use send::{send_tensors, send_tensors_with_digests};

/// An operation of this crate that has begun: await it, or call [`wait`](connect_core::Task::wait) to block.
/// Dropping it ends the operation.
pub type Pending<T> = connect_core::Task<T, TensorError>;

/// The tensors of one receive, by name.
pub type NamedTensors = connect_core::NamedTensors<tch::Tensor>;

/// Memory for a new tensor, which one peer may write. Made by [`recv_writable`] and [`recv_writable_on`].
pub type WritableTensor = connect_core::WritableTensor<tch::Tensor, TensorError>;

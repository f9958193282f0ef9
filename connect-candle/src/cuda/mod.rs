//! Tensors in GPU memory: the feature `cuda`.
//!
//! ```no_run
//! use candle_core::{DType, Device};
//! use connect_candle::{TensorExt, cuda, recv_new_on};
//! # fn example(connector: &connect_core::Connector) -> Result<(), Box<dyn std::error::Error>> {
//! let device = Device::new_cuda(0)?;
//! let k = cuda::zeros((8, 128), DType::BF16, &device)?; // memory that an engine can register
//! let offer = k.send_readable(connector).wait()?;
//! let v = recv_new_on(connector, &offer.envelope("k")?, &device).wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! It needs a transport that reaches such memory: NIXL. The `local` transport refuses it by name.
//!
//! # Which memory
//! Candle allocates from CUDA's stream-ordered pool (`cuMemAllocAsync`), which the legacy inter-process handles of CUDA
//! do not cover and which was reported not to work with GPUDirect RDMA (docs/gpu.md has the sources). An engine would
//! refuse to register it, or move it through the host without saying so. So a tensor in such memory is refused, and
//! there are three ways on:
//! * [`zeros`] makes a tensor in plain memory (`cuMemAlloc`) from the start: a pool of KV blocks, say;
//! * [`plain`] copies a tensor there, on the GPU;
//! * [`send_staged`] copies it to system memory and offers that. Any transport moves it then.
//!
//! What is received lies in plain memory, and can be offered again as it is.
//!
//! # What waits for what
//! A GPU works through streams, and Candle gives each thread its own: a thread that waits for its stream does not wait
//! for another's. So before a peer can reach a tensor, all of the device's context is waited for, and again when bytes
//! have arrived, before the tensor is handed out; where the GPU asks for it, writes of other devices are flushed, too.
//! Both happen on a thread of the device. A deadline bounds them.
//!
//! So kernels that were launched before [`send_readable`](crate::TensorExt::send_readable) by whichever thread are over
//! when the tensor is offered. A kernel that writes to the tensor must not be launched until the operation has ended,
//! and for an in-place operation of Candle the lock sees to that.

mod context;
mod driver;
mod memory;
mod staged;

pub(crate) use context::{accelerator, drop_in_order, free_in_order};
pub(crate) use memory::{allocate, buffer, to_host};
pub use memory::{is_plain, plain, zeros};
pub use staged::{recv_new_staged, send_staged};

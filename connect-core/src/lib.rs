//! Moves memory between model processes without copies: a Rust
//! [`dynamo.nixl_connect`](https://docs.nvidia.com/dynamo/reference/api/python/nixl_connect).
//!
//! One process offers memory and hands a small JSON document to another, over any channel the two have. The
//! other reads or writes the bytes directly, from memory to memory, and both learn that it is done.
//!
//! ```
//! use connect_core::{Connector, RdmaMetadata};
//!
//! let (prefill, decode) = (Connector::local()?, Connector::local()?); // usually in two processes
//!
//! // One side offers memory, and gives it away until the operation ends.
//! let offer = prefill.create_readable(vec![1.5f32; 1024]).wait()?;
//! let document = offer.metadata().to_json(); // over HTTP, a pipe, NATS ...
//!
//! // The other reads it into memory of its own.
//! let metadata = RdmaMetadata::from_json(&document)?;
//! let read = decode.begin_read(&metadata, vec![0f32; 1024]).wait()?;
//! let received = read.wait_for_completion().wait()?;
//! assert_eq!(received.memory, [1.5; 1024]);
//!
//! // And the first is told.
//! assert_eq!(offer.wait_for_completion().wait()?.bytes, 4096);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! Whatever has a `wait()` can be awaited instead, on any runtime.
//!
//! # Goals
//! * Bytes go from one process' memory to the other's and are not touched in between.
//! * It works on a laptop: the embedded transport needs nothing installed. NIXL (feature `nixl`) adds other
//!   hosts, RDMA, GPU memory and Python peers, with the same calls.
//! * Python workers that use `dynamo.nixl_connect` are peers as they are, in both directions.
//! * Memory is never freed, moved or handed back while a transfer may touch it. Every wait ends.
//!
//! # Not goals
//! * A side channel. How the document travels is the program's own business; it is a secret. ([`rendezvous`] uses
//!   whatever there is by key.)
//! * Service discovery, request routing, authentication of peers.
//! * Systems other than Linux.
//! * Tensors. This crate knows bytes, element types and shapes; `connect-candle` and `connect-tch` know
//!   tensors.
//!
//! # Concepts
//! | | is |
//! |---|---|
//! | [`Connector`] | where operations come from. One per process is the rule; clones share it |
//! | [`ReadableOperation`], [`WritableOperation`] | memory on offer: the *passive* side of a transfer |
//! | [`ReadOperation`], [`WriteOperation`] | a transfer under way: the *active* side |
//! | [`RdmaMetadata`] | the document from the passive to the active side, exactly the Python original's |
//! | [`TensorEnvelope`] | the document with names, element types and shapes around it |
//! | [`SourceMemory`], [`TargetMemory`] | what may be read from, and written to: owned, at a stable address |
//! | [`Descriptor`], [`DescriptorMut`] | one contiguous piece of such memory; a list of them is one operation |
//! | [`Slab`], [`Slot`] | memory that is registered once and used piece by piece: [`pool`] |
//! | [`Registered`] | memory of one's own that stays registered |
//! | [`blocks`] | pools whose pieces peers name by number: a card once, and then tickets |
//! | [`kv`] | KV caches of inference engines in such pools, and their hand-off between processes; measured by the feature `metrics` |
//! | `checkpoint` | safetensors files served from disk, and received into a new file; by the feature `safetensors` |
//! | [`Rendezvous`] | envelopes put under keys of any side channel, and taken there: [`rendezvous`] |
//! | [`FanOut`] | one memory for several readers, each with a document and an answer of its own |
//! | [`Pending`], [`Completion`] | the two answers of an operation: it is open, it has ended |
//! | [`Deadline`] | when an operation must have ended; 30 s unless set |
//! | [`Error`], [`Failed`] | why it failed, whose side that is on, and what became of the memory |
//! | [`Cancellation`] | what a cancel found: nothing begun, a quiet end, memory that stays parked, or an operation that had ended |
//! | [`Report`], [`Stats`] | what moved and how long each part took; what the connector did so far |
//! | [`transport`] | how bytes move: [`local`](transport::local) always, `nixl` by feature; and [`fault`](transport::fault), which makes either fail on purpose in your tests |
//!
//! Which of these a class or method of the Python original has become, and which of its defects are gone, is
//! in [`original`].
//!
//! # Who owns which memory when
//! 1. Before an operation: the caller.
//! 2. From the call until the operation ends: the connector. Safe code has no way to reach a target then,
//!    and none to change a source.
//! 3. After success: a target comes back with [`Received`]; a source is dropped (keep an `Arc`, or a clone of
//!    its [`Descriptor`], to have it too).
//! 4. After a failure: back with [`Recovered::Returned`] if the transport says that nothing will touch it any
//!    more. If it can't say so, the memory is *parked*: the connector keeps it until it is quiet, counts it in
//!    [`Stats::parked_bytes`], and only then frees it. Once more could be parked than
//!    [`ConnectorBuilder::parked_limit`] allows, new operations are refused with [`Error::ParkedLimit`].
//!
//! Dropping a handle cancels its operation, and 4 holds. Dropping the last handle of a connector ends the
//! connector, waits for that a quarter of a second at most, and 4 holds; [`Connector::shutdown`] waits as long
//! as you say. If the driver thread panics, nothing it holds is ever freed.
//!
//! `unsafe` is where a caller vouches for memory that this crate does not know: [`Descriptor::from_raw_parts`],
//! [`DescriptorMut::from_raw_parts`] and implementations of the two memory traits.
//!
//! # Promises
//! | | promise | kept by | tests |
//! |---|---|---|---|
//! | P1 | memory outlives the transfer | the state machine releases memory only after the transport said quiet (`op/state.rs`, [`transport::Quiescence`]) | `p1_p2_hold_in_every_order_of_events`, `p1_p2_p6_p7_hold_in_random_schedules_of_everything`, `p1_a_deadline_over_busy_memory_…` |
//! | P2 | every wait ends | deadlines in the driver, and a second thread that answers while the driver is stuck (`driver/watchdog.rs`) | `d11_passive_wait_has_deadline`, `an_active_operation_with_a_stopped_peer_…`, `loom_p2_no_command_is_slept_through` |
//! | P3 | complete means visible | `local`: complete only after the serving side's OK. NIXL: after its status, with the notification behind the last slice. GPUs: their contexts are waited for before and after ([`accelerator`]; shown on a fake driver) | `p3_received_memory_is_handed_out_only_after_its_device_sees_it`, `a_write_given_up_just_before_its_last_byte_is_copied_is_not_complete` |
//! | P4 | a restarted peer is never taken for its predecessor | 48 random bits in each connector's name | `p4_a_restarted_python_worker_…`, `a_restarted_peer_is_not_taken_for_its_predecessor` |
//! | P5 | a malformed or incompatible peer is refused before an address is used | the codecs in [`wire`], and each transport's own reader of its blob | `p5_a_blob_cut_anywhere_is_refused` and its neighbours, `wire/*/tests.rs` |
//! | P6 | errors never collapse | [`Error`] keeps the first cause with its source | `d14_peer_killed_is_a_typed_error_…` |
//! | P7 | no notification is lost or counts twice | keys are matched byte by byte, once; the rest is counted in [`Stats::unmatched_notifications`] | `d16_foreign_notifications_are_not_kept`, `d17_only_the_exact_key_completes_once_…` |
//! | P8 | only what is offered is reachable, only while it is | `local`: grants and leases. NIXL: metadata of one operation's regions (of a slot, its slab), and a new agent where an offer must be revoked | `p8_metadata_holds_its_own_operation_s_regions_only`, `an_ended_offer_is_refused` |
//!
//! # What can't be promised
//! * Over NIXL whoever holds a document can use it until the offer's agent is gone, and can claim completion
//!   with its key. Treat documents as passwords, and take them from authenticated channels only: what is in
//!   them reaches NIXL's own parser, and UCX dials the addresses.
//! * Cross-memory attach trusts the processes of one user as the kernel does. See
//!   [`transport::local`](transport::local#what-an-offer-allows).
//! * NIXL can't call back a posted transfer, so a cancel may take as long as the transfer.

pub mod accelerator;
pub mod blocks;
#[cfg(feature = "safetensors")]
pub mod checkpoint;
mod clock;
mod connector;
mod deadline;
mod device;
mod driver;
mod dtype;
mod error;
mod fingerprint;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod kv;
pub mod layout;
mod memory;
mod op;
pub mod original;
pub mod pool;
pub mod rendezvous;
mod stats;
mod sync;
mod task;
mod tensors;
pub mod transport;
mod trial;
pub mod wire;

pub use accelerator::Accelerator;
pub use connector::{Connector, ConnectorBuilder};
pub use deadline::Deadline;
pub use device::{Device, DeviceKind, ParseDeviceError};
pub use driver::Polling;
pub use dtype::{DType, ParseDTypeError};
pub use error::{Cancellation, Context, Error, ErrorCategory, Failed, Recovered};
pub use memory::{Descriptor, DescriptorMut, MemoryError, Region, SourceMemory, TargetMemory};
pub use op::{
    All, Completion, FanOut, OperationKind, OperationName, OperationStatus, Pending, ReadOperation,
    ReadableOperation, Received, Report, WritableOperation, WriteOperation,
};
pub use pool::{Registered, Slab, Slot};
pub use rendezvous::{Rendezvous, RendezvousError};
pub use stats::Stats;
pub use task::{Task, Wait};
pub use tensors::{NamedTensors, ReadableTensor, ReadableTensors, WritableTensor};
pub use wire::{
    Digest, DigestMismatch, MediaDescriptor, MetadataError, RdmaMetadata, SerializedDescriptor,
    TensorEnvelope, TensorSpec,
};

//! Coming from `dynamo.nixl_connect`: every class and method of the Python original, and every defect known
//! of it, with what became of them. There is no code here.
//!
//! The original is the one in `ai-dynamo-runtime` 1.6.1. Its defects were found by running it and reading it;
//! the tests in `tests/tests/{original_defects,notifications}.rs` carry their numbers.
//!
//! # Connector
//! | original | here |
//! |---|---|
//! | `Connector(worker_id=None)` | [`Connector::builder`], [`worker_id`](crate::ConnectorBuilder::worker_id), [`build`](crate::ConnectorBuilder::build); [`Connector::local`] with defaults |
//! | `await begin_read(remote_metadata, local_descriptors)` | [`Connector::begin_read`], which begins at once |
//! | `await begin_write(local_descriptors, remote_metadata)` | [`Connector::begin_write`], likewise |
//! | `await create_readable(local_descriptors)` | [`Connector::create_readable`] |
//! | `await create_writable(local_descriptors)` | [`Connector::create_writable`] |
//! | `await initialize()` | none: it did nothing. [`build`](crate::ConnectorBuilder::build) starts everything |
//! | `name` | [`Connector::worker_id`] |
//! | `hostname` | none: ask the operating system |
//! | `is_cuda_available` | none: a framework knows; `doctor` shows it. Memory says where it is: [`Region::device`](crate::Region::device) |
//! | `==`, `!=` | none: clones are the same connector; compare [`worker_id`](Connector::worker_id) |
//! | `str`, `repr` | `Debug` |
//!
//! # Connection and Remote
//! | original | here |
//! |---|---|
//! | `Connection(connector, number)`, `connector`, `metadata`, `name`, `initialize()` | none: an agent is the transport's own, see [`transport`](crate::transport). An operation's blob is in [`RdmaMetadata::nixl_metadata`] |
//! | `acquire_remote_ref(name)`, `release_remote_ref(name)` | none: peers are remembered by the driver. [`Connector::connect`] gets to know one ahead of time |
//! | `Remote(connection, metadata)`, `connection`, `name`, `with remote` | [`ReadOperation::remote`], [`WriteOperation::remote`], [`Report::peer`]: names |
//!
//! # Descriptor and SerializedDescriptor
//! | original | here |
//! |---|---|
//! | `Descriptor(torch.Tensor)` | `TensorExt` of `connect-candle` and `connect-tch` |
//! | `Descriptor((ndarray, device))` | [`Descriptor::new`] of an owned buffer: `Vec<T>`, `Box<[T]>`, `Arc<[T]>`, `&'static [T]`. The device follows from the memory |
//! | `Descriptor(bytes)` | [`Descriptor::new`] of a `Vec<u8>` |
//! | `Descriptor((ptr, size, device, ref))` | [`Descriptor::from_raw_parts`] and [`DescriptorMut::from_raw_parts`], `unsafe`, with an owner |
//! | one class for sources and targets | [`Descriptor`] to read from, [`DescriptorMut`] to write to |
//! | `register_memory`, `register_with_connector`, `deregister_with_connector`, `is_registered` | none: operations register what they need, and count who uses it; a [`Slab`] is registered for good |
//! | `device`, `size`, `ptr` | [`device`](Descriptor::device), [`len`](Descriptor::len), [`addr`](Descriptor::addr) |
//! | `metadata`, `from_serialized()` | [`SerializedDescriptor`] and its [`region`](SerializedDescriptor::region); inside [`RdmaMetadata::descriptors`] |
//! | `SerializedDescriptor.device`, `ptr`, `size`, `to_descriptor()` | the same names, and [`region`](SerializedDescriptor::region). It never becomes a [`Descriptor`]: those are of this process |
//!
//! # Device and the enums
//! | original | here |
//! |---|---|
//! | `Device("cuda:1")`, `Device((kind, id))`, `id`, `kind`, `str` | [`Device`]: parsed and printed alike; names that only look like devices are refused |
//! | `DeviceKind.HOST`, `CUDA`, `XPU` | [`DeviceKind`], the same values |
//! | `DeviceKind.UNSPECIFIED`, `OperationKind.UNSPECIFIED` | none: what is not specified does not exist |
//! | `nixl_mem_type` | none: the NIXL transport's own business |
//! | `OperationKind.READ`, `WRITE` | [`OperationKind`], the same values |
//! | `OperationStatus` | [`OperationStatus`], the same names and values. `str` gives the name, not `INIT`, `PROC`, `DONE`, `STOP`, `ERR` |
//!
//! # Operations
//! | original | here |
//! |---|---|
//! | `AbstractOperation`, `ActiveOperation`, `PassiveOperation` | none: four types with the same methods |
//! | `connection` | none; [`id`](ReadOperation::id) names an operation in logs and errors |
//! | `operation_kind` | [`RdmaMetadata::kind`]; the type says the rest |
//! | `with operation:` | dropping it ends it |
//! | `await wait_for_completion()` | [`wait_for_completion`](ReadOperation::wait_for_completion), to await or to block on; or await the operation itself. It takes the operation and returns what it was for |
//! | `status` | [`status`](ReadOperation::status) |
//! | `cancel()` of active operations | [`cancel`](ReadOperation::cancel), which all four have |
//! | `metadata(hex_encode=False)` | [`metadata`](ReadableOperation::metadata); [`RdmaMetadata::with_hex_encoding`] |
//! | `ReadOperation.results()` | [`Received::memory`], which is there on success only |
//! | `remote` | [`remote`](ReadOperation::remote), the name |
//!
//! # RdmaMetadata
//! | original | here |
//! |---|---|
//! | `descriptors`, `nixl_metadata`, `notification_key`, `operation_kind` | [`descriptors`](RdmaMetadata::descriptors), [`nixl_metadata`](RdmaMetadata::nixl_metadata), [`notification_key`](RdmaMetadata::notification_key), [`kind`](RdmaMetadata::kind) |
//! | `model_dump_json()`, `model_validate_json()` | [`to_json`](RdmaMetadata::to_json), byte for byte the same, and [`from_json`](RdmaMetadata::from_json); serde works as well |
//! | `to_descriptors()` | [`regions`](RdmaMetadata::regions): numbers of another process, not descriptors |
//! | `validate_operation_kind` | none: a value is always valid |
//!
//! # Old names (`dynamo.connect`, until 2025)
//! | old | now | here |
//! |---|---|---|
//! | package `dynamo.connect` | `dynamo.nixl_connect` | this crate |
//! | `Connector(namespace, runtime, worker_id)`, `namespace`, `runtime`, `metadata` | removed | none |
//! | mandatory `initialize()` | no-op | none |
//! | synchronous `create_readable`, `create_writable` | async | both: [`Pending`] awaits and blocks |
//! | `remote_request: SerializedRequest`, `to_serialized()` | `RdmaMetadata`, `metadata()` | [`RdmaMetadata`]; its hex form of `nixl_metadata` is read |
//! | `Descriptor.register_memory(connector)` | `register_with_connector(connection)` | none |
//! | operation's `connector` | `connection` | none |
//!
//! # Defects
//! *Here* says what is different and where to see it: a type, or a test in `code`. *Partly* names what is left.
//! *Later* belongs to a part that is not built. *Can't* is beyond a library over NIXL.
//!
//! | | the original | here |
//! |---|---|---|
//! | D1 | copies a strided tensor silently; as a target the data lands in the copy | a view is a list of pieces: [`layout`](crate::layout), `d1_d2_a_strided_view_moves_its_own_bytes_and_no_copy_of_them` |
//! | D2 | ignores strides of arrays | same test |
//! | D3 | no order between GPU streams and transfers | a device is waited for before an offer and after a receive ([`accelerator`](crate::accelerator)): `p3_memory_is_offered_only_after_its_device_has_produced_it_and_the_driver_goes_on_meanwhile`, `p3_what_another_thread_queued_is_in_what_a_peer_reads`. Shown on a fake driver, not on a GPU |
//! | D4 | a released offer can still be read; a late read over TCP kills the offering process | revoked by a new agent, memory parked until then: `d4_stale_metadata_reads_nothing_once_the_memory_was_given_up`, `d4_a_late_read_over_tcp_does_not_kill_the_process_that_offered` |
//! | D5 | raw pointers keep nothing alive | [`Descriptor::from_raw_parts`] is `unsafe` and takes an owner |
//! | D6 | immutable `bytes` as a target | [`TargetMemory`] is another trait |
//! | D7 | frees a transfer that is still moving | the state machine, `p1_p2_hold_in_every_order_of_events`; `d7_d14_memory_of_many_pieces_comes_free_only_when_it_is_quiet` |
//! | D8 | one operation's end deregisters memory of others | users are counted, and a slab stays registered: `d8_shared_descriptor_stays_registered`, `in_the_steady_state_nothing_is_registered_or_described_again` |
//! | D9 | nothing starts before somebody looks; cancelling starts it | `d9_begin_posts_at_once`, `d9_cancel_starts_nothing_more`, `d9_d18_a_refused_operation_never_starts_and_leaves_nothing_behind` |
//! | D10 | a torn target looks like any other | it comes back on success only as [`Received`]; with a failure its content is unspecified, and [`Recovered`] says so |
//! | D11 | a passive wait never ends | [`Deadline`], `d11_passive_wait_has_deadline` |
//! | D12 | passive operations can't be cancelled | [`cancel`](ReadableOperation::cancel), or drop it |
//! | D13 | a failed reader tells nobody | the passive side hears of it at once, from peers of this library: `p2_an_offer_hears_that_its_reader_gave_up`. A Python reader tells nobody; there the deadline ends the wait |
//! | D14 | errors are never reported as a status, and skip the clean-up | [`Error`], final states: `d14_peer_killed_is_a_typed_error_and_status_is_final` |
//! | D15 | one notification that is not UTF-8 breaks all | `d15_non_utf8_notification_harms_nobody` |
//! | D16 | notifications pile up and are scanned each time | a map from key to operation: `d16_foreign_notifications_are_not_kept` |
//! | D17 | anybody who knows the key can claim completion | `local`: only who moved the bytes. NIXL: can't; the exact key counts, once, and the report names its sender: `d17_only_the_exact_key_completes_once_and_the_report_names_its_sender` |
//! | D18 | failed constructors leave broken objects | `d9_d18_…`; there are no half-made values |
//! | D19 | inflates without bound | [`MAX_BLOB_BYTES`](crate::wire::MAX_BLOB_BYTES), `d19_a_zip_bomb_is_refused_at_once_and_within_bounds` |
//! | D20 | a restarted peer of the same name can't be loaded | `d20_a_restarted_peer_of_the_same_name_is_served_while_operations_of_the_old_one_live` |
//! | D21 | races between using and removing a peer | one thread owns all peers: `driver/peers.rs` |
//! | D22 | an agent without locks, used from many threads | one thread owns the agent: the driver |
//! | D23 | no `close()` | [`Connector::shutdown`] |
//! | D24 | no liveness | `local` sees a peer's end on its socket at once; over NIXL peers of this library say that they live, and 5 s of silence end the wait: `p2_an_offer_hears_that_its_reader_died`. Python peers are silent |
//! | D25 | a document holds keys of all registered memory | one operation's only: `d25_metadata_does_not_grow_with_what_else_is_registered`, `p8_metadata_holds_its_own_operation_s_regions_only` |
//! | D26 | accepts kinds, addresses and devices that can't be | `d26_a_document_that_the_original_would_take_is_refused_by_field`, `d26_addresses_outside_what_the_peer_registered_are_refused` |
//! | D27 | a document can be used again and never expires | `local`: taken once. NIXL: partly, until its agent is gone, whose lifetime can be bounded: `d27_a_replayed_document_completes_nothing_twice`, `p8_a_document_ends_with_the_lifetime_of_its_agent` |
//! | D28 | sleeps 5 to 100 ms between looks | the driver is woken, or yields and then sleeps (`driver/pace.rs`): measure with `cargo xtask bench` |
//! | D29 | an idle connector burns a core | the driver thread sleeps for longer and longer (`NixlProgress`); `cargo xtask bench` |
//! | D30 | forgets a peer after each operation | peers are remembered until they are lost |
//! | D31 | registers anew for each operation | a [`Slab`] is registered once, and memory in several operations at once is, too: `in_the_steady_state_nothing_is_registered_or_described_again` |
//! | D32 | both sides must have buffers of one length | a reader's may be larger: [`Connector::begin_read_into`]. For the rest equal lengths, but of slices: [`Descriptor::slice`], [`DescriptorMut::slice`], a [`Slot`]'s length |
//! | D33 | blocks the event loop | [`Pending`]: the driver thread does the work |
//! | D34 | serialises the agent twice for each document | once; the connection part is kept, and of a slab everything |
//! | D35 | one operation for each tensor | a list of descriptors, and [`TensorEnvelope`], are one operation |
//! | D36 | nothing can be configured | [`ConnectorBuilder`], `NixlConfig`, [`LocalConfig`](crate::transport::local::LocalConfig) |
//! | D37 | `is_cuda_available` raises | there is none |
//! | D38 | `Connector` can't be hashed | clone it, or use its [`worker_id`](Connector::worker_id) |
//! | D39 | `hex_encode` is ignored after the first call | [`with_hex_encoding`](RdmaMetadata::with_hex_encoding) makes another document |
//! | D40 | cancelling after completion turns it into a cancel | `a_final_status_never_changes`, `a_complete_operation_is_not_cancelled_any_more` |
//! | D41 | accepts lists of anything | types |
//! | D42 | no way to oneself | `local`: a connector can be its own peer. NIXL: two connectors of one process; one alone is refused by name |
//! | D43 | device stated, not checked | memory says where it is; raw parts are `unsafe` |
//! | D44 | one kind of memory in one operation | any, split inside: `memory_of_several_kinds_is_one_offer_and_one_transfer_with_its_devices_in_order`; the original reads such a document and refuses to act on it |
//! | D45 | no dtype or shape; unknown dtypes become float32 | [`TensorEnvelope`], [`DType`]: `an_unknown_name_is_an_error_and_never_float32` |
//! | D46 | no version | [`ENVELOPE_VERSION`](crate::wire::ENVELOPE_VERSION); the inner document stays as it is |

#[expect(unused_imports, reason = "names for the links above")]
use crate::{
    Connector, ConnectorBuilder, DType, Deadline, Descriptor, DescriptorMut, Device, DeviceKind, Error,
    OperationKind, OperationStatus, Pending, RdmaMetadata, ReadOperation, ReadableOperation, Received,
    Recovered, Report, SerializedDescriptor, Slab, Slot, TargetMemory, TensorEnvelope, WriteOperation,
};

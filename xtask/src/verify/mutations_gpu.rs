//! Mutants of what keeps GPU streams and transfers in order. Those of Candle run on the fake CUDA driver.

use super::mutations::{Edit, Mutant};

const CONTEXT: &str = "connect-candle/src/cuda/context.rs";
/// The feature `cuda` goes with it.
pub(super) const TARGET: &[&str] = &["--features", "cuda", "--test", "cuda"];
const READS: &str = "p3_what_another_thread_queued_is_in_what_a_peer_reads";
const IN_CONTEXT: &str = "p3_what_arrives_by_a_copy_in_the_context_is_seen_by_every_thread";

const fn torch(what: &'static str, edits: &'static [Edit], test: &'static str) -> Mutant {
    Mutant { of: "P3, libtorch", what, edits, package: "connect-tch", target: &["--lib"], test }
}

const fn candle(what: &'static str, edits: &'static [Edit], test: &'static str) -> Mutant {
    Mutant { of: "P3, D3", what, edits, package: "connect-candle", target: TARGET, test }
}

/// All of them.
pub(super) const MUTANTS: &[Mutant] = &[
    candle(
        "a stream is waited for, and not its context",
        &[Edit {
            file: CONTEXT,
            find: "        self.context.synchronize().map_err(said)?;",
            replace: "        self.context.per_thread_stream().synchronize().map_err(said)?;",
        }],
        READS,
    ),
    candle(
        "memory is offered without waiting for its device",
        &[Edit {
            file: "connect-core/src/driver/port.rs",
            find: "        self.refused = accelerator::synchronize(&self.accelerators).err();\n",
            replace: "",
        }],
        READS,
    ),
    candle(
        "what was received is handed out without waiting for its device",
        &[Edit {
            file: "connect-core/src/driver/settling.rs",
            find: "        let arrived = verdict == Verdict::Complete && info.name.is_incoming();",
            replace: "        let arrived = false;",
        }],
        IN_CONTEXT,
    ),
    candle(
        "writes over the bus are not flushed",
        &[Edit {
            file: CONTEXT,
            find: "        if self.needs_flush().map_err(said)? {",
            replace: "        if self.needs_flush().map_err(said)? && false {",
        }],
        "p3_what_arrives_over_the_bus_is_seen_by_every_thread",
    ),
    candle(
        "memory that is received into in place names no device",
        &[Edit {
            file: "connect-candle/src/unlocked.rs",
            find: "view::accelerator(pin.storage()).into_iter().collect();",
            replace: "view::accelerator(pin.storage()).into_iter().take(0).collect();",
        }],
        IN_CONTEXT,
    ),
    candle(
        "the transport is called without the device's context",
        &[Edit {
            file: "connect-core/src/driver/mod.rs",
            find: "        accelerator::bind(&operation.accelerators)?;\n",
            replace: "",
        }],
        "p3_what_another_thread_queued_is_in_what_is_written_to_a_peer",
    ),
    candle(
        "a tensor that was offered is freed in another thread's order",
        &[Edit {
            file: "connect-candle/src/pin.rs",
            find: "        crate::cuda::drop_in_order(&self.0);",
            replace: "        let _ = (crate::cuda::drop_in_order, &self.0);",
        }],
        "memory_is_freed_after_what_other_threads_queued_on_it",
    ),
    candle(
        "memory of the pool counts as plain",
        &[Edit {
            file: "connect-candle/src/cuda/memory.rs",
            find: "    if kind.is_pooled {",
            replace: "    if kind.is_pooled && false {",
        }],
        "memory_from_the_pool_is_refused_with_the_remedies_and_each_of_them_works",
    ),
    torch(
        "a tensor that is offered names no device",
        &[Edit {
            file: "connect-tch/src/inspect.rs",
            find: "self.places.iter().filter_map(|place| place.accelerator()).collect()",
            replace: "self.places.iter().filter_map(|place| place.accelerator()).take(0).collect()",
        }],
        "inspect::tests::p3_a_tensor_on_a_gpu_is_offered_only_after_its_device_was_waited_for",
    ),
    torch(
        "new tensors name no device",
        &[Edit {
            file: "connect-tch/src/fresh.rs",
            find: "self.place.accelerator().into_iter().collect()",
            replace: "self.place.accelerator().into_iter().take(0).collect()",
        }],
        "fresh::tests::p3_new_memory_on_a_gpu_is_given_to_a_peer_only_after_its_device_was_waited_for",
    ),
    torch(
        "elements that are received into in place name no device",
        &[Edit {
            file: "connect-tch/src/target.rs",
            find: "self.place.accelerator().into_iter().collect()",
            replace: "self.place.accelerator().into_iter().take(0).collect()",
        }],
        "target::tests::p3_elements_on_a_gpu_are_received_into_only_after_its_device_was_waited_for",
    ),
];

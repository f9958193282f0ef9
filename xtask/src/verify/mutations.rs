//! What the mutants change: for each historical bug and each protection, the lines that hold it, without it.

/// A protection taken out, and who must notice.
pub(super) struct Mutant {
    /// The bug or the promise: `nixl #2044`, `D15`, `P7`.
    pub(super) of: &'static str,
    /// What is taken out.
    pub(super) what: &'static str,
    pub(super) edits: &'static [Edit],
    pub(super) package: &'static str,
    /// Cargo's selection of the test program.
    pub(super) target: &'static [&'static str],
    /// The test, with its path.
    pub(super) test: &'static str,
}

/// Lines, and others in their place.
pub(super) struct Edit {
    pub(super) file: &'static str,
    pub(super) find: &'static str,
    pub(super) replace: &'static str,
}

const NIXL: &str = "connect-core/src/transport/nixl/mod.rs";
const AGENT: &str = "connect-core/src/transport/nixl/agent.rs";
const MOVING: &str = "connect-core/src/transport/nixl/moving.rs";
const GRANT: &str = "connect-core/src/transport/local/grant.rs";
const STATE: &str = "connect-core/src/op/state.rs";
const PART: &str = "connect-core/src/checkpoint/part.rs";
const LIB: &[&str] = &["--lib"];

/// All of them.
pub(super) const MUTANTS: &[Mutant] = &[
    Mutant {
        of: "P1, nixl #2044, D7",
        what: "a transfer that is given up in flight counts as quiet",
        edits: &[Edit {
            file: NIXL,
            find: "                    moving.sign_of_life(generation);\n                    return Quiescence::Busy;",
            replace: "                    return Quiescence::Quiet;",
        }],
        package: "connect-tests",
        target: &["--test", "issues"],
        test: "issue_2044_memory_of_a_request_in_flight_is_parked_until_it_ends",
    },
    Mutant {
        of: "P1, vLLM #56104, D7",
        what: "a request of which one piece failed counts as quiet",
        edits: &[Edit {
            file: MOVING,
            find: "if pieces <= 1 { Phase::FailedQuiet } else { Phase::FailedUnknown }",
            replace: "if pieces <= usize::MAX { Phase::FailedQuiet } else { Phase::FailedUnknown }",
        }],
        package: "connect-tests",
        target: &["--test", "original_defects"],
        test: "d7_d14_memory_of_many_pieces_comes_free_only_when_it_is_quiet",
    },
    Mutant {
        of: "P4, nixl #2051, D20",
        what: "agents are called after their worker alone",
        edits: &[Edit {
            file: "connect-core/src/transport/nixl/signs.rs",
            find: "format!(\"{worker_id}-{incarnation}-r{number}\")",
            replace: "format!(\"{worker_id}{}-r{number}\", &incarnation[..0])",
        }],
        package: "connect-tests",
        target: &["--test", "liveness"],
        test: "nixl::p4_a_restarted_peer_of_the_same_name_is_a_new_peer",
    },
    Mutant {
        of: "P3, nixl #252",
        what: "the notification goes with the first slice and not with the last",
        edits: &[Edit {
            file: MOVING,
            find: "let key = is_last.then_some(self.key.as_str());",
            replace: "let key = (before == (0, 0)).then_some(self.key.as_str());",
        }],
        package: "connect-tests",
        target: &["--test", "promises"],
        test: "nixl::p3_what_is_complete_is_there_to_be_read",
    },
    Mutant {
        of: "P7, nixl #349",
        what: "of the notifications that arrive together the first is taken",
        edits: &[Edit {
            file: AGENT,
            find: "taken.extend(bodies.map(|body| (sender.to_owned(), body)));",
            replace: "taken.extend(bodies.map(|body| (sender.to_owned(), body)).take(1));",
        }],
        package: "connect-tests",
        target: &["--test", "notifications"],
        test: "p7_what_queued_up_behind_a_flood_is_not_lost",
    },
    Mutant {
        of: "P7, D15",
        what: "notifications that are not text spoil those that are",
        edits: &[Edit {
            file: AGENT,
            find: "        // The map only ever grows, and offers no way to clear it.",
            replace: "        if taken.iter().any(|(_, body)| std::str::from_utf8(body).is_err()) {\n            taken.clear();\n        }",
        }],
        package: "connect-tests",
        target: &["--test", "notifications"],
        test: "d15_non_utf8_notification_harms_nobody",
    },
    Mutant {
        of: "P1, D16",
        what: "notifications that nobody waits for are kept",
        edits: &[Edit {
            file: AGENT,
            find: "        // The map only ever grows, and offers no way to clear it.",
            replace: "        std::mem::forget(taken.clone());",
        }],
        package: "connect-tests",
        target: &["--test", "notifications"],
        test: "p7_a_flood_reaches_nobody_and_keeps_nobody_waiting",
    },
    Mutant {
        of: "P8, D4",
        what: "an offer that is withdrawn counts as quiet, and its agent lives on",
        edits: &[Edit {
            file: NIXL,
            find: "        if completed || let_go {",
            replace: "        if completed || let_go || self.next_id > 0 {",
        }],
        package: "connect-tests",
        target: &["--test", "original_defects"],
        test: "d4_stale_metadata_reads_nothing_once_the_memory_was_given_up",
    },
    Mutant {
        of: "D8",
        what: "the first operation to end deregisters what others still use",
        edits: &[Edit {
            file: "connect-core/src/transport/nixl/counted.rs",
            find: "            if *users == 0 {",
            replace: "            if *users < usize::MAX {",
        }],
        package: "connect-core",
        target: LIB,
        test: "transport::nixl::counted::tests::d8_what_is_shared_ends_with_its_last_user",
    },
    Mutant {
        of: "P5, D26",
        what: "ranges outside the peer's regions are let through",
        edits: &[Edit {
            file: "connect-core/src/transport/nixl/reach.rs",
            find: "            && addr.checked_add(len).is_some_and(|end| end <= last.furthest)",
            replace: "            && addr.checked_add(len).is_some()",
        }],
        package: "connect-core",
        target: LIB,
        test: "transport::nixl::reach::tests::p5_the_sorted_search_says_what_a_plain_one_says",
    },
    Mutant {
        of: "P8, D25",
        what: "a document carries the keys to everything that is registered",
        edits: &[Edit {
            file: AGENT,
            find: "        match blob::splice(connection, &partial) {",
            replace: "        match blob::splice(connection, &partial).filter(|blob| blob.is_empty()) {",
        }],
        package: "connect-tests",
        target: &["--test", "original_defects"],
        test: "d25_metadata_does_not_grow_with_what_else_is_registered",
    },
    Mutant {
        of: "P8, D27",
        what: "agents outlive the lifetime that was set",
        edits: &[Edit {
            file: AGENT,
            find: "if self.dirty_since.is_none() && self.created.elapsed() >= lifetime {",
            replace: "if self.dirty_since.is_none() && self.created.elapsed() >= lifetime * 10_000 {",
        }],
        package: "connect-tests",
        target: &["--test", "nixl_backend"],
        test: "p8_a_document_ends_with_the_lifetime_of_its_agent",
    },
    Mutant {
        of: "P2, D13",
        what: "over NIXL nobody says that it gave up",
        edits: &[Edit {
            file: MOVING,
            find: "        if self.next_sign.take().is_some() {",
            replace: "        if self.next_sign.take().is_some_and(|_| false) {",
        }],
        package: "connect-tests",
        target: &["--test", "liveness"],
        test: "nixl::p2_an_offer_hears_that_its_reader_gave_up",
    },
    Mutant {
        of: "P2, D10, D24",
        what: "over NIXL silence means nothing",
        edits: &[Edit {
            file: NIXL,
            find: "            let silent = self.takers.silent(now).into_iter();",
            replace: "            let silent = self.takers.silent(self.next_look - signs::EVERY).into_iter().take(0);",
        }],
        package: "connect-tests",
        target: &["--test", "liveness"],
        test: "nixl::p2_an_offer_hears_that_its_reader_died",
    },
    Mutant {
        of: "P2, D10, D13, D24",
        what: "over local nobody hears of a taker that died",
        edits: &[Edit {
            file: GRANT,
            find: "if self.open.get(&id).is_some_and(|offered| !offered.ended) {",
            replace: "if self.open.get(&id).is_some_and(|offered| offered.ended) {",
        }],
        package: "connect-tests",
        target: &["--test", "liveness"],
        test: "local::p2_an_offer_hears_that_its_writer_died",
    },
    Mutant {
        of: "P8",
        what: "over local an offer can be taken twice",
        edits: &[Edit {
            file: GRANT,
            find: "        offered.state = State::Taken;\n        self.by_key.remove(&offered.key);",
            replace: "        offered.state = State::Open;",
        }],
        package: "connect-core",
        target: LIB,
        test: "transport::local::tests::refusals::an_offer_is_taken_once",
    },
    Mutant {
        of: "P5",
        what: "over local a request may name memory that is not on offer",
        edits: &[Edit {
            file: GRANT,
            find: "asked.iter().position(|region| !is_inside(region))",
            replace: "asked.iter().position(|region| !is_inside(region) && region.len() == 0)",
        }],
        package: "connect-core",
        target: LIB,
        test: "transport::local::tests::refusals::an_unknown_key_a_wrong_direction_and_other_ranges_are_refused",
    },
    Mutant {
        of: "P1, nixl #2044, D7",
        what: "an operation that is stopped in flight gives its memory back",
        edits: &[Edit {
            file: STATE,
            find: "            (Starting | Open, Event::Stop(why, quiet)) => self.end(Verdict::Stopped(why), quiet),",
            replace: "            (Starting | Open, Event::Stop(why, _)) => self.end(Verdict::Stopped(why), Quiescence::Quiet),",
        }],
        package: "connect-core",
        target: LIB,
        test: "op::state::tests::p1_p2_hold_in_every_order_of_events",
    },
    Mutant {
        of: "P2, nixl #2047, D11",
        what: "nobody looks at deadlines",
        edits: &[
            Edit {
                file: "connect-core/src/driver/mod.rs",
                find: "        if self.next_deadline.is_none_or(|deadline| now < deadline) {",
                replace: "        if self.next_deadline.is_none_or(|deadline| now < deadline + Duration::from_secs(9999)) {",
            },
            Edit {
                file: "connect-core/src/driver/watchdog.rs",
                find: "            .take_while(|entry| entry.info.deadline.is_some_and(|at| at + SLACK <= now))",
                replace: "            .take_while(|entry| entry.info.deadline.is_some_and(|at| at + 9999 * SLACK <= now))",
            },
        ],
        package: "connect-tests",
        target: &["--test", "original_defects"],
        test: "d11_passive_wait_has_deadline",
    },
    Mutant {
        of: "P2",
        what: "nobody answers for a driver that is stuck in a call",
        edits: &[Edit {
            file: "connect-core/src/driver/watchdog.rs",
            find: "            .take_while(|entry| entry.info.deadline.is_some_and(|at| at + SLACK <= now))",
            replace: "            .take_while(|entry| entry.info.deadline.is_some_and(|at| at + 9999 * SLACK <= now))",
        }],
        package: "connect-tests",
        target: &["--test", "faults"],
        test: "p2_a_call_that_blocks_keeps_nobody_waiting_beyond_the_deadline",
    },
    Mutant {
        of: "P7, D17",
        what: "a key with something around it counts",
        edits: &[Edit {
            file: "connect-core/src/driver/mod.rs",
            find: ".and_then(|key| self.keys.remove(key));",
            replace: ".and_then(|key| self.keys.remove(key.trim()));",
        }],
        package: "connect-tests",
        target: &["--test", "notifications"],
        test: "d17_only_the_exact_key_completes_once_and_the_report_names_its_sender",
    },
    Mutant {
        of: "P1, D4",
        what: "memory is given back as soon as its agent is destroyed, and nobody looks before a post",
        edits: &[
            Edit {
                file: NIXL,
                find: "const LINGER: Duration = Duration::from_secs(1);",
                replace: "const LINGER: Duration = Duration::ZERO;",
            },
            Edit { file: NIXL, find: "        self.look(current);\n", replace: "" },
        ],
        package: "connect-tests",
        target: &["--test", "kills"],
        test: "nixl::p1_a_write_that_comes_after_the_end_of_an_offer_does_not_reach_its_memory",
    },
    Mutant {
        of: "P1, P8",
        what: "the memory of a slab goes with it, and not with the agents whose documents reach it",
        edits: &[Edit {
            file: NIXL,
            find: "            self.leaving.insert(id, described);",
            replace: "            drop(described);",
        }],
        package: "connect-tests",
        target: &["--test", "pool"],
        test: "nixl::p1_p8_documents_of_a_dropped_slab_end_before_its_memory_does",
    },
    Mutant {
        of: "P1",
        what: "registered memory that is not quiet is freed",
        edits: &[Edit {
            file: "connect-core/src/driver/registrations.rs",
            find: "            self.registrations.leaving.push(keep);",
            replace: "            drop(keep);",
        }],
        package: "connect-core",
        target: LIB,
        test: "driver::tests::registrations::p1_registered_memory_is_kept_until_the_transport_says_that_it_is_quiet",
    },
    Mutant {
        of: "P2",
        what: "those who gave up waiting for a slot are kept",
        edits: &[Edit {
            file: "connect-core/src/pool/shared.rs",
            find: "    !waiter.withdrawn.load(Ordering::Relaxed) && !waiter.slot.is_settled()",
            replace: "    !waiter.withdrawn.load(Ordering::Relaxed) || waiter.id > 0",
        }],
        package: "connect-core",
        target: LIB,
        test: "pool::tests::those_who_give_up_waiting_are_not_kept",
    },
    Mutant {
        of: "D31",
        what: "slots are registered for each operation",
        edits: &[Edit {
            file: AGENT,
            find: "            let registered = match kept.around(region) {",
            replace: "            let registered = match kept.around(region).filter(|_| regions.is_empty()) {",
        }],
        package: "connect-tests",
        target: &["--test", "pool"],
        test: "nixl::in_the_steady_state_nothing_is_registered_or_described_again",
    },
    Mutant {
        of: "P5, D19",
        what: "a blob is inflated without a limit",
        edits: &[Edit {
            file: "connect-core/src/wire/blob.rs",
            find: "    decode_within(text, MAX_BLOB_BYTES)",
            replace: "    decode_within(text, MAX_BLOB_BYTES << 6)",
        }],
        package: "connect-tests",
        target: &["--test", "original_defects"],
        test: "d19_a_zip_bomb_is_refused_at_once_and_within_bounds",
    },
    Mutant {
        of: "P3",
        what: "what arrives is not compared with its digest",
        edits: &[Edit {
            file: "connect-core/src/wire/tensor.rs",
            find: "        if found != expected {",
            replace: "        if found != expected && self.name.is_empty() {",
        }],
        package: "connect-candle",
        target: &["--test", "digests"],
        test: "one_flipped_byte_is_caught_and_names_its_tensor",
    },
    Mutant {
        of: "D1, D2",
        what: "strides are ignored where dimensions could be merged",
        edits: &[Edit {
            file: "connect-core/src/layout.rs",
            find: "            Some(last) if stride.checked_mul(dim) == Some(last.stride) => {",
            replace: "            Some(last) if stride.checked_mul(dim).is_some() && last.stride > 0 => {",
        }],
        package: "connect-core",
        target: LIB,
        test: "layout::tests::runs_gather_what_a_naive_loop_gathers",
    },
    Mutant {
        of: "D9",
        what: "what is cancelled goes on being posted",
        edits: &[Edit {
            file: "connect-core/src/driver/mod.rs",
            find: "        let (Some((transfer, peer)), Phase::Open) = (operation.transfer, operation.machine.phase()) else {",
            replace: "        let (Some((transfer, peer)), Phase::Open | Phase::Stopping) =\n            (operation.transfer, operation.machine.phase())\n        else {",
        }],
        package: "connect-core",
        target: LIB,
        test: "driver::model::p1_p2_p6_p7_hold_in_random_schedules_of_everything",
    },
    Mutant {
        of: "P2, D12",
        what: "a cancel is not heard",
        edits: &[Edit {
            file: "connect-core/src/driver/mod.rs",
            find: "Phase::Parked | Phase::Finished) {\n            return;\n        }\n        let quiet = self.let_go(id);",
            replace: "Phase::Parked | Phase::Finished) || why == Why::Cancelled {\n            return;\n        }\n        let quiet = self.let_go(id);",
        }],
        package: "connect-core",
        target: LIB,
        test: "driver::model::p1_p2_p6_p7_hold_in_random_schedules_of_everything",
    },
    Mutant {
        of: "P6, D14",
        what: "a peer that is gone is an error without a name",
        edits: &[Edit {
            file: AGENT,
            find: "    TransportError::PeerLost(format!(\n        \"{call} with {peer} failed",
            replace: "    TransportError::Protocol(format!(\n        \"{call} with {peer} failed",
        }],
        package: "connect-tests",
        target: &["--test", "original_defects"],
        test: "d14_peer_killed_is_a_typed_error_and_status_is_final",
    },
    Mutant {
        of: "checkpoint",
        what: "a tensor is received by two operations at once",
        edits: &[Edit {
            file: PART,
            find: "tensors.iter().find(|&&at| states[at] == State::InFlight)",
            replace: "tensors.iter().find(|&&at| at > states.len())",
        }],
        package: "connect-core",
        target: LIB,
        test: "checkpoint::tests::download::a_tensor_is_received_by_one_operation_at_a_time",
    },
    Mutant {
        of: "checkpoint",
        what: "what arrived is not compared with its digest",
        edits: &[Edit {
            file: PART,
            find: "if found != expected {",
            replace: "if found != expected && place.end == 0 {",
        }],
        package: "connect-core",
        target: LIB,
        test: "checkpoint::tests::download::bytes_that_are_not_what_was_promised_do_not_count_as_there",
    },
    Mutant {
        of: "checkpoint",
        what: "what was left is taken over unseen",
        edits: &[Edit {
            file: PART,
            find: "digest_of(&file, place).map_err(io(\"reading\"))? == digest",
            replace: "digest == digest",
        }],
        package: "connect-core",
        target: LIB,
        test: "checkpoint::tests::download::an_interrupted_download_goes_on_with_what_it_can_verify",
    },
    Mutant {
        of: "checkpoint",
        what: "a file that was changed is offered",
        edits: &[Edit {
            file: "connect-core/src/checkpoint/serve.rs",
            find: "        self.checkpoint.check_unchanged()?;\n",
            replace: "",
        }],
        package: "connect-core",
        target: LIB,
        test: "checkpoint::tests::files::a_file_that_was_changed_is_not_offered_and_its_copy_still_is",
    },
    Mutant {
        of: "checkpoint",
        what: "an index names files anywhere",
        edits: &[Edit {
            file: "connect-core/src/checkpoint/index.rs",
            find: "if !is_plain || ",
            replace: "if !is_plain && ",
        }],
        package: "connect-core",
        target: LIB,
        test: "checkpoint::tests::files::files_of_an_index_are_one_checkpoint_and_a_folder_is_searched_for_it",
    },
    Mutant {
        of: "libtorch",
        what: "bytes that are no truth values are handed out",
        edits: &[Edit {
            file: "connect-tch/src/fresh.rs",
            find: "|&&byte| byte > 1",
            replace: "|&&byte| byte > 254",
        }],
        package: "connect-tch",
        target: &["--test", "refusals"],
        test: "truth_values_that_are_none_are_refused_however_they_come",
    },
    Mutant {
        of: "libtorch",
        what: "a tensor's storage is kept by the same tensor object",
        edits: &[Edit {
            file: "connect-tch/src/inspect.rs",
            find: "tensor.f_detach().map_err(|error| torch(&dense.info, &error.to_string()))?",
            replace: "tensor.shallow_clone()",
        }],
        package: "connect-tch",
        target: &["--test", "tensors"],
        test: "an_offer_keeps_the_storage_alive_when_every_handle_is_gone_or_points_elsewhere",
    },
];

//! The defects of the Python original that were seen to happen, shown not to happen here: each test bears
//! the number of its defect. Those without a test of this name live in another layer, or are nothing that a
//! library over NIXL can prevent.
#![cfg(feature = "nixl")]

use std::io::Write;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use connect_core::transport::nixl::NixlConfig;
use connect_core::{
    Connector, Descriptor, DescriptorMut, Error, ErrorCategory, Failed, MemoryError, MetadataError,
    OperationStatus, RdmaMetadata, Stats,
};
use connect_tests::child::Worker;
use connect_tests::process::signal;
use connect_tests::{memory, pattern, require};
use data_encoding::BASE64;
use serde_json::{Value, json};

const WORKER: &str = env!("CARGO_BIN_EXE_worker");

/// Two connectors of this process, which are two peers to NIXL; `None` where there is no NIXL.
fn pair() -> Result<Option<(Connector, Connector)>> {
    if !require::nixl() {
        return Ok(None);
    }
    let build = || Connector::builder().nixl(NixlConfig::default()).build();
    Ok(Some((build()?, build()?)))
}

fn worker() -> Result<Worker> {
    Worker::rust(WORKER, &["--transport", "nixl"])
}

/// A worker that has nothing but TCP.
fn tcp_worker() -> Result<Worker> {
    let mut command = Command::new(WORKER);
    command.args(["--transport", "nixl"]).env("UCX_TLS", "tcp");
    Worker::ready(command)
}

/// Reads one buffer of the pattern.
fn read(reader: &Connector, metadata: &RdmaMetadata, len: usize, seed: u64) -> Result<()> {
    let received = reader.begin_read(metadata, vec![0u8; len]).wait()?.wait_for_completion().wait()?;
    ensure!(pattern::first_difference(&received.memory, seed).is_none(), "wrong bytes");
    Ok(())
}

/// Waits until a connector's counters are as they should be.
fn until(connector: &Connector, what: &str, holds: impl Fn(&Stats) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds(&connector.stats()) {
        ensure!(Instant::now() < deadline, "{what}: {:?}", connector.stats());
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

// --- D1, D2: strided memory ------------------------------------------------------------------------------

/// Columns 10 to 50 of a matrix of eight rows of 100 bytes, as a tensor's slice is laid out.
const ROWS: std::ops::Range<u64> = 0..8;

#[test]
fn d1_d2_a_strided_view_moves_its_own_bytes_and_no_copy_of_them() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let matrix = Descriptor::new(pattern::bytes(800, 1))?;
    let view: Vec<Descriptor> =
        ROWS.map(|row| matrix.slice(row * 100 + 10..row * 100 + 50)).collect::<Result<_, _>>()?;
    assert!(matches!(Descriptor::new(view.clone()), Err(MemoryError::NotContiguous { count: 8 })));

    let mut rows = Vec::new();
    let mut gaps = Vec::new();
    let mut rest = DescriptorMut::new(vec![0xee_u8; 800])?;
    for _ in ROWS {
        let (gap, tail) = rest.split_at(10)?;
        let (row, tail) = tail.split_at(40)?;
        gaps.push(gap);
        rows.push(row);
        if tail.len() == 50 {
            rest = tail;
            break;
        }
        let (gap, tail) = tail.split_at(50)?;
        gaps.push(gap);
        rest = tail;
    }

    let offer = a.create_readable(view).wait()?;
    for (row, descriptor) in ROWS.zip(offer.metadata().descriptors()) {
        assert_eq!(descriptor.ptr(), matrix.addr() + row * 100 + 10, "it is not the tensor's own memory");
    }
    let operation = b.begin_read(offer.metadata(), rows).wait().map_err(Error::from)?;
    let mut rows = operation.wait_for_completion().wait().map_err(Error::from)?.memory;
    offer.wait_for_completion().wait()?;

    drop((gaps, rest));
    let last = rows.pop().context("eight rows")?;
    drop(rows);
    let Ok(arrived) = last.into_memory::<Vec<u8>>() else { panic!("the memory that was handed in") };
    let sent = pattern::bytes(800, 1);
    for (i, byte) in arrived.iter().enumerate() {
        let wanted = if (10..50).contains(&(i % 100)) { sent[i] } else { 0xee };
        assert_eq!(*byte, wanted, "byte {i}");
    }
    Ok(())
}

// --- D4: what an offer's end means -----------------------------------------------------------------------

#[test]
fn d4_stale_metadata_reads_nothing_once_the_memory_was_given_up() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    // The reader knows the peer, so that nothing but the offer's end can stop it.
    let known = a.create_readable(pattern::bytes(4096, 1)).wait()?;
    read(&b, known.metadata(), 4096, 1)?;
    known.wait_for_completion().wait()?;

    let content = Arc::new(pattern::bytes(1 << 20, 2));
    let offer = a.create_readable(Arc::clone(&content)).wait()?;
    let stale = offer.metadata().clone();
    assert!(matches!(offer.cancel().wait(), Err(Error::Cancelled { .. })));
    until(&a, "the offer's memory is given up", |stats| stats.parked == 0)?;
    assert_eq!(Arc::strong_count(&content), 1, "somebody still holds it");

    let failed = b
        .begin_read(&stale, vec![0u8; 1 << 20])
        .wait()
        .map(|operation| operation.wait_for_completion().wait());
    let error = match failed {
        Ok(Err(failed)) | Err(failed) => failed.error,
        Ok(Ok(_)) => panic!("memory that is not on offer any more was read"),
    };
    assert_eq!(error.category(), ErrorCategory::Peer, "{error}");

    // New offers of the same worker are as good as ever.
    let offer = a.create_readable(pattern::bytes(4096, 3)).wait()?;
    read(&b, offer.metadata(), 4096, 3)?;
    offer.wait_for_completion().wait()?;
    Ok(())
}

/// Over TCP a late read of memory that was unmapped killed the process that had offered it.
#[test]
fn d4_a_late_read_over_tcp_does_not_kill_the_process_that_offered() -> Result<()> {
    if !require::nixl() {
        return Ok(());
    }
    let (mut a, mut b) = (tcp_worker()?, tcp_worker()?);
    let (offered, metadata) = a.offer("readable", &[4096], 1)?;
    let begun = b.begin("read", &metadata, &[4096], 1)?;
    b.completed(begun)?;
    a.completed(offered)?;

    // Large enough for the allocator to unmap it.
    let tensors = json!([{"dtype": "uint8", "shape": [8 << 20], "seed": 2}]);
    let id = a.send(json!({"do": "readable", "tensors": tensors, "timeout": 1.0}))?;
    let stale = a.expect(id, "metadata")?["metadata"].to_string();
    assert_eq!(a.expect(id, "error")?["kind"], "deadline");
    let deadline = Instant::now() + Duration::from_secs(20);
    while a.ask(json!({"do": "stats"}), "stats")?["parked"] != 0 {
        ensure!(Instant::now() < deadline, "the memory stays parked");
        thread::sleep(Duration::from_millis(2));
    }

    let begun = b.begin("read", &stale, &[8 << 20], 2)?;
    assert_eq!(b.expect(begun, "error")?["kind"], "peer");
    let (offered, metadata) = a.offer("readable", &[4096], 3)?;
    let begun = b.begin("read", &metadata, &[4096], 3)?;
    b.completed(begun)?;
    a.completed(offered)?;
    Ok(())
}

// --- D7, D8: who owns a registration ---------------------------------------------------------------------

#[test]
fn d8_shared_descriptor_stays_registered() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let shared = Descriptor::new(pattern::bytes(100_000, 4))?;
    let [first, second, third] = [(); 3].map(|()| a.create_readable(shared.clone()).wait());
    let (first, second, third) = (first?, second?, third?);

    read(&b, first.metadata(), 100_000, 4)?;
    first.wait_for_completion().wait()?;
    drop(second);
    until(&a, "the second offer is cancelled", |stats| stats.cancelled == 1)?;

    // Longer than an agent with memory that is not quiet stays in use for new offers.
    thread::sleep(Duration::from_millis(400));
    read(&b, third.metadata(), 100_000, 4)?;
    third.wait_for_completion().wait()?;
    Ok(())
}

// --- D9: when a transfer begins --------------------------------------------------------------------------

#[test]
fn d9_begin_posts_at_once() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let offer = a.create_readable(pattern::bytes(100_000, 5)).wait()?;
    let operation = b.begin_read(offer.metadata(), vec![0u8; 100_000]).wait()?;
    // Nobody looks at the operation, and yet the other side sees it complete.
    offer.wait_for_completion().wait()?;
    pattern::check(&operation.wait_for_completion().wait()?.memory, 5);
    Ok(())
}

#[test]
fn d9_cancel_starts_nothing_more() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    // Sixteen slices, of which a cancelled transfer may finish the one under way.
    let len = 256 << 20;
    for _ in 0..10 {
        let offer = a.create_readable(vec![7u8; len]).wait()?;
        let operation = b.begin_read(offer.metadata(), vec![0u8; len]).wait()?;
        // On a busy machine all may have been read before this thread came to cancel.
        let Some(failed) = operation.cancel().wait().err() else { continue };
        assert!(matches!(failed.error, Error::Cancelled { .. }), "{failed}");
        let memory = failed.memory.returned().context("nothing is in flight any more")?;
        assert_eq!(memory.last(), Some(&0), "the rest was read all the same");
        thread::sleep(Duration::from_millis(50));
        assert_eq!(memory.last(), Some(&0), "the rest was read later");
        let error =
            offer.wait_for_completion().wait().err().context("a cancelled read reported completion")?;
        assert!(error.to_string().contains("let go"), "{error}");
        return Ok(());
    }
    anyhow::bail!("256 MiB were faster than a cancel, ten times")
}

#[test]
fn d9_d18_a_refused_operation_never_starts_and_leaves_nothing_behind() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let offer = a.create_readable(pattern::bytes(100, 6)).wait()?;

    let failed = b.begin_read(offer.metadata(), vec![0u8; 99]).wait().err().context("another length")?;
    assert!(matches!(failed.error, Error::Metadata(MetadataError::LengthMismatch { .. })), "{failed}");
    assert_eq!(failed.memory.returned(), Some(vec![0u8; 99]));
    let error = b.begin_write(vec![0u8; 100], offer.metadata()).wait().err().context("another kind")?;
    assert!(matches!(error, Error::Metadata(MetadataError::WrongKind { .. })), "{error}");
    let error = a.create_readable(Vec::<u8>::new()).wait().err().context("no memory")?;
    assert!(matches!(error, Error::Memory(MemoryError::Empty)), "{error}");

    assert_eq!((b.stats().open, b.stats().parked), (0, 0));
    assert_eq!(offer.status(), OperationStatus::Initialized);
    read(&b, offer.metadata(), 100, 6)?;
    offer.wait_for_completion().wait()?;
    Ok(())
}

// --- D11, D14: operations whose peer does not come, or dies -----------------------------------------------

#[test]
fn d11_passive_wait_has_deadline() -> Result<()> {
    let Some((a, _)) = pair()? else { return Ok(()) };
    let a = a.with_deadline(Duration::from_secs(1));
    let started = Instant::now();
    let readable = a.create_readable(vec![1u8; 100]).wait()?;
    let writable = a.create_writable(vec![0u8; 100]).wait()?;
    let error = readable.wait_for_completion().wait().err().context("nobody came")?;
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    let failed = writable.wait_for_completion().wait().err().context("nobody came")?;
    assert!(matches!(failed.error, Error::DeadlineExceeded { .. }), "{failed}");
    let elapsed = started.elapsed();
    assert!(elapsed >= Duration::from_secs(1) && elapsed < Duration::from_secs(10), "{elapsed:?}");

    // And their memory is not kept for ever: front-ends grew to 62 GiB over it.
    until(&a, "the memory is freed", |stats| stats.parked == 0 && stats.parked_bytes == 0)?;
    assert_eq!((a.stats().deadlines_missed, a.stats().open), (2, 0));
    Ok(())
}

/// What came of reading from a killed worker: the reader, the worker's id, and the failure.
type Bereaved = (Connector, String, Failed<Vec<DescriptorMut>>);

/// Reads what a killed worker had offered, in one buffer for each length.
fn read_from_the_dead(lengths: &[usize]) -> Result<Option<Bereaved>> {
    let Some((reader, _)) = pair()? else { return Ok(None) };
    let mut worker = Worker::rust(WORKER, &["--transport", "nixl", "--worker-id", "prefill-1"])?;
    let (id, metadata) = worker.offer("readable", &[4096], 1)?;
    read(&reader, &RdmaMetadata::from_json(&metadata)?, 4096, 1)?;
    worker.completed(id)?;
    let (_, metadata) = worker.offer("readable", lengths, 2)?;
    let metadata = RdmaMetadata::from_json(&metadata)?;
    worker.kill();

    let started = Instant::now();
    let failed = match reader.begin_read(&metadata, memory::targets(lengths)?).wait() {
        Err(failed) => failed,
        Ok(operation) => {
            while !operation.status().is_final() {
                ensure!(started.elapsed() < Duration::from_secs(20), "no end: {operation:?}");
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(operation.status(), OperationStatus::Errored);
            // The original's `cancel` threw then, and skipped the clean-up.
            let end = operation.cancel();
            assert_eq!(end.status(), OperationStatus::Errored, "a final status changed");
            end.wait().err().context("memory of a process that is gone was read")?
        }
    };
    ensure!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    Ok(Some((reader, "prefill-1".to_owned(), failed)))
}

#[test]
fn d14_peer_killed_is_a_typed_error_and_status_is_final() -> Result<()> {
    let Some((reader, peer, failed)) = read_from_the_dead(&[100_000])? else { return Ok(()) };
    assert_eq!(failed.error.category(), ErrorCategory::Peer, "{failed}");
    assert!(failed.error.is_retryable(), "{failed}");
    let context = failed.error.context().context("it says which operation")?;
    assert_eq!(context.bytes, 100_000);
    // NIXL may notice the death before the request or during it; either way the error says whose it is.
    assert!(failed.to_string().contains(&peer), "{peer} is not named: {failed}");
    assert!(failed.memory.returned().is_some(), "a request of one piece has nothing else in flight");
    assert_eq!((reader.stats().failed, reader.stats().cancelled, reader.stats().open), (1, 0, 0));
    Ok(())
}

#[test]
fn d14_metadata_of_a_process_that_was_never_met_and_is_gone_is_a_lost_peer() -> Result<()> {
    let Some((reader, _)) = pair()? else { return Ok(()) };
    let mut worker = worker()?;
    let (_, metadata) = worker.offer("readable", &[4096], 1)?;
    worker.kill();
    let failed = match reader.begin_read(&RdmaMetadata::from_json(&metadata)?, vec![0u8; 4096]).wait() {
        Ok(operation) => operation.wait_for_completion().wait().err(),
        Err(failed) => Some(failed),
    };
    let failed = failed.context("memory of a process that is gone was read")?;
    assert_eq!(failed.error.category(), ErrorCategory::Peer, "{failed}");
    assert_eq!(failed.memory.returned(), Some(vec![0u8; 4096]));
    Ok(())
}

/// NIXL reports the first piece that fails and says nothing of the others, so the memory is not reused before
/// the agent that could still write it is gone (P1, D7).
#[test]
fn d7_d14_memory_of_many_pieces_comes_free_only_when_it_is_quiet() -> Result<()> {
    let Some((reader, _)) = pair()? else { return Ok(()) };
    // Over TCP a read waits for the peer's process, and is in flight for as long as that is stopped.
    let mut dead = tcp_worker()?;
    let (id, metadata) = dead.offer("readable", &[4096], 1)?;
    read(&reader, &RdmaMetadata::from_json(&metadata)?, 4096, 1)?;
    dead.completed(id)?;
    let lengths = [100_000, 1, 4096];
    let (_, metadata) = dead.offer("readable", &lengths, 2)?;
    signal(dead.pid(), "STOP")?;
    let reading = reader.begin_read(&RdmaMetadata::from_json(&metadata)?, memory::targets(&lengths)?);
    let reading = reading.wait()?;
    thread::sleep(Duration::from_millis(100));
    dead.kill();
    let failed = reading.wait_for_completion().wait().err().context("memory of the dead was read")?;
    assert_eq!(failed.error.category(), ErrorCategory::Peer, "{failed}");
    assert!(failed.memory.is_parked(), "one piece failed, and nothing is known of the others");
    until(&reader, "its memory is quiet", |stats| stats.parked == 0 && stats.parked_bytes == 0)?;

    // The reader goes on with others.
    let mut other = worker()?;
    let (id, metadata) = other.offer("readable", &[4096], 3)?;
    read(&reader, &RdmaMetadata::from_json(&metadata)?, 4096, 3)?;
    other.completed(id)?;
    Ok(())
}

// --- D19, D25 to D27: the document -----------------------------------------------------------------------

#[test]
fn d19_a_zip_bomb_is_refused_at_once_and_within_bounds() -> Result<()> {
    let Some((a, _)) = pair()? else { return Ok(()) };
    let mut worker = worker()?;
    let offer = a.create_readable(pattern::bytes(100, 1)).wait()?;
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
    for _ in 0..200 {
        zlib.write_all(&[0; 1_000_000])?;
    }
    let bomb = format!("b64:{}", BASE64.encode(&zlib.finish()?));
    let mut document: Value = serde_json::from_str(&offer.metadata().to_json())?;
    document["nixl_metadata"] = bomb.into();

    let before = worker.ask(json!({"do": "rss"}), "rss")?;
    let started = Instant::now();
    let begun = worker.begin("read", &document.to_string(), &[100], 1)?;
    let error = worker.expect(begun, "error")?;
    // Minutes, if it were inflated whole by an unoptimised build on a busy machine.
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(error["kind"], "protocol", "{error}");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("more than the limit")), "{error}");
    let after = worker.ask(json!({"do": "rss"}), "rss")?;
    let grown = after["peak"].as_u64().unwrap_or(u64::MAX) - before["bytes"].as_u64().unwrap_or_default();
    assert!(grown < 64 << 20, "200 MB in a document cost {grown} bytes");
    Ok(())
}

#[test]
fn d20_a_restarted_peer_of_the_same_name_is_served_while_operations_of_the_old_one_live() -> Result<()> {
    let Some((reader, _)) = pair()? else { return Ok(()) };
    let arguments = ["--transport", "nixl", "--worker-id", "prefill-0"];
    let mut old = Worker::rust(WORKER, &arguments)?;
    let (id, metadata) = old.offer("readable", &[5000], 1)?;
    read(&reader, &RdmaMetadata::from_json(&metadata)?, 5000, 1)?;
    old.completed(id)?;
    let (_, metadata) = old.offer("readable", &[5000], 2)?;
    old.kill();
    // Not waited for until the end of this test.
    let dead = reader.begin_read(&RdmaMetadata::from_json(&metadata)?, vec![0u8; 5000]);

    let mut new = Worker::rust(WORKER, &arguments)?;
    let (id, metadata) = new.offer("readable", &[5000], 3)?;
    read(&reader, &RdmaMetadata::from_json(&metadata)?, 5000, 3)?;
    new.completed(id)?;

    let failed = match dead.wait() {
        Ok(operation) => operation.wait_for_completion().wait().err(),
        Err(failed) => Some(failed),
    };
    let failed = failed.context("memory of a process that is gone was read")?;
    assert_eq!(failed.error.category(), ErrorCategory::Peer, "{failed}");
    Ok(())
}

#[test]
fn d25_metadata_does_not_grow_with_what_else_is_registered() -> Result<()> {
    let Some((a, _)) = pair()? else { return Ok(()) };
    let alone = a.create_readable(pattern::bytes(4096, 0)).wait()?.metadata().decode_blob()?.len();
    let others: Vec<_> = (0..1000)
        .map(|seed| Ok(a.create_readable(pattern::bytes(4096, seed)).wait()?))
        .collect::<Result<_>>()?;
    let offer = a.create_readable(pattern::bytes(4096, 0)).wait()?;
    // The original: 44,453 bytes. A remote key differs in length by a byte or two.
    let (grown, beside) = (offer.metadata().decode_blob()?.len(), others.len());
    assert!(grown <= alone + 16, "{grown} bytes beside {beside} others, {alone} alone");
    assert!(offer.metadata().to_json().len() < 1000);
    drop(others);
    Ok(())
}

#[test]
fn d26_a_document_that_the_original_would_take_is_refused_by_field() -> Result<()> {
    let Some((a, _)) = pair()? else { return Ok(()) };
    let offer = a.create_readable(pattern::bytes(100, 1)).wait()?;
    let document = offer.metadata().to_json();
    RdmaMetadata::from_json(&document)?;
    let descriptor = |field: &str, value: &str| {
        let mut changed: Value = serde_json::from_str(&document).unwrap_or_default();
        changed["descriptors"][0][field] = json!("@");
        changed.to_string().replace("\"@\"", value)
    };
    let field = |field: &str, value: &str| {
        let mut changed: Value = serde_json::from_str(&document).unwrap_or_default();
        changed[field] = json!("@");
        changed.to_string().replace("\"@\"", value)
    };
    for (changed, named) in [
        (field("operation_kind", "0"), "operation_kind"),
        (field("operation_kind", "3"), "operation_kind"),
        (field("operation_kind", "null"), "operation_kind"),
        (document.replace(",\"operation_kind\":1", ""), "operation_kind"),
        (field("notification_key", "\"\""), "notification key"),
        (field("descriptors", "[]"), "descriptors"),
        (descriptor("ptr", "-1"), "ptr"),
        (descriptor("ptr", "0"), "descriptor 0"),
        (descriptor("ptr", "1180591620717411303424"), "ptr"),
        (descriptor("ptr", "18446744073709551615"), "descriptor 0"),
        (descriptor("size", "-1"), "size"),
        (descriptor("size", "0"), "descriptor 0"),
        (descriptor("device", "\"cudax\""), "device"),
        (descriptor("device", "\"cuda:-1\""), "device"),
        (descriptor("device", "\"cuda:abc\""), "device"),
    ] {
        assert_ne!(changed, document, "{named}");
        let error = RdmaMetadata::from_json(&changed).err().context(changed.clone())?.to_string();
        assert!(error.contains(named), "{named} is not named: {error}");
    }
    Ok(())
}

/// A descriptor changed to memory that was not on offer is refused by the reader itself, before NIXL sees it.
#[test]
fn d26_addresses_outside_what_the_peer_registered_are_refused() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    let offer = a.create_readable(pattern::bytes(100, 1)).wait()?;
    let mut document: Value = serde_json::from_str(&offer.metadata().to_json())?;
    document["descriptors"][0]["ptr"] = (offer.metadata().descriptors()[0].ptr() + 1).into();
    let shifted = RdmaMetadata::from_json(&document.to_string())?;
    let failed = match b.begin_read(&shifted, vec![0u8; 100]).wait() {
        Ok(operation) => operation.wait_for_completion().wait().err(),
        Err(failed) => Some(failed),
    };
    let failed = failed.context("a byte that was not on offer was read")?;
    assert_eq!(failed.error.category(), ErrorCategory::Protocol, "{failed}");
    assert!(failed.to_string().contains("descriptor 0"), "{failed}");
    assert_eq!(failed.memory.returned(), Some(vec![0u8; 100]));
    Ok(())
}

/// NIXL lets a document be used again for as long as its agent lives. What holds is that this completes
/// nothing twice and confuses no other operation, and that a shut-down connector is read by nobody.
#[test]
fn d27_a_replayed_document_completes_nothing_twice() -> Result<()> {
    let Some((a, b)) = pair()? else { return Ok(()) };
    // Alive throughout, so that a replay finds what it looks for.
    let content = Arc::new(pattern::bytes(5000, 1));
    let other = a.create_readable(pattern::bytes(5000, 2)).wait()?;
    let offer = a.create_readable(Arc::clone(&content)).wait()?;
    let metadata = offer.metadata().clone();
    read(&b, &metadata, 5000, 1)?;
    offer.wait_for_completion().wait()?;

    for _ in 0..2 {
        // Succeeds over shared memory and TCP; an RDMA adapter would refuse it.
        let _ = read(&b, &metadata, 5000, 1);
    }
    assert_eq!(a.stats().completed, 1);
    assert_eq!(other.status(), OperationStatus::Initialized);
    a.shutdown(Duration::from_secs(10)).wait()?;
    let error = read(&b, &metadata, 5000, 1).err().context("a connector that is shut down was read")?;
    let failed = error.downcast::<Failed<Vec<u8>>>()?;
    assert_eq!(failed.error.category(), ErrorCategory::Peer, "{failed}");
    Ok(())
}

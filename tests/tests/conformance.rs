//! One suite for every transport: what each operation promises, whatever moves the bytes.
#![expect(clippy::unwrap_used, reason = "what is here is called by tests only, which a macro makes")]

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use connect_core::transport::TransportError;
use connect_core::{
    Completion, Connector, Descriptor, DescriptorMut, Error, ErrorCategory, Failed, MemoryError,
    MetadataError, OperationKind, OperationStatus, Pending, RdmaMetadata, ReadOperation, ReadableOperation,
    Received, Recovered, Report, WritableOperation, WriteOperation,
};
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::moves::{read, sent, write};
use connect_tests::process::eventually;
use connect_tests::{memory, pattern};

connect_tests::for_each_transport!(
    a_readable_is_read_in_the_same_process,
    a_read_and_a_write_between_the_same_two_do_not_meet,
    a_writable_is_written_in_the_same_process,
    another_process_reads_what_is_offered_here,
    another_process_writes_what_is_offered_here,
    what_another_process_offers_is_read,
    what_another_process_offers_is_written,
    parts_of_one_target_are_filled_each_with_its_own,
    slices_of_one_source_stand_in_two_operations_at_once,
    a_status_goes_from_uninitialized_to_complete_and_stays_there,
    a_report_says_what_was_moved_and_how_long_it_took,
    memory_comes_back_as_the_same_allocation,
    operations_are_awaited_on_any_runtime,
    sixty_four_operations_from_many_tasks_share_one_connector,
    an_operation_begins_without_being_polled,
    small_operations_do_not_wait_for_a_large_one,
    a_completed_offer_is_not_read_twice,
    what_does_not_fit_is_refused_by_name_and_the_memory_comes_back,
    memory_that_can_t_be_used_is_refused_by_name,
);

/// One byte; a page; many pieces of unequal length and no alignment, among them one of several slices; and as
/// many pieces as a hand-off of KV blocks has.
fn shapes() -> Vec<Vec<usize>> {
    let mut seventeen: Vec<usize> = (0..17).map(|i| 1 + i * 977 * i).collect();
    seventeen[9] = (5 << 20) + 3;
    vec![vec![1], vec![4096], seventeen, (0..4096).map(|i| 1 + (i * 977) % 3001).collect()]
}

/// Enough to be in flight for a while.
const LARGE: usize = 64 << 20;

// --- the pairings -----------------------------------------------------------------------------------------

fn a_readable_is_read_in_the_same_process(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    for (lengths, seed) in shapes().iter().zip(1..) {
        let offer = a.create_readable(memory::sources(lengths, seed)?).wait()?;
        read(&b, &sent(offer.metadata())?, lengths, seed)?;
        offer.wait_for_completion().wait()?;
    }
    Ok(())
}

fn a_writable_is_written_in_the_same_process(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    for (lengths, seed) in shapes().iter().zip(1..) {
        let offer = a.create_writable(memory::targets(lengths)?).wait()?;
        write(&b, &sent(offer.metadata())?, lengths, seed)?;
        memory::check(offer.wait_for_completion().wait()?.memory, seed)?;
    }
    Ok(())
}

fn another_process_reads_what_is_offered_here(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    for (lengths, seed) in shapes().iter().zip(1..) {
        let offer = connector.create_readable(memory::sources(lengths, seed)?).wait()?;
        let id = worker.begin("read", &offer.metadata().to_json(), lengths, seed)?;
        offer.wait_for_completion().wait()?;
        worker.completed(id)?;
    }
    Ok(())
}

fn another_process_writes_what_is_offered_here(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    for (lengths, seed) in shapes().iter().zip(1..) {
        let offer = connector.create_writable(memory::targets(lengths)?).wait()?;
        let id = worker.begin("write", &offer.metadata().to_json(), lengths, seed)?;
        memory::check(offer.wait_for_completion().wait()?.memory, seed)?;
        worker.completed(id)?;
    }
    Ok(())
}

fn what_another_process_offers_is_read(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    for (lengths, seed) in shapes().iter().zip(1..) {
        let (id, metadata) = worker.offer("readable", lengths, seed)?;
        read(&connector, &RdmaMetadata::from_json(&metadata)?, lengths, seed)?;
        worker.completed(id)?;
    }
    Ok(())
}

fn what_another_process_offers_is_written(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    for (lengths, seed) in shapes().iter().zip(1..) {
        let (id, metadata) = worker.offer("writable", lengths, seed)?;
        write(&connector, &RdmaMetadata::from_json(&metadata)?, lengths, seed)?;
        // The worker checks every byte in its own memory.
        worker.completed(id)?;
    }
    Ok(())
}

// --- descriptors ------------------------------------------------------------------------------------------

fn parts_of_one_target_are_filled_each_with_its_own(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let lengths = [1, 4096, 70_001, 3];
    let offer = a.create_readable(memory::sources(&lengths, 1)?).wait()?;
    let mut rest = DescriptorMut::new(vec![0xEE_u8; lengths.iter().sum::<usize>() + 5])?;
    let mut parts = Vec::new();
    for length in lengths {
        let (part, right) = rest.split_at(length as u64)?;
        parts.push(part);
        rest = right;
    }
    let received = b.begin_read(&sent(offer.metadata())?, parts).wait()?.wait_for_completion().wait()?;
    drop(received.memory);
    let Ok(buffer) = rest.into_memory::<Vec<u8>>() else { anyhow::bail!("parts of the target are left") };
    let mut at = 0;
    for (length, seed) in lengths.into_iter().zip(1..) {
        pattern::check(&buffer[at..at + length], seed);
        at += length;
    }
    assert_eq!(buffer[at..], [0xEE; 5], "what was not part of the operation is untouched");
    Ok(())
}

/// D8 of the original: a descriptor could stand in one operation only.
fn slices_of_one_source_stand_in_two_operations_at_once(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let whole = pattern::bytes(300_000, 5);
    let source = Descriptor::new(whole.clone())?;
    let ranges = [(0usize, 200_000usize), (100_000, 300_000), (299_999, 300_000)];
    let offers: Vec<_> = ranges
        .iter()
        .map(|(from, to)| Ok(a.create_readable(source.slice(*from as u64..*to as u64)?).wait()?))
        .collect::<Result<_>>()?;
    let reads: Vec<_> = offers
        .iter()
        .zip(ranges)
        .map(|(offer, (from, to))| b.begin_read(offer.metadata(), vec![0u8; to - from]))
        .collect();
    for (pending, (from, to)) in reads.into_iter().zip(ranges) {
        let received = pending.wait()?.wait_for_completion().wait()?;
        assert!(received.memory == whole[from..to], "{from}..{to}");
    }
    for offer in offers {
        offer.wait_for_completion().wait()?;
    }
    Ok(())
}

// --- what a caller sees -----------------------------------------------------------------------------------

fn a_status_goes_from_uninitialized_to_complete_and_stays_there(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let offer = a.create_readable(pattern::bytes(LARGE, 1)).wait()?;
    assert_eq!(offer.status(), OperationStatus::Initialized);
    let reading = b.begin_read(offer.metadata(), vec![0u8; LARGE]).wait()?;
    let mut seen = vec![reading.status()];
    let reading = reading.wait_for_completion();
    let ended = eventually(PATIENCE, || {
        let status = reading.status();
        if seen.last() != Some(&status) {
            seen.push(status);
        }
        status.is_final()
    });
    assert!(ended, "{seen:?}");
    assert!(
        seen.windows(2).all(|pair| (pair[0] as u8) < (pair[1] as u8)),
        "a status never goes back: {seen:?}"
    );
    assert_eq!(seen.last(), Some(&OperationStatus::Complete));
    reading.wait()?;
    let waiting = offer.wait_for_completion();
    assert!(eventually(PATIENCE, || waiting.status() == OperationStatus::Complete));
    waiting.wait()?;
    Ok(())
}

fn a_report_says_what_was_moved_and_how_long_it_took(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let lengths = [1, 1 << 20, 17];
    let bytes = lengths.iter().sum::<usize>() as u64;
    for _ in 0..3 {
        let started = Instant::now();
        let offer = a.create_readable(memory::sources(&lengths, 1)?).wait()?;
        let active = read(&b, offer.metadata(), &lengths, 1)?;
        let passive = offer.wait_for_completion().wait()?;
        let elapsed = started.elapsed();
        for (report, peer) in [(&active, &a), (&passive, &b)] {
            assert_eq!((report.bytes, report.descriptors), (bytes, 3));
            assert_eq!(report.backend, peer.backend());
            let name = report.peer.as_deref().unwrap_or_default();
            assert!(name.starts_with(peer.worker_id()), "{name} is not {}", peer.worker_id());
            let parts = report.queued + report.posting + report.transfer;
            assert!(parts <= report.total && report.total <= elapsed, "{report:?} in {elapsed:?}");
            assert!(
                report.total - parts < Duration::from_millis(1),
                "parts of the time are missing: {report:?}"
            );
            assert!(report.total > Duration::ZERO && report.gigabytes_per_second() > 0.0);
        }
    }
    Ok(())
}

fn memory_comes_back_as_the_same_allocation(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let target: Vec<f32> = vec![0.0; 5000];
    let address = target.as_ptr();
    let offer = a.create_readable(vec![1.5f32; 5000]).wait()?;
    let received = b.begin_read(offer.metadata(), target).wait()?.wait_for_completion().wait()?;
    assert_eq!((received.memory.as_ptr(), received.memory.len()), (address, 5000));
    assert!(received.memory.iter().all(|x| *x == 1.5));

    let target: Box<[u16]> = vec![0; 3000].into();
    let address = target.as_ptr();
    let offer = a.create_writable(target).wait()?;
    assert_eq!(offer.metadata().descriptors()[0].ptr(), address as u64, "the buffer itself is offered");
    b.begin_write(vec![7u16; 3000], offer.metadata()).wait()?.wait_for_completion().wait()?;
    let received = offer.wait_for_completion().wait()?;
    assert_eq!(received.memory.as_ptr(), address);
    assert_eq!(*received.memory, [7u16; 3000]);
    Ok(())
}

// --- waiting ----------------------------------------------------------------------------------------------

/// Compiles only if every future of the four operations may move between threads.
#[expect(dead_code, reason = "compiling it is the test")]
fn futures_are_send() {
    fn is_send<T: Send>() {}
    is_send::<Pending<ReadableOperation>>();
    is_send::<Pending<WritableOperation<Vec<u8>>, Failed<Vec<u8>>>>();
    is_send::<Pending<ReadOperation<Vec<DescriptorMut>>, Failed<Vec<DescriptorMut>>>>();
    is_send::<Pending<WriteOperation>>();
    is_send::<(ReadableOperation, WritableOperation<Vec<u8>>, ReadOperation<Vec<u8>>, WriteOperation)>();
    is_send::<Completion<Report>>();
    is_send::<Completion<Received<Vec<u8>>, Failed<Vec<u8>>>>();
}

/// One transfer in each direction, with nothing but `await`.
async fn there_and_back(a: &Connector, b: &Connector, seed: u64) -> Result<()> {
    let lengths = [1000, 1, 65_537];
    let offer = a.create_readable(memory::sources(&lengths, seed)?).await?;
    let received = b.begin_read(&sent(offer.metadata())?, memory::targets(&lengths)?).await?.await?;
    memory::check(received.memory, seed)?;
    offer.await?;
    let offer = a.create_writable(memory::targets(&lengths)?).await?;
    b.begin_write(memory::sources(&lengths, seed + 9)?, &sent(offer.metadata())?).await?.await?;
    memory::check(offer.await?.memory, seed + 9)
}

fn operations_are_awaited_on_any_runtime(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    futures_executor::block_on(there_and_back(&a, &b, 1))?;
    tokio::runtime::Builder::new_current_thread().build()?.block_on(there_and_back(&a, &b, 2))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build()?;
    let (c, d) = (a.clone(), b.clone());
    runtime.block_on(async move { tokio::spawn(async move { there_and_back(&c, &d, 3).await }).await })??;
    // A future that is awaited on one runtime may have been made outside of any.
    let offer = a.create_readable(vec![7u8; 10]);
    let offer = runtime.block_on(offer)?;
    let reading = b.begin_read(offer.metadata(), vec![0u8; 10]).wait()?;
    assert_eq!(futures_executor::block_on(reading.wait_for_completion())?.memory, [7; 10]);
    runtime.block_on(offer.wait_for_completion())?;
    Ok(())
}

fn sixty_four_operations_from_many_tasks_share_one_connector(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build()?;
    runtime.block_on(async {
        let tasks: Vec<_> = (0..32)
            .map(|seed| {
                // Half of them in the other direction, so that each connector is active and passive at once.
                let (a, b) = if seed % 2 == 0 { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
                tokio::spawn(async move { there_and_back(&a, &b, seed).await })
            })
            .collect();
        for task in tasks {
            task.await??;
        }
        anyhow::Ok(())
    })?;
    for stats in [a.stats(), b.stats()] {
        assert_eq!((stats.started, stats.completed, stats.open, stats.parked), (64, 64, 0, 0), "{stats:?}");
    }
    Ok(())
}

/// D9 of the original: nothing was begun before somebody waited for it.
fn an_operation_begins_without_being_polled(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let readable = a.create_readable(vec![1u8; 5000]).wait()?;
    let writable = a.create_writable(vec![0u8; 5000]).wait()?;
    let reading = b.begin_read(readable.metadata(), vec![0u8; 5000]);
    let writing = b.begin_write(vec![2u8; 5000], writable.metadata());
    readable.wait_for_completion().wait()?;
    assert_eq!(writable.wait_for_completion().wait()?.memory, [2; 5000]);
    // Nobody has looked at these yet.
    assert_eq!(reading.wait()?.wait_for_completion().wait()?.memory, [1; 5000]);
    writing.wait()?.wait_for_completion().wait()?;

    // And a caller that looks once, and never again, hears of it by its waker.
    let mut pending = a.create_readable(vec![1u8; 10]);
    let mut context = TaskContext::from_waker(Waker::noop());
    let first = Pin::new(&mut pending).poll(&mut context);
    let offer = match first {
        Poll::Ready(offer) => offer?,
        Poll::Pending => futures_executor::block_on(pending)?,
    };
    assert_eq!(offer.cancel().wait().unwrap_err().category(), ErrorCategory::Cancelled);
    Ok(())
}

/// A large copy is made in slices, and others have their turn in between.
fn small_operations_do_not_wait_for_a_large_one(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    let (_, large) = worker.offer("readable", &[1 << 30], 1)?;
    let small =
        (0..5).map(|seed| Ok(worker.offer("readable", &[5000], seed)?.1)).collect::<Result<Vec<_>>>()?;
    let large = connector.begin_read(&RdmaMetadata::from_json(&large)?, vec![0u8; 1 << 30]).wait()?;
    for (document, seed) in small.iter().zip(0..) {
        let read = connector.begin_read(&RdmaMetadata::from_json(document)?, vec![0u8; 5000]).wait()?;
        pattern::check(&read.wait_for_completion().wait()?.memory, seed);
        assert_ne!(large.status(), OperationStatus::Complete, "the large one went first");
    }
    pattern::check(&large.wait_for_completion().wait()?.memory, 1);
    Ok(())
}

/// Both number their requests from one, so a read one way and a write the other way have the same number.
fn a_read_and_a_write_between_the_same_two_do_not_meet(lab: &Lab) -> Result<()> {
    for round in 0..20u8 {
        let (a, b) = lab.pair()?;
        let len = 6 << 20;
        let (readable, writable) =
            (b.create_readable(vec![round; len]).wait()?, a.create_writable(vec![0u8; len]).wait()?);
        let read = a.begin_read(readable.metadata(), vec![0u8; len]);
        let write = b.begin_write(vec![round + 100; len], writable.metadata());
        let read = read.wait()?.wait_for_completion().wait()?;
        write.wait()?.wait_for_completion().wait()?;
        let written = writable.wait_for_completion().wait()?;
        assert!(read.memory.iter().all(|byte| *byte == round), "the read got other bytes");
        assert!(written.memory.iter().all(|byte| *byte == round + 100), "the write brought other bytes");
        readable.wait_for_completion().wait()?;
    }
    Ok(())
}

// --- refusals ---------------------------------------------------------------------------------------------

fn a_completed_offer_is_not_read_twice(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    // NIXL revokes nothing when an offer ends (P8), so what stays readable must stay alive.
    let kept = Arc::new(pattern::bytes(5000, 1));
    let offer = a.create_readable(Arc::clone(&kept)).wait()?;
    let metadata = sent(offer.metadata())?;
    read(&b, &metadata, &[5000], 1)?;
    offer.wait_for_completion().wait()?;
    let again = b.with_deadline(Duration::from_secs(10)).begin_read(&metadata, vec![0u8; 5000]).wait();
    let again = again.and_then(|operation| operation.wait_for_completion().wait());
    if lab.is_nixl() {
        // Whether the engine still reaches the memory is its affair; nothing else may be disturbed by it, and
        // the notification counts for nobody (P7).
        if let Ok(received) = &again {
            pattern::check(&received.memory, 1);
            assert!(eventually(PATIENCE, || a.stats().unmatched_notifications == 1), "{:?}", a.stats());
        }
        assert_eq!(a.stats().completed, 1);
    } else {
        let failed = again.err().context("an offer was read twice")?;
        assert!(
            matches!(&failed.error, Error::Transport { source: TransportError::Refused(_), .. }),
            "{failed:?}"
        );
        assert_eq!(failed.error.category(), ErrorCategory::Peer);
        assert!(failed.memory.returned().is_some());
    }
    // Both go on.
    let offer = a.create_readable(vec![3u8; 10]).wait()?;
    b.begin_read(offer.metadata(), vec![0u8; 10]).wait()?.wait_for_completion().wait()?;
    offer.wait_for_completion().wait()?;
    Ok(())
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Failed<Vec<u8>>>, address: *const u8) -> MetadataError {
    let failed = result.expect_err("it does not fit");
    assert_eq!(failed.error.category(), ErrorCategory::Protocol);
    assert!(!failed.error.is_retryable());
    let Recovered::Returned(memory) = failed.memory else { panic!("the memory is parked") };
    assert_eq!(memory.as_ptr(), address);
    match failed.error {
        Error::Metadata(error) => error,
        other => panic!("{other:?}"),
    }
}

fn what_does_not_fit_is_refused_by_name_and_the_memory_comes_back(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let readable = a.create_readable(memory::sources(&[10], 1)?).wait()?;
    let writable = a.create_writable(memory::targets(&[10, 20])?).wait()?;

    let target = vec![0u8; 10];
    let address = target.as_ptr();
    assert_eq!(
        refused(b.begin_read(writable.metadata(), target).wait(), address),
        MetadataError::WrongKind { offered: OperationKind::Write, wanted: OperationKind::Read }
    );
    let target = vec![0u8; 11];
    let address = target.as_ptr();
    assert_eq!(
        refused(b.begin_read(readable.metadata(), target).wait(), address),
        MetadataError::LengthMismatch { index: 0, local: 11, remote: 10 }
    );
    let failed = b.begin_read(readable.metadata(), memory::targets(&[5, 5])?).wait().unwrap_err();
    let Error::Metadata(MetadataError::CountMismatch { local: 2, remote: 1 }) = failed.error else {
        panic!("{failed:?}");
    };
    assert_eq!(failed.memory.returned().map(|memory| memory.len()), Some(2));

    let wrong_kind = b.begin_write(vec![0u8; 10], readable.metadata()).wait().unwrap_err();
    assert!(matches!(wrong_kind, Error::Metadata(MetadataError::WrongKind { .. })), "{wrong_kind:?}");
    let wrong_count = b.begin_write(vec![0u8; 30], writable.metadata()).wait().unwrap_err();
    assert!(matches!(wrong_count, Error::Metadata(MetadataError::CountMismatch { .. })), "{wrong_count:?}");
    let wrong_length = b.begin_write(memory::sources(&[10, 21], 0)?, writable.metadata()).wait().unwrap_err();
    assert!(
        matches!(
            wrong_length,
            Error::Metadata(MetadataError::LengthMismatch { index: 1, local: 21, remote: 20 })
        ),
        "{wrong_length:?}"
    );

    // None of that has used the offers up.
    read(&b, readable.metadata(), &[10], 1)?;
    write(&b, writable.metadata(), &[10, 20], 4)?;
    memory::check(writable.wait_for_completion().wait()?.memory, 4)
}

fn memory_that_can_t_be_used_is_refused_by_name(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let is_empty = |error: Error| matches!(error, Error::Memory(MemoryError::Empty));
    let offer = a.create_readable(vec![0u8; 1]).wait()?;
    let writable = a.create_writable(vec![0u8; 1]).wait()?;
    assert!(is_empty(a.create_readable(Vec::<u8>::new()).wait().unwrap_err()));
    assert!(is_empty(a.create_writable(Vec::<f32>::new()).wait().unwrap_err().error));
    assert!(is_empty(a.create_writable(Vec::<DescriptorMut>::new()).wait().unwrap_err().error));
    assert!(is_empty(b.begin_read(offer.metadata(), Vec::<u8>::new()).wait().unwrap_err().error));
    assert!(is_empty(b.begin_write(Vec::<Descriptor>::new(), writable.metadata()).wait().unwrap_err()));

    // The same bytes twice as targets.
    let buffer = [0u8; 100];
    let twice = || {
        let addr = buffer.as_ptr() as u64;
        // SAFETY: the buffer outlives both connectors' operations; two descriptors of it break the contract of exclusive access,
        // and that they are refused before anybody writes is what is tested.
        let first = unsafe { DescriptorMut::from_raw_parts(connect_core::Device::CPU, addr, 60, ()) };
        // SAFETY: as above.
        let second = unsafe { DescriptorMut::from_raw_parts(connect_core::Device::CPU, addr + 59, 41, ()) };
        anyhow::Ok(vec![first?, second?])
    };
    let failed = a.create_writable(twice()?).wait().unwrap_err();
    assert!(
        matches!(failed.error, Error::Memory(MemoryError::Overlap { first: 0, second: 1 })),
        "{:?}",
        failed.error
    );
    assert_eq!(failed.error.category(), ErrorCategory::Local);
    assert!(failed.memory.returned().is_some());
    let offer = a.create_readable(memory::sources(&[60, 41], 0)?).wait()?;
    let failed = b.begin_read(offer.metadata(), twice()?).wait().unwrap_err();
    assert!(matches!(failed.error, Error::Memory(MemoryError::Overlap { .. })), "{:?}", failed.error);
    Ok(())
}

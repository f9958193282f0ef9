//! The second half of the suite for every transport: how operations and connectors end, other than well.
#![expect(clippy::unwrap_used, reason = "what is here is called by tests only, which a macro makes")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use connect_core::{
    Connector, Deadline, Error, ErrorCategory, OperationName, OperationStatus, RdmaMetadata, Recovered,
};
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::moves::{read, sent, write};
use connect_tests::process::{eventually, signal};
use connect_tests::{memory, pattern};

connect_tests::for_each_transport!(
    an_offer_that_nobody_takes_ends_at_its_deadline,
    an_active_operation_with_a_stopped_peer_ends_at_its_deadline,
    an_offer_that_is_cancelled_says_so,
    an_active_operation_that_is_cancelled_ends,
    a_complete_operation_is_not_cancelled_any_more,
    shutting_down_ends_what_is_open_and_refuses_what_comes_later,
    shutting_down_twice_and_from_many_threads_never_hangs,
    operations_outlive_the_last_handle_of_their_connector,
    stats_add_up,
);

/// Enough to be in flight for a while.
const LARGE: usize = 64 << 20;

// --- deadlines --------------------------------------------------------------------------------------------

/// Later than this a deadline counts as missed by the library. The watchdog answers after 50 ms, which the driver's model
/// checks in virtual time; the rest is for a machine that has other things to do.
const LATE: Duration = Duration::from_secs(5);

#[track_caller]
fn is_deadline(error: &Error, name: OperationName, limit: Duration) {
    let Error::DeadlineExceeded { context, limit: told } = error else { panic!("{error:?}") };
    assert_eq!((context.operation, *told), (name, limit));
    assert!(context.elapsed >= limit && context.elapsed < limit + LATE, "{error}");
    assert_eq!(error.category(), ErrorCategory::Deadline);
    assert!(error.is_retryable());
}

fn an_offer_that_nobody_takes_ends_at_its_deadline(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    let limit = Duration::from_secs(1);
    let hasty = connector.with_deadline(limit);

    let started = Instant::now();
    let error = hasty.create_readable(vec![1u8; 5000]).wait()?.wait_for_completion().wait().unwrap_err();
    let elapsed = started.elapsed();
    assert!(elapsed >= limit && elapsed < limit + LATE, "{elapsed:?}");
    is_deadline(&error, OperationName::Readable, limit);

    let target = vec![0u8; 5000];
    let address = target.as_ptr();
    let started = Instant::now();
    let failed = hasty.create_writable(target).wait()?.wait_for_completion().wait().unwrap_err();
    let elapsed = started.elapsed();
    assert!(elapsed >= limit && elapsed < limit + LATE, "{elapsed:?}");
    is_deadline(&failed.error, OperationName::Writable, limit);
    // NIXL can't prove that nobody writes until the agent is replaced, and a driver that is late parks it as well.
    if let Recovered::Returned(memory) = failed.memory {
        assert_eq!(memory.as_ptr(), address);
    }
    assert!(eventually(PATIENCE, || connector.stats().parked_bytes == 0), "{:?}", connector.stats());
    let stats = connector.stats();
    assert_eq!((stats.started, stats.failed, stats.deadlines_missed, stats.open), (2, 2, 2, 0), "{stats:?}");

    // An unbounded wait has to be asked for, and then has no end of its own.
    let patient = connector.with_deadline(Deadline::never()).create_readable(vec![1u8; 10]).wait()?;
    std::thread::sleep(limit / 2);
    assert_eq!(patient.status(), OperationStatus::Initialized);
    Ok(())
}

fn an_active_operation_with_a_stopped_peer_ends_at_its_deadline(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    // The connection is made while the peer can still answer.
    let (id, warm) = worker.offer("readable", &[10], 1)?;
    read(&connector, &RdmaMetadata::from_json(&warm)?, &[10], 1)?;
    worker.completed(id)?;
    let (readable, read_metadata) = worker.offer("readable", &[5000], 2)?;
    let (writable, write_metadata) = worker.offer("writable", &[5000], 3)?;
    let limit = Duration::from_secs(1);
    let hasty = connector.with_deadline(limit);
    signal(worker.pid(), "STOP")?;
    let reading = hasty.begin_read(&RdmaMetadata::from_json(&read_metadata)?, vec![0u8; 5000]).wait();
    let writing =
        hasty.begin_write(pattern::bytes(5000, 3), &RdmaMetadata::from_json(&write_metadata)?).wait();
    let read = reading.and_then(|operation| operation.wait_for_completion().wait());
    let written = writing.and_then(|operation| operation.wait_for_completion().wait());
    signal(worker.pid(), "CONT")?;
    match read {
        // NIXL over shared memory does not need the peer to run.
        Ok(received) => {
            assert!(lab.is_nixl());
            pattern::check(&received.memory, 2);
        }
        Err(failed) => is_deadline(&failed.error, OperationName::Read, limit),
    }
    match written {
        Ok(_) => assert!(lab.is_nixl()),
        Err(error) => is_deadline(&error, OperationName::Write, limit),
    }
    assert!(eventually(PATIENCE, || connector.stats().parked == 0), "{:?}", connector.stats());
    if !lab.is_nixl() {
        // Both offers ended with that, and whoever made them knows why. But a worker that goes on may have copied what
        // it was asked to before it looks further, and finds that the writer has given up: then it has the bytes.
        for id in [readable, writable] {
            let answer = worker.answer(id)?;
            if id == writable && answer["event"] == "complete" {
                assert_eq!(answer["verified"], serde_json::json!([true]), "{answer}");
                continue;
            }
            assert!(answer["kind"] == "peer" && answer["retryable"] == true, "{answer}");
            assert!(answer["message"].as_str().is_some_and(|text| text.contains("let go")), "{answer}");
        }
    }
    let (id, metadata) = worker.offer("readable", &[5000], 4)?;
    self::read(&connector, &RdmaMetadata::from_json(&metadata)?, &[5000], 4)?;
    worker.completed(id)?;
    Ok(())
}

// --- cancelling -------------------------------------------------------------------------------------------

fn an_offer_that_is_cancelled_says_so(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let readable = a.create_readable(Arc::new(vec![1u8; 5000])).wait()?;
    let metadata = readable.metadata().clone();
    let error = readable.cancel().wait().unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }) && !error.is_retryable(), "{error:?}");
    assert_eq!(error.category(), ErrorCategory::Cancelled);

    let target = vec![0u8; 5000];
    let address = target.as_ptr();
    let cancelling = a.create_writable(target).wait()?.cancel();
    let failed = cancelling.wait().unwrap_err();
    assert!(matches!(failed.error, Error::Cancelled { .. }), "{failed:?}");
    match failed.memory {
        Recovered::Returned(memory) => assert_eq!(memory.as_ptr(), address),
        _ => assert!(lab.is_nixl(), "the memory is parked"),
    }
    assert!(eventually(PATIENCE, || a.stats().parked_bytes == 0), "{:?}", a.stats());

    // P8: by now nobody can read it, on any transport.
    let failed = b.with_deadline(Duration::from_secs(10)).begin_read(&metadata, vec![0u8; 5000]).wait();
    let failed = failed.and_then(|operation| operation.wait_for_completion().wait()).unwrap_err();
    assert!(matches!(failed.error, Error::Transport { .. }), "{failed:?}");
    assert!(eventually(PATIENCE, || b.stats().parked == 0), "{:?}", b.stats());
    assert_eq!(a.stats().cancelled, 2);
    Ok(())
}

fn an_active_operation_that_is_cancelled_ends(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    let (id, warm) = worker.offer("readable", &[10], 1)?;
    read(&connector, &RdmaMetadata::from_json(&warm)?, &[10], 1)?;
    worker.completed(id)?;
    let (_, read_metadata) = worker.offer("readable", &[LARGE], 2)?;
    let (_, write_metadata) = worker.offer("writable", &[LARGE], 3)?;
    let (target, source) = (vec![0u8; LARGE], Arc::new(pattern::bytes(LARGE, 3)));
    let address = target.as_ptr();
    // A peer that stands still keeps an operation of the embedded transport in flight.
    signal(worker.pid(), "STOP")?;
    let reading = connector.begin_read(&RdmaMetadata::from_json(&read_metadata)?, target).wait()?;
    let writing =
        connector.begin_write(Arc::clone(&source), &RdmaMetadata::from_json(&write_metadata)?).wait()?;
    let (read, written) = (reading.cancel(), writing.cancel());
    let started = Instant::now();
    let (read, written) = (read.wait(), written.wait());
    let elapsed = started.elapsed();
    signal(worker.pid(), "CONT")?;
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
    match read {
        Ok(received) => {
            assert!(lab.is_nixl(), "it can't have completed");
            pattern::check(&received.memory, 2);
        }
        Err(failed) => {
            assert!(matches!(failed.error, Error::Cancelled { .. }), "{failed:?}");
            match failed.memory {
                Recovered::Returned(memory) => assert_eq!(memory.as_ptr(), address),
                _ => assert!(lab.is_nixl(), "what only this process writes is quiet at once"),
            }
        }
    }
    match written {
        Ok(_) => assert!(lab.is_nixl(), "it can't have completed"),
        Err(error) => assert!(matches!(error, Error::Cancelled { .. }), "{error:?}"),
    }
    assert!(eventually(PATIENCE, || connector.stats().parked == 0), "{:?}", connector.stats());
    assert!(eventually(PATIENCE, || Arc::strong_count(&source) == 1), "the source is not let go of");

    let (id, metadata) = worker.offer("writable", &[5000], 4)?;
    write(&connector, &RdmaMetadata::from_json(&metadata)?, &[5000], 4)?;
    worker.completed(id)?;
    Ok(())
}

/// D40 of the original: cancelling turned COMPLETE into CANCELLED.
fn a_complete_operation_is_not_cancelled_any_more(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let readable = a.create_readable(vec![1u8; 100]).wait()?;
    let reading = b.begin_read(readable.metadata(), vec![0u8; 100]).wait()?;
    assert!(eventually(PATIENCE, || reading.status().is_final() && readable.status().is_final()));
    assert_eq!(reading.cancel().wait()?.memory, [1; 100]);
    readable.cancel().wait()?;
    let writable = a.create_writable(vec![0u8; 100]).wait()?;
    let writing = b.begin_write(vec![2u8; 100], writable.metadata()).wait()?;
    assert!(eventually(PATIENCE, || writing.status().is_final() && writable.status().is_final()));
    writing.cancel().wait()?;
    assert_eq!(writable.cancel().wait()?.memory, [2; 100]);
    assert_eq!((a.stats().cancelled, b.stats().cancelled), (0, 0));
    Ok(())
}

// --- the end of a connector -------------------------------------------------------------------------------

fn shutting_down_ends_what_is_open_and_refuses_what_comes_later(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let elsewhere = b.create_readable(memory::sources(&[10], 1)?).wait()?;
    let readable = a.create_readable(vec![1u8; 5000]).wait()?;
    let target = vec![0u8; 5000];
    let writable = a.create_writable(target).wait()?;
    let waiting = writable.wait_for_completion();
    a.shutdown(Duration::from_secs(20)).wait()?;

    let error = readable.wait_for_completion().wait().unwrap_err();
    assert!(matches!(error, Error::ShutDown) && !error.is_retryable(), "{error:?}");
    let failed = waiting.wait().unwrap_err();
    assert!(matches!(failed.error, Error::ShutDown), "{failed:?}");
    assert!(!failed.memory.is_parked() || lab.is_nixl());
    let stats = a.stats();
    assert_eq!((stats.open, stats.parked, stats.parked_bytes), (0, 0, 0), "the transport is gone: {stats:?}");

    let is_shut_down = |error: &Error| matches!(error, Error::ShutDown);
    assert!(is_shut_down(&a.create_readable(vec![0u8; 1]).wait().unwrap_err()));
    let target = vec![0u8; 10];
    let address = target.as_ptr();
    let failed = a.begin_read(elsewhere.metadata(), target).wait().unwrap_err();
    assert!(is_shut_down(&failed.error));
    assert_eq!(failed.memory.returned().map(|memory| memory.as_ptr()), Some(address));
    assert!(is_shut_down(&a.create_writable(vec![0u8; 1]).wait().unwrap_err().error));
    assert!(is_shut_down(&a.connect(elsewhere.metadata()).wait().unwrap_err()));

    // The other connector does not mind.
    let c = lab.connector()?;
    read(&c, elsewhere.metadata(), &[10], 1)?;
    elsewhere.wait_for_completion().wait()?;
    Ok(())
}

fn shutting_down_twice_and_from_many_threads_never_hangs(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let offer = b.create_readable(pattern::bytes(LARGE, 1)).wait()?;
    let reading = a.begin_read(offer.metadata(), vec![0u8; LARGE]);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| a.shutdown(Duration::from_secs(20)).wait())).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    // Who asks when all is over hears that.
    for result in &results {
        assert!(matches!(result, Ok(()) | Err(Error::ShutDown)), "{results:?}");
    }
    assert!(results.iter().any(Result::is_ok), "{results:?}");
    // The read may have been faster, and may even have completed before.
    match reading.wait().and_then(|operation| operation.wait_for_completion().wait()) {
        Ok(received) => pattern::check(&received.memory, 1),
        Err(failed) => assert!(matches!(failed.error, Error::ShutDown), "{failed:?}"),
    }
    assert!(matches!(a.shutdown(Duration::from_secs(20)).wait(), Err(Error::ShutDown)));
    Ok(())
}

fn operations_outlive_the_last_handle_of_their_connector(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let readable = a.create_readable(pattern::bytes(LARGE, 1)).wait()?;
    let writable = a.create_writable(vec![0u8; 5000]).wait()?;
    let reading = b.begin_read(readable.metadata(), vec![0u8; LARGE]);
    let writing = b.begin_write(pattern::bytes(5000, 2), writable.metadata());
    drop((a, b));
    pattern::check(&reading.wait()?.wait_for_completion().wait()?.memory, 1);
    writing.wait()?.wait_for_completion().wait()?;
    readable.wait_for_completion().wait()?;
    pattern::check(&writable.wait_for_completion().wait()?.memory, 2);
    Ok(())
}

fn stats_add_up(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    assert_eq!(a.stats(), connect_core::Stats::default());
    for lengths in [&[10][..], &[1000, 1]] {
        let offer = a.create_readable(memory::sources(lengths, 1)?).wait()?;
        read(&b, offer.metadata(), lengths, 1)?;
        offer.wait_for_completion().wait()?;
    }
    let offer = a.create_writable(vec![0u8; 7]).wait()?;
    b.begin_write(vec![1u8; 7], offer.metadata()).wait()?.wait_for_completion().wait()?;
    offer.wait_for_completion().wait()?;
    assert_eq!((a.stats().bytes_sent, a.stats().bytes_received), (1011, 7));
    assert_eq!((b.stats().bytes_sent, b.stats().bytes_received), (7, 1011));

    let open = a.create_readable(vec![1u8; 10]).wait()?;
    assert_eq!(a.stats().open, 1);
    assert!(open.cancel().wait().is_err());
    drop(a.create_readable(vec![1u8; 10]));
    let missed = a.with_deadline(Duration::from_secs(2)).create_readable(vec![1u8; 10]).wait()?;
    assert!(missed.wait_for_completion().wait().is_err());
    let refused = a.begin_read(&sent(&b_offer(&b)?)?, vec![0u8; 99]).wait();
    assert!(refused.is_err(), "refused before it began, so it counts nowhere");
    assert!(eventually(PATIENCE, || a.stats().open == 0 && a.stats().parked == 0), "{:?}", a.stats());
    let stats = a.stats();
    assert_eq!((stats.started, stats.completed, stats.cancelled, stats.failed), (6, 3, 2, 1), "{stats:?}");
    assert_eq!((stats.deadlines_missed, stats.parked_bytes), (1, 0));

    a.shutdown(Duration::from_secs(20)).wait()?;
    assert!(a.create_readable(vec![1u8; 10]).wait().is_err());
    let stats = a.stats();
    let ended = stats.completed + stats.cancelled + stats.failed;
    ensure!(
        stats.started == ended + stats.open,
        "an operation counts as started but never as ended: {stats:?}"
    );
    Ok(())
}

/// Metadata of an offer that ends at once.
fn b_offer(b: &Connector) -> Result<RdmaMetadata> {
    Ok(b.create_readable(vec![1u8; 10]).wait()?.metadata().clone())
}

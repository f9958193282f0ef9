//! One memory, several readers: each counts for itself.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use connect_core::{Connector, Error, RdmaMetadata, Region, SourceMemory};
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::pattern;
use connect_tests::process::eventually;

connect_tests::for_each_transport!(
    every_reader_gets_the_memory_and_every_one_is_acknowledged,
    one_registration_serves_all_readers,
    a_slot_is_fanned_out_and_comes_back_after_the_last_reader,
    p7_a_document_used_twice_counts_for_its_own_reader_only,
    p1_a_reader_that_is_killed_or_never_comes_does_not_harm_the_others,
    dropping_it_withdraws_what_nobody_has_read,
);

const LEN: usize = 300_000;

/// Memory that is gone once its counter is the only one.
struct Counted(Vec<u8>, #[expect(dead_code, reason = "what it is good for is being there")] Arc<()>);

// SAFETY: as for the Vec inside, which nobody changes.
unsafe impl SourceMemory for Counted {
    fn regions(&self) -> Vec<Region> {
        SourceMemory::regions(&self.0)
    }
}

fn counted(seed: u64) -> (Counted, Arc<()>) {
    let counter = Arc::new(());
    (Counted(pattern::bytes(LEN, seed), Arc::clone(&counter)), counter)
}

fn read(reader: &Connector, metadata: &RdmaMetadata, seed: u64) -> Result<()> {
    let received = reader.begin_read(metadata, vec![0u8; LEN]).wait()?.wait_for_completion().wait()?;
    pattern::check(&received.memory, seed);
    Ok(())
}

fn every_reader_gets_the_memory_and_every_one_is_acknowledged(lab: &Lab) -> Result<()> {
    let sender = lab.connector()?;
    let mut workers = [lab.worker()?, lab.worker()?, lab.worker()?];
    for blocking in [true, false] {
        let (memory, counter) = counted(4);
        let fan_out = sender.fan_out(memory, 3).wait()?;
        let documents: Vec<String> = fan_out.documents().map(RdmaMetadata::to_json).collect();
        // In another order than that of the documents, and all at once.
        let mut reads = Vec::new();
        for (worker, document) in workers.iter_mut().zip(&documents).rev() {
            reads.push(worker.begin("read", document, &[LEN], 4)?);
        }
        for (worker, id) in workers.iter_mut().rev().zip(reads) {
            worker.completed(id)?;
        }
        let done = fan_out.wait_for_completion();
        let reports = if blocking { done.wait() } else { futures_executor::block_on(done) };
        let reports = reports.into_iter().collect::<Result<Vec<_>, _>>()?;
        assert_eq!(reports.len(), 3);
        let mut peers: Vec<_> = reports.iter().map(|report| report.peer.clone()).collect();
        assert!(reports.iter().all(|report| report.bytes == LEN as u64));
        peers.sort();
        peers.dedup();
        assert_eq!(peers.len(), 3, "each answer names its own reader");
        assert_eq!(Arc::strong_count(&counter), 1, "the memory is let go of");
    }
    assert_eq!(sender.stats().completed, 6);
    Ok(())
}

fn one_registration_serves_all_readers(lab: &Lab) -> Result<()> {
    let sender = lab.connector()?;
    let fan_out = sender.fan_out(counted(1).0, 20).wait()?;
    let mut keys: Vec<_> =
        fan_out.documents().map(|document| document.notification_key().to_owned()).collect();
    let mut blobs: Vec<_> = fan_out.documents().map(RdmaMetadata::nixl_metadata).collect();
    let stats = sender.stats();
    if lab.is_nixl() {
        assert_eq!((stats.registrations, stats.registration_hits), (1, 19));
    }
    assert_eq!(fan_out.documents().len(), 20);
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 20, "every document has its own key");
    blobs.dedup();
    assert_eq!(blobs.len(), 1, "and all have one blob");
    Ok(())
}

fn a_slot_is_fanned_out_and_comes_back_after_the_last_reader(lab: &Lab) -> Result<()> {
    let (sender, reader) = lab.pair()?;
    let slab = sender.slab(1, LEN).wait()?;
    for seed in 0..3 {
        let mut slot = slab.take().wait()?;
        slot.set_len(LEN)?;
        slot.copy_from_slice(&pattern::bytes(LEN, seed));
        let fan_out = sender.fan_out(slot, 2).wait()?;
        let documents: Vec<RdmaMetadata> = fan_out.documents().cloned().collect();
        let [first, second] = fan_out.into_offers().try_into().expect("there are two");
        read(&reader, &documents[0], seed)?;
        first.wait_for_completion().wait()?;
        assert!(slab.try_take().is_none(), "one is to come yet");
        read(&reader, &documents[1], seed)?;
        second.wait_for_completion().wait()?;
        assert!(eventually(PATIENCE, || slab.free() == 1));
    }
    Ok(())
}

fn p7_a_document_used_twice_counts_for_its_own_reader_only(lab: &Lab) -> Result<()> {
    let (sender, reader) = lab.pair()?;
    let (memory, counter) = counted(3);
    let fan_out = sender.fan_out(memory, 2).wait()?;
    let documents: Vec<RdmaMetadata> = fan_out.documents().cloned().collect();
    read(&reader, &documents[0], 3)?;
    // Over NIXL it may read again, over `local` it may not; neither counts.
    let again = reader.with_deadline(Duration::from_secs(10)).begin_read(&documents[0], vec![0u8; LEN]);
    let again = again.wait().and_then(|operation| operation.wait_for_completion().wait());
    assert_eq!(again.is_ok(), lab.is_nixl(), "{again:?}");
    let strays = u64::from(lab.is_nixl());
    assert!(
        eventually(PATIENCE, || sender.stats().unmatched_notifications == strays),
        "{:?}",
        sender.stats()
    );
    let stats = sender.stats();
    assert_eq!((stats.completed, stats.open), (1, 1));
    assert_eq!(Arc::strong_count(&counter), 2, "the other reader's memory stays");
    read(&reader, &documents[1], 3)?;
    assert!(fan_out.wait_for_completion().wait().iter().all(Result::is_ok));
    Ok(())
}

fn p1_a_reader_that_is_killed_or_never_comes_does_not_harm_the_others(lab: &Lab) -> Result<()> {
    let sender = lab.connector()?;
    let (memory, counter) = counted(5);
    let (mut killed, mut honest) = (lab.worker()?, lab.worker()?);
    let fan_out = sender.with_deadline(Duration::from_secs(10)).fan_out(memory, 4).wait()?;
    let documents: Vec<String> = fan_out.documents().map(RdmaMetadata::to_json).collect();
    killed.begin("read", &documents[0], &[LEN], 5)?;
    killed.kill();
    for document in &documents[1..3] {
        let id = honest.begin("read", document, &[LEN], 5)?;
        honest.completed(id)?;
    }
    assert!(Arc::strong_count(&counter) > 1, "one has not come");
    let results = fan_out.wait_for_completion().wait();
    // The first may have been fast.
    assert!(results[1].is_ok() && results[2].is_ok(), "{results:?}");
    assert!(matches!(results[3], Err(Error::DeadlineExceeded { .. })), "{results:?}");
    // What nobody vouches for is parked until it is quiet, and then let go of.
    assert!(eventually(PATIENCE, || Arc::strong_count(&counter) == 1), "{:?}", sender.stats());
    assert!(eventually(PATIENCE, || sender.stats().parked == 0), "{:?}", sender.stats());
    Ok(())
}

fn dropping_it_withdraws_what_nobody_has_read(lab: &Lab) -> Result<()> {
    let (sender, reader) = lab.pair()?;
    let (memory, counter) = counted(6);
    let fan_out = sender.fan_out(memory, 3).wait()?;
    let documents: Vec<RdmaMetadata> = fan_out.documents().cloned().collect();
    read(&reader, &documents[1], 6)?;
    assert!(eventually(PATIENCE, || sender.stats().completed == 1));
    drop(fan_out);
    assert!(eventually(PATIENCE, || Arc::strong_count(&counter) == 1), "{:?}", sender.stats());
    assert_eq!((sender.stats().completed, sender.stats().cancelled), (1, 2));

    let cancelled = sender.fan_out(counted(7).0, 2).wait()?.cancel().wait();
    assert!(cancelled.iter().all(|result| matches!(result, Err(Error::Cancelled { .. }))), "{cancelled:?}");
    assert!(sender.fan_out(vec![1u8], 0).wait().is_err());
    let refused = sender.fan_out(Vec::<u8>::new(), 3).wait();
    assert!(matches!(refused, Err(Error::Memory(_))), "{refused:?}");
    Ok(())
}

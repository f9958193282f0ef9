//! Slabs over every transport: slots in operations, at their ends, and in the hands of peers that die.

use std::io::Write;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use connect_core::{
    Connector, Descriptor, DescriptorMut, Error, MemoryError, RdmaMetadata, Recovered, Slab, Slot,
};
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::moves::sent;
use connect_tests::process::eventually;
use connect_tests::{memory, pattern};

connect_tests::for_each_transport!(
    slots_go_into_all_four_operations,
    an_offer_of_any_length_and_number_of_pieces_is_read_into_a_slot,
    memory_larger_than_the_offer_is_filled_from_its_beginning,
    slots_of_slabs_that_lie_side_by_side_go_into_one_operation,
    other_processes_push_into_a_pool,
    a_pool_slows_its_sender_down_to_the_pace_of_its_receiver,
    in_the_steady_state_nothing_is_registered_or_described_again,
    p1_a_slot_given_up_in_flight_comes_back_when_nobody_touches_it,
    p1_slots_of_a_killed_peer_come_back_when_nobody_touches_them,
    p1_a_slab_dropped_while_its_slots_are_out_serves_them_to_the_end,
    p7_an_answer_for_one_slot_counts_for_no_other,
    p1_p8_documents_of_a_dropped_slab_end_before_its_memory_does,
);

/// A transfer of this size is in flight for a while.
const LARGE: usize = 64 << 20;

/// A slot with the pattern in it.
fn filled(slab: &Slab, len: usize, seed: u64) -> Result<Slot> {
    let mut slot = slab.take().wait()?;
    slot.write_all(&pattern::bytes(len, seed))?;
    Ok(slot)
}

/// Waits until all slots are back, and checks that nobody has written to one after it came.
fn check_quiet(slab: &Slab) -> Result<()> {
    let mut slots = Vec::new();
    for _ in 0..slab.slots() {
        let mut slot = slab.with_deadline(PATIENCE).take().wait()?;
        slot.set_len(slab.slot_bytes())?;
        slot.fill(0xFD);
        slots.push(slot);
    }
    // Whatever comes too late comes now.
    thread::sleep(Duration::from_millis(50));
    for slot in &slots {
        let written = slot.chunks(4096).position(|page| *page != [0xFD; 4096][..page.len()]);
        ensure!(written.is_none(), "page {written:?} of {slot:?} was written after it came back");
    }
    Ok(())
}

/// A transfer that goes well.
fn serves(a: &Connector, from: &Slab, b: &Connector, to: &Slab) -> Result<()> {
    let offer = a.create_readable(filled(from, 1000, 1)?).wait()?;
    let read = b.begin_read_into(&sent(offer.metadata())?, to.take().wait()?).wait()?;
    pattern::check(&read.wait_for_completion().wait()?.memory, 1);
    offer.wait_for_completion().wait()?;
    Ok(())
}

fn slots_go_into_all_four_operations(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let (ours, theirs) = (a.slab(2, 100_000).wait()?, b.slab(2, 100_000).wait()?);
    for (len, seed) in [1, 64, 4096, 99_999, 100_000].into_iter().zip(1..) {
        let offer = a.create_readable(filled(&ours, len, seed)?).wait()?;
        let mut target = theirs.take().wait()?;
        target.set_len(len)?;
        let read = b.begin_read(&sent(offer.metadata())?, target).wait()?;
        pattern::check(&read.wait_for_completion().wait()?.memory, seed);
        offer.wait_for_completion().wait()?;

        let offer = ours.receive(len).wait()?;
        let write = b.begin_write(filled(&theirs, len, seed + 100)?, &sent(offer.metadata())?).wait()?;
        assert_eq!(write.wait_for_completion().wait()?.bytes, len as u64);
        let received = offer.wait_for_completion().wait()?.memory;
        assert_eq!(received.len(), len);
        pattern::check(&received, seed + 100);
    }
    assert_eq!((ours.free(), theirs.free()), (2, 2));
    Ok(())
}

fn an_offer_of_any_length_and_number_of_pieces_is_read_into_a_slot(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    let inbox = connector.slab(1, 300_000).wait()?;
    for lengths in [&[1][..], &[4096], &[3, 100_000, 17, 4096, 1], &[300_000], &[100_000, 100_000, 100_000]] {
        let (id, metadata) = worker.offer("readable", lengths, 7)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let read = connector.begin_read_into(&metadata, inbox.take().wait()?).wait()?;
        let received = read.wait_for_completion().wait()?;
        let total = lengths.iter().sum::<usize>();
        assert_eq!((received.report.bytes, received.memory.len()), (total as u64, total));
        let mut at = 0;
        for (length, seed) in lengths.iter().zip(7..) {
            pattern::check(&received.memory[at..at + length], seed);
            at += length;
        }
        worker.completed(id)?;
    }
    Ok(())
}

fn memory_larger_than_the_offer_is_filled_from_its_beginning(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let offer = a.create_readable(memory::sources(&[700, 300], 1)?).wait()?;
    let metadata = sent(offer.metadata())?;

    // What is too small or in pieces comes back, and the peer has not heard of it.
    let failed = b.begin_read_into(&metadata, vec![0u8; 999]).wait().expect_err("it is too small");
    let Error::Memory(MemoryError::TooSmall { needed: 1000, room: 999 }) = failed.error else {
        panic!("{failed:?}");
    };
    assert!(matches!(failed.memory, Recovered::Returned(ref memory) if memory.len() == 999));
    let failed =
        b.begin_read_into(&metadata, memory::targets(&[700, 400])?).wait().expect_err("it is in pieces");
    let Error::Memory(MemoryError::NotContiguous { count: 2 }) = failed.error else { panic!("{failed:?}") };
    assert_eq!(b.stats().started, 0);

    let received = b.begin_read_into(&metadata, vec![0xEEu8; 1500]).wait()?.wait_for_completion().wait()?;
    assert_eq!((received.report.bytes, received.report.descriptors), (1000, 2));
    pattern::check(&received.memory[..700], 1);
    pattern::check(&received.memory[700..1000], 2);
    assert!(received.memory[1000..].iter().all(|byte| *byte == 0xEE), "the rest is untouched");
    offer.wait_for_completion().wait()?;

    // The direction is looked at as ever.
    let writable = a.create_writable(vec![0u8; 10]).wait()?;
    let failed =
        b.begin_read_into(writable.metadata(), vec![0u8; 100]).wait().expect_err("it is not to be read");
    assert!(matches!(failed.error, Error::Metadata(_)), "{failed:?}");
    Ok(())
}

/// The kernel puts mappings side by side, and pieces that follow each other are moved as one: but not across slabs,
/// which are registered each for itself.
fn slots_of_slabs_that_lie_side_by_side_go_into_one_operation(lab: &Lab) -> Result<()> {
    const LEN: usize = 1 << 16;
    let (a, b) = lab.pair()?;
    let slots = |connector: &Connector| -> Result<Vec<Slot>> {
        let slabs = (0..4).map(|_| connector.slab(2, LEN).wait()).collect::<Result<Vec<_>, _>>()?;
        let mut slots: Vec<Slot> =
            slabs.iter().flat_map(|slab| [slab.try_take(), slab.try_take()]).flatten().collect();
        slots.iter_mut().try_for_each(|slot| slot.resize(LEN))?;
        slots.sort_by_key(|slot| slot.as_ptr());
        Ok(slots)
    };
    for _ in 0..2 {
        let mut sources = slots(&a)?;
        for (slot, seed) in sources.iter_mut().zip(1..) {
            slot.copy_from_slice(&pattern::bytes(LEN, seed));
        }
        let sources = sources.into_iter().map(Descriptor::new).collect::<Result<Vec<_>, _>>()?;
        let targets = slots(&b)?.into_iter().map(DescriptorMut::new).collect::<Result<Vec<_>, _>>()?;
        let offer = a.create_readable(sources).wait()?;
        let read = b.begin_read(&sent(offer.metadata())?, targets).wait()?;
        let received = read.wait_for_completion().wait()?.memory;
        offer.wait_for_completion().wait()?;
        assert_eq!(received.len(), 8);
        for (target, seed) in received.into_iter().zip(1..) {
            let slot = target.into_memory::<Slot>();
            pattern::check(&slot.map_err(|_| anyhow::anyhow!("another memory came back"))?, seed);
        }
    }
    Ok(())
}

fn other_processes_push_into_a_pool(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    let inbox = connector.slab(3, 70_000).wait()?;
    let mut workers = [lab.worker()?, lab.worker()?];
    for round in 0..6 {
        let mut pushes = Vec::new();
        for (worker, i) in workers.iter_mut().zip(0..) {
            let (len, seed) = (1 + (round * 12_345 + i * 777) % 70_000, (round * 2 + i) as u64);
            let offer = inbox.receive(len).wait()?;
            let id = worker.begin("write", &offer.metadata().to_json(), &[len], seed)?;
            pushes.push((offer, len, seed, id));
        }
        for ((offer, len, seed, id), worker) in pushes.into_iter().zip(&mut workers) {
            let received = offer.wait_for_completion().wait()?.memory;
            assert_eq!(received.len(), len);
            pattern::check(&received, seed);
            worker.completed(id)?;
        }
    }
    assert_eq!(inbox.free(), 3);
    Ok(())
}

/// Sixty-four payloads through two slots, from eight threads.
fn a_pool_slows_its_sender_down_to_the_pace_of_its_receiver(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let (outbox, inbox) = (a.slab(2, 5000).wait()?, b.slab(2, 5000).wait()?);
    let sender = |seed: u64| -> Result<()> {
        for i in 0..8 {
            let (len, seed) = (1 + (seed as usize * 613) % 5000, seed + i);
            let offer = inbox.receive(len).wait()?;
            let slot = filled(&outbox, len, seed)?;
            a.begin_write(slot, offer.metadata()).wait()?.wait_for_completion().wait()?;
            let received = offer.wait_for_completion().wait()?.memory;
            ensure!(pattern::first_difference(&received, seed).is_none(), "other bytes came for {seed}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let senders: Vec<_> = (0..8).map(|seed| scope.spawn(move || sender(seed))).collect();
        senders.into_iter().try_for_each(|sender| sender.join().expect("it does not panic"))
    })?;
    assert_eq!((outbox.free(), inbox.free()), (2, 2));
    assert_eq!((a.stats().completed, b.stats().completed), (64, 64));
    Ok(())
}

fn in_the_steady_state_nothing_is_registered_or_described_again(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let (outbox, inbox) = (a.slab(4, 10_000).wait()?, b.slab(4, 10_000).wait()?);
    serves(&a, &outbox, &b, &inbox)?;
    let before = (a.stats(), b.stats());
    let mut blobs = Vec::new();
    for round in 0..50 {
        let offer = a.create_readable(filled(&outbox, 1 + round * 100, 1)?).wait()?;
        blobs.push(offer.metadata().nixl_metadata().to_owned());
        let read = b.begin_read_into(offer.metadata(), inbox.take().wait()?).wait()?;
        read.wait_for_completion().wait()?;
        offer.wait_for_completion().wait()?;
    }
    blobs.dedup();
    assert_eq!(blobs.len(), 1, "a peer knows the blob again by its being the same");
    let after = (a.stats(), b.stats());
    assert_eq!(after.0.registrations, before.0.registrations);
    assert_eq!(after.1.registrations, before.1.registrations);
    if lab.is_nixl() {
        assert_eq!((before.0.registrations, before.1.registrations), (1, 1), "the slab, once");
        assert_eq!(after.0.registration_hits - before.0.registration_hits, 50);
        assert_eq!(after.1.registration_hits - before.1.registration_hits, 50);
        // Memory of an operation's own is registered for it.
        let offer = a.create_readable(vec![1u8; 10]).wait()?;
        assert_eq!(a.stats().registrations, after.0.registrations + 1);
        drop(offer);
    }
    Ok(())
}

fn p1_a_slot_given_up_in_flight_comes_back_when_nobody_touches_it(lab: &Lab) -> Result<()> {
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    let slab = connector.slab(1, LARGE).wait()?;
    for (delay, how) in [0u64, 2, 6, 12].into_iter().zip(0..) {
        // The peer writes into the slot.
        let offer = slab.receive(LARGE).wait()?;
        let id = worker.begin("write", &offer.metadata().to_json(), &[LARGE], 1)?;
        thread::sleep(Duration::from_millis(delay));
        if how % 2 == 0 {
            drop(offer);
        } else if let Err(failed) = offer.cancel().wait() {
            // Either it came back here and now, or it does by itself.
            drop(failed.memory.returned());
        }
        worker.answer(id)?;
        check_quiet(&slab)?;

        // We read into it.
        let (_, metadata) = worker.offer("readable", &[LARGE], 2)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let reading = connector.begin_read_into(&metadata, slab.take().wait()?).wait()?;
        thread::sleep(Duration::from_millis(delay));
        drop(reading);
        check_quiet(&slab)?;
    }
    assert!(eventually(PATIENCE, || connector.stats().parked == 0), "{:?}", connector.stats());
    Ok(())
}

fn p1_slots_of_a_killed_peer_come_back_when_nobody_touches_them(lab: &Lab) -> Result<()> {
    let connector = lab.connector()?;
    let slab = connector.slab(2, LARGE).wait()?;
    for delay in [20, 40] {
        let mut worker = lab.worker()?;
        let first = slab.receive(10).wait()?;
        let id = worker.begin("write", &first.metadata().to_json(), &[10], 1)?;
        pattern::check(&first.wait_for_completion().wait()?.memory, 1);
        worker.completed(id)?;

        let patient = slab.with_deadline(Duration::from_secs(3));
        let (writing, idle) = (patient.receive(LARGE).wait()?, patient.receive(10).wait()?);
        worker.begin("write", &writing.metadata().to_json(), &[LARGE], 2)?;
        thread::sleep(Duration::from_millis(delay));
        worker.kill();
        assert!(slab.try_take().is_none(), "both are out");
        // Complete is complete: then every byte is there.
        match writing.wait_for_completion().wait() {
            Ok(received) => pattern::check(&received.memory, 2),
            Err(failed) => drop(failed),
        }
        drop(idle);
        check_quiet(&slab)?;
    }
    let (other, theirs) = (lab.connector()?, connector.slab(1, 1000).wait()?);
    let inbox = other.slab(1, 1000).wait()?;
    serves(&connector, &theirs, &other, &inbox)
}

fn p1_a_slab_dropped_while_its_slots_are_out_serves_them_to_the_end(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let slab = a.slab(3, 100_000).wait()?;
    let readable = a.create_readable(filled(&slab, 100_000, 1)?).wait()?;
    let writable = slab.receive(5000).wait()?;
    let expiring = slab.with_deadline(Duration::from_millis(1)).receive(5000).wait();
    drop(slab);

    let read = b.begin_read(readable.metadata(), vec![0u8; 100_000]).wait()?;
    pattern::check(&read.wait_for_completion().wait()?.memory, 1);
    readable.wait_for_completion().wait()?;
    b.begin_write(pattern::bytes(5000, 2), writable.metadata()).wait()?.wait_for_completion().wait()?;
    let received = writable.wait_for_completion().wait()?.memory;
    drop(expiring);
    thread::sleep(Duration::from_millis(50));
    pattern::check(&received, 2);
    drop(received);
    // Nothing is left of it, and the connector goes on.
    assert!(eventually(PATIENCE, || a.stats().parked == 0), "{:?}", a.stats());
    let (again, inbox) = (a.slab(1, 1000).wait()?, b.slab(1, 1000).wait()?);
    serves(&a, &again, &b, &inbox)
}

/// Two slots on offer by the same blob: only the keys tell them apart.
fn p7_an_answer_for_one_slot_counts_for_no_other(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    let slab = a.slab(2, 1000).wait()?;
    let (first, second) = (slab.receive(1000).wait()?, slab.receive(1000).wait()?);
    assert_eq!(first.metadata().nixl_metadata(), second.metadata().nixl_metadata());
    b.begin_write(pattern::bytes(1000, 2), second.metadata()).wait()?.wait_for_completion().wait()?;
    pattern::check(&second.wait_for_completion().wait()?.memory, 2);
    assert!(!first.status().is_final());
    b.begin_write(pattern::bytes(1000, 1), first.metadata()).wait()?.wait_for_completion().wait()?;
    pattern::check(&first.wait_for_completion().wait().context("its own")?.memory, 1);
    Ok(())
}

/// Over NIXL whoever has a document can use it again while its agent lives. So the agent ends first, and then the
/// memory: it could be somebody else's by then, and over TCP a read of what was unmapped ends the process.
fn p1_p8_documents_of_a_dropped_slab_end_before_its_memory_does(lab: &Lab) -> Result<()> {
    let (a, b) = lab.pair()?;
    // One that no peer has heard of goes at once.
    let unused = a.slab(1, 1 << 20).wait()?;
    drop((unused.try_take(), unused));
    let slab = a.slab(2, 5000).wait()?;
    let parked = || (a.stats().parked, a.stats().parked_bytes);
    assert_eq!(parked(), (0, 0));
    let bytes = slab.region().len();
    let offer = a.create_readable(filled(&slab, 5000, 1)?).wait()?;
    let metadata = sent(offer.metadata())?;
    b.begin_read(&metadata, vec![0u8; 5000]).wait()?.wait_for_completion().wait()?;
    offer.wait_for_completion().wait()?;
    assert_eq!(slab.free(), 2, "completed is completed");

    drop(slab);
    if lab.is_nixl() {
        assert!(eventually(PATIENCE, || parked() == (1, bytes)), "{:?}", a.stats());
    }
    assert!(eventually(PATIENCE, || parked() == (0, 0)), "{:?}", a.stats());
    let again = b.with_deadline(Duration::from_secs(10)).begin_read(&metadata, vec![0u8; 5000]);
    let again = again.wait().and_then(|operation| operation.wait_for_completion().wait());
    ensure!(again.is_err(), "it was read after its end");
    let (fresh, inbox) = (a.slab(1, 1000).wait()?, b.slab(1, 1000).wait()?);
    serves(&a, &fresh, &b, &inbox)
}

//! P1: memory outlives the transfer, whenever its operation is dropped, and is let go of exactly once.
//!
//! The memory here does not go back to the allocator when it is dropped: it is filled with a pattern and kept
//! in a [`Graveyard`]. So a write that comes too late is seen, and so is a read that comes too late and is
//! taken for good.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use connect_core::{Connector, RdmaMetadata, Region, SourceMemory, TargetMemory};
use connect_tests::lab::{Lab, PATIENCE};
use connect_tests::process::{self, eventually};
use connect_tests::{memory, pattern};

connect_tests::for_each_transport!(
    p1_memory_dropped_before_anybody_came_is_freed_once,
    p1_memory_dropped_in_flight_is_not_touched_afterwards,
    p1_memory_dropped_after_the_end_is_freed_once,
    p1_memory_of_a_connector_that_is_dropped_or_shut_down_is_freed_once,
    p1_p2_memory_of_a_caller_that_panics_is_freed_once,
    p1_memory_of_a_stopped_or_killed_peer_s_transfer_is_freed_once,
    nothing_is_left_behind_by_two_hundred_rounds,
    p1_nothing_is_left_behind_by_slabs_that_come_and_go,
);

/// One test at a time: they count what the process has.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What dropped memory is filled with. The pattern that travels has no byte above 250.
const DEAD: u8 = 0xFD;

/// A transfer of this size is in flight for a while.
const LARGE: usize = 96 << 20;

/// Where dropped buffers go.
#[derive(Clone, Default)]
struct Graveyard(Arc<Mutex<Vec<Vec<u8>>>>);

impl Graveyard {
    fn memory(&self, bytes: Vec<u8>) -> Tracked {
        Tracked { bytes, graveyard: self.clone() }
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits until this many buffers were dropped, and checks that nobody has touched them since.
    fn check(&self, expected: usize) -> Result<()> {
        eventually(PATIENCE, || self.len() >= expected);
        // Whatever comes too late comes now.
        std::thread::sleep(Duration::from_millis(20));
        let buffers = mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        ensure!(buffers.len() == expected, "{} buffers were dropped instead of {expected}", buffers.len());
        for buffer in buffers {
            // In blocks, which even an unoptimised build compares fast.
            let written = buffer.chunks(4096).position(|block| *block != [DEAD; 4096][..block.len()]);
            ensure!(
                written.is_none(),
                "page {written:?} of {} bytes was written after the drop",
                buffer.len()
            );
        }
        Ok(())
    }
}

/// Memory that tells when it is dropped.
struct Tracked {
    bytes: Vec<u8>,
    graveyard: Graveyard,
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.bytes.fill(DEAD);
        let bytes = mem::take(&mut self.bytes);
        self.graveyard.0.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

// SAFETY: as for Vec, which it wraps; the bytes are only changed by the drop.
unsafe impl SourceMemory for Tracked {
    fn regions(&self) -> Vec<Region> {
        SourceMemory::regions(&self.bytes)
    }
}

// SAFETY: as for Vec, which it wraps.
unsafe impl TargetMemory for Tracked {
    fn regions(&mut self) -> Vec<Region> {
        TargetMemory::regions(&mut self.bytes)
    }
}

fn quiet(connectors: &[&Connector]) -> Result<()> {
    for connector in connectors {
        let calm = eventually(PATIENCE, || {
            let stats = connector.stats();
            (stats.open, stats.parked, stats.parked_bytes) == (0, 0, 0)
        });
        ensure!(calm, "{:?}", connector.stats());
    }
    Ok(())
}

/// A transfer that goes well.
fn serves(a: &Connector, b: &Connector) -> Result<()> {
    let offer = a.create_readable(memory::sources(&[1000], 1)?).wait()?;
    let received = b.begin_read(offer.metadata(), memory::targets(&[1000])?).wait()?.wait_for_completion();
    memory::check(received.wait()?.memory, 1)?;
    offer.wait_for_completion().wait()?;
    Ok(())
}

fn p1_memory_dropped_before_anybody_came_is_freed_once(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let (a, graves) = (lab.connector()?, Graveyard::default());
    for _ in 0..10 {
        // Before the driver has looked at it, maybe; once it is open; while it is waited for; when that was
        // polled once.
        drop(a.create_readable(graves.memory(vec![1; 5000])));
        drop(a.create_writable(graves.memory(vec![1; 5000])));
        drop(a.create_readable(graves.memory(vec![1; 5000])).wait()?);
        drop(a.create_writable(graves.memory(vec![1; 5000])).wait()?);
        drop(a.create_readable(graves.memory(vec![1; 5000])).wait()?.wait_for_completion());
        drop(a.create_writable(graves.memory(vec![1; 5000])).wait()?.wait_for_completion());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            let readable = a.create_readable(graves.memory(vec![1; 5000])).await?;
            let writable = a.create_writable(graves.memory(vec![1; 5000])).await;
            let writable = writable.map_err(connect_core::Error::from)?;
            let wait = Duration::from_millis(1);
            assert!(tokio::time::timeout(wait, readable.wait_for_completion()).await.is_err());
            assert!(tokio::time::timeout(wait, writable.wait_for_completion()).await.is_err());
            anyhow::Ok(())
        })?;
    }
    quiet(&[&a])?;
    graves.check(80)?;
    serves(&a, &lab.connector()?)
}

/// Which handle of the operation under test is dropped, and when.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Pending,
    Open,
    Completion,
    Cancelled,
}

const STAGES: [Stage; 4] = [Stage::Pending, Stage::Open, Stage::Completion, Stage::Cancelled];

/// How long after the beginning. At zero nothing may have moved, a few milliseconds later some has.
const DELAYS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(2), Duration::from_millis(6)];

fn p1_memory_dropped_in_flight_is_not_touched_afterwards(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    let small = RdmaMetadata::from_json(&worker.offer("readable", &[10], 1)?.1)?;
    connector.begin_read(&small, vec![0u8; 10]).wait()?.wait_for_completion().wait()?;
    for (stage, delay) in STAGES.iter().zip(DELAYS.iter().cycle()) {
        let graves = Graveyard::default();
        let wait = || std::thread::sleep(*delay);

        // We read. Whether the peer's offer is taken does not matter here.
        let (_, metadata) = worker.offer("readable", &[LARGE], 1)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let pending = connector.begin_read(&metadata, graves.memory(vec![0; LARGE]));
        match stage {
            Stage::Pending => {
                wait();
                drop(pending);
            }
            Stage::Open => {
                let operation = pending.wait()?;
                wait();
                drop(operation);
            }
            Stage::Completion => {
                let completion = pending.wait()?.wait_for_completion();
                wait();
                drop(completion);
            }
            Stage::Cancelled => {
                let operation = pending.wait()?;
                wait();
                drop(operation.cancel());
            }
        }
        graves.check(1)?;

        // We write. The peer must not take bytes for good that are not.
        let (id, metadata) = worker.offer("writable", &[LARGE], 2)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let pending = connector.begin_write(graves.memory(pattern::bytes(LARGE, 2)), &metadata);
        let cancelled = match stage {
            Stage::Pending => {
                wait();
                drop(pending);
                true
            }
            Stage::Open => {
                let operation = pending.wait()?;
                wait();
                drop(operation);
                true
            }
            Stage::Completion => {
                let completion = pending.wait()?.wait_for_completion();
                wait();
                drop(completion);
                true
            }
            Stage::Cancelled => {
                let operation = pending.wait()?;
                wait();
                operation.cancel().wait().is_err()
            }
        };
        graves.check(1)?;
        if !cancelled {
            worker.completed(id)?;
        }

        // The peer reads what we offer.
        let operation = connector.create_readable(graves.memory(pattern::bytes(LARGE, 3))).wait()?;
        let id = worker.begin("read", &operation.metadata().to_json(), &[LARGE], 3)?;
        wait();
        drop(operation);
        let answer = worker.answer(id)?;
        // If it completed, it was in time, and with the right bytes.
        ensure!(answer["event"] == "error" || answer["verified"][0] == true || lab.is_nixl(), "{answer}");
        graves.check(1)?;

        // The peer writes what we offer.
        let operation = connector.create_writable(graves.memory(vec![0; LARGE])).wait()?;
        let id = worker.begin("write", &operation.metadata().to_json(), &[LARGE], 4)?;
        wait();
        drop(operation.wait_for_completion());
        worker.answer(id)?;
        graves.check(1)?;
    }
    quiet(&[&connector])?;
    drop(worker);
    let mut worker = lab.worker()?;
    let (id, metadata) = worker.offer("readable", &[5000], 9)?;
    let received = connector.begin_read(&RdmaMetadata::from_json(&metadata)?, vec![0u8; 5000]).wait()?;
    pattern::check(&received.wait_for_completion().wait()?.memory, 9);
    worker.completed(id)?;
    Ok(())
}

fn p1_memory_dropped_after_the_end_is_freed_once(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let ((a, b), graves) = (lab.pair()?, Graveyard::default());
    for _ in 0..10 {
        let readable = a.create_readable(graves.memory(pattern::bytes(5000, 1))).wait()?;
        let reading = b.begin_read(readable.metadata(), graves.memory(vec![0; 5000])).wait()?;
        let writable = a.create_writable(graves.memory(vec![0; 5000])).wait()?;
        let writing = b.begin_write(graves.memory(pattern::bytes(5000, 2)), writable.metadata()).wait()?;
        assert!(eventually(PATIENCE, || {
            [readable.status(), reading.status(), writable.status(), writing.status()]
                .iter()
                .all(|status| status.is_final())
        }));
        assert_eq!(graves.len(), 0, "memory belongs to the operation until somebody takes it");
        drop((readable, reading.wait_for_completion(), writable.wait_for_completion(), writing));
        graves.check(4)?;

        // And what was handed back is dropped by its owner.
        let readable = a.create_readable(graves.memory(pattern::bytes(5000, 1))).wait()?;
        let reading = b.begin_read(readable.metadata(), graves.memory(vec![0; 5000])).wait()?;
        let received = reading.wait_for_completion().wait().map_err(connect_core::Error::from)?;
        readable.wait_for_completion().wait()?;
        graves.check(1)?;
        pattern::check(&received.memory.bytes, 1);
        drop(received);
        graves.check(1)?;
    }
    quiet(&[&a, &b])
}

fn p1_memory_of_a_connector_that_is_dropped_or_shut_down_is_freed_once(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let graves = Graveyard::default();
    let a = lab.connector()?;
    let readable = a.create_readable(graves.memory(vec![1; 5000])).wait()?;
    let writable = a.create_writable(graves.memory(vec![1; 5000])).wait()?;
    drop(a);
    drop((readable, writable));
    graves.check(2)?;

    let (a, b) = lab.pair()?;
    let offer = b.create_readable(vec![1u8; 10]).wait()?;
    let readable = a.create_readable(graves.memory(vec![1; 5000])).wait()?;
    let writable = a.create_writable(graves.memory(vec![1; 5000]));
    drop(a.create_readable(graves.memory(vec![1; 5000])));
    a.shutdown(PATIENCE).wait()?;
    drop(writable);
    eventually(PATIENCE, || graves.len() >= 2);
    drop(readable);
    graves.check(3)?;
    // Refused: it comes back, and with nobody there to take it it goes.
    drop(a.create_readable(graves.memory(vec![1; 5000])));
    drop(a.create_writable(graves.memory(vec![1; 5000])));
    drop(a.begin_read(offer.metadata(), graves.memory(vec![1; 10])));
    graves.check(3)?;

    // In flight when the connector is shut down. The offer may or may not complete.
    for delay in DELAYS {
        let (a, b) = lab.pair()?;
        let offer = b.create_readable(graves.memory(pattern::bytes(LARGE, 1))).wait()?;
        let reading = a.begin_read(offer.metadata(), graves.memory(vec![0; LARGE]));
        std::thread::sleep(delay);
        a.shutdown(PATIENCE).wait()?;
        drop(reading);
        drop(offer);
        graves.check(2)?;
    }
    Ok(())
}

/// A caller that panics with all four kinds of operation open, one of them in flight, and the connector itself.
fn p1_p2_memory_of_a_caller_that_panics_is_freed_once(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let graves = Graveyard::default();
    let (a, b) = lab.pair()?;
    let (readable, writable) =
        (b.create_readable(pattern::bytes(LARGE, 1)).wait()?, b.create_writable(vec![0u8; 5000]).wait()?);
    let (source, target) = (readable.metadata().clone(), writable.metadata().clone());
    let (caller, memory) = (a.clone(), graves.clone());
    let panicking = std::thread::spawn(move || {
        let memory = |len| memory.memory(vec![1; len]);
        let _readable = caller.create_readable(memory(5000)).wait();
        let _writable = caller.create_writable(memory(5000)).wait();
        let _writing = caller.begin_write(memory(5000), &target).wait();
        let _reading = caller.begin_read(&source, memory(LARGE)).wait();
        // Not a panic that prints: it is meant.
        std::panic::resume_unwind(Box::new("the caller's own"));
    });
    ensure!(panicking.join().is_err(), "it does not panic");
    quiet(&[&a])?;
    graves.check(4)?;
    drop((readable, writable));
    serves(&a, &b)
}

fn p1_memory_of_a_stopped_or_killed_peer_s_transfer_is_freed_once(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let (connector, graves) = (lab.connector()?, Graveyard::default());
    for stop_first in [true, false] {
        let mut worker = lab.worker()?;
        let small = RdmaMetadata::from_json(&worker.offer("readable", &[10], 1)?.1)?;
        connector.begin_read(&small, vec![0u8; 10]).wait()?.wait_for_completion().wait()?;
        let read_metadata = RdmaMetadata::from_json(&worker.offer("readable", &[LARGE], 2)?.1)?;
        let write_metadata = RdmaMetadata::from_json(&worker.offer("writable", &[LARGE], 3)?.1)?;
        let offered = connector.create_readable(graves.memory(pattern::bytes(LARGE, 4))).wait()?;
        let awaited = connector.create_writable(graves.memory(vec![0; LARGE])).wait()?;
        worker.begin("read", &offered.metadata().to_json(), &[LARGE], 4)?;
        worker.begin("write", &awaited.metadata().to_json(), &[LARGE], 5)?;
        if stop_first {
            process::signal(worker.pid(), "STOP")?;
        }
        let reading = connector.begin_read(&read_metadata, graves.memory(vec![0; LARGE]));
        let writing = connector.begin_write(graves.memory(pattern::bytes(LARGE, 3)), &write_metadata);
        std::thread::sleep(Duration::from_millis(5));
        if stop_first {
            drop((reading, writing, offered, awaited));
            std::thread::sleep(Duration::from_millis(300));
            worker.kill();
        } else {
            worker.kill();
            drop((offered, awaited));
            drop((reading, writing));
        }
        graves.check(4)?;
        quiet(&[&connector])?;
    }
    serves(&connector, &lab.connector()?)
}

fn nothing_is_left_behind_by_two_hundred_rounds(lab: &Lab) -> Result<()> {
    let _alone = alone();
    let (a, b) = lab.pair()?;
    let graves = Graveyard::default();
    let pid = std::process::id();
    let round = || -> Result<()> {
        let readable = a.create_readable(graves.memory(vec![1; 100_000])).wait()?;
        let writable = a.create_writable(graves.memory(vec![1; 100_000])).wait()?;
        let reading = b.begin_read(readable.metadata(), graves.memory(vec![1; 100_000]));
        let writing = b.begin_write(graves.memory(vec![1; 100_000]), writable.metadata());
        drop((reading, writing.wait()?));
        drop((readable, writable.wait_for_completion()));
        Ok(())
    };
    let settle = |count: usize| -> Result<()> {
        quiet(&[&a, &b])?;
        graves.check(count)
    };
    // Caches and pools fill up first.
    for _ in 0..20 {
        round()?;
    }
    settle(80)?;
    serves(&a, &b)?;
    let level = || anyhow::Ok((process::open_files(pid)?, process::threads(pid)?));
    let (before, resident) = (level()?, process::memory(pid, "VmRSS")?);
    let started = Instant::now();
    for rounds in 0..10 {
        for _ in 0..20 {
            round()?;
        }
        settle(80).map_err(|error| error.context(format!("after {} rounds", 20 * (rounds + 1))))?;
    }
    serves(&a, &b)?;
    // Agents of NIXL end in the background.
    let same = eventually(Duration::from_secs(10), || {
        level().is_ok_and(|(files, threads)| files <= before.0 + 4 && threads <= before.1 + 2)
    });
    ensure!(same, "files, threads: {before:?} before, {:?} after {:?}", level()?, started.elapsed());
    let grown = process::memory(pid, "VmRSS")?.saturating_sub(resident);
    // One leaked buffer per round would be 20 MB.
    ensure!(grown < 16 << 20, "{} KiB more after {:?}", grown >> 10, started.elapsed());
    Ok(())
}

/// Each slab is used, on offer among other things, and dropped. Over NIXL each of them takes an agent with it.
fn p1_nothing_is_left_behind_by_slabs_that_come_and_go(lab: &Lab) -> Result<()> {
    const BYTES: usize = 8 << 20;
    let _alone = alone();
    let (a, b) = lab.pair()?;
    let pid = std::process::id();
    let round = |seed: u64| -> Result<()> {
        let (outbox, inbox) = (a.slab(2, BYTES).wait()?, b.slab(2, BYTES).wait()?);
        let mut slot = outbox.take().wait()?;
        slot.set_len(BYTES)?;
        slot.copy_from_slice(&pattern::bytes(BYTES, seed));
        let offer = a.create_readable(slot).wait()?;
        let read = b.begin_read_into(offer.metadata(), inbox.take().wait()?).wait()?;
        pattern::check(&read.wait_for_completion().wait()?.memory, seed);
        offer.wait_for_completion().wait()?;
        // One that nobody ever takes, and one that is withdrawn.
        drop(inbox.receive(BYTES).wait()?);
        drop(outbox.receive(BYTES));
        Ok(())
    };
    for seed in 0..5 {
        round(seed)?;
    }
    quiet(&[&a, &b])?;
    let level = || anyhow::Ok((process::open_files(pid)?, process::threads(pid)?));
    let (before, resident) = (level()?, process::memory(pid, "VmRSS")?);
    for seed in 5..25 {
        round(seed)?;
    }
    quiet(&[&a, &b])?;
    // Agents of NIXL end in the background.
    let same = eventually(Duration::from_secs(10), || {
        level().is_ok_and(|(files, threads)| files <= before.0 + 4 && threads <= before.1 + 2)
    });
    ensure!(same, "files, threads: {before:?} before, {:?} after", level()?);
    // Twenty slabs kept would be more than 160 MB.
    let grown = process::memory(pid, "VmRSS")?.saturating_sub(resident);
    ensure!(grown < 24 << 20, "{} KiB more", grown >> 10);
    serves(&a, &b)
}

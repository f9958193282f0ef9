//! Zero copy, shown: addresses, allocations and resident memory while a gigabyte moves between two processes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use connect_core::{Connector, Descriptor, DescriptorMut, Pending, RdmaMetadata};
use connect_tests::child::Worker;
use connect_tests::lab::Lab;
use connect_tests::{pattern, process};

connect_tests::for_each_transport!(
    descriptors_are_the_buffers_themselves,
    a_gigabyte_moves_without_a_copy_on_either_side,
    what_an_operation_allocates_grows_neither_with_its_bytes_nor_with_what_else_is_open,
);

/// What moves.
const GIBIBYTE: usize = 1 << 30;

/// What a process may grow by beyond the buffer: connections, stacks, the engine's own memory.
const SLACK: u64 = 64 << 20;

/// The largest single allocation this process may make meanwhile. A staging buffer would be larger.
const LARGEST: usize = 1 << 20;

/// Notes the largest allocation, and how much is allocated, while it is told to.
struct Watching;

static WATCH: AtomicBool = AtomicBool::new(false);
static LARGEST_SEEN: AtomicUsize = AtomicUsize::new(0);
static TOTAL: AtomicUsize = AtomicUsize::new(0);

fn note(size: usize) {
    if WATCH.load(Ordering::Relaxed) {
        LARGEST_SEEN.fetch_max(size, Ordering::Relaxed);
        TOTAL.fetch_add(size, Ordering::Relaxed);
    }
}

// SAFETY: everything is passed on to the system's allocator, unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the same contract.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps the same contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller keeps the same contract.
        unsafe { System.realloc(ptr, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// What anything in this process allocated meanwhile.
#[derive(Debug, Clone, Copy)]
struct Allocated {
    largest: usize,
    total: usize,
}

/// What anything in this process allocates during `work`.
fn allocated<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Allocated)> {
    LARGEST_SEEN.store(0, Ordering::Relaxed);
    TOTAL.store(0, Ordering::Relaxed);
    WATCH.store(true, Ordering::Relaxed);
    let result = work();
    WATCH.store(false, Ordering::Relaxed);
    let (largest, total) = (LARGEST_SEEN.load(Ordering::Relaxed), TOTAL.load(Ordering::Relaxed));
    Ok((result?, Allocated { largest, total }))
}

/// One test at a time: they watch the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn descriptors_are_the_buffers_themselves(lab: &Lab) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (a, b) = lab.pair()?;
    let source = pattern::bytes(100_000, 1);
    let address = source.as_ptr() as u64;
    let source = Descriptor::new(source)?;
    assert_eq!(source.addr(), address);
    let offer = a.create_readable(source.slice(5..70_005)?).wait()?;
    let offered = &offer.metadata().descriptors()[0];
    assert_eq!((offered.ptr(), offered.size()), (address + 5, 70_000));

    let target = vec![0u8; 80_000];
    let address = target.as_ptr();
    let part = DescriptorMut::new(target)?.slice(10_000..80_000)?;
    assert_eq!(part.addr(), address as u64 + 10_000);
    let received = b.begin_read(offer.metadata(), part).wait()?.wait_for_completion().wait()?;
    let Ok(target) = received.memory.into_memory::<Vec<u8>>() else { anyhow::bail!("it is another buffer") };
    assert_eq!(target.as_ptr(), address);
    assert_eq!(target[..10_000], vec![0; 10_000]);
    assert_eq!(target[10_000..], pattern::bytes(70_005, 1)[5..]);
    Ok(())
}

/// How much a process has grown at its peak since it had `before` bytes resident.
fn peak_growth(pid: u32, before: u64) -> Result<u64> {
    Ok(process::memory(pid, "VmHWM")?.saturating_sub(before))
}

fn is_one_buffer(side: &str, grown: u64) -> Result<()> {
    let buffer = GIBIBYTE as u64;
    // The lower bound shows that the measurement sees the buffer at all.
    ensure!(
        grown > buffer - SLACK && grown < buffer + SLACK,
        "{side} grew by {} MiB for a buffer of {} MiB",
        grown >> 20,
        buffer >> 20
    );
    Ok(())
}

fn read(connector: &Connector, metadata: &str) -> Result<Vec<u8>> {
    let metadata = RdmaMetadata::from_json(metadata)?;
    let target = vec![0u8; GIBIBYTE];
    let (received, Allocated { largest, .. }) =
        allocated(|| Ok(connector.begin_read(&metadata, target).wait()?.wait_for_completion().wait()?))?;
    ensure!(largest > 0 && largest < LARGEST, "an allocation of {largest} bytes during the read");
    Ok(received.memory)
}

fn write(connector: &Connector, source: Vec<u8>, metadata: &str) -> Result<()> {
    let metadata = RdmaMetadata::from_json(metadata)?;
    let ((), Allocated { largest, .. }) = allocated(|| {
        connector.begin_write(source, &metadata).wait()?.wait_for_completion().wait()?;
        Ok(())
    })?;
    ensure!(largest > 0 && largest < LARGEST, "an allocation of {largest} bytes during the write");
    Ok(())
}

fn a_gigabyte_moves_without_a_copy_on_either_side(lab: &Lab) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    let (here, there) = (std::process::id(), worker.pid());
    // Connections and the engine's caches come with the first transfer.
    let (id, metadata) = worker.offer("readable", &[4096], 0)?;
    let metadata = RdmaMetadata::from_json(&metadata)?;
    connector.begin_read(&metadata, vec![0u8; 4096]).wait()?.wait_for_completion().wait()?;
    worker.completed(id)?;

    let (before_here, before_there) = (process::memory(here, "VmRSS")?, process::memory(there, "VmRSS")?);
    process::reset_peak(here)?;
    process::reset_peak(there)?;
    let (id, metadata) = worker.offer("readable", &[GIBIBYTE], 1)?;
    let received = read(&connector, &metadata)?;
    worker.completed(id)?;
    is_one_buffer("the reader", peak_growth(here, before_here)?)?;
    is_one_buffer("the process that was read", peak_growth(there, before_there)?)?;
    pattern::check(&received, 1);

    process::reset_peak(here)?;
    process::reset_peak(there)?;
    let (id, metadata) = worker.offer("writable", &[GIBIBYTE], 1)?;
    write(&connector, received, &metadata)?;
    // The worker checks every byte.
    worker.completed(id)?;
    is_one_buffer("the writer", peak_growth(here, before_here)?)?;
    is_one_buffer("the process that was written", peak_growth(there, before_there)?)
}

/// What one round takes from this process' allocator at least: a read of the worker's memory, and an offer that the
/// worker reads. Tables that grow now and then are left out.
fn a_round_allocates(connector: &Connector, worker: &mut Worker, len: usize) -> Result<usize> {
    let source = Arc::new(pattern::bytes(len, 3));
    let mut target = vec![0u8; len];
    let mut least = usize::MAX;
    for _ in 0..8 {
        let (theirs, metadata) = worker.offer("readable", &[len], 1)?;
        let metadata = RdmaMetadata::from_json(&metadata)?;
        let (received, reading) = allocated(|| {
            Ok(connector.begin_read(&metadata, target).wait()?.wait_for_completion().wait()?)
        })?;
        target = received.memory;
        pattern::check(&target, 1);
        worker.completed(theirs)?;
        let (offer, offering) = allocated(|| Ok(connector.create_readable(Arc::clone(&source)).wait()?))?;
        let reads = worker.begin("read", &offer.metadata().to_json(), &[len], 3)?;
        let (_, serving) = allocated(|| Ok(offer.wait_for_completion().wait()?))?;
        worker.completed(reads)?;
        least = least.min(reading.total + offering.total + serving.total);
    }
    Ok(least)
}

fn what_an_operation_allocates_grows_neither_with_its_bytes_nor_with_what_else_is_open(
    lab: &Lab,
) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (connector, mut worker) = (lab.connector()?, lab.worker()?);
    let small = a_round_allocates(&connector, &mut worker, 4096)?;
    let large = a_round_allocates(&connector, &mut worker, 64 << 20)?;
    println!("{}: {small} bytes for a round of 4 KiB, {large} for one of 64 MiB", lab.transport());
    // Over NIXL each slice of 16 MiB has a list of its pieces.
    ensure!(large < small + (4 << 10), "{small} bytes for 4 KiB, {large} for 64 MiB");

    let open: Vec<_> = (0..2000).map(|seed| connector.create_readable(pattern::bytes(64, seed))).collect();
    let open = open.into_iter().map(Pending::wait).collect::<Result<Vec<_>, _>>()?;
    let beside = a_round_allocates(&connector, &mut worker, 4096)?;
    println!("{}: {beside} with 2,000 regions besides", lab.transport());
    ensure!(beside < small + (2 << 10), "{small} bytes alone, {beside} beside {} offers", open.len());
    Ok(())
}

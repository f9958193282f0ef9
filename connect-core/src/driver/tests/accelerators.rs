//! Operations over memory of a device that works through a queue of its own: a double that is done when a test says.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::accelerator::{Accelerator, Accelerators};
use crate::blocks::BlockLayout;
use crate::{
    Connector, Descriptor, DescriptorMut, Device, Error, MemoryError, OperationStatus, Recovered, Region,
    SourceMemory, TargetMemory,
};

/// Long enough for anything that should not happen to happen.
const A_WHILE: Duration = Duration::from_millis(100);

/// A device that stands still until it is let go on.
struct Queue {
    device: Device,
    running: Mutex<bool>,
    changed: Condvar,
    fails: AtomicBool,
    waits: AtomicUsize,
    /// The threads that were bound to it.
    bound: Mutex<Vec<String>>,
}

impl Queue {
    fn new() -> Arc<Self> {
        // Each of its own number, and so with its own thread: tests run side by side.
        static NEXT: AtomicU32 = AtomicU32::new(1000);
        Arc::new(Self {
            device: Device::cuda(NEXT.fetch_add(1, Ordering::Relaxed)),
            running: Mutex::new(true),
            changed: Condvar::new(),
            fails: AtomicBool::new(false),
            waits: AtomicUsize::new(0),
            bound: Mutex::default(),
        })
    }

    fn hold(&self) {
        *self.running.lock().unwrap() = false;
    }

    fn go_on(&self) {
        *self.running.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn memory(self: &Arc<Self>, bytes: Vec<u8>) -> OnDevice {
        OnDevice { bytes, queue: Arc::clone(self) }
    }

    fn waits(&self) -> usize {
        self.waits.load(Ordering::SeqCst)
    }
}

impl Accelerator for Queue {
    fn device(&self) -> Device {
        self.device
    }

    fn bind(&self) -> Result<(), String> {
        self.bound.lock().unwrap().push(thread::current().name().unwrap_or_default().to_owned());
        Ok(())
    }

    fn synchronize(&self) -> Result<(), String> {
        self.waits.fetch_add(1, Ordering::SeqCst);
        let running = self.running.lock().unwrap();
        drop(self.changed.wait_while(running, |running| !*running).unwrap());
        if self.fails.load(Ordering::SeqCst) { Err("an earlier kernel failed".to_owned()) } else { Ok(()) }
    }
}

/// System memory that claims to depend on the device, so that any transport can move it.
struct OnDevice {
    bytes: Vec<u8>,
    queue: Arc<Queue>,
}

// SAFETY: as for the vector.
unsafe impl SourceMemory for OnDevice {
    fn regions(&self) -> Vec<Region> {
        SourceMemory::regions(&self.bytes)
    }

    fn accelerators(&self) -> Accelerators {
        vec![Arc::clone(&self.queue) as Arc<dyn Accelerator>]
    }
}

// SAFETY: as for the vector.
unsafe impl TargetMemory for OnDevice {
    fn regions(&mut self) -> Vec<Region> {
        TargetMemory::regions(&mut self.bytes)
    }

    fn accelerators(&self) -> Accelerators {
        SourceMemory::accelerators(self)
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn p3_memory_is_offered_only_after_its_device_has_produced_it_and_the_driver_goes_on_meanwhile() {
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let queue = Queue::new();
    queue.hold();
    let pending = sender.create_readable(queue.memory(vec![7; 64]));
    let info = pending.info().unwrap();
    until("the device is waited for", || queue.waits() == 1);
    // Another operation of the same connector does not wait for that device.
    let offer = sender.create_readable(vec![1u8; 8]).wait().unwrap();
    receiver.begin_read(offer.metadata(), vec![0u8; 8]).wait().unwrap().wait_for_completion().wait().unwrap();
    thread::sleep(A_WHILE);
    assert_eq!(info.slot.status(), OperationStatus::Uninitialized, "the transport has not heard of it");
    queue.go_on();
    let offer = pending.wait().unwrap();
    let read = receiver.begin_read(offer.metadata(), vec![0u8; 64]).wait().unwrap();
    assert_eq!(read.wait_for_completion().wait().unwrap().memory, [7; 64]);
    offer.wait_for_completion().wait().unwrap();
    assert_eq!(queue.waits(), 1, "nothing came into this memory that would have to become visible");
}

#[test]
fn p3_received_memory_is_handed_out_only_after_its_device_sees_it() {
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let queue = Queue::new();
    // Read by this side, and written by a peer.
    let offer = sender.create_readable(vec![7u8; 64]).wait().unwrap();
    let read = receiver.begin_read(offer.metadata(), queue.memory(vec![0; 64])).wait().unwrap();
    offer.wait_for_completion().wait().unwrap();
    read.wait_for_completion().wait().unwrap();
    assert_eq!(queue.waits(), 2, "before the transfer and after it");

    let offer = receiver.create_writable(queue.memory(vec![0; 64])).wait().unwrap();
    queue.hold();
    let write = sender.begin_write(vec![9u8; 64], offer.metadata()).wait().unwrap();
    write.wait_for_completion().wait().unwrap();
    until("the device is waited for", || queue.waits() == 4);
    thread::sleep(A_WHILE);
    assert_ne!(offer.status(), OperationStatus::Complete);
    queue.go_on();
    assert_eq!(offer.wait_for_completion().wait().unwrap().memory.bytes, [9; 64]);
}

#[test]
fn p3_blocks_of_a_pool_wait_for_their_device_as_all_memory_does() {
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let queue = Queue::new();
    let pool = |connector: &Connector, value: u8| {
        let owner = Arc::new(Mutex::new(vec![value; 4 * 64]));
        let addr = owner.lock().unwrap().as_mut_ptr() as u64;
        let range = Region::new(Device::CPU, addr, 4 * 64).unwrap();
        let layout = BlockLayout::block_major(4, &[64]).unwrap();
        let devices: Accelerators = vec![Arc::clone(&queue) as Arc<dyn Accelerator>];
        // SAFETY: nobody takes the vector's lock again.
        unsafe { connector.block_pool_over(layout, vec![range], devices, owner) }.wait().unwrap()
    };
    let (here, there) = (pool(&sender, 7), pool(&receiver, 0));
    assert!(!queue.bound.lock().unwrap().is_empty(), "memory is registered in its device's context");
    let remote = receiver.remote_blocks(here.card().wait().unwrap());

    queue.hold();
    let pending = here.offer_readable(here.take(2).unwrap());
    until("the device is waited for before blocks are on offer", || queue.waits() == 1);
    queue.go_on();
    let offer = pending.wait().unwrap();
    let read = remote.read(&offer.ticket, there.take(2).unwrap()).wait().unwrap();
    let lease = read.wait_for_completion().wait().unwrap().memory;
    offer.operation.wait_for_completion().wait().unwrap();
    assert_eq!(lease.part(1, 0).unwrap(), [7; 64]);
    assert_eq!(queue.waits(), 3, "and before and after they are read into");

    let offer = here.offer_writable(here.take(2).unwrap()).wait().unwrap();
    let write = remote.write(lease, &offer.ticket).wait().unwrap();
    write.wait_for_completion().wait().unwrap();
    offer.operation.wait_for_completion().wait().unwrap();
    assert_eq!(
        queue.waits(),
        6,
        "a write waits before it on both sides, and after it where the bytes arrive"
    );
}

#[test]
fn p2_a_device_that_never_ends_its_work_does_not_outlast_the_deadline() {
    let short = Duration::from_millis(200);
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let queue = Queue::new();
    queue.hold();
    let began = Instant::now();
    let error = sender.with_deadline(short).create_readable(queue.memory(vec![7; 8])).wait().unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
    queue.go_on();

    let offer = receiver.with_deadline(Duration::from_secs(2)).create_writable(queue.memory(vec![0; 8]));
    let offer = offer.wait().unwrap();
    queue.hold();
    sender.begin_write(vec![9u8; 8], offer.metadata()).wait().unwrap().wait_for_completion().wait().unwrap();
    let failed = offer.wait_for_completion().wait().err().unwrap();
    assert!(matches!(failed.error, Error::DeadlineExceeded { .. }), "{}", failed.error);
    // And neither does the end of the connector.
    let error = receiver.shutdown(short).wait().unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    queue.go_on();
    // It went on ending all the while, and may have come to its end by now.
    let ended = receiver.shutdown(Duration::from_secs(20)).wait();
    assert!(matches!(ended, Ok(()) | Err(Error::ShutDown)), "{ended:?}");
}

#[test]
fn a_device_that_failed_is_the_reason_that_the_caller_hears() {
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let queue = Queue::new();
    queue.fails.store(true, Ordering::SeqCst);
    let is_device = |error: &Error| matches!(error, Error::Memory(MemoryError::Accelerator { reason, .. }) if reason == "an earlier kernel failed");
    let error = sender.create_readable(queue.memory(vec![7; 8])).wait().unwrap_err();
    assert!(is_device(&error), "{error}");
    let failed = receiver.create_writable(queue.memory(vec![7; 8])).wait().err().unwrap();
    assert!(is_device(&failed.error) && matches!(failed.memory, Recovered::Returned(_)));

    queue.fails.store(false, Ordering::SeqCst);
    let offer = receiver.create_writable(queue.memory(vec![0; 8])).wait().unwrap();
    queue.fails.store(true, Ordering::SeqCst);
    let write = sender.begin_write(vec![9u8; 8], offer.metadata()).wait().unwrap();
    write.wait_for_completion().wait().unwrap();
    let failed = offer.wait_for_completion().wait().err().unwrap();
    assert!(is_device(&failed.error) && matches!(failed.memory, Recovered::Returned(_)));
    assert_eq!((receiver.stats().failed, receiver.stats().completed, receiver.stats().open), (2, 0, 0));
}

#[test]
fn the_driver_thread_has_the_device_s_context_whenever_the_transport_is_called_about_its_memory() {
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let (out, into) = (Queue::new(), Queue::new());
    let offer = sender.create_readable(out.memory(vec![7; 64])).wait().unwrap();
    assert_eq!(out.bound.lock().unwrap().len(), 1, "for the offer");
    let read = receiver.begin_read(offer.metadata(), into.memory(vec![0; 64])).wait().unwrap();
    read.wait_for_completion().wait().unwrap();
    offer.wait_for_completion().wait().unwrap();
    until("the offer's memory is let go of", || out.bound.lock().unwrap().len() >= 3);
    assert!(into.bound.lock().unwrap().len() >= 3, "for the begin, a poll and the release");
    for thread in out.bound.lock().unwrap().iter().chain(&*into.bound.lock().unwrap()) {
        assert!(
            thread.starts_with("connect-") && !thread.contains("cuda"),
            "not a driver's thread: {thread}"
        );
    }
}

#[test]
fn cancelled_while_its_device_works_an_operation_never_starts() {
    let connector = Connector::local().unwrap();
    let queue = Queue::new();
    queue.hold();
    let pending = connector.create_readable(queue.memory(vec![7; 8])).cancel();
    queue.go_on();
    let error = pending.wait().unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    assert_eq!(queue.bound.lock().unwrap().len(), 0, "the transport was not called");
}

#[test]
fn work_on_the_thread_of_a_device_comes_after_what_was_queued_and_keeps_the_deadline() {
    let connector = Connector::local().unwrap();
    let queue = Queue::new();
    queue.hold();
    let short = connector.with_deadline(Duration::from_millis(100));
    let late = short.run_on(Arc::clone(&queue) as Arc<dyn Accelerator>, || 1).wait().unwrap_err();
    assert!(matches!(late, Error::DeadlineExceeded { .. }), "{late}");
    let done = connector
        .run_on(Arc::clone(&queue) as Arc<dyn Accelerator>, || thread::current().name().map(str::to_owned));
    queue.go_on();
    assert_eq!(done.wait().unwrap(), Some(format!("connect-{}", queue.device)));
    queue.fails.store(true, Ordering::SeqCst);
    let failed = connector.run_on(Arc::clone(&queue) as Arc<dyn Accelerator>, || 1).wait().unwrap_err();
    assert!(matches!(failed, Error::Memory(MemoryError::Accelerator { .. })), "{failed}");
}

#[test]
fn descriptors_and_fan_outs_of_memory_wait_for_its_devices_too() {
    let (sender, receiver) = (Connector::local().unwrap(), Connector::local().unwrap());
    let (one, two) = (Queue::new(), Queue::new());
    // Two pieces of one memory and one of another are two devices, each waited for once.
    let mut list = Descriptor::list(one.memory(vec![1; 8])).unwrap();
    list.push(list[0].slice(0..4).unwrap());
    list.extend(Descriptor::list(two.memory(vec![2; 8])).unwrap());
    let offer = sender.create_readable(list).wait().unwrap();
    assert_eq!((one.waits(), two.waits()), (1, 1));
    drop(offer);
    let (left, right) = DescriptorMut::new(one.memory(vec![0; 8])).unwrap().split_at(4).unwrap();
    let offer = receiver.create_writable(vec![left, right]).wait().unwrap();
    assert_eq!(one.waits(), 2);
    drop(offer);
    let fan_out = sender.fan_out(two.memory(vec![2; 8]), 2).wait().unwrap();
    assert_eq!(two.waits(), 3, "once for each reader");
    drop(fan_out);
}

//! The driver over a scripted transport: a double that moves nothing and answers as each test says.

mod accelerators;
mod mixed;
mod registrations;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use super::peers::{MAX_AGE, MAX_REMEMBERED, Peers};
use super::{Deadlines, Driver, Polling, channel, watchdog};
use crate::blocks::{BlockLayout, BlockTicket};
use crate::clock::Clock;
use crate::stats::Counters;
use crate::transport::{
    Offer, OfferId, PeerId, Quiescence, RegistrationId, Transfer, TransferId, TransferState, Transport,
    TransportError, TransportEvent, TransportFactory,
};
use crate::{
    Cancellation, Connector, Device, Error, OperationKind, RdmaMetadata, Recovered, Region, SourceMemory,
    TargetMemory,
};

/// Where a transfer's memory is, here and there, piece by piece.
type DevicePairs = Vec<(Device, Device)>;

/// What the scripted transport does.
#[derive(Clone, Default)]
struct Script {
    poll_blocks: Option<Duration>,
    poll_panics: bool,
    register_fails: bool,
    register_blocks: Option<Duration>,
    /// How many registrations there are.
    registered: Arc<AtomicUsize>,
    busy: Arc<AtomicBool>,
    offers: Arc<AtomicUsize>,
    /// Where each transfer's memory was, here and there.
    begun: Arc<Mutex<Vec<DevicePairs>>>,
    /// How many peers were met.
    met: Arc<AtomicUsize>,
    forgotten: Arc<Mutex<Vec<PeerId>>>,
    clock: Clock,
}

struct Scripted {
    script: Script,
    driver: thread::Thread,
}

impl Script {
    fn factory(self) -> TransportFactory {
        Box::new(move |_| Ok(Box::new(Scripted { script: self, driver: thread::current() })))
    }

    fn quiescence(&self) -> Quiescence {
        if self.busy.load(Ordering::SeqCst) { Quiescence::Busy } else { Quiescence::Quiet }
    }

    fn connector(&self) -> Connector {
        Connector::builder().transport(self.clone().factory()).build().unwrap()
    }

    /// A connector whose driver makes a turn when it is told to, in the script's time.
    fn stepped(&self) -> (Connector, Driver) {
        let (port, inbox) = channel();
        let (deadlines, counters) = (Arc::new(Deadlines::default()), Arc::new(Counters::new(u64::MAX)));
        let connector =
            Connector::stepped(port, Arc::clone(&deadlines), Arc::clone(&counters), self.clock.clone());
        let transport = Box::new(Scripted { script: self.clone(), driver: thread::current() });
        (
            connector,
            Driver::new(transport, Polling::default(), inbox, deadlines, counters, self.clock.clone()),
        )
    }
}

// SAFETY: it touches no memory and completes nothing.
unsafe impl Transport for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn check_device(&self, _: Device) -> Result<(), TransportError> {
        Ok(())
    }

    unsafe fn register(&mut self, _: RegistrationId, _: Region) -> Result<(), TransportError> {
        if self.script.register_fails {
            return Err(TransportError::Resource {
                what: "registering",
                reason: "as the script says".to_owned(),
            });
        }
        if let Some(time) = self.script.register_blocks {
            thread::sleep(time);
        }
        self.script.registered.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn deregister(&mut self, _: RegistrationId) -> Quiescence {
        let quiet = self.script.quiescence();
        self.script.registered.fetch_sub(usize::from(quiet == Quiescence::Quiet), Ordering::SeqCst);
        quiet
    }

    unsafe fn offer(&mut self, _: &Offer<'_>) -> Result<(OfferId, Vec<u8>), TransportError> {
        let id = self.script.offers.fetch_add(1, Ordering::SeqCst) as u64;
        Ok((OfferId(id), b"blob".to_vec()))
    }

    fn end_offer(&mut self, _: OfferId, completed: bool) -> Quiescence {
        if completed { Quiescence::Quiet } else { self.script.quiescence() }
    }

    fn offer_is_quiet(&mut self, _: OfferId) -> Quiescence {
        self.script.quiescence()
    }

    fn connect(&mut self, _: &[u8]) -> Result<(PeerId, String), TransportError> {
        let id = self.script.met.fetch_add(1, Ordering::SeqCst) as u64;
        Ok((PeerId(id), "peer".to_owned()))
    }

    fn forget(&mut self, peer: PeerId) {
        self.script.forgotten.lock().unwrap().push(peer);
    }

    unsafe fn begin(&mut self, transfer: &Transfer<'_>) -> Result<TransferId, TransportError> {
        let pairs = transfer.local.iter().zip(transfer.remote);
        let devices = pairs.map(|(local, remote)| (local.device(), remote.device())).collect();
        self.script.begun.lock().unwrap().push(devices);
        Ok(TransferId(1))
    }

    fn poll(&mut self, _: TransferId) -> Result<TransferState, TransportError> {
        assert!(!self.script.poll_panics, "as the script says");
        if let Some(time) = self.script.poll_blocks {
            thread::sleep(time);
        }
        Ok(TransferState::Pending { advanced: false })
    }

    fn release(&mut self, _: TransferId) -> Quiescence {
        self.script.quiescence()
    }

    fn has_transfers_in_flight(&self) -> bool {
        self.script.busy.load(Ordering::SeqCst)
    }

    fn progress(&mut self, _: &mut Vec<TransportEvent>) -> bool {
        false
    }

    fn wait(&mut self, timeout: Option<Duration>) {
        match timeout {
            Some(timeout) if matches!(self.script.clock, Clock::Virtual(_)) => {
                self.script.clock.advance(timeout);
            }
            Some(timeout) => thread::park_timeout(timeout),
            None => thread::park(),
        }
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let driver = self.driver.clone();
        Arc::new(move || driver.unpark())
    }

    fn is_event_driven(&self) -> bool {
        false
    }
}

/// Memory that counts its end.
struct Counted {
    bytes: Vec<u8>,
    dropped: Arc<AtomicUsize>,
}

impl Counted {
    fn new() -> (Self, Arc<AtomicUsize>) {
        let dropped = Arc::new(AtomicUsize::new(0));
        (Self { bytes: vec![0; 64], dropped: Arc::clone(&dropped) }, dropped)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

// SAFETY: as for the Vec inside.
unsafe impl TargetMemory for Counted {
    fn regions(&mut self) -> Vec<Region> {
        TargetMemory::regions(&mut self.bytes)
    }
}

// SAFETY: as for the Vec inside.
unsafe impl SourceMemory for Counted {
    fn regions(&self) -> Vec<Region> {
        SourceMemory::regions(&self.bytes)
    }
}

fn metadata() -> RdmaMetadata {
    let region = Region::new(Device::CPU, 0x1000, 64).unwrap();
    RdmaMetadata::new(OperationKind::Read, &[region], b"blob", "key".to_owned()).unwrap()
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(10), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn p2_a_deadline_is_kept_while_the_transport_is_stuck_in_a_call() {
    let script = Script { poll_blocks: Some(Duration::from_secs(4)), ..Script::default() };
    let connector = script.connector().with_deadline(Duration::from_millis(500));
    let started = Instant::now();
    let (memory, dropped) = Counted::new();
    let failed = match connector.begin_read(&metadata(), memory).wait() {
        Ok(operation) => operation.wait_for_completion().wait().err(),
        Err(failed) => Some(failed),
    };
    let failed = failed.expect("nothing is moved");
    assert!(matches!(failed.error, Error::DeadlineExceeded { .. }), "{failed}");
    assert!(failed.memory.is_parked());
    assert!(started.elapsed() < Duration::from_millis(3500), "answered only after the call returned");
    assert_eq!(dropped.load(Ordering::SeqCst), 0, "the transport may still use it");
    eventually("the driver frees the memory once it is back", || dropped.load(Ordering::SeqCst) == 1);
}

#[test]
fn p2_a_deadline_of_an_hour_passes_in_virtual_time() {
    let script = Script { clock: Clock::virtual_time(), ..Script::default() };
    let (connector, mut driver) = script.stepped();
    let hour = Duration::from_secs(3600);
    let offer = connector.with_deadline(hour).create_readable(Counted::new().0);
    let begun = script.clock.now();
    driver.turn();
    let offer = offer.wait().unwrap();
    while !offer.status().is_final() {
        assert!(driver.turn());
        // What a turn takes, which lets the driver's pace go from yielding to sleeping.
        script.clock.advance(Duration::from_micros(10));
    }
    let late = script.clock.now() - begun - hour;
    assert!(late < watchdog::SLACK, "{late:?}");
    assert!(matches!(offer.wait_for_completion().wait(), Err(Error::DeadlineExceeded { .. })));
}

#[test]
fn p1_memory_of_a_dropped_operation_stays_until_the_transport_is_quiet() {
    let script = Script { busy: Arc::new(AtomicBool::new(true)), ..Script::default() };
    let connector = script.connector();
    for passive in [true, false] {
        script.busy.store(true, Ordering::SeqCst);
        let (memory, dropped) = Counted::new();
        if passive {
            drop(connector.create_writable(memory).wait().unwrap());
        } else {
            drop(connector.begin_read(&metadata(), memory).wait().unwrap());
        }
        eventually("it counts as parked", || {
            (connector.stats().parked, connector.stats().parked_bytes) == (1, 64)
        });
        assert_eq!(dropped.load(Ordering::SeqCst), 0);
        script.busy.store(false, Ordering::SeqCst);
        eventually("it is freed", || dropped.load(Ordering::SeqCst) == 1);
        eventually("it no longer counts", || connector.stats().parked == 0);
    }
}

#[test]
fn p1_a_cancelled_operation_gives_its_memory_back_when_it_is_quiet_in_time_and_else_says_parked() {
    let script = Script { busy: Arc::new(AtomicBool::new(true)), ..Script::default() };
    let connector = script.connector();
    let operation = connector.begin_read(&metadata(), Counted::new().0).wait().unwrap();
    let failed = operation.cancel().wait().err().expect("it was cancelled");
    assert!(matches!(failed.error, Error::Cancelled { outcome: Cancellation::Parked, .. }), "{failed:?}");
    assert!(failed.memory.is_parked());

    // In virtual time, so that it is in time however slow this machine is.
    let busy = Arc::new(AtomicBool::new(true));
    let script = Script { busy, clock: Clock::virtual_time(), ..Script::default() };
    let (connector, mut driver) = script.stepped();
    let beginning = connector.begin_read(&metadata(), Counted::new().0);
    driver.turn();
    let cancelled = beginning.wait().unwrap().cancel();
    for _ in 0..10 {
        driver.turn();
        script.clock.advance(Duration::from_millis(1));
    }
    script.busy.store(false, Ordering::SeqCst);
    driver.turn();
    let cancelled = cancelled.wait();
    assert_eq!(Cancellation::of(&cancelled), Cancellation::Drained);
    let failed = cancelled.err().expect("it was cancelled");
    assert!(matches!(failed.memory, Recovered::Returned(_)), "{failed:?}");
}

#[test]
fn an_operation_cancelled_before_it_began_never_reaches_the_transport() {
    let script = Script { poll_blocks: Some(Duration::from_secs(2)), ..Script::default() };
    let connector = script.connector();
    let (memory, _) = Counted::new();
    let blocking = connector.begin_read(&metadata(), memory).wait();
    let cancelled = connector.create_writable(Counted::new().0).cancel();
    let (memory, dropped) = Counted::new();
    drop(connector.create_readable(memory));
    let cancelled = cancelled.wait();
    assert_eq!(Cancellation::of(&cancelled), Cancellation::NeverStarted);
    assert!(cancelled.expect_err("it was cancelled").memory.returned().is_some());
    eventually("what is dropped before it began is freed", || dropped.load(Ordering::SeqCst) == 1);
    assert_eq!(script.offers.load(Ordering::SeqCst), 0);
    assert_eq!(connector.stats().cancelled, 2);
    drop(blocking);
}

#[test]
fn p1_no_operation_is_taken_while_it_could_bring_parked_memory_above_the_limit() {
    let script = Script { busy: Arc::new(AtomicBool::new(true)), ..Script::default() };
    let connector =
        Connector::builder().transport(script.clone().factory()).parked_limit(100).build().unwrap();
    // Above the limit, but nothing is parked yet.
    let larger = connector.create_writable(vec![0u8; 101]).wait().unwrap();
    drop(connector.create_readable(Counted::new().0).wait().unwrap());
    eventually("64 bytes are parked", || connector.stats().parked_bytes == 64);

    let failed = connector.begin_read(&metadata(), Counted::new().0).wait().expect_err("128 bytes");
    assert!(
        matches!(failed.error, Error::ParkedLimit { bytes: 64, parked: 64, limit: 100, .. })
            && failed.error.is_retryable()
            && failed.memory.returned().is_some()
    );
    assert!(matches!(connector.create_readable(vec![0u8; 37]).wait(), Err(Error::ParkedLimit { .. })));
    let smaller = connector.create_readable(vec![0u8; 36]).wait().unwrap();
    let stats = connector.stats();
    assert_eq!((stats.refused, stats.parked_limit, stats.started), (2, 100, 3));

    // Those that are open go on, and may still park.
    drop(larger);
    eventually("both are parked", || connector.stats().parked_bytes == 165);
    script.busy.store(false, Ordering::SeqCst);
    eventually("nothing is parked", || connector.stats().parked_bytes == 0);
    drop(connector.create_readable(Counted::new().0).wait().unwrap());
    drop(smaller);
}

#[test]
fn p1_p2_a_panic_in_the_transport_answers_every_caller_and_frees_nothing() {
    let script = Script { poll_panics: true, ..Script::default() };
    let connector = script.connector();
    let (memory, dropped) = Counted::new();
    let (answer, answered) = mpsc::channel();
    let begun = connector.begin_read(&metadata(), memory);
    thread::spawn(move || {
        let ended = match begun.wait() {
            Ok(operation) => operation.wait_for_completion().wait().map(|_| ()).map_err(Error::from),
            Err(failed) => Err(Error::from(failed)),
        };
        let _ = answer.send(ended);
    });
    let ended = answered.recv_timeout(Duration::from_secs(10)).expect("the caller is answered");
    assert!(matches!(ended, Err(Error::ShutDown)), "{ended:?}");
    assert_eq!(dropped.load(Ordering::SeqCst), 0, "nobody knows whether it is quiet");
    // And so are those who come later.
    let later = connector.create_readable(vec![0u8; 8]).wait();
    assert!(matches!(later, Err(Error::ShutDown)), "{later:?}");
}

#[test]
fn p1_blocks_of_a_driver_that_panicked_stay_quarantined() {
    let script = Script { poll_panics: true, ..Script::default() };
    let connector = script.connector();
    let layout = || BlockLayout::block_major(8, &[64]).unwrap();
    let pool = connector.block_pool(layout()).wait().unwrap();
    let there = Connector::local().unwrap();
    let card = there.block_pool(layout()).wait().unwrap().card().wait().unwrap();
    let ticket = BlockTicket::for_tests(card.id(), vec![0, 1, 2], 0..1, "key".to_owned());
    let read = connector.remote_blocks(card).read(&ticket, pool.take(3).unwrap()).wait();
    let failed = match read {
        Ok(read) => read.wait_for_completion().wait().unwrap_err(),
        Err(failed) => failed,
    };
    assert!(failed.memory.is_parked(), "{failed}");
    drop(failed);
    let counts = pool.counts();
    assert_eq!((counts.free, counts.leased, counts.in_flight, counts.quarantined), (5, 0, 0, 3));
}

#[test]
fn p2_shutdown_waits_for_what_is_in_flight_until_its_deadline_and_no_longer() {
    let script = Script { busy: Arc::new(AtomicBool::new(true)), ..Script::default() };
    let connector = script.connector();
    let (memory, dropped) = Counted::new();
    let operation = connector.begin_read(&metadata(), memory).wait().unwrap();
    let ended = connector.shutdown(Duration::from_millis(50)).wait();
    assert!(matches!(ended, Err(Error::DeadlineExceeded { .. })), "{ended:?}");
    let failed = operation.wait_for_completion().wait().err().expect("it was ended");
    assert!(matches!(failed.error, Error::ShutDown) && failed.memory.is_parked());
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    script.busy.store(false, Ordering::SeqCst);
    connector.shutdown(Duration::from_secs(10)).wait().unwrap_or_else(|error| {
        // The driver may have finished before it took this up.
        assert!(matches!(error, Error::ShutDown), "{error}");
    });
    eventually("the memory is freed", || dropped.load(Ordering::SeqCst) == 1);
}

/// Steady traffic with a few peers loads nothing again, whoever else comes by.
#[test]
fn peers_are_remembered_while_they_are_named_and_forgotten_by_count_and_age() {
    let script = Script::default();
    let mut transport = Scripted { script: script.clone(), driver: thread::current() };
    let (mut peers, mut now) = (Peers::new(), Instant::now());
    let mut meet = |number: usize, now: Instant| {
        let region = Region::new(Device::CPU, 0x1000, 8).unwrap();
        let blob = number.to_le_bytes();
        let document = RdmaMetadata::new(OperationKind::Read, &[region], &blob, "key".to_owned()).unwrap();
        peers.connect(&mut transport, &document, now, |_| Error::ShutDown).unwrap().0
    };
    let forgotten = || std::mem::take(&mut *script.forgotten.lock().unwrap());
    let friend = meet(0, now);
    for stranger in 1..MAX_REMEMBERED {
        meet(stranger, now);
        assert_eq!(meet(0, now), friend);
    }
    assert_eq!(forgotten(), []);
    // One too many: the one that was named longest ago goes.
    let first = meet(1, now);
    meet(MAX_REMEMBERED, now);
    assert_eq!(forgotten(), [PeerId(2)]);
    assert_eq!((meet(0, now), meet(1, now)), (friend, first));
    // And who is not named for long goes with the next that is met.
    now += MAX_AGE;
    assert_eq!(meet(0, now), friend);
    meet(MAX_REMEMBERED + 1, now);
    assert_eq!(forgotten().len(), MAX_REMEMBERED - 1);
    assert_eq!(meet(0, now), friend);
    assert_eq!(script.met.load(Ordering::SeqCst), MAX_REMEMBERED + 2);
}

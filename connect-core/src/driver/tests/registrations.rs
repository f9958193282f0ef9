//! Memory that stays registered beyond single operations.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::accelerator::Accelerators;
use crate::{Deadline, Slot, Task};

/// Memory for [`Connector::register`], whose owner counts its end.
fn owned() -> (Region, Arc<Counted>, Arc<AtomicUsize>) {
    let (memory, dropped) = Counted::new();
    (SourceMemory::regions(&memory)[0], Arc::new(memory), dropped)
}

#[test]
fn p1_registered_memory_is_kept_until_the_transport_says_that_it_is_quiet() {
    let script = Script::default();
    let connector = script.connector();
    let (region, owner, dropped) = owned();
    let (registration, registered) = connector.register(region, Accelerators::new(), owner);
    registered.wait().unwrap();
    assert_eq!((script.registered.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst)), (1, 0));

    script.busy.store(true, Ordering::SeqCst);
    drop(registration);
    eventually("it counts as parked", || {
        (connector.stats().parked, connector.stats().parked_bytes) == (1, 64)
    });
    assert_eq!(dropped.load(Ordering::SeqCst), 0);
    script.busy.store(false, Ordering::SeqCst);
    eventually("it is freed", || dropped.load(Ordering::SeqCst) == 1);
    eventually("it no longer counts", || connector.stats().parked == 0);
    assert_eq!(script.registered.load(Ordering::SeqCst), 0);
}

#[test]
fn p1_registered_memory_that_is_not_quiet_is_kept_until_the_transport_is_gone() {
    let script = Script::default();
    let (connector, mut driver) = script.stepped();
    let (region, owner, dropped) = owned();
    let (registration, registered) = connector.register(region, Accelerators::new(), owner);
    driver.turn();
    registered.wait().unwrap();
    script.busy.store(true, Ordering::SeqCst);
    drop(registration);
    driver.turn();
    drop(connector);
    // Transfers are waited for, and here there are none.
    script.busy.store(false, Ordering::SeqCst);
    let counters = Arc::clone(&driver.counters);
    while driver.turn() {}
    driver.finish();
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    assert_eq!((counters.snapshot().parked, counters.snapshot().parked_bytes), (0, 0));
}

#[test]
fn a_registration_that_fails_is_an_error_and_keeps_nothing() {
    let script = Script { register_fails: true, ..Script::default() };
    let connector = script.connector();
    let error = connector.slab(1, 64).wait().unwrap_err();
    assert!(error.to_string().starts_with("register #"), "{error}");
    assert!(matches!(error, Error::Transport { source: TransportError::Resource { .. }, .. }), "{error}");
    let (region, owner, dropped) = owned();
    let (registration, registered) = connector.register(region, Accelerators::new(), owner);
    assert!(registered.wait().is_err());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    drop(registration);
}

#[test]
fn p2_a_registration_that_takes_long_ends_by_its_deadline_and_leaves_nothing() {
    let script = Script { register_blocks: Some(Duration::from_secs(6)), ..Script::default() };
    let connector = script.connector();
    let began = Instant::now();
    let error = connector.with_deadline(Duration::from_millis(50)).slab(1, 64).wait().unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "answered only after the call returned");
    eventually("it is registered, and given up", || {
        began.elapsed() > Duration::from_secs(7) && script.registered.load(Ordering::SeqCst) == 0
    });
}

#[test]
fn the_number_of_registrations_is_bounded() {
    let connector = Script::default().connector();
    let mut slabs: Vec<_> = (0..1024).map(|_| connector.slab(1, 1).wait().unwrap()).collect();
    let error = connector.slab(1, 1).wait().unwrap_err();
    assert!(error.to_string().contains("1024 registrations"), "{error}");
    slabs.pop();
    assert!(connector.slab(1, 1).wait().is_ok());
}

#[test]
fn p1_a_slot_whose_operation_is_not_quiet_is_not_handed_out_again() {
    let script = Script { busy: Arc::new(AtomicBool::new(true)), ..Script::default() };
    let connector = script.connector();
    let slab = connector.slab(1, 64).wait().unwrap();
    let offer = slab.receive(64).wait().unwrap();
    drop(offer);
    eventually("it counts as parked", || connector.stats().parked == 1);
    let waiting = slab.take();
    thread::sleep(Duration::from_millis(50));
    assert_eq!((slab.free(), slab.try_take().is_some()), (0, false));
    script.busy.store(false, Ordering::SeqCst);
    assert!(waiting.wait().is_ok(), "who waited gets it then");
    eventually("it no longer counts", || connector.stats().parked == 0);
}

#[test]
fn p2_a_panic_in_the_transport_answers_those_who_wait_for_a_slot() {
    let script = Script { poll_panics: true, ..Script::default() };
    let connector = script.connector();
    let slab = connector.slab(1, 64).wait().unwrap();
    let mut slot = slab.try_take().unwrap();
    slot.resize(64).unwrap();
    let waiting = slab.with_deadline(Deadline::never()).take();
    let read = connector.begin_read(&metadata(), slot);
    assert!(matches!(waiting.wait(), Err(Error::ShutDown)));
    drop(read);
    assert_eq!(slab.free(), 0, "nobody knows whether it is quiet");
}

struct Waiting {
    task: Task<Slot, Error>,
    until: Option<Instant>,
}

/// Callers take, give up, give back and look, the driver turns or is late, and time passes, in random order.
#[test]
fn p2_those_who_wait_for_slots_get_one_or_an_error_in_random_schedules() {
    const SLOTS: usize = 3;
    let seeds = match std::env::var("CONNECT_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..300).collect(),
    };
    let (mut served, mut late) = (0, 0);
    for seed in seeds {
        let mut random = fastrand::Rng::with_seed(seed);
        let script = Script { clock: Clock::virtual_time(), ..Script::default() };
        let (connector, mut driver) = script.stepped();
        let slab = connector.slab(SLOTS, 64);
        driver.turn();
        let slab = slab.wait().unwrap();
        let (mut waiting, mut slots): (Vec<Waiting>, Vec<Slot>) = (Vec::new(), Vec::new());
        for step in 0..300 {
            let now = script.clock.now();
            match random.u8(..12) {
                0..3 => {
                    let patience = (random.u8(..4) > 0).then(|| Duration::from_millis(random.u64(..40)));
                    let deadline = patience.map_or(Deadline::never(), Deadline::after);
                    let task = slab.with_deadline(deadline).take();
                    waiting.push(Waiting { task, until: patience.map(|patience| now + patience) });
                }
                3 if !waiting.is_empty() => drop(waiting.swap_remove(random.usize(..waiting.len()))),
                4..7 if !slots.is_empty() => drop(slots.swap_remove(random.usize(..slots.len()))),
                7 => script.clock.advance(Duration::from_millis(random.u64(..20))),
                8 => late += usize::from(driver.deadlines.look(now) > 0),
                // In every fourth world it is stuck in calls for long.
                _ if seed % 4 > 0 || random.u8(..30) == 0 => assert!(driver.turn()),
                _ => {}
            }
            let turned = script.clock.now();
            waiting.retain_mut(|waiter| {
                match Pin::new(&mut waiter.task).poll(&mut Context::from_waker(Waker::noop())) {
                    Poll::Ready(Ok(slot)) => slots.push(slot),
                    Poll::Ready(Err(Error::DeadlineExceeded { .. })) => {
                        assert!(
                            waiter.until.is_some_and(|until| until <= turned),
                            "seed {seed}, {step}: early"
                        );
                    }
                    Poll::Ready(Err(error)) => panic!("seed {seed}, {step}: {error}"),
                    Poll::Pending => return true,
                }
                served += 1;
                false
            });
            let mut indices: Vec<usize> = slots.iter().map(Slot::index).collect();
            indices.sort_unstable();
            indices.dedup();
            assert_eq!(indices.len(), slots.len(), "seed {seed}, {step}: a slot is had by two");
            if slab.free() > 0 {
                assert!(waiting.is_empty(), "seed {seed}, {step}: one waits while a slot is free");
            }
        }
        // By then every deadline has passed, and the driver has had its turn.
        script.clock.advance(Duration::from_secs(1));
        driver.turn();
        driver.turn();
        waiting.retain(|waiter| waiter.until.is_none());
        slots.clear();
        drop(waiting);
        driver.turn();
        assert_eq!(slab.free(), SLOTS, "seed {seed}: a slot is lost");
        drop((slab, connector));
        while driver.turn() {}
        driver.finish();
    }
    assert!(served > 1000 && late > 0, "{served} were served, and the watchdog answered {late} times");
}

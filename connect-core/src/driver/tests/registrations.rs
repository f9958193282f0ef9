//! Memory that stays registered beyond single operations.

use super::*;

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
    let (registration, registered) = connector.register(region, owner);
    registered.wait().unwrap();
    assert_eq!((script.registered.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst)), (1, 0));

    script.busy.store(true, Ordering::SeqCst);
    drop(registration);
    eventually("it counts as parked", || connector.stats().parked == 1);
    assert_eq!((connector.stats().parked_bytes, dropped.load(Ordering::SeqCst)), (64, 0));
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
    let (registration, registered) = connector.register(region, owner);
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
    let (registration, registered) = connector.register(region, owner);
    assert!(registered.wait().is_err());
    assert_eq!(dropped.load(Ordering::SeqCst), 1);
    drop(registration);
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
    assert_eq!(connector.stats().parked, 0);
}

#[test]
fn p2_a_panic_in_the_transport_answers_those_who_wait_for_a_slot() {
    let script = Script { poll_panics: true, ..Script::default() };
    let connector = script.connector();
    let slab = connector.slab(1, 64).wait().unwrap();
    let mut slot = slab.try_take().unwrap();
    slot.resize(64).unwrap();
    let waiting = slab.with_deadline(crate::Deadline::never()).take();
    let read = connector.begin_read(&metadata(), slot);
    assert!(matches!(waiting.wait(), Err(Error::ShutDown)));
    drop(read);
    assert_eq!(slab.free(), 0, "nobody knows whether it is quiet");
}

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use futures_executor::block_on;

use super::{Slab, Slot};
use crate::{Connector, Deadline, Error, MemoryError, Recovered, SourceMemory, TargetMemory};

fn slab(slots: usize, slot_bytes: usize) -> Slab {
    Connector::local().unwrap().slab(slots, slot_bytes).wait().unwrap()
}

fn eventually(what: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !what() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    what()
}

// --- slots ------------------------------------------------------------------------------------------------

#[test]
fn slots_lie_side_by_side_aligned_and_apart() {
    let slab = slab(5, 100);
    let slots: Vec<Slot> = std::iter::from_fn(|| slab.try_take())
        .map(|mut slot| {
            slot.resize(100).unwrap();
            slot
        })
        .collect();
    assert_eq!((slots.len(), slab.free(), slab.slots(), slab.slot_bytes()), (5, 0, 5, 100));
    let regions: Vec<_> = slots.iter().map(|slot| SourceMemory::regions(slot)[0]).collect();
    for (i, region) in regions.iter().enumerate() {
        assert_eq!((region.addr() % 64, region.len()), (0, 100));
        assert!(slab.region().contains(region));
        assert!(regions[..i].iter().all(|other| !other.overlaps(region)));
    }
    drop(slots);
    assert_eq!(slab.free(), 5);
}

#[test]
fn what_an_earlier_user_left_is_uncovered_by_nothing_but_set_len() {
    let slab = slab(1, 100);
    let mut slot = slab.try_take().unwrap();
    slot.write_all(&[7; 100]).unwrap();
    assert!(slot.write_all(&[7]).is_err(), "it is full");
    drop(slot);

    let mut slot = slab.try_take().unwrap();
    assert!(slot.is_empty() && SourceMemory::regions(&slot).is_empty());
    slot.write_all(b"abc").unwrap();
    slot.resize(6).unwrap();
    assert_eq!(&slot[..], b"abc\0\0\0");
    slot.truncate(2);
    slot.truncate(50);
    assert_eq!(&slot[..], b"ab");
    slot.set_len(100).unwrap();
    assert_eq!(&slot[..8], b"abc\0\0\0\x07\x07", "what truncate hid, and what the last user left");
    assert_eq!(slot.set_len(101), Err(MemoryError::TooSmall { needed: 101, room: 100 }));
    assert_eq!(slot.resize(101), Err(MemoryError::TooSmall { needed: 101, room: 100 }));
    assert_eq!(slot.len(), 100, "an error changes nothing");
}

#[test]
fn the_beginning_of_memory_is_taken_if_it_is_one_piece_and_large_enough() {
    let mut buffer = vec![0u16; 4];
    let whole = TargetMemory::regions(&mut buffer)[0];
    assert_eq!(buffer.beginning(3).unwrap(), whole.slice(0..3).unwrap());
    assert_eq!(buffer.beginning(8).unwrap(), whole);
    assert_eq!(buffer.beginning(9), Err(MemoryError::TooSmall { needed: 9, room: 8 }));
    assert_eq!(Vec::<u8>::new().beginning(1), Err(MemoryError::Empty));
    let part = || crate::DescriptorMut::new(vec![0u8; 4]).unwrap();
    assert_eq!(vec![part(), part()].beginning(1), Err(MemoryError::NotContiguous { count: 2 }));
    let mut descriptor = part();
    assert_eq!([3, 4].map(|bytes| descriptor.beginning(bytes).unwrap().len()), [3, 4]);

    // Memory of another kind may count on every byte having been written.
    let mut several = vec![part()];
    assert_eq!(several.beginning(4), Ok(several[0].region()));
    assert_eq!(several.beginning(3), Err(MemoryError::AllOrNothing { needed: 3, room: 4 }));
    assert_eq!(several.beginning(5), Err(MemoryError::TooSmall { needed: 5, room: 4 }));

    let slab = slab(1, 10);
    let mut slot = slab.try_take().unwrap();
    slot.resize(8).unwrap();
    assert!(slot.beginning(11).is_err() && slot.len() == 8);
    assert_eq!((slot.beginning(10).unwrap().len(), slot.len()), (10, 10));
}

#[test]
fn a_slab_of_nothing_or_of_too_much_is_refused() {
    let connector = Connector::local().unwrap();
    let refused = |slots, bytes| match connector.slab(slots, bytes).wait() {
        Err(Error::Memory(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(0, 10), MemoryError::Empty);
    assert_eq!(refused(10, 0), MemoryError::Empty);
    assert!(matches!(refused(usize::MAX, 2), MemoryError::Exhausted { .. }));
    assert!(matches!(refused(1, usize::MAX), MemoryError::Exhausted { .. }));
    assert!(matches!(refused(1 << 20, 1 << 40), MemoryError::Exhausted { .. }));
}

// --- waiting ----------------------------------------------------------------------------------------------

#[test]
fn who_waits_longest_is_served_first() {
    let slab = slab(1, 10);
    let slot = slab.try_take().unwrap();
    let (served, order) = mpsc::channel();
    let waiters: Vec<_> = (0..4)
        .map(|i| {
            let (waiting, served) = (slab.take(), served.clone());
            thread::spawn(move || {
                let slot = if i % 2 == 0 { waiting.wait() } else { block_on(waiting) };
                served.send(i).unwrap();
                drop(slot.unwrap());
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(20));
    assert!(order.try_recv().is_err() && slab.try_take().is_none());
    drop(slot);
    waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    assert_eq!(order.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(slab.free(), 1);
}

#[test]
fn p2_waiting_for_a_slot_ends_with_its_deadline_and_takes_none_afterwards() {
    let slab = slab(1, 10);
    let slot = slab.try_take().unwrap();
    let began = Instant::now();
    let error = slab.with_deadline(Duration::from_millis(30)).take().wait().unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert!(error.to_string().starts_with("take #"), "{error}");
    let error = slab.with_deadline(Duration::from_millis(30)).receive(5).wait().unwrap_err();
    assert!(matches!(error, Error::DeadlineExceeded { .. }), "{error}");
    drop(slot);
    assert_eq!(slab.free(), 1, "those who gave up get nothing");
}

#[test]
fn a_slot_handed_to_somebody_who_left_comes_back() {
    let slab = slab(1, 10);
    for _ in 0..50 {
        let slot = slab.try_take().unwrap();
        // One that is dropped before it is served, one right behind it, and one that is dropped with its slot.
        let (first, second) = (slab.take(), slab.take());
        drop(first);
        drop(slot);
        drop(second);
        assert!(eventually(|| slab.free() == 1));
    }
}

#[test]
fn p2_waiting_for_a_slot_ends_with_the_connector() {
    let connector = Connector::local().unwrap();
    let slab = connector.slab(1, 10).wait().unwrap();
    let slot = slab.try_take().unwrap();
    let waiting = slab.with_deadline(Deadline::never()).take();
    connector.shutdown(Duration::from_secs(5)).wait().unwrap();
    assert!(matches!(waiting.wait(), Err(Error::ShutDown)));
    assert!(matches!(slab.take().wait(), Err(Error::ShutDown)), "nobody would keep its deadline");
    // What is left is memory.
    drop(slot);
    assert!(slab.take().wait().is_ok());
    assert!(matches!(connector.slab(1, 10).wait(), Err(Error::ShutDown)));
}

#[test]
fn those_who_give_up_waiting_are_not_kept() {
    let slab = slab(1, 10);
    let _slot = slab.try_take().unwrap();
    let patient = slab.take();
    for _ in 0..1000 {
        drop(slab.take());
    }
    assert!(slab.shared.queued() < 50, "{} wait", slab.shared.queued());
    drop(_slot);
    assert!(patient.wait().is_ok());
}

#[test]
fn slots_are_never_had_by_two_at_once() {
    let slab = slab(3, 8);
    let users: Vec<_> = (1..=8u8)
        .map(|user| {
            let slab = slab.clone();
            thread::spawn(move || {
                for _ in 0..200 {
                    let mut slot = slab.take().wait().unwrap();
                    slot.resize(8).unwrap();
                    slot.fill(user);
                    thread::yield_now();
                    assert_eq!(&slot[..], [user; 8]);
                }
            })
        })
        .collect();
    users.into_iter().for_each(|user| user.join().unwrap());
    assert_eq!(slab.free(), 3);
}

// --- operations -------------------------------------------------------------------------------------------

#[test]
fn a_slot_comes_back_however_its_operation_ends() {
    let (a, b) = (Connector::local().unwrap(), Connector::local().unwrap());
    let slab = a.slab(1, 100).wait().unwrap();
    let filled = || {
        let mut slot = slab.take().wait().unwrap();
        slot.write_all(&[3; 40]).unwrap();
        slot
    };
    let offer = a.create_readable(filled()).wait().unwrap();
    assert_eq!(slab.free(), 0);
    let received = b.begin_read(offer.metadata(), vec![0u8; 40]).wait().unwrap().wait_for_completion();
    assert_eq!(received.wait().unwrap().memory, [3; 40]);
    offer.wait_for_completion().wait().unwrap();
    assert_eq!(slab.free(), 1, "completed");

    drop(a.create_readable(filled()));
    assert!(eventually(|| slab.free() == 1), "dropped");

    a.create_readable(filled()).wait().unwrap().cancel().wait().unwrap_err();
    assert!(eventually(|| slab.free() == 1), "cancelled");

    let empty = slab.take().wait().unwrap();
    assert!(matches!(a.create_readable(empty).wait(), Err(Error::Memory(MemoryError::Empty))));
    assert_eq!(slab.free(), 1, "refused");

    let failed = a.with_deadline(Duration::from_millis(1)).create_writable(filled()).wait();
    let failed = failed.and_then(|offer| offer.wait_for_completion().wait()).unwrap_err();
    // The watchdog parks it if the driver was late, and then it comes back by itself.
    if let Recovered::Returned(slot) = failed.memory {
        assert_eq!((slot.len(), slab.free()), (40, 0));
    }
    assert!(eventually(|| slab.free() == 1), "out of time");
}

#[test]
fn memory_outlives_its_slab_and_its_connector() {
    let slab = slab(2, 100);
    let mut slot = slab.try_take().unwrap();
    drop(slab);
    slot.write_all(&[9; 100]).unwrap();
    assert_eq!(&slot[..], [9; 100]);
    // And goes into operations of any connector.
    let (a, b) = (Connector::local().unwrap(), Connector::local().unwrap());
    let offer = a.create_readable(slot).wait().unwrap();
    let received = b.begin_read(offer.metadata(), vec![0u8; 100]).wait().unwrap().wait_for_completion();
    assert_eq!(received.wait().unwrap().memory, [9; 100]);
}

#[test]
fn what_a_slot_does_not_hold_is_refused_before_the_peer_hears_of_it() {
    let (a, b) = (Connector::local().unwrap(), Connector::local().unwrap());
    let slab = b.slab(1, 100).wait().unwrap();
    assert!(matches!(
        slab.receive(101).wait(),
        Err(Error::Memory(MemoryError::TooSmall { needed: 101, room: 100 }))
    ));
    assert!(matches!(slab.receive(0).wait(), Err(Error::Memory(MemoryError::Empty))));
    let offer = a.create_readable(vec![0u8; 101]).wait().unwrap();
    let failed = b.begin_read_into(offer.metadata(), slab.try_take().unwrap()).wait().unwrap_err();
    assert!(matches!(failed.error, Error::Memory(MemoryError::TooSmall { .. })), "{failed:?}");
    assert!(matches!(failed.memory, Recovered::Returned(ref slot) if slot.is_empty()));
    // The offer is as good as before.
    b.begin_read(offer.metadata(), vec![0u8; 101]).wait().unwrap().wait_for_completion().wait().unwrap();
}

#[test]
fn an_offer_to_receive_begins_at_once_while_a_slot_is_free() {
    let connector = Connector::local().unwrap();
    let slab = connector.slab(1, 100).wait().unwrap();
    let receiving = slab.receive(10);
    assert!(eventually(|| connector.stats().started == 1), "before anybody looks");
    drop(receiving);
    assert!(eventually(|| slab.free() == 1));
}
